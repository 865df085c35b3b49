//! The admin address of a running stack: what it counts is what was answered, and it answers while the stack drains and while
//! clients have taken every place. Runs the real binary, with a client of a few lines.

mod up;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use up::Up;

/// Longer than any step here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Connections that clients may have, where a test fills all of them.
const PLACES: usize = 8;
/// A vote as JSON, for a poll that need not be there.
const VOTE: &str = r#"{"cognitoid": "ada", "voteid": "p", "option": "a"}"#;

/// A stack with an admin address. What it says on stderr is in a file.
struct Operated {
    up: Up,
    admin: String,
    stderr: PathBuf,
    _folder: tempfile::TempDir,
}

impl Operated {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stderr = folder.path().join("stderr");
        let up = Up::start_with("127.0.0.1:0", |command| {
            command.args(["--admin-addr", "127.0.0.1:0", "--data-dir"]).arg(folder.path().join("data")).args(arguments);
            command.stderr(fs::File::create(&stderr).unwrap());
        });
        let said = fs::read_to_string(&stderr).unwrap();
        let admin = said.lines().find_map(|line| line.strip_prefix("admin     http://"));
        let admin = admin.unwrap_or_else(|| panic!("it does not say where operators ask: {said}")).to_owned();
        Self { up, admin, stderr, _folder: folder }
    }

    fn get(&self, path: &str) -> Answer {
        ask(&self.admin, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
    }

    /// The value of a series, as the text format has it.
    fn value(&self, series: &str) -> f64 {
        let answer = self.get("/metrics");
        assert_eq!(answer.status, 200);
        let value = answer.body.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("{series} is not in {}", answer.body))
    }

    /// A call at the voters' address whose body has not come: the server has taken it and waits.
    fn call_in_flight(&self) -> TcpStream {
        let mut socket = connect(self.up.ingest.strip_prefix("http://").unwrap());
        let length = VOTE.len();
        let head = format!(
            "POST /vote HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
             expect: 100-continue\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(&socket).read_line(&mut line).unwrap();
        assert!(line.starts_with("HTTP/1.1 100"), "{line}");
        socket
    }

    /// Waits until a condition holds.
    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            let said = || fs::read_to_string(&self.stderr).unwrap_or_default();
            assert!(start.elapsed() < PATIENCE, "{what}: {}", said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn connect(addr: &str) -> TcpStream {
    let socket = TcpStream::connect(addr).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

/// Sends bytes and reads until the other side closes.
fn ask(addr: &str, request: &str) -> Answer {
    let mut socket = connect(addr);
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

#[test]
fn metrics_count_what_was_answered() {
    let stack = Operated::start(&[]);
    stack.until("it is ready", |stack| stack.get("/readyz").status == 200);
    let create = ["poll", "create", "--id", "p", "--option", "a", "--option", "b", "--closes-in", "1h"];
    assert_eq!(stack.up.json(&create, "").0, 0);
    let votes: String = (0..250).map(|user| format!("p,{user},{}\n", if user < 200 { "a" } else { "c" })).collect();
    let (code, cast, _) = stack.up.json(&["cast", "--file", "-"], &votes);
    assert_eq!((code, &cast["accepted"], &cast["rejected"]), (1, &200.into(), &50.into()), "{cast}");

    assert_eq!(stack.value("votestream_ingest_votes_accepted_total"), 200.0);
    assert_eq!(stack.value("votestream_ingest_votes_rejected_total{reason=\"option_not_found\"}"), 50.0);
    assert_eq!(stack.value("votestream_ingest_votes_rejected_total{reason=\"malformed\"}"), 0.0);
    assert_eq!(stack.value("votestream_lane_votes_settled_total{outcome=\"durable\"}"), 200.0);
    assert_eq!(stack.value("votestream_lane_batch_votes_sum"), 200.0);
    let puts = stack.value("votestream_lane_batch_votes_count");
    assert_eq!(stack.value("votestream_stream_put_duration_seconds_count{outcome=\"stored\"}"), puts);
    let applied = "votestream_group_votes_applied_total{group=\"persist\"}";
    stack.until("persist has stored them", |stack| stack.value(applied) == 200.0);
    stack.until("the clients have left", |stack| stack.value("votestream_server_connections") == 0.0);

    let text = stack.get("/metrics");
    assert!(text.head.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{}", text.head);
    let of = |accept: &str| {
        let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\naccept: ";
        ask(&stack.admin, &format!("{request}{accept}\r\n\r\n"))
    };
    let open = of("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1");
    let expected = "\r\ncontent-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(open.head.contains(expected) && open.body.ends_with("\n# EOF\n"), "{}", open.head);
    let head = ask(&stack.admin, "HEAD /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let missing = stack.get("/v1/polls/p");
    assert!(missing.status == 404 && missing.body.starts_with("{\"error\":"), "{} {}", missing.status, missing.body);
    // A page whose name leads to this machine learns nothing.
    let page = ask(&stack.admin, "GET /metrics HTTP/1.1\r\nhost: vote.example\r\nconnection: close\r\n\r\n");
    assert!(page.status == 403 && !page.body.contains("votestream_"), "{} {}", page.status, page.body);
    // Nothing of it is at the address of voters.
    let ingest = stack.up.ingest.strip_prefix("http://").unwrap();
    let elsewhere = ask(ingest, "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    assert!(elsewhere.status != 200 && !elsewhere.body.contains("votestream_"), "{}", elsewhere.status);
}

#[test]
fn a_stack_that_drains_is_healthy_and_not_ready() {
    let mut stack = Operated::start(&[]);
    stack.until("it is ready", |stack| stack.get("/readyz").status == 200);
    let mut call = stack.call_in_flight();
    let pid = rustix::process::Pid::from_child(&stack.up.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    stack.until("it says that it drains", |stack| stack.get("/readyz").status == 503);
    let ready = stack.get("/readyz");
    assert!(ready.body.contains("drains"), "{}", ready.body);
    assert_eq!(stack.get("/healthz").status, 200);
    assert_eq!(stack.value("votestream_server_connections"), 1.0);
    assert!(stack.up.child.try_wait().unwrap().is_none(), "it waits for the call");

    call.write_all(VOTE.as_bytes()).unwrap();
    let mut answer = String::new();
    call.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("HTTP/1.1 404"), "the call is answered, there is no such poll: {answer}");
    assert!(stack.up.child.wait().unwrap().success());
}

#[test]
fn it_answers_while_clients_have_taken_every_place_and_more_wait() {
    let stack = Operated::start(&["--connections-max", &PLACES.to_string()]);
    let calls: Vec<_> = (0..PLACES).map(|_| stack.call_in_flight()).collect();
    // Every place has a call, so nobody makes room. These wait in the system's queue.
    let waiting: Vec<_> = (0..5 * PLACES).map(|_| connect(stack.up.ingest.strip_prefix("http://").unwrap())).collect();
    for _ in 0..PLACES {
        assert_eq!(stack.value("votestream_server_connections"), PLACES as f64);
        assert_eq!(stack.get("/healthz").status, 200);
        assert_eq!(stack.get("/readyz").status, 200);
    }
    drop((calls, waiting));
}

#[test]
fn an_address_that_is_taken_is_said_and_nothing_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let ended = Command::new(env!("CARGO_BIN_EXE_votestream"))
        .args(["up", "--admin-addr", &addr, "--data-dir"])
        .arg(&data)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(
        ended.status.code() == Some(3) && said.contains(&format!("cannot listen on {addr}")),
        "{}: {said}",
        ended.status
    );
    assert!(!data.exists(), "the data directory was touched");
}
