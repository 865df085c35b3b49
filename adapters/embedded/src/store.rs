//! The store: polls, votes, tallies and shard rows in one database.
//!
//! Owns the keyspaces and who may write them at one time. Must never let progress become durable without the votes and
//! tallies that it speaks of: `flush.rs` writes all three as of one moment.
//!
//! Polls and final results are synced before they are shown. Everything else can be made again from the log, is decided in
//! memory and flushed every other second or every 200,000 votes: a crash takes the store back to an earlier flush, checkpoints
//! and all, and the groups process again what came after it. Therefore the log deletes nothing before
//! [`EmbeddedStore::make_durable`].
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `polls` | poll | see `polls.rs`; one key is of `pairing.rs` |
//! | `votes-2` | number of the poll, user | see `votes.rs`; one key is of `flush.rs` |
//! | `numbers` | poll | see `numbers.rs` |
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

/// Block cache of the store. Filters are pinned, so that it serves votes that are changed.
const CACHE_BYTES: u64 = 128 << 20;
/// Memtable of the votes, for those of small flushes.
const VOTES_MEMTABLE_BYTES: u64 = 16 << 20;
/// What other keyspaces keep in memory. A journal is deleted only when all that it holds is in tables.
const MEMTABLE_BYTES: u64 = 4 << 20;
/// Size of the tables that compaction writes. Each is synced as a whole, and the syncs of the log wait for it meanwhile.
const TABLE_BYTES: u64 = 8 << 20;
/// Tables of flushes after which they are merged into the first level, which is as large as so many tables. A merge writes
/// that level anew, so what a vote costs there is halved when this is doubled; reads look into each of them.
const UNMERGED_TABLES: u8 = 16;
/// Journals on disk, at most: what the next start may have to read.
const JOURNAL_BYTES_MAX: u64 = 256 << 20;

/// The store's ports.
pub(crate) struct EmbeddedStore {
    inner: Arc<Inner>,
    path: PathBuf,
    /// Ends with the store.
    _flusher: Flusher,
}

/// What calls take along to blocking threads.
struct Inner {
    /// Held during a flush, which takes the next three locks in their order for a moment.
    flushing: Mutex<Flushing>,
    /// Held from the reads to the writes of a call, so that conditions stay true.
    deciding: Mutex<Deciding>,
    tallies_decided: Mutex<tallies::Decided>,
    /// All shard rows; the stored ones are read at the start only.
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
    /// Why the first write failed, in the log or here. Nothing is written after it: `fjall` refuses.
    broken: watch::Sender<Option<String>>,
    /// How often polls were changed; see `pairing.rs`.
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
        // A commit syncs by itself.
        let builder = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .max_cached_files(Some(cached_files_max()))
            .manual_journal_persist(true)
            .worker_threads(TABLE_WRITERS)
            .max_journaling_size(JOURNAL_BYTES_MAX);
        // Its threads write tables, which nobody waits for.
        let db = giving_way(|| builder.open()).map_err(|source| failed(source.into()))?.map_err(failed)?;
        let of_size = |bytes| KeyspaceCreateOptions::default().max_memtable_size(bytes);
        let small = || of_size(MEMTABLE_BYTES);
        // Most votes are new: the filters answer for them, so every level has one and keeps it in memory.
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
        // Only now: polls that were converted have votes, and the last flush has rows.
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

    /// Notes that a write of the log or of the store has failed.
    pub(crate) fn broke(&self, cause: String) {
        self.inner.broke(cause);
    }

    /// Why the first write failed, once one has.
    pub(crate) fn broken(&self) -> watch::Receiver<Option<String>> {
        self.inner.broken.subscribe()
    }

    /// Makes everything that was answered durable.
    pub(crate) fn make_durable(&self) -> Result<(), PortError> {
        self.inner.flush()
    }
}

impl Inner {
    /// Commits and syncs. No commit goes without a sync: so a power failure tears the last one at most, and what is found
    /// damaged behind a whole one is not its trace, see `fjall_journal.rs`.
    fn commit(&self, batch: OwnedWriteBatch) -> Result<(), PortError> {
        // Nothing but the length and the blocks of the file is needed to read it.
        batch.durability(Some(PersistMode::SyncData)).commit().map_err(|error| self.write_failed(&error))
    }

    /// Whether everything could be written so far: what is decided after a failed write would be lost.
    fn check_unbroken(&self) -> Result<(), PortError> {
        match &*self.broken.borrow() {
            None => Ok(()),
            Some(cause) => Err(PortError::refused(format!("the embedded store cannot write any more: {cause}"))),
        }
    }

    /// What a failed write means. It is the last one.
    fn write_failed(&self, error: &fjall::Error) -> PortError {
        let cause = if let fjall::Error::Io(error) = error {
            error.to_string()
        } else if matches!(error, fjall::Error::Poisoned) {
            "a write in the background has failed, the disk is full or broken".to_owned()
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

/// Poll, and a byte that no poll id holds: before all keys of the poll.
fn poll_prefix(poll: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(poll.len() + 1);
    key.extend_from_slice(poll.as_bytes());
    key.push(0);
    key
}

#[cfg(test)]
mod tests;
