//! Pauses between attempts: doubling, with jitter, bounded.
//!
//! Owns how long a retry waits. Seeded, so that a simulation on a paused clock takes the same course every time.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// First pause.
const FIRST: Duration = Duration::from_millis(20);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(2);

/// The pauses of one thing that is tried again and again.
pub(crate) struct Backoff {
    rng: StdRng,
    next: Duration,
    attempts: u32,
}

impl Backoff {
    /// Pauses whose jitter depends on the seed only.
    pub(crate) fn new(seed: &[u8]) -> Self {
        let rng = StdRng::seed_from_u64(xxhash_rust::xxh3::xxh3_64(seed));
        Self { rng, next: FIRST, attempts: 0 }
    }

    /// Starts over after a success.
    pub(crate) fn reset(&mut self) {
        (self.next, self.attempts) = (FIRST, 0);
    }

    /// Failures since the last success, the one that is being waited for included.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The next pause.
    pub(crate) fn pause(&mut self) -> Duration {
        self.attempts = self.attempts.saturating_add(1);
        let pause = self.next.mul_f64(self.rng.random_range(0.5..=1.0));
        self.next = (self.next * 2).min(LONGEST);
        pause
    }
}
