//! Tests what is left after a crash: the files as they are on disk at that moment, without what was still in buffers.

use std::{borrow::Cow, fs, path::Path, sync::Arc, time::Duration};

use votestream_core::{
    HashRange, Poll, PollId, PollOption, PollSource, Position, SequenceNumber, ShardId, Timestamp,
    port::{
        Created, Group, Lease, LeaseStore, LostTime, PollStore, Progress, ShardRow, Span, TallyDelta, TallyRow,
        TallyStore, VoteOutcome, VoteStore, VoteWrite, WriteOutcome,
    },
};

use super::EmbeddedStore;
use crate::directory::{self, Format};

/// Votes of one window: enough to go through the journal's buffer many times.
const WINDOW: u64 = 500;

/// Opens a store that flushes only when it is told to.
fn open(dir: &Path) -> EmbeddedStore {
    let (lock, never) = (Arc::new(directory::lock(dir).unwrap()), Duration::from_secs(3_600));
    EmbeddedStore::open_flushing(&dir.join("store"), Format::Present(0), lock, never).unwrap()
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to)
        } else {
            drop(fs::copy(entry.path(), to))
        }
    }
}

/// Opens what a new process finds after this one was killed.
fn crashed(dir: &Path) -> (tempfile::TempDir, EmbeddedStore) {
    let copied = tempfile::tempdir().unwrap();
    copy_tree(dir, copied.path());
    let store = open(copied.path());
    (copied, store)
}

fn poll() -> Poll {
    let options = vec![PollOption { id: "a".into(), title: String::new() }];
    let id = PollId::new("p").unwrap();
    Poll::new(id, String::new(), options, Timestamp(0), Timestamp(1), PollSource::Ingest, 1).unwrap()
}

fn window(number: u64) -> Vec<VoteWrite<'static>> {
    let vote = |user: u64| VoteWrite {
        poll_id: Cow::Owned(poll().id),
        bucket: 0,
        user_id: format!("{number}-{user}").into(),
        option_id: "a".into(),
        position: Position { sequence: SequenceNumber::from_u64(number), index: user as u32 },
        accepted_at: Timestamp(0),
    };
    (0..WINDOW).map(vote).collect()
}

async fn apply(store: &EmbeddedStore, shard: &ShardId, number: u64) {
    let outcomes = store.write(&window(number)).await.unwrap();
    assert!(outcomes.iter().all(|outcome| *outcome == VoteOutcome::Inserted));
    let delta = TallyDelta { poll_id: poll().id, counts: vec![("a".into(), WINDOW as i64)] };
    store.add(Group::Persist, shard, SequenceNumber::from_u64(number), 1, &[delta]).await.unwrap();
}

#[tokio::test]
async fn progress_never_outlives_what_it_speaks_of() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let shard = ShardId::new("shard");
    assert_eq!(PollStore::create(&store, &poll()).await.unwrap(), Created::New);
    let (_, after) = crashed(dir.path());
    assert_eq!(after.get(&poll().id).await.unwrap(), Some(poll()), "a created poll is durable");

    let row = ShardRow::new(shard.clone(), HashRange::ALL, Vec::new());
    LeaseStore::create(&store, Group::Persist, &row).await.unwrap();
    let taken = store.take(Group::Persist, &shard, &row.lease, "me").await.unwrap().unwrap();
    let mut previous = Progress::default();
    for number in 1..=3 {
        apply(&store, &shard, number).await;
        let end = SequenceNumber::from_u64(number);
        let next = Progress { checkpoint: end, window_end: end, ..Progress::default() };
        let ends = previous.span();
        let outcome = store.write_progress(Group::Persist, &shard, 1, ends, &next).await.unwrap();
        assert_eq!(outcome, WriteOutcome::Stored);
        previous = next;
        // Before the flush, a start finds what was flushed last, and nothing that came after it.
        let (_copy, after) = crashed(dir.path());
        let rows = LeaseStore::list(&after, Group::Persist).await.unwrap();
        let flushed = rows.first().map_or(0, |row| row.progress.checkpoint.as_u64().unwrap());
        assert_eq!(flushed, number - 1);
        assert_eq!(after.recount(&poll()).await.unwrap(), [flushed * WINDOW]);
        drop(after);
        store.make_durable().unwrap();
        let (_copy, after) = crashed(dir.path());
        let expected =
            ShardRow { lease: Lease { owner: None, ..taken.lease.clone() }, progress: previous.clone(), ..row.clone() };
        assert_eq!(LeaseStore::list(&after, Group::Persist).await.unwrap(), [expected]);
        assert_eq!(after.recount(&poll()).await.unwrap(), [number * WINDOW]);
        let tallies = after.read(&poll().id).await.unwrap();
        assert_eq!(tallies[0].counts, [("a".into(), (number * WINDOW) as i64)]);
    }

    // The progress of this window was not written. Applying the window again completes it, wherever the crash came.
    apply(&store, &shard, 4).await;
    for flushed in [false, true] {
        let (_copy, after) = crashed(dir.path());
        assert_eq!(after.recount(&poll()).await.unwrap(), [if flushed { 4 } else { 3 } * WINDOW]);
        let outcomes = after.write(&window(4)).await.unwrap();
        assert!(outcomes.iter().all(|outcome| (*outcome == VoteOutcome::Inserted) != flushed));
        assert_eq!(after.recount(&poll()).await.unwrap(), [4 * WINDOW]);
        store.make_durable().unwrap();
    }
}

/// The result of windows: progress, counted votes, and recounted votes.
#[derive(Debug, PartialEq, Eq)]
struct State {
    checkpoint: u64,
    counted: [i64; 2],
    recounted: [u64; 2],
}

impl State {
    /// The state after this many windows of [`changing`].
    fn model(windows: u64) -> Self {
        let mut users = [None; USERS as usize];
        for window in 1..=windows {
            changing(window).into_iter().for_each(|(user, option)| users[user as usize] = Some(option));
        }
        let recounted = [0, 1].map(|option| users.iter().filter(|chosen| **chosen == Some(option)).count() as u64);
        Self { checkpoint: windows, counted: recounted.map(|count| count as i64), recounted }
    }

    async fn of(store: &EmbeddedStore) -> Self {
        let rows = LeaseStore::list(store, Group::Persist).await.unwrap();
        let checkpoint = rows.first().map_or(0, |row| row.progress.checkpoint.as_u64().unwrap());
        let mut counted = [0; 2];
        for (option, count) in store.read(&poll().id).await.unwrap().iter().flat_map(|tally| &tally.counts) {
            counted[usize::from(**option == *"b")] += count;
        }
        let recounted = store.recount(&two_options()).await.unwrap();
        Self { checkpoint, counted, recounted: [recounted[0], recounted[1]] }
    }
}

const USERS: u64 = 60;

/// The votes of a window, as user and option: each user votes in every other window, for another option each time.
fn changing(window: u64) -> Vec<(u64, usize)> {
    (0..USERS).filter(|user| (user + window).is_multiple_of(2)).map(|user| (user, (window as usize / 2) % 2)).collect()
}

fn two_options() -> Poll {
    let options = ["a", "b"].map(|id| PollOption { id: id.into(), title: String::new() }).to_vec();
    Poll { options, ..poll() }
}

/// Applies a window as persist-svc does, but only the first `steps` of its three steps.
async fn change(store: &EmbeddedStore, shard: &ShardId, window: u64, steps: usize) {
    let sequence = SequenceNumber::from_u64(window);
    // UUIDs and other users.
    let user = |user: u64| {
        let text = if user.is_multiple_of(3) {
            format!("user {user}")
        } else {
            format!("{user:08x}-0000-4000-8000-000000000000")
        };
        text.into()
    };
    let vote = |(index, (number, option)): (usize, (u64, usize))| VoteWrite {
        poll_id: Cow::Owned(poll().id),
        bucket: 0,
        user_id: user(number),
        option_id: ["a", "b"][option].into(),
        position: Position { sequence, index: index as u32 },
        accepted_at: Timestamp(0),
    };
    let votes: Vec<_> = changing(window).into_iter().enumerate().map(vote).collect();
    let mut counts = [0, 0];
    for (outcome, vote) in store.write(&votes).await.unwrap().into_iter().zip(&votes) {
        let number = |option: &str| usize::from(option == "b");
        counts[number(&vote.option_id)] += 1;
        if let VoteOutcome::Replaced { previous } | VoteOutcome::AlreadyStored { previous: Some(previous) } = outcome {
            counts[number(&previous)] -= 1;
        }
    }
    if steps > 1 {
        let counts = ["a", "b"].map(Arc::from).into_iter().zip(counts).collect();
        store.add(Group::Persist, shard, sequence, 1, &[TallyDelta { poll_id: poll().id, counts }]).await.unwrap();
    }
    if steps > 2 {
        let before = SequenceNumber::from_u64(window - 1);
        let progress = Progress { checkpoint: sequence, window_end: sequence, ..Progress::default() };
        let written = store.write_progress(Group::Persist, shard, 1, Span::committed(before), &progress).await.unwrap();
        assert_eq!(written, WriteOutcome::Stored);
    }
}

#[tokio::test]
async fn a_flush_is_whole_or_nothing_and_of_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let shard = ShardId::new("shard");
    let row = ShardRow::new(shard.clone(), HashRange::ALL, Vec::new());
    LeaseStore::create(&store, Group::Persist, &row).await.unwrap();
    store.take(Group::Persist, &shard, &row.lease, "me").await.unwrap().unwrap();
    store.make_durable().unwrap();
    // Flushes of both kinds in every order, with one, two and no windows in between.
    let (mut window, mut interrupted) = (0, 0);
    for (windows, many) in [(1, true), (1, false), (2, true), (2, true), (1, false), (1, false), (0, true), (2, true)] {
        let before = window;
        for _ in 0..windows {
            window += 1;
            change(&store, &shard, window, 3).await;
        }
        let (_copy, after) = crashed(dir.path());
        assert_eq!(State::of(&after).await, State::model(before), "what was not flushed is gone, whole");
        drop(after);

        let mut between = None;
        store.flush_as(many, || between = Some(crashed(dir.path())));
        assert_eq!(State::of(&store).await, State::model(window));
        interrupted += usize::from(between.is_some());
        for (_copy, after) in between.into_iter().chain([crashed(dir.path())]) {
            assert_eq!(State::of(&after).await, State::model(window));
            // As if the process had crashed again during the start.
            drop(after);
            let (_copy, after) = crashed(_copy.path());
            assert_eq!(State::of(&after).await, State::model(window));
            // A window that was half done is done again.
            for steps in 1..=3 {
                change(&after, &shard, window + 1, steps).await;
            }
            after.flush_as(true, || {});
            assert_eq!(State::of(&after).await, State::model(window + 1));
        }
    }
    assert_eq!((window, interrupted), (10, 4), "an ingestion that was interrupted each time that there was something");
}

#[tokio::test]
async fn rows_that_were_deleted_stay_deleted_and_losses_are_kept() {
    for many in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let row = |shard: &str| ShardRow::new(ShardId::new(shard), HashRange::ALL, Vec::new());
        let (kept, deleted) = (row("kept"), row("deleted"));
        for row in [&kept, &deleted] {
            LeaseStore::create(&store, Group::Persist, row).await.unwrap();
        }
        let lost = LostTime { from: Timestamp(3), until: Timestamp(9) };
        store.note_end(Group::Persist, &kept.shard, SequenceNumber::from_u64(7)).await.unwrap();
        store.note_lost(Group::Persist, &kept.shard, lost).await.unwrap();
        store.flush_as(many, || {});
        let ended = Progress { ended: true, ..Progress::default() };
        let before = Span::committed(SequenceNumber::ZERO);
        store.write_progress(Group::Persist, &deleted.shard, 0, before, &ended).await.unwrap();
        store.delete(Group::Persist, &deleted.shard).await.unwrap();
        let kept = ShardRow { ends_at: Some(SequenceNumber::from_u64(7)), lost: Some(lost), ..kept };
        let (_copy, after) = crashed(dir.path());
        assert_eq!(LeaseStore::list(&after, Group::Persist).await.unwrap(), [deleted, kept.clone()]);
        drop(after);
        let mut between = None;
        store.flush_as(many, || between = Some(crashed(dir.path())));
        for (_copy, after) in between.into_iter().chain([crashed(dir.path())]) {
            assert_eq!(LeaseStore::list(&after, Group::Persist).await.unwrap(), std::slice::from_ref(&kept));
        }
    }
}

#[tokio::test]
async fn a_copy_of_several_moments_is_right_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let shard = ShardId::new("shard");
    let row = ShardRow::new(shard.clone(), HashRange::ALL, Vec::new());
    LeaseStore::create(&store, Group::Persist, &row).await.unwrap();
    store.take(Group::Persist, &shard, &row.lease, "me").await.unwrap().unwrap();
    // Take a copy before any vote was flushed, and then after each step of each flush.
    let nothing = tempfile::tempdir().unwrap();
    copy_tree(&dir.path().join("store"), nothing.path());
    let mut moments = vec![nothing];
    for (window, many) in (1..).zip([true, false]) {
        change(&store, &shard, window, 3).await;
        let mut copy = || {
            let copied = tempfile::tempdir().unwrap();
            copy_tree(&dir.path().join("store"), copied.path());
            moments.push(copied);
        };
        store.flush_as(many, &mut copy);
        copy();
    }
    drop(store);
    let parts = |of: &Path| {
        let names =
            |path: &Path| -> Vec<_> { fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect() };
        let mut parts = names(&of.join("keyspaces"));
        parts.extend(names(of).into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "jnl")));
        parts
    };
    // Combine parts of two moments.
    let (mut right, mut refused) = (0, 0);
    for (early, late) in [(0, 2), (1, 2), (2, 3)] {
        let (early, late) = (&moments[early], &moments[late]);
        let all = parts(early.path());
        for alone in 0..all.len() * 2 {
            let mixed = tempfile::tempdir().unwrap();
            let target = mixed.path().join("store");
            let (base, other) = if alone < all.len() { (early, late) } else { (late, early) };
            copy_tree(base.path(), &target);
            let part = all[alone % all.len()].strip_prefix(early.path()).unwrap();
            if other.path().join(part).is_dir() {
                fs::remove_dir_all(target.join(part)).unwrap();
                copy_tree(&other.path().join(part), &target.join(part));
            } else {
                fs::copy(other.path().join(part), target.join(part)).unwrap();
            }
            let (lock, never) = (Arc::new(directory::lock(mixed.path()).unwrap()), Duration::from_secs(3_600));
            match EmbeddedStore::open_flushing(&target, Format::Present(0), lock, never) {
                Err(_) => refused += 1,
                Ok(store) => {
                    right += 1;
                    let state = State::of(&store).await;
                    assert_eq!(state, State::model(state.checkpoint), "{}", part.display());
                }
            }
        }
    }
    assert!(right > 0 && refused > 0, "{right} right, {refused} refused");
}

#[tokio::test]
async fn what_is_being_flushed_is_read_and_changed_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let shard = ShardId::new("shard");
    for window in 1..=3 {
        change(&store, &shard, window, 2).await;
        let mut read = None;
        // In another thread, like real calls.
        store.flush_as(true, || {
            std::thread::scope(|scope| {
                let call = || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    runtime.block_on(async {
                        change(&store, &shard, window, 2).await;
                        read = Some(store.read(&poll().id).await.unwrap());
                    });
                };
                scope.spawn(call).join().unwrap();
            });
        });
        let expected = State::model(window).counted;
        let counts = |tallies: Vec<TallyRow>| {
            let mut counts = tallies[0].counts.clone();
            counts.sort();
            counts.into_iter().map(|(_, count)| count).collect::<Vec<_>>()
        };
        assert_eq!(counts(read.unwrap()), expected, "applied again while it was written, and counted once");
        assert_eq!(counts(store.read(&poll().id).await.unwrap()), expected);
        assert_eq!(State::of(&store).await.recounted, State::model(window).recounted);
    }
}

/// Key and value of a vote in format 1.
fn version_1(user: &str, position: Position, option: &str, previous: Option<&str>) -> (Vec<u8>, Vec<u8>) {
    let key = [&b"p\0"[..], &[0, 0, 0, 7], user.as_bytes()].concat();
    let mut value = [&position.to_bytes()[..], &5i64.to_be_bytes(), &(option.len() as u16).to_be_bytes()].concat();
    value.extend_from_slice(option.as_bytes());
    if let Some(previous) = previous {
        value.push(1);
        value.extend_from_slice(previous.as_bytes());
    }
    (key, value)
}

#[tokio::test]
async fn votes_of_format_1_are_converted_however_often_it_is_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let at = |index| Position { sequence: SequenceNumber::from_u64(9), index };
    let users = ["6f9619ff-8b86-d011-b42d-00cf4fc964ff", "6F9619FF-8B86-D011-B42D-00CF4FC964FF", "eve", "bob"];
    {
        let db = fjall::Database::builder(dir.path().join("store")).open().unwrap();
        let votes = db.keyspace("votes", fjall::KeyspaceCreateOptions::default).unwrap();
        for (index, user) in (0..).zip(users) {
            let (key, value) = version_1(user, at(index), ["a", "b"][index as usize % 2], (index > 1).then_some("b"));
            votes.insert(key, value).unwrap();
        }
        db.persist(fjall::PersistMode::SyncAll).unwrap();
    }
    let open = |format| {
        let lock = Arc::new(directory::lock(dir.path()).unwrap());
        EmbeddedStore::open(&dir.path().join("store"), format, lock).unwrap()
    };
    let options = ["a", "b"].map(|id| PollOption { id: id.into(), title: String::new() }).to_vec();
    let poll = Poll { options, ..poll() };
    // As if the process had ended each time before the directory was marked.
    for _ in 0..2 {
        assert_eq!(open(Format::Version1).recount(&poll).await.unwrap(), [2, 2]);
    }
    for _ in 0..2 {
        let store = open(Format::Present(0));
        assert_eq!(store.recount(&poll).await.unwrap(), [2, 2]);
        let writes = (0..).zip(users).map(|(index, user)| VoteWrite {
            poll_id: Cow::Borrowed(&poll.id),
            bucket: 7,
            user_id: user.into(),
            option_id: "a".into(),
            position: at(index),
            accepted_at: Timestamp(5),
        });
        let outcomes = store.write(&writes.collect::<Vec<_>>()).await.unwrap();
        let previous = [None, None, Some("b".into()), Some("b".into())];
        assert_eq!(outcomes, previous.map(|previous| VoteOutcome::AlreadyStored { previous }));
        assert!(!store.inner.db.keyspace_exists("votes"), "what was converted is removed");
    }
}

#[tokio::test]
async fn a_recount_ends_early_once_nobody_waits() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert_eq!(PollStore::create(&store, &poll()).await.unwrap(), Created::New);
    apply(&store, &ShardId::new("shard"), 1).await;
    let left = tokio_util::sync::CancellationToken::new();
    assert_eq!(store.recount_unless(&poll(), &left).await.unwrap(), Some(vec![WINDOW]));
    left.cancel();
    assert_eq!(store.recount_unless(&poll(), &left).await.unwrap(), None);
}
