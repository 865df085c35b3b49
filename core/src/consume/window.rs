//! A window: a run of consecutive records of one shard, and which of its votes count.
//!
//! Owns the decision about each vote. Must never use the time of processing: the same records, dedup table, shard clock
//! and polls always give the same decision, in both groups and after any crash.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    HashRange, Poll, PollId, PollSource, SequenceNumber, ShardId, TimeBounds, Timestamp,
    consume::dedup::{DedupTable, DedupTableFull},
    mutation::{self, Mutation},
    port::Record,
    record::{
        batch::{self, Batch, BatchId, DecodeError, RecordBody},
        foreign,
    },
    vote_hash,
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
    /// It reached the stream more than L after it was accepted, or more than L before.
    Late,
    /// The poll takes its votes from the other source.
    WrongSource,
    /// The record, or one vote of an aggregate, cannot be read.
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

/// How many votes this process has discarded for a reason; [`Discard::Unreadable`] also counts whole records. A window
/// that is applied again is counted again.
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
    /// Number of votes that count.
    pub fn len(&self) -> usize {
        self.only.as_ref().map_or(self.batch.len(), Vec::len)
    }

    /// Whether no vote counts.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Indices of the votes that count, in ascending order.
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
    /// Votes of the ingest service.
    Batch(Arc<Batch>),
    /// Votes of another producer.
    Foreign(Foreign),
    /// No votes. Its arrival moves the shard clock.
    Marker,
    /// Bytes that cannot be read. Their arrival moves the shard clock, too.
    Unreadable,
}

/// Votes of another producer. Their position is their only identity, so the dedup table does not remember them.
#[derive(Clone, Debug)]
pub struct Foreign {
    /// The votes, accepted when the record arrived. Its id and its ranges mean nothing.
    batch: Arc<Batch>,
    /// Per vote, the hash by which it was routed. Empty for a plain record, which is in the right shard by itself.
    hashes: Vec<u128>,
    /// Indices of votes that cannot be read, ascending; the batch holds placeholders there.
    unreadable: Vec<u32>,
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
    /// Decodes a record. Never fails: the votes that cannot be read are discarded when the window is decided.
    pub fn decode(record: &Record) -> Self {
        let content = match batch::decode(&record.data) {
            Ok(RecordBody::Batch(batch)) => Content::Batch(Arc::new(batch)),
            Ok(RecordBody::Marker) => Content::Marker,
            Err(DecodeError::NotOurs) => match foreign::decode(&record.data) {
                Ok(votes) => {
                    let (batch, hashes, unreadable) = votes.into_parts(record.arrived_at);
                    Content::Foreign(Foreign { batch: Arc::new(batch), hashes, unreadable })
                }
                Err(error) => Self::unreadable(record, &error),
            },
            Err(error) => Self::unreadable(record, &error),
        };
        Self { sequence: record.sequence, arrived_at: record.arrived_at, content }
    }

    fn unreadable(record: &Record, error: &dyn std::error::Error) -> Content {
        tracing::warn!(sequence = %record.sequence, %error, "a record cannot be read and is discarded");
        Content::Unreadable
    }

    /// Number of votes.
    pub fn votes(&self) -> usize {
        match &self.content {
            Content::Batch(batch) => batch.len(),
            Content::Foreign(foreign) => foreign.batch.len(),
            Content::Marker | Content::Unreadable => 0,
        }
    }

    /// Rough size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        const VOTE_BYTES: usize = 16;
        /// A hash, and about the size of a dictionary entry: in a record of another producer each vote may have its
        /// own.
        const FOREIGN_VOTE_BYTES: usize = 128;
        const RECORD_BYTES: usize = 256;
        match &self.content {
            Content::Batch(batch) => RECORD_BYTES + batch.user_block.len() + batch.len() * VOTE_BYTES,
            Content::Foreign(Foreign { batch, .. }) => {
                RECORD_BYTES + batch.user_block.len() + batch.len() * (VOTE_BYTES + FOREIGN_VOTE_BYTES)
            }
            Content::Marker | Content::Unreadable => RECORD_BYTES,
        }
    }
}

/// What a shard's decisions depend on besides the stream: its state at a position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardState {
    /// Dedup table.
    pub dedup: DedupTable,
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
    /// Records that arrived before one of their votes was accepted, by more than the skew bound.
    pub early_records: u64,
    /// The state after the last record.
    pub state: ShardState,
}

/// The distinct polls that the votes of some records name.
pub fn polls_named(records: &[ReadRecord]) -> BTreeSet<&PollId> {
    let mut polls = BTreeSet::new();
    for record in records {
        if let Content::Batch(batch) | Content::Foreign(Foreign { batch, .. }) = &record.content {
            polls.extend(batch.dictionary.iter().map(|(poll, _)| poll));
        }
    }
    polls
}

/// Decides about each vote of consecutive records of a shard. `polls` holds all of [`polls_named`] that exist.
///
/// # Errors
///
/// If the dedup table would exceed its bound: the shard must stop.
pub fn decide(
    records: &[ReadRecord],
    mut state: ShardState,
    range: &HashRange,
    polls: &BTreeMap<PollId, Arc<Poll>>,
    bounds: &TimeBounds,
) -> Result<Decision, DedupTableFull> {
    let mut selected = Vec::new();
    let mut touched: BTreeMap<&PollId, &Arc<Poll>> = BTreeMap::new();
    let mut discards = Discards::default();
    let mut early_records = 0;
    for record in records {
        // Every record moves the clock, whatever it holds. Its own votes are judged after that.
        state.clock = state.clock.max(record.arrived_at);
        match &record.content {
            Content::Marker => {}
            Content::Unreadable => discards.add(Discard::Unreadable, 1),
            Content::Batch(batch) => {
                let latest = batch.accepted_at.iter().max();
                let is_early = latest.is_some_and(|at| *at > record.arrived_at.plus(bounds.clock_skew_max));
                early_records += u64::from(is_early);
                let votes = select(batch, &state, range, polls, bounds, &mut discards);
                if let Some(only) = votes {
                    let choices = Selected { sequence: record.sequence, batch: batch.clone(), only };
                    touch(&choices, polls, &mut touched);
                    selected.push(choices);
                }
                let covered = batch.ranges.intersection(range);
                state.dedup.record(batch.id.producer, &covered, batch.id.number, state.clock);
            }
            Content::Foreign(votes) => {
                if let Some(only) = select_foreign(votes, state.clock, range, polls, bounds, &mut discards) {
                    let choices = Selected { sequence: record.sequence, batch: votes.batch.clone(), only };
                    touch(&choices, polls, &mut touched);
                    selected.push(choices);
                }
            }
        }
        // Expire before the bound is checked: expired entries do not count.
        state.dedup.expire(state.clock, bounds);
        state.dedup.check()?;
    }
    let polls = touched.into_values().cloned().collect();
    Ok(Decision { selected, polls, discards, early_records, state })
}

/// Notes the polls of the votes that count.
fn touch<'a>(
    selected: &Selected,
    polls: &'a BTreeMap<PollId, Arc<Poll>>,
    touched: &mut BTreeMap<&'a PollId, &'a Arc<Poll>>,
) {
    let dictionary = &selected.batch.dictionary;
    let mut seen = vec![false; dictionary.len()];
    // Usually all polls are found within a few votes.
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
    // Records in our format come from the ingest service.
    let entries = entries(batch, PollSource::Ingest, polls);
    let BatchId { producer, number } = batch.id;
    let check_range = !batch.ranges.within(range);
    let check_duplicate = state.dedup.may_hold_duplicate(producer, &batch.ranges, number);
    if !check_range && !check_duplicate && all_count(batch, &entries, state.clock, bounds) {
        return Some(None);
    }

    let late_after = late_after(bounds);
    let judge = |index: usize| {
        let (choice, accepted_at) = (batch.choices[index] as usize, batch.accepted_at[index]);
        if check_range || check_duplicate {
            let hash = vote_hash(batch.dictionary[choice].0.as_str(), batch.user_id(index));
            if !range.contains(hash) {
                return Err(Discard::WrongShard);
            }
            if state.dedup.is_duplicate(producer, hash, number) {
                return Err(Discard::DuplicateOrSuperseded);
            }
        }
        in_time(entries[choice]?, accepted_at, state.clock, late_after)
    };
    judge_each(batch.len(), judge, discards)
}

/// The votes of another producer that count, as [`select`] says. There is no dedup table for them: a record that is in
/// the stream twice has two positions and is two votes.
#[expect(clippy::option_option, reason = "the inner one is the field of `Selected`")]
fn select_foreign(
    votes: &Foreign,
    clock: Timestamp,
    range: &HashRange,
    polls: &BTreeMap<PollId, Arc<Poll>>,
    bounds: &TimeBounds,
    discards: &mut Discards,
) -> Option<Option<Vec<u32>>> {
    let (batch, late_after) = (&votes.batch, late_after(bounds));
    let entries = entries(batch, PollSource::Stream, polls);
    let mut unreadable = votes.unreadable.iter().peekable();
    let judge = |index: usize| {
        if unreadable.next_if(|&&next| next as usize == index).is_some() {
            return Err(Discard::Unreadable);
        }
        // If some votes of an aggregate are outside the range of the shard that stored it, the producer's library sends
        // exactly those votes again.
        if votes.hashes.get(index).is_some_and(|&hash| !range.contains(hash)) {
            return Err(Discard::WrongShard);
        }
        in_time(entries[batch.choices[index] as usize]?, batch.accepted_at[index], clock, late_after)
    };
    judge_each(batch.len(), judge, discards)
}

/// Per dictionary entry, when its poll is open, or why no vote for it counts.
fn entries(
    batch: &Batch,
    source: PollSource,
    polls: &BTreeMap<PollId, Arc<Poll>>,
) -> Vec<Result<(Timestamp, Timestamp), Discard>> {
    let entry = |(poll, option): &(PollId, Arc<str>)| {
        let poll = polls.get(poll).ok_or(Discard::UnknownPoll)?;
        if poll.source != source {
            return Err(Discard::WrongSource);
        }
        poll.option_index(option).ok_or(Discard::UnknownPoll)?;
        Ok((poll.opens_at, poll.closes_at))
    };
    batch.dictionary.iter().map(entry).collect()
}

/// L, from the time limits of the protocol.
fn late_after(bounds: &TimeBounds) -> std::time::Duration {
    if mutation::is_active(Mutation::NoLateRule) { std::time::Duration::MAX / 2 } else { bounds.late_after() }
}

/// Checks that a vote was accepted while its poll was open, and stored soon enough after that.
fn in_time(
    (opens_at, closes_at): (Timestamp, Timestamp),
    accepted_at: Timestamp,
    clock: Timestamp,
    late_after: std::time::Duration,
) -> Result<(), Discard> {
    if accepted_at < opens_at || accepted_at >= closes_at {
        return Err(Discard::Closed);
    }
    // Not long after it was accepted; and not long before, which a wrong clock can cause. So all copies of a record
    // that counts lie within 2 L of each other, and the dedup table is kept for that long.
    if clock > accepted_at.plus(late_after) || accepted_at > clock.plus(late_after) {
        return Err(Discard::Late);
    }
    Ok(())
}

/// Judges the votes one by one, adds those that do not count to the discards, and returns the others as [`select`]
/// does.
#[expect(clippy::option_option, reason = "the inner one is the field of `Selected`")]
fn judge_each(
    votes: usize,
    mut judge: impl FnMut(usize) -> Result<(), Discard>,
    discards: &mut Discards,
) -> Option<Option<Vec<u32>>> {
    let mut only = Vec::new();
    for index in 0..votes {
        match judge(index) {
            Ok(()) => only.push(index as u32),
            Err(reason) => discards.add(reason, 1),
        }
    }
    match only.len() {
        0 => None,
        all if all == votes => Some(None),
        _ => Some(Some(only)),
    }
}

/// Whether all votes count, as far as it can be seen without a look at each vote.
fn all_count(
    batch: &Batch,
    entries: &[Result<(Timestamp, Timestamp), Discard>],
    clock: Timestamp,
    bounds: &TimeBounds,
) -> bool {
    let mut accepted = batch.accepted_at.iter();
    let Some(&first) = accepted.next() else { return false };
    let (earliest, latest) = accepted.fold((first, first), |(min, max), &at| (min.min(at), max.max(at)));
    clock <= earliest.plus(late_after(bounds))
        && latest <= clock.plus(late_after(bounds))
        && entries.iter().all(|entry| entry.is_ok_and(|(opens, closes)| opens <= earliest && latest < closes))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        HashRanges, PollOption,
        record::{
            batch::OpenBatch,
            foreign::{key_hash, tests as foreign_tests},
        },
    };

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
        Batch {
            producer: u128,
            number: u64,
            range: usize,
            votes: Vec<Vote>,
        },
        /// A vote of another producer.
        Json(Vote),
        /// Several, each readable or not, some with a hash of their own.
        Aggregate(Vec<(Vote, bool, Option<u128>)>),
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
        let foreign =
            || (vote(), any::<bool>()).prop_map(|(vote, ours)| Vote { poll: if ours { vote.poll } else { 2 }, ..vote });
        let part = (foreign(), prop::bool::weighted(0.9), prop::option::of(any::<u128>()));
        let aggregate = prop::collection::vec(part, 0..6).prop_map(Kind::Aggregate);
        let json = foreign().prop_map(Kind::Json);
        let kind =
            prop_oneof![1 => Just(Kind::Marker), 1 => Just(Kind::Unreadable), 8 => batch, 2 => json, 2 => aggregate];
        // Arrival times may run backwards, at times by more than L.
        let passed = prop_oneof![8 => -1_000..9_000i64, 1 => -9_000..0i64];
        (passed, kind)
    }

    fn foreign_record(data: Vec<u8>) -> Record {
        let (sequence, arrived_at) = (SequenceNumber::from_u64(1), Timestamp(0));
        Record { sequence, arrived_at, partition_key: String::new(), data: data.into() }
    }

    fn json(vote: &Vote) -> Vec<u8> {
        foreign_tests::json(POLLS[vote.poll], &format!("user {}", vote.user), vote.option)
    }

    /// Votes are accepted around `now`; those outside the batch's ranges are left out, as no lane would send them.
    fn build(sequence: u64, now: i64, kind: &Kind) -> ReadRecord {
        let read = |data| {
            let record = Record { arrived_at: Timestamp(now), ..foreign_record(data) };
            ReadRecord::decode(&record).content
        };
        let content = match kind {
            Kind::Json(vote) => read(json(vote)),
            Kind::Aggregate(votes) => {
                let user = |vote: &Vote| format!("user {}", vote.user);
                let users: Vec<_> = votes.iter().map(|(vote, ..)| user(vote)).collect();
                let part = |((vote, good, hash), user): (&(Vote, bool, Option<u128>), _)| {
                    (user, *hash, if *good { json(vote) } else { b"no vote".to_vec() })
                };
                let parts: Vec<_> = votes.iter().zip(users.iter().map(String::as_str)).map(part).collect();
                read(foreign_tests::aggregate(&parts))
            }
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

    /// One vote after the other, with a number per hash, as in the model of the protocol. Hashes that occur are those
    /// of the users; others need none.
    fn naive(
        records: &[ReadRecord],
        kinds: &[Kind],
        range: &HashRange,
    ) -> (Vec<(SequenceNumber, u32)>, HashMap<Discard, u64>) {
        let (polls, mut clock) = (polls(), Timestamp::ZERO);
        let mut dedup: HashMap<(u128, u128), (u64, Timestamp)> = HashMap::new();
        let hashes: Vec<u128> =
            POLLS.iter().flat_map(|poll| (0..20).map(move |user| vote_hash(poll, format!("user {user}")))).collect();
        let (mut counting, mut discards) = (Vec::new(), HashMap::new());
        let judge_foreign = |vote: &Vote, at: Timestamp, clock: Timestamp| {
            let poll = polls.get(&PollId::new(POLLS[vote.poll]).unwrap()).ok_or(Discard::UnknownPoll)?;
            if poll.source == PollSource::Ingest {
                Err(Discard::WrongSource)
            } else if poll.option_index(vote.option).is_none() {
                Err(Discard::UnknownPoll)
            } else if at < poll.opens_at || at >= poll.closes_at {
                Err(Discard::Closed)
            } else if clock > at.plus(BOUNDS.late_after()) {
                Err(Discard::Late)
            } else {
                Ok(())
            }
        };
        for (record, kind) in records.iter().zip(kinds) {
            clock = clock.max(record.arrived_at);
            let mut discard = |reason| *discards.entry(reason).or_default() += 1;
            match &record.content {
                Content::Marker => {}
                Content::Unreadable => discard(Discard::Unreadable),
                Content::Foreign(_) => {
                    let votes = match kind {
                        Kind::Json(vote) => vec![(vote, true, None)],
                        Kind::Aggregate(votes) => votes
                            .iter()
                            .map(|(vote, good, hash)| {
                                let routed = hash.unwrap_or_else(|| key_hash(format!("user {}", vote.user).as_bytes()));
                                (vote, *good, Some(routed))
                            })
                            .collect(),
                        Kind::Marker | Kind::Unreadable | Kind::Batch { .. } => panic!("{kind:?} is not foreign"),
                    };
                    for ((vote, good, routed), index) in votes.into_iter().zip(0u32..) {
                        let verdict = if !good {
                            Err(Discard::Unreadable)
                        } else if routed.is_some_and(|hash| !range.contains(hash)) {
                            Err(Discard::WrongShard)
                        } else {
                            judge_foreign(vote, record.arrived_at, clock)
                        };
                        match verdict {
                            Ok(()) => counting.push((record.sequence, index)),
                            Err(reason) => discard(reason),
                        }
                    }
                }
                Content::Batch(batch) => {
                    let BatchId { producer, number } = batch.id;
                    for index in 0..batch.len() {
                        let (poll, option) = &batch.dictionary[batch.choices[index] as usize];
                        let at = batch.accepted_at[index];
                        let hash = vote_hash(poll.as_str(), batch.user_id(index));
                        if !range.contains(hash) {
                            discard(Discard::WrongShard);
                        } else if dedup.get(&(producer, hash)).is_some_and(|kept| kept.0 >= number) {
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
                        let kept = dedup.entry((producer, hash)).or_insert((0, clock));
                        *kept = (kept.0.max(number), clock);
                    }
                }
            }
            dedup.retain(|_, kept| kept.1.plus(BOUNDS.memory_life()) >= clock);
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
            let kinds: Vec<Kind> = records.iter().map(|(_, kind)| kind.clone()).collect();
            let records: Vec<ReadRecord> = (1..).zip(&records).map(|(sequence, (passed, kind))| {
                now += passed;
                build(sequence, now, kind)
            }).collect();
            let (expected, expected_discards) = naive(&records, &kinds, &range);

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
                let dedup = DedupTable::from_stored(&decision.state.dedup.to_stored());
                state = ShardState { dedup, clock: decision.state.clock };
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
        // Accepted by a clock that was far ahead.
        let decision = decide_at(11_000, &[11_000 + late_after, 11_001 + late_after]);
        assert_eq!(decision.selected[0].only, Some(vec![0]));
        assert_eq!(decision.discards.get(Discard::Late), 1);
    }

    #[test]
    fn a_vote_of_another_producer_counts_from_its_arrival_as_often_as_it_is_put() {
        let json = foreign_tests::json("s", "u", "x");
        let read = |sequence, at, data: &[u8]| ReadRecord {
            sequence: SequenceNumber::from_u64(sequence),
            ..ReadRecord::decode(&Record { arrived_at: Timestamp(at), ..foreign_record(data.to_vec()) })
        };
        let records = [read(1, 5_000, &json), read(2, 5_000, &json), read(3, 100_000, &json), read(4, 100_000, b"{}")];
        let decision = decide(&records, ShardState::default(), &HashRange::ALL, &polls(), &BOUNDS).unwrap();
        let counting: Vec<_> = decision.selected.iter().map(|votes| (votes.sequence, votes.only.clone())).collect();
        assert_eq!(counting, [(SequenceNumber::from_u64(1), None), (SequenceNumber::from_u64(2), None)]);
        assert_eq!((decision.discards.get(Discard::Closed), decision.discards.get(Discard::Unreadable)), (1, 1));
        assert_eq!(decision.state.dedup, DedupTable::default());
    }

    #[test]
    fn records_that_arrived_before_their_votes_were_accepted_are_counted() {
        let bounds = TimeBounds { clock_skew_max: std::time::Duration::from_millis(500), ..BOUNDS };
        let early = |accepted_after: i64| {
            // `build` accepts votes 4 s before what is given.
            let vote = Vote { poll: 0, option: "x", user: 1, accepted_at: 4_000 + accepted_after };
            let record = build(1, 50_000, &Kind::Batch { producer: 1, number: 1, range: 0, votes: vec![vote] });
            let Content::Batch(batch) = &record.content else { panic!("a batch was built") };
            assert_eq!(batch.accepted_at, [Timestamp(50_000 + accepted_after)]);
            let decision = decide(&[record], ShardState::default(), &HashRange::ALL, &polls(), &bounds).unwrap();
            assert_eq!(decision.selected.len(), 1, "it counts all the same");
            decision.early_records
        };
        assert_eq!([early(-100), early(500), early(501)], [0, 0, 1]);
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
