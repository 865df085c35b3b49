//! How commands end: the answer, or why there is none, and the exit codes for both.
//!
//! Owns the exit codes, which are public contract, and the wording of failed calls. Must never print a backtrace, nor
//! more lines than people need to decide what to do.

use std::process::ExitCode;

use tonic::{Code, Status};
use votestream_client::ClientError;
use votestream_process::terminal::Signal;
use votestream_server::http::name_of;

use crate::output;

/// The answer of a command that ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Exit code 0.
    Yes,
    /// Exit code 1: votes were rejected, counts differ, the result is not final.
    No,
}

impl Answer {
    /// `Yes` if the condition holds.
    pub(crate) fn yes_if(condition: bool) -> Self {
        if condition { Self::Yes } else { Self::No }
    }
}

impl From<Answer> for ExitCode {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Yes => Self::SUCCESS,
            Answer::No => Self::from(1),
        }
    }
}

/// Why a command has no answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Exit code 2, as clap's: the arguments, or the files that they name, are wrong.
    Usage(String),
    /// Exit code 3: a service cannot be reached, a call failed, the stack broke.
    Failed(String),
    /// Exit code 128 plus the signal's number: the signal came before the work was done. The command has already
    /// printed what that means.
    Interrupted(Signal),
}

/// How every command ends.
pub(crate) type Outcome = Result<Answer, Failure>;

impl Failure {
    /// Exit code 2.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// Exit code 3.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    /// Prints the message and returns the exit code.
    pub(crate) fn report(self) -> ExitCode {
        match self {
            Self::Usage(message) => {
                output::note(&format!("error: {message}"));
                ExitCode::from(2)
            }
            Self::Failed(message) => {
                output::note(&format!("error: {message}"));
                ExitCode::from(3)
            }
            Self::Interrupted(signal) => ExitCode::from(signal.exit_code()),
        }
    }

    /// A call over an existing connection failed.
    pub(crate) fn client(what: &str, error: ClientError) -> Self {
        let hint = error.hint().map_or_else(String::new, |hint| format!(" ({hint})"));
        match error {
            ClientError::Unreachable { service, address, source } => Self::Failed(format!(
                "cannot reach the {service} service at {address}: {} (start one with `votestream up`)",
                innermost(&source)
            )),
            ClientError::Call { address, status, .. } => Self::rpc(what, address.url(), &status, &hint),
            ClientError::Untrusted { is_unknown: true, .. } => {
                Self::Failed(format!("{} (give its CA with --tls-ca)", one_line(&error.to_string())))
            }
            ClientError::Tls { .. } | ClientError::TokenInTheClear { .. } => Self::Usage(one_line(&error.to_string())),
            ClientError::Unresolved { .. }
            | ClientError::Untrusted { .. }
            | ClientError::NoTls { .. }
            | ClientError::Ended { .. }
            | ClientError::Incomplete { .. } => Self::Failed(one_line(&error.to_string())),
        }
    }

    /// No connection could be made.
    pub(crate) fn connecting(error: ClientError) -> Self {
        Self::client("connecting", error)
    }

    /// A call that was answered with a status other than OK.
    fn rpc(what: &str, url: &str, status: &Status, hint: &str) -> Self {
        // A broken connection gives UNAVAILABLE or UNKNOWN with a source; the innermost source is the reason.
        if let Some(cause) = std::error::Error::source(status) {
            return Self::Failed(format!("{what} failed, the connection to {url} broke: {}{hint}", innermost(cause)));
        }
        let (message, code) = (one_line(status.message()), name_of(status.code()));
        if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) {
            return Self::Failed(format!("{what} is not allowed: {message} ({code})"));
        }
        if status.code() == Code::Unimplemented {
            return Self::Failed(format!(
                "{what} failed: there is no such service at {url} ({code}); services apart have addresses apart: --ingest, --results"
            ));
        }
        Self::Failed(format!("{what} failed: {message} ({code})"))
    }
}

/// The innermost cause of an error: the outer ones only say "transport error".
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    one_line(&error.to_string())
}

fn one_line(text: &str) -> String {
    output::printable(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use votestream_client::Client;

    use super::*;

    #[test]
    fn a_failed_call_is_one_line_with_its_code() {
        let failure = Failure::rpc("reading the poll", "http://x", &Status::not_found("no poll\n\"p\""), "");
        assert_eq!(failure, Failure::Failed("reading the poll failed: no poll \"p\" (NOT_FOUND)".into()));
    }

    #[test]
    fn a_denial_says_what_is_missing() {
        for (status, message) in [
            (
                Status::permission_denied("the credential's scopes do not cover read:dinner"),
                "reading the poll is not allowed: the credential's scopes do not cover read:dinner (PERMISSION_DENIED)",
            ),
            (
                Status::unauthenticated("the token expired 3 minutes ago"),
                "reading the poll is not allowed: the token expired 3 minutes ago (UNAUTHENTICATED)",
            ),
        ] {
            assert_eq!(Failure::rpc("reading the poll", "http://x", &status, ""), Failure::Failed(message.into()));
        }
    }

    #[test]
    fn a_service_that_is_elsewhere_can_be_named() {
        let failure = Failure::rpc("listing polls", "http://x", &Status::unimplemented(""), "");
        let Failure::Failed(message) = failure else { panic!() };
        assert!(message.contains("no such service at http://x") && message.contains("--results"), "{message}");
    }

    #[tokio::test]
    async fn an_absent_service_is_named_with_its_url() {
        // The port was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}").parse().unwrap();
        let connected = Client::builder().ingest_address(address).connect_ingest().await;
        let Err(Failure::Failed(message)) = connected.map_err(Failure::connecting) else {
            panic!("connected to nothing")
        };
        assert!(message.contains(&format!("http://127.0.0.1:{port}")), "{message}");
        assert!(message.contains("votestream up"), "{message}");
        assert!(message.contains("refused"), "{message}");
    }
}
