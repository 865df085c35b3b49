//! How long a recount of the stored votes takes: `votestream audit`, and the repair of a poll whose data contradict.
//!
//! Owns the estimate. Must never count.

use serde::Serialize;

use super::facts;

/// A recount after the event.
#[derive(Debug, Serialize)]
pub(crate) struct Recount {
    /// Pages of at most 1 MB that are read, at least one of each bucket.
    pub(crate) queries: u64,
    pub(crate) read_units: u64,
    pub(crate) seconds: f64,
    /// What takes this long.
    pub(crate) limited_by: Limit,
}

/// What a recount waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Limit {
    /// The answers, of which only some are in flight at a time.
    Queries,
    /// The read units a second of the table.
    ReadUnits,
    /// The CPU of the task that counts.
    Cpu,
}

impl Recount {
    pub(super) fn new(voters: u64, buckets: u64) -> Self {
        let bytes = voters as f64 * facts::VOTE_ITEM_BYTES;
        let pages_of_bucket = (bytes / buckets as f64 / facts::QUERY_PAGE_BYTES).ceil().max(1.0);
        let queries = buckets * pages_of_bucket as u64;
        let read_units = (bytes / facts::READ_UNIT_BYTES).ceil().max(queries as f64);
        let query_seconds = queries as f64 * facts::QUERY_SECONDS + bytes / facts::QUERY_BYTES_PER_SECOND;
        let (limited_by, seconds) = [
            (Limit::Queries, query_seconds / facts::QUERIES_IN_FLIGHT),
            (Limit::ReadUnits, read_units / facts::TABLE_WARM_READ_UNITS_PER_SECOND),
            (Limit::Cpu, voters as f64 / 1e6 * facts::RECOUNT_CPU_SECONDS_PER_MILLION),
        ]
        .into_iter()
        .max_by(|(_, a), (_, b)| a.total_cmp(b))
        .unwrap_or((Limit::Queries, 0.0));
        Self { queries, read_units: read_units as u64, seconds: super::tenths(seconds), limited_by }
    }
}
