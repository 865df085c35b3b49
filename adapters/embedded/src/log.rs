//! The vote stream: an append-only log in shards.
//!
//! Owns the keys of records, the table of shards and what has left retention. One counter numbers the records of all shards,
//! so a child's numbers are larger than its parents', and the order of numbers is the order of age. Must never show a record
//! that is not synced, nor delete one that a group has not processed.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `records` | shard u32, sequence u64, arrival i64, length u32 | the record |
//! | `shards` | 1, shard u32 | [`Definition`]; written by the writer's thread only |
//! | `shards` | 2, shard u32 | sequence and arrival of the last deleted record; written by retention only |
//!
//! Everything but the data is in the key, so that retention and opening read keys alone; large values are in blob files.

mod reader;
mod retention;
mod writer;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode, compaction::Leveled};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use votestream_core::{
    HashRange, SequenceNumber, ShardId, Timestamp,
    port::{Group, PortError, RecordReader, Shard, Stored, VoteStream},
    time::SystemClock,
};

use self::writer::{Command, Writer};
use crate::{
    background::TABLE_WRITERS,
    codec::{Corrupt, Decoder, Encoder},
    directory::OpenError,
    engine::DirectoryLock,
    files::cached_files_max,
    store::{EmbeddedStore, TABLE_BYTES},
};

/// Most shards of a new stream.
const SHARDS_MAX: u32 = 4_096;
/// Bytes of records that wait for the writer; puts beyond wait for room.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// What one permit of the queue stands for.
const PERMIT_BYTES: usize = 1_024;
/// Largest record.
const RECORD_BYTES_MAX: usize = 16 << 20;
/// Block cache of the log: it is mostly read where it was just written.
const CACHE_BYTES: u64 = 16 << 20;
/// Records that are kept in memory until they go to a blob file, which is written and synced at once: an acknowledgement
/// waits for that if it comes at the same time.
const MEMTABLE_BYTES: u64 = 16 << 20;
/// Size of a blob file.
const BLOB_FILE_BYTES: u64 = 32 << 20;

/// Settings of the log.
pub(crate) struct LogOptions {
    pub(crate) shards: u32,
    pub(crate) retention: Duration,
    pub(crate) retention_bytes: u64,
}

/// Key of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RecordKey {
    shard: u32,
    sequence: u64,
    arrived_at: Timestamp,
    len: u32,
}

impl RecordKey {
    fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..12].copy_from_slice(&Self::prefix(self.shard, self.sequence));
        bytes[12..20].copy_from_slice(&self.arrived_at.0.to_be_bytes());
        bytes[20..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// Before the record of this number, and after all records before it.
    fn prefix(shard: u32, sequence: u64) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&shard.to_be_bytes());
        bytes[4..].copy_from_slice(&sequence.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut key = Decoder(bytes);
        let decoded = Self { shard: key.u32()?, sequence: key.u64()?, arrived_at: key.time()?, len: key.u32()? };
        key.end()?;
        Ok(decoded)
    }
}

/// What a shard is, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Definition {
    range: HashRange,
    parents: Vec<u32>,
    /// A number that no record has: larger than those of the parents' records, smaller than those of its own.
    created: u64,
    created_at: Timestamp,
    closed_at: Option<Timestamp>,
}

impl Definition {
    fn encode(&self) -> Vec<u8> {
        let mut value = Encoder::default();
        value.u128(self.range.start).u128(self.range.end).u32(self.parents.len() as u32);
        for parent in &self.parents {
            value.u32(*parent);
        }
        value.u64(self.created).time(self.created_at).bool(self.closed_at.is_some());
        value.time(self.closed_at.unwrap_or(Timestamp::ZERO));
        value.0
    }

    fn decode(bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut value = Decoder(bytes);
        let range = HashRange { start: value.u128()?, end: value.u128()? };
        let parents = value.list(Decoder::u32)?;
        let (created, created_at) = (value.u64()?, value.time()?);
        let (closed, closed_at) = (value.bool()?, value.time()?);
        value.end()?;
        Ok(Self { range, parents, created, created_at, closed_at: closed.then_some(closed_at) })
    }
}

fn definition_key(shard: u32) -> [u8; 5] {
    key_of(1, shard)
}

fn deleted_key(shard: u32) -> [u8; 5] {
    key_of(2, shard)
}

fn key_of(kind: u8, shard: u32) -> [u8; 5] {
    let [a, b, c, d] = shard.to_be_bytes();
    [kind, a, b, c, d]
}

/// How far a shard can be read.
#[derive(Clone, Copy, Debug)]
struct Tail {
    /// Number of the last durable record; 0 if there was never one.
    last: u64,
    /// Set once no record can follow.
    closed_at: Option<Timestamp>,
}

/// One shard in memory.
struct ShardState {
    index: u32,
    id: ShardId,
    range: HashRange,
    parents: Vec<u32>,
    tail: watch::Sender<Tail>,
    /// Number of the last record that left retention. Raised before the record is deleted.
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

/// What the writer, retention and the readers share.
struct Log {
    shards: RwLock<BTreeMap<u32, Arc<ShardState>>>,
    /// Bytes of all records that are stored.
    bytes: AtomicU64,
    options: LogOptions,
    clock: Arc<SystemClock>,
    store: Arc<EmbeddedStore>,
    records: Keyspace,
    definitions: Keyspace,
    db: Database,
    _lock: DirectoryLock,
}

impl Log {
    fn by_id(&self, id: &ShardId) -> Result<Arc<ShardState>, PortError> {
        let shards = self.shards.read();
        let found = shards.values().find(|shard| shard.id == *id);
        found.cloned().ok_or_else(|| PortError::permanent(format!("the stream knows no shard {id}")))
    }
}

/// The stream port on the log.
pub(crate) struct EmbeddedStream {
    log: Arc<Log>,
    commands: mpsc::UnboundedSender<Command>,
    /// Bounds the commands in bytes.
    queue: Arc<Semaphore>,
    threads: Mutex<Threads>,
}

struct Threads {
    /// Dropped to end retention.
    retention_alive: Option<std::sync::mpsc::Sender<()>>,
    handles: Vec<JoinHandle<()>>,
}

impl EmbeddedStream {
    /// Opens the log and starts its threads. Also returns the clock that stamps its records.
    pub(crate) fn open(
        path: &Path,
        options: LogOptions,
        store: Arc<EmbeddedStore>,
        lock: DirectoryLock,
    ) -> Result<(Arc<Self>, Arc<SystemClock>), OpenError> {
        if options.shards == 0 || options.shards > SHARDS_MAX {
            return Err(OpenError::Shards { shards: options.shards, max: SHARDS_MAX });
        }
        let failed = |source: fjall::Error| OpenError::Database { path: path.to_owned(), source };
        let damaged = |reason: String| OpenError::Damaged { path: path.to_owned(), reason };
        let db = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .max_cached_files(Some(cached_files_max()))
            .worker_threads(TABLE_WRITERS)
            .open()
            .map_err(failed)?;
        let blobs = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(MEMTABLE_BYTES)
                .compaction_strategy(Arc::new(Leveled::default().with_table_target_size(TABLE_BYTES)))
                .with_kv_separation(Some(KvSeparationOptions::default().file_target_size(BLOB_FILE_BYTES)))
        };
        let records = db.keyspace("records", blobs).map_err(failed)?;
        let definitions = db.keyspace("shards", KeyspaceCreateOptions::default).map_err(failed)?;

        // All shards, and the largest number and arrival that were ever given out.
        let (mut number, mut latest) = (0, Timestamp::ZERO);
        let (mut stored, mut deleted) = (BTreeMap::new(), BTreeMap::<u32, u64>::new());
        for guard in definitions.iter() {
            let (key, value) = guard.into_inner().map_err(failed)?;
            let bad = |_| damaged(format!("entry {key:?} of the table of shards"));
            let mut key = Decoder(&key);
            let (kind, shard) = (key.u8().map_err(bad)?, key.u32().map_err(bad)?);
            match kind {
                1 => {
                    let definition = Definition::decode(&value).map_err(bad)?;
                    number = number.max(definition.created);
                    latest = latest.max(definition.created_at).max(definition.closed_at.unwrap_or_default());
                    stored.insert(shard, definition);
                }
                2 => {
                    let mut value = Decoder(&value);
                    let (sequence, at) = (value.u64().map_err(bad)?, value.time().map_err(bad)?);
                    (number, latest) = (number.max(sequence), latest.max(at));
                    deleted.insert(shard, sequence);
                }
                _ => return Err(bad(Corrupt)),
            }
        }
        if stored.is_empty() {
            stored = create_shards(&db, &definitions, options.shards).map_err(failed)?;
        }
        // Keys alone: a few microseconds each, and a record is a batch of many votes.
        let (mut bytes, mut last) = (0, BTreeMap::<u32, u64>::new());
        for guard in records.iter() {
            let key = guard.key().map_err(failed)?;
            let key = RecordKey::decode(&key).map_err(|_| damaged(format!("record {key:?}")))?;
            if !stored.contains_key(&key.shard) {
                return Err(damaged(format!("record {} is of no shard", key.sequence)));
            }
            (number, latest) = (number.max(key.sequence), latest.max(key.arrived_at));
            bytes += u64::from(key.len);
            last.insert(key.shard, key.sequence);
        }

        let shards = stored.iter().map(|(&index, definition)| {
            let deleted = deleted.get(&index).copied().unwrap_or(0);
            let last = last.get(&index).copied().unwrap_or(0).max(deleted);
            (index, ShardState::new(index, definition, last, deleted))
        });
        let clock = Arc::new(SystemClock::not_before(latest));
        let log = Arc::new(Log {
            shards: RwLock::new(shards.collect()),
            bytes: AtomicU64::new(bytes),
            options,
            clock: clock.clone(),
            store,
            records,
            definitions,
            db,
            _lock: lock,
        });
        let thread_failed = |source| OpenError::Io { directory: path.to_owned(), source };
        let (commands, receiver) = mpsc::unbounded_channel();
        let writer = Writer::new(log.clone(), stored, number);
        let writer = std::thread::Builder::new()
            .name("votestream-log".into())
            .spawn(move || writer.run(receiver))
            .map_err(thread_failed)?;
        let (retention_alive, ended) = std::sync::mpsc::channel();
        let mut handles = vec![writer];
        let retaining = log.clone();
        let retention = std::thread::Builder::new()
            .name("votestream-retention".into())
            .spawn(move || retention::run(&retaining, &ended))
            .map_err(thread_failed)?;
        handles.push(retention);
        let threads = Mutex::new(Threads { retention_alive: Some(retention_alive), handles });
        let queue = Arc::new(Semaphore::new(QUEUE_BYTES_MAX / PERMIT_BYTES));
        Ok((Arc::new(Self { log, commands, queue, threads }), clock))
    }

    /// Ends the threads, after the puts that wait were answered, and syncs the log.
    pub(crate) fn stop(&self) {
        let mut threads = self.threads.lock();
        threads.retention_alive = None;
        // Fails if the writer has ended already.
        drop(self.commands.send(Command::Stop));
        for thread in threads.handles.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the embedded stream had panicked");
            }
        }
        if let Err(error) = self.log.db.persist(PersistMode::SyncAll) {
            tracing::error!(%error, "the embedded stream could not be synced at its end");
        }
    }

    /// Splits an open shard: the second child starts at `at`.
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
            return Err(PortError::permanent(format!("{} and {} are no neighbours", first.id, second.id)));
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

/// The shards of a new stream.
fn create_shards(db: &Database, definitions: &Keyspace, count: u32) -> Result<BTreeMap<u32, Definition>, fjall::Error> {
    let ranges = HashRange::split_evenly(count);
    let definitions_of = ranges.into_iter().map(|range| Definition {
        range,
        parents: Vec::new(),
        created: 0,
        created_at: Timestamp::ZERO,
        closed_at: None,
    });
    let stored: BTreeMap<_, _> = (0..).zip(definitions_of).collect();
    let mut batch = db.batch().durability(Some(PersistMode::SyncAll));
    for (index, definition) in &stored {
        batch.insert(definitions, definition_key(*index), definition.encode());
    }
    batch.commit()?;
    Ok(stored)
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
        });
        Ok(shown.collect())
    }

    async fn put(&self, hash: u128, data: Bytes) -> Result<Stored, PortError> {
        if data.len() > RECORD_BYTES_MAX {
            return Err(PortError::permanent(format!(
                "a record of {} bytes, the limit is {RECORD_BYTES_MAX}",
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
            .ok_or_else(|| PortError::permanent(format!("{after} is no sequence number of the embedded stream")))?;
        Ok(Box::new(reader::Reader::new(self.log.clone(), self.log.by_id(shard)?, after)))
    }
}

#[cfg(test)]
mod tests;
