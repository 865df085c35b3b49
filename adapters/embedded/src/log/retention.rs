//! Deletes what is old enough, or too much, a whole segment at a time.
//!
//! Must never delete a record that a group has not processed, by the checkpoints in the store, nor one without leaving a
//! mark that a reader finds. Must never have two deletions under way: were the later one durable alone, segments would be
//! missing in the middle, which a start takes for damage.

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

/// How often retention is looked after.
const EVERY: Duration = Duration::from_secs(2);

/// Looks after retention.
pub(super) struct Retention {
    pub(super) log: Arc<Log>,
    pub(super) store: Arc<EmbeddedStore>,
    pub(super) commands: CommandSender,
}

impl Retention {
    /// The thread: ends when the other side of `ended` is dropped.
    pub(super) fn run(&self, ended: &Receiver<()>) {
        while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
            if let Err(error) = self.retain(self.log.clock.now()) {
                tracing::warn!(%error, "retention failed, it will be tried again");
            }
        }
    }

    /// Deletes what has left retention, and forgets closed shards that nobody needs. Returns how many bytes it deleted.
    pub(super) fn retain(&self, now: Timestamp) -> Result<u64, PortError> {
        // No segment goes while a backup is made.
        let _retaining = self.log.retaining.lock();
        let retention = i64::try_from(self.log.options.retention.as_millis()).unwrap_or(i64::MAX);
        let oldest = Timestamp(now.0.saturating_sub(retention));
        self.end_old_segment(oldest)?;
        let bytes = self.delete_segments(oldest)?;
        self.forget_shards(oldest)?;
        Ok(bytes)
    }

    /// Lets the writer begin a new segment if everything in the last one has left retention: it is deleted as a whole, and
    /// a slow stream would fill it for months.
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

    /// The oldest segments, as many as may go.
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
        // The limits were taken from progress that a crash might undo, and then these records would be needed.
        self.store.make_durable()?;
        let mut bytes = 0;
        for (number, index) in deletable {
            // Before anything is deleted: a reader that misses a record must find this.
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

    /// Forgets shards that closed before `oldest`, hold nothing and have ended in every group. Their children, which
    /// stay, remember a larger number and a later time.
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
        // That the groups are through with them must outlast a crash.
        self.store.make_durable()?;
        self.ask(|answer| Command::Forget { shards, answer })
    }
}
