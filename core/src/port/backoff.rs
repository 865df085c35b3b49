//! Pauses between attempts: doubling, with jitter, bounded.
//!
//! Owns how long a retry waits. The caller provides the random numbers, so that a simulation runs the same way every
//! time.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// The pauses of one operation that is tried again and again.
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
    attempts: u32,
}

impl Backoff {
    /// Pauses that start with `first`. Each may be up to twice as long as the one before, and none is longer than
    /// `longest`.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first, attempts: 0 }
    }

    /// Starts over after a success.
    pub(crate) fn reset(&mut self) {
        (self.next, self.attempts) = (self.first, 0);
    }

    /// Failures since the last success, the latest one included.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The next pause: a random part of its length, at least half of it, so that many callers do not retry at the same
    /// moment.
    pub(crate) fn pause(&mut self, rng: &mut StdRng) -> Duration {
        self.attempts = self.attempts.saturating_add(1);
        let pause = self.next.mul_f64(rng.random_range(0.5..=1.0));
        self.next = (self.next * 2).min(self.longest);
        pause
    }
}

/// [`Backoff`] with random numbers of its own, which depend on a seed only.
pub(crate) struct SeededBackoff {
    pauses: Backoff,
    rng: StdRng,
}

impl SeededBackoff {
    /// First pause.
    const FIRST: Duration = Duration::from_millis(20);
    /// Longest pause.
    const LONGEST: Duration = Duration::from_secs(2);

    /// Pauses of consumers, from 20 ms to 2 s.
    pub(crate) fn new(seed: &[u8]) -> Self {
        let rng = StdRng::seed_from_u64(xxhash_rust::xxh3::xxh3_64(seed));
        Self { pauses: Backoff::new(Self::FIRST, Self::LONGEST), rng }
    }

    /// As [`Backoff::reset`].
    pub(crate) fn reset(&mut self) {
        self.pauses.reset();
    }

    /// As [`Backoff::attempts`].
    pub(crate) fn attempts(&self) -> u32 {
        self.pauses.attempts()
    }

    /// As [`Backoff::pause`].
    pub(crate) fn pause(&mut self) -> Duration {
        self.pauses.pause(&mut self.rng)
    }
}
