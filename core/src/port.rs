//! The ports: what the protocol needs of an engine, as traits with their contracts.
//!
//! Adapters implement them; the contract suite in `tests/testkit` checks every adapter against what is written here.
//! Must never name an engine. Every method is atomic and linearizable per item unless it says otherwise, and safe to
//! repeat after an error.

pub(crate) mod backoff;
mod leases;
mod polls;
mod stream;
mod tallies;
mod votes;

use std::sync::Arc;

pub use leases::{Lease, LeaseStore, LostTime, Progress, ShardRow, Span, StoredProducer, WriteOutcome};
pub use polls::{Created, PollStore};
pub use stream::{RETENTION_LEAST, ReadOutcome, Record, RecordReader, Shard, Stored, VoteStream};
pub use tallies::{TallyDelta, TallyRow, TallyStore};
pub use votes::{StoredVote, VoteOutcome, VoteStore, VoteWrite};

use crate::Clock;

/// Everything that a service reaches outside its process.
#[derive(Clone)]
pub struct Ports {
    /// The vote stream.
    pub stream: Arc<dyn VoteStream>,
    /// Polls.
    pub polls: Arc<dyn PollStore>,
    /// Votes.
    pub votes: Arc<dyn VoteStore>,
    /// Tallies.
    pub tallies: Arc<dyn TallyStore>,
    /// Shard rows.
    pub leases: Arc<dyn LeaseStore>,
    /// The clock that stamps and judges votes.
    pub clock: Arc<dyn Clock>,
}

/// The consumers of one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// persist-svc: one vote per user, exact tallies.
    Persist,
    /// tally-svc: every vote, fast.
    Tally,
}

impl Group {
    /// Name in stored keys. Never changes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Persist => "persist",
            Self::Tally => "tally",
        }
    }
}

/// Whether a failed call may already have taken effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Certainly not.
    None,
    /// Nobody knows.
    Unknown,
}

/// A failed call to an engine.
///
/// Answers two questions: may I retry, and could it already have happened? The text is for logs, never for clients.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct PortError {
    /// Whether the same call may succeed later.
    pub retryable: bool,
    /// Whether the call may have taken effect.
    pub effect: Effect,
    /// What happened, for logs.
    pub message: String,
}

impl PortError {
    /// A temporary failure with an unknown effect: a lost answer, a time-out.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self { retryable: true, effect: Effect::Unknown, message: message.into() }
    }

    /// A temporary failure that certainly had no effect: throttled, refused.
    pub fn refused(message: impl Into<String>) -> Self {
        Self { retryable: true, effect: Effect::None, message: message.into() }
    }

    /// A failure that no retry can mend, without effect: a missing table, a denied permission, corrupt data.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { retryable: false, effect: Effect::None, message: message.into() }
    }
}
