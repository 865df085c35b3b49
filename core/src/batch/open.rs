//! A batch that is still taking votes: the columns of [`Batch`], and each vote's hash.
//!
//! Appending copies the user id into one block and pushes three numbers; no vote has an allocation of its own.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    Batch, BatchId,
    codec::{Columns, encode_columns},
};
use crate::{poll::PollId, routing::HashRanges, time::Timestamp};

/// Votes on their way into one record.
#[derive(Clone, Debug, Default)]
pub struct OpenBatch {
    dictionary: Vec<(PollId, Arc<str>)>,
    choices: Vec<u32>,
    accepted_at: Vec<Timestamp>,
    user_block: String,
    user_ends: Vec<u32>,
    hashes: Vec<u128>,
}

/// One vote of an open batch.
#[derive(Clone, Copy, Debug)]
pub struct OpenVote<'a> {
    /// The poll and the option.
    pub choice: &'a (PollId, Arc<str>),
    /// The user.
    pub user_id: &'a str,
    /// The routing hash of (poll, user).
    pub hash: u128,
    /// When it was accepted.
    pub accepted_at: Timestamp,
}

/// What a vote adds to the size of a batch beside its user id: choice, time, end and hash, roughly.
const VOTE_OVERHEAD_BYTES: usize = 8;

impl OpenBatch {
    /// Index of (poll, option) in the dictionary, added if it is new.
    #[inline]
    pub fn entry(&mut self, poll: &PollId, option: &Arc<str>) -> u32 {
        // By address first: votes of one poll name its options by the same pointers, and comparing text costs more.
        let by_address = self.dictionary.iter().position(|(_, known)| Arc::ptr_eq(known, option));
        let by_address = by_address.filter(|&at| self.dictionary[at].0 == *poll);
        let known = by_address.or_else(|| self.dictionary.iter().position(|(p, o)| o == option && p == poll));
        known.unwrap_or_else(|| {
            self.dictionary.push((poll.clone(), option.clone()));
            self.dictionary.len() - 1
        }) as u32
    }

    /// Appends a vote for a dictionary entry.
    #[inline]
    pub fn push(&mut self, entry: u32, user_id: &str, hash: u128, accepted_at: Timestamp) {
        debug_assert!((entry as usize) < self.dictionary.len());
        self.choices.push(entry);
        self.accepted_at.push(accepted_at);
        self.user_block.push_str(user_id);
        self.user_ends.push(self.user_block.len() as u32);
        self.hashes.push(hash);
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

    /// Rough size of the record before compression, in bytes.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.user_block.len() + self.len() * VOTE_OVERHEAD_BYTES
    }

    /// The earliest `accepted_at` of all votes.
    pub fn oldest(&self) -> Option<Timestamp> {
        self.accepted_at.iter().min().copied()
    }

    /// Routing hashes of all votes.
    #[inline]
    pub fn hashes(&self) -> &[u128] {
        &self.hashes
    }

    /// The vote at an index.
    ///
    /// # Panics
    ///
    /// If there is no vote of this index.
    pub fn vote(&self, index: usize) -> OpenVote<'_> {
        let start = if index == 0 { 0 } else { self.user_ends[index - 1] as usize };
        OpenVote {
            choice: &self.dictionary[self.choices[index] as usize],
            user_id: &self.user_block[start..self.user_ends[index] as usize],
            hash: self.hashes[index],
            accepted_at: self.accepted_at[index],
        }
    }

    /// The votes at these indices, in their order.
    pub fn subset(&self, indices: impl IntoIterator<Item = usize>) -> Self {
        let mut subset = Self { dictionary: self.dictionary.clone(), ..Self::default() };
        for index in indices {
            let vote = self.vote(index);
            subset.push(self.choices[index], vote.user_id, vote.hash, vote.accepted_at);
        }
        subset
    }

    /// Empties the batch but keeps its memory.
    pub fn clear(&mut self) {
        self.dictionary.clear();
        self.choices.clear();
        self.accepted_at.clear();
        self.user_block.clear();
        self.user_ends.clear();
        self.hashes.clear();
    }

    /// When each vote was accepted.
    #[inline]
    pub fn accepted_at(&self) -> &[Timestamp] {
        &self.accepted_at
    }

    /// The record of the batch.
    pub fn seal(&self, id: BatchId, ranges: &HashRanges, trace_context: &str) -> Bytes {
        encode_columns(Columns {
            id,
            ranges,
            trace_context,
            dictionary: &self.dictionary,
            choices: &self.choices,
            accepted_at: &self.accepted_at,
            user_block: &self.user_block,
            user_ends: &self.user_ends,
        })
    }

    /// The sealed batch, as a reader will see it.
    pub fn to_batch(&self, id: BatchId, ranges: HashRanges, trace_context: String) -> Batch {
        Batch {
            id,
            ranges,
            trace_context,
            dictionary: self.dictionary.clone(),
            choices: self.choices.clone(),
            accepted_at: self.accepted_at.clone(),
            user_block: self.user_block.clone(),
            user_ends: self.user_ends.clone(),
        }
    }
}
