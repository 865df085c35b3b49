//! A consumer group: the shards of the stream, shared out between the processes of one service.
//!
//! Owns leases, epochs, windows and checkpoints. Must never apply a window before its end is stored, nor write progress
//! without the epoch in the condition.

mod cleanup;
mod consumer;
pub mod give_up;
mod loss;
mod manager;
mod prefetch;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::{
    TimeBounds,
    consume::window::Window,
    port::{Group, PortError, Ports},
};

/// Why a window could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The engine failed; the same window is applied again.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A stored vote stands later in the stream than the window. Either another process owns the shard by now: then the
    /// group finds that out and stops. Or stored data contradicts itself. `poll_ids` names the polls of such votes.
    #[error("votes later in the stream are stored already")]
    Superseded {
        /// The polls that would need a recount.
        poll_ids: Vec<crate::PollId>,
    },
}

/// Applies the windows of one shard. This is the part in which persist-svc and tally-svc differ.
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

/// How much a window holds, and how long it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowLimits {
    /// A window is closed once it holds this many votes.
    pub votes_max: usize,
    /// A window is closed once it holds this many records.
    pub records_max: usize,
    /// A window is closed once it takes this many bytes in memory.
    pub bytes_max: usize,
    /// How long a window waits for more records after its first one. With zero it takes only what has been read
    /// already.
    pub linger: Duration,
    /// How long after the last record an applied window is committed if no other record comes.
    pub idle_after: Duration,
}

/// Most bytes read ahead by default: eight shards as far as one may go.
const PREFETCH_BYTES_MAX: usize = 256 << 20;

/// Settings of a group. The group and the bounds must be the same in all processes of one deployment.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// Which group.
    pub group: Group,
    /// Name of this worker, unique among those that run.
    pub worker_id: String,
    /// How long a lease counter must stand still before the lease is free.
    pub failover: Duration,
    /// How often a lease is renewed; several times within `failover`.
    pub renew_every: Duration,
    /// How often the worker looks for shards and leases.
    pub sync_every: Duration,
    /// How long the consumers may take to finish once the group is told to stop. After that they are aborted.
    pub drain: Duration,
    /// Most decoded bytes that the shards of this process have read ahead, all together. Each shard may have one read and
    /// one record more, so that none waits for another.
    pub prefetch_bytes_max: usize,
    /// Size of the windows.
    pub window: WindowLimits,
    /// The protocol's time limits.
    pub bounds: TimeBounds,
}

impl GroupConfig {
    /// For one process on one machine: nobody else takes leases, so only a restart waits for `failover`.
    pub fn one_machine(group: Group) -> Self {
        Self {
            group,
            worker_id: random_worker_id(),
            failover: Duration::from_secs(2),
            renew_every: Duration::from_millis(500),
            sync_every: Duration::from_millis(250),
            drain: Duration::from_secs(30),
            prefetch_bytes_max: PREFETCH_BYTES_MAX,
            window: WindowLimits {
                votes_max: 50_000,
                records_max: 1_000,
                bytes_max: 16 << 20,
                linger: Duration::ZERO,
                idle_after: Duration::from_millis(50),
            },
            bounds: TimeBounds::ONE_MACHINE,
        }
    }

    /// For several hosts and engines behind a network.
    pub fn distributed(group: Group) -> Self {
        let one = Self::one_machine(group);
        Self {
            failover: Duration::from_secs(10),
            renew_every: Duration::from_secs(3),
            sync_every: Duration::from_secs(2),
            drain: Duration::from_secs(25),
            window: WindowLimits {
                linger: Duration::from_millis(200),
                idle_after: Duration::from_millis(500),
                ..one.window
            },
            bounds: TimeBounds::DISTRIBUTED,
            ..one
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "no two workers may share a name; the simulation gives its own")]
fn random_worker_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// How a group, or a whole service, ended after it was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// Everything that was started is finished: calls are answered, windows are applied and committed.
    Complete,
    /// Calls were cut off, or a window was left to the next owner of its shard.
    Incomplete,
}

impl Drain {
    /// Combines the reports of two parts: incomplete if either is.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match self {
            Self::Complete => other,
            Self::Incomplete => Self::Incomplete,
        }
    }
}

/// Why a group stopped.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// An engine refused, and a retry would not help.
    #[error(transparent)]
    Port(#[from] PortError),
    /// One of the group's tasks panicked or was aborted.
    #[error("a task of the group failed: {0}")]
    Task(String),
}

/// Consumes this worker's share of the shards until `shutdown`. Then it finishes and commits what is being applied,
/// releases the leases, and returns. A shard that cannot go on is stopped and logged as an error, without stopping the
/// others.
///
/// # Errors
///
/// If an engine refuses and a retry would not help, or if a task panicked. The other shards were handed over as after
/// `shutdown`.
///
/// Boxed, so that it is compiled here and not again in each crate that awaits it.
pub fn run(
    config: GroupConfig,
    ports: Ports,
    factory: Arc<dyn ApplierFactory>,
    shutdown: CancellationToken,
) -> BoxFuture<'static, Result<Drain, GroupError>> {
    Box::pin(async move { manager::Manager::new(config, ports, factory).run(shutdown).await })
}
