//! Stored votes: one per user and poll.

use std::{borrow::Cow, cmp::Ordering, sync::Arc};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::PortError;
use crate::{Poll, PollId, Position, Timestamp};

/// A vote to store. Its ids are borrowed from its window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoteWrite<'a> {
    /// The poll.
    pub poll_id: Cow<'a, PollId>,
    /// The bucket of the user in this poll, below the poll's bucket count.
    pub bucket: u32,
    /// The user.
    pub user_id: Cow<'a, str>,
    /// The option.
    pub option_id: Arc<str>,
    /// Where the vote stands in the stream.
    pub position: Position,
    /// When ingest accepted it.
    pub accepted_at: Timestamp,
}

impl VoteWrite<'_> {
    /// A copy that borrows nothing.
    pub fn to_static(&self) -> VoteWrite<'static> {
        let Self { poll_id, bucket, user_id, option_id, position, accepted_at } = self.clone();
        let (poll_id, user_id) = (Cow::Owned(poll_id.into_owned()), Cow::Owned(user_id.into_owned()));
        VoteWrite { poll_id, bucket, user_id, option_id, position, accepted_at }
    }

    /// The key of the vote: no two stored votes have the same.
    pub fn key(&self) -> (PollId, Arc<str>) {
        (self.poll_id.clone().into_owned(), (*self.user_id).into())
    }
}

/// A stored vote, for engines that hold votes in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredVote {
    /// Where the vote stands in the stream.
    pub position: Position,
    /// The option.
    pub option: Arc<str>,
    /// The option of the vote that it replaced, if it replaced one.
    pub previous: Option<Arc<str>>,
}

/// The condition and effect of [`VoteStore::write`], for engines that hold votes in memory.
impl VoteWrite<'_> {
    /// What becomes of this vote beside the user's stored one, and what is stored then, if that changes.
    pub fn decide(&self, stored: Option<&StoredVote>) -> (VoteOutcome, Option<StoredVote>) {
        let (outcome, previous) = match stored {
            None => (VoteOutcome::Inserted, None),
            Some(stored) => match stored.position.cmp(&self.position) {
                Ordering::Less => {
                    (VoteOutcome::Replaced { previous: stored.option.clone() }, Some(stored.option.clone()))
                }
                Ordering::Equal => return (VoteOutcome::AlreadyStored { previous: stored.previous.clone() }, None),
                Ordering::Greater => return (VoteOutcome::Superseded, None),
            },
        };
        (outcome, Some(StoredVote { position: self.position, option: self.option_id.clone(), previous }))
    }
}

/// What happened to one vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VoteOutcome {
    /// The user had no vote: stored, without a previous option.
    Inserted,
    /// The stored vote was older: replaced, and its option kept as `previous_option`.
    Replaced {
        /// Option of the vote that was replaced.
        previous: Arc<str>,
    },
    /// The stored vote has this very position: an earlier attempt stored it. Nothing was changed.
    AlreadyStored {
        /// The stored `previous_option`, if that attempt replaced a vote.
        previous: Option<Arc<str>>,
    },
    /// The stored vote stands later in the stream. Nothing was changed.
    Superseded,
}

/// Stored votes.
#[async_trait]
pub trait VoteStore: Send + Sync + 'static {
    /// Stores votes, each on the condition that the stored vote of the same (poll, user) stands earlier in the stream.
    /// Returns one outcome for each vote, in the same order. No two votes of a call may have the same (poll, user).
    ///
    /// Each vote is atomic, the call is not: after an error some votes may be stored, and the caller simply repeats the
    /// call.
    async fn write(&self, votes: &[VoteWrite<'_>]) -> Result<Vec<VoteOutcome>, PortError>;

    /// Counts the stored votes of a poll again: one number per option, in the poll's order. It is an error if a vote
    /// names an option that the poll does not have. Strongly consistent, but not a snapshot.
    async fn recount(&self, poll: &Poll) -> Result<Vec<u64>, PortError>;

    /// The same for a caller who may leave. Once `left` is cancelled it may end early, with `None`. When it has
    /// returned, none of its work goes on. An engine that cannot end early counts to the end, as this default does.
    async fn recount_unless(&self, poll: &Poll, left: &CancellationToken) -> Result<Option<Vec<u64>>, PortError> {
        if left.is_cancelled() {
            return Ok(None);
        }
        self.recount(poll).await.map(Some)
    }
}
