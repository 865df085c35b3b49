//! The map from hashes to lanes, and how it changes when shards split or merge.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::{Producer, queue::Lane, send};
use crate::{
    HashRange, HashRanges, ShardId,
    port::{PortError, Shard},
};

/// Up to this many lanes, comparing a hash with each is faster than a search.
const LANES_COUNTED_MAX: usize = 16;

/// The open shards' lanes, in the order of their hashes, and the ranges of all shards that were ever seen.
#[derive(Default)]
pub(super) struct LaneMap {
    lanes: Vec<Arc<Lane>>,
    /// First hash of each lane.
    starts: Vec<u128>,
    shards: Vec<Shard>,
}

impl LaneMap {
    /// Index of the lane that owns a hash. The map covers every hash, see [`Producer::refresh`].
    pub(super) fn index(&self, hash: u128) -> u32 {
        if self.starts.len() <= LANES_COUNTED_MAX {
            // No branch depends on the hash here, which is faster.
            self.starts.iter().map(|start| u32::from(*start <= hash)).sum::<u32>().saturating_sub(1)
        } else {
            (self.starts.partition_point(|start| *start <= hash) - 1) as u32
        }
    }

    /// Number of lanes.
    pub(super) fn len(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn at(&self, index: u32) -> &Lane {
        &self.lanes[index as usize]
    }

    pub(super) fn lane(&self, hash: u128) -> &Lane {
        self.at(self.index(hash))
    }

    /// Range of a shard, open or closed.
    pub(super) fn range(&self, shard: &ShardId) -> Option<HashRange> {
        self.shards.iter().find(|known| known.id == *shard).map(|known| known.range)
    }

    /// Whether the shard takes records, as far as this process knows.
    pub(super) fn is_open(&self, shard: &ShardId) -> bool {
        self.lanes.iter().any(|lane| lane.shard == *shard)
    }
}

impl Producer {
    /// Reads the shard map. Lanes of closed shards are retired. The votes in their queues move to the lanes of the new
    /// shards, in the same order and ahead of every vote that is appended later.
    ///
    /// Boxed, because a refresh starts lanes and lanes refresh: without the box, the future would contain itself.
    pub(super) fn refresh(self: &Arc<Self>) -> BoxFuture<'_, Result<(), PortError>> {
        Box::pin(self.refresh_now())
    }

    async fn refresh_now(self: &Arc<Self>) -> Result<(), PortError> {
        let _one_at_a_time = self.refreshing.lock().await;
        let shards = self.stream.list_shards().await?;
        let mut open: Vec<_> = shards.iter().filter(|shard| shard.open).collect();
        open.sort_unstable_by_key(|shard| shard.range);
        let disjoint = open.windows(2).all(|pair| pair[0].range.end < pair[1].range.start);
        if !disjoint || !HashRanges::union_of(open.iter().map(|shard| shard.range)).is_all() {
            // A reshard is under way. The existing lanes go on.
            return Err(PortError::refused("the open shards do not cover every hash exactly once"));
        }

        let mut map = self.map.write();
        let (mut lanes, mut added) = (Vec::with_capacity(open.len()), Vec::new());
        for shard in open {
            let kept = map.lanes.iter().find(|lane| lane.shard == shard.id);
            lanes.push(kept.cloned().unwrap_or_else(|| {
                let lane = Arc::new(Lane::new(shard.id.clone(), shard.range));
                added.push(lane.clone());
                lane
            }));
        }
        let before = std::mem::replace(&mut map.lanes, lanes);
        map.starts = map.lanes.iter().map(|lane| lane.range.start).collect();
        map.shards = shards;
        for lane in before {
            if map.is_open(&lane.shard) {
                continue;
            }
            let queue = {
                let mut state = lane.state.lock();
                state.retired = true;
                std::mem::take(&mut state.queue)
            };
            for batch in queue {
                batch.move_to(&self.spare, |hash| map.lane(hash));
            }
            lane.wake.notify_one();
        }
        drop(map);
        for lane in added {
            tokio::spawn(send::run_lane(Arc::downgrade(self), lane, self.stopped.clone()));
        }
        Ok(())
    }
}

/// Reads the shard map from time to time. So a merge is noticed even if no answer to a put names another shard.
pub(super) async fn refresh_regularly(producer: Weak<Producer>, every: Duration, stopped: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stopped.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        let Some(producer) = producer.upgrade() else { return };
        if let Err(error) = producer.refresh().await {
            tracing::warn!(%error, "cannot refresh the shard map; the lanes go on with the one they have");
        }
    }
}
