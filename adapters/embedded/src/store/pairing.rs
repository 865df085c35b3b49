//! What the store knows of the log that it belongs to, and what a start compares.
//!
//! Owns the id of the directory and the life in the store, and the number of changes of polls. Must never let a poll change
//! without its number: the log writes the number down, so that a store that is older than its log is found out.

use std::sync::atomic::Ordering;

use votestream_core::{
    SequenceNumber, ShardId,
    port::{Group, PortError},
};

use super::{EmbeddedStore, Inner};
use crate::{
    codec::{Corrupt, Decoder, Encoder},
    read_failed,
};

/// In the keyspace `flushes`: directory u128, life u128.
const IDENTITY_KEY: &str = "identity";
/// In the keyspace `polls`, behind all of them, since ids are UTF-8: how often polls were changed, u64.
pub(super) const POLL_CHANGES_KEY: [u8; 1] = [255];

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
        let polls = self.inner.polls.first_key_value().is_none();
        Ok(polls && self.inner.rows.lock().all().next().is_none())
    }
}

impl Inner {
    /// Reads the number of changes of polls; 0 in a store that never counted them.
    pub(super) fn load_poll_changes(&self) -> Result<u64, PortError> {
        let value = self.polls.get(POLL_CHANGES_KEY).map_err(read_failed)?;
        value.map_or(Ok(0), |value| Decoder(&value).u64().map_err(|corrupt| corrupt.in_a("number of changes")))
    }
}
