//! Stored polls.

use async_trait::async_trait;

use super::PortError;
use crate::{
    poll::{FinalResult, Poll, PollId},
    time::Timestamp,
};

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

    /// Sets `closes_at` to the earlier of the stored one and this one. Returns the poll as stored, if it exists.
    async fn close(&self, id: &PollId, closes_at: Timestamp) -> Result<Option<Poll>, PortError>;

    /// Stores the final result unless one is stored, or the poll waits for a recount. Returns the poll as stored.
    async fn finish(&self, id: &PollId, result: &FinalResult) -> Result<Option<Poll>, PortError>;

    /// Sets or clears `needs_recount`.
    async fn set_needs_recount(&self, id: &PollId, needed: bool) -> Result<(), PortError>;
}
