//! Admission of votes: from the bytes of a message to accepted votes in their lanes.
//!
//! Owns validation. Must never accept a vote on a poll definition that was older than the cache's life at the clock reading
//! that stamps the vote, never stamp a vote with another reading than the one that was compared with opens_at and closes_at,
//! never accept one while the clock is not trusted, and never do more for a message than its bytes pay for: each vote is judged
//! once, and looked at once more at the most.

mod hashing;
mod polls;
#[cfg(test)]
mod tests;
mod walk;

use std::{cell::Cell, ops::ControlFlow, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, stream};
use tokio::{
    sync::Semaphore,
    task::yield_now,
    time::{sleep, timeout},
};
use votestream_core::{
    Clock, Moment, PollId, Refusal, Timestamp, UserId,
    mutation::{self, Mutation},
    observe::metrics,
    polls::{cache::PollCache, index::IndexedPoll},
    produce::{AcceptedVote, Producer},
};
use votestream_proto::{ReceivedVotes, VoteBytes};

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

/// What a message costs beside its bytes: ledger entry, indices, the lane's columns.
const MESSAGE_OVERHEAD_BYTES: usize = 256;
/// About what a vote takes on the wire, for sizing buffers.
const VOTE_WIRE_BYTES: usize = 48;
/// Most votes that are judged by one reading of the clocks, before other tasks have their turn.
const TOGETHER_VOTES_MAX: usize = 16 << 10;
/// Pause before a poll that could not be read is read again.
const LOOKUP_PAUSE: Duration = Duration::from_millis(50);
/// Polls that are read at a time for one message.
const LOOKUPS_A_MESSAGE_MAX: usize = 16;
/// Polls that are read at a time for all messages. A quarter of what the cache reads at a time: the polls of others are read
/// anew in the background meanwhile.
const LOOKUPS_MAX: usize = 256;

/// Admits votes into the lanes.
pub struct Admission {
    producer: Arc<Producer>,
    polls: PollCache,
    clock: Arc<dyn Clock>,
    memories: Memories,
    inflight: InflightBytes,
    lookups: Semaphore,
    /// How long a message tries to read its polls before its votes are refused.
    lookup_patience: Duration,
    /// Messages of which a part has arrived.
    pub(crate) partial: WaitingBytes,
    /// Messages whose client does not read its answers.
    unread: WaitingBytes,
    pub(crate) refused_room: RefusedRoom,
    pub(crate) unary_patience: Duration,
    pub(crate) drain: Duration,
}

/// Messages on their way into the lanes.
struct Admit<'a, L, I> {
    ledger: &'a Arc<L>,
    /// Index of the next vote.
    next: u64,
    /// Size of the messages.
    bytes: usize,
    walk: Walk<'a, I>,
    polls: KnownPolls,
    /// The one reading of the clocks that these votes are judged by: read again after anything that waits.
    moment: Moment,
}

/// A client does not read its answers, and there is no room for its message to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too much waits for clients that do not read their answers; votes after durable_through were not accepted")]
pub struct Crowded;

/// Why admission has to wait before it goes on.
enum Pause {
    /// Until the ledger takes more, or others have had their turn.
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
    /// Admission into the lanes of `producer`. To be called on a runtime.
    pub fn new(config: &IngestConfig, producer: Arc<Producer>, polls: PollCache, clock: Arc<dyn Clock>) -> Self {
        Self {
            producer,
            polls,
            clock,
            memories: Memories::default(),
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

    /// Validates the votes of messages that arrived together and hands the good ones to their lanes. Returns how many votes
    /// there were. Whoever drops the future before it is ready admits nothing from then on.
    ///
    /// # Errors
    ///
    /// If the client does not read its answers, and too much waits for such clients already.
    pub async fn admit<L: Ledger>(
        &self,
        ledger: &Arc<L>,
        first: u64,
        messages: &[impl ReceivedVotes + Sync],
        permit: Permit,
    ) -> Result<u64, Crowded> {
        let bytes = messages.iter().map(ReceivedVotes::wire_len).sum();
        let (walk, polls, moment) = (walk(messages), self.memories.take(), Moment::of(&*self.clock));
        let mut admit = Admit { ledger, next: first, bytes, walk, polls, moment };
        if let Some((pause, permit)) = self.admit_known(&mut admit, permit) {
            // Polls are nearly always known, and what waits for them takes more memory than the rest of a call.
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

    /// Waits until the client has read answers. Its message makes room for those of others meanwhile.
    async fn wait_for_reader<L: Ledger, I>(&self, admit: &Admit<'_, L, I>, permit: Permit) -> Result<Permit, Crowded> {
        let _waiting = self.unread.try_acquire(admit.bytes).ok_or(Crowded)?;
        drop(permit);
        admit.ledger.ready().await;
        Ok(self.inflight.acquire(admit.bytes).await)
    }

    /// Admits votes until something has to be waited for, or to the end.
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

    /// Judges votes until something is missing, and appends what was judged. Nothing is waited for between the reading of the
    /// clocks and the append.
    fn admit_together<'a, L: Ledger, I>(&self, admit: &mut Admit<'a, L, I>, permit: Permit) -> Option<(Stop, Permit)>
    where
        I: Iterator<Item = VoteResult<'a>> + Clone,
    {
        let Admit { ledger, next: first, bytes, walk, polls, moment } = admit;
        // The fault of once, put back: the stamp is read after the moment at which the polls were young enough.
        let now = if mutation::is_active(Mutation::AgeBeforeClock) { self.clock.now() } else { moment.now };
        let judge = Judge { now, moment: *moment, is_trusted: self.clock.is_trusted(), first: *first };
        let Judged { accepted, refused, votes, stop } = judge.judge(walk, polls, *bytes, ledger.refused_max());
        metrics::VOTES_ACCEPTED.add(0, accepted.len() as u64);
        refusal::count(&refused);
        let (permit, rest) = match stop {
            None => (permit, None),
            // Nothing was judged yet.
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

    /// Looks polls up, several at a time.
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

    /// Looks one poll up, in its turn.
    async fn look_up_one(&self, id: &PollId, patience: Duration) -> Result<(Arc<IndexedPoll>, Moment), Refusal> {
        let unreadable = || Refusal::PollUnreadable(id.clone());
        if patience.is_zero() {
            tracing::debug!(poll_id = %id, "reading polls takes too long; votes are refused");
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

/// Votes that have a verdict.
struct Judged<'a> {
    accepted: Vec<AcceptedVote<'a>>,
    refused: Vec<Refused>,
    votes: usize,
    /// Why there are no more; none at the end.
    stop: Option<Stop>,
}

/// Judges votes by one reading of the clocks.
struct Judge {
    /// What is compared with opens_at and closes_at, and stamped on the votes.
    now: Timestamp,
    /// When poll definitions must be young enough.
    moment: Moment,
    /// Whether the clock is good for a stamp.
    is_trusted: bool,
    /// Index of the first vote.
    first: u64,
}

impl Judge {
    /// Judges votes in one pass.
    fn judge<'a, 'v: 'a, I>(
        &self,
        walk: &mut Walk<'v, I>,
        polls: &'a KnownPolls,
        bytes: usize,
        refused_max: usize,
    ) -> Judged<'a>
    where
        I: Iterator<Item = VoteResult<'v>> + Clone,
    {
        let mut accepted = ACCEPTED.take();
        accepted.reserve((bytes / VOTE_WIRE_BYTES + 1).min(TOGETHER_VOTES_MAX));
        let (mut refused, mut votes) = (Vec::new(), 0);
        let (mut last_poll, mut last_missing, mut unhashed) = (None, None, Unhashed::new());
        let stop = walk.try_for_each(|vote| {
            if votes == TOGETHER_VOTES_MAX || refused.len() == refused_max {
                return ControlFlow::Break(Stop::Full);
            }
            let refusal = match vote {
                Ok(vote) => match polls.find(vote.poll_id, self.moment, &mut last_poll) {
                    Ok(poll) => match self.check(vote, poll, &mut last_missing) {
                        Ok((option_id, user_id)) => {
                            // Hashed before anybody sees it.
                            let hash = unhashed.add(poll, vote.user_id, &mut accepted).unwrap_or_default();
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

    /// Judges one vote; if it is good, returns its option and its user.
    #[inline(always)]
    fn check<'a, 'v: 'a>(
        &self,
        vote: &VoteBytes<'v>,
        poll: &'a IndexedPoll,
        last_missing: &mut Option<Missed<'a>>,
    ) -> Result<(&'a Arc<str>, UserId<'v>), Refusal> {
        let user_id = UserId::check(vote.user_id)?;
        if let Some(missed) = last_missing
            && missed.is(poll, vote.option_id)
        {
            return Err(missed.refusal.clone());
        }
        match poll.admits(vote.option_id, self.now) {
            Ok(option_id) if self.is_trusted => Ok((option_id, user_id)),
            Ok(_) => Err(Refusal::ClockContradicted),
            Err(refusal) => {
                if let Refusal::NoSuchOption(_) = &refusal {
                    *last_missing = Some(Missed { poll, option_id: vote.option_id, refusal: refusal.clone() });
                }
                Err(refusal)
            }
        }
    }
}

/// The option that the last vote named whose poll has no such option. Whoever has it wrong mostly has it wrong in many votes: they
/// share what was found out about it.
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
