//! Admission of votes: from the bytes of a message to accepted votes in their lanes.
//!
//! Owns validation. Must never accept a vote on a poll definition older than the cache's life, and never
//! stamp a vote with another clock reading than the one that was compared with opens_at and closes_at.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use votestream_core::{
    Clock, Closing, Poll, PollId, PollSource, Timestamp,
    lane::{AcceptedVote, Producer, Settle},
    metrics::{self, Rejected},
    poll::{InvalidField, check_option_id, check_user_id},
    poll_cache::PollCache,
    vote_hash,
};
use votestream_proto::{
    VoteBytes, VotesMessage,
    v1::{Rejection, RejectionCode},
};

use crate::{
    IngestConfig,
    room::{Room, Rooms},
    session::Session,
};

/// What a message costs beside its bytes: ledger entry, indices, the lane's columns.
const MESSAGE_OVERHEAD_BYTES: usize = 256;
/// About what a vote takes on the wire, for sizing buffers.
const VOTE_WIRE_BYTES: usize = 48;
/// Pause before a poll that could not be read is read again.
const LOOKUP_PAUSE: Duration = Duration::from_millis(50);

/// Why a vote is rejected.
pub(crate) type Reject = (RejectionCode, String);

/// Admits votes into the lanes.
pub struct Admission {
    producer: Arc<Producer>,
    polls: PollCache,
    clock: Arc<dyn Clock>,
    rooms: Rooms,
    /// How long a message tries to read its polls before its votes are refused.
    lookup_patience: Duration,
    pub(crate) unary_patience: Duration,
    pub(crate) drain: Duration,
}

/// Label of a rejection.
fn reason(code: RejectionCode) -> Rejected {
    match code {
        RejectionCode::Malformed => Rejected::Malformed,
        RejectionCode::PollNotFound => Rejected::PollNotFound,
        RejectionCode::OptionNotFound => Rejected::OptionNotFound,
        RejectionCode::PollNotOpen => Rejected::PollNotOpen,
        RejectionCode::PollClosed => Rejected::PollClosed,
        RejectionCode::WrongSource => Rejected::WrongSource,
        RejectionCode::Unavailable => Rejected::Unavailable,
        RejectionCode::OutcomeUnknown | RejectionCode::Unspecified => Rejected::Other,
    }
}

/// The polls that a stream votes in, as far as its latest messages tell.
#[derive(Default)]
pub struct StreamPolls {
    known: Vec<KnownPoll>,
}

/// Most polls that a stream remembers from one message to the next.
const POLLS_REMEMBERED_MAX: usize = 16;

/// Polls of one message that its votes are refused for.
#[derive(Default)]
struct Refused {
    unknown: HashSet<String>,
    /// Polls that could not be read.
    unreadable: HashSet<String>,
}

/// A poll, and its options in a form that is fast to search.
struct KnownPoll {
    poll: Arc<Poll>,
    /// For options of up to 16 bytes: the bytes, padded with zeros, which no id holds. Zero for longer ones.
    short: Vec<u128>,
    /// For polls with many options, or long ones.
    by_id: HashMap<Arc<str>, u32>,
}

/// Up to this many options are compared one by one.
const OPTIONS_SCANNED_MAX: usize = 32;

impl KnownPoll {
    fn new(poll: Arc<Poll>) -> Self {
        let ids = || poll.options.iter().map(|option| &option.id);
        let short: Vec<u128> = ids().map(|id| padded(id.as_bytes()).unwrap_or(0)).collect();
        let scan = short.len() <= OPTIONS_SCANNED_MAX && !short.contains(&0);
        let by_id = if scan { HashMap::new() } else { ids().cloned().zip(0..).collect() };
        Self { short: if scan { short } else { Vec::new() }, by_id, poll }
    }

    fn is(&self, poll_id: &[u8]) -> bool {
        self.poll.id.as_str().as_bytes() == poll_id
    }

    fn option(&self, id: &[u8]) -> Option<&Arc<str>> {
        let at = if self.by_id.is_empty() {
            let id = padded(id)?;
            self.short.iter().position(|&known| known == id)?
        } else {
            *self.by_id.get(std::str::from_utf8(id).ok()?)? as usize
        };
        Some(&self.poll.options.get(at)?.id)
    }
}

/// 1 to 16 bytes without a zero among them, as a number.
fn padded(bytes: &[u8]) -> Option<u128> {
    if bytes.is_empty() || bytes.len() > 16 || bytes.contains(&0) {
        return None;
    }
    let mut padded = [0; 16];
    padded[..bytes.len()].copy_from_slice(bytes);
    Some(u128::from_le_bytes(padded))
}

impl Admission {
    /// Admission into the lanes of `producer`. To be called on a runtime.
    pub fn new(config: &IngestConfig, producer: Arc<Producer>, polls: PollCache, clock: Arc<dyn Clock>) -> Self {
        let rooms = Rooms::new(config.unsettled_bytes_max, config.bounds.answer_deadline);
        let (unary_patience, drain) = (config.unary_patience, config.drain);
        let lookup_patience = config.bounds.answer_deadline / 2;
        Self { producer, polls, clock, rooms, lookup_patience, unary_patience, drain }
    }

    /// Waits for room for messages.
    pub async fn room(&self, messages: &[VotesMessage]) -> Option<Room> {
        self.rooms.take(messages.iter().map(|message| message.wire_len() + MESSAGE_OVERHEAD_BYTES).sum()).await
    }

    /// Validates the votes of messages that arrived together and hands the good ones to their lanes. Returns how many votes
    /// there were.
    pub async fn admit(
        &self,
        session: &Arc<Session>,
        polls: &mut StreamPolls,
        first: u64,
        messages: &[VotesMessage],
        room: Option<Room>,
    ) -> u64 {
        let mut refused = Refused::default();
        let started = Instant::now();
        loop {
            // No await from here to the append: the definitions stay young enough for the clock reading.
            polls.revalidate(&self.polls);
            let missing = match self.judge(polls, &refused, first, messages) {
                Ok(Judged { accepted, rejections, votes, now }) => {
                    metrics::VOTES_ACCEPTED.add(0, accepted.len() as u64);
                    rejections.iter().for_each(|rejection| metrics::rejected(reason(rejection.code()), 1));
                    let entered = session.enter(first, accepted.len(), rejections, room);
                    if !accepted.is_empty() {
                        let settle: Arc<dyn Settle> = entered;
                        self.producer.append_traced(&settle, &accepted, now, session.traceparent());
                    }
                    drop(accepted);
                    polls.known.truncate(POLLS_REMEMBERED_MAX);
                    return u64::from(votes);
                }
                Err(missing) => missing,
            };
            let in_time = started.elapsed() < self.lookup_patience;
            match self.polls.get(&missing).await {
                Ok(Some(poll)) if in_time => {
                    polls.known.push(KnownPoll::new(poll));
                    polls.recall(messages, &self.polls);
                }
                Ok(None) => {
                    refused.unknown.insert(missing.as_str().to_owned());
                }
                Err(error) if error.retryable && in_time => {
                    tracing::debug!(%error, poll_id = %missing, "cannot read a poll, trying again");
                    tokio::time::sleep(LOOKUP_PAUSE).await;
                }
                Ok(Some(_)) => {
                    tracing::warn!(poll_id = %missing, "reading polls takes too long; votes are refused");
                    refused.unreadable.insert(missing.as_str().to_owned());
                }
                Err(error) => {
                    tracing::warn!(%error, poll_id = %missing, "cannot read a poll; its votes are refused");
                    refused.unreadable.insert(missing.as_str().to_owned());
                }
            }
        }
    }
}

/// Messages of which every vote has a verdict.
struct Judged<'a> {
    accepted: Vec<AcceptedVote<'a>>,
    rejections: Vec<Rejection>,
    votes: u32,
    /// The clock reading that was compared with the polls' times.
    now: Timestamp,
}

impl Admission {
    /// Judges the votes of messages, in one pass. Fails with the first poll that has to be looked up.
    fn judge<'a>(
        &self,
        polls: &'a StreamPolls,
        refused: &Refused,
        first: u64,
        messages: &'a [VotesMessage],
    ) -> Result<Judged<'a>, PollId> {
        let now = self.clock.now();
        let bytes: usize = messages.iter().map(VotesMessage::wire_len).sum();
        let accepted = Vec::with_capacity(bytes / VOTE_WIRE_BYTES + 1);
        let mut judged = Judged { accepted, rejections: Vec::new(), votes: 0, now };
        let mut last_poll = 0;
        for vote in messages.iter().flat_map(VotesMessage::votes) {
            let index = judged.votes;
            judged.votes += 1;
            let verdict = match &vote {
                Ok(vote) => match find_poll(vote.poll_id, polls, refused, &mut last_poll) {
                    Ok(poll) => check(vote, poll, now),
                    Err(Missing::Look(id)) => return Err(id),
                    Err(Missing::Refuse(reject)) => Err(reject),
                },
                Err(malformed) => Err((RejectionCode::Malformed, format!("vote: {malformed}"))),
            };
            match verdict {
                Ok(vote) => judged.accepted.push(AcceptedVote { index, ..vote }),
                Err((code, reason)) => {
                    let index = first + u64::from(index);
                    judged.rejections.push(Rejection { index, code: code.into(), reason });
                }
            }
        }
        Ok(judged)
    }
}

impl StreamPolls {
    /// Takes the present definition of every remembered poll from the cache; forgets those that are too old there.
    fn revalidate(&mut self, cache: &PollCache) {
        self.known.retain_mut(|known| match cache.peek(&known.poll.id) {
            Some(poll) if Arc::ptr_eq(&poll, &known.poll) => true,
            Some(poll) => {
                *known = KnownPoll::new(poll);
                true
            }
            None => false,
        });
    }

    /// Takes every poll of these messages that the cache holds, so that judging starts anew only for those that are read.
    fn recall(&mut self, messages: &[VotesMessage], cache: &PollCache) {
        let mut seen: HashSet<&[u8]> = self.known.iter().map(|known| known.poll.id.as_str().as_bytes()).collect();
        let new = messages.iter().flat_map(VotesMessage::votes).flatten().filter(|vote| seen.insert(vote.poll_id));
        let ids = new.filter_map(|vote| PollId::new(PollId::check(vote.poll_id).ok()?).ok());
        let found: Vec<_> = ids.filter_map(|id| cache.peek(&id)).map(KnownPoll::new).collect();
        self.known.extend(found);
    }
}

/// Why a vote has no poll.
enum Missing {
    /// It has to be looked up.
    Look(PollId),
    /// The vote is refused.
    Refuse(Reject),
}

/// The poll of a vote. `last` is where the one before was found: most votes of a message are for one poll.
fn find_poll<'a>(
    poll_id: &[u8],
    polls: &'a StreamPolls,
    refused: &Refused,
    last: &mut usize,
) -> Result<&'a KnownPoll, Missing> {
    if let Some(known) = polls.known.get(*last)
        && known.is(poll_id)
    {
        return Ok(known);
    }
    let id = PollId::check(poll_id).map_err(|error| Missing::Refuse(malformed(&error)))?;
    if let Some(at) = polls.known.iter().position(|known| known.is(poll_id)) {
        *last = at;
        return Ok(&polls.known[at]);
    }
    Err(if refused.unknown.contains(id) {
        Missing::Refuse((RejectionCode::PollNotFound, format!("poll_id: there is no poll {id:?}")))
    } else if refused.unreadable.contains(id) {
        let reason = format!("poll {id:?} cannot be read at the moment, retry the vote");
        Missing::Refuse((RejectionCode::Unavailable, reason))
    } else {
        match PollId::new(id) {
            Ok(id) => Missing::Look(id),
            Err(error) => Missing::Refuse(malformed(&error)),
        }
    })
}

fn malformed(error: &InvalidField) -> Reject {
    (RejectionCode::Malformed, error.to_string())
}

/// Judges one vote. The index of the result is not set.
fn check<'a>(vote: &VoteBytes<'a>, known: &'a KnownPoll, now: Timestamp) -> Result<AcceptedVote<'a>, Reject> {
    let poll = &known.poll;
    let user_id = check_user_id(vote.user_id).map_err(|error| malformed(&error))?;
    let Some(option_id) = known.option(vote.option_id) else {
        let id = check_option_id(vote.option_id).map_err(|error| malformed(&error))?;
        let reason = format!("option_id: poll {:?} has no option {id:?}", poll.id.as_str());
        return Err((RejectionCode::OptionNotFound, reason));
    };
    if poll.source != PollSource::Ingest {
        return Err((
            RejectionCode::WrongSource,
            format!("poll {:?} takes its votes from the stream", poll.id.as_str()),
        ));
    }
    if now < poll.opens_at {
        return Err((RejectionCode::PollNotOpen, format!("poll {:?} is not open yet", poll.id.as_str())));
    }
    if now >= poll.closes_at || poll.closing != Closing::No {
        return Err((RejectionCode::PollClosed, format!("poll {:?} is closed", poll.id.as_str())));
    }
    let hash = vote_hash(poll.id.as_str(), user_id);
    Ok(AcceptedVote { poll_id: &poll.id, option_id, user_id, hash, index: 0 })
}
