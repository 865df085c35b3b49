//! One client stream: knows which of its votes are settled, in order.
//!
//! Owns the ledger between the task that reads votes and the task that answers. Must never report a vote before all
//! earlier votes are settled. Must never grow because a client does not read its answers: for such a client
//! [`REFUSED_FREE`] refused votes may wait, or more while the process has room for them. After that nothing more is
//! admitted.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    mem,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tonic::codegen::http::HeaderMap;
use tracing::Span;
use votestream_core::produce::{Outcome, Settle};
use votestream_process::telemetry::request_span;

use crate::{
    inflight::Permit,
    ledger::{Admitted, Ledger},
    refusal::{Refused, refusal_of},
};

/// Most entries of one stream that are not settled.
const UNSETTLED_ENTRIES_MAX: usize = 4_096;
/// Refused votes that may wait for each client, even if the process has no more room.
const REFUSED_FREE: usize = 64;
/// Most refused votes that are entered at once beyond those, if there is room.
const REFUSED_STEP: usize = 512;
/// Most refused votes that wait for all clients of a process together, beyond [`REFUSED_FREE`] each. A refused vote
/// takes about 150 bytes with its texts, so this is 40 MB.
const REFUSED_WAITING_MAX: usize = 256 << 10;

/// Room for the refused votes that wait for clients of one process.
#[derive(Clone)]
pub(crate) struct RefusedRoom(Arc<Semaphore>);

impl Default for RefusedRoom {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(REFUSED_WAITING_MAX)))
    }
}

/// The votes of one stream that were read but not yet answered.
#[derive(Default)]
pub struct Session {
    state: Mutex<State>,
    /// Notified when more votes may be entered.
    room: Notify,
    refused_room: RefusedRoom,
    /// Most refused votes that are reported one by one; `None` means all.
    listed_max: Option<usize>,
    /// The span of the session. It ends when the last vote is settled. `None` unless the client's trace is sampled.
    span: Option<Span>,
    /// `traceparent` of the span.
    traceparent: Option<Arc<str>>,
}

#[derive(Default)]
struct State {
    /// Entries, from the first one that is not settled.
    entries: VecDeque<Arc<Entry>>,
    /// Settled votes that were not taken yet.
    settled: Settled,
    /// Whether there are any.
    any: bool,
    /// Number of refused votes in `entries` and `settled`, except those that a lane refused.
    waiting: usize,
    /// Share of the process's room that these votes hold.
    pooled: usize,
    /// Number of refused votes that were reported one by one so far.
    listed: usize,
    /// Whether no more votes will be entered.
    closed: bool,
    /// The task that waits for settled votes.
    answer: Option<Waker>,
}

/// Votes of a stream that were entered together.
struct Entry {
    /// Weak, because the session holds its entries.
    session: Weak<Session>,
    /// Index of its first vote in the stream.
    first: u64,
    /// Index after its last vote.
    end: u64,
    /// Number of votes that are not settled.
    unsettled: AtomicUsize,
    refused: Mutex<Vec<Refused>>,
    /// Whether a lane refused some of its votes.
    refused_late: AtomicBool,
    /// Its share of the bytes in flight. It is given back when the entry is settled, not when it is answered. If a lane
    /// refused votes of it, these keep the share until the client has read them.
    permit: Mutex<Option<Permit>>,
}

/// A settled run of votes.
#[derive(Default)]
pub struct Settled {
    /// Index after the last vote of the run.
    pub through: u64,
    /// Number of votes of the run that are not durable, or whose outcome is unknown.
    pub rejected: u64,
    /// These votes, in index order.
    pub refused: VecDeque<Refused>,
    /// Shares of the bytes in flight, held for votes that a lane refused.
    pub(crate) held: Vec<Permit>,
}

impl Session {
    /// A session in the trace that the request's headers name.
    pub(crate) fn of(
        headers: &HeaderMap,
        method: &'static str,
        refused_room: RefusedRoom,
        listed_max: Option<usize>,
    ) -> Arc<Self> {
        let (span, traceparent) = request_span(headers, method);
        let span = (!span.is_none()).then_some(span);
        let (state, room) = (Mutex::default(), Notify::new());
        Arc::new(Self { state, room, refused_room, listed_max, span, traceparent })
    }

    /// The span for work of this session.
    pub(crate) fn span(&self) -> Span {
        self.span.clone().unwrap_or_else(Span::none)
    }

    /// Says that no more votes will be entered.
    pub fn close(&self) {
        let answer = {
            let mut state = self.state.lock();
            state.closed = true;
            state.answer.take()
        };
        wake(answer);
    }

    /// Waits for the next settled votes and takes them from the ledger. Returns `None` once everything is settled and
    /// the session is closed.
    pub fn settled(&self) -> impl Future<Output = Option<Settled>> + Send {
        poll_fn(|cx| self.poll_settled(cx, usize::MAX))
    }

    /// Like [`Self::settled`], with at most `refused_max` refused votes. The rest comes next time.
    pub(crate) fn poll_settled(&self, cx: &mut Context<'_>, refused_max: usize) -> Poll<Option<Settled>> {
        let mut state = self.state.lock();
        if state.any {
            let taken = state.take(refused_max);
            state.give_back(&self.refused_room);
            drop(state);
            self.room.notify_waiters();
            return Poll::Ready(Some(taken));
        }
        if state.closed && state.entries.is_empty() {
            return Poll::Ready(None);
        }
        if !state.answer.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.answer = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Moves settled entries to `settled`.
    fn advance(&self) {
        let mut state = self.state.lock();
        while let Some(entry) = state.entries.front()
            && entry.unsettled.load(Ordering::Acquire) == 0
            && let Some(entry) = state.entries.pop_front()
        {
            self.settle_entry(&mut state, &entry);
        }
        let answer = if state.any { state.answer.take() } else { None };
        drop(state);
        self.room.notify_waiters();
        wake(answer);
    }

    fn settle_entry(&self, state: &mut State, entry: &Entry) {
        let mut refused = mem::take(&mut *entry.refused.lock());
        let mut held = entry.permit.lock().take();
        if entry.refused_late.load(Ordering::Acquire) {
            refused.sort_unstable_by_key(|refused| refused.index);
        } else {
            held = None;
        }
        state.any = true;
        state.settled.through = entry.end;
        state.settled.rejected += refused.len() as u64;
        let listed = self.listed_max.map_or(refused.len(), |max| refused.len().min(max - state.listed));
        state.listed += listed;
        state.waiting -= refused[listed..].iter().filter(|refused| !refused.refusal.is_outcome()).count();
        state.settled.refused.extend(refused.into_iter().take(listed));
        state.settled.held.extend(held);
    }

    /// How many refused votes may be entered at present.
    fn room_for_refused(&self, state: &State) -> usize {
        if state.entries.len() >= UNSETTLED_ENTRIES_MAX {
            return 0;
        }
        if self.listed_max.is_some() {
            // Only a few are kept. The others stay only until all votes before them are settled.
            return REFUSED_STEP;
        }
        let free = (REFUSED_FREE + state.pooled).saturating_sub(state.waiting);
        let more = self.refused_room.0.available_permits() >= REFUSED_STEP;
        free + if more { REFUSED_STEP } else { 0 }
    }
}

impl State {
    /// Takes settled votes, with at most `refused_max` refused ones.
    fn take(&mut self, refused_max: usize) -> Settled {
        if self.settled.refused.len() <= refused_max {
            self.any = false;
            let taken = mem::take(&mut self.settled);
            self.waiting -= entered(&taken.refused);
            return taken;
        }
        let refused: VecDeque<_> = self.settled.refused.drain(..refused_max).collect();
        // All votes before the last one of these are durable, or were reported.
        let through = refused.back().map_or(0, |refused| refused.index + 1);
        self.waiting -= entered(&refused);
        self.settled.rejected -= refused.len() as u64;
        Settled { through, rejected: refused.len() as u64, refused, held: Vec::new() }
    }

    /// Gives back the room that refused votes no longer need.
    fn give_back(&mut self, room: &RefusedRoom) {
        let needed = self.waiting.saturating_sub(REFUSED_FREE);
        if self.pooled > needed {
            room.0.add_permits(self.pooled - needed);
            self.pooled = needed;
        }
    }

    /// Takes the room that refused votes need.
    fn take_room(&mut self, room: &RefusedRoom) {
        let needed = self.waiting.saturating_sub(REFUSED_FREE + self.pooled);
        // Other clients may have taken the room. Then this client must read answers before it can enter more.
        if needed > 0
            && let Ok(permit) = room.0.try_acquire_many(u32::try_from(needed).unwrap_or(u32::MAX))
        {
            permit.forget();
            self.pooled += needed;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.refused_room.0.add_permits(self.state.get_mut().pooled);
    }
}

/// Number of these votes that were refused when they were entered, not by a lane.
fn entered(refused: &VecDeque<Refused>) -> usize {
    refused.iter().filter(|refused| !refused.refusal.is_outcome()).count()
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Ledger for Session {
    fn enter(self: &Arc<Self>, admitted: Admitted) -> Arc<dyn Settle> {
        let Admitted { first, accepted, refused, permit } = admitted;
        let count = refused.len();
        let entry = Arc::new(Entry {
            session: Arc::downgrade(self),
            first,
            end: first + (accepted + count) as u64,
            unsettled: AtomicUsize::new(accepted),
            refused: Mutex::new(refused),
            refused_late: AtomicBool::new(false),
            permit: Mutex::new(Some(permit)),
        });
        let mut state = self.state.lock();
        state.waiting += count;
        if self.listed_max.is_none() {
            state.take_room(&self.refused_room);
        }
        state.entries.push_back(entry.clone());
        drop(state);
        if accepted == 0 {
            self.advance();
        }
        entry
    }

    fn refused_max(&self) -> usize {
        self.room_for_refused(&self.state.lock())
    }

    async fn ready(&self) {
        loop {
            let room = self.room.notified();
            if self.refused_max() > 0 {
                return;
            }
            room.await;
        }
    }

    fn traceparent(&self) -> &str {
        self.traceparent.as_deref().unwrap_or_default()
    }
}

impl Settle for Entry {
    fn settle(&self, indices: &[u32], outcome: Outcome) {
        if let Some(refusal) = refusal_of(outcome) {
            let refused =
                indices.iter().map(|&index| Refused { index: self.first + u64::from(index), refusal: refusal.clone() });
            self.refused.lock().extend(refused);
            self.refused_late.store(true, Ordering::Release);
        }
        if self.unsettled.fetch_sub(indices.len(), Ordering::AcqRel) == indices.len() {
            if !self.refused_late.load(Ordering::Acquire) {
                self.permit.lock().take();
            }
            if let Some(session) = self.session.upgrade() {
                session.advance();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;
    use votestream_core::Refusal;

    use super::*;
    use crate::inflight::InflightBytes;

    /// A session whose process has room for this many refused votes.
    fn session(room: usize, listed_max: Option<usize>) -> Arc<Session> {
        let refused_room = RefusedRoom(Arc::new(Semaphore::new(room)));
        Session::of(&HeaderMap::new(), "test", refused_room, listed_max)
    }

    /// Enters `accepted` accepted votes, and after them `refused` refused ones.
    async fn enter(session: &Arc<Session>, first: u64, accepted: usize, refused: usize) -> Arc<dyn Settle> {
        let inflight = InflightBytes::new(1, Duration::from_secs(1));
        let permit = inflight.acquire(1).await;
        let refused = (0..refused as u64)
            .map(|at| Refused { index: first + accepted as u64 + at, refusal: Refusal::Unreadable })
            .collect();
        session.enter(Admitted { first, accepted, refused, permit })
    }

    fn take(session: &Session, max: usize) -> Option<Settled> {
        poll_fn(|cx| session.poll_settled(cx, max)).now_or_never().flatten()
    }

    #[tokio::test]
    async fn nothing_passes_what_came_before_it() {
        let session = session(0, None);
        let first = enter(&session, 0, 2, 0).await;
        let second = enter(&session, 2, 1, 1).await;
        second.settle(&[0], Outcome::Durable);
        assert!(take(&session, 9).is_none());
        first.settle(&[1], Outcome::Unknown);
        first.settle(&[0], Outcome::Durable);
        let settled = take(&session, 9).unwrap();
        let indices: Vec<_> = settled.refused.iter().map(|refused| refused.index).collect();
        assert_eq!((settled.through, settled.rejected, &indices[..]), (4, 2, &[1, 3][..]));
        session.close();
        assert!(session.settled().await.is_none());
    }

    #[tokio::test]
    async fn many_refused_votes_come_in_parts_that_say_how_far_they_reach() {
        let session = session(REFUSED_WAITING_MAX, None);
        enter(&session, 0, 0, 300).await;
        let (mut expected, mut reached) = (0, 0);
        while let Some(settled) = take(&session, 7) {
            assert!(settled.refused.len() <= 7);
            for refused in &settled.refused {
                assert_eq!(refused.index, expected);
                expected += 1;
            }
            assert!(settled.through > reached && settled.through >= expected);
            reached = settled.through;
        }
        assert_eq!((expected, reached), (300, 300));
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_enters_no_more_and_the_room_comes_back() {
        let room = 2 * REFUSED_STEP;
        let session = session(room, None);
        let mut entered = 0;
        while session.refused_max() > 0 {
            let refused = session.refused_max();
            enter(&session, entered as u64, 0, refused).await;
            entered += refused;
        }
        assert!(entered <= room + REFUSED_FREE + REFUSED_STEP, "{entered}");
        assert!(session.ready().now_or_never().is_none());
        while take(&session, 50).is_some() {}
        assert!(session.ready().now_or_never().is_some());
        assert_eq!(session.refused_room.0.available_permits(), room);
        enter(&session, entered as u64, 0, REFUSED_STEP).await;
        let refused_room = session.refused_room.clone();
        drop(session);
        assert_eq!(refused_room.0.available_permits(), room, "a client that left costs nothing");
    }

    #[tokio::test]
    async fn what_a_lane_refuses_keeps_its_bytes_until_it_is_taken() {
        let inflight = InflightBytes::new(1, Duration::from_secs(1));
        for (outcome, kept) in [(Outcome::Durable, false), (Outcome::NotStored, true)] {
            let session = session(0, None);
            let permit = inflight.acquire(1).await;
            let settle = session.enter(Admitted { first: 0, accepted: 1, refused: Vec::new(), permit });
            settle.settle(&[0], outcome);
            assert_eq!(inflight.acquire(1).now_or_never().is_none(), kept, "{outcome:?}");
            drop(take(&session, 9));
            assert!(inflight.acquire(1).now_or_never().is_some());
        }
    }

    #[tokio::test]
    async fn of_some_calls_only_the_first_refused_votes_are_listed() {
        let session = session(0, Some(10));
        for first in [0, 7, 14] {
            enter(&session, first, 0, 7).await;
        }
        let settled = take(&session, usize::MAX).unwrap();
        assert_eq!((settled.through, settled.rejected, settled.refused.len()), (21, 21, 10));
    }
}
