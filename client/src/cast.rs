//! One vote, one call.
//!
//! Owns what a failed call means for its vote, and which calls are repeated. Must never repeat a call whose vote may have been
//! stored: the copy would replace what the same user has cast meanwhile.

use tokio::time::sleep;
use tonic::{Code, Status};
use votestream_proto::VotesMessage;

use crate::{
    IngestClient, Outcome, Vote,
    connect::with_deadline,
    outcome::Cause,
    retry::Backoff,
    status::{is_not_stored, retry_after},
};

impl IngestClient {
    /// Casts one vote, and waits until it is durable or refused.
    ///
    /// A vote that was certainly not stored is cast again, within the client's [`Retry`](crate::Retry). Each call has all of
    /// the client's call time-out, since one that is cut short leaves the outcome unknown. Whoever drops the future does not
    /// know whether the vote is stored.
    pub async fn cast(&self, vote: Vote<'_>) -> Outcome {
        let mut message = VotesMessage::default();
        message.push(vote.poll_id, vote.user_id, vote.option_id);
        let message = message.shared();
        let mut backoff = Backoff::new(self.wire.retry);
        loop {
            let mut grpc = self.grpc.clone();
            let call = |message| async move { grpc.cast_vote(message).await };
            let Err(status) = with_deadline(message.clone(), self.wire.call_timeout, call).await else {
                return Outcome::Durable;
            };
            if !is_not_stored(&status) {
                return outcome(&status);
            }
            let Some(pause) = backoff.failed(retry_after(&status)) else {
                return Outcome::not_stored(status.message());
            };
            sleep(pause).await;
        }
    }
}

impl Outcome {
    /// What has become of a vote whose call, an attempt by somebody else than this client, ended with this status.
    pub fn of_call(status: &Status) -> Self {
        if is_not_stored(status) { Self::not_stored(status.message()) } else { outcome(status) }
    }
}

/// What has become of a vote whose call ended so, and is not made again.
fn outcome(status: &Status) -> Outcome {
    let rejected = |cause| Outcome::Rejected { cause, reason: status.message().to_owned() };
    // A status with a source is what became of a connection.
    if std::error::Error::source(status).is_some() {
        return unknown(status);
    }
    match status.code() {
        Code::InvalidArgument => rejected(Cause::Invalid),
        Code::NotFound => rejected(Cause::NoSuchPoll),
        Code::FailedPrecondition => rejected(Cause::NotOpen),
        Code::PermissionDenied | Code::Unauthenticated => rejected(Cause::NotAllowed),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => unknown(status),
    }
}

fn unknown(status: &Status) -> Outcome {
    let reason = format!("whether the vote was stored is not known: {} ({:?})", status.message(), status.code());
    Outcome::Unknown { reason }
}
