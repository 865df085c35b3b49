//! The simulation sees what it is there to see: breaks that show soon are tried with every test run;
//! `votestream-sim --mutations --seeds 1000` tries all.

use std::sync::Arc;

use votestream_core::mutation::{self, Mutation};
use votestream_sim::{Settings, run};

const SEEDS: u64 = 4;

// One test in a process of its own: the active mutation is the process's.
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
        assert!(failed, "{mutation:?} was not seen within {SEEDS} seeds");
    }
}
