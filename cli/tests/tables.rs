//! Tables that people make and read: options from a file, and results as CSV. Runs the real binary, on a stack that
//! `votestream up` runs.

mod up;

use std::{
    fs,
    io::Write,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::json;

use up::Up;

/// Longer than any step here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Ids and titles that a table may garble: separators, quotes, formulas, numbers, emoji, and text that runs from right to left.
const OPTIONS: [(&str, &str); 10] = [
    ("pizza", "Pizza Margherita"),
    ("salad", ""),
    ("a=b", "x=y"),
    ("c,d;e", "say \"hi\", please; now"),
    ("🍕", "🍕👨\u{200d}🍳 Pizza"),
    ("شاورما", "شاورما مع ثوم"),
    ("=1+1", "@SUM(A1:A9)"),
    ("-5", "+49 30"),
    ("007", "'quoted'"),
    ("\"", "blank  inside"),
];

fn quoted(cell: &str) -> String {
    format!("\"{}\"", cell.replace('"', "\"\""))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// The rows of a table, and its header.
fn table(output: &Output) -> (Vec<String>, Vec<Vec<String>>) {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let mut reader = csv::Reader::from_reader(&output.stdout[..]);
    let header = reader.headers().unwrap().iter().map(str::to_owned).collect();
    (header, reader.records().map(|row| row.unwrap().iter().map(str::to_owned).collect()).collect())
}

/// The title that an option has: the service takes the id for one that is missing.
fn title_of(id: &'static str, title: &'static str) -> &'static str {
    if title.is_empty() { id } else { title }
}

/// The rows that all options must have.
fn rows(counts: impl Fn(&str) -> Vec<u64>) -> Vec<Vec<String>> {
    let row = |(id, title)| {
        [id, title_of(id, title)].map(str::to_owned).into_iter().chain(counts(id).iter().map(u64::to_string)).collect()
    };
    OPTIONS.map(row).to_vec()
}

#[test]
fn options_and_titles_come_back_as_they_were_given() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(&directory.path().join("data"));
    // Two by flags, the others by the file, in the order of both.
    let file: String =
        OPTIONS[2..].iter().map(|(id, title)| format!("{} ,\t{}\r\n\r\n", quoted(id), quoted(title))).collect();
    let path = directory.path().join("options.csv");
    fs::write(&path, format!("\u{feff}Option_ID,title\r\n{file}")).unwrap();
    let create = [
        &[
            "poll",
            "create",
            "--id",
            "p",
            "--closes-in",
            "1h",
            "--option",
            "pizza=Pizza Margherita",
            "--option",
            "salad",
        ][..],
        &["--options-file", path.to_str().unwrap()],
    ]
    .concat();
    let (code, created, error) = up.json(&create, "");
    assert_eq!(code, 0, "{error}");
    let expected = OPTIONS.map(|(id, title)| json!({"option_id": id, "title": title_of(id, title)}));
    let (_, read, _) = up.json(&["poll", "get", "p"], "");
    assert_eq!((&created["poll"]["options"], &read["poll"]["options"]), (&json!(expected), &json!(expected)));
    let shown = text(&run(&mut up.command(&["poll", "get", "p"]), b"").stdout);
    assert!(shown.contains("options   pizza   Pizza Margherita\n          salad\n          a=b     x=y\n"), "{shown}");

    let votes = "p,ada,salad\np,ada,=1+1\np,bob,=1+1\n";
    assert_eq!(up.json(&["cast", "--file", "-"], votes).0, 0);
    let start = Instant::now();
    loop {
        let (_, shown, _) = up.json(&["results", "p"], "");
        if (&shown["total_submitted"], &shown["total_counted"]) == (&json!(3), &json!(2)) {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "the votes are counted: {shown}");
    }
    let interim = run(&mut up.command(&["results", "p", "--csv"]), b"");
    let counts = |id: &str| match id {
        "salad" => vec![1, 0],
        "=1+1" => vec![2, 2],
        _ => vec![0, 0],
    };
    assert!(text(&interim.stdout).starts_with("option_id,title,submitted,counted\npizza,Pizza Margherita,0,0\n"));
    assert_eq!(table(&interim).1, rows(counts));
    assert!(text(&interim.stderr).contains("a spreadsheet may take =1+1 for a formula"), "{interim:?}");

    // A table of results is a file of options.
    let again = ["poll", "create", "--id", "q", "--closes-in", "1h", "--options-file", "-"];
    let (code, copied, error) = up.json(&again, &text(&interim.stdout));
    assert_eq!((code, &copied["poll"]["options"]), (0, &json!(expected)), "{error}");

    let early = run(&mut up.command(&["results", "p", "--final", "--csv"]), b"");
    assert_eq!((early.status.code(), early.stdout.len()), (Some(1), 0), "{early:?}");
    assert_eq!(up.json(&["poll", "close", "p"], "").0, 0);
    let last = run(&mut up.command(&["results", "p", "--csv", "--final", "--wait", "--timeout", "60s"]), b"");
    let (header, last) = table(&last);
    assert_eq!(header, ["option_id", "title", "votes"]);
    assert_eq!(last, rows(|id| counts(id)[1..].to_vec()));
}

#[test]
fn a_file_of_options_that_is_wrong_is_refused_with_what_is_wrong() {
    // Nothing listens there: the file is read first.
    let create = |more: &[&str], input: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_votestream"));
        command.args(["--server", "127.0.0.1:1", "poll", "create", "--id", "p", "--closes-in", "1h"]).args(more);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let output = run(command.stderr(Stdio::piped()), input.as_bytes());
        (output.status.code().unwrap(), text(&output.stderr))
    };
    let many: String = (0..1_000).map(|at| format!("o{at}\n")).collect();
    for (arguments, input, mistake) in [
        (&["--options-file", "-"][..], "a,A\nb,\"B\n", "--options-file: -: line 2: a quote is not closed"),
        (&["--options-file", "-"], "a,A\n,B\n", "--options-file: -: line 2: option_id is empty"),
        (&["--options-file", "-"], "", "--options-file: -: the file has no options"),
        (&["--options-file", "-", "--option", "a"], &many, "line 1000: a poll has at most 1000 options"),
        (&["--options-file", "no/such/file"], "", "--options-file: no/such/file: No such file"),
        (&["--option", "=Pizza"], "", "'--option <ID[=TITLE]>': expected ID or ID=TITLE"),
        (&[], "", "--option <ID[=TITLE]>"),
    ] {
        let (code, error) = create(arguments, input);
        assert!(code == 2 && error.contains(mistake), "{code} {error}");
    }
    let large = "x".repeat(3 << 20);
    let path = tempfile::NamedTempFile::new().unwrap();
    fs::write(path.path(), large).unwrap();
    let (code, error) = create(&["--options-file", path.path().to_str().unwrap()], "");
    assert!(code == 2 && error.contains("the file is larger than 2097152 bytes"), "{code} {error}");
    // A file that is right: only the service is missing.
    assert_eq!(create(&["--options-file", "-"], "a,A\n").0, 3);
}

#[test]
fn a_signal_ends_the_wait_for_a_file() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_votestream"));
    command.args(["poll", "create", "--id", "p", "--closes-in", "1h", "--options-file", "-"]);
    // The pipe stays open.
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    let listens = || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(caught.trim(), 16).unwrap() & 0b10 != 0
    };
    while !listens() {
        assert!(start.elapsed() < PATIENCE, "the command listens for signals");
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < PATIENCE, "a signal ends the command");
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn what_the_service_refuses_names_the_field() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let create = ["poll", "create", "--id", "p", "--closes-in", "1h", "--options-file", "-"];
    let long = format!("a,{}", "x".repeat(513));
    for (file, mistake) in [
        (long.as_str(), "options.title is 513 bytes long, the limit is 512"),
        ("a,A\na,B", "options names \"a\" twice"),
    ] {
        let (code, _, error) = up.json(&create, file);
        assert!(code == 3 && error.contains(mistake), "{code} {error}");
    }
}
