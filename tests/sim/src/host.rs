//! One process: its view of the engines and its clock.
//!
//! While a process is frozen, none of its ports answers; only its timers run on. When it wakes up, it continues where
//! it was. If another process has taken its shards, it is then a zombie: an old owner that still runs.
//!
//! A process may also stop before any reading of a clock, even within code that does not wait. Others go on meanwhile.
//! The process is then ahead of the simulation's clock, and what it sends next is delayed until the simulation's clock
//! has reached the same time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use votestream_core::{
    Clock, Closing, Poll, PollId, SequenceNumber, ShardId, Timestamp,
    clock::ClockWatch,
    model::poll::FinalResult,
    mutation::{self, Mutation},
    port::{
        Created, Group, Lease, LeaseStore, LostTime, PollStore, PortError, Ports, Progress, ReadOutcome, Record,
        RecordReader, Shard, ShardRow, Span, Stored, TallyDelta, TallyRow, TallyStore, VoteOutcome, VoteStore,
        VoteStream, VoteWrite, WriteOutcome,
    },
};

use super::run::BOUNDS;
use super::world::{State, StoredTally, World};

/// How long a read waits for a record, and how many it returns.
const READ_WAIT: Duration = Duration::from_millis(200);
const READ_RECORDS_MAX: usize = 3;

/// Whether a process is frozen.
#[derive(Default)]
pub(super) struct Frozen {
    frozen: AtomicBool,
    changed: Notify,
}

impl Frozen {
    pub(super) fn set(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    async fn thawed(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.frozen.load(Ordering::Relaxed) {
                return;
            }
            changed.await;
        }
    }
}

/// A process.
#[derive(Clone)]
pub(super) struct Host {
    world: Arc<World>,
    frozen: Arc<Frozen>,
    /// Difference of its clock from the true time, in milliseconds. It only grows, so readings never go back.
    skew_ms: Arc<AtomicI64>,
    /// Compares its clock with the clocks of the engines.
    watch: Arc<ClockWatch>,
    /// The time of this process, if it is later than the simulation's.
    ahead: Arc<Mutex<Instant>>,
}

impl Host {
    pub(super) fn new(world: Arc<World>, frozen: Arc<Frozen>, skew_ms: i64) -> Self {
        let ahead = Arc::new(Mutex::new(Instant::now()));
        let watch = Arc::new(ClockWatch::new(BOUNDS.clock_skew_max));
        Self { world, frozen, skew_ms: Arc::new(skew_ms.into()), watch, ahead }
    }

    pub(super) fn ports(&self) -> Ports {
        let host = Arc::new(self.clone());
        Ports {
            stream: host.clone(),
            polls: host.clone(),
            votes: host.clone(),
            tallies: host.clone(),
            leases: host.clone(),
            clock: host,
        }
    }

    /// The time of this process, after a stop if the seed says so.
    fn reading(&self) -> Instant {
        let stall = self.world.stall();
        let mut ahead = self.ahead.lock();
        *ahead = Instant::now().max(*ahead) + stall;
        *ahead
    }

    /// The time of this process.
    fn place(&self) -> Instant {
        Instant::now().max(*self.ahead.lock())
    }

    fn stamp(&self, instant: Instant) -> Timestamp {
        Timestamp(self.world.at(instant).0 + self.skew_ms.load(Ordering::Relaxed))
    }

    /// Compares the clock with the time in an answer. The engine writes it in whole seconds.
    fn compare(&self, sent_at: Timestamp, engine: Timestamp) {
        let (place, second) = (self.place(), Timestamp(engine.0.div_euclid(1_000) * 1_000));
        self.watch.answered(sent_at, self.stamp(place), second, place);
    }

    /// Whether the clock differs from the true time by more than the bound.
    pub(super) fn is_wrong(&self) -> bool {
        u128::from(self.skew_ms.load(Ordering::Relaxed).unsigned_abs()) > BOUNDS.clock_skew_max.as_millis()
    }

    /// Makes the clock jump ahead.
    pub(super) fn jump(&self, ms: i64) {
        self.skew_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// How long the simulation takes to reach the time of this process.
    fn lag(&self) -> Duration {
        self.ahead.lock().saturating_duration_since(Instant::now())
    }

    async fn awake(&self) {
        self.frozen.thawed().await;
    }

    async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        effect: impl Fn(&mut State) -> T + Send + 'static,
    ) -> Result<T, PortError> {
        self.awake().await;
        let (world, sent_at) = (self.world.clone(), self.stamp(self.place()));
        let answer = self.world.call(what, self.lag(), move |state| (effect(state), world.now())).await;
        self.awake().await;
        let (answer, at) = answer?;
        self.compare(sent_at, at);
        Ok(answer)
    }
}

impl Clock for Host {
    fn now(&self) -> Timestamp {
        self.stamp(self.reading())
    }

    fn instant(&self) -> Instant {
        self.reading()
    }

    fn is_trusted(&self) -> bool {
        self.watch.is_trusted()
    }
}

#[async_trait]
impl VoteStream for Host {
    async fn list_shards(&self) -> Result<Vec<Shard>, PortError> {
        self.call("list_shards", |state| {
            let known = state.shards.iter().map(|(shard, _)| shard).filter(|shard| !state.vanished.contains(&shard.id));
            known.cloned().collect()
        })
        .await
    }

    async fn put(&self, hash: u128, data: Bytes) -> Result<Stored, PortError> {
        self.awake().await;
        let sent_at = self.stamp(self.place());
        let answer = self.world.put(hash, self.lag(), data).await;
        self.awake().await;
        let (stored, at) = answer?;
        self.compare(sent_at, at);
        Ok(stored)
    }

    async fn reader(
        &self,
        group: Group,
        shard: &ShardId,
        after: SequenceNumber,
    ) -> Result<Box<dyn RecordReader>, PortError> {
        Ok(Box::new(Reader { host: self.clone(), group, shard: shard.clone(), after }))
    }
}

struct Reader {
    host: Host,
    group: Group,
    shard: ShardId,
    after: SequenceNumber,
}

#[async_trait]
impl RecordReader for Reader {
    async fn next(&mut self) -> Result<ReadOutcome, PortError> {
        let deadline = Instant::now() + READ_WAIT;
        loop {
            let changed = self.host.world.changed.notified();
            let (shard, after) = (self.shard.clone(), self.after);
            if self.host.world.unreadable.lock().contains(&(self.group, shard.clone())) {
                sleep_until(deadline).await;
                return Ok(ReadOutcome::Records(Vec::new()));
            }
            let slowness = self.host.world.slowness(&self.shard);
            if !slowness.is_zero() {
                sleep_until(Instant::now() + slowness).await;
            }
            let read = self
                .host
                .call("read", move |state| {
                    if state.vanished.contains(&shard) {
                        return None;
                    }
                    let Some((shard, records)) = state.shards.iter().find(|(known, _)| known.id == shard) else {
                        return Some((Vec::new(), false, None));
                    };
                    let now = Instant::now();
                    let mut rest = records.iter().filter(|stored| stored.record.sequence > after).peekable();
                    let mut found: Vec<Record> = Vec::new();
                    while let Some(stored) = rest.next_if(|stored| stored.visible_at <= now) {
                        found.push(stored.record.clone());
                        if found.len() >= READ_RECORDS_MAX {
                            break;
                        }
                    }
                    let next = rest.peek().map(|stored| stored.visible_at);
                    Some((found, !shard.open && next.is_none(), next))
                })
                .await?;
            let Some((found, closed, next_visible)) = read else { return Ok(ReadOutcome::Expired) };
            if let Some(last) = found.last() {
                self.after = last.sequence;
                return Ok(ReadOutcome::Records(found));
            }
            if closed {
                return Ok(ReadOutcome::ShardEnd);
            }
            let until = next_visible.map_or(deadline, |visible| visible.min(deadline));
            tokio::select! {
                biased;
                () = changed => {}
                () = sleep_until(until) => {}
            }
            if Instant::now() >= deadline {
                return Ok(ReadOutcome::Records(Vec::new()));
            }
        }
    }
}

#[async_trait]
impl PollStore for Host {
    async fn create(&self, poll: &Poll) -> Result<Created, PortError> {
        let poll = poll.clone();
        self.call("create_poll", move |state| match state.polls.get(&poll.id) {
            Some(known) => Created::Existing(Box::new(known.clone())),
            None => {
                state.polls.insert(poll.id.clone(), poll.clone());
                Created::New
            }
        })
        .await
    }

    async fn get(&self, id: &PollId) -> Result<Option<Poll>, PortError> {
        let id = id.clone();
        self.call("get_poll", move |state| state.polls.get(&id).cloned()).await
    }

    async fn list(&self, after: Option<&PollId>, limit: usize) -> Result<Vec<Poll>, PortError> {
        let after = after.cloned();
        self.call("list_polls", move |state| {
            let later = state.polls.values().filter(|poll| after.as_ref().is_none_or(|after| poll.id > *after));
            later.take(limit).cloned().collect()
        })
        .await
    }

    async fn begin_close(&self, id: &PollId) -> Result<Option<Poll>, PortError> {
        let id = id.clone();
        self.call("begin_close", move |state| {
            let poll = state.polls.get_mut(&id)?;
            poll.begin_close();
            Some(poll.clone())
        })
        .await
    }

    async fn close(&self, id: &PollId, closes_at: Timestamp) -> Result<Option<Poll>, PortError> {
        let (id, world) = (id.clone(), self.world.clone());
        self.call("close_poll", move |state| {
            let poll = state.polls.get_mut(&id)?;
            if mutation::is_active(Mutation::ClosedInOneStep) {
                (poll.closes_at, poll.closing) = (closes_at, Closing::No);
            } else if poll.close(closes_at) {
                world.note(|| format!("poll {id} closes at {}", poll.closes_at.0));
            }
            Some(poll.clone())
        })
        .await
    }

    async fn finish(&self, id: &PollId, result: &FinalResult) -> Result<Option<Poll>, PortError> {
        let (id, result, world) = (id.clone(), result.clone(), self.world.clone());
        self.call("finish_poll", move |state| {
            let poll = state.polls.get_mut(&id)?;
            if poll.finish(&result) {
                world.note(|| format!("poll {id} is final"));
            }
            Some(poll.clone())
        })
        .await
    }

    async fn release(&self, id: &PollId, at: Timestamp) -> Result<Option<Poll>, PortError> {
        let id = id.clone();
        self.call("release", move |state| {
            let poll = state.polls.get_mut(&id)?;
            poll.release(at);
            Some(poll.clone())
        })
        .await
    }

    async fn set_needs_recount(&self, id: &PollId, needed: bool) -> Result<(), PortError> {
        let (id, world) = (id.clone(), self.world.clone());
        self.call("flag_poll", move |state| {
            world.note(|| format!("poll {id} needs a recount: {needed}"));
            state.polls.get_mut(&id).into_iter().for_each(|poll| poll.needs_recount = needed);
        })
        .await
    }
}

#[async_trait]
impl VoteStore for Host {
    async fn write(&self, votes: &[VoteWrite<'_>]) -> Result<Vec<VoteOutcome>, PortError> {
        // Each vote is atomic, but the call is not: every vote is a request of its own.
        let mut outcomes = Vec::with_capacity(votes.len());
        for vote in votes {
            let vote = vote.to_static();
            outcomes.push(self.call("write_vote", move |state| write_vote(state, &vote)).await?);
        }
        Ok(outcomes)
    }

    async fn recount(&self, poll: &Poll) -> Result<Vec<u64>, PortError> {
        let poll = poll.clone();
        let counts = self.call("recount", move |state| {
            let mut votes = state.votes.iter().filter(|((id, _), _)| *id == poll.id);
            let known = votes.all(|(_, vote)| poll.option_index(&vote.option).is_some());
            known.then(|| recount(state, &poll))
        });
        counts.await?.ok_or_else(|| PortError::permanent("a vote is for an option that the poll does not have"))
    }
}

fn write_vote(state: &mut State, vote: &VoteWrite<'_>) -> VoteOutcome {
    let key = vote.key();
    let (mut outcome, stored) = vote.decide(state.votes.get(&key));
    state.votes.extend(stored.map(|stored| (key, stored)));
    if let VoteOutcome::AlreadyStored { previous } = &mut outcome
        && mutation::is_active(Mutation::NoPreviousOption)
    {
        *previous = None;
    }
    outcome
}

/// Stored votes per option of a poll.
pub(super) fn recount(state: &State, poll: &Poll) -> Vec<u64> {
    let mut counts = vec![0; poll.options.len()];
    for ((id, _), vote) in &state.votes {
        if *id == poll.id
            && let Some(at) = poll.option_index(&vote.option)
        {
            counts[at] += 1;
        }
    }
    counts
}

#[async_trait]
impl TallyStore for Host {
    async fn add(
        &self,
        group: Group,
        shard: &ShardId,
        window_end: SequenceNumber,
        _: u64,
        deltas: &[TallyDelta],
    ) -> Result<(), PortError> {
        for delta in deltas {
            let (key, delta) = ((delta.poll_id.clone(), group, shard.clone()), delta.clone());
            self.call("add_tally", move |state| {
                let tally: &mut StoredTally = state.tallies.entry(key.clone()).or_default();
                if tally.position < window_end || mutation::is_active(Mutation::NoTallyCondition) {
                    tally.position = window_end;
                    for (option, count) in &delta.counts {
                        *tally.counts.entry(option.clone()).or_default() += count;
                    }
                }
            })
            .await?;
        }
        Ok(())
    }

    async fn read(&self, poll_id: &PollId) -> Result<Vec<TallyRow>, PortError> {
        let poll_id = poll_id.clone();
        self.call("read_tallies", move |state| {
            let rows = state.tallies.iter().filter(|((id, ..), _)| *id == poll_id);
            rows.map(|((_, group, shard), tally)| TallyRow {
                group: *group,
                shard: shard.clone(),
                counts: tally.counts.iter().map(|(option, count)| (option.clone(), *count)).collect(),
                position: tally.position,
            })
            .collect()
        })
        .await
    }
}

#[async_trait]
impl LeaseStore for Host {
    async fn list(&self, group: Group) -> Result<Vec<ShardRow>, PortError> {
        self.call("list_rows", move |state| {
            state.rows.iter().filter(|((of, _), _)| *of == group).map(|(_, row)| row.clone()).collect()
        })
        .await
    }

    async fn create(&self, group: Group, row: &ShardRow) -> Result<(), PortError> {
        let row = row.clone();
        self.call("create_row", move |state| {
            state.rows.entry((group, row.shard.clone())).or_insert_with(|| row.clone());
        })
        .await
    }

    async fn start(&self, group: Group, shard: &ShardId, inherited: &Progress) -> Result<(), PortError> {
        if self.world.unstartable.lock().contains(shard) {
            return Err(PortError::refused("start_row was throttled"));
        }
        let (key, inherited) = ((group, shard.clone()), inherited.clone());
        self.call("start_row", move |state| {
            let row = state.rows.get_mut(&key).filter(|row| !row.started);
            row.into_iter().for_each(|row| {
                row.started = true;
                row.progress = inherited.clone();
            });
        })
        .await
    }

    async fn take(
        &self,
        group: Group,
        shard: &ShardId,
        observed: &Lease,
        owner: &str,
    ) -> Result<Option<ShardRow>, PortError> {
        let (key, observed, owner) = ((group, shard.clone()), observed.clone(), owner.to_owned());
        let world = self.world.clone();
        self.call("take", move |state| {
            let row = state.rows.get_mut(&key)?;
            row.lease = row.taken(&observed, &owner)?;
            let epoch = row.lease.epoch;
            world.note(|| format!("{owner} takes {} of {} under epoch {epoch}", key.1, group.as_str()));
            Some(row.clone())
        })
        .await
    }

    async fn renew(&self, group: Group, shard: &ShardId, epoch: u64) -> Result<Option<Lease>, PortError> {
        let key = (group, shard.clone());
        self.call("renew", move |state| {
            let row = state.rows.get_mut(&key)?;
            row.lease = row.renewed(epoch)?;
            Some(row.lease.clone())
        })
        .await
    }

    async fn release(&self, group: Group, shard: &ShardId, epoch: u64) -> Result<(), PortError> {
        let key = (group, shard.clone());
        self.call("release", move |state| {
            if let Some(row) = state.rows.get_mut(&key) {
                row.lease = row.released(epoch).unwrap_or_else(|| row.lease.clone());
            }
        })
        .await
    }

    async fn request(&self, group: Group, shard: &ShardId, epoch: u64, by: &str) -> Result<(), PortError> {
        let (key, by) = ((group, shard.clone()), by.to_owned());
        self.call("request", move |state| {
            if let Some(row) = state.rows.get_mut(&key) {
                row.lease = row.requested(epoch, &by).unwrap_or_else(|| row.lease.clone());
            }
        })
        .await
    }

    async fn write_progress(
        &self,
        group: Group,
        shard: &ShardId,
        epoch: u64,
        previous: Span,
        progress: &Progress,
    ) -> Result<WriteOutcome, PortError> {
        let (key, progress, world) = ((group, shard.clone()), progress.clone(), self.world.clone());
        self.call("write_progress", move |state| {
            let Some(row) = state.rows.get_mut(&key) else { return WriteOutcome::Refused(None) };
            let unfenced = mutation::is_active(Mutation::NoFence);
            let anywhere = unfenced || mutation::is_active(Mutation::NoPositionInCondition);
            let epoch = if unfenced { row.lease.epoch } else { epoch };
            let previous = if anywhere { row.progress.span() } else { previous };
            let outcome = row.advance(epoch, previous, &progress);
            if outcome == WriteOutcome::Stored {
                world.note(|| {
                    let Progress { checkpoint, window_end, ended, .. } = &progress;
                    format!("{} of {} is at {checkpoint}, window to {window_end}, ended {ended}", key.1, group.as_str())
                });
            }
            outcome
        })
        .await
    }

    async fn note_end(&self, group: Group, shard: &ShardId, ends_at: SequenceNumber) -> Result<(), PortError> {
        let key = (group, shard.clone());
        self.call("note_end", move |state| {
            state.rows.get_mut(&key).into_iter().for_each(|row| row.note_end(ends_at));
        })
        .await
    }

    async fn note_lost(&self, group: Group, shard: &ShardId, lost: LostTime) -> Result<(), PortError> {
        let (key, world) = ((group, shard.clone()), self.world.clone());
        self.call("note_lost", move |state| {
            world.note(|| format!("{} of {} has lost records", key.1, group.as_str()));
            state.rows.get_mut(&key).into_iter().for_each(|row| row.note_lost(lost));
        })
        .await
    }

    async fn delete(&self, group: Group, shard: &ShardId) -> Result<(), PortError> {
        let (key, world) = ((group, shard.clone()), self.world.clone());
        self.call("delete_row", move |state| {
            if state.rows.get(&key).is_some_and(ShardRow::is_deletable) {
                world.note(|| format!("the row of {} of {} is deleted", key.1, group.as_str()));
                state.rows.remove(&key);
            }
        })
        .await
    }
}

/// Without faults, the engines of the simulation pass the contract suite. So what the simulation finds holds for other
/// engines that pass it.
#[cfg(test)]
mod tests {
    use std::future::Future;

    use votestream_testkit::contract;

    use super::*;
    use crate::world::Faults;

    async fn holds<F: Future<Output = ()>>(check: impl FnOnce(Ports) -> F) {
        let world = World::new(1, 3, Arc::<Faults>::default(), false);
        world.calm.store(true, Ordering::Relaxed);
        check(Host::new(world, Arc::default(), 0).ports()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_contract_of_the_stream() {
        holds(contract::check_stream).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_contract_of_votes() {
        holds(contract::check_votes).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_contract_of_tallies() {
        holds(contract::check_tallies).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_contract_of_polls() {
        holds(contract::check_polls).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_contract_of_leases() {
        holds(contract::check_leases).await;
    }
}
