//! Tests the real SDK path under faults: lanes, groups, windows and services with the AWS adapter, whose HTTP client
//! throttles, delays, repeats and loses requests and answers. The auditor judges, and every vote that was refused or
//! dropped must show in a metric.
//!
//! Only one test in this process, because the metrics belong to the process.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use tracing_subscriber::{Layer, filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};
use votestream_aws::{AwsConfig, Deployment, connect};
use votestream_core::{
    SequenceNumber,
    consume::window::{Discard, discarded_total},
    observe::metrics::{ReadCounter, VOTES_ACCEPTED, VOTES_APPLIED, VOTES_REJECTED, VOTES_SETTLED},
    port::{Group, ReadOutcome, VoteStream},
    record::batch::{self, RecordBody},
};
use votestream_e2e::{
    aws,
    http_faults::{FaultyClient, HttpFault},
    stack::{Stack, TEST_BOUNDS},
    voters::{Election, PATIENCE, Voters, wait_until},
};
use votestream_process::terminal::selected_logs;
use votestream_testkit::audit::Answer;

/// Number of votes after which the faults may end, if each kind of fault has happened and each kind of answer was
/// given.
const VOTES: usize = 1_500;
/// Number of polls after which this must have happened.
const POLLS_MAX: usize = 12;
/// Stacks of all services, as if on separate hosts.
const STACKS: u64 = 2;
const SHARDS: u32 = 2;
const CLIENTS: u64 = 8;
/// Within this time a lease is renewed several times, and calls take at most a second.
const FAILOVER: Duration = Duration::from_secs(3);

fn sum(counter: &dyn ReadCounter) -> u64 {
    let mut sum = 0;
    counter.read(&mut |_, value| sum += value);
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_path_is_exact_under_faults() {
    // If the test fails it shows the log; `RUST_LOG` sets the level.
    let log = tracing_subscriber::fmt::layer().with_test_writer().with_filter(selected_logs(LevelFilter::ERROR));
    tracing_subscriber::registry().with(log).init();
    let seed = std::env::var("VOTESTREAM_FAULT_SEED").map_or(1, |seed| seed.parse().unwrap());
    let ((kinesis, _kinesis), (dynamodb, _dynamodb)) = tokio::join!(aws::kinesis(SHARDS), aws::dynamodb());
    let deployment = || Deployment { create_with_shards: Some(SHARDS), ..Deployment::new(aws::STREAM, "faults-") };
    let config = |http_client| AwsConfig {
        kinesis_endpoint: Some(kinesis.clone()),
        dynamodb_endpoint: Some(dynamodb.clone()),
        call_timeout: TEST_BOUNDS.answer_deadline / 2,
        http_client,
        ..AwsConfig::stand_in()
    };
    let election = Arc::<Election>::default();
    let (mut clients, mut stacks) = (Vec::new(), Vec::new());
    for host in 0..STACKS {
        let client = FaultyClient::new(seed * 100 + host);
        let shared = aws_smithy_runtime_api::client::http::SharedHttpClient::new(client.clone());
        let ports = connect(&config(Some(shared)), deployment()).await.unwrap();
        let stack = Stack::start_with(ports, TEST_BOUNDS, |config| {
            for group in [&mut config.persist.group, &mut config.tally.group] {
                (group.failover, group.renew_every) = (FAILOVER, FAILOVER / 6);
            }
        });
        let stack = stack.await;
        election.places.ingest.lock().push(Some(stack.ingest));
        election.places.results.lock().push(Some(stack.results));
        stacks.push(stack);
        clients.push(client);
    }
    let count = |fault| clients.iter().map(|client| client.count(fault)).sum::<u64>();

    clients.iter().for_each(|client| client.arm(true));
    election.open("poll-0").await.unwrap();
    let voters = Voters::start(&election, CLIENTS, seed);
    let (mut poll, mut start) = (0, Instant::now());
    let is_given = |answer| election.log.count(answer) > 0;
    let all_seen = || {
        election.log.len() >= VOTES
            && HttpFault::ALL.iter().all(|fault| count(*fault) > 0)
            && [Answer::Durable, Answer::Rejected, Answer::Unknown].into_iter().all(is_given)
    };
    while !all_seen() {
        assert!(poll < POLLS_MAX, "a kind of fault or answer is never seen");
        assert!(start.elapsed() < PATIENCE, "too slow: {} votes", election.log.len());
        for stack in &mut stacks {
            stack.check().await;
        }
        if election.is_worn() {
            election.open(&format!("poll-{}", poll + 1)).await.unwrap();
            election.close(&format!("poll-{poll}")).await.unwrap();
            (poll, start) = (poll + 1, Instant::now());
        }
        sleep(Duration::from_millis(50)).await;
    }
    voters.finish().await.unwrap();
    election.close(&format!("poll-{poll}")).await.unwrap();
    clients.iter().for_each(|client| client.arm(false));
    for fault in HttpFault::ALL {
        println!("{:>7} {fault:?}", count(fault));
    }
    let log = &election.log;
    let [durable, rejected, unknown] =
        [Answer::Durable, Answer::Rejected, Answer::Unknown].map(|answer| log.count(answer));
    println!("{} votes: {durable} durable, {rejected} rejected, {unknown} unknown", log.len());
    election.verdict().await.unwrap_or_else(|reason| panic!("{reason} (seed {seed})"));

    // The answers to clients must agree with the metrics. A single vote that is refused because the stream is not
    // available is `Unknown` to its client here, because a broken connection looks the same.
    let settled = [0, 1, 2].map(|outcome| VOTES_SETTLED.get(outcome));
    assert_eq!(settled.iter().sum::<u64>(), sum(&VOTES_ACCEPTED), "what was accepted is settled");
    assert_eq!(settled[0], durable, "acknowledged votes");
    assert_eq!(sum(&VOTES_REJECTED) + settled[1] + settled[2], rejected + unknown, "refused or unknown votes");
    assert!(sum(&VOTES_REJECTED) + settled[1] >= rejected, "refused votes");

    // Each group has applied every vote in the stream, or discarded it for a reason.
    let stored = votes_in_stream(&kinesis).await;
    let applied = [Group::Persist, Group::Tally].map(|group| VOTES_APPLIED.get(group as usize));
    let caught_up = || {
        let discarded: u64 = Discard::ALL.iter().map(|reason| discarded_total(*reason)).sum();
        sum(&VOTES_APPLIED) + discarded >= 2 * stored
    };
    wait_until("both groups have dealt with every stored vote", caught_up).await.unwrap();
    let submitted = election.submitted().await.unwrap();
    let discarded: Vec<_> =
        Discard::ALL.iter().map(|reason| (reason.as_str(), discarded_total(*reason))).filter(|(_, n)| *n > 0).collect();
    println!("{stored} stored votes, {submitted} submitted, {applied:?} applied, discarded: {discarded:?}");
    let dropped = stored - submitted;
    assert!(dropped > 0, "the faults doubled no record");
    // By both groups. A window that is applied again counts again.
    assert!(discarded.iter().map(|(_, votes)| votes).sum::<u64>() >= 2 * dropped, "{dropped} votes were dropped");
    for stack in stacks {
        stack.stop().await;
    }
}

/// Number of votes in the records of the stream, copies included.
async fn votes_in_stream(endpoint: &str) -> u64 {
    let clients = aws::kinesis_clients(endpoint).await;
    let config = votestream_aws::kinesis::KinesisConfig::new(aws::STREAM);
    let stream = votestream_aws::kinesis::Kinesis::connect(&clients, config).await.unwrap();
    let mut votes = 0;
    for shard in stream.list_shards().await.unwrap() {
        let mut reader = stream.reader(Group::Persist, &shard.id, SequenceNumber::ZERO).await.unwrap();
        loop {
            let ReadOutcome::Records(records) = reader.next().await.unwrap() else { break };
            if records.is_empty() {
                break;
            }
            for record in records {
                if let RecordBody::Batch(batch) = batch::decode(&record.data).unwrap() {
                    votes += batch.len() as u64;
                }
            }
        }
    }
    votes
}
