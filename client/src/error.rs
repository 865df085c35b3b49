//! Why a call failed.

use std::{
    error::Error,
    fmt::{self, Display, Formatter},
};

use tonic::{Code, Status};

use crate::{
    Address,
    connect::Wire,
    status::hides_results,
    tls::{Refused, refused},
};

/// In TLS 1.3 a server judges a client's certificate after the client has begun to send. The reason is often lost with the
/// connection.
const CERTIFICATE_HINT: &str = "the service may not accept the client's certificate";

/// One of the two services that a client talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// It takes votes.
    Ingest,
    /// It has polls and results.
    Results,
}

impl Display for Service {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingest => "ingest",
            Self::Results => "results",
        })
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection came about. Nothing was sent.
    #[error("cannot reach the {service} service at {address}: {}", innermost(.source))]
    Unreachable {
        /// The service that was looked for.
        service: Service,
        /// Where it was looked for.
        address: Address,
        /// What the connection said.
        source: tonic::transport::Error,
    },
    /// The name of the service's host has no address. Nothing was sent.
    #[error("{} cannot be resolved: {error}", .address.host())]
    Unresolved {
        /// Where the service is.
        address: Address,
        /// What the resolver said.
        error: std::io::Error,
    },
    /// The service cannot prove who it is. Nothing was sent.
    #[error("the certificate of {} is not trusted: {reason}", .address.host())]
    Untrusted {
        /// Where the service is.
        address: Address,
        /// What is wrong with its certificate.
        reason: String,
        /// Whether the CA that has issued it is not known here. Then [`ClientBuilder::tls_ca`](crate::ClientBuilder::tls_ca)
        /// helps.
        is_unknown: bool,
    },
    /// The service speaks, and not TLS. Nothing was sent.
    #[error("{address} does not speak TLS: use http:// for it")]
    NoTls {
        /// Where the service is.
        address: Address,
    },
    /// The settings of TLS cannot be used.
    #[error("TLS cannot be used: {reason}")]
    Tls {
        /// What is wrong.
        reason: String,
    },
    /// A token would be sent to another machine for everybody to read. Nothing was sent.
    #[error("a token would be sent to {address} unencrypted: use https:// for it")]
    TokenInTheClear {
        /// Where the service is.
        address: Address,
    },
    /// The call ended with a status other than OK: the service's own, or that of a connection that broke.
    #[error("{}", describe(.address, .status, *.has_identity))]
    Call {
        /// Where the service is.
        address: Address,
        /// How the call ended.
        status: Box<Status>,
        /// Whether the client has a certificate to show.
        has_identity: bool,
    },
    /// The service ended a stream before it had settled every vote, and gave no reason.
    #[error("{address} ended the stream before every vote was settled")]
    Ended {
        /// Where the service is.
        address: Address,
    },
    /// An answer lacks a field that every answer has.
    #[error("{address} answered without {what}")]
    Incomplete {
        /// Where the service is.
        address: Address,
        /// What is missing, with its article.
        what: &'static str,
    },
}

impl ClientError {
    pub(crate) fn call(wire: &Wire, status: Status) -> Self {
        Self::Call { address: wire.address.clone(), status: Box::new(status), has_identity: wire.has_identity }
    }

    /// What may be behind the end of a connection, for whoever has no other clue.
    pub fn hint(&self) -> Option<&'static str> {
        let Self::Call { status, has_identity: true, .. } = self else { return None };
        Error::source(&**status).map(|_| CERTIFICATE_HINT)
    }

    /// The status that ended the call, if one did.
    pub fn status(&self) -> Option<&Status> {
        if let Self::Call { status, .. } = self { Some(status) } else { None }
    }

    /// No connection came about.
    pub(crate) fn connecting(service: Service, address: &Address, source: tonic::transport::Error) -> Self {
        let address = address.clone();
        match refused(&source) {
            Some(Refused::Certificate { reason, is_unknown }) => Self::Untrusted { address, reason, is_unknown },
            Some(Refused::NoTls) => Self::NoTls { address },
            None => Self::Unreachable { service, address, source },
        }
    }

    /// Whether the answer to a question for results was that readers may not see them yet. The status's message says until
    /// when.
    pub fn is_hidden(&self) -> bool {
        self.status().is_some_and(hides_results)
    }

    /// Whether the answer to a question for a final result was that there is none yet.
    pub fn is_not_final(&self) -> bool {
        // The library itself says CANCELLED once the deadline of a call has passed.
        let codes = [Code::FailedPrecondition, Code::DeadlineExceeded, Code::Cancelled];
        self.status().is_some_and(|status| codes.contains(&status.code()))
    }
}

fn describe(address: &Address, status: &Status, has_identity: bool) -> String {
    let hint = if has_identity { format!(" ({CERTIFICATE_HINT})") } else { String::new() };
    match Error::source(status) {
        Some(cause) => format!("the connection to {address} broke: {}{hint}", innermost(cause)),
        None => format!("{} ({:?})", status.message(), status.code()),
    }
}

/// The innermost cause of an error: the ones around it only say "transport error".
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
