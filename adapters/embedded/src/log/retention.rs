//! Deletes records that are too old or too many, a whole segment at a time.
//!
//! Must never delete a record that a group has not processed according to the checkpoints in the store. Must never
//! delete a record without a mark that readers find. Must never run two deletions at once: if only the later one were
//! durable, segments would be missing in the middle, and a start would report damage.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    time::Duration,
};

use votestream_core::{Clock, Timestamp, port::PortError};

use super::{
    CommandSender, Log, ShardState,
    segment::{self, Index},
    writer::{Command, closed},
};
use crate::{directory::sync_directory, store::EmbeddedStore, write_failed};

/// Pause between two rounds of retention.
const EVERY: Duration = Duration::from_secs(2);

/// Deletes old records.
pub(super) struct Retention {
    pub(super) log: Arc<Log>,
    pub(super) store: Arc<EmbeddedStore>,
    pub(super) commands: CommandSender,
}

impl Retention {
    /// Runs the thread. It ends when the other side of `ended` is dropped.
    pub(super) fn run(&self, ended: &Receiver<()>) {
        while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
            if let Err(error) = self.retain(self.log.clock.now()) {
                tracing::warn!(%error, "could not delete old records; trying again soon");
            }
        }
    }

    /// Deletes records that leave retention, and forgets closed shards that are no longer needed. Returns the number of
    /// deleted bytes.
    pub(super) fn retain(&self, now: Timestamp) -> Result<u64, PortError> {
        // No segment is deleted while a backup is made.
        let _retaining = self.log.retaining.lock();
        let retention = i64::try_from(self.log.options.retention.as_millis()).unwrap_or(i64::MAX);
        let oldest = Timestamp(now.0.saturating_sub(retention));
        self.end_old_segment(oldest)?;
        let bytes = self.delete_segments(oldest)?;
        self.forget_shards(oldest)?;
        Ok(bytes)
    }

    /// Tells the writer to begin a new segment if all records in the last one have left retention. A segment can only
    /// be deleted as a whole, and a slow stream would need months to fill it.
    fn end_old_segment(&self, oldest: Timestamp) -> Result<(), PortError> {
        let old = |index: &Index| !index.is_empty() && index.latest < oldest && self.is_processed(index);
        if self.log.segments.read().last_key_value().is_some_and(|(_, index)| old(index)) {
            self.ask(|answer| Command::Roll { answer })?;
        }
        Ok(())
    }

    fn ask(
        &self,
        command: impl FnOnce(std::sync::mpsc::SyncSender<Result<(), PortError>>) -> Command,
    ) -> Result<(), PortError> {
        let (answer, answered) = sync_channel(1);
        self.commands.send(command(answer)).map_err(|_| closed())?;
        answered.recv().unwrap_or_else(|_| Err(closed()))
    }

    fn is_processed(&self, index: &Index) -> bool {
        let shards = self.log.shards.read();
        let processed = |shard: u32| {
            let id = shards.get(&shard).map(|shard| &shard.id);
            id.and_then(|id| self.store.processed(id)).unwrap_or(u64::MAX)
        };
        index.last_of_shards().all(|(shard, last)| last <= processed(shard))
    }

    /// The oldest segments, as many as may be deleted.
    fn deletable(&self, oldest: Timestamp) -> BTreeMap<u64, Index> {
        let segments = self.log.segments.read();
        let mut stored = self.log.bytes.load(Ordering::Relaxed);
        let sealed = segments.iter().take(segments.len().saturating_sub(1));
        let may_go = sealed.take_while(|(_, index)| {
            let old = index.is_empty() || index.latest < oldest || stored > self.log.options.retention_bytes;
            stored = stored.saturating_sub(index.bytes);
            old && self.is_processed(index)
        });
        may_go.map(|(number, index)| (*number, index.clone())).collect()
    }

    fn delete_segments(&self, oldest: Timestamp) -> Result<u64, PortError> {
        let deletable = self.deletable(oldest);
        if deletable.is_empty() {
            return Ok(0);
        }
        // The limits come from progress that a crash might undo. Then these records would be needed again.
        self.store.make_durable()?;
        let mut bytes = 0;
        for (number, index) in deletable {
            // Set the mark before anything is deleted: a reader that misses a record must find it.
            for (shard, last) in index.last_of_shards() {
                if let Some(shard) = self.log.shards.read().get(&shard) {
                    shard.deleted.fetch_max(last, Ordering::SeqCst);
                }
            }
            self.log.segments.write().remove(&number);
            self.log.bytes.fetch_sub(index.bytes, Ordering::Relaxed);
            bytes += index.bytes;
            let removed = fs::remove_file(segment::path(&self.log.path, number));
            removed.and_then(|()| sync_directory(&self.log.path)).map_err(write_failed)?;
        }
        Ok(bytes)
    }

    /// Forgets shards that were closed before `oldest`, hold no records and have ended in every group. Their children
    /// stay, and they remember a larger number and a later time.
    fn forget_shards(&self, oldest: Timestamp) -> Result<(), PortError> {
        let forgettable = |shard: &ShardState| {
            let tail = *shard.tail.borrow();
            let (empty, closed) = (tail.last <= shard.deleted(), tail.closed_at.is_some_and(|at| at < oldest));
            empty && closed && self.store.ended(&shard.id)
        };
        let shards: Vec<_> = self.log.shards.read().values().cloned().collect();
        let shards: Vec<u32> = shards.iter().filter(|shard| forgettable(shard)).map(|shard| shard.index).collect();
        if shards.is_empty() {
            return Ok(());
        }
        // A crash must not undo that the groups have finished these shards.
        self.store.make_durable()?;
        self.ask(|answer| Command::Forget { shards, answer })
    }
}
