//! Clocks, and the time limits of the protocol.
//!
//! Owns D, L and m, the three durations on which exactness rests. Must never be bypassed: no other module reads a clock.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

/// A moment, in whole milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Before every other moment: the clock of a shard that has not seen a record.
    pub const ZERO: Self = Self(0);

    /// This moment plus a duration.
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long ago `earlier` was; zero if it is still to come.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// Wall clock of one process.
pub trait Clock: Send + Sync + 'static {
    /// The present moment. Never goes backwards within one process.
    fn now(&self) -> Timestamp;
}

/// The machine's clock, advanced by the monotonic clock, so that a step of the wall clock never reorders two readings.
#[derive(Debug)]
pub struct SystemClock {
    start: Timestamp,
    monotonic_start: tokio::time::Instant,
    latest: AtomicI64,
}

impl SystemClock {
    /// A clock that reads the machine's time now.
    pub fn new() -> Self {
        Self::not_before(Timestamp::ZERO)
    }

    /// A clock that starts at the machine's time or at `floor`, whichever is later.
    ///
    /// An engine that stamps records with this clock passes its latest stamp: if the machine's clock was set back between
    /// two starts, time stands still until it has caught up, instead of making acknowledged votes look late.
    pub fn not_before(floor: Timestamp) -> Self {
        let wall = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(Timestamp::ZERO, |since| Timestamp::ZERO.plus(since));
        let start = wall.max(floor);
        Self { start, monotonic_start: tokio::time::Instant::now(), latest: AtomicI64::new(start.0) }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let now = self.start.plus(self.monotonic_start.elapsed()).0;
        Timestamp(self.latest.fetch_max(now, Ordering::Relaxed).max(now))
    }
}

/// The time limits of the protocol. All processes of one deployment must use the same ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeBounds {
    /// D: the longest time from `accepted_at` within which an answer may still acknowledge a vote.
    pub answer_deadline: Duration,
    /// Largest difference between the clocks of two processes, the stream's included.
    pub clock_skew_max: Duration,
    /// How old a cached poll definition may be, counted from the start of the read.
    pub poll_cache_life: Duration,
}

/// What L allows for the delay between the arrival of a record and its arrival timestamp.
const ARRIVAL_JITTER: Duration = Duration::from_secs(1);
/// What m allows beyond cache life and skew.
const CLOSE_MARGIN: Duration = Duration::from_secs(2);

impl TimeBounds {
    /// One process on one machine: one clock, an append that takes milliseconds.
    pub const ONE_MACHINE: Self = Self {
        answer_deadline: Duration::from_secs(5),
        clock_skew_max: Duration::ZERO,
        poll_cache_life: Duration::from_millis(500),
    };

    /// Several hosts with synchronised clocks, and a stream behind a network.
    pub const DISTRIBUTED: Self = Self {
        answer_deadline: Duration::from_secs(10),
        clock_skew_max: Duration::from_millis(500),
        poll_cache_life: Duration::from_secs(1),
    };

    /// L: a vote whose record arrives later than this after `accepted_at` is discarded as late. D + 2 × skew + 1 s.
    pub const fn late_after(&self) -> Duration {
        self.answer_deadline.saturating_add(self.clock_skew_max.saturating_mul(2)).saturating_add(ARRIVAL_JITTER)
    }

    /// How long producer memory is kept: 2 L.
    pub const fn memory_life(&self) -> Duration {
        self.late_after().saturating_mul(2)
    }

    /// How long after it is known that a poll is being closed the last vote may still be accepted: until every cached
    /// definition has expired, on every clock.
    pub const fn settle_margin(&self) -> Duration {
        self.poll_cache_life.saturating_add(self.clock_skew_max.saturating_mul(2))
    }

    /// m: how far ahead the opening of a STREAM poll must be, so that every cache has expired by then.
    pub const fn close_margin(&self) -> Duration {
        self.poll_cache_life.saturating_add(self.clock_skew_max.saturating_mul(2)).saturating_add(CLOSE_MARGIN)
    }
}
