//! Tests that the current code can read data of earlier versions and continue with it.
//!
//! `formats/` has what each version of each format wrote: a data directory of the embedded engine, the items of the
//! four DynamoDB tables, a record of the stream. `VOTESTREAM_WRITE_FORMATS=1 cargo test -p votestream-e2e --test
//! formats` writes them again, for a version that has none yet. Files of earlier versions must stay as they are: they
//! stand for data of users.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use votestream_aws::{
    client::Clients,
    dynamodb::{DynamoConfig, DynamoStore},
    kinesis::{Kinesis, KinesisConfig},
};
use votestream_core::{
    Closing, HashRange, HashRanges, Poll, PollId, PollOption, PollSource, Position, SequenceNumber, TimeBounds,
    Timestamp, Visibility,
    clock::SystemClock,
    model::routing,
    port::{Created, Group, LeaseStore, PollStore, Ports, TallyRow, TallyStore, VoteOutcome, VoteStore, VoteWrite},
    record::batch::{self, Batch, BatchId, RecordBody},
};
use votestream_e2e::{
    aws,
    stack::{Stack, TEST_BOUNDS, connect},
};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_ingest::IngestConfig;
use votestream_proto::v1::{GetFinalResultsRequest, GetInterimResultsRequest, RecountRequest};

/// The bounds of the stored directories, which a start compares.
const BOUNDS: TimeBounds = TimeBounds { answer_deadline: Duration::from_secs(2), ..TEST_BOUNDS };

/// The versions that are written now.
const EMBEDDED: &str = "embedded-4.zst";
const TABLES: &str = "tables-1.json";
const RECORD: &str = "record-2.bin";
/// A poll that was open when the data was written, and one that was final.
const OPEN: &str = "open";
const FINAL: &str = "final";
/// The year 2100.
const CLOSES_AT: Timestamp = Timestamp(4_102_444_800_000);
const OPTIONS: [&str; 3] = ["a", "b", "c"];
/// The tables of a deployment.
const NAMES: [&str; 4] = ["polls", "votes", "tallies", "shards"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats")
}

fn writing() -> bool {
    std::env::var_os("VOTESTREAM_WRITE_FORMATS").is_some()
}

/// The stored versions of one format.
fn stored(start: &str) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start)));
    found.sort();
    assert!(!found.is_empty(), "there is no {start} in {}", folder().display());
    found
}

/// Votes of one part of the run. Some users vote in every part.
fn votes(part: usize) -> Vec<(String, String)> {
    (0..200).map(|at| (format!("user-{}", (at * 7 + part * 31) % 150), OPTIONS[(at + part) % 3].to_owned())).collect()
}

/// How many users chose each option last.
fn last_votes<'a>(votes: impl IntoIterator<Item = &'a (String, String)>) -> BTreeMap<String, u64> {
    let last: HashMap<_, _> = votes.into_iter().map(|(user, option)| (user, option)).collect();
    let mut counts = BTreeMap::new();
    last.into_values().for_each(|option| *counts.entry(option.clone()).or_default() += 1);
    counts
}

/// Creates a poll by the port: it must still be open whenever the data is read, and the API does not allow a poll until
/// the year 2100.
async fn create_poll(polls: &dyn PollStore, poll_id: &str) {
    let poll = Poll {
        id: PollId::new(poll_id).unwrap(),
        title: format!("The {poll_id} poll"),
        options: OPTIONS.map(|id| PollOption { id: id.into(), title: format!("Option {id}") }).into(),
        opens_at: Timestamp(1_700_000_000_000),
        closes_at: CLOSES_AT,
        closing: Closing::No,
        source: PollSource::Ingest,
        expected_peak: 2_000,
        buckets: 4,
        visibility: Visibility::Live,
        released_at: None,
        pseudonym_key: None,
        needs_recount: false,
        final_result: None,
    };
    assert_eq!(polls.create(&poll).await.unwrap(), Created::New);
}

/// Makes the data: a poll that becomes final, and one that has been counted in part. Further votes may be only in the
/// stream.
async fn live(ports: Ports) {
    create_poll(&*ports.polls, OPEN).await;
    create_poll(&*ports.polls, FINAL).await;
    let stack = Stack::start(ports, BOUNDS).await;
    assert_eq!(stack.cast(FINAL, &votes(9)).await.accepted, 200);
    stack.finish(FINAL).await;
    assert_eq!(stack.cast(OPEN, &votes(0)).await.accepted, 200);
    let all = async { while submitted(&stack, OPEN).await != 200 {} };
    tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
    stack.stop().await;
}

async fn submitted(stack: &Stack, poll_id: &str) -> u64 {
    let request = GetInterimResultsRequest { poll_id: poll_id.into() };
    stack.results().await.get_interim_results(request).await.unwrap().into_inner().total_submitted
}

fn engine(directory: &Path) -> EmbeddedEngine {
    let options = EmbeddedOptions { shards: 2, bounds: BOUNDS, ..EmbeddedOptions::default() };
    EmbeddedEngine::open(directory, options).unwrap()
}

/// A directory as one file: the path and content of every file, each after its length. Compressed, because journals are
/// mostly zeros.
fn pack(directory: &Path) -> Vec<u8> {
    let (mut files, mut folders) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let into = if entry.file_type().unwrap().is_dir() { &mut folders } else { &mut files };
            into.push(entry.path());
        }
    }
    files.sort();
    let mut packed = Vec::new();
    for file in files {
        let path = file.strip_prefix(directory).unwrap().to_str().unwrap().as_bytes().to_vec();
        for part in [path, fs::read(&file).unwrap()] {
            packed.extend(u64::try_from(part.len()).unwrap().to_be_bytes());
            packed.extend(part);
        }
    }
    zstd::encode_all(&packed[..], 19).unwrap()
}

fn unpack(file: &Path, directory: &Path) {
    let packed = zstd::decode_all(fs::File::open(file).unwrap()).unwrap();
    let mut rest = &packed[..];
    let mut part = || {
        let (length, behind) = rest.split_first_chunk::<8>()?;
        let (part, behind) = behind.split_at(usize::try_from(u64::from_be_bytes(*length)).unwrap());
        rest = behind;
        Some(part)
    };
    while let (Some(path), Some(content)) = (part(), part()) {
        let path = directory.join(std::str::from_utf8(path).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// Writes a data directory whose log holds votes that nobody has counted yet.
async fn write_embedded(directory: &Path) {
    let opened = engine(directory);
    live(opened.ports()).await;
    // Only ingest runs, so these votes stay in the log.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let mut config = IngestConfig::one_machine();
    (config.bounds, config.lanes.bounds) = (BOUNDS, BOUNDS);
    let ingest = tokio::spawn(votestream_ingest::run(config, opened.ports(), listener, shutdown.clone()));
    let mut client = votestream_proto::v1::ingest_service_client::IngestServiceClient::new(connect(addr).await);
    let mut message = votestream_proto::VotesMessage::default();
    votes(1).iter().for_each(|(user, option)| message.push(OPEN, user, option));
    let answer = client.cast_votes(tokio_stream::iter([message])).await.unwrap().into_inner();
    assert_eq!(answer.accepted, 200);
    drop(client);
    shutdown.cancel();
    ingest.await.unwrap().unwrap();
    opened.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_data_directory_goes_on() {
    if writing() {
        let temporary = tempfile::tempdir().unwrap();
        write_embedded(temporary.path()).await;
        fs::write(folder().join(EMBEDDED), pack(temporary.path())).unwrap();
    }
    let found = stored("embedded-");
    assert!(found.iter().any(|path| path.ends_with(EMBEDDED)), "the current version has no data here");
    for original in found {
        let temporary = tempfile::tempdir().unwrap();
        unpack(&original, temporary.path());
        let opened = engine(temporary.path());
        let stack = Stack::start(opened.ports(), BOUNDS).await;

        let request = GetFinalResultsRequest { poll_id: FINAL.into(), wait: false };
        let result = stack.results().await.get_final_results(request).await.unwrap().into_inner();
        let counts: BTreeMap<_, _> = result.options.into_iter().map(|one| (one.option_id, one.votes)).collect();
        assert_eq!(counts, last_votes(&votes(9)), "the final result stands");

        // Votes of the old log, and new ones of old users.
        assert_eq!(stack.cast(OPEN, &votes(2)).await.accepted, 200);
        let result = stack.finish(OPEN).await;
        let counts: BTreeMap<_, _> = result.options.into_iter().map(|one| (one.option_id, one.votes)).collect();
        assert_eq!(counts, last_votes(votes(0).iter().chain(&votes(1)).chain(&votes(2))), "{}", original.display());
        assert_eq!(submitted(&stack, OPEN).await, 600);
        stack.stop().await;
        opened.close();

        // The converted data is found again.
        let opened = engine(temporary.path());
        let stack = Stack::start(opened.ports(), BOUNDS).await;
        for poll_id in [OPEN, FINAL] {
            let request = RecountRequest { poll_id: poll_id.into() };
            let recount = stack.results().await.recount(request).await.unwrap().into_inner();
            assert!(recount.matches && recount.options.iter().any(|option| option.recounted > 0), "{poll_id}");
        }
        stack.stop().await;
        opened.close();
    }
}

/// Raw calls to DynamoDB: these items must not pass through the code that is tested.
struct Raw(SocketAddr);

impl Raw {
    async fn call(&self, operation: &str, body: &Value) -> Value {
        let stream = TcpStream::connect(self.0).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let authorization = "AWS4-HMAC-SHA256 Credential=stand-in/20260101/us-east-1/dynamodb/aws4_request, \
                             SignedHeaders=host, Signature=0";
        let request = Request::post("/")
            .header("host", self.0.to_string())
            .header("content-type", "application/x-amz-json-1.0")
            .header("authorization", authorization)
            .header("x-amz-date", "20260101T000000Z")
            .header("x-amz-target", format!("DynamoDB_20120810.{operation}"))
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(status.is_success(), "{operation}: {status}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }
}

/// An empty DynamoDB with its tables.
async fn dynamodb() -> (DynamoStore, Raw, aws::Server) {
    let (endpoint, server) = aws::dynamodb().await;
    let store = aws::dynamo_store(&endpoint, &DynamoConfig::default()).await;
    store.create_tables().await.unwrap();
    let addr = endpoint.strip_prefix("http://").unwrap().parse().unwrap();
    (store, Raw(addr), server)
}

/// Writes the items of all tables.
async fn write_tables(file: &Path) {
    let (store, raw, _server) = dynamodb().await;
    let (endpoint, _kinesis) = aws::kinesis(2).await;
    let clients: Clients = aws::kinesis_clients(&endpoint).await;
    let stream = Arc::new(Kinesis::connect(&clients, KinesisConfig::new(aws::STREAM)).await.unwrap());
    let store = Arc::new(store);
    live(Ports {
        stream,
        polls: store.clone(),
        votes: store.clone(),
        tallies: store.clone(),
        leases: store.clone(),
        clock: Arc::new(SystemClock::default()),
    })
    .await;
    let mut tables = BTreeMap::new();
    for name in NAMES {
        let mut items = Vec::new();
        let mut start = Value::Null;
        loop {
            let mut request = json!({"TableName": format!("votestream-{name}"), "ConsistentRead": true});
            if !start.is_null() {
                request["ExclusiveStartKey"] = start;
            }
            let page = raw.call("Scan", &request).await;
            items.extend(page["Items"].as_array().unwrap().iter().cloned());
            start = page["LastEvaluatedKey"].clone();
            if start.is_null() {
                break;
            }
        }
        items.sort_by_key(Value::to_string);
        tables.insert(name, items);
    }
    // One item per line, so that a reader sees what is stored.
    let lines = tables.iter().map(|(name, items)| {
        let items = items.iter().map(|item| format!("    {item}")).collect::<Vec<_>>().join(",\n");
        format!("  \"{name}\": [\n{items}\n  ]")
    });
    fs::write(file, format!("{{\n{}\n}}\n", lines.collect::<Vec<_>>().join(",\n"))).unwrap();
}

fn sums(rows: &[TallyRow], group: Group) -> BTreeMap<String, u64> {
    let mut sums: BTreeMap<String, i64> = BTreeMap::new();
    for (option, count) in rows.iter().filter(|row| row.group == group).flat_map(|row| &row.counts) {
        *sums.entry(option.to_string()).or_default() += count;
    }
    sums.into_iter().filter(|(_, sum)| *sum != 0).map(|(option, sum)| (option, u64::try_from(sum).unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_items_are_read_and_changed() {
    if writing() {
        write_tables(&folder().join(TABLES)).await;
    }
    let found = stored("tables-");
    assert!(found.iter().any(|path| path.ends_with(TABLES)), "the current version has no data here");
    for file in found {
        let (store, raw, _server) = dynamodb().await;
        let tables: HashMap<String, Vec<Value>> = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        for (name, items) in &tables {
            for item in items {
                raw.call("PutItem", &json!({"TableName": format!("votestream-{name}"), "Item": item})).await;
            }
        }

        let open = store.get(&PollId::new(OPEN).unwrap()).await.unwrap().unwrap();
        assert_eq!(open.title, "The open poll");
        let options: Vec<_> = open.options.iter().map(|option| option.id.to_string()).collect();
        assert_eq!((options, open.expected_peak), (OPTIONS.map(str::to_owned).to_vec(), 2_000));
        assert_eq!((open.closes_at, &open.final_result), (CLOSES_AT, &None));
        let done = store.get(&PollId::new(FINAL).unwrap()).await.unwrap().unwrap();
        let expected = |votes: &[(String, String)]| {
            let last = last_votes(votes);
            OPTIONS.map(|option| last.get(option).copied().unwrap_or_default()).to_vec()
        };
        assert_eq!(done.final_result.as_ref().map(|result| &result.votes), Some(&expected(&votes(9))));
        assert_eq!(PollStore::list(&store, None, 10).await.unwrap().len(), 2);

        for (poll, part) in [(&open, 0), (&done, 9)] {
            assert_eq!(store.recount(poll).await.unwrap(), expected(&votes(part)));
            let rows = store.read(&poll.id).await.unwrap();
            assert_eq!(sums(&rows, Group::Persist), last_votes(&votes(part)));
            assert_eq!(sums(&rows, Group::Tally).values().sum::<u64>(), 200);
        }

        for group in [Group::Persist, Group::Tally] {
            let rows = LeaseStore::list(&store, group).await.unwrap();
            assert_eq!(rows.len(), 2);
            for row in rows {
                assert!(row.started && !row.progress.ended && row.progress.watermark > Timestamp(0), "{row:?}");
                assert_eq!(row.progress.checkpoint, row.progress.window_end, "everything was committed");
                assert!(!row.progress.dedup.is_empty(), "batches are remembered: {row:?}");
                let taken = store.take(group, &row.shard, &row.lease, "now").await.unwrap().unwrap();
                assert_eq!((taken.lease.epoch, &taken.progress), (row.lease.epoch + 1, &row.progress));
            }
        }

        // A vote after a stored one replaces it, and names the replaced option.
        let (user, option) = votes(0).pop().unwrap();
        let write = VoteWrite {
            poll_id: Cow::Borrowed(&open.id),
            bucket: routing::bucket(&user, open.buckets),
            user_id: user.into(),
            option_id: "a".into(),
            position: Position { sequence: SequenceNumber::from_bytes([u8::MAX; 24]), index: 0 },
            accepted_at: Timestamp(0),
        };
        let outcome = store.write(&[write]).await.unwrap();
        assert_eq!(outcome, [VoteOutcome::Replaced { previous: option.into() }]);
    }
}

/// The content of the record of a version. Version 2 added UUIDs, alone and after a prefix.
fn record(version: u8) -> Batch {
    let users = match version {
        1 => ["ada", "bób", "eve"],
        _ => ["bób", "eu-west-1:01234567-89ab-4cde-8f01-23456789abcd", "fedcba98-7654-4210-8fed-cba987654321"],
    };
    let mut user_ends = Vec::new();
    let mut user_block = String::new();
    for user in users {
        user_block += user;
        user_ends.push(u32::try_from(user_block.len()).unwrap());
    }
    Batch {
        id: BatchId { producer: 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef, number: 7 },
        ranges: HashRanges::from(HashRange { start: 0, end: u128::MAX / 2 }),
        trace_context: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        dictionary: vec![
            (PollId::new("p").unwrap(), "x".into()),
            (PollId::new("p").unwrap(), "y".into()),
            (PollId::new("q").unwrap(), "x".into()),
        ],
        choices: vec![0, 2, 1],
        accepted_at: vec![Timestamp(1_700_000_000_000), Timestamp(1_699_999_999_990), Timestamp(1_700_000_000_500)],
        user_block,
        user_ends,
    }
}

#[test]
fn a_stored_record_is_read() {
    let now = batch::encode(&record(u8::MAX));
    if writing() {
        fs::write(folder().join(RECORD), &now).unwrap();
    }
    assert_eq!(format!("record-{}.bin", now[3]), RECORD, "another version: write its record, VOTESTREAM_WRITE_FORMATS");
    let found = stored("record-");
    assert!(found.iter().any(|path| path.ends_with(RECORD)), "the current version has no data here");
    for file in found {
        let bytes = fs::read(&file).unwrap();
        assert_eq!(batch::decode(&bytes), Ok(RecordBody::Batch(record(bytes[3]))), "{}", file.display());
    }
}
