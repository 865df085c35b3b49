//! One port: connections and their limits, deadlines, the way to the services, health, reflection, drain, and how errors look
//! in JSON.
//!
//! Must never know what a vote is, nor read a setting: its limits are given as plain numbers.

// They panic once the reader of a pipe has left: a process has other ways.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod connections;
mod deadline;
mod front;
mod gather;
mod grpc;
pub mod http;
mod limits;

pub use connections::{Connections, Peer, raise_descriptor_limit};
pub use grpc::{listen, serve, serve_health};
pub use http::{CorsOrigins, Surface};
pub use limits::Limits;

/// How a service ended that was told to.
pub use votestream_core::consume::group::Drain;

/// Why a service ended other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The listener cannot be used.
    #[error("listener: {0}")]
    Listener(std::io::Error),
    /// Reflection could not be set up: the built-in descriptors are broken.
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// A task that the service cannot do without ended.
    #[error("{task} ended: {reason}")]
    Task {
        /// What the task does.
        task: &'static str,
        /// Why it ended.
        reason: String,
    },
}

impl ServiceError {
    /// An essential task ended.
    pub fn task(task: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Task { task, reason: reason.to_string() }
    }
}
