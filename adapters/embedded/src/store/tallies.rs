//! Stored tallies.
//!
//! Owns their encoding. Must never add a window twice: the stored position decides, and nothing else does.
//!
//! Value: position (24 bytes), epoch u64, number of options u32, then each option and its sum i64.

use std::sync::Arc;

use async_trait::async_trait;
use votestream_core::{
    PollId, SequenceNumber, ShardId,
    port::{Group, PortError, TallyDelta, TallyRow, TallyStore},
};

use super::{EmbeddedStore, Inner, leases::group_of, poll_prefix};
use crate::{
    blocking,
    codec::{Corrupt, Decoder, Encoder},
    read_failed,
};

struct StoredTally {
    position: SequenceNumber,
    counts: Vec<(Arc<str>, i64)>,
}

fn encode(tally: &StoredTally, epoch: u64) -> Vec<u8> {
    let mut value = Encoder::default();
    value.sequence(tally.position).u64(epoch).u32(tally.counts.len() as u32);
    for (option, count) in &tally.counts {
        value.text(option).i64(*count);
    }
    value.0
}

fn decode(value: &[u8]) -> Result<StoredTally, Corrupt> {
    let mut value = Decoder(value);
    let position = value.sequence()?;
    // The epoch is for people who look at the stored data.
    value.u64()?;
    let counts = value.list(|value| Ok((value.shared_text()?, value.i64()?)))?;
    value.end()?;
    Ok(StoredTally { position, counts })
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
        let _deciding = self.tallies_lock.lock();
        let mut batch = self.db.batch();
        for delta in deltas {
            let key = key_of(&delta.poll_id, group, shard);
            let mut tally = match self.tallies.get(&key).map_err(read_failed)? {
                None => StoredTally { position: SequenceNumber::ZERO, counts: Vec::new() },
                Some(value) => decode(&value).map_err(|corrupt| corrupt.in_a("tally"))?,
            };
            if tally.position >= window_end {
                continue;
            }
            tally.position = window_end;
            for (option, count) in &delta.counts {
                match tally.counts.iter_mut().find(|(known, _)| known == option) {
                    None => tally.counts.push((option.clone(), *count)),
                    Some((_, sum)) => {
                        *sum = sum.checked_add(*count).ok_or_else(|| {
                            PortError::permanent(format!("the tally of {} does not fit", delta.poll_id))
                        })?;
                    }
                }
            }
            batch.insert(&self.tallies, key, encode(&tally, epoch));
        }
        self.commit(batch)
    }

    fn read(&self, poll: &PollId) -> Result<Vec<TallyRow>, PortError> {
        let prefix = poll_prefix(poll.as_str());
        let rows = self.tallies.prefix(&prefix).map(|guard| {
            let (key, value) = guard.into_inner().map_err(read_failed)?;
            let tally = decode(&value).map_err(|corrupt| corrupt.in_a("tally"))?;
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
