//! Kills real processes with `kill -9` at random times: `votestream up` and each of the three services, with hostile
//! and honest clients at the same time. The auditor judges.
//!
//! A few rounds by default. `VOTESTREAM_CRASH_ROUNDS=200 cargo test --release -p votestream-e2e --test crash --
//! --nocapture` runs many, and `VOTESTREAM_CRASH_SEED` chooses another seed than the default.

use votestream_e2e::crash::{self, Binaries, Report};

const BINARIES: Binaries = Binaries {
    votestream: env!("CARGO_BIN_EXE_cluster-votestream"),
    ingest: env!("CARGO_BIN_EXE_cluster-ingest-svc"),
    persist: env!("CARGO_BIN_EXE_cluster-persist-svc"),
    tally: env!("CARGO_BIN_EXE_cluster-tally-svc"),
};

/// A number from the environment.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no whole number")))
}

/// Checks that kills happened, that each kind of process was hit, and that votes were waiting and others succeeded.
fn hit(report: &Report, rounds: u64, names: &[&str]) {
    eprintln!("{rounds} rounds: {report:?}");
    assert_eq!(report.kills.keys().copied().collect::<Vec<_>>(), names);
    // The last kills hit all processes at once.
    assert!(report.kills.values().sum::<usize>() as u64 > rounds, "{report:?}");
    assert!(report.attacks.values().sum::<u64>() > 0, "no hostile client was beside: {report:?}");
    assert!(report.kills_under_load > 0, "no kill hit a vote on its way: {report:?}");
    let [durable, _, unknown] = report.votes;
    assert!(durable > 0 && unknown > 0, "votes came through, and others were cut off: {report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn up_survives_kill_9() {
    let (rounds, seed) = (number("VOTESTREAM_CRASH_ROUNDS", 8), number("VOTESTREAM_CRASH_SEED", 1));
    let directory = tempfile::tempdir().unwrap();
    let report = crash::up(BINARIES, directory.path(), rounds as usize, seed).await;
    hit(&report.unwrap_or_else(|reason| panic!("{reason}")), rounds, &["up"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_survive_kill_9() {
    let (rounds, seed) = (number("VOTESTREAM_CRASH_ROUNDS", 6), number("VOTESTREAM_CRASH_SEED", 2));
    let report = crash::services(BINARIES, rounds as usize, seed).await;
    hit(&report.unwrap_or_else(|reason| panic!("{reason}")), rounds, &["ingest", "persist", "tally"]);
}
