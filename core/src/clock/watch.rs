//! Whether this machine's clock agrees with the engines'.
//!
//! The protocol assumes that any two clocks differ by the skew bound at most. Owns the evidence against that. Must
//! never say that the bound is broken without proof: votes are refused while it says so.
//!
//! Every answer of an engine carries the engine's time, in whole seconds. The engine wrote that time between our
//! request and the arrival of its answer, so each answer gives an interval in which the difference of the two clocks
//! lies. Requests are sent at all fractions of a second, so the intervals of many answers have only a short one in
//! common.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{Clock, Timestamp};
use crate::{
    mutation::{self, Mutation},
    observe::metrics,
};

/// An answer is believed for at least this long and at most twice as long. A machine's clock drifts by less than 5 ms
/// in that time.
const BELIEVED: Duration = Duration::from_secs(10);
/// Resolution of the engines' times: they are cut to whole seconds.
const RESOLUTION_MS: i64 = 1_000;

/// By how many milliseconds our clock is ahead of the engines': at least this, and at most that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    least: i64,
    most: i64,
}

impl Ahead {
    const UNKNOWN: Self = Self { least: i64::MIN, most: i64::MAX };

    /// The interval that one answer gives. `sent_at` and `answered_at` are our clock when the request was sent and when the
    /// answer came; `engine` is the engine's time in the answer, in whole seconds.
    pub fn of(sent_at: Timestamp, answered_at: Timestamp, engine: Timestamp) -> Self {
        let least = sent_at.0.saturating_sub(engine.0.saturating_add(RESOLUTION_MS));
        Self { least, most: answered_at.0.saturating_sub(engine.0) }
    }

    fn and(self, other: Self) -> Option<Self> {
        let both = Self { least: self.least.max(other.least), most: self.most.min(other.most) };
        (both.least <= both.most).then_some(both)
    }

    /// The part of the difference that is certain, in milliseconds: positive if our clock is ahead, negative if it is behind,
    /// and 0 if the clocks may agree.
    pub fn certain(self) -> i64 {
        if self.least > 0 { self.least } else { self.most.min(0) }
    }

    /// Whether the clocks differ by more than this.
    pub fn contradicts(self, bound: Duration) -> bool {
        self.certain().unsigned_abs() > u64::try_from(bound.as_millis()).unwrap_or(u64::MAX)
    }
}

/// The interval that the answers of the last seconds have in common.
#[derive(Debug)]
struct Believed {
    before: Ahead,
    current: Ahead,
    since: Option<Instant>,
}

/// Compares the clock of this process with the times in the engines' answers.
#[derive(Debug)]
pub struct ClockWatch {
    skew_max: Duration,
    believed: Mutex<Believed>,
    contradicted: AtomicBool,
}

impl ClockWatch {
    /// A watch that knows nothing yet. `skew_max` is [`crate::TimeBounds::clock_skew_max`].
    pub fn new(skew_max: Duration) -> Self {
        let believed = Believed { before: Ahead::UNKNOWN, current: Ahead::UNKNOWN, since: None };
        Self { skew_max, believed: Mutex::new(believed), contradicted: AtomicBool::new(false) }
    }

    /// Notes an answer. `sent_at` and `answered_at` are our clock when the request was sent and when the answer came;
    /// `engine` is the engine's time in the answer, in whole seconds; `instant` is the present instant.
    pub fn answered(&self, sent_at: Timestamp, answered_at: Timestamp, engine: Timestamp, instant: Instant) {
        let answer = Ahead::of(sent_at, answered_at, engine);
        let ahead = self.believed.lock().with(answer, instant);
        let contradicts = ahead.contradicts(self.skew_max);
        if self.contradicted.swap(contradicts, Ordering::Relaxed) == contradicts {
            return;
        }
        metrics::CLOCK_CONTRADICTED.set(contradicts.into());
        if contradicts {
            let (least_ms, most_ms, bound) = (ahead.least, ahead.most, self.skew_max);
            tracing::error!(
                least_ms,
                most_ms,
                "our clock is ahead of the engines' by {least_ms} to {most_ms} ms (negative: behind), but clocks must not \
                 differ by more than {bound:?}: votes are refused until they agree; synchronise this machine's clock"
            );
        } else {
            tracing::info!("our clock agrees with the engines' again: votes are accepted");
        }
    }

    /// Whether no answer contradicts the bound.
    pub fn is_trusted(&self) -> bool {
        !self.contradicted.load(Ordering::Relaxed) || mutation::is_active(Mutation::ClockIsBelieved)
    }
}

impl Believed {
    /// The interval that all answers have in common, this one included.
    fn with(&mut self, answer: Ahead, instant: Instant) -> Ahead {
        let since = *self.since.get_or_insert(instant);
        if instant.saturating_duration_since(since) >= BELIEVED {
            self.before = std::mem::replace(&mut self.current, Ahead::UNKNOWN);
            if instant.saturating_duration_since(since) >= 2 * BELIEVED {
                self.before = Ahead::UNKNOWN;
            }
            self.since = Some(instant);
        }
        let both = self.current.and(answer).and_then(|current| Some((current, self.before.and(current)?)));
        match both {
            Some((current, ahead)) => {
                self.current = current;
                ahead
            }
            // One of the clocks was set in between, so the earlier answers say nothing about it now.
            None => {
                (self.before, self.current) = (Ahead::UNKNOWN, answer);
                answer
            }
        }
    }
}

/// A clock that is compared with the engines'.
pub struct WatchedClock {
    clock: Arc<dyn Clock>,
    watch: ClockWatch,
}

impl WatchedClock {
    /// A clock that is watched. The adapters of the engines report their answers to it. `skew_max` is
    /// [`crate::TimeBounds::clock_skew_max`].
    pub fn new(clock: Arc<dyn Clock>, skew_max: Duration) -> Self {
        Self { clock, watch: ClockWatch::new(skew_max) }
    }

    /// Notes an answer that came just now: see [`ClockWatch::answered`].
    pub fn answered(&self, sent_at: Timestamp, engine: Timestamp) {
        self.watch.answered(sent_at, self.clock.now(), engine, self.clock.instant());
    }
}

impl fmt::Debug for WatchedClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.watch.fmt(f)
    }
}

impl Clock for WatchedClock {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn instant(&self) -> Instant {
        self.clock.instant()
    }

    fn is_trusted(&self) -> bool {
        self.watch.is_trusted()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUND: i64 = 500;

    /// An engine at `true_ms`, and a machine that is `ahead` of it.
    struct Pair {
        watch: ClockWatch,
        start: Instant,
        true_ms: i64,
        ahead: i64,
    }

    impl Pair {
        fn new(ahead: i64) -> Self {
            let watch = ClockWatch::new(Duration::from_millis(BOUND as u64));
            Self { watch, start: Instant::now(), true_ms: 1_700_000_000_000, ahead }
        }

        /// A call that takes so long each way.
        fn call(&mut self, there: i64, back: i64) -> bool {
            let sent_at = Timestamp(self.true_ms + self.ahead);
            let engine = Timestamp((self.true_ms + there).div_euclid(1_000) * 1_000);
            self.true_ms += there + back;
            let instant = self.start + Duration::from_millis((self.true_ms - 1_700_000_000_000) as u64);
            self.watch.answered(sent_at, Timestamp(self.true_ms + self.ahead), engine, instant);
            self.watch.is_trusted()
        }
    }

    #[test]
    fn what_one_answer_proves_is_believed() {
        assert!(!Pair::new(3_600_000).call(5, 5));
        assert!(!Pair::new(-3_600_000).call(5, 5));
        assert!(!Pair::new(1_511).call(5, 5));
        // Its time may be a second old, and the answer itself took longer than the difference.
        assert!(Pair::new(1_500).call(5, 5));
        assert!(Pair::new(10_400).call(9_500, 9_500));
        assert!(Pair::new(-20_000).call(5, 20_000));
        assert!(Pair::new(0).call(5, 5));
    }

    #[test]
    fn many_answers_prove_what_one_cannot() {
        let mut pair = Pair::new(600);
        let trusted: Vec<bool> = (0..100).map(|_| pair.call(17, 20)).collect();
        assert!(trusted[0] && !trusted[99], "{trusted:?}");
    }

    #[test]
    fn a_clock_that_was_set_is_trusted_again() {
        let mut pair = Pair::new(3_600_000);
        assert!(!pair.call(5, 5) && !pair.call(5, 5));
        pair.ahead = 0;
        assert!(pair.call(5, 5), "the next answer");
        pair.ahead = -700;
        while pair.call(17, 20) {}
        // The difference shrinks, as the machine's time service lets it: old answers are forgotten.
        pair.ahead = -300;
        let until = pair.true_ms + 21_000;
        while pair.true_ms < until {
            pair.call(17, 20);
        }
        assert!(pair.call(17, 20));
    }

    proptest! {
        #[test]
        fn nobody_is_accused_without_proof(
            ahead in -BOUND..=BOUND,
            calls in prop::collection::vec((0i64..5_000, 0i64..5_000), 1..60),
        ) {
            let mut pair = Pair::new(ahead);
            for (there, back) in calls {
                prop_assert!(pair.call(there, back));
            }
        }

        /// A clock that is behind by so much that a vote which it acknowledges could be late: the answer to that vote's
        /// record proves it.
        #[test]
        fn a_clock_that_is_behind_by_the_slack_of_l_is_seen_in_every_answer(
            start in 0i64..1_000,
            (there, back) in (0i64..10_000, 0i64..10_000),
            more in 1i64..100_000,
        ) {
            let mut pair = Pair::new(-(2 * BOUND + 1_000 + back + more));
            pair.true_ms += start;
            prop_assert!(!pair.call(there, back));
        }
    }
}
