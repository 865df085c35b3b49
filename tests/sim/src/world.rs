//! The simulated engines: one stream and one store, shared by all processes, and the faults between them.
//!
//! Every effect is atomic and linearizable, as the ports promise. Everything else is drawn from the seed: how long a
//! request takes, whether it is refused, whether its answer is lost, whether a copy of it arrives later.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep},
};
use votestream_core::{
    HashRange, Poll, PollId, SequenceNumber, ShardId, Timestamp,
    port::{Group, Lease, PortError, Record, Shard, ShardRow, Stored, StoredVote},
};

/// Kinds of faults that a run injects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A request was refused without effect.
    Refused,
    /// A request took effect and its answer was lost.
    AnswerLost,
    /// A request took effect, and a copy of it took effect later.
    LateCopy,
    /// A request took so long that its caller had given up.
    Slow,
    /// A process was killed.
    Crash,
    /// A process was frozen and woke up.
    Freeze,
    /// A shard was split.
    Split,
    /// Two shards were merged.
    Merge,
    /// The clocks of two processes differed.
    Skew,
    /// A poll was closed early.
    EarlyClose,
    /// A lease was taken from a healthy owner.
    Theft,
    /// Requests to one shard were slow for a while.
    SlowShard,
    /// The store accepted no writes for a while, as if its disk were full.
    FullStore,
    /// A process stopped for a while before a reading of a clock.
    Stall,
    /// A process had a clock that was wrong by more than the bound, from its start or by a jump.
    WrongClock,
    /// Another producer put a record.
    Foreign,
    /// A record of our format named a poll that gets its votes from the stream.
    WrongSource,
    /// The stream forgot a shard that both groups had read.
    Vanish,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Self; 18] = [
        Self::Refused,
        Self::AnswerLost,
        Self::LateCopy,
        Self::Slow,
        Self::Crash,
        Self::Freeze,
        Self::Split,
        Self::Merge,
        Self::Skew,
        Self::EarlyClose,
        Self::Theft,
        Self::SlowShard,
        Self::FullStore,
        Self::Stall,
        Self::WrongClock,
        Self::Foreign,
        Self::WrongSource,
        Self::Vanish,
    ];
}

/// How many faults of each kind were injected.
#[derive(Debug, Default)]
pub struct Faults([AtomicU64; Fault::ALL.len()]);

impl Faults {
    /// Counts one.
    pub fn add(&self, fault: Fault) {
        self.0[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn get(&self, fault: Fault) -> u64 {
        self.0[fault as usize].load(Ordering::Relaxed)
    }
}

/// A stored tally.
#[derive(Clone, Debug, Default)]
pub(super) struct StoredTally {
    pub(super) position: SequenceNumber,
    pub(super) counts: BTreeMap<Arc<str>, i64>,
}

/// A vote that another producer has put into the stream.
#[derive(Clone, Debug)]
pub(super) struct ForeignVote {
    pub(super) poll: PollId,
    pub(super) user: String,
    pub(super) option: usize,
    /// The hash by which a vote of an aggregate was routed.
    pub(super) hash: Option<u128>,
}

/// A record, and the time from which readers see it.
pub(super) struct StoredRecord {
    pub(super) record: Record,
    pub(super) visible_at: Instant,
}

/// What is stored.
#[derive(Default)]
pub(super) struct State {
    pub(super) shards: Vec<(Shard, Vec<StoredRecord>)>,
    /// Shards that the stream has forgotten. Only the auditor still sees their records.
    pub(super) vanished: BTreeSet<ShardId>,
    sequence: u64,
    pub(super) polls: BTreeMap<PollId, Poll>,
    pub(super) votes: BTreeMap<(PollId, Arc<str>), StoredVote>,
    pub(super) tallies: BTreeMap<(PollId, Group, ShardId), StoredTally>,
    pub(super) rows: BTreeMap<(Group, ShardId), ShardRow>,
}

/// The result of one put; replaces what the seed would draw.
#[derive(Debug)]
pub(super) struct ScriptedPut {
    /// How long the request takes to arrive.
    pub(super) hold: Duration,
    /// What happens to the shards just before it arrives.
    pub(super) before: Vec<Reshard>,
    pub(super) fate: Fate,
    /// How long its record stays invisible.
    pub(super) invisible: Duration,
    /// What happens to the shards just after it has arrived.
    pub(super) after: Vec<Reshard>,
    /// How long after that a copy of it arrives.
    pub(super) copy: Option<Duration>,
}

/// The answer to a scripted put, and whether the put took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Stored,
    Refused,
    /// Stored, but the answer is lost.
    AnswerLost,
}

/// A split or a merge. Shards are numbered in the order in which they were made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reshard {
    /// The second part starts with this hash.
    Split(usize, u128),
    /// The first shard is the lower one.
    Merge(usize, usize),
}

impl State {
    fn owner(&self, hash: u128) -> Option<ShardId> {
        let owner = self.shards.iter().find(|(shard, _)| shard.open && shard.range.contains(hash));
        owner.map(|(shard, _)| shard.id.clone())
    }
}

/// The engines of one run.
pub(super) struct World {
    pub(super) state: Mutex<State>,
    rng: Mutex<StdRng>,
    pub(super) faults: Arc<Faults>,
    origin: Instant,
    /// Notified when something was stored in the stream.
    pub(super) changed: Notify,
    /// Whether the run is near its end: then no more faults happen.
    pub(super) calm: AtomicBool,
    /// A shard that is slow, and until when.
    slow: Mutex<Option<(ShardId, Instant)>>,
    /// Until when the store accepts no writes.
    full_until: Mutex<Instant>,
    /// The next puts. When none is left, the seed draws.
    pub(super) script: Mutex<VecDeque<ScriptedPut>>,
    /// The votes that other producers have put, by record. Only the auditor uses this.
    pub(super) foreign: Mutex<HashMap<Bytes, Vec<ForeignVote>>>,
    /// Shards whose records a group does not see at present.
    pub(super) unreadable: Mutex<Vec<(Group, ShardId)>>,
    /// Shards whose rows cannot be started at present.
    pub(super) unstartable: Mutex<Vec<ShardId>>,
    trace: Mutex<(DefaultHasher, Option<Vec<String>>)>,
}

/// Wall clock time at which a run starts.
const EPOCH: Timestamp = Timestamp(1_700_000_000_000);
/// Longest time of an ordinary request, each way.
const LATENCY_MS_MAX: u64 = 30;
/// Longest time of a slow request, or until a copy arrives. Much longer than L.
const SLOW_MS_MAX: u64 = 25_000;
/// By how much a record's arrival timestamp may be earlier than the moment it was stored.
const ARRIVAL_JITTER_MS_MAX: i64 = 900;
/// Longest extra time of a request to a slow shard. Sometimes longer than a batch is tried.
const SLOW_SHARD_MS_MAX: u64 = 2_500;
/// Requests that a full store answers.
const READS: [&str; 7] = ["list_shards", "read", "get_poll", "list_polls", "recount", "read_tallies", "list_rows"];
/// In four of this many readings of a clock, the process stops before the reading: three times shortly, and once for
/// longer than a poll's definition is valid.
const STALL_ONE_IN: u32 = 200;
const STALL_SHORT_MS_MAX: u64 = 60;
const STALL_LONG_MS_MIN: u64 = 700;
const STALL_LONG_MS_MAX: u64 = 2_000;
/// Longest time until a stored record becomes visible.
const VISIBLE_MS_MAX: u64 = 300;

impl World {
    pub(super) fn new(seed: u64, shards: u32, faults: Arc<Faults>, keep_trace: bool) -> Arc<Self> {
        let ranges = HashRange::split_evenly(shards).into_iter().enumerate();
        let shards = ranges
            .map(|(at, range)| (Shard { id: id(at), range, parents: vec![], open: true, ends_at: None }, Vec::new()));
        Arc::new(Self {
            state: Mutex::new(State { shards: shards.collect(), ..State::default() }),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            faults,
            origin: Instant::now(),
            changed: Notify::new(),
            calm: AtomicBool::new(false),
            slow: Mutex::default(),
            full_until: Mutex::new(Instant::now()),
            script: Mutex::default(),
            foreign: Mutex::default(),
            unreadable: Mutex::default(),
            unstartable: Mutex::default(),
            trace: Mutex::new((DefaultHasher::new(), keep_trace.then(Vec::new))),
        })
    }

    /// The true time.
    pub(super) fn now(&self) -> Timestamp {
        self.at(Instant::now())
    }

    /// The true time of an instant.
    pub(super) fn at(&self, instant: Instant) -> Timestamp {
        EPOCH.plus(instant.saturating_duration_since(self.origin))
    }

    /// Draws from the seed.
    pub(super) fn draw<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.rng.lock())
    }

    pub(super) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    /// Logs an event.
    pub(super) fn note(&self, event: impl FnOnce() -> String) {
        let mut trace = self.trace.lock();
        let line = format!("{:>9.3} {}", self.origin.elapsed().as_secs_f64(), event());
        line.hash(&mut trace.0);
        if let Some(lines) = &mut trace.1 {
            lines.push(line);
        }
    }

    /// Hash over all events, and the events if they were kept.
    pub(super) fn take_trace(&self) -> (u64, Vec<String>) {
        let mut trace = self.trace.lock();
        (trace.0.finish(), trace.1.take().unwrap_or_default())
    }

    /// Sends a request after `lag`. It takes effect even if nobody waits for the answer.
    pub(super) async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        what: &'static str,
        lag: Duration,
        effect: impl Fn(&mut State) -> T + Send + 'static,
    ) -> Result<T, PortError> {
        let calm = self.is_calm();
        let mut plan = self.draw(|rng| Plan::draw(rng, calm));
        plan.before += lag;
        plan.refused |= !calm && !READS.contains(&what) && *self.full_until.lock() > Instant::now();
        self.carry_out(plan, what, effect).await
    }

    /// Extra time of a request to this shard.
    pub(super) fn slowness(&self, shard: &ShardId) -> Duration {
        let slow = self.slow.lock().as_ref().is_some_and(|(slow, until)| slow == shard && *until > Instant::now());
        if !slow || self.is_calm() {
            return Duration::ZERO;
        }
        self.draw(|rng| Duration::from_millis(rng.random_range(0..SLOW_SHARD_MS_MAX)))
    }

    /// Makes a shard slow for a while.
    pub(super) fn slow_down(&self, length: Duration) {
        let shards: Vec<ShardId> = self.state.lock().shards.iter().map(|(shard, _)| shard.id.clone()).collect();
        let shard = shards[self.draw(|rng| rng.random_range(0..shards.len()))].clone();
        self.fault(Fault::SlowShard);
        self.note(|| format!("{shard} is slow for {length:?}"));
        *self.slow.lock() = Some((shard, Instant::now() + length));
    }

    /// Fills the store for a while.
    pub(super) fn fill_up(&self, length: Duration) {
        self.fault(Fault::FullStore);
        self.note(|| format!("the store is full for {length:?}"));
        *self.full_until.lock() = Instant::now() + length;
    }

    /// Takes the lease of a random shard, for an owner that does not exist.
    pub(super) fn steal(&self) {
        let mut state = self.state.lock();
        let owned: Vec<_> = state.rows.values_mut().filter(|row| row.lease.owner.is_some()).collect();
        let count = owned.len();
        if count == 0 {
            return;
        }
        let at = self.draw(|rng| rng.random_range(0..count));
        for row in owned.into_iter().skip(at).take(1) {
            let (epoch, counter) = (row.lease.epoch + 1, row.lease.counter + 1);
            row.lease = Lease { owner: Some("thief".into()), counter, epoch, wanted_by: None };
            self.fault(Fault::Theft);
            self.note(|| format!("{} is stolen under epoch {epoch}", row.shard));
        }
    }

    async fn carry_out<T: Send + 'static>(
        self: &Arc<Self>,
        plan: Plan,
        what: &'static str,
        effect: impl Fn(&mut State) -> T + Send + 'static,
    ) -> Result<T, PortError> {
        let (answer, answered) = oneshot::channel();
        let world = self.clone();
        tokio::spawn(async move {
            sleep(plan.before).await;
            if plan.refused {
                world.fault(Fault::Refused);
                effect_on_shards(&world, &plan.before_effect);
                effect_on_shards(&world, &plan.after_effect);
                sleep(plan.after).await;
                // The caller may have given up.
                answer.send(Err(PortError::refused(format!("{what} was throttled")))).ok();
                return;
            }
            if plan.slow {
                world.fault(Fault::Slow);
            }
            effect_on_shards(&world, &plan.before_effect);
            let result = effect(&mut world.state.lock());
            effect_on_shards(&world, &plan.after_effect);
            world.changed.notify_waiters();
            sleep(plan.after).await;
            if plan.lost {
                world.fault(Fault::AnswerLost);
                answer.send(Err(PortError::unknown(format!("the answer to {what} was lost")))).ok();
            } else {
                answer.send(Ok(result)).ok();
            }
            if let Some(later) = plan.copy {
                sleep(later).await;
                world.fault(Fault::LateCopy);
                world.note(|| format!("a copy of {what} lands"));
                drop(effect(&mut world.state.lock()));
                world.changed.notify_waiters();
            }
        });
        answered.await.unwrap_or_else(|_| Err(PortError::unknown("the network is gone")))
    }

    /// How long a process stops before it reads a clock. Nearly always zero.
    pub(super) fn stall(&self) -> Duration {
        if self.is_calm() {
            return Duration::ZERO;
        }
        let (kind, short, long) = self.draw(|rng| {
            (
                rng.random_range(0..STALL_ONE_IN),
                rng.random_range(1..=STALL_SHORT_MS_MAX),
                rng.random_range(0..=STALL_LONG_MS_MAX),
            )
        });
        let length = match kind {
            0..3 => short,
            3 => STALL_LONG_MS_MIN + long,
            _ => return Duration::ZERO,
        };
        self.fault(Fault::Stall);
        self.note(|| format!("a process stands still for {length} ms"));
        Duration::from_millis(length)
    }

    pub(super) fn fault(&self, fault: Fault) {
        self.faults.add(fault);
    }

    /// Sends a record after `lag` and stores it. Also returns the time. A copy of the request stores it once more.
    pub(super) async fn put(
        self: &Arc<Self>,
        hash: u128,
        lag: Duration,
        data: Bytes,
    ) -> Result<(Stored, Timestamp), PortError> {
        let (jitter, visible) = self.draw(|rng| {
            let jitter = if rng.random_bool(0.3) { rng.random_range(0..=ARRIVAL_JITTER_MS_MAX) } else { 0 };
            (jitter, Duration::from_millis(rng.random_range(0..=VISIBLE_MS_MAX)))
        });
        let calm = self.is_calm();
        let jitter = if calm { 0 } else { jitter };
        let (plan, visible) = match self.script.lock().pop_front() {
            Some(put) => {
                let visible = visible.max(put.invisible);
                (self.draw(|rng| Plan::draw(rng, true)).scripted(put), visible)
            }
            None => {
                let mut plan = self.draw(|rng| Plan::draw(rng, calm));
                let owner = self.state.lock().owner(hash);
                plan.before += owner.map_or(Duration::ZERO, |shard| self.slowness(&shard));
                (plan, visible)
            }
        };
        let mut plan = plan;
        plan.before += lag;
        let world = self.clone();
        self.carry_out(plan, "put", move |state| {
            state.sequence += 1;
            let sequence = SequenceNumber::from_u64(state.sequence);
            let arrived_at = Timestamp(world.now().0 - jitter);
            let owner = state.shards.iter_mut().find(|(shard, _)| shard.open && shard.range.contains(hash));
            let (shard, records) = owner.expect("the open shards own every hash");
            let visible_at =
                records.last().map_or(Instant::now(), |last| last.visible_at).max(Instant::now() + visible);
            let record = Record { sequence, arrived_at, partition_key: String::new(), data: data.clone() };
            records.push(StoredRecord { record, visible_at });
            world.note(|| format!("record {sequence} of {} bytes is stored in {}", data.len(), shard.id));
            (Stored { shard: shard.id.clone(), sequence }, world.now())
        })
        .await
    }

    /// Splits or merges shards at random.
    pub(super) fn reshard(&self) {
        let mut state = self.state.lock();
        let mut open: Vec<usize> = (0..state.shards.len()).filter(|&at| state.shards[at].0.open).collect();
        open.sort_by_key(|&at| state.shards[at].0.range);
        let split = open.len() < 2 || (open.len() < 5 && self.draw(|rng| rng.random()));
        let (parents, ranges) = if split {
            let at = open[self.draw(|rng| rng.random_range(0..open.len()))];
            let HashRange { start, end } = state.shards[at].0.range;
            let width = end - start;
            if width < 4 {
                return;
            }
            let middle = start + width / 4 + self.draw(|rng| rng.random_range(0..width / 2));
            (vec![at], vec![HashRange { start, end: middle }, HashRange { start: middle + 1, end }])
        } else {
            let left = self.draw(|rng| rng.random_range(0..open.len() - 1));
            let (a, b) = (open[left], open[left + 1]);
            let (start, end) = (state.shards[a].0.range.start, state.shards[b].0.range.end);
            (vec![a, b], vec![HashRange { start, end }])
        };
        self.fault(if split { Fault::Split } else { Fault::Merge });
        self.replace(&mut state, &parents, &ranges);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Makes the stream forget the oldest closed shard that both groups have read, as after its retention.
    pub(super) fn vanish(&self) {
        let mut state = self.state.lock();
        let ended = |shard: &ShardId| {
            let rows = [Group::Persist, Group::Tally].map(|group| state.rows.get(&(group, shard.clone())));
            rows.into_iter().all(|row| row.is_some_and(|row| row.progress.ended))
        };
        let shards = state.shards.iter().map(|(shard, _)| &shard.id);
        let oldest = shards.filter(|shard| !state.vanished.contains(*shard)).find(|shard| ended(shard)).cloned();
        if let Some(shard) = oldest {
            self.fault(Fault::Vanish);
            self.note(|| format!("the stream forgets {shard}"));
            state.vanished.insert(shard);
        }
    }

    /// Splits or merges these shards.
    pub(super) fn reshard_so(&self, reshard: Reshard) {
        let mut state = self.state.lock();
        let range = |at: usize| state.shards[at].0.range;
        let (parents, ranges) = match reshard {
            Reshard::Split(at, middle) => {
                self.fault(Fault::Split);
                let HashRange { start, end } = range(at);
                (vec![at], vec![HashRange { start, end: middle - 1 }, HashRange { start: middle, end }])
            }
            Reshard::Merge(a, b) => {
                self.fault(Fault::Merge);
                (vec![a, b], vec![HashRange { start: range(a).start, end: range(b).end }])
            }
        };
        self.replace(&mut state, &parents, &ranges);
        drop(state);
        self.changed.notify_waiters();
    }

    fn replace(&self, state: &mut State, parents: &[usize], ranges: &[HashRange]) {
        let names: Vec<ShardId> = parents.iter().map(|&at| state.shards[at].0.id.clone()).collect();
        parents.iter().for_each(|&at| state.shards[at].0.open = false);
        for &range in ranges {
            let shard = Shard { id: id(state.shards.len()), range, parents: names.clone(), open: true, ends_at: None };
            self.note(|| format!("{} takes over from {names:?}", shard.id));
            state.shards.push((shard, Vec::new()));
        }
    }
}

fn effect_on_shards(world: &World, reshards: &[Reshard]) {
    reshards.iter().for_each(|&reshard| world.reshard_so(reshard));
}

pub(super) fn id(at: usize) -> ShardId {
    ShardId::new(format!("shard-{at}"))
}

/// What happens to one request.
struct Plan {
    before: Duration,
    after: Duration,
    refused: bool,
    slow: bool,
    lost: bool,
    copy: Option<Duration>,
    before_effect: Vec<Reshard>,
    after_effect: Vec<Reshard>,
}

impl Plan {
    fn scripted(self, put: ScriptedPut) -> Self {
        Self {
            before: put.hold,
            refused: put.fate == Fate::Refused,
            lost: put.fate == Fate::AnswerLost,
            before_effect: put.before,
            after_effect: put.after,
            copy: put.copy,
            ..self
        }
    }

    fn draw(rng: &mut StdRng, calm: bool) -> Self {
        let latency = |rng: &mut StdRng| Duration::from_millis(rng.random_range(0..=LATENCY_MS_MAX));
        let long = |rng: &mut StdRng| Duration::from_millis(rng.random_range(100..=SLOW_MS_MAX));
        let mut plan = Self {
            before: latency(rng),
            after: latency(rng),
            refused: false,
            slow: false,
            lost: false,
            copy: None,
            before_effect: Vec::new(),
            after_effect: Vec::new(),
        };
        // Always draw the same number of values, so that a fault does not change the later draws.
        let (kind, length, when): (u32, Duration, bool) = (rng.random_range(0..100), long(rng), rng.random());
        if calm {
            return plan;
        }
        match kind {
            0..6 => plan.refused = true,
            6..12 => plan.lost = true,
            12..15 => plan.copy = Some(length),
            15..17 => {
                plan.slow = true;
                *(if when { &mut plan.before } else { &mut plan.after }) = length;
            }
            _ => {}
        }
        plan
    }
}
