//! Tests the schedules written by hand: the code passes each, and the code without the rule that the schedule tests
//! fails.

use votestream_core::mutation;
use votestream_sim::scripted::{Schedule, run};

// Only one test in this process, because the active mutation applies to the whole process.
#[test]
fn every_schedule_is_survived_thanks_to_its_rule() {
    let mut wrong = Vec::new();
    for schedule in Schedule::ALL {
        mutation::activate(None);
        let report = run(schedule).unwrap();
        if let Err(reason) = &report.verdict {
            wrong.push(format!("{schedule:?}: {reason}"));
        }
        assert!(report.votes > 0);
        if let Some(mutation) = schedule.broken_by() {
            mutation::activate(Some(mutation));
            let report = run(schedule).unwrap();
            if report.verdict.is_ok() {
                wrong.push(format!("{schedule:?} survives {mutation:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
