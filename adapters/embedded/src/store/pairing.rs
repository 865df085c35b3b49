//! What the store knows about its log. A start compares it with the log.
//!
//! Owns the id of the directory and the life in the store. The log writes down the number of changes of polls, which
//! `moments.rs` counts. So a store that is older than its log is noticed. Must never name a life before the log does.

use std::sync::atomic::Ordering;

use votestream_core::{
    SequenceNumber, ShardId,
    port::{Group, PortError},
};

use super::EmbeddedStore;
use crate::{
    codec::{Corrupt, Decoder, Encoder},
    read_failed,
};

/// Key in the keyspace `flushes`. Value: directory u128, life u128.
const IDENTITY_KEY: &str = "identity";
/// The directory that the store belongs to, and its last life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) directory: u128,
    pub(crate) life: u128,
}

/// How far a group has processed a shard.
pub(crate) struct Reached {
    pub(crate) group: Group,
    pub(crate) shard: ShardId,
    pub(crate) checkpoint: SequenceNumber,
    pub(crate) window_end: SequenceNumber,
    pub(crate) ended: bool,
}

impl EmbeddedStore {
    /// What the store belongs to; `None` if it was not told yet.
    pub(crate) fn identity(&self) -> Result<Option<Identity>, PortError> {
        let decode = |value: &[u8]| {
            let mut value = Decoder(value);
            let identity = Identity { directory: value.u128()?, life: value.u128()? };
            value.end().map(|()| identity)
        };
        let value = self.inner.flushes.get(IDENTITY_KEY).map_err(read_failed)?;
        value.map(|value| decode(&value).map_err(|corrupt: Corrupt| corrupt.in_a("identity"))).transpose()
    }

    /// Stores what the store belongs to, and syncs it.
    pub(crate) fn set_identity(&self, identity: Identity) -> Result<(), PortError> {
        let mut value = Encoder::default();
        value.u128(identity.directory).u128(identity.life);
        let mut batch = self.inner.db.batch();
        batch.insert(&self.inner.flushes, IDENTITY_KEY, value.0);
        self.inner.commit(batch)
    }

    /// Number of changes of polls. It includes every poll that anybody can know of.
    pub(crate) fn poll_changes(&self) -> u64 {
        self.inner.poll_changes.load(Ordering::SeqCst)
    }

    /// How far all groups have processed their shards.
    pub(crate) fn reached(&self) -> Vec<Reached> {
        let rows = self.inner.rows.lock();
        rows.all()
            .map(|(group, row)| Reached {
                group,
                shard: row.shard.clone(),
                checkpoint: row.progress.checkpoint,
                window_end: row.progress.window_end,
                ended: row.progress.ended,
            })
            .collect()
    }

    /// Whether nothing was ever stored here.
    pub(crate) fn is_blank(&self) -> Result<bool, PortError> {
        let polls = self.inner.polls.is_empty().map_err(read_failed)?;
        Ok(polls && self.inner.rows.lock().all().next().is_none())
    }
}
