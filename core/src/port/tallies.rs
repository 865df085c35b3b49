//! Stored tallies: sums per poll, group and shard.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Group, PortError};
use crate::{PollId, SequenceNumber, ShardId};

/// What one window adds to one poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TallyDelta {
    /// The poll.
    pub poll_id: PollId,
    /// What to add, per option; may be negative. May be empty.
    pub counts: Vec<(Arc<str>, i64)>,
}

/// One stored tally.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TallyRow {
    /// The group that counted.
    pub group: Group,
    /// The shard that was counted.
    pub shard: ShardId,
    /// Sum per option. One row alone may be negative.
    pub counts: Vec<(Arc<str>, i64)>,
    /// End of the last window that was added.
    pub position: SequenceNumber,
}

/// Stored tallies.
#[async_trait]
pub trait TallyStore: Send + Sync + 'static {
    /// Adds a window's deltas to the tallies of (poll, group, shard), each on the condition that the stored position is
    /// smaller than `window_end`, and sets the position to it. If the condition of a delta fails, it has been added
    /// before: that is success. Each delta is atomic, the call is not; after an error the caller simply repeats it.
    async fn add(
        &self,
        group: Group,
        shard: &ShardId,
        window_end: SequenceNumber,
        epoch: u64,
        deltas: &[TallyDelta],
    ) -> Result<(), PortError>;

    /// All tallies of a poll, both groups, strongly consistent.
    async fn read(&self, poll_id: &PollId) -> Result<Vec<TallyRow>, PortError>;
}
