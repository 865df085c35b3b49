//! How persist stores the votes of an event, and when it is done.
//!
//! Owns tasks, rates and the time after the last vote. Must never expect the buckets of a poll to be even: the partition
//! with the most of them decides (`spread.rs`).

use serde::Serialize;
use votestream_core::TimeBounds;

use super::{facts, spread::Spread, tenths};

/// How persist stores the votes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Persist {
    /// The operator's limit, over all tasks.
    pub(crate) budget_write_units_per_second: Option<u64>,
    pub(crate) tasks: u64,
    /// Write units a second that are spent on votes during the peak, or while there is a backlog.
    pub(crate) write_units_per_second: u64,
    /// Write units a second for which the table of votes should be warmed.
    pub(crate) warm_write_units_per_second: u64,
    pub(crate) hottest_partition: HottestPartition,
    /// From the last vote until the table of votes is complete, in seconds.
    pub(crate) drain_seconds: f64,
    /// From the last vote, which comes at the closing, to the final result, in seconds.
    pub(crate) final_after_seconds: f64,
}

/// The partition of the table of votes that gets the most buckets of the poll.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct HottestPartition {
    /// Partitions of the warmed table.
    pub(crate) partitions: u64,
    /// Buckets that a partition has if they are even.
    pub(crate) buckets_if_even: f64,
    pub(crate) buckets_on_average: f64,
    /// In 19 of 20 cases it has no more.
    pub(crate) buckets_at_most: u64,
    /// From the last vote until it has stored its part, in seconds.
    pub(crate) drain_seconds_on_average: f64,
    /// In 19 of 20 cases it takes no longer.
    pub(crate) drain_seconds_at_most: f64,
}

/// What persist has to do, and what one of its tasks can do.
pub(super) struct Worker {
    shards: u64,
    votes: u64,
    units_per_vote: f64,
    buckets: u64,
    peak: u64,
    /// Votes a second that one task can store, limited by its CPU and its calls in flight.
    task_votes_per_second: f64,
}

impl Worker {
    pub(super) fn new(shards: u64, votes: u64, units_per_vote: f64, buckets: u64, peak: u64) -> Self {
        // A new vote takes 1 unit and a changed one takes 2, so this is the share of the changed votes.
        let changed_share = units_per_vote - 1.0;
        let items_per_vote = 1.0 + changed_share * (facts::ITEMS_PER_CHANGED_VOTE_MAX - 1) as f64;
        let cpu_seconds_per_vote =
            (facts::CONSUMER_CPU_SECONDS_PER_MILLION + items_per_vote * facts::SDK_CPU_SECONDS_PER_MILLION_ITEMS) / 1e6;
        let by_cpu = facts::TASK_VCPUS as f64 * facts::CPU_SHARE / cpu_seconds_per_vote;
        let by_calls = facts::ITEMS_IN_FLIGHT as f64 / facts::DYNAMODB_CALL_SECONDS / items_per_vote;
        Self { shards, votes, units_per_vote, buckets, peak, task_votes_per_second: by_cpu.min(by_calls) }
    }

    /// Number of tasks that keep up with shards that are as full as the headroom allows: a task takes whole shards.
    fn tasks_that_keep_up(&self) -> u64 {
        let shard_votes_per_second = (facts::SHARD_VOTES_PER_SECOND / facts::SHARD_HEADROOM) as f64;
        let shards_per_task = ((self.task_votes_per_second / shard_votes_per_second) as u64).max(1);
        self.shards.div_ceil(shards_per_task).max(facts::TASKS_MIN)
    }

    /// Write units a second that the votes need at the peak, as far as the budget goes.
    pub(super) fn spent(&self, budget: Option<u64>) -> f64 {
        let all_buckets = (self.buckets * facts::PARTITION_UNITS_PER_SECOND) as f64;
        let needed = (self.peak as f64 * self.units_per_vote).min(all_buckets);
        budget.map_or(needed, |budget| needed.min(budget as f64))
    }

    /// Without the operator's limit: persist writes as fast as votes arrive, unless a partition takes less.
    pub(super) fn unlimited(&self) -> Persist {
        self.persist(None, self.tasks_that_keep_up(), self.spent(None).ceil())
    }

    pub(super) fn with_budget(&self, budget: u64) -> Persist {
        let spent = self.spent(Some(budget));
        let votes_per_second = spent / self.units_per_vote;
        let tasks = ((votes_per_second / self.task_votes_per_second).ceil() as u64)
            .clamp(facts::TASKS_MIN, self.tasks_that_keep_up());
        // The limit is divided among the tasks, and they take whole shards: the task with the most shards finishes
        // last.
        let most_shards = self.shards.div_ceil(tasks);
        let busiest = budget as f64 / tasks as f64 / (most_shards as f64 / self.shards as f64);
        self.persist(Some(budget), tasks, spent.min(busiest))
    }

    fn persist(&self, budget: Option<u64>, tasks: u64, units_per_second: f64) -> Persist {
        let units = self.votes as f64 * self.units_per_vote;
        let arrival_seconds = self.votes as f64 / self.peak as f64;
        let backlog = |finished_after: f64| (finished_after - arrival_seconds).max(0.0);
        let warm_write_units_per_second =
            (self.spent(budget).ceil() as u64 * facts::WARM_FACTOR).max(facts::TABLE_WARM_UNITS_PER_SECOND);
        let partitions = warm_write_units_per_second / facts::PARTITION_UNITS_PER_SECOND;
        let spread = Spread::new(self.buckets, partitions);
        let bucket_seconds = units / self.buckets as f64 / facts::PARTITION_UNITS_PER_SECOND as f64;
        let hottest = |buckets: u64| backlog(buckets as f64 * bucket_seconds);
        let buckets_at_most = spread.within(facts::SURE_SHARE);
        let drain_seconds_at_most = hottest(buckets_at_most);
        let drain_seconds =
            tenths(backlog(units / units_per_second).max(drain_seconds_at_most) + facts::PERSIST_LAG_SECONDS);
        Persist {
            budget_write_units_per_second: budget,
            tasks,
            write_units_per_second: units_per_second.ceil() as u64,
            warm_write_units_per_second,
            hottest_partition: HottestPartition {
                partitions,
                buckets_if_even: tenths(self.buckets as f64 / partitions as f64),
                buckets_on_average: tenths(spread.mean(|buckets| buckets as f64)),
                buckets_at_most,
                drain_seconds_on_average: tenths(spread.mean(hottest)),
                drain_seconds_at_most: tenths(drain_seconds_at_most),
            },
            drain_seconds,
            final_after_seconds: drain_seconds.max(TimeBounds::DISTRIBUTED.late_after().as_secs_f64()),
        }
    }
}
