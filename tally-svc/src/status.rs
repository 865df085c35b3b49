//! Errors of calls, and the only map from them to gRPC status codes.
//!
//! Must never send the text of an engine's error to a client: it is logged where the failure happens.

use std::{collections::HashMap, sync::Arc};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use votestream_core::{
    PollId, Visibility, consume::tally::InconsistentTallies, model::poll::InvalidField, port::PortError,
};

use crate::viewer::hidden_until;

/// Domain and reason of the `google.rpc.ErrorInfo` by which clients know that results are hidden.
const DOMAIN: &str = "votestream.v1";
const RESULTS_HIDDEN: &str = "RESULTS_HIDDEN";

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// A field breaks a limit of the domain.
    #[error(transparent)]
    Invalid(#[from] InvalidField),
    /// A field has a value that is not valid here.
    #[error("{field} {reason}")]
    Field { field: &'static str, reason: String },
    /// There is no such poll.
    #[error("there is no poll \"{0}\"")]
    PollNotFound(PollId),
    /// Another poll has this id.
    #[error("another poll is stored under the id \"{0}\"")]
    OtherDefinition(PollId),
    /// The poll has no final result yet; the text says what is missing.
    #[error("{0}")]
    NotFinal(String),
    /// The caller may not see the results yet.
    #[error("{}{more}", hidden_until(*.visibility))]
    ResultsHidden {
        /// Until when.
        visibility: Visibility,
        /// What else there is to say, without a count; empty or with what separates it from the sentence before.
        more: String,
    },
    /// The results of this poll are not released, but shown by themselves.
    #[error("only a poll with visibility ON_RELEASE is released; {}", hidden_until(*.0))]
    NotReleased(Visibility),
    /// Too many such calls are running.
    #[error("too many {0} are running, try again later")]
    Busy(&'static str),
    /// This process is about to end.
    #[error("this server is shutting down, call again")]
    ShuttingDown,
    /// The clock of this process contradicts the clocks of the engines. The log says by how much.
    #[error("the clock of this server differs from the engines' by more than the protocol allows, call again")]
    ClockNotTrusted,
    /// A store or the stream did not answer.
    #[error("a store did not answer, call again")]
    Unavailable,
    /// A failure that a retry does not cure. The log has the reason.
    #[error("internal error, see the log of the server")]
    Internal,
}

impl CallError {
    pub(crate) fn field(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Field { field, reason: reason.into() }
    }

    pub(crate) fn hidden(visibility: Visibility) -> Self {
        Self::ResultsHidden { visibility, more: String::new() }
    }

    fn field_at_fault(&self) -> Option<&'static str> {
        match self {
            Self::Invalid(invalid) => Some(invalid.field()),
            Self::Field { field, .. } => Some(field),
            Self::PollNotFound(_) | Self::OtherDefinition(_) => Some("poll_id"),
            Self::NotFinal(_)
            | Self::ResultsHidden { .. }
            | Self::NotReleased(_)
            | Self::Busy(_)
            | Self::ShuttingDown
            | Self::ClockNotTrusted
            | Self::Unavailable
            | Self::Internal => None,
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) | Self::Field { .. } => Code::InvalidArgument,
            Self::PollNotFound(_) => Code::NotFound,
            Self::OtherDefinition(_) => Code::AlreadyExists,
            Self::NotFinal(_) | Self::ResultsHidden { .. } | Self::NotReleased(_) => Code::FailedPrecondition,
            Self::Busy(_) => Code::ResourceExhausted,
            Self::ShuttingDown | Self::ClockNotTrusted | Self::Unavailable => Code::Unavailable,
            Self::Internal => Code::Internal,
        }
    }
}

impl From<PortError> for CallError {
    fn from(error: PortError) -> Self {
        // Every call of these services may be repeated, so the client need not know whether it took effect.
        if error.retryable {
            tracing::warn!(%error, effect = ?error.effect, "an engine failed");
            Self::Unavailable
        } else {
            tracing::error!(%error, "an engine failed, and a retry will not help");
            Self::Internal
        }
    }
}

impl From<InconsistentTallies> for CallError {
    fn from(error: InconsistentTallies) -> Self {
        tracing::error!(%error, "stored tallies contradict the protocol");
        Self::Internal
    }
}

impl From<&CallError> for Status {
    fn from(failure: &CallError) -> Self {
        if matches!(failure, CallError::ResultsHidden { .. }) {
            let details = ErrorDetails::with_error_info(RESULTS_HIDDEN, DOMAIN, HashMap::new());
            return Self::with_error_details(failure.code(), failure.to_string(), details);
        }
        match failure.field_at_fault() {
            Some(field) => votestream_server::http::status_of_field(failure.code(), field, failure.to_string()),
            None => Self::new(failure.code(), failure.to_string()),
        }
    }
}

impl From<CallError> for Status {
    fn from(failure: CallError) -> Self {
        (&failure).into()
    }
}

/// A failure that several callers share.
pub(crate) fn shared(failure: Arc<CallError>) -> Status {
    (&*failure).into()
}

#[cfg(test)]
mod tests {
    use votestream_core::port::Group;

    use super::*;

    #[test]
    fn every_row_of_the_map() {
        let id = || PollId::new("p").unwrap();
        let negative = InconsistentTallies::Negative { group: Group::Persist, option: "secret".into(), sum: -1 };
        let rows: Vec<(CallError, Code, &str)> = vec![
            (InvalidField::Empty("poll_id").into(), Code::InvalidArgument, "poll_id is empty"),
            (CallError::field("closes_at", "is missing"), Code::InvalidArgument, "closes_at is missing"),
            (CallError::PollNotFound(id()), Code::NotFound, "there is no poll \"p\""),
            (CallError::OtherDefinition(id()), Code::AlreadyExists, "another poll is stored under the id \"p\""),
            (CallError::NotFinal("closes at 7".into()), Code::FailedPrecondition, "closes at 7"),
            (
                CallError::hidden(Visibility::WhenFinal),
                Code::FailedPrecondition,
                "the results of this poll are shown once they are final",
            ),
            (
                CallError::hidden(Visibility::OnRelease),
                Code::FailedPrecondition,
                "the results of this poll are shown once somebody releases them",
            ),
            (
                CallError::NotReleased(Visibility::Live),
                Code::FailedPrecondition,
                "only a poll with visibility ON_RELEASE is released; the results of this poll are shown",
            ),
            (CallError::Busy("recounts"), Code::ResourceExhausted, "too many recounts are running, try again later"),
            (CallError::ShuttingDown, Code::Unavailable, "this server is shutting down, call again"),
            (PortError::unknown("secret").into(), Code::Unavailable, "a store did not answer, call again"),
            (PortError::refused("secret").into(), Code::Unavailable, "a store did not answer, call again"),
            (PortError::permanent("secret").into(), Code::Internal, "internal error, see the log of the server"),
            (negative.into(), Code::Internal, "internal error, see the log of the server"),
        ];
        for (failure, code, message) in rows {
            let status = Status::from(&failure);
            assert_eq!((status.code(), status.message()), (code, message), "{failure:?}");
            let info = status.get_details_error_info().map(|info| (info.domain, info.reason));
            let hidden = (DOMAIN.to_owned(), RESULTS_HIDDEN.to_owned());
            assert_eq!(info, matches!(failure, CallError::ResultsHidden { .. }).then_some(hidden));
        }
    }
}
