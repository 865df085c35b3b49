//! The contract suite: checks of what the documentation of the ports promises. Every adapter must pass them.
//!
//! Knows only the port traits. Each check needs an empty stream and an empty store, and panics with the broken promise.
//! Must never rely on how long an engine takes: it waits for conditions, with a time limit.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::task::JoinSet;
use votestream_core::{
    Closing, HashRange, HashRanges, KeyId, Poll, PollId, PollOption, PollSource, Position, SequenceNumber, ShardId,
    Timestamp, Visibility,
    model::poll::FinalResult,
    port::{
        Created, Group, Lease, LostTime, Ports, Progress, ReadOutcome, Record, RecordReader, ShardRow, Stored,
        StoredProducer, TallyDelta, TallyRow, VoteOutcome, VoteStream, VoteWrite, WriteOutcome,
    },
};

/// Longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before a refused read is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Tasks that race.
const RACERS: u32 = 8;
/// Number of users for which they race.
const RACES: u32 = 40;

async fn within<T>(what: &str, condition: impl Future<Output = T>) -> T {
    let Ok(met) = tokio::time::timeout(PATIENCE, condition).await else { panic!("did not happen in time: {what}") };
    met
}

/// Runs the same function in several tasks at once and returns the results.
async fn race<T, F>(run: impl Fn(u32) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let start = Arc::new(tokio::sync::Barrier::new(RACERS as usize));
    let mut tasks = JoinSet::new();
    for racer in 0..RACERS {
        let (start, run) = (start.clone(), run(racer));
        tasks.spawn(async move {
            start.wait().await;
            run.await
        });
    }
    tasks.join_all().await
}

fn poll_id(id: &str) -> PollId {
    PollId::new(id).unwrap()
}

fn poll(id: &str, options: &[&str]) -> Poll {
    let option = |id: &&str| PollOption { id: Arc::from(*id), title: format!("Title of {id} — ü") };
    let options = options.iter().map(option).collect();
    Poll::new(poll_id(id), "A title — ü".into(), options, Timestamp(1_000), Timestamp(9_000), PollSource::Ingest, 2_500)
        .unwrap()
}

/// What a reader finds. Retries after an error that only asks for another try: for example, another reader of the same
/// group has just subscribed to the shard.
async fn next(reader: &mut dyn RecordReader) -> ReadOutcome {
    within("an answer of a reader", async {
        loop {
            match reader.next().await {
                Ok(outcome) => return outcome,
                Err(error) => assert!(error.retryable, "{error}"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    })
    .await
}

/// Reads until this many records have come. Engines may find nothing in between.
async fn read_count(reader: &mut dyn RecordReader, count: usize) -> Vec<Record> {
    let mut all = Vec::new();
    within("records that were put", async {
        while all.len() < count {
            match next(reader).await {
                ReadOutcome::Records(records) => all.extend(records),
                end @ (ReadOutcome::ShardEnd | ReadOutcome::Expired) => panic!("an open shard gave {end:?}"),
            }
        }
    })
    .await;
    all
}

/// Reads up to the end of what is stored, which is this many records.
async fn drain(reader: &mut dyn RecordReader, count: usize) -> Vec<Record> {
    let all = read_count(reader, count).await;
    assert_eq!(next(reader).await, ReadOutcome::Records(Vec::new()), "nothing else was put");
    assert!(all.is_sorted_by(|a, b| a.sequence < b.sequence), "records come in ascending order, none twice");
    all
}

async fn put(stream: &dyn VoteStream, hash: u128, data: impl Into<Bytes>) -> Stored {
    stream.put(hash, data.into()).await.unwrap()
}

/// Checks [`VoteStream`] on an empty stream.
pub async fn check_stream(ports: Ports) {
    let stream = ports.stream;
    let shards = stream.list_shards().await.unwrap();
    let ranges: Vec<HashRange> = shards.iter().filter(|shard| shard.open).map(|shard| shard.range).collect();
    assert!(HashRanges::union_of(ranges.iter().copied()).is_all(), "the open shards own every hash");
    for (at, range) in ranges.iter().enumerate() {
        let others = ranges.iter().enumerate().filter(|&(other, _)| other != at);
        assert!(others.into_iter().all(|(_, other)| range.intersection(other).is_none()), "exactly once");
    }

    // Put at both edges of each shard's range: each record is stored in its shard, after earlier ones.
    let mut expected = BTreeMap::<ShardId, Vec<(SequenceNumber, Bytes)>>::new();
    for (at, hash) in ranges.iter().flat_map(|range| [range.start, range.end]).enumerate() {
        let data = Bytes::from(format!("edge {at}"));
        let stored = put(&*stream, hash, data.clone()).await;
        let shards = stream.list_shards().await.unwrap();
        let shard = shards.iter().find(|shard| shard.id == stored.shard).expect("a shard that put named is listed");
        assert!(shard.open && shard.range.contains(hash), "{hash} was stored in {shard:?}");
        assert!(stored.sequence > SequenceNumber::ZERO);
        expected.entry(stored.shard).or_default().push((stored.sequence, data));
    }
    // Many more records in one shard, and a large one.
    let hash = ranges[0].start;
    let mut shard = None;
    for at in 0..150 {
        let data = Bytes::from(vec![at as u8; if at == 70 { 500_000 } else { at }.max(1)]);
        let stored = put(&*stream, hash, data.clone()).await;
        shard = Some(stored.shard.clone());
        expected.entry(stored.shard).or_default().push((stored.sequence, data));
    }
    let shard = shard.unwrap();

    for (shard, expected) in &expected {
        assert!(expected.is_sorted_by(|a, b| a.0 < b.0), "records put one after the other keep their order");
        let mut first = stream.reader(Group::Persist, shard, SequenceNumber::ZERO).await.unwrap();
        let all = drain(&mut *first, expected.len()).await;
        let found: Vec<_> = all.iter().map(|record| (record.sequence, record.data.clone())).collect();
        assert!(found == *expected, "every record is read as it was put, none is skipped ({shard})");
        let mut second = stream.reader(Group::Tally, shard, SequenceNumber::ZERO).await.unwrap();
        assert!(drain(&mut *second, all.len()).await == all, "both groups read the same, arrival times included");
        for at in [0, all.len() / 2, all.len() - 1] {
            let mut later = stream.reader(Group::Persist, shard, all[at].sequence).await.unwrap();
            assert!(
                drain(&mut *later, all.len() - at - 1).await == all[at + 1..],
                "a reader starts directly after its starting point"
            );
        }
        // At the end, reads return nothing, each in limited time; then a new record comes.
        for _ in 0..2 {
            assert_eq!(next(&mut *first).await, ReadOutcome::Records(Vec::new()));
        }
        let range = stream.list_shards().await.unwrap().into_iter().find(|known| known.id == *shard).unwrap().range;
        let (stored, read) =
            tokio::join!(put(&*stream, range.start, "while a reader waits"), read_count(&mut *first, 1));
        assert_eq!((read[0].sequence, &read[0].data[..]), (stored.sequence, &b"while a reader waits"[..]));
    }

    // Several lanes at once.
    let mut reader = stream.reader(Group::Persist, &shard, SequenceNumber::ZERO).await.unwrap();
    let before = drain(&mut *reader, expected[&shard].len() + 1).await;
    let writing = race(|racer| {
        let stream = stream.clone();
        async move {
            let mut stored = Vec::new();
            for at in 0..25 {
                let data = format!("{racer} {at}");
                stored.push((put(&*stream, hash, data.clone()).await.sequence, Bytes::from(data)));
            }
            stored
        }
    });
    let (written, read) = tokio::join!(writing, read_count(&mut *reader, RACERS as usize * 25));
    for written in &written {
        assert!(written.is_sorted_by(|a, b| a.0 < b.0), "each lane's records keep their order");
    }
    let written: BTreeMap<_, _> = written.into_iter().flatten().collect();
    let read_back: Vec<_> = read.iter().map(|record| (record.sequence, record.data.clone())).collect();
    assert!(read_back == written.into_iter().collect::<Vec<_>>(), "what is read is what was put, once, in order");
    let mut again = stream.reader(Group::Tally, &shard, SequenceNumber::ZERO).await.unwrap();
    let all = drain(&mut *again, before.len() + read.len()).await;
    assert!(all == [before, read].concat(), "the same at every reading");
}

fn vote(poll: &str, bucket: u32, user: &str, option: &str, sequence: u64, index: u32) -> VoteWrite<'static> {
    VoteWrite {
        poll_id: Cow::Owned(poll_id(poll)),
        bucket,
        user_id: user.to_owned().into(),
        option_id: option.into(),
        position: Position { sequence: SequenceNumber::from_u64(sequence), index },
        accepted_at: Timestamp(5_000),
    }
}

fn replaced(previous: &str) -> VoteOutcome {
    VoteOutcome::Replaced { previous: previous.into() }
}

fn already_stored(previous: Option<&str>) -> VoteOutcome {
    VoteOutcome::AlreadyStored { previous: previous.map(Arc::from) }
}

/// Checks [`votestream_core::port::VoteStore`] on an empty store.
pub async fn check_votes(ports: Ports) {
    let store = ports.votes.clone();
    assert_eq!(store.write(&[]).await.unwrap(), []);
    let two = poll("votes", &["a", "b"]);
    assert_eq!(store.recount(&two).await.unwrap(), [0, 0], "a poll without votes");

    // The history of one user: the position decides, and a repeated write changes nothing.
    for (option, sequence, index, outcome) in [
        ("a", 10, 5, VoteOutcome::Inserted),
        ("a", 10, 5, already_stored(None)),
        ("b", 10, 4, VoteOutcome::Superseded),
        ("b", 9, 9, VoteOutcome::Superseded),
        ("b", 10, 6, replaced("a")),
        ("b", 10, 6, already_stored(Some("a"))),
        ("a", 10, 5, VoteOutcome::Superseded),
        ("b", 300, 0, replaced("b")),
        ("b", 300, 0, already_stored(Some("b"))),
        ("a", 299, 7, VoteOutcome::Superseded),
        ("a", 1 << 40, 0, replaced("b")),
    ] {
        let outcomes = store.write(&[vote("votes", 1, "user", option, sequence, index)]).await.unwrap();
        assert_eq!(outcomes, [outcome], "{option} at ({sequence}, {index})");
    }
    assert_eq!(store.recount(&two).await.unwrap(), [1, 0]);

    // Outcomes come in the order of the votes, not of the keys. Polls and users do not mix.
    let (before, mixed) = (
        [vote("votes", 0, "old", "a", 20, 0), vote("votes", 2, "older", "a", 10, 0)],
        [
            vote("votes", 1, "z", "b", 20, 1),
            vote("votes", 2, "older", "b", 20, 2),
            vote("votes", 0, "a", "b", 20, 3),
            vote("votes", 0, "old", "b", 19, 4),
            vote("votes.2", 0, "a", "a", 20, 5),
            vote("vote", 0, "a", "a", 20, 6),
            vote("votes", 0, "Ünï — 🗳", "b", 20, 7),
            vote("votes", 1, "user", "b", 20, 8),
        ],
    );
    store.write(&before).await.unwrap();
    let outcomes = store.write(&mixed).await.unwrap();
    let inserted = || VoteOutcome::Inserted;
    let expected = [
        inserted(),
        replaced("a"),
        inserted(),
        VoteOutcome::Superseded,
        inserted(),
        inserted(),
        inserted(),
        VoteOutcome::Superseded,
    ];
    assert_eq!(outcomes, expected);
    assert_eq!(store.recount(&two).await.unwrap(), [2, 4]);
    assert_eq!(store.recount(&poll("votes", &["x", "b", "a"])).await.unwrap(), [0, 4, 2], "in the poll's order");
    assert!(store.recount(&poll("votes", &["a"])).await.is_err(), "a vote for an option that the poll does not have");
    assert_eq!(store.recount(&poll("votes.2", &["a", "b"])).await.unwrap(), [1, 0]);
    assert_eq!(store.recount(&poll("vote", &["a", "b"])).await.unwrap(), [1, 0]);

    check_a_large_call(&ports).await;
    check_vote_races(&ports).await;
}

/// More votes than any engine accepts in one request, written twice, as after an error.
async fn check_a_large_call(ports: &Ports) {
    let store = &ports.votes;
    let user = |at: u32| format!("user-{at}");
    let votes: Vec<_> = (0..2_000).map(|at| vote("large", at % 3, &user(at), "a", 1, at)).collect();
    let mut changed = votes.clone();
    changed[..500].iter_mut().for_each(|vote| {
        vote.option_id = "b".into();
        vote.position.sequence = SequenceNumber::from_u64(2);
    });
    changed.shuffle(&mut StdRng::seed_from_u64(1));
    assert!(store.write(&votes).await.unwrap().iter().all(|outcome| *outcome == VoteOutcome::Inserted));
    for repeated in [false, true] {
        let outcomes = store.write(&changed).await.unwrap();
        for (vote, outcome) in changed.iter().zip(outcomes) {
            let expected = match (&*vote.option_id, repeated) {
                ("a", _) => already_stored(None),
                (_, false) => replaced("a"),
                (_, true) => already_stored(Some("a")),
            };
            assert_eq!(outcome, expected, "{}", vote.user_id);
        }
    }
    assert_eq!(store.recount(&poll("large", &["a", "b"])).await.unwrap(), [1_500, 500]);
}

/// Several tasks write for the same users at once. The outcomes must fit one order of the writes.
async fn check_vote_races(ports: &Ports) {
    let options: Vec<String> = (0..RACERS).map(|racer| format!("option-{racer}")).collect();
    let user = |at: u32| format!("user-{at}");
    let position_of = |option: &str| options.iter().position(|known| known == option).unwrap();
    let written = race(|racer| {
        let store = ports.votes.clone();
        let option = options[racer as usize].clone();
        // Racer n writes at position n, in its own order, in calls of different sizes.
        let mut users: Vec<u32> = (0..RACES).collect();
        users.shuffle(&mut StdRng::seed_from_u64(racer.into()));
        async move {
            let votes: Vec<_> =
                users.iter().map(|&at| vote("race", at % 2, &user(at), &option, 7 + u64::from(racer), at)).collect();
            let mut outcomes = Vec::new();
            for votes in votes.chunks(1 + racer as usize) {
                outcomes.extend(store.write(votes).await.unwrap());
            }
            (racer as usize, users.into_iter().zip(outcomes).collect::<BTreeMap<_, _>>())
        }
    })
    .await;
    for at in 0..RACES {
        let (mut inserted, mut after) = (Vec::new(), BTreeMap::new());
        for (racer, outcomes) in &written {
            match &outcomes[&at] {
                VoteOutcome::Inserted => inserted.push(*racer),
                VoteOutcome::Replaced { previous } => {
                    let twice = after.insert(position_of(previous), *racer);
                    assert_eq!(twice, None, "one vote was replaced by two");
                }
                VoteOutcome::Superseded => {
                    assert!(*racer + 1 < RACERS as usize, "nothing stands later than the last");
                }
                outcome @ VoteOutcome::AlreadyStored { .. } => panic!("{outcome:?}, but nobody wrote twice"),
            }
        }
        // From the first stored vote on, each vote was replaced by a later one, up to the last of all.
        assert_eq!(inserted.len(), 1, "exactly one write finds no vote");
        let mut history = vec![inserted[0]];
        while let Some(next) = after.remove(history.last().unwrap()) {
            history.push(next);
        }
        assert!(after.is_empty(), "what was replaced had been stored: {after:?} does not follow {history:?}");
        assert!(history.is_sorted_by(|a, b| a < b), "only later votes replace: {history:?}");
        let last = RACERS as usize - 1;
        assert_eq!(history.last(), Some(&last), "the highest position wins");
        let previous = history.len().checked_sub(2).map(|at| options[history[at]].as_str());
        let again = vote("race", at % 2, &user(at), &options[last], 7 + last as u64, at);
        assert_eq!(ports.votes.write(&[again]).await.unwrap(), [already_stored(previous)]);
    }
    let names: Vec<_> = options.iter().map(String::as_str).collect();
    let counts = ports.votes.recount(&poll("race", &names)).await.unwrap();
    let mut expected = vec![0; RACERS as usize];
    expected[RACERS as usize - 1] = u64::from(RACES);
    assert_eq!(counts, expected);

    // Several owners write the same votes, as after a take-over: they are stored once.
    let written = race(|_| {
        let store = ports.votes.clone();
        let votes: Vec<_> = (0..RACES).map(|at| vote("zombies", 0, &user(at), "a", 1, at)).collect();
        async move { store.write(&votes).await.unwrap() }
    })
    .await;
    for at in 0..RACES as usize {
        let (stored, found): (Vec<_>, Vec<_>) =
            written.iter().map(|outcomes| &outcomes[at]).partition(|outcome| **outcome == VoteOutcome::Inserted);
        assert_eq!(stored.len(), 1, "exactly one of the same writes stores");
        assert!(found.into_iter().all(|outcome| *outcome == already_stored(None)));
    }
}

fn delta(poll: &str, counts: &[(&str, i64)]) -> TallyDelta {
    TallyDelta {
        poll_id: poll_id(poll),
        counts: counts.iter().map(|&(option, count)| (option.into(), count)).collect(),
    }
}

/// Rows in a form that does not depend on their order or on sums that are zero.
fn sums(rows: &[TallyRow]) -> BTreeMap<(Group, ShardId), (SequenceNumber, BTreeMap<String, i64>)> {
    let sums: BTreeMap<_, _> = rows
        .iter()
        .map(|row| {
            let counts = row.counts.iter().filter(|(_, count)| *count != 0);
            let counts: BTreeMap<_, _> = counts.map(|(option, count)| (option.to_string(), *count)).collect();
            ((row.group, row.shard.clone()), (row.position, counts))
        })
        .collect();
    assert_eq!(sums.len(), rows.len(), "one row a group and shard");
    sums
}

/// Checks [`votestream_core::port::TallyStore`] on an empty store.
pub async fn check_tallies(ports: Ports) {
    let store = ports.tallies.clone();
    let at = SequenceNumber::from_u64;
    let (one, two) = (ShardId::new("shard-1"), ShardId::new("shard-2"));
    let counts = |counts: &[(&str, i64)]| counts.iter().map(|(option, count)| ((*option).to_owned(), *count)).collect();
    assert_eq!(store.read(&poll_id("p")).await.unwrap(), []);
    store.add(Group::Tally, &one, at(10), 1, &[]).await.unwrap();

    let persist_one = (Group::Persist, one.clone());
    for (end, epoch, add, position, expected) in [
        (10, 1, vec![("a", 3), ("b", 1)], 10, vec![("a", 3), ("b", 1)]),
        // The same window again, by any owner; and an older one.
        (10, 1, vec![("a", 3), ("b", 1)], 10, vec![("a", 3), ("b", 1)]),
        (10, 9, vec![("a", 3)], 10, vec![("a", 3), ("b", 1)]),
        (9, 9, vec![("a", 3)], 10, vec![("a", 3), ("b", 1)]),
        // The epoch has no effect.
        (300, 1, vec![("a", -5), ("ü — 🗳", 1 << 40)], 300, vec![("a", -2), ("b", 1), ("ü — 🗳", 1 << 40)]),
        (1 << 40, 1, vec![], 1 << 40, vec![("a", -2), ("b", 1), ("ü — 🗳", 1 << 40)]),
        (301, 1, vec![("a", 1)], 1 << 40, vec![("a", -2), ("b", 1), ("ü — 🗳", 1 << 40)]),
    ] {
        store.add(Group::Persist, &one, at(end), epoch, &[delta("p", &add)]).await.unwrap();
        let expected = BTreeMap::from([(persist_one.clone(), (at(position), counts(&expected)))]);
        assert_eq!(sums(&store.read(&poll_id("p")).await.unwrap()), expected, "after the window that ends at {end}");
    }

    // Groups, shards and polls do not mix. Deltas that were added before do not stop the others.
    let call = [delta("p", &[("a", 1)]), delta("p.2", &[("a", 2)]), delta("q", &[])];
    store.add(Group::Tally, &one, at(20), 1, &call[..1]).await.unwrap();
    store.add(Group::Tally, &one, at(20), 1, &call).await.unwrap();
    store.add(Group::Persist, &two, at(5), 1, &[delta("p", &[("a", 7)])]).await.unwrap();
    let rows = sums(&store.read(&poll_id("p")).await.unwrap());
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[&(Group::Tally, one.clone())], (at(20), counts(&[("a", 1)])));
    assert_eq!(rows[&(Group::Persist, two.clone())], (at(5), counts(&[("a", 7)])));
    let tally_one = (Group::Tally, one.clone());
    let other = BTreeMap::from([(tally_one.clone(), (at(20), counts(&[("a", 2)])))]);
    assert_eq!(sums(&store.read(&poll_id("p.2")).await.unwrap()), other);
    let empty = BTreeMap::from([(tally_one, (at(20), counts(&[])))]);
    assert_eq!(sums(&store.read(&poll_id("q")).await.unwrap()), empty, "a delta without counts sets the position");

    // Many polls in one call. Several owners add the same windows at once: they are added once.
    let polls: Vec<_> = (0..150).map(|at| format!("many-{at}")).collect();
    race(|_| {
        let (store, one, polls) = (store.clone(), one.clone(), polls.clone());
        async move {
            for end in 1..=3 {
                let deltas: Vec<_> = polls.iter().map(|poll| delta(poll, &[("a", 1), ("b", 10)])).collect();
                store.add(Group::Persist, &one, at(end), 1, &deltas).await.unwrap();
            }
        }
    })
    .await;
    let expected = BTreeMap::from([(persist_one, (at(3), counts(&[("a", 3), ("b", 30)])))]);
    for poll in &polls {
        assert_eq!(sums(&store.read(&poll_id(poll)).await.unwrap()), expected, "{poll}");
    }
}

/// Checks [`votestream_core::port::PollStore`] on an empty store.
pub async fn check_polls(ports: Ports) {
    let store = ports.polls.clone();
    let first = poll("b", &["x", "y", "ü — 🗳"]);
    assert_eq!(store.get(&first.id).await.unwrap(), None);
    assert_eq!(store.begin_close(&first.id).await.unwrap(), None);
    assert_eq!(store.close(&first.id, Timestamp(1)).await.unwrap(), None);
    let result = |votes| FinalResult { votes: vec![votes, 0, u64::MAX >> 1], finalized_at: Timestamp(9_999) };
    assert_eq!(store.finish(&first.id, &result(1)).await.unwrap(), None);
    assert_eq!(store.release(&first.id, Timestamp(1)).await.unwrap(), None);
    assert_eq!(store.get(&first.id).await.unwrap(), None, "closing, finishing and releasing create nothing");

    assert_eq!(store.create(&first).await.unwrap(), Created::New);
    assert_eq!(store.get(&first.id).await.unwrap().as_ref(), Some(&first), "every field is kept");
    let mut other = poll("b", &["z"]);
    other.source = PollSource::Stream;
    assert_eq!(store.create(&other).await.unwrap(), Created::Existing(Box::new(first.clone())));
    assert_eq!(store.get(&first.id).await.unwrap().as_ref(), Some(&first), "creating never overwrites");

    // List polls in the order of their ids, after a given one, with a limit.
    let mut all = vec![first.clone()];
    for id in ["c", "a", "B", "b.1", "b~", "_", "10", "9"] {
        let mut other = poll(id, &["x"]);
        other.source = PollSource::Stream;
        other.final_result = Some(FinalResult { votes: vec![3], finalized_at: Timestamp(1) });
        other.needs_recount = true;
        assert_eq!(store.create(&other).await.unwrap(), Created::New);
        all.push(other);
    }
    all.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(store.list(None, 100).await.unwrap(), all);
    for (at, after) in all.iter().enumerate() {
        for limit in [1, 3, 100] {
            let expected = &all[at + 1..all.len().min(at + 1 + limit)];
            assert_eq!(store.list(Some(&after.id), limit).await.unwrap(), expected);
        }
    }
    assert_eq!(
        store.list(Some(&poll_id("b.0")), 1).await.unwrap()[0].id,
        poll_id("b.1"),
        "after an id that does not exist"
    );

    // Closing has two steps, happens once, and moves closes_at only to an earlier time.
    assert_eq!(store.close(&first.id, Timestamp(1)).await.unwrap(), Some(first.clone()), "nobody has asked");
    let asked = Poll { closing: Closing::Asked, ..first.clone() };
    for _ in 0..2 {
        assert_eq!(store.begin_close(&first.id).await.unwrap().as_ref(), Some(&asked));
        assert_eq!(store.get(&first.id).await.unwrap().as_ref(), Some(&asked));
    }
    assert_eq!(
        store.finish(&first.id, &result(1)).await.unwrap().as_ref(),
        Some(&asked),
        "not while it is being closed"
    );
    let closed = Poll { closes_at: Timestamp(7_999), closing: Closing::Done, ..first.clone() };
    for closes_at in [7_999, 7_998, 8_500] {
        assert_eq!(store.close(&first.id, Timestamp(closes_at)).await.unwrap().as_ref(), Some(&closed));
        assert_eq!(store.begin_close(&first.id).await.unwrap().as_ref(), Some(&closed), "settled for ever");
    }
    let late = poll("late", &["x"]);
    store.create(&late).await.unwrap();
    store.begin_close(&late.id).await.unwrap();
    let kept = Poll { closing: Closing::Done, ..late.clone() };
    assert_eq!(store.close(&late.id, Timestamp(9_001)).await.unwrap(), Some(kept), "never to a later time");
    let first = Poll { closing: Closing::Done, ..first };
    // A poll that waits for a recount gets no result. A poll that has a result keeps it.
    store.set_needs_recount(&first.id, true).await.unwrap();
    store.set_needs_recount(&first.id, true).await.unwrap();
    let waiting = store.finish(&first.id, &result(1)).await.unwrap().unwrap();
    assert!(waiting.needs_recount && waiting.final_result.is_none());
    assert_eq!(store.get(&first.id).await.unwrap(), Some(waiting));
    store.set_needs_recount(&first.id, false).await.unwrap();
    let finished = store.finish(&first.id, &result(2)).await.unwrap().unwrap();
    let expected = Poll { closes_at: Timestamp(7_999), final_result: Some(result(2)), ..first.clone() };
    assert_eq!(finished, expected);
    assert_eq!(store.finish(&first.id, &result(3)).await.unwrap().unwrap(), expected, "final is final");
    store.set_needs_recount(&first.id, true).await.unwrap();
    let flagged = Poll { needs_recount: true, ..expected };
    assert_eq!(store.get(&first.id).await.unwrap(), Some(flagged), "a flag takes no result away");

    check_releasing(&ports).await;
    check_poll_races(&ports).await;
}

/// Visibility is kept, results are released once, and nothing else takes the release back.
async fn check_releasing(ports: &Ports) {
    let store = ports.polls.clone();
    let key = Some(KeyId([0, 1, 2, 3, 0xfc, 0xfd, 0xfe, 0xff]));
    for (at, visibility) in [Visibility::Live, Visibility::WhenFinal, Visibility::OnRelease].into_iter().enumerate() {
        let poll = poll(&format!("release-{at}"), &["x"]).with_visibility(visibility).with_pseudonym_key(key);
        assert_eq!(store.create(&poll).await.unwrap(), Created::New);
        assert_eq!(store.get(&poll.id).await.unwrap().as_ref(), Some(&poll), "every field is kept");
        let released_at = (visibility == Visibility::OnRelease).then_some(Timestamp(5_000));
        let released = Poll { released_at, ..poll.clone() };
        for moment in [5_000, 4_000, 6_000] {
            let answer = store.release(&poll.id, Timestamp(moment)).await.unwrap();
            assert_eq!(answer.as_ref(), Some(&released), "the first release stays");
        }
        store.begin_close(&poll.id).await.unwrap();
        store.close(&poll.id, Timestamp(8_000)).await.unwrap();
        let result = FinalResult { votes: vec![1], finalized_at: Timestamp(9_999) };
        let last = store.finish(&poll.id, &result).await.unwrap();
        let (closing, closes_at) = (Closing::Done, Timestamp(8_000));
        let expected = Poll { closing, closes_at, final_result: Some(result), ..released };
        assert_eq!(last.as_ref(), Some(&expected));
        assert_eq!(store.release(&poll.id, Timestamp(1)).await.unwrap().as_ref(), Some(&expected));
    }
    let poll = poll("release-race", &["x"]).with_visibility(Visibility::OnRelease);
    store.create(&poll).await.unwrap();
    let answers = race(|racer| {
        let (store, id) = (store.clone(), poll.id.clone());
        async move { store.release(&id, Timestamp(i64::from(racer))).await.unwrap() }
    })
    .await;
    let stored = store.get(&poll.id).await.unwrap();
    assert!(stored.as_ref().is_some_and(|poll| poll.released_at.is_some()));
    assert!(answers.iter().all(|answer| *answer == stored), "all see the first release");
}

async fn check_poll_races(ports: &Ports) {
    let id = poll_id("race");
    let created = race(|racer| {
        let (store, options) = (ports.polls.clone(), [format!("option-{racer}")]);
        async move {
            let mine = poll("race", &[&options[0]]);
            (store.create(&mine).await.unwrap(), mine)
        }
    })
    .await;
    let stored = ports.polls.get(&id).await.unwrap().unwrap();
    let new: Vec<_> = created.iter().filter(|(created, _)| *created == Created::New).collect();
    assert!(new.len() == 1 && new[0].1 == stored, "exactly one creates");
    for (created, _) in &created {
        assert!(matches!(created, Created::New) || *created == Created::Existing(Box::new(stored.clone())));
    }
    // Closing, flagging and finishing at once: no change is lost.
    let finished = race(|racer| {
        let (store, id) = (ports.polls.clone(), id.clone());
        async move {
            let result = FinalResult { votes: vec![racer.into()], finalized_at: Timestamp(racer.into()) };
            let at = Timestamp(5_000 + i64::from(racer));
            let (asked, closed, finished) =
                tokio::join!(store.begin_close(&id), store.close(&id, at), store.finish(&id, &result));
            asked.unwrap().unwrap();
            let closed = closed.unwrap().unwrap();
            assert!(closed.closing != Closing::Done || closed.closes_at <= Timestamp(5_100));
            finished.unwrap().unwrap().final_result
        }
    })
    .await;
    // The last caller may have left the closing asked for; then nothing is final yet.
    ports.polls.close(&id, Timestamp(5_000)).await.unwrap();
    let last = FinalResult { votes: vec![99], finalized_at: Timestamp(99) };
    let stored = ports.polls.finish(&id, &last).await.unwrap().unwrap();
    assert!(stored.final_result.is_some() && stored.closing != Closing::Asked);
    let results = finished.iter().filter(|result| result.is_some());
    assert!(results.clone().all(|result| *result == stored.final_result), "everybody sees the one result");
}

fn row(shard: &str, started: bool, parents: &[&str]) -> ShardRow {
    let parents = parents.iter().map(|parent| ShardId::new(*parent)).collect();
    let range = HashRange { start: 5, end: u128::MAX - 5 };
    ShardRow { started, ..ShardRow::new(ShardId::new(shard), range, parents) }
}

fn progress(checkpoint: u64, window_end: u64) -> Progress {
    let producer = |at: u64| StoredProducer {
        producer: u128::MAX - u128::from(at),
        range: HashRange { start: at.into(), end: u128::MAX - u128::from(at) },
        number: u64::MAX - at,
        arrived_at: Timestamp(at as i64),
    };
    Progress {
        checkpoint: SequenceNumber::from_u64(checkpoint),
        window_end: SequenceNumber::from_u64(window_end),
        dedup: (0..checkpoint.min(500)).map(producer).collect(),
        watermark: Timestamp(checkpoint as i64 * 10),
        ended: false,
    }
}

/// The row as every later read must show it.
async fn stored_row(ports: &Ports, group: Group, shard: &ShardId) -> Option<ShardRow> {
    ports.leases.list(group).await.unwrap().into_iter().find(|row| row.shard == *shard)
}

/// Checks [`votestream_core::port::LeaseStore`] on an empty store.
pub async fn check_leases(ports: Ports) {
    const GROUP: Group = Group::Persist;
    let store = ports.leases.clone();
    let root = row("shard-1", true, &[]);
    let shard = root.shard.clone();
    let blank = Progress::default();

    // Without a row every condition fails, and nothing is created.
    assert_eq!(store.take(GROUP, &shard, &Lease::default(), "me").await.unwrap(), None);
    assert_eq!(store.renew(GROUP, &shard, 0).await.unwrap(), None);
    store.release(GROUP, &shard, 0).await.unwrap();
    let outcome = store.write_progress(GROUP, &shard, 0, blank.span(), &blank).await.unwrap();
    assert_eq!(outcome, WriteOutcome::Refused(None));
    assert_eq!(store.list(GROUP).await.unwrap(), []);

    // Creating: once, per group.
    store.create(GROUP, &root).await.unwrap();
    store.create(GROUP, &row("shard-1", false, &["other"])).await.unwrap();
    assert_eq!(store.list(GROUP).await.unwrap(), std::slice::from_ref(&root), "creating never overwrites");
    assert_eq!(store.list(Group::Tally).await.unwrap(), [], "groups do not mix");

    // Taking a shard succeeds only if the observed lease is still stored.
    for observed in [Lease { epoch: 1, ..Lease::default() }, Lease { counter: 1, ..Lease::default() }] {
        assert_eq!(store.take(GROUP, &shard, &observed, "me").await.unwrap(), None);
    }
    let taken = store.take(GROUP, &shard, &root.lease, "me").await.unwrap().unwrap();
    let lease = Lease { owner: Some("me".into()), counter: 1, epoch: 1, wanted_by: None };
    assert_eq!(taken, ShardRow { lease: lease.clone(), ..root.clone() });
    assert_eq!(stored_row(&ports, GROUP, &shard).await, Some(taken.clone()));
    assert_eq!(store.take(GROUP, &shard, &root.lease, "thief").await.unwrap(), None, "it moved on");

    // Renewing changes only the counter.
    let lease = Lease { counter: 2, ..lease };
    assert_eq!(store.renew(GROUP, &shard, 1).await.unwrap(), Some(lease.clone()));
    for epoch in [0, 2] {
        assert_eq!(store.renew(GROUP, &shard, epoch).await.unwrap(), None, "another epoch");
        store.request(GROUP, &shard, epoch, "thief").await.unwrap();
        store.release(GROUP, &shard, epoch).await.unwrap();
    }
    assert_eq!(stored_row(&ports, GROUP, &shard).await.unwrap().lease, lease, "a lost condition changes nothing");
    assert_eq!(store.take(GROUP, &shard, &taken.lease, "thief").await.unwrap(), None, "the owner showed life");

    // Asking for a shard: the first one counts; the owner learns of it when it renews.
    store.request(GROUP, &shard, 1, "second").await.unwrap();
    store.request(GROUP, &shard, 1, "third").await.unwrap();
    let lease = Lease { counter: 3, wanted_by: Some("second".into()), ..lease };
    assert_eq!(store.renew(GROUP, &shard, 1).await.unwrap(), Some(lease.clone()));

    // Progress is written only if the epoch and both ends are still stored.
    let steps = [progress(0, 10), progress(10, 10), progress(10, 700), progress(700, 1 << 40)];
    let mut previous = blank.clone();
    for step in steps {
        let wrong = [(0, previous.span()), (2, previous.span()), (1, progress(3, 4).span()), (1, step.span())];
        let now = stored_row(&ports, GROUP, &shard).await.unwrap();
        for (epoch, claimed) in wrong {
            let outcome = store.write_progress(GROUP, &shard, epoch, claimed, &step).await.unwrap();
            assert_eq!(outcome, WriteOutcome::Refused(Some(Box::new(now.clone()))), "({epoch}, {claimed:?})");
        }
        let outcome = store.write_progress(GROUP, &shard, 1, previous.span(), &step).await.unwrap();
        assert_eq!(outcome, WriteOutcome::Stored);
        let expected = ShardRow { lease: lease.clone(), progress: step.clone(), ..root.clone() };
        assert_eq!(stored_row(&ports, GROUP, &shard).await, Some(expected), "and changes nothing else");
        previous = step;
    }

    // Handing over: release keeps epoch, counter and progress. A row without an owner cannot be renewed.
    store.release(GROUP, &shard, 1).await.unwrap();
    store.release(GROUP, &shard, 1).await.unwrap();
    assert_eq!(store.renew(GROUP, &shard, 1).await.unwrap(), None, "nobody owns it");
    let released = stored_row(&ports, GROUP, &shard).await.unwrap();
    assert_eq!(
        (&released.lease.owner, released.lease.epoch, released.lease.counter, &released.progress),
        (&None, 1, 3, &previous)
    );
    let taken = store.take(GROUP, &shard, &released.lease, "second").await.unwrap().unwrap();
    let lease = Lease { owner: Some("second".into()), counter: 4, epoch: 2, wanted_by: None };
    assert_eq!(taken, ShardRow { lease: lease.clone(), progress: previous.clone(), ..root.clone() });
    // The zombie of epoch 1.
    let outcome = store.write_progress(GROUP, &shard, 1, previous.span(), &progress(1, 1)).await.unwrap();
    assert_eq!(outcome, WriteOutcome::Refused(Some(Box::new(taken.clone()))));
    store.release(GROUP, &shard, 1).await.unwrap();
    assert_eq!(stored_row(&ports, GROUP, &shard).await, Some(taken));

    // The end: nothing changes any more.
    let ended = Progress { ended: true, ..previous.clone() };
    assert_eq!(store.write_progress(GROUP, &shard, 2, previous.span(), &ended).await.unwrap(), WriteOutcome::Stored);
    let outcome = store.write_progress(GROUP, &shard, 2, ended.span(), &previous).await.unwrap();
    let last = ShardRow { lease: lease.clone(), progress: ended.clone(), ..root };
    assert_eq!(outcome, WriteOutcome::Refused(Some(Box::new(last.clone()))));
    assert_eq!(store.take(GROUP, &shard, &lease, "me").await.unwrap(), None, "an ended shard is not taken");

    // A child is blank until it is started, and it is started once.
    let child = row("shard-2", false, &["shard-1", "shard-0"]);
    store.create(GROUP, &child).await.unwrap();
    assert_eq!(store.take(GROUP, &child.shard, &child.lease, "me").await.unwrap(), None, "it is not started");
    let inherited = Progress { checkpoint: SequenceNumber::ZERO, window_end: SequenceNumber::ZERO, ..progress(77, 0) };
    store.start(GROUP, &child.shard, &inherited).await.unwrap();
    store.start(GROUP, &child.shard, &progress(5, 5)).await.unwrap();
    let started = ShardRow { started: true, progress: inherited, ..child.clone() };
    assert_eq!(
        stored_row(&ports, GROUP, &child.shard).await,
        Some(started.clone()),
        "the second start changes nothing"
    );
    store.create(GROUP, &child).await.unwrap();
    let both: BTreeSet<_> = store.list(GROUP).await.unwrap().into_iter().map(|row| row.shard).collect();
    assert_eq!(both, BTreeSet::from([shard.clone(), child.shard.clone()]));
    assert_eq!(stored_row(&ports, GROUP, &shard).await, Some(last));

    check_what_rows_remember(&ports, &shard, &started).await;
    check_lease_races(&ports, &started).await;
}

/// Where shards end, what was lost, and when a row may be deleted. `ended` is a shard that has ended, `open` one that has
/// not.
async fn check_what_rows_remember(ports: &Ports, ended: &ShardId, open: &ShardRow) {
    const GROUP: Group = Group::Persist;
    let store = &ports.leases;
    let end = SequenceNumber::from_u64(1 << 50);
    let lost = |from, until| LostTime { from: Timestamp(from), until: Timestamp(until) };
    let missing = ShardId::new("shard-9");
    store.note_end(GROUP, &missing, end).await.unwrap();
    store.note_lost(GROUP, &missing, lost(1, 2)).await.unwrap();
    store.delete(GROUP, &missing).await.unwrap();
    assert_eq!(stored_row(ports, GROUP, &missing).await, None, "nothing is noted of a shard without a row");

    // A shard of its own, so that the caller's rows stay as they are.
    let noted = ShardRow { shard: missing.clone(), ..open.clone() };
    store.create(GROUP, &noted).await.unwrap();
    store.note_end(GROUP, &missing, end).await.unwrap();
    store.note_end(GROUP, &missing, SequenceNumber::from_u64(7)).await.unwrap();
    let noted = ShardRow { ends_at: Some(end), ..noted };
    assert_eq!(stored_row(ports, GROUP, &missing).await, Some(noted.clone()), "the end of a shard never changes");
    for (from, until, joined) in
        [(500, 700, (500, 700)), (600, 650, (500, 700)), (300, 400, (300, 700)), (400, 900, (300, 900))]
    {
        store.note_lost(GROUP, &missing, lost(from, until)).await.unwrap();
        let expected = ShardRow { lost: Some(lost(joined.0, joined.1)), ..noted.clone() };
        assert_eq!(stored_row(ports, GROUP, &missing).await, Some(expected), "what was lost is never forgotten");
    }
    let noted = stored_row(ports, GROUP, &missing).await.unwrap();
    let taken = store.take(GROUP, &missing, &noted.lease, "me").await.unwrap().unwrap();
    assert_eq!((taken.ends_at, taken.lost), (noted.ends_at, noted.lost), "the owner is told");
    let last = Progress { ended: true, ..taken.progress.clone() };
    let written = store.write_progress(GROUP, &missing, 1, taken.progress.span(), &last).await.unwrap();
    assert_eq!(written, WriteOutcome::Stored);

    // Only the row of a shard that has ended without a loss is deleted, for its group alone.
    store.delete(GROUP, &missing).await.unwrap();
    store.delete(GROUP, &open.shard).await.unwrap();
    store.delete(Group::Tally, ended).await.unwrap();
    let kept: BTreeSet<_> = store.list(GROUP).await.unwrap().into_iter().map(|row| row.shard).collect();
    assert_eq!(kept, BTreeSet::from([ended.clone(), open.shard.clone(), missing]));
    store.delete(GROUP, ended).await.unwrap();
    store.delete(GROUP, ended).await.unwrap();
    assert_eq!(stored_row(ports, GROUP, ended).await, None);

    // The row of a shard that nobody can read any more comes into the store as it is.
    let unread = ShardId::new("shard-8");
    let progress = Progress { ended: true, ..Progress::default() };
    let row = ShardRow { shard: unread.clone(), started: true, progress, ..row("", true, &[]) };
    store.create(GROUP, &row).await.unwrap();
    assert_eq!(stored_row(ports, GROUP, &unread).await, Some(row));
}

async fn check_lease_races(ports: &Ports, row: &ShardRow) {
    const GROUP: Group = Group::Persist;
    let shard = &row.shard;
    let taken = race(|racer| {
        let (store, shard, lease) = (ports.leases.clone(), shard.clone(), row.lease.clone());
        async move { store.take(GROUP, &shard, &lease, &format!("worker-{racer}")).await.unwrap() }
    })
    .await;
    let taken: Vec<_> = taken.into_iter().flatten().collect();
    assert_eq!(taken.len(), 1, "exactly one takes what all have observed");
    assert_eq!(stored_row(ports, GROUP, shard).await.as_ref(), Some(&taken[0]), "it got the row that its write made");

    let previous = row.progress.span();
    let outcomes = race(|racer| {
        let (store, shard) = (ports.leases.clone(), shard.clone());
        async move {
            let mine = progress(100 + u64::from(racer), 200);
            (store.write_progress(GROUP, &shard, 1, previous, &mine).await.unwrap(), mine)
        }
    })
    .await;
    let now = stored_row(ports, GROUP, shard).await.unwrap();
    let (stored, refused): (Vec<_>, Vec<_>) =
        outcomes.into_iter().partition(|(outcome, _)| *outcome == WriteOutcome::Stored);
    assert!(stored.len() == 1 && stored[0].1 == now.progress, "exactly one moves on from where all were");
    for (outcome, _) in refused {
        assert_eq!(outcome, WriteOutcome::Refused(Some(Box::new(now.clone()))), "the others see that");
    }

    // Renewals and progress at once: neither undoes the other.
    let counters = race(|_| {
        let (store, shard) = (ports.leases.clone(), shard.clone());
        async move { store.renew(GROUP, &shard, 1).await.unwrap().unwrap().counter }
    });
    let next = progress(200, 300);
    let write = ports.leases.write_progress(GROUP, shard, 1, now.progress.span(), &next);
    let (counters, written) = tokio::join!(counters, write);
    assert_eq!(written.unwrap(), WriteOutcome::Stored);
    let counters: BTreeSet<_> = counters.into_iter().collect();
    let first = taken[0].lease.counter + 1;
    assert_eq!(counters, (first..first + u64::from(RACERS)).collect(), "every renewal counts");
    let last = stored_row(ports, GROUP, shard).await.unwrap();
    assert_eq!((last.lease.counter, last.progress), (first + u64::from(RACERS) - 1, next));
}
