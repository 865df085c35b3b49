//! Tests the vote stream on Kinesis with a stand-in in this process: the contract, throttling, resharding, and faults
//! that readers must survive.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use votestream_aws::{
    client::{AwsConfig, Clients},
    kinesis::{Kinesis, KinesisConfig, Reading},
};
use votestream_core::{
    SequenceNumber,
    port::{Effect, Group, Ports, ReadOutcome, VoteStream},
};
use votestream_e2e::{
    aws::{STREAM, kinesis, kinesis_clients, kinesis_with},
    reshard::{self, PATIENCE, put, read},
};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_testkit::contract;

fn polling() -> Reading {
    Reading::Polling { pause: Duration::from_millis(5) }
}

fn fan_out() -> Reading {
    Reading::EnhancedFanOut { consumer: "votestream".into(), resubscribe_after: Duration::from_millis(20) }
}

async fn open(endpoint: &str, reading: Reading) -> Arc<Kinesis> {
    let config = KinesisConfig { reading, ..KinesisConfig::new(STREAM) };
    Arc::new(Kinesis::connect(&kinesis_clients(endpoint).await, config).await.unwrap())
}

async fn contract_holds(reading: Reading) {
    let (endpoint, _server) = kinesis(3).await;
    let dir = tempfile::tempdir().unwrap();
    let engine = EmbeddedEngine::open(dir.path(), EmbeddedOptions::default()).unwrap();
    contract::check_stream(Ports { stream: open(&endpoint, reading).await, ..engine.ports() }).await;
    engine.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn contract_by_polling() {
    contract_holds(polling()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contract_by_fan_out() {
    contract_holds(fan_out()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_writer_is_not_throttled_at_full_speed() {
    let (endpoint, _server, _) = kinesis_with(1, |options| options.enforce_limits = true).await;
    let stream = open(&endpoint, polling()).await;
    let start = Instant::now();
    let mut lanes = JoinSet::new();
    for lane in 0..8u8 {
        let stream = stream.clone();
        lanes.spawn(async move {
            let mut throttled = 0;
            for _ in 0..6 {
                match stream.put(u128::from(lane), vec![lane; 64 << 10].into()).await {
                    Ok(_) => {}
                    // On a slow machine a record may be held back too long.
                    Err(error) => throttled += u32::from(error.message.contains("Exceeded")),
                }
            }
            throttled
        });
    }
    let throttled: u32 = lanes.join_all().await.iter().sum();
    assert_eq!(throttled, 0, "48 records at the pace of the shard");
    assert!(start.elapsed() >= Duration::from_millis(1_900), "3 MiB take a shard more than two seconds");
}

#[tokio::test(flavor = "multi_thread")]
async fn throttled_records_are_answered_one_by_one_and_stored_once() {
    let (endpoint, _server, _) = kinesis_with(2, |options| options.enforce_limits = true).await;
    // Four processes that each use the whole rate: more than the shards accept.
    let mut lanes = JoinSet::new();
    for lane in 0..4u8 {
        let stream = open(&endpoint, polling()).await;
        lanes.spawn(async move {
            let (mut sequences, mut refused) = (Vec::new(), 0);
            for at in 0..6u8 {
                let hash = if lane == 0 { u128::MAX } else { 0 };
                let data = [&[lane, at][..], &[0; 100_000]].concat();
                let (stored, times) = put(&stream, hash, data.into()).await;
                sequences.push((stored.shard, stored.sequence));
                refused += times;
            }
            (lane, sequences, refused)
        });
    }
    let lanes = timeout(PATIENCE, lanes.join_all()).await.expect("everybody gets through");
    let refused = |wanted: u8| lanes.iter().find(|(lane, ..)| *lane == wanted).unwrap().2;
    assert!((1..4).map(refused).sum::<u32>() > 0, "three writers were too many for a shard");
    assert_eq!(refused(0), 0, "the other shard had room");

    let stream = open(&endpoint, polling()).await;
    let mut found = BTreeMap::new();
    for shard in stream.list_shards().await.unwrap() {
        let mut reader = stream.reader(Group::Tally, &shard.id, SequenceNumber::ZERO).await.unwrap();
        let count = if shard.range.start == 0 { 18 } else { 6 };
        for record in read(&mut *reader, count).await.0 {
            let twice = found.insert((record.data[0], record.data[1]), (shard.id.clone(), record.sequence));
            assert!(twice.is_none(), "stored twice");
        }
        assert_eq!(reader.next().await.unwrap(), ReadOutcome::Records(vec![]), "what was refused is not there");
    }
    for (lane, sequences, _) in lanes {
        for (at, stored) in sequences.into_iter().enumerate() {
            assert_eq!(found.remove(&(lane, at as u8)), Some(stored), "stored where the answer said");
        }
    }
}

async fn resharding_loses_nothing(reading: Reading) {
    let (endpoint, _server) = kinesis(2).await;
    reshard::check(open(&endpoint, reading).await, &kinesis_clients(&endpoint).await, STREAM, 150).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resharding_by_polling() {
    resharding_loses_nothing(polling()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resharding_by_fan_out() {
    resharding_loses_nothing(fan_out()).await;
}

/// Puts numbers while a reader reads them, whose iterator or subscription is taken away again and again.
async fn reads_on(stream: Arc<Kinesis>, count: u32, pause: Duration) {
    let shard = stream.list_shards().await.unwrap().remove(0).id;
    let mut reader = stream.reader(Group::Persist, &shard, SequenceNumber::ZERO).await.unwrap();
    let writer = tokio::spawn(async move {
        for number in 0..count {
            put(&stream, 0, number.to_be_bytes().to_vec().into()).await;
            sleep(pause).await;
        }
    });
    let (records, _) = read(&mut *reader, count as usize).await;
    let numbers: Vec<_> =
        records.iter().map(|record| u32::from_be_bytes(record.data[..].try_into().unwrap())).collect();
    assert_eq!(numbers, (0..count).collect::<Vec<_>>(), "each record once, in order");
    writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_survives_expired_iterators() {
    // An iterator expires if it is not used within a second, and the reader takes longer.
    let (endpoint, _server, _) = kinesis_with(1, |options| options.iterator_ttl_seconds = 1).await;
    let stream = open(&endpoint, polling()).await;
    let shard = stream.list_shards().await.unwrap().remove(0).id;
    let mut reader = stream.reader(Group::Persist, &shard, SequenceNumber::ZERO).await.unwrap();
    for round in 0..3u8 {
        put(&stream, 0, vec![round].into()).await;
        let (records, _) = read(&mut *reader, 1).await;
        assert_eq!(records.iter().map(|record| record.data[0]).collect::<Vec<_>>(), [round]);
        sleep(Duration::from_millis(1_200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_survives_the_end_of_subscriptions() {
    let (endpoint, _server, _) = kinesis_with(1, |options| options.subscribe_to_shard_session_ms = 250).await;
    reads_on(open(&endpoint, fan_out()).await, 60, Duration::from_millis(25)).await;
}

async fn a_trimmed_start_is_expired(reading: Reading) {
    let (endpoint, _server, store) = kinesis_with(1, |_| ()).await;
    let stream = open(&endpoint, reading).await;
    let mut stored = Vec::new();
    for number in 0..4u8 {
        stored.push(put(&stream, 0, vec![number].into()).await.0);
    }
    let shard = stored[0].shard.clone();
    let trim = |sequence: SequenceNumber| {
        let (store, key) = (store.clone(), format!("00000000/{sequence}"));
        async move { store.delete_record_keys(STREAM, &[key]).await }
    };
    trim(stored[0].sequence).await;
    let mut reader = stream.reader(Group::Tally, &shard, stored[1].sequence).await.unwrap();
    assert_eq!(read(&mut *reader, 2).await.0.len(), 2, "the starting point is still there");
    trim(stored[1].sequence).await;
    for after in [0, 1] {
        let mut reader = stream.reader(Group::Tally, &shard, stored[after].sequence).await.unwrap();
        let outcome = timeout(PATIENCE, async {
            loop {
                match reader.next().await.unwrap() {
                    ReadOutcome::Records(records) => assert!(records.is_empty(), "records were skipped"),
                    end @ (ReadOutcome::Expired | ReadOutcome::ShardEnd) => return end,
                }
            }
        });
        assert_eq!(outcome.await.unwrap(), ReadOutcome::Expired);
    }
    // Nothing is left at all.
    trim(stored[2].sequence).await;
    trim(stored[3].sequence).await;
    let mut reader = stream.reader(Group::Persist, &shard, stored[2].sequence).await.unwrap();
    let outcome = timeout(PATIENCE, async {
        loop {
            if let outcome @ (ReadOutcome::Expired | ReadOutcome::ShardEnd) = reader.next().await.unwrap() {
                return outcome;
            }
        }
    });
    assert_eq!(outcome.await.unwrap(), ReadOutcome::Expired);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trimmed_start_is_expired_by_polling() {
    a_trimmed_start_is_expired(polling()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trimmed_start_is_expired_by_fan_out() {
    a_trimmed_start_is_expired(fan_out()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_happened() {
    let (endpoint, server) = kinesis(1).await;
    let clients = kinesis_clients(&endpoint).await;
    let error = Kinesis::connect(&clients, KinesisConfig::new("elsewhere")).await.err().unwrap();
    assert!(!error.retryable && error.message.contains("\"elsewhere\": there is no such stream"), "{error}");

    let stream = open(&endpoint, polling()).await;
    let error = stream.put(0, vec![0; (1 << 20) + 1].into()).await.unwrap_err();
    assert!(!error.retryable && error.effect == Effect::None, "{error}");

    drop(server);
    // An open connection may break before or after the request was sent. If no connection can be made, certainly
    // nothing was sent.
    timeout(PATIENCE, async {
        loop {
            let error = stream.put(0, vec![1].into()).await.unwrap_err();
            assert!(error.retryable, "{error}");
            if error.effect == Effect::None {
                return;
            }
        }
    })
    .await
    .expect("connecting is refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_come_leaves_the_outcome_unknown() {
    let (endpoint, _server) = kinesis(1).await;
    let stream = open(&endpoint, polling()).await;
    drop(stream);
    // It accepts connections but never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = AwsConfig {
        kinesis_endpoint: Some(format!("http://{}", silent.local_addr().unwrap())),
        call_timeout: Duration::from_millis(200),
        ..AwsConfig::stand_in()
    };
    let error = Kinesis::connect(&Clients::new(&config).await, KinesisConfig::new(STREAM)).await.err().unwrap();
    assert!(error.retryable && error.effect == Effect::Unknown, "{error}");
}
