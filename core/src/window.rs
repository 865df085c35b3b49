//! A window: a run of consecutive records of one shard, and which of its votes count.
//!
//! Owns the decision about each vote. Must never look at the time of processing: the same records, producer memory, shard
//! clock and polls always give the same decision, in both groups and after any crash.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    batch::{self, Batch, BatchId, RecordBody},
    memory::{MemoryFull, ProducerMemory},
    poll::{Poll, PollId, PollSource},
    port::Record,
    routing::{HashRange, ShardId, vote_hash},
    sequence::SequenceNumber,
    time::{TimeBounds, Timestamp},
};

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

impl Discard {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::UnknownPoll,
        Self::Closed,
        Self::DuplicateOrSuperseded,
        Self::WrongShard,
        Self::Late,
        Self::WrongSource,
        Self::Unreadable,
    ];

    /// Label of the metric. Never changes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownPoll => "unknown_poll",
            Self::Closed => "closed",
            Self::DuplicateOrSuperseded => "duplicate_or_superseded",
            Self::WrongShard => "wrong_shard",
            Self::Late => "late",
            Self::WrongSource => "wrong_source",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Discards of this process since it started.
static DISCARDED: [AtomicU64; Discard::ALL.len()] = [const { AtomicU64::new(0) }; Discard::ALL.len()];

/// How many votes (for [`Discard::Unreadable`]: records) this process has discarded for a reason. A window that is applied
/// again is counted again.
pub fn discarded_total(reason: Discard) -> u64 {
    DISCARDED[reason as usize].load(Ordering::Relaxed)
}

/// Number of discarded votes per reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discards([u64; Discard::ALL.len()]);

impl Discards {
    /// How many were discarded for a reason.
    pub fn get(&self, reason: Discard) -> u64 {
        self.0[reason as usize]
    }

    fn add(&mut self, reason: Discard, count: u64) {
        self.0[reason as usize] += count;
    }

    /// Adds these to the counters of the process.
    pub fn publish(&self) {
        for (total, count) in DISCARDED.iter().zip(self.0) {
            total.fetch_add(count, Ordering::Relaxed);
        }
    }
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

/// What a record holds, decoded.
#[derive(Clone, Debug)]
pub enum Content {
    /// Votes.
    Batch(Arc<Batch>),
    /// Nothing; its arrival moves the clock.
    Marker,
    /// Nobody knows; its arrival moves the clock.
    Unreadable,
}

/// A record of the stream, decoded.
#[derive(Clone, Debug)]
pub struct ReadRecord {
    /// Its sequence number.
    pub sequence: SequenceNumber,
    /// When it arrived at the stream.
    pub arrived_at: Timestamp,
    /// What it holds.
    pub content: Content,
}

impl ReadRecord {
    /// Decodes a record. Never fails: what cannot be read is discarded when its turn comes.
    pub fn decode(record: &Record) -> Self {
        let content = match batch::decode(&record.data) {
            Ok(RecordBody::Batch(batch)) => Content::Batch(Arc::new(batch)),
            Ok(RecordBody::Marker) => Content::Marker,
            Err(error) => {
                tracing::warn!(sequence = %record.sequence, %error, "a record cannot be read and is discarded");
                Content::Unreadable
            }
        };
        Self { sequence: record.sequence, arrived_at: record.arrived_at, content }
    }

    /// Number of votes.
    pub fn votes(&self) -> usize {
        match &self.content {
            Content::Batch(batch) => batch.len(),
            Content::Marker | Content::Unreadable => 0,
        }
    }

    /// Rough size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        const VOTE_BYTES: usize = 16;
        const RECORD_BYTES: usize = 256;
        match &self.content {
            Content::Batch(batch) => RECORD_BYTES + batch.user_block.len() + batch.len() * VOTE_BYTES,
            Content::Marker | Content::Unreadable => RECORD_BYTES,
        }
    }
}

/// What a shard's decisions depend on beside the stream: its state at a position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardState {
    /// Producer memory.
    pub memory: ProducerMemory,
    /// Shard clock: the largest arrival timestamp so far.
    pub clock: Timestamp,
}

/// Which votes of some records count.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Batches with votes that count, in stream order.
    pub selected: Vec<Selected>,
    /// Every poll that a selected vote names.
    pub polls: Vec<Arc<Poll>>,
    /// How many votes do not count, and why.
    pub discards: Discards,
    /// The state after the last record.
    pub state: ShardState,
}

/// The distinct polls that the votes of some records name.
pub fn polls_named(records: &[ReadRecord]) -> BTreeSet<&PollId> {
    let mut polls = BTreeSet::new();
    for record in records {
        if let Content::Batch(batch) = &record.content {
            polls.extend(batch.dictionary.iter().map(|(poll, _)| poll));
        }
    }
    polls
}

/// Decides about each vote of consecutive records of a shard. `polls` holds all of [`polls_named`] that exist.
///
/// # Errors
///
/// If the producer memory would exceed its bound: the shard must stop.
pub fn decide(
    records: &[ReadRecord],
    mut state: ShardState,
    range: &HashRange,
    polls: &BTreeMap<PollId, Arc<Poll>>,
    bounds: &TimeBounds,
) -> Result<Decision, MemoryFull> {
    let mut selected = Vec::new();
    let mut touched: BTreeMap<&PollId, &Arc<Poll>> = BTreeMap::new();
    let mut discards = Discards::default();
    for record in records {
        // Every record moves the clock, whatever it holds, before its own votes are judged by it.
        state.clock = state.clock.max(record.arrived_at);
        match &record.content {
            Content::Marker => {}
            Content::Unreadable => discards.add(Discard::Unreadable, 1),
            Content::Batch(batch) => {
                let votes = select(batch, &state, range, polls, bounds, &mut discards);
                if let Some(only) = votes {
                    let choices = Selected { sequence: record.sequence, batch: batch.clone(), only };
                    touch(&choices, polls, &mut touched);
                    selected.push(choices);
                }
                let covered = batch.ranges.intersection(range);
                state.memory.record(batch.id.producer, &covered, batch.id.number, state.clock);
            }
        }
        // Before the bound is checked: what has expired does not count.
        state.memory.expire(state.clock, bounds);
        state.memory.check()?;
    }
    let polls = touched.into_values().cloned().collect();
    Ok(Decision { selected, polls, discards, state })
}

/// Notes the polls of the votes that count.
fn touch<'a>(
    selected: &Selected,
    polls: &'a BTreeMap<PollId, Arc<Poll>>,
    touched: &mut BTreeMap<&'a PollId, &'a Arc<Poll>>,
) {
    let dictionary = &selected.batch.dictionary;
    let mut seen = vec![false; dictionary.len()];
    // Usually all polls are seen within a few votes.
    let mut left = dictionary.len();
    for index in selected.indices() {
        let choice = selected.batch.choices[index] as usize;
        if !std::mem::replace(&mut seen[choice], true) {
            if let Some((id, poll)) = polls.get_key_value(&dictionary[choice].0) {
                touched.insert(id, poll);
            }
            left -= 1;
            if left == 0 {
                return;
            }
        }
    }
}

/// The votes of a batch that count: `None` if there is none, `Some(None)` if all do.
#[expect(clippy::option_option, reason = "the inner one is the field of `Selected`")]
fn select(
    batch: &Batch,
    state: &ShardState,
    range: &HashRange,
    polls: &BTreeMap<PollId, Arc<Poll>>,
    bounds: &TimeBounds,
    discards: &mut Discards,
) -> Option<Option<Vec<u32>>> {
    if batch.is_empty() {
        return None;
    }
    let entries: Vec<Result<(Timestamp, Timestamp), Discard>> = batch
        .dictionary
        .iter()
        .map(|(poll, option)| {
            let poll = polls.get(poll).ok_or(Discard::UnknownPoll)?;
            // Records of our format come from ingest.
            match poll.source {
                PollSource::Ingest => {}
                PollSource::Stream => return Err(Discard::WrongSource),
            }
            poll.option_index(option).ok_or(Discard::UnknownPoll)?;
            Ok((poll.opens_at, poll.closes_at))
        })
        .collect();
    let BatchId { producer, number } = batch.id;
    let check_range = !batch.ranges.within(range);
    let check_duplicate = state.memory.may_hold_duplicate(producer, &batch.ranges, number);
    if !check_range && !check_duplicate && all_count(batch, &entries, state.clock, bounds) {
        return Some(None);
    }

    let late_after = bounds.late_after();
    let judge = |index: usize| {
        let (choice, accepted_at) = (batch.choices[index] as usize, batch.accepted_at[index]);
        if check_range || check_duplicate {
            let hash = vote_hash(batch.dictionary[choice].0.as_str(), batch.user_id(index));
            if !range.contains(hash) {
                return Err(Discard::WrongShard);
            }
            if state.memory.is_duplicate(producer, hash, number) {
                return Err(Discard::DuplicateOrSuperseded);
            }
        }
        let (opens_at, closes_at) = entries[choice]?;
        if accepted_at < opens_at || accepted_at >= closes_at {
            return Err(Discard::Closed);
        }
        if state.clock > accepted_at.plus(late_after) {
            return Err(Discard::Late);
        }
        Ok(())
    };
    let mut only = Vec::new();
    for index in 0..batch.len() {
        match judge(index) {
            Ok(()) => only.push(index as u32),
            Err(reason) => discards.add(reason, 1),
        }
    }
    match only.len() {
        0 => None,
        all if all == batch.len() => Some(None),
        _ => Some(Some(only)),
    }
}

/// Whether it is plain, without a look at single votes, that all count.
fn all_count(
    batch: &Batch,
    entries: &[Result<(Timestamp, Timestamp), Discard>],
    clock: Timestamp,
    bounds: &TimeBounds,
) -> bool {
    let mut accepted = batch.accepted_at.iter();
    let Some(&first) = accepted.next() else { return false };
    let (earliest, latest) = accepted.fold((first, first), |(min, max), &at| (min.min(at), max.max(at)));
    clock <= earliest.plus(bounds.late_after())
        && entries.iter().all(|entry| entry.is_ok_and(|(opens, closes)| opens <= earliest && latest < closes))
}
