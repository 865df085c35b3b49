//! A window: a run of consecutive records of one shard, and which of its votes count.
//!
//! Owns the decision about each vote. Must never look at the time of processing: the same records, producer memory, shard
//! clock and polls always give the same decision, in both groups and after any crash.

use std::sync::Arc;

use crate::{batch::Batch, poll::Poll, routing::ShardId, sequence::SequenceNumber};

/// Why a stored vote does not count. Each is a label of the metric `votes_discarded_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Discard {
    /// No such poll, or no such option.
    UnknownPoll,
    /// Accepted outside `opens_at <= accepted_at < closes_at`.
    Closed,
    /// The batch, or a later one of its producer, was processed before: a duplicate or superseded.
    DuplicateOrSuperseded,
    /// The vote's hash is not in the shard's range.
    WrongShard,
    /// It reached the stream later than L after it was accepted.
    Late,
    /// The poll takes its votes from the other side.
    WrongSource,
    /// The record cannot be read.
    Unreadable,
}

/// Votes of one batch that count.
#[derive(Clone, Debug)]
pub struct Selected {
    /// Sequence number of the record.
    pub sequence: SequenceNumber,
    /// The batch.
    pub batch: Arc<Batch>,
    /// Indices of the votes that count, ascending; `None` if all do.
    pub only: Option<Vec<u32>>,
}

impl Selected {
    /// Indices of the votes that count, ascending.
    pub fn indices(&self) -> impl Iterator<Item = usize> + '_ {
        let all = if self.only.is_none() { self.batch.len() } else { 0 };
        (0..all).chain(self.only.iter().flatten().map(|&index| index as usize))
    }
}

/// A decided window, ready to be applied.
#[derive(Clone, Debug)]
pub struct Window {
    /// The shard.
    pub shard: ShardId,
    /// Epoch of the lease under which it is applied.
    pub epoch: u64,
    /// End of the window before.
    pub start: SequenceNumber,
    /// Sequence number of its last record.
    pub end: SequenceNumber,
    /// Batches with votes that count, in stream order.
    pub selected: Vec<Selected>,
    /// Every poll that a selected vote names.
    pub polls: Vec<Arc<Poll>>,
}
