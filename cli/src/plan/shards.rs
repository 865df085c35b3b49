//! From the shards of a stream to those of a plan, step by step, and back.
//!
//! Owns the rules of UpdateShardCount. Must never reshard.

use serde::Serialize;

use super::facts;

/// Calls of UpdateShardCount: the number of shards after each.
#[derive(Debug, Serialize)]
pub(crate) struct Resharding {
    /// Shards of the stream now. 0 if it does not exist: it is created with all shards.
    pub(crate) shards_now: u64,
    /// Before the event.
    pub(crate) to_plan: Vec<u64>,
    /// After the event.
    pub(crate) back: Vec<u64>,
    pub(crate) steps_a_day_max: u64,
    /// Days, of 24 hours each, before the event on which the first step is due.
    pub(crate) days_before: u64,
}

impl Resharding {
    pub(super) fn new(shards_now: u64, shards: u64) -> Self {
        let (to_plan, back) = match shards_now {
            0 => (Vec::new(), Vec::new()),
            now => (steps(now, shards), steps(shards, now)),
        };
        Self {
            shards_now,
            days_before: (to_plan.len() as u64).div_ceil(facts::RESHARDINGS_A_DAY),
            to_plan,
            back,
            steps_a_day_max: facts::RESHARDINGS_A_DAY,
        }
    }
}

/// At most twice as many shards after a step, and at least half as many.
fn steps(from: u64, to: u64) -> Vec<u64> {
    let next = |shards: &u64| match *shards {
        now if now == to => None,
        now if now < to => Some(now.saturating_mul(2).min(to)),
        now => Some(now.div_ceil(2).max(to)),
    };
    std::iter::successors(Some(from.max(1)), next).skip(1).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forty_two_shards_are_four_steps_away() {
        let plan = Resharding::new(4, 42);
        assert_eq!((plan.to_plan, plan.back), (vec![8, 16, 32, 42], vec![21, 11, 6, 4]));
        assert_eq!(plan.days_before, 1);
        let fewer = Resharding::new(4, 2);
        assert_eq!((fewer.to_plan, fewer.back), (vec![2], vec![4]));
        assert!(Resharding::new(4, 4).to_plan.is_empty() && Resharding::new(0, 42).to_plan.is_empty());
        assert_eq!(Resharding::new(1, 2_000).days_before, 2);
    }

    proptest! {
        #[test]
        fn each_step_is_allowed_and_the_last_one_arrives(from in 1u64..20_000, to in 1u64..20_000) {
            let all = steps(from, to);
            prop_assert_eq!(all.last().copied().unwrap_or(from), to);
            let mut before = from;
            for after in all {
                prop_assert!(after <= 2 * before && 2 * after >= before && after != before);
                before = after;
            }
        }
    }
}
