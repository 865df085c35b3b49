//! Nothing that says who somebody is, or that proves it, gets into what is written: good and wrong credentials, each with a
//! recognisable text in it, go over every transport to `votestream up` and to the three services, all of which log everything
//! they can. Then logs, spans, metrics, and all answers are searched.

use std::{
    fs::File,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    time::timeout,
};
use votestream_core::model::hex::to_hex;
use votestream_e2e::{
    aws::{STREAM, dynamo_store, dynamodb, kinesis},
    cluster::eventually,
    collector::Collector,
    hostile::{Call, transports, wire},
    house::{ISS, issuer_entry, key_entry},
    issuer::{Issuer, base64url, now, sign_by_hmac, unsigned},
};
use votestream_proto::v1::{CreatePollRequest, PollOption};

/// In everything here that nobody else may see, and in nothing else. Logs are searched whatever the case.
const CANARY: &str = "canary";
const PATIENCE: Duration = Duration::from_secs(120);
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const MANAGER: &str = "canary-of-the-manager";
const RELAY: &str = "canary-of-the-relay";

/// A process whose log is kept whole.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(dir: &Path, binary: &str, name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log).unwrap();
        let child = Command::new(binary)
            .args(arguments)
            .env_clear()
            .envs(variables.iter().copied())
            .envs([("RUST_LOG", "trace"), ("RUST_BACKTRACE", "1")])
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    fn logged(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap()).into_owned()
    }

    /// What stands between these two in the log.
    async fn says(&mut self, before: &str, after: &str) -> String {
        eventually(&format!("{} says {before}", self.log.display()), PATIENCE, async || {
            let log = self.logged();
            let found = log.split_once(before).and_then(|(_, rest)| rest.split_once(after));
            found.map(|(found, _)| found.to_owned()).ok_or_else(|| log.lines().last().unwrap_or_default().to_owned())
        })
        .await
    }

    async fn stop(mut self) -> (String, String) {
        let id = self.child.id().expect("it runs").to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it does not stop").unwrap();
        assert!(status.success(), "{}: {status}", self.log.display());
        (self.log.display().to_string(), self.logged())
    }
}

/// Credentials, good and wrong, each with the canary in it; and what of them must not be seen either, because the canary is
/// encoded there.
struct Credentials {
    headers: Vec<Vec<Vec<u8>>>,
    parts: Vec<String>,
}

fn credentials(issuer: &Issuer) -> Credentials {
    let claims = |changes: Value| {
        let mut claims = json!({
            "iss": ISS, "aud": "votestream", "sub": "canary-ada", "exp": now() + 3_600, "iat": now(), "jti": "canary-jti",
            "scope": "vote:p read:p canary-scope", "email": "canary@login.test", "name": ["canary"],
        });
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        claims
    };
    let good = claims(json!({}));
    let token = issuer.token(&good);
    let start = token.rsplit_once('.').unwrap().0.to_owned();
    let head = |changes: Value| {
        let mut head = json!({"alg": "ES256", "kid": issuer.kid});
        head.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        head
    };
    let tokens = [
        token.clone(),
        format!("{start}.{}", base64url(b"canary-canary-canary-canary-canary-canary-canary-canary-canary-c")),
        Issuer::new(&issuer.kid).token(&good),
        issuer.token(&claims(json!({"exp": now() - 3_600}))),
        issuer.token(&claims(json!({"nbf": now() + 3_600}))),
        issuer.token(&claims(json!({"aud": "canary-audience"}))),
        issuer.token(&claims(json!({"iss": "https://canary.test"}))),
        issuer.token(&claims(json!({"sub": "canary\u{7}"}))),
        issuer.token(&claims(json!({"sub": {"canary": "canary"}}))),
        issuer.token(&claims(json!({"scope": ["canary"]}))),
        issuer.token(&claims(json!({"exp": "canary"}))),
        issuer.token(&claims(json!({"sub": "canary-revoked", "jti": "canary-stolen"}))),
        issuer.token(&claims(json!({"scope": "vote:canary read:canary"}))),
        issuer.sign(&head(json!({"kid": "canary-kid"})), &good),
        issuer.sign(&head(json!({"alg": "canary"})), &good),
        issuer.sign(&head(json!({"crit": ["canary"], "canary": 1})), &good),
        sign_by_hmac(&head(json!({"alg": "HS256"})), &good, b"canary"),
        unsigned(&good),
    ];
    let parts = tokens.iter().flat_map(|token| token.split('.').skip(1)).filter(|part| part.len() > 20);
    let parts = parts.map(|part| part[part.len() - 20..].to_owned()).collect();
    let mut headers: Vec<Vec<Vec<u8>>> =
        tokens.iter().map(|token| vec![format!("Bearer {token}").into_bytes()]).collect();
    headers.extend([
        vec![format!("Bearer {RELAY}").into_bytes()],
        vec![b"Bearer canary-that-nobody-knows".to_vec()],
        vec![b"Bearer canary.canary.canary".to_vec()],
        vec![b"Basic canary:canary".to_vec()],
        vec![b"Bearer canary".to_vec(), b"Bearer canary".to_vec()],
        vec![format!("Bearer {}", "canary".repeat(1_000)).into_bytes()],
        vec![b"Bearer canary\xff\xfe".to_vec()],
        vec![b"canary".to_vec()],
    ]);
    Credentials { headers, parts }
}

/// Calls with every credential over every transport. Returns all answers.
async fn call_everything(ingest: SocketAddr, results: SocketAddr, credentials: &Credentials) -> Vec<String> {
    let votes = |users: &[&str]| users.iter().flat_map(|user| wire::vote("p", user, "a")).collect::<Vec<u8>>();
    let grpc = [
        (ingest, "/votestream.v1.IngestService/CastVote", votes(&["canary-bob"])),
        (ingest, "/votestream.v1.IngestService/CastVotes", votes(&["canary-bob", "canary-carol", "canary\u{7}", ""])),
        (ingest, "/votestream.v1.IngestService/StreamVotes", votes(&["canary-dave", "canary-ada", "canary\u{7}", ""])),
        (results, "/votestream.v1.ResultsService/GetInterimResults", wire::field(1, b"p")),
        (results, "/votestream.v1.PollService/GetPoll", wire::field(1, b"p")),
        (results, "/votestream.v1.PollService/ClosePoll", wire::field(1, b"p")),
    ];
    let json = [
        (ingest, "POST", "/v1/polls/p/votes", json!({"user_id": "canary-erin", "option_id": "a"}).to_string()),
        (ingest, "POST", "/v1/polls/p/votes", json!({"user_id": "canary\u{7}", "option_id": "a"}).to_string()),
        (ingest, "POST", "/vote", json!({"cognitoid": "canary-fred", "voteid": "p", "option": "a"}).to_string()),
        (ingest, "POST", "/vote", "{\"cognitoid\": \"canary".to_owned()),
        (results, "GET", "/v1/polls/p/results/interim", String::new()),
        (results, "POST", "/v1/polls/p/release", String::new()),
    ];
    let mut answers = Vec::new();
    for headers in &credentials.headers {
        for (content_type, http2) in transports() {
            let mut calls = Vec::new();
            if content_type == "application/json" {
                calls.extend(
                    json.iter().map(|(addr, method, path, body)| (*addr, *method, *path, body.clone().into_bytes())),
                );
            } else {
                let framed = |content: &[u8]| match content_type {
                    "application/grpc-web-text" => wire::base64(&wire::message(content)),
                    _ => wire::message(content),
                };
                calls.extend(grpc.iter().map(|(addr, path, content)| (*addr, "POST", *path, framed(content))));
            }
            for (addr, method, path, body) in calls {
                let mut request = http::Request::builder()
                    .method(method)
                    .header("content-type", content_type)
                    .header("traceparent", TRACEPARENT);
                for value in headers {
                    request = request.header("authorization", http::HeaderValue::from_bytes(value).unwrap());
                }
                let answer = Call { http2, path: path.into(), body: vec![Bytes::from(body)], ..Call::default() }
                    .send_with(addr, request)
                    .await
                    .unwrap();
                let body = wire::from_base64(&answer.body).unwrap_or_default();
                let texts = [String::from_utf8_lossy(&answer.body), String::from_utf8_lossy(&body)];
                answers.push(format!("{path} {:?} {:?} {texts:?}", answer.headers, answer.trailers));
            }
        }
    }
    answers
}

/// Looks for everything that must not be there.
fn search(what: &str, text: &str, credentials: &Credentials) {
    // Letters of both cases, as text of HTTP/2 may be changed.
    let lower = text.to_ascii_lowercase();
    let line_of = |at: usize| text[..at].rfind('\n').map_or(0, |start| start + 1);
    let show = |at: usize| text[line_of(at)..].lines().next().unwrap_or_default().chars().take(600).collect::<String>();
    if let Some(at) = lower.find(CANARY) {
        panic!("{what} has the canary, {} times: {}", lower.matches(CANARY).count(), show(at));
    }
    // As bytes, such as 99, 97, 110 or \x63\x61.
    let bytes: Vec<String> = CANARY.bytes().map(|byte| byte.to_string()).collect();
    let hex = to_hex(CANARY.as_bytes());
    for encoded in [bytes.join(", "), bytes.join(","), hex] {
        assert!(
            !lower.contains(&encoded),
            "{what} has the canary as {encoded}: {}",
            show(lower.find(&encoded).unwrap_or(0))
        );
    }
    for part in &credentials.parts {
        if let Some(at) = text.find(part.as_str()) {
            panic!("{what} has a part of a token: {}", show(at));
        }
    }
}

/// The auth files, and the arguments that name them.
fn auth(dir: &Path, issuer: &Issuer) -> Vec<String> {
    let file = issuer_entry("jwks.json")
        + &key_entry("manager", MANAGER, "\"manage:*\"")
        + &key_entry("relay-1", RELAY, "\"relay:*\"");
    std::fs::write(dir.join("jwks.json"), json!({"keys": [issuer.jwk()]}).to_string()).unwrap();
    std::fs::write(dir.join("auth.toml"), file).unwrap();
    std::fs::write(dir.join("revoked.toml"), "[[revoked]]\njti = \"canary-stolen\"\n").unwrap();
    let path = |name: &str| dir.join(name).display().to_string();
    vec![
        format!("--auth={}", path("auth.toml")),
        format!("--auth-revoked={}", path("revoked.toml")),
        "--calls-per-voter=1000/s".into(),
        "--calls-per-credential=1000/s".into(),
        "--calls-per-address=10000/s".into(),
    ]
}

/// Changes the files, so that what is logged about that is there, too.
async fn change_files(dir: &Path, process: &mut Process) {
    let before = std::fs::read_to_string(dir.join("auth.toml")).unwrap();
    std::fs::write(dir.join("revoked.toml"), "[[revoked]]\njti = \"canary-jti\" canary\n").unwrap();
    process.says("revoked.toml: line 2, column", "\n").await;
    std::fs::write(dir.join("revoked.toml"), "[[revoked]]\nuser = \"canary\"\n").unwrap();
    process.says("issued_before", "\n").await;
    std::fs::write(
        dir.join("auth.toml"),
        format!("{before}\n[[key]]\nid = \"x\"\nsha256 = \"canary\"\nsecret = \"canary\"\nscopes = \"x\"\n"),
    )
    .unwrap();
    process.says("sha256 must be the SHA-256", "\n").await;
    let keys = std::fs::read_to_string(dir.join("jwks.json")).unwrap();
    std::fs::write(dir.join("jwks.json"), "{\"keys\": \"canary\"}").unwrap();
    process.says("not a JWKS", "\n").await;
    std::fs::write(dir.join("jwks.json"), keys).unwrap();
    std::fs::write(dir.join("revoked.toml"), "[[revoked]]\njti = \"canary-other\"\n").unwrap();
    std::fs::write(dir.join("auth.toml"), before).unwrap();
    process.says("the auth files have changed", "\n").await;
}

async fn create_poll(results: SocketAddr) {
    let request = CreatePollRequest {
        poll_id: "p".into(),
        options: vec![PollOption { option_id: "a".into(), title: String::new() }],
        closes_at: Some(prost_types::Timestamp { seconds: now() + 3_600, nanos: 0 }),
        ..CreatePollRequest::default()
    };
    let call = Call {
        http2: true,
        path: "/votestream.v1.PollService/CreatePoll".into(),
        headers: vec![
            ("content-type".into(), "application/grpc".into()),
            ("authorization".into(), format!("Bearer {MANAGER}")),
        ],
        body: vec![Bytes::from(wire::message(&request.encode_to_vec()))],
        ..Call::default()
    };
    let answer = call.send(results).await.unwrap();
    assert_eq!(answer.outcome().status.map(|(code, _)| code), Some(0), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_up_writes_or_answers_has_a_secret_or_a_voter_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::new("es1");
    let credentials = credentials(&issuer);
    let audit = format!("--audit-log={}", dir.path().join("audit.jsonl").display());
    let data = format!("--data-dir={}", dir.path().join("data").display());
    let mut arguments = vec!["up", "--json", "--addr=127.0.0.1:0", &data, &audit];
    let auth = auth(dir.path(), &issuer);
    arguments.extend(auth.iter().map(String::as_str));
    let mut up = Process::start(dir.path(), env!("CARGO_BIN_EXE_cluster-votestream"), "up", &arguments, &[]);
    let ingest = up.says("\"ingest\":\"http://", "\"").await.parse().unwrap();
    let results = up.says("\"results\":\"http://", "\"").await.parse().unwrap();
    create_poll(results).await;
    let answers = call_everything(ingest, results, &credentials).await;
    change_files(dir.path(), &mut up).await;
    let (name, log) = up.stop().await;
    assert!(log.contains("TRACE"), "it does not log everything");
    for answer in answers {
        search("an answer", &answer, &credentials);
    }
    search(&name, &log, &credentials);
    let audited = std::fs::read_to_string(dir.path().join("audit.jsonl")).unwrap();
    assert!(audited.contains("manager"), "{audited}");
    // The audit log says who administers, and that is what it is for: a voter who tried is named. No secret is.
    for secret in [MANAGER, RELAY, "canary-jti", "canary@login.test", "canary-that-nobody-knows"] {
        assert!(!audited.contains(secret), "the audit log has {secret}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_the_services_write_export_or_answer_has_a_secret_or_a_voter_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::new("es1");
    let credentials = credentials(&issuer);
    let collector = Collector::start().await;
    let ((kinesis, _kinesis), (dynamodb, _dynamodb)) = (kinesis(2).await, dynamodb().await);
    dynamo_store(&dynamodb, &Default::default()).await.create_tables().await.unwrap();
    let keys = dir.path().join("pseudonym-keys");
    std::fs::write(&keys, "0f".repeat(32)).unwrap();
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o600)).unwrap();
    let keys = format!("--pseudonym-keys={}", keys.display());
    let variables = [
        ("AWS_ENDPOINT_URL_KINESIS", &*kinesis),
        ("AWS_ENDPOINT_URL_DYNAMODB", &*dynamodb),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "dev"),
        ("AWS_SECRET_ACCESS_KEY", "dev"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.endpoint),
    ];
    let auth = auth(dir.path(), &issuer);
    let common = ["--stream", STREAM, "--log-format", "json", "--listen", "127.0.0.1:0"];
    let with_callers: Vec<&str> = common.into_iter().chain([&*keys]).chain(auth.iter().map(String::as_str)).collect();
    let start =
        |binary: &str, name: &str, arguments: &[&str]| Process::start(dir.path(), binary, name, arguments, &variables);
    let mut ingest = start(env!("CARGO_BIN_EXE_cluster-ingest-svc"), "ingest", &with_callers);
    let mut tally = start(env!("CARGO_BIN_EXE_cluster-tally-svc"), "tally", &with_callers);
    let mut persist = start(env!("CARGO_BIN_EXE_cluster-persist-svc"), "persist", &common);
    let address = async |process: &mut Process| {
        process.says("\"listening\"", "\n").await;
        let log = process.logged();
        let line = log.lines().find(|line| line.contains("\"listening\"")).unwrap().to_owned();
        let json: Value = serde_json::from_str(&line).unwrap();
        let fields = json.get("fields").unwrap_or(&json);
        fields["address"].as_str().unwrap().parse::<SocketAddr>().unwrap()
    };
    let (ingest_addr, results_addr) = (address(&mut ingest).await, address(&mut tally).await);
    address(&mut persist).await;
    create_poll(results_addr).await;
    let answers = call_everything(ingest_addr, results_addr, &credentials).await;
    change_files(dir.path(), &mut ingest).await;
    // Long enough for the groups to have seen votes: then their spans are there.
    eventually("votes are counted", PATIENCE, async || {
        let counted = format!("{:?}", collector.received().traces).contains("apply window");
        if counted || persist.logged().contains("apply window") { Ok(()) } else { Err(()) }
    })
    .await;
    let logs = [ingest.stop().await, tally.stop().await, persist.stop().await];
    for answer in &answers {
        search("an answer", answer, &credentials);
    }
    for (name, log) in &logs {
        assert!(log.contains("TRACE"), "{name} does not log everything");
        search(name, log, &credentials);
    }
    let exports = format!("{:?}", collector.received());
    for expected in ["cast votes", "votestream.server.calls.denied", "put batch"] {
        assert!(exports.contains(expected), "nothing was exported of {expected}");
    }
    search("an export", &exports, &credentials);
}
