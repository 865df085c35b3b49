//! What this process has counted and not yet written, of all shards that it consumes.
//!
//! Owns the sums between a window and the store. The appliers of different shards add to it at the same time, and each takes its
//! own shard's sums out again. Must never keep a sum of a window that was given up: the window is counted anew.

use std::{collections::HashMap, sync::Arc};

use dashmap::DashMap;
use votestream_core::{
    PollId, ShardId,
    consume::{
        tally::{sorted_deltas, submitted},
        window::Window,
    },
    port::TallyDelta,
};

/// Sums by option.
type Sums = HashMap<Arc<str>, i64>;

/// The counters of a process.
#[derive(Default)]
pub(crate) struct Counters {
    sums: DashMap<(PollId, ShardId), Sums>,
}

impl Counters {
    /// Adds every vote of a window. What is left of an earlier attempt at the shard's windows is dropped.
    pub(crate) fn count(&self, window: &Window) {
        self.sums.retain(|(_, shard), _| *shard != window.shard);
        for poll in &window.polls {
            self.sums.insert((poll.id.clone(), window.shard.clone()), Sums::new());
        }
        for selected in &window.selected {
            let counts = submitted(selected);
            for ((poll, option), count) in selected.batch.dictionary.iter().zip(counts) {
                if count > 0 {
                    let mut sums = self.sums.entry((poll.clone(), window.shard.clone())).or_default();
                    *sums.entry(option.clone()).or_default() += count;
                }
            }
        }
    }

    /// Takes a shard's sums out, as what its window adds to the tallies.
    pub(crate) fn drain(&self, shard: &ShardId) -> Vec<TallyDelta> {
        let counted = self.sums.iter().filter(|sums| sums.key().1 == *shard);
        let polls: Vec<PollId> = counted.map(|sums| sums.key().0.clone()).collect();
        let taken = polls.into_iter().filter_map(|poll| self.sums.remove(&(poll, shard.clone())));
        sorted_deltas(taken.map(|((poll, _), sums)| (poll, sums)))
    }
}
