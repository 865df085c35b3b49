//! Tests that the simulation detects broken code. Breaks that show soon are tried with every test run; `votestream-sim
//! --mutations --seeds 1000` tries all.

use std::sync::Arc;

use votestream_core::mutation::{self, Mutation};
use votestream_sim::{Settings, run};

const SEEDS: u64 = 16;

// Only one test in this process, because the active mutation applies to the whole process.
#[test]
fn breaks_are_seen() {
    for mutation in [
        Mutation::RefusedBatchIsOvertaken,
        Mutation::NoDedup,
        Mutation::NoTallyCondition,
        Mutation::NoPreviousOption,
        Mutation::ChildrenBeforeParents,
    ] {
        mutation::activate(Some(mutation));
        let failed = (0..SEEDS).any(|seed| {
            let settings = Settings { seed, keep_trace: false };
            run(settings, Arc::default()).unwrap().verdict.is_err()
        });
        assert!(failed, "{mutation:?} was not detected within {SEEDS} seeds");
    }
}
