//! The command line as people use it: pipes whose reader leaves, ctrl-c, closed terminals, input that stays open,
//! narrow windows, and text that nobody can read. Runs the real binary, on a stack that `votestream up` runs.

mod up;

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use serde_json::Value;

use up::announced;

/// Longer than any step here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

fn votestream() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_votestream"));
    command.env_remove("RUST_LOG").env_remove("NO_COLOR").env("TERM", "xterm");
    command
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Waits until a condition holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ended(child: &mut Child) -> ExitStatus {
    let mut status = None;
    until("the process ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

/// A running `votestream up`, killed at the end of the test.
struct Up {
    child: Child,
    ingest: String,
    results: String,
}

impl Drop for Up {
    fn drop(&mut self) {
        // Already dead if the test has stopped it.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Up {
    fn start(change: impl FnOnce(&mut Command)) -> Self {
        let mut command = votestream();
        command
            .args(["up", "--json", "--addr", "localhost:0", "--ephemeral"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let (ingest, results) = announced(&mut child);
        Self { child, ingest, results }
    }

    /// A stack with the poll `p`, which has the options `a` and `b`.
    fn with_poll() -> Self {
        let up = Self::start(|_| {});
        assert_eq!(up.create("p", &["a", "b"]).0, 0);
        up
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = votestream();
        command.args(["--ingest", &self.ingest, "--results", &self.results]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn cast(&self, input: &[u8]) -> Output {
        let mut child = self.command(&["cast", "--file", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    fn create(&self, id: &str, options: &[&str]) -> (i32, String) {
        let mut arguments = vec!["poll", "create", "--id", id, "--closes-in", "2d"];
        options.iter().for_each(|option| arguments.extend(["--option", option]));
        let output = self.run(&arguments);
        (output.status.code().unwrap(), text(&output.stderr))
    }

    fn results(&self, poll: &str) -> Value {
        serde_json::from_slice(&self.run(&["results", poll, "--json"]).stdout).unwrap()
    }

    fn counted(&self, poll: &str) -> u64 {
        self.results(poll)["total_counted"].as_u64().unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The end of a pipe whose reader has left.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn a_closed_pipe_ends_nothing_but_the_output() {
    let up = Up::with_poll();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("votes.csv");
    let lines = |n| format!("p,u{n},{}\n", if n % 10 == 3 { "soup" } else { "a" });
    std::fs::write(&file, (0..5_000).map(lines).collect::<String>()).unwrap();
    let cast = ["cast", "--file", file.to_str().unwrap()];
    let code =
        |arguments: &[&str]| up.command(arguments).stdout(closed_pipe()).stderr(closed_pipe()).status().unwrap().code();
    assert_eq!(code(&cast), Some(1));
    until("every good vote is counted", || up.counted("p") == 4_500);
    assert_eq!(code(&["load", "--poll", "p", "--votes", "1000"]), Some(0));
    until("every vote of the load is counted", || up.counted("p") == 5_500);
    for shows in [&["results", "p"][..], &["poll", "list"], &["poll", "get", "p"], &["results", "p", "--json"]] {
        assert_eq!(code(shows), Some(0), "{shows:?}");
    }
    assert_eq!(code(&["results", "none"]), Some(3));
    assert_eq!(code(&["results", "p", "--final"]), Some(1));
    // Nothing changes, so it would watch for days without a write that fails.
    let mut watch = up.command(&["results", "p", "--watch"]).spawn().unwrap();
    let mut reader = BufReader::new(watch.stdout.take().unwrap());
    reader.read_line(&mut String::new()).unwrap();
    drop(reader);
    assert_eq!(ended(&mut watch).code(), Some(0));
    let mut said = String::new();
    watch.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}

#[test]
fn a_stack_outlives_the_reader_of_its_log() {
    let mut up = Up::start(|command| {
        command.env("RUST_LOG", "trace").stderr(closed_pipe());
    });
    assert_eq!(up.create("p", &["a"]).0, 0);
    assert_eq!(up.run(&["cast", "--poll", "p", "--user", "-1001234", "--option", "a"]).status.code(), Some(0));
    until("the vote is counted", || up.counted("p") == 1);
    signal(&up.child, Signal::TERM);
    assert_eq!(ended(&mut up.child).code(), Some(0));
}

#[test]
fn every_signal_ends_a_stack_in_an_orderly_way() {
    for kind in [Signal::HUP, Signal::INT, Signal::TERM] {
        let directory = tempfile::tempdir().unwrap();
        let mut up = Up::start(|command| {
            command.env("TMPDIR", directory.path());
        });
        assert!(directory.path().read_dir().unwrap().next().is_some());
        signal(&up.child, kind);
        assert_eq!(ended(&mut up.child).code(), Some(0), "{kind:?}");
        assert!(directory.path().read_dir().unwrap().next().is_none(), "{kind:?}");
    }
}

#[test]
fn a_signal_that_is_to_be_ignored_is_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let err = directory.path().join("err");
    let shell = format!("trap '' HUP; exec '{}' up --ephemeral --addr 127.0.0.1:0", env!("CARGO_BIN_EXE_votestream"));
    let mut up = Command::new("sh").args(["-c", &shell]).stderr(File::create(&err).unwrap()).spawn().unwrap();
    let said = || std::fs::read_to_string(&err).unwrap();
    until("it runs", || said().contains("data "));
    // SIGHUP is ignored, as under nohup. Signals are delivered in the order of their numbers, so SIGHUP comes first.
    signal(&up, Signal::HUP);
    let still = Command::new("sh").args(["-c", "kill -0 \"$0\"", &up.id().to_string()]).status().unwrap();
    assert!(still.success() && !said().contains("stopping"), "{}", said());
    signal(&up, Signal::TERM);
    assert_eq!(ended(&mut up).code(), Some(0));
}

#[test]
fn the_log_in_a_file_has_no_escape_codes() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let mut up = Up::start(|command| {
        command.env("RUST_LOG", "info").stderr(File::create(&log).unwrap());
    });
    signal(&up.child, Signal::TERM);
    ended(&mut up.child);
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("INFO") && !log.contains('\x1b'), "{log}");
}

/// Writes lines `from..to`, each with a vote of another user.
fn write_votes(input: &mut ChildStdin, lines: std::ops::Range<u32>) {
    lines.for_each(|n| writeln!(input, "p,u{n},a").unwrap());
    input.flush().unwrap();
}

#[test]
fn votes_of_an_open_input_are_cast_and_an_interruption_says_how_far_it_came() {
    let up = Up::with_poll();
    let mut cast = up.command(&["cast", "--file", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = cast.stdin.take().unwrap();
    write_votes(&mut input, 1..6);
    until("five votes of an input that stays open are counted", || up.counted("p") == 5);
    write_votes(&mut input, 6..8);
    // Half a line, as a program writes it that is interrupted itself.
    write!(input, "p,u8").unwrap();
    input.flush().unwrap();
    until("seven votes are counted", || up.counted("p") == 7);
    signal(&cast, Signal::INT);
    assert_eq!(ended(&mut cast).code(), Some(130));
    let output = cast.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout), "accepted 7, rejected 0\n");
    assert!(text(&output.stderr).contains("go on with --from-line 8"), "{}", text(&output.stderr));
    assert_eq!(up.counted("p"), 7);
}

#[test]
fn an_interrupted_file_can_be_gone_on_with() {
    let up = Up::with_poll();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("votes.csv");
    let votes = 60_000;
    std::fs::write(&file, (1..=votes).map(|n| format!("p,u{n},a\n")).collect::<String>()).unwrap();
    let path = file.to_str().unwrap();
    let mut cast = up.command(&["--json", "cast", "--file", path]).spawn().unwrap();
    until("it casts", || up.results("p")["total_submitted"].as_u64().unwrap() > 0);
    signal(&cast, Signal::TERM);
    let code = ended(&mut cast).code();
    let output = cast.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let accepted = report["accepted"].as_u64().unwrap();
    if code == Some(0) {
        // A fast machine may be done before the signal comes.
        assert_eq!(accepted, votes);
        return;
    }
    assert_eq!((code, report["rejected"].as_u64()), (Some(143), Some(0)), "{report}");
    let Some(line) = report["from_line"].as_u64() else {
        // The signal came after the last answer, and before the end.
        assert_eq!(accepted, votes, "{report}");
        return;
    };
    assert_eq!(line, accepted + 1, "{report}");
    let rest = up.run(&["--json", "cast", "--file", path, "--from-line", &line.to_string()]);
    let rest: Value = serde_json::from_slice(&rest.stdout).unwrap();
    assert_eq!(rest["accepted"].as_u64(), Some(votes - accepted));
    until("every vote is counted", || up.counted("p") == votes);
    assert_eq!(up.results("p")["total_submitted"].as_u64(), Some(votes), "no vote was cast twice");
}

#[test]
fn an_interrupted_load_has_what_it_sent_in_its_headline() {
    let up = Up::with_poll();
    let load = ["load", "--poll", "p", "--votes", "1000000", "--rate", "2000"];
    let mut load = up.command(&load).spawn().unwrap();
    until("it casts", || up.counted("p") > 0);
    signal(&load, Signal::INT);
    assert_eq!(ended(&mut load).code(), Some(130));
    let said = text(&load.wait_with_output().unwrap().stdout);
    let sent: u64 = said.split(' ').next().unwrap().replace(',', "").parse().unwrap();
    assert!(said.contains(" of 1,000,000 votes in ") && sent < 1_000_000, "{said}");
    until("what it sent is counted", || up.counted("p") == sent);
}

#[test]
fn whatever_only_shows_ends_with_the_code_of_its_signal() {
    let up = Up::with_poll();
    for (kind, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut watch = up.command(&["results", "p", "--watch"]).spawn().unwrap();
        // The reader is kept: otherwise the command would end because nobody reads its output.
        let mut reader = BufReader::new(watch.stdout.take().unwrap());
        reader.read_line(&mut String::new()).unwrap();
        signal(&watch, kind);
        assert_eq!(ended(&mut watch).code(), Some(code));
    }
}

/// Runs a command on a terminal of this many columns, and returns what it wrote until `enough` returned true.
fn on_terminal(mut command: Command, columns: u16, mut enough: impl FnMut(&str) -> bool) -> String {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&controller, size).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let terminal = File::options().read(true).write(true).open(Path::new(name.to_str().unwrap())).unwrap();
    let end = || Stdio::from(terminal.try_clone().unwrap());
    let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
    // The screen of a child process. It is read at once, so only few pieces wait.
    let (tell, written) = mpsc::sync_channel(64);
    let mut screen = File::from(controller);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(bytes) = screen.read(&mut buffer) {
            if tell.send(buffer[..bytes].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut seen = Vec::new();
    while !enough(&text(&seen)) {
        seen.extend(written.recv_timeout(PATIENCE).expect("the terminal shows it"));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    text(&seen)
}

#[test]
fn a_window_shows_every_count_whatever_its_width() {
    let up = Up::start(|_| {});
    let long = "A long option, as they are in real polls";
    assert_eq!(up.create("w", &[long, "長い名前の選択肢です", "👩\u{200d}💻"]).0, 0);
    let votes: String = (0..12_345).map(|n| format!("w,u{n},\"{long}\"\n")).collect();
    assert_eq!(up.cast(votes.as_bytes()).status.code(), Some(0));
    until("every vote is counted", || up.counted("w") == 12_345);
    for columns in [20, 40, 80, 300] {
        let watch = up.command(&["results", "w", "--watch"]);
        let shown = on_terminal(watch, columns, |shown| shown.contains("submitted\r\n"));
        let line = shown.lines().find(|line| line.starts_with("A ")).unwrap();
        assert!(line.contains("12,345") && line.ends_with("100.0 %"), "{columns}: {shown}");
        for line in shown.lines().filter(|line| !line.contains('\x1b')) {
            assert!(console_width(line) < usize::from(columns), "{columns}: {line}");
        }
    }
}

/// Columns of a line of the test above. Its wide characters are the Japanese ones and the emoji.
fn console_width(line: &str) -> usize {
    let line = line.replace("👩\u{200d}💻", "XX");
    line.chars().map(|c| if ('\u{3000}'..='\u{9fff}').contains(&c) { 2 } else { 1 }).sum()
}

#[test]
fn escape_codes_go_where_somebody_sees_them() {
    let up = Up::with_poll();
    let watch = |change: fn(&mut Command)| {
        let mut command = up.command(&["results", "p", "--watch"]);
        change(&mut command);
        let mut votes = 0;
        on_terminal(command, 80, |shown| {
            // The second picture is drawn over the first.
            let lines = shown.matches("submitted").count();
            if lines == 1 && votes == 0 {
                votes = 1;
                up.run(&["cast", "--poll", "p", "--user", &format!("{:?}", Instant::now()), "--option", "a"]);
            }
            lines > 1
        })
    };
    let dumb = watch(|command| {
        command.env("TERM", "dumb");
    });
    assert!(!dumb.contains('\x1b'), "{dumb:?}");
    assert!(watch(|_| {}).contains('\x1b'));
    // On a terminal, logs have colours unless the user has turned them off.
    let log = |name: &str, value: &str| {
        let mut command = votestream();
        command.args(["up", "--ephemeral", "--addr", "127.0.0.1:0"]);
        command.env("RUST_LOG", "info").env(name, value);
        on_terminal(command, 80, |shown| shown.contains("INFO") && shown.contains("data "))
    };
    assert!(log("TERM", "xterm").contains("\x1b["));
    assert!(!log("TERM", "dumb").contains('\x1b'));
    assert!(!log("NO_COLOR", "1").contains('\x1b'));
}

#[test]
fn polls_show_what_they_are() {
    let up = Up::start(|_| {});
    for (id, options) in [
        (".", &["a"][..]),
        ("..", &["a"]),
        ("p", &["tea", "tea "]),
        ("p", &["tea", "te\u{200b}a"]),
        ("p", &["caf\u{e9}", "cafe\u{301}"]),
        ("p", &["tea", "t\u{435}a"]),
        ("p", &[" ", "x"]),
        ("p", &["a\u{202e}b"]),
    ] {
        let (code, said) = up.create(id, options);
        assert!(code == 3 && said.contains("INVALID_ARGUMENT") && said.lines().count() == 1, "{options:?}: {said}");
        assert!(!said.contains('\u{202e}'), "{said:?}");
    }
    assert_eq!(up.create("p", &["caf\u{e9}", "می\u{200c}خواهم", "👩\u{200d}💻"]).0, 0);
    // Ids are compared byte by byte: another spelling of an option is not that option.
    let vote = |option: &str| up.run(&["cast", "--poll", "p", "--user", "u", "--option", option]).status.code();
    assert_eq!((vote("caf\u{e9}"), vote("cafe\u{301}"), vote("👩\u{200d}💻")), (Some(0), Some(1), Some(0)));
    let said = text(&up.run(&["cast", "--poll", "p", "--user", "u", "--option", "cafe\u{301}"]).stderr);
    assert!(said.contains(r#""cafe\u{301}" looks like "caf\u{e9}""#), "{said}");
}

#[test]
fn files_of_people_are_read_or_refused_with_what_to_do() {
    let up = Up::with_poll();
    let utf_16: Vec<u8> = "\u{feff}p,u,a\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (input, code, said) in [
        (&b"poll_id, user_id, option_id\np, u1, a\n"[..], 0, ""),
        (b"p\tu2\ta\n", 0, ""),
        (b"{\"poll_id\":\"p\",\"user_id\":12345,\"option_id\":\"a\"}\n", 0, ""),
        (b"[{\"poll_id\":\"p\",\"user_id\":1,\"option_id\":\"a\"}]", 2, "jq -c '.[]'"),
        (&utf_16, 2, "UTF-16"),
    ] {
        let output = up.cast(input);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{errors}");
        assert!(errors.contains(said), "{errors}");
    }
    until("three votes are counted", || up.counted("p") == 3);
}

#[test]
fn more_are_never_counted_than_submitted() {
    let up = Up::start(|_| {});
    for round in 0..5 {
        let poll = format!("q{round}");
        assert_eq!(up.create(&poll, &["a", "b"]).0, 0);
        assert_eq!(up.run(&["cast", "--poll", &poll, "--user", "ada", "--option", "a"]).status.code(), Some(0));
        until("the vote is counted", || {
            let shown = up.results(&poll);
            let number = |name: &str| shown[name].as_u64().unwrap();
            assert!(number("total_counted") <= number("total_submitted"), "{shown}");
            number("total_counted") == 1
        });
    }
}

#[test]
fn hidden_results_are_shown_when_they_are_released() {
    let up = Up::with_poll();
    let create = ["poll", "create", "--id", "h", "--option", "a", "--closes-in", "1h", "--visibility", "on-release"];
    let created = up.run(&create);
    assert!(text(&created.stdout).contains("results   hidden until they are released (on-release)"), "{created:?}");
    assert_eq!(up.cast(b"h,ada,a\nh,bob,a\n").status.code(), Some(0));
    let ways: [&[&str]; 4] = [&[], &["--watch"], &["--final"], &["--json"]];
    for way in ways {
        let hidden = up.run(&[&["results", "h"], way].concat());
        assert_eq!((hidden.status.code(), text(&hidden.stdout).as_str()), (Some(1), ""), "{way:?}");
        let expected = "not shown: the results of this poll are shown once somebody releases them";
        assert!(text(&hidden.stderr).contains(expected), "{way:?}: {hidden:?}");
    }
    // Whoever may administer the poll sees everything.
    let audit = up.run(&["audit", "h", "--json"]);
    assert!(text(&audit.stdout).contains("\"recounted\""), "{audit:?}");

    for poll in ["p", "none"] {
        let refused = up.run(&["poll", "release", poll]);
        assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    }
    for _ in 0..2 {
        let released = up.run(&["poll", "release", "h"]);
        assert_eq!(released.status.code(), Some(0), "{released:?}");
        assert!(text(&released.stdout).contains("results   shown since 2"), "{released:?}");
    }
    until("both votes are counted", || up.counted("h") == 2);
    let poll: Value = serde_json::from_slice(&up.run(&["poll", "get", "h", "--json"]).stdout).unwrap();
    assert_eq!(poll["poll"]["visibility"], "POLL_VISIBILITY_ON_RELEASE");
    assert!(poll["poll"]["released_at"].is_string());
}
