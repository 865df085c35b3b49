//! Votes of other producers, which put them into the stream without the ingest service, as plain JSON and as KPL
//! aggregates.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use bytes::Bytes;
use md5::{Digest, Md5};
use prost::Message;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;
use votestream_core::{
    HashRange, PollId, Timestamp,
    consume::window::{Discard, discarded_total},
    port::Ports,
    record::{
        batch::{BatchId, OpenBatch, encode},
        foreign::{AGGREGATE_MAGIC, key_hash},
    },
    vote_hash,
};
use votestream_e2e::stack::{Stack, TEST_BOUNDS};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_proto::v1::{
    CreatePollRequest, GetInterimResultsRequest, GetPollRequest, PollOption, PollSource, PollState, RecountRequest,
};

/// The message of an aggregate, as the Kinesis Producer Library defines it.
#[derive(Clone, PartialEq, Message)]
struct AggregatedRecord {
    #[prost(string, repeated, tag = "1")]
    partition_key_table: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    records: Vec<UserRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct UserRecord {
    #[prost(uint64, required, tag = "1")]
    partition_key_index: u64,
    #[prost(bytes = "vec", required, tag = "3")]
    data: Vec<u8>,
}

fn aggregate(votes: &[(String, &str)]) -> Bytes {
    let message = AggregatedRecord {
        partition_key_table: votes.iter().map(|(user, _)| user.clone()).collect(),
        records: (0..)
            .zip(votes)
            .map(|(index, (user, option))| UserRecord { partition_key_index: index, data: vote("s", user, option) })
            .collect(),
    };
    let message = message.encode_to_vec();
    [&AGGREGATE_MAGIC[..], &message, &Md5::digest(&message)].concat().into()
}

fn vote(poll: &str, user: &str, option: &str) -> Vec<u8> {
    json!({"cognitoid": user, "voteid": poll, "option": option}).to_string().into_bytes()
}

async fn open_stream_poll(stack: &Stack, id: &str, options: &[&str]) {
    let request = CreatePollRequest {
        poll_id: id.into(),
        options: options.iter().map(|id| PollOption { option_id: (*id).into(), title: String::new() }).collect(),
        closes_at: Some((std::time::SystemTime::now() + Duration::from_secs(3_600)).into()),
        source: PollSource::Stream.into(),
        ..CreatePollRequest::default()
    };
    stack.polls().await.create_poll(request).await.unwrap();
    let mut polls = stack.polls().await;
    let open = async {
        loop {
            let poll = polls.get_poll(GetPollRequest { poll_id: id.into() }).await.unwrap().into_inner().poll.unwrap();
            if poll.state() == PollState::Open {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), open).await.expect("the poll never opened");
}

async fn shard_of(ports: &Ports, hash: u128) -> HashRange {
    let shards = ports.stream.list_shards().await.unwrap();
    shards.into_iter().find(|shard| shard.open && shard.range.contains(hash)).unwrap().range
}

#[tokio::test(flavor = "multi_thread")]
async fn votes_of_other_producers_are_counted_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { bounds: TEST_BOUNDS, shards: 4, ..EmbeddedOptions::default() };
    let opened = EmbeddedEngine::open(dir.path(), options).unwrap();
    let ports = opened.ports();
    let stack = Stack::start(opened.ports(), TEST_BOUNDS).await;
    stack.create_poll("i", ["a", "b"]).await;
    open_stream_poll(&stack, "s", &["a", "b"]).await;
    let before = Discard::ALL.map(discarded_total);

    let mut rng = StdRng::seed_from_u64(3);
    let mut last = HashMap::<String, &str>::new();
    let mut submitted = 0u64;
    for _ in 0..60 {
        let mut votes = Vec::new();
        for _ in 0..rng.random_range(1..12) {
            votes.push((format!("user-{}", rng.random_range(0..50)), ["a", "b"][rng.random_range(0..2)]));
        }
        if rng.random_bool(0.5) {
            // One record per vote, in the shard of its partition key.
            for (user, option) in &votes {
                ports.stream.put(key_hash(user.as_bytes()), vote("s", user, option).into()).await.unwrap();
                last.insert(user.clone(), option);
                submitted += 1;
            }
            continue;
        }
        // An aggregate goes to the shard of its first vote. The producer sends votes again that do not belong there.
        while let Some((user, _)) = votes.first() {
            let hash = key_hash(user.as_bytes());
            let range = shard_of(&ports, hash).await;
            ports.stream.put(hash, aggregate(&votes)).await.unwrap();
            let (stored, left): (Vec<_>, Vec<_>) =
                votes.into_iter().partition(|(user, _)| range.contains(key_hash(user.as_bytes())));
            submitted += stored.len() as u64;
            last.extend(stored);
            votes = left;
        }
    }

    // Votes in the wrong shard, and nonsense, are only counted as discarded.
    ports.stream.put(0, vote("i", "u", "a").into()).await.unwrap();
    let mut open = OpenBatch::default();
    let (poll, hash) = (PollId::new("s").unwrap(), vote_hash("s", "user-1"));
    let entry = open.entry(&poll, &"a".into());
    let now = ports.clock.now();
    open.push(entry, "user-1", hash, Timestamp(now.0));
    let batch = open.to_batch(BatchId { producer: 1, number: 1 }, HashRange::ALL.into(), String::new());
    ports.stream.put(hash, encode(&batch)).await.unwrap();
    let mut damaged = aggregate(&[("user-1".into(), "a")]).to_vec();
    damaged[20] ^= 1;
    for record in [damaged, b"{}".to_vec(), vec![0xff; 100], b"VSB".to_vec()] {
        ports.stream.put(0, record.into()).await.unwrap();
    }

    let result = stack.finish("s").await;
    let found: BTreeMap<_, _> = result.options.iter().map(|option| (&*option.option_id, option.votes)).collect();
    let mut model = BTreeMap::from([("a", 0), ("b", 0)]);
    last.values().for_each(|option| *model.get_mut(option).unwrap() += 1);
    assert_eq!(found, model);
    let mut results = stack.results().await;
    let interim = GetInterimResultsRequest { poll_id: "s".into() };
    let interim = results.get_interim_results(interim).await.unwrap().into_inner();
    assert_eq!((interim.total_submitted, interim.total_counted), (submitted, last.len() as u64));
    assert!(results.recount(RecountRequest { poll_id: "s".into() }).await.unwrap().into_inner().matches);
    let untouched = GetInterimResultsRequest { poll_id: "i".into() };
    assert_eq!(results.get_interim_results(untouched).await.unwrap().into_inner().total_submitted, 0);

    // Both groups count them.
    let discarded = |reason: Discard| discarded_total(reason) - before[reason as usize];
    assert_eq!(discarded(Discard::WrongSource), 4);
    assert_eq!(discarded(Discard::Unreadable), 8);
    assert!(discarded(Discard::WrongShard) > 0);
    stack.stop().await;
}
