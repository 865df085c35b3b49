//! A history: a data directory that goes through several cuts while people vote, and is judged at the end.
//!
//! Owns the order of one history. Must never judge before all results have settled.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{task::JoinSet, time::timeout};

use super::{
    crowd::Crowd,
    disk::Cut,
    plan::{Plan, Report},
    site::{Running, Site},
    volume::Kind,
};
use votestream_testkit::audit::Answer;

use crate::voters::Voters;

/// Number of clients that vote at once, besides the crowd.
const CLIENTS: u64 = 4;
/// Pause between two messages of the crowd.
const CROWD_PAUSE: Duration = Duration::from_millis(5);

struct History {
    site: Site,
    /// People who vote once each, once their poll could be opened.
    crowd: Option<Crowd>,
    report: Report,
}

/// Goes through this many cuts and judges what is left.
///
/// # Errors
///
/// If a start needs help, a vote or poll is lost, or a vote counts twice. The message names the directory with what
/// survived.
pub async fn history(kind: Kind, votestream: &'static str, cuts: usize, seed: u64) -> Result<Report, String> {
    let mut history = History { site: Site::new(kind, votestream)?, crowd: None, report: Report::default() };
    match history.live(cuts, seed).await {
        Ok(()) => Ok(history.report),
        Err(reason) => {
            let kept = history.site.directory.keep();
            Err(format!("{reason}\nafter {:?}; what survived is kept in {}", history.report, kept.display()))
        }
    }
}

impl History {
    async fn live(&mut self, cuts: usize, seed: u64) -> Result<(), String> {
        let mut rng = StdRng::seed_from_u64(seed);
        let voters = Voters::start(&self.site.election, CLIENTS, rng.random_range(0..u64::from(u32::MAX)));
        let mut state = self.site.nothing()?;
        for round in 0..cuts {
            let plan = Plan::draw(&mut rng);
            let next = self.round(&state, round, &plan).await;
            let next = next.map_err(|reason| format!("round {round}, {plan:?}: {reason}"))?;
            std::fs::remove_dir_all(&state).map_err(|error| error.to_string())?;
            state = next;
        }
        let volume = self.site.mount(&state, cuts, Duration::ZERO).await?;
        let mut running = self.site.start(volume);
        let judged = judge(&self.site, &mut running, voters, self.crowd.take()).await;
        (self.report.votes, self.report.crowd) = judged.map_err(|reason| running.said(&reason))?;
        self.site.leave(running).await.map(drop)
    }

    /// Starts with what survived, cuts the power, and returns what survives this cut.
    async fn round(&mut self, state: &Path, round: usize, plan: &Plan) -> Result<PathBuf, String> {
        let mut volume = self.site.mount(state, round, plan.sync).await?;
        if plan.while_starting
            && let Some(arm) = plan.arm()
        {
            volume.disk.tell(&arm).await?;
        }
        let mut running = self.site.start(volume);
        let cut = self.run_until_cut(&mut running, round, plan).await;
        let cut = cut.map_err(|reason| running.said(&reason))?;
        self.report.note(&cut);
        let waiting = self.site.election.log.waiting() as u64 + self.crowd.as_ref().map_or(0, Crowd::waiting);
        self.report.under_load += usize::from(waiting > 0);
        self.site.leave(running).await
    }

    async fn run_until_cut(&mut self, running: &mut Running, round: usize, plan: &Plan) -> Result<Cut, String> {
        let disk = running.volume.disk.watch();
        tokio::select! {
            cut = disk.cut() => {
                self.report.while_starting += 1;
                return cut;
            }
            whole = self.site.is_whole(running, round) => whole?,
        }
        if self.crowd.is_none() {
            tokio::select! {
                cut = disk.cut() => return cut,
                opened = Crowd::open(&self.site.election) => opened?,
            }
            self.crowd = Some(Crowd::start(&self.site.election, CROWD_PAUSE));
        }
        if !plan.while_starting
            && let Some(arm) = plan.arm()
        {
            running.volume.disk.tell(&arm).await?;
        }
        match timeout(plan.within, disk.cut()).await {
            Ok(cut) => cut,
            Err(_) => running.volume.disk.cut_now(&plan.cut()).await,
        }
    }
}

/// Ends all voting, waits for the final results, and judges them. Returns the number of votes by answer, and of the
/// crowd.
pub(super) async fn judge(
    site: &Site,
    running: &mut Running,
    voters: Voters,
    crowd: Option<Crowd>,
) -> Result<([u64; 3], u64), String> {
    let election = &site.election;
    site.is_up(running).await?;
    election.must_know_polls().await?;
    voters.finish().await?;
    let mut closing = JoinSet::new();
    for poll in election.poll_ids() {
        let election = election.clone();
        closing.spawn(async move { election.close(&poll).await });
    }
    let durable = crowd.as_ref().map_or(0, Crowd::durable);
    if let Some(crowd) = crowd {
        crowd.verdict(election).await?;
    }
    while let Some(closed) = closing.join_next().await {
        closed.map_err(|error| error.to_string())??;
    }
    election.verdict().await?;
    Ok(([Answer::Durable, Answer::Rejected, Answer::Unknown].map(|answer| election.log.count(answer)), durable))
}
