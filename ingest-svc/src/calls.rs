//! The calls of `IngestService`: the three ways to send votes and to get answers.
//!
//! Owns the answer of each call, and when a call ends. If answers are sent while votes come in, reading and answering
//! are two tasks, so that acknowledgements flow while votes wait for room. Must never go on with a call whose client
//! has left: votes that are already in a lane are settled there, the rest is dropped.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{
    Code, Status,
    body::Body,
    codegen::http::{HeaderMap, Response},
};
use tonic_types::{ErrorDetails, StatusExt};
use tracing::Instrument;
use votestream_core::{
    model::limits::{MESSAGE_BYTES_MAX, SINGLE_VOTE_BYTES_MAX},
    observe::metrics::{self, Rejected},
};
use votestream_proto::{
    Frames, ReceivedVotes,
    v1::{CastVoteResponse, CastVotesResponse},
};
use votestream_server::Caller;

use crate::{
    IngestConfig,
    admission::Admission,
    answer,
    inbound::{Inbound, Limits, Received, Unreadable},
    inflight::{Permit, WaitingPermit},
    ledger::SingleVote,
    refusal::status_of,
    session::Session,
};

/// Most rejections in a CastVotesResponse.
const REJECTIONS_LISTED_MAX: usize = 100;
/// Most bytes, and most pieces of received messages, that are admitted together.
const TOGETHER_BYTES_MAX: usize = 64 << 10;
const TOGETHER_PIECES_MAX: usize = 1_024;
/// When a refused client may try again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Answers calls.
pub(crate) struct Calls {
    admission: Arc<Admission>,
    shutdown: CancellationToken,
    /// Limits of a call with one vote.
    single: Limits,
    /// Limits of a stream of votes.
    stream: Limits,
}

impl Calls {
    pub(crate) fn new(config: &IngestConfig, admission: Arc<Admission>, shutdown: CancellationToken) -> Self {
        let message_time_max = config.connections.limits().message;
        let stream = Limits {
            message_bytes_max: MESSAGE_BYTES_MAX,
            message_time_max,
            first_message_max: config.first_message_timeout,
            silence_max: config.silence_timeout,
        };
        let single = Limits {
            message_bytes_max: SINGLE_VOTE_BYTES_MAX,
            first_message_max: message_time_max,
            silence_max: message_time_max,
            ..stream
        };
        Self { admission, shutdown, single, stream }
    }

    /// The session of a stream. `listed`: the call has one answer, which lists only the first rejections.
    pub(crate) fn session(&self, headers: &HeaderMap, method: &'static str, listed: bool) -> Arc<Session> {
        let listed_max = listed.then_some(REJECTIONS_LISTED_MAX);
        Session::of(headers, method, self.admission.refused_room.clone(), listed_max)
    }

    /// CastVote.
    pub(crate) async fn cast_vote(&self, vote: Arc<SingleVote>, caller: &Caller, body: Body) -> Response<Body> {
        let inbound = Inbound::new(body, self.single, self.admission.partial.clone());
        let cast = async { self.cast(vote, caller, single(inbound).await?).await };
        cast.await.map_or_else(Status::into_http, |()| answer::message(&CastVoteResponse {}))
    }

    /// Takes the one vote of a message, and waits until it is durable.
    pub(crate) async fn cast(
        &self,
        vote: Arc<SingleVote>,
        caller: &Caller,
        message: impl ReceivedVotes + Sync,
    ) -> Result<(), Status> {
        caller.still_counts()?;
        let mut votes = 0;
        for vote in message.votes() {
            vote.map_err(|error| malformed(1, &format!("the message cannot be read: {error}")))?;
            votes += 1;
        }
        match votes {
            0 => return Err(malformed(1, "vote is missing")),
            1 => {}
            _ => return Err(malformed(votes, "vote is given twice")),
        }
        let permit = self.permit_in_time(&message).await?;
        // A client may leave at any time: before the vote is in its lane it is not accepted, and after that the lane
        // settles it.
        let admitted = self.admission.admit(&vote, caller, 0, &[message], permit).await;
        admitted.map_err(|crowded| overloaded(&crowded.to_string()))?;
        vote.settled().await.map_err(|refusal| status_of(&refusal))
    }

    /// A permit for a single vote, or the refusal. Nearly always there is room, and then no timer is needed.
    async fn permit_in_time(&self, message: &impl ReceivedVotes) -> Result<Permit, Status> {
        let mut permit = pin!(self.admission.acquire(std::slice::from_ref(message)));
        if let Some(permit) = permit.as_mut().now_or_never() {
            return Ok(permit);
        }
        tokio::time::timeout(self.admission.unary_patience, permit).await.map_err(|_| {
            metrics::rejected(Rejected::Overloaded, 1);
            overloaded("too many votes are waiting; the vote was not stored, try again later")
        })
    }

    /// CastVotes. If the client leaves before it has its answer, the call is dropped.
    pub(crate) async fn cast_votes(&self, session: Arc<Session>, caller: Caller, body: Body) -> Response<Body> {
        let ended = self.read(&session, &caller, body).instrument(session.span()).await;
        let (mut response, mut through) = (CastVotesResponse::default(), 0);
        while let Some(settled) = session.settled().await {
            through = settled.through;
            response.rejected += settled.rejected;
            response.rejections.extend(settled.refused.into_iter().map(Into::into));
        }
        response.accepted = through - response.rejected;
        match ended {
            Ok(()) => answer::message(&response),
            Err(status) => {
                let CastVotesResponse { accepted, rejected, .. } = response;
                let reason = format!(
                    "{}; of the {through} votes before, {accepted} are durable and {rejected} were rejected",
                    status.message()
                );
                Status::with_details(status.code(), reason, status.details().to_vec().into()).into_http()
            }
        }
    }

    /// StreamVotes.
    pub(crate) fn stream_votes(self: Arc<Self>, session: Arc<Session>, caller: Caller, body: Body) -> Response<Body> {
        let (reading, span) = (session.clone(), session.span());
        let reader = tokio::spawn(async move { self.read(&reading, &caller, body).await }.instrument(span));
        answer::stream(session, AbortOnDropHandle::new(reader))
    }

    /// Reads a client's stream into the session until it ends, fails, the service shuts down, or the caller's credential
    /// counts no more.
    async fn read(&self, session: &Arc<Session>, caller: &Caller, body: Body) -> Result<(), Status> {
        // However this ends, the task that answers must learn that no more votes come.
        let _closed = CloseOnDrop(session);
        let inbound = Inbound::new(body, self.stream, self.admission.partial.clone());
        tokio::select! {
            result = self.read_all(session, caller, inbound) => result,
            () = self.cut_off() => Err(Status::unavailable(
                "the service is shutting down; votes after durable_through were not accepted",
            )),
            denied = caller.ended() => {
                let reason = format!("{denied}; votes after durable_through were not accepted");
                Err(Status::new(Status::from(denied).code(), reason))
            }
        }
    }

    /// Ready when streams must end because the service stops. Clients get half of the drain time to finish by
    /// themselves.
    async fn cut_off(&self) {
        self.shutdown.cancelled().await;
        tokio::time::sleep(self.admission.drain / 2).await;
    }

    async fn read_all(&self, session: &Arc<Session>, caller: &Caller, mut inbound: Inbound) -> Result<(), Status> {
        let (mut first, mut received) = (0, Together::default());
        loop {
            let end = receive(&mut inbound, &mut received).await;
            let Together { messages, waiting } = &mut received;
            if !messages.is_empty() {
                caller.count_votes(|| messages.iter().map(|message| message.votes().count()).sum())?;
                let permit = self.admission.acquire(messages).await;
                // From here on their bytes count as bytes in flight.
                waiting.clear();
                let admitted = self.admission.admit(session, caller, first, messages, permit).await;
                first += admitted.map_err(|crowded| overloaded(&crowded.to_string()))?;
                messages.clear();
            }
            match end {
                Ok(false) => {}
                Ok(true) => return Ok(()),
                Err(unreadable) => return Err(unreadable.status(&format_args!("the message after vote {first}"))),
            }
        }
    }
}

/// Closes the session when its reader has ended.
struct CloseOnDrop<'a>(&'a Session);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Messages that are admitted together.
#[derive(Default)]
struct Together {
    messages: Vec<Frames>,
    /// The room that they hold until they are in flight.
    waiting: Vec<WaitingPermit>,
}

/// Waits for messages and takes all that have arrived. Messages that arrived together are admitted together, so that a
/// message with one vote costs little more than a vote. Returns whether the end has come.
async fn receive(inbound: &mut Inbound, received: &mut Together) -> Result<bool, Unreadable> {
    let mut next = inbound.next().await?;
    let mut bytes = 0;
    while let Some(Received { frames, permit }) = next {
        bytes += frames.wire_len();
        received.messages.push(frames);
        received.waiting.extend(permit);
        if bytes >= TOGETHER_BYTES_MAX || received.messages.len() >= TOGETHER_PIECES_MAX {
            return Ok(false);
        }
        match inbound.next().now_or_never() {
            Some(ready) => next = ready?,
            None => return Ok(false),
        }
    }
    Ok(true)
}

/// The message of a call with one vote.
async fn single(mut inbound: Inbound) -> Result<Frames, Status> {
    let failed = |unreadable: Unreadable| unreadable.status(&"the message");
    let message = inbound.next().await.map_err(failed)?;
    // A single vote is so small that it needs no room.
    let message = message.ok_or_else(|| malformed(1, "vote is missing"))?.frames;
    if !message.is_one() || (!inbound.has_ended() && inbound.next().await.map_err(failed)?.is_some()) {
        return Err(malformed(1, "the call takes one message"));
    }
    Ok(message)
}

/// The refusal of a call for which there is no room.
fn overloaded(reason: &str) -> Status {
    Status::with_error_details(Code::ResourceExhausted, reason, ErrorDetails::with_retry_info(Some(RETRY_AFTER)))
}

/// Status of a call that does not hold exactly one readable vote. Counts this many votes as rejected.
fn malformed(votes: usize, reason: &str) -> Status {
    metrics::rejected(Rejected::Malformed, votes as u64);
    Status::invalid_argument(reason)
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use tonic::codegen::Bytes;
    use votestream_proto::VotesMessage;

    use super::*;
    use crate::inflight::WaitingBytes;

    #[tokio::test]
    async fn what_arrived_together_is_counted_until_it_is_in_flight() {
        let mut message = VotesMessage::default();
        while message.wire_len() < 4 * SINGLE_VOTE_BYTES_MAX {
            message.push("poll", "user", "option");
        }
        let len = message.wire_len();
        let mut framed = [&[0][..], &(len as u32).to_be_bytes()].concat();
        prost::Message::encode(&message, &mut framed).unwrap();
        // Two messages that come in parts, then a small one.
        let pieces = [&framed[..9], &framed[9..], &framed[..99], &framed[99..], &[0; 5]];
        let pieces = pieces.map(|piece| Ok::<_, Status>(Bytes::copy_from_slice(piece)));
        let body = Body::new(axum::body::Body::from_stream(stream::iter(pieces)));
        let limits = Limits {
            message_bytes_max: MESSAGE_BYTES_MAX,
            message_time_max: Duration::from_secs(1),
            first_message_max: Duration::from_secs(1),
            silence_max: Duration::from_secs(1),
        };
        let room = WaitingBytes::new(3 * len);
        let (mut inbound, mut received) = (Inbound::new(body, limits, room.clone()), Together::default());
        assert!(receive(&mut inbound, &mut received).await.unwrap());
        assert_eq!((received.messages.len(), received.waiting.len()), (3, 2));
        assert!(room.try_acquire(len + 1).is_none());
        received.waiting.clear();
        assert!(room.try_acquire(3 * len).is_some());
    }
}
