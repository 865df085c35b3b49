//! The store: polls, votes, tallies and shard rows in one database.
//!
//! Owns the keyspaces and who may write them at one time. Must never let progress become durable before the votes and
//! tallies that it speaks of: they are in one journal, in the order of their commits, and progress is synced.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `polls` | poll | see `polls.rs` |
//! | `votes` | poll, 0, bucket u32, user | see `votes.rs` |
//! | `tallies` | poll, 0, group, 0, shard | see `tallies.rs` |
//! | `leases` | group, 0, shard, kind | see `leases.rs` |

mod leases;
mod polls;
mod tallies;
mod votes;

use std::{path::Path, sync::Arc};

use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode,
    config::{BloomConstructionPolicy, FilterPolicy, FilterPolicyEntry, PinningPolicy},
};
use parking_lot::Mutex;
use tokio::sync::watch;
use votestream_core::port::PortError;

use self::leases::Rows;
use crate::{directory::OpenError, engine::DirectoryLock, write_failed};

/// Block cache of the store. Filters are pinned, so that it serves votes that are changed.
const CACHE_BYTES: u64 = 128 << 20;

/// The store's ports.
pub(crate) struct EmbeddedStore {
    inner: Arc<Inner>,
}

/// What calls take along to blocking threads.
struct Inner {
    /// Held from the reads to the commit of a call, so that conditions stay true. One lock for all votes: commits
    /// go through one journal anyway.
    votes_lock: Mutex<()>,
    tallies_lock: Mutex<()>,
    polls_lock: Mutex<()>,
    /// All shard rows; the stored ones are read at the start only.
    rows: Mutex<Rows>,
    votes: Keyspace,
    tallies: Keyspace,
    polls: Keyspace,
    leases: Keyspace,
    /// Why the first write failed, in the log or here. Nothing is written after it: `fjall` refuses.
    broken: watch::Sender<Option<String>>,
    db: Database,
    _lock: DirectoryLock,
}

impl EmbeddedStore {
    /// Opens the database, and clears the owner of every shard row.
    pub(crate) fn open(path: &Path, lock: DirectoryLock) -> Result<Self, OpenError> {
        let failed = |source: fjall::Error| OpenError::Database { path: path.to_owned(), source };
        // Commits without a sync stay in the journal's buffer: nothing rests on them before the next sync.
        let builder = Database::builder(path).cache_size(CACHE_BYTES).manual_journal_persist(true);
        let db = builder.open().map_err(failed)?;
        let small = KeyspaceCreateOptions::default;
        // Most votes are new: the filters answer for them, so every level has one and keeps it in memory.
        let bloom = FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(10.0));
        let votes =
            || small().filter_policy(FilterPolicy::all(bloom)).filter_block_pinning_policy(PinningPolicy::all(true));
        let keyspace = |name| db.keyspace(name, small).map_err(failed);
        let leases = keyspace("leases")?;
        let rows = Rows::load(&leases).map_err(|error| match error {
            leases::LoadError::Database(source) => failed(source),
            leases::LoadError::Damaged(reason) => OpenError::Damaged { path: path.to_owned(), reason },
        })?;
        let inner = Inner {
            votes_lock: Mutex::new(()),
            tallies_lock: Mutex::new(()),
            polls_lock: Mutex::new(()),
            rows: Mutex::new(rows),
            votes: db.keyspace("votes", votes).map_err(failed)?,
            tallies: keyspace("tallies")?,
            polls: keyspace("polls")?,
            leases,
            broken: watch::Sender::new(None),
            db,
            _lock: lock,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Notes that a write of the log or of the store has failed.
    pub(crate) fn broke(&self, error: &fjall::Error) {
        self.inner.broke(error);
    }

    /// Why the first write failed, once one has.
    pub(crate) fn broken(&self) -> watch::Receiver<Option<String>> {
        self.inner.broken.subscribe()
    }

    /// Makes everything durable.
    pub(crate) fn sync(&self) {
        if let Err(error) = self.inner.db.persist(PersistMode::SyncAll) {
            tracing::error!(%error, "the embedded store could not be synced at its end");
        }
    }
}

impl Inner {
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
