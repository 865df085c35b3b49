//! Other producers: programs that put votes into the stream themselves, as plain JSON and as aggregates. One of them
//! puts records of our own format where they do not belong.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use rand::RngExt;
use tokio::time::{Instant, sleep};
use votestream_core::{
    HashRange, UserId,
    record::{
        batch::{BatchId, OpenBatch},
        foreign::{AGGREGATE_MAGIC, key_hash},
    },
    vote_hash,
};

use super::{
    clients::{OpenPolls, choose},
    world::{Fault, ForeignVote, World},
};

/// Users of other producers.
const USERS: u32 = 5;
/// Longest pause between two records.
const PAUSE_MS_MAX: u64 = 250;

/// Puts records until `until`. It does not wait for answers: what is in the stream counts.
pub(super) async fn produce(world: Arc<World>, polls: OpenPolls, streams: OpenPolls, until: Instant) {
    while Instant::now() < until {
        sleep(Duration::from_millis(world.draw(|rng| rng.random_range(0..PAUSE_MS_MAX)))).await;
        let record = match world.draw(|rng| rng.random_range(0..10)) {
            0..5 => plain(&world, &streams),
            5..8 => aggregate(&world, &streams),
            8 => plain(&world, &polls),
            _ => ours(&world, &streams),
        };
        if let Some((hash, data)) = record {
            let world = world.clone();
            tokio::spawn(async move { world.put(hash, Duration::ZERO, data).await.is_ok() });
        }
    }
}

fn vote(world: &World, polls: &OpenPolls) -> Option<ForeignVote> {
    let (poll, option) = choose(world, polls)?;
    let user = format!("viewer-{}", world.draw(|rng| rng.random_range(0..USERS)));
    Some(ForeignVote { poll, user, option, hash: None })
}

fn json(ForeignVote { poll, user, option, .. }: &ForeignVote) -> Vec<u8> {
    format!(r#"{{"cognitoid":"{user}","voteid":"{poll}","option":"{option}"}}"#).into_bytes()
}

/// One vote, routed by its user.
fn plain(world: &World, polls: &OpenPolls) -> Option<(u128, Bytes)> {
    let vote = vote(world, polls)?;
    let (hash, data) = (key_hash(vote.user.as_bytes()), Bytes::from(json(&vote)));
    world.fault(Fault::Foreign);
    world.note(|| format!("another producer puts {vote:?}"));
    world.foreign.lock().insert(data.clone(), vec![vote]);
    Some((hash, data))
}

/// Several votes in one record. The record goes to the shard of its first user; the other users may belong elsewhere.
fn aggregate(world: &World, polls: &OpenPolls) -> Option<(u128, Bytes)> {
    let count = world.draw(|rng| rng.random_range(1..5));
    let votes: Vec<ForeignVote> = (0..count)
        .filter_map(|_| vote(world, polls))
        .map(|vote| ForeignVote { hash: Some(key_hash(vote.user.as_bytes())), ..vote })
        .collect();
    let mut message = Vec::new();
    votes.iter().for_each(|vote| field(1, vote.user.as_bytes(), &mut message));
    for (index, vote) in votes.iter().enumerate() {
        // Field 1 is a number: the index of the partition key.
        let mut part = vec![1 << 3, index as u8];
        field(3, &json(vote), &mut part);
        field(3, &part, &mut message);
    }
    let digest = key_hash(&message).to_be_bytes();
    let data = Bytes::from([&AGGREGATE_MAGIC[..], &message, &digest].concat());
    let hash = votes.first()?.hash?;
    world.fault(Fault::Foreign);
    world.note(|| format!("another producer puts {votes:?}"));
    world.foreign.lock().insert(data.clone(), votes);
    Some((hash, data))
}

/// Appends a bytes field to a protobuf message.
fn field(number: u8, bytes: &[u8], message: &mut Vec<u8>) {
    message.push(number << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        message.push(length as u8 | 0x80);
        length >>= 7;
    }
    message.push(length as u8);
    message.extend_from_slice(bytes);
}

/// A record of our format for a poll that does not accept such votes.
fn ours(world: &World, polls: &OpenPolls) -> Option<(u128, Bytes)> {
    let ForeignVote { poll, user, option, .. } = vote(world, polls)?;
    let (hash, mut batch) = (vote_hash(poll.as_str(), &user), OpenBatch::default());
    let entry = batch.entry(&poll, &option.to_string().into());
    batch.push(entry, UserId::of(&user), hash, world.now());
    let id = BatchId { producer: world.draw(|rng| rng.random()), number: 1 };
    world.fault(Fault::WrongSource);
    Some((hash, batch.seal(id, &HashRange::ALL.into(), "")))
}
