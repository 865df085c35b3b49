//! Walks over the votes of messages that arrived together.
//!
//! Owns the position of the judging. Must never skip a vote that was not judged.

use std::ops::ControlFlow;

use votestream_proto::{MalformedMessage, ReceivedVotes, VoteBytes};

/// A vote, or the error that it cannot be read.
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
    /// Passes votes to `judge` until it stops the walk, or to the end. A stopped walk goes on later with the same vote.
    #[inline(always)]
    pub(super) fn try_for_each<S>(&mut self, mut judge: impl FnMut(&VoteResult<'a>) -> ControlFlow<S>) -> Option<S> {
        let stopped_at = &mut self.stopped_at;
        if let Some(vote) = stopped_at.take()
            && let ControlFlow::Break(stop) = judge(&vote)
        {
            *stopped_at = Some(vote);
            return Some(stop);
        }
        // Use the iterator's own loop, which is fastest for several messages in a row.
        let flow = self.rest.try_for_each(|vote| match judge(&vote) {
            ControlFlow::Continue(()) => ControlFlow::Continue(()),
            ControlFlow::Break(stop) => {
                *stopped_at = Some(vote);
                ControlFlow::Break(stop)
            }
        });
        flow.break_value()
    }

    /// The next votes, without taking them.
    pub(super) fn ahead(&self) -> impl Iterator<Item = VoteResult<'a>> + use<'a, I> {
        self.stopped_at.into_iter().chain(self.rest.clone())
    }
}
