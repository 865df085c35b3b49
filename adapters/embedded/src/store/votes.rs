//! Stored votes.
//!
//! Owns their encoding, and the decisions in memory until `flush.rs` writes them. Must never read a stored vote outside
//! the lock under which it decides.
//!
//! Keys and values of usual votes are so short that they fit into the nodes of a memtable, without another allocation
//! or cache miss. Key: the poll's number and a bit, u32; then the user. If the user's id is a UUID in its usual form,
//! the bit is 0 and 16 bytes follow; otherwise the bit is 1 and the id itself follows. Value, see [`Vote`]: tag u8,
//! then for tag
//!
//! - 0: record u48, index u24, accepted_at u48, option u8;
//! - 1: sequence (24 bytes), index u32, accepted_at i64, option u16, if a number does not fit above;
//! - 2 and 3: the same as 0 and 1, then the option that was replaced, in as many bytes.
//!
//! The key of four bytes 255 holds no vote, see `flush.rs`. Options are numbers, see `dictionary.rs`. The bucket is
//! computed from poll and user and is not stored.

use std::{cmp::Ordering, collections::hash_map::Entry, sync::Arc};

use async_trait::async_trait;
use fjall::Slice;
use rustc_hash::FxHashMap;
use tokio_util::sync::CancellationToken;
use votestream_core::{
    Poll, PollId, Position, SequenceNumber, Timestamp,
    model::user_id::parse_uuid,
    port::{PortError, VoteOutcome, VoteStore, VoteWrite},
};

use super::{
    EmbeddedStore, Inner,
    dictionary::Dictionary,
    hot_votes::HotVotes,
    new_voter_filter::NewVoterFilter,
    unflushed::{KeyHash, Unflushed},
};
use crate::{
    blocking,
    codec::{Corrupt, Decoder, Encoder},
    read_failed,
};

/// Bit of the tag: the value has the wide form.
const WIDE: u8 = 1;
/// Bit of the tag: the vote replaced another one.
const REPLACED: u8 = 2;

fn key_of(poll: u32, user: &str) -> Slice {
    match user.as_bytes().try_into().ok().and_then(parse_uuid) {
        Some(uuid) => {
            let mut key = [0; 20];
            key[..4].copy_from_slice(&(poll << 1).to_be_bytes());
            key[4..].copy_from_slice(&uuid);
            key.into()
        }
        None => [&(poll << 1 | 1).to_be_bytes()[..], user.as_bytes()].concat().into(),
    }
}

/// A vote as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vote {
    position: Position,
    accepted_at: Timestamp,
    option: u16,
    previous: Option<u16>,
}

impl Vote {
    fn encode(&self) -> Slice {
        let Self { position: Position { sequence, index }, accepted_at: Timestamp(at), option, previous } = *self;
        let replaced = if previous.is_some() { REPLACED } else { 0 };
        let fits = |number: u64, bits: u32| number >> bits == 0;
        let record = sequence.as_u64().filter(|&record| fits(record, 48));
        let at_fits = u64::try_from(at).ok().filter(|&at| fits(at, 48));
        let options = (u8::try_from(option), previous.map_or(Ok(0), u8::try_from));
        if let (Some(record), Some(at), (Ok(option), Ok(previous)), true) =
            (record, at_fits, options, fits(index.into(), 24))
        {
            let mut value = [0; 18];
            value[0] = replaced;
            value[1..7].copy_from_slice(&record.to_be_bytes()[2..]);
            value[7..10].copy_from_slice(&index.to_be_bytes()[1..]);
            value[10..16].copy_from_slice(&at.to_be_bytes()[2..]);
            (value[16], value[17]) = (option, previous);
            return value[..if replaced > 0 { 18 } else { 17 }].into();
        }
        let mut value = Encoder::default();
        value.u8(WIDE | replaced).sequence(sequence).u32(index).i64(at).raw(&option.to_be_bytes());
        if let Some(previous) = previous {
            value.raw(&previous.to_be_bytes());
        }
        value.0.into()
    }

    fn decode(value: &[u8]) -> Result<Self, Corrupt> {
        let mut value = Decoder(value);
        let tag = value.u8()?;
        let (wide, replaced) = (tag & WIDE > 0, tag & REPLACED > 0);
        if tag > (WIDE | REPLACED) {
            return Err(Corrupt);
        }
        let number = |bytes: &[u8]| bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        let (sequence, index, accepted_at) = if wide {
            (value.sequence()?, value.u32()?, value.i64()?)
        } else {
            let (record, index, at) = (number(value.bytes(6)?), number(value.bytes(3)?), number(value.bytes(6)?));
            (SequenceNumber::from_u64(record), index as u32, at as i64)
        };
        let mut option = || Ok(number(value.bytes(if wide { 2 } else { 1 })?) as u16);
        let (option, previous) = (option()?, replaced.then(option).transpose()?);
        value.end()?;
        let position = Position { sequence, index };
        Ok(Self { position, accepted_at: Timestamp(accepted_at), option, previous })
    }
}

fn decode(value: &[u8]) -> Result<Vote, PortError> {
    Vote::decode(value).map_err(|corrupt| corrupt.in_a("vote"))
}

/// A new vote, encoded as if its user had none.
struct Encoded {
    key: Slice,
    key_hash: u64,
    vote: Vote,
    poll: u32,
}

/// All decided votes in memory, and the filter of new voters.
pub(super) struct Deciding {
    hashing: KeyHash,
    recent: HotVotes,
    voters: NewVoterFilter,
    /// What the next flush writes.
    pub(super) pending: Unflushed,
    /// What is being written.
    pub(super) flushing: Option<Arc<Unflushed>>,
}

impl Deciding {
    /// An empty state. Polls from `first_poll` on have no votes yet.
    pub(super) fn new(hashing: KeyHash, first_poll: u32) -> Self {
        let (recent, pending) = (HotVotes::default(), Unflushed::default());
        Self { hashing, recent, voters: NewVoterFilter::new(first_poll), pending, flushing: None }
    }

    fn unflushed(&self, key: &[u8], key_hash: u64) -> Option<&[u8]> {
        let flushing = || self.flushing.as_ref()?.get(key, key_hash);
        self.pending.get(key, key_hash).or_else(flushing)
    }

    fn put(&mut self, key: &Slice, key_hash: u64, value: Slice) {
        self.recent.put(key, key_hash, &value);
        self.pending.put(key, key_hash, value, self.hashing);
    }

    /// Decides about a vote, and stores it if it is later than the user's stored vote.
    fn decide(
        &mut self,
        new: &mut Encoded,
        stored: Option<Vote>,
        numbers: &Dictionary,
    ) -> Result<VoteOutcome, PortError> {
        let outcome = match stored {
            None => VoteOutcome::Inserted,
            Some(stored) => {
                let options = numbers.options(new.poll)?;
                match stored.position.cmp(&new.vote.position) {
                    Ordering::Less => {
                        new.vote.previous = Some(stored.option);
                        VoteOutcome::Replaced { previous: options.id(stored.option)?.clone() }
                    }
                    Ordering::Equal => {
                        let previous = stored.previous.map(|option| options.id(option).cloned()).transpose()?;
                        return Ok(VoteOutcome::AlreadyStored { previous });
                    }
                    Ordering::Greater => return Ok(VoteOutcome::Superseded),
                }
            }
        };
        self.put(&new.key, new.key_hash, new.vote.encode());
        Ok(outcome)
    }
}

impl Inner {
    /// Encodes votes, and numbers their polls and options.
    fn encode_votes(&self, votes: &[VoteWrite<'_>]) -> Result<Vec<Encoded>, PortError> {
        fn find(numbers: &Dictionary, poll: &PollId, option: &Arc<str>) -> Option<(u32, u16)> {
            let poll = numbers.poll(poll)?;
            Some((poll, numbers.options(poll).ok()?.number(option)?))
        }
        let mut encoded = Vec::with_capacity(votes.len());
        let mut numbers = self.numbers.read();
        // Keyed by the addresses of the ids: the votes of one batch share them.
        let mut known = FxHashMap::default();
        for write in votes {
            let ids = (write.poll_id.as_str().as_ptr(), write.option_id.as_ptr());
            let (poll, option) = match known.entry(ids) {
                Entry::Occupied(numbered) => *numbered.get(),
                Entry::Vacant(slot) => {
                    let numbered = match find(&numbers, &write.poll_id, &write.option_id) {
                        Some(numbered) => numbered,
                        None => {
                            drop(numbers);
                            self.number(&write.poll_id, &write.option_id)?;
                            numbers = self.numbers.read();
                            find(&numbers, &write.poll_id, &write.option_id)
                                .ok_or_else(|| PortError::permanent("a number that was given is gone"))?
                        }
                    };
                    *slot.insert(numbered)
                }
            };
            let vote = Vote { position: write.position, accepted_at: write.accepted_at, option, previous: None };
            let key = key_of(poll, &write.user_id);
            encoded.push(Encoded { key_hash: self.hashing.of(&key), key, vote, poll });
        }
        Ok(encoded)
    }

    /// Decides about votes in memory. The next flush writes them.
    fn write_votes(&self, mut votes: Vec<Encoded>) -> Result<Vec<VoteOutcome>, PortError> {
        self.check_unbroken()?;
        let mut outcomes = vec![VoteOutcome::Superseded; votes.len()];
        let mut unknown = Vec::new();
        let mut deciding = self.deciding.lock();
        let numbers = self.numbers.read();
        for (at, vote) in votes.iter_mut().enumerate() {
            // The cheapest look-up comes first.
            let stored = if let Some(stored) = deciding.recent.get(&vote.key, vote.key_hash) {
                Some(decode(stored)?)
            } else if deciding.voters.votes(vote.poll, vote.key_hash) {
                None
            } else if let Some(stored) = deciding.unflushed(&vote.key, vote.key_hash) {
                Some(decode(stored)?)
            } else {
                unknown.push(at);
                continue;
            };
            outcomes[at] = deciding.decide(vote, stored, &numbers)?;
        }
        // Sorted, because neighbours share blocks. A call never has two votes of one user, so their order does not
        // matter.
        unknown.sort_unstable_by(|&a, &b| votes[a].key.cmp(&votes[b].key));
        for at in unknown {
            let vote = &mut votes[at];
            let stored = self.votes.get(&*vote.key).map_err(read_failed)?;
            let stored = stored.map(|stored| decode(&stored)).transpose()?;
            outcomes[at] = deciding.decide(vote, stored, &numbers)?;
        }
        let pending = deciding.pending.len();
        drop((deciding, numbers));
        self.after_votes(pending)?;
        Ok(outcomes)
    }

    /// Counts all votes of a poll again. Returns `None` if nobody waits for it any more.
    fn recount(&self, poll: &Poll, left: &CancellationToken) -> Result<Option<Vec<u64>>, PortError> {
        // After this, everything that was decided before is in the keyspace.
        self.flush()?;
        let mut counts = vec![0; poll.options.len()];
        let numbers = self.numbers.read();
        let Some(number) = numbers.poll(&poll.id) else { return Ok(Some(counts)) };
        let options = numbers.options(number)?;
        // Indexed by the option's number, so that a vote needs no look-up.
        let mut by_number = Vec::new();
        while let Ok(id) = options.id(by_number.len() as u16) {
            by_number.push((id.clone(), poll.options.iter().position(|option| option.id == *id)));
        }
        drop(numbers);
        let (start, end) = ((number << 1).to_be_bytes(), (number << 1 | 1).to_be_bytes());
        for guard in self.votes.prefix(start).chain(self.votes.prefix(end)) {
            // This check costs less than reading a vote.
            if left.is_cancelled() {
                return Ok(None);
            }
            let value = guard.value().map_err(read_failed)?;
            let vote = decode(&value)?;
            let (id, index) = by_number
                .get(usize::from(vote.option))
                .ok_or_else(|| Corrupt.in_a("vote: its option has no number"))?;
            let index = index.ok_or_else(|| {
                PortError::permanent(format!("poll {} holds a vote for an unknown option {id:?}", poll.id))
            })?;
            counts[index] += 1;
        }
        Ok(Some(counts))
    }
}

#[async_trait]
impl VoteStore for EmbeddedStore {
    async fn write(&self, votes: &[VoteWrite<'_>]) -> Result<Vec<VoteOutcome>, PortError> {
        if votes.is_empty() {
            return Ok(Vec::new());
        }
        // Encode here, on the caller's thread: it needs no disk except for a new option, and the votes need not be
        // copied.
        let encoded = self.inner.encode_votes(votes)?;
        let inner = self.inner.clone();
        blocking(move || inner.write_votes(encoded)).await
    }

    async fn recount(&self, poll: &Poll) -> Result<Vec<u64>, PortError> {
        let counts = self.recount_unless(poll, &CancellationToken::new()).await?;
        counts.ok_or_else(|| PortError::unknown("a recount ended early, though nobody told it to"))
    }

    async fn recount_unless(&self, poll: &Poll, left: &CancellationToken) -> Result<Option<Vec<u64>>, PortError> {
        let (inner, poll, left) = (self.inner.clone(), poll.clone(), left.clone());
        blocking(move || inner.recount(&poll, &left)).await
    }
}

/// A vote of format 1, which stored the ids as text.
///
/// Key: poll, 0, bucket u32, user. Value: position (28 bytes), accepted_at i64, length of the option u16, option; then, if a
/// vote was replaced, a 1 and the previous option up to the end.
pub(super) struct Version1<'a> {
    pub(super) poll: PollId,
    user: &'a str,
    position: Position,
    accepted_at: Timestamp,
    pub(super) option: Arc<str>,
    pub(super) previous: Option<Arc<str>>,
}

impl<'a> Version1<'a> {
    pub(super) fn decode(key: &'a [u8], value: &'a [u8]) -> Result<Self, Corrupt> {
        let zero = key.iter().position(|byte| *byte == 0).ok_or(Corrupt)?;
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| Corrupt);
        let poll = PollId::new(text(&key[..zero])?).map_err(|_| Corrupt)?;
        let user = text(key.get(zero + 5..).ok_or(Corrupt)?)?;
        let mut value = Decoder(value);
        let position = Position { sequence: value.sequence()?, index: value.u32()? };
        let accepted_at = value.time()?;
        let len = usize::from(u16::from_be_bytes([value.u8()?, value.u8()?]));
        let option = text(value.bytes(len)?)?.into();
        let previous = match value.0.split_first() {
            None => None,
            Some((1, previous)) => Some(text(previous)?.into()),
            Some(_) => return Err(Corrupt),
        };
        Ok(Self { poll, user, position, accepted_at, option, previous })
    }

    /// The same vote in the present format. Its poll and options must have numbers.
    pub(super) fn convert(&self, numbers: &Dictionary) -> Result<(Slice, Slice), PortError> {
        let missing = || Corrupt.in_a("vote: its poll or option has no number");
        let poll = numbers.poll(&self.poll).ok_or_else(missing)?;
        let options = numbers.options(poll)?;
        let option = options.number(&self.option).ok_or_else(missing)?;
        let previous = match &self.previous {
            None => None,
            Some(previous) => Some(options.number(previous).ok_or_else(missing)?),
        };
        let vote = Vote { position: self.position, accepted_at: self.accepted_at, option, previous };
        Ok((key_of(poll, self.user), vote.encode()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_user_has_a_key_of_his_own() {
        let text = "6f9619ff-8b86-d011-b42d-00cf4fc964ff";
        let upper = text.to_uppercase();
        let raw = "0123456789abcdef";
        let users =
            [text, &upper, raw, "", "é", "6f9619ff-8b86-d011-b42d-00cf4fc964f", "6f9619ff08b86-d011-b42d-00cf4fc964ff"];
        let mut keys: Vec<_> = (0..3).flat_map(|poll| users.map(|user| key_of(poll, user))).collect();
        assert_eq!(keys[0].len(), 20);
        assert_eq!(keys[1].len(), 40);
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 3 * users.len());
        // These two prefixes cover all keys of a poll.
        let of_poll =
            |poll: u32| keys.iter().filter(|key| u32::from_be_bytes(key[..4].try_into().unwrap()) >> 1 == poll).count();
        assert_eq!([0, 1, 2].map(of_poll), [users.len(); 3]);
    }

    #[test]
    fn votes_come_back_whatever_they_hold() {
        let sequences = [0, 1, (1 << 48) - 1, 1 << 48, u64::MAX].map(SequenceNumber::from_u64);
        let mut lengths = std::collections::BTreeSet::new();
        for sequence in sequences.into_iter().chain([SequenceNumber::from_bytes([255; 24])]) {
            for index in [0, (1 << 24) - 1, 1 << 24, u32::MAX] {
                for at in [0, 1_700_000_000_000, -1, i64::MAX] {
                    for (option, previous) in
                        [(0, None), (255, Some(0)), (0, Some(256)), (256, None), (u16::MAX, Some(1))]
                    {
                        let position = Position { sequence, index };
                        let vote = Vote { position, accepted_at: Timestamp(at), option, previous };
                        let value = vote.encode();
                        lengths.insert(value.len());
                        assert_eq!(Vote::decode(&value), Ok(vote));
                        for len in 0..value.len() {
                            assert_ne!(Vote::decode(&value[..len]), Ok(vote));
                        }
                    }
                }
            }
        }
        assert_eq!(lengths, [17, 18, 39, 41].into());
    }
}
