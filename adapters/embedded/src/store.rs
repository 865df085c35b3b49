//! The store: polls, votes, tallies and shard rows in one database.
//!
//! Owns the keyspaces and who may write them at one time. Must never let progress become durable before the votes and
//! tallies that it speaks of: they are in one journal, in the order of their commits.
//!
//! Polls and final results are synced before they are shown. Everything else can be made again from the log, and is synced
//! ten times a second, by `sync.rs`: a crash takes the store back to an earlier commit, checkpoints and all, and the groups
//! process again what came after it. Therefore the log deletes nothing before [`EmbeddedStore::make_durable`].
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `polls` | poll | see `polls.rs` |
//! | `votes-2` | number of the poll, user | see `votes.rs` |
//! | `numbers` | poll | see `numbers.rs` |
//! | `tallies` | poll, 0, group, 0, shard | see `tallies.rs` |
//! | `leases` | group, 0, shard, kind | see `leases.rs` |

mod leases;
mod migration;
mod numbers;
mod polls;
mod recent;
mod sync;
mod tallies;
mod votes;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode,
    compaction::Leveled,
    config::{BloomConstructionPolicy, FilterPolicy, FilterPolicyEntry, PinningPolicy},
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use votestream_core::port::PortError;

use self::{leases::Rows, numbers::Numbers, sync::Syncing, votes::Deciding};
use crate::{
    background::giving_way,
    directory::{Format, OpenError},
    engine::DirectoryLock,
    write_failed,
};

/// Block cache of the store. Filters are pinned, so that it serves votes that are changed.
const CACHE_BYTES: u64 = 128 << 20;
/// Votes that are kept in memory until they become a table: few enough that the processor's caches hold much of them, and
/// that a table is written, and synced, within the time that an acknowledgement may take. Up to five such may exist.
const VOTES_MEMTABLE_BYTES: u64 = 16 << 20;
/// What other keyspaces keep in memory. A journal is deleted only when all that it holds is in tables.
const MEMTABLE_BYTES: u64 = 4 << 20;
/// Size of the tables that compaction writes. Each is synced as a whole, and the syncs of the log wait for it meanwhile.
pub(crate) const TABLE_BYTES: u64 = 8 << 20;
/// Journals on disk, at most: what the next start may have to read.
const JOURNAL_BYTES_MAX: u64 = 256 << 20;

/// The store's ports.
pub(crate) struct EmbeddedStore {
    inner: Arc<Inner>,
    /// Ends with the store.
    _syncing: Syncing,
}

/// What calls take along to blocking threads.
struct Inner {
    /// Held from the reads to the commit of a call, so that conditions stay true. One lock for all votes: commits
    /// go through one journal anyway.
    deciding: Mutex<Deciding>,
    tallies_lock: Mutex<()>,
    polls_lock: Mutex<()>,
    /// All shard rows; the stored ones are read at the start only.
    rows: Mutex<Rows>,
    numbers: RwLock<Numbers>,
    numbers_stored: Keyspace,
    votes: Keyspace,
    tallies: Keyspace,
    polls: Keyspace,
    leases: Keyspace,
    /// Why the first write failed, in the log or here. Nothing is written after it: `fjall` refuses.
    broken: watch::Sender<Option<String>>,
    /// Whether something was committed since the last sync.
    unsynced: AtomicBool,
    db: Database,
    _lock: DirectoryLock,
}

impl EmbeddedStore {
    /// Opens the database, converts what an earlier format stored, and clears the owner of every shard row.
    pub(crate) fn open(path: &Path, format: Format, lock: DirectoryLock) -> Result<Self, OpenError> {
        let failed = |source: fjall::Error| OpenError::Database { path: path.to_owned(), source };
        // Commits without a sync stay in the journal's buffer: nothing rests on them before the next sync.
        let builder = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .manual_journal_persist(true)
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
                .compaction_strategy(Arc::new(Leveled::default().with_table_target_size(TABLE_BYTES)))
        };
        let keyspace = |name| db.keyspace(name, small).map_err(failed);
        let leases = keyspace("leases")?;
        let rows = Rows::load(&leases).map_err(|error| match error {
            leases::LoadError::Database(source) => failed(source),
            leases::LoadError::Damaged(reason) => OpenError::Damaged { path: path.to_owned(), reason },
        })?;
        let numbers_stored = keyspace("numbers")?;
        let numbers = Numbers::load(&numbers_stored).map_err(|error| match error {
            numbers::LoadError::Database(source) => failed(source),
            numbers::LoadError::Damaged(reason) => OpenError::Damaged { path: path.to_owned(), reason },
        })?;
        let inner = Inner {
            deciding: Mutex::default(),
            tallies_lock: Mutex::new(()),
            polls_lock: Mutex::new(()),
            rows: Mutex::new(rows),
            numbers: RwLock::new(numbers),
            numbers_stored,
            votes: db.keyspace("votes-2", votes).map_err(failed)?,
            tallies: keyspace("tallies")?,
            polls: keyspace("polls")?,
            leases,
            broken: watch::Sender::new(None),
            unsynced: AtomicBool::new(false),
            db,
            _lock: lock,
        };
        inner.migrate(format, path)?;
        let inner = Arc::new(inner);
        let failed = |source| OpenError::Io { directory: path.to_owned(), source };
        let syncing = Syncing::start(inner.clone()).map_err(failed)?;
        Ok(Self { inner, _syncing: syncing })
    }

    /// Notes that a write of the log or of the store has failed.
    pub(crate) fn broke(&self, error: &fjall::Error) {
        self.inner.broke(error);
    }

    /// Why the first write failed, once one has.
    pub(crate) fn broken(&self) -> watch::Receiver<Option<String>> {
        self.inner.broken.subscribe()
    }

    /// Makes everything that was committed durable.
    pub(crate) fn make_durable(&self) -> Result<(), PortError> {
        self.inner.sync().map_err(|error| self.inner.write_failed(&error))
    }

    /// Makes everything durable, at the end.
    pub(crate) fn sync(&self) {
        if let Err(error) = self.inner.sync() {
            tracing::error!(%error, "the embedded store could not be synced at its end");
        }
    }
}

impl Inner {
    /// Commits. Durable with the next sync.
    fn commit(&self, batch: OwnedWriteBatch) -> Result<(), PortError> {
        batch.commit().map_err(|error| self.write_failed(&error))?;
        // After the commit: a sync that misses this one leaves the mark for the next.
        self.unsynced.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Makes every commit so far durable.
    fn sync(&self) -> Result<(), fjall::Error> {
        self.unsynced.store(false, Ordering::SeqCst);
        // Nothing but the length and the blocks of the file is needed to read it.
        self.db.persist(PersistMode::SyncData)
    }

    /// Commits and syncs, and with it every earlier commit.
    fn commit_durably(&self, batch: OwnedWriteBatch) -> Result<(), PortError> {
        batch.durability(Some(PersistMode::SyncAll)).commit().map_err(|error| self.write_failed(&error))
    }

    /// What a failed write means. It is the last one.
    fn write_failed(&self, error: &fjall::Error) -> PortError {
        self.broke(error);
        write_failed(error)
    }

    fn broke(&self, error: &fjall::Error) {
        self.broken.send_if_modified(|broken| {
            let first = broken.is_none();
            if first {
                let cause = if let fjall::Error::Io(error) = error {
                    error.to_string()
                } else if matches!(error, fjall::Error::Poisoned) {
                    "a write in the background has failed, the disk is full or broken".to_owned()
                } else {
                    error.to_string()
                };
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
