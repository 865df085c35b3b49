//! A vote, and what becomes of it.

use votestream_proto::v1::{Rejection, RejectionCode};

/// One user's choice in one poll. A later vote of the same user in the same poll replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote<'a> {
    /// The poll.
    pub poll_id: &'a str,
    /// The voter, unique within the poll.
    pub user_id: &'a str,
    /// One of the poll's options.
    pub option_id: &'a str,
}

/// What has become of a vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The vote is stored and will be counted.
    Durable,
    /// The vote was certainly not stored.
    Rejected {
        /// Kind of the rejection, for programs.
        cause: Cause,
        /// Sentence for people.
        reason: String,
    },
    /// Nobody knows whether the vote was stored. Casting it again is a new vote: it replaces one that the same user has cast
    /// meanwhile.
    Unknown {
        /// Sentence for people.
        reason: String,
    },
}

/// Why a vote was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The vote is malformed, or names an option that the poll does not have. Do not cast it again.
    Invalid,
    /// There is no such poll.
    NoSuchPoll,
    /// The poll is not open, or takes its votes from elsewhere.
    NotOpen,
    /// The caller may not cast this vote.
    NotAllowed,
    /// The service could not store it, or it was never sent. It is safe to cast it again.
    NotStored,
    /// The service has a reason that this client does not know.
    Other,
}

impl Outcome {
    /// Whether the vote is stored.
    pub fn is_durable(&self) -> bool {
        *self == Self::Durable
    }

    pub(crate) fn not_stored(reason: impl Into<String>) -> Self {
        Self::Rejected { cause: Cause::NotStored, reason: reason.into() }
    }
}

impl From<Rejection> for Outcome {
    fn from(rejection: Rejection) -> Self {
        let cause = match rejection.code() {
            RejectionCode::OutcomeUnknown => return Self::Unknown { reason: rejection.reason },
            RejectionCode::Malformed | RejectionCode::OptionNotFound => Cause::Invalid,
            RejectionCode::PollNotFound => Cause::NoSuchPoll,
            RejectionCode::PollNotOpen | RejectionCode::PollClosed | RejectionCode::WrongSource => Cause::NotOpen,
            RejectionCode::NotAllowed => Cause::NotAllowed,
            RejectionCode::Unavailable => Cause::NotStored,
            RejectionCode::Unspecified => Cause::Other,
        };
        Self::Rejected { cause, reason: rejection.reason }
    }
}
