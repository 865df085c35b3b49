//! Tests admission with a store of polls that counts its reads.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::{Instant, advance};
use tonic::codegen::Bytes;
use votestream_core::{
    Closing, HashRange, Poll, PollOption, PollSource, SequenceNumber, ShardId,
    clock::SystemClock,
    model::{poll::FinalResult, pseudonym::PseudonymKey},
    port::{Created, Group, PollStore, PortError, RecordReader, Shard, Stored, VoteStream},
    record::batch::{self, RecordBody},
    vote_hash,
};
use votestream_proto::VotesMessage;

use super::*;
use crate::session::Session;

/// How long a read of a poll takes.
const READ: Duration = Duration::from_millis(5);
/// Life of poll definitions in tests in which they must not become old.
const LONG: Duration = Duration::from_secs(60);
/// Life of poll definitions in tests in which they become old.
const LIFE: Duration = Duration::from_secs(1);

/// A store with one poll.
#[derive(Default)]
struct Store {
    poll: Mutex<Option<Poll>>,
    reads: Mutex<BTreeMap<String, usize>>,
    under_way: AtomicUsize,
    together: AtomicUsize,
}

impl Store {
    fn reads(&self) -> usize {
        self.reads.lock().values().sum()
    }
}

#[async_trait]
impl PollStore for Store {
    async fn get(&self, id: &PollId) -> Result<Option<Poll>, PortError> {
        *self.reads.lock().entry(id.to_string()).or_default() += 1;
        let together = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        self.together.fetch_max(together, Ordering::Relaxed);
        let poll = self.poll.lock().clone().filter(|poll| poll.id == *id);
        sleep(READ).await;
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        Ok(poll)
    }

    async fn create(&self, _: &Poll) -> Result<Created, PortError> {
        Err(PortError::permanent("nobody creates"))
    }

    async fn list(&self, _: Option<&PollId>, _: usize) -> Result<Vec<Poll>, PortError> {
        Err(PortError::permanent("nobody lists"))
    }

    async fn begin_close(&self, _: &PollId) -> Result<Option<Poll>, PortError> {
        Err(PortError::permanent("nobody closes"))
    }

    async fn close(&self, _: &PollId, _: Timestamp) -> Result<Option<Poll>, PortError> {
        Err(PortError::permanent("nobody closes"))
    }

    async fn finish(&self, _: &PollId, _: &FinalResult) -> Result<Option<Poll>, PortError> {
        Err(PortError::permanent("nobody finishes"))
    }

    async fn release(&self, _: &PollId, _: Timestamp) -> Result<Option<Poll>, PortError> {
        Err(PortError::permanent("nobody releases"))
    }

    async fn set_needs_recount(&self, _: &PollId, _: bool) -> Result<(), PortError> {
        Err(PortError::permanent("nobody recounts"))
    }
}

/// Answers that it has stored what it keeps here.
#[derive(Default)]
struct Sink(Mutex<Vec<(u128, Bytes)>>);

#[async_trait]
impl VoteStream for Sink {
    async fn list_shards(&self) -> Result<Vec<Shard>, PortError> {
        Ok(vec![Shard { id: ShardId::new("shard"), range: HashRange::ALL, parents: vec![], open: true, ends_at: None }])
    }

    async fn put(&self, hash: u128, record: Bytes) -> Result<Stored, PortError> {
        self.0.lock().push((hash, record));
        Ok(Stored { shard: ShardId::new("shard"), sequence: SequenceNumber::from_u64(1) })
    }

    async fn reader(&self, _: Group, _: &ShardId, _: SequenceNumber) -> Result<Box<dyn RecordReader>, PortError> {
        Err(PortError::permanent("nobody reads"))
    }
}

async fn admission(store: &Arc<Store>, clock: Arc<dyn Clock>, life: Duration) -> Admission {
    let options = vec![PollOption { id: "yes".into(), title: String::new() }];
    let (opens_at, closes_at) = (Timestamp::ZERO, clock.now().plus(Duration::from_secs(3_600)));
    let id = PollId::new("known").unwrap();
    let poll = Poll::new(id, String::new(), options, opens_at, closes_at, PollSource::Ingest, 1).unwrap();
    *store.poll.lock() = Some(poll);
    let mut config = IngestConfig::one_machine();
    config.bounds.poll_cache_life = life;
    admission_into(Arc::default(), config, store, clock).await
}

async fn admission_into(sink: Arc<Sink>, config: IngestConfig, store: &Arc<Store>, clock: Arc<dyn Clock>) -> Admission {
    let life = config.bounds.poll_cache_life;
    let producer = Producer::start(config.lanes, sink, clock.clone()).await.unwrap();
    Admission::new(&config, producer, PollCache::new(store.clone(), clock.clone(), life), clock)
}

/// A vote for each of these polls.
fn message<'a>(polls: impl IntoIterator<Item = &'a str>) -> VotesMessage {
    let mut message = VotesMessage::default();
    polls.into_iter().for_each(|poll| message.push(poll, "user", "yes"));
    message
}

/// Admits a message. Returns the number of votes, and the refused ones with the reason.
async fn admit(admission: &Admission, message: VotesMessage) -> (u64, BTreeMap<u64, Refusal>) {
    let (session, messages) = (Arc::<Session>::default(), [message]);
    let permit = admission.acquire(&messages).await;
    let admit = async {
        let votes = admission.admit(&session, &Caller::everybody(), 0, &messages, permit).await;
        session.close();
        votes.unwrap()
    };
    let read = async {
        let mut refused = BTreeMap::new();
        while let Some(settled) = session.settled().await {
            refused.extend(settled.refused.into_iter().map(|refused| (refused.index, refused.refusal)));
        }
        refused
    };
    tokio::join!(admit, read)
}

#[tokio::test(start_paused = true)]
async fn each_missing_poll_is_read_once_and_several_at_a_time() {
    let store = Arc::<Store>::default();
    let admission = admission(&store, Arc::new(SystemClock::new()), LONG).await;
    // Each unknown poll twice in a row, then a known one.
    let unknown: Vec<_> = (0..2_000).map(|at| format!("unknown-{at}")).collect();
    let votes = unknown.iter().flat_map(|id| [id, id.as_str(), "known"]);
    let (votes, refused) = admit(&admission, message(votes)).await;
    assert_eq!((votes, refused.len()), (6_000, 4_000));
    for (at, id) in unknown.iter().enumerate() {
        let refusal = Refusal::NoSuchPoll(PollId::new(id).unwrap());
        assert_eq!(refused.get(&(3 * at as u64)), Some(&refusal));
        assert_eq!(refused.get(&(3 * at as u64 + 1)), Some(&refusal));
        assert!(!refused.contains_key(&(3 * at as u64 + 2)));
    }
    let reads = store.reads.lock().clone();
    assert!(unknown.iter().all(|id| reads[id] == 1), "each once, however many votes name it");
    assert_eq!(store.together.load(Ordering::Relaxed), LOOKUPS_A_MESSAGE_MAX);
}

#[tokio::test(start_paused = true)]
async fn reads_end_with_the_client_and_after_a_while() {
    let store = Arc::<Store>::default();
    let admission = admission(&store, Arc::new(SystemClock::new()), LONG).await;
    let unknown: Vec<_> = (0..100_000).map(|at| format!("unknown-{at}")).collect();
    let votes = || message(unknown.iter().map(String::as_str));
    let left = tokio::time::timeout(10 * READ, admit(&admission, votes())).await;
    assert!(left.is_err());
    let begun = store.reads();
    advance(100 * READ).await;
    assert!(store.reads() <= begun + LOOKUPS_A_MESSAGE_MAX, "nothing is begun for a client that has left");

    let start = Instant::now();
    let (votes, refused) = admit(&admission, votes()).await;
    assert_eq!((votes, refused.len()), (unknown.len() as u64, unknown.len()));
    assert!(start.elapsed() < 2 * admission.lookup_patience, "{:?}", start.elapsed());
    let last = refused.last_key_value().unwrap().1;
    assert!(matches!(last, Refusal::PollUnreadable(_)), "{last:?}");
}

/// A clock that, when told to, stops the reading thread for a while before it reads.
struct StandsStill {
    clock: SystemClock,
    stand: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Clock for StandsStill {
    fn now(&self) -> Timestamp {
        if let Some(stand) = self.stand.lock().take() {
            stand();
        }
        self.clock.now()
    }
}

#[tokio::test]
async fn a_thread_that_stands_still_accepts_nothing_on_an_old_definition() {
    let clock = Arc::new(StandsStill { clock: SystemClock::new(), stand: Mutex::default() });
    let store = Arc::<Store>::default();
    let admission = admission(&store, clock.clone(), LIFE).await;
    assert!(admit(&admission, message(["known"])).await.1.is_empty());
    let closing = store.clone();
    *clock.stand.lock() = Some(Box::new(move || {
        if let Some(poll) = &mut *closing.poll.lock() {
            poll.closing = Closing::Asked;
        }
        // This is not a wait for something: it simulates a thread that does not run for a while.
        std::thread::sleep(LIFE + LIFE / 2);
    }));
    let (_, refused) = admit(&admission, message(["known"])).await;
    assert_eq!(refused.get(&0), Some(&Refusal::Closed(PollId::new("known").unwrap())));
}

/// The users of the stored votes, in order. Each of their hashes is that of the poll and the stored user.
fn stored_users(sink: &Sink) -> Vec<String> {
    let mut users = Vec::new();
    for (_, record) in sink.0.lock().iter() {
        let Ok(RecordBody::Batch(batch)) = batch::decode(record) else { panic!("not a batch") };
        users.extend((0..batch.len()).map(|at| batch.user_id(at).to_owned()));
    }
    users
}

#[tokio::test(start_paused = true)]
async fn what_goes_into_the_lanes_is_the_pseudonym() {
    let (store, clock) = (Arc::<Store>::default(), Arc::new(SystemClock::new()));
    drop(admission(&store, clock.clone(), LONG).await);
    let plain = store.poll.lock().clone().unwrap();
    let (key, other) = (PseudonymKey::new([1; 32]), PseudonymKey::new([2; 32]));
    let users = ["ada", "ada", "bob", "9f8b7c6d-5e4f-4a3b-8c2d-1e0f9a8b7c6d", &"x".repeat(256)];
    let mut message = VotesMessage::default();
    users.iter().for_each(|user| message.push("known", user, "yes"));
    let pseudonym = |user: &str| {
        let uuid = key.for_poll(&plain.id).of("", user);
        String::from_utf8(uuid_text(uuid).to_vec()).unwrap()
    };
    for (poll_key, keys, expected) in [
        (None, vec![&key], Some(users.map(str::to_owned))),
        (Some(key.id()), vec![&key], Some(users.map(pseudonym))),
        // The key of the poll counts, whichever is active.
        (Some(key.id()), vec![&other, &key], Some(users.map(pseudonym))),
        (Some(key.id()), vec![&other], None),
        (Some(key.id()), vec![], None),
    ] {
        *store.poll.lock() = Some(plain.clone().with_pseudonym_key(poll_key));
        let (sink, mut config) = (Arc::<Sink>::default(), IngestConfig::one_machine());
        config.pseudonym_keys = PseudonymKeys::new(keys.into_iter().cloned());
        let admission = admission_into(sink.clone(), config, &store, clock.clone()).await;
        let (votes, refused) = admit(&admission, message.clone()).await;
        assert_eq!(votes as usize, users.len());
        match expected {
            Some(expected) => assert_eq!((refused.len(), stored_users(&sink)), (0, expected.to_vec())),
            None => {
                let missing = Refusal::KeyMissing(plain.id.clone(), key.id());
                assert!(refused.len() == users.len() && refused.values().all(|refusal| *refusal == missing));
                assert_eq!(stored_users(&sink), [""; 0]);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_hash_is_that_of_the_pseudonym() {
    let key = PseudonymKey::new([1; 32]);
    for id in ["p", &"long".repeat(16)] {
        let options = vec![PollOption { id: "yes".into(), title: String::new() }];
        let (id, times) = (PollId::new(id).unwrap(), [Timestamp::ZERO, Timestamp(i64::MAX)]);
        let poll = Poll::new(id, String::new(), options, times[0], times[1], PollSource::Ingest, 1).unwrap();
        let poll = IndexedPoll::new(Arc::new(poll.with_pseudonym_key(Some(key.id()))));
        let keys = PseudonymKeys::new([key.clone()]);
        let (clock, mut known) = (SystemClock::new(), KnownPolls::default());
        let moment = Moment::of(&clock);
        let id = poll.id().clone();
        known.enter(Arc::new(poll), moment.plus(LONG));
        let mut message = VotesMessage::default();
        (0..100).for_each(|at| message.push(id.as_str(), &format!("user-{at}"), "yes"));
        let (messages, caller) = ([message], Caller::everybody());
        let judge = Judge { caller: &caller, now: moment.now, moment, is_trusted: true, first: 0, keys: &keys };
        let judged = judge.judge(&mut walk(&messages), &known, 0, 1_000);
        assert_eq!((judged.accepted.len(), judged.refused.len()), (100, 0));
        for (at, vote) in judged.accepted.iter().enumerate() {
            let uuid = key.for_poll(&id).of("", &format!("user-{at}"));
            assert_eq!(vote.user_id, UserId::Uuid { prefix: "", uuid });
            assert_eq!(vote.hash, vote_hash(id.as_str(), uuid_text(uuid)));
        }
    }
}
