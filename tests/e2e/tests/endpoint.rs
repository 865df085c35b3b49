//! Runs the contract suite, resharding and votes of other producers with the endpoint of the standard AWS variables:
//! another stand-in, or AWS itself. [`WANTED`] names what is tested; the rest is skipped with a message.
//! adapters/aws/README.md says how to use it, and where the stand-ins differ.
//!
//! Every stream and table gets its own name and is deleted afterwards, even if the test fails.

use std::{
    collections::{BTreeMap, HashMap},
    env,
    io::{self, Write as _},
    panic::resume_unwind,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::Value;
use tokio::{
    process::Command,
    time::{sleep, timeout},
};
use votestream_aws::{
    client::{AwsConfig, Clients},
    dynamodb::{DynamoConfig, DynamoStore},
    kinesis::{Kinesis, KinesisConfig, Reading},
};
use votestream_core::{TimeBounds, clock::SystemClock, port::Ports};
use votestream_e2e::{reshard, stack::Stack};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_proto::v1::{
    CreatePollRequest, GetInterimResultsRequest, GetPollRequest, PollOption, PollSource, PollState, RecountRequest,
};
use votestream_testkit::contract;

/// What to test, separated by commas. Without it nothing is tested, whatever the AWS variables say, because it may cost
/// money.
const WANTED: &str = "VOTESTREAM_TEST_AWS";
/// The contract of the stream, by polling.
const KINESIS: &str = "kinesis";
/// The contract of the stream, by enhanced fan-out; with [`RESHARDING`], also resharding.
const FAN_OUT: &str = "fan-out";
/// Shards that split and merge under load.
const RESHARDING: &str = "resharding";
/// The contract of the store.
const DYNAMODB: &str = "dynamodb";
/// Votes of a producer in Python, with both stream and store.
const FOREIGN: &str = "foreign";
/// A Python interpreter with boto3 and aws-kinesis-agg; by default `python3`.
const PYTHON: &str = "VOTESTREAM_TEST_PYTHON";

/// Longest time for one call. A stand-in on a busy machine may need seconds, and some checks do not try again.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time for a foreign producer, and for waiting for its votes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Number of tries, and the pause between them, to delete a table that cannot be deleted yet.
const DELETION_WAIT: (u32, Duration) = (120, Duration::from_millis(500));

/// Whether to test this.
fn wanted(what: &str) -> bool {
    let list = env::var(WANTED).unwrap_or_default();
    let mut names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    let known = [KINESIS, FAN_OUT, RESHARDING, DYNAMODB, FOREIGN];
    assert!(names.clone().all(|name| known.contains(&name)), "{WANTED} may name {known:?}");
    let wanted = names.any(|name| name == what);
    if !wanted {
        // Not by `println!`, whose output is hidden when a test passes.
        let line = format!("skipped: {WANTED} does not name {what}\n");
        io::stderr().write_all(line.as_bytes()).unwrap();
    }
    wanted
}

/// Clients for the endpoint of the standard AWS variables.
async fn clients() -> Clients {
    Clients::new(&AwsConfig { call_timeout: CALL_TIMEOUT, ..AwsConfig::default() }).await
}

fn unique(what: &str) -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    format!("votestream-test-{}-{:08x}-{what}", since.as_secs(), rand::random::<u32>())
}

/// Runs a check, then cleans up, then fails if the check has failed.
async fn then<C: Future<Output = ()>>(check: impl Future<Output = ()> + Send + 'static, clean: C) {
    let checked = tokio::spawn(check).await;
    clean.await;
    if let Err(failed) = checked {
        resume_unwind(failed.into_panic());
    }
}

async fn delete_stream(clients: &Clients, name: &str) {
    let deletion = clients.kinesis.delete_stream().stream_name(name).enforce_consumer_deletion(true);
    if let Err(error) = deletion.send().await {
        eprintln!("LEFT BEHIND: stream {name}: {error:?}");
    }
}

async fn delete_tables(clients: &Clients, prefix: &str) {
    for table in ["polls", "votes", "tallies", "shards"] {
        let name = format!("{prefix}{table}");
        let (tries, pause) = DELETION_WAIT;
        for left in (0..tries).rev() {
            match clients.dynamodb.delete_table().table_name(&name).send().await {
                Ok(_) => break,
                // It is still being created.
                Err(error)
                    if left > 0 && error.as_service_error().is_some_and(|e| e.is_resource_in_use_exception()) =>
                {
                    sleep(pause).await;
                }
                Err(error) => {
                    eprintln!("LEFT BEHIND: table {name}: {error:?}");
                    break;
                }
            }
        }
    }
}

async fn open_stream(clients: &Clients, name: &str, shards: u32, reading: Reading) -> Arc<Kinesis> {
    Kinesis::create_stream(clients, name, shards).await.unwrap();
    let config = KinesisConfig { reading, ..KinesisConfig::new(name) };
    Arc::new(Kinesis::connect(clients, config).await.unwrap())
}

async fn open_store(clients: &Clients, config: &DynamoConfig) -> Arc<DynamoStore> {
    let store = DynamoStore::new(clients.dynamodb.clone(), config);
    store.create_tables().await.unwrap();
    store.check_tables().await.unwrap();
    Arc::new(store)
}

fn fan_out() -> Reading {
    Reading::enhanced_fan_out("votestream-test")
}

async fn stream_contract(reading: Reading) {
    let (clients, name) = (clients().await, unique("contract"));
    let check = {
        let (clients, name) = (clients.clone(), name.clone());
        async move {
            let stream = open_stream(&clients, &name, 3, reading).await;
            let dir = tempfile::tempdir().unwrap();
            let engine = EmbeddedEngine::open(dir.path(), EmbeddedOptions::default()).unwrap();
            contract::check_stream(Ports { stream, ..engine.ports() }).await;
            engine.close();
        }
    };
    then(check, delete_stream(&clients, &name)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kinesis_contract_by_polling() {
    if wanted(KINESIS) {
        stream_contract(Reading::POLLING).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kinesis_contract_by_fan_out() {
    if wanted(FAN_OUT) {
        stream_contract(fan_out()).await;
    }
}

async fn resharding(reading: Reading) {
    let (clients, name) = (clients().await, unique("resharding"));
    let check = {
        let (clients, name) = (clients.clone(), name.clone());
        async move {
            let stream = open_stream(&clients, &name, 2, reading).await;
            reshard::check(stream, &clients, &name, 60).await;
        }
    };
    then(check, delete_stream(&clients, &name)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kinesis_resharding_by_polling() {
    if wanted(RESHARDING) {
        resharding(Reading::POLLING).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kinesis_resharding_by_fan_out() {
    if wanted(RESHARDING) && wanted(FAN_OUT) {
        resharding(fan_out()).await;
    }
}

/// Runs the contract suite with a store. The stream is another engine's.
async fn store_contract<F>(change: DynamoConfig, check: impl FnOnce(Ports) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send,
{
    if !wanted(DYNAMODB) {
        return;
    }
    let (clients, table_prefix) = (clients().await, unique(""));
    let config = DynamoConfig { table_prefix: table_prefix.clone(), ..change };
    let check = {
        let clients = clients.clone();
        async move {
            let store = open_store(&clients, &config).await;
            let dir = tempfile::tempdir().unwrap();
            let engine = EmbeddedEngine::open(dir.path(), EmbeddedOptions::default()).unwrap();
            let polls = store.clone();
            let ports = Ports { polls, votes: store.clone(), tallies: store.clone(), leases: store, ..engine.ports() };
            check(ports).await;
            engine.close();
        }
    };
    then(check, delete_tables(&clients, &table_prefix)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dynamodb_contract_votes() {
    store_contract(DynamoConfig::default(), contract::check_votes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dynamodb_contract_votes_without_a_memory_of_voters() {
    let config = DynamoConfig { voters_remembered: 0, ..DynamoConfig::default() };
    store_contract(config, contract::check_votes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dynamodb_contract_tallies() {
    store_contract(DynamoConfig::default(), contract::check_tallies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dynamodb_contract_polls() {
    store_contract(DynamoConfig::default(), contract::check_polls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dynamodb_contract_leases() {
    store_contract(DynamoConfig::default(), contract::check_leases).await;
}

/// What the foreign producer has put, as it reports it.
struct Produced {
    /// Votes that count as submitted: those within their shard's range.
    submitted: u64,
    /// The last vote of every user.
    last: HashMap<String, String>,
}

async fn produce(python: &str, stream: &str, poll: &str) -> Produced {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/producer.py");
    let mut command = Command::new(python);
    command.arg(script).args(["--stream", stream, "--poll", poll]).stderr(Stdio::inherit()).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await.expect("the producer ends").unwrap();
    assert!(output.status.success(), "the producer failed: {}", output.status);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let last = told["last"].as_object().unwrap().iter();
    Produced {
        submitted: told["submitted"].as_u64().unwrap(),
        last: last.map(|(user, option)| (user.clone(), option.as_str().unwrap().to_owned())).collect(),
    }
}

async fn open_poll(stack: &Stack, id: &str, options: &[&str]) {
    let request = CreatePollRequest {
        poll_id: id.into(),
        options: options.iter().map(|id| PollOption { option_id: (*id).into(), title: String::new() }).collect(),
        closes_at: Some((SystemTime::now() + Duration::from_secs(3_600)).into()),
        source: PollSource::Stream.into(),
        ..CreatePollRequest::default()
    };
    let mut polls = stack.polls().await;
    polls.create_poll(request).await.unwrap();
    let open = async {
        loop {
            let poll = polls.get_poll(GetPollRequest { poll_id: id.into() }).await.unwrap().into_inner().poll.unwrap();
            if poll.state() == PollState::Open {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, open).await.expect("the poll opens");
    // The stream's clock decides which votes came before the opening. It may be behind by as much as the protocol
    // allows.
    sleep(TimeBounds::DISTRIBUTED.clock_skew_max * 2).await;
}

/// A program in another language puts votes as plain JSON and as aggregates. Both groups read them from the endpoint
/// and store their results there.
#[tokio::test(flavor = "multi_thread")]
async fn votes_of_a_foreign_producer_are_persisted_and_counted() {
    if !wanted(FOREIGN) {
        return;
    }
    let python = env::var(PYTHON).unwrap_or_else(|_| "python3".into());
    let clients = clients().await;
    let (name, table_prefix) = (unique("foreign"), unique(""));
    let check = {
        let (clients, name, table_prefix) = (clients.clone(), name.clone(), table_prefix.clone());
        async move {
            let config = DynamoConfig { table_prefix, ..DynamoConfig::default() };
            let reading = Reading::POLLING;
            let (stream, store) = tokio::join!(open_stream(&clients, &name, 2, reading), open_store(&clients, &config));
            let ports = Ports {
                stream,
                polls: store.clone(),
                votes: store.clone(),
                tallies: store.clone(),
                leases: store,
                clock: Arc::new(SystemClock::new()),
            };
            foreign_votes_count(ports, &python, &name).await;
        }
    };
    then(check, async {
        delete_stream(&clients, &name).await;
        delete_tables(&clients, &table_prefix).await;
    })
    .await;
}

async fn foreign_votes_count(ports: Ports, python: &str, stream: &str) {
    const POLL: &str = "foreign";
    let stack = Stack::start(ports, TimeBounds::DISTRIBUTED).await;
    open_poll(&stack, POLL, &["red", "green"]).await;
    let produced = produce(python, stream, POLL).await;
    assert!(produced.submitted > produced.last.len() as u64, "some users have voted twice");

    let result = stack.finish(POLL).await;
    let found: BTreeMap<_, _> = result.options.iter().map(|option| (&*option.option_id, option.votes)).collect();
    let mut expected = BTreeMap::from([("red", 0), ("green", 0)]);
    produced.last.values().for_each(|option| *expected.get_mut(&**option).unwrap() += 1);
    assert_eq!(found, expected);
    let mut results = stack.results().await;
    let interim = results.get_interim_results(GetInterimResultsRequest { poll_id: POLL.into() }).await.unwrap();
    let interim = interim.into_inner();
    assert_eq!((interim.total_submitted, interim.total_counted), (produced.submitted, produced.last.len() as u64));
    assert!(results.recount(RecountRequest { poll_id: POLL.into() }).await.unwrap().into_inner().matches);
    stack.stop().await;
}
