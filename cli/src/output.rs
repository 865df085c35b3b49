//! Output: lines and JSON on stdout, logs and remarks on stderr.
//!
//! Owns stdout and stderr. Must never let a command fail because the reader of its output has left: if stdout or stderr
//! is closed, only the output ends. A command that only shows something asks [`is_closed`], and stops.

use std::{
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use serde::Serialize;
use tokio::sync::oneshot;
use tracing_subscriber::{Layer, filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};
use votestream_process::terminal::{self, LogOutput, is_dumb, selected_logs};

use crate::failure::Failure;

/// `EIO`: the error of a write after the terminal is gone.
const TERMINAL_GONE: i32 = 5;

/// Whether the reader of stdout has left.
static STDOUT_CLOSED: AtomicBool = AtomicBool::new(false);

/// Sends the logs of the services to stderr: warnings and errors, or what `RUST_LOG` selects.
pub(crate) fn log_to_stderr() {
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(LogOutput)
        .log_internal_errors(false)
        .with_ansi(terminal::stderr_has_colors())
        .with_filter(selected_logs(LevelFilter::WARN));
    tracing_subscriber::registry().with(layer).init();
}

/// Prints a line on stdout.
///
/// # Errors
///
/// If it cannot be written. It is no error if nobody reads stdout any more.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    bytes(format!("{text}\n").as_bytes())
}

/// Prints this on stdout, as it is.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    written(stdout.write_all(bytes).and_then(|()| stdout.flush()))
}

/// Prints lines on stdout.
pub(crate) fn lines(lines: &[String]) -> Result<(), Failure> {
    lines.iter().try_for_each(|text| line(text))
}

/// Prints an object on stdout, as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))?;
    line(&text)
}

/// Prints a remark on stderr, if anybody reads that.
pub(crate) fn note(text: &str) {
    terminal::note(text);
}

/// Turns the result of a write to stdout, or to the terminal, into that of the command.
pub(crate) fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe || error.raw_os_error() == Some(TERMINAL_GONE) => {
            STDOUT_CLOSED.store(true, Ordering::Relaxed);
            Ok(())
        }
        Err(error) => Err(Failure::failed(format!("cannot write to stdout: {error}"))),
    }
}

/// Whether the reader of stdout has left, as the last write showed.
pub(crate) fn is_closed() -> bool {
    STDOUT_CLOSED.load(Ordering::Relaxed)
}

/// Waits until the reader of stdout has left: a command that shows changes may have nothing to write for days. Never
/// returns if stdout is a file, or if the system cannot tell.
pub(crate) async fn until_closed() {
    let (tell, told) = oneshot::channel();
    let watching = std::thread::Builder::new().name("stdout".into()).spawn(move || {
        let stdout = io::stdout();
        // No event is asked for: errors and hang-ups are always reported.
        let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
        loop {
            match poll(&mut watched, None) {
                Err(error) if error == Errno::INTR => {}
                Ok(_) if watched[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) => break,
                Ok(_) | Err(_) => return,
            }
        }
        // If this fails, nobody waits any more.
        tell.send(()).ok();
    });
    if watching.is_err() || told.await.is_err() {
        std::future::pending::<()>().await;
    }
    STDOUT_CLOSED.store(true, Ordering::Relaxed);
}

/// Whether lines on this terminal can be drawn again in the same place.
pub(crate) fn can_redraw(term: &Term) -> bool {
    term.is_term() && !is_dumb()
}

/// Shows progress on stderr, if that is a terminal that can draw it.
pub(crate) fn show_progress(progress: &ProgressBar, template: &str) {
    if !can_redraw(&Term::stderr()) {
        progress.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template(template) {
        progress.set_style(style);
    }
}

/// The text in a form that is safe for a terminal: ids and titles come from strangers, and must not move the cursor or
/// change the direction of a line.
pub(crate) fn printable(text: &str) -> String {
    let moves = |c: char| {
        c.is_control()
            || votestream_core::model::text::is_direction(c)
            || votestream_core::model::text::is_line_break(c)
    };
    text.chars().map(|c| if moves(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_closed_pipe_is_no_failure() {
        assert_eq!(written(Ok(())), Ok(()));
        assert_eq!(written(Err(io::ErrorKind::BrokenPipe.into())), Ok(()));
        assert_eq!(written(Err(io::Error::from_raw_os_error(TERMINAL_GONE))), Ok(()));
        assert!(written(Err(io::ErrorKind::StorageFull.into())).is_err());
    }

    #[test]
    fn nothing_moves_the_cursor_or_the_direction() {
        assert_eq!(printable("a\x1b[2Jb\u{202e}c\u{2028}d\u{85}é"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d\u{fffd}é");
    }
}
