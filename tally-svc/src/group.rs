//! Stands in for `votestream_core::group::{GroupConfig, run}` with the same shape until they are there.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use votestream_core::{
    TimeBounds,
    group::ApplierFactory,
    port::{Group, PortError, Ports},
};

/// Bounds of a window.
#[derive(Clone, Debug)]
pub struct WindowLimits {
    /// How long a window collects votes.
    pub linger: Duration,
}

/// Settings of a group.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// The group.
    pub group: Group,
    /// Its windows.
    pub window: WindowLimits,
    /// Time limits of the protocol.
    pub bounds: TimeBounds,
}

impl GroupConfig {
    /// For one process on one machine.
    pub fn one_machine(group: Group) -> Self {
        Self { group, window: WindowLimits { linger: Duration::ZERO }, bounds: TimeBounds::ONE_MACHINE }
    }
}

pub(crate) async fn run(
    config: GroupConfig,
    _ports: Ports,
    _factory: Arc<dyn ApplierFactory>,
    shutdown: CancellationToken,
) -> Result<(), PortError> {
    tracing::error!(group = config.group.as_str(), "the consumer group is not built in yet: nothing is processed");
    shutdown.cancelled().await;
    Ok(())
}
