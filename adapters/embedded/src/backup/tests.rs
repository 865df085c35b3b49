//! Makes copies under load, and starts an engine on each.

use std::{
    borrow::Cow,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use bytes::Bytes;
use tokio::sync::Semaphore;
use votestream_core::{
    Poll, PollId, PollOption, PollSource, Position, SequenceNumber, Timestamp,
    port::{Group, ReadOutcome, VoteWrite},
};

use super::*;
use crate::{EmbeddedEngine, EmbeddedOptions};

fn options() -> EmbeddedOptions {
    EmbeddedOptions { shards: 2, ..EmbeddedOptions::default() }
}

async fn records(engine: &EmbeddedEngine) -> u64 {
    let stream = engine.ports().stream;
    let mut found = 0;
    for shard in stream.list_shards().await.unwrap() {
        let mut reader = stream.reader(Group::Tally, &shard.id, SequenceNumber::ZERO).await.unwrap();
        loop {
            match reader.next().await.unwrap() {
                ReadOutcome::Records(records) if records.is_empty() => break,
                ReadOutcome::Records(records) => found += records.len() as u64,
                ReadOutcome::ShardEnd | ReadOutcome::Expired => break,
            }
        }
    }
    found
}

fn poll() -> Poll {
    let options = vec![PollOption { id: "a".into(), title: String::new() }];
    let id = PollId::new("p").unwrap();
    Poll::new(id, String::new(), options, Timestamp(0), Timestamp(1), PollSource::Ingest, 1).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_copy_has_everything_from_before_it_began_and_starts() {
    let dir = tempfile::tempdir().unwrap();
    let engine = EmbeddedEngine::open(dir.path(), options()).unwrap();
    engine.ports().polls.create(&poll()).await.unwrap();
    let (acknowledged, stored, stop) =
        (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut load = Vec::new();
    // Permits for the load, so that it is not faster than the copies: rounds of puts, and windows.
    let (puts, windows) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    for hash in [0, u128::MAX] {
        let (ports, acknowledged, stop) = (engine.ports(), acknowledged.clone(), stop.clone());
        let puts = puts.clone();
        load.push(tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                puts.acquire().await.unwrap().forget();
                ports.stream.put(hash, Bytes::from(vec![7; 3_000])).await.unwrap();
                acknowledged.fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    let (ports, votes, ended, rounds) = (engine.ports(), stored.clone(), stop.clone(), windows.clone());
    load.push(tokio::spawn(async move {
        let mut window = 0u64;
        while !ended.load(Ordering::SeqCst) {
            window += 1;
            rounds.acquire().await.unwrap().forget();
            let vote = |user: u64| VoteWrite {
                poll_id: Cow::Owned(poll().id),
                bucket: 0,
                user_id: format!("{window}-{user}").into(),
                option_id: "a".into(),
                position: Position { sequence: SequenceNumber::from_u64(window), index: user as u32 },
                accepted_at: Timestamp(0),
            };
            ports.votes.write(&(0..500).map(vote).collect::<Vec<_>>()).await.unwrap();
            votes.fetch_add(500, Ordering::SeqCst);
        }
    }));
    let copies = tempfile::tempdir().unwrap();
    for number in 0..5 {
        let wanted = acknowledged.load(Ordering::SeqCst) + 20;
        puts.add_permits(100);
        windows.add_permits(10);
        while acknowledged.load(Ordering::SeqCst) < wanted {
            tokio::task::yield_now().await;
        }
        let (before, votes) = (acknowledged.load(Ordering::SeqCst), stored.load(Ordering::SeqCst));
        let (backups, to) = (engine.backups(), copies.path().join(number.to_string()));
        let copying = to.clone();
        tokio::task::spawn_blocking(move || backups.copy(&copying)).await.unwrap().unwrap();
        let copy = EmbeddedEngine::open(&to, options()).unwrap();
        let (found, after) = (records(&copy).await, acknowledged.load(Ordering::SeqCst) + 2);
        assert!((before..=after).contains(&found), "{before} <= {found} <= {after}");
        let counted = copy.ports().votes.recount(&poll()).await.unwrap()[0];
        assert!(counted >= votes && counted.is_multiple_of(500), "{counted} of {votes}");
        copy.close();
    }
    stop.store(true, Ordering::SeqCst);
    puts.add_permits(1_000);
    windows.add_permits(1_000);
    for task in load {
        task.await.unwrap();
    }
    assert!(!dir.path().join(STAGING).exists());
}

#[tokio::test]
async fn a_copy_needs_a_place_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let engine = EmbeddedEngine::open(dir.path(), options()).unwrap();
    let backups = engine.backups();
    let taken = tempfile::tempdir().unwrap();
    backups.copy(taken.path()).unwrap();
    assert!(matches!(backups.copy(taken.path()), Err(BackupError::Taken(_))));
    assert!(matches!(backups.copy(&dir.path().join("copy")), Err(BackupError::Inside(_))));
    assert!(matches!(backups.copy(&taken.path().join("no/where")), Err(BackupError::Io { .. })));
    engine.close();
    let other = taken.path().join("closed");
    assert!(matches!(backups.copy(&other), Err(BackupError::Engine(_))));
    drop(backups);
    // What it left does not count as a copy.
    assert!(EmbeddedEngine::open(&other, options()).is_ok(), "it is empty");
    EmbeddedEngine::open(taken.path(), options()).unwrap();
}
