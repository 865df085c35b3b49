//! Tests the adapter before an edge of AWS that misbehaves, over TLS and HTTP/2: connections that stall, credentials that are
//! refused for a moment, answers that are cut, late, empty or throttled, starts while AWS is busy, streams named by ARN, and
//! profiles that get their credentials elsewhere. The edge counts what it did; a test in which it did nothing fails.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpSocket, TcpStream},
    process::Command,
    time::{sleep, timeout},
};
use tracing_subscriber::{Layer, filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};
use votestream_aws::{
    AwsConfig, Deployment,
    client::Clients,
    connect,
    dynamodb::{DynamoConfig, DynamoStore},
    kinesis::{Kinesis, KinesisConfig, Reading},
};
use votestream_core::{
    Poll, PollId, PollOption, PollSource, Position, SequenceNumber, TimeBounds, Timestamp,
    port::{Effect, Group, RecordReader, VoteOutcome, VoteStore, VoteStream, VoteWrite},
};
use votestream_e2e::{
    aws::{self, STREAM, Server},
    aws_edge::{AwsEdge, EdgeFault},
    reshard::read,
    stack::Stack,
    tls::Authority,
    voters::{Election, PATIENCE, Voters},
};
use votestream_process::terminal::selected_logs;
use votestream_testkit::stand_ins;

/// Longer than a call takes on a busy machine. A batch of statements is repeated within eight seconds, so twice this is shorter.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// Kinesis behind an edge, with the stream [`STREAM`].
async fn kinesis_edge(shards: u32) -> (AwsEdge, AwsConfig, Server) {
    let authority = Authority::new("a cloud");
    let (upstream, server) = aws::kinesis(shards).await;
    let edge = AwsEdge::tls(&authority, &upstream).await;
    let config = AwsConfig {
        kinesis_endpoint: Some(edge.url.clone()),
        ca_certificates: Some(authority.pem),
        call_timeout: CALL_TIMEOUT,
        ..AwsConfig::stand_in()
    };
    (edge, config, server)
}

/// DynamoDB behind an edge, with a store on its tables.
async fn dynamodb_edge() -> (AwsEdge, DynamoStore, Server) {
    let authority = Authority::new("a cloud");
    let (upstream, server) = aws::dynamodb().await;
    let edge = AwsEdge::tls(&authority, &upstream).await;
    let config = AwsConfig {
        dynamodb_endpoint: Some(edge.url.clone()),
        ca_certificates: Some(authority.pem),
        call_timeout: CALL_TIMEOUT,
        ..AwsConfig::stand_in()
    };
    let store = DynamoStore::new(Clients::new(&config).await.dynamodb, &DynamoConfig::default());
    store.create_tables().await.unwrap();
    (edge, store, server)
}

fn polling() -> Reading {
    Reading::Polling { pause: Duration::from_millis(5) }
}

async fn open(config: &AwsConfig, stream: &str, reading: Reading) -> Kinesis {
    let config_of_stream = KinesisConfig { reading, ..KinesisConfig::new(stream) };
    Kinesis::connect(&Clients::new(config).await, config_of_stream).await.unwrap()
}

async fn first_reader(stream: &Kinesis) -> Box<dyn RecordReader> {
    let shard = stream.list_shards().await.unwrap().remove(0).id;
    stream.reader(Group::Persist, &shard, SequenceNumber::ZERO).await.unwrap()
}

/// Puts numbers one after the other, each until it is stored. Returns how many puts failed.
async fn put_numbers(stream: &Kinesis, numbers: std::ops::Range<u8>) -> usize {
    let mut failed = 0;
    for number in numbers {
        while let Err(error) = stream.put(0, vec![number].into()).await {
            assert!(error.retryable, "{error}");
            failed += 1;
            assert!(failed < 100, "no put gets through: {error}");
        }
    }
    failed
}

async fn assert_numbers(reader: &mut dyn RecordReader, numbers: std::ops::Range<u8>) {
    let (records, _) = read(reader, numbers.len()).await;
    assert_eq!(records.iter().map(|record| record.data[0]).collect::<Vec<_>>(), numbers.collect::<Vec<_>>());
}

fn votes(users: std::ops::Range<usize>, sequence: u64) -> Vec<VoteWrite<'static>> {
    let vote = |(index, user)| VoteWrite {
        poll_id: Cow::Owned(PollId::new("lunch").unwrap()),
        bucket: 0,
        user_id: format!("user-{user}").into(),
        option_id: "soup".into(),
        position: Position { sequence: SequenceNumber::from_u64(sequence), index },
        accepted_at: Timestamp(1),
    };
    (0..).zip(users).map(vote).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_connection_takes_no_more_puts_and_reads() {
    let (edge, config, _server) = kinesis_edge(1).await;
    let stream = open(&config, STREAM, polling()).await;
    assert_eq!(put_numbers(&stream, 0..16).await, 0);
    assert!(edge.opened() >= 4, "a service has several connections, not {}", edge.opened());

    let stalled = edge.stall();
    assert!(stalled >= 4, "{stalled} connections stalled");
    let opened = edge.opened();
    let failed = put_numbers(&stream, 16..48).await;
    // When nothing at all is answered, one call is enough to leave all connections. A put has time for two.
    assert!((1..=2).contains(&failed), "{stalled} stalled connections took {failed} puts");
    assert!(edge.opened() > opened, "others were opened");

    let mut reader = first_reader(&stream).await;
    assert_numbers(&mut *reader, 0..48).await;
    let stalled = edge.stall();
    assert!(stalled > 0);
    put_numbers(&stream, 48..64).await;
    let mut failed = 0;
    while let Err(error) = reader.next().await {
        assert!(error.retryable, "{error}");
        failed += 1;
        assert!(failed <= stalled, "{stalled} stalled connections took {failed} reads");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_subscription_is_left_for_a_new_connection() {
    let (edge, config, _server) = kinesis_edge(1).await;
    let fan_out =
        Reading::EnhancedFanOut { consumer: "votestream".into(), resubscribe_after: Duration::from_millis(20) };
    let stream = open(&config, STREAM, fan_out).await;
    let mut reader = first_reader(&stream).await;
    put_numbers(&stream, 0..4).await;
    assert_numbers(&mut *reader, 0..4).await;

    let (stalled, subscribed) = (edge.stall(), edge.calls("SubscribeToShard"));
    assert!(stalled > 0);
    put_numbers(&stream, 4..8).await;
    assert_numbers(&mut *reader, 4..8).await;
    assert!(edge.calls("SubscribeToShard") > subscribed);
}

#[tokio::test(flavor = "multi_thread")]
async fn votes_are_stored_although_every_connection_stalls() {
    let (edge, store, _server) = dynamodb_edge().await;
    store.write(&votes(0..100, 1)).await.unwrap();
    let stalled = edge.stall();
    assert!(stalled > 1, "{stalled} connections stalled");
    let outcomes = store.write(&votes(100..200, 2)).await.unwrap();
    assert!(outcomes.iter().all(|outcome| *outcome == VoteOutcome::Inserted), "{outcomes:?}");
}

/// The poll of those votes.
fn lunch() -> Poll {
    let options = vec![PollOption { id: "soup".into(), title: String::new() }];
    let id = PollId::new("lunch").unwrap();
    Poll::new(id, String::new(), options, Timestamp(1), Timestamp(2), PollSource::Ingest, 1_000).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_batch_of_statements_is_repeated_alone() {
    const BATCHES: u64 = 8;
    for fault in [
        EdgeFault::Refuse(500, "InternalServerError"),
        EdgeFault::FailAfter(500, "InternalServerError"),
        EdgeFault::Refuse(503, "ServiceUnavailable"),
        EdgeFault::Late(2 * CALL_TIMEOUT.as_millis() as u64),
        EdgeFault::Cut,
        EdgeFault::Empty,
        EdgeFault::BLINK,
        EdgeFault::THROTTLED,
    ] {
        let (edge, store, _server) = dynamodb_edge().await;
        edge.next(1, Some("BatchExecuteStatement"), fault);
        let window = votes(0..25 * BATCHES as usize, 1);
        let outcomes = store.write(&window).await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert_eq!(edge.count(fault), 1, "{fault:?}");
        // The batch whose answer was lost finds its votes by a read, and by their positions.
        let found = outcomes.iter().filter(|outcome| matches!(outcome, VoteOutcome::AlreadyStored { previous: None }));
        let found = found.count();
        let took_effect = !matches!(fault, EdgeFault::Refuse(..));
        assert_eq!(found, if took_effect { 25 } else { 0 }, "{fault:?}");
        let inserted = outcomes.iter().filter(|outcome| **outcome == VoteOutcome::Inserted).count();
        assert_eq!((inserted + found, outcomes.len()), (window.len(), window.len()), "{fault:?}");
        assert_eq!(edge.calls("BatchExecuteStatement"), BATCHES + 1, "{fault:?}: one batch was sent again");
        assert_eq!(edge.calls("BatchGetItem"), u64::from(took_effect), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_without_an_answer_is_no_empty_answer() {
    let (edge, config, _server) = kinesis_edge(1).await;
    let stream = open(&config, STREAM, polling()).await;
    put_numbers(&stream, 0..8).await;
    let mut reader = first_reader(&stream).await;
    edge.every(2, Some("GetRecords"), EdgeFault::Empty);
    edge.every(3, Some("ListShards"), EdgeFault::Empty);
    assert_numbers(&mut *reader, 0..8).await;
    for _ in 0..6 {
        match stream.list_shards().await {
            Ok(shards) => assert_eq!(shards.len(), 1),
            Err(error) => assert!(error.retryable, "{error}"),
        }
    }
    // It would be the end of the shard.
    put_numbers(&stream, 8..16).await;
    assert_numbers(&mut *reader, 8..16).await;
    assert!(edge.count(EdgeFault::Empty) >= 3);

    let (edge, store, _server) = dynamodb_edge().await;
    let poll = lunch();
    assert_eq!(store.write(&votes(0..10, 1)).await.unwrap().len(), 10);
    edge.next(1, Some("Query"), EdgeFault::Empty);
    let error = store.recount(&poll).await.unwrap_err();
    assert!(error.retryable && error.effect == Effect::Unknown, "{error}");
    assert_eq!(store.recount(&poll).await.unwrap(), [10]);
    assert_eq!(edge.count(EdgeFault::Empty), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_lose_nothing_after_the_start() {
    const CODES: [&str; 8] = [
        "UnrecognizedClientException",
        "InvalidSignatureException",
        "AccessDeniedException",
        "IncompleteSignature",
        "MissingAuthenticationToken",
        "ExpiredTokenException",
        "SignatureDoesNotMatch",
        "NotAuthorized",
    ];
    let (edge, config, _server) = kinesis_edge(1).await;
    let stream = open(&config, STREAM, polling()).await;
    let mut reader = first_reader(&stream).await;
    for (number, code) in (0..).zip(CODES) {
        for operation in ["PutRecords", "GetRecords", "GetShardIterator", "ListShards"] {
            edge.next(1, Some(operation), EdgeFault::Refuse(400, code));
        }
        let error = stream.put(0, vec![number].into()).await.unwrap_err();
        assert!(error.retryable && error.effect == Effect::None, "{error}");
        assert!(stream.list_shards().await.unwrap_err().retryable);
        put_numbers(&stream, number..number + 1).await;
        assert_numbers(&mut *reader, number..number + 1).await;
        assert!(edge.count(EdgeFault::Refuse(400, code)) >= 3, "{code}");
    }
}

/// A recount is thousands of reads: it must not begin again for one that AWS calls retryable.
#[tokio::test(flavor = "multi_thread")]
async fn a_recount_goes_on_when_its_caller_is_unknown_in_passing() {
    let (edge, store, _server) = dynamodb_edge().await;
    let poll = lunch();
    assert_eq!(store.write(&votes(0..10, 1)).await.unwrap().len(), 10);
    edge.next(2, Some("Query"), EdgeFault::BLINK);
    assert_eq!(store.recount(&poll).await.unwrap(), [10]);
    // Credentials that stay wrong are reported.
    edge.every(1, Some("Query"), EdgeFault::BLINK);
    let error = store.recount(&poll).await.unwrap_err();
    assert!(error.retryable && error.effect == Effect::None, "{error}");
    assert!(edge.count(EdgeFault::BLINK) >= 5, "{} blinks", edge.count(EdgeFault::BLINK));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_an_aws_that_is_busy() {
    let (kinesis, config, _kinesis) = kinesis_edge(1).await;
    let (dynamodb, _store, _dynamodb) = dynamodb_edge_with(&config).await;
    let config = AwsConfig { dynamodb_endpoint: Some(dynamodb.url.clone()), ..config };
    let limit = EdgeFault::Refuse(400, "LimitExceededException");
    let late = EdgeFault::Late(2 * CALL_TIMEOUT.as_millis() as u64);
    kinesis.next(2, Some("DescribeStreamSummary"), limit);
    kinesis.next(1, Some("DescribeStreamSummary"), EdgeFault::BLINK);
    kinesis.next(1, Some("ListShards"), limit);
    dynamodb.next(1, Some("DescribeTable"), EdgeFault::Refuse(500, "InternalServerError"));
    dynamodb.next(1, Some("DescribeTable"), late);
    dynamodb.next(1, Some("DescribeTable"), EdgeFault::BLINK);
    connect(&config, Deployment::new(STREAM, "votestream-")).await.map(drop).unwrap();
    assert_eq!((kinesis.count(limit), kinesis.count(EdgeFault::BLINK)), (3, 1));
    assert_eq!((dynamodb.count(late), dynamodb.count(EdgeFault::BLINK)), (1, 1));
    // What was checked once is not checked again.
    assert!(dynamodb.calls("DescribeTable") <= 4 + 4 * 3, "{} tables described", dynamodb.calls("DescribeTable"));

    // What no waiting mends is reported by the first look.
    let looked = dynamodb.calls("DescribeTable");
    let missing = connect(&config, Deployment::new(STREAM, "elsewhere-")).await.map(drop).unwrap_err().to_string();
    assert!(missing.contains("table elsewhere-polls does not exist"), "{missing}");
    assert_eq!(dynamodb.calls("DescribeTable"), looked + 4);
    let looked = kinesis.calls("DescribeStreamSummary");
    let missing = connect(&config, Deployment::new("elsewhere", "votestream-")).await.map(drop).unwrap_err();
    assert!(missing.to_string().contains("there is no such stream"), "{missing}");
    assert_eq!(kinesis.calls("DescribeStreamSummary"), looked + 1);
}

/// DynamoDB behind an edge that the clients of another configuration trust.
async fn dynamodb_edge_with(config: &AwsConfig) -> (AwsEdge, DynamoStore, Server) {
    let (upstream, server) = aws::dynamodb().await;
    let edge = AwsEdge::plain(&upstream).await;
    let config = AwsConfig { dynamodb_endpoint: Some(edge.url.clone()), ..config.clone() };
    let store = DynamoStore::new(Clients::new(&config).await.dynamodb, &DynamoConfig::default());
    store.create_tables().await.unwrap();
    (edge, store, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_packet_may_be_lost() {
    let (router, _) = stand_ins::kinesis(|_| ());
    let (endpoint, _server) = aws::serve(router.clone()).await;
    Kinesis::create_stream(&aws::kinesis_clients(&endpoint).await, STREAM, 1).await.unwrap();

    // A listener whose queue has one place. While somebody has it, the kernel drops the first packet of a connection.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let addr = listener.local_addr().unwrap();
    let _first = TcpStream::connect(addr).await.unwrap();
    let before = dropped_packets();
    let config = AwsConfig { kinesis_endpoint: Some(format!("http://{addr}")), ..AwsConfig::stand_in() };
    let clients = Clients::new(&config).await;
    let call = tokio::spawn(async move { clients.kinesis.list_streams().send().await.map(|found| found.stream_names) });
    timeout(PATIENCE, async {
        while dropped_packets() == before {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("a packet is dropped");
    let _server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    assert_eq!(call.await.unwrap().expect("the packet is sent again in time"), [STREAM]);
}

/// First packets that listeners have dropped, on this machine.
fn dropped_packets() -> u64 {
    let text = fs::read_to_string("/proc/net/netstat").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|name| name == "ListenDrops").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_named_by_its_arn_is_called_so_everywhere() {
    let (edge, config, _server) = kinesis_edge(2).await;
    let clients = Clients::new(&config).await;
    let described = clients.kinesis.describe_stream_summary().stream_name(STREAM).send().await.unwrap();
    let arn = described.stream_description_summary.unwrap().stream_arn;
    let (by_name, _) = edge.named();
    let fan_out = Reading::EnhancedFanOut { consumer: "by-arn".into(), resubscribe_after: Duration::from_millis(20) };
    for (round, reading) in (0..).zip([polling(), fan_out]) {
        let stream = open(&config, &arn, reading).await;
        let mut reader = first_reader(&stream).await;
        put_numbers(&stream, 8 * round..8 * round + 8).await;
        assert_numbers(&mut *reader, 0..8 * round + 8).await;
    }
    let (names, arns) = edge.named();
    assert_eq!(names, by_name, "no call named the stream otherwise");
    let kinds = ["DescribeStreamSummary", "ListShards", "PutRecords", "GetShardIterator", "GetRecords"];
    let called: u64 = kinds.iter().map(|kind| edge.calls(kind)).sum();
    assert!(arns >= called - by_name, "{arns} of {called} calls named the ARN");
    assert!(kinds.iter().all(|kind| edge.calls(kind) > 0) && edge.calls("SubscribeToShard") > 0);

    for (wrong, said) in [
        (arn.replace("us-east-1", "eu-west-1"), "is in the region eu-west-1"),
        (arn.replace("stream/", ""), "is not the ARN of a stream"),
    ] {
        let error = Kinesis::connect(&clients, KinesisConfig::new(&wrong)).await.err().unwrap();
        assert!(!error.retryable && error.message.contains(said), "{error}");
    }
}

/// Set in the process whose credentials come from a profile.
const PROFILE_TEST: &str = "VOTESTREAM_TEST_PROFILE";

#[tokio::test(flavor = "multi_thread")]
async fn the_process_with_a_profile() {
    let Ok(kind) = std::env::var(PROFILE_TEST) else { return };
    let clients = Clients::new(&AwsConfig::default()).await;
    let listed = clients.dynamodb.list_tables().send().await;
    match kind.as_str() {
        "process" => assert_eq!(listed.unwrap().table_names(), [""; 0]),
        _ => {
            let error = format!("{:?}", listed.unwrap_err());
            assert!(!error.contains("feature"), "{error}");
            assert!(error.to_lowercase().contains("token"), "{error}");
        }
    }
}

async fn with_profile(kind: &str, folder: &Path, edge: &AwsEdge) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_process_with_a_profile", "--nocapture"])
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .env(PROFILE_TEST, kind)
        .env("HOME", folder)
        .env("AWS_CONFIG_FILE", folder.join("config"))
        .env("AWS_SHARED_CREDENTIALS_FILE", folder.join("none"))
        .env("AWS_PROFILE", kind)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_ENDPOINT_URL", &edge.url)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ended = timeout(PATIENCE, child).await.unwrap().unwrap();
    let said = [ended.stdout, ended.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(ended.status.success(), "{kind}: {said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_get_credentials_from_a_program_or_from_single_sign_on() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("credentials.sh");
    let printed = r#"{"Version": 1, "AccessKeyId": "FROMTHEPROGRAM", "SecretAccessKey": "none"}"#;
    fs::write(&program, format!("#!/bin/sh\necho '{printed}'\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    let profiles = format!(
        "[profile process]\nregion = eu-west-1\ncredential_process = {}\n\n\
         [profile sso]\nregion = eu-west-1\nsso_session = work\nsso_account_id = 123456789012\nsso_role_name = voting\n\n\
         [sso-session work]\nsso_region = eu-west-1\nsso_start_url = https://login.example/start\n",
        program.display()
    );
    fs::write(folder.path().join("config"), profiles).unwrap();

    let (upstream, _server) = aws::dynamodb().await;
    let edge = AwsEdge::plain(&upstream).await;
    with_profile("process", folder.path(), &edge).await;
    assert_eq!(edge.callers(), BTreeSet::from(["FROMTHEPROGRAM".to_owned()]));
    // Nobody has signed on here. So the SDK can only say that it looked for the token.
    with_profile("sso", folder.path(), &edge).await;
    assert_eq!(edge.calls("ListTables"), 1);
}

/// The faults of the election, and how many calls of which operation pass between two.
const KINESIS_FAULTS: [(u64, Option<&str>, EdgeFault); 6] = [
    (53, None, EdgeFault::BLINK),
    (5, Some("PutRecords"), EdgeFault::Cut),
    (6, Some("PutRecords"), EdgeFault::Empty),
    (7, Some("PutRecords"), EdgeFault::FailAfter(500, "InternalFailure")),
    (8, Some("PutRecords"), EdgeFault::Late(300)),
    (37, Some("GetRecords"), EdgeFault::Empty),
];
const DYNAMODB_FAULTS: [(u64, Option<&str>, EdgeFault); 6] = [
    (53, None, EdgeFault::BLINK),
    (4, Some("BatchExecuteStatement"), EdgeFault::Cut),
    (5, Some("BatchExecuteStatement"), EdgeFault::FailAfter(500, "InternalServerError")),
    (6, Some("BatchExecuteStatement"), EdgeFault::Late(300)),
    (3, Some("BatchGetItem"), EdgeFault::Empty),
    (11, Some("UpdateItem"), EdgeFault::Refuse(400, "InvalidSignatureException")),
];
/// Long enough for a busy machine.
const BOUNDS: TimeBounds = TimeBounds {
    answer_deadline: Duration::from_secs(6),
    clock_skew_max: Duration::ZERO,
    poll_cache_life: Duration::from_secs(1),
};
/// Number of votes after which the faults may end, if each has struck.
const VOTES: usize = 300;
/// Number of polls after which this must have happened.
const POLLS_MAX: usize = 12;
/// Within this time a lease is renewed several times, and calls take at most three seconds.
const FAILOVER: Duration = Duration::from_secs(9);

#[tokio::test(flavor = "multi_thread")]
async fn an_election_is_exact_behind_a_bad_edge() {
    let log = tracing_subscriber::fmt::layer().with_test_writer().with_filter(selected_logs(LevelFilter::ERROR));
    tracing_subscriber::registry().with(log).try_init().ok();
    let authority = Authority::new("a cloud");
    let ((kinesis, _kinesis), (dynamodb, _dynamodb)) = tokio::join!(aws::kinesis(2), aws::dynamodb());
    let kinesis = AwsEdge::tls(&authority, &kinesis).await;
    let dynamodb = AwsEdge::tls(&authority, &dynamodb).await;
    let config = AwsConfig {
        kinesis_endpoint: Some(kinesis.url.clone()),
        dynamodb_endpoint: Some(dynamodb.url.clone()),
        ca_certificates: Some(authority.pem),
        call_timeout: BOUNDS.answer_deadline / 2,
        ..AwsConfig::stand_in()
    };
    let deployment = Deployment { create_with_shards: Some(2), ..Deployment::new(STREAM, "edge-") };
    let ports = connect(&config, deployment).await.unwrap();
    let mut stack = Stack::start_with(ports, BOUNDS, |config| {
        for group in [&mut config.persist.group, &mut config.tally.group] {
            (group.failover, group.renew_every) = (FAILOVER, FAILOVER / 6);
        }
    })
    .await;
    let election = Arc::<Election>::default();
    election.places.ingest.lock().push(Some(stack.ingest));
    election.places.results.lock().push(Some(stack.results));

    for (edge, faults) in [(&kinesis, &KINESIS_FAULTS), (&dynamodb, &DYNAMODB_FAULTS)] {
        for (every, operation, fault) in faults {
            edge.every(*every, *operation, *fault);
        }
    }
    kinesis.share_bucket("PutRecords", 1, "ProvisionedThroughputExceededException");
    dynamodb.share_bucket("BatchExecuteStatement", 1, "ThrottlingException");
    election.open("poll-0").await.unwrap();
    let voters = Voters::start(&election, 8, 1);
    let (mut poll, mut start, mut stalled) = (0, Instant::now(), [0, 0]);
    let struck = |edge: &AwsEdge, faults: &[(u64, Option<&str>, EdgeFault)]| {
        faults.iter().all(|(.., fault)| edge.count(*fault) > 0) && edge.throttled() > 0
    };
    let done = |stalled: [usize; 2]| {
        election.log.len() >= VOTES
            && struck(&kinesis, &KINESIS_FAULTS)
            && struck(&dynamodb, &DYNAMODB_FAULTS)
            && stalled.iter().all(|stalled| *stalled > 0)
    };
    let show = || {
        let of = |edge: &AwsEdge, faults: &[(u64, Option<&str>, EdgeFault)]| {
            let counts: Vec<_> =
                faults.iter().map(|(_, operation, fault)| (edge.count(*fault), operation, fault)).collect();
            format!("{counts:?}, {} throttled, {} connections; ", edge.throttled(), edge.opened())
        };
        of(&kinesis, &KINESIS_FAULTS) + &of(&dynamodb, &DYNAMODB_FAULTS)
    };
    while !done(stalled) {
        assert!(poll < POLLS_MAX, "a kind of fault never strikes: {}", show());
        assert!(start.elapsed() < PATIENCE, "too slow: {} votes, {}", election.log.len(), show());
        stack.check().await;
        if election.log.len() >= VOTES / 3 && stalled[0] == 0 {
            stalled[0] = kinesis.stall();
        }
        if election.log.len() >= VOTES / 2 && stalled[1] == 0 {
            stalled[1] = dynamodb.stall();
        }
        if election.is_worn() {
            election.open(&format!("poll-{}", poll + 1)).await.unwrap();
            election.close(&format!("poll-{poll}")).await.unwrap();
            (poll, start) = (poll + 1, Instant::now());
            println!("{} votes, {}", election.log.len(), show());
        }
        sleep(Duration::from_millis(50)).await;
    }
    voters.finish().await.unwrap();
    election.close(&format!("poll-{poll}")).await.unwrap();
    kinesis.calm();
    dynamodb.calm();
    println!("{} votes, stalled connections: {stalled:?}, {}", election.log.len(), show());
    election.verdict().await.unwrap();
    stack.stop().await;
}
