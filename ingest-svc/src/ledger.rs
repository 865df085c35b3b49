//! Who waits for votes that were admitted.
//!
//! Owns what an outcome means to a client, and the ledger of a call with one vote; that of a stream is a [`Session`]. Must
//! never answer for a vote that is not settled.
//!
//! [`Session`]: crate::Session

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Poll, Waker},
};

use parking_lot::Mutex;
use tonic::codegen::http::HeaderMap;
use tracing::Span;
use votestream_core::lane::{Outcome, Settle};
use votestream_proto::v1::{Rejection, RejectionCode};
use votestream_service::telemetry::request_span;

use crate::room::Room;

/// Messages that were admitted together.
pub struct Admitted {
    /// Index of their first vote.
    pub first: u64,
    /// Votes on their way.
    pub accepted: usize,
    /// The other votes.
    pub rejections: Vec<Rejection>,
    /// Their share of the bytes that may be unsettled, to be given back when they are settled.
    pub room: Option<Room>,
}

/// Keeps account of a client's votes from their admission to their answer.
pub trait Ledger: Send + Sync {
    /// Enters messages. Returns who is to be told how the accepted votes end.
    fn enter(self: &Arc<Self>, admitted: Admitted) -> Arc<dyn Settle>;

    /// `traceparent` of the span that the votes belong to; empty if there is none.
    fn traceparent(&self) -> &str;
}

/// What a client is told about the vote of this index, if it is not durable.
pub(crate) fn rejection(index: u64, outcome: Outcome) -> Option<Rejection> {
    let (code, reason) = match outcome {
        Outcome::Durable => return None,
        Outcome::NotStored => {
            (RejectionCode::Unavailable, "the vote stream is unavailable; the vote was not stored, retry it")
        }
        Outcome::Unknown => (
            RejectionCode::OutcomeUnknown,
            "no answer from the vote stream in time; whether the vote was stored is unknown",
        ),
    };
    Some(Rejection { index, code: code.into(), reason: reason.into() })
}

/// The ledger of a call that brings one vote: a [`Session`] of one entry, in one allocation.
///
/// [`Session`]: crate::Session
pub(crate) struct SingleVote {
    state: Mutex<State>,
    /// Ends with the call. Disabled unless the client's trace is sampled.
    _span: Span,
    traceparent: Option<Arc<str>>,
}

#[derive(Default)]
struct State {
    /// Once the vote is settled.
    answer: Option<Result<(), Rejection>>,
    /// Given back when the vote is settled.
    room: Option<Room>,
    /// Who waits for the answer.
    waker: Option<Waker>,
}

impl SingleVote {
    /// Of the trace that a request's headers name.
    pub(crate) fn of(headers: &HeaderMap) -> Arc<Self> {
        let (span, traceparent) = request_span(headers, "CastVote");
        Arc::new(Self { state: Mutex::default(), _span: span, traceparent })
    }

    /// Waits until the vote is durable, or rejected.
    pub(crate) async fn settled(&self) -> Result<(), Rejection> {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            match state.answer.take() {
                Some(answer) => Poll::Ready(answer),
                None => {
                    state.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    fn answer(&self, answer: Result<(), Rejection>) {
        let mut state = self.state.lock();
        state.answer = Some(answer);
        let (room, waker) = (state.room.take(), state.waker.take());
        drop(state);
        drop(room);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Ledger for SingleVote {
    fn enter(self: &Arc<Self>, admitted: Admitted) -> Arc<dyn Settle> {
        match admitted.rejections.into_iter().next() {
            Some(rejection) => self.answer(Err(rejection)),
            None => self.state.lock().room = admitted.room,
        }
        self.clone()
    }

    fn traceparent(&self) -> &str {
        self.traceparent.as_deref().unwrap_or_default()
    }
}

impl Settle for SingleVote {
    fn settle(&self, _indices: &[u32], outcome: Outcome) {
        self.answer(rejection(0, outcome).map_or(Ok(()), Err));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;

    use super::*;
    use crate::room::Rooms;

    #[tokio::test]
    async fn a_vote_is_answered_when_it_is_settled_and_gives_its_room_back_then() {
        let rooms = Rooms::new(1, Duration::from_secs(1));
        for (outcome, code) in [
            (Outcome::Durable, None),
            (Outcome::NotStored, Some(RejectionCode::Unavailable)),
            (Outcome::Unknown, Some(RejectionCode::OutcomeUnknown)),
        ] {
            let vote = SingleVote::of(&HeaderMap::new());
            let room = rooms.take(1).await;
            let settle = vote.enter(Admitted { first: 0, accepted: 1, rejections: Vec::new(), room });
            let waiting = tokio::spawn({
                let vote = vote.clone();
                async move { vote.settled().await }
            });
            tokio::task::yield_now().await;
            assert!(!waiting.is_finished() && rooms.take(1).now_or_never().is_none());
            settle.settle(&[0], outcome);
            assert!(rooms.take(1).now_or_never().is_some(), "before the answer is read");
            let answer = waiting.await.unwrap();
            assert_eq!(answer.err().map(|rejection| rejection.code()), code, "{outcome:?}");
        }
    }

    #[tokio::test]
    async fn a_rejected_vote_waits_for_nothing() {
        let rooms = Rooms::new(1, Duration::from_secs(1));
        let vote = SingleVote::of(&HeaderMap::new());
        let rejection = Rejection { index: 0, code: RejectionCode::PollClosed.into(), reason: "closed".into() };
        let room = rooms.take(1).await;
        vote.enter(Admitted { first: 0, accepted: 0, rejections: vec![rejection.clone()], room });
        assert_eq!(vote.settled().now_or_never(), Some(Err(rejection)));
        assert!(rooms.take(1).now_or_never().is_some());
    }
}
