//! Cuts the power during the very first start. Nothing was acknowledged yet, so the next start begins again.
//!
//! Owns one cut before each event of a first start. Must never count a start that was not cut off as one that was.

use std::time::Duration;

use rand::{SeedableRng, rngs::StdRng};

use super::{
    plan::{Plan, Report},
    site::Site,
    volume::Kind,
};

/// Cuts the power before each event of a first start, one after the other, and starts again with what survived. With a
/// step of 1 it tries every event. Ends with the start that has no more events.
///
/// # Errors
///
/// If a start with what survived needs help.
pub async fn first_starts(
    kind: Kind,
    votestream: &'static str,
    first: u64,
    step: usize,
    seed: u64,
) -> Result<Report, String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut report = Report::default();
    for event in (first..).step_by(step) {
        let plan = Plan::at_start(&mut rng, event);
        let (site, mut this) = (Site::new(kind, votestream)?, Report::default());
        if let Err(reason) = start_twice(&site, &plan, &mut this).await {
            let kept = site.directory.keep();
            return Err(format!("{plan:?}: {reason}\nwhat survived is kept in {}", kept.display()));
        }
        let was_cut_off = this.while_starting > 0;
        report.add(this);
        if !was_cut_off {
            break;
        }
    }
    Ok(report)
}

/// A first start that is cut off, and the start after it, which creates a poll.
async fn start_twice(site: &Site, plan: &Plan, report: &mut Report) -> Result<(), String> {
    let mut volume = site.mount(&site.nothing()?, 0, plan.sync).await?;
    volume.disk.tell(&plan.arm().unwrap_or_default()).await?;
    let mut running = site.start(volume);
    let disk = running.volume.disk.watch();
    let cut = tokio::select! {
        cut = disk.cut() => {
            report.while_starting += 1;
            cut?
        }
        started = site.is_up(&mut running) => {
            started.map_err(|reason| running.said(&reason))?;
            running.volume.disk.cut_now(&plan.cut()).await?
        }
    };
    report.note(&cut);
    let state = site.leave(running).await?;
    let mut running = site.start(site.mount(&state, 1, Duration::ZERO).await?);
    let started = site.is_whole(&mut running, 1).await;
    started.map_err(|reason| running.said(&reason))?;
    site.leave(running).await.map(drop)
}
