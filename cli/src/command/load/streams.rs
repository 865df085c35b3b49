//! Votes in streams, as a relay sends them.
//!
//! Owns the pace of messages. Must never slow down with the service when there is a rate: a message's time counts from the
//! moment at which it was due.

use std::time::Duration;

use indicatif::ProgressBar;
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use votestream_client::{
    IngestClient, MessageBuilder, Observer, Outgoing, SOURCE_MESSAGES_MAX, StreamOptions, Vote, v1::Rejection,
};

use super::{Poll, arrivals::Curve, count::Counts};
use crate::{
    args::{Global, LoadArgs},
    failure::Failure,
    generate::{Plan, Votes},
};

/// Opens the connections.
pub(super) async fn connect(global: &Global, streams: u32) -> Result<Vec<IngestClient>, Failure> {
    let mut clients = Vec::new();
    for _ in 0..streams {
        clients.push(global.connect_ingest().await?);
    }
    Ok(clients)
}

/// Casts the votes, until all are settled or it is told to stop. Returns what broke a stream, too.
pub(super) async fn cast(
    args: &LoadArgs,
    plan: Plan,
    poll: &Poll,
    clients: Vec<IngestClient>,
    progress: &ProgressBar,
    stop: &CancellationToken,
) -> Result<(Counts, Option<Failure>), Failure> {
    let start = Instant::now();
    let curve = Curve::new(args.arrivals, args.votes, args.rate);
    let mut tasks = JoinSet::new();
    for (stream, client) in (0..plan.streams).zip(clients) {
        let pace = Pace { start, curve, plan, votes_per_message: args.votes_per_message, stream };
        let (to_stream, source) = mpsc::channel(SOURCE_MESSAGES_MAX);
        let feed = feed(plan.stream(stream), poll.clone(), pace, to_stream);
        // When the task stops, the stream is closed, and the votes that were sent are settled.
        tokio::spawn(stop.clone().run_until_cancelled_owned(feed));
        let mut measured = Measured(Counts::new(start, progress.clone())?);
        // A broken stream is a result of the measurement, so it is not resumed.
        let stream_options = StreamOptions { resume: false, ..StreamOptions::default() };
        tasks.spawn(async move {
            let ended = client.stream_messages(stream_options, source, &mut measured).await;
            (ended, measured.0)
        });
    }
    let mut total = Counts::new(start, progress.clone())?;
    let (mut sent, mut settled, mut failure) = (0_u64, 0_u64, None);
    while let Some(ended) = tasks.join_next().await {
        let (ended, measured) = ended.map_err(|error| Failure::failed(format!("a stream's task failed: {error}")))?;
        sent += ended.sent;
        settled += ended.settled;
        failure = failure.or(ended.failure.map(|error| Failure::client("casting votes", error)));
        total.add(measured);
    }
    total.accepted = settled.saturating_sub(total.rejected);
    total.unknown = sent.saturating_sub(settled);
    Ok((total, failure))
}

/// When each message of a stream is due.
#[derive(Clone, Copy, Debug)]
struct Pace {
    start: Instant,
    /// None if messages are sent as fast as the service takes them.
    curve: Option<Curve>,
    plan: Plan,
    votes_per_message: u32,
    stream: u32,
}

impl Pace {
    /// When this message of the stream is due: when its first vote comes. The streams take turns. So the rate has no bursts of
    /// one message from every stream.
    fn due(&self, message: u64) -> Option<Instant> {
        let messages = message * u64::from(self.plan.streams) + u64::from(self.stream);
        let part = (messages * u64::from(self.votes_per_message)) as f64 / self.plan.votes as f64;
        // The last messages of some streams may be smaller than others, and so a little behind the last vote.
        self.curve.map(|curve| self.start + curve.at(part.min(1.0)))
    }
}

async fn feed(mut votes: Votes, poll: Poll, pace: Pace, to_stream: mpsc::Sender<Outgoing<()>>) {
    for message in 0.. {
        let mut builder = MessageBuilder::new(pace.votes_per_message as usize);
        for vote in votes.by_ref().take(pace.votes_per_message as usize) {
            let (user_id, option_id) = (vote.user_id.as_str(), &poll.options[vote.option]);
            builder.push(Vote { poll_id: &poll.id, user_id, option_id });
        }
        if builder.votes() == 0 {
            return;
        }
        let due = pace.due(message);
        if let Some(due) = due {
            tokio::time::sleep_until(due).await;
        }
        // A closed channel means that the stream broke; the task of the stream reports that.
        if to_stream.send(builder.finish(due, ())).await.is_err() {
            return;
        }
    }
}

/// What one stream measured.
struct Measured(Counts);

impl Observer<()> for Measured {
    fn rejected(&mut self, _place: Option<(&(), u64)>, rejection: Rejection) {
        self.0.rejected += 1;
        self.0.failed_by(rejection.code().as_str_name().into(), rejection.reason);
    }

    fn settled(&mut self, (): (), votes: u64, latency: Duration) {
        self.0.acknowledged(votes, latency);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Arrivals;

    fn pace(arrivals: Arrivals, plan: Plan, stream: u32) -> Pace {
        let (start, curve) = (Instant::now(), Curve::new(arrivals, plan.votes, 10_000));
        Pace { start, curve, plan, votes_per_message: 100, stream }
    }

    #[test]
    fn streams_take_turns_at_the_given_rate() {
        let plan = Plan { votes: 100_000, voters: 500, options: 2, streams: 4, seed: 1 };
        for stream in 0..4 {
            let pace = pace(Arrivals::Steady, plan, stream);
            assert_eq!(pace.due(0).unwrap() - pace.start, Duration::from_millis(10) * stream);
            assert_eq!(pace.due(1).unwrap() - pace.due(0).unwrap(), Duration::from_millis(40));
        }
        let unpaced = Pace { curve: None, ..pace(Arrivals::Steady, plan, 3) };
        assert_eq!(unpaced.due(7), None);
    }

    #[test]
    fn messages_follow_the_curve_too() {
        let plan = Plan { votes: 100_000, voters: 500, options: 2, streams: 4, seed: 1 };
        let pace = pace(Arrivals::Announcement, plan, 0);
        let due: Vec<_> = (0..250).map(|message| pace.due(message).unwrap()).collect();
        assert!(due.is_sorted());
        let at_most = Curve::new(Arrivals::Announcement, 100_000, 10_000).unwrap().length();
        assert!(due[249] - due[0] <= at_most);
        assert!(due[249] - due[240] > 5 * (due[100] - due[91]), "it is slower at the end");
    }

    #[tokio::test(start_paused = true)]
    async fn messages_are_due_one_after_the_other_and_carry_every_vote() {
        let plan = Plan { votes: 1_050, voters: 500, options: 2, streams: 1, seed: 1 };
        let (to_stream, mut source) = mpsc::channel(2);
        let poll = Poll { id: "p".into(), options: ["a".to_owned(), "b".to_owned()].into() };
        let pace = pace(Arrivals::Steady, plan, 0);
        let start = pace.start;
        tokio::spawn(feed(plan.stream(0), poll, pace, to_stream));
        let (mut votes, mut messages) = (0, 0);
        while let Some(message) = source.recv().await {
            assert_eq!(message.due, Some(start + Duration::from_millis(10) * messages));
            assert!(Instant::now() >= start + Duration::from_millis(10) * messages);
            votes += message.votes;
            messages += 1;
        }
        assert_eq!((votes, messages), (1_050, 11));
    }
}
