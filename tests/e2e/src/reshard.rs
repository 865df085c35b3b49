//! Resharding under load: shards of a Kinesis stream split and merge while lanes put. Nothing may be lost, doubled or
//! reordered.
//!
//! Owns the check, for stand-ins and for AWS. Must never rely on how soon an engine shows what it did: it waits for
//! conditions, with a limit.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use votestream_aws::{client::Clients, kinesis::Kinesis};
use votestream_core::{
    SequenceNumber, ShardId,
    port::{Effect, Group, ReadOutcome, Record, RecordReader, Shard, Stored, VoteStream},
};

/// Longest time that a step may take.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Pause between two reads of the shard list during resharding. AWS allows twenty per second.
const LOOK_PAUSE: Duration = Duration::from_millis(60);
/// Pause after a call that was refused for its rate.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);

/// Puts a record until it is stored. Returns how often it was refused. No failure here leaves the outcome unknown.
pub async fn put(stream: &Kinesis, hash: u128, data: Bytes) -> (Stored, u32) {
    let mut refused = 0;
    loop {
        match stream.put(hash, data.clone()).await {
            Ok(stored) => return (stored, refused),
            Err(error) => {
                assert!(error.retryable && error.effect == Effect::None, "{error}");
                refused += 1;
                sleep(REFUSED_PAUSE).await;
            }
        }
    }
}

/// Reads until this many records have come or the shard has ended.
pub async fn read(reader: &mut dyn RecordReader, count: usize) -> (Vec<Record>, bool) {
    let mut all = Vec::new();
    let reading = async {
        while all.len() < count {
            match reader.next().await {
                Ok(ReadOutcome::Records(records)) => all.extend(records),
                Ok(ReadOutcome::ShardEnd) => return true,
                Ok(ReadOutcome::Expired) => panic!("nothing has expired"),
                Err(error) => assert!(error.retryable, "{error}"),
            }
        }
        false
    };
    let ended = timeout(PATIENCE, reading).await.expect("the records that were put come");
    (all, ended)
}

async fn list(stream: &Kinesis) -> Vec<Shard> {
    let listed = async {
        loop {
            match stream.list_shards().await {
                Ok(shards) => return shards,
                Err(error) => assert!(error.retryable, "{error}"),
            }
            sleep(REFUSED_PAUSE).await;
        }
    };
    timeout(PATIENCE, listed).await.expect("the shards are listed")
}

async fn open_shards(stream: &Kinesis) -> Vec<Shard> {
    let mut open = list(stream).await;
    open.retain(|shard| shard.open);
    open.sort_by_key(|shard| shard.range.start);
    open
}

async fn active(clients: &Clients, stream: &str) {
    timeout(PATIENCE, async {
        loop {
            let summary = clients.kinesis.describe_stream_summary().stream_name(stream).send().await.unwrap();
            if summary.stream_description_summary.unwrap().stream_status.as_str() == "ACTIVE" {
                return;
            }
            sleep(LOOK_PAUSE).await;
        }
    })
    .await
    .expect("resharding ends");
}

fn lane_hash(lane: u8) -> u128 {
    (u128::MAX / 8) * u128::from(lane) + 12_345
}

/// Eight lanes put while shards split and merge: at least `records` each, and on until the last merge is over. The
/// stream `name` must be empty and have two shards.
pub async fn check(stream: Arc<Kinesis>, clients: &Clients, name: &str, records: u16) {
    let resharded = Arc::new(AtomicBool::new(false));
    let mut lanes = JoinSet::new();
    for lane in 0..8u8 {
        let (stream, resharded) = (stream.clone(), resharded.clone());
        lanes.spawn(async move {
            let (mut last, mut at) = (SequenceNumber::ZERO, 0);
            let mut known = BTreeSet::new();
            while at < records || !resharded.load(Ordering::Acquire) {
                let data = [&[lane][..], &at.to_be_bytes()].concat();
                let stored = put(&stream, lane_hash(lane), data.into()).await.0;
                assert!(stored.sequence > last, "a child's sequence numbers are larger than its parents'");
                last = stored.sequence;
                if known.insert(stored.shard.clone()) {
                    let named = list(&stream).await.into_iter().find(|shard| shard.id == stored.shard);
                    assert!(named.expect("it is listed").range.contains(lane_hash(lane)));
                }
                at = at.checked_add(1).expect("resharding ends in time");
                if at >= records {
                    sleep(LOOK_PAUSE).await;
                }
            }
            (lane, at)
        });
    }
    for round in 0..4 {
        let shards = open_shards(&stream).await;
        if round % 2 == 0 {
            let shard = &shards[round / 2];
            let middle = shard.range.start + (shard.range.end - shard.range.start) / 2;
            let split = clients.kinesis.split_shard().stream_name(name).shard_to_split(shard.id.as_str());
            split.new_starting_hash_key(middle.to_string()).send().await.unwrap();
        } else {
            let merge = clients.kinesis.merge_shards().stream_name(name).shard_to_merge(shards[0].id.as_str());
            merge.adjacent_shard_to_merge(shards[1].id.as_str()).send().await.unwrap();
        }
        active(clients, name).await;
    }
    resharded.store(true, Ordering::Release);
    let put = timeout(PATIENCE, lanes.join_all()).await.expect("the lanes get everything stored");

    // Read parents first, like the consumer groups.
    let shards = list(&stream).await;
    assert_eq!(shards.len(), 2 + 2 + 1 + 2 + 1);
    assert_eq!(shards.iter().filter(|shard| !shard.parents.is_empty()).count(), 6);
    let mut last = HashMap::<ShardId, SequenceNumber>::new();
    let mut next = [0u16; 8];
    let mut read_shards = BTreeSet::new();
    for shard in &shards {
        assert!(shard.parents.iter().all(|parent| read_shards.contains(parent)), "they are listed as they came");
        read_shards.insert(shard.id.clone());
        for record in read_shard(&stream, shard).await {
            let before = shard.parents.iter().chain([&shard.id]).filter_map(|shard| last.get(shard)).max();
            assert!(before.is_none_or(|before| *before < record.sequence));
            last.insert(shard.id.clone(), record.sequence);
            let (lane, at) = (record.data[0], u16::from_be_bytes([record.data[1], record.data[2]]));
            assert!(shard.range.contains(lane_hash(lane)), "a record lies in the shard that owns its hash");
            assert_eq!(at, next[usize::from(lane)], "each lane's records in their order, once");
            next[usize::from(lane)] += 1;
        }
    }
    for (lane, put) in put {
        assert_eq!(next[usize::from(lane)], put, "nothing was lost");
    }
}

/// Reads everything in a shard. If it is closed, reads up to its end.
async fn read_shard(stream: &Kinesis, shard: &Shard) -> Vec<Record> {
    let mut reader = stream.reader(Group::Persist, &shard.id, SequenceNumber::ZERO).await.unwrap();
    let mut records = Vec::new();
    let mut empty = 0;
    timeout(PATIENCE, async {
        while !shard.open || empty < 3 {
            match reader.next().await {
                Ok(ReadOutcome::Records(new)) => {
                    empty = if new.is_empty() { empty + 1 } else { 0 };
                    records.extend(new);
                }
                Ok(ReadOutcome::ShardEnd) => return assert!(!shard.open),
                Ok(ReadOutcome::Expired) => panic!("nothing has expired"),
                Err(error) => assert!(error.retryable, "{error}"),
            }
        }
    })
    .await
    .expect("a closed shard ends");
    if !shard.open {
        assert_eq!(reader.next().await.unwrap(), ReadOutcome::ShardEnd, "it stays ended");
        // After its last record there is only the end.
        if let Some(record) = records.last() {
            let mut reader = stream.reader(Group::Tally, &shard.id, record.sequence).await.unwrap();
            let (rest, ended) = read(&mut *reader, 1).await;
            assert!(rest.is_empty() && ended);
        }
    }
    records
}
