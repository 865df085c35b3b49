//! What has become of the votes of a run.
//!
//! Owns the kinds under which failures are counted, and the times. Must never count a vote as accepted that nobody has
//! acknowledged, nor as rejected when it may be stored: an audit compares these numbers with the tally.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use tokio::time::Instant;

use crate::failure::Failure;

/// Longest time that the histogram can hold, in microseconds.
const LATENCY_MAX_MICROS: u64 = 600_000_000;
/// Most failures whose reasons are shown.
const REASONS_SHOWN: usize = 5;
/// Most seconds that are counted one by one: a day. What comes later counts for the last of them.
const SECONDS_MAX: usize = 86_400;

/// What has become of one vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The service has it.
    Accepted,
    /// The service said no.
    Rejected,
    /// There was no connection, so nothing was sent.
    NotSent,
    /// It was sent, and no answer says what became of it.
    Unknown,
}

/// Why a vote was not accepted: a kind to count, and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reason {
    /// A code of the API, a status of HTTP, or what became of the connection.
    pub(super) kind: Cow<'static, str>,
    /// What was said.
    pub(super) text: String,
}

/// Times in microseconds.
pub(super) struct Times(Histogram<u64>);

impl Times {
    pub(super) fn new() -> Result<Self, Failure> {
        let histogram = Histogram::new_with_max(LATENCY_MAX_MICROS, 3);
        histogram.map(Self).map_err(|error| Failure::failed(format!("cannot set up the histogram: {error}")))
    }

    /// Adds the time of this many votes.
    pub(super) fn record(&mut self, time: Duration, votes: u64) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record_n(micros, votes);
    }

    pub(super) fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }

    fn add(&mut self, other: &Self) {
        // Both have the same bounds, so nothing can be lost.
        if self.0.add(&other.0).is_err() {
            tracing::warn!("cannot add the histogram of a stream");
        }
    }
}

/// The busiest of the seconds of a run.
#[derive(Debug, Default)]
pub(super) struct Seconds(Vec<u64>);

impl Seconds {
    /// Counts a vote at this time from the start.
    pub(super) fn count(&mut self, at: Duration) {
        let second = usize::try_from(at.as_secs()).unwrap_or(SECONDS_MAX).min(SECONDS_MAX - 1);
        if self.0.len() <= second {
            self.0.resize(second + 1, 0);
        }
        self.0[second] += 1;
    }

    pub(super) fn busiest(&self) -> u64 {
        self.0.iter().copied().max().unwrap_or(0)
    }
}

/// Counts and times of a run, or of a part of it.
pub(super) struct Counts {
    pub(super) accepted: u64,
    pub(super) rejected: u64,
    pub(super) not_sent: u64,
    pub(super) unknown: u64,
    /// Votes that were not accepted, by kind. There are as many kinds as codes, statuses and ways to fail to connect.
    pub(super) errors: BTreeMap<Cow<'static, str>, u64>,
    /// Some of the sentences.
    pub(super) reasons: Vec<String>,
    /// From when accepted votes were due to their acknowledgement.
    pub(super) ack: Times,
    /// From when all other votes were due until that was known.
    pub(super) failed: Times,
    /// How long connections took.
    pub(super) connect: Times,
    /// How long TLS handshakes took.
    pub(super) tls: Times,
    /// Acknowledgements in each second.
    pub(super) seconds: Seconds,
    start: Instant,
    progress: ProgressBar,
}

impl Counts {
    pub(super) fn new(start: Instant, progress: ProgressBar) -> Result<Self, Failure> {
        let times = Times::new;
        Ok(Self {
            accepted: 0,
            rejected: 0,
            not_sent: 0,
            unknown: 0,
            errors: BTreeMap::new(),
            reasons: Vec::new(),
            ack: times()?,
            failed: times()?,
            connect: times()?,
            tls: times()?,
            seconds: Seconds::default(),
            start,
            progress,
        })
    }

    /// Seconds count from now on.
    pub(super) fn starts(&mut self, start: Instant) {
        self.start = start;
    }

    /// Notes what has become of a vote that was due so long ago.
    pub(super) fn settled(&mut self, fate: Fate, reason: Option<Reason>, took: Duration) {
        *match fate {
            Fate::Accepted => &mut self.accepted,
            Fate::Rejected => &mut self.rejected,
            Fate::NotSent => &mut self.not_sent,
            Fate::Unknown => &mut self.unknown,
        } += 1;
        if fate == Fate::Accepted {
            self.ack.record(took, 1);
            self.seconds.count(self.start.elapsed());
        } else {
            self.failed.record(took, 1);
        }
        if let Some(Reason { kind, text }) = reason {
            self.failed_by(kind, text);
        }
        self.progress.inc(1);
    }

    /// Counts a failure of this kind.
    pub(super) fn failed_by(&mut self, kind: Cow<'static, str>, text: String) {
        *self.errors.entry(kind).or_default() += 1;
        self.keep_reason(text);
    }

    /// Notes votes that one acknowledgement settled.
    pub(super) fn acknowledged(&mut self, votes: u64, took: Duration) {
        self.ack.record(took, votes);
        self.progress.inc(votes);
    }

    /// Notes a new connection.
    pub(super) fn connected(&mut self, connect: Duration, tls: Option<Duration>) {
        self.connect.record(connect, 1);
        if let Some(tls) = tls {
            self.tls.record(tls, 1);
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.rejected += other.rejected;
        self.not_sent += other.not_sent;
        self.unknown += other.unknown;
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        self.ack.add(&other.ack);
        self.failed.add(&other.failed);
        self.connect.add(&other.connect);
        self.tls.add(&other.tls);
        other.reasons.into_iter().for_each(|reason| self.keep_reason(reason));
    }

    fn keep_reason(&mut self, reason: String) {
        if self.reasons.len() < REASONS_SHOWN && !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vote_has_one_fate_and_failures_have_their_own_times() {
        let mut counts = Counts::new(Instant::now(), ProgressBar::hidden()).unwrap();
        let reason = |kind: &'static str| Some(Reason { kind: kind.into(), text: format!("it is {kind}") });
        counts.settled(Fate::Accepted, None, Duration::from_millis(1));
        counts.settled(Fate::Rejected, reason("HTTP_401"), Duration::from_millis(2));
        counts.settled(Fate::Rejected, reason("HTTP_401"), Duration::from_millis(2));
        counts.settled(Fate::NotSent, reason("connect_refused"), Duration::from_millis(3));
        counts.settled(Fate::Unknown, reason("timeout"), Duration::from_secs(30));
        assert_eq!((counts.accepted, counts.rejected, counts.not_sent, counts.unknown), (1, 2, 1, 1));
        assert_eq!(counts.errors.values().sum::<u64>(), 4);
        assert_eq!(counts.errors["HTTP_401"], 2);
        assert_eq!(counts.reasons.len(), 3, "{:?}", counts.reasons);
        assert_eq!((counts.ack.histogram().len(), counts.failed.histogram().len()), (1, 4));
        assert!(counts.failed.histogram().max() >= 30_000_000);
        let mut sum = Counts::new(Instant::now(), ProgressBar::hidden()).unwrap();
        sum.add(counts);
        assert_eq!((sum.accepted, sum.unknown, sum.errors["timeout"]), (1, 1, 1));
    }

    #[test]
    fn the_busiest_second_is_found_and_their_number_is_bounded() {
        let mut seconds = Seconds::default();
        for millis in [100, 900, 1_000, 1_500, 1_999, 5_000] {
            seconds.count(Duration::from_millis(millis));
        }
        assert_eq!(seconds.busiest(), 3);
        seconds.count(Duration::from_secs(u64::MAX));
        assert_eq!(seconds.0.len(), SECONDS_MAX);
    }
}
