//! Shard rows.
//!
//! Owns their encoding, and a copy of all of them in memory: the lock on the directory proves that nobody else writes. Must
//! never change the copy before the row is stored. A row is in one journal with the votes and tallies that its progress
//! speaks of, behind them, so that a crash never leaves it without them.
//!
//! A row is stored under two keys, so that a sign of life does not write the producer memory: kind 0 holds what the
//! shard is and how far it has come, kind 1 the lease. Both are in the commit that creates the row.

use std::collections::BTreeMap;

use async_trait::async_trait;
use fjall::Keyspace;
use votestream_core::{
    HashRange, SequenceNumber, ShardId,
    port::{Group, Lease, LeaseStore, PortError, Progress, ShardRow, StoredProducer, WriteOutcome},
};

use super::{EmbeddedStore, Inner};
use crate::{
    blocking,
    codec::{Corrupt, Decoder, Encoder},
};

const GROUPS: [Group; 2] = [Group::Persist, Group::Tally];
const STATE: u8 = 0;
const LEASE: u8 = 1;

/// The group of a stored name.
pub(super) fn group_of(name: &[u8]) -> Option<Group> {
    GROUPS.into_iter().find(|group| group.as_str().as_bytes() == name)
}

fn key_of(group: Group, shard: &ShardId, kind: u8) -> Vec<u8> {
    [group.as_str().as_bytes(), &[0], shard.as_str().as_bytes(), &[kind]].concat()
}

fn decode_key(key: &[u8]) -> Option<(Group, ShardId, u8)> {
    let (kind, rest) = key.split_last()?;
    let mut parts = rest.splitn(2, |byte| *byte == 0);
    let (group, shard) = (group_of(parts.next()?)?, std::str::from_utf8(parts.next()?).ok()?);
    Some((group, ShardId::new(shard), *kind))
}

fn encode_lease(lease: &Lease) -> Vec<u8> {
    let Lease { owner, counter, epoch, wanted_by } = lease;
    let mut value = Encoder::default();
    value.optional_text(owner.as_deref()).u64(*counter).u64(*epoch).optional_text(wanted_by.as_deref());
    value.0
}

fn decode_lease(value: &[u8]) -> Result<Lease, Corrupt> {
    let mut value = Decoder(value);
    let owner = value.optional_text()?.map(str::to_owned);
    let (counter, epoch) = (value.u64()?, value.u64()?);
    let wanted_by = value.optional_text()?.map(str::to_owned);
    value.end()?;
    Ok(Lease { owner, counter, epoch, wanted_by })
}

fn encode_state(row: &ShardRow) -> Vec<u8> {
    let ShardRow { shard: _, range, parents, started, lease: _, progress } = row;
    let Progress { checkpoint, window_end, memory, watermark, ended } = progress;
    let mut value = Encoder(Vec::with_capacity(128 + memory.len() * 64));
    value.u128(range.start).u128(range.end).u32(parents.len() as u32);
    for parent in parents {
        value.text(parent.as_str());
    }
    value.bool(*started).sequence(*checkpoint).sequence(*window_end).time(*watermark).bool(*ended);
    value.u32(memory.len() as u32);
    for StoredProducer { producer, range, number, arrived_at } in memory {
        value.u128(*producer).u128(range.start).u128(range.end).u64(*number).time(*arrived_at);
    }
    value.0
}

fn decode_range(value: &mut Decoder<'_>) -> Result<HashRange, Corrupt> {
    Ok(HashRange { start: value.u128()?, end: value.u128()? })
}

/// A row with a blank lease.
fn decode_state(shard: ShardId, value: &[u8]) -> Result<ShardRow, Corrupt> {
    let mut value = Decoder(value);
    let range = decode_range(&mut value)?;
    let parents = value.list(|value| Ok(ShardId::new(value.text()?)))?;
    let (started, checkpoint, window_end) = (value.bool()?, value.sequence()?, value.sequence()?);
    let (watermark, ended) = (value.time()?, value.bool()?);
    let memory = value.list(|value| {
        Ok(StoredProducer {
            producer: value.u128()?,
            range: decode_range(value)?,
            number: value.u64()?,
            arrived_at: value.time()?,
        })
    })?;
    value.end()?;
    let progress = Progress { checkpoint, window_end, memory, watermark, ended };
    Ok(ShardRow { shard, range, parents, started, lease: Lease::default(), progress })
}

/// Why the rows could not be read.
pub(super) enum LoadError {
    Database(fjall::Error),
    Damaged(String),
}

/// All rows.
#[derive(Default)]
pub(super) struct Rows(BTreeMap<(Group, ShardId), ShardRow>);

impl Rows {
    /// Reads all rows. The owners are gone, since this process holds the lock on the directory: nobody has to wait until
    /// their leases run out. Epochs and counters stay.
    pub(super) fn load(leases: &Keyspace) -> Result<Self, LoadError> {
        let mut rows = BTreeMap::<(Group, ShardId), ShardRow>::new();
        for guard in leases.iter() {
            let (key, value) = guard.into_inner().map_err(LoadError::Database)?;
            let damaged = || LoadError::Damaged(format!("shard row {:?}", String::from_utf8_lossy(&key)));
            let (group, shard, kind) = decode_key(&key).ok_or_else(damaged)?;
            match kind {
                STATE => {
                    let row = decode_state(shard.clone(), &value).map_err(|_| damaged())?;
                    rows.insert((group, shard), row);
                }
                // Directly after the state in the order of the keys, since no shard's name holds a control character.
                LEASE => {
                    let lease = decode_lease(&value).map_err(|_| damaged())?;
                    let row = rows.get_mut(&(group, shard)).ok_or_else(damaged)?;
                    row.lease = Lease { owner: None, wanted_by: None, ..lease };
                }
                _ => return Err(damaged()),
            }
        }
        Ok(Self(rows))
    }
}

impl EmbeddedStore {
    /// Up to which number every group that works has processed a shard; `None` if no group does.
    pub(crate) fn processed(&self, shard: &ShardId) -> Option<u64> {
        let rows = self.inner.rows.lock();
        let of_group = |group: Group| match rows.0.get(&(group, shard.clone())) {
            Some(row) if row.progress.ended => Some(u64::MAX),
            Some(row) => Some(row.progress.checkpoint.as_u64().unwrap_or(u64::MAX)),
            // A group that works has not come to this shard yet.
            None => rows.0.keys().any(|(other, _)| *other == group).then_some(0),
        };
        GROUPS.into_iter().filter_map(of_group).min()
    }

    /// Whether every group that works is through with a shard for good.
    pub(crate) fn ended(&self, shard: &ShardId) -> bool {
        self.processed(shard).is_none_or(|processed| processed == u64::MAX)
    }
}

impl Inner {
    fn create_row(&self, group: Group, row: &ShardRow) -> Result<(), PortError> {
        let mut rows = self.rows.lock();
        let key = (group, row.shard.clone());
        if rows.0.contains_key(&key) {
            return Ok(());
        }
        let mut batch = self.db.batch();
        batch.insert(&self.leases, key_of(group, &row.shard, STATE), encode_state(row));
        batch.insert(&self.leases, key_of(group, &row.shard, LEASE), encode_lease(&row.lease));
        self.commit(batch)?;
        rows.0.insert(key, row.clone());
        Ok(())
    }

    fn start_row(&self, group: Group, shard: &ShardId, inherited: &Progress) -> Result<(), PortError> {
        let mut rows = self.rows.lock();
        let row = rows
            .0
            .get_mut(&(group, shard.clone()))
            .ok_or_else(|| PortError::permanent(format!("there is no row of {shard} to start")))?;
        if row.started {
            return Ok(());
        }
        let started = ShardRow { started: true, progress: inherited.clone(), ..row.clone() };
        let mut batch = self.db.batch();
        batch.insert(&self.leases, key_of(group, shard, STATE), encode_state(&started));
        self.commit(batch)?;
        *row = started;
        Ok(())
    }

    /// Stores the lease that `change` makes of a row, if any. Returns the row as it then stands.
    fn change_lease(
        &self,
        group: Group,
        shard: &ShardId,
        change: impl FnOnce(&ShardRow) -> Option<Lease>,
    ) -> Result<Option<ShardRow>, PortError> {
        let mut rows = self.rows.lock();
        let Some(row) = rows.0.get_mut(&(group, shard.clone())) else { return Ok(None) };
        let Some(lease) = change(row) else { return Ok(None) };
        let mut batch = self.db.batch();
        batch.insert(&self.leases, key_of(group, shard, LEASE), encode_lease(&lease));
        self.commit(batch)?;
        row.lease = lease;
        Ok(Some(row.clone()))
    }

    fn write_progress(
        &self,
        group: Group,
        shard: &ShardId,
        epoch: u64,
        previous: (SequenceNumber, SequenceNumber),
        progress: Progress,
    ) -> Result<WriteOutcome, PortError> {
        let mut rows = self.rows.lock();
        let Some(row) = rows.0.get_mut(&(group, shard.clone())) else { return Ok(WriteOutcome::Refused(None)) };
        let stored = &row.progress;
        if row.lease.epoch != epoch || (stored.checkpoint, stored.window_end) != previous || stored.ended {
            return Ok(WriteOutcome::Refused(Some(Box::new(row.clone()))));
        }
        let written = ShardRow { progress, ..row.clone() };
        let mut batch = self.db.batch();
        batch.insert(&self.leases, key_of(group, shard, STATE), encode_state(&written));
        self.commit(batch)?;
        *row = written;
        Ok(WriteOutcome::Stored)
    }
}

#[async_trait]
impl LeaseStore for EmbeddedStore {
    async fn list(&self, group: Group) -> Result<Vec<ShardRow>, PortError> {
        let inner = self.inner.clone();
        blocking(move || {
            let rows = inner.rows.lock();
            Ok(rows.0.iter().filter(|((other, _), _)| *other == group).map(|(_, row)| row.clone()).collect())
        })
        .await
    }

    async fn create(&self, group: Group, row: &ShardRow) -> Result<(), PortError> {
        let (inner, row) = (self.inner.clone(), row.clone());
        blocking(move || inner.create_row(group, &row)).await
    }

    async fn start(&self, group: Group, shard: &ShardId, inherited: &Progress) -> Result<(), PortError> {
        let (inner, shard, inherited) = (self.inner.clone(), shard.clone(), inherited.clone());
        blocking(move || inner.start_row(group, &shard, &inherited)).await
    }

    async fn take(
        &self,
        group: Group,
        shard: &ShardId,
        observed: &Lease,
        owner: &str,
    ) -> Result<Option<ShardRow>, PortError> {
        let (inner, shard, observed, owner) = (self.inner.clone(), shard.clone(), observed.clone(), owner.to_owned());
        blocking(move || inner.change_lease(group, &shard, |row| row.taken(&observed, &owner))).await
    }

    async fn renew(&self, group: Group, shard: &ShardId, epoch: u64) -> Result<Option<Lease>, PortError> {
        let (inner, shard) = (self.inner.clone(), shard.clone());
        blocking(move || {
            let renewed = inner.change_lease(group, &shard, |row| row.renewed(epoch))?;
            Ok(renewed.map(|row| row.lease))
        })
        .await
    }

    async fn release(&self, group: Group, shard: &ShardId, epoch: u64) -> Result<(), PortError> {
        let (inner, shard) = (self.inner.clone(), shard.clone());
        blocking(move || inner.change_lease(group, &shard, |row| row.released(epoch)).map(drop)).await
    }

    async fn request(&self, group: Group, shard: &ShardId, epoch: u64, by: &str) -> Result<(), PortError> {
        let (inner, shard, by) = (self.inner.clone(), shard.clone(), by.to_owned());
        blocking(move || inner.change_lease(group, &shard, |row| row.requested(epoch, &by)).map(drop)).await
    }

    async fn write_progress(
        &self,
        group: Group,
        shard: &ShardId,
        epoch: u64,
        previous: (SequenceNumber, SequenceNumber),
        progress: &Progress,
    ) -> Result<WriteOutcome, PortError> {
        let (inner, shard, progress) = (self.inner.clone(), shard.clone(), progress.clone());
        blocking(move || inner.write_progress(group, &shard, epoch, previous, progress)).await
    }
}
