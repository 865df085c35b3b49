//! The votes of messages that arrived together, one after the other.
//!
//! Owns where judging stands. Must never pass a vote by that has no verdict.

use std::ops::ControlFlow;

use votestream_proto::{MalformedMessage, ReceivedVotes, VoteBytes};

/// A vote, or that it cannot be read.
pub(super) type VoteResult<'a> = Result<VoteBytes<'a>, MalformedMessage>;

/// A walk over votes that can stop and go on.
#[derive(Clone)]
pub(super) struct Walk<'a, I> {
    /// The vote at which the walk stopped.
    stopped_at: Option<VoteResult<'a>>,
    rest: I,
}

/// A walk over the votes of these messages.
pub(super) fn walk<'a, M: ReceivedVotes + Sync>(
    messages: &'a [M],
) -> Walk<'a, impl Iterator<Item = VoteResult<'a>> + Clone + Send> {
    Walk { stopped_at: None, rest: messages.iter().flat_map(ReceivedVotes::votes) }
}

impl<'a, I: Iterator<Item = VoteResult<'a>> + Clone> Walk<'a, I> {
    /// Hands out votes until one of them stops the walk, which goes on with that one later; or to the end.
    #[inline(always)]
    pub(super) fn try_for_each<S>(&mut self, mut judge: impl FnMut(&VoteResult<'a>) -> ControlFlow<S>) -> Option<S> {
        let stopped_at = &mut self.stopped_at;
        if let Some(vote) = stopped_at.take()
            && let ControlFlow::Break(stop) = judge(&vote)
        {
            *stopped_at = Some(vote);
            return Some(stop);
        }
        // Inside the iterator, which knows best how to go through messages in a row.
        let flow = self.rest.try_for_each(|vote| match judge(&vote) {
            ControlFlow::Continue(()) => ControlFlow::Continue(()),
            ControlFlow::Break(stop) => {
                *stopped_at = Some(vote);
                ControlFlow::Break(stop)
            }
        });
        flow.break_value()
    }

    /// What comes next, without taking it.
    pub(super) fn ahead(&self) -> impl Iterator<Item = VoteResult<'a>> + use<'a, I> {
        self.stopped_at.into_iter().chain(self.rest.clone())
    }
}
