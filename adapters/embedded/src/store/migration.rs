//! Converts the stores of earlier formats when they are opened.
//!
//! Owns the conversion of format 1 to the present one. Format 2 needs no conversion: it only lacks ingestion, see
//! `flush.rs`. Must never remove old data before the new data is durable and the directory says that it counts: an
//! interrupted start is begun again, with the same result.

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
    /// Converts the store to the present format.
    pub(super) fn migrate(&self, format: Format, path: &Path) -> Result<(), OpenError> {
        if !self.db.keyspace_exists(VOTES_1) {
            return Ok(());
        }
        let failed = |source: fjall::Error| OpenError::Database { path: path.to_owned(), source };
        let old = self.db.keyspace(VOTES_1, KeyspaceCreateOptions::default).map_err(failed)?;
        match format {
            Format::Version1 => self.convert(&old, path),
            // The votes were converted before the directory was marked.
            Format::None | Format::Version2 | Format::Version3 | Format::Present(_) => {
                self.db.delete_keyspace(old).map_err(failed)
            }
        }
    }

    fn convert(&self, old: &Keyspace, path: &Path) -> Result<(), OpenError> {
        let failed = |source: fjall::Error| OpenError::Database { path: path.to_owned(), source };
        let damaged = |reason: String| OpenError::Damaged { path: path.to_owned(), reason };
        let refused = |error: PortError| damaged(error.message);
        tracing::info!(path = %path.display(), "converting votes from an earlier format");
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
        tracing::info!(path = %path.display(), converted, "converted votes from an earlier format");
        Ok(())
    }

    /// Commits votes together with the numbers that they use.
    fn commit_converted(&self, mut batch: OwnedWriteBatch) -> Result<(), PortError> {
        for Change { key, value, .. } in self.numbers.write().take_changes() {
            batch.insert(&self.numbers_stored, key, value);
        }
        self.commit(batch)
    }
}
