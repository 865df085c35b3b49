//! A disk that fails without losing its power: a single error, a full disk, or a disk that can no longer be written.
//!
//! Owns one such run: votes, the fault, the process that ends by itself, a start after the fault is repaired, and then
//! a power cut. Must never repair a lasting fault before the process has ended.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    crowd::Crowd,
    history::judge,
    site::{Running, Site},
    volume::Kind,
};
use crate::voters::{Voters, wait_until};
use votestream_testkit::audit::Answer;

/// Number of clients that vote at once, besides the crowd.
const CLIENTS: u64 = 2;
/// Pause between two messages of the crowd.
const CROWD_PAUSE: Duration = Duration::from_millis(20);
/// Acknowledged votes before the fault, and after it.
const VOTES: u64 = 40;
/// Time within which the process notices a fault that concerns it: the log is written all the time, the store every two
/// seconds. A process that goes on for longer and accepts votes has lost nothing that it needs. It is still judged.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);
/// Exit code of a stack that failed.
const BROKEN: i32 = 3;

/// Runs through one fault. `command` tells the disk which.
///
/// # Errors
///
/// If the process goes on although the fault lasts, ends without saying what to repair, does not start afterwards, or
/// has lost something.
pub async fn fault(kind: Kind, votestream: &'static str, command: &str) -> Result<(), String> {
    let site = Site::new(kind, votestream)?;
    match live(&site, command).await {
        Ok(()) => Ok(()),
        Err(reason) => Err(format!("{command}: {reason}\nwhat is left is kept in {}", site.directory.keep().display())),
    }
}

async fn live(site: &Site, command: &str) -> Result<(), String> {
    let volume = site.mount(&site.nothing()?, 0, Duration::from_millis(1)).await?;
    let mut running = site.start(volume);
    site.is_whole(&mut running, 0).await.map_err(|reason| running.said(&reason))?;
    Crowd::open(&site.election).await?;
    let (voters, crowd) = (Voters::start(&site.election, CLIENTS, 1), Crowd::start(&site.election, CROWD_PAUSE));
    // The crowd counts as well: a poll of the others has an option for each vote, and all may be used by now.
    let durable = || site.election.log.count(Answer::Durable) + crowd.durable();
    wait_until("votes are acknowledged", || durable() > VOTES).await.map_err(|reason| running.said(&reason))?;
    let before = durable();
    running.volume.disk.tell(command).await?;
    let is_once = command.contains("EIO");
    let mut failed_at = None;
    let goes_on = |running: &mut Running| {
        if running.volume.disk.failed().is_some() {
            failed_at.get_or_insert_with(Instant::now);
        }
        let noticed = failed_at.is_some_and(|at| at.elapsed() > NOTICED_WITHIN);
        is_once && noticed && durable() > before + VOTES
    };
    let over = site.is_over(&mut running, goes_on).await;
    if over.map_err(|reason| running.said(&format!("{:?}: {reason}", running.volume.disk.failed())))? {
        running = mend(site, running).await?;
    }
    let before = durable();
    let over = site.is_over(&mut running, |_| durable() > before + VOTES).await;
    if over.map_err(|reason| running.said(&reason))? {
        running = mend(site, running).await?;
    }
    // What a failed sync left is only in the cache, and no later sync writes it. So nothing may depend on it.
    running.volume.disk.cut_now("cut a 1").await?;
    let state = site.leave(running).await?;
    let mut running = site.start(site.mount(&state, 1, Duration::ZERO).await?);
    judge(site, &mut running, voters, Some(crowd)).await.map_err(|reason| running.said(&reason))?;
    site.leave(running).await.map(drop)
}

/// Repairs the fault and starts again.
async fn mend(site: &Site, running: Running) -> Result<Running, String> {
    let (code, said, mut volume) = site.bury(running).await?;
    let names_it = said.contains("cannot write to") && said.contains(&*volume.directory.to_string_lossy());
    if code != Some(BROKEN) || !names_it {
        return Err(format!("{:?}: it ended with {code:?}, and said:\n{said}", volume.disk.failed()));
    }
    volume.disk.tell("mend").await?;
    let mut running = site.start(volume);
    site.is_whole(&mut running, 1).await.map_err(|reason| running.said(&reason))?;
    Ok(running)
}
