//! Tests JSON and gRPC-Web on the services' own ports, with other clients over real sockets.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use prost::Message;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;
use votestream_core::{
    Poll, PollId, PollOption, PollSource, SequenceNumber, ShardId, Timestamp,
    model::poll::FinalResult,
    port::{Created, Group, PollStore, PortError, Ports, RecordReader, Shard, Stored, VoteStream},
};
use votestream_e2e::{
    faults::StallingStream,
    stack::{Stack, TEST_BOUNDS},
};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_ingest::IngestConfig;
use votestream_proto::v1::{GetInterimResultsRequest, GetInterimResultsResponse, RecountRequest};
use votestream_server::{Drain, ServiceError};
use votestream_tally::TallyConfig;

/// One connection of an HTTP/1.1 client.
struct Http(http1::SendRequest<Full<Bytes>>);

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        assert_eq!(self.headers["content-type"], "application/json");
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Status, code and field of an error.
    fn error(&self) -> (u16, String, Option<String>) {
        let error = self.json()["error"].clone();
        assert!(!error["message"].as_str().unwrap().is_empty());
        let text = |name: &str| error[name].as_str().map(str::to_owned);
        (self.status, text("code").unwrap(), text("field"))
    }
}

impl Http {
    async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.0.ready().await.unwrap();
        let response = self.0.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    }

    async fn post(&mut self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string()).await
    }

    async fn get(&mut self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }
}

fn engine(dir: &Path) -> EmbeddedEngine {
    EmbeddedEngine::open(dir, EmbeddedOptions { bounds: TEST_BOUNDS, ..EmbeddedOptions::default() }).unwrap()
}

fn sample(poll: &str, user: &str, option: &str) -> Value {
    json!({"cognitoid": user, "voteid": poll, "option": option})
}

fn invalid(field: &str) -> (u16, String, Option<String>) {
    (400, "INVALID_ARGUMENT".into(), Some(field.into()))
}

#[tokio::test(flavor = "multi_thread")]
async fn votes_of_a_web_page_are_counted_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let opened = engine(dir.path());
    let stack = Stack::start(opened.ports(), TEST_BOUNDS).await;
    stack.create_poll("p", ["a", "b", "c"]).await;

    // Each client has its own users, who change their votes. The order of their votes is the order of the answers.
    let clients = (0..8u64).map(|client| {
        let addr = stack.ingest;
        tokio::spawn(async move {
            let (mut http, mut rng) = (Http::connect(addr).await, StdRng::seed_from_u64(client));
            let mut last = HashMap::new();
            for at in 0..250 {
                let user = format!("{client}-{}", rng.random_range(0..100));
                let option = ["a", "b", "c"][rng.random_range(0..3)];
                let answer = match at % 2 {
                    0 => http.post("/vote", &sample("p", &user, option)).await,
                    _ => http.post("/v1/polls/p/votes", &json!({"user_id": user, "option_id": option})).await,
                };
                assert_eq!((answer.status, answer.json()), (200, json!({})));
                last.insert(user, option);
            }
            last
        })
    });
    let mut model = BTreeMap::<&str, u64>::from([("a", 0), ("b", 0), ("c", 0)]);
    let clients: Vec<_> = clients.collect();
    for client in clients {
        client.await.unwrap().values().for_each(|option| *model.get_mut(option).unwrap() += 1);
    }

    let mut http = Http::connect(stack.results).await;
    let early = http.get("/v1/polls/p/results/final").await;
    assert_eq!(early.error(), (409, "FAILED_PRECONDITION".into(), None));
    assert!(early.json()["error"]["message"].as_str().unwrap().contains("closes at"));
    let poll = http.get("/v1/polls/p").await;
    assert_eq!(poll.status, 200);
    let poll = &poll.json()["poll"];
    assert_eq!((&poll["poll_id"], &poll["state"]), (&json!("p"), &json!("POLL_STATE_OPEN")));
    assert_eq!((&poll["source"], &poll["options"][1]["option_id"]), (&json!("POLL_SOURCE_INGEST"), &json!("b")));
    assert!(poll["closes_at"].as_str().unwrap().ends_with('Z'));

    let over_grpc = stack.finish("p").await;
    let answer = http.get("/v1/polls/p/results/final").await;
    assert_eq!(answer.status, 200);
    let result = answer.json();
    let options: Vec<_> = model.iter().map(|(id, votes)| json!({"option_id": id, "votes": votes})).collect();
    assert_eq!(result["options"], json!(options));
    assert_eq!(result["total_votes"], json!(over_grpc.total_votes));
    assert_eq!(result["finalized_at"], json!(over_grpc.finalized_at.unwrap().to_string()));
    let interim = http.get("/v1/polls/p/results/interim").await.json();
    assert_eq!((&interim["total_submitted"], &interim["total_counted"]), (&json!(2_000), &result["total_votes"]));
    let recount = RecountRequest { poll_id: "p".into() };
    assert!(stack.results().await.recount(recount).await.unwrap().into_inner().matches);

    let mut ingest = Http::connect(stack.ingest).await;
    let late = ingest.post("/vote", &sample("p", "u", "a")).await;
    assert_eq!(late.error(), (409, "FAILED_PRECONDITION".into(), Some("voteid".into())));
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mistake_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let opened = engine(dir.path());
    let stack = Stack::start(opened.ports(), TEST_BOUNDS).await;
    stack.create_poll("p", ["a", "7"]).await;
    let mut http = Http::connect(stack.ingest).await;
    let long = "u".repeat(257);

    for (body, field) in [
        (json!({"voteid": "p", "option": "a"}), "cognitoid"),
        (json!({"cognitoid": "u", "option": "a"}), "voteid"),
        (json!({"cognitoid": "u", "voteid": "p"}), "option"),
        (json!({"cognitoid": true, "voteid": "p", "option": "a"}), "cognitoid"),
        (json!({"cognitoid": 1.5, "voteid": "p", "option": "a"}), "cognitoid"),
        (json!({"cognitoid": "u", "voteid": ["p"], "option": "a"}), "voteid"),
        (sample("p", "", "a"), "cognitoid"),
        (sample("p", &long, "a"), "cognitoid"),
        (sample("a b", "u", "a"), "voteid"),
        (sample("p", "u", "nope"), "option"),
    ] {
        let answer = http.post("/vote", &body).await;
        assert_eq!(answer.error(), invalid(field), "{body}");
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with(field), "{message}");
    }
    for (path, body, field) in [
        ("/v1/polls/p/votes", json!({"option_id": "a"}), "user_id"),
        ("/v1/polls/p/votes", json!({"user_id": "u"}), "option_id"),
        ("/v1/polls/p/votes", json!({"user_id": "u", "option_id": {}}), "option_id"),
        ("/v1/polls/p/votes", json!({"user_id": "u", "option_id": "nope"}), "option_id"),
        ("/v1/polls/a%20b/votes", json!({"user_id": "u", "option_id": "a"}), "poll_id"),
        ("/v1/polls/%ff/votes", json!({"user_id": "u", "option_id": "a"}), "poll_id"),
    ] {
        assert_eq!(http.post(path, &body).await.error(), invalid(field), "{path} {body}");
    }
    for body in ["", "{", "[]", "null", "\u{feff}{}", "{\"cognitoid\":\"u\"} x"] {
        assert_eq!(
            http.send("POST", "/vote", &[], body).await.error(),
            (400, "INVALID_ARGUMENT".into(), None),
            "{body}"
        );
    }
    for (path, body) in [("/vote", json!(["u", "p", "a"])), ("/v1/polls/p/votes", json!(["u", "a"]))] {
        assert_eq!(http.post(path, &body).await.error(), (400, "INVALID_ARGUMENT".into(), None), "{body}");
    }
    // Numbers and unknown fields are not mistakes.
    let answer = http.post("/vote", &json!({"cognitoid": 5, "voteid": "p", "option": 7, "more": [1, {}]})).await;
    assert_eq!(answer.status, 200);

    let not_found = |field: &str| (404, "NOT_FOUND".to_owned(), Some(field.to_owned()));
    assert_eq!(http.post("/vote", &sample("nope", "u", "a")).await.error(), not_found("voteid"));
    let vote = json!({"user_id": "u", "option_id": "a"});
    assert_eq!(http.post("/v1/polls/nope/votes", &vote).await.error(), not_found("poll_id"));
    let mut results = Http::connect(stack.results).await;
    for path in ["/v1/polls/nope", "/v1/polls/nope/results/interim", "/v1/polls/nope/results/final"] {
        assert_eq!(results.get(path).await.error(), not_found("poll_id"), "{path}");
    }
    for path in ["/v1/polls/a%20b", "/v1/polls/%ff/results/interim", "/v1/polls/a%2Fb/results/final"] {
        assert_eq!(results.get(path).await.error(), invalid("poll_id"), "{path}");
    }

    let nothing = (404, "UNIMPLEMENTED".to_owned(), None);
    assert_eq!(http.get("/").await.error(), nothing);
    assert_eq!(results.get("/v1/polls/p/results").await.error(), nothing);
    let wrong_method = http.get("/vote").await;
    assert_eq!(wrong_method.error(), (405, "UNIMPLEMENTED".to_owned(), None));
    assert_eq!(wrong_method.headers["allow"], "POST");
    let large = json!({"cognitoid": "u".repeat(70_000), "voteid": "p", "option": "a"});
    assert_eq!(http.post("/vote", &large).await.error(), (413, "INVALID_ARGUMENT".to_owned(), None));
    stack.stop().await;
}

/// Refuses every record.
struct Refusing(Arc<dyn VoteStream>);

#[async_trait]
impl VoteStream for Refusing {
    async fn list_shards(&self) -> Result<Vec<Shard>, PortError> {
        self.0.list_shards().await
    }

    async fn put(&self, _: u128, _: Bytes) -> Result<Stored, PortError> {
        Err(PortError::refused("as a stream that is down would"))
    }

    async fn reader(
        &self,
        group: Group,
        shard: &ShardId,
        after: SequenceNumber,
    ) -> Result<Box<dyn RecordReader>, PortError> {
        self.0.reader(group, shard, after).await
    }
}

/// Fails to read any poll.
struct Broken(Arc<dyn PollStore>);

#[async_trait]
impl PollStore for Broken {
    async fn create(&self, poll: &Poll) -> Result<Created, PortError> {
        self.0.create(poll).await
    }

    async fn get(&self, _: &PollId) -> Result<Option<Poll>, PortError> {
        Err(PortError::permanent("secret"))
    }

    async fn list(&self, after: Option<&PollId>, limit: usize) -> Result<Vec<Poll>, PortError> {
        self.0.list(after, limit).await
    }

    async fn begin_close(&self, id: &PollId) -> Result<Option<Poll>, PortError> {
        self.0.begin_close(id).await
    }

    async fn close(&self, id: &PollId, closes_at: Timestamp) -> Result<Option<Poll>, PortError> {
        self.0.close(id, closes_at).await
    }

    async fn finish(&self, id: &PollId, result: &FinalResult) -> Result<Option<Poll>, PortError> {
        self.0.finish(id, result).await
    }

    async fn release(&self, id: &PollId, at: Timestamp) -> Result<Option<Poll>, PortError> {
        self.0.release(id, at).await
    }

    async fn set_needs_recount(&self, id: &PollId, needed: bool) -> Result<(), PortError> {
        self.0.set_needs_recount(id, needed).await
    }
}

async fn create(ports: &Ports, id: &str, opens_in: Duration, source: PollSource) {
    let options = vec![PollOption { id: "a".into(), title: String::new() }];
    let now = ports.clock.now();
    let (opens, closes) = (now.plus(opens_in), now.plus(opens_in + Duration::from_secs(3_600)));
    let poll = Poll::new(PollId::new(id).unwrap(), String::new(), options, opens, closes, source, 1).unwrap();
    ports.polls.create(&poll).await.unwrap();
}

struct Server {
    addr: SocketAddr,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<Result<Drain, ServiceError>>,
}

impl Server {
    /// Only the ingest service, with its own settings.
    async fn ingest(ports: Ports, change: impl FnOnce(&mut IngestConfig)) -> Self {
        let mut config = IngestConfig::one_machine();
        (config.bounds, config.lanes.bounds) = (TEST_BOUNDS, TEST_BOUNDS);
        change(&mut config);
        Self::start(|listener, stop| async move { votestream_ingest::run(config, ports, listener, stop).await }).await
    }

    async fn start<F>(run: impl FnOnce(TcpListener, CancellationToken) -> F) -> Self
    where
        F: Future<Output = Result<Drain, ServiceError>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
        let task = tokio::spawn(run(listener, shutdown.clone()));
        Self { addr, shutdown, task }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_the_engines_has_its_status() {
    let dir = tempfile::tempdir().unwrap();
    let opened = engine(dir.path());
    let ports = opened.ports();
    create(&ports, "p", Duration::ZERO, PollSource::Ingest).await;
    create(&ports, "later", Duration::from_secs(60), PollSource::Ingest).await;
    create(&ports, "s", Duration::ZERO, PollSource::Stream).await;

    // A stream that does not answer: the outcome of the first vote is unknown, and there is no room for a second one.
    let stalling = StallingStream::new(ports.stream.clone());
    stalling.stall(true);
    let stalled = Ports { stream: stalling.clone(), ..ports.clone() };
    let server = Server::ingest(stalled, |config| config.unsettled_bytes_max = 1).await;
    let (mut first, mut second) = (Http::connect(server.addr).await, Http::connect(server.addr).await);
    let (vote, other) = (sample("p", "u", "a"), sample("p", "v", "a"));
    let refused = async {
        while stalling.held_back() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        second.post("/vote", &other).await
    };
    let (unknown, refused) = tokio::join!(first.post("/vote", &vote), refused);
    assert_eq!(unknown.error(), (504, "DEADLINE_EXCEEDED".into(), None));
    assert_eq!(refused.error(), (429, "RESOURCE_EXHAUSTED".into(), None));
    assert_eq!(refused.headers["retry-after"], "1");
    for (poll, what) in [("later", "not open"), ("s", "from the stream")] {
        let answer = first.post("/vote", &sample(poll, "u", "a")).await;
        assert_eq!(answer.error(), (409, "FAILED_PRECONDITION".into(), Some("voteid".into())));
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(what), "{message}");
    }
    stalling.stall(false);
    server.stop().await;

    let down = Ports { stream: Arc::new(Refusing(ports.stream.clone())), ..ports.clone() };
    let server = Server::ingest(down, |_| {}).await;
    let answer = Http::connect(server.addr).await.post("/vote", &vote).await;
    assert_eq!(answer.error(), (503, "UNAVAILABLE".into(), None));
    server.stop().await;

    let broken = Ports { polls: Arc::new(Broken(ports.polls.clone())), ..ports.clone() };
    let mut config = TallyConfig::one_machine();
    config.group.bounds = TEST_BOUNDS;
    let server =
        Server::start(|listener, stop| async move { votestream_tally::run(config, broken, listener, stop).await })
            .await;
    let answer = Http::connect(server.addr).await.get("/v1/polls/p/results/interim").await;
    assert_eq!(answer.error(), (500, "INTERNAL".into(), None));
    assert!(!answer.json().to_string().contains("secret"));
    server.stop().await;
}

/// A gRPC-Web call sends a frame with the request, and gets a frame with the response and one with the trailers.
#[tokio::test(flavor = "multi_thread")]
async fn grpc_web_over_http_1() {
    let dir = tempfile::tempdir().unwrap();
    let opened = engine(dir.path());
    let stack = Stack::start(opened.ports(), TEST_BOUNDS).await;
    stack.create_poll("p", ["a"]).await;
    let mut http = Http::connect(stack.results).await;
    let headers = [("content-type", "application/grpc-web+proto"), ("x-grpc-web", "1")];
    let path = "/votestream.v1.ResultsService/GetInterimResults";
    let mut call = async |poll: &str| {
        let message = GetInterimResultsRequest { poll_id: poll.into() }.encode_to_vec();
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(message.len() as u32);
        frame.put_slice(&message);
        http.send("POST", path, &headers, frame.freeze()).await
    };
    let answer = call("p").await;
    assert_eq!((answer.status, &answer.headers["content-type"]), (200, &"application/grpc-web+proto".parse().unwrap()));
    let (kind, len) = (answer.body[0], u32::from_be_bytes(answer.body[1..5].try_into().unwrap()) as usize);
    assert_eq!(kind, 0);
    let response = GetInterimResultsResponse::decode(&answer.body[5..5 + len]).unwrap();
    assert_eq!((response.poll_id.as_str(), response.options.len()), ("p", 1));
    let trailers = &answer.body[5 + len..];
    assert_eq!(trailers[0], 0x80);
    assert!(String::from_utf8_lossy(&trailers[5..]).contains("grpc-status:0"));

    // An error may come in the headers or in the last frame.
    let answer = call("nope").await;
    let in_headers = answer.headers.get("grpc-status").is_some_and(|status| status == "5");
    assert!(in_headers || String::from_utf8_lossy(&answer.body).contains("grpc-status:5"), "{:?}", answer.body);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_named_pages_may_call_from_a_browser() {
    let dir = tempfile::tempdir().unwrap();
    let opened = engine(dir.path());
    let ports = opened.ports();
    create(&ports, "p", Duration::ZERO, PollSource::Ingest).await;
    let preflight = |origin: &'static str| {
        [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type,x-grpc-web"),
        ]
    };
    let (good, bad) = ("https://vote.example", "https://evil.example");
    for (setting, allowed) in [("", None), (good, Some(good)), ("*", Some("*"))] {
        let server = Server::ingest(ports.clone(), |config| config.cors_allow_origins = setting.parse().unwrap()).await;
        let mut http = Http::connect(server.addr).await;
        for path in ["/vote", "/votestream.v1.IngestService/CastVote"] {
            let answer = http.send("OPTIONS", path, &preflight(good), "").await;
            let origin = answer.headers.get("access-control-allow-origin").map(|origin| origin.to_str().unwrap());
            assert_eq!(origin, allowed, "{setting:?} {path}");
            if allowed.is_some() {
                assert_eq!(answer.status, 200);
                assert_eq!(answer.headers["access-control-allow-headers"], "content-type,x-grpc-web");
            }
        }
        let vote = sample("p", "u", "a").to_string();
        // Content types that browsers send without asking do not count as JSON.
        for content_type in [&[][..], &[("content-type", "text/plain")]] {
            let headers = [&[("origin", bad)], content_type].concat();
            let answer = http.send("POST", "/vote", &headers, vote.clone()).await;
            assert_eq!(answer.error(), (415, "INVALID_ARGUMENT".into(), None), "{content_type:?}");
        }
        let headers = [("origin", good), ("content-type", "application/json")];
        let answer = http.send("POST", "/vote", &headers, vote).await;
        let origin = answer.headers.get("access-control-allow-origin").map(|origin| origin.to_str().unwrap());
        assert_eq!((answer.status, origin), (200, allowed), "{setting:?}");
        if setting == good {
            let answer = http.send("OPTIONS", "/vote", &preflight(bad), "").await;
            assert!(!answer.headers.contains_key("access-control-allow-origin"));
        }
        server.stop().await;
    }
}

/// A client of another protocol, or a broken one, must not disturb other clients, and must not delay the end of the
/// service.
#[tokio::test(flavor = "multi_thread")]
async fn broken_connections_hold_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let opened = engine(dir.path());
    let ports = opened.ports();
    create(&ports, "p", Duration::ZERO, PollSource::Ingest).await;
    let server = Server::ingest(ports.clone(), |_| {}).await;
    let mut broken = Vec::new();
    for start in [
        &b""[..],
        b"P",
        b"PRI * HTTP/2.0\r\n",
        b"POST /vote HTTP/1.1\r\nhost: x\r\n",
        b"POST /vote HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{",
        b"\x16\x03\x01\x02\x00",
    ] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(start).await.unwrap();
        broken.push(stream);
    }
    let answer = Http::connect(server.addr).await.post("/vote", &sample("p", "u", "a")).await;
    assert_eq!(answer.status, 200);
    // Nonsense gets an answer, or the connection ends; it must not stay silent.
    let mut nonsense = broken.pop().unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), nonsense.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "a connection that speaks TLS is kept");
    let stopped = tokio::time::timeout(Duration::from_secs(30), server.stop()).await;
    assert!(stopped.is_ok(), "the service waits for connections that say nothing");
}
