//! The commands as a script uses them: the real binary, its JSON and its exit codes, on a stack that `votestream up`
//! runs.

mod up;

use std::process::Command;

use serde_json::{Value, json};

use up::Up;

#[test]
fn a_poll_from_creation_to_audit() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let create = ["poll", "create", "--id", "p", "--option", "a", "--option", "b", "--closes-in", "1h"];
    let (code, created, _) = up.json(&create, "");
    assert_eq!((code, &created["poll"]["state"]), (0, &json!("POLL_STATE_OPEN")));
    let (code, listed, _) = up.json(&["poll", "list"], "");
    assert_eq!((code, &listed["polls"][0]), (0, &created["poll"]));
    let (code, _, error) = up.json(&["poll", "get", "nope"], "");
    assert_eq!(code, 3);
    assert!(error.contains("NOT_FOUND") && error.lines().count() == 1, "{error}");

    let (code, report, _) = up.json(&["cast", "--poll", "p", "--user", "u0", "--option", "a"], "");
    assert_eq!((code, report), (0, json!({"accepted": 1, "rejected": 0, "rejections": []})));
    let csv = "poll_id,user_id,option_id\np,u1,a\np,u2\np,\"u, 3\",b\np,u4,zzz\np,u1,b\n";
    let (code, report, errors) = up.json(&["cast", "--file", "-"], csv);
    assert_eq!((code, &report["accepted"], &report["rejected"]), (1, &json!(3), &json!(2)));
    let rejected: Vec<_> = report["rejections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rejection| (rejection["line"].as_u64().unwrap(), rejection["code"].as_str().unwrap()))
        .collect();
    assert_eq!(rejected, [(3, "REJECTION_CODE_MALFORMED"), (5, "REJECTION_CODE_OPTION_NOT_FOUND")]);
    assert!(errors.contains("line 3: ") && errors.contains("line 5: "), "{errors}");
    let lines = "{\"poll_id\":\"p\",\"user_id\":\"u5\",\"option_id\":\"b\"}\n";
    assert_eq!(up.json(&["cast", "--file", "-"], lines).0, 0);

    let load = ["load", "--poll", "p", "--votes", "5000", "--voters", "1000", "--connections", "2"];
    let (code, report, _) = up.json(&load, "");
    assert_eq!((code, &report["accepted"], &report["voters"]), (0, &json!(5_000), &json!(1_000)));

    assert_eq!(up.json(&["results", "p", "--final"], "").0, 1, "not final yet");
    assert_eq!(up.json(&["poll", "close", "p"], "").0, 0);
    let (code, last, _) = up.json(&["results", "p", "--final", "--wait", "--timeout", "60s"], "");
    // u0, u1, "u, 3", u5 and those of the load.
    assert_eq!((code, &last["total_votes"]), (0, &json!(1_004)));
    let (_, interim, _) = up.json(&["results", "p"], "");
    assert_eq!((&interim["total_submitted"], &interim["total_counted"]), (&json!(5_005), &json!(1_004)));
    let (code, recount, _) = up.json(&["audit", "p"], "");
    assert_eq!((code, &recount["matches"], &recount["final"]), (0, &json!(true), &json!(true)));

    let (code, report, _) = up.json(&["cast", "--poll", "p", "--user", "u9", "--option", "a"], "");
    assert_eq!((code, &report["rejections"][0]["code"]), (1, &json!("REJECTION_CODE_POLL_CLOSED")));
}

#[test]
fn the_demo_is_exact() {
    let output = Command::new(env!("CARGO_BIN_EXE_votestream"))
        .args(["demo", "--votes", "20000", "--voters", "7000", "--shards", "3", "--seed", "5", "--json"])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success() && report["exact"] == true, "{report}");
    assert_eq!((&report["model"], &report["counted"]), (&report["recounted"], &json!(7_000)));
}

#[test]
fn usage_errors_and_absent_services_have_their_exit_codes() {
    let code = |arguments: &[&str]| {
        let run = Command::new(env!("CARGO_BIN_EXE_votestream")).args(arguments).output().unwrap();
        run.status.code()
    };
    // Port 1 is reserved: nothing listens there.
    assert_eq!(code(&["poll", "list", "--results", "127.0.0.1:1"]), Some(3));
    assert_eq!(code(&["cast", "--file", "no/such/file"]), Some(2));
    assert_eq!(code(&["cast", "--poll", "p"]), Some(2));
    assert_eq!(code(&["up", "--shards", "0"]), Some(2));
}
