//! What is left after a crash: the files as they are on disk at that moment, without what was still in buffers.

use std::{fs, path::Path, sync::Arc};

use votestream_core::{
    HashRange, Poll, PollId, PollOption, PollSource, Position, SequenceNumber, ShardId, Timestamp,
    port::{
        Created, Group, Lease, LeaseStore, PollStore, Progress, ShardRow, TallyDelta, TallyStore, VoteOutcome,
        VoteStore, VoteWrite, WriteOutcome,
    },
};

use super::EmbeddedStore;
use crate::directory::{self, Format};

/// Votes of one window: enough to go through the journal's buffer many times.
const WINDOW: u64 = 500;

fn open(dir: &Path) -> EmbeddedStore {
    EmbeddedStore::open(&dir.join("store"), Format::Present, Arc::new(directory::lock(dir).unwrap())).unwrap()
}

/// What a process finds that starts after this one was killed.
fn crashed(dir: &Path) -> (tempfile::TempDir, EmbeddedStore) {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &to)
            } else {
                drop(fs::copy(entry.path(), to))
            }
        }
    }
    let copied = tempfile::tempdir().unwrap();
    copy(dir, copied.path());
    let store = open(copied.path());
    (copied, store)
}

fn poll() -> Poll {
    let options = vec![PollOption { id: "a".into(), title: String::new() }];
    let id = PollId::new("p").unwrap();
    Poll::new(id, String::new(), options, Timestamp(0), Timestamp(1), PollSource::Ingest, 1).unwrap()
}

fn window(number: u64) -> Vec<VoteWrite> {
    let vote = |user: u64| VoteWrite {
        poll_id: PollId::new("p").unwrap(),
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

    let row = ShardRow {
        shard: shard.clone(),
        range: HashRange::ALL,
        parents: Vec::new(),
        started: true,
        lease: Lease::default(),
        progress: Progress::default(),
    };
    LeaseStore::create(&store, Group::Persist, &row).await.unwrap();
    let taken = store.take(Group::Persist, &shard, &row.lease, "me").await.unwrap().unwrap();
    let mut previous = Progress::default();
    for number in 1..=3 {
        apply(&store, &shard, number).await;
        let end = SequenceNumber::from_u64(number);
        let next = Progress { checkpoint: end, window_end: end, ..Progress::default() };
        let ends = (previous.checkpoint, previous.window_end);
        let outcome = store.write_progress(Group::Persist, &shard, 1, ends, &next).await.unwrap();
        assert_eq!(outcome, WriteOutcome::Stored);
        previous = next;
        // Before the sync a start finds what was synced last, or more, and then all that belongs to it.
        let (_copy, after) = crashed(dir.path());
        let rows = LeaseStore::list(&after, Group::Persist).await.unwrap();
        if let Some(row) = rows.first() {
            let end = row.progress.checkpoint.as_u64().unwrap();
            assert!(end == number || end == number - 1, "{end} of {number}");
            assert!(after.recount(&poll()).await.unwrap()[0] >= end * WINDOW);
        }
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

    // A window whose progress was not written: votes and tallies are a prefix, and applying it again completes them.
    apply(&store, &shard, 4).await;
    let (_copy, after) = crashed(dir.path());
    let stored = after.recount(&poll()).await.unwrap()[0];
    assert!(stored == 3 * WINDOW || stored == 4 * WINDOW, "a call that fits into one commit is stored as a whole");
    let outcomes = after.write(&window(4)).await.unwrap();
    let again = outcomes.iter().filter(|outcome| **outcome != VoteOutcome::Inserted).count() as u64;
    assert_eq!(again, stored - 3 * WINDOW);
    assert_eq!(after.recount(&poll()).await.unwrap(), [4 * WINDOW]);
}

/// Key and value of a vote as format 1 had them.
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
    // As if the directory had not been told each time.
    for _ in 0..2 {
        assert_eq!(open(Format::Version1).recount(&poll).await.unwrap(), [2, 2]);
    }
    for _ in 0..2 {
        let store = open(Format::Present);
        assert_eq!(store.recount(&poll).await.unwrap(), [2, 2]);
        let writes = (0..).zip(users).map(|(index, user)| VoteWrite {
            poll_id: poll.id.clone(),
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
