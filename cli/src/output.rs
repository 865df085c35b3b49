//! Output: lines and JSON on stdout, logs on stderr.
//!
//! Owns stdout. Must never panic because the reader of a pipe has gone away.

use std::io::{self, Write};

use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;

/// Sends the logs of the services to stderr: warnings, or what `RUST_LOG` says.
pub(crate) fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
}

/// Prints a line on stdout.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(closed)
}

/// Prints lines on stdout.
pub(crate) fn lines(lines: &[String]) -> Result<(), Failure> {
    lines.iter().try_for_each(|text| line(text))
}

/// Prints an object on stdout, in one line.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))?;
    line(&text)
}

/// What a failed write to the terminal or a pipe means.
pub(crate) fn closed(error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Failure::OutputClosed
    } else {
        Failure::failed(format!("cannot write to stdout: {error}"))
    }
}

/// Text for a terminal: ids and titles come from strangers and must not move the cursor.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
