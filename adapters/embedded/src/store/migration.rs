//! What earlier formats stored, converted when the store is opened.
//!
//! Owns the way from format 1 to the present one. Format 2 has nothing to convert: it knows no ingestion, see `flush.rs`. Must
//! never remove what is old before what is new is durable and the directory says that it counts: a start that is interrupted is
//! begun anew, and comes to the same.

use std::path::Path;

use fjall::{Keyspace, KeyspaceCreateOptions, OwnedWriteBatch};
use votestream_core::port::PortError;

use super::{Inner, flush::Change, votes::Version1};
use crate::directory::{Format, OpenError};

/// Votes of format 1.
const VOTES_1: &str = "votes";
/// Votes that are converted in one commit.
const VOTES_PER_COMMIT: usize = 5_000;

impl Inner {
    /// Makes the present format of what is there.
    pub(super) fn migrate(&self, format: Format, path: &Path) -> Result<(), OpenError> {
        if !self.db.keyspace_exists(VOTES_1) {
            return Ok(());
        }
        let failed = |source: fjall::Error| OpenError::Database { path: path.to_owned(), source };
        let old = self.db.keyspace(VOTES_1, KeyspaceCreateOptions::default).map_err(failed)?;
        match format {
            Format::Version1 => self.convert(&old, path),
            // Its votes were converted before the directory said so.
            Format::None | Format::Version2 | Format::Version3 | Format::Present(_) => {
                self.db.delete_keyspace(old).map_err(failed)
            }
        }
    }

    fn convert(&self, old: &Keyspace, path: &Path) -> Result<(), OpenError> {
        let failed = |source: fjall::Error| OpenError::Database { path: path.to_owned(), source };
        let damaged = |reason: String| OpenError::Damaged { path: path.to_owned(), reason };
        let refused = |error: PortError| damaged(error.message);
        tracing::info!(path = %path.display(), "votes of an earlier format are converted");
        let (mut batch, mut converted) = (self.db.batch(), 0u64);
        for guard in old.iter() {
            let (key, value) = guard.into_inner().map_err(failed)?;
            let vote = Version1::decode(&key, &value)
                .map_err(|_| damaged(format!("vote {:?}", String::from_utf8_lossy(&key))))?;
            for option in [Some(&vote.option), vote.previous.as_ref()].into_iter().flatten() {
                self.number(&vote.poll, option).map_err(refused)?;
            }
            let (key, value) = vote.convert(&self.numbers.read()).map_err(refused)?;
            batch.insert(&self.votes, key, value);
            converted += 1;
            if batch.len() >= VOTES_PER_COMMIT {
                self.commit_converted(std::mem::replace(&mut batch, self.db.batch())).map_err(refused)?;
            }
        }
        self.commit_converted(batch).map_err(refused)?;
        tracing::info!(path = %path.display(), converted, "votes of an earlier format were converted");
        Ok(())
    }

    /// Commits votes with the numbers that they hold.
    fn commit_converted(&self, mut batch: OwnedWriteBatch) -> Result<(), PortError> {
        for Change { key, value, .. } in self.numbers.write().take_changes() {
            batch.insert(&self.numbers_stored, key, value);
        }
        self.commit(batch)
    }
}
