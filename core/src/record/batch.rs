//! The stream record: a batch of votes in columns.
//!
//! Owns the stored format (it begins with a format version, see [`encode`] and [`decode`]). Must never panic or
//! allocate without bound, on any input: it also gets records of other producers.

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

/// Identity of a batch, by which a second copy of it is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchId {
    /// Random per start of an ingest process.
    pub producer: u128,
    /// From one counter per process, which starts at 1 and is shared by all lanes.
    pub number: u64,
}

/// What a record holds.
#[expect(clippy::large_enum_variant, reason = "made once a record, and nearly always a batch")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordBody {
    /// Votes of the ingest service.
    Batch(Batch),
    /// No votes. It moves the clock of a shard that gets no votes.
    Marker,
}

/// A decoded batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its identity.
    pub id: BatchId,
    /// The hashes that it covers, and every vote's hash is one of them: the lane's range, or the rest of it if the
    /// batch was sent again.
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
