//! A batch that still takes votes: its columns as they are stored, and each vote's hash.
//!
//! Appending copies the user id into one block and pushes a few numbers; no vote needs its own allocation. A UUID is
//! kept as its 16 bytes.

use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::{
    Batch, BatchId,
    codec::{Columns, UUIDS_FROM, encode_columns},
    runs::Runs,
};
use crate::{HashRanges, PollId, Timestamp, UserId, model::user_id::PREFIX_BYTES_MAX};

/// Votes that will become one record.
#[derive(Clone, Debug, Default)]
pub struct OpenBatch {
    dictionary: Vec<(PollId, Arc<str>)>,
    /// About how many bytes the dictionary takes in the record.
    dictionary_bytes: usize,
    /// Entries by the addresses of poll and option, once there are many. An entry keeps both alive, so no other text
    /// can get its address.
    by_address: FxHashMap<(usize, usize), u32>,
    choices: Vec<u32>,
    accepted_at: Runs<Timestamp>,
    /// Per vote: the length of a text; or [`UUIDS_FROM`] for a UUID; or [`UUIDS_FROM`] + n for a UUID after prefix
    /// number n, counted from 1.
    shapes: Runs<u32>,
    /// The texts that stand before UUIDs.
    prefixes: Vec<Box<str>>,
    /// User ids that are not UUIDs, one after the other.
    text: String,
    uuids: Vec<[u8; 16]>,
    hashes: Vec<u128>,
}

/// One vote of an open batch.
#[derive(Clone, Copy, Debug)]
pub struct OpenVote<'a> {
    /// The poll and the option.
    pub choice: &'a (PollId, Arc<str>),
    /// The user.
    pub user_id: UserId<'a>,
    /// The routing hash of (poll, user).
    pub hash: u128,
    /// When it was accepted.
    pub accepted_at: Timestamp,
}

/// What a vote adds to the size of a batch besides its user id: its choice, and its part of the runs.
const VOTE_OVERHEAD_BYTES: usize = 8;
/// What a dictionary entry takes besides the ids: their lengths, and the number of its poll.
const ENTRY_OVERHEAD_BYTES: usize = 8;
/// Up to this many entries, a look at each one is faster than a map.
const ENTRIES_SCANNED_MAX: usize = 8;
/// Most prefixes of a batch. When there are more, ids are kept as text.
const PREFIXES_MAX: usize = 16;

fn address<T: ?Sized>(text: &T) -> usize {
    std::ptr::from_ref(text).cast::<()>().addr()
}

impl OpenBatch {
    /// Index of (poll, option) in the dictionary. Adds it if it is new.
    #[inline]
    pub fn entry(&mut self, poll: &PollId, option: &Arc<str>) -> u32 {
        // By address first: votes for one poll name its options by the same pointers, and comparing text costs more.
        let known = if self.dictionary.len() <= ENTRIES_SCANNED_MAX {
            let same =
                |(p, o): &(PollId, Arc<str>)| Arc::ptr_eq(o, option) && address(p.as_str()) == address(poll.as_str());
            self.dictionary.iter().position(same).map(|at| at as u32)
        } else {
            self.by_address.get(&(address(poll.as_str()), address(&**option))).copied()
        };
        match known {
            Some(entry) => entry,
            None => self.entry_by_text(poll, option),
        }
    }

    #[cold]
    fn entry_by_text(&mut self, poll: &PollId, option: &Arc<str>) -> u32 {
        // Another definition of the same poll has other addresses. If the dictionary is large, a search of all its text
        // would cost more for every new entry than a second entry with the same text does.
        let known = match self.dictionary.len() {
            0..=ENTRIES_SCANNED_MAX => self.dictionary.iter().position(|(p, o)| o == option && p == poll),
            _ => None,
        };
        known.unwrap_or_else(|| {
            self.dictionary.push((poll.clone(), option.clone()));
            self.dictionary_bytes += poll.as_str().len() + option.len() + ENTRY_OVERHEAD_BYTES;
            let count = self.dictionary.len();
            // The first time, all entries go into the map.
            let first = if count == ENTRIES_SCANNED_MAX + 1 { 0 } else { count - 1 };
            if count > ENTRIES_SCANNED_MAX {
                for (entry, (p, o)) in self.dictionary.iter().enumerate().skip(first) {
                    self.by_address.insert((address(p.as_str()), address(&**o)), entry as u32);
                }
            }
            count - 1
        }) as u32
    }

    /// Appends a vote for a dictionary entry.
    #[inline]
    pub fn push<'a>(&mut self, entry: u32, user_id: impl Into<UserId<'a>>, hash: u128, accepted_at: Timestamp) {
        debug_assert!((entry as usize) < self.dictionary.len());
        self.choices.push(entry);
        self.accepted_at.push(accepted_at);
        self.hashes.push(hash);
        match user_id.into() {
            UserId::Uuid { prefix, uuid } => match self.prefix(prefix) {
                Some(number) => {
                    self.shapes.push(UUIDS_FROM + number);
                    self.uuids.push(uuid);
                }
                None => self.push_text(&UserId::Uuid { prefix, uuid }.to_text()),
            },
            UserId::Text(text) => self.push_text(text),
        }
    }

    fn push_text(&mut self, text: &str) {
        self.shapes.push(text.len() as u32);
        self.text.push_str(text);
    }

    /// Number of a prefix. Adds it if it is new; `None` if there is no room for it.
    #[inline]
    fn prefix(&mut self, prefix: &str) -> Option<u32> {
        if prefix.is_empty() {
            return Some(0);
        }
        match self.prefixes.iter().position(|known| **known == *prefix) {
            Some(at) => Some(at as u32 + 1),
            None if self.prefixes.len() < PREFIXES_MAX && prefix.len() <= PREFIX_BYTES_MAX => {
                self.prefixes.push(prefix.into());
                Some(self.prefixes.len() as u32)
            }
            None => None,
        }
    }

    /// Number of votes.
    #[inline]
    pub fn len(&self) -> usize {
        self.choices.len()
    }

    /// Whether there is no vote.
    pub fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    /// Rough size of the record before compression, in bytes, its dictionary included.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.text.len() + self.uuids.len() * 16 + self.len() * VOTE_OVERHEAD_BYTES + self.dictionary_bytes
    }

    /// The earliest `accepted_at` of all votes.
    pub fn oldest(&self) -> Option<Timestamp> {
        self.accepted_at.as_slice().iter().map(|(at, _)| *at).min()
    }

    /// Routing hashes of all votes.
    #[inline]
    pub fn hashes(&self) -> &[u128] {
        &self.hashes
    }

    /// When each vote was accepted.
    pub fn accepted_at(&self) -> Vec<Timestamp> {
        self.accepted_at.each().collect()
    }

    /// The votes in their order.
    pub fn votes(&self) -> impl Iterator<Item = OpenVote<'_>> {
        let (mut text, mut uuids) = (&*self.text, self.uuids.iter());
        let user_ids = self.shapes.each().map(move |shape| match shape.checked_sub(UUIDS_FROM) {
            Some(prefix) => UserId::Uuid {
                prefix: prefix.checked_sub(1).map_or("", |at| &self.prefixes[at as usize]),
                uuid: uuids.next().copied().unwrap_or_default(),
            },
            None => {
                let id;
                (id, text) = text.split_at(shape as usize);
                UserId::Text(id)
            }
        });
        let choices = self.choices.iter().map(|&choice| &self.dictionary[choice as usize]);
        choices
            .zip(user_ids)
            .zip(self.hashes.iter().zip(self.accepted_at.each()))
            .map(|((choice, user_id), (&hash, accepted_at))| OpenVote { choice, user_id, hash, accepted_at })
    }

    /// The votes for whose index `keep` holds, in their order.
    pub fn subset(&self, keep: impl Fn(usize) -> bool) -> Self {
        let mut subset = Self {
            dictionary: self.dictionary.clone(),
            dictionary_bytes: self.dictionary_bytes,
            by_address: self.by_address.clone(),
            ..Self::default()
        };
        for (index, vote) in self.votes().enumerate().filter(|(index, _)| keep(*index)) {
            subset.push(self.choices[index], vote.user_id, vote.hash, vote.accepted_at);
        }
        subset
    }

    /// Empties the batch but keeps its memory.
    pub fn clear(&mut self) {
        self.dictionary.clear();
        self.dictionary_bytes = 0;
        self.by_address.clear();
        self.choices.clear();
        self.accepted_at.clear();
        self.shapes.clear();
        self.prefixes.clear();
        self.text.clear();
        self.uuids.clear();
        self.hashes.clear();
    }

    /// The record of the batch.
    pub fn seal(&self, id: BatchId, ranges: &HashRanges, trace_context: &str) -> Bytes {
        encode_columns(self.columns(id, ranges, trace_context))
    }

    pub(super) fn columns<'a>(&'a self, id: BatchId, ranges: &'a HashRanges, trace_context: &'a str) -> Columns<'a> {
        Columns {
            id,
            ranges,
            trace_context,
            dictionary: &self.dictionary,
            choices: &self.choices,
            accepted_at: &self.accepted_at,
            shapes: &self.shapes,
            prefixes: &self.prefixes,
            text: &self.text,
            uuids: &self.uuids,
        }
    }

    /// The sealed batch, as a reader will see it.
    pub fn to_batch(&self, id: BatchId, ranges: HashRanges, trace_context: String) -> Batch {
        let (mut user_block, mut user_ends) = (String::new(), Vec::with_capacity(self.len()));
        for vote in self.votes() {
            user_block.push_str(&vote.user_id.to_text());
            user_ends.push(user_block.len() as u32);
        }
        Batch {
            id,
            ranges,
            trace_context,
            dictionary: self.dictionary.clone(),
            choices: self.choices.clone(),
            accepted_at: self.accepted_at(),
            user_block,
            user_ends,
        }
    }

    /// The columns of a batch; hashes are zero.
    pub(super) fn of(batch: &Batch) -> Self {
        let mut open = Self { dictionary: batch.dictionary.clone(), ..Self::default() };
        for index in 0..batch.len() {
            open.push(batch.choices[index], batch.user_id(index), 0, batch.accepted_at[index]);
        }
        open
    }
}
