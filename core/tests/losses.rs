//! Shards that leave the stream, with and without having been read: what a group does by itself, and what it leaves to
//! people. What people do is in `tally-svc give-up`.

#![allow(clippy::disallowed_methods, reason = "tests read the clocks of their own")]

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;
use votestream_core::{
    HashRange, SequenceNumber, ShardId, Timestamp,
    consume::group::*,
    port::{Group, LostTime, Progress, ShardRow},
    record::batch::BatchId,
};
use votestream_testkit::memory::{Appliers, Memory};

const GROUP: Group = Group::Persist;
const HALF: u128 = u128::MAX / 2;
const HALVES: [HashRange; 2] = [HashRange { start: 0, end: HALF }, HashRange { start: HALF + 1, end: u128::MAX }];
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

struct Worker {
    task: JoinHandle<Result<Drain, GroupError>>,
    shutdown: CancellationToken,
}

impl Worker {
    fn start(memory: &Memory, name: &str) -> Self {
        Self::start_with(memory, config(name))
    }

    fn start_with(memory: &Memory, config: GroupConfig) -> Self {
        let (_, gate) = watch::channel(true);
        let appliers = Arc::new(Appliers { memory: memory.clone(), gate, superseded: None });
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(config, memory.ports(), appliers, shutdown.clone()));
        Self { task, shutdown }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        assert_eq!(self.task.await.unwrap().unwrap(), Drain::Complete);
    }
}

/// The hours of these tests have fewer looks at the stream than those of a real group.
fn config(name: &str) -> GroupConfig {
    let one = GroupConfig::one_machine(GROUP);
    GroupConfig {
        worker_id: name.into(),
        renew_every: Duration::from_secs(3),
        sync_every: Duration::from_secs(5),
        failover: Duration::from_secs(10),
        ..one
    }
}

fn vote(memory: &Memory, number: u64, users: usize) {
    let users: Vec<String> = (0..users).map(|n| format!("user {number}-{n}")).collect();
    let votes: Vec<_> = users.iter().map(|user| (&**user, "x")).collect();
    memory.vote(BatchId { producer: 7, number }, "p", &votes, 1_000 + number as i64);
}

fn row(memory: &Memory, shard: &str) -> ShardRow {
    memory.row(GROUP, shard).unwrap()
}

fn counted(memory: &Memory) -> i64 {
    let (tallied, stored) = memory.counts("p");
    assert_eq!(tallied, stored);
    tallied.get("x").copied().unwrap_or(0)
}

fn with_poll(shards: u32) -> Memory {
    let memory = Memory::new(shards);
    memory.add_poll("p", &["x"]);
    memory
}

#[tokio::test(start_paused = true)]
async fn rows_of_shards_that_were_read_and_left_the_stream_are_deleted_in_time() {
    let memory = with_poll(1);
    vote(&memory, 1, 4);
    let worker = Worker::start(&memory, "a");
    memory.reshard(&["s0"], &HALVES);
    memory.until_committed(GROUP).await;
    sleep(MINUTE * 65).await;
    assert!(memory.row(GROUP, "s0").is_some(), "the stream still has it");
    memory.vanish("s0");
    sleep(MINUTE * 65).await;
    assert!(memory.row(GROUP, "s0").is_some(), "its children have not begun");
    vote(&memory, 2, 20);
    memory.until_committed(GROUP).await;
    sleep(MINUTE).await;
    assert_eq!(memory.row(GROUP, "s0"), None, "nobody needs it any more");
    let inherited = row(&memory, "s1").progress.watermark;
    assert!(inherited >= Timestamp(1_001), "what it knew is with its children: {inherited}");

    // An old list shows it once more.
    memory.add_closed_shard("s0", HashRange::ALL);
    sleep(MINUTE).await;
    assert_eq!(memory.row(GROUP, "s0"), None, "it is not read again");
    vote(&memory, 3, 20);
    memory.until("everything is counted", |memory| memory.counts("p").0.get("x") == Some(&44)).await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_row_is_kept_while_its_shard_comes_and_goes() {
    let memory = with_poll(1);
    let worker = Worker::start(&memory, "a");
    memory.reshard(&["s0"], &HALVES);
    vote(&memory, 1, 20);
    memory.until_committed(GROUP).await;
    for _ in 0..3 {
        memory.vanish("s0");
        sleep(MINUTE * 40).await;
        memory.add_closed_shard("s0", HashRange::ALL);
        sleep(MINUTE).await;
    }
    assert!(memory.row(GROUP, "s0").is_some());
    worker.stop().await;
}

/// A group that has read one record of `s0`, which was split since and has left the stream. The shard ends at `ends_at`,
/// as far as the row says.
async fn vanished(ends_at: Option<u64>) -> Memory {
    let memory = with_poll(1);
    vote(&memory, 1, 4);
    let worker = Worker::start(&memory, "a");
    memory.until_committed(GROUP).await;
    worker.stop().await;
    let known = ShardRow { ends_at: ends_at.map(SequenceNumber::from_u64), ..row(&memory, "s0") };
    memory.set_rows(GROUP, [known]);
    memory.reshard(&["s0"], &HALVES);
    memory.vanish("s0");
    vote(&memory, 2, 20);
    memory
}

#[tokio::test(start_paused = true)]
async fn a_parent_that_was_read_up_to_its_end_ends_although_it_vanished() {
    let memory = vanished(Some(1)).await;
    let worker = Worker::start(&memory, "a");
    memory.until_committed(GROUP).await;
    assert!(row(&memory, "s0").progress.ended);
    assert_eq!(counted(&memory), 24);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_parent_that_may_not_have_been_read_to_its_end_is_never_skipped() {
    for ends_at in [None, Some(2)] {
        let memory = vanished(ends_at).await;
        let before = row(&memory, "s0");
        let workers = ["a", "b", "c"].map(|name| Worker::start(&memory, name));
        sleep(HOUR).await;
        let after = row(&memory, "s0");
        assert_eq!((&after.progress, counted(&memory)), (&before.progress, 4), "no child begins");
        assert_eq!(after.lease.owner, None);
        let tries = after.lease.epoch - before.lease.epoch;
        assert!((1..=3).contains(&tries), "each worker tries once, and not for ever: {tries}");
        for worker in workers {
            worker.stop().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_closed_shard_is_noted_while_the_stream_knows_it() {
    let memory = with_poll(1);
    vote(&memory, 1, 4);
    let worker = Worker::start(&memory, "a");
    memory.until_committed(GROUP).await;
    worker.stop().await;
    // What the shard still holds cannot be read at present.
    memory.append(0, b"VSB\xff of a later version".as_slice().into(), 1_002);
    memory.reshard(&["s0"], &HALVES);
    let worker = Worker::start(&memory, "a");
    memory.until("it is noted", |memory| row(memory, "s0").ends_at.is_some()).await;
    assert_eq!(row(&memory, "s0").ends_at, Some(SequenceNumber::from_u64(2)));
    worker.task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_parent_without_a_row_counts_as_read_only_in_a_new_group() {
    for is_new in [true, false] {
        let memory = with_poll(2);
        if !is_new {
            memory.mark(1_000);
            let worker = Worker::start(&memory, "a");
            memory.until_committed(GROUP).await;
            worker.stop().await;
            let kept = memory.rows(GROUP).into_iter().filter(|row| row.shard != ShardId::new("s0"));
            memory.set_rows(GROUP, kept.collect::<Vec<_>>());
        }
        let range = memory.open_shards()[0].range;
        memory.reshard(&["s0"], &[range]);
        memory.vanish("s0");
        vote(&memory, 1, 20);
        let worker = Worker::start(&memory, "a");
        sleep(MINUTE).await;
        let child = row(&memory, "s2");
        assert_eq!((child.started, child.progress == Progress::default()), (is_new, !is_new));
        assert_eq!(counted(&memory) == 20, is_new);
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_loss_the_oldest_record_must_be_one_that_is_not_lost() {
    const HOUR_MS: i64 = 3_600_000;
    for (until, now, goes_on) in [(2 * HOUR_MS, 90, true), (HOUR_MS, 25, true), (HOUR_MS, 26, false)] {
        let memory = with_poll(1);
        memory.set_now(now * HOUR_MS);
        memory.mark(2 * HOUR_MS);
        let worker = Worker::start(&memory, "a");
        memory.until_committed(GROUP).await;
        worker.stop().await;
        // Somebody has accepted a loss, and the group begins again.
        let lost = Some(LostTime { from: Timestamp::ZERO, until: Timestamp(until) });
        memory.set_rows(GROUP, [ShardRow { lost, progress: Progress::default(), ..row(&memory, "s0") }]);
        let worker = Worker::start(&memory, "b");
        sleep(MINUTE).await;
        assert_eq!(row(&memory, "s0").progress.checkpoint > SequenceNumber::ZERO, goes_on, "{until} {now}");
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_without_room_to_read_ahead_still_goes_on_everywhere() {
    let memory = with_poll(4);
    (1..20).for_each(|number| vote(&memory, number, 12));
    let config = GroupConfig { prefetch_bytes_max: 1, ..config("a") };
    let worker = Worker::start_with(&memory, config);
    memory.until_committed(GROUP).await;
    assert_eq!(counted(&memory), 19 * 12);
    worker.stop().await;
}
