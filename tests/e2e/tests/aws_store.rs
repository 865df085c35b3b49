//! Tests the store on DynamoDB with a stand-in in this process: the contract, what votes cost, throttling, lost
//! answers, and the limit on write units ("the brake").
//!
//! No stand-in throttles like AWS. So a proxy before it does, and counts what it did: a test that injected nothing
//! fails.

use std::{
    borrow::Cow,
    collections::HashSet,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    response::Response,
};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use votestream_aws::dynamodb::{DynamoConfig, DynamoStore};
use votestream_core::{
    Poll, PollId, PollOption, PollSource, Position, SequenceNumber, ShardId, Timestamp,
    port::{Effect, Group, PollStore, Ports, TallyDelta, TallyStore, VoteOutcome, VoteStore, VoteWrite},
};
use votestream_e2e::aws::{Server, dynamo_store, dynamodb, serve};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_testkit::contract;

async fn store_at(endpoint: &str, config: &DynamoConfig) -> DynamoStore {
    let store = dynamo_store(endpoint, config).await;
    store.create_tables().await.unwrap();
    store
}

/// Runs the contract suite with a store. The stream is another engine's.
async fn contract_holds<F: Future<Output = ()>>(config: DynamoConfig, check: impl FnOnce(Ports) -> F) {
    let (endpoint, _server) = dynamodb().await;
    let store = Arc::new(store_at(&endpoint, &config).await);
    let dir = tempfile::tempdir().unwrap();
    let engine = EmbeddedEngine::open(dir.path(), EmbeddedOptions::default()).unwrap();
    let ports =
        Ports { polls: store.clone(), votes: store.clone(), tallies: store.clone(), leases: store, ..engine.ports() };
    check(ports).await;
    engine.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn contract_votes() {
    contract_holds(DynamoConfig::default(), contract::check_votes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contract_votes_without_a_memory_of_voters() {
    contract_holds(DynamoConfig { voters_remembered: 0, ..DynamoConfig::default() }, contract::check_votes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contract_tallies() {
    contract_holds(DynamoConfig::default(), contract::check_tallies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contract_polls() {
    contract_holds(DynamoConfig::default(), contract::check_polls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contract_leases() {
    contract_holds(DynamoConfig::default(), contract::check_leases).await;
}

/// What the proxy does to calls.
#[derive(Clone, Copy, Default)]
struct Faults {
    /// Share of statements that get an error of their own.
    statements: f64,
    /// Share of calls that are throttled as a whole.
    calls: f64,
    /// Share of calls that take effect and whose answer is lost.
    answers: f64,
    /// Share of keys that a read leaves unprocessed.
    keys: f64,
}

/// A DynamoDB that throttles. It also checks that batches keep the documented limits.
struct Proxy {
    upstream: String,
    faults: Mutex<Faults>,
    rng: Mutex<StdRng>,
    statements: AtomicUsize,
    calls: AtomicUsize,
    answers: AtomicUsize,
    keys: AtomicUsize,
}

impl Proxy {
    /// Starts one in front of a stand-in.
    async fn start(upstream: &str, faults: Faults) -> (String, Server, Arc<Self>) {
        let proxy = Arc::new(Self {
            upstream: upstream.trim_start_matches("http://").to_owned(),
            faults: Mutex::new(faults),
            rng: Mutex::new(StdRng::seed_from_u64(11)),
            statements: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            answers: AtomicUsize::new(0),
            keys: AtomicUsize::new(0),
        });
        let router = Router::new().fallback(handle).with_state(proxy.clone());
        let (endpoint, server) = serve(router).await;
        (endpoint, server, proxy)
    }

    /// Decides at random whether a fault happens, and counts it.
    fn strikes(&self, share: f64, counter: &AtomicUsize) -> bool {
        let strikes = self.rng.lock().random_bool(share);
        if strikes {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        strikes
    }

    /// Sends a call on.
    async fn forward(&self, headers: &axum::http::HeaderMap, body: &Value) -> (u16, Value) {
        let stream = tokio::net::TcpStream::connect(&self.upstream).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut request = http::Request::post("/");
        for name in ["x-amz-target", "content-type", "authorization", "x-amz-date", "host"] {
            if let Some(value) = headers.get(name) {
                request = request.header(name, value);
            }
        }
        let request = request.body(Full::new(bytes::Bytes::from(body.to_string()))).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        drop(sender);
        connection.abort();
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// A batch of statements. Some get errors; those with an internal error still take effect.
    async fn statements(&self, faults: Faults, headers: &axum::http::HeaderMap, mut body: Value) -> (u16, Value) {
        const CODES: [&str; 4] =
            ["ProvisionedThroughputExceeded", "ThrottlingError", "RequestLimitExceeded", "InternalServerError"];
        let statements = std::mem::take(body["Statements"].as_array_mut().unwrap());
        assert!(statements.len() <= 25, "a batch holds 25 statements");
        let key = |statement: &Value| {
            let at = if statement["Statement"].as_str().unwrap().starts_with("INSERT") { 0 } else { 4 };
            statement["Parameters"].as_array().unwrap()[at..at + 2].iter().map(Value::to_string).collect::<String>()
        };
        let keys: HashSet<_> = statements.iter().map(key).collect();
        assert_eq!(keys.len(), statements.len(), "no two statements of a batch are for one key");
        let mut codes = Vec::new();
        for statement in statements {
            let code =
                self.strikes(faults.statements, &self.statements).then(|| CODES[self.rng.lock().random_range(0..4)]);
            if code.is_none_or(|code| code == "InternalServerError") {
                body["Statements"].as_array_mut().unwrap().push(statement);
            }
            codes.push(code);
        }
        let (status, mut answer) = match body["Statements"].as_array().unwrap().is_empty() {
            true => (200, json!({"Responses": []})),
            false => self.forward(headers, &body).await,
        };
        if status == 200 {
            let mut answers = std::mem::take(answer["Responses"].as_array_mut().unwrap()).into_iter();
            let merged = codes.into_iter().map(|code| match code {
                None => answers.next().unwrap(),
                Some(code) => {
                    if code == "InternalServerError" {
                        answers.next();
                    }
                    json!({"Error": {"Code": code, "Message": "injected"}})
                }
            });
            answer["Responses"] = merged.collect();
        }
        (status, answer)
    }

    /// A read that leaves some keys unprocessed.
    async fn keys(&self, faults: Faults, headers: &axum::http::HeaderMap, mut body: Value) -> (u16, Value) {
        let (table, mut wanted) = {
            let (table, wanted) = body["RequestItems"].as_object().unwrap().iter().next().unwrap();
            (table.clone(), wanted.clone())
        };
        let keys = std::mem::take(wanted["Keys"].as_array_mut().unwrap());
        assert!(keys.len() <= 100, "a read names 100 keys");
        let (left, read): (Vec<_>, Vec<_>) = keys.into_iter().partition(|_| self.strikes(faults.keys, &self.keys));
        let mut unprocessed = wanted.clone();
        unprocessed["Keys"] = Value::Array(left.clone());
        if read.is_empty() {
            return (200, json!({"Responses": {}, "UnprocessedKeys": {table: unprocessed}}));
        }
        wanted["Keys"] = Value::Array(read);
        body["RequestItems"] = json!({&table: wanted});
        let (status, mut answer) = self.forward(headers, &body).await;
        if !left.is_empty() {
            answer["UnprocessedKeys"] = json!({table: unprocessed});
        }
        (status, answer)
    }
}

async fn handle(State(proxy): State<Arc<Proxy>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body: Value = serde_json::from_slice(&to_bytes(body, 32 << 20).await.unwrap()).unwrap();
    let target = parts.headers["x-amz-target"].to_str().unwrap().rsplit('.').next().unwrap().to_owned();
    let faults = *proxy.faults.lock();
    let harmed = !target.ends_with("Table");
    let (status, answer) = if harmed && proxy.strikes(faults.calls, &proxy.calls) {
        let code =
            ["ThrottlingException", "ProvisionedThroughputExceededException"][proxy.rng.lock().random_range(0..2)];
        (400, json!({"__type": format!("com.amazonaws.dynamodb.v20120810#{code}"), "message": "injected"}))
    } else {
        let answer = match target.as_str() {
            "BatchExecuteStatement" => proxy.statements(faults, &parts.headers, body).await,
            "BatchGetItem" => proxy.keys(faults, &parts.headers, body).await,
            _ => proxy.forward(&parts.headers, &body).await,
        };
        if harmed && proxy.strikes(faults.answers, &proxy.answers) {
            (500, json!({"__type": "com.amazonaws.dynamodb.v20120810#InternalServerError", "message": "injected"}))
        } else {
            answer
        }
    };
    let response = Response::builder().status(status).header("content-type", "application/x-amz-json-1.0");
    response.body(Body::from(answer.to_string())).unwrap()
}

fn poll(options: &[&str], buckets: u64) -> Poll {
    let option = |id: &&str| PollOption { id: (*id).into(), title: String::new() };
    let options = options.iter().map(option).collect();
    let id = PollId::new("p").unwrap();
    Poll::new(id, String::new(), options, Timestamp(1), Timestamp(2), PollSource::Ingest, buckets * 1_000).unwrap()
}

fn vote(user: usize, option: &str, sequence: u64) -> VoteWrite<'static> {
    VoteWrite {
        poll_id: Cow::Owned(PollId::new("p").unwrap()),
        bucket: (user % 3) as u32,
        user_id: format!("00000000-0000-4000-8000-{user:012}").into(),
        option_id: option.into(),
        position: Position { sequence: SequenceNumber::from_u64(sequence), index: user as u32 },
        accepted_at: Timestamp(1_700_000_000_000),
    }
}

fn votes(users: std::ops::Range<usize>, option: &str, sequence: u64) -> Vec<VoteWrite<'static>> {
    users.map(|user| vote(user, option, sequence)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_vote_costs_one_unit_and_a_changed_one_at_most_two() {
    let (endpoint, _server) = dynamodb().await;
    let store = store_at(&endpoint, &DynamoConfig::default()).await;
    let cost = |store: &DynamoStore| {
        let votes = store.metrics().votes;
        // A batch whose statements all failed reports no units, here and on AWS. AWS still charges it.
        (votes.write_units + votes.unreported_writes as f64, votes.requests)
    };

    let before = cost(&store);
    store.write(&votes(0..1_000, "a", 1)).await.unwrap();
    let inserted = cost(&store);
    assert_eq!(inserted.0 - before.0, 1_000.0, "1.0 units a new voter");
    assert_eq!(inserted.1 - before.1, 40, "0.04 requests a vote");

    // Voters are remembered: one unit each, 25 per write, 100 per read.
    store.write(&votes(0..1_000, "b", 2)).await.unwrap();
    let changed = cost(&store);
    assert_eq!(changed.0 - inserted.0, 1_000.0, "1.0 units a change of a voter who is remembered");
    assert_eq!(changed.1 - inserted.1, 50, "0.05 requests a vote");

    // After a restart no voter is remembered, so an INSERT that fails comes first.
    let restarted = dynamo_store(&endpoint, &DynamoConfig::default()).await;
    restarted.write(&votes(0..1_000, "a", 3)).await.unwrap();
    assert_eq!(cost(&restarted).0, 2_000.0, "2.0 units a change of a voter who is not");
    // The same again, as after a crash: nothing is written, and nothing is charged.
    restarted.write(&votes(0..1_000, "a", 3)).await.unwrap();
    assert_eq!(cost(&restarted).0, 2_000.0);
    assert_eq!(restarted.recount(&poll(&["a", "b"], 3)).await.unwrap(), [1_000, 0]);
}

/// Even with the longest allowed ids a vote costs one write unit.
#[tokio::test(flavor = "multi_thread")]
async fn the_largest_vote_costs_one_unit() {
    let (endpoint, _server) = dynamodb().await;
    let store = store_at(&endpoint, &DynamoConfig::default()).await;
    for sequence in 1..=3 {
        let large = VoteWrite {
            poll_id: Cow::Owned(PollId::new(&"p".repeat(64)).unwrap()),
            bucket: 4_095,
            user_id: "u".repeat(256).into(),
            option_id: "o".repeat(128).into(),
            ..vote(0, "", sequence)
        };
        store.write(&[large]).await.unwrap();
        assert_eq!(store.metrics().votes.write_units, sequence as f64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn throttled_statements_are_tried_again_alone() {
    let (upstream, _dynamodb) = dynamodb().await;
    let faults = Faults { statements: 0.3, calls: 0.1, keys: 0.2, ..Faults::default() };
    let (endpoint, _server, proxy) = Proxy::start(&upstream, faults).await;
    let store = store_at(&endpoint, &DynamoConfig::default()).await;
    let inserted = store.write(&votes(0..25, "a", 1)).await.unwrap();
    assert!(proxy.statements.load(Ordering::Relaxed) > 0, "some of 25 inserts were throttled");
    // An internal error can hide a write that took effect. Then the vote is found at its own position.
    let new = |outcome: &VoteOutcome| {
        matches!(outcome, VoteOutcome::Inserted | VoteOutcome::AlreadyStored { previous: None })
    };
    assert!(inserted.iter().all(new), "{inserted:?}");

    store.write(&votes(25..600, "a", 1)).await.unwrap();
    let changed = store.write(&votes(0..300, "b", 2)).await.unwrap();
    for outcome in changed {
        let previous = match outcome {
            VoteOutcome::Replaced { previous } | VoteOutcome::AlreadyStored { previous: Some(previous) } => previous,
            outcome @ (VoteOutcome::Inserted
            | VoteOutcome::AlreadyStored { previous: None }
            | VoteOutcome::Superseded) => {
                panic!("{outcome:?}")
            }
        };
        assert_eq!(&*previous, "a");
    }
    assert_eq!(store.recount(&poll(&["a", "b"], 3)).await.unwrap(), [300, 300]);
    let (statements, calls) = (proxy.statements.load(Ordering::Relaxed), proxy.calls.load(Ordering::Relaxed));
    let keys = proxy.keys.load(Ordering::Relaxed);
    assert!(statements > 100 && calls > 5 && keys > 20, "injected {statements}, {calls}, {keys}");
    assert!(store.metrics().votes.throttles >= (statements + calls + keys) as u64);
}

/// Answers are lost after writes. The store repeats those statements, and if that is not enough, the call is repeated as the
/// consumer repeats a window. Each vote counts once.
#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_are_found_again() {
    let (upstream, _dynamodb) = dynamodb().await;
    let (endpoint, _server, proxy) = Proxy::start(&upstream, Faults { answers: 0.4, ..Faults::default() }).await;
    let store = store_at(&endpoint, &DynamoConfig::default()).await;
    let (mut sums, mut failed) = (std::collections::BTreeMap::<Arc<str>, i64>::new(), 0);
    for (option, sequence, users) in [("a", 1, 0..200), ("b", 2, 100..300), ("c", 3, 0..250), ("a", 4, 50..60)] {
        let writes = votes(users, option, sequence);
        let outcomes = loop {
            match store.write(&writes).await {
                Ok(outcomes) => break outcomes,
                Err(error) => {
                    assert!(error.retryable && error.effect == Effect::Unknown, "{error}");
                    failed += 1;
                    assert!(failed < 1_000, "never comes through");
                }
            }
        };
        for outcome in outcomes {
            let previous = match outcome {
                VoteOutcome::Inserted => None,
                VoteOutcome::Replaced { previous } => Some(previous),
                VoteOutcome::AlreadyStored { previous } => previous,
                VoteOutcome::Superseded => panic!("nothing later was written"),
            };
            *sums.entry(option.into()).or_default() += 1;
            previous.into_iter().for_each(|previous| *sums.entry(previous).or_default() -= 1);
        }
    }
    assert!(proxy.answers.load(Ordering::Relaxed) > 3, "few answers were lost, and {failed} calls failed");
    *proxy.faults.lock() = Faults::default();
    let counts = store.recount(&poll(&["a", "b", "c"], 3)).await.unwrap();
    assert_eq!(counts, [10, 50, 240]);
    assert_eq!(sums.into_values().map(|sum| sum as u64).collect::<Vec<_>>(), counts);
}

/// Two owners of one shard write for the same users at once. One of them is an old owner that is a window behind.
#[tokio::test(flavor = "multi_thread")]
async fn two_writers_race_for_one_voter() {
    let (endpoint, _server) = dynamodb().await;
    let (one, two) =
        (store_at(&endpoint, &DynamoConfig::default()).await, store_at(&endpoint, &DynamoConfig::default()).await);
    let (before, after) = (votes(0..300, "a", 1), votes(0..300, "b", 2));
    let (first, second) = tokio::join!(one.write(&before), two.write(&after));
    for (first, second) in first.unwrap().into_iter().zip(second.unwrap()) {
        let before = second == VoteOutcome::Replaced { previous: "a".into() } && first == VoteOutcome::Inserted;
        let behind = second == VoteOutcome::Inserted && first == VoteOutcome::Superseded;
        assert!(before || behind, "{first:?}, {second:?}");
    }
    assert_eq!(one.recount(&poll(&["a", "b"], 3)).await.unwrap(), [0, 300]);
}

/// Answers at once that everything was stored, so that only the brake takes time.
async fn stored_at_once(request: Request) -> Response {
    let body: Value = serde_json::from_slice(&to_bytes(request.into_body(), 1 << 20).await.unwrap()).unwrap();
    let statements = body["Statements"].as_array().unwrap().len();
    let answer = json!({
        "Responses": vec![json!({}); statements],
        "ConsumedCapacity": [{"TableName": "votes", "CapacityUnits": statements}],
    });
    let response = Response::builder().header("content-type", "application/x-amz-json-1.0");
    response.body(Body::from(answer.to_string())).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_brake_holds_the_rate() {
    let (endpoint, _server) = serve(Router::new().fallback(stored_at_once)).await;
    let rate = 800;
    let config = DynamoConfig { write_units_per_second: NonZeroU32::new(rate), ..DynamoConfig::default() };
    let store = dynamo_store(&endpoint, &config).await;
    let start = Instant::now();
    store.write(&votes(0..2_000, "a", 1)).await.unwrap();
    let ratio = store.metrics().votes.write_units / start.elapsed().as_secs_f64() / f64::from(rate);
    // How close it comes to the budget is tested where no time passes but what the test lets pass.
    assert!((0.2..=1.1).contains(&ratio), "{ratio} of the budget");
}

/// Changes, failed INSERTs and retries count for the brake, too; tallies do not.
#[tokio::test(flavor = "multi_thread")]
async fn the_brake_counts_every_attempt_and_spares_tallies() {
    let (upstream, _dynamodb) = dynamodb().await;
    let (endpoint, _server, _proxy) = Proxy::start(&upstream, Faults { statements: 0.1, ..Faults::default() }).await;
    store_at(&endpoint, &DynamoConfig::default()).await.write(&votes(0..200, "a", 1)).await.unwrap();
    let rate = 200;
    let config = DynamoConfig { write_units_per_second: NonZeroU32::new(rate), ..DynamoConfig::default() };
    let store = store_at(&endpoint, &config).await;
    let start = Instant::now();
    let (changes, tallied) = (votes(0..200, "b", 2), async {
        let delta = TallyDelta { poll_id: PollId::new("p").unwrap(), counts: vec![("a".into(), 1)] };
        for end in 1..=20 {
            let end = SequenceNumber::from_u64(end);
            store.add(Group::Tally, &ShardId::new("s"), end, 1, std::slice::from_ref(&delta)).await.unwrap();
        }
        start.elapsed()
    });
    let (changed, tallied) = tokio::join!(store.write(&changes), tallied);
    changed.unwrap();
    let (spent, took) = (store.metrics().votes, start.elapsed());
    let units = spent.write_units + spent.unreported_writes as f64;
    assert!(units >= 400.0, "an INSERT that fails and a change each: {units}");
    assert!(units / took.as_secs_f64() <= f64::from(rate) * 1.1, "{units} units in {took:?}");
    assert!(tallied < took, "tallies wait for no votes: {tallied:?} of {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_is_one_write_whatever_the_number_of_options() {
    let (endpoint, _server) = dynamodb().await;
    let store = store_at(&endpoint, &DynamoConfig::default()).await;
    let (id, shard) = (PollId::new("p").unwrap(), ShardId::new("s"));
    // A tally with more options than an expression holds is read and replaced: two requests, one of them a write.
    for (options, requests) in [(1, 1), (250, 1), (251, 2), (1_000, 2)] {
        let counts = (0..options).map(|at| (format!("option-{at}").into(), 1)).collect();
        let delta = [TallyDelta { poll_id: id.clone(), counts }];
        let end = SequenceNumber::from_u64(options);
        let before = store.metrics().tallies.requests;
        store.add(Group::Tally, &shard, end, 1, &delta).await.unwrap();
        assert_eq!(store.metrics().tallies.requests - before, requests, "{options} options");
        store.add(Group::Tally, &shard, end, 1, &delta).await.unwrap();
    }
    let rows = store.read(&id).await.unwrap();
    assert_eq!((rows.len(), rows[0].counts.len()), (1, 1_000));
    assert_eq!(rows[0].counts.iter().map(|(_, count)| count).sum::<i64>(), 1 + 250 + 251 + 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_the_tables_are_all_named_at_once() {
    let (endpoint, _server) = dynamodb().await;
    let store = dynamo_store(&endpoint, &DynamoConfig::default()).await;
    let error = store.check_tables().await.unwrap_err();
    assert!(!error.retryable);
    for table in ["polls", "votes", "tallies", "shards"] {
        assert!(error.message.contains(&format!("table votestream-{table} does not exist")), "{error}");
    }
    assert!(!store.get(&PollId::new("p").unwrap()).await.unwrap_err().retryable, "a missing table is no passing error");
    let vote_error = store.write(&votes(0..1, "a", 1)).await.unwrap_err();
    assert!(!vote_error.retryable, "{vote_error}");
    store.create_tables().await.unwrap();
    store.create_tables().await.unwrap();
    store.check_tables().await.unwrap();

    // Now nobody listens at this address.
    drop(_server);
    let nobody = dynamo_store("http://127.0.0.1:9", &DynamoConfig::default()).await;
    let error = nobody.write(&votes(0..1, "a", 1)).await.unwrap_err();
    assert!(error.retryable && error.effect == Effect::None, "{error}");
}
