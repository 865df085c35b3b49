//! Stored tallies.
//!
//! Owns their encoding, and the changed tallies in memory until `flush.rs` writes them. Must never add a window twice:
//! only the stored position decides whether a window is added.
//!
//! Value: position (24 bytes), epoch u64, number of options u32, then each option and its sum i64.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use async_trait::async_trait;
use votestream_core::{
    PollId, SequenceNumber, ShardId,
    port::{Group, PortError, TallyDelta, TallyRow, TallyStore},
};

use super::{
    EmbeddedStore, Inner,
    flush::{Change, Target},
    leases::group_of,
    poll_prefix,
};
use crate::{
    blocking,
    codec::{Corrupt, Decoder, Encoder},
    read_failed,
};

#[derive(Clone, Default)]
pub(super) struct StoredTally {
    position: SequenceNumber,
    /// Only for people who look at the stored data.
    epoch: u64,
    counts: Vec<(Arc<str>, i64)>,
}

impl StoredTally {
    fn encode(&self) -> Vec<u8> {
        let mut value = Encoder::default();
        value.sequence(self.position).u64(self.epoch).u32(self.counts.len() as u32);
        for (option, count) in &self.counts {
            value.text(option).i64(*count);
        }
        value.0
    }

    /// The tally in its stored form.
    pub(super) fn change(&self, key: &[u8]) -> Change {
        Change { target: Target::Tallies, key: key.to_vec(), value: self.encode() }
    }
}

/// Tallies that are not written yet, by their keys.
type Changed = BTreeMap<Vec<u8>, StoredTally>;

/// What was added and is not written yet.
#[derive(Default)]
pub(super) struct Decided {
    /// What the next flush writes.
    changed: Changed,
    /// What is being written.
    flushing: Arc<Changed>,
}

impl Decided {
    pub(super) fn is_unchanged(&self) -> bool {
        self.changed.is_empty()
    }

    pub(super) fn begin_flush(&mut self) -> Arc<Changed> {
        self.flushing = Arc::new(std::mem::take(&mut self.changed));
        self.flushing.clone()
    }

    pub(super) fn end_flush(&mut self) {
        self.flushing = Arc::default();
    }
}

fn decode(value: &[u8]) -> Result<StoredTally, PortError> {
    decode_tally(value).map_err(|corrupt| corrupt.in_a("tally"))
}

fn decode_tally(value: &[u8]) -> Result<StoredTally, Corrupt> {
    let mut value = Decoder(value);
    let position = value.sequence()?;
    let epoch = value.u64()?;
    let counts = value.list(|value| Ok((value.shared_text()?, value.i64()?)))?;
    value.end()?;
    Ok(StoredTally { position, epoch, counts })
}

fn key_of(poll: &PollId, group: Group, shard: &ShardId) -> Vec<u8> {
    let mut key = poll_prefix(poll.as_str());
    key.extend_from_slice(group.as_str().as_bytes());
    key.push(0);
    key.extend_from_slice(shard.as_str().as_bytes());
    key
}

fn decode_key(key: &[u8], prefix: usize) -> Option<(Group, ShardId)> {
    let mut parts = key.get(prefix..)?.splitn(2, |byte| *byte == 0);
    let (group, shard) = (group_of(parts.next()?)?, std::str::from_utf8(parts.next()?).ok()?);
    Some((group, ShardId::new(shard)))
}

impl Inner {
    fn add(
        &self,
        group: Group,
        shard: &ShardId,
        window_end: SequenceNumber,
        epoch: u64,
        deltas: &[TallyDelta],
    ) -> Result<(), PortError> {
        self.check_unbroken()?;
        let mut decided = self.tallies_decided.lock();
        for delta in deltas {
            let key = key_of(&delta.poll_id, group, shard);
            let Decided { changed, flushing } = &mut *decided;
            let tally = match changed.entry(key) {
                Entry::Occupied(tally) => tally.into_mut(),
                Entry::Vacant(slot) => {
                    let stored = match flushing.get(slot.key()) {
                        Some(tally) => Some(tally.clone()),
                        None => {
                            let stored = self.tallies.get(slot.key()).map_err(read_failed)?;
                            stored.map(|value| decode(&value)).transpose()?
                        }
                    };
                    slot.insert(stored.unwrap_or_default())
                }
            };
            if tally.position >= window_end {
                continue;
            }
            // Add to a copy of the sums, so that nothing is changed if one sum does not fit.
            let mut counts = tally.counts.clone();
            for (option, count) in &delta.counts {
                match counts.iter_mut().find(|(known, _)| known == option) {
                    None => counts.push((option.clone(), *count)),
                    Some((_, sum)) => {
                        *sum = sum.checked_add(*count).ok_or_else(|| {
                            PortError::permanent(format!(
                                "a count in the tally of {} does not fit into 64 bits",
                                delta.poll_id
                            ))
                        })?;
                    }
                }
            }
            *tally = StoredTally { position: window_end, epoch, counts };
        }
        Ok(())
    }

    fn read(&self, poll: &PollId) -> Result<Vec<TallyRow>, PortError> {
        let prefix = poll_prefix(poll.as_str());
        let mut tallies = Changed::new();
        // Hold the lock, so that nothing moves from memory into the keyspace unseen.
        let decided = self.tallies_decided.lock();
        for guard in self.tallies.prefix(&prefix) {
            let (key, value) = guard.into_inner().map_err(read_failed)?;
            tallies.insert(key.to_vec(), decode(&value)?);
        }
        // Later values replace earlier ones.
        for later in [&*decided.flushing, &decided.changed] {
            let of_poll = later.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
            tallies.extend(of_poll.map(|(key, tally)| (key.clone(), tally.clone())));
        }
        drop(decided);
        let rows = tallies.into_iter().map(|(key, tally)| {
            let (group, shard) = decode_key(&key, prefix.len()).ok_or_else(|| Corrupt.in_a("key of a tally"))?;
            Ok(TallyRow { group, shard, counts: tally.counts, position: tally.position })
        });
        rows.collect()
    }
}

#[async_trait]
impl TallyStore for EmbeddedStore {
    async fn add(
        &self,
        group: Group,
        shard: &ShardId,
        window_end: SequenceNumber,
        epoch: u64,
        deltas: &[TallyDelta],
    ) -> Result<(), PortError> {
        let (inner, shard, deltas) = (self.inner.clone(), shard.clone(), deltas.to_vec());
        blocking(move || inner.add(group, &shard, window_end, epoch, &deltas)).await
    }

    async fn read(&self, poll_id: &PollId) -> Result<Vec<TallyRow>, PortError> {
        let (inner, poll) = (self.inner.clone(), poll_id.clone());
        blocking(move || inner.read(&poll)).await
    }
}
