//! How often, how long and with which pauses something is tried again.
//!
//! Owns the back-off of all calls and streams of this crate. Must never decide what may be repeated.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

/// Bounds of repeated attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts without any progress, the first one included.
    pub attempts_max: u32,
    /// Time from the first of these attempts, or from the failure of what was under way, after which nothing is tried again.
    pub time_max: Duration,
    /// Pause after the first failure. It doubles with each one that follows.
    pub pause_min: Duration,
    /// Longest pause, unless the service asks for a longer one.
    pub pause_max: Duration,
}

impl Retry {
    /// Nothing is tried again.
    pub const NEVER: Self =
        Self { attempts_max: 1, time_max: Duration::ZERO, pause_min: Duration::ZERO, pause_max: Duration::ZERO };
    /// Bridges the restart of a service.
    pub const DEFAULT: Self = Self {
        attempts_max: 20,
        time_max: Duration::from_secs(60),
        pause_min: Duration::from_millis(50),
        pause_max: Duration::from_secs(5),
    };
}

impl Default for Retry {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Attempts that have failed since the last progress.
#[derive(Debug)]
pub(crate) struct Backoff {
    retry: Retry,
    failures: u32,
    /// Since when nothing has come further; `None` while something is under way.
    since: Option<Instant>,
}

impl Backoff {
    pub(crate) fn new(retry: Retry) -> Self {
        Self { retry, failures: 0, since: Some(Instant::now()) }
    }

    /// What was attempted has come further.
    pub(crate) fn progress(&mut self) {
        self.failures = 0;
        self.under_way();
    }

    /// What was attempted is under way: its time does not count any more, its failures do.
    pub(crate) fn under_way(&mut self) {
        self.since = None;
    }

    /// Time that is left for further attempts.
    pub(crate) fn left(&self) -> Duration {
        self.retry.time_max.saturating_sub(self.since.map_or(Duration::ZERO, |since| since.elapsed()))
    }

    /// An attempt has failed. Returns the pause before the next one, `at_least` what the service asks for; `None` if there is
    /// no next one.
    pub(crate) fn failed(&mut self, at_least: Option<Duration>) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        self.since.get_or_insert_with(Instant::now);
        if self.failures >= self.retry.attempts_max {
            return None;
        }
        let doublings = (self.failures - 1).min(u64::BITS);
        let step = self.retry.pause_min.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX));
        let step = step.min(self.retry.pause_max);
        // Clients that lost the same service do not all come back at the same moment.
        let pause = step.mul_f64(rand::rng().random_range(0.5..=1.0)).max(at_least.unwrap_or_default());
        (pause < self.left()).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_double_with_jitter_up_to_their_bound() {
        let retry = Retry { attempts_max: 8, ..Retry::DEFAULT };
        let mut backoff = Backoff::new(retry);
        for millis in [50, 100, 200, 400, 800, 1_600, 3_200] {
            let pause = backoff.failed(None).unwrap();
            let step = Duration::from_millis(millis);
            assert!(pause >= step / 2 && pause <= step, "{pause:?} is not within {step:?}");
        }
        assert_eq!(backoff.failed(None), None, "the eighth attempt is the last");
        backoff.progress();
        assert!(backoff.failed(None).unwrap() <= retry.pause_min);
        for _ in 0..5 {
            assert_eq!(backoff.failed(Some(Duration::from_secs(7))), Some(Duration::from_secs(7)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_without_progress_is_bounded() {
        let mut backoff = Backoff::new(Retry { attempts_max: u32::MAX, ..Retry::DEFAULT });
        let start = Instant::now();
        while let Some(pause) = backoff.failed(None) {
            tokio::time::sleep(pause).await;
        }
        assert!(start.elapsed() <= Retry::DEFAULT.time_max);
        assert!(start.elapsed() >= Retry::DEFAULT.time_max - Retry::DEFAULT.pause_max);
        assert_eq!(Backoff::new(Retry::DEFAULT).failed(Some(Retry::DEFAULT.time_max)), None);
        assert_eq!(Backoff::new(Retry::NEVER).failed(None), None);
    }
}
