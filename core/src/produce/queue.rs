//! One lane's queue: batches that still take votes, and the messages that must be told about each vote.

use std::{collections::VecDeque, iter, sync::Arc};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{AcceptedVote, LaneConfig, Outcome, Settle};
use crate::{Clock, HashRange, ShardId, Timestamp, observe::metrics, record::batch::OpenBatch};

/// The lane of one shard.
pub(super) struct Lane {
    pub(super) shard: ShardId,
    pub(super) range: HashRange,
    pub(super) state: Mutex<LaneState>,
    /// Woken when a vote arrives in an empty queue, a batch is full, or the lane is retired.
    pub(super) wake: Notify,
}

#[derive(Default)]
pub(super) struct LaneState {
    pub(super) queue: VecDeque<QueuedBatch>,
    /// Its shard is closed, and the queue has moved to other lanes.
    pub(super) retired: bool,
    /// The last sealed batch was a large one.
    pub(super) busy: bool,
}

/// A batch that is not sealed yet.
pub(super) struct QueuedBatch {
    pub(super) votes: OpenBatch,
    pub(super) parts: Parts,
    pub(super) opened_at: Instant,
    /// The sampled traces that its votes belong to. Nearly always empty.
    pub(super) traceparents: Vec<Box<str>>,
}

/// Most traces of a batch.
const TRACES_MAX: usize = 16;

/// The settings and the clock of the lanes, and batches that were settled. Their memory is used again, so that the
/// system need not map and clear memory for every batch.
pub(super) struct SpareBatches {
    pub(super) config: LaneConfig,
    clock: Arc<dyn Clock>,
    batches: Mutex<Vec<QueuedBatch>>,
}

/// Most batches that are kept.
const SPARE_BATCHES_MAX: usize = 16;

impl SpareBatches {
    pub(super) fn new(config: LaneConfig, clock: Arc<dyn Clock>) -> Self {
        Self { config, clock, batches: Mutex::default() }
    }

    /// An empty batch.
    fn batch(&self) -> QueuedBatch {
        let opened_at = self.clock.instant();
        let spare = self.batches.lock().pop();
        let new = || QueuedBatch {
            votes: OpenBatch::default(),
            parts: Parts::default(),
            opened_at,
            traceparents: Vec::new(),
        };
        QueuedBatch { opened_at, ..spare.unwrap_or_else(new) }
    }

    /// Keeps the memory of a batch of which every vote is settled.
    pub(super) fn keep(&self, mut batch: QueuedBatch) {
        batch.votes.clear();
        batch.parts.clear();
        batch.traceparents.clear();
        let mut batches = self.batches.lock();
        if batches.len() < SPARE_BATCHES_MAX {
            batches.push(batch);
        }
    }
}

/// The messages to tell about the votes of a batch, in the order of the batch.
#[derive(Default)]
pub(super) struct Parts {
    /// Per vote, its index in its message.
    indices: Vec<u32>,
    /// Runs of votes of one message: the message, and where the run ends.
    runs: Vec<(Arc<dyn Settle>, usize)>,
}

impl Lane {
    pub(super) fn new(shard: ShardId, range: HashRange) -> Self {
        Self { shard, range, state: Mutex::default(), wake: Notify::new() }
    }

    /// Appends votes of one message.
    pub(super) fn append<'a>(
        &self,
        spare: &SpareBatches,
        message: &Arc<dyn Settle>,
        votes: impl Iterator<Item = &'a AcceptedVote<'a>>,
        accepted_at: Timestamp,
        traceparent: &str,
    ) {
        let mut state = self.state.lock();
        let batches_before = state.queue.len();
        let mut votes = votes.peekable();
        while votes.peek().is_some() {
            if state.queue.back().is_none_or(|batch| batch.is_full(&spare.config)) {
                state.queue.push_back(spare.batch());
            }
            let Some(batch) = state.queue.back_mut() else { break };
            while !batch.is_full(&spare.config)
                && let Some(vote) = votes.next()
            {
                let entry = batch.votes.entry(vote.poll_id, vote.option_id);
                batch.votes.push(entry, vote.user_id, vote.hash, accepted_at);
                batch.parts.indices.push(vote.index);
            }
            batch.parts.end_run(message);
            if !traceparent.is_empty() {
                batch.note_trace(traceparent);
            }
        }
        if state.queue.len() != batches_before || state.queue.front().is_some_and(|batch| batch.is_full(&spare.config))
        {
            drop(state);
            self.wake.notify_one();
        }
    }
}

impl QueuedBatch {
    /// Notes the trace of votes that were pushed.
    fn note_trace(&mut self, traceparent: &str) {
        if self.traceparents.len() < TRACES_MAX && !self.traceparents.iter().any(|known| **known == *traceparent) {
            self.traceparents.push(traceparent.into());
        }
    }

    pub(super) fn is_full(&self, config: &LaneConfig) -> bool {
        self.votes.len() >= config.batch_votes_max || self.votes.bytes() >= config.batch_bytes_max
    }

    /// Moves every vote, in order, to the lane that `lane_of` returns for its hash.
    pub(super) fn move_to<'a>(&self, spare: &SpareBatches, lane_of: impl Fn(u128) -> &'a Lane) {
        for ((message, index), vote) in self.parts.iter().zip(self.votes.votes()) {
            let (poll_id, option_id) = vote.choice;
            let accepted = AcceptedVote { poll_id, option_id, user_id: vote.user_id, hash: vote.hash, index };
            let lane = lane_of(vote.hash);
            lane.append(spare, message, iter::once(&accepted), vote.accepted_at, "");
            // It is no longer known which vote belongs to which trace.
            if !self.traceparents.is_empty() {
                let mut state = lane.state.lock();
                if let Some(batch) = state.queue.back_mut() {
                    self.traceparents.iter().for_each(|traceparent| batch.note_trace(traceparent));
                }
            }
        }
    }

    /// The votes for which `keep` holds.
    pub(super) fn retain(&self, keep: impl Fn(usize) -> bool) -> Self {
        let mut parts = Parts::default();
        for (at, (message, index)) in self.parts.iter().enumerate() {
            if keep(at) {
                parts.indices.push(index);
                parts.end_run(message);
            }
        }
        let votes = self.votes.subset(keep);
        Self { votes, parts, opened_at: self.opened_at, traceparents: self.traceparents.clone() }
    }
}

impl Parts {
    /// Ends a run: the votes that were pushed since the last run belong to this message.
    fn end_run(&mut self, message: &Arc<dyn Settle>) {
        let end = self.indices.len();
        match self.runs.last_mut() {
            Some((last, last_end)) if Arc::ptr_eq(last, message) => *last_end = end,
            _ => self.runs.push((message.clone(), end)),
        }
    }

    fn clear(&mut self) {
        self.indices.clear();
        self.runs.clear();
    }

    fn iter(&self) -> impl Iterator<Item = (&Arc<dyn Settle>, u32)> {
        let mut start = 0;
        self.runs.iter().flat_map(move |(message, end)| {
            let run = &self.indices[std::mem::replace(&mut start, *end)..*end];
            run.iter().map(move |&index| (message, index))
        })
    }

    /// Tells the messages that all votes have this outcome. Returns the number of votes.
    pub(super) fn settle_all(&self, outcome: Outcome) -> usize {
        let mut start = 0;
        for (message, end) in &self.runs {
            message.settle(&self.indices[std::mem::replace(&mut start, *end)..*end], outcome);
        }
        metrics::VOTES_SETTLED.add(outcome as usize, self.indices.len() as u64);
        self.indices.len()
    }

    /// Tells the messages about the votes for which there is an outcome. Returns the number of those votes.
    pub(super) fn settle(&self, outcome_of: impl Fn(usize) -> Option<Outcome>) -> usize {
        let (mut start, mut settled) = (0, 0);
        for (message, end) in &self.runs {
            // Nearly always the whole run has one outcome.
            let mut from = start;
            while from < *end {
                let outcome = outcome_of(from);
                let same = (from..*end).find(|&at| outcome_of(at) != outcome).unwrap_or(*end);
                if let Some(outcome) = outcome {
                    message.settle(&self.indices[from..same], outcome);
                    metrics::VOTES_SETTLED.add(outcome as usize, (same - from) as u64);
                    settled += same - from;
                }
                from = same;
            }
            start = *end;
        }
        settled
    }
}
