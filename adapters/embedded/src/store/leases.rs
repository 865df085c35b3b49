//! Shard rows.
//!
//! Owns their encoding, and keeps all rows in memory: the lock on the directory proves that no other process writes.
//! Must never read rows from the disk after the start: `flush.rs` writes rows together with the votes and tallies that
//! their progress covers.
//!
//! A row is stored under two keys, so that renewing a lease does not write the dedup table. Kind 0 holds the shard and
//! its progress, kind 1 the lease. The flush that first writes a row writes both. Kind 0 ends with where the shard ends
//! and what was lost, if either is known; earlier versions wrote neither.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use async_trait::async_trait;
use fjall::Keyspace;
use votestream_core::{
    HashRange, SequenceNumber, ShardId, Timestamp,
    port::{Group, Lease, LeaseStore, LostTime, PortError, Progress, ShardRow, Span, StoredProducer, WriteOutcome},
};

use super::{
    EmbeddedStore, Inner,
    flush::{Change, Target},
    moments::is_mark,
};
use crate::codec::{Corrupt, Decoder, Encoder};

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
    let ShardRow { shard: _, range, parents, started, lease: _, progress, ends_at, lost } = row;
    let Progress { checkpoint, window_end, dedup, watermark, ended } = progress;
    let mut value = Encoder(Vec::with_capacity(128 + dedup.len() * 64));
    value.u128(range.start).u128(range.end).u32(parents.len() as u32);
    for parent in parents {
        value.text(parent.as_str());
    }
    value.bool(*started).sequence(*checkpoint).sequence(*window_end).time(*watermark).bool(*ended);
    value.u32(dedup.len() as u32);
    for StoredProducer { producer, range, number, arrived_at } in dedup {
        value.u128(*producer).u128(range.start).u128(range.end).u64(*number).time(*arrived_at);
    }
    if ends_at.is_some() || lost.is_some() {
        value.bool(ends_at.is_some()).sequence(ends_at.unwrap_or_default());
        value.bool(lost.is_some());
        let LostTime { from, until } = lost.unwrap_or(LostTime { from: Timestamp::ZERO, until: Timestamp::ZERO });
        value.time(from).time(until);
    }
    value.0
}

fn decode_range(value: &mut Decoder<'_>) -> Result<HashRange, Corrupt> {
    Ok(HashRange { start: value.u128()?, end: value.u128()? })
}

/// Decodes a row without its lease.
fn decode_state(shard: ShardId, value: &[u8]) -> Result<ShardRow, Corrupt> {
    let mut value = Decoder(value);
    let range = decode_range(&mut value)?;
    let parents = value.list(|value| Ok(ShardId::new(value.text()?)))?;
    let (started, checkpoint, window_end) = (value.bool()?, value.sequence()?, value.sequence()?);
    let (watermark, ended) = (value.time()?, value.bool()?);
    let dedup = value.list(|value| {
        Ok(StoredProducer {
            producer: value.u128()?,
            range: decode_range(value)?,
            number: value.u64()?,
            arrived_at: value.time()?,
        })
    })?;
    let (mut ends_at, mut lost) = (None, None);
    if !value.0.is_empty() {
        let (has_end, end) = (value.bool()?, value.sequence()?);
        ends_at = has_end.then_some(end);
        let (has_lost, from, until) = (value.bool()?, value.time()?, value.time()?);
        lost = has_lost.then_some(LostTime { from, until });
    }
    value.end()?;
    let progress = Progress { checkpoint, window_end, dedup, watermark, ended };
    Ok(ShardRow { shard, range, parents, started, lease: Lease::default(), progress, ends_at, lost })
}

/// Why the rows could not be read.
pub(super) enum LoadError {
    Database(fjall::Error),
    Damaged(String),
}

/// All rows.
#[derive(Default)]
pub(super) struct Rows {
    rows: BTreeMap<(Group, ShardId), ShardRow>,
    /// Rows, and their part (kind), that have changed since they were written.
    changed: BTreeSet<(Group, ShardId, u8)>,
}

impl Rows {
    /// Reads all rows and clears their owners: no owner can still run, since this process holds the lock on the
    /// directory. So nobody has to wait until their leases expire. Epochs and counters stay.
    pub(super) fn load(leases: &Keyspace) -> Result<Self, LoadError> {
        let mut rows = BTreeMap::<(Group, ShardId), ShardRow>::new();
        for guard in leases.iter() {
            let (key, value) = guard.into_inner().map_err(LoadError::Database)?;
            if is_mark(&key) {
                continue;
            }
            let damaged = || LoadError::Damaged(format!("shard row {:?}", String::from_utf8_lossy(&key)));
            let (group, shard, kind) = decode_key(&key).ok_or_else(damaged)?;
            match kind {
                STATE => {
                    let row = decode_state(shard.clone(), &value).map_err(|_| damaged())?;
                    rows.insert((group, shard), row);
                }
                // The lease directly follows the state in the order of keys, since no shard's name holds a control
                // character.
                LEASE => {
                    let lease = decode_lease(&value).map_err(|_| damaged())?;
                    let row = rows.get_mut(&(group, shard)).ok_or_else(damaged)?;
                    row.lease = Lease { owner: None, wanted_by: None, ..lease };
                }
                _ => return Err(damaged()),
            }
        }
        Ok(Self { rows, changed: BTreeSet::new() })
    }

    pub(super) fn is_unchanged(&self) -> bool {
        self.changed.is_empty()
    }

    /// Every row, with its group.
    pub(super) fn all(&self) -> impl Iterator<Item = (Group, &ShardRow)> {
        self.rows.iter().map(|((group, _), row)| (*group, row))
    }

    /// Takes the changed rows, in their stored form.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        let mut changes = Vec::with_capacity(self.changed.len());
        for (group, shard, kind) in std::mem::take(&mut self.changed) {
            let key = key_of(group, &shard, kind);
            let value = match self.rows.get(&(group, shard)) {
                Some(row) if kind == LEASE => encode_lease(&row.lease),
                Some(row) => encode_state(row),
                // The row was deleted, and an empty value says so.
                None => Vec::new(),
            };
            changes.push(Change { target: Target::Leases, key, value });
        }
        changes
    }

    /// Returns a row in order to change this part of it.
    fn change(&mut self, group: Group, shard: &ShardId, kind: u8) -> Option<&mut ShardRow> {
        let row = self.rows.get_mut(&(group, shard.clone()))?;
        self.changed.insert((group, shard.clone(), kind));
        Some(row)
    }
}

impl Inner {
    /// Changes the state of a row, if it exists.
    fn note(&self, group: Group, shard: &ShardId, note: impl FnOnce(&mut ShardRow)) -> Result<(), PortError> {
        self.check_unbroken()?;
        if let Some(row) = self.rows.lock().change(group, shard, STATE) {
            note(row);
        }
        Ok(())
    }

    fn delete_row(&self, group: Group, shard: &ShardId) -> Result<(), PortError> {
        self.check_unbroken()?;
        let mut rows = self.rows.lock();
        let key = (group, shard.clone());
        if rows.rows.get(&key).is_some_and(ShardRow::is_deletable) {
            rows.rows.remove(&key);
            rows.changed.extend([STATE, LEASE].map(|kind| (group, shard.clone(), kind)));
        }
        Ok(())
    }
}

impl EmbeddedStore {
    /// The number up to which every active group has processed a shard; `None` if no group is active.
    pub(crate) fn processed(&self, shard: &ShardId) -> Option<u64> {
        let rows = self.inner.rows.lock();
        let of_group = |group: Group| match rows.rows.get(&(group, shard.clone())) {
            Some(row) if row.progress.ended => Some(u64::MAX),
            Some(row) => Some(row.progress.checkpoint.as_u64().unwrap_or(u64::MAX)),
            // An active group has not begun with this shard yet.
            None => rows.rows.keys().any(|(other, _)| *other == group).then_some(0),
        };
        GROUPS.into_iter().filter_map(of_group).min()
    }

    /// Whether every active group has finished a shard.
    pub(crate) fn ended(&self, shard: &ShardId) -> bool {
        self.processed(shard).is_none_or(|processed| processed == u64::MAX)
    }
}

impl Inner {
    fn create_row(&self, group: Group, row: &ShardRow) -> Result<(), PortError> {
        self.check_unbroken()?;
        let mut rows = self.rows.lock();
        if let Entry::Vacant(slot) = rows.rows.entry((group, row.shard.clone())) {
            slot.insert(row.clone());
            rows.changed.extend([STATE, LEASE].map(|kind| (group, row.shard.clone(), kind)));
        }
        Ok(())
    }

    fn start_row(&self, group: Group, shard: &ShardId, inherited: &Progress) -> Result<(), PortError> {
        self.check_unbroken()?;
        let mut rows = self.rows.lock();
        let row = rows
            .change(group, shard, STATE)
            .ok_or_else(|| PortError::permanent(format!("cannot start {shard}: it has no shard row")))?;
        if !row.started {
            row.started = true;
            row.progress = inherited.clone();
        }
        Ok(())
    }

    /// Stores the lease that `change` returns for a row, if any. Returns the row as it is then.
    fn change_lease(
        &self,
        group: Group,
        shard: &ShardId,
        change: impl FnOnce(&ShardRow) -> Option<Lease>,
    ) -> Result<Option<ShardRow>, PortError> {
        self.check_unbroken()?;
        let mut rows = self.rows.lock();
        let Some(lease) = rows.rows.get(&(group, shard.clone())).and_then(change) else { return Ok(None) };
        Ok(rows.change(group, shard, LEASE).map(|row| {
            row.lease = lease;
            row.clone()
        }))
    }

    fn write_progress(
        &self,
        group: Group,
        shard: &ShardId,
        epoch: u64,
        previous: Span,
        progress: &Progress,
    ) -> Result<WriteOutcome, PortError> {
        self.check_unbroken()?;
        let mut rows = self.rows.lock();
        let row = rows.change(group, shard, STATE);
        Ok(row.map_or(WriteOutcome::Refused(None), |row| row.advance(epoch, previous, progress)))
    }
}

// Rows are in memory, so no call waits for the disk.
#[async_trait]
impl LeaseStore for EmbeddedStore {
    async fn list(&self, group: Group) -> Result<Vec<ShardRow>, PortError> {
        let rows = self.inner.rows.lock();
        Ok(rows.rows.iter().filter(|((other, _), _)| *other == group).map(|(_, row)| row.clone()).collect())
    }

    async fn create(&self, group: Group, row: &ShardRow) -> Result<(), PortError> {
        self.inner.create_row(group, row)
    }

    async fn start(&self, group: Group, shard: &ShardId, inherited: &Progress) -> Result<(), PortError> {
        self.inner.start_row(group, shard, inherited)
    }

    async fn take(
        &self,
        group: Group,
        shard: &ShardId,
        observed: &Lease,
        owner: &str,
    ) -> Result<Option<ShardRow>, PortError> {
        self.inner.change_lease(group, shard, |row| row.taken(observed, owner))
    }

    async fn renew(&self, group: Group, shard: &ShardId, epoch: u64) -> Result<Option<Lease>, PortError> {
        Ok(self.inner.change_lease(group, shard, |row| row.renewed(epoch))?.map(|row| row.lease))
    }

    async fn release(&self, group: Group, shard: &ShardId, epoch: u64) -> Result<(), PortError> {
        self.inner.change_lease(group, shard, |row| row.released(epoch)).map(drop)
    }

    async fn request(&self, group: Group, shard: &ShardId, epoch: u64, by: &str) -> Result<(), PortError> {
        self.inner.change_lease(group, shard, |row| row.requested(epoch, by)).map(drop)
    }

    async fn write_progress(
        &self,
        group: Group,
        shard: &ShardId,
        epoch: u64,
        previous: Span,
        progress: &Progress,
    ) -> Result<WriteOutcome, PortError> {
        self.inner.write_progress(group, shard, epoch, previous, progress)
    }

    async fn note_end(&self, group: Group, shard: &ShardId, ends_at: SequenceNumber) -> Result<(), PortError> {
        self.inner.note(group, shard, |row| row.note_end(ends_at))
    }

    async fn note_lost(&self, group: Group, shard: &ShardId, lost: LostTime) -> Result<(), PortError> {
        self.inner.note(group, shard, |row| row.note_lost(lost))
    }

    async fn delete(&self, group: Group, shard: &ShardId) -> Result<(), PortError> {
        self.inner.delete_row(group, shard)
    }
}
