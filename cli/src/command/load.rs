//! `votestream load`: casts generated votes and measures.
//!
//! Owns pacing and measurement. Must never make the service look better than it is: with a rate, a vote's time counts
//! from the moment at which it was due, so a stall counts for every vote that it delayed.

use std::{sync::Arc, time::Duration};

use hdrhistogram::Histogram;
use indicatif::{HumanCount, ProgressBar};
use serde::Serialize;
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use votestream_client::{
    IngestClient, MessageBuilder, Observer, Outgoing, SOURCE_MESSAGES_MAX, StreamOptions, Vote, v1::Rejection,
};
use votestream_process::terminal::Signals;

use crate::{
    args::{Global, LoadArgs},
    failure::{Answer, Failure, Outcome},
    generate::{Plan, Votes},
    output,
};

/// Longest time that the histogram can hold, in microseconds.
const LATENCY_MAX_MICROS: u64 = 600_000_000;
/// Most rejections whose reasons are shown.
const REASONS_SHOWN: usize = 5;

#[derive(Debug, Serialize)]
struct Report {
    poll_id: String,
    /// Votes that were sent: all that were asked for, unless the run was cut short.
    votes: u64,
    voters: u64,
    accepted: u64,
    rejected: u64,
    /// Votes that were sent and not answered, because the run was cut short.
    #[serde(skip_serializing_if = "is_zero")]
    unknown: u64,
    seconds: f64,
    votes_per_second: f64,
    ack_milliseconds: Percentiles,
}

/// Time from a vote's message to its acknowledgement.
#[derive(Debug, Serialize)]
struct Percentiles {
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Percentiles {
    fn of(micros: &Histogram<u64>) -> Self {
        let at = |quantile| micros.value_at_quantile(quantile) as f64 / 1e3;
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: micros.max() as f64 / 1e3 }
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

pub(super) async fn run(global: &Global, args: LoadArgs, mut signals: Signals) -> Outcome {
    let prepared = tokio::select! {
        prepared = prepare(global, &args) => prepared?,
        signal = signals.next() => return Err(Failure::Interrupted(signal)),
    };
    let stop = CancellationToken::new();
    let mut casting = std::pin::pin!(cast(&args, prepared, &stop));
    let (measured, signal) = tokio::select! {
        measured = &mut casting => (measured?, None),
        signal = signals.next() => {
            output::note("interrupted: waiting until every sent vote is answered (a second signal stops at once)");
            stop.cancel();
            tokio::select! {
                measured = casting => (measured?, Some(signal)),
                signal = signals.next() => return Err(Failure::Interrupted(signal)),
            }
        }
    };
    let (report, failure) = measured;
    show(global, &report, args.votes)?;
    match (failure, signal) {
        (Some(failure), _) => Err(failure),
        (None, Some(signal)) => Err(Failure::Interrupted(signal)),
        (None, None) => Ok(Answer::yes_if(report.rejected == 0)),
    }
}

/// What a run needs before its first vote.
struct Prepared {
    plan: Plan,
    options: Arc<[String]>,
    clients: Vec<IngestClient>,
}

async fn prepare(global: &Global, args: &LoadArgs) -> Result<Prepared, Failure> {
    let options = options_of(global, &args.poll).await?;
    let voters = args.voters.unwrap_or_else(|| first_votes(args.votes, args.revote_share)).clamp(1, args.votes);
    let streams = u32::try_from(voters).unwrap_or(u32::MAX).min(args.connections);
    let plan = Plan { votes: args.votes, voters, options: options.len(), streams, seed: args.seed };
    let mut clients = Vec::new();
    for _ in 0..streams {
        clients.push(global.connect_ingest().await?);
    }
    Ok(Prepared { plan, options, clients })
}

/// Casts the votes, until all are settled or it is told to stop.
async fn cast(
    args: &LoadArgs,
    Prepared { plan, options, clients }: Prepared,
    stop: &CancellationToken,
) -> Result<(Report, Option<Failure>), Failure> {
    let poll: Arc<str> = args.poll.as_str().into();
    let progress = ProgressBar::new(args.votes);
    output::show_progress(&progress, "{bar:40} {human_pos} of {human_len} votes, {per_sec}, {eta} left");
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for (stream, client) in (0..plan.streams).zip(clients) {
        let pace = Pace::new(start, args.rate, args.votes_per_message, plan.streams, stream);
        let (to_stream, source) = mpsc::channel(SOURCE_MESSAGES_MAX);
        let feed = feed(plan.stream(stream), poll.clone(), options.clone(), args.votes_per_message, pace, to_stream);
        // When the task stops, the stream is closed, and the votes that were sent are settled.
        tokio::spawn(stop.clone().run_until_cancelled_owned(feed));
        let mut measured = Measured::new(progress.clone())?;
        // A broken stream is a result of the measurement, so it is not resumed.
        let stream_options = StreamOptions { resume: false, ..StreamOptions::default() };
        tasks.spawn(async move {
            let ended = client.stream_messages(stream_options, source, &mut measured).await;
            (ended, measured)
        });
    }
    let mut total = Measured::new(progress.clone())?;
    let (mut sent, mut settled, mut failure) = (0, 0, None);
    while let Some(ended) = tasks.join_next().await {
        let (ended, measured) = ended.map_err(|error| Failure::failed(format!("a stream's task failed: {error}")))?;
        sent += ended.sent;
        settled += ended.settled;
        failure = failure.or(ended.failure.map(|error| Failure::client("casting votes", error)));
        total.add(measured);
    }
    let seconds = start.elapsed().as_secs_f64();
    progress.finish_and_clear();

    for reason in &total.reasons {
        output::note(&format!("rejected: {}", output::printable(reason)));
    }
    let report = Report {
        poll_id: args.poll.clone(),
        votes: sent,
        voters: plan.voters,
        accepted: settled.saturating_sub(total.rejected),
        rejected: total.rejected,
        unknown: sent.saturating_sub(settled),
        seconds,
        votes_per_second: settled as f64 / seconds,
        ack_milliseconds: Percentiles::of(&total.micros),
    };
    Ok((report, failure))
}

/// Number of users, so that this share of the votes is left for re-votes.
fn first_votes(votes: u64, revote_share: f64) -> u64 {
    ((votes as f64) * (1.0 - revote_share)).round() as u64
}

async fn options_of(global: &Global, poll: &str) -> Result<Arc<[String]>, Failure> {
    let results = global.connect_results().await?;
    let poll = results.get_poll(poll).await.map_err(|error| Failure::client("reading the poll", error))?;
    let options: Arc<[String]> = poll.options.into_iter().map(|option| option.option_id).collect();
    if options.is_empty() {
        return Err(Failure::failed(format!("{} answered with a poll without options", results.address())));
    }
    Ok(options)
}

/// When each message of a stream is due.
#[derive(Clone, Copy, Debug)]
struct Pace {
    first: Instant,
    /// Zero if messages are sent as fast as the service takes them.
    interval: Duration,
}

impl Pace {
    fn new(start: Instant, rate: u64, votes_per_message: u32, streams: u32, stream: u32) -> Self {
        if rate == 0 {
            return Self { first: start, interval: Duration::ZERO };
        }
        let between_messages = Duration::from_secs_f64(f64::from(votes_per_message) / rate as f64);
        // The streams take turns. So the rate is even, without bursts of one message from every stream.
        Self { first: start + between_messages * stream, interval: between_messages * streams }
    }
}

async fn feed(
    mut votes: Votes,
    poll: Arc<str>,
    options: Arc<[String]>,
    votes_per_message: u32,
    pace: Pace,
    to_stream: mpsc::Sender<Outgoing<()>>,
) {
    let mut due = pace.first;
    loop {
        let mut builder = MessageBuilder::new(votes_per_message as usize);
        for vote in votes.by_ref().take(votes_per_message as usize) {
            let (user_id, option_id) = (vote.user_id.as_str(), &options[vote.option]);
            builder.push(Vote { poll_id: &poll, user_id, option_id });
        }
        if builder.votes() == 0 {
            return;
        }
        let planned = (!pace.interval.is_zero()).then_some(due);
        if planned.is_some() {
            tokio::time::sleep_until(due).await;
            due += pace.interval;
        }
        // A closed channel means that the stream broke; the task of the stream reports that.
        if to_stream.send(builder.finish(planned, ())).await.is_err() {
            return;
        }
    }
}

/// What one stream measured.
struct Measured {
    micros: Histogram<u64>,
    rejected: u64,
    reasons: Vec<String>,
    progress: ProgressBar,
}

impl Measured {
    fn new(progress: ProgressBar) -> Result<Self, Failure> {
        let micros = Histogram::new_with_max(LATENCY_MAX_MICROS, 3)
            .map_err(|error| Failure::failed(format!("cannot set up the histogram: {error}")))?;
        Ok(Self { micros, rejected: 0, reasons: Vec::new(), progress })
    }

    fn add(&mut self, other: Self) {
        // Both have the same bounds, so nothing can be lost.
        if self.micros.add(&other.micros).is_err() {
            tracing::warn!("cannot add the histogram of a stream");
        }
        self.rejected += other.rejected;
        for reason in other.reasons {
            self.keep_reason(reason);
        }
    }

    fn keep_reason(&mut self, reason: String) {
        if self.reasons.len() < REASONS_SHOWN && !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }
}

impl Observer<()> for Measured {
    fn rejected(&mut self, _place: Option<(&(), u64)>, rejection: Rejection) {
        self.rejected += 1;
        self.keep_reason(rejection.reason);
    }

    fn settled(&mut self, (): (), votes: u64, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.micros.saturating_record_n(micros, votes);
        self.progress.inc(votes);
    }
}

fn show(global: &Global, report: &Report, planned: u64) -> Result<(), Failure> {
    if global.json {
        return output::json(report);
    }
    output::lines(&describe(report, planned))
}

fn describe(report: &Report, planned: u64) -> Vec<String> {
    let ack = &report.ack_milliseconds;
    let sent = if report.votes == planned {
        format!("{} votes of {} users", HumanCount(report.votes), HumanCount(report.voters))
    } else {
        format!("{} of {} votes", HumanCount(report.votes), HumanCount(planned))
    };
    let unknown = match report.unknown {
        0 => String::new(),
        unknown => format!(", unknown {}", HumanCount(unknown)),
    };
    vec![
        format!("{sent} in {:.2} s: {} votes/s", report.seconds, HumanCount(report.votes_per_second as u64)),
        format!("accepted {}, rejected {}{unknown}", HumanCount(report.accepted), HumanCount(report.rejected)),
        format!(
            "acknowledged after p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, at most {:.1} ms",
            ack.p50, ack.p99, ack.p999, ack.max
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_take_turns_at_the_given_rate() {
        let start = Instant::now();
        let paces: Vec<_> = (0..4).map(|stream| Pace::new(start, 10_000, 100, 4, stream)).collect();
        for (stream, pace) in (0..4).zip(paces) {
            assert_eq!(pace.first - start, Duration::from_millis(10) * stream);
            assert_eq!(pace.interval, Duration::from_millis(40));
        }
        assert!(Pace::new(start, 0, 100, 4, 3).interval.is_zero());
    }

    #[test]
    fn the_headline_has_what_was_sent() {
        let ack_milliseconds = Percentiles { p50: 0.0, p99: 0.0, p999: 0.0, max: 0.0 };
        let mut report = Report {
            poll_id: "p".into(),
            votes: 2_000,
            voters: 500,
            accepted: 2_000,
            rejected: 0,
            unknown: 0,
            seconds: 2.0,
            votes_per_second: 1_000.0,
            ack_milliseconds,
        };
        assert_eq!(describe(&report, 2_000)[0], "2,000 votes of 500 users in 2.00 s: 1,000 votes/s");
        (report.accepted, report.unknown) = (1_900, 100);
        let lines = describe(&report, 1_000_000);
        assert_eq!(lines[0], "2,000 of 1,000,000 votes in 2.00 s: 1,000 votes/s");
        assert_eq!(lines[1], "accepted 1,900, rejected 0, unknown 100");
    }

    #[test]
    fn the_revote_share_leaves_the_first_votes() {
        assert_eq!(first_votes(1_000, 0.0), 1_000);
        assert_eq!(first_votes(1_000, 0.4), 600);
        assert_eq!(first_votes(1_000, 1.0), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn messages_are_due_one_after_the_other_and_carry_every_vote() {
        let plan = Plan { votes: 1_050, voters: 500, options: 2, streams: 1, seed: 1 };
        let (to_stream, mut source) = mpsc::channel(2);
        let start = Instant::now();
        let options: Arc<[String]> = ["a".to_owned(), "b".to_owned()].into();
        tokio::spawn(feed(plan.stream(0), "p".into(), options, 100, Pace::new(start, 1_000, 100, 1, 0), to_stream));
        let (mut votes, mut messages) = (0, 0);
        while let Some(message) = source.recv().await {
            assert_eq!(message.due, Some(start + Duration::from_millis(100) * messages));
            assert!(Instant::now() >= start + Duration::from_millis(100) * messages);
            votes += message.votes;
            messages += 1;
        }
        assert_eq!((votes, messages), (1_050, 11));
    }
}
