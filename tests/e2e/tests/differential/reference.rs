//! The reference: the generated service with a simple handler that only applies the rules of the domain.

#![allow(clippy::wildcard_enum_match_arm, reason = "the reference knows the few kinds that it judges by")]

use std::{collections::BTreeMap, net::SocketAddr, pin::Pin, sync::Arc};

use tokio::net::TcpListener;
use tokio_stream::{StreamExt, wrappers::TcpListenerStream};
use tonic::{Code, Request, Response, Status, Streaming, transport::Server};
use votestream_core::{
    Closing, Poll, PollId, PollOption, PollSource, Refusal, Timestamp, UserId, Visibility,
    model::limits::{MESSAGE_BYTES_MAX, SINGLE_VOTE_BYTES_MAX},
    polls::index::IndexedPoll,
};
use votestream_proto::{
    MalformedMessage, ReceivedVotes, VoteBytes, VotesMessage,
    v1::{
        CastVoteResponse, CastVotesResponse, Rejection, RejectionCode, StreamVotesResponse,
        ingest_service_server::{IngestService, IngestServiceServer},
    },
};

/// Rejections that a CastVotesResponse lists, as its .proto says.
const LISTED_MAX: usize = 100;

/// One poll of each kind.
pub(crate) fn polls() -> Vec<Poll> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    let (before, after) = (Timestamp(now - 3_600_000), Timestamp(now + 3_600_000));
    let poll = |id: &str, opens_at, closes_at, source| Poll {
        id: PollId::new(id).unwrap(),
        title: String::new(),
        options: ["a", "b"].map(|id| PollOption { id: id.into(), title: String::new() }).into(),
        opens_at,
        closes_at,
        closing: Closing::No,
        source,
        expected_peak: 1_000,
        buckets: 1,
        visibility: Visibility::Live,
        released_at: None,
        pseudonym_key: None,
        needs_recount: false,
        final_result: None,
    };
    vec![
        poll("open", before, after, PollSource::Ingest),
        poll("closed", before, Timestamp(now - 1_000), PollSource::Ingest),
        poll("later", after, Timestamp(now + 7_200_000), PollSource::Ingest),
        poll("stream", before, after, PollSource::Stream),
    ]
}

struct Reference(BTreeMap<PollId, IndexedPoll>);

/// Serves it on a port that the system chooses.
pub(crate) async fn serve(polls: Vec<Poll>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let polls = polls.into_iter().map(|poll| (poll.id.clone(), IndexedPoll::new(Arc::new(poll)))).collect();
    let service = IngestServiceServer::new(Reference(polls)).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let server = Server::builder().accept_http1(true).layer(tonic_web::GrpcWebLayer::new()).add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    addr
}

impl Reference {
    fn judge(&self, vote: Result<VoteBytes<'_>, MalformedMessage>) -> Result<(), Refusal> {
        let vote = vote.map_err(|_| Refusal::Unreadable)?;
        let id = PollId::new(PollId::check(vote.poll_id)?)?;
        let poll = self.0.get(&id).ok_or(Refusal::NoSuchPoll(id))?;
        UserId::check(vote.user_id)?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
        poll.admits(vote.option_id, Timestamp(now)).map(drop)
    }

    /// Judges the votes of a message. Returns their number, and the refused ones.
    fn judge_all(&self, first: u64, message: &VotesMessage) -> (u64, Vec<Rejection>) {
        let (mut index, mut rejections) = (first, Vec::new());
        for vote in message.votes() {
            if let Err(refusal) = self.judge(vote) {
                let code = match &refusal {
                    Refusal::NoSuchPoll(_) => RejectionCode::PollNotFound,
                    Refusal::NoSuchOption(_) => RejectionCode::OptionNotFound,
                    Refusal::NotOpen(_) => RejectionCode::PollNotOpen,
                    Refusal::Closed(_) => RejectionCode::PollClosed,
                    Refusal::WrongSource(_) => RejectionCode::WrongSource,
                    _ => RejectionCode::Malformed,
                };
                rejections.push(Rejection { index, code: code.into(), reason: refusal.to_string() });
            }
            index += 1;
        }
        (index, rejections)
    }
}

/// The API's answer to a message in a stream that cannot be read.
fn unreadable(status: Status) -> Status {
    match status.code() {
        Code::Internal | Code::OutOfRange | Code::Unknown => Status::invalid_argument(status.message()),
        _ => status,
    }
}

#[tonic::async_trait]
impl IngestService for Reference {
    async fn cast_vote(&self, request: Request<VotesMessage>) -> Result<Response<CastVoteResponse>, Status> {
        let message = request.into_inner();
        if message.wire_len() > SINGLE_VOTE_BYTES_MAX {
            return Err(Status::invalid_argument("the message is too long"));
        }
        let votes = message.votes().collect::<Vec<_>>();
        if let Some(malformed) = votes.iter().find_map(|vote| vote.err()) {
            return Err(Status::invalid_argument(format!("the message cannot be read: {malformed}")));
        }
        let [vote] = votes[..] else {
            let reason = if votes.is_empty() { "vote is missing" } else { "vote is given twice" };
            return Err(Status::invalid_argument(reason));
        };
        let status = |refusal: Refusal| {
            let code = match &refusal {
                Refusal::NoSuchPoll(_) => Code::NotFound,
                Refusal::NotOpen(_) | Refusal::Closed(_) | Refusal::WrongSource(_) => Code::FailedPrecondition,
                _ => Code::InvalidArgument,
            };
            Status::new(code, refusal.to_string())
        };
        self.judge(vote).map(|()| Response::new(CastVoteResponse {})).map_err(status)
    }

    async fn cast_votes(
        &self,
        request: Request<Streaming<VotesMessage>>,
    ) -> Result<Response<CastVotesResponse>, Status> {
        let (mut messages, mut through, mut response) = (request.into_inner(), 0, CastVotesResponse::default());
        while let Some(message) = messages.message().await.map_err(unreadable)? {
            let (end, rejections) = self.judge_all(through, &message);
            through = end;
            response.rejected += rejections.len() as u64;
            response.rejections.extend(rejections);
        }
        response.rejections.truncate(LISTED_MAX);
        response.accepted = through - response.rejected;
        Ok(Response::new(response))
    }

    type StreamVotesStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<StreamVotesResponse, Status>> + Send>>;

    async fn stream_votes(
        &self,
        request: Request<Streaming<VotesMessage>>,
    ) -> Result<Response<Self::StreamVotesStream>, Status> {
        let polls =
            Reference(self.0.iter().map(|(id, poll)| (id.clone(), IndexedPoll::new(poll.poll().clone()))).collect());
        let mut through = 0;
        let judged = request.into_inner().map(move |message| {
            let (durable_through, rejections) = polls.judge_all(through, &message.map_err(unreadable)?);
            let votes = durable_through - through;
            through = durable_through;
            Ok((votes, StreamVotesResponse { durable_through, rejections }))
        });
        // A message without votes has nothing to settle.
        let answers = judged.filter_map(|judged| match judged {
            Ok((0, _)) => None,
            judged => Some(judged.map(|(_, answer)| answer)),
        });
        Ok(Response::new(Box::pin(answers)))
    }
}
