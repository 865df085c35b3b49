//! One port: connections and their limits, TLS, who calls and how often, deadlines, the path to the services, health,
//! reflection, drain, and the form of errors in JSON.
//!
//! Must never know what a vote is, and never read a setting: it gets its limits as plain numbers.

// `println!` and `eprintln!` panic once the reader of a pipe has left. A process has other means to print.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod admin;
pub mod audit;
mod connections;
mod deadline;
mod files;
mod front;
mod gather;
mod grpc;
pub mod http;
pub mod identity;
mod limits;
mod quotas;
mod tls;

pub use admin::{Admin, Exposition};
pub use audit::{AuditLog, AuditTarget};
pub use connections::{Connections, Peer, raise_descriptor_limit};
pub use files::{open_file, read_file};
pub use grpc::{listen, serve, serve_health};
pub use http::{CorsOrigins, Part, Surface};
pub use identity::{Auth, Caller, Identity};
pub use limits::Limits;
pub use quotas::{CallLimits, Quotas, Rate, TrustedProxies};
pub use tls::{ClientCertificate, Tls, TlsError, TlsFile, TlsIdentity, TlsSource};

/// How a service ended after it was told to stop.
pub use votestream_core::consume::group::Drain;

/// A service at work, until it has ended. Boxed, so that it is compiled in its own crate, and not again in each crate that
/// awaits it.
pub type Running = std::pin::Pin<Box<dyn Future<Output = Result<Drain, ServiceError>> + Send>>;

/// Why a service ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The listener cannot be used.
    #[error("listener: {0}")]
    Listener(std::io::Error),
    /// Reflection could not be set up: the built-in descriptors are broken.
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// An essential task ended.
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
