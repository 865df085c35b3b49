//! Stored polls.

use async_trait::async_trait;

use super::PortError;
use crate::{Closing, Poll, PollId, Timestamp, Visibility, model::poll::FinalResult};

/// The conditions and effects of [`PollStore`], for engines that hold whole polls. Each returns whether it changed the poll.
impl Poll {
    /// [`PollStore::begin_close`].
    pub fn begin_close(&mut self) -> bool {
        let asks = self.closing == Closing::No && self.final_result.is_none();
        if asks {
            self.closing = Closing::Asked;
        }
        asks
    }

    /// [`PollStore::close`].
    pub fn close(&mut self, closes_at: Timestamp) -> bool {
        let settles = self.closing == Closing::Asked;
        if settles {
            self.closes_at = self.closes_at.min(closes_at);
            self.closing = Closing::Done;
        }
        settles
    }

    /// [`PollStore::finish`].
    pub fn finish(&mut self, result: &FinalResult) -> bool {
        let stores = self.final_result.is_none() && !self.needs_recount && self.closing != Closing::Asked;
        if stores {
            self.final_result = Some(result.clone());
        }
        stores
    }

    /// [`PollStore::release`].
    pub fn release(&mut self, at: Timestamp) -> bool {
        let releases = self.visibility == Visibility::OnRelease && self.released_at.is_none();
        if releases {
            self.released_at = Some(at);
        }
        releases
    }
}

/// What creating a poll did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// The poll was stored.
    New,
    /// A poll of this id is stored already; nothing was changed.
    Existing(Box<Poll>),
}

/// Stored polls. Every read is strongly consistent.
#[async_trait]
pub trait PollStore: Send + Sync + 'static {
    /// Stores a poll unless one of its id exists.
    async fn create(&self, poll: &Poll) -> Result<Created, PortError>;

    /// The poll of this id.
    async fn get(&self, id: &PollId) -> Result<Option<Poll>, PortError>;

    /// Polls in ascending order of their ids, after `after`, at most `limit`.
    async fn list(&self, after: Option<&PollId>, limit: usize) -> Result<Vec<Poll>, PortError>;

    /// Closing early, first step: sets `closing` from `No` to `Asked`, unless there is a final result. Returns the
    /// stored poll, if it exists.
    ///
    /// There are two steps because a write may take effect long after it was sent. A process that reads the poll after
    /// this step takes no more votes. So the last vote is accepted at most [`crate::TimeBounds::settle_margin`] after
    /// the answer to this call. The caller reads the clock after that answer and adds the margin: this `closes_at` is
    /// right, whenever its write takes effect.
    async fn begin_close(&self, id: &PollId) -> Result<Option<Poll>, PortError>;

    /// Closing early, second step: sets `closes_at` to the earlier of the stored one and this one, and `closing` from
    /// `Asked` to `Done`. Changes nothing if `closing` is not `Asked`. Returns the stored poll, if it exists.
    async fn close(&self, id: &PollId, closes_at: Timestamp) -> Result<Option<Poll>, PortError>;

    /// Stores the final result. Stores nothing if there is one already, if the poll waits for a recount, or if it is
    /// being closed (`Asked`). Returns the stored poll.
    async fn finish(&self, id: &PollId, result: &FinalResult) -> Result<Option<Poll>, PortError>;

    /// Shows the results of a poll whose visibility is `OnRelease` to its readers: sets `released_at`, unless it is set
    /// already. Changes nothing of other polls. Returns the stored poll, if it exists.
    async fn release(&self, id: &PollId, at: Timestamp) -> Result<Option<Poll>, PortError>;

    /// Sets or clears `needs_recount`.
    async fn set_needs_recount(&self, id: &PollId, needed: bool) -> Result<(), PortError>;
}
