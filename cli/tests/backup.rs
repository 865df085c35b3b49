//! `votestream backup` on a stack that takes votes, and on one that is stopped: each copy is started and counted.

mod up;

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::json;

use up::Up;

impl Up {
    /// The counted votes of the poll, final and recounted.
    fn finish(&self) -> u64 {
        assert_eq!(self.json(&["poll", "close", "p"], "").0, 0);
        let (code, last, _) = self.json(&["results", "p", "--final", "--wait", "--timeout", "60s"], "");
        assert_eq!(code, 0, "it becomes final");
        let (code, recount, _) = self.json(&["audit", "p"], "");
        assert_eq!((code, &recount["matches"], &recount["final"]), (0, &json!(true), &json!(true)));
        last["total_votes"].as_u64().unwrap()
    }
}

fn backup(directory: &Path, to: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_votestream"));
    command.args(["backup", "--json", "--data-dir"]).args([directory, to]).output().unwrap()
}

#[test]
fn every_copy_has_what_was_acknowledged_before_and_counts_exactly() {
    let directory = tempfile::tempdir().unwrap();
    // A data directory whose path is longer than the path of a socket may be.
    let data = directory.path().join("d".repeat(120));
    let copies = tempfile::tempdir().unwrap();
    let up = Up::start(&data);
    let create = ["poll", "create", "--id", "p", "--option", "a", "--option", "b", "--closes-in", "1h"];
    assert_eq!(up.json(&create, "").0, 0);
    // Other votes for the poll arrive while the copies are made.
    let load = ["load", "--poll", "p", "--votes", "1000000", "--rate", "4000", "--voters", "1000000"];
    let mut loading = up.command(&load).spawn().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..3u64 {
        let votes: String = (0..500).map(|user| format!("p,ours-{round}-{user},a\n")).collect();
        let (code, report, _) = up.json(&["cast", "--file", "-"], &votes);
        assert_eq!((code, &report["accepted"]), (0, &json!(500)));
        acknowledged.push((round + 1) * 500);
        let copied = backup(&data, &copies.path().join(round.to_string()));
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    }
    loading.kill().unwrap();
    loading.wait().unwrap();

    let taken = backup(&data, &copies.path().join("0"));
    let said = String::from_utf8(taken.stderr).unwrap();
    assert!(taken.status.code() == Some(3) && said.contains("not empty") && said.lines().count() == 1, "{said}");
    // No process runs any more, and the directory was not closed properly.
    drop(up);
    let stopped = backup(&data, &copies.path().join("stopped"));
    assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    let nothing = backup(copies.path(), &copies.path().join("nothing"));
    assert_eq!(nothing.status.code(), Some(2), "no data directory");

    let original = Up::start(&data).finish();
    for (round, expected) in (0..).zip(&acknowledged) {
        let counted = Up::start(&copies.path().join(round.to_string())).finish();
        assert!((*expected..=original).contains(&counted), "{expected} <= {counted} <= {original}");
    }
    assert_eq!(Up::start(&copies.path().join("stopped")).finish(), original);
}
