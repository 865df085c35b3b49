//! `votestream load` in all its forms: the real binary against a stack that `votestream up` runs, with and without TLS and
//! identity, and against servers that stand still or do not answer. What it says was accepted is what is counted.

mod up;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::Value;
use tempfile::TempDir;

use up::Up;

/// A stack, and what commands need to reach it.
struct Show {
    up: Up,
    folder: TempDir,
    /// Flags of every command.
    flags: Vec<String>,
    /// Flags of commands that administer.
    manager: Vec<String>,
}

/// Writes a certificate for this machine, its key, and that of its issuer.
fn write_certificates(folder: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(folder.join("ca.pem"), root.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(root, key);
    let key = KeyPair::generate().unwrap();
    let mut wanted = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    wanted.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    std::fs::write(folder.join("cert.pem"), wanted.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
}

/// `votestream auth` in this folder, which must do what it is told. Returns its stdout.
fn auth(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_votestream"));
    let output = command.arg("auth").args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Show {
    /// A stack without TLS and without identity.
    fn plain(more: &[&str]) -> Self {
        let up = Up::start_with("127.0.0.1:0", |command| {
            command.arg("--ephemeral").args(more);
        });
        Self { up, folder: tempfile::tempdir().unwrap(), flags: Vec::new(), manager: Vec::new() }
    }

    /// A stack that asks who calls, over TLS.
    fn secured() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_certificates(folder.path());
        auth(folder.path(), &["init"]);
        let auth_file = folder.path().join("votestream-auth/auth.toml");
        let up = Up::start_with("127.0.0.1:0", |command| {
            command.arg("--ephemeral").arg("--auth").arg(&auth_file);
            command.arg("--tls-cert").arg(folder.path().join("cert.pem"));
            command.arg("--tls-key").arg(folder.path().join("key.pem"));
        });
        let flags = vec!["--tls-ca".to_owned(), text(folder.path().join("ca.pem"))];
        let show = Self { up, flags, manager: Vec::new(), folder };
        let manager = show.token_file("manager", &["--scope", "manage:*"]);
        Self { manager: vec!["--token-file".into(), manager], ..show }
    }

    /// Writes what `auth token` prints into a file of this name.
    fn token_file(&self, name: &str, arguments: &[&str]) -> String {
        let all = ["token", "--auth", "votestream-auth/auth.toml"].iter().chain(arguments).copied();
        let printed = auth(self.folder.path(), &all.collect::<Vec<_>>());
        let path = self.folder.path().join(name);
        std::fs::write(&path, printed).unwrap();
        text(path)
    }

    fn run(&self, flags: &[String], arguments: &[&str]) -> (i32, Value, String) {
        let all = self.flags.iter().chain(flags).map(String::as_str).chain(arguments.iter().copied());
        self.up.json(&all.collect::<Vec<_>>(), "")
    }

    fn create(&self, poll: &str) {
        let arguments = ["poll", "create", "--id", poll, "--option", "a", "--option", "b", "--closes-in", "1h"];
        let (code, _, errors) = self.run(&self.manager, &arguments);
        assert_eq!(code, 0, "{errors}");
    }

    fn close(&self, poll: &str) {
        let (code, _, errors) = self.run(&self.manager, &["poll", "close", poll]);
        assert_eq!(code, 0, "{errors}");
    }

    /// Exit code and report of `load`. What each run counts is compared with its votes.
    fn load(&self, poll: &str, arguments: &[&str]) -> (i32, Value, String) {
        self.run(&[], &[&["load", "--poll", poll], arguments].concat())
    }

    /// Votes in a poll that has closed.
    fn final_votes(&self, poll: &str) -> u64 {
        let (code, result, errors) = self.run(&[], &["results", poll, "--final", "--wait", "--timeout", "2m"]);
        assert_eq!(code, 0, "{errors}");
        let (code, audit, errors) = self.run(&self.manager, &["audit", poll]);
        assert_eq!(code, 0, "{audit} {errors}");
        result["total_votes"].as_u64().unwrap()
    }
}

fn text(path: PathBuf) -> String {
    path.into_os_string().into_string().unwrap()
}

fn number(report: &Value, field: &str) -> u64 {
    report.get(field).map_or(0, |value| value.as_u64().unwrap_or_else(|| panic!("{field}: {report}")))
}

/// Every vote has one fate, and every one that was not accepted has a kind.
fn check_sums(report: &Value, votes: u64) {
    let [accepted, rejected, not_sent, unknown] =
        ["accepted", "rejected", "not_sent", "unknown"].map(|field| number(report, field));
    assert_eq!(accepted + rejected + not_sent + unknown, votes, "{report}");
    assert_eq!(number(report, "votes"), votes, "{report}");
    let errors: u64 = report["errors"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(errors, votes - accepted, "{report}");
}

/// What a service or a connection says when the machine is too busy for its limits on time: tests share theirs with others.
const TOO_BUSY: [&str; 10] = [
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "HTTP_503",
    "HTTP_504",
    "HTTP_429",
    "connect_timeout",
    "tls_timeout",
    "connection_broken",
    "timeout",
];

/// Votes that were not accepted because the machine is too busy.
fn too_busy(report: &Value) -> u64 {
    TOO_BUSY.iter().map(|kind| number(&report["errors"], kind)).sum()
}

/// A load whose votes are accepted, but for those for which the machine is too busy.
fn accepted(show: &Show, poll: &str, votes: u64, arguments: &[&str]) -> Value {
    let (code, report, errors) = show.load(poll, arguments);
    check_sums(&report, votes);
    let accepted = number(&report, "accepted");
    assert_eq!(accepted + too_busy(&report), votes, "{poll}: {report} {errors}");
    assert!(accepted > 0, "{poll}: {report} {errors}");
    assert_eq!(code, i32::from(accepted < votes), "{poll}: {report} {errors}");
    assert!(report["ack_milliseconds"]["p50"].as_f64().unwrap() > 0.0, "{report}");
    report
}

/// In a poll that has closed, as many voters count as votes were accepted; and maybe those whose fate is unknown. Each of them
/// voted once.
fn counts_exactly(show: &Show, poll: &str, report: &Value) {
    let (accepted, unknown) = (number(report, "accepted"), number(report, "unknown"));
    let counted = show.final_votes(poll);
    assert!((accepted..=accepted + unknown).contains(&counted), "{poll}: {counted}, {report}");
}

#[test]
fn every_form_of_votes_is_counted_exactly() {
    let show = Show::plain(&[]);
    let forms: [(&str, &[&str]); 7] = [
        ("streams", &["--rate", "3000", "--arrivals", "announcement", "--votes-per-message", "10"]),
        ("grpc-kept", &["--unary", "--connections", "3", "--in-flight", "20"]),
        ("grpc-new", &["--unary", "--new-connections", "--in-flight", "20"]),
        ("json-kept", &["--unary", "--protocol", "json", "--connections", "3"]),
        ("json-new", &["--unary", "--protocol", "json", "--new-connections", "--in-flight", "20"]),
        ("spike", &["--unary", "--rate", "300", "--arrivals", "spike", "--new-connections"]),
        ("announcement", &["--unary", "--protocol", "json", "--rate", "300", "--arrivals", "announcement"]),
    ];
    let mut reports = Vec::new();
    for (poll, form) in forms {
        show.create(poll);
        let report = accepted(&show, poll, 600, &[&["--votes", "600"], form].concat());
        let sent_as = &report["sent_as"];
        assert_eq!(sent_as["unary"], form.contains(&"--unary"), "{report}");
        assert_eq!(sent_as["new_connections"], form.contains(&"--new-connections"), "{report}");
        assert_eq!(sent_as["protocol"], if form.contains(&"json") { "json" } else { "grpc" }, "{report}");
        // Those that were opened before the first vote count, too.
        assert_eq!(report.get("connect_milliseconds").is_some(), form.contains(&"--unary"), "{report}");
        assert!(report.get("tls_milliseconds").is_none(), "{report}");
        assert_eq!(report.get("offered").is_some(), form.contains(&"--rate"), "{report}");
        if let Some(offered) = report.get("offered") {
            // However fast the service is, votes come in the second half of the curve, too.
            let length = offered["seconds"].as_f64().unwrap();
            assert!(report["seconds"].as_f64().unwrap() > length * 0.5, "{report}");
            assert!(offered["votes_per_second"].as_f64().unwrap() < offered["rate"].as_f64().unwrap(), "{report}");
        }
        reports.push((poll, report));
    }
    show.create("again");
    let again =
        accepted(&show, "again", 600, &["--unary", "--votes", "600", "--revote-share", "0.25", "--in-flight", "20"]);
    assert_eq!(number(&again, "voters"), 450);
    reports.iter().map(|(poll, _)| *poll).chain(["again"]).for_each(|poll| show.close(poll));
    reports.iter().for_each(|(poll, report)| counts_exactly(&show, poll, report));
    let counted = show.final_votes("again");
    assert!(if number(&again, "accepted") == 600 { counted == 450 } else { counted <= 450 }, "{counted}: {again}");
}

#[test]
fn phones_have_tokens_and_tls() {
    let show = Show::secured();
    let tokens = show.token_file("tokens.csv", &["--scope", "vote:*", "--count", "200", "--csv"]);
    let lines = show.token_file("tokens.txt", &["--scope", "vote:*", "--count", "200"]);
    let relay = show.token_file("relay", &["--user", "r", "--scope", "relay:*"]);
    let auth = text(show.folder.path().join("votestream-auth/auth.toml"));
    let forms: [(&str, &[&str]); 5] = [
        ("listed", &["--new-connections", "--tokens", &tokens]),
        ("listed-json", &["--new-connections", "--protocol", "json", "--tokens", &lines]),
        ("signed", &["--new-connections", "--token-auth", &auth]),
        ("signed-kept", &["--protocol", "json", "--token-auth", &auth]),
        ("relayed", &["--token-file", &relay]),
    ];
    let mut reports = Vec::new();
    for (poll, form) in forms {
        show.create(poll);
        let few = ["--unary", "--votes", "200", "--in-flight", "10"];
        let report = accepted(&show, poll, 200, &[&few, form].concat());
        assert_eq!(report["sent_as"]["tls"], true);
        assert!(report["tls_milliseconds"]["p50"].as_f64().unwrap() > 0.0, "{report}");
        reports.push((poll, report));
    }
    // A third of these votes replace earlier ones with the same tokens.
    show.create("again");
    let again = ["--unary", "--votes", "300", "--in-flight", "10", "--tokens", &tokens];
    assert_eq!(number(&accepted(&show, "again", 300, &again), "voters"), 200);
    reports.iter().map(|(poll, _)| *poll).chain(["again"]).for_each(|poll| show.close(poll));
    reports.iter().for_each(|(poll, report)| counts_exactly(&show, poll, report));
    assert!((1..=200).contains(&show.final_votes("again")));
    let (code, _, errors) = show.load("again", &["--unary", "--voters", "201", "--votes", "300", "--tokens", &tokens]);
    assert_eq!((code, errors.contains("there are tokens for 200")), (2, true), "{errors}");
}

/// A load of which no vote is accepted, all for one reason, but for those for which the machine is too busy.
fn refused(show: &Show, poll: &str, fate: &str, kind: &str, arguments: &[&str]) {
    let few = ["--unary", "--votes", "40", "--in-flight", "5"];
    let (code, report, errors) = show.load(poll, &[&few, arguments].concat());
    assert_eq!(code, 1, "{kind}: {report} {errors}");
    check_sums(&report, 40);
    let of_kind = number(&report["errors"], kind);
    assert_eq!((of_kind + too_busy(&report), number(&report, "accepted")), (40, 0), "{report} {errors}");
    assert!(of_kind > 0 && number(&report, fate) >= of_kind, "{report} {errors}");
    assert!(report["failure_milliseconds"]["max"].as_f64().unwrap() > 0.0, "{report}");
    assert!(errors.contains("not accepted: "), "{errors}");
}

/// A port of this machine that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn refusals_are_counted_by_kind() {
    let show = Show::secured();
    show.create("open");
    show.create("closed");
    show.close("closed");
    let auth = text(show.folder.path().join("votestream-auth/auth.toml"));
    let garbage = show.folder.path().join("garbage");
    std::fs::write(&garbage, "no-token-at-all\n").unwrap();
    let garbage = text(garbage);
    let other = show.token_file("other", &["--scope", "vote:other", "--count", "40"]);
    let plain = Show::plain(&[]);
    let nobody = format!("https://127.0.0.1:{}", free_port());
    let speaks_no_tls = plain.up.ingest.replace("http://", "https://");
    for (protocol, unauthenticated, denied, closed) in [
        ("grpc", "UNAUTHENTICATED", "PERMISSION_DENIED", "FAILED_PRECONDITION"),
        ("json", "HTTP_401", "HTTP_403", "HTTP_409"),
    ] {
        for connections in [&["--new-connections"][..], &["--connections", "2"]] {
            let form = [&["--protocol", protocol], connections].concat();
            let with = |more: &[&'static str], file: &str| -> Vec<String> {
                form.iter().chain(more).map(|&flag| flag.to_owned()).chain([file.to_owned()]).collect()
            };
            let refused = |poll, fate, kind, arguments: Vec<String>| {
                refused(&show, poll, fate, kind, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
            };
            refused("open", "rejected", unauthenticated, with(&["--tokens"], &garbage));
            refused("open", "rejected", denied, with(&["--tokens"], &other));
            refused("closed", "rejected", closed, with(&["--token-auth"], &auth));
        }
        let new = |ingest: &str, kind: &str| {
            let arguments = ["--new-connections", "--protocol", protocol, "--token-auth", &auth, "--ingest", ingest];
            refused(&show, "open", "not_sent", kind, &arguments);
        };
        new(&nobody, "connect_refused");
        new(&speaks_no_tls, "tls_failed");
    }
    show.close("open");
    assert_eq!(show.final_votes("open"), 0);
    // Connections that calls share are opened before the first vote.
    let arguments = ["--unary", "--votes", "40", "--token-auth", &auth, "--ingest", &nobody];
    let (code, _, errors) = show.load("open", &arguments);
    assert_eq!((code, errors.contains("cannot reach the ingest service")), (3, true), "{errors}");
}

#[test]
fn connections_that_the_service_closes_are_counted_and_their_votes_are_unknown() {
    let show = Show::plain(&["--connections-per-address-max", "2"]);
    show.create("p");
    // The service lets two phones in at a time. All are on one address.
    let arguments = ["--unary", "--new-connections", "--protocol", "json", "--in-flight", "32", "--votes", "1000"];
    let (code, report, errors) = show.load("p", &arguments);
    assert_eq!(code, 1, "{report} {errors}");
    check_sums(&report, 1_000);
    let accepted = number(&report, "accepted");
    assert!(accepted > 0 && number(&report["errors"], "connection_broken") > 0, "{report}");
    show.close("p");
    let counted = show.final_votes("p");
    assert!((accepted..=accepted + number(&report, "unknown")).contains(&counted), "{counted}: {report}");
}

/// What a stand-in does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Answers each with 200, but this one, and all that come meanwhile, so much later.
    StandsStill { request: usize, time: Duration },
    /// Never answers.
    Silent,
}

/// A server of HTTP/1.1 that takes every vote and keeps none.
struct StandIn {
    url: String,
    requests: Arc<AtomicUsize>,
}

impl StandIn {
    fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (requests, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(())));
        let counted = requests.clone();
        // Ends with the process of the test.
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let (connection, counted, gate) = (connection.unwrap(), counted.clone(), gate.clone());
                std::thread::spawn(move || Self::serve(connection, manner, &counted, &gate));
            }
        });
        Self { url, requests }
    }

    fn serve(connection: TcpStream, manner: Manner, requests: &AtomicUsize, gate: &Mutex<()>) -> Option<()> {
        let mut lines = BufReader::new(connection.try_clone().ok()?);
        loop {
            let (mut line, mut length) = (String::new(), 0);
            while lines.read_line(&mut line).ok()? > 2 {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().ok()?;
                }
                line.clear();
            }
            if line.is_empty() {
                return None;
            }
            lines.read_exact(&mut vec![0; length]).ok()?;
            let request = requests.fetch_add(1, Ordering::SeqCst) + 1;
            if manner == Manner::Silent {
                continue;
            }
            let held = gate.lock().unwrap();
            if let Manner::StandsStill { request: at, time } = manner
                && request == at
            {
                std::thread::sleep(time);
            }
            drop(held);
            let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
            (&connection).write_all(answer.as_bytes()).ok()?;
        }
    }
}

fn percentile(report: &Value, times: &str, name: &str) -> f64 {
    report[times][name].as_f64().unwrap_or_else(|| panic!("{times} {name}: {report}"))
}

#[test]
fn votes_that_are_due_while_the_service_stands_still_count_that_time() {
    let show = Show::plain(&[]);
    show.create("p");
    // 800 votes in two seconds. After the first 200 the service stands still for one and a half: 600 are due then, and only four
    // are in flight. Whoever counted from the sending would see four slow ones in 800.
    let (still, stall) = (200, Duration::from_millis(1_500));
    for more in [&["--connections", "4"][..], &["--new-connections", "--in-flight", "4"]] {
        let stand_in = StandIn::start(Manner::StandsStill { request: still, time: stall });
        let arguments = ["--unary", "--protocol", "json", "--rate", "400", "--votes", "800", "--ingest", &stand_in.url];
        let report = accepted(&show, "p", 800, &[&arguments, more].concat());
        // It stood still, and no vote was sent twice.
        assert_eq!(stand_in.requests.load(Ordering::SeqCst), 800);
        for (name, least) in [("p50", 300.0), ("p90", 1_000.0), ("max", 1_400.0)] {
            let took = percentile(&report, "ack_milliseconds", name);
            assert!(took >= least, "{name} {took}: {report}");
        }
        assert!(number(&report, "waited") >= 400, "{report}");
    }
}

#[test]
fn a_phone_that_gets_no_answer_gives_up_and_knows_nothing() {
    let show = Show::plain(&[]);
    show.create("p");
    let stand_in = StandIn::start(Manner::Silent);
    // Over shared connections, two at a time wait for a second each.
    for (votes, more) in
        [(40, &["--votes", "40", "--new-connections"][..]), (4, &["--votes", "4", "--connections", "2"])]
    {
        let arguments = ["--unary", "--protocol", "json", "--timeout", "1s", "--ingest", &stand_in.url];
        let (code, report, errors) = show.load("p", &[&arguments, more].concat());
        assert_eq!(code, 1, "{report} {errors}");
        check_sums(&report, votes);
        assert_eq!((number(&report, "unknown"), number(&report["errors"], "timeout")), (votes, votes), "{report}");
        assert!(percentile(&report, "failure_milliseconds", "p50") >= 990.0, "{report}");
    }
}

#[test]
fn what_cannot_be_is_a_usage_error() {
    let show = Show::plain(&[]);
    show.create("p");
    for (arguments, message) in [
        (&["--rate", "0", "--arrivals", "spike"][..], "needs a --rate above 0"),
        (&["--unary", "--tokens", "/nowhere/tokens"], "--tokens: /nowhere/tokens"),
        (&["--unary", "--token-auth", "/nowhere/auth.toml"], "/nowhere/auth.toml"),
    ] {
        let (code, _, errors) = show.load("p", arguments);
        assert_eq!((code, errors.contains(message)), (2, true), "{arguments:?}: {errors}");
    }
}
