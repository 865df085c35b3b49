//! What every process of the project needs: configuration, telemetry, signals, terminals and exit codes.
//!
//! Owns the shell around a service. Must never know what a vote is, and never what a service does.

// `println!` and `eprintln!` panic once the reader of a pipe has left. `terminal` has functions that do not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod admin;
pub mod config;
#[cfg(feature = "otel")]
pub mod shell;
pub mod telemetry;
pub mod terminal;
mod version;

pub use version::VERSION;
