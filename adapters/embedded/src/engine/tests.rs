//! Starts on directories that are incomplete, unfinished, or made of parts that do not fit together.

use std::fs;

use bytes::Bytes;
use votestream_core::{
    HashRange, Poll, PollId, PollOption, PollSource, SequenceNumber,
    port::{Group, Progress, ShardRow, Span, WriteOutcome},
};

use super::*;

fn options() -> EmbeddedOptions {
    EmbeddedOptions { shards: 1, ..EmbeddedOptions::default() }
}

fn open(dir: &Path) -> EmbeddedEngine {
    EmbeddedEngine::open(dir, options()).unwrap()
}

fn refusal(dir: &Path) -> String {
    EmbeddedEngine::open(dir, options()).err().expect("it opened").to_string()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() { copy(&entry.path(), &to) } else { drop(fs::copy(entry.path(), to)) }
    }
}

/// A new directory with the log of one directory and the store of another.
fn joined(log: &Path, store: &Path) -> tempfile::TempDir {
    let joined = tempfile::tempdir().unwrap();
    fs::copy(log.join("format"), joined.path().join("format")).unwrap();
    copy(&log.join("log"), &joined.path().join("log"));
    copy(&store.join("store"), &joined.path().join("store"));
    joined
}

fn snapshot(dir: &Path) -> tempfile::TempDir {
    let snapshot = tempfile::tempdir().unwrap();
    copy(dir, snapshot.path());
    snapshot
}

async fn create_poll(engine: &EmbeddedEngine, id: &str) {
    let options = vec![PollOption { id: "a".into(), title: String::new() }];
    let id = PollId::new(id).unwrap();
    let poll = Poll::new(id, String::new(), options, Timestamp(0), Timestamp(1), PollSource::Ingest, 1).unwrap();
    engine.ports().polls.create(&poll).await.unwrap();
}

async fn put(engine: &EmbeddedEngine) -> SequenceNumber {
    engine.ports().stream.put(0, Bytes::from_static(b"x")).await.unwrap().sequence
}

/// Lets a group process everything up to a record.
async fn process(engine: &EmbeddedEngine, from: SequenceNumber, to: SequenceNumber) {
    let ports = engine.ports();
    let shard = ports.stream.list_shards().await.unwrap()[0].id.clone();
    if from == SequenceNumber::ZERO {
        let row = ShardRow::new(shard.clone(), HashRange::ALL, Vec::new());
        ports.leases.create(Group::Persist, &row).await.unwrap();
    }
    let progress = Progress { checkpoint: to, window_end: to, ..Progress::default() };
    let written =
        ports.leases.write_progress(Group::Persist, &shard, 0, Span::committed(from), &progress).await.unwrap();
    assert_eq!(written, WriteOutcome::Stored);
}

#[tokio::test]
async fn a_part_that_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    put(&open(dir.path())).await;
    for half in ["log", "store"] {
        let part = snapshot(dir.path());
        fs::remove_dir_all(part.path().join(half)).unwrap();
        let message = refusal(part.path());
        assert!(message.contains(half) && message.contains("missing") && message.contains("backup"), "{message}");
        fs::create_dir(part.path().join(half)).unwrap();
        assert!(refusal(part.path()).contains("incomplete"), "an empty {half}");
        fs::remove_file(part.path().join("format")).unwrap();
        assert!(refusal(part.path()).contains("format"));
    }
    open(dir.path());
}

#[tokio::test]
async fn halves_that_do_not_fit_are_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    put(&open(other.path())).await;
    let engine = open(dir.path());
    create_poll(&engine, "p").await;
    let first = put(&engine).await;
    process(&engine, SequenceNumber::ZERO, first).await;
    engine.flush().unwrap();
    let early = snapshot(dir.path());
    let second = put(&engine).await;
    process(&engine, first, second).await;
    create_poll(&engine, "q").await;
    put(&engine).await;
    engine.flush().unwrap();
    let late = snapshot(dir.path());
    engine.close();
    for copy in [&early, &late] {
        open(copy.path());
    }

    let message = refusal(joined(dir.path(), other.path()).path());
    assert!(message.contains("another data directory") && message.contains("store"), "{message}");
    let message = refusal(joined(other.path(), dir.path()).path());
    assert!(message.contains("another data directory"), "{message}");
    let message = refusal(joined(early.path(), late.path()).path());
    assert!(message.contains("different starts"), "both copies went on: {message}");
}

#[tokio::test]
async fn halves_of_one_life_are_of_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    create_poll(&engine, "p").await;
    let first = put(&engine).await;
    process(&engine, SequenceNumber::ZERO, first).await;
    engine.flush().unwrap();
    let early = snapshot(dir.path());
    let second = put(&engine).await;
    let middle = snapshot(dir.path());
    process(&engine, first, second).await;
    engine.flush().unwrap();
    let late = snapshot(dir.path());
    create_poll(&engine, "q").await;
    put(&engine).await;
    let last = snapshot(dir.path());
    engine.close();

    let message = refusal(joined(early.path(), late.path()).path());
    assert!(message.contains("the log is older") && message.contains("record 2"), "{message}");
    let message = refusal(joined(last.path(), late.path()).path());
    assert!(message.contains("the store is older") && message.contains("polls"), "{message}");
    // The records after its checkpoints are processed once more.
    open(joined(middle.path(), early.path()).path());
    open(joined(late.path(), early.path()).path());
    open(joined(middle.path(), late.path()).path());
}

#[tokio::test]
async fn halves_of_two_lives_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut lives = Vec::new();
    for _ in 0..3 {
        let engine = open(dir.path());
        put(&engine).await;
        engine.close();
        lives.push(snapshot(dir.path()));
    }
    for (log, store) in [(0, 1), (0, 2), (1, 0), (2, 0), (1, 2)] {
        let message = refusal(joined(lives[log].path(), lives[store].path()).path());
        let expected = if log > store && log - store == 1 { "the store is older" } else { "different starts" };
        assert!(message.contains(expected), "log {log}, store {store}: {message}");
    }
    // The process ended after it had told the log and before it told the store. So did the next process.
    let dir = snapshot(lives[1].path());
    let store = snapshot(lives[1].path());
    for _ in 0..2 {
        open(dir.path()).close();
        fs::remove_dir_all(dir.path().join("store")).unwrap();
        copy(&store.path().join("store"), &dir.path().join("store"));
    }
    open(dir.path());
}

#[test]
fn an_unfinished_creation_is_begun_again() {
    let whole = tempfile::tempdir().unwrap();
    open(whole.path()).close();
    // What a creation has made before it is finished: every combination of parts.
    for kept in 0..8u32 {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("creating"), "").unwrap();
        for (at, part) in ["log", "store"].into_iter().enumerate().filter(|(at, _)| kept >> at & 1 == 1) {
            copy(&whole.path().join(part), &dir.path().join(part));
            if at == 1 && kept & 4 == 4 {
                fs::remove_file(dir.path().join("store/version")).unwrap();
            }
        }
        open(dir.path()).close();
        assert!(!dir.path().join("creating").exists());
        open(dir.path()).close();
    }
    // The creation was finished, but the file `creating` still exists.
    let dir = snapshot(whole.path());
    fs::write(dir.path().join("creating"), "").unwrap();
    open(dir.path()).close();
    assert!(!dir.path().join("creating").exists());
}

#[test]
fn an_unfinished_creation_of_an_earlier_version_is_begun_again() {
    let whole = tempfile::tempdir().unwrap();
    open(whole.path()).close();
    let text = fs::read_to_string(whole.path().join("format")).unwrap();
    let text = text.lines().take(2).collect::<Vec<_>>().join("\n").replace("embedded 4", "embedded 3");
    // Stages: no store; its first files; an empty file `version`; a store without a log; a store and the beginning of a
    // log.
    for stage in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("format"), format!("{text}\n")).unwrap();
        let store = dir.path().join("store");
        match stage {
            0 => {}
            1 | 2 => {
                fs::create_dir(&store).unwrap();
                fs::write(store.join("lock"), "").unwrap();
                fs::write(store.join("0.jnl"), [0; 100]).unwrap();
                if stage == 2 {
                    fs::write(store.join("version"), "").unwrap();
                }
            }
            _ => {
                copy(&whole.path().join("store"), &store);
                if stage == 4 {
                    fs::create_dir(dir.path().join("log")).unwrap();
                    fs::write(dir.path().join("log/0.jnl"), [0; 100]).unwrap();
                }
            }
        }
        open(dir.path()).close();
        open(dir.path()).close();
    }
}
