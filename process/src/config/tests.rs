use std::{net::SocketAddr, time::Duration};

use super::*;

const PROGRAM: Program = Program {
    name: "test-svc",
    about: "Tests the configuration.",
    settings: &[
        &[
            Setting::new("listen", "ADDR", "127.0.0.1:50051", "Where to listen."),
            Setting::switch("create-tables", "Create what is missing."),
        ],
        &[
            Setting::new("drain", "DURATION", "12s", "How long to drain."),
            Setting::new("shards", "N", "4", "Shards."),
            Setting::optional("worker-id", "ID", "Name of the worker, random if unset."),
        ],
    ],
    others: &["flush-interval"],
};

#[derive(Debug, PartialEq)]
struct Config {
    listen: SocketAddr,
    create_tables: bool,
    drain: Duration,
    shards: u32,
    worker_id: Option<String>,
}

fn read(flags: &[&str], variables: &[(&str, &str)]) -> Result<Config, Refused> {
    let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let mut values = PROGRAM.read(flags.iter().map(OsString::from), variables)?;
    let (listen, create_tables) = (values.get("listen", socket_addr), values.get("create-tables", switch));
    let drain = values.get("drain", duration(Duration::from_secs(1)..=Duration::from_secs(100)));
    let (shards, worker_id) = (values.get("shards", whole(1..=500)), values.optional("worker-id", text));
    let config = || {
        Some(Config {
            listen: listen?,
            create_tables: create_tables?,
            drain: drain?,
            shards: shards?,
            worker_id: worker_id?,
        })
    };
    let config = config();
    values.finish(config)
}

fn mistakes(flags: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
    match read(flags, variables).unwrap_err() {
        Refused::Mistakes(mistakes) => mistakes,
        Refused::Answered(text) => panic!("{text}"),
    }
}

#[test]
fn flags_win_over_variables_and_variables_over_defaults() {
    let variables =
        [("VOTESTREAM_SHARDS", "8"), ("VOTESTREAM_DRAIN", "20s"), ("VOTESTREAM_CREATE_TABLES", "true"), ("HOME", "/")];
    let config = read(&["--drain", "500ms", "--drain=2s"][2..], &variables).unwrap();
    let expected = Config {
        listen: "127.0.0.1:50051".parse().unwrap(),
        create_tables: true,
        drain: Duration::from_secs(2),
        shards: 8,
        worker_id: None,
    };
    assert_eq!(config, expected);
    // For a single setting, too, an empty variable counts as unset.
    assert_eq!(read(&["--create-tables"], &[("VOTESTREAM_SHARDS", "")]).unwrap().shards, 4);
    assert_eq!(read(&[], &[("VOTESTREAM_WORKER_ID", "w-1")]).unwrap().worker_id.as_deref(), Some("w-1"));
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let found = mistakes(
        &["--bogus", "--listen", "here", "--drain=1h", "--also-bogus=1", "--worker-id", "a b"],
        &[
            ("VOTESTREAM_SHARDS", "many"),
            ("VOTESTREAM_CREATE_TABLES", "yes"),
            ("VOTESTREAM_SHARD", "4"),
            ("VOTESTREAM_QUUX", "4"),
        ],
    );
    for expected in [
        "unexpected argument '--bogus' found",
        "unexpected argument '--also-bogus' found",
        "VOTESTREAM_SHARD: there is no such setting; did you mean VOTESTREAM_SHARDS?",
        "VOTESTREAM_QUUX: there is no such setting",
        "--listen: \"here\": expected an address and port such as 127.0.0.1:50051 or [::]:50051",
        "VOTESTREAM_CREATE_TABLES: \"yes\": expected true or false",
        "--drain: \"1h\": must be from 1s to 100s",
        "VOTESTREAM_SHARDS: \"many\": expected a whole number from 1 to 500",
        "--worker-id: \"a b\": expected 1 to 128 letters, digits, \"-\", \"_\" and \".\"",
    ] {
        assert!(found.iter().any(|found| found == expected), "{expected:?} is not in {found:#?}");
    }
    assert_eq!(found.len(), 9, "{found:#?}");
}

#[test]
fn flags_given_twice_or_without_a_value_are_mistakes() {
    let found = mistakes(&["--shards", "1", "--shards", "2", "stray", "--listen"], &[("VOTESTREAM_DRAIN", "x")]);
    assert!(found.iter().any(|found| found.contains("'--shards")), "{found:#?}");
    assert!(found.iter().any(|found| found.starts_with("VOTESTREAM_DRAIN")), "{found:#?}");
}

#[test]
fn variables_of_other_programs_of_the_project_are_no_mistakes() {
    let variables = [("VOTESTREAM_SERVER", "http://x"), ("VOTESTREAM_FLUSH_INTERVAL", "?"), ("OTHER_SHARD", "1")];
    assert!(read(&[], &variables).is_ok());
}

#[test]
fn the_version_is_that_of_every_binary() {
    let Err(Refused::Answered(version)) = read(&["--version"], &[]) else { panic!("no version") };
    assert_eq!(version, format!("{} {}\n", PROGRAM.name, crate::VERSION));
    assert!(crate::VERSION.starts_with(env!("CARGO_PKG_VERSION")));
}

#[test]
fn help_names_every_flag_its_variable_and_its_default() {
    let Err(Refused::Answered(help)) = read(&["--help"], &[("VOTESTREAM_SHARDS", "many")]) else { panic!("no help") };
    for setting in PROGRAM.all() {
        assert!(help.contains(&format!("--{}", setting.name)), "{help}");
        assert!(help.contains(&format!("[env: {}]", setting.variable())), "{help}");
    }
    assert!(help.contains("[default: 127.0.0.1:50051]") && help.contains("64  wrong configuration"), "{help}");
}

#[test]
fn the_summary_says_where_a_value_comes_from() {
    let variables = [("VOTESTREAM_SHARDS".into(), "8".into())];
    let values = PROGRAM.read(["--drain=9s".into()], variables).unwrap();
    let expected = "create-tables=false, drain=9s (flag), listen=127.0.0.1:50051, shards=8 (environment)";
    assert_eq!(values.to_string(), expected);
}

#[test]
fn sizes_and_durations() {
    let any = || Duration::ZERO..=Duration::MAX;
    assert_eq!(duration(any())("20ms"), Ok(Duration::from_millis(20)));
    assert_eq!(duration(any())("2m"), Ok(Duration::from_secs(120)));
    for wrong in ["", "5", "s", "-1s", "1.5s", "99999999999999999999s", "18446744073709551615h", "5 s"] {
        assert!(duration(any())(wrong).is_err(), "{wrong}");
    }
    assert_eq!(bytes(0..=usize::MAX)("64MiB"), Ok(64 << 20));
    assert_eq!(bytes(0..=usize::MAX)("7"), Ok(7));
    assert!(bytes(0..=10)("1KiB").is_err() && bytes(0..=usize::MAX)("1MB").is_err());
    assert_eq!(one_of(&[("a", 1), ("b", 2)])("b"), Ok(2));
    assert_eq!(one_of(&[("a", 1), ("b", 2)])("c"), Err("expected a or b".into()));
}
