//! All ports in memory, with faults on request.
//!
//! It passes the contract suite, so what a test finds with it holds for every engine that passes, too. Clones share one
//! memory. Tests can read and set what is stored without the ports.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use votestream_core::{
    Clock, HashRange, Poll, PollId, PollOption, PollSource, Position, SequenceNumber, ShardId, Timestamp,
    consume::{
        group::{Applier, ApplierFactory, ApplyError},
        tally::{self, Counted},
        window::Window,
    },
    model::poll::FinalResult,
    port::*,
    record::batch::{self, BatchId, OpenBatch},
    vote_hash,
};

/// Most records that one read returns. Few, so that readers must continue in the middle.
const READ_RECORDS_MAX: usize = 3;
/// How long a read waits for a record.
const READ_WAIT: Duration = Duration::from_millis(100);
/// How often a condition is checked, and how long it may take. With a paused clock this costs no real time.
const LOOK_EVERY: Duration = Duration::from_millis(7);
const PATIENCE: Duration = Duration::from_secs(3_600);
/// The time at which tokio's clock begins, unless a test sets the time itself.
const EPOCH: Timestamp = Timestamp(1_700_000_000_000);

/// Position and sums.
type StoredTally = (SequenceNumber, BTreeMap<Arc<str>, i64>);

#[derive(Default)]
struct State {
    shards: Vec<(Shard, Vec<Record>)>,
    sequence: u64,
    /// How many shards there have been.
    made: usize,
    /// The last record of each shard that the stream has dropped.
    dropped: BTreeMap<ShardId, SequenceNumber>,
    polls: BTreeMap<PollId, Poll>,
    votes: HashMap<(PollId, Arc<str>), StoredVote>,
    tallies: BTreeMap<(PollId, Group, ShardId), StoredTally>,
    rows: BTreeMap<(Group, ShardId), ShardRow>,
}

/// All engines. Clones share them.
#[derive(Clone)]
pub struct Memory {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    controls: Arc<Controls>,
}

/// What a test sets, and what it counts.
struct Controls {
    /// Probability that a call fails, with or without effect.
    faults: Mutex<(StdRng, f64)>,
    /// How many of the next calls fail; see [`Memory::fail_next`].
    failures: AtomicU32,
    started: Instant,
    /// The time, if a test has set it.
    now: Mutex<Option<Timestamp>>,
    contradicted: AtomicBool,
    /// While its sender is alive, recounts do not end.
    hold: Mutex<Option<watch::Receiver<()>>>,
    recounts_begun: AtomicU32,
    tally_reads: AtomicU32,
}

impl Clock for Memory {
    fn now(&self) -> Timestamp {
        let set = *self.controls.now.lock();
        set.unwrap_or_else(|| EPOCH.plus(self.controls.started.elapsed()))
    }

    fn is_trusted(&self) -> bool {
        !self.controls.contradicted.load(Ordering::Relaxed)
    }
}

impl Memory {
    /// Empty engines with this many shards, named `s0`, `s1` and so on. Their clock is tokio's.
    pub fn new(shards: u32) -> Self {
        let shards_made = shards as usize;
        let shards = HashRange::split_evenly(shards).into_iter().zip(0..).map(|(range, n)| {
            (Shard { id: ShardId::new(format!("s{n}")), range, parents: vec![], open: true, ends_at: None }, Vec::new())
        });
        let state = State { shards: shards.collect(), made: shards_made, ..State::default() };
        let controls = Controls {
            faults: Mutex::new((StdRng::seed_from_u64(1), 0.0)),
            failures: AtomicU32::new(0),
            started: Instant::now(),
            now: Mutex::new(None),
            contradicted: AtomicBool::new(false),
            hold: Mutex::new(None),
            recounts_begun: AtomicU32::new(0),
            tally_reads: AtomicU32::new(0),
        };
        Self { state: Arc::new(Mutex::new(state)), changed: Arc::default(), controls: Arc::new(controls) }
    }

    /// All ports.
    pub fn ports(&self) -> Ports {
        let this = Arc::new(self.clone());
        Ports {
            stream: this.clone(),
            polls: this.clone(),
            votes: this.clone(),
            tallies: this.clone(),
            leases: this.clone(),
            clock: this,
        }
    }

    /// Sets the time, in milliseconds since the Unix epoch. From then on it stands still.
    pub fn set_now(&self, now: i64) {
        *self.controls.now.lock() = Some(Timestamp(now));
    }

    /// Sets whether the engines contradict the clock.
    pub fn set_contradicted(&self, contradicted: bool) {
        self.controls.contradicted.store(contradicted, Ordering::Relaxed);
    }

    /// Makes the next `calls` calls fail that add to tallies, read tallies or list rows. An addition still takes
    /// effect.
    pub fn fail_next(&self, calls: u32) {
        self.controls.failures.store(calls, Ordering::Relaxed);
    }

    /// How many of these failures are still to come.
    pub fn failures_left(&self) -> u32 {
        self.controls.failures.load(Ordering::Relaxed)
    }

    fn fail(&self) -> Result<(), PortError> {
        let failures = &self.controls.failures;
        let failed = failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        failed.map_or(Ok(()), |_| Err(PortError::unknown("told to fail")))
    }

    /// From now on, recounts do not end until the returned value is dropped.
    pub fn hold_recounts(&self) -> watch::Sender<()> {
        let (hold, held) = watch::channel(());
        *self.controls.hold.lock() = Some(held);
        hold
    }

    /// How many recounts have begun.
    pub fn recounts_begun(&self) -> u32 {
        self.controls.recounts_begun.load(Ordering::Relaxed)
    }

    /// How often tallies were read.
    pub fn tally_reads(&self) -> u32 {
        self.controls.tally_reads.load(Ordering::Relaxed)
    }

    /// Markers in the stream.
    pub fn markers(&self) -> usize {
        let state = self.state.lock();
        let records = state.shards.iter().flat_map(|(_, records)| records);
        records.filter(|record| record.data == batch::encode_marker()).count()
    }

    /// Replaces all rows of a group.
    pub fn set_rows(&self, group: Group, rows: impl IntoIterator<Item = ShardRow>) {
        let mut state = self.state.lock();
        state.rows.retain(|(of, _), _| *of != group);
        state.rows.extend(rows.into_iter().map(|row| ((group, row.shard.clone()), row)));
    }

    /// Replaces all votes of a poll by this many for each option.
    pub fn set_votes(&self, poll: &str, counts: &[(&str, u64)]) {
        let mut state = self.state.lock();
        state.votes.retain(|(id, _), _| id.as_str() != poll);
        for (option, count) in counts {
            for voter in 0..*count {
                let key = (PollId::new(poll).unwrap(), format!("{option} {voter}").into());
                let vote = StoredVote { position: Position::default(), option: (*option).into(), previous: None };
                state.votes.insert(key, vote);
            }
        }
    }

    /// Adds to a tally, regardless of its position.
    pub fn add_to_tally(&self, poll: &str, group: Group, shard: &str, counts: &[(&str, i64)]) {
        let mut state = self.state.lock();
        let (_, sums) = state.tallies.entry((PollId::new(poll).unwrap(), group, ShardId::new(shard))).or_default();
        for (option, count) in counts {
            *sums.entry((*option).into()).or_default() += count;
        }
    }

    /// Adds a closed shard.
    pub fn add_closed_shard(&self, id: &str, range: HashRange) {
        let shard = Shard { id: ShardId::new(id), range, parents: Vec::new(), open: false, ends_at: None };
        let mut state = self.state.lock();
        state.made += 1;
        state.shards.push((shard, Vec::new()));
    }

    /// Makes each call fail with this probability before it takes effect, and with the same probability lose its
    /// answer.
    pub fn set_faults(&self, seed: u64, chance: f64) {
        *self.controls.faults.lock() = (StdRng::seed_from_u64(seed), chance);
    }

    /// Runs `call`. Sometimes it fails before, sometimes its answer is lost.
    fn faulty<T>(&self, call: impl FnOnce(&mut State) -> T) -> Result<T, PortError> {
        let (before, after) = {
            let (rng, chance) = &mut *self.controls.faults.lock();
            (rng.random_bool(*chance), rng.random_bool(*chance))
        };
        if before {
            return Err(PortError::refused("throttled"));
        }
        let answer = call(&mut self.state.lock());
        if after { Err(PortError::unknown("the answer was lost")) } else { Ok(answer) }
    }

    /// Stores a poll that never closes.
    pub fn add_poll(&self, id: &str, options: &[&str]) -> Poll {
        let options = options.iter().map(|id| PollOption { id: (*id).into(), title: String::new() }).collect();
        let (opens, closes) = (Timestamp(0), Timestamp(i64::MAX));
        let poll =
            Poll::new(PollId::new(id).unwrap(), String::new(), options, opens, closes, PollSource::Ingest, 1).unwrap();
        self.state.lock().polls.insert(poll.id.clone(), poll.clone());
        poll
    }

    /// Removes a poll.
    pub fn remove_poll(&self, id: &str) {
        self.state.lock().polls.retain(|known, _| known.as_str() != id);
    }

    /// Stores one batch in each shard that owns any of the votes, under the same id.
    pub fn vote(&self, id: BatchId, poll: &str, votes: &[(&str, &str)], at: i64) {
        let shards: Vec<Shard> = self.open_shards();
        for shard in shards {
            let mut open = OpenBatch::default();
            for (user, option) in votes.iter().filter(|(user, _)| shard.range.contains(vote_hash(poll, user))) {
                let entry = open.entry(&PollId::new(poll).unwrap(), &(*option).into());
                open.push(entry, *user, vote_hash(poll, user), Timestamp(at));
            }
            if !open.is_empty() {
                let data = batch::encode(&open.to_batch(id, shard.range.into(), String::new()));
                self.append(shard.range.start, data, at);
            }
        }
    }

    /// Puts a marker into every open shard.
    pub fn mark(&self, at: i64) {
        for shard in self.open_shards() {
            self.append(shard.range.start, batch::encode_marker(), at);
        }
    }

    /// Stores a record as of `at`, in the shard that owns the hash.
    pub fn append(&self, hash: u128, data: Bytes, at: i64) -> Stored {
        let mut state = self.state.lock();
        state.sequence += 1;
        let sequence = SequenceNumber::from_u64(state.sequence);
        let (shard, records) =
            state.shards.iter_mut().find(|(shard, _)| shard.open && shard.range.contains(hash)).unwrap();
        records.push(Record { sequence, arrived_at: Timestamp(at), partition_key: String::new(), data });
        let stored = Stored { shard: shard.id.clone(), sequence };
        drop(state);
        self.changed.notify_waiters();
        stored
    }

    /// Shards that take records.
    pub fn open_shards(&self) -> Vec<Shard> {
        self.state.lock().shards.iter().map(|(shard, _)| shard.clone()).filter(|shard| shard.open).collect()
    }

    /// Closes shards, and opens one for each range.
    pub fn reshard(&self, parents: &[&str], ranges: &[HashRange]) {
        let mut state = self.state.lock();
        let ends_at = SequenceNumber::from_u64(state.sequence);
        for (shard, _) in state.shards.iter_mut().filter(|(shard, _)| parents.contains(&shard.id.as_str())) {
            (shard.open, shard.ends_at) = (false, Some(ends_at));
        }
        for &range in ranges {
            let id = ShardId::new(format!("s{}", state.made));
            state.made += 1;
            let parents = parents.iter().map(|parent| ShardId::new(*parent)).collect();
            state.shards.push((Shard { id, range, parents, open: true, ends_at: None }, Vec::new()));
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Removes all records of a shard from the stream.
    pub fn expire(&self, shard: &str) {
        self.drop_oldest(shard, usize::MAX);
    }

    /// Removes so many of the oldest records of a shard from the stream.
    pub fn drop_oldest(&self, shard: &str, count: usize) {
        let mut state = self.state.lock();
        let State { shards, dropped, .. } = &mut *state;
        for (known, records) in shards.iter_mut().filter(|(known, _)| known.id.as_str() == shard) {
            if let Some(last) = records.drain(..count.min(records.len())).next_back() {
                dropped.insert(known.id.clone(), last.sequence);
            }
        }
    }

    /// Makes the stream forget a closed shard, as after its retention.
    pub fn vanish(&self, shard: &str) {
        self.expire(shard);
        self.state.lock().shards.retain(|(known, _)| known.id.as_str() != shard);
        self.changed.notify_waiters();
    }

    /// All rows of a group.
    pub fn rows(&self, group: Group) -> Vec<ShardRow> {
        let state = self.state.lock();
        state.rows.iter().filter(|((of, _), _)| *of == group).map(|(_, row)| row.clone()).collect()
    }

    /// One row.
    pub fn row(&self, group: Group, shard: &str) -> Option<ShardRow> {
        self.state.lock().rows.get(&(group, ShardId::new(shard))).cloned()
    }

    /// A stored poll.
    pub fn poll(&self, id: &str) -> Poll {
        self.state.lock().polls[&PollId::new(id).unwrap()].clone()
    }

    /// Stores a vote without any condition.
    pub fn set_vote(&self, poll: &str, user: &str, position: Position, option: &str) {
        let key = (PollId::new(poll).unwrap(), user.into());
        let vote = StoredVote { position, option: option.into(), previous: None };
        self.state.lock().votes.insert(key, vote);
    }

    /// Sums per option, as tallied and as stored.
    pub fn counts(&self, poll: &str) -> (BTreeMap<Arc<str>, i64>, BTreeMap<Arc<str>, i64>) {
        let state = self.state.lock();
        let (mut tallied, mut stored) = (BTreeMap::new(), BTreeMap::new());
        for ((id, _, _), (_, counts)) in &state.tallies {
            for (option, count) in counts.iter().filter(|_| id.as_str() == poll) {
                *tallied.entry(option.clone()).or_default() += count;
            }
        }
        tallied.retain(|_, count| *count != 0);
        for ((id, _), StoredVote { option, .. }) in &state.votes {
            if id.as_str() == poll {
                *stored.entry(option.clone()).or_default() += 1;
            }
        }
        (tallied, stored)
    }

    /// Waits until the condition holds. Panics after an hour; with a paused clock this costs no real time.
    pub async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let met = async {
            while !condition(self) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        assert!(timeout(PATIENCE, met).await.is_ok(), "never came true: {what}");
    }

    /// Waits until every open shard is committed up to its last record, and every closed shard has ended.
    pub async fn until_committed(&self, group: Group) {
        let committed = |memory: &Self| {
            let state = memory.state.lock();
            state.shards.iter().all(|(shard, records)| {
                let last = records.last().map_or(SequenceNumber::ZERO, |record| record.sequence);
                state.rows.get(&(group, shard.id.clone())).is_some_and(|row| {
                    let progress = &row.progress;
                    row.started
                        && progress.checkpoint >= last
                        && progress.window_end == progress.checkpoint
                        && progress.ended != shard.open
                })
            })
        };
        self.until("everything is committed", committed).await;
    }
}

struct Reader {
    memory: Memory,
    shard: ShardId,
    after: SequenceNumber,
}

#[async_trait]
impl RecordReader for Reader {
    async fn next(&mut self) -> Result<ReadOutcome, PortError> {
        let changed = self.memory.changed.notified();
        let found = self.memory.faulty(|state| {
            let Some((shard, records)) = state.shards.iter().find(|(shard, _)| shard.id == self.shard) else {
                return Some(ReadOutcome::Expired);
            };
            let new: Vec<Record> =
                records.iter().filter(|record| record.sequence > self.after).take(READ_RECORDS_MAX).cloned().collect();
            let dropped = state.dropped.get(&self.shard);
            let expired = self.after > SequenceNumber::ZERO && dropped.is_some_and(|last| *last >= self.after);
            match new.last() {
                _ if expired => Some(ReadOutcome::Expired),
                None if !shard.open => Some(ReadOutcome::ShardEnd),
                None => None,
                Some(_) => Some(ReadOutcome::Records(new)),
            }
        })?;
        if let Some(found) = found {
            if let ReadOutcome::Records(records) = &found {
                self.after = records.last().unwrap().sequence;
            }
            return Ok(found);
        }
        timeout(READ_WAIT, changed).await.ok();
        Ok(ReadOutcome::Records(Vec::new()))
    }
}

#[async_trait]
impl VoteStream for Memory {
    async fn list_shards(&self) -> Result<Vec<Shard>, PortError> {
        self.faulty(|state| state.shards.iter().map(|(shard, _)| shard.clone()).collect())
    }

    async fn put(&self, hash: u128, data: Bytes) -> Result<Stored, PortError> {
        Ok(self.append(hash, data, 0))
    }

    async fn reader(
        &self,
        _: Group,
        shard: &ShardId,
        after: SequenceNumber,
    ) -> Result<Box<dyn RecordReader>, PortError> {
        Ok(Box::new(Reader { memory: self.clone(), shard: shard.clone(), after }))
    }
}

#[async_trait]
impl PollStore for Memory {
    async fn create(&self, poll: &Poll) -> Result<Created, PortError> {
        self.faulty(|state| match state.polls.get(&poll.id) {
            Some(known) => Created::Existing(Box::new(known.clone())),
            None => {
                state.polls.insert(poll.id.clone(), poll.clone());
                Created::New
            }
        })
    }

    async fn get(&self, id: &PollId) -> Result<Option<Poll>, PortError> {
        self.faulty(|state| state.polls.get(id).cloned())
    }

    async fn list(&self, after: Option<&PollId>, limit: usize) -> Result<Vec<Poll>, PortError> {
        self.faulty(|state| {
            let later = state.polls.values().filter(|poll| after.is_none_or(|after| poll.id > *after));
            later.take(limit).cloned().collect()
        })
    }

    async fn begin_close(&self, id: &PollId) -> Result<Option<Poll>, PortError> {
        self.faulty(|state| {
            let poll = state.polls.get_mut(id)?;
            poll.begin_close();
            Some(poll.clone())
        })
    }

    async fn close(&self, id: &PollId, closes_at: Timestamp) -> Result<Option<Poll>, PortError> {
        self.faulty(|state| {
            let poll = state.polls.get_mut(id)?;
            poll.close(closes_at);
            Some(poll.clone())
        })
    }

    async fn finish(&self, id: &PollId, result: &FinalResult) -> Result<Option<Poll>, PortError> {
        self.faulty(|state| {
            let poll = state.polls.get_mut(id)?;
            poll.finish(result);
            Some(poll.clone())
        })
    }

    async fn release(&self, id: &PollId, at: Timestamp) -> Result<Option<Poll>, PortError> {
        self.faulty(|state| {
            let poll = state.polls.get_mut(id)?;
            poll.release(at);
            Some(poll.clone())
        })
    }

    async fn set_needs_recount(&self, id: &PollId, needed: bool) -> Result<(), PortError> {
        self.faulty(|state| state.polls.get_mut(id).into_iter().for_each(|poll| poll.needs_recount = needed))
    }
}

#[async_trait]
impl VoteStore for Memory {
    async fn write(&self, votes: &[VoteWrite<'_>]) -> Result<Vec<VoteOutcome>, PortError> {
        let mut outcomes = Vec::new();
        for vote in votes {
            outcomes.push(self.faulty(|state| {
                let key = vote.key();
                let (outcome, stored) = vote.decide(state.votes.get(&key));
                state.votes.extend(stored.map(|stored| (key, stored)));
                outcome
            })?);
        }
        Ok(outcomes)
    }

    async fn recount(&self, poll: &Poll) -> Result<Vec<u64>, PortError> {
        self.controls.recounts_begun.fetch_add(1, Ordering::Relaxed);
        let held = self.controls.hold.lock().clone();
        if let Some(mut held) = held {
            while held.changed().await.is_ok() {}
        }
        let counts = self.faulty(|state| {
            let mut counts = vec![0; poll.options.len()];
            for ((id, _), StoredVote { option, .. }) in &state.votes {
                if *id == poll.id {
                    counts[poll.option_index(option)?] += 1;
                }
            }
            Some(counts)
        })?;
        counts.ok_or_else(|| PortError::permanent("a vote is for an option that the poll does not have"))
    }
}

#[async_trait]
impl TallyStore for Memory {
    async fn add(
        &self,
        group: Group,
        shard: &ShardId,
        window_end: SequenceNumber,
        _: u64,
        deltas: &[TallyDelta],
    ) -> Result<(), PortError> {
        for delta in deltas {
            self.faulty(|state| {
                let tally = state.tallies.entry((delta.poll_id.clone(), group, shard.clone())).or_default();
                if tally.0 < window_end {
                    tally.0 = window_end;
                    for (option, count) in &delta.counts {
                        *tally.1.entry(option.clone()).or_default() += count;
                    }
                }
            })?;
        }
        self.fail()
    }

    async fn read(&self, poll_id: &PollId) -> Result<Vec<TallyRow>, PortError> {
        self.controls.tally_reads.fetch_add(1, Ordering::Relaxed);
        self.fail()?;
        self.faulty(|state| {
            let rows = state.tallies.iter().filter(|((id, ..), _)| id == poll_id);
            rows.map(|((_, group, shard), (position, counts))| TallyRow {
                group: *group,
                shard: shard.clone(),
                counts: counts.iter().map(|(option, count)| (option.clone(), *count)).collect(),
                position: *position,
            })
            .collect()
        })
    }
}

#[async_trait]
impl LeaseStore for Memory {
    async fn list(&self, group: Group) -> Result<Vec<ShardRow>, PortError> {
        self.fail()?;
        self.faulty(|_| ())?;
        Ok(self.rows(group))
    }

    async fn create(&self, group: Group, row: &ShardRow) -> Result<(), PortError> {
        self.faulty(|state| {
            state.rows.entry((group, row.shard.clone())).or_insert_with(|| row.clone());
        })
    }

    async fn start(&self, group: Group, shard: &ShardId, inherited: &Progress) -> Result<(), PortError> {
        self.faulty(|state| {
            if let Some(row) = state.rows.get_mut(&(group, shard.clone())).filter(|row| !row.started) {
                row.started = true;
                row.progress = inherited.clone();
            }
        })
    }

    async fn take(
        &self,
        group: Group,
        shard: &ShardId,
        observed: &Lease,
        owner: &str,
    ) -> Result<Option<ShardRow>, PortError> {
        self.faulty(|state| {
            let row = state.rows.get_mut(&(group, shard.clone()))?;
            row.lease = row.taken(observed, owner)?;
            Some(row.clone())
        })
    }

    async fn renew(&self, group: Group, shard: &ShardId, epoch: u64) -> Result<Option<Lease>, PortError> {
        self.faulty(|state| {
            let row = state.rows.get_mut(&(group, shard.clone()))?;
            row.lease = row.renewed(epoch)?;
            Some(row.lease.clone())
        })
    }

    async fn release(&self, group: Group, shard: &ShardId, epoch: u64) -> Result<(), PortError> {
        self.faulty(|state| {
            if let Some(row) = state.rows.get_mut(&(group, shard.clone())) {
                row.lease = row.released(epoch).unwrap_or_else(|| row.lease.clone());
            }
        })
    }

    async fn request(&self, group: Group, shard: &ShardId, epoch: u64, by: &str) -> Result<(), PortError> {
        self.faulty(|state| {
            if let Some(row) = state.rows.get_mut(&(group, shard.clone())) {
                row.lease = row.requested(epoch, by).unwrap_or_else(|| row.lease.clone());
            }
        })
    }

    async fn write_progress(
        &self,
        group: Group,
        shard: &ShardId,
        epoch: u64,
        previous: Span,
        progress: &Progress,
    ) -> Result<WriteOutcome, PortError> {
        self.faulty(|state| {
            let Some(row) = state.rows.get_mut(&(group, shard.clone())) else { return WriteOutcome::Refused(None) };
            row.advance(epoch, previous, progress)
        })
    }

    async fn note_end(&self, group: Group, shard: &ShardId, ends_at: SequenceNumber) -> Result<(), PortError> {
        self.faulty(|state| {
            state.rows.get_mut(&(group, shard.clone())).into_iter().for_each(|row| row.note_end(ends_at));
        })
    }

    async fn note_lost(&self, group: Group, shard: &ShardId, lost: LostTime) -> Result<(), PortError> {
        self.faulty(|state| {
            state.rows.get_mut(&(group, shard.clone())).into_iter().for_each(|row| row.note_lost(lost));
        })
    }

    async fn delete(&self, group: Group, shard: &ShardId) -> Result<(), PortError> {
        self.faulty(|state| {
            let key = (group, shard.clone());
            if state.rows.get(&key).is_some_and(ShardRow::is_deletable) {
                state.rows.remove(&key);
            }
        })
    }
}

/// Applies windows like persist-svc. `gate` can stop every application between the votes and the tallies.
pub struct Appliers {
    /// The stores.
    pub memory: Memory,
    /// Open while it holds `true`.
    pub gate: watch::Receiver<bool>,
    /// End and epoch of the window that had superseded votes.
    pub superseded: Option<(SequenceNumber, u64)>,
}

impl ApplierFactory for Appliers {
    fn applier(&self) -> Box<dyn Applier> {
        Box::new(Self { memory: self.memory.clone(), gate: self.gate.clone(), superseded: None })
    }
}

#[async_trait]
impl Applier for Appliers {
    async fn apply(&mut self, window: &Window) -> Result<(), ApplyError> {
        let writes = tally::last_votes(window)?;
        let outcomes = self.memory.write(&writes).await?;
        self.gate.wait_for(|open| *open).await.ok();
        let mut counted = Counted::new(window);
        counted.add(&writes, &outcomes)?;
        let identity = Some((window.end, window.epoch));
        if !counted.superseded().is_empty() && self.superseded != identity {
            self.superseded = identity;
            return Err(ApplyError::Superseded { poll_ids: counted.superseded().iter().cloned().collect() });
        }
        let deltas = counted.into_deltas();
        self.memory.add(Group::Persist, &window.shard, window.end, window.epoch, &deltas).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract;

    #[tokio::test(start_paused = true)]
    async fn the_contract_of_the_stream() {
        contract::check_stream(Memory::new(3).ports()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_contract_of_votes() {
        contract::check_votes(Memory::new(1).ports()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_contract_of_tallies() {
        contract::check_tallies(Memory::new(1).ports()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_contract_of_polls() {
        contract::check_polls(Memory::new(1).ports()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_contract_of_leases() {
        contract::check_leases(Memory::new(1).ports()).await;
    }
}
