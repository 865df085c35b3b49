//! persist-svc: stores the last vote of each user in each poll, and keeps the exact tallies for final results.
//!
//! Owns how a window is applied to the votes and to the `persist` tallies. Must never add to a tally before every vote
//! of the window is stored. Must never judge a vote again: which votes count was decided when the window was built.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests read the clocks of their own"))]

mod applier;
pub mod settings;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use votestream_core::{
    consume::group::{self, GroupConfig},
    port::{Group, Ports},
};
use votestream_server::{Drain, Running, ServiceError};

pub use applier::{PersistApplier, PersistAppliers};

/// Settings of the persist service.
#[derive(Clone, Debug)]
pub struct PersistConfig {
    /// Leases and windows of the `persist` group.
    pub group: GroupConfig,
}

impl PersistConfig {
    /// Settings for one process on one machine.
    pub fn one_machine() -> Self {
        Self { group: GroupConfig::one_machine(Group::Persist) }
    }

    /// Settings for several processes, and engines behind a network.
    pub fn distributed() -> Self {
        Self { group: GroupConfig::distributed(Group::Persist) }
    }
}

/// Runs the `persist` group until `shutdown`.
///
/// # Errors
///
/// If the group cannot go on, for example because a shard's checkpoint has left the stream's retention.
pub fn run(config: PersistConfig, ports: Ports, shutdown: CancellationToken) -> Running {
    Box::pin(run_group(config, ports, shutdown))
}

async fn run_group(config: PersistConfig, ports: Ports, shutdown: CancellationToken) -> Result<Drain, ServiceError> {
    let appliers = Arc::new(PersistAppliers::new(ports.votes.clone(), ports.tallies.clone()));
    let ended = group::run(config.group, ports, appliers, shutdown.clone()).await;
    match ended {
        Ok(drain) if shutdown.is_cancelled() => Ok(drain),
        Ok(_) => Err(ServiceError::task("the persist group", "it stopped without being told to")),
        Err(error) => Err(ServiceError::task("the persist group", error)),
    }
}
