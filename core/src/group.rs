//! A consumer group: the shards of the stream, shared out between the processes of one service.
//!
//! Owns leases, epochs, windows and checkpoints. Must never apply a window before its end is stored, nor write progress
//! without the epoch in the condition.

use async_trait::async_trait;

use crate::{port::PortError, window::Window};

/// Why a window could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The engine failed; the same window is applied again.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A stored vote stands later in the stream than the window: either another process owns the shard by now, which the
    /// group finds out and stops, or stored data contradicts itself. `poll_ids` names the polls of such votes.
    #[error("votes later in the stream are stored already")]
    Superseded {
        /// The polls that would need a recount.
        poll_ids: Vec<crate::poll::PollId>,
    },
}

/// Applies the windows of one shard: what persist-svc and tally-svc differ in.
#[async_trait]
pub trait Applier: Send + 'static {
    /// Applies a window. Must have the same effect when the same window is applied again, by this or another process.
    async fn apply(&mut self, window: &Window) -> Result<(), ApplyError>;
}

/// Makes an applier for each shard that this process takes.
pub trait ApplierFactory: Send + Sync + 'static {
    /// A new applier.
    fn applier(&self) -> Box<dyn Applier>;
}
