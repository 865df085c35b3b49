//! Power cuts under `votestream up` while people vote, and the verdict on what is left.
//!
//! Owns when and how the power is cut, by seed, and one history: a data directory that lives through several cuts, is started
//! again on what survived each of them, and is judged in the end. Must never pass a history in which nothing was cut.

mod crowd;
mod disk;
mod volume;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

pub use crowd::Crowd;
pub use disk::{Cut, Disk, MODES};
pub use volume::{FileSystem, Kind, Volume};

use crate::{
    audit::Answer,
    crash::{Process, Slot},
    voters::{Election, PATIENCE, Voters, wait_until},
};

/// Clients that vote at once, beside the crowd.
const CLIENTS: u64 = 4;
/// What a sync takes, in microseconds: as on a fast SSD, or as on a slow disk, where more is on its way.
const SYNC_US: std::ops::Range<u64> = 200..6_000;
/// How long an armed cut is waited for, in milliseconds, before the power is cut all the same.
const LOAD_MS: std::ops::Range<u64> = 100..3_000;
/// Events before which the power is cut, and the range of their count. Files are created, removed and cut off when tables are
/// flushed, when the log goes on in a new file, and when old ones are removed.
const EVENTS: [(&str, u64); 11] = [
    ("write", 200),
    ("write", 200),
    ("fsync", 60),
    ("fsyncend", 60),
    ("fsyncend", 60),
    ("create", 6),
    ("rename", 4),
    ("unlink", 4),
    ("truncate", 4),
    ("fsyncdir", 4),
    ("any", 500),
];
/// Events of a start that a cut may come before.
const START_EVENTS: u64 = 60;

/// What was done, and to how many votes.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Cuts, by the letter of their mode and the event that they came before.
    pub cuts: BTreeMap<String, usize>,
    /// Cuts while votes were waiting for their answer.
    pub under_load: usize,
    /// Cuts before a process was ready.
    pub while_starting: usize,
    /// Blocks, and directory operations, that were lost.
    pub lost: [u64; 2],
    /// Votes by answer: durable, rejected, unknown. Without the crowd.
    pub votes: [u64; 3],
    /// Acknowledged votes of the crowd.
    pub crowd: u64,
}

impl Report {
    /// Number of cuts.
    pub fn total(&self) -> usize {
        self.cuts.values().sum()
    }

    /// Adds what another history did.
    pub fn add(&mut self, other: Self) {
        other.cuts.into_iter().for_each(|(cut, times)| *self.cuts.entry(cut).or_default() += times);
        self.under_load += other.under_load;
        self.while_starting += other.while_starting;
        self.crowd += other.crowd;
        self.lost.iter_mut().zip(other.lost).for_each(|(mine, more)| *mine += more);
        self.votes.iter_mut().zip(other.votes).for_each(|(mine, more)| *mine += more);
    }

    fn note(&mut self, cut: &Cut) {
        *self.cuts.entry(format!("{} {}", cut.mode, cut.before)).or_default() += 1;
        self.lost[0] += cut.blocks[1];
        self.lost[1] += cut.changes[1];
    }
}

/// When and how the power is cut.
#[derive(Clone, Debug)]
struct Plan {
    mode: &'static str,
    seed: u64,
    /// The event that it comes before; `None` for a moment that no event tells.
    before: Option<(&'static str, u64)>,
    /// Whether events are counted from the start of the process on, and not since it is ready.
    while_starting: bool,
    /// When it comes at the latest, once the process is ready.
    within: Duration,
    /// What a sync takes.
    sync: Duration,
}

impl Plan {
    fn draw(rng: &mut StdRng) -> Self {
        let while_starting = rng.random_bool(0.25);
        let (event, count_max) = EVENTS[rng.random_range(0..EVENTS.len())];
        let before = if while_starting {
            Some(("any", rng.random_range(1..=START_EVENTS)))
        } else {
            rng.random_bool(0.85).then(|| (event, rng.random_range(1..=count_max)))
        };
        Self {
            mode: MODES[rng.random_range(0..MODES.len())],
            seed: rng.random_range(0..u64::from(u32::MAX)),
            before,
            while_starting,
            within: Duration::from_millis(rng.random_range(LOAD_MS)),
            sync: Duration::from_micros(rng.random_range(SYNC_US)),
        }
    }

    /// What the disk is told to do.
    fn command(&self) -> Option<String> {
        let (event, count) = self.before?;
        Some(format!("arm {} {} {event} {count}", self.mode, self.seed))
    }
}

/// One data directory over several cuts.
struct History {
    kind: Kind,
    votestream: &'static str,
    /// Where everything is put.
    directory: PathBuf,
    election: Arc<Election>,
    report: Report,
}

/// Lives through this many cuts and judges what is left.
///
/// # Errors
///
/// What must not be: a start that needs a hand, a vote or poll that is lost, a vote that counts twice; with the survivors.
pub async fn history(kind: Kind, votestream: &'static str, cuts: usize, seed: u64) -> Result<Report, String> {
    let directory =
        tempfile::Builder::new().prefix("votestream-power-").tempdir().map_err(|error| error.to_string())?;
    let election = Arc::<Election>::default();
    election.places.ingest.lock().push(None);
    election.places.results.lock().push(None);
    let mut history =
        History { kind, votestream, directory: directory.path().into(), election, report: Report::default() };
    match history.live(cuts, seed).await {
        Ok(()) => Ok(history.report),
        Err(reason) => {
            let kept = directory.keep();
            Err(format!("{reason}\nafter {:?}; what survived is kept in {}", history.report, kept.display()))
        }
    }
}

impl History {
    async fn live(&mut self, cuts: usize, seed: u64) -> Result<(), String> {
        let mut rng = StdRng::seed_from_u64(seed);
        let voters = Voters::start(&self.election, CLIENTS, rng.random_range(0..u64::from(u32::MAX)));
        let mut crowd = None;
        let mut state = self.directory.join("nothing");
        std::fs::create_dir(&state).map_err(|error| error.to_string())?;
        for round in 0..cuts {
            let plan = Plan::draw(&mut rng);
            let in_round = |reason| format!("round {round}, {plan:?}: {reason}");
            let next = self.round(&state, round, &plan, &mut crowd).await.map_err(in_round)?;
            std::fs::remove_dir_all(&state).map_err(|error| error.to_string())?;
            state = next;
        }
        let volume = self.mount(&state, cuts, Duration::ZERO).await?;
        let (slot, mut process) = self.start(&volume);
        let judged = self.judge(&mut process, voters, crowd).await;
        let said = process.said();
        slot.begin_kill(&mut process)?;
        volume.disk.end().await?;
        slot.reap(process, &self.election).await?;
        judged.map_err(|reason| format!("{reason}\nthe process said last:\n{said}"))
    }

    async fn mount(&self, state: &Path, round: usize, sync: Duration) -> Result<Volume, String> {
        Volume::mount(self.kind, state, &self.directory.join(format!("round-{round}")), sync).await
    }

    fn start(&self, volume: &Volume) -> (Slot, Process) {
        let enter = volume.disk.enter();
        let enter: Vec<&str> = enter.iter().map(String::as_str).collect();
        let slot = Slot::up(self.votestream, &enter, &volume.directory);
        let process = slot.start(&self.election);
        (slot, process)
    }

    /// Starts on what survived, cuts the power, and returns what survives that.
    async fn round(
        &mut self,
        state: &Path,
        round: usize,
        plan: &Plan,
        crowd: &mut Option<Crowd>,
    ) -> Result<PathBuf, String> {
        let mut volume = self.mount(state, round, plan.sync).await?;
        if plan.while_starting
            && let Some(command) = plan.command()
        {
            volume.disk.tell(&command).await?;
        }
        let (slot, mut process) = self.start(&volume);
        let cut = self.run_until_cut(&mut volume, &mut process, round, plan, crowd).await;
        let cut = cut.map_err(|reason| format!("{reason}\nthe process said last:\n{}", process.said()))?;
        self.report.note(&cut);
        let waiting = self.election.log.waiting() as u64 + crowd.as_ref().map_or(0, Crowd::waiting);
        self.report.under_load += usize::from(waiting > 0);
        // It may wait for the disk: it dies of the signal once the disk has gone, and answers nobody in between.
        slot.begin_kill(&mut process)?;
        let out = volume.disk.end().await?;
        slot.reap(process, &self.election).await?;
        Ok(out)
    }

    async fn run_until_cut(
        &mut self,
        volume: &mut Volume,
        process: &mut Process,
        round: usize,
        plan: &Plan,
        crowd: &mut Option<Crowd>,
    ) -> Result<Cut, String> {
        let prepared = tokio::select! {
            cut = volume.disk.cut() => {
                self.report.while_starting += 1;
                return cut;
            }
            ready = self.ready(process, round) => ready,
        };
        prepared?;
        if crowd.is_none() {
            tokio::select! {
                cut = volume.disk.cut() => return cut,
                opened = Crowd::open(&self.election) => opened?,
            }
            *crowd = Some(Crowd::start(&self.election, Duration::from_millis(5)));
        }
        if !plan.while_starting
            && let Some(command) = plan.command()
        {
            volume.disk.tell(&command).await?;
        }
        if let Ok(cut) = timeout(plan.within, volume.disk.cut()).await {
            return cut;
        }
        volume.disk.tell(&format!("cut {} {}", plan.mode, plan.seed)).await?;
        timeout(PATIENCE, volume.disk.cut()).await.map_err(|_| "the power cannot be cut")?
    }

    /// Waits until a process takes calls, without a hand; looks for what was acknowledged, and opens a poll if votes need one.
    async fn ready(&self, process: &mut Process, round: usize) -> Result<(), String> {
        self.started(process).await?;
        self.election.must_know_polls().await?;
        if self.election.is_worn() { self.election.open(&format!("poll-{round}")).await } else { Ok(()) }
    }

    async fn started(&self, process: &mut Process) -> Result<(), String> {
        let mut ended = None;
        let places = &self.election.places;
        let started = wait_until("votestream up is ready", || {
            ended = process.child.try_wait().ok().flatten();
            ended.is_some() || (places.ingest.lock()[0].is_some() && places.results.lock()[0].is_some())
        });
        started.await?;
        // Its pipes are read to their end soon after.
        match ended {
            None => Ok(()),
            Some(status) => {
                sleep(Duration::from_millis(100)).await;
                Err(format!("it does not start: {status}"))
            }
        }
    }

    async fn judge(&mut self, process: &mut Process, voters: Voters, crowd: Option<Crowd>) -> Result<(), String> {
        self.started(process).await?;
        self.election.must_know_polls().await?;
        voters.finish().await?;
        let mut closing = JoinSet::new();
        for poll in self.election.poll_ids() {
            let election = self.election.clone();
            closing.spawn(async move { election.close(&poll).await });
        }
        if let Some(crowd) = crowd {
            self.report.crowd = crowd.durable();
            crowd.verdict(&self.election).await?;
        }
        while let Some(closed) = closing.join_next().await {
            closed.map_err(|error| error.to_string())??;
        }
        self.election.verdict().await?;
        let log = &self.election.log;
        self.report.votes = [Answer::Durable, Answer::Rejected, Answer::Unknown].map(|answer| log.count(answer));
        Ok(())
    }
}
