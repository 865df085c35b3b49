//! Failures that a group must survive, on a paused clock and engines in memory.

#![allow(clippy::disallowed_methods, reason = "tests read the clocks of their own")]

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use async_trait::async_trait;
use votestream_core::{
    HashRange, Poll, PollId, PollSource, Position, SequenceNumber, Timestamp,
    consume::{group::*, window::Window},
    observe::metrics,
    port::{Group, PollStore},
    record::batch::BatchId,
};
use votestream_testkit::memory::{Appliers, Memory};

const GROUP: Group = Group::Persist;

struct Worker {
    task: JoinHandle<Result<Drain, GroupError>>,
    shutdown: CancellationToken,
    gate: watch::Sender<bool>,
}

impl Worker {
    fn start(memory: &Memory, name: &str) -> Self {
        Self::start_gated(memory, name, true)
    }

    fn start_gated(memory: &Memory, name: &str, open: bool) -> Self {
        let (gate, receiver) = watch::channel(open);
        let shutdown = CancellationToken::new();
        let config = GroupConfig { worker_id: name.into(), ..GroupConfig::one_machine(GROUP) };
        let appliers = Arc::new(Appliers { memory: memory.clone(), gate: receiver, superseded: None });
        let task = tokio::spawn(run(config, memory.ports(), appliers, shutdown.clone()));
        Self { task, shutdown, gate }
    }

    async fn stop(self) {
        assert_eq!(self.drain().await, Drain::Complete);
    }

    async fn drain(self) -> Drain {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap()
    }
}

fn id(number: u64) -> BatchId {
    BatchId { producer: 7, number }
}

/// User ids. If there are enough of them, each shard gets some of their votes.
fn users(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("user {n}")).collect()
}

fn votes<'a>(users: &'a [String], option: &'a str) -> Vec<(&'a str, &'a str)> {
    users.iter().map(|user| (&**user, option)).collect()
}

fn owned(memory: &Memory, worker: &str) -> usize {
    memory.rows(GROUP).iter().filter(|row| row.lease.owner.as_deref() == Some(worker)).count()
}

fn assert_counts(memory: &Memory, expected: &[(&str, i64)]) {
    let expected = expected.iter().map(|&(option, count)| (option.into(), count)).collect();
    let (tallied, stored) = memory.counts("p");
    assert_eq!(tallied, expected);
    assert_eq!(stored, expected);
}

#[tokio::test(start_paused = true)]
async fn counts_last_votes_once_and_commits_and_releases_on_shutdown() {
    let memory = Memory::new(4);
    memory.add_poll("p", &["x", "y"]);
    let users = users(40);
    memory.vote(id(1), "p", &votes(&users, "x"), 1_000);
    memory.vote(id(2), "p", &votes(&users[..10], "y"), 1_001);
    // A second copy of the first batch.
    memory.vote(id(1), "p", &votes(&users, "x"), 1_002);
    let worker = Worker::start(&memory, "a");
    memory.until_committed(GROUP).await;
    assert_counts(&memory, &[("x", 30), ("y", 10)]);
    worker.stop().await;
    for row in memory.rows(GROUP) {
        assert_eq!(row.lease.owner, None);
        assert_eq!(row.progress.checkpoint, row.progress.window_end);
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_finishes_the_window_that_is_being_applied() {
    let memory = Memory::new(1);
    memory.add_poll("p", &["x"]);
    let users = users(5);
    memory.vote(id(1), "p", &votes(&users, "x"), 1_000);
    let worker = Worker::start_gated(&memory, "a", false);
    memory.until("votes are stored", |memory| memory.counts("p").1.len() == 1).await;
    worker.shutdown.cancel();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(memory.row(GROUP, "s0").unwrap().progress.checkpoint, SequenceNumber::ZERO);
    worker.gate.send_replace(true);
    worker.stop().await;
    let row = memory.row(GROUP, "s0").unwrap();
    assert_eq!((row.progress.checkpoint, row.lease.owner), (SequenceNumber::from_u64(1), None));
    assert_counts(&memory, &[("x", 5)]);
}

#[tokio::test(start_paused = true)]
async fn a_window_that_is_not_finished_in_time_is_no_complete_drain() {
    let memory = Memory::new(1);
    memory.add_poll("p", &["x"]);
    let users = users(5);
    memory.vote(id(1), "p", &votes(&users, "x"), 1_000);
    let worker = Worker::start_gated(&memory, "a", false);
    memory.until("votes are stored", |memory| memory.counts("p").1.len() == 1).await;
    let start = tokio::time::Instant::now();
    assert_eq!(worker.drain().await, Drain::Incomplete);
    assert_eq!(start.elapsed().as_secs(), GroupConfig::one_machine(GROUP).drain.as_secs());
    // The next owner finishes it, once the lease has expired.
    let next = Worker::start(&memory, "b");
    memory.until_committed(GROUP).await;
    assert_counts(&memory, &[("x", 5)]);
    next.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_crashed_window_is_applied_again_and_a_zombie_changes_nothing() {
    let memory = Memory::new(1);
    memory.add_poll("p", &["x", "y"]);
    let users = users(20);
    memory.vote(id(1), "p", &votes(&users, "x"), 1_000);
    let first = Worker::start(&memory, "a");
    memory.until_committed(GROUP).await;
    // The next window stops between its votes and its tallies; one of its batches is a second copy.
    first.gate.send_replace(false);
    memory.vote(id(2), "p", &votes(&users[..8], "y"), 1_001);
    memory.vote(id(1), "p", &votes(&users, "x"), 1_002);
    memory.until("votes are stored", |memory| memory.counts("p").1.len() == 2).await;
    let row = memory.row(GROUP, "s0").unwrap();
    assert!(row.progress.window_end > row.progress.checkpoint);
    // Another worker takes the shard although its owner is alive, as after a long pause of the owner's process.
    let ports = memory.ports();
    ports.leases.take(GROUP, &row.shard, &row.lease, "thief").await.unwrap().unwrap();
    let second = Worker::start(&memory, "b");
    memory.until_committed(GROUP).await;
    assert_counts(&memory, &[("x", 12), ("y", 8)]);
    first.gate.send_replace(true);
    memory.vote(id(3), "p", &votes(&users[..4], "x"), 1_003);
    memory.until_committed(GROUP).await;
    assert_counts(&memory, &[("x", 16), ("y", 4)]);
    first.stop().await;
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_of_a_later_version_is_waited_for_and_not_discarded() {
    let memory = Memory::new(1);
    memory.add_poll("p", &["x"]);
    let users = users(8);
    memory.vote(id(1), "p", &votes(&users[..5], "x"), 1_000);
    memory.append(0, b"VSB\xff and what nobody knows yet".as_slice().into(), 1_001);
    memory.vote(id(2), "p", &votes(&users[5..], "x"), 1_002);
    let worker = Worker::start(&memory, "a");
    // The record is tried again and again: another process may be able to read it.
    memory
        .until("the shard was given up twice", |memory| memory.row(GROUP, "s0").is_some_and(|row| row.lease.epoch >= 3))
        .await;
    // However often it is tried: the records before it are applied, and none after it.
    assert_eq!(memory.row(GROUP, "s0").unwrap().progress.window_end, SequenceNumber::from_u64(1));
    assert_counts(&memory, &[("x", 5)]);
    worker.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_window_waits_while_its_poll_is_being_closed_and_not_longer() {
    let memory = Memory::new(1);
    let poll = memory.add_poll("p", &["x"]);
    let poll = Poll { id: PollId::new("s").unwrap(), source: PollSource::Stream, ..poll };
    memory.create(&poll).await.unwrap();
    memory.begin_close(&poll.id).await.unwrap();
    memory.append(0, br#"{"cognitoid": "u", "voteid": "s", "option": "x"}"#.as_slice().into(), 1_000);
    let worker = Worker::start(&memory, "a");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let row = memory.row(GROUP, "s0").unwrap();
    assert_eq!((row.lease.owner.as_deref(), row.progress.window_end), (Some("a"), SequenceNumber::ZERO));
    memory.close(&poll.id, Timestamp(1_001)).await.unwrap();
    memory.until_committed(GROUP).await;
    assert_eq!(memory.counts("s").0, [("x".into(), 1)].into());
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_of_the_future_is_waited_for() {
    let memory = Memory::new(1);
    memory.add_poll("p", &["x"]);
    let (users, ahead) = (users(2), Duration::from_secs(30));
    let later = memory.ports().clock.now().plus(ahead);
    memory.vote(id(1), "p", &votes(&users[..1], "x"), 1_000);
    memory.vote(id(2), "p", &votes(&users[1..], "x"), later.0);
    let waited = || metrics::RECORDS_OF_THE_FUTURE.get(0);
    let before = waited();
    let worker = Worker::start(&memory, "a");
    tokio::time::sleep(ahead - Duration::from_secs(1)).await;
    // The record before it counts.
    assert_counts(&memory, &[("x", 1)]);
    assert_eq!(waited(), before + 1);
    memory.until_committed(GROUP).await;
    assert_counts(&memory, &[("x", 2)]);
    assert!(memory.row(GROUP, "s0").unwrap().progress.watermark >= later);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn children_wait_for_their_parents_and_inherit_their_memory() {
    let memory = Memory::new(2);
    memory.add_poll("p", &["x", "y"]);
    let users = users(40);
    memory.vote(id(1), "p", &votes(&users, "x"), 1_000);
    let worker = Worker::start_gated(&memory, "a", false);
    memory.until("votes are stored", |memory| memory.counts("p").1.len() == 1).await;
    // A merge and a split: s2 of all hashes, then s3 and s4.
    memory.reshard(&["s0", "s1"], &[HashRange::ALL]);
    memory.vote(id(2), "p", &votes(&users[..10], "y"), 1_001);
    memory.reshard(&["s2"], &HashRange::split_evenly(2));
    // Second copies of both batches in the grandchildren, and then a later marker.
    memory.vote(id(1), "p", &votes(&users, "x"), 1_002);
    memory.vote(id(2), "p", &votes(&users, "y"), 1_003);
    memory.mark(2_000);
    tokio::time::sleep(Duration::from_secs(5)).await;
    for child in ["s2", "s3", "s4"] {
        let row = memory.row(GROUP, child).unwrap();
        assert!(!row.started, "{child}");
        assert_eq!(row.progress, votestream_core::port::Progress::default());
    }
    worker.gate.send_replace(true);
    memory.until_committed(GROUP).await;
    assert_counts(&memory, &[("x", 30), ("y", 10)]);
    assert_eq!(memory.row(GROUP, "s2").unwrap().progress.watermark, Timestamp(1_001));
    for grandchild in ["s3", "s4"] {
        assert_eq!(memory.row(GROUP, grandchild).unwrap().progress.watermark, Timestamp(2_000));
    }
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn markers_move_the_watermark_of_idle_shards() {
    let memory = Memory::new(2);
    let worker = Worker::start(&memory, "a");
    memory.mark(5_000);
    // A record that cannot be read moves it, too.
    memory.append(0, bytes::Bytes::from_static(b"{}"), 6_000);
    memory.until_committed(GROUP).await;
    assert_eq!(memory.row(GROUP, "s0").unwrap().progress.watermark, Timestamp(6_000));
    assert_eq!(memory.row(GROUP, "s1").unwrap().progress.watermark, Timestamp(5_000));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn two_workers_share_evenly_and_one_takes_over_from_the_other() {
    let memory = Memory::new(8);
    let first = Worker::start(&memory, "a");
    memory.until("one owns all", |memory| owned(memory, "a") == 8).await;
    let second = Worker::start(&memory, "b");
    memory.until("even", |memory| (owned(memory, "a"), owned(memory, "b")) == (4, 4)).await;
    let epochs = |memory: &Memory| memory.rows(GROUP).iter().map(|row| row.lease.epoch).sum::<u64>();
    let settled = epochs(&memory);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(epochs(&memory), settled, "leases move although they are balanced");
    // A crash: nothing is released.
    first.task.abort();
    memory.until("failed over", |memory| owned(memory, "b") == 8).await;
    second.stop().await;
    assert_eq!(owned(&memory, "b"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_contradiction_flags_the_poll_and_costs_no_other_vote() {
    for seed in 0..8 {
        let memory = Memory::new(1);
        memory.add_poll("p", &["x", "y"]);
        memory.add_poll("q", &["x", "y"]);
        memory.set_faults(seed, if seed == 0 { 0.0 } else { 0.2 });
        memory.set_vote("p", "user 0", Position { sequence: SequenceNumber::from_u64(99), index: 0 }, "y");
        memory.vote(id(1), "p", &[("user 0", "x"), ("user 1", "x")], 1_000);
        memory.vote(id(2), "q", &[("user 0", "x")], 1_000);
        let worker = Worker::start(&memory, "a");
        memory.until_committed(GROUP).await;
        // And the shard goes on.
        memory.vote(id(3), "q", &[("user 2", "y")], 1_001);
        memory.until_committed(GROUP).await;
        assert!(memory.poll("p").needs_recount && !memory.poll("q").needs_recount);
        let counts = |poll: &str| memory.counts(poll).0.into_iter().collect::<Vec<_>>();
        assert_eq!(counts("p"), [("x".into(), 1)]);
        assert_eq!(counts("q"), [("x".into(), 1), ("y".into(), 1)]);
        memory.set_faults(seed, 0.0);
        worker.stop().await;
    }
}

/// Reports of every window that it is superseded.
struct Stubborn;

#[async_trait]
impl Applier for Stubborn {
    async fn apply(&mut self, window: &Window) -> Result<(), ApplyError> {
        Err(ApplyError::Superseded { poll_ids: window.polls.iter().map(|poll| poll.id.clone()).collect() })
    }
}

impl ApplierFactory for Stubborn {
    fn applier(&self) -> Box<dyn Applier> {
        Box::new(Self)
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_that_stays_superseded_is_never_committed() {
    let memory = Memory::new(1);
    memory.add_poll("p", &["x"]);
    memory.vote(id(1), "p", &[("user 0", "x")], 1_000);
    let shutdown = CancellationToken::new();
    let group =
        tokio::spawn(run(GroupConfig::one_machine(GROUP), memory.ports(), Arc::new(Stubborn), shutdown.clone()));
    memory.until("flagged", |memory| memory.poll("p").needs_recount).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(memory.row(GROUP, "s0").unwrap().progress.checkpoint, SequenceNumber::ZERO);
    shutdown.cancel();
    group.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_expired_checkpoint_stops_the_shard_and_no_other() {
    let memory = Memory::new(2);
    memory.add_poll("p", &["x"]);
    memory.vote(id(1), "p", &votes(&users(20), "x"), 1_000);
    let worker = Worker::start(&memory, "a");
    memory.until_committed(GROUP).await;
    worker.stop().await;
    let before = memory.row(GROUP, "s0").unwrap().progress;
    memory.expire("s0");
    let worker = Worker::start(&memory, "a");
    memory.mark(2_000);
    memory.expire("s0");
    let other = |memory: &Memory| memory.row(GROUP, "s1").unwrap().progress.watermark == Timestamp(2_000);
    memory.until("the other shard goes on", other).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(memory.row(GROUP, "s0").unwrap().progress, before);
    worker.stop().await;
}

struct Panics;

#[async_trait]
impl Applier for Panics {
    async fn apply(&mut self, _: &Window) -> Result<(), ApplyError> {
        panic!("as a defect would")
    }
}

impl ApplierFactory for Panics {
    fn applier(&self) -> Box<dyn Applier> {
        Box::new(Self)
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_the_group_with_an_error() {
    let memory = Memory::new(2);
    memory.mark(1_000);
    let config = GroupConfig::one_machine(GROUP);
    let ended = run(config, memory.ports(), Arc::new(Panics), CancellationToken::new()).await;
    assert!(matches!(ended, Err(GroupError::Task(_))), "{ended:?}");
}

/// Lost answers, throttling, crashes, zombies, splits and merges: in the end every vote counts exactly once.
#[tokio::test(start_paused = true)]
async fn exact_whatever_fails() {
    for seed in 0..12 {
        let memory = Memory::new(2);
        memory.add_poll("p", &["x", "y", "z"]);
        let users = users(12);
        memory.set_faults(seed, 0.15);
        let mut workers: Vec<Worker> = ["a", "b"].into_iter().map(|name| Worker::start(&memory, name)).collect();
        let mut expected = std::collections::BTreeMap::new();
        let mut sent: Vec<(&[String], &str)> = Vec::new();
        for round in 1..=24u64 {
            let option = ["x", "y", "z"][((seed + round * round) % 3) as usize];
            let first = (seed * 5 + round * 3) as usize % users.len();
            let chosen = &users[first..];
            memory.vote(id(round), "p", &votes(chosen, option), 1_000 + round as i64);
            expected.extend(chosen.iter().map(|user| (user.clone(), option)));
            // Second copies, of this batch and of an older one.
            memory.vote(id(round), "p", &votes(chosen, option), 1_001 + round as i64);
            sent.push((chosen, option));
            let older = (round - round / 4) as usize;
            let (chosen, option) = sent[older - 1];
            memory.vote(id(older as u64), "p", &votes(chosen, option), 1_001 + round as i64);
            tokio::time::sleep(Duration::from_millis((seed * 37 + round * 91) % 300)).await;
            match (seed + round) % 6 {
                0 => {
                    let open = memory.open_shards();
                    let shard = &open[round as usize % open.len()];
                    let middle = shard.range.start + (shard.range.end - shard.range.start) / 2;
                    let halves = [
                        HashRange { start: shard.range.start, end: middle },
                        HashRange { start: middle + 1, end: shard.range.end },
                    ];
                    memory.reshard(&[shard.id.as_str()], &halves);
                }
                1 => {
                    let mut open = memory.open_shards();
                    open.sort_by_key(|shard| shard.range);
                    if let [left, right, ..] = &open[..] {
                        let range = HashRange { start: left.range.start, end: right.range.end };
                        memory.reshard(&[left.id.as_str(), right.id.as_str()], &[range]);
                    }
                }
                2 => {
                    workers.remove(0).task.abort();
                    workers.push(Worker::start(&memory, &format!("w{round}")));
                }
                3 => {
                    // An owner loses its lease without knowing.
                    let rows = memory.rows(GROUP);
                    if let Some(row) = rows.get(round as usize % rows.len().max(1)) {
                        memory.ports().leases.take(GROUP, &row.shard, &row.lease, "thief").await.ok();
                    }
                }
                _ => {}
            }
        }
        memory.until_committed(GROUP).await;
        let mut counts = std::collections::BTreeMap::new();
        expected.values().for_each(|option| *counts.entry(*option).or_default() += 1);
        assert_counts(&memory, &counts.into_iter().collect::<Vec<_>>());
        assert!(!memory.poll("p").needs_recount, "seed {seed}");
        memory.set_faults(seed, 0.0);
        for worker in workers {
            worker.stop().await;
        }
    }
}
