//! What the store knows of the log that it belongs to, and what a start compares.
//!
//! Owns the id of the directory and the life in the store. The log writes down how often polls were changed, which
//! `moments.rs` counts: so a store that is older than its log is found out. Must never name a life before the log does.

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

/// In the keyspace `flushes`: directory u128, life u128.
const IDENTITY_KEY: &str = "identity";
/// Which directory the store is of, and its last life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) directory: u128,
    pub(crate) life: u128,
}

/// How far a group has come in a shard.
pub(crate) struct Reached {
    pub(crate) group: Group,
    pub(crate) shard: ShardId,
    pub(crate) checkpoint: SequenceNumber,
    pub(crate) window_end: SequenceNumber,
    pub(crate) ended: bool,
}

impl EmbeddedStore {
    /// Whom the store belongs to; `None` if nobody said so yet.
    pub(crate) fn identity(&self) -> Result<Option<Identity>, PortError> {
        let decode = |value: &[u8]| {
            let mut value = Decoder(value);
            let identity = Identity { directory: value.u128()?, life: value.u128()? };
            value.end().map(|()| identity)
        };
        let value = self.inner.flushes.get(IDENTITY_KEY).map_err(read_failed)?;
        value.map(|value| decode(&value).map_err(|corrupt: Corrupt| corrupt.in_a("identity"))).transpose()
    }

    /// Says whom the store belongs to, durably.
    pub(crate) fn set_identity(&self, identity: Identity) -> Result<(), PortError> {
        let mut value = Encoder::default();
        value.u128(identity.directory).u128(identity.life);
        let mut batch = self.inner.db.batch();
        batch.insert(&self.inner.flushes, IDENTITY_KEY, value.0);
        self.inner.commit(batch)
    }

    /// How often polls were changed. A poll that anybody knows of is counted in it.
    pub(crate) fn poll_changes(&self) -> u64 {
        self.inner.poll_changes.load(Ordering::SeqCst)
    }

    /// How far all groups have come.
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
