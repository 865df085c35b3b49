//! Admission of votes: from the bytes of a message to accepted votes in their lanes.
//!
//! Owns validation and backpressure. Must never accept a vote on a poll definition older than the cache's life, and never
//! stamp a vote with another clock reading than the one that was compared with opens_at and closes_at.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use votestream_core::{
    Clock, Poll, PollId, PollSource, Timestamp,
    lane::{AcceptedVote, Producer, Settle},
    poll::{check_option_id, check_user_id},
    poll_cache::PollCache,
    vote_hash,
};
use votestream_proto::{
    VoteBytes, VotesMessage,
    v1::{Rejection, RejectionCode},
};

use crate::{IngestConfig, session::Session};

/// What a message costs beside its bytes: ledger entry, indices, the lane's columns.
const MESSAGE_OVERHEAD_BYTES: usize = 256;
/// Pause before a poll that could not be read is read again.
const LOOKUP_PAUSE: Duration = Duration::from_millis(50);

/// Why a vote is rejected.
pub(crate) type Reject = (RejectionCode, String);

/// Admits votes into the lanes.
pub(crate) struct Admission {
    producer: Arc<Producer>,
    polls: PollCache,
    clock: Arc<dyn Clock>,
    room: Arc<Semaphore>,
    room_bytes: usize,
    /// How long a message tries to read its polls before its votes are refused.
    lookup_patience: Duration,
    pub(crate) unary_patience: Duration,
    pub(crate) drain: Duration,
}

/// The polls that one message names.
#[derive(Default)]
struct MessagePolls {
    known: Vec<Arc<Poll>>,
    unknown: HashSet<String>,
    /// Polls that could not be read.
    unreadable: HashSet<String>,
}

impl Admission {
    pub(crate) fn new(config: &IngestConfig, producer: Arc<Producer>, polls: PollCache, clock: Arc<dyn Clock>) -> Self {
        let room_bytes = config.unsettled_bytes_max.min(Semaphore::MAX_PERMITS);
        let room = Arc::new(Semaphore::new(room_bytes));
        let (unary_patience, drain) = (config.unary_patience, config.drain);
        let lookup_patience = config.bounds.answer_deadline / 2;
        Self { producer, polls, clock, room, room_bytes, lookup_patience, unary_patience, drain }
    }

    /// Waits for room for a message.
    pub(crate) async fn room(&self, message: &VotesMessage) -> Option<OwnedSemaphorePermit> {
        let bytes = (message.wire_len() + MESSAGE_OVERHEAD_BYTES).min(self.room_bytes);
        self.room.clone().acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)).await.ok()
    }

    /// Validates the votes of a message and hands the good ones to their lanes. Returns how many votes there were.
    pub(crate) async fn admit(
        &self,
        session: &Arc<Session>,
        first: u64,
        message: &VotesMessage,
        room: Option<OwnedSemaphorePermit>,
    ) -> u64 {
        let mut polls = MessagePolls::default();
        let started = Instant::now();
        // No await from the last lookup to the append: the definitions stay young enough for the clock reading.
        while let Some(missing) = self.find_polls(message, &mut polls) {
            match self.polls.get(&missing).await {
                Ok(Some(_)) if started.elapsed() < self.lookup_patience => {}
                Ok(None) => {
                    polls.unknown.insert(missing.as_str().to_owned());
                }
                Err(error) if error.retryable && started.elapsed() < self.lookup_patience => {
                    tracing::debug!(%error, poll_id = %missing, "cannot read a poll, trying again");
                    tokio::time::sleep(LOOKUP_PAUSE).await;
                }
                Ok(Some(_)) => {
                    tracing::warn!(poll_id = %missing, "reading polls takes too long; votes are refused");
                    polls.unreadable.insert(missing.as_str().to_owned());
                }
                Err(error) => {
                    tracing::warn!(%error, poll_id = %missing, "cannot read a poll; its votes are refused");
                    polls.unreadable.insert(missing.as_str().to_owned());
                }
            }
        }
        let now = self.clock.now();
        let (mut accepted, mut rejections) = (Vec::with_capacity(message.wire_len() / 48 + 1), Vec::new());
        let mut count = 0u32;
        let mut last_poll = 0;
        for vote in message.votes() {
            let index = count;
            count += 1;
            let verdict = match &vote {
                Ok(vote) => check(vote, &polls, &mut last_poll, now),
                Err(malformed) => Err((RejectionCode::Malformed, format!("vote: {malformed}"))),
            };
            match verdict {
                Ok(vote) => accepted.push(AcceptedVote { index, ..vote }),
                Err((code, reason)) => {
                    rejections.push(Rejection { index: first + u64::from(index), code: code.into(), reason });
                }
            }
        }
        let entered = session.enter(first, accepted.len(), rejections, room);
        if !accepted.is_empty() {
            let settle: Arc<dyn Settle> = entered;
            self.producer.append(&settle, &accepted, now);
        }
        u64::from(count)
    }

    /// Looks up all polls of a message in the cache. Returns one that is not there.
    fn find_polls(&self, message: &VotesMessage, polls: &mut MessagePolls) -> Option<PollId> {
        polls.known.clear();
        for vote in message.votes().flatten() {
            if polls.known.last().is_some_and(|poll| poll.id.as_str().as_bytes() == vote.poll_id) {
                continue;
            }
            let Ok(id) = PollId::check(vote.poll_id) else { continue };
            if polls.known.iter().any(|poll| poll.id.as_str() == id)
                || polls.unknown.contains(id)
                || polls.unreadable.contains(id)
            {
                continue;
            }
            let Ok(id) = PollId::new(id) else { continue };
            match self.polls.peek(&id) {
                Some(poll) => polls.known.push(poll),
                None => return Some(id),
            }
        }
        None
    }
}

/// Judges one vote. The index of the result is not set.
fn check<'a>(
    vote: &VoteBytes<'a>,
    polls: &'a MessagePolls,
    last_poll: &mut usize,
    now: Timestamp,
) -> Result<AcceptedVote<'a>, Reject> {
    let malformed = |error: votestream_core::poll::InvalidField| (RejectionCode::Malformed, error.to_string());
    let same = |poll: &Arc<Poll>| poll.id.as_str().as_bytes() == vote.poll_id;
    if !polls.known.get(*last_poll).is_some_and(same) {
        let poll_id = PollId::check(vote.poll_id).map_err(malformed)?;
        let Some(at) = polls.known.iter().position(same) else {
            return Err(if polls.unknown.contains(poll_id) {
                (RejectionCode::PollNotFound, format!("poll_id: there is no poll {poll_id:?}"))
            } else {
                (RejectionCode::Unavailable, format!("poll {poll_id:?} cannot be read at the moment, retry the vote"))
            });
        };
        *last_poll = at;
    }
    let poll = &polls.known[*last_poll];
    let user_id = check_user_id(vote.user_id).map_err(malformed)?;
    let option_id = match std::str::from_utf8(vote.option_id).ok().and_then(|id| poll.option_index(id)) {
        Some(at) => &poll.options[at].id,
        None => {
            let id = check_option_id(vote.option_id).map_err(malformed)?;
            return Err((
                RejectionCode::OptionNotFound,
                format!("option_id: poll {:?} has no option {id:?}", poll.id.as_str()),
            ));
        }
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
    if now >= poll.closes_at {
        return Err((RejectionCode::PollClosed, format!("poll {:?} is closed", poll.id.as_str())));
    }
    let hash = vote_hash(poll.id.as_str(), user_id);
    Ok(AcceptedVote { poll_id: &poll.id, option_id, user_id, hash, index: 0 })
}
