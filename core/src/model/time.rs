//! Moments, the clock as a port, and the time limits of the protocol.
//!
//! Owns D, L and m, the three durations that make counting exact. No other module may read a clock.

use std::{fmt, time::Duration};

use tokio::time::Instant;

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

    /// How long ago `earlier` was; zero if it is in the future.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// As people write it: `2026-11-26T20:15:00.250Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DAY_MS: i64 = 86_400_000;
        let (days, ms) = (self.0.div_euclid(DAY_MS), self.0.rem_euclid(DAY_MS));
        // Howard Hinnant's `civil_from_days`: years begin in March, so that a leap day is the last of its year, and an
        // era of 400 years always has 146,097 days.
        let shifted = days + 719_468;
        let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let from_march = (5 * day + 2) / 153;
        let day = day - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = year + era * 400 + i64::from(month <= 2);
        let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1_000)
    }
}

/// The clocks of one process: one tells the time of day, the other one only counts.
///
/// Both are read here and nowhere else, so that the simulation can let time pass before every reading. A decision that
/// needs both reads [`Clock::now`] first and [`Clock::instant`] second. Then, even if the thread stops in between, no
/// fact that the decision relies on looks younger than it is.
pub trait Clock: Send + Sync + 'static {
    /// The present moment. Never goes backwards within one process.
    fn now(&self) -> Timestamp;

    /// The same moment on the monotonic clock, for ages and limits.
    #[expect(clippy::disallowed_methods, reason = "the place where the monotonic clock is read")]
    fn instant(&self) -> Instant {
        Instant::now()
    }

    /// False if there is proof that this clock differs from the engines' by more than the skew bound. While it is
    /// false, no vote that this clock has stamped may be acknowledged.
    fn is_trusted(&self) -> bool {
        true
    }
}

/// One reading of both clocks: the stamp of a decision, and the instant at which the age of the facts behind it is
/// checked.
///
/// The stamp is read first. So, even if the thread stops between the two readings, a fact never looks younger than it
/// was at the stamp. Ages are measured on both clocks, and the larger one counts: the monotonic clock stands still
/// while a machine is suspended, and the other one may run slowly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The reading that stamps a vote and is compared with the times of polls.
    pub now: Timestamp,
    /// The monotonic clock, read after `now`.
    pub instant: Instant,
}

impl Moment {
    /// Reads both clocks.
    pub fn of(clock: &dyn Clock) -> Self {
        // In this order: Rust evaluates struct fields in the order in which they are written.
        Self { now: clock.now(), instant: clock.instant() }
    }

    /// This moment plus a duration, on both clocks.
    pub fn plus(self, duration: Duration) -> Self {
        Self { now: self.now.plus(duration), instant: self.instant + duration }
    }

    /// Whether this moment is later than another one, on either clock.
    pub fn is_past(self, limit: Self) -> bool {
        self.now > limit.now || self.instant > limit.instant
    }
}

/// The time limits of the protocol. All processes of one deployment must use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeBounds {
    /// D: the longest time from `accepted_at` within which an answer may still acknowledge a vote.
    pub answer_deadline: Duration,
    /// Largest difference between the clocks of two processes; the stream counts as one.
    pub clock_skew_max: Duration,
    /// How old a cached poll definition may be, counted from the start of its read.
    pub poll_cache_life: Duration,
}

/// What L allows for the time between the arrival of a record and its arrival timestamp.
const ARRIVAL_JITTER: Duration = Duration::from_secs(1);
/// What m allows beyond cache life and skew.
const CLOSE_MARGIN: Duration = Duration::from_secs(2);

impl TimeBounds {
    /// One process on one machine: one clock, and an append takes milliseconds.
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

    /// L: a vote is discarded as late if its record arrives later than this after `accepted_at`. D + 2 × skew + 1 s.
    pub const fn late_after(&self) -> Duration {
        self.answer_deadline.saturating_add(self.clock_skew_max.saturating_mul(2)).saturating_add(ARRIVAL_JITTER)
    }

    /// How long entries of the dedup table are kept: 2 L.
    pub const fn memory_life(&self) -> Duration {
        self.late_after().saturating_mul(2)
    }

    /// How long votes may still be accepted after it is known that a poll is being closed: until every cached
    /// definition has expired, on every clock.
    pub const fn settle_margin(&self) -> Duration {
        self.poll_cache_life.saturating_add(self.clock_skew_max.saturating_mul(2))
    }

    /// m: how far ahead the opening of a STREAM poll must be, so that every cache has expired by then.
    pub const fn close_margin(&self) -> Duration {
        self.poll_cache_life.saturating_add(self.clock_skew_max.saturating_mul(2)).saturating_add(CLOSE_MARGIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_is_too_old_when_either_clock_says_so() {
        let start = Moment { now: Timestamp(1_000), instant: Instant::now() };
        let life = Duration::from_millis(500);
        let limit = start.plus(life);
        assert!(!limit.is_past(limit));
        // The machine was suspended; the wall clock was set back.
        let suspended = Moment { now: Timestamp(3_600_000), ..start };
        let set_back = Moment { instant: start.instant + 2 * life, ..start };
        assert!(suspended.is_past(limit) && set_back.is_past(limit));
    }

    #[test]
    fn moments_are_written_as_people_write_them() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (1_795_724_100_250, "2026-11-26T20:15:00.250Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(Timestamp(ms).to_string(), text);
        }
    }
}
