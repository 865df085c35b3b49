//! The ports in memory, with faults on request, for the tests of this crate.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use crate::{
    Clock, Closing, HashRange, Poll, PollId, PollOption, PollSource, Position, SequenceNumber, ShardId, Timestamp,
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

/// Position, option, previous option.
type StoredVote = (Position, Arc<str>, Option<Arc<str>>);
/// Position and sums.
type StoredTally = (SequenceNumber, BTreeMap<Arc<str>, i64>);

#[derive(Default)]
struct State {
    shards: Vec<(Shard, Vec<Record>)>,
    sequence: u64,
    polls: BTreeMap<PollId, Poll>,
    votes: HashMap<(PollId, Arc<str>), StoredVote>,
    tallies: BTreeMap<(PollId, Group, ShardId), StoredTally>,
    rows: BTreeMap<(Group, ShardId), ShardRow>,
}

/// A clock that stands still with tokio's.
pub(crate) fn clock() -> Arc<dyn Clock> {
    struct Paused(Instant);
    impl Clock for Paused {
        fn now(&self) -> Timestamp {
            Timestamp(1_700_000_000_000).plus(self.0.elapsed())
        }
    }
    Arc::new(Paused(Instant::now()))
}

/// All engines. Clones share them.
#[derive(Clone)]
pub(crate) struct Memory {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    /// Chance that a call fails, with or without effect.
    faults: Arc<Mutex<(StdRng, f64)>>,
}

impl Memory {
    pub(crate) fn new(shards: u32) -> Self {
        let shards = HashRange::split_evenly(shards).into_iter().zip(0..).map(|(range, n)| {
            (Shard { id: ShardId::new(format!("s{n}")), range, parents: vec![], open: true }, Vec::new())
        });
        let state = State { shards: shards.collect(), ..State::default() };
        let faults = Mutex::new((StdRng::seed_from_u64(1), 0.0));
        Self { state: Arc::new(Mutex::new(state)), changed: Arc::default(), faults: Arc::new(faults) }
    }

    pub(crate) fn ports(&self) -> Ports {
        let this = Arc::new(self.clone());
        Ports {
            stream: this.clone(),
            polls: this.clone(),
            votes: this.clone(),
            tallies: this.clone(),
            leases: this.clone(),
            clock: clock(),
        }
    }

    pub(crate) fn set_faults(&self, seed: u64, chance: f64) {
        *self.faults.lock() = (StdRng::seed_from_u64(seed), chance);
    }

    /// Runs `call`; at times it fails before, at times its answer is lost.
    fn faulty<T>(&self, call: impl FnOnce(&mut State) -> T) -> Result<T, PortError> {
        let (before, after) = {
            let (rng, chance) = &mut *self.faults.lock();
            (rng.random_bool(*chance), rng.random_bool(*chance))
        };
        if before {
            return Err(PortError::refused("throttled"));
        }
        let answer = call(&mut self.state.lock());
        if after { Err(PortError::unknown("the answer was lost")) } else { Ok(answer) }
    }

    pub(crate) fn add_poll(&self, id: &str, options: &[&str]) -> Poll {
        let options = options.iter().map(|id| PollOption { id: (*id).into(), title: String::new() }).collect();
        let (opens, closes) = (Timestamp(0), Timestamp(i64::MAX));
        let poll =
            Poll::new(PollId::new(id).unwrap(), String::new(), options, opens, closes, PollSource::Ingest, 1).unwrap();
        self.state.lock().polls.insert(poll.id.clone(), poll.clone());
        poll
    }

    /// Stores one batch a shard that owns any of the votes, under the same id.
    pub(crate) fn vote(&self, id: BatchId, poll: &str, votes: &[(&str, &str)], at: i64) {
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

    pub(crate) fn mark(&self, at: i64) {
        for shard in self.open_shards() {
            self.append(shard.range.start, batch::encode_marker(), at);
        }
    }

    pub(crate) fn append(&self, hash: u128, data: Bytes, at: i64) -> Stored {
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

    pub(crate) fn open_shards(&self) -> Vec<Shard> {
        self.state.lock().shards.iter().map(|(shard, _)| shard.clone()).filter(|shard| shard.open).collect()
    }

    /// Closes shards, and opens one for each range.
    pub(crate) fn reshard(&self, parents: &[&str], ranges: &[HashRange]) {
        let mut state = self.state.lock();
        for (shard, _) in &mut state.shards {
            shard.open &= !parents.contains(&shard.id.as_str());
        }
        for &range in ranges {
            let id = ShardId::new(format!("s{}", state.shards.len()));
            let parents = parents.iter().map(|parent| ShardId::new(*parent)).collect();
            state.shards.push((Shard { id, range, parents, open: true }, Vec::new()));
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// The stream forgets a shard's records.
    pub(crate) fn expire(&self, shard: &str) {
        self.state
            .lock()
            .shards
            .iter_mut()
            .filter(|(known, _)| known.id.as_str() == shard)
            .for_each(|(_, r)| r.clear());
    }

    pub(crate) fn rows(&self, group: Group) -> Vec<ShardRow> {
        let state = self.state.lock();
        state.rows.iter().filter(|((of, _), _)| *of == group).map(|(_, row)| row.clone()).collect()
    }

    pub(crate) fn row(&self, group: Group, shard: &str) -> Option<ShardRow> {
        self.state.lock().rows.get(&(group, ShardId::new(shard))).cloned()
    }

    pub(crate) fn poll(&self, id: &str) -> Poll {
        self.state.lock().polls[&PollId::new(id).unwrap()].clone()
    }

    /// Stored vote of a user: position, option.
    pub(crate) fn set_vote(&self, poll: &str, user: &str, position: Position, option: &str) {
        let key = (PollId::new(poll).unwrap(), user.into());
        self.state.lock().votes.insert(key, (position, option.into(), None));
    }

    /// Sums per option, as tallied and as stored.
    pub(crate) fn counts(&self, poll: &str) -> (BTreeMap<Arc<str>, i64>, BTreeMap<Arc<str>, i64>) {
        let state = self.state.lock();
        let (mut tallied, mut stored) = (BTreeMap::new(), BTreeMap::new());
        for ((id, _, _), (_, counts)) in &state.tallies {
            for (option, count) in counts.iter().filter(|_| id.as_str() == poll) {
                *tallied.entry(option.clone()).or_default() += count;
            }
        }
        tallied.retain(|_, count| *count != 0);
        for ((id, _), (_, option, _)) in &state.votes {
            if id.as_str() == poll {
                *stored.entry(option.clone()).or_default() += 1;
            }
        }
        (tallied, stored)
    }

    /// Waits until the condition holds. Panics after an hour, which on a paused clock is no time.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let met = async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(7)).await;
            }
        };
        assert!(timeout(Duration::from_secs(3_600), met).await.is_ok(), "never came true: {what}");
    }

    /// Waits until every open shard's row is committed at its last record, and every closed one has ended.
    pub(crate) async fn until_committed(&self, group: Group) {
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
            let (shard, records) = state.shards.iter().find(|(shard, _)| shard.id == self.shard)?;
            let new: Vec<Record> =
                records.iter().filter(|record| record.sequence > self.after).take(3).cloned().collect();
            let expired = records.last().is_none_or(|last| last.sequence < self.after);
            match new.last() {
                None if expired && self.after > SequenceNumber::ZERO => Some(ReadOutcome::Expired),
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
        timeout(Duration::from_millis(100), changed).await.ok();
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

    async fn list(&self, _: Option<&PollId>, _: usize) -> Result<Vec<Poll>, PortError> {
        self.faulty(|state| state.polls.values().cloned().collect())
    }

    async fn begin_close(&self, id: &PollId) -> Result<Option<Poll>, PortError> {
        self.faulty(|state| {
            let poll = state.polls.get_mut(id)?;
            poll.closing = Closing::Asked;
            Some(poll.clone())
        })
    }

    async fn close(&self, id: &PollId, closes_at: Timestamp) -> Result<Option<Poll>, PortError> {
        self.faulty(|state| {
            let poll = state.polls.get_mut(id)?;
            poll.closes_at = poll.closes_at.min(closes_at);
            poll.closing = Closing::Done;
            Some(poll.clone())
        })
    }

    async fn finish(&self, id: &PollId, _: &FinalResult) -> Result<Option<Poll>, PortError> {
        self.get(id).await
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
                let (previous, outcome) = match state.votes.get(&key) {
                    None => (None, VoteOutcome::Inserted),
                    Some((position, option, _)) if *position < vote.position => {
                        (Some(option.clone()), VoteOutcome::Replaced { previous: option.clone() })
                    }
                    Some((position, _, previous)) if *position == vote.position => {
                        return VoteOutcome::AlreadyStored { previous: previous.clone() };
                    }
                    Some(_) => return VoteOutcome::Superseded,
                };
                state.votes.insert(key, (vote.position, vote.option_id.clone(), previous));
                outcome
            })?);
        }
        Ok(outcomes)
    }

    async fn recount(&self, _: &Poll) -> Result<Vec<u64>, PortError> {
        Err(PortError::permanent("not needed here"))
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
        Ok(())
    }

    async fn read(&self, _: &PollId) -> Result<Vec<TallyRow>, PortError> {
        Err(PortError::permanent("not needed here"))
    }
}

#[async_trait]
impl LeaseStore for Memory {
    async fn list(&self, group: Group) -> Result<Vec<ShardRow>, PortError> {
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
        previous: (SequenceNumber, SequenceNumber),
        progress: &Progress,
    ) -> Result<WriteOutcome, PortError> {
        self.faulty(|state| {
            let Some(row) = state.rows.get_mut(&(group, shard.clone())) else { return WriteOutcome::Refused(None) };
            let stored = (row.progress.checkpoint, row.progress.window_end);
            if row.lease.epoch != epoch || stored != previous || row.progress.ended {
                return WriteOutcome::Refused(Some(Box::new(row.clone())));
            }
            row.progress = progress.clone();
            WriteOutcome::Stored
        })
    }
}

/// Applies windows as persist-svc does; `gate` holds up every application between the votes and the tallies.
pub(crate) struct Appliers {
    pub(crate) memory: Memory,
    pub(crate) gate: tokio::sync::watch::Receiver<bool>,
    /// End and epoch of the window of which votes were superseded.
    pub(crate) superseded: Option<(SequenceNumber, u64)>,
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
