//! Schedules written by hand. Each is the shortest one in which a missing rule loses a vote or counts it twice.
//!
//! Random schedules find some of these holes only once in thousands of seeds. Here the result of every put is given,
//! and nothing else fails. The real admission, lanes, groups and finalizer run as in every other run, and the same
//! auditor judges.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until};
use votestream_core::{Poll, PollId, PollOption, PollSource, Timestamp, mutation::Mutation, port::Group, vote_hash};
use votestream_ingest::{Admission, Caller, Session};
use votestream_proto::VotesMessage;

use crate::{
    auditor,
    clients::{self, Ingests, Log, Waiting},
    run::{AFTERMATH, BOUNDS, Kind, Process, Report, finals, is_committed, wait_for},
    world::{Fate, Faults, Reshard, ScriptedPut, World, id},
};

/// A schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// A part of a batch is stored in one child of a split. The children merge before the rest is sent again.
    RestMeetsMerge,
    /// A batch is refused by the parent and stored by a child without an answer. It is sent again after the children
    /// have merged.
    TwiceAcrossReshards,
    /// A batch is stored by the parent and by a child, both without an answer. It is sent again after the children have
    /// merged.
    StoredTwiceWithoutAnswer,
    /// The rest of a batch belongs to two shards that merge before it is sent.
    RestOfTwoShards,
    /// Two lanes of one producer go on while their shards merge. The older number comes last.
    LanesMeetInMerge,
    /// A request that was given up arrives after a newer batch of the same user.
    GivenUpLandsLate,
    /// A user votes again after a split, while the batch with the older vote is still being retried.
    ChildWaitsForRetry,
    /// A part of a batch is acknowledged, and the process dies before it sends the rest.
    CrashBeforeRest,
    /// A record becomes visible long after it was stored, when the poll could be final by every clock.
    ShowsAfterEnd,
    /// The shards of a poll are read long after its end, and one shard with its votes has not been started yet.
    ReadAfterEnd,
    /// A request that was given up arrives after the result is final.
    LandsAfterFinal,
    /// Two shards merge, but one group has read only one of them.
    ParentLagsBehind,
    /// A part of a batch is stored, and the rest is refused until it is given up. A copy of the first request arrives
    /// after the children have merged.
    CopyMeetsMerge,
}

impl Schedule {
    /// All schedules.
    pub const ALL: [Self; 13] = [
        Self::RestMeetsMerge,
        Self::TwiceAcrossReshards,
        Self::StoredTwiceWithoutAnswer,
        Self::RestOfTwoShards,
        Self::LanesMeetInMerge,
        Self::GivenUpLandsLate,
        Self::ChildWaitsForRetry,
        Self::CrashBeforeRest,
        Self::ShowsAfterEnd,
        Self::ReadAfterEnd,
        Self::LandsAfterFinal,
        Self::ParentLagsBehind,
        Self::CopyMeetsMerge,
    ];

    /// The break of the code that makes this schedule fail. Two schedules test designs for which there is no switch:
    /// sending the rest to two shards at once, and acknowledging a whole batch with its first answer.
    pub const fn broken_by(self) -> Option<Mutation> {
        match self {
            Self::RestMeetsMerge | Self::TwiceAcrossReshards | Self::LanesMeetInMerge => {
                Some(Mutation::DedupPerProducer)
            }
            Self::StoredTwiceWithoutAnswer => Some(Mutation::DedupNotInherited),
            Self::GivenUpLandsLate => Some(Mutation::NoDedup),
            Self::ChildWaitsForRetry => Some(Mutation::ChildLanesDoNotWait),
            Self::ShowsAfterEnd => Some(Mutation::WatermarkFromOwnClock),
            Self::ReadAfterEnd => Some(Mutation::FinalWithoutCoverage),
            Self::LandsAfterFinal => Some(Mutation::NoLateRule),
            Self::ParentLagsBehind => Some(Mutation::ChildrenBeforeParents),
            Self::CopyMeetsMerge => Some(Mutation::RestIsCertain),
            Self::RestOfTwoShards | Self::CrashBeforeRest => None,
        }
    }
}

/// Runs a schedule.
///
/// # Errors
///
/// If no runtime can be made.
pub fn run(schedule: Schedule) -> std::io::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    Ok(runtime.block_on(async {
        let (world, log) = (World::new(0, 1, Arc::<Faults>::default(), true), Arc::new(Log::default()));
        world.calm.store(true, Ordering::Relaxed);
        let verdict = play(schedule, &world, &log).await;
        let votes = log.take();
        let verdict =
            verdict.and_then(|finals| auditor::judge(&world.state.lock(), &votes, &world.foreign.lock(), &finals));
        let (trace_hash, trace) = world.take_trace();
        Report { verdict, votes: votes.len(), trace_hash, trace }
    }))
}

const POLL: &str = "poll";
const OPTIONS: usize = 16;
/// How long the poll is open.
const OPEN: Duration = Duration::from_secs(20);
/// Longer than the cache life of a shard map or a poll.
const NOTICED: Duration = Duration::from_secs(4);
/// Longer than the answer deadline, but not long enough to make a record late.
const GIVEN_UP: Duration = Duration::from_millis(2_900);
/// Long after the end of the poll by every clock.
const LONG: Duration = Duration::from_secs(60);

/// The hash at this many eighths of the hash space.
const fn eighth(eighths: u128) -> u128 {
    eighths << 125
}

/// A user whose hash is in this eighth of the hash space.
fn user(at: u128) -> String {
    let mut names = (0u32..).map(|number| format!("user-{number}"));
    names.find(|name| vote_hash(POLL, name) >> 125 == at).unwrap_or_default()
}

fn stored() -> ScriptedPut {
    let (before, after) = (Vec::new(), Vec::new());
    ScriptedPut { hold: Duration::ZERO, before, fate: Fate::Stored, invisible: Duration::ZERO, after, copy: None }
}

/// The processes and one client.
struct Stage {
    world: Arc<World>,
    log: Arc<Log>,
    ingests: Ingests,
    processes: Vec<Process>,
    client: Client,
}

/// A client with one stream.
struct Client {
    admission: Arc<Admission>,
    session: Arc<Session>,
    sent: u64,
    waiting: Waiting,
}

impl Stage {
    async fn set(world: &Arc<World>, log: &Arc<Log>) -> Result<Self, String> {
        let options = (0..OPTIONS).map(|at| PollOption { id: at.to_string().into(), title: String::new() }).collect();
        let poll_id = PollId::new(POLL).map_err(|error| error.to_string())?;
        let (opens_at, closes_at) = (world.now(), world.now().plus(OPEN));
        let poll = Poll::new(poll_id.clone(), String::new(), options, opens_at, closes_at, PollSource::Ingest, 1);
        world.state.lock().polls.insert(poll_id, poll.map_err(|error| error.to_string())?);
        let ingests: Ingests = Arc::new(Mutex::new(vec![None]));
        let ingest = Process::start(world, Kind::Ingest(0), &ingests);
        wait_for("ingest is up", || ingests.lock()[0].is_some(), world).await?;
        let admission = ingests.lock()[0].as_ref().map(|process| process.admission.clone()).ok_or("ingest is gone")?;
        let (session, waiting) = (Arc::new(Session::default()), Waiting::default());
        tokio::spawn(clients::answers(world.clone(), session.clone(), waiting.clone(), log.clone()));
        let client = Client { admission, session, sent: 0, waiting };
        Ok(Self { world: world.clone(), log: log.clone(), ingests, processes: vec![ingest], client })
    }

    fn script(&self, puts: impl IntoIterator<Item = ScriptedPut>) {
        self.world.script.lock().extend(puts);
    }

    /// Sends one vote of each user in one message. Returns when all are admitted.
    async fn cast(&mut self, users: &[&str]) -> Result<(), String> {
        let poll = PollId::new(POLL).map_err(|error| error.to_string())?;
        let mut message = VotesMessage::default();
        for user in users {
            let option = self.log.streams.fetch_add(1, Ordering::Relaxed) as usize;
            message.push(POLL, user, &option.to_string());
            let vote = self.log.sent(&poll, (*user).to_owned(), option, 0);
            self.world.note(|| format!("vote {vote}: {user} casts {option}"));
            self.client.waiting.lock().push_back(vote);
        }
        let Client { admission, session, sent, .. } = &mut self.client;
        let messages = [message];
        let permit = admission.acquire(&messages).await;
        *sent += admission
            .admit(session, &Caller::everybody(), *sent, &messages, permit)
            .await
            .map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Returns when every vote has its answer.
    async fn answered(&self) -> Result<(), String> {
        wait_for("every vote is answered", || self.client.waiting.lock().is_empty(), &self.world).await
    }

    /// Returns when at most this many votes still wait.
    async fn waiting(&self, votes: usize) -> Result<(), String> {
        wait_for("votes are answered", || self.client.waiting.lock().len() <= votes, &self.world).await
    }

    fn start_workers(&mut self) {
        for group in [Group::Persist, Group::Tally] {
            self.processes.push(Process::start(&self.world, Kind::Worker(group, 0), &self.ingests));
        }
    }

    async fn until(&self, time: Timestamp) {
        let left = time.0.saturating_sub(self.world.now().0);
        sleep_until(Instant::now() + Duration::from_millis(left.max(0).unsigned_abs())).await;
    }
}

async fn play(schedule: Schedule, world: &Arc<World>, log: &Arc<Log>) -> Result<BTreeMap<String, Vec<u64>>, String> {
    let mut stage = Stage::set(world, log).await?;
    let closes_at = world.now().plus(OPEN);
    let half = Reshard::Split(0, eighth(4));
    // Two users on either side of the middle.
    let (low, high) = (&*user(1), &*user(6));
    match schedule {
        Schedule::RestMeetsMerge => {
            stage.script([ScriptedPut { before: vec![half], after: vec![Reshard::Merge(1, 2)], ..stored() }]);
            stage.cast(&[low, high]).await?;
        }
        Schedule::TwiceAcrossReshards => {
            stage.script([
                ScriptedPut { fate: Fate::Refused, after: vec![half], ..stored() },
                ScriptedPut { fate: Fate::AnswerLost, after: vec![Reshard::Merge(1, 2)], ..stored() },
            ]);
            stage.cast(&[low, high]).await?;
        }
        Schedule::StoredTwiceWithoutAnswer => {
            stage.script([
                ScriptedPut { fate: Fate::AnswerLost, after: vec![half], ..stored() },
                ScriptedPut { fate: Fate::AnswerLost, after: vec![Reshard::Merge(1, 2)], ..stored() },
            ]);
            stage.cast(&[low, high]).await?;
        }
        Schedule::RestOfTwoShards => {
            let before = vec![Reshard::Split(0, eighth(2)), Reshard::Split(2, eighth(5))];
            stage.script([ScriptedPut { before, after: vec![Reshard::Merge(3, 4)], ..stored() }]);
            stage.cast(&[low, &user(3), high]).await?;
        }
        Schedule::LanesMeetInMerge => {
            world.reshard_so(half);
            sleep(NOTICED).await;
            let hold = Duration::from_millis(800);
            stage.script([ScriptedPut { hold, before: vec![Reshard::Merge(1, 2)], ..stored() }]);
            stage.cast(&[high]).await?;
            for _ in 0..3 {
                // One batch each, all before the delayed one has arrived.
                sleep(Duration::from_millis(100)).await;
                stage.cast(&[low]).await?;
            }
        }
        Schedule::GivenUpLandsLate => {
            stage.script([ScriptedPut { hold: GIVEN_UP, ..stored() }]);
            stage.cast(&[low]).await?;
            stage.answered().await?;
            world.reshard_so(half);
            stage.cast(&[low]).await?;
        }
        Schedule::ChildWaitsForRetry => {
            world.reshard_so(half);
            sleep(NOTICED).await;
            let hold = Duration::from_millis(900);
            let before = vec![Reshard::Split(1, eighth(2)), Reshard::Split(2, eighth(6))];
            // The answer to the second put tells the producer about the split.
            stage.script([ScriptedPut { hold, fate: Fate::Refused, ..stored() }, ScriptedPut { before, ..stored() }]);
            for user in [low, high, low] {
                stage.cast(&[user]).await?;
                sleep(Duration::from_millis(250)).await;
            }
        }
        Schedule::CrashBeforeRest => {
            stage.script([
                ScriptedPut { before: vec![half], ..stored() },
                ScriptedPut { hold: LONG, fate: Fate::Refused, ..stored() },
            ]);
            stage.cast(&[low, high]).await?;
            stage.waiting(1).await?;
            stage.processes[0].crash(world, &stage.ingests);
            for vote in std::mem::take(&mut *stage.client.waiting.lock()) {
                log.answered(vote, clients::Answer::Unknown);
            }
            stage.processes[0] = Process::start(world, Kind::Ingest(0), &stage.ingests);
        }
        Schedule::ShowsAfterEnd => {
            stage.start_workers();
            stage.until(Timestamp(closes_at.0 - 400)).await;
            stage.script([ScriptedPut { invisible: LONG / 2, ..stored() }]);
            stage.cast(&[low]).await?;
        }
        Schedule::ReadAfterEnd => {
            world.reshard_so(half);
            sleep(NOTICED).await;
            stage.cast(&[low, high]).await?;
            stage.answered().await?;
            world.unstartable.lock().push(id(2));
            stage.until(closes_at.plus(LONG)).await;
            stage.start_workers();
            sleep(LONG).await;
        }
        Schedule::LandsAfterFinal => {
            stage.start_workers();
            stage.until(Timestamp(closes_at.0 - 400)).await;
            stage.script([ScriptedPut { hold: LONG, ..stored() }]);
            stage.cast(&[low]).await?;
        }
        Schedule::ParentLagsBehind => {
            world.reshard_so(half);
            sleep(NOTICED).await;
            stage.cast(&[low, high]).await?;
            world.unreadable.lock().push((Group::Persist, id(2)));
            stage.start_workers();
            stage.until(closes_at.plus(BOUNDS.late_after())).await;
            world.reshard_so(Reshard::Merge(1, 2));
            sleep(LONG).await;
        }
        Schedule::CopyMeetsMerge => {
            stage.script([ScriptedPut { before: vec![half], copy: Some(GIVEN_UP), ..stored() }]);
            // More refusals than a lane tries within its deadline.
            stage.script((0..100).map(|_| ScriptedPut { fate: Fate::Refused, ..stored() }));
            stage.cast(&[low, high]).await?;
            stage.answered().await?;
            world.script.lock().clear();
            world.reshard_so(Reshard::Merge(1, 2));
            sleep(GIVEN_UP).await;
        }
    }
    stage.answered().await?;
    if stage.processes.len() == 1 {
        stage.start_workers();
    }
    world.unreadable.lock().clear();
    world.unstartable.lock().clear();
    let is_final = || world.state.lock().polls.values().all(|poll| poll.final_result.is_some());
    wait_for("the poll is final", is_final, world).await?;
    let finals = finals(world);
    // What arrives from now on must not change anything.
    sleep(AFTERMATH + LONG).await;
    wait_for("everything is committed", || is_committed(world), world).await?;
    if !world.script.lock().is_empty() {
        return Err("a part of the script was not played".into());
    }
    Ok(finals)
}
