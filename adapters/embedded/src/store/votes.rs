//! Stored votes.
//!
//! Owns their encoding. Must never read a stored vote outside the lock under which it decides.
//!
//! Value: position (28 bytes), accepted_at i64, length of the option u16, option; then, if a vote was replaced, a 1 and the
//! previous option up to the end. Positions compare as their bytes do.

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use async_trait::async_trait;
use fjall::{OwnedWriteBatch, Slice};
use votestream_core::{
    Poll,
    port::{PortError, VoteOutcome, VoteStore, VoteWrite},
};

use super::{EmbeddedStore, Inner, poll_prefix};
use crate::{
    blocking,
    codec::{Corrupt, Decoder},
    read_failed,
};

const POSITION_BYTES: usize = 28;
/// Position and accepted_at.
const FIXED_BYTES: usize = POSITION_BYTES + 8;

/// A vote as it will be stored if there is none.
struct Encoded {
    key: Slice,
    value: Vec<u8>,
    /// Its index in the call.
    index: usize,
}

fn encode(index: usize, vote: &VoteWrite) -> Result<Encoded, PortError> {
    let option = vote.option_id.as_bytes();
    let option_len = u16::try_from(option.len())
        .map_err(|_| PortError::permanent(format!("an option id of {} bytes cannot be stored", option.len())))?;
    let (poll, user) = (vote.poll_id.as_str().as_bytes(), vote.user_id.as_bytes());
    let mut key = Vec::with_capacity(poll.len() + 5 + user.len());
    key.extend_from_slice(poll);
    key.push(0);
    key.extend_from_slice(&vote.bucket.to_be_bytes());
    key.extend_from_slice(user);
    let mut value = Vec::with_capacity(FIXED_BYTES + 2 + option.len());
    value.extend_from_slice(&vote.position.to_bytes());
    value.extend_from_slice(&vote.accepted_at.0.to_be_bytes());
    value.extend_from_slice(&option_len.to_be_bytes());
    value.extend_from_slice(option);
    Ok(Encoded { key: key.into(), value, index })
}

/// A stored vote.
struct StoredVote<'a> {
    position: &'a [u8],
    option: &'a str,
    previous: Option<&'a str>,
}

fn decode(value: &[u8]) -> Result<StoredVote<'_>, Corrupt> {
    let mut value = Decoder(value);
    let position = value.bytes(POSITION_BYTES)?;
    value.time()?;
    let len = usize::from(u16::from_be_bytes([value.u8()?, value.u8()?]));
    let option = std::str::from_utf8(value.bytes(len)?).map_err(|_| Corrupt)?;
    let previous = match value.0.split_first() {
        None => None,
        Some((1, previous)) => Some(std::str::from_utf8(previous).map_err(|_| Corrupt)?),
        Some(_) => return Err(Corrupt),
    };
    Ok(StoredVote { position, option, previous })
}

/// One copy of each option id, however many votes name it.
#[derive(Default)]
struct Interned(HashSet<Arc<str>>);

impl Interned {
    fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        let new: Arc<str> = text.into();
        self.0.insert(new.clone());
        new
    }
}

impl Inner {
    /// Takes votes in the order of their keys.
    fn write_votes(&self, votes: Vec<Encoded>) -> Result<Vec<VoteOutcome>, PortError> {
        let mut outcomes = vec![VoteOutcome::Superseded; votes.len()];
        let mut options = Interned::default();
        let _deciding = self.votes_lock.lock();
        let mut batch = OwnedWriteBatch::with_capacity(self.db.clone(), votes.len());
        for Encoded { key, mut value, index } in votes {
            let stored = self.votes.get(&key).map_err(read_failed)?;
            outcomes[index] = match &stored {
                None => VoteOutcome::Inserted,
                Some(stored) => {
                    let stored = decode(stored).map_err(|corrupt| corrupt.in_a("vote"))?;
                    match stored.position.cmp(&value[..POSITION_BYTES]) {
                        Ordering::Less => {
                            value.push(1);
                            value.extend_from_slice(stored.option.as_bytes());
                            VoteOutcome::Replaced { previous: options.get(stored.option) }
                        }
                        Ordering::Equal => {
                            VoteOutcome::AlreadyStored { previous: stored.previous.map(|option| options.get(option)) }
                        }
                        Ordering::Greater => VoteOutcome::Superseded,
                    }
                }
            };
            match outcomes[index] {
                VoteOutcome::Inserted | VoteOutcome::Replaced { .. } => batch.insert(&self.votes, key, value),
                VoteOutcome::AlreadyStored { .. } | VoteOutcome::Superseded => {}
            }
        }
        batch.commit().map_err(|error| self.write_failed(&error))?;
        Ok(outcomes)
    }

    fn recount(&self, poll: &Poll) -> Result<Vec<u64>, PortError> {
        let indices: HashMap<&str, usize> =
            poll.options.iter().enumerate().map(|(index, option)| (&*option.id, index)).collect();
        let mut counts = vec![0; poll.options.len()];
        for guard in self.votes.prefix(poll_prefix(poll.id.as_str())) {
            let value = guard.value().map_err(read_failed)?;
            let vote = decode(&value).map_err(|corrupt| corrupt.in_a("vote"))?;
            let index = indices.get(vote.option).ok_or_else(|| {
                PortError::permanent(format!("poll {} holds a vote for an unknown option {:?}", poll.id, vote.option))
            })?;
            counts[*index] += 1;
        }
        Ok(counts)
    }
}

#[async_trait]
impl VoteStore for EmbeddedStore {
    async fn write(&self, votes: &[VoteWrite]) -> Result<Vec<VoteOutcome>, PortError> {
        if votes.is_empty() {
            return Ok(Vec::new());
        }
        let encoded = votes.iter().enumerate().map(|(index, vote)| encode(index, vote));
        let mut encoded = encoded.collect::<Result<Vec<_>, _>>()?;
        let inner = self.inner.clone();
        blocking(move || {
            // Neighbours share blocks and paths through the memtable.
            encoded.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            inner.write_votes(encoded)
        })
        .await
    }

    async fn recount(&self, poll: &Poll) -> Result<Vec<u64>, PortError> {
        let (inner, poll) = (self.inner.clone(), poll.clone());
        blocking(move || inner.recount(&poll)).await
    }
}
