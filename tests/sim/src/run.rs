//! One run: processes and clients start, faults happen, everything settles, and the auditor judges.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use rand::{RngExt, seq::IndexedRandom};
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use votestream_core::{
    Clock, Poll, PollId, PollOption, PollSource, TimeBounds,
    consume::group::{self, GroupConfig},
    mutation::{self, Mutation},
    polls::cache::PollCache,
    port::Group,
    produce::Producer,
};
use votestream_ingest::{Admission, IngestConfig};
use votestream_persist::PersistAppliers;
use votestream_tally::{Finalizer, TallyAppliers};

use super::{
    auditor,
    clients::{self, IngestProcess, Ingests, Log, OPTIONS, OpenPolls},
    host::{Frozen, Host},
    producers,
    world::{Fault, Faults, World},
};

/// Time limits of a run. Short, so that their edges occur often.
pub(super) const BOUNDS: TimeBounds = TimeBounds {
    answer_deadline: Duration::from_secs(2),
    clock_skew_max: Duration::from_millis(200),
    poll_cache_life: Duration::from_millis(400),
};
const INGESTS: usize = 2;
const WORKERS: usize = 2;
const CLIENTS: usize = 6;
/// How long clients vote and faults happen.
const ACTIVE: Duration = Duration::from_secs(30);
/// Longest time until everything is final and committed, after the last fault.
const REST_MAX: Duration = Duration::from_secs(300);
/// Time after which every late copy has arrived.
pub(super) const AFTERMATH: Duration = Duration::from_secs(60);

/// Settings of a run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The seed of everything.
    pub seed: u64,
    /// Whether to keep every event.
    pub keep_trace: bool,
}

/// The result of a run.
#[derive(Debug)]
pub struct Report {
    /// What was violated, if anything.
    pub verdict: Result<(), String>,
    /// Votes that clients sent.
    pub votes: usize,
    /// Hash over all events. Equal seeds give equal hashes.
    pub trace_hash: u64,
    /// All events, if they are kept.
    pub trace: Vec<String>,
}

/// Runs one seed on its own clock, which stands still while there is work.
///
/// # Errors
///
/// If no runtime can be made.
pub fn run(settings: Settings, faults: Arc<Faults>) -> std::io::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    Ok(runtime.block_on(simulate(settings, faults)))
}

async fn simulate(settings: Settings, faults: Arc<Faults>) -> Report {
    let world = World::new(settings.seed, 1 + (settings.seed % 3) as u32, faults, settings.keep_trace);
    let log = Arc::new(Log::default());
    let verdict = schedule(&world, &log).await;
    let votes = log.take();
    let verdict =
        verdict.and_then(|finals| auditor::judge(&world.state.lock(), &votes, &world.foreign.lock(), &finals));
    let (trace_hash, trace) = world.take_trace();
    Report { verdict, votes: votes.len(), trace_hash, trace }
}

/// Returns the results at the moment they became final.
async fn schedule(world: &Arc<World>, log: &Arc<Log>) -> Result<BTreeMap<String, Vec<u64>>, String> {
    let ingests: Ingests = Arc::new(Mutex::new(vec![None; INGESTS]));
    let polls: OpenPolls = Arc::default();
    let until = Instant::now() + ACTIVE;
    let mut processes: Vec<Process> = Vec::new();
    for at in 0..INGESTS {
        processes.push(Process::start(world, Kind::Ingest(at), &ingests));
    }
    for at in 0..WORKERS {
        processes.push(Process::start(world, Kind::Worker(Group::Persist, at), &ingests));
        processes.push(Process::start(world, Kind::Worker(Group::Tally, at), &ingests));
    }
    let streams: OpenPolls = Arc::default();
    let admins = [
        tokio::spawn(administer(world.clone(), polls.clone(), PollSource::Ingest, until)),
        tokio::spawn(administer(world.clone(), streams.clone(), PollSource::Stream, until)),
    ];
    let producer = tokio::spawn(producers::produce(world.clone(), polls.clone(), streams.clone(), until));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let polls = [polls.clone(), streams.clone()];
            tokio::spawn(clients::client(world.clone(), ingests.clone(), polls, log.clone(), until))
        })
        .collect();

    while Instant::now() < until {
        sleep(Duration::from_millis(world.draw(|rng| rng.random_range(100..1_200)))).await;
        let victim = world.draw(|rng| rng.random_range(0..processes.len()));
        match world.draw(|rng| rng.random_range(0..14)) {
            0..3 => world.reshard(),
            3..6 => {
                world.fault(Fault::Crash);
                processes[victim].crash(world, &ingests);
                sleep(Duration::from_millis(world.draw(|rng| rng.random_range(0..1_500)))).await;
                processes[victim] = Process::start(world, processes[victim].kind, &ingests);
            }
            6..9 => {
                world.fault(Fault::Freeze);
                world.note(|| format!("{:?} freezes", processes[victim].kind));
                let frozen = processes[victim].frozen.clone();
                let length = Duration::from_millis(world.draw(|rng| rng.random_range(500..9_000)));
                frozen.set(true);
                let (kind, world) = (processes[victim].kind, world.clone());
                let dead = processes[victim].dead.clone();
                tokio::spawn(async move {
                    sleep(length).await;
                    if !dead.is_cancelled() {
                        world.note(|| format!("{kind:?} wakes up"));
                        frozen.set(false);
                    }
                });
            }
            9 => world.steal(),
            10 => world.slow_down(Duration::from_millis(world.draw(|rng| rng.random_range(500..8_000)))),
            11 => world.fill_up(Duration::from_millis(world.draw(|rng| rng.random_range(200..5_000)))),
            12 => processes[victim].jump(world),
            _ => world.vanish(),
        }
    }

    for admin in admins.into_iter().chain([producer]) {
        admin.await.map_err(|error| format!("an administrator or producer failed: {error}"))?;
    }
    for client in clients {
        timeout(REST_MAX, client)
            .await
            .map_err(|_| "a client was never answered")?
            .map_err(|error| error.to_string())?;
    }
    world.calm.store(true, Ordering::Relaxed);
    mend_clocks(world, &mut processes, &ingests);
    let is_final = || world.state.lock().polls.values().all(|poll| poll.final_result.is_some());
    wait_for("every poll is final", is_final, world).await?;
    let finals = finals(world);
    // What arrives from now on must not change anything.
    sleep(AFTERMATH).await;
    wait_for("everything is committed", || is_committed(world), world).await?;
    Ok(finals)
}

/// Restarts processes with a wrong clock on a machine with a right clock. Otherwise no process could complete the
/// closing of a poll.
fn mend_clocks(world: &Arc<World>, processes: &mut [Process], ingests: &Ingests) {
    for process in processes.iter_mut().filter(|process| process.clock.is_wrong()) {
        process.crash(world, ingests);
        *process = Process::start(world, process.kind, ingests);
    }
}

pub(super) fn finals(world: &World) -> BTreeMap<String, Vec<u64>> {
    let state = world.state.lock();
    let result = |poll: &Poll| poll.final_result.as_ref().map(|result| result.votes.clone());
    state.polls.values().filter_map(|poll| Some((poll.id.to_string(), result(poll)?))).collect()
}

pub(super) async fn wait_for(what: &str, condition: impl Fn() -> bool, world: &World) -> Result<(), String> {
    let met = async {
        while !condition() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(REST_MAX, met).await.map_err(|_| {
        let state = world.state.lock();
        let flagged: Vec<_> = state.polls.values().filter(|poll| poll.needs_recount).map(|poll| &poll.id).collect();
        let rows: Vec<_> = state.rows.iter().map(|((group, _), row)| (group, row)).collect();
        format!("did not happen in time: {what}; polls whose data contradict each other: {flagged:?}; rows: {rows:?}")
    })
}

/// Whether both groups have committed every record of every shard.
pub(super) fn is_committed(world: &World) -> bool {
    let state = world.state.lock();
    [Group::Persist, Group::Tally].into_iter().all(|group| {
        state.shards.iter().all(|(shard, records)| {
            state.rows.get(&(group, shard.id.clone())).is_some_and(|row| {
                let last = records.last().map(|stored| stored.record.sequence).unwrap_or_default();
                let progress = &row.progress;
                progress.checkpoint >= last
                    && progress.window_end == progress.checkpoint
                    && progress.ended != shard.open
            })
        })
    })
}

/// Creates polls with this source, and closes some of them early.
async fn administer(world: Arc<World>, polls: OpenPolls, source: PollSource, until: Instant) {
    let skew = skew(&world);
    let host = Host::new(world.clone(), Arc::default(), skew);
    let ports = host.ports();
    for number in 0.. {
        if Instant::now() + Duration::from_secs(5) > until {
            break;
        }
        let Ok(id) = PollId::new(&format!("{}-{number}", if source == PollSource::Ingest { "poll" } else { "stream" }))
        else {
            return;
        };
        let options = (0..OPTIONS).map(|option| PollOption { id: option.to_string().into(), title: String::new() });
        let opens_at =
            host.now().plus(if source == PollSource::Ingest { Duration::ZERO } else { BOUNDS.close_margin() });
        let closes_at = opens_at.plus(Duration::from_millis(world.draw(|rng| rng.random_range(3_000..20_000))));
        let poll = Poll::new(id.clone(), String::new(), options.collect(), opens_at, closes_at, source, 1);
        let Ok(poll) = poll else { return };
        if source == PollSource::Stream {
            // Other producers may use the poll at once. This write is assumed to arrive within two seconds.
            polls.lock().push((id.clone(), 0));
            sleep(Duration::from_millis(world.draw(|rng| rng.random_range(0..CREATE_MS_MAX)))).await;
            world.state.lock().polls.insert(id.clone(), poll);
        } else {
            while ports.polls.create(&poll).await.is_err() {
                sleep(Duration::from_millis(50)).await;
            }
            polls.lock().push((id.clone(), 0));
        }
        if world.draw(|rng| rng.random_bool(0.7)) {
            sleep(Duration::from_millis(world.draw(|rng| rng.random_range(500..4_000)))).await;
            world.fault(Fault::EarlyClose);
            if mutation::is_active(Mutation::ClosedInOneStep) {
                ports.polls.close(&id, host.now().plus(BOUNDS.close_margin())).await.ok();
                continue;
            }
            // Like the service. Sometimes the closing process dies before the second step.
            while ports.polls.begin_close(&id).await.is_err() {
                sleep(Duration::from_millis(50)).await;
            }
            if world.draw(|rng| rng.random_bool(0.7)) {
                let closes_at = host.now().plus(BOUNDS.settle_margin());
                // Sometimes the write is delayed until long after the closing time that it names.
                let held = world.draw(|rng| if rng.random_bool(0.6) { rng.random_range(0..HELD_MS_MAX) } else { 0 });
                sleep(Duration::from_millis(held)).await;
                while ports.polls.close(&id, closes_at).await.is_err() {
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
        sleep(Duration::from_millis(world.draw(|rng| rng.random_range(1_000..6_000)))).await;
    }
}

/// Longest delay of the second step of a closing.
const HELD_MS_MAX: u64 = 9_000;
/// Time within which the write of a STREAM poll arrives.
const CREATE_MS_MAX: u64 = 2_000;

/// By how much a wrong clock is behind: from just beyond the bound to far beyond L. Each vote with such a stamp must be
/// refused, or must still be in time.
const BEHIND_MS: std::ops::Range<i64> = 300..20_000;
/// By how much a wrong clock is ahead. A smaller difference cannot be proven by one answer: its time is cut to seconds,
/// and it may take as long as a vote may wait.
const AHEAD_MS: std::ops::Range<i64> = 4_000..60_000;
/// One of this many ingest processes starts with a wrong clock.
const WRONG_CLOCK_ONE_IN: u32 = 8;

/// The clock of an ingest process. It is sometimes wrong.
fn skew_of_ingest(world: &World) -> i64 {
    if world.is_calm() {
        return skew(world);
    }
    let (kind, behind, ahead) = world.draw(|rng| {
        (rng.random_range(0..2 * WRONG_CLOCK_ONE_IN), rng.random_range(BEHIND_MS), rng.random_range(AHEAD_MS))
    });
    let wrong = match kind {
        0 => -behind,
        1 => ahead,
        _ => return skew(world),
    };
    world.fault(Fault::WrongClock);
    world.note(|| format!("a clock is ahead by {wrong} ms"));
    wrong
}

/// Difference of a clock from the true time. Any two clocks differ by at most the skew bound.
fn skew(world: &World) -> i64 {
    let max = BOUNDS.clock_skew_max.as_millis() as i64 / 2;
    let skew = world.draw(|rng| *[-max, -max / 2, 0, max / 2, max].choose(rng).unwrap_or(&0));
    if skew != 0 {
        world.fault(Fault::Skew);
    }
    skew
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Ingest(usize),
    Worker(Group, usize),
}

/// A process that can be frozen and killed.
pub(super) struct Process {
    kind: Kind,
    frozen: Arc<Frozen>,
    dead: CancellationToken,
    task: AbortHandle,
    clock: Host,
}

impl Process {
    pub(super) fn start(world: &Arc<World>, kind: Kind, ingests: &Ingests) -> Self {
        let frozen = Arc::<Frozen>::default();
        let skew = match kind {
            Kind::Ingest(_) => skew_of_ingest(world),
            Kind::Worker(..) => skew(world),
        };
        let host = Host::new(world.clone(), frozen.clone(), skew);
        let clock = host.clone();
        let dead = CancellationToken::new();
        let (seed, producer) = world.draw(|rng| (rng.random(), rng.random()));
        world.note(|| format!("{kind:?} starts"));
        let task = match kind {
            Kind::Ingest(at) => tokio::spawn(ingest(host, at, seed, producer, ingests.clone(), dead.clone())),
            Kind::Worker(group, at) => tokio::spawn(worker(host, group, format!("{}-{at}-{seed}", group.as_str()))),
        };
        Self { kind, frozen, dead, task: task.abort_handle(), clock }
    }

    /// Makes its clock jump ahead, as after a suspend or a wrong synchronisation.
    fn jump(&self, world: &World) {
        let ahead = world.draw(|rng| rng.random_range(AHEAD_MS));
        world.fault(Fault::WrongClock);
        world.note(|| format!("the clock of {:?} jumps ahead by {ahead} ms", self.kind));
        self.clock.jump(ahead);
    }

    /// Ends the process. Only requests that it has already sent go on.
    pub(super) fn crash(&self, world: &World, ingests: &Ingests) {
        world.note(|| format!("{:?} crashes", self.kind));
        self.frozen.set(true);
        self.dead.cancel();
        self.task.abort();
        if let Kind::Ingest(at) = self.kind {
            ingests.lock()[at] = None;
        }
    }
}

/// Small batches, so that much happens between them.
fn ingest_config(seed: u64, producer: u128) -> IngestConfig {
    let mut config = IngestConfig::one_machine();
    config.bounds = BOUNDS;
    config.lanes.bounds = BOUNDS;
    config.lanes.seed = seed;
    config.lanes.producer = producer;
    config.lanes.linger = Duration::from_millis(seed % 40);
    config.lanes.batch_votes_max = 5;
    config.lanes.refresh_every = Duration::from_secs(3);
    config
}

async fn ingest(host: Host, at: usize, seed: u64, producer: u128, ingests: Ingests, dead: CancellationToken) {
    let ports = host.ports();
    let config = ingest_config(seed, producer);
    let producer = loop {
        match Producer::start(config.lanes, ports.stream.clone(), ports.clock.clone()).await {
            Ok(producer) => break producer,
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    };
    let polls = PollCache::new(ports.polls.clone(), ports.clock.clone(), BOUNDS.poll_cache_life);
    let admission = Arc::new(Admission::new(&config, producer, polls, ports.clock.clone()));
    ingests.lock()[at] = Some(IngestProcess { admission, dead });
}

async fn worker(host: Host, group: Group, worker_id: String) {
    let ports = host.ports();
    let never = CancellationToken::new();
    let finalizer = Finalizer::new(ports.clone(), BOUNDS);
    let finalize = async {
        match group {
            Group::Tally => finalizer.run(never.clone()).await,
            Group::Persist => std::future::pending().await,
        }
    };
    let consume = async {
        loop {
            let mut config = GroupConfig::one_machine(group);
            config.worker_id.clone_from(&worker_id);
            config.bounds = BOUNDS;
            config.failover = Duration::from_secs(3);
            config.renew_every = Duration::from_millis(800);
            config.sync_every = Duration::from_millis(600);
            config.window.votes_max = 8;
            config.window.records_max = 4;
            config.window.linger = Duration::from_millis(80);
            config.window.idle_after = Duration::from_millis(250);
            let factory: Arc<dyn group::ApplierFactory> = match group {
                Group::Persist => Arc::new(PersistAppliers::new(ports.votes.clone(), ports.tallies.clone())),
                Group::Tally => Arc::new(TallyAppliers::new(ports.tallies.clone())),
            };
            // Start a worker again when it ends, like a supervisor.
            group::run(config, ports.clone(), factory, never.clone()).await.ok();
            sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::join!(finalize, consume);
}
