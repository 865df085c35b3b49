//! `votestream demo`: the whole stack at work, and the proof that its result is exact.
//!
//! Owns the comparison of four independent counts: the demo's own model, the interim tallies, the final result and a
//! recount of the stored votes. Must never call a run exact that it has not checked completely.

use std::{collections::BTreeMap, future::Future, time::Duration};

use console::Term;
use indicatif::HumanCount;
use serde::Serialize;
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use votestream_client::{
    Client, ClientBuilder, MessageBuilder, Observer, Outgoing, ResultsClient, SOURCE_MESSAGES_MAX, StreamOptions, Vote,
    json,
    v1::{self, Rejection},
};
use votestream_process::terminal::Signals;

use super::{audit::RECOUNT_TIMEOUT, results::Labels};
use crate::{
    args::{DemoArgs, Global},
    bars::Canvas,
    failure::{Answer, Failure, Outcome},
    generate::{Plan, Votes},
    output,
    stack::{RunningStack, StackOptions},
};

const POLL_ID: &str = "demo";
const TITLE: &str = "Song of the year";
const OPTIONS: [(&str, &str); 5] =
    [("aurora", "Aurora"), ("bolero", "Bolero"), ("canto", "Canto"), ("dusk", "Dusk"), ("echo", "Echo")];
/// Connections, with one stream each.
const CONNECTIONS: u32 = 4;
const VOTES_PER_MESSAGE: usize = 500;
/// How long the poll is open. The demo closes it itself; this only has to be longer than the demo runs.
const OPEN_FOR: Duration = Duration::from_secs(7 * 24 * 3_600);
/// How often the bars are drawn.
const DRAW_EVERY: Duration = Duration::from_millis(200);
/// How often the demo asks whether every vote has been counted; the measured time is too long by up to this much.
const COUNTED_EVERY: Duration = Duration::from_millis(25);
/// By then all votes have been acknowledged. If counting makes no progress for this long, the run has failed.
const STALL_MAX: Duration = Duration::from_secs(60);
/// How long the final result may take after all votes are counted: closing margin, L, and some reserve.
const FINAL_MAX: Duration = Duration::from_secs(120);

type Counts = BTreeMap<String, u64>;

/// What the demo found out.
#[derive(Debug, Serialize)]
struct Report {
    poll_id: &'static str,
    votes: u64,
    voters: u64,
    accepted: u64,
    submitted: u64,
    counted: u64,
    model: Counts,
    #[serde(rename = "final")]
    last: Counts,
    recounted: Counts,
    exact: bool,
    seconds: Seconds,
    votes_per_second: Rates,
}

#[derive(Debug, Serialize)]
struct Seconds {
    /// From the first vote to the last acknowledgement.
    cast: f64,
    /// From the last acknowledgement until the interim results show every vote.
    count: f64,
    /// From closing the poll to the final result. Most of it is waiting that the protocol requires.
    #[serde(rename = "final")]
    last: f64,
    /// From the first vote to the end of the recount.
    total: f64,
}

#[derive(Debug, Serialize)]
struct Rates {
    cast: f64,
    end_to_end: f64,
}

impl Report {
    /// Whether every count agrees with the model, so that no vote is missing or counted twice.
    fn is_exact(&self) -> bool {
        let users: u64 = self.model.values().sum();
        self.accepted == self.votes
            && self.submitted == self.votes
            && self.counted == self.voters
            && users == self.voters
            && self.model == self.last
            && self.model == self.recounted
    }
}

pub(super) async fn run(global: &Global, args: DemoArgs, mut signals: Signals) -> Outcome {
    let mut stack = RunningStack::start(StackOptions::ephemeral(args.shards)).await?;
    let services = Client::builder().server_address(stack.address()?);
    let ran = tokio::select! {
        ran = cast_and_prove(&args, &services) => ran,
        failure = stack.broken() => Err(failure),
        // An interrupted demo removes its directory.
        signal = signals.next() => Err(Failure::Interrupted(signal)),
    };
    let stopped = tokio::select! {
        stopped = stack.stop() => stopped,
        signal = signals.next() => Err(Failure::Interrupted(signal)),
    };
    let report = ran?;
    stopped?;
    if global.json {
        output::json(&report)?;
    } else {
        output::lines(&describe(&report))?;
    }
    Ok(Answer::yes_if(report.exact))
}

async fn cast_and_prove(args: &DemoArgs, services: &ClientBuilder) -> Result<Report, Failure> {
    let results = services.connect_results().await.map_err(Failure::connecting)?;
    create_poll(&results).await?;
    let voters = args.voters.min(args.votes);
    let streams = u32::try_from(voters).unwrap_or(u32::MAX).min(CONNECTIONS);
    let plan = Plan { votes: args.votes, voters, options: OPTIONS.len(), streams, seed: args.seed };
    output::note(&format!(
        "casting {} votes of {} users over {streams} connections into {} shards",
        HumanCount(args.votes),
        HumanCount(voters),
        args.shards
    ));

    let mut live = Live::new(results.clone(), Labels::read(&results, POLL_ID).await);
    let start = Instant::now();
    let cast = live.during(cast(plan, services)).await?;
    let cast_done = Instant::now();
    for reason in &cast.reasons {
        output::note(&format!("rejected: {}", output::printable(reason)));
    }
    let interim = live.during(all_counted(&results, args.votes, voters)).await?;
    let counted_done = Instant::now();

    results.close_poll(POLL_ID).await.map_err(|error| Failure::client("closing the poll", error))?;
    output::note("closed; waiting until no more votes can arrive");
    let last = results
        .wait_for_final_results(POLL_ID, Some(FINAL_MAX))
        .await
        .map_err(|error| Failure::client("waiting for the final result", error))?;
    let final_done = Instant::now();
    let recount =
        results.recount(POLL_ID, RECOUNT_TIMEOUT).await.map_err(|error| Failure::client("the recount", error))?;
    let done = Instant::now();

    let seconds = Seconds {
        cast: (cast_done - start).as_secs_f64(),
        count: (counted_done - cast_done).as_secs_f64(),
        last: (final_done - counted_done).as_secs_f64(),
        total: (done - start).as_secs_f64(),
    };
    let votes = args.votes as f64;
    let mut report = Report {
        poll_id: POLL_ID,
        votes: args.votes,
        voters,
        accepted: cast.accepted,
        submitted: interim.total_submitted,
        counted: interim.total_counted,
        model: OPTIONS.iter().zip(cast.model).map(|((id, _), count)| ((*id).to_owned(), count)).collect(),
        last: last.options.into_iter().map(|option| (option.option_id, option.votes)).collect(),
        recounted: recount.options.into_iter().map(|option| (option.option_id, option.recounted)).collect(),
        exact: false,
        votes_per_second: Rates {
            cast: votes / seconds.cast,
            end_to_end: votes / (counted_done - start).as_secs_f64(),
        },
        seconds,
    };
    report.exact = report.is_exact() && recount.matches;
    Ok(report)
}

async fn create_poll(results: &ResultsClient) -> Result<(), Failure> {
    let closes_at =
        jiff::Timestamp::now().checked_add(OPEN_FOR).map_err(|error| Failure::failed(format!("clock: {error}")))?;
    let message = v1::CreatePollRequest {
        poll_id: POLL_ID.into(),
        title: TITLE.into(),
        options: OPTIONS
            .iter()
            .map(|(id, title)| v1::PollOption { option_id: (*id).into(), title: (*title).into() })
            .collect(),
        closes_at: Some(json::to_proto(closes_at)),
        ..v1::CreatePollRequest::default()
    };
    results.create_poll(message).await.map(drop).map_err(|error| Failure::client("creating the poll", error))
}

/// What the streams reported, and what the result must be.
#[derive(Default)]
struct Cast {
    accepted: u64,
    /// Users per option, by their last vote.
    model: [u64; OPTIONS.len()],
    reasons: Vec<String>,
}

/// Casts the plan's votes over all streams.
async fn cast(plan: Plan, services: &ClientBuilder) -> Result<Cast, Failure> {
    let mut streams = JoinSet::new();
    for stream in 0..plan.streams {
        let client = services.connect_ingest().await.map_err(Failure::connecting)?;
        let (to_stream, source) = mpsc::channel(SOURCE_MESSAGES_MAX);
        let feeding = tokio::spawn(feed(plan.stream(stream), to_stream));
        streams.spawn(async move {
            let mut rejections = Rejections::default();
            // The proof counts every submitted vote, and a vote that is sent again may be stored twice.
            let options = StreamOptions { resume: false, ..StreamOptions::default() };
            let ended = client.stream_messages(options, source, &mut rejections).await;
            match ended.failure {
                Some(failure) => Err(Failure::client("casting votes", failure)),
                None => {
                    let model = feeding.await.map_err(|error| Failure::failed(format!("a task failed: {error}")))?;
                    Ok((ended.settled.saturating_sub(rejections.count), model, rejections.first))
                }
            }
        });
    }
    let mut cast = Cast::default();
    while let Some(ended) = streams.join_next().await {
        let (accepted, model, reason) = ended.map_err(|error| Failure::failed(format!("a task failed: {error}")))??;
        cast.accepted += accepted;
        cast.model.iter_mut().zip(model).for_each(|(sum, count)| *sum += count);
        cast.reasons.extend(reason);
    }
    Ok(cast)
}

/// Sends the votes of one stream, and returns how many of its users voted for each option last. A user votes in one
/// stream only, so the order in which votes are sent here is the order that counts.
async fn feed(mut votes: Votes, to_stream: mpsc::Sender<Outgoing<()>>) -> [u64; OPTIONS.len()] {
    let mut last: Vec<u8> = Vec::new();
    loop {
        let mut builder = MessageBuilder::new(VOTES_PER_MESSAGE);
        for vote in votes.by_ref().take(VOTES_PER_MESSAGE) {
            let voter = vote.voter as usize;
            if voter == last.len() {
                last.push(vote.option as u8);
            } else {
                last[voter] = vote.option as u8;
            }
            let (user_id, option_id) = (vote.user_id.as_str(), OPTIONS[vote.option].0);
            builder.push(Vote { poll_id: POLL_ID, user_id, option_id });
        }
        // A closed channel means that the stream broke; the task of the stream reports that.
        if builder.votes() == 0 || to_stream.send(builder.finish(None, ())).await.is_err() {
            break;
        }
    }
    let mut model = [0; OPTIONS.len()];
    last.iter().for_each(|option| model[usize::from(*option)] += 1);
    model
}

#[derive(Default)]
struct Rejections {
    count: u64,
    first: Option<String>,
}

impl Observer<()> for Rejections {
    fn rejected(&mut self, _place: Option<(&(), u64)>, rejection: Rejection) {
        self.count += 1;
        self.first.get_or_insert(rejection.reason);
    }

    fn settled(&mut self, (): (), _votes: u64, _latency: Duration) {}
}

async fn interim(results: &ResultsClient) -> Result<v1::GetInterimResultsResponse, Failure> {
    results.interim_results(POLL_ID).await.map_err(|error| Failure::client("reading the results", error))
}

/// Waits until the interim results show every vote. If they stop changing before that, returns what they show: the
/// comparison then says what is wrong.
async fn all_counted(
    results: &ResultsClient,
    votes: u64,
    voters: u64,
) -> Result<v1::GetInterimResultsResponse, Failure> {
    let mut seen = (0, 0);
    let mut changed = Instant::now();
    loop {
        let asked = Instant::now();
        let interim = interim(results).await?;
        let now = (interim.total_submitted, interim.total_counted);
        if now != seen {
            (seen, changed) = (now, Instant::now());
        }
        if now == (votes, voters) || changed.elapsed() >= STALL_MAX {
            return Ok(interim);
        }
        tokio::time::sleep_until(asked + COUNTED_EVERY).await;
    }
}

/// Bars that move while the demo runs; nothing if stderr is not a terminal.
struct Live {
    results: ResultsClient,
    labels: Labels,
    canvas: Canvas,
}

impl Live {
    fn new(results: ResultsClient, labels: Labels) -> Self {
        Self { results, labels, canvas: Canvas::new(Term::stderr()) }
    }

    /// Draws until `work` is done, and once more after that.
    async fn during<T>(&mut self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let mut work = std::pin::pin!(work);
        if !self.canvas.can_redraw() {
            return work.await;
        }
        let mut ticks = tokio::time::interval(DRAW_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let draw = async {
                ticks.tick().await;
                self.draw().await
            };
            // A drawing is written in one piece. If it is cancelled, it is cancelled before or after that, never within
            // a line.
            tokio::select! {
                done = &mut work => {
                    let done = done?;
                    self.draw().await?;
                    return Ok(done);
                }
                drawn = draw => drawn?,
            }
        }
    }

    async fn draw(&mut self) -> Result<(), Failure> {
        let shown = json::Interim::from(interim(&self.results).await?);
        let lines = self.labels.interim(&shown, self.canvas.size());
        // If drawing fails, the run goes on without the bars.
        drop(self.canvas.draw(&lines));
        Ok(())
    }
}

fn describe(report: &Report) -> Vec<String> {
    let count =
        |counts: &Counts, id: &str| counts.get(id).map_or_else(|| "-".to_owned(), |n| HumanCount(*n).to_string());
    let mut lines = vec![format!("{:>13}  {:>13}  {:>13}  option", "model", "final", "recounted")];
    lines.extend(OPTIONS.iter().map(|(id, title)| {
        let counts = [&report.model, &report.last, &report.recounted].map(|counts| count(counts, id));
        format!("{:>13}  {:>13}  {:>13}  {title}", counts[0], counts[1], counts[2])
    }));
    lines.push(format!(
        "votes: {} cast, {} acknowledged, {} submitted; users: {} voted, {} counted",
        HumanCount(report.votes),
        HumanCount(report.accepted),
        HumanCount(report.submitted),
        HumanCount(report.voters),
        HumanCount(report.counted)
    ));
    let seconds = &report.seconds;
    lines.push(format!(
        "cast in {:.2} s ({} votes/s), all counted {:.2} s later ({} votes/s end to end), final {:.1} s after closing",
        seconds.cast,
        HumanCount(report.votes_per_second.cast as u64),
        seconds.count,
        HumanCount(report.votes_per_second.end_to_end as u64),
        seconds.last
    ));
    if report.exact {
        lines.push("EXACT: the final result is what the demo's own model says, and so is a recount".to_owned());
        lines.extend(
            [
                "",
                "Continue with a stack that keeps its data:",
                "  votestream up",
                "  votestream poll create --id song --option aurora --option bolero --closes-in 15m",
                "  votestream cast --poll song --user you --option bolero",
                "  votestream load --poll song --votes 1000000 --revote-share 0.3",
                "  votestream results song --watch",
                "  votestream poll close song",
                "  votestream results song --final --wait",
                "  votestream audit song",
            ]
            .map(str::to_owned),
        );
    } else {
        lines.push("NOT EXACT: the counts above differ".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use votestream_proto::ReceivedVotes;

    use super::*;

    fn report() -> Report {
        let counts: Counts = [("aurora".to_owned(), 2), ("bolero".to_owned(), 1)].into();
        Report {
            poll_id: POLL_ID,
            votes: 5,
            voters: 3,
            accepted: 5,
            submitted: 5,
            counted: 3,
            model: counts.clone(),
            last: counts.clone(),
            recounted: counts,
            exact: true,
            seconds: Seconds { cast: 1.0, count: 0.25, last: 8.0, total: 9.5 },
            votes_per_second: Rates { cast: 5.0, end_to_end: 4.0 },
        }
    }

    #[test]
    fn the_json_object() {
        let counts = serde_json::json!({"aurora": 2, "bolero": 1});
        assert_eq!(
            serde_json::to_value(report()).unwrap(),
            serde_json::json!({
                "poll_id": "demo", "votes": 5, "voters": 3, "accepted": 5, "submitted": 5, "counted": 3,
                "model": counts, "final": counts, "recounted": counts, "exact": true,
                "seconds": {"cast": 1.0, "count": 0.25, "final": 8.0, "total": 9.5},
                "votes_per_second": {"cast": 5.0, "end_to_end": 4.0},
            })
        );
    }

    #[test]
    fn anything_that_differs_is_not_exact() {
        assert!(report().is_exact());
        let breaks: [fn(&mut Report); 6] = [
            |report| report.accepted -= 1,
            |report| report.submitted += 1,
            |report| report.counted -= 1,
            |report| *report.model.entry("aurora".into()).or_default() += 1,
            |report| report.last.clear(),
            |report| *report.recounted.entry("aurora".into()).or_default() -= 1,
        ];
        for damage in breaks {
            let mut report = report();
            damage(&mut report);
            assert!(!report.is_exact(), "{report:?}");
        }
    }

    #[tokio::test]
    async fn the_model_is_each_users_last_vote() {
        let plan = Plan { votes: 5_000, voters: 1_000, options: OPTIONS.len(), streams: 1, seed: 9 };
        let (to_stream, mut source) = mpsc::channel(2);
        let feeding = tokio::spawn(feed(plan.stream(0), to_stream));
        let mut last = std::collections::HashMap::new();
        while let Some(outgoing) = source.recv().await {
            for vote in outgoing.message.votes() {
                let vote = vote.unwrap();
                last.insert(vote.user_id.to_vec(), vote.option_id.to_vec());
            }
        }
        let model = feeding.await.unwrap();
        for ((id, _), count) in OPTIONS.iter().zip(model) {
            assert_eq!(last.values().filter(|option| *option == id.as_bytes()).count() as u64, count);
        }
        assert_eq!(last.len(), 1_000);
    }
}
