//! `IngestService`: the three ways in which votes arrive and answers leave.
//!
//! Owns the mapping from outcomes to gRPC. Reading and answering are two tasks, so that acknowledgements flow while votes
//! wait for room, and a client that hangs up cuts nothing in half.

use std::{
    fmt::Display,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use futures::FutureExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};
use tracing::Instrument;
use votestream_core::{
    limits::MESSAGE_BYTES_MAX,
    metrics::{self, Rejected},
};
use votestream_proto::{
    ReceivedVotes, VotesMessage,
    v1::{
        CastVoteResponse, CastVotesResponse, Rejection, RejectionCode, StreamVotesResponse,
        ingest_service_server::IngestService,
    },
};

use crate::{admission::Admission, inbound::Inbound, ledger::SingleVote, room::Room, session::Session};

/// Most rejections in a CastVotesResponse.
const REJECTIONS_LISTED_MAX: usize = 100;
/// Most bytes, and most pieces in which they arrived, that are admitted together.
const TOGETHER_BYTES_MAX: usize = 64 << 10;
const TOGETHER_PIECES_MAX: usize = 1_024;
/// Responses that may wait for a client to read them; what is settled meanwhile goes into the next one.
const RESPONSES_WAITING_MAX: usize = 2;
/// When a refused client may try again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// The task that reads a client's stream, and how that ends.
type Reader = tokio::task::JoinHandle<Result<(), Status>>;

/// The service.
pub(crate) struct Ingest {
    admission: Arc<Admission>,
    shutdown: CancellationToken,
}

impl Ingest {
    pub(crate) fn new(admission: Arc<Admission>, shutdown: CancellationToken) -> Self {
        Self { admission, shutdown }
    }

    /// Reads a client's stream into the session until it ends, fails, or the service shuts down. Runs on its own: what has
    /// been read is settled whether or not the client is still there.
    fn read(
        &self,
        request: &Request<Streaming<VotesMessage>>,
        method: &'static str,
    ) -> Result<(Arc<Session>, Reader), Status> {
        let session = Session::of(request.metadata().as_ref(), method);
        let span = session.span();
        let mut inbound = Inbound::of(request)?;
        let (admission, shutdown) = (self.admission.clone(), self.shutdown.clone());
        let reading = session.clone();
        let reader = async move {
            let session = reading;
            // Clients get half of the drain time to finish by themselves.
            let cut_off = async {
                shutdown.cancelled().await;
                tokio::time::sleep(admission.drain / 2).await;
            };
            let read = async {
                let (mut first, mut ended) = (0, false);
                let mut received = Vec::new();
                while !ended {
                    // What has arrived together is admitted together: a message of one vote costs little more than a vote.
                    let mut next = inbound.next().await;
                    let mut bytes = 0;
                    let failed = loop {
                        match next {
                            Ok(Some(frames)) => {
                                bytes += frames.wire_len();
                                received.push(frames);
                            }
                            Ok(None) => {
                                ended = true;
                                break None;
                            }
                            Err(status) => break Some(status),
                        }
                        if bytes >= TOGETHER_BYTES_MAX || received.len() >= TOGETHER_PIECES_MAX {
                            break None;
                        }
                        match inbound.next().now_or_never() {
                            Some(ready) => next = ready,
                            None => break None,
                        }
                    };
                    if !received.is_empty() {
                        session.ready().await;
                        let room = admission.room(&received).await;
                        first += admission.admit(&session, first, &received, room).await;
                        received.clear();
                    }
                    if let Some(status) = failed {
                        return Err(inbound_error(&status, &format_args!("the message after vote {first}")));
                    }
                }
                Ok(())
            };
            let result = tokio::select! {
                result = read => result,
                () = cut_off => Err(Status::unavailable(
                    "the service is shutting down; votes after durable_through were not accepted",
                )),
            };
            session.close();
            result
        };
        let reader = tokio::spawn(reader.instrument(span));
        Ok((session, reader))
    }

    /// Takes the one vote of a message, and waits until it is durable.
    pub(crate) async fn cast(&self, vote: Arc<SingleVote>, message: impl ReceivedVotes + Sync) -> Result<(), Status> {
        let votes = message.votes().take(2).count();
        if votes != 1 {
            let reason = if votes == 0 { "vote is missing" } else { "vote is given twice" };
            return Err(malformed(message.votes().count(), reason));
        }
        let room = self.room_in_time(&message).await?;
        // A client that hangs up cuts nothing in half: until the vote is in its lane it is not accepted, and then the lane has it.
        self.admission.admit(&vote, 0, &[message], room).await;
        vote.settled().await.map_err(rejected)
    }

    /// Room for a single vote, or the refusal. Nearly always there is room, and then no timer is needed.
    async fn room_in_time(&self, message: &impl ReceivedVotes) -> Result<Option<Room>, Status> {
        let mut room = pin!(self.admission.room(std::slice::from_ref(message)));
        if let Some(room) = room.as_mut().now_or_never() {
            return Ok(room);
        }
        tokio::time::timeout(self.admission.unary_patience, room).await.map_err(|_| {
            metrics::rejected(Rejected::Overloaded, 1);
            let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
            Status::with_error_details(Code::ResourceExhausted, "too many votes are waiting; retry later", details)
        })
    }
}

/// How the reader ended.
async fn ended(reader: Reader) -> Result<(), Status> {
    match reader.await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(%error, "the task that reads a client's stream failed");
            Err(Status::internal("internal error"))
        }
    }
}

#[tonic::async_trait]
impl IngestService for Ingest {
    async fn cast_vote(&self, request: Request<VotesMessage>) -> Result<Response<CastVoteResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        self.cast(SingleVote::of(metadata.as_ref()), message).await.map(|()| Response::new(CastVoteResponse {}))
    }

    async fn cast_votes(
        &self,
        request: Request<Streaming<VotesMessage>>,
    ) -> Result<Response<CastVotesResponse>, Status> {
        let (session, reader) = self.read(&request, "CastVotes")?;
        // Detached: if the client hangs up, what it sent is settled all the same.
        let answer = tokio::spawn(async move {
            let mut response = CastVotesResponse::default();
            let mut through = 0;
            while let Some(settled) = session.settled().await {
                through = settled.through;
                response.rejected += settled.rejections.len() as u64;
                let room = REJECTIONS_LISTED_MAX - response.rejections.len();
                response.rejections.extend(settled.rejections.into_iter().take(room));
            }
            response.accepted = through - response.rejected;
            match ended(reader).await {
                Ok(()) => Ok(Response::new(response)),
                Err(status) => Err(Status::new(
                    status.code(),
                    format!(
                        "{}; of the {through} votes before, {} are durable and {} were rejected",
                        status.message(),
                        response.accepted,
                        response.rejected
                    ),
                )),
            }
        });
        answer.await.unwrap_or_else(|error| {
            tracing::error!(%error, "the task that answers a client's stream failed");
            Err(Status::internal("internal error"))
        })
    }

    type StreamVotesStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<StreamVotesResponse, Status>> + Send>>;

    async fn stream_votes(
        &self,
        request: Request<Streaming<VotesMessage>>,
    ) -> Result<Response<Self::StreamVotesStream>, Status> {
        let (session, reader) = self.read(&request, "StreamVotes")?;
        let (answers, outbound) = mpsc::channel(RESPONSES_WAITING_MAX);
        tokio::spawn(async move {
            while let Some(settled) = session.settled().await {
                let response = StreamVotesResponse { durable_through: settled.through, rejections: settled.rejections };
                if answers.send(Ok(response)).await.is_err() {
                    // The client is gone. The votes go on; their answers have nobody to go to.
                    while session.settled().await.is_some() {}
                    return;
                }
            }
            if let Err(status) = ended(reader).await
                && answers.send(Err(status)).await.is_err()
            {
                tracing::debug!("the client left before it was told why its stream ended");
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound))))
    }
}

/// Status of a call that has no single vote to judge, but so many, which count as rejected.
pub(crate) fn malformed(votes: usize, reason: &str) -> Status {
    metrics::rejected(Rejected::Malformed, votes.max(1) as u64);
    Status::invalid_argument(reason)
}

/// Status of a rejected single vote; names the field at fault, if it is one.
fn rejected(rejection: Rejection) -> Status {
    let (code, kind, reason) = (code_of(rejection.code()), rejection.code(), rejection.reason);
    let field = match kind {
        RejectionCode::Malformed => ["poll_id", "user_id", "option_id"].into_iter().find(|id| reason.starts_with(id)),
        RejectionCode::OptionNotFound => Some("option_id"),
        RejectionCode::PollNotFound
        | RejectionCode::PollNotOpen
        | RejectionCode::PollClosed
        | RejectionCode::WrongSource => Some("poll_id"),
        RejectionCode::Unavailable | RejectionCode::OutcomeUnknown | RejectionCode::Unspecified => None,
    };
    match field {
        Some(field) => votestream_service::http::status_of_field(code, field, reason),
        None => Status::new(code, reason),
    }
}

/// Status code of a rejected single vote.
fn code_of(code: RejectionCode) -> Code {
    match code {
        RejectionCode::Malformed | RejectionCode::OptionNotFound => Code::InvalidArgument,
        RejectionCode::PollNotFound => Code::NotFound,
        RejectionCode::PollNotOpen | RejectionCode::PollClosed | RejectionCode::WrongSource => Code::FailedPrecondition,
        RejectionCode::Unavailable => Code::Unavailable,
        RejectionCode::OutcomeUnknown => Code::DeadlineExceeded,
        RejectionCode::Unspecified => Code::Internal,
    }
}

/// What the client is told when a message cannot be read.
pub(crate) fn inbound_error(status: &Status, message: &dyn Display) -> Status {
    let code = status.code();
    // How many votes such a message holds, nobody knows. `Unknown` is a connection that broke, too.
    let unreadable = [Code::OutOfRange, Code::ResourceExhausted, Code::Internal].contains(&code);
    metrics::rejected(Rejected::Malformed, u64::from(unreadable));
    if [Code::OutOfRange, Code::ResourceExhausted].contains(&code) {
        // What a message above the limit is to tonic, too.
        Status::invalid_argument(format!("{message} is larger than {MESSAGE_BYTES_MAX} bytes, the limit of a message"))
    } else if [Code::Internal, Code::Unknown].contains(&code) {
        Status::invalid_argument(format!("{message} cannot be read: {}", status.message()))
    } else {
        Status::new(code, status.message())
    }
}
