//! Power cuts: a disk loses what was not synced, `votestream up` starts again with what is left, and nothing
//! acknowledged may be lost.
//!
//! About twenty cuts by default. `VOTESTREAM_POWER_ROUNDS=300 cargo test -p votestream-e2e --test power -- --nocapture`
//! makes many, `VOTESTREAM_POWER_SEED` chooses another seed than the default. Skipped with a message where no disk can
//! be mounted: that needs root, `/dev/fuse`, and for the file systems of the kernel also loop devices, `e2fsprogs` and
//! `xfsprogs`.

use votestream_e2e::power::{self, FileSystem, Kind, Report};

const VOTESTREAM: &str = env!("CARGO_BIN_EXE_cluster-votestream");
/// Cuts of one data directory before it is judged.
const CUTS_PER_HISTORY: u64 = 5;

/// Most cuts that are added until one has hit a waiting vote and one has lost something.
const MORE_CUTS_MAX: u64 = 20;
/// With at least this many cuts, the power is cut before every event of a first start. A first start has about this
/// many events.
const EVERY_EVENT: u64 = 300;
const START_EVENTS: u64 = 1_200;

/// A number from the environment.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no whole number")))
}

/// Makes a share of the cuts on one kind of disk, in histories that each have a seed.
async fn cuts(test: &str, kind: Kind, percent: u64) {
    if let Some(reason) = kind.missing() {
        eprintln!("skipped: {test}: {reason}");
        return;
    }
    let rounds = (number("VOTESTREAM_POWER_ROUNDS", 20) * percent).div_ceil(100);
    let seed = number("VOTESTREAM_POWER_SEED", 1);
    let mut report = Report::default();
    for history in 0.. {
        let left = rounds.saturating_sub(report.total() as u64);
        // If a few cuts have hit nothing, make more.
        if left == 0 && (hit(&report) || report.total() as u64 >= rounds + MORE_CUTS_MAX) {
            break;
        }
        let cuts = if left == 0 { CUTS_PER_HISTORY } else { left.min(CUTS_PER_HISTORY) };
        let lived = power::history(kind, VOTESTREAM, cuts as usize, seed + history).await;
        report.add(lived.unwrap_or_else(|reason| {
            panic!(
                "{reason}\nagain: VOTESTREAM_POWER_SEED={} VOTESTREAM_POWER_ROUNDS={} \
                 cargo test -p votestream-e2e --test power -- --exact --nocapture {test}",
                seed + history,
                cuts * 100 / percent
            )
        }));
    }
    eprintln!("{test}: {report:?}");
    assert!(report.total() as u64 >= rounds, "{report:?}");
    assert!(report.under_load > 0, "no cut hit a vote on its way: {report:?}");
    assert!(report.lost[0] > 0, "no cut lost anything: {report:?}");
    assert!(report.votes[0] > 0 && report.crowd > 0, "no vote came through: {report:?}");
}

/// Whether the cuts could have shown a fault.
fn hit(report: &Report) -> bool {
    report.under_load > 0 && report.lost[0] > 0 && report.votes[0] > 0 && report.crowd > 0
}

#[tokio::test(flavor = "multi_thread")]
async fn up_survives_where_a_sync_commits_all_entries() {
    cuts("up_survives_where_a_sync_commits_all_entries", Kind { commit: 0, file_system: None }, 30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn up_survives_where_a_sync_commits_the_entry_of_its_file() {
    cuts("up_survives_where_a_sync_commits_the_entry_of_its_file", Kind { commit: 2, file_system: None }, 30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn up_survives_on_ext4() {
    cuts("up_survives_on_ext4", Kind { commit: 0, file_system: Some(FileSystem::Ext4) }, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn up_survives_on_xfs() {
    cuts("up_survives_on_xfs", Kind { commit: 0, file_system: Some(FileSystem::Xfs) }, 20).await;
}

/// Cuts before every event with `VOTESTREAM_POWER_ROUNDS=300`; otherwise before some of them, which depend on the seed.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_that_is_cut_off_is_begun_again() {
    for kind in [0, 2].map(|commit| Kind { commit, file_system: None }) {
        if let Some(reason) = kind.missing() {
            eprintln!("skipped: a_first_start_that_is_cut_off_is_begun_again: {reason}");
            return;
        }
        let (rounds, seed) = (number("VOTESTREAM_POWER_ROUNDS", 20), number("VOTESTREAM_POWER_SEED", 1));
        let step = if rounds >= EVERY_EVENT { 1 } else { START_EVENTS.div_ceil(rounds.max(1)) };
        let report = power::first_starts(kind, VOTESTREAM, 1 + seed % step, step as usize, seed).await;
        let report = report.unwrap_or_else(|reason| panic!("{kind:?}: {reason}\nVOTESTREAM_POWER_SEED={seed}"));
        eprintln!("{kind:?}: {report:?}");
        assert!(report.while_starting > 2, "{report:?}");
    }
}

/// A single error, a full disk, and a disk that can no longer be written: the process ends with a clear message,
/// nothing is lost, and it starts after the repair.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_ends_up_and_loses_nothing() {
    let kind = Kind { commit: 0, file_system: None };
    if let Some(reason) = kind.missing() {
        eprintln!("skipped: a_disk_that_fails_ends_up_and_loses_nothing: {reason}");
        return;
    }
    let nth = 1 + number("VOTESTREAM_POWER_SEED", 1) % 16;
    let faults = ["EIO write", "EIO fsync", "ENOSPC write", "EROFS write"].map(|fault| format!("fail {fault} {nth}"));
    let faults = faults.into_iter().chain(["fail EIO create 1".into()]);
    let lives = faults.map(|fault| async move { power::fault(kind, VOTESTREAM, &fault).await });
    let failed: Vec<String> = futures::future::join_all(lives).await.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
