//! The audit log: who administered what, when, and what came of it.
//!
//! Owns the order of writing: what somebody is about to do is in the log, synced, before it is done; what came of it
//! follows. Must never let an administrative act take place that is not in the log, and never hold up votes or reads.
//! Must never write a token, a secret or the id of a voter, but for the name of whoever acts.
//!
//! `line` has the form of a line and the chain of hashes, `file` the file, `writer` the one thread that writes,
//! `refusals` bounds how many lines strangers can cause, `layer` sees the calls that never reach a handler, and `read`
//! checks a log.

mod file;
mod layer;
mod line;
mod read;
mod refusals;
mod writer;

use std::{net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use http::Extensions;
use serde_json::Value;
use tonic::{Code, Status};

pub use file::OpenError;
pub use layer::Acts;
pub(crate) use layer::{Attempt, AuditLayer, Told};
pub use line::LINE_BYTES_MAX;
pub use read::{Broken, Head, read};

use self::{
    file::Sink,
    line::{Call, Event, Outcome},
    refusals::Refusals,
    writer::{Begun, Writer},
};
use crate::{connections::Peer, http::name_of, identity::Caller};

/// How long an act waits for its line to be on disk. A disk that takes longer has failed.
const INTENT_WAIT: Duration = Duration::from_secs(10);

/// Where the audit log is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditTarget {
    /// To this file, after what is there.
    File(PathBuf),
    /// To stdout, as a chain that begins at every start.
    Stdout,
}

impl FromStr for AuditTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Err("expected a file, or - for stdout".into()),
            "-" => Ok(Self::Stdout),
            path => Ok(Self::File(path.into())),
        }
    }
}

/// The audit log of a process. Copies write to the same one. By default there is none.
#[derive(Clone, Debug, Default)]
pub struct AuditLog(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    writer: Writer,
    refusals: Refusals,
}

/// The audit log could not be written, so the act must not take place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the audit log of the server cannot be written, so this was not done; votes and results go on. Its operators find the \
     reason in the server's log"
)]
pub struct Unwritten;

impl From<Unwritten> for Status {
    fn from(unwritten: Unwritten) -> Self {
        Self::unavailable(unwritten.to_string())
    }
}

impl AuditLog {
    /// Opens the log, and locks it against other processes. A line that was cut off in the middle is removed, since
    /// nobody relied on it, and a line of its own says so.
    ///
    /// # Errors
    ///
    /// If another process has the file, if it cannot be read, or if it is something else than an audit log.
    pub fn open(target: &AuditTarget) -> Result<Self, OpenError> {
        let opened = match target {
            AuditTarget::File(path) => file::open(path)?,
            AuditTarget::Stdout => file::stdout(),
        };
        Self::start(opened.0, opened.1, opened.2)
    }

    fn start(sink: Sink, chain: line::Chain, cut: u64) -> Result<Self, OpenError> {
        let refusals = Refusals::default();
        let writer = Writer::start(sink, chain, cut, refusals.left_out()).map_err(OpenError::Thread)?;
        Ok(Self(Some(Arc::new(Inner { writer, refusals }))))
    }

    /// Whether there is a log.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Notes that a caller is about to do something with a poll. `extensions` are those of its request, `asked` is what
    /// exactly it asked for. Returns once that is on disk.
    ///
    /// # Errors
    ///
    /// If it cannot be written. Then the act must not take place.
    pub async fn begin(
        &self,
        extensions: &Extensions,
        act: &'static str,
        poll: &str,
        asked: impl FnOnce() -> Value,
    ) -> Result<Act, Unwritten> {
        let Some(inner) = &self.0 else { return Ok(Act(None)) };
        Attempt::is_known(extensions);
        let call = call_of(extensions, act, Some(poll));
        let begun = inner.writer.begin(call, asked());
        match tokio::time::timeout(INTENT_WAIT, begun).await {
            Ok(Ok(begun)) => Ok(Act(Some((begun, inner.clone())))),
            Ok(Err(Unwritten)) => Err(Unwritten),
            Err(_) => {
                tracing::error!(act, "the audit log did not take a line in time");
                Err(Unwritten)
            }
        }
    }

    /// Notes that a caller was refused something before it began. Lines that strangers cause are bounded in number;
    /// those that are left out are counted in the log.
    pub fn refused(&self, extensions: &Extensions, act: &'static str, poll: Option<&str>, status: &Status) {
        let Some(inner) = &self.0 else { return };
        Attempt::is_known(extensions);
        if inner.refusals.admit(caller_of(extensions).has_credential()) {
            let call = call_of(extensions, act, poll);
            inner.writer.refused(Event::Refused { call, outcome: outcome_of(status) });
        }
    }
}

/// Whoever makes a request. Those who were not let in are known to nobody but the check.
fn caller_of(extensions: &Extensions) -> Caller {
    Attempt::caller(extensions).unwrap_or_else(|| Caller::of(extensions))
}

/// Who makes a request, and what it is about.
fn call_of(extensions: &Extensions, act: &'static str, poll: Option<&str>) -> Call {
    let caller = caller_of(extensions);
    let from: Option<SocketAddr> = extensions.get::<Peer>().map(|peer| peer.address);
    Call::new(act, poll, &caller.name(), from)
}

fn outcome_of(status: &Status) -> Outcome {
    Outcome::failed(name_of(status.code()), status.message())
}

/// An act that is in the log, and that has not ended. When it is dropped, the log says that nobody knows how it ended.
#[derive(Debug)]
#[must_use = "the log waits for what comes of it"]
pub struct Act(Option<(Begun, Arc<Inner>)>);

impl Act {
    /// Notes how it ended: what the poll became, or why it failed. Returns once that is on disk, or once it is known that
    /// the disk does not take it now; then it is written as soon as it does.
    pub async fn ended(self, result: Result<Value, &Status>) {
        let Some((begun, _log)) = self.0 else { return };
        let outcome = match result {
            Ok(became) => Outcome::done(name_of(Code::Ok), became),
            Err(status) => outcome_of(status),
        };
        // The act has taken place whether or not the log can say it, so its caller does not wait for long.
        drop(tokio::time::timeout(INTENT_WAIT, begun.end(outcome)).await);
    }
}

#[cfg(test)]
mod tests;
