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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{batch::OpenBatch, poll::PollOption, routing::HashRanges};

    const BOUNDS: TimeBounds = TimeBounds::ONE_MACHINE;
    /// `s` takes its votes from the stream, `n` does not exist.
    const POLLS: [&str; 4] = ["p", "q", "s", "n"];
    const SHARD: HashRange = HashRange { start: 0, end: u128::MAX / 4 * 3 };

    fn polls() -> BTreeMap<PollId, Arc<Poll>> {
        let poll = |id, opens, closes, source| {
            let options = ["x", "y"].map(|id| PollOption { id: id.into(), title: String::new() }).to_vec();
            let id = PollId::new(id).unwrap();
            Poll::new(id.clone(), String::new(), options, Timestamp(opens), Timestamp(closes), source, 1)
                .map(|poll| (id, Arc::new(poll)))
                .unwrap()
        };
        BTreeMap::from([
            poll("p", 0, 100_000, PollSource::Ingest),
            poll("q", 10_000, 20_000, PollSource::Ingest),
            poll("s", 0, 100_000, PollSource::Stream),
        ])
    }

    #[derive(Clone, Debug)]
    struct Vote {
        poll: usize,
        option: &'static str,
        user: u8,
        accepted_at: i64,
    }

    #[derive(Clone, Debug)]
    enum Kind {
        Marker,
        Unreadable,
        Batch { producer: u128, number: u64, range: usize, votes: Vec<Vote> },
    }

    fn ranges(index: usize) -> HashRanges {
        let parts = HashRange::split_evenly(4);
        match index {
            0 => HashRange::ALL.into(),
            1 => SHARD.into(),
            index => parts[index - 2].into(),
        }
    }

    fn vote() -> impl Strategy<Value = Vote> {
        let poll = prop_oneof![8 => Just(0usize), 2 => Just(1), 1 => Just(2), 1 => Just(3)];
        let option = prop_oneof![5 => Just("x"), 5 => Just("y"), 1 => Just("z")];
        (poll, option, 0..20u8, -3_000..3_000i64).prop_map(|(poll, option, user, accepted_at)| Vote {
            poll,
            option,
            user,
            accepted_at,
        })
    }

    fn record() -> impl Strategy<Value = (i64, Kind)> {
        let batch = (0..2u128, 1..6u64, 0..6usize, prop::collection::vec(vote(), 0..6))
            .prop_map(|(producer, number, range, votes)| Kind::Batch { producer, number, range, votes });
        // Arrival times may run backwards.
        (-1_000..9_000i64, prop_oneof![1 => Just(Kind::Marker), 1 => Just(Kind::Unreadable), 8 => batch])
    }

    /// Votes are accepted around `now`; those outside the batch's ranges are left out, as no lane would send them.
    fn build(sequence: u64, now: i64, kind: &Kind) -> ReadRecord {
        let content = match kind {
            Kind::Marker => Content::Marker,
            Kind::Unreadable => Content::Unreadable,
            Kind::Batch { producer, number, range, votes } => {
                let (mut open, ranges) = (OpenBatch::default(), ranges(*range));
                for vote in votes {
                    let (poll, user) = (POLLS[vote.poll], format!("user {}", vote.user));
                    let hash = vote_hash(poll, &user);
                    if ranges.contains(hash) {
                        let entry = open.entry(&PollId::new(poll).unwrap(), &vote.option.into());
                        open.push(entry, &user, hash, Timestamp(now - 4_000 + vote.accepted_at));
                    }
                }
                let id = BatchId { producer: *producer, number: *number };
                Content::Batch(Arc::new(open.to_batch(id, ranges, String::new())))
            }
        };
        ReadRecord { sequence: SequenceNumber::from_u64(sequence), arrived_at: Timestamp(now), content }
    }

    /// One vote after the other, with a memory per hash, as in the model of the protocol. Hashes that occur are those of
    /// the users; others need no memory.
    fn naive(records: &[ReadRecord], range: &HashRange) -> (Vec<(SequenceNumber, u32)>, HashMap<Discard, u64>) {
        let (polls, mut clock) = (polls(), Timestamp::ZERO);
        let mut memory: HashMap<(u128, u128), (u64, Timestamp)> = HashMap::new();
        let hashes: Vec<u128> =
            POLLS.iter().flat_map(|poll| (0..20).map(move |user| vote_hash(poll, &format!("user {user}")))).collect();
        let (mut counting, mut discards) = (Vec::new(), HashMap::new());
        for record in records {
            clock = clock.max(record.arrived_at);
            let mut discard = |reason| *discards.entry(reason).or_default() += 1;
            match &record.content {
                Content::Marker => {}
                Content::Unreadable => discard(Discard::Unreadable),
                Content::Batch(batch) => {
                    let BatchId { producer, number } = batch.id;
                    for index in 0..batch.len() {
                        let (poll, option) = &batch.dictionary[batch.choices[index] as usize];
                        let at = batch.accepted_at[index];
                        let hash = vote_hash(poll.as_str(), batch.user_id(index));
                        if !range.contains(hash) {
                            discard(Discard::WrongShard);
                        } else if memory.get(&(producer, hash)).is_some_and(|kept| kept.0 >= number) {
                            discard(Discard::DuplicateOrSuperseded);
                        } else if let Some(poll) = polls.get(poll) {
                            if poll.source == PollSource::Stream {
                                discard(Discard::WrongSource);
                            } else if poll.option_index(option).is_none() {
                                discard(Discard::UnknownPoll);
                            } else if at < poll.opens_at || at >= poll.closes_at {
                                discard(Discard::Closed);
                            } else if clock > at.plus(BOUNDS.late_after()) {
                                discard(Discard::Late);
                            } else {
                                counting.push((record.sequence, index as u32));
                            }
                        } else {
                            discard(Discard::UnknownPoll);
                        }
                    }
                    for &hash in hashes.iter().filter(|&&hash| range.contains(hash) && batch.ranges.contains(hash)) {
                        let kept = memory.entry((producer, hash)).or_insert((0, clock));
                        *kept = (kept.0.max(number), clock);
                    }
                }
            }
            memory.retain(|_, kept| kept.1.plus(BOUNDS.memory_life()) >= clock);
        }
        (counting, discards)
    }

    proptest! {
        /// Whatever the windows are, and through the stored form between them.
        #[test]
        fn decides_as_one_vote_after_the_other(
            records in prop::collection::vec(record(), 1..25),
            sizes in prop::collection::vec(1..6usize, 25),
            whole: bool,
        ) {
            let range = if whole { HashRange::ALL } else { SHARD };
            let mut now = 10_000;
            let records: Vec<ReadRecord> = (1..).zip(&records).map(|(sequence, (passed, kind))| {
                now += passed;
                build(sequence, now, kind)
            }).collect();
            let (expected, expected_discards) = naive(&records, &range);

            let (polls, mut state, mut left) = (polls(), ShardState::default(), &records[..]);
            let (mut counting, mut discards) = (Vec::new(), Discards::default());
            for size in sizes {
                let (window, rest) = left.split_at(size.min(left.len()));
                left = rest;
                let decision = decide(window, state, &range, &polls, &BOUNDS).unwrap();
                for selected in &decision.selected {
                    prop_assert!(selected.indices().next().is_some());
                    for index in selected.indices() {
                        counting.push((selected.sequence, index as u32));
                        let (poll, _) = &selected.batch.dictionary[selected.batch.choices[index] as usize];
                        prop_assert!(decision.polls.iter().any(|carried| carried.id == *poll));
                    }
                }
                for reason in Discard::ALL {
                    discards.add(reason, decision.discards.get(reason));
                }
                let memory = ProducerMemory::from_stored(&decision.state.memory.to_stored());
                state = ShardState { memory, clock: decision.state.clock };
            }
            prop_assert_eq!(counting, expected);
            for reason in Discard::ALL {
                prop_assert_eq!(discards.get(reason), expected_discards.get(&reason).copied().unwrap_or(0), "{:?}", reason);
            }
        }
    }

    #[test]
    fn the_edges_of_a_poll_and_of_lateness() {
        let vote = |user, accepted_at| Vote { poll: 1, option: "x", user, accepted_at };
        let decide_at = |now: i64, accepted: &[i64]| {
            let votes = (0..).zip(accepted).map(|(user, at)| vote(user, at - now + 4_000)).collect();
            let record = build(1, now, &Kind::Batch { producer: 1, number: 1, range: 0, votes });
            decide(&[record], ShardState::default(), &HashRange::ALL, &polls(), &BOUNDS).unwrap()
        };
        let decision = decide_at(20_000, &[9_999, 14_000, 19_999, 20_000]);
        assert_eq!(decision.selected[0].only, Some(vec![1, 2]));
        assert_eq!(decision.discards.get(Discard::Closed), 2);
        let late_after = BOUNDS.late_after().as_millis() as i64;
        let decision = decide_at(19_000 + late_after, &[18_999, 19_000]);
        assert_eq!(decision.selected[0].only, Some(vec![1]));
        assert_eq!(decision.discards.get(Discard::Late), 1);
        assert_eq!(decide_at(20_000, &[14_000, 19_999]).selected[0].only, None);
    }

    #[test]
    fn discards_are_counted_for_the_process() {
        let before = Discard::ALL.map(discarded_total);
        let mut discards = Discards::default();
        Discard::ALL.into_iter().zip(1..).for_each(|(reason, count)| discards.add(reason, count));
        discards.publish();
        for ((reason, before), count) in Discard::ALL.into_iter().zip(before).zip(1..) {
            assert!(discarded_total(reason) >= before + count, "{}", reason.as_str());
        }
    }
}
