//! The lanes against a stream that fails: refused puts, lost answers, late answers, splits and merges. A seed decides
//! when each happens.
//!
//! What must hold in every schedule: each vote is settled exactly once; a durable vote is in the stream exactly once
//! after duplicates are removed; a vote that was not stored is not in the stream; the votes of one user keep their
//! order.

#![allow(clippy::disallowed_methods, reason = "tests read the clocks of their own")]

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use votestream_core::{
    Clock, HashRange, PollId, SequenceNumber, ShardId, TimeBounds, Timestamp,
    port::{Group, PortError, RecordReader, Shard, Stored, VoteStream},
    produce::{AcceptedVote, LaneConfig, Outcome, Producer, Settle},
    record::batch::{self, RecordBody},
    vote_hash,
};

/// tokio's clock, which the tests pause.
struct TestClock(tokio::time::Instant);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(1_000_000).plus(self.0.elapsed())
    }
}

#[derive(Default)]
struct Injected {
    refused: AtomicUsize,
    answers_lost: AtomicUsize,
    slow: AtomicUsize,
    reshards: AtomicUsize,
}

struct State {
    rng: StdRng,
    shards: Vec<Shard>,
    records: Vec<(ShardId, Bytes)>,
}

/// A stream in memory with faults.
struct FaultyStream {
    state: Mutex<State>,
    injected: Injected,
    /// Share of puts that fail in one of these ways.
    fault_rate: f64,
    /// Longest delay of an answer.
    delay_max: Duration,
}

impl FaultyStream {
    fn new(seed: u64, fault_rate: f64, delay_max: Duration) -> Arc<Self> {
        let shards = HashRange::split_evenly(2).into_iter().enumerate();
        let shards =
            shards.map(|(at, range)| Shard { id: id(at), range, parents: vec![], open: true, ends_at: None }).collect();
        let state = State { rng: StdRng::seed_from_u64(seed), shards, records: vec![] };
        Arc::new(Self { state: Mutex::new(state), injected: Injected::default(), fault_rate, delay_max })
    }

    fn reshard(&self) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let mut open: Vec<usize> = (0..state.shards.len()).filter(|&at| state.shards[at].open).collect();
        open.sort_by_key(|&at| state.shards[at].range);
        let split = open.len() < 2 || (open.len() < 5 && state.rng.random());
        let (parents, ranges) = if split {
            let at = open[state.rng.random_range(0..open.len())];
            let HashRange { start, end } = state.shards[at].range;
            let middle = start + (end - start) / 2;
            (vec![at], vec![HashRange { start, end: middle }, HashRange { start: middle + 1, end }])
        } else {
            let left = state.rng.random_range(0..open.len() - 1);
            let (a, b) = (open[left], open[left + 1]);
            let (start, end) = (state.shards[a].range.start, state.shards[b].range.end);
            (vec![a, b], vec![HashRange { start, end }])
        };
        let names: Vec<_> = parents.iter().map(|&at| state.shards[at].id.clone()).collect();
        parents.iter().for_each(|&at| state.shards[at].open = false);
        for range in ranges {
            let shard = Shard { id: id(state.shards.len()), range, parents: names.clone(), open: true, ends_at: None };
            state.shards.push(shard);
        }
        self.injected.reshards.fetch_add(1, Ordering::Relaxed);
    }
}

fn id(at: usize) -> ShardId {
    ShardId::new(format!("shard-{at}"))
}

#[async_trait]
impl VoteStream for FaultyStream {
    async fn list_shards(&self) -> Result<Vec<Shard>, PortError> {
        Ok(self.state.lock().shards.clone())
    }

    async fn put(&self, hash: u128, data: Bytes) -> Result<Stored, PortError> {
        let (before, after, fault) = {
            let rng = &mut self.state.lock().rng;
            let fault = rng.random_bool(self.fault_rate).then(|| rng.random_range(0..3));
            (
                rng.random_range(Duration::ZERO..=self.delay_max),
                rng.random_range(Duration::ZERO..=self.delay_max),
                fault,
            )
        };
        tokio::time::sleep(before).await;
        if fault == Some(0) {
            self.injected.refused.fetch_add(1, Ordering::Relaxed);
            return Err(PortError::refused("throttled"));
        }
        let stored = {
            let mut state = self.state.lock();
            let shard = state.shards.iter().find(|shard| shard.open && shard.range.contains(hash)).unwrap().id.clone();
            state.records.push((shard.clone(), data));
            Stored { shard, sequence: SequenceNumber::from_u64(state.records.len() as u64) }
        };
        if fault == Some(1) {
            self.injected.slow.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(TimeBounds::ONE_MACHINE.answer_deadline * 2).await;
        }
        tokio::time::sleep(after).await;
        if fault == Some(2) {
            self.injected.answers_lost.fetch_add(1, Ordering::Relaxed);
            return Err(PortError::unknown("answer lost"));
        }
        Ok(stored)
    }

    async fn reader(&self, _: Group, _: &ShardId, _: SequenceNumber) -> Result<Box<dyn RecordReader>, PortError> {
        Err(PortError::permanent("this test reads the records itself"))
    }
}

/// The outcome of each vote, by its number.
#[derive(Default)]
struct Outcomes(Mutex<BTreeMap<u32, Outcome>>);

impl Settle for Outcomes {
    fn settle(&self, indices: &[u32], outcome: Outcome) {
        for &index in indices {
            assert_eq!(self.0.lock().insert(index, outcome), None, "vote {index} was settled twice");
        }
    }
}

const VOTES: u32 = 400;
const USERS: u32 = 20;

async fn run(
    seed: u64,
    fault_rate: f64,
    delay_max: Duration,
    reshards: bool,
) -> (Arc<FaultyStream>, BTreeMap<u32, Outcome>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let stream = FaultyStream::new(seed ^ 1, fault_rate, delay_max);
    let clock = Arc::new(TestClock(tokio::time::Instant::now()));
    let config = LaneConfig {
        producer: 7,
        seed,
        batch_votes_max: 8,
        linger: Duration::from_millis(rng.random_range(0..3)),
        ..LaneConfig::one_machine()
    };
    let producer = Producer::start(config, stream.clone(), clock.clone()).await.unwrap();
    let outcomes = Arc::new(Outcomes::default());
    let settle: Arc<dyn Settle> = outcomes.clone();
    let poll = PollId::new("p").unwrap();
    // Each vote has its own option, so that the records tell the votes apart.
    let options: Vec<Arc<str>> = (0..VOTES).map(|vote| vote.to_string().into()).collect();
    let mut next = 0;
    while next < VOTES {
        let end = (next + rng.random_range(1..12)).min(VOTES);
        let users: Vec<_> = (next..end).map(|_| format!("user-{}", rng.random_range(0..USERS))).collect();
        let votes: Vec<_> = (next..end)
            .zip(&users)
            .map(|(index, user)| AcceptedVote {
                poll_id: &poll,
                option_id: &options[index as usize],
                user_id: user.into(),
                hash: vote_hash("p", user),
                index,
            })
            .collect();
        producer.append(&settle, &votes, clock.now());
        next = end;
        if reshards && rng.random_bool(0.1) {
            stream.reshard();
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..20))).await;
    }
    producer.drain().await;
    // A put that is still in flight may be stored now.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let outcomes = outcomes.0.lock().clone();
    (stream, outcomes)
}

fn check(seed: u64, stream: &FaultyStream, outcomes: &BTreeMap<u32, Outcome>) {
    assert_eq!(outcomes.len(), VOTES as usize, "seed {seed}: every vote has an outcome");
    let state = stream.state.lock();
    let ranges: HashMap<_, _> = state.shards.iter().map(|shard| (&shard.id, shard.range)).collect();
    // Number of the last batch per user: the dedup table of a consumer, one hash at a time.
    let mut memory = HashMap::<String, u64>::new();
    let mut counted = HashMap::<String, Vec<u32>>::new();
    for (shard, record) in &state.records {
        let Ok(RecordBody::Batch(batch)) = batch::decode(record) else { panic!("seed {seed}: unreadable record") };
        let mut seen = Vec::new();
        for at in 0..batch.len() {
            let user = batch.user_id(at);
            let hash = vote_hash("p", user);
            assert!(batch.ranges.contains(hash), "seed {seed}: a vote outside its batch's ranges");
            if ranges[shard].contains(hash) && memory.get(user).is_none_or(|&number| number < batch.id.number) {
                let (_, option) = &batch.dictionary[batch.choices[at] as usize];
                counted.entry(user.to_owned()).or_default().push(option.parse().unwrap());
                seen.push(user.to_owned());
            }
        }
        for user in seen {
            memory.insert(user, batch.id.number);
        }
    }
    let mut times = BTreeMap::<u32, u32>::new();
    for (user, votes) in &counted {
        assert!(votes.is_sorted(), "seed {seed}: votes of {user} are out of order: {votes:?}");
        votes.iter().for_each(|&vote| *times.entry(vote).or_default() += 1);
    }
    for (vote, outcome) in outcomes {
        let times = times.get(vote).copied().unwrap_or(0);
        let allowed = match outcome {
            Outcome::Durable => 1..=1,
            Outcome::NotStored => 0..=0,
            Outcome::Unknown => 0..=1,
        };
        assert!(allowed.contains(&times), "seed {seed}: vote {vote} is {outcome:?} and counted {times} times");
    }
}

#[tokio::test(start_paused = true)]
async fn every_schedule_keeps_the_promises() {
    let mut injected = [0; 4];
    for seed in 0..150 {
        let (stream, outcomes) = run(seed, 0.25, Duration::from_millis(40), true).await;
        check(seed, &stream, &outcomes);
        let Injected { refused, answers_lost, slow, reshards } = &stream.injected;
        for (sum, count) in injected.iter_mut().zip([refused, answers_lost, slow, reshards]) {
            *sum += count.load(Ordering::Relaxed);
        }
    }
    assert!(injected.iter().all(|&count| count > 100), "too few faults were injected: {injected:?}");
}

#[tokio::test(start_paused = true)]
async fn without_faults_every_vote_is_durable() {
    let (stream, outcomes) = run(1, 0.0, Duration::from_millis(5), true).await;
    check(1, &stream, &outcomes);
    assert!(outcomes.values().all(|&outcome| outcome == Outcome::Durable));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_always_refuses_stores_nothing_and_says_so() {
    let clock = Arc::new(TestClock(tokio::time::Instant::now()));
    let stream = FaultyStream::new(3, 1.0, Duration::ZERO);
    // Only refusals: a fault of kind 0 on every put.
    struct Refusing(Arc<FaultyStream>);
    #[async_trait]
    impl VoteStream for Refusing {
        async fn list_shards(&self) -> Result<Vec<Shard>, PortError> {
            self.0.list_shards().await
        }
        async fn put(&self, _: u128, _: Bytes) -> Result<Stored, PortError> {
            Err(PortError::refused("disk full"))
        }
        async fn reader(&self, _: Group, _: &ShardId, _: SequenceNumber) -> Result<Box<dyn RecordReader>, PortError> {
            Err(PortError::permanent("not read"))
        }
    }
    let producer = Producer::start(LaneConfig::one_machine(), Arc::new(Refusing(stream)), clock.clone()).await.unwrap();
    let outcomes = Arc::new(Outcomes::default());
    let settle: Arc<dyn Settle> = outcomes.clone();
    let (poll, option) = (PollId::new("p").unwrap(), Arc::<str>::from("o"));
    let vote = AcceptedVote { poll_id: &poll, option_id: &option, user_id: "u".into(), hash: 9, index: 0 };
    let before = tokio::time::Instant::now();
    producer.append(&settle, &[vote], clock.now());
    producer.drain().await;
    assert_eq!(outcomes.0.lock().get(&0), Some(&Outcome::NotStored));
    assert!(before.elapsed() <= TimeBounds::ONE_MACHINE.answer_deadline + Duration::from_secs(1));
}

/// A shard map that cannot be read for a while.
struct Unlisted {
    stream: Arc<FaultyStream>,
    /// The answers to the next reads; after them the map can be read.
    errors: Mutex<Vec<PortError>>,
}

#[async_trait]
impl VoteStream for Unlisted {
    async fn list_shards(&self) -> Result<Vec<Shard>, PortError> {
        let error = self.errors.lock().pop();
        match error {
            Some(error) => Err(error),
            None => self.stream.list_shards().await,
        }
    }
    async fn put(&self, hash: u128, data: Bytes) -> Result<Stored, PortError> {
        self.stream.put(hash, data).await
    }
    async fn reader(&self, _: Group, _: &ShardId, _: SequenceNumber) -> Result<Box<dyn RecordReader>, PortError> {
        Err(PortError::permanent("not read"))
    }
}

#[tokio::test(start_paused = true)]
async fn lanes_start_once_the_shard_map_can_be_read_and_not_without_it() {
    let clock = Arc::new(TestClock(tokio::time::Instant::now()));
    let start = async |errors: Vec<PortError>| {
        let stream = FaultyStream::new(3, 0.0, Duration::ZERO);
        let stream = Arc::new(Unlisted { stream, errors: Mutex::new(errors) });
        let started = Producer::start(LaneConfig::one_machine(), stream.clone(), clock.clone()).await;
        (started.map(drop).map_err(|error| error.to_string()), stream.errors.lock().len())
    };
    let cut = || PortError::unknown("the answer was cut off");
    assert_eq!(start(vec![cut(), cut(), cut()]).await, (Ok(()), 0));
    let forbidden = vec![cut(), PortError::permanent("no permission"), cut()];
    assert_eq!(start(forbidden).await, (Err("no permission".into()), 1), "a permanent error is not tried again");
    let (never, left) = start((0..100).map(|_| cut()).collect()).await;
    assert!(never.is_err() && left > 50, "{left} attempts were left");
}

/// A clock that the engines contradict.
struct Contradicted(TestClock);

impl Clock for Contradicted {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn is_trusted(&self) -> bool {
        false
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_promised_by_a_clock_that_is_not_trusted() {
    let clock = Arc::new(Contradicted(TestClock(tokio::time::Instant::now())));
    let stream = FaultyStream::new(3, 0.0, Duration::ZERO);
    let producer = Producer::start(LaneConfig::one_machine(), stream.clone(), clock.clone()).await.unwrap();
    let outcomes = Arc::new(Outcomes::default());
    let settle: Arc<dyn Settle> = outcomes.clone();
    let (poll, option) = (PollId::new("p").unwrap(), Arc::<str>::from("o"));
    let vote = AcceptedVote { poll_id: &poll, option_id: &option, user_id: "u".into(), hash: 9, index: 0 };
    producer.append(&settle, &[vote], clock.now());
    producer.drain().await;
    assert_eq!(stream.state.lock().records.len(), 1);
    assert_eq!(outcomes.0.lock().get(&0), Some(&Outcome::Unknown));
}

/// Largest record that Kinesis takes by default.
const RECORD_BYTES_MAX: usize = 1 << 20;

#[tokio::test(start_paused = true)]
async fn a_large_dictionary_seals_its_batch_in_time() {
    let clock = Arc::new(TestClock(tokio::time::Instant::now()));
    let stream = FaultyStream::new(3, 0.0, Duration::ZERO);
    let producer = Producer::start(LaneConfig::one_machine(), stream.clone(), clock.clone()).await.unwrap();
    let outcomes = Arc::new(Outcomes::default());
    let settle: Arc<dyn Settle> = outcomes.clone();
    // The longest ids, which do not compress, and a different option for each vote.
    let mut rng = StdRng::seed_from_u64(22);
    let mut text = |bytes| (0..bytes).map(|_| rng.random_range(b'a'..=b'z') as char).collect::<String>();
    let pairs: Vec<(PollId, Arc<str>, String)> =
        (0..16_384).map(|_| (PollId::new(&text(64)).unwrap(), text(128).into(), text(256))).collect();
    let votes: Vec<_> = (0..)
        .zip(&pairs)
        .map(|(index, (poll_id, option_id, user))| {
            let hash = vote_hash(poll_id.as_str(), user);
            AcceptedVote { poll_id, option_id, user_id: (&**user).into(), hash, index }
        })
        .collect();
    producer.append(&settle, &votes, clock.now());
    producer.drain().await;
    assert!(outcomes.0.lock().values().all(|outcome| *outcome == Outcome::Durable));
    let state = stream.state.lock();
    let stored = state.records.iter().map(|(_, data)| match batch::decode(data) {
        Ok(RecordBody::Batch(batch)) => batch.len(),
        other => panic!("{other:?}"),
    });
    assert_eq!(stored.sum::<usize>(), votes.len());
    let largest = state.records.iter().map(|(_, data)| data.len()).max().unwrap();
    assert!(largest <= RECORD_BYTES_MAX / 4 * 3, "a record has {largest} bytes");
}
