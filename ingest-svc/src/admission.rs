//! Admission of votes: from the bytes of a message to accepted votes in their lanes.
//!
//! Owns validation. Must never accept a vote on a poll definition that was older than the cache's life at the clock reading
//! that stamps the vote, never stamp a vote with another reading than the one that was compared with opens_at and closes_at,
//! and never accept one while the clock is not trusted.

use std::{cell::Cell, collections::HashSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use votestream_core::{
    Clock, Closing, Moment, PollId, PollSource, Timestamp, UserId,
    lane::{AcceptedVote, Producer},
    metrics::{self, Rejected},
    mutation::{self, Mutation},
    poll::{InvalidField, check_option_id},
    poll_cache::PollCache,
    poll_index::IndexedPoll,
    routing::{VoteKey, vote_hash},
};
use votestream_proto::{
    ReceivedVotes, VoteBytes,
    v1::{Rejection, RejectionCode},
};

use crate::{
    IngestConfig,
    ledger::{Admitted, Ledger},
    room::{Room, Rooms},
};

/// What a message costs beside its bytes: ledger entry, indices, the lane's columns.
const MESSAGE_OVERHEAD_BYTES: usize = 256;
/// About what a vote takes on the wire, for sizing buffers.
const VOTE_WIRE_BYTES: usize = 48;
/// Pause before a poll that could not be read is read again.
const LOOKUP_PAUSE: Duration = Duration::from_millis(50);

/// Why votes are refused while the clock contradicts the engines'.
const CLOCK_NOT_TRUSTED: &str =
    "the clock of this server differs from the engines' by more than the protocol allows; not stored, retry the vote";

/// Why a vote is rejected.
pub(crate) type Reject = (RejectionCode, String);

/// Admits votes into the lanes.
pub struct Admission {
    producer: Arc<Producer>,
    polls: PollCache,
    clock: Arc<dyn Clock>,
    memories: Mutex<Vec<KnownPolls>>,
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

/// Polls that votes were for lately. Whoever admits messages takes such a memory and gives it back, so that the cache, which all
/// share, is asked seldom.
#[derive(Default)]
struct KnownPolls {
    known: Vec<Known>,
    /// Where each is, once there are many.
    places: FxHashMap<PollId, usize>,
    /// The reading that stamps the messages which are being judged, and at which polls must be young enough.
    now: Option<Moment>,
}

/// A poll, and until when it may be used without asking the cache again.
struct Known {
    poll: Arc<IndexedPoll>,
    until: Moment,
}

/// Most polls of a memory; beyond, all are forgotten after the message.
const POLLS_REMEMBERED_MAX: usize = 1_024;
/// Up to this many, each is looked at in turn.
const POLLS_SCANNED_MAX: usize = 16;
/// Most memories that wait for messages: more than there are threads to admit them.
const MEMORIES_MAX: usize = 64;

/// Polls of one message that its votes are refused for.
#[derive(Default)]
struct Refused {
    unknown: HashSet<String>,
    /// Polls that could not be read.
    unreadable: HashSet<String>,
}

/// Messages on their way into the lanes.
struct Admit<'a, L, V> {
    ledger: &'a Arc<L>,
    /// Index of the first vote.
    first: u64,
    messages: &'a [V],
    room: Option<Room>,
    refused: Refused,
    started: Moment,
}

impl Admission {
    /// Admission into the lanes of `producer`. To be called on a runtime.
    pub fn new(config: &IngestConfig, producer: Arc<Producer>, polls: PollCache, clock: Arc<dyn Clock>) -> Self {
        let rooms = Rooms::new(config.unsettled_bytes_max, config.bounds.answer_deadline);
        let (unary_patience, drain) = (config.unary_patience, config.drain);
        let lookup_patience = config.bounds.answer_deadline / 2;
        let memories = Mutex::default();
        Self { producer, polls, clock, memories, rooms, lookup_patience, unary_patience, drain }
    }

    /// Waits for room for messages.
    pub async fn room(&self, messages: &[impl ReceivedVotes]) -> Option<Room> {
        self.rooms.take(messages.iter().map(|message| message.wire_len() + MESSAGE_OVERHEAD_BYTES).sum()).await
    }

    /// Validates the votes of messages that arrived together and hands the good ones to their lanes. Returns how many votes
    /// there were. Whoever drops the future before it is ready has admitted nothing.
    pub async fn admit<L: Ledger>(
        &self,
        ledger: &Arc<L>,
        first: u64,
        messages: &[impl ReceivedVotes],
        room: Option<Room>,
    ) -> u64 {
        let started = self.moment();
        let mut admit = Admit { ledger, first, messages, room, refused: Refused::default(), started };
        match self.try_admit(&mut admit, started) {
            Ok(votes) => votes,
            // Polls are nearly always known, and what waits for them takes more memory than the rest of a call.
            Err(missing) => Box::pin(self.look_up_and_admit(missing, admit)).await,
        }
    }

    /// The one reading of both clocks that a pass over messages uses: read again after anything that waits.
    fn moment(&self) -> Moment {
        Moment::of(&*self.clock)
    }

    /// Admits messages that came at `now` or before, unless a poll has to be looked up.
    fn try_admit<L: Ledger>(&self, admit: &mut Admit<'_, L, impl ReceivedVotes>, now: Moment) -> Result<u64, PollId> {
        let mut polls = self.memories.lock().pop().unwrap_or_default();
        polls.now = Some(now);
        let (first, messages) = (admit.first, admit.messages);
        loop {
            // The stamp and the moment that a poll must be young enough for are one, however long anything takes from here.
            let missing = match self.judge(&polls, &admit.refused, first, messages, now.now) {
                Ok(Judged { accepted, rejections, votes, now }) => {
                    metrics::VOTES_ACCEPTED.add(0, accepted.len() as u64);
                    rejections.iter().for_each(|rejection| metrics::rejected(reason(rejection.code()), 1));
                    let (count, room) = (accepted.len(), admit.room.take());
                    let settle = admit.ledger.enter(Admitted { first, accepted: count, rejections, room });
                    if !accepted.is_empty() {
                        self.producer.append_traced(&settle, &accepted, now, admit.ledger.traceparent());
                    }
                    give_back(accepted);
                    self.remember(polls);
                    return Ok(u64::from(votes));
                }
                Err(missing) => missing,
            };
            if !polls.recall(messages, &self.polls, &missing) {
                self.remember(polls);
                return Err(missing);
            }
        }
    }

    async fn look_up_and_admit<L: Ledger>(
        &self,
        mut missing: PollId,
        mut admit: Admit<'_, L, impl ReceivedVotes>,
    ) -> u64 {
        loop {
            let waited = self.moment().instant.saturating_duration_since(admit.started.instant);
            let in_time = waited < self.lookup_patience;
            let refused = &mut admit.refused;
            match self.polls.get(&missing).await {
                // The cache has it now.
                Ok(Some(_)) if in_time => {}
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
            missing = match self.try_admit(&mut admit, self.moment()) {
                Ok(votes) => return votes,
                Err(missing) => missing,
            };
        }
    }

    /// Keeps a memory for the next messages, unless it has become too large.
    fn remember(&self, polls: KnownPolls) {
        if polls.known.len() <= POLLS_REMEMBERED_MAX {
            let mut memories = self.memories.lock();
            if memories.len() < MEMORIES_MAX {
                memories.push(polls);
            }
        }
    }
}

thread_local! {
    /// Memory for accepted votes between two messages: new memory would be mapped, and out of the caches, for each.
    static ACCEPTED: Cell<Vec<AcceptedVote<'static>>> = const { Cell::new(Vec::new()) };
}

/// Most votes that the memory is kept for.
const ACCEPTED_KEPT_MAX: usize = 4_096;

/// Keeps the memory of a list for the next one.
fn give_back(mut accepted: Vec<AcceptedVote<'_>>) {
    if accepted.capacity() <= ACCEPTED_KEPT_MAX {
        accepted.clear();
        // Collected in place, for the sake of the lifetime alone.
        ACCEPTED.set(accepted.into_iter().map_while(|_| None).collect());
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
        polls: &'a KnownPolls,
        refused: &Refused,
        first: u64,
        messages: &'a [impl ReceivedVotes],
        now: Timestamp,
    ) -> Result<Judged<'a>, PollId> {
        // The fault of once, put back: the stamp is read after the moment at which the polls were young enough.
        let now = if mutation::is_active(Mutation::AgeBeforeClock) { self.clock.now() } else { now };
        let trusted = self.clock.is_trusted();
        let check = |vote: &VoteBytes<'a>, poll| {
            if trusted { check(vote, poll, now) } else { Err((RejectionCode::Unavailable, CLOCK_NOT_TRUSTED.into())) }
        };
        let bytes: usize = messages.iter().map(ReceivedVotes::wire_len).sum();
        let mut accepted = ACCEPTED.take();
        accepted.reserve(bytes / VOTE_WIRE_BYTES + 1);
        let mut judged = Judged { accepted, rejections: Vec::new(), votes: 0, now };
        let (mut last_poll, mut unhashed) = (None, Unhashed::new());
        for message in messages {
            for vote in message.votes() {
                let index = judged.votes;
                judged.votes += 1;
                let (code, reason) = match &vote {
                    Ok(vote) => match find_poll(vote.poll_id, polls, refused, &mut last_poll) {
                        Ok(poll) => match check(vote, poll) {
                            Ok((option_id, user_id)) => {
                                // Hashed before anybody sees it.
                                let hash = unhashed.add(poll, vote.user_id, &mut judged.accepted).unwrap_or_default();
                                let poll_id = poll.id();
                                judged.accepted.push(AcceptedVote { poll_id, option_id, user_id, hash, index });
                                continue;
                            }
                            Err(reject) => reject,
                        },
                        Err(Missing::Look(id)) => return Err(id),
                        Err(Missing::Refuse(reject)) => reject,
                    },
                    Err(malformed) => (RejectionCode::Malformed, format!("vote: {malformed}")),
                };
                let index = first + u64::from(index);
                judged.rejections.push(Rejection { index, code: code.into(), reason });
            }
        }
        unhashed.hash(&mut judged.accepted);
        Ok(judged)
    }
}

/// Votes that are accepted, and whose hashes are still to be computed.
struct Unhashed<'a> {
    keys: [VoteKey; HASHED_TOGETHER],
    /// Of which of the accepted votes each key is, and of which poll.
    votes: [(usize, Option<&'a IndexedPoll>); HASHED_TOGETHER],
    count: usize,
}

/// Votes that are hashed together: see [`PollHasher::write_key`].
///
/// [`PollHasher::write_key`]: votestream_core::PollHasher::write_key
const HASHED_TOGETHER: usize = 16;

impl<'a> Unhashed<'a> {
    fn new() -> Self {
        Self { keys: [[0; _]; HASHED_TOGETHER], votes: [(0, None); HASHED_TOGETHER], count: 0 }
    }

    /// Notes the vote that is accepted next, or returns its hash at once.
    #[inline(always)]
    fn add(&mut self, poll: &'a IndexedPoll, user_id: &[u8], accepted: &mut [AcceptedVote<'_>]) -> Option<u128> {
        if self.count == HASHED_TOGETHER {
            self.hash(accepted);
        }
        if !poll.hasher().write_key(user_id, &mut self.keys[self.count]) {
            return Some(vote_hash(poll.id().as_str(), user_id));
        }
        self.votes[self.count] = (accepted.len(), Some(poll));
        self.count += 1;
        None
    }

    /// Computes the hashes of the votes that were noted.
    fn hash(&mut self, accepted: &mut [AcceptedVote<'_>]) {
        for (key, (at, poll)) in self.keys.iter().zip(self.votes).take(self.count) {
            if let (Some(vote), Some(poll)) = (accepted.get_mut(at), poll) {
                vote.hash = poll.hasher().hash_of_key(key);
            }
        }
        self.count = 0;
    }
}

impl Refused {
    /// Why votes for a poll that was not found are refused, or that it has to be looked up.
    #[cold]
    fn why(&self, id: &str) -> Missing {
        if self.unknown.contains(id) {
            Missing::Refuse((RejectionCode::PollNotFound, format!("poll_id: there is no poll {id:?}")))
        } else if self.unreadable.contains(id) {
            let reason = format!("poll {id:?} cannot be read at the moment, retry the vote");
            Missing::Refuse((RejectionCode::Unavailable, reason))
        } else {
            PollId::new(id).map_or_else(|error| Missing::Refuse(malformed(&error)), Missing::Look)
        }
    }
}

impl KnownPolls {
    /// Takes every poll of these messages that the cache holds, so that judging starts anew only for those that are read.
    /// Whether the one that is missing is among them.
    fn recall(&mut self, messages: &[impl ReceivedVotes], cache: &PollCache, missing: &PollId) -> bool {
        let Some(now) = self.now else { return false };
        for vote in messages.iter().flat_map(ReceivedVotes::votes).flatten() {
            if let Ok(id) = PollId::check(vote.poll_id)
                && self.find(id).is_none()
                && let Some((poll, until)) = cache.peek(id, now)
            {
                self.enter(Known { poll, until });
            }
        }
        self.find(missing.as_str()).is_some()
    }

    /// Enters a poll, in place of its older definition.
    fn enter(&mut self, new: Known) {
        match self.place(new.poll.id().as_str()) {
            Some(at) => self.known[at] = new,
            None => {
                self.known.push(new);
                let count = self.known.len();
                // All of them, once they are looked up there.
                let first = if count == POLLS_SCANNED_MAX + 1 { 0 } else { count - 1 };
                if count > POLLS_SCANNED_MAX {
                    self.places
                        .extend((first..).zip(&self.known[first..]).map(|(at, new)| (new.poll.id().clone(), at)));
                }
            }
        }
    }

    fn place(&self, id: &str) -> Option<usize> {
        if self.known.len() <= POLLS_SCANNED_MAX {
            self.known.iter().position(|known| known.poll.is(id.as_bytes()))
        } else {
            self.places.get(id).copied()
        }
    }

    /// The poll of this id, if it may still be used.
    fn find(&self, id: &str) -> Option<&IndexedPoll> {
        let known = &self.known[self.place(id)?];
        self.now.is_some_and(|now| !now.is_past(known.until)).then_some(&known.poll)
    }
}

/// Why a vote has no poll.
enum Missing {
    /// It has to be looked up.
    Look(PollId),
    /// The vote is refused.
    Refuse(Reject),
}

/// The poll of a vote. `last` is that of the vote before: most votes of a message are for one poll.
#[inline(always)]
fn find_poll<'a>(
    poll_id: &[u8],
    polls: &'a KnownPolls,
    refused: &Refused,
    last: &mut Option<&'a IndexedPoll>,
) -> Result<&'a IndexedPoll, Missing> {
    if let Some(known) = *last
        && known.is(poll_id)
    {
        return Ok(known);
    }
    let id = PollId::check(poll_id).map_err(|error| Missing::Refuse(malformed(&error)))?;
    let known = polls.find(id).ok_or_else(|| refused.why(id))?;
    *last = Some(known);
    Ok(known)
}

fn malformed(error: &InvalidField) -> Reject {
    (RejectionCode::Malformed, error.to_string())
}

/// Judges one vote; if it is good, returns its option and its user.
#[inline(always)]
fn check<'a>(
    vote: &VoteBytes<'a>,
    known: &'a IndexedPoll,
    now: Timestamp,
) -> Result<(&'a Arc<str>, UserId<'a>), Reject> {
    let poll = known.poll();
    let user_id = UserId::check(vote.user_id).map_err(|error| malformed(&error))?;
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
    Ok((option_id, user_id))
}

#[cfg(test)]
mod tests {
    use votestream_core::Poll;

    use super::*;

    #[test]
    fn every_vote_has_its_hash_when_all_are_judged() {
        let poll = |id: &str| {
            IndexedPoll::new(Arc::new(Poll {
                id: PollId::new(id).unwrap(),
                title: String::new(),
                options: Vec::new(),
                opens_at: Timestamp(0),
                closes_at: Timestamp(1),
                closing: Closing::No,
                source: PollSource::Ingest,
                expected_peak: 0,
                buckets: 1,
                needs_recount: false,
                final_result: None,
            }))
        };
        // The key of the longest one has no place for a user.
        let polls = [poll("p"), poll("another"), poll(&"long".repeat(16))];
        let users: Vec<_> = (0..5 * HASHED_TOGETHER + 3)
            .map(|at| match at % 5 {
                0 => format!("user-{at}"),
                _ => format!("00000000-0000-4000-8000-{at:012}"),
            })
            .collect();
        let option_id: Arc<str> = "option".into();
        let (mut unhashed, mut accepted) = (Unhashed::new(), Vec::new());
        for (at, user) in users.iter().enumerate() {
            let poll = &polls[at % 7 % polls.len()];
            let hash = unhashed.add(poll, user.as_bytes(), &mut accepted).unwrap_or_default();
            let (poll_id, user_id) = (poll.id(), UserId::of(user));
            accepted.push(AcceptedVote { poll_id, option_id: &option_id, user_id, hash, index: at as u32 });
        }
        unhashed.hash(&mut accepted);
        for (vote, user) in accepted.iter().zip(&users) {
            assert_eq!(vote.hash, vote_hash(vote.poll_id.as_str(), user), "{user} in {}", vote.poll_id);
        }
    }
}
