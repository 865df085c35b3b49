//! The store: polls, votes, tallies and shard rows in one database.
//!
//! Owns the keyspaces and the locks for writing them. Must never let progress become durable without the votes and
//! tallies that it covers: `flush.rs` writes all three as of one moment.
//!
//! Polls and final results are synced before they are shown. Everything else can be computed again from the log. It is
//! decided in memory and flushed every two seconds or every 200,000 votes. A crash takes the store back to an earlier
//! flush, with its checkpoints, and the groups process again what came after it. Therefore the log deletes nothing
//! before [`EmbeddedStore::make_durable`]. Every keyspace also holds marks, see `moments.rs`.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `polls` | poll | see `polls.rs` |
//! | `votes-2` | number of the poll, user | see `votes.rs`; one key belongs to `flush.rs` |
//! | `numbers` | poll | see `dictionary.rs` |
//! | `tallies` | poll, 0, group, 0, shard | see `tallies.rs` |
//! | `leases` | group, 0, shard, kind | see `leases.rs` |
//! | `flushes` | `redone` | see `flush.rs` |
//! | `flushes` | `identity` | see `pairing.rs` |

mod dictionary;
mod flush;
mod hot_votes;
mod leases;
mod migration;
mod moments;
mod new_voter_filter;
mod pairing;
mod polls;
mod staging;
mod tallies;
mod unflushed;
mod votes;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode,
    compaction::Leveled,
    config::{BloomConstructionPolicy, FilterPolicy, FilterPolicyEntry, PinningPolicy},
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use votestream_core::port::PortError;

pub(crate) use self::pairing::{Identity, Reached};
use self::{
    dictionary::Dictionary,
    flush::{FLUSH_EVERY, FlushSoon, Flusher, Flushing, RedoError},
    leases::Rows,
    unflushed::KeyHash,
    votes::Deciding,
};
use crate::{
    background::{TABLE_WRITERS, giving_way},
    directory::DirectoryLock,
    directory::{Format, OpenError},
    files::cached_files_max,
    fjall_journal::{self, Synced},
    write_failed,
};

/// Block cache of the store. Filters are pinned in memory, so the cache is free for votes that are changed.
const CACHE_BYTES: u64 = 128 << 20;
/// Memtable of the votes. Only small flushes use it.
const VOTES_MEMTABLE_BYTES: u64 = 16 << 20;
/// Memtable of each other keyspace. Small, because a journal is deleted only when everything in it is in tables.
const MEMTABLE_BYTES: u64 = 4 << 20;
/// Size of the tables that compaction writes. Each is synced as a whole, and meanwhile the syncs of the log wait.
const TABLE_BYTES: u64 = 8 << 20;
/// Number of flushed tables after which they are merged into the first level, which is as large as this many tables. A
/// merge writes that level again, so twice the number halves this cost per vote. But reads look into each of these
/// tables.
const UNMERGED_TABLES: u8 = 16;
/// Most bytes of journals on disk. The next start may have to read them all.
const JOURNAL_BYTES_MAX: u64 = 256 << 20;

/// The store. Implements its ports.
pub(crate) struct EmbeddedStore {
    inner: Arc<Inner>,
    path: PathBuf,
    /// Ends with the store.
    _flusher: Flusher,
}

/// The part of the store that calls share with blocking threads.
struct Inner {
    /// Held during a flush. The flush takes the next three locks, in their order, for a moment.
    flushing: Mutex<Flushing>,
    /// Held from the reads to the writes of a call, so that its conditions stay true.
    deciding: Mutex<Deciding>,
    tallies_decided: Mutex<tallies::Decided>,
    /// All shard rows. The stored rows are read only at the start.
    rows: Mutex<Rows>,
    flush_soon: FlushSoon,
    hashing: KeyHash,
    polls_lock: Mutex<()>,
    numbers: RwLock<Dictionary>,
    numbers_stored: Keyspace,
    votes: Keyspace,
    tallies: Keyspace,
    polls: Keyspace,
    leases: Keyspace,
    flushes: Keyspace,
    /// Why the first failed write failed, in the log or here. Nothing is written after it: `fjall` refuses.
    broken: watch::Sender<Option<String>>,
    /// Number of changes of polls; see `pairing.rs`.
    poll_changes: AtomicU64,
    /// Number of the last flush that is durable.
    last_flush: AtomicU64,
    db: Database,
    _lock: DirectoryLock,
}

impl EmbeddedStore {
    /// Opens the database, converts what an earlier format stored, and clears the owner of every shard row.
    pub(crate) fn open(path: &Path, format: Format, lock: DirectoryLock) -> Result<Self, OpenError> {
        Self::open_flushing(path, format, lock, FLUSH_EVERY)
    }

    fn open_flushing(
        path: &Path,
        format: Format,
        lock: DirectoryLock,
        flush_every: Duration,
    ) -> Result<Self, OpenError> {
        let failed = |source: fjall::Error| OpenError::Database { path: path.to_owned(), source };
        let synced = if matches!(format, Format::Present(_)) { Synced::Each } else { Synced::Some };
        if path.try_exists().map_err(|source| OpenError::Io { directory: path.to_owned(), source })? {
            fjall_journal::check(path, synced)?;
        }
        // Our commits sync by themselves.
        let builder = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .max_cached_files(Some(cached_files_max()))
            .manual_journal_persist(true)
            .worker_threads(TABLE_WRITERS)
            .max_journaling_size(JOURNAL_BYTES_MAX);
        // The threads of the database write tables, and nobody waits for these.
        let db = giving_way(|| builder.open()).map_err(|source| failed(source.into()))?.map_err(failed)?;
        let of_size = |bytes| KeyspaceCreateOptions::default().max_memtable_size(bytes);
        let small = || of_size(MEMTABLE_BYTES);
        // Most votes are from new voters. The filters answer for them, so every level has a filter and keeps it in
        // memory.
        let bloom = FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(10.0));
        let votes = || {
            of_size(VOTES_MEMTABLE_BYTES)
                .filter_policy(FilterPolicy::all(bloom))
                .filter_block_pinning_policy(PinningPolicy::all(true))
                .compaction_strategy(Arc::new(
                    Leveled::default().with_table_target_size(TABLE_BYTES).with_l0_threshold(UNMERGED_TABLES),
                ))
        };
        let keyspace = |name| db.keyspace(name, small).map_err(failed);
        let damaged = |reason: String| OpenError::Damaged { path: path.to_owned(), reason };
        let numbers_stored = keyspace("numbers")?;
        let load_numbers = |stored: &Keyspace| {
            Dictionary::load(stored).map_err(|error| match error {
                dictionary::LoadError::Database(source) => failed(source),
                dictionary::LoadError::Damaged(reason) => damaged(reason),
            })
        };
        let numbers = load_numbers(&numbers_stored)?;
        let (hashing, (flush_soon, asked)) = (KeyHash::default(), FlushSoon::new());
        let mut inner = Inner {
            flushing: Mutex::new(Flushing::new(0, 0)),
            deciding: Mutex::new(Deciding::new(hashing, 0)),
            tallies_decided: Mutex::default(),
            rows: Mutex::default(),
            flush_soon,
            hashing,
            polls_lock: Mutex::new(()),
            numbers: RwLock::new(numbers),
            numbers_stored,
            votes: db.keyspace("votes-2", votes).map_err(failed)?,
            tallies: keyspace("tallies")?,
            polls: keyspace("polls")?,
            leases: keyspace("leases")?,
            flushes: keyspace("flushes")?,
            broken: watch::Sender::new(None),
            poll_changes: AtomicU64::new(0),
            last_flush: AtomicU64::new(0),
            db,
            _lock: lock,
        };
        inner.migrate(format, path)?;
        let flushing = inner.redo().map_err(|error| match error {
            RedoError::Database(source) => failed(source),
            RedoError::Damaged(what) => damaged(what),
        })?;
        // Numbers and rows are read only now: the conversion and the redo may have changed them.
        inner.numbers = RwLock::new(load_numbers(&inner.numbers_stored)?);
        inner.flushing = Mutex::new(flushing);
        inner.deciding = Mutex::new(Deciding::new(hashing, inner.numbers.get_mut().next()));
        inner.rows = Mutex::new(Rows::load(&inner.leases).map_err(|error| match error {
            leases::LoadError::Database(source) => failed(source),
            leases::LoadError::Damaged(reason) => damaged(reason),
        })?);
        let inner = Arc::new(inner);
        let failed = |source| OpenError::Io { directory: path.to_owned(), source };
        let flusher = Flusher::start(inner.clone(), asked, flush_every).map_err(failed)?;
        Ok(Self { inner, path: path.to_owned(), _flusher: flusher })
    }

    /// Notes that a write of the log or of the store failed.
    pub(crate) fn broke(&self, cause: String) {
        self.inner.broke(cause);
    }

    /// Receives the reason once a write has failed.
    pub(crate) fn broken(&self) -> watch::Receiver<Option<String>> {
        self.inner.broken.subscribe()
    }

    /// Makes everything durable that was answered so far.
    pub(crate) fn make_durable(&self) -> Result<(), PortError> {
        self.inner.flush()
    }
}

impl Inner {
    /// Commits and syncs. Every commit is synced, so a power failure tears only the last one. Damage before a whole
    /// commit is therefore not caused by a power failure, see `fjall_journal.rs`.
    fn commit(&self, batch: OwnedWriteBatch) -> Result<(), PortError> {
        // `SyncData` is enough: to read the file, only its length and its blocks are needed.
        batch.durability(Some(PersistMode::SyncData)).commit().map_err(|error| self.write_failed(&error))
    }

    /// An error if a write has failed: what is decided after that would be lost.
    fn check_unbroken(&self) -> Result<(), PortError> {
        match &*self.broken.borrow() {
            None => Ok(()),
            Some(cause) => Err(PortError::refused(format!("the embedded store can no longer write: {cause}"))),
        }
    }

    /// The error of a failed write. No write follows it.
    fn write_failed(&self, error: &fjall::Error) -> PortError {
        let cause = if let fjall::Error::Io(error) = error {
            error.to_string()
        } else if matches!(error, fjall::Error::Poisoned) {
            "a write in the background failed: the disk is full or broken".to_owned()
        } else {
            error.to_string()
        };
        self.broke(cause);
        write_failed(error)
    }

    fn broke(&self, cause: String) {
        self.broken.send_if_modified(|broken| {
            let first = broken.is_none();
            if first {
                *broken = Some(cause);
            }
            first
        });
    }
}

/// Prefix of all keys of a poll: its id, and a byte that no poll id holds.
fn poll_prefix(poll: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(poll.len() + 1);
    key.extend_from_slice(poll.as_bytes());
    key.push(0);
    key
}

#[cfg(test)]
mod tests;
