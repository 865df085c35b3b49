//! What the fuzzer feeds: every place where bytes of strangers come in, and what must be true of any answer.
//!
//! Each function is a target of `tests/fuzz/run.sh` (see `fuzz_targets`), and is replayed over the corpus by `tests/e2e/tests/fuzz.rs` with
//! a stable compiler. Must never need more than the bytes: the same input gives the same run.

use std::{cell::RefCell, collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use md5::{Digest, Md5};
use prost::Message;
use tokio::runtime::Runtime;
use votestream_core::{
    Clock, HashRange, Poll, PollId, PollOption, PollSource, SequenceNumber, ShardId, TimeBounds, Timestamp,
    consume::window::{self, Discard, ReadRecord, ShardState},
    model::poll::{FinalResult, check_option_id, check_user_id},
    polls::cache::PollCache,
    port::{Created, Group, PollStore, PortError, Record, RecordReader, Shard, Stored, VoteStream},
    produce::Producer,
    record::{
        batch::{self, Batch, RecordBody},
        foreign::{self, JsonVote},
    },
    vote_hash,
};
use votestream_ingest::{Admission, Caller, IngestConfig, Session};
use votestream_proto::{
    FrameReader, ReceivedVotes, VotesMessage,
    v1::{CreatePollRequest, RejectionCode},
};

/// The moment at which everything happens.
const NOW: Timestamp = Timestamp(1_700_000_000_000);

fn poll_of(id: &str, source: PollSource, opens_at: Timestamp, closes_at: Timestamp, options: &[&str]) -> Poll {
    let options = options.iter().map(|id| PollOption { id: (*id).into(), title: String::new() }).collect();
    Poll::new(PollId::new(id).unwrap(), String::new(), options, opens_at, closes_at, source, 1).unwrap()
}

/// Polls of every kind that an input can name.
fn polls() -> BTreeMap<PollId, Arc<Poll>> {
    let hour = Duration::from_secs(3_600);
    let (past, future) = (Timestamp(NOW.0 - 3_600_000), NOW.plus(hour));
    let long = "o".repeat(128);
    let polls = [
        poll_of("p", PollSource::Ingest, past, future, &["x", "y"]),
        // Options that are too long to be compared as numbers.
        poll_of("q", PollSource::Ingest, past, future, &["seventeen bytes..", &long, "ö"]),
        poll_of("s", PollSource::Stream, past, future, &["x", "y"]),
        poll_of("c", PollSource::Ingest, past, NOW, &["x"]),
        poll_of("n", PollSource::Ingest, future, future.plus(hour), &["x"]),
    ];
    polls.into_iter().map(|poll| (poll.id.clone(), Arc::new(poll))).collect()
}

/// A record of any producer. An input that starts with `V` is one as it is; any other is the message inside of a batch.
pub(crate) fn record(data: &[u8]) {
    if data.first() == Some(&b'V') {
        one_record(data);
    } else {
        one_record(&framed(data));
    }
}

/// The header of a batch, and a zstd frame (RFC 8878) of one raw block.
fn framed(message: &[u8]) -> Vec<u8> {
    let message = &message[..message.len().min(100_000)];
    let len = message.len() as u32;
    let mut record = b"VSB\x01".to_vec();
    record.extend(len.to_le_bytes());
    // Magic number, "single segment with a size of four bytes", the size, and the header of the last block, which is raw.
    record.extend([0x28, 0xb5, 0x2f, 0xfd, 0xa0]);
    record.extend(len.to_le_bytes());
    record.extend(&((len << 3) | 1).to_le_bytes()[..3]);
    record.extend(message);
    record
}

fn one_record(data: &[u8]) {
    if let Ok(RecordBody::Batch(read)) = batch::decode(data) {
        check_batch(&read);
        let again = batch::decode(&batch::encode(&read));
        assert_eq!(again.as_ref(), Ok(&RecordBody::Batch(read)), "what was read can be written");
    }
    decide(data);
}

/// What every reader of a batch relies on.
fn check_batch(batch: &Batch) {
    assert!(batch.id.number > 0 && batch.ranges.as_slice().iter().all(|range| range.start <= range.end));
    assert_eq!((batch.accepted_at.len(), batch.user_ends.len()), (batch.len(), batch.len()));
    for index in 0..batch.len() {
        let (_, option) = &batch.dictionary[batch.choices[index] as usize];
        assert!(check_option_id(option.as_bytes()).is_ok() && check_user_id(batch.user_id(index).as_bytes()).is_ok());
    }
}

/// Every vote of a record counts or is discarded for a reason, the same each time, and a copy of it counts only if it has no
/// identity.
fn decide(data: &[u8]) {
    let record = Record {
        sequence: SequenceNumber::from_u64(1),
        arrived_at: NOW,
        partition_key: String::new(),
        data: Bytes::copy_from_slice(data),
    };
    let read = [ReadRecord::decode(&record)];
    let (polls, range) = (polls(), HashRange { start: 0, end: u128::MAX / 2 });
    let decide = |state: ShardState| {
        window::decide(&read, state, &range, &polls, &TimeBounds::DISTRIBUTED).expect("one record fills no dedup table")
    };
    let first = decide(ShardState::default());
    let count = |decision: &window::Decision| decision.selected.iter().map(window::Selected::len).sum::<usize>() as u64;
    let discarded =
        |decision: &window::Decision| Discard::ALL.iter().map(|why| decision.discards.get(*why)).sum::<u64>();
    let is_unreadable = matches!(read[0].content, window::Content::Unreadable);
    assert_eq!(count(&first) + discarded(&first), read[0].votes() as u64 + u64::from(is_unreadable));
    for selected in &first.selected {
        for index in selected.indices() {
            let (poll, option) = &selected.batch.dictionary[selected.batch.choices[index] as usize];
            assert!(polls[poll].option_index(option).is_some());
            check_user_id(selected.batch.user_id(index).as_bytes()).expect("a vote that counts has a user");
        }
    }
    let again = decide(ShardState::default());
    assert_eq!((again.discards, &again.state), (first.discards, &first.state));
    // A batch is remembered for the ranges that it names. Votes elsewhere are forged: no lane writes them, and whoever may write
    // to the stream can invent batches anyway.
    if let window::Content::Batch(batch) = &read[0].content {
        for selected in decide(first.state).selected {
            for index in selected.indices() {
                let (poll, _) = &batch.dictionary[batch.choices[index] as usize];
                let hash = vote_hash(poll.as_str(), batch.user_id(index));
                assert!(!batch.ranges.contains(hash), "a copy of a batch counts nothing");
            }
        }
    }
}

/// A plain vote of another producer.
pub(crate) fn json(data: &[u8]) {
    if let Ok(votes) = foreign::decode(data)
        && !data.starts_with(&foreign::AGGREGATE_MAGIC)
    {
        assert_eq!((votes.len(), votes.hashes(), votes.unreadable()), (1, &[][..], &[][..]));
        let vote = JsonVote::decode(data).expect("it was read before");
        assert!(check_user_id(vote.user_id.as_bytes()).is_ok() && check_option_id(vote.option_id.as_bytes()).is_ok());
        assert!(PollId::new(&vote.poll_id).is_ok());
    }
    decide(data);
}

/// An aggregate of another producer. Bytes without its magic number are taken for the message inside.
pub(crate) fn aggregate(data: &[u8]) {
    let sealed;
    let record = if data.starts_with(&foreign::AGGREGATE_MAGIC) {
        data
    } else {
        sealed = [&foreign::AGGREGATE_MAGIC[..], data, &Md5::digest(data)].concat();
        &sealed
    };
    if let Ok(votes) = foreign::decode_aggregate(record) {
        assert_eq!(votes.hashes().len(), votes.len());
        assert!(votes.unreadable().is_sorted_by(|a, b| a < b));
        assert!(votes.unreadable().last().is_none_or(|&last| (last as usize) < votes.len()));
    }
    decide(record);
}

/// What prost reads a message of votes as.
#[derive(Clone, PartialEq, Message)]
struct Reference {
    #[prost(message, repeated, tag = "1")]
    votes: Vec<ReferenceVote>,
}

#[derive(Clone, PartialEq, Message)]
struct ReferenceVote {
    #[prost(string, tag = "1")]
    poll_id: String,
    #[prost(string, tag = "2")]
    user_id: String,
    #[prost(string, tag = "3")]
    option_id: String,
}

/// A message of votes, through the admission of the ingest service: each vote is settled once, and what is accepted is what a
/// reader accepts that does it the long way.
pub(crate) fn votes(data: &[u8]) {
    thread_local! {
        static RUNTIME: RefCell<Option<(Runtime, Admission)>> = const { RefCell::new(None) };
    }
    frames(data);
    let message = VotesMessage::decode(data).expect("any bytes are a message");
    let expected: Vec<Option<RejectionCode>> = message.votes().map(|vote| expected(vote.ok())).collect();
    // Whatever the reference can read, the reader in place reads the same.
    if let Ok(reference) = Reference::decode(data) {
        let read: Vec<_> = message.votes().map(Result::ok).collect();
        assert_eq!(read.len(), reference.votes.len());
        for (read, reference) in read.into_iter().zip(&reference.votes) {
            let read = read.expect("the reference can read it");
            assert_eq!(read.poll_id, reference.poll_id.as_bytes());
            assert_eq!((read.user_id, read.option_id), (reference.user_id.as_bytes(), reference.option_id.as_bytes()));
        }
    }
    RUNTIME.with_borrow_mut(|slot| {
        let (runtime, admission) = slot.get_or_insert_with(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
            let admission = runtime.block_on(admission());
            (runtime, admission)
        });
        runtime.block_on(async {
            let session = Arc::new(Session::default());
            let messages = [message];
            let permit = admission.acquire(&messages).await;
            let admit = async {
                let votes = admission.admit(&session, &Caller::everybody(), 0, &messages, permit).await;
                session.close();
                votes.expect("its answers are read")
            };
            let read = async {
                let (mut through, mut rejections) = (0, BTreeMap::new());
                while let Some(settled) = session.settled().await {
                    through = settled.through;
                    assert_eq!(settled.rejected, settled.refused.len() as u64);
                    for refused in settled.refused {
                        assert!(refused.index < through && !refused.refusal.to_string().is_empty());
                        assert!(rejections.insert(refused.index, refused.code()).is_none(), "named twice");
                    }
                }
                (through, rejections)
            };
            let (votes, (through, rejections)) = tokio::join!(admit, read);
            assert_eq!((votes, through), (expected.len() as u64, expected.len() as u64));
            for (index, expected) in (0..).zip(&expected) {
                assert_eq!(rejections.get(&index), expected.as_ref(), "vote {index}");
            }
        });
    });
}

/// The same bytes as the frames of a stream: in two pieces they read as in one.
fn frames(data: &[u8]) {
    /// Most bytes of a message.
    const MAX: usize = 1_000;
    let read = |pieces: [&[u8]; 2]| {
        let (mut reader, mut votes) = (FrameReader::new(MAX), 0);
        for piece in pieces {
            reader.push(Bytes::copy_from_slice(piece));
            loop {
                match reader.next() {
                    Ok(Some(frames)) => votes += frames.votes().count(),
                    Ok(None) => break,
                    Err(error) => return (votes, Err(error)),
                }
            }
        }
        (votes, Ok(reader.is_between_messages()))
    };
    let cut = data.first().map_or(0, |&first| usize::from(first).min(data.len()));
    let (first, second) = data.split_at(cut);
    assert_eq!(read([first, second]), read([data, &[]]));
}

/// What must become of a vote.
fn expected(vote: Option<votestream_proto::VoteBytes<'_>>) -> Option<RejectionCode> {
    let Some(vote) = vote else { return Some(RejectionCode::Malformed) };
    let id = |bytes: &[u8], max: usize| {
        let text = std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty() && text.len() <= max)?;
        text.chars().all(|character| !character.is_control()).then(|| text.to_owned())
    };
    let plain = |text: &String| text.chars().all(|c| c.is_ascii_alphanumeric() || ['-', '_', '.', '~'].contains(&c));
    let Some(poll) = id(vote.poll_id, 64).filter(plain) else { return Some(RejectionCode::Malformed) };
    let polls = polls();
    let Some(poll) = polls.values().find(|known| known.id.as_str() == poll) else {
        return Some(RejectionCode::PollNotFound);
    };
    let (Some(_), Some(option)) = (id(vote.user_id, 256), id(vote.option_id, 128)) else {
        return Some(RejectionCode::Malformed);
    };
    if !poll.options.iter().any(|known| *known.id == *option) {
        Some(RejectionCode::OptionNotFound)
    } else if poll.source != PollSource::Ingest {
        Some(RejectionCode::WrongSource)
    } else if NOW < poll.opens_at {
        Some(RejectionCode::PollNotOpen)
    } else if NOW >= poll.closes_at {
        Some(RejectionCode::PollClosed)
    } else {
        None
    }
}

/// A request for a new poll.
pub(crate) fn poll(data: &[u8]) {
    let Ok(request) = CreatePollRequest::decode(data) else { return };
    let bounds = TimeBounds::DISTRIBUTED;
    let Ok(poll) = votestream_tally::new_poll(request.clone(), NOW, &bounds) else { return };
    assert!((1..=1_000).contains(&poll.options.len()) && poll.title.len() <= 512);
    for (at, option) in poll.options.iter().enumerate() {
        assert!(check_option_id(option.id.as_bytes()).is_ok() && option.title.len() <= 512);
        assert_eq!(poll.option_index(&option.id), Some(at), "no id stands twice");
    }
    assert!(poll.opens_at < poll.closes_at && NOW < poll.closes_at && (1..=4_096).contains(&poll.buckets));
    assert!(poll.source == PollSource::Ingest || poll.opens_at >= NOW.plus(bounds.close_margin()));
    assert!(poll.final_result.is_none() && !poll.needs_recount);
    assert_eq!(votestream_tally::new_poll(request, NOW, &bounds).ok(), Some(poll), "the same request, the same poll");
}

async fn admission() -> Admission {
    let mut config = IngestConfig::one_machine();
    config.lanes.producer = 1;
    config.lanes.seed = 1;
    // A slow machine must not let a vote be given up.
    config.bounds.answer_deadline = Duration::from_secs(3_600);
    config.lanes.bounds = config.bounds;
    let clock: Arc<dyn Clock> = Arc::new(Still);
    let producer = Producer::start(config.lanes, Arc::new(Sink), clock.clone()).await.expect("the sink has a shard");
    let polls = PollCache::new(Arc::new(Fixed(polls())), Arc::new(Still), config.bounds.poll_cache_life);
    Admission::new(&config, producer, polls, clock)
}

/// A clock that stands still.
struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        NOW
    }
}

/// A stream that stores nothing and says that it has.
struct Sink;

#[async_trait]
impl VoteStream for Sink {
    async fn list_shards(&self) -> Result<Vec<Shard>, PortError> {
        Ok(vec![Shard { id: ShardId::new("shard"), range: HashRange::ALL, parents: vec![], open: true, ends_at: None }])
    }

    async fn put(&self, _hash: u128, data: Bytes) -> Result<Stored, PortError> {
        match batch::decode(&data) {
            Ok(RecordBody::Batch(batch)) => check_batch(&batch),
            other => panic!("a lane wrote {other:?}"),
        }
        Ok(Stored { shard: ShardId::new("shard"), sequence: SequenceNumber::from_u64(1) })
    }

    async fn reader(&self, _: Group, _: &ShardId, _: SequenceNumber) -> Result<Box<dyn RecordReader>, PortError> {
        Err(PortError::permanent("nobody reads"))
    }
}

/// Polls that never change.
struct Fixed(BTreeMap<PollId, Arc<Poll>>);

#[async_trait]
impl PollStore for Fixed {
    async fn create(&self, _: &Poll) -> Result<Created, PortError> {
        Err(PortError::permanent("nobody writes"))
    }

    async fn get(&self, id: &PollId) -> Result<Option<Poll>, PortError> {
        Ok(self.0.get(id).map(|poll| Poll::clone(poll)))
    }

    async fn list(&self, _: Option<&PollId>, _: usize) -> Result<Vec<Poll>, PortError> {
        Ok(self.0.values().map(|poll| Poll::clone(poll)).collect())
    }

    async fn begin_close(&self, id: &PollId) -> Result<Option<Poll>, PortError> {
        self.get(id).await
    }

    async fn close(&self, id: &PollId, _: Timestamp) -> Result<Option<Poll>, PortError> {
        self.get(id).await
    }

    async fn finish(&self, id: &PollId, _: &FinalResult) -> Result<Option<Poll>, PortError> {
        self.get(id).await
    }

    async fn release(&self, id: &PollId, _: Timestamp) -> Result<Option<Poll>, PortError> {
        self.get(id).await
    }

    async fn set_needs_recount(&self, _: &PollId, _: bool) -> Result<(), PortError> {
        Err(PortError::permanent("nobody writes"))
    }
}
