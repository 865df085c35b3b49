//! Rows of shards that have ended and left the stream.
//!
//! Owns when such a row may be deleted. Must never let go of a row that anything still rests on: the children inherit
//! their dedup tables and clocks from it, and until they have begun it alone covers its hashes.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::{
    HashRanges, SequenceNumber, ShardId,
    port::{Shard, ShardRow},
};

/// How long a shard must be missing from every list that this worker sees. Much longer than any answer is on its way, so
/// that no worker creates the row again because of an older list.
const MISSING_FOR: Duration = Duration::from_secs(3_600);

/// Notes since when shards have been missing.
#[derive(Default)]
pub(super) struct Cleanup {
    missing: BTreeMap<ShardId, Instant>,
}

impl Cleanup {
    /// The shards whose rows nobody needs any more.
    pub(super) fn deletable(&mut self, shards: &[Shard], rows: &[ShardRow], now: Instant) -> Vec<ShardId> {
        let is_missing = |row: &&ShardRow| shards.iter().all(|shard| shard.id != row.shard);
        let finished = rows.iter().filter(|row| row.is_deletable()).filter(is_missing);
        let finished: BTreeMap<&ShardId, &ShardRow> = finished.map(|row| (&row.shard, row)).collect();
        self.missing.retain(|shard, _| finished.contains_key(shard));
        let mut deletable = Vec::new();
        for (shard, row) in finished {
            let since = *self.missing.entry(shard.clone()).or_insert(now);
            if now.duration_since(since) >= MISSING_FOR && children_have_begun(row, rows) {
                deletable.push(shard.clone());
            }
        }
        deletable
    }
}

/// Whether the children cover all hashes of the shard and each of them is beyond what it inherited.
fn children_have_begun(parent: &ShardRow, rows: &[ShardRow]) -> bool {
    let children = || rows.iter().filter(|row| row.parents.contains(&parent.shard));
    let begun = |row: &ShardRow| row.started && (row.progress.checkpoint > SequenceNumber::ZERO || row.progress.ended);
    let mut uncovered = HashRanges::from(parent.range);
    children().for_each(|child| uncovered = uncovered.without(&child.range));
    uncovered.is_empty() && children().all(begun)
}
