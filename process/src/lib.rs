//! What any process of the project has: configuration, telemetry, signals, terminals and exit codes.
//!
//! Owns the shell around a service. Must never know what a vote is, nor what a service does.

// They panic once the reader of a pipe has left: `terminal` has what does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod config;
#[cfg(feature = "otel")]
pub mod shell;
pub mod telemetry;
pub mod terminal;
