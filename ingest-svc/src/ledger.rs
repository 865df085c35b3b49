//! Ledgers: where a call waits for its admitted votes.
//!
//! Owns the trait of ledgers, and the ledger of a call with one vote. The ledger of a stream is a [`Session`]. Must
//! never answer for a vote that is not settled.
//!
//! [`Session`]: crate::Session

use std::{
    future::{Future, poll_fn, ready},
    sync::Arc,
    task::{Poll, Waker},
};

use parking_lot::Mutex;
use tonic::codegen::http::HeaderMap;
use tracing::Span;
use votestream_core::{
    Refusal,
    produce::{Outcome, Settle},
};
use votestream_process::telemetry::request_span;

use crate::{
    inflight::Permit,
    refusal::{Refused, refusal_of},
};

/// Votes that were admitted together.
pub struct Admitted {
    /// Index of the first one.
    pub first: u64,
    /// Number of accepted votes.
    pub accepted: usize,
    /// The other votes, in the order of their indices.
    pub refused: Vec<Refused>,
    /// Their share of the bytes in flight. It is given back when they are settled.
    pub permit: Permit,
}

/// Keeps a list of a client's votes from their admission to their answer.
pub trait Ledger: Send + Sync {
    /// Enters votes. Returns the receiver of the outcomes of the accepted ones.
    fn enter(self: &Arc<Self>, admitted: Admitted) -> Arc<dyn Settle>;

    /// How many refused votes may be entered now. If 0, nothing may be entered until [`Self::ready`] is ready.
    fn refused_max(&self) -> usize;

    /// Waits until more votes may be entered. Refused votes wait until their client reads them, which may take long.
    fn ready(&self) -> impl Future<Output = ()> + Send;

    /// `traceparent` of the span that the votes belong to; empty if there is none.
    fn traceparent(&self) -> &str;
}

/// The ledger of a call with one vote: like a [`Session`] with one entry, but in one allocation.
///
/// [`Session`]: crate::Session
pub(crate) struct SingleVote {
    state: Mutex<State>,
    /// The span of the call. Disabled unless the client's trace is sampled.
    _span: Span,
    traceparent: Option<Arc<str>>,
}

#[derive(Default)]
struct State {
    /// Set once the vote is settled.
    answer: Option<Result<(), Refusal>>,
    /// Given back when the vote is settled.
    permit: Option<Permit>,
    /// The task that waits for the answer.
    waker: Option<Waker>,
}

impl SingleVote {
    /// A ledger in the trace that the request's headers name.
    pub(crate) fn of(headers: &HeaderMap) -> Arc<Self> {
        let (span, traceparent) = request_span(headers, "CastVote");
        Arc::new(Self { state: Mutex::default(), _span: span, traceparent })
    }

    /// Waits until the vote is durable or refused.
    pub(crate) async fn settled(&self) -> Result<(), Refusal> {
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

    fn answer(&self, answer: Result<(), Refusal>) {
        let mut state = self.state.lock();
        state.answer = Some(answer);
        let (permit, waker) = (state.permit.take(), state.waker.take());
        drop(state);
        drop(permit);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Ledger for SingleVote {
    fn enter(self: &Arc<Self>, admitted: Admitted) -> Arc<dyn Settle> {
        match admitted.refused.into_iter().next() {
            Some(refused) => self.answer(Err(refused.refusal)),
            None => self.state.lock().permit = Some(admitted.permit),
        }
        self.clone()
    }

    fn refused_max(&self) -> usize {
        1
    }

    fn ready(&self) -> impl Future<Output = ()> + Send {
        ready(())
    }

    fn traceparent(&self) -> &str {
        self.traceparent.as_deref().unwrap_or_default()
    }
}

impl Settle for SingleVote {
    fn settle(&self, _indices: &[u32], outcome: Outcome) {
        self.answer(refusal_of(outcome).map_or(Ok(()), Err));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;
    use votestream_core::PollId;

    use super::*;
    use crate::inflight::InflightBytes;

    #[tokio::test]
    async fn a_vote_is_answered_when_it_is_settled_and_gives_its_bytes_back_then() {
        let inflight = InflightBytes::new(1, Duration::from_secs(1));
        for (outcome, refusal) in [
            (Outcome::Durable, None),
            (Outcome::NotStored, Some(Refusal::NotStored)),
            (Outcome::Unknown, Some(Refusal::OutcomeUnknown)),
        ] {
            let vote = SingleVote::of(&HeaderMap::new());
            let permit = inflight.acquire(1).await;
            let settle = vote.enter(Admitted { first: 0, accepted: 1, refused: Vec::new(), permit });
            let waiting = tokio::spawn({
                let vote = vote.clone();
                async move { vote.settled().await }
            });
            tokio::task::yield_now().await;
            assert!(!waiting.is_finished() && inflight.acquire(1).now_or_never().is_none());
            settle.settle(&[0], outcome);
            assert!(inflight.acquire(1).now_or_never().is_some(), "before the answer is read");
            assert_eq!(waiting.await.unwrap().err(), refusal, "{outcome:?}");
        }
    }

    #[tokio::test]
    async fn a_refused_vote_waits_for_nothing() {
        let inflight = InflightBytes::new(1, Duration::from_secs(1));
        let vote = SingleVote::of(&HeaderMap::new());
        let refusal = Refusal::Closed(PollId::new("p").unwrap());
        let permit = inflight.acquire(1).await;
        let refused = vec![Refused { index: 0, refusal: refusal.clone() }];
        vote.enter(Admitted { first: 0, accepted: 0, refused, permit });
        assert_eq!(vote.settled().now_or_never(), Some(Err(refusal)));
        assert!(inflight.acquire(1).now_or_never().is_some());
    }
}
