//! The stream record: a batch of votes in columns.
//!
//! Owns the stored format (format version in front, see [`encode`] and [`decode`]). Must never panic or allocate without
//! bound on any input: records of other producers come through here.

mod codec;
mod open;
mod runs;

use std::sync::Arc;

use bytes::Bytes;
pub use codec::{DecodeError, decode, encode_marker, later_version};
pub use open::{OpenBatch, OpenVote};

use crate::{HashRanges, PollId, Timestamp};

/// The record of a batch.
pub fn encode(batch: &Batch) -> Bytes {
    OpenBatch::of(batch).seal(batch.id, &batch.ranges, &batch.trace_context)
}

/// Identity of a batch: what makes a second copy of it recognisable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchId {
    /// Random per start of an ingest process.
    pub producer: u128,
    /// From one counter per process, over all lanes, from 1.
    pub number: u64,
}

/// What a record holds.
#[expect(clippy::large_enum_variant, reason = "made once a record, and nearly always a batch")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordBody {
    /// Votes of the ingest service.
    Batch(Batch),
    /// No votes: moves the shard clock of an idle shard.
    Marker,
}

/// A decoded batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its identity.
    pub id: BatchId,
    /// The hashes that it covers. Every vote's hash is in it: the lane's range, or on a re-send what was left of it.
    pub ranges: HashRanges,
    /// W3C `traceparent` of the request that opened the batch; empty if there was none.
    pub trace_context: String,
    /// (poll, option) pairs that the votes name.
    pub dictionary: Vec<(PollId, Arc<str>)>,
    /// Per vote, its index into the dictionary; always valid.
    pub choices: Vec<u32>,
    /// Per vote, when it was accepted. As long as `choices`.
    pub accepted_at: Vec<Timestamp>,
    /// All user ids, one after the other.
    pub user_block: String,
    /// Per vote, where its user id ends in `user_block`. Ascending, at character boundaries, as long as `choices`.
    pub user_ends: Vec<u32>,
}

impl Batch {
    /// Number of votes.
    pub fn len(&self) -> usize {
        self.choices.len()
    }

    /// Whether there is no vote.
    pub fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    /// User of a vote.
    ///
    /// # Panics
    ///
    /// If there is no vote of this index.
    pub fn user_id(&self, index: usize) -> &str {
        let start = if index == 0 { 0 } else { self.user_ends[index - 1] as usize };
        &self.user_block[start..self.user_ends[index] as usize]
    }
}
