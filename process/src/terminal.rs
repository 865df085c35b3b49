//! Output of a process for people, and the signals that people send to it.
//!
//! Owns the rule that a closed stderr ends only the output: its reader may leave while the process works on. Must never
//! panic or fail because a line could not be written.

use std::{
    env,
    io::{self, IsTerminal, Write},
};

use tokio::signal::unix::{self, SignalKind};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt::MakeWriter,
};

/// Standard error for logs. Its writes always succeed, because `tracing` reports a failed write by `eprintln!`, which
/// would panic then.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogOutput;

impl Write for LogOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // An error here cannot be reported anywhere.
        drop(io::stderr().lock().write_all(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LogOutput {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

/// Which logs stderr gets: what `RUST_LOG` selects, as `level` or `target=level` with commas between them; else this level.
pub fn selected_logs(usual: LevelFilter) -> Targets {
    let selected = env::var("RUST_LOG").ok().and_then(|text| selection(&text));
    selected.unwrap_or_else(|| Targets::new().with_default(usual))
}

/// What a text selects; `None` if it is empty or wrong. Of commas without anything between them nobody means anything.
fn selection(text: &str) -> Option<Targets> {
    let parts: Vec<_> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { None } else { parts.join(",").parse().ok() }
}

/// Prints a line on stderr, if anybody reads it.
pub fn note(line: &str) {
    // Use one write, so that lines of several threads do not mix.
    drop(io::stderr().lock().write_all(format!("{line}\n").as_bytes()));
}

/// Whether logs on stderr may be coloured.
pub fn stderr_has_colors() -> bool {
    let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal() && !no_color && !is_dumb()
}

/// Whether the terminal says that it does not understand escape codes.
pub fn is_dumb() -> bool {
    env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// A signal that asks a process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP: the terminal is gone.
    Hangup,
    /// SIGINT: ctrl-c.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl Signal {
    const ALL: [Self; 3] = [Self::Hangup, Self::Interrupt, Self::Terminate];

    /// Its number (POSIX, `kill`).
    fn number(self) -> u8 {
        match self {
            Self::Hangup => 1,
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }

    /// The exit code of a process that this signal ended before its work was done, in the form that shells use.
    pub fn exit_code(self) -> u8 {
        128 + self.number()
    }

    fn kind(self) -> SignalKind {
        match self {
            Self::Hangup => SignalKind::hangup(),
            Self::Interrupt => SignalKind::interrupt(),
            Self::Terminate => SignalKind::terminate(),
        }
    }
}

/// Receives the signals that ask this process to end. While it exists, none of them ends the process by itself.
#[derive(Debug)]
pub struct Signals {
    listening: Vec<(Signal, unix::Signal)>,
}

impl Signals {
    /// Starts to listen. Signals that the process ignored when it was started stay ignored: `nohup` does this for
    /// SIGHUP, and a shell does it for SIGINT of a script's background processes.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn new() -> io::Result<Self> {
        let ignored = ignored();
        let wanted = Signal::ALL.into_iter().filter(|signal| ignored & (1 << (signal.number() - 1)) == 0);
        let listening = wanted.map(|signal| Ok((signal, unix::signal(signal.kind())?))).collect::<io::Result<_>>()?;
        Ok(Self { listening })
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) -> Signal {
        std::future::poll_fn(|cx| {
            for (signal, stream) in &mut self.listening {
                if stream.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*signal);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// The signals that are ignored at present, one bit each; 0 where the system does not say.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(Signal::ALL.map(Signal::exit_code), [129, 130, 143]);
    }

    #[test]
    fn logs_never_fail() {
        assert_eq!(LogOutput.write(b"").unwrap(), 0);
        note("a line of a test");
    }

    #[test]
    fn logs_are_selected_by_level_and_target() {
        for same in ["info,votestream_core=debug", " votestream_core=debug , info,", "info,,votestream_core=debug"] {
            let selected = selection(same).unwrap();
            let would = |target, level| selected.would_enable(target, &level);
            assert!(
                would("votestream_core::clock", tracing::Level::DEBUG) && would("h2", tracing::Level::INFO),
                "{same}"
            );
            assert!(!would("votestream_core", tracing::Level::TRACE) && !would("h2", tracing::Level::DEBUG), "{same}");
        }
        for nothing in ["", ",", "votestream_core[span{poll=1}]=debug", "info,x=loud"] {
            assert!(selection(nothing).is_none(), "{nothing}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn rust_ignores_a_closed_pipe() {
        // SIGPIPE is number 13.
        assert_ne!(ignored() & (1 << 12), 0);
    }
}
