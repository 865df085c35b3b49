//! Runs the fuzzer's corpus on a stable compiler, so that errors that were found once do not come back.

use std::{fs, path::Path};

#[path = "../../fuzz/src/targets.rs"]
mod targets;

/// Runs a target over each file of its corpus. There must be some.
fn replay(name: &str, target: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let mut inputs = 0;
    for entry in fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display())) {
        let path = entry.unwrap().path();
        // If the test fails, the last printed path is the input that failed.
        println!("{}", path.display());
        target(&fs::read(&path).unwrap());
        inputs += 1;
    }
    assert!(inputs > 3, "{inputs} inputs in {}", corpus.display());
}

#[test]
fn records() {
    replay("record", targets::record);
}

#[test]
fn plain_votes_of_other_producers() {
    replay("json", targets::json);
}

#[test]
fn aggregates_of_other_producers() {
    replay("aggregate", targets::aggregate);
}

#[test]
fn messages_of_votes() {
    replay("votes", targets::votes);
}

#[test]
fn requests_for_polls() {
    replay("poll", targets::poll);
}
