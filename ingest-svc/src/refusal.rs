//! Converts a [`Refusal`] for clients and for metrics.
//!
//! Owns the only map from refusals to codes of the API, to gRPC status (the HTTP status follows from it), and to labels
//! of metrics.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use votestream_core::{
    Refusal,
    observe::metrics::{self, Rejected},
    produce::Outcome,
};
use votestream_proto::v1::{Rejection, RejectionCode};

/// Domain and reason of the `google.rpc.ErrorInfo` by which clients distinguish the service's own UNAVAILABLE from a
/// broken connection.
const DOMAIN: &str = "votestream.v1";
const NOT_STORED: &str = "VOTE_NOT_STORED";

/// A vote of a stream that is not durable, or whose outcome is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Index of the vote in its stream.
    pub index: u64,
    /// Why.
    pub refusal: Refusal,
}

impl Refused {
    /// The code for its client.
    pub fn code(&self) -> RejectionCode {
        code_of(&self.refusal)
    }
}

impl From<Refused> for Rejection {
    fn from(refused: Refused) -> Self {
        Self { index: refused.index, code: refused.code().into(), reason: refused.refusal.to_string() }
    }
}

/// The refusal for votes with this outcome; `None` if they are durable.
pub(crate) fn refusal_of(outcome: Outcome) -> Option<Refusal> {
    match outcome {
        Outcome::Durable => None,
        Outcome::NotStored => Some(Refusal::NotStored),
        Outcome::Unknown => Some(Refusal::OutcomeUnknown),
    }
}

/// The code in a stream.
fn code_of(refusal: &Refusal) -> RejectionCode {
    match refusal {
        Refusal::Unreadable | Refusal::Invalid(_) => RejectionCode::Malformed,
        Refusal::NoSuchPoll(_) => RejectionCode::PollNotFound,
        Refusal::NoSuchOption(_) => RejectionCode::OptionNotFound,
        Refusal::NotOpen(_) => RejectionCode::PollNotOpen,
        Refusal::Closed(_) => RejectionCode::PollClosed,
        Refusal::WrongSource(_) => RejectionCode::WrongSource,
        Refusal::NotAllowed(_) => RejectionCode::NotAllowed,
        Refusal::PollUnreadable(_) | Refusal::KeyMissing(..) | Refusal::ClockContradicted | Refusal::NotStored => {
            RejectionCode::Unavailable
        }
        Refusal::OutcomeUnknown => RejectionCode::OutcomeUnknown,
    }
}

/// The status of a call with one vote.
pub(crate) fn status_of(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::Unreadable | Refusal::Invalid(_) | Refusal::NoSuchOption(_) => Code::InvalidArgument,
        Refusal::NoSuchPoll(_) => Code::NotFound,
        Refusal::NotOpen(_) | Refusal::Closed(_) | Refusal::WrongSource(_) => Code::FailedPrecondition,
        Refusal::NotAllowed(_) => Code::PermissionDenied,
        Refusal::PollUnreadable(_) | Refusal::KeyMissing(..) | Refusal::ClockContradicted | Refusal::NotStored => {
            Code::Unavailable
        }
        Refusal::OutcomeUnknown => Code::DeadlineExceeded,
    };
    match refusal.field() {
        Some(field) => votestream_server::http::status_of_field(code, field, refusal.to_string()),
        None if code == Code::Unavailable => not_stored(refusal.to_string()),
        None => Status::new(code, refusal.to_string()),
    }
}

/// The service's own UNAVAILABLE, for a vote that was certainly not stored. It is marked because clients also report
/// UNAVAILABLE when a connection breaks, and then the outcome is unknown.
pub(crate) fn not_stored(reason: String) -> Status {
    let details = ErrorDetails::with_error_info(NOT_STORED, DOMAIN, HashMap::new());
    Status::with_error_details(Code::Unavailable, reason, details)
}

/// Counts votes that were refused before they reached a lane.
pub(crate) fn count(refused: &[Refused]) {
    // Neighbouring votes are mostly refused for the same reason, so they are counted together.
    for row in refused.chunk_by(|one, next| reason_of(&one.refusal) == reason_of(&next.refusal)) {
        if let Some(reason) = row.first().and_then(|refused| reason_of(&refused.refusal)) {
            metrics::rejected(reason, row.len() as u64);
        }
    }
}

/// The label under which a refusal is counted.
fn reason_of(refusal: &Refusal) -> Option<Rejected> {
    let reason = match refusal {
        Refusal::Unreadable | Refusal::Invalid(_) => Rejected::Malformed,
        Refusal::NoSuchPoll(_) => Rejected::PollNotFound,
        Refusal::NoSuchOption(_) => Rejected::OptionNotFound,
        Refusal::NotOpen(_) => Rejected::PollNotOpen,
        Refusal::Closed(_) => Rejected::PollClosed,
        Refusal::WrongSource(_) => Rejected::WrongSource,
        Refusal::NotAllowed(_) => Rejected::NotAllowed,
        Refusal::PollUnreadable(_) | Refusal::ClockContradicted => Rejected::Unavailable,
        Refusal::KeyMissing(..) => Rejected::KeyMissing,
        // The lanes count these outcomes.
        Refusal::NotStored | Refusal::OutcomeUnknown => return None,
    };
    Some(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_stored_is_told_from_a_broken_connection() {
        let info =
            |refusal: &Refusal| status_of(refusal).get_details_error_info().map(|info| (info.domain, info.reason));
        assert_eq!(info(&Refusal::NotStored), Some((DOMAIN.into(), NOT_STORED.into())));
        assert_eq!(info(&Refusal::ClockContradicted), Some((DOMAIN.into(), NOT_STORED.into())));
        assert_eq!(info(&Refusal::OutcomeUnknown), None);
    }
}
