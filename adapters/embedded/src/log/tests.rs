//! Tests that the port traits do not cover: retention, resharding, and new starts.

use std::path::Path;

use votestream_core::{
    Clock, HashRanges, TimeBounds,
    port::{Lease, LeaseStore, Ports, Progress, ReadOutcome, Record, ShardRow, Span, WriteOutcome},
};

use super::*;
use crate::{EmbeddedEngine, EmbeddedOptions, directory};

const BOUNDS: TimeBounds = TimeBounds::ONE_MACHINE;

fn options(shards: u32) -> EmbeddedOptions {
    EmbeddedOptions { shards, ..EmbeddedOptions::default() }
}

fn open(dir: &Path, shards: u32) -> EmbeddedEngine {
    EmbeddedEngine::open(dir, options(shards)).unwrap()
}

/// Opens an engine with segments so small that each put begins one.
fn open_small(dir: &Path, options: EmbeddedOptions) -> (EmbeddedEngine, Arc<EmbeddedStream>, Arc<dyn LeaseStore>) {
    let engine = EmbeddedEngine::open_with(dir, options, 1).unwrap();
    let (stream, leases) = (engine.stream().clone(), engine.ports().leases);
    (engine, stream, leases)
}

async fn put(stream: &dyn VoteStream, hash: u128, data: &'static str) -> Stored {
    stream.put(hash, Bytes::from_static(data.as_bytes())).await.unwrap()
}

/// Reads everything after `after`. Returns it and how the reading ended: `None` at the end of an open shard.
async fn read(stream: &dyn VoteStream, shard: &ShardId, after: SequenceNumber) -> (Vec<Record>, Option<ReadOutcome>) {
    let mut reader = stream.reader(Group::Persist, shard, after).await.unwrap();
    let mut all = Vec::new();
    loop {
        match reader.next().await.unwrap() {
            ReadOutcome::Records(records) if records.is_empty() => return (all, None),
            ReadOutcome::Records(records) => all.extend(records),
            end @ (ReadOutcome::ShardEnd | ReadOutcome::Expired) => return (all, Some(end)),
        }
    }
}

fn data(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| std::str::from_utf8(&record.data).unwrap()).collect()
}

fn row(shard: &ShardId) -> ShardRow {
    ShardRow::new(shard.clone(), HashRange::ALL, Vec::new())
}

#[tokio::test]
async fn a_new_start_finds_everything() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), 2);
    let Ports { stream, leases, clock, .. } = engine.ports();
    let shards = stream.list_shards().await.unwrap();
    for hash in [0, 1, u128::MAX] {
        put(&*stream, hash, "x").await;
    }
    let (before, _) = read(&*stream, &shards[0].id, SequenceNumber::ZERO).await;
    leases.create(Group::Tally, &row(&shards[0].id)).await.unwrap();
    let taken = leases.take(Group::Tally, &shards[0].id, &Lease::default(), "me").await.unwrap().unwrap();
    let end = before[1].sequence;
    let progress = Progress { checkpoint: end, window_end: end, watermark: Timestamp(7), ..Progress::default() };
    let zero = Span::default();
    let outcome = leases.write_progress(Group::Tally, &shards[0].id, 1, zero, &progress).await.unwrap();
    assert_eq!(outcome, WriteOutcome::Stored);
    let last = clock.now();
    drop((stream, leases, clock));
    engine.close();

    // The number of shards is that of the stored stream.
    let engine = open(dir.path(), 7);
    let Ports { stream, leases, clock, .. } = engine.ports();
    assert_eq!(stream.list_shards().await.unwrap(), shards);
    let (after, end) = read(&*stream, &shards[0].id, SequenceNumber::ZERO).await;
    assert_eq!((after, end), (before.clone(), None), "records, numbers and arrival times are the same");
    let rows = leases.list(Group::Tally).await.unwrap();
    let lease = Lease { owner: None, ..taken.lease };
    assert_eq!(rows, [ShardRow { lease, progress, ..row(&shards[0].id) }], "the owner is gone, the rest stays");
    let next = put(&*stream, 0, "y").await;
    assert!(next.sequence > before[1].sequence);
    assert!(clock.now() >= before[1].arrived_at && last >= before[1].arrived_at);
}

/// Appends a record of shard 0 to a closed log.
fn append_at(dir: &Path, arrived_at: Timestamp) {
    let directory::Format::Present(id) = directory::inspect(dir, &BOUNDS).unwrap() else { panic!("no format") };
    let recovered = recovery::read(&dir.join("log"), id, &|_, _| true).unwrap();
    let mut appender = Appender::create(&dir.join("log"), id, recovered.end, &recovered.table).unwrap();
    let stamp = append::Stamp { arrived_at, polls: recovered.table.polls };
    appender.append(stamp, recovered.table.number + 1, &[append::Put { shard: 0, data: b"x" }]).unwrap();
}

#[tokio::test]
async fn the_clock_does_not_start_before_the_last_arrival() {
    let dir = tempfile::tempdir().unwrap();
    let now = open(dir.path(), 1).ports().clock.now();
    let soon = now.plus(Duration::from_secs(5));
    append_at(dir.path(), soon);
    let engine = open(dir.path(), 1);
    assert!(engine.ports().clock.now() >= soon);
    let stored = put(&*engine.ports().stream, 0, "y").await;
    assert_eq!(stored.sequence, SequenceNumber::from_u64(2));
    let (records, _) = read(&*engine.ports().stream, &stored.shard, SequenceNumber::ZERO).await;
    assert!(records[1].arrived_at >= records[0].arrived_at);
    engine.close();

    // So far ahead that either this clock or the log's time must be wrong.
    let future = now.plus(Duration::from_secs(86_400));
    append_at(dir.path(), future);
    let refused = EmbeddedEngine::open(dir.path(), options(1)).err().unwrap().to_string();
    for part in [future.to_string(), "--continue-from-log-time".into()] {
        assert!(refused.contains(&part), "{refused}");
    }
    // The text has the time of this clock, too. A minute may end meanwhile.
    let minutes = [now, SystemClock::new().now()].map(|at| at.to_string()[..16].to_owned());
    assert!(minutes.iter().any(|minute| refused.contains(minute)), "{refused}, {minutes:?}");
    let trusting = EmbeddedOptions { continue_from_log_time: true, ..options(1) };
    let engine = EmbeddedEngine::open(dir.path(), trusting).unwrap();
    assert!(engine.ports().clock.now() >= future);
}

#[tokio::test]
async fn children_follow_their_parents() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), 1);
    let stream = engine.ports().stream;
    let parent = stream.list_shards().await.unwrap()[0].id.clone();
    let first = put(&*stream, 5, "a").await;
    assert!(engine.split_shard(&parent, 0).await.is_err() && engine.merge_shards(&parent, &parent).await.is_err());
    let (low, high) = engine.split_shard(&parent, 10).await.unwrap();
    assert!(engine.split_shard(&parent, 10).await.is_err(), "it is closed");
    let (left, right) = (put(&*stream, 9, "b").await, put(&*stream, 10, "c").await);
    assert_eq!((&left.shard, &right.shard), (&low, &high));
    assert!(left.sequence > first.sequence && right.sequence > first.sequence);
    let merged = engine.merge_shards(&high, &low).await.unwrap();
    let last = put(&*stream, 5, "d").await;
    assert_eq!(last.shard, merged);
    assert!(last.sequence > left.sequence && last.sequence > right.sequence);

    let shards = stream.list_shards().await.unwrap();
    let shown: Vec<_> = shards.iter().map(|shard| (&shard.id, shard.parents.clone(), shard.open)).collect();
    let children = vec![parent.clone()];
    assert_eq!(
        shown,
        [
            (&parent, vec![], false),
            (&low, children.clone(), false),
            (&high, children, false),
            (&merged, vec![low.clone(), high.clone()], true)
        ]
    );
    drop(stream);
    engine.close();

    let engine = open(dir.path(), 1);
    let stream = engine.ports().stream;
    assert_eq!(stream.list_shards().await.unwrap(), shards);
    for (shard, expected, end) in [
        (&parent, "a", Some(ReadOutcome::ShardEnd)),
        (&low, "b", Some(ReadOutcome::ShardEnd)),
        (&high, "c", Some(ReadOutcome::ShardEnd)),
        (&merged, "d", None),
    ] {
        let (records, ended) = read(&*stream, shard, SequenceNumber::ZERO).await;
        assert_eq!((data(&records), ended), (vec![expected], end));
    }
    assert!(put(&*stream, 5, "e").await.sequence > last.sequence);
}

#[tokio::test(flavor = "multi_thread")]
async fn puts_during_splits_are_read_where_they_were_stored_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), 1);
    let stream = engine.ports().stream;
    let writers: Vec<_> = [0, u128::MAX / 2, u128::MAX]
        .into_iter()
        .map(|hash| {
            let stream = stream.clone();
            tokio::spawn(async move {
                let mut stored = Vec::new();
                for _ in 0..60 {
                    stored.push(put(&*stream, hash, "x").await);
                }
                (hash, stored)
            })
        })
        .collect();
    for _ in 0..4 {
        let open = stream.list_shards().await.unwrap().into_iter().rfind(|shard| shard.open).unwrap();
        let middle = open.range.start + (open.range.end - open.range.start) / 2;
        engine.split_shard(&open.id, middle).await.unwrap();
    }
    let mut written = Vec::new();
    for writer in writers {
        written.push(writer.await.unwrap());
    }
    let shards = stream.list_shards().await.unwrap();
    let open = shards.iter().filter(|shard| shard.open).map(|shard| shard.range);
    assert!(HashRanges::union_of(open).is_all());
    let mut read_back = BTreeMap::new();
    for shard in &shards {
        for record in read(&*stream, &shard.id, SequenceNumber::ZERO).await.0 {
            read_back.insert(record.sequence, shard.clone());
        }
    }
    for (hash, stored) in written {
        assert!(stored.is_sorted_by(|a, b| a.sequence < b.sequence));
        for Stored { shard, sequence } in stored {
            let found = read_back.remove(&sequence).unwrap();
            assert!(found.id == shard && found.range.contains(hash));
        }
    }
    assert!(read_back.is_empty());
}

#[tokio::test]
async fn retention_leaves_a_mark_and_waits_for_both_groups() {
    let dir = tempfile::tempdir().unwrap();
    let by_size = EmbeddedOptions { retention: Duration::from_secs(3_600), retention_bytes: 3, ..options(2) };
    let (engine, stream, store) = open_small(dir.path(), by_size);
    let shards = stream.list_shards().await.unwrap();
    let (low, high) = (&shards[0].id, &shards[1].id);
    let mut stored = Vec::new();
    for hash in [0, u128::MAX, 0, 0, u128::MAX] {
        stored.push(put(&*stream, hash, "x").await);
    }
    let now = stream.log.clock.now();
    let retain = |now| stream.retention.retain(now).unwrap();

    // By size, the oldest first. An active group holds back the records that it has not processed, and all younger
    // ones.
    store.create(Group::Persist, &row(low)).await.unwrap();
    store.create(Group::Persist, &row(high)).await.unwrap();
    store.create(Group::Tally, &row(low)).await.unwrap();
    assert_eq!(retain(now), 0);
    let zero = Span::default();
    let done = |at: usize| Progress {
        checkpoint: stored[at].sequence,
        window_end: stored[at].sequence,
        ..Progress::default()
    };
    store.write_progress(Group::Persist, low, 0, zero, &done(3)).await.unwrap();
    assert_eq!(retain(now), 0, "the tally group has done nothing");
    store.write_progress(Group::Tally, low, 0, zero, &done(3)).await.unwrap();
    let mut reading = stream.reader(Group::Persist, low, SequenceNumber::ZERO).await.unwrap();
    assert_eq!(retain(now), 1);
    assert_eq!(reading.next().await.unwrap(), ReadOutcome::Expired);
    assert_eq!(read(&*stream, low, SequenceNumber::ZERO).await.1, Some(ReadOutcome::Expired));
    let (records, end) = read(&*stream, low, stored[0].sequence).await;
    assert_eq!((records.len(), records[0].sequence, end), (2, stored[2].sequence, None));
    assert_eq!(read(&*stream, high, SequenceNumber::ZERO).await.0.len(), 2, "held back");
    store.write_progress(Group::Persist, high, 0, zero, &done(1)).await.unwrap();
    assert_eq!(retain(now), 0, "the tally group has not come to this shard");
    store.create(Group::Tally, &row(high)).await.unwrap();
    store.write_progress(Group::Tally, high, 0, zero, &done(1)).await.unwrap();
    assert_eq!(retain(now), 1);

    // By time, after a new start.
    drop((reading, stream, store));
    engine.close();
    let by_time = EmbeddedOptions { retention: Duration::ZERO, retention_bytes: u64::MAX, ..options(2) };
    let (engine, stream, _store) = open_small(dir.path(), by_time);
    assert_eq!(stream.log.bytes.load(Ordering::Relaxed), 3);
    assert_eq!(read(&*stream, low, SequenceNumber::ZERO).await.1, Some(ReadOutcome::Expired));
    assert_eq!(read(&*stream, high, SequenceNumber::ZERO).await.1, Some(ReadOutcome::Expired));
    let later = Timestamp(stream.log.clock.now().0 + 1);
    assert_eq!(stream.retention.retain(later).unwrap(), 2, "the last of the low shard");
    assert_eq!(read(&*stream, low, stored[2].sequence).await.1, Some(ReadOutcome::Expired));
    assert_eq!(read(&*stream, low, stored[3].sequence).await, (Vec::new(), None));
    assert_eq!(read(&*stream, high, stored[1].sequence).await.0.len(), 1);
    engine.close();
}

#[tokio::test]
async fn closed_shards_are_forgotten_when_nobody_needs_them() {
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { retention: Duration::ZERO, retention_bytes: u64::MAX, ..options(1) };
    let engine = EmbeddedEngine::open(dir.path(), options).unwrap();
    let (stream, store) = (engine.stream().clone(), engine.ports().leases);
    let parent = stream.list_shards().await.unwrap()[0].id.clone();
    let last = put(&*stream, 0, "x").await.sequence;
    stream.split(&parent, 10).await.unwrap();
    store.create(Group::Tally, &row(&parent)).await.unwrap();
    let later = Timestamp(stream.log.clock.now().0 + 1);
    stream.retention.retain(later).unwrap();
    assert_eq!(stream.list_shards().await.unwrap().len(), 3, "not processed");
    let zero = Span::default();
    let ended = Progress { checkpoint: last, window_end: last, ended: true, ..Progress::default() };
    store.write_progress(Group::Tally, &parent, 0, zero, &ended).await.unwrap();
    stream.retention.retain(later).unwrap();
    let left = stream.list_shards().await.unwrap();
    assert!(left.len() == 2 && left.iter().all(|shard| shard.open && shard.parents == [parent.clone()]));
    assert!(stream.reader(Group::Tally, &parent, last).await.is_err());
    drop((stream, store));
    engine.close();
    let engine = EmbeddedEngine::open(dir.path(), options).unwrap();
    let stream = engine.stream().clone();
    assert_eq!(stream.list_shards().await.unwrap(), left);
    assert!(put(&*stream, 0, "y").await.sequence > last, "numbers go on though no record is left");
}

/// A record whose size depends on its number.
fn sized(number: u64) -> Bytes {
    Bytes::from(vec![number as u8; (number * 7_919 % 40_000) as usize])
}

#[tokio::test]
async fn what_memory_does_not_hold_is_read_from_segments() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), 3);
    let stream = engine.ports().stream;
    let mut stored = BTreeMap::<ShardId, Vec<(SequenceNumber, Bytes)>>::new();
    for number in 0..400u64 {
        // The last shard gets one record in fifty.
        let hash = if number.is_multiple_of(50) { u128::MAX } else { u128::from(number % 2) * (u128::MAX / 2) };
        let Stored { shard, sequence } = stream.put(hash, sized(number)).await.unwrap();
        stored.entry(shard).or_default().push((sequence, sized(number)));
    }
    assert!(engine.stream().log.segments.read().len() > 5, "they are in many segments");
    drop(stream);
    engine.close();
    let engine = open(dir.path(), 3);
    let stream = engine.ports().stream;
    for (shard, expected) in &stored {
        let starts =
            (0..expected.len()).step_by(7).map(|at| (at, expected[at].0)).chain([(usize::MAX, SequenceNumber::ZERO)]);
        for (at, after) in starts {
            let (records, end) = read(&*stream, shard, after).await;
            let found: Vec<_> = records.into_iter().map(|record| (record.sequence, record.data)).collect();
            let rest = &expected[at.wrapping_add(1)..];
            assert!(found == rest && end.is_none(), "{} of {} behind {after:?}", found.len(), rest.len());
        }
    }
    // From records in files to records in memory.
    let (shard, expected) = stored.last_key_value().unwrap();
    let mut reader = stream.reader(Group::Tally, shard, SequenceNumber::ZERO).await.unwrap();
    let next = stream.put(u128::MAX, sized(1)).await.unwrap();
    let mut read = Vec::new();
    while read.last() != Some(&next.sequence) {
        let ReadOutcome::Records(records) = reader.next().await.unwrap() else { panic!("it ended") };
        read.extend(records.iter().map(|record| record.sequence));
    }
    assert_eq!(read.len(), expected.len() + 1);
}

#[tokio::test]
async fn a_failed_write_is_the_last() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let engine = open(dir.path(), 1);
    let log = engine.stream().log.clone();
    let table = Table::new(1);
    let mut appender = Appender::create(other.path(), 1, End::NOTHING, &table).unwrap();
    appender.break_it();
    #[expect(clippy::disallowed_methods, reason = "the type of the writer's queue, which the log's semaphore bounds")]
    let (commands, receiver) = mpsc::unbounded_channel();
    let store = engine.store().clone();
    let writer = Writer::new(log.clone(), store.clone(), table, appender);
    let writing = std::thread::spawn(move || writer.run(receiver));
    let retention = Arc::new(Retention { log: log.clone(), store, commands: commands.clone() });
    let threads = Mutex::new(Threads { retention_alive: None, handles: vec![writing] });
    let queue = Arc::new(Semaphore::new(1_000));
    let lock = Arc::new(directory::lock(other.path()).unwrap());
    let stream = EmbeddedStream { log, commands, queue, threads, retention, _lock: lock };
    let before = std::fs::read(segment::path(other.path(), 1)).unwrap();
    let effects = [votestream_core::port::Effect::Unknown, votestream_core::port::Effect::None];
    for effect in effects {
        let error = stream.put(0, Bytes::from_static(b"x")).await.unwrap_err();
        assert_eq!(error.effect, effect, "{error}");
    }
    assert!(engine.broken().await.contains("Bad file descriptor"), "the engine ends");
    assert!(stream.mark().is_err());
    stream.stop();
    assert_eq!(std::fs::read(segment::path(other.path(), 1)).unwrap(), before, "not even an end is written");
}

#[tokio::test]
async fn a_closed_engine_refuses_puts() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), 1);
    let stream = engine.ports().stream;
    engine.close();
    let error = stream.put(0, Bytes::new()).await.unwrap_err();
    assert_eq!((error.retryable, error.effect), (false, votestream_core::port::Effect::None));
    assert!(error.message.contains("closed"));
}
