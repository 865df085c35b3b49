//! The operator's limit on cost: write units per second that votes may use.
//!
//! Owns when a write may be sent. Callers are served in the order in which they ask. Must never be held during a call:
//! a slow answer does not reduce the budget.

use std::{num::NonZeroU32, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// How much budget may be saved while nothing is written. Short, so that the second after a pause stays within the
/// budget.
const SAVED_MAX: Duration = Duration::from_millis(50);

/// A bucket of write units. Its state is one moment: the budget up to that moment is spent.
pub(super) struct WriteBudget {
    per_second: Option<NonZeroU32>,
    spent_until: Mutex<Instant>,
}

impl WriteBudget {
    pub(super) fn new(per_second: Option<NonZeroU32>) -> Self {
        Self { per_second, spent_until: Mutex::new(Instant::now()) }
    }

    /// Waits until these units may be spent, and spends them.
    pub(super) async fn spend(&self, units: usize) {
        let Some(per_second) = self.per_second else { return };
        let cost = duration_of(units, per_second);
        let from = {
            let mut spent_until = self.spent_until.lock();
            let now = Instant::now();
            let from = (*spent_until).max(now.checked_sub(SAVED_MAX).unwrap_or(now));
            *spent_until = from + cost;
            from
        };
        tokio::time::sleep_until(from).await;
    }

    /// Gives back units that were not used: throttled writes cost nothing.
    pub(super) fn give_back(&self, units: usize) {
        let Some(per_second) = self.per_second else { return };
        let mut spent_until = self.spent_until.lock();
        let earlier = spent_until.checked_sub(duration_of(units, per_second));
        *spent_until = earlier.unwrap_or(*spent_until);
    }
}

fn duration_of(units: usize, per_second: NonZeroU32) -> Duration {
    Duration::from_secs_f64(units as f64 / f64::from(per_second.get()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn holds_the_rate_within_a_tenth_whoever_asks() {
        for (rate, units, callers) in [(1_000, 25, 8), (100, 7, 3), (40_000, 25, 32)] {
            let budget = std::sync::Arc::new(WriteBudget::new(NonZeroU32::new(rate)));
            // A pause first: the budget that it saves must not show.
            tokio::time::sleep(Duration::from_secs(5)).await;
            let start = Instant::now();
            let seconds = 10;
            let rounds = rate as usize * seconds / (units * callers);
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..callers {
                let budget = budget.clone();
                tasks.spawn(async move {
                    for round in 0..rounds {
                        budget.spend(units).await;
                        // Throttled and tried again: it costs only once.
                        if round % 10 == 0 {
                            budget.give_back(units);
                            budget.spend(units).await;
                        }
                    }
                });
            }
            tasks.join_all().await;
            let spent = (rounds * units * callers) as f64 / start.elapsed().as_secs_f64();
            let ratio = spent / f64::from(rate);
            assert!((0.9..=1.1).contains(&ratio), "{rate}/s: {spent}/s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nobody_waits() {
        let start = Instant::now();
        let budget = WriteBudget::new(None);
        budget.spend(usize::MAX).await;
        budget.give_back(usize::MAX);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
