//! Runs a few seeds of the simulation with every test run. `votestream-sim --seeds 1000` runs many.

use std::sync::Arc;

use votestream_sim::{Fault, Faults, Settings, run};

const SEEDS: u64 = 12;

#[test]
fn one_seed_gives_one_trace() {
    let settings = Settings { seed: 4, keep_trace: false };
    let [first, again] = [0; 2].map(|_| run(settings, Arc::default()).unwrap());
    assert_eq!(first.trace_hash, again.trace_hash);
    assert!(first.votes > 100, "only {} votes were sent", first.votes);
}

#[test]
fn every_seed_is_exact() {
    let faults = Arc::new(Faults::default());
    for seed in 0..SEEDS {
        let report = run(Settings { seed, keep_trace: false }, faults.clone()).unwrap();
        assert_eq!(report.verdict, Ok(()), "replay: votestream-sim --seed {seed} --trace");
    }
    for fault in Fault::ALL {
        assert!(faults.get(fault) > 0, "{fault:?} was never injected");
    }
}
