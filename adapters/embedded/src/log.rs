//! The vote stream: an append-only log with shards, in its own files.
//!
//! Owns the shards, the segments and the retention of records. One counter numbers the records of all shards: the
//! numbers of a child are larger than its parents', and a smaller number means an older record. Must never show a
//! record that is not synced, and never delete a record that a group has not processed.
//!
//! - `format.rs`: the bytes of a segment; `table.rs`: the state besides the records.
//! - `append.rs` writes groups, on the thread of `writer.rs`; `tail.rs` keeps the last records in memory.
//! - `recovery.rs` reads the log at a start; `convert.rs` converts the log of an earlier format.
//! - `reader.rs` reads a shard by the index of `segment.rs`; `retention.rs` deletes segments; `backup.rs` copies them.

mod append;
mod backup;
mod convert;
mod format;
mod reader;
mod recovery;
mod retention;
mod segment;
mod table;
mod tail;
mod writer;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use votestream_core::{
    HashRange, SequenceNumber, ShardId, Timestamp,
    clock::SystemClock,
    port::{Group, PortError, RecordReader, Shard, Stored, VoteStream},
};

use self::{
    append::{Appender, End},
    recovery::Recovered,
    retention::Retention,
    segment::Index,
    table::{Definition, Table},
    tail::LastRecords,
    writer::{Command, Writer},
};
pub(crate) use self::{
    convert::{convert, remove_converted},
    table::Lives,
};
use crate::{
    directory::DirectoryLock,
    directory::{OpenError, sync_directory},
    store::EmbeddedStore,
};

/// Most shards of a new stream.
const SHARDS_MAX: u32 = 4_096;
/// Most bytes of records that wait for the writer. Further puts wait for room.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Bytes that one permit of the queue stands for.
const PERMIT_BYTES: usize = 1_024;
/// Largest record.
const RECORD_BYTES_MAX: usize = 16 << 20;
/// Size of a segment. The default limit of retention is a hundred segments. Debug builds, and so the tests that kill
/// processes, begin new segments often.
pub(crate) const SEGMENT_BYTES: u64 = if cfg!(debug_assertions) { 1 << 20 } else { 64 << 20 };

/// Sends commands to the writer. Unbounded: the queue's semaphore bounds the puts, and other commands are few.
type CommandSender = mpsc::UnboundedSender<Command>;

/// Settings of the log.
pub(crate) struct LogOptions {
    pub(crate) retention: Duration,
    pub(crate) retention_bytes: u64,
    pub(crate) segment_bytes: u64,
}

/// Where a shard ends for its readers.
#[derive(Clone, Copy, Debug)]
struct Tail {
    /// Number of the last durable record; 0 if there was none yet.
    last: u64,
    /// Time at which the shard was closed. Once set, no record follows.
    closed_at: Option<Timestamp>,
}

/// One shard in memory.
struct ShardState {
    index: u32,
    id: ShardId,
    range: HashRange,
    parents: Vec<u32>,
    tail: watch::Sender<Tail>,
    /// Number of the last record that left retention. It is raised before the record is deleted.
    deleted: AtomicU64,
}

impl ShardState {
    fn new(index: u32, definition: &Definition, last: u64, deleted: u64) -> Arc<Self> {
        Arc::new(Self {
            index,
            id: shard_id(index),
            range: definition.range,
            parents: definition.parents.clone(),
            tail: watch::Sender::new(Tail { last, closed_at: definition.closed_at }),
            deleted: AtomicU64::new(deleted),
        })
    }

    fn deleted(&self) -> u64 {
        self.deleted.load(Ordering::SeqCst)
    }
}

fn shard_id(index: u32) -> ShardId {
    ShardId::new(format!("shard-{index:010}"))
}

/// State shared by the writer, retention and the readers. It does not hold the lock on the directory, nor the store,
/// which has that lock: otherwise a read that nobody waits for could prevent the next start.
struct Log {
    shards: RwLock<BTreeMap<u32, Arc<ShardState>>>,
    /// All segments. The writer appends to the last one.
    segments: RwLock<BTreeMap<u64, Index>>,
    last_records: LastRecords,
    /// Bytes of all records that are stored.
    bytes: AtomicU64,
    /// Held while segments are deleted, or while none may be deleted.
    retaining: Mutex<()>,
    options: LogOptions,
    path: PathBuf,
    /// Id of the data directory.
    directory: u128,
    clock: Arc<SystemClock>,
}

impl Log {
    fn by_id(&self, id: &ShardId) -> Result<Arc<ShardState>, PortError> {
        let shards = self.shards.read();
        let found = shards.values().find(|shard| shard.id == *id);
        found.cloned().ok_or_else(|| PortError::permanent(format!("the stream knows no shard {id}")))
    }
}

/// A log that was read and checked, but not changed yet.
pub(crate) struct Found {
    path: PathBuf,
    directory: u128,
    recovered: Recovered,
}

impl Found {
    /// Reads the log of a data directory with this id.
    pub(crate) fn read(path: &Path, directory: u128, store: &EmbeddedStore) -> Result<Self, OpenError> {
        let unprocessed =
            |shard: u32, sequence: u64| store.processed(&shard_id(shard)).is_none_or(|processed| processed < sequence);
        let recovered = recovery::read(path, directory, &unprocessed)?;
        Ok(Self { path: path.to_owned(), directory, recovered })
    }

    /// The largest number that was assigned.
    pub(crate) fn last_number(&self) -> u64 {
        self.recovered.table.number
    }

    /// Time of the last arrival.
    pub(crate) fn latest(&self) -> Timestamp {
        self.recovered.table.latest
    }

    /// Number of changes of polls in the store when the log was last written.
    pub(crate) fn poll_changes(&self) -> u64 {
        self.recovered.table.polls
    }

    /// The lives that the log knows; see [`Lives`].
    pub(crate) fn lives(&self) -> Lives {
        self.recovered.table.lives
    }

    /// Whether records were put in the last life.
    pub(crate) fn has_lived(&self) -> bool {
        self.recovered.table.number > self.recovered.life_from
    }

    /// The last record of a shard that left retention; `None` if there is no such shard.
    pub(crate) fn deleted(&self, shard: &ShardId) -> Option<u64> {
        let (index, _) = self.recovered.table.shards.iter().find(|(index, _)| shard_id(**index) == *shard)?;
        Some(self.recovered.deleted.get(index).copied().unwrap_or(0))
    }
}

/// Refuses a number of shards that is out of range.
pub(crate) fn check_shards(shards: u32) -> Result<(), OpenError> {
    match shards {
        1..=SHARDS_MAX => Ok(()),
        _ => Err(OpenError::Shards { shards, max: SHARDS_MAX }),
    }
}

/// Makes an empty log in a new directory.
pub(crate) fn create(path: &Path, directory: u128, shards: u32) -> Result<(), OpenError> {
    let create = || -> io::Result<()> {
        fs::create_dir(path)?;
        Appender::create(path, directory, End::NOTHING, &Table::new(shards))?;
        sync_directory(path)
    };
    create().map_err(|source| OpenError::Io { directory: path.to_owned(), source })
}

/// The stream port on the log.
pub(crate) struct EmbeddedStream {
    log: Arc<Log>,
    commands: CommandSender,
    /// Limits the bytes of the puts that wait.
    queue: Arc<Semaphore>,
    threads: Mutex<Threads>,
    #[cfg(test)]
    retention: Arc<Retention>,
    _lock: DirectoryLock,
}

struct Threads {
    /// When it is dropped, retention ends.
    retention_alive: Option<std::sync::mpsc::Sender<()>>,
    handles: Vec<JoinHandle<()>>,
}

impl EmbeddedStream {
    /// Begins a new life of the log, and starts its threads. The clock must not be behind the last arrival.
    pub(crate) fn start(
        found: Found,
        life: Lives,
        options: LogOptions,
        clock: Arc<SystemClock>,
        store: Arc<EmbeddedStore>,
        lock: DirectoryLock,
    ) -> Result<Arc<Self>, OpenError> {
        let Found { path, directory, recovered } = found;
        let failed = |source| OpenError::Io { directory: path.clone(), source };
        recovered.settle()?;
        let Recovered { mut table, mut segments, deleted, end, .. } = recovered;
        table.lives = life;
        // Each life begins a new segment, so bytes of a torn tail stay behind the end of the old one.
        let appender = Appender::create(&path, directory, end, &table).map_err(failed)?;
        let first = appender.end();
        segments.insert(first.segment, Index::of_empty(first.seal.end));

        let last_records = LastRecords::default();
        let shards = table.shards.iter().map(|(&index, known)| {
            last_records.begin(index, known.last);
            let deleted = deleted.get(&index).copied().unwrap_or(0);
            (index, ShardState::new(index, &known.definition, known.last, deleted))
        });
        let shards = RwLock::new(shards.collect());
        let bytes = AtomicU64::new(segments.values().map(|index| index.bytes).sum());
        let segments = RwLock::new(segments);
        let log = Arc::new(Log {
            shards,
            segments,
            last_records,
            bytes,
            retaining: Mutex::new(()),
            options,
            path: path.clone(),
            directory,
            clock,
        });
        #[expect(clippy::disallowed_methods, reason = "the semaphore `queue` bounds puts, and other commands are few")]
        let (commands, receiver) = mpsc::unbounded_channel();
        let writer = Writer::new(log.clone(), store.clone(), table, appender);
        let writer = std::thread::Builder::new()
            .name("votestream-log".into())
            .spawn(move || writer.run(receiver))
            .map_err(failed)?;
        #[expect(clippy::disallowed_methods, reason = "nothing is sent: the end of its sender ends the thread")]
        let (retention_alive, ended) = std::sync::mpsc::channel();
        let retention = Arc::new(Retention { log: log.clone(), store, commands: commands.clone() });
        let retaining = retention.clone();
        let retaining = std::thread::Builder::new()
            .name("votestream-retention".into())
            .spawn(move || retaining.run(&ended))
            .map_err(failed)?;
        let threads = Mutex::new(Threads { retention_alive: Some(retention_alive), handles: vec![writer, retaining] });
        let queue = Arc::new(Semaphore::new(QUEUE_BYTES_MAX / PERMIT_BYTES));
        Ok(Arc::new(Self {
            log,
            commands,
            queue,
            threads,
            #[cfg(test)]
            retention,
            _lock: lock,
        }))
    }

    /// Ends the threads after the waiting puts were answered.
    pub(crate) fn stop(&self) {
        let mut threads = self.threads.lock();
        threads.retention_alive = None;
        // This fails if the writer has already ended.
        drop(self.commands.send(Command::Stop));
        for thread in threads.handles.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the embedded stream had panicked");
            }
        }
    }

    /// Splits an open shard. The second child starts at `at`.
    pub(crate) async fn split(&self, shard: &ShardId, at: u128) -> Result<(ShardId, ShardId), PortError> {
        let shard = self.log.by_id(shard)?;
        let range = shard.range;
        if at <= range.start || at > range.end {
            return Err(PortError::permanent(format!("{at} does not split the hashes of {}", shard.id)));
        }
        let ranges = vec![HashRange { start: range.start, end: at - 1 }, HashRange { start: at, end: range.end }];
        match self.reshard(vec![shard.index], ranges).await?.as_slice() {
            [first, second] => Ok((first.clone(), second.clone())),
            other => Err(PortError::unknown(format!("a split made {} shards", other.len()))),
        }
    }

    /// Merges two open neighbours.
    pub(crate) async fn merge(&self, first: &ShardId, second: &ShardId) -> Result<ShardId, PortError> {
        let (first, second) = (self.log.by_id(first)?, self.log.by_id(second)?);
        let (low, high) = if first.range < second.range { (&first, &second) } else { (&second, &first) };
        if low.range.end.checked_add(1) != Some(high.range.start) {
            return Err(PortError::permanent(format!("{} and {} are not neighbours", first.id, second.id)));
        }
        let range = HashRange { start: low.range.start, end: high.range.end };
        match self.reshard(vec![low.index, high.index], vec![range]).await?.as_slice() {
            [child] => Ok(child.clone()),
            other => Err(PortError::unknown(format!("a merge made {} shards", other.len()))),
        }
    }

    async fn reshard(&self, parents: Vec<u32>, children: Vec<HashRange>) -> Result<Vec<ShardId>, PortError> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Reshard { parents, children, answer })?;
        answered.await.unwrap_or_else(|_| Err(no_answer()))
    }

    fn send(&self, command: Command) -> Result<(), PortError> {
        self.commands.send(command).map_err(|_| writer::closed())
    }
}

fn no_answer() -> PortError {
    PortError::unknown("the writer of the embedded stream ended without an answer")
}

#[async_trait]
impl VoteStream for EmbeddedStream {
    async fn list_shards(&self) -> Result<Vec<Shard>, PortError> {
        let shards = self.log.shards.read();
        let shown = shards.values().map(|shard| Shard {
            id: shard.id.clone(),
            range: shard.range,
            parents: shard.parents.iter().map(|&parent| shard_id(parent)).collect(),
            open: shard.tail.borrow().closed_at.is_none(),
            ends_at: None,
        });
        Ok(shown.collect())
    }

    async fn put(&self, hash: u128, data: Bytes) -> Result<Stored, PortError> {
        if data.len() > RECORD_BYTES_MAX {
            return Err(PortError::permanent(format!(
                "a record has {} bytes, the limit is {RECORD_BYTES_MAX}",
                data.len()
            )));
        }
        let permits = (data.len() / PERMIT_BYTES + 1) as u32;
        let permit = self.queue.clone().acquire_many_owned(permits).await.map_err(|_| writer::closed())?;
        let (answer, answered) = oneshot::channel();
        self.send(Command::Put { hash, data, answer, _permit: permit })?;
        answered.await.unwrap_or_else(|_| Err(no_answer()))
    }

    async fn reader(
        &self,
        _group: Group,
        shard: &ShardId,
        after: SequenceNumber,
    ) -> Result<Box<dyn RecordReader>, PortError> {
        let after = after
            .as_u64()
            .ok_or_else(|| PortError::permanent(format!("{after} is not a sequence number of the embedded stream")))?;
        Ok(Box::new(reader::Reader::new(self.log.clone(), self.log.by_id(shard)?, after)))
    }
}

#[cfg(test)]
mod power;
#[cfg(test)]
mod tests;
