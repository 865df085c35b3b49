//! `tally-svc give-up` over engines in memory that drop records and forget shards.

#![allow(clippy::disallowed_methods, reason = "tests read the clocks of their own")]

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use votestream_core::{
    HashRange, Poll, PollId, PollSource, SequenceNumber, ShardId, TimeBounds, Timestamp,
    consume::group::{self, GroupConfig},
    port::{Group, PollStore, Progress, ShardRow},
    record::batch::BatchId,
};
use votestream_process::config::Refused;
use votestream_tally::give_up::{PROGRAM, Request, run};
use votestream_testkit::memory::{Appliers, Memory};

const BOUNDS: TimeBounds = TimeBounds::ONE_MACHINE;
const HOUR: i64 = 3_600_000;

fn read(flags: &[&str]) -> Result<Request, Refused> {
    let mut values = PROGRAM.read(flags.iter().map(Into::into), [])?;
    let request = Request::read(&mut values);
    values.finish(request)
}

#[test]
fn nothing_is_changed_without_yes() {
    let request = read(&["--shard=shardId-000000000003"]).unwrap();
    assert!(!request.yes && request.groups.len() == 2);
    assert_eq!(request.shard, Some(ShardId::new("shardId-000000000003")));
    let request = read(&["--group=persist", "--yes", "--consumer=fan-out"]).unwrap();
    assert!(request.yes && request.groups == [Group::Persist] && request.fan_out && request.shard.is_none());
    assert!(matches!(read(&["--group=all"]), Err(Refused::Mistakes(mistakes)) if mistakes.len() == 1));
}

/// A poll that is open from one hour to the other. The votes of `over` come from other producers.
async fn poll(memory: &Memory, id: &str, opens: i64, closes: i64) {
    let poll = memory.add_poll("template", &["x", "y"]);
    let id = PollId::new(id).unwrap();
    let source = if id.as_str() == "over" { PollSource::Stream } else { PollSource::Ingest };
    let poll = Poll { id, source, opens_at: Timestamp(opens * HOUR), closes_at: Timestamp(closes * HOUR), ..poll };
    memory.create(&poll).await.unwrap();
    memory.remove_poll("template");
}

fn vote(memory: &Memory, number: u64, poll: &str, users: &[&str], at: i64) {
    let votes: Vec<_> = users.iter().map(|user| (*user, "x")).collect();
    memory.vote(BatchId { producer: 7, number }, poll, &votes, at);
}

/// A persist group that runs until the sender is dropped.
struct Running(CancellationToken, tokio::task::JoinHandle<Result<group::Drain, group::GroupError>>);

impl Running {
    fn start(memory: &Memory) -> Self {
        let (_, gate) = tokio::sync::watch::channel(true);
        let appliers = Arc::new(Appliers { memory: memory.clone(), gate, superseded: None });
        let shutdown = CancellationToken::new();
        let config = GroupConfig::one_machine(Group::Persist);
        let task = tokio::spawn(group::run(config, memory.ports(), appliers, shutdown.clone()));
        Self(shutdown, task)
    }

    async fn stop(self) {
        self.0.cancel();
        assert_eq!(self.1.await.unwrap().unwrap(), group::Drain::Complete);
    }
}

async fn give_up(memory: &Memory, yes: bool) -> (usize, Vec<String>) {
    let request = Request { groups: &[Group::Persist], yes, ..read(&[]).unwrap() };
    let mut said = Vec::new();
    let count = run(&request, &memory.ports(), &BOUNDS, |line| said.push(line.to_owned())).await.unwrap();
    (count, said)
}

fn row(memory: &Memory, shard: &str) -> ShardRow {
    memory.row(Group::Persist, shard).unwrap()
}

fn flagged(memory: &Memory, polls: &[&str]) -> Vec<bool> {
    polls.iter().map(|poll| memory.poll(poll).needs_recount).collect()
}

#[tokio::test(start_paused = true)]
async fn a_shard_whose_records_were_dropped_goes_on_once_somebody_says_so() {
    let memory = Memory::new(1);
    memory.set_now(200 * HOUR);
    for (id, opens, closes) in [("early", 1, 3), ("lost", 9, 11), ("over", 5, 40), ("late", 100, 101)] {
        poll(&memory, id, opens, closes).await;
    }
    vote(&memory, 1, "early", &["ada", "bea"], 2 * HOUR);
    let group = Running::start(&memory);
    memory.until_committed(Group::Persist).await;
    group.stop().await;
    memory.set_rows(Group::Persist, [ShardRow { progress: moved(&memory, 4 * HOUR), ..row(&memory, "s0") }]);

    // One record is lost, and one after it is not.
    vote(&memory, 2, "lost", &["ada"], 10 * HOUR);
    vote(&memory, 3, "late", &["ada", "cem"], 100 * HOUR + 1);
    memory.drop_oldest("s0", 2);
    let before = row(&memory, "s0");
    let group = Running::start(&memory);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let stopped = row(&memory, "s0");
    assert_eq!(stopped.progress, before.progress, "it goes on by no record");
    assert_eq!(stopped.lease.epoch, before.lease.epoch + 1, "and is not tried again and again");

    let (count, said) = give_up(&memory, false).await;
    assert_eq!((count, flagged(&memory, &["early", "lost", "over", "late"])), (1, vec![false; 4]));
    assert!(said[0].contains("polls that may lack votes, and get no official result: 3: late, lost, over"), "{said:?}");
    assert_eq!(row(&memory, "s0").progress, before.progress, "it only says what it would do");

    let (count, said) = give_up(&memory, true).await;
    assert!(count == 1 && said.len() == 3, "{said:?}");
    assert_eq!(flagged(&memory, &["early", "lost", "over", "late"]), [false, true, true, true]);
    memory.until_committed(Group::Persist).await;
    assert_eq!(memory.counts("late").0, [("x".into(), 2)].into(), "what the stream still has is counted");
    assert_eq!(memory.counts("early").0, [("x".into(), 2)].into());
    assert_eq!(memory.counts("lost").0, [].into());
    assert_eq!(give_up(&memory, true).await.0, 0, "nothing is left to do");
    assert!(row(&memory, "s0").lost.is_some(), "the loss is remembered");
    group.stop().await;
}

/// The progress of the first shard, with a later clock, as after a marker.
fn moved(memory: &Memory, clock: i64) -> Progress {
    Progress { watermark: Timestamp(clock), ..row(memory, "s0").progress }
}

#[tokio::test(start_paused = true)]
async fn a_parent_that_vanished_unread_blocks_its_children_until_somebody_says_so() {
    let memory = Memory::new(1);
    memory.set_now(200 * HOUR);
    poll(&memory, "lost", 9, 11).await;
    poll(&memory, "after", 20, 30).await;
    memory.mark(HOUR);
    let group = Running::start(&memory);
    memory.until_committed(Group::Persist).await;
    group.stop().await;

    // s0 gets a vote and is split; s1 is split before anybody looks; both vanish.
    vote(&memory, 1, "lost", &["ada"], 10 * HOUR);
    let half = u128::MAX / 2;
    let halves = [HashRange { start: 0, end: half }, HashRange { start: half + 1, end: u128::MAX }];
    memory.reshard(&["s0"], &halves);
    let quarters = [HashRange { start: 0, end: half / 2 }, HashRange { start: half / 2 + 1, end: half }];
    memory.reshard(&["s1"], &quarters);
    vote(&memory, 2, "after", &["ada", "bea", "cem", "dan", "eve", "fay"], 25 * HOUR);
    memory.vanish("s0");
    memory.vanish("s1");
    let group = Running::start(&memory);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(memory.counts("after").0, [].into(), "no child begins");

    assert_eq!(give_up(&memory, false).await.0, 2, "s0 was not read to its end, and s1 not at all");
    assert_eq!(give_up(&memory, true).await.0, 2);
    memory.until_committed(Group::Persist).await;
    assert_eq!(memory.counts("after").0, [("x".into(), 6)].into(), "the children go on");
    assert_eq!(flagged(&memory, &["lost", "after"]), [true, true], "the oldest record of a child came at 25 h");
    assert_eq!(give_up(&memory, true).await.0, 0);
    group.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_window_that_was_begun_is_given_up_as_a_whole() {
    let memory = Memory::new(1);
    memory.set_now(200 * HOUR);
    poll(&memory, "p", 1, 40).await;
    for (number, user) in [(1, "ada"), (2, "bea"), (3, "cem"), (4, "dan")] {
        vote(&memory, number, "p", &[user], 2 * HOUR + number as i64);
    }
    let group = Running::start(&memory);
    memory.until_committed(Group::Persist).await;
    group.stop().await;
    let counted = memory.counts("p").0;
    // As if the last three records were a window that was stored and counted, and never committed.
    let mut open = row(&memory, "s0");
    open.progress.checkpoint = SequenceNumber::from_u64(1);
    open.progress.dedup.clear();
    memory.set_rows(Group::Persist, [open]);
    memory.drop_oldest("s0", 2);
    vote(&memory, 5, "p", &["eve"], 3 * HOUR);
    assert_eq!(give_up(&memory, true).await.0, 1);
    let row = row(&memory, "s0");
    assert_eq!(row.progress.checkpoint, row.progress.window_end);
    assert_eq!(row.progress.checkpoint.as_u64(), Some(4), "no record of the window is applied again");
    let group = Running::start(&memory);
    memory.until_committed(Group::Persist).await;
    group.stop().await;
    assert_eq!((counted, memory.counts("p").0), ([("x".into(), 4)].into(), [("x".into(), 5)].into()));
}

#[tokio::test(start_paused = true)]
async fn polls_are_flagged_whatever_fails() {
    for seed in 0..16 {
        let memory = Memory::new(1);
        memory.set_now(200 * HOUR);
        poll(&memory, "p", 1, 40).await;
        vote(&memory, 1, "p", &["ada"], 2 * HOUR);
        let group = Running::start(&memory);
        memory.until_committed(Group::Persist).await;
        group.stop().await;
        vote(&memory, 2, "p", &["bea"], 2 * HOUR + 1);
        memory.drop_oldest("s0", 2);
        vote(&memory, 3, "p", &["cem"], 2 * HOUR + 2);
        memory.set_faults(seed, 0.4);
        let request = Request { groups: &[Group::Persist], yes: true, ..read(&[]).unwrap() };
        let mut failures = 0;
        while let Err(error) = run(&request, &memory.ports(), &BOUNDS, |_| ()).await {
            failures += 1;
            let row = row(&memory, "s0");
            let went_on = row.progress.checkpoint == SequenceNumber::ZERO;
            assert!(!went_on || (memory.poll("p").needs_recount && row.lost.is_some()), "seed {seed}: {error}");
            assert!(failures < 200, "seed {seed}: {error}");
        }
        memory.set_faults(seed, 0.0);
        assert!(memory.poll("p").needs_recount && row(&memory, "s0").lost.is_some(), "seed {seed}");
        let group = Running::start(&memory);
        memory.until_committed(Group::Persist).await;
        group.stop().await;
        assert_eq!(memory.counts("p").0, [("x".into(), 2)].into(), "seed {seed}");
    }
}
