//! Admission of votes: from the bytes of a message to accepted votes in their lanes.
//!
//! Owns validation, and that what goes into a lane is the pseudonym of a user where the poll has a key. Must never accept a
//! vote by a poll definition that was older than the cache's life when the clock was read for that vote's stamp. Must never
//! stamp a vote with another time than the one that was compared with opens_at and closes_at. Must never accept a vote while
//! the clock is not trusted. Must never do more work for a message than its size justifies: each vote is judged once, and
//! looked at at most once more.

mod hashing;
mod polls;
#[cfg(test)]
mod tests;
mod walk;

use std::{cell::Cell, ops::ControlFlow, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, stream};
use parking_lot::Mutex;
use tokio::{
    sync::Semaphore,
    task::yield_now,
    time::{Instant, sleep, timeout},
};
use votestream_core::{
    Clock, Moment, PollId, PseudonymKeys, Refusal, Timestamp, UserId,
    model::{poll::check_user_id, user_id::uuid_text},
    mutation::{self, Mutation},
    observe::metrics,
    polls::{cache::PollCache, index::IndexedPoll},
    produce::{AcceptedVote, Producer},
};
use votestream_proto::{ReceivedVotes, VoteBytes};
use votestream_server::Caller;

use self::{
    hashing::Unhashed,
    polls::{KnownPolls, Memories, Missing},
    walk::{VoteResult, Walk, walk},
};
use crate::{
    IngestConfig,
    inflight::{InflightBytes, Permit, WaitingBytes},
    ledger::{Admitted, Ledger},
    refusal::{self, Refused},
    session::RefusedRoom,
};

/// Memory of a message besides its bytes: ledger entry, indices, the lane's columns.
const MESSAGE_OVERHEAD_BYTES: usize = 256;
/// Usual size of a vote on the wire, to choose the size of buffers.
const VOTE_WIRE_BYTES: usize = 48;
/// Most votes that are judged by one reading of the clocks before other tasks may run.
const TOGETHER_VOTES_MAX: usize = 16 << 10;
/// Pause before a poll that could not be read is read again.
const LOOKUP_PAUSE: Duration = Duration::from_millis(50);
/// Most polls that are read at the same time for one message.
const LOOKUPS_A_MESSAGE_MAX: usize = 16;
/// Most polls that are read at the same time for all messages. A quarter of the cache's own limit, because the cache
/// also refreshes polls of other messages in the background.
const LOOKUPS_MAX: usize = 256;
/// Shortest time between two lines in the log about keys that are missing.
const KEY_MISSING_EVERY: Duration = Duration::from_secs(10);

/// Admits votes into the lanes.
pub struct Admission {
    producer: Arc<Producer>,
    polls: PollCache,
    clock: Arc<dyn Clock>,
    memories: Memories,
    keys: PseudonymKeys,
    /// When a missing key was logged last.
    key_missing: Mutex<Option<Instant>>,
    inflight: InflightBytes,
    lookups: Semaphore,
    /// How long a message waits for its polls before its votes are refused.
    lookup_patience: Duration,
    /// Bytes of messages of which only a part has arrived.
    pub(crate) partial: WaitingBytes,
    /// Bytes of messages whose client does not read its answers.
    unread: WaitingBytes,
    pub(crate) refused_room: RefusedRoom,
    pub(crate) unary_patience: Duration,
    pub(crate) drain: Duration,
}

/// Messages on their way into the lanes.
struct Admit<'a, L, I> {
    ledger: &'a Arc<L>,
    caller: &'a Caller,
    /// Index of the next vote.
    next: u64,
    /// Size of the messages.
    bytes: usize,
    walk: Walk<'a, I>,
    polls: KnownPolls,
    /// The reading of the clocks by which these votes are judged. The clocks are read again after every wait.
    moment: Moment,
}

/// A client does not read its answers, and there is no room for its message to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the client does not read its answers, and the server has no room to wait for it; votes after durable_through were \
     not accepted"
)]
pub struct Crowded;

/// Why admission has to wait before it goes on.
enum Pause {
    /// Until the ledger has room, or other tasks have run.
    Ledger,
    /// Until these polls are looked up.
    Polls(Vec<PollId>),
}

/// Why judging stopped before the end.
enum Stop {
    Full,
    Missing,
}

impl Admission {
    /// Admission into the lanes of `producer`. Must be called within a runtime.
    pub fn new(config: &IngestConfig, producer: Arc<Producer>, polls: PollCache, clock: Arc<dyn Clock>) -> Self {
        Self {
            producer,
            polls,
            clock,
            memories: Memories::default(),
            keys: config.pseudonym_keys.clone(),
            key_missing: Mutex::default(),
            inflight: InflightBytes::new(config.unsettled_bytes_max, config.bounds.answer_deadline),
            lookups: Semaphore::new(LOOKUPS_MAX),
            lookup_patience: config.bounds.answer_deadline / 2,
            partial: WaitingBytes::new(config.waiting_bytes_max),
            unread: WaitingBytes::new(config.waiting_bytes_max),
            refused_room: RefusedRoom::default(),
            unary_patience: config.unary_patience,
            drain: config.drain,
        }
    }

    /// Waits until messages may be in flight.
    pub async fn acquire(&self, messages: &[impl ReceivedVotes]) -> Permit {
        self.inflight.acquire(messages.iter().map(|message| message.wire_len() + MESSAGE_OVERHEAD_BYTES).sum()).await
    }

    /// Validates the votes of messages that arrived together, and passes the valid ones to their lanes. Returns the
    /// number of votes. If the future is dropped before it is ready, no further votes are admitted.
    ///
    /// # Errors
    ///
    /// If the client does not read its answers, and there is no room left for messages of such clients.
    pub async fn admit<L: Ledger>(
        &self,
        ledger: &Arc<L>,
        caller: &Caller,
        first: u64,
        messages: &[impl ReceivedVotes + Sync],
        permit: Permit,
    ) -> Result<u64, Crowded> {
        let bytes = messages.iter().map(ReceivedVotes::wire_len).sum();
        let (walk, polls, moment) = (walk(messages), self.memories.take(), Moment::of(&*self.clock));
        let mut admit = Admit { ledger, caller, next: first, bytes, walk, polls, moment };
        if let Some((pause, permit)) = self.admit_known(&mut admit, permit) {
            // Boxed: it is seldom needed, because polls are nearly always known, and it is larger than the rest of a
            // call.
            Box::pin(self.admit_rest(&mut admit, pause, permit)).await?;
        }
        self.memories.give_back(admit.polls);
        Ok(admit.next - first)
    }

    async fn admit_rest<'a, L: Ledger, I>(
        &self,
        admit: &mut Admit<'a, L, I>,
        mut pause: Pause,
        mut permit: Permit,
    ) -> Result<(), Crowded>
    where
        I: Iterator<Item = VoteResult<'a>> + Clone + Send,
    {
        let mut patience = self.lookup_patience;
        loop {
            match pause {
                Pause::Ledger => {
                    yield_now().await;
                    if admit.ledger.ready().now_or_never().is_none() {
                        permit = self.wait_for_reader(admit, permit).await?;
                    }
                }
                Pause::Polls(missing) => {
                    let started = self.clock.instant();
                    self.look_up(&mut admit.polls, missing, patience).await;
                    patience = patience.saturating_sub(self.clock.instant().saturating_duration_since(started));
                }
            }
            admit.moment = Moment::of(&*self.clock);
            match self.admit_known(admit, permit) {
                Some(next) => (pause, permit) = next,
                None => return Ok(()),
            }
        }
    }

    /// Waits until the client has read answers. Meanwhile its message gives its room in flight to others.
    async fn wait_for_reader<L: Ledger, I>(&self, admit: &Admit<'_, L, I>, permit: Permit) -> Result<Permit, Crowded> {
        let _waiting = self.unread.try_acquire(admit.bytes).ok_or(Crowded)?;
        drop(permit);
        admit.ledger.ready().await;
        Ok(self.inflight.acquire(admit.bytes).await)
    }

    /// Admits votes until it has to wait, or until the end.
    fn admit_known<'a, L: Ledger, I>(&self, admit: &mut Admit<'a, L, I>, mut permit: Permit) -> Option<(Pause, Permit)>
    where
        I: Iterator<Item = VoteResult<'a>> + Clone,
    {
        loop {
            let (stop, rest) = self.admit_together(admit, permit)?;
            permit = rest;
            match stop {
                Stop::Full => return Some((Pause::Ledger, permit)),
                Stop::Missing => {
                    let missing = admit.polls.recall(admit.walk.ahead(), &self.polls, admit.moment);
                    if !missing.is_empty() {
                        return Some((Pause::Polls(missing), permit));
                    }
                }
            }
        }
    }

    /// Judges votes until something is missing, and appends the judged votes. Must not wait between the reading of the
    /// clocks and the append.
    fn admit_together<'a, L: Ledger, I>(&self, admit: &mut Admit<'a, L, I>, permit: Permit) -> Option<(Stop, Permit)>
    where
        I: Iterator<Item = VoteResult<'a>> + Clone,
    {
        let Admit { ledger, caller, next: first, bytes, walk, polls, moment } = admit;
        // Brings back an old bug for a test: the stamp is read later than the moment for which the polls were checked.
        let now = if mutation::is_active(Mutation::AgeBeforeClock) { self.clock.now() } else { moment.now };
        let (is_trusted, keys) = (self.clock.is_trusted(), &self.keys);
        let judge = Judge { caller, now, moment: *moment, is_trusted, first: *first, keys };
        let Judged { accepted, refused, votes, stop } = judge.judge(walk, polls, *bytes, ledger.refused_max());
        metrics::VOTES_ACCEPTED.add(0, accepted.len() as u64);
        refusal::count(&refused);
        self.report_missing_key(&refused);
        let (permit, rest) = match stop {
            None => (permit, None),
            // No vote was judged yet.
            Some(stop) if votes == 0 => return Some((stop, permit)),
            Some(stop) => {
                let (permit, rest) = permit.share();
                (permit, Some((stop, rest)))
            }
        };
        if votes > 0 {
            let settle = ledger.enter(Admitted { first: *first, accepted: accepted.len(), refused, permit });
            if !accepted.is_empty() {
                self.producer.append_traced(&settle, &accepted, now, ledger.traceparent());
            }
            *first += votes as u64;
        }
        give_back(accepted);
        rest
    }

    /// Says in the log which key is missing, but not for every vote.
    fn report_missing_key(&self, refused: &[Refused]) {
        let missing = |refused: &Refused| {
            let Refusal::KeyMissing(poll, key) = &refused.refusal else { return None };
            Some((poll.clone(), *key))
        };
        let Some((poll, key)) = refused.iter().find_map(missing) else { return };
        let (now, mut last) = (self.clock.instant(), self.key_missing.lock());
        if last.is_none_or(|last| now.saturating_duration_since(last) >= KEY_MISSING_EVERY) {
            *last = Some(now);
            tracing::error!(poll_id = %poll, %key, "votes are refused: this process lacks the pseudonym key of their poll");
        }
    }

    /// Looks up polls, several at a time.
    async fn look_up(&self, polls: &mut KnownPolls, missing: Vec<PollId>, patience: Duration) {
        polls.begin_look_up();
        let mut answers = stream::iter(missing)
            .map(async |id| {
                let answer = self.look_up_one(&id, patience).await;
                (id, answer)
            })
            .buffer_unordered(LOOKUPS_A_MESSAGE_MAX);
        while let Some((id, answer)) = answers.next().await {
            match answer {
                Ok((poll, until)) => polls.enter(poll, until),
                Err(refusal) => polls.refuse(id, refusal),
            }
        }
    }

    /// Looks up one poll when it is its turn.
    async fn look_up_one(&self, id: &PollId, patience: Duration) -> Result<(Arc<IndexedPoll>, Moment), Refusal> {
        let unreadable = || Refusal::PollUnreadable(id.clone());
        if patience.is_zero() {
            tracing::debug!(poll_id = %id, "reading polls takes too long; their votes are refused");
            return Err(unreadable());
        }
        let started = self.clock.instant();
        let Ok(Ok(_turn)) = timeout(patience, self.lookups.acquire()).await else { return Err(unreadable()) };
        loop {
            let in_time = self.clock.instant().saturating_duration_since(started) < patience;
            match self.polls.fetch(id).await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => return Err(Refusal::NoSuchPoll(id.clone())),
                Err(error) if error.retryable && in_time => {
                    tracing::debug!(%error, poll_id = %id, "cannot read a poll, trying again");
                    sleep(LOOKUP_PAUSE).await;
                }
                Err(error) => {
                    tracing::warn!(%error, poll_id = %id, "cannot read a poll; its votes are refused");
                    return Err(unreadable());
                }
            }
        }
    }
}

thread_local! {
    /// Memory for accepted votes, kept between messages: new memory for each message would have to be mapped first, and
    /// would not be in the CPU's caches.
    static ACCEPTED: Cell<Vec<AcceptedVote<'static>>> = const { Cell::new(Vec::new()) };
}

/// Largest capacity, in votes, of memory that is kept.
const ACCEPTED_KEPT_MAX: usize = 4_096;

/// Keeps the memory of a list for the next one.
fn give_back(mut accepted: Vec<AcceptedVote<'_>>) {
    if accepted.capacity() <= ACCEPTED_KEPT_MAX {
        accepted.clear();
        // Collecting in place changes only the lifetime and keeps the memory.
        ACCEPTED.set(accepted.into_iter().map_while(|_| None).collect());
    }
}

/// Votes that were judged.
struct Judged<'a> {
    accepted: Vec<AcceptedVote<'a>>,
    refused: Vec<Refused>,
    votes: usize,
    /// Why judging stopped; `None` at the end of the votes.
    stop: Option<Stop>,
}

/// Judges votes by one reading of the clocks.
struct Judge<'c> {
    /// Whoever casts them.
    caller: &'c Caller,
    /// The time that is compared with opens_at and closes_at, and with which votes are stamped.
    now: Timestamp,
    /// The moment at which poll definitions must not be too old.
    moment: Moment,
    /// Whether votes may be stamped with this clock.
    is_trusted: bool,
    /// Index of the first vote.
    first: u64,
    /// The keys of pseudonyms.
    keys: &'c PseudonymKeys,
}

impl<'c> Judge<'c> {
    /// Judges votes in one pass.
    fn judge<'a, 'v: 'a, I>(
        &self,
        walk: &mut Walk<'v, I>,
        polls: &'a KnownPolls,
        bytes: usize,
        refused_max: usize,
    ) -> Judged<'a>
    where
        'c: 'a,
        I: Iterator<Item = VoteResult<'v>> + Clone,
    {
        let mut accepted = ACCEPTED.take();
        accepted.reserve((bytes / VOTE_WIRE_BYTES + 1).min(TOGETHER_VOTES_MAX));
        let (mut refused, mut votes) = (Vec::new(), 0);
        let (mut last_poll, mut last_missing, mut unhashed) = (None, None, Unhashed::new());
        let mut last_denied = None;
        let stop = walk.try_for_each(|vote| {
            if votes == TOGETHER_VOTES_MAX || refused.len() == refused_max {
                return ControlFlow::Break(Stop::Full);
            }
            let refusal = match vote {
                Ok(vote) => match self.find(vote, polls, &mut last_poll, &mut last_denied) {
                    Ok((poll, user)) => match self.check(user, vote.option_id, poll, &mut last_missing) {
                        Ok((option_id, user_id)) => {
                            // The hash is computed before the vote leaves this function.
                            let hash = match user_id {
                                UserId::Uuid { prefix: "", uuid } if poll.is_pseudonymous() => {
                                    unhashed.add(poll, &uuid_text(uuid), &mut accepted)
                                }
                                UserId::Uuid { .. } | UserId::Text(_) => unhashed.add(poll, user, &mut accepted),
                            };
                            let hash = hash.unwrap_or_default();
                            let (poll_id, index) = (poll.id(), votes as u32);
                            accepted.push(AcceptedVote { poll_id, option_id, user_id, hash, index });
                            votes += 1;
                            return ControlFlow::Continue(());
                        }
                        Err(refusal) => refusal,
                    },
                    Err(Missing::Look) => return ControlFlow::Break(Stop::Missing),
                    Err(Missing::Refuse(refusal)) => refusal,
                },
                Err(_) => Refusal::Unreadable,
            };
            refused.push(Refused { index: self.first + votes as u64, refusal });
            votes += 1;
            ControlFlow::Continue(())
        });
        unhashed.hash(&mut accepted);
        Judged { accepted, refused, votes, stop }
    }

    /// A user as they are stored.
    #[inline(always)]
    fn stored<'v>(&self, poll: &IndexedPoll, user: User<'v>) -> Result<UserId<'v>, Refusal> {
        match user {
            User::Stored(user_id) => Ok(user_id),
            User::Named(name) => Ok(match poll.pseudonyms(self.keys)? {
                Some(pseudonyms) => UserId::Uuid { prefix: "", uuid: pseudonyms.of(self.caller.namespace(), name) },
                None => UserId::of(name),
            }),
        }
    }

    /// The poll of a vote, and the user that its caller votes as. Rights come first: whoever may not vote in a poll learns
    /// nothing about it, and makes nobody look it up.
    #[inline(always)]
    fn find<'a, 'v: 'a>(
        &self,
        vote: &VoteBytes<'v>,
        polls: &'a KnownPolls,
        last_poll: &mut Option<&'a IndexedPoll>,
        last_denied: &mut Option<(&'v [u8], Refusal)>,
    ) -> Result<(&'a IndexedPoll, &'a [u8]), Missing>
    where
        'c: 'a,
    {
        let Some(user) = self.caller.voter(vote.poll_id, vote.user_id) else {
            return Err(Missing::Refuse(self.denied(vote, last_denied)));
        };
        polls.find(vote.poll_id, self.moment, last_poll).map(|poll| (poll, user))
    }

    /// The refusal of a vote that its caller may not cast. Votes in a row for one poll share it.
    #[cold]
    fn denied<'v>(&self, vote: &VoteBytes<'v>, last: &mut Option<(&'v [u8], Refusal)>) -> Refusal {
        if let Some((poll_id, refusal)) = last
            && *poll_id == vote.poll_id
        {
            return refusal.clone();
        }
        let refusal = match PollId::check(vote.poll_id) {
            Ok(id) => Refusal::NotAllowed(self.caller.no_voter(id).into()),
            Err(invalid) => invalid.into(),
        };
        *last = Some((vote.poll_id, refusal.clone()));
        refusal
    }

    /// The refusal of a vote whose user has a namespace, for a poll that would store the user without it: another user of the
    /// same name would become the same person.
    #[cold]
    fn namespace_is_lost(&self, poll: &IndexedPoll) -> Refusal {
        let reason = format!(
            "poll \"{}\" stores plain user ids and cannot keep users of several namespaces apart; create it with pseudonyms",
            poll.id()
        );
        Refusal::NotAllowed(reason.into())
    }

    /// Judges one vote. If it is valid, returns its option, and its user as they are stored.
    #[inline(always)]
    fn check<'a>(
        &self,
        user: &'a [u8],
        option_id: &'a [u8],
        poll: &'a IndexedPoll,
        last_missing: &mut Option<Missed<'a>>,
    ) -> Result<(&'a Arc<str>, UserId<'a>), Refusal> {
        let user = match poll.is_pseudonymous() {
            // A plain id does not say whose user it is.
            false if !self.caller.namespace().is_empty() => return Err(self.namespace_is_lost(poll)),
            false => User::Stored(UserId::check(user)?),
            true => User::Named(check_user_id(user)?),
        };
        if let Some(missed) = last_missing
            && missed.is(poll, option_id)
        {
            return Err(missed.refusal.clone());
        }
        match poll.admits(option_id, self.now) {
            Ok(option) if self.is_trusted => Ok((option, self.stored(poll, user)?)),
            Ok(_) => Err(Refusal::ClockContradicted),
            Err(refusal) => {
                if let Refusal::NoSuchOption(_) = &refusal {
                    *last_missing = Some(Missed { poll, option_id, refusal: refusal.clone() });
                }
                Err(refusal)
            }
        }
    }
}

/// The user of a vote.
enum User<'v> {
    /// As they are stored.
    Stored(UserId<'v>),
    /// As the vote names them; a pseudonym is stored.
    Named(&'v str),
}

/// The latest option that its poll does not have. A client with a wrong option mostly uses it in many votes, and these
/// share the result of the search.
struct Missed<'a> {
    poll: &'a IndexedPoll,
    option_id: &'a [u8],
    refusal: Refusal,
}

impl Missed<'_> {
    #[inline]
    fn is(&self, poll: &IndexedPoll, option_id: &[u8]) -> bool {
        std::ptr::eq(self.poll, poll) && self.option_id == option_id
    }
}
