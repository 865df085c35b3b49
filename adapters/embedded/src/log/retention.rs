//! Deletes what is old enough, or too much.
//!
//! Must never delete a record that a group has not processed, by the checkpoints in the store, nor one without leaving a
//! mark that a reader finds.

use std::{
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use votestream_core::{Clock, Timestamp, port::PortError};

use super::{Log, RecordKey, ShardState, definition_key, deleted_key};
use crate::{codec::Encoder, read_failed, write_failed};

/// How often retention is looked after.
const EVERY: Duration = Duration::from_secs(2);
/// Most records that one commit deletes.
const DELETES_MAX: usize = 4_096;
/// Deleted bytes after which space is given back: tables with the marks of deleted records are tiny and would wait long.
const COMPACT_AFTER_BYTES: u64 = 256 << 20;

/// The thread: ends when the other side of `ended` is dropped.
pub(super) fn run(log: &Log, ended: &Receiver<()>) {
    let mut uncompacted = 0;
    while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
        match log.retain(log.clock.now()) {
            Ok(bytes) => uncompacted += bytes,
            Err(error) => tracing::warn!(%error, "retention failed, it will be tried again"),
        }
        if uncompacted >= COMPACT_AFTER_BYTES {
            uncompacted = 0;
            if let Err(error) = log.records.major_compact() {
                tracing::warn!(%error, "space of deleted records could not be given back");
            }
        }
    }
}

/// The oldest records of one shard.
struct Head {
    shard: Arc<ShardState>,
    keys: fjall::Iter,
    /// Nothing beyond may be deleted.
    limit: u64,
    next: Option<RecordKey>,
    deleted: Option<RecordKey>,
}

impl Head {
    fn advance(&mut self) -> Result<(), PortError> {
        self.next = match self.keys.next() {
            None => None,
            Some(guard) => {
                let key = guard.key().map_err(read_failed)?;
                let key = RecordKey::decode(&key).map_err(|corrupt| corrupt.in_a("record"))?;
                Some(key).filter(|key| key.sequence <= self.limit)
            }
        };
        Ok(())
    }
}

impl Log {
    /// Deletes what has left retention, and forgets closed shards that nobody needs. Returns how many bytes it deleted.
    pub(super) fn retain(&self, now: Timestamp) -> Result<u64, PortError> {
        let retention = i64::try_from(self.options.retention.as_millis()).unwrap_or(i64::MAX);
        let oldest = Timestamp(now.0.saturating_sub(retention));
        let mut bytes = 0;
        loop {
            let (deleted, records) = self.delete_some(oldest)?;
            bytes += deleted;
            if records < DELETES_MAX {
                break;
            }
        }
        self.forget_shards(oldest)?;
        Ok(bytes)
    }

    /// One commit. Numbers are given out in the order of arrival, so the smallest number of all shards is the oldest.
    fn delete_some(&self, oldest: Timestamp) -> Result<(u64, usize), PortError> {
        let mut heads = Vec::new();
        // Copied, since the store may be busy with a sync.
        let shards: Vec<_> = self.shards.read().values().cloned().collect();
        for shard in shards {
            let last = shard.tail.borrow().last;
            let limit = self.store.processed(&shard.id).map_or(last, |processed| processed.min(last));
            let deleted = shard.deleted();
            if limit <= deleted {
                continue;
            }
            let range = RecordKey::prefix(shard.index, deleted + 1)..RecordKey::prefix(shard.index, limit + 1);
            let keys = self.records.range(range);
            heads.push(Head { shard, keys, limit, next: None, deleted: None });
        }
        for head in &mut heads {
            head.advance()?;
        }
        let stored = self.bytes.load(Ordering::Relaxed);
        let (mut bytes, mut records) = (0, 0);
        let mut batch = self.db.batch();
        while records < DELETES_MAX {
            let smallest = heads.iter_mut().filter_map(|head| head.next.map(|key| (key, head)));
            let Some((key, head)) = smallest.min_by_key(|(key, _)| key.sequence) else { break };
            if key.arrived_at >= oldest && stored.saturating_sub(bytes) <= self.options.retention_bytes {
                break;
            }
            batch.remove(&self.records, key.to_bytes());
            bytes += u64::from(key.len);
            records += 1;
            head.deleted = Some(key);
            head.advance()?;
        }
        if records == 0 {
            return Ok((0, 0));
        }
        // The limits were taken from progress that a crash might undo, and then these records would be needed.
        self.store.make_durable()?;
        for (head, key) in heads.iter().filter_map(|head| head.deleted.map(|key| (head, key))) {
            let mut value = Encoder::default();
            value.u64(key.sequence).time(key.arrived_at);
            batch.insert(&self.definitions, deleted_key(key.shard), value.0);
            // Before the commit: a reader that misses a record must find this.
            head.shard.deleted.store(key.sequence, Ordering::SeqCst);
        }
        batch.commit().map_err(write_failed)?;
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Ok((bytes, records))
    }

    /// Forgets shards that closed before `oldest`, hold nothing and have ended in every group. Their children, which
    /// stay, remember a larger number and a later time.
    fn forget_shards(&self, oldest: Timestamp) -> Result<(), PortError> {
        let forgettable = |shard: &ShardState| {
            let tail = *shard.tail.borrow();
            let (empty, closed) = (tail.last <= shard.deleted(), tail.closed_at.is_some_and(|at| at < oldest));
            empty && closed && self.store.ended(&shard.id)
        };
        let mut shards: Vec<_> = self.shards.read().values().cloned().collect();
        shards.retain(|shard| forgettable(shard));
        if shards.is_empty() {
            return Ok(());
        }
        // That the groups are through with them must outlast a crash.
        self.store.make_durable()?;
        let mut batch = self.db.batch();
        for shard in &shards {
            batch.remove(&self.definitions, definition_key(shard.index));
            batch.remove(&self.definitions, deleted_key(shard.index));
        }
        batch.commit().map_err(write_failed)?;
        let mut known = self.shards.write();
        for shard in shards {
            known.remove(&shard.index);
        }
        Ok(())
    }
}
