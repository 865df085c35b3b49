//! One vote, one call: over a connection of its own, or over one that calls share.
//!
//! Owns the forms of the calls, and what an answer says of its vote. Must never make a call twice, and never take an answer
//! for more than it says.

use std::{
    error::Error,
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Poll as Readiness},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, TryFutureExt, future::BoxFuture};
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Status, body::Body, codegen::Service};
use votestream_client::{
    DialError, Dialer, Http, Outcome, VotesMessage, v1::ingest_service_client::IngestServiceClient,
};
use votestream_server::http::name_of;

use super::{
    Poll,
    count::{Counts, Fate, Reason},
    tokens::Voter,
};
use crate::{
    args::Protocol,
    failure::{Failure, innermost},
};

/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// How long the end of a connection may take before it is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// What a phone calls itself.
const USER_AGENT: &str = concat!("votestream-load/", env!("CARGO_PKG_VERSION"));

/// Kind of a call whose answer did not come in time.
const TIMEOUT: &str = "timeout";

/// Kind of a call that was answered, but not as the service answers.
const NOT_OURS: &str = "unexpected_answer";

type GrpcSender = http2::SendRequest<Body>;
type JsonSender = http1::SendRequest<Full<Bytes>>;

/// What the calls of a run share.
pub(super) struct Caller {
    dialer: Dialer,
    origin: Uri,
    poll: Poll,
    connections: Connections,
    timeout: Duration,
}

/// Whose connections there are.
enum Connections {
    /// Each call has its own.
    New(Protocol),
    /// Calls take turns over these; each carries several at a time.
    Grpc { slots: Vec<tokio::sync::Mutex<Option<GrpcSender>>>, next: AtomicUsize },
    /// Calls borrow one of these; each carries one at a time.
    Json(Mutex<Vec<JsonSender>>),
}

/// A vote to cast.
pub(super) struct Ballot {
    pub(super) voter: Voter,
    /// Index of the option.
    pub(super) option: usize,
}

/// What has become of a vote, and why.
pub(super) type Answer = (Fate, Option<Reason>);

fn failed(fate: Fate, kind: &'static str, text: impl Into<String>) -> Answer {
    (fate, Some(Reason { kind: kind.into(), text: text.into() }))
}

impl Caller {
    /// Calls that have a connection each, or share as many as that.
    pub(super) fn new(
        dialer: Dialer,
        protocol: Protocol,
        shared: Option<u32>,
        timeout: Duration,
        poll: Poll,
    ) -> Result<Self, Failure> {
        let url = dialer.address().url();
        let origin = url.parse().map_err(|error| Failure::usage(format!("{url}: {error}")))?;
        let connections = match (shared, protocol) {
            (None, protocol) => Connections::New(protocol),
            (Some(count), Protocol::Grpc) => {
                Connections::Grpc { slots: (0..count).map(|_| None.into()).collect(), next: AtomicUsize::new(0) }
            }
            (Some(_), Protocol::Json) => Connections::Json(Mutex::default()),
        };
        Ok(Self { dialer, origin, poll, connections, timeout })
    }

    /// The version of HTTP of a protocol.
    pub(super) const fn http(protocol: Protocol) -> Http {
        match protocol {
            Protocol::Grpc => Http::Two,
            Protocol::Json => Http::One,
        }
    }

    /// Opens the connections that calls share, before anything is measured.
    pub(super) async fn open(&self, count: u32, counts: &Mutex<Counts>) -> Result<(), Failure> {
        let url = self.dialer.address().url();
        let unreachable =
            |reason: Reason| Failure::failed(format!("cannot reach the ingest service at {url}: {}", reason.text));
        match &self.connections {
            Connections::New(_) => {}
            Connections::Grpc { slots, .. } => {
                for slot in slots {
                    *slot.lock().await = Some(self.open_grpc(counts).await.map_err(unreachable)?);
                }
            }
            Connections::Json(idle) => {
                for _ in 0..count {
                    let opened = self.open_json(counts).await.map_err(unreachable)?;
                    idle.lock().push(opened);
                }
            }
        }
        Ok(())
    }

    /// Casts a vote, notes what has become of it since it was due, and closes its connection if it is its own.
    pub(super) async fn cast(&self, ballot: Ballot, due: Instant, counts: &Mutex<Counts>) {
        let deadline = Instant::now() + self.timeout;
        let settle = |(fate, reason): Answer| counts.lock().settled(fate, reason, due.elapsed());
        match &self.connections {
            Connections::New(Protocol::Grpc) => self.once_grpc(ballot, deadline, counts, settle).await,
            Connections::New(Protocol::Json) => self.once_json(ballot, deadline, counts, settle).await,
            Connections::Grpc { slots, next } => {
                let slot = &slots[next.fetch_add(1, Ordering::Relaxed) % slots.len()];
                settle(self.shared_grpc(slot, ballot, deadline, counts).await);
            }
            Connections::Json(idle) => settle(self.shared_json(idle, ballot, deadline, counts).await),
        }
    }

    async fn once_grpc(&self, ballot: Ballot, deadline: Instant, counts: &Mutex<Counts>, settle: impl FnOnce(Answer)) {
        let transport = match self.dial(deadline, counts).await {
            Ok(transport) => transport,
            Err(reason) => return settle((Fate::NotSent, Some(reason))),
        };
        let (sender, connection) = match http2::handshake(TokioExecutor::new(), TokioIo::new(transport)).await {
            Ok(opened) => opened,
            Err(error) => return settle(failed(Fate::NotSent, "connection_broken", innermost(&error))),
        };
        drive(connection.unwrap_or_else(drop), self.call_grpc(sender, ballot, deadline), settle).await;
    }

    async fn once_json(&self, ballot: Ballot, deadline: Instant, counts: &Mutex<Counts>, settle: impl FnOnce(Answer)) {
        let transport = match self.dial(deadline, counts).await {
            Ok(transport) => transport,
            Err(reason) => return settle((Fate::NotSent, Some(reason))),
        };
        let (mut sender, connection) = match http1::handshake(TokioIo::new(transport)).await {
            Ok(opened) => opened,
            Err(error) => return settle(failed(Fate::NotSent, "connection_broken", innermost(&error))),
        };
        let call = async move { self.call_json(&mut sender, ballot, deadline).await };
        drive(connection.unwrap_or_else(drop), call, settle).await;
    }

    async fn shared_grpc(
        &self,
        slot: &tokio::sync::Mutex<Option<GrpcSender>>,
        ballot: Ballot,
        deadline: Instant,
        counts: &Mutex<Counts>,
    ) -> Answer {
        // Whoever finds the connection broken opens another one, and the others wait for that.
        let found = timeout_at(deadline, async {
            let mut slot = slot.lock().await;
            match &*slot {
                Some(sender) if !sender.is_closed() => Ok(sender.clone()),
                Some(_) | None => self.open_grpc(counts).await.map(|sender| slot.insert(sender).clone()),
            }
        });
        match found.await {
            Ok(Ok(sender)) => self.call_grpc(sender, ballot, deadline).await,
            Ok(Err(reason)) => (Fate::NotSent, Some(reason)),
            Err(_) => failed(Fate::NotSent, "connect_timeout", "no connection came about in time"),
        }
    }

    async fn shared_json(
        &self,
        idle: &Mutex<Vec<JsonSender>>,
        ballot: Ballot,
        deadline: Instant,
        counts: &Mutex<Counts>,
    ) -> Answer {
        let found = idle.lock().pop();
        let mut sender = match found {
            Some(sender) if !sender.is_closed() => sender,
            Some(_) | None => match self.open_json(counts).await {
                Ok(sender) => sender,
                Err(reason) => return (Fate::NotSent, Some(reason)),
            },
        };
        let answer = self.call_json(&mut sender, ballot, deadline).await;
        // One whose answer did not come in time would bring it to the next call. A broken one is found to be closed.
        if answer.1.as_ref().is_none_or(|reason| reason.kind != TIMEOUT) {
            idle.lock().push(sender);
        }
        answer
    }

    async fn open_grpc(&self, counts: &Mutex<Counts>) -> Result<GrpcSender, Reason> {
        let transport = self.dial(Instant::now() + self.timeout, counts).await?;
        // Until the server has said how many calls it takes at a time, one: it refuses those that are too many.
        let mut builder = http2::Builder::new(TokioExecutor::new());
        let opened = builder.initial_max_send_streams(1).handshake(TokioIo::new(transport)).await;
        let (sender, connection) = opened.map_err(|error| broken(&error))?;
        // It ends with its last sender.
        tokio::spawn(connection.unwrap_or_else(drop));
        Ok(sender)
    }

    async fn open_json(&self, counts: &Mutex<Counts>) -> Result<JsonSender, Reason> {
        let transport = self.dial(Instant::now() + self.timeout, counts).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(transport)).await.map_err(|error| broken(&error))?;
        tokio::spawn(connection.unwrap_or_else(drop));
        Ok(sender)
    }

    async fn dial(&self, deadline: Instant, counts: &Mutex<Counts>) -> Result<votestream_client::Transport, Reason> {
        let dialed = timeout_at(deadline, self.dialer.dial()).await;
        let dialed =
            dialed.unwrap_or(Err(DialError::ConnectTimeout(self.timeout))).map_err(|error| undialled(&error))?;
        counts.lock().connected(dialed.connect, dialed.tls);
        Ok(dialed.transport)
    }

    async fn call_grpc(&self, sender: GrpcSender, ballot: Ballot, deadline: Instant) -> Answer {
        let mut message = VotesMessage::default();
        let user_id = ballot.voter.user_id.as_ref().map_or("", |user_id| user_id.as_str());
        message.push(&self.poll.id, user_id, &self.poll.options[ballot.option]);
        let mut request = tonic::Request::new(message);
        if let Some(token) = &ballot.voter.token {
            request.metadata_mut().insert("authorization", token.authorization());
        }
        let mut client = IngestServiceClient::with_origin(Sender(sender), self.origin.clone());
        match timeout_at(deadline, client.cast_vote(request)).await {
            Ok(Ok(_)) => (Fate::Accepted, None),
            Ok(Err(status)) => of_status(&status),
            Err(_) => failed(Fate::Unknown, TIMEOUT, "no answer came in time"),
        }
    }

    async fn call_json(&self, sender: &mut JsonSender, ballot: Ballot, deadline: Instant) -> Answer {
        let request = match self.json(&ballot) {
            Ok(request) => request,
            Err(error) => return failed(Fate::NotSent, "request", error),
        };
        let call = async {
            // One that is shared may still be at the end of the answer before.
            sender.ready().await?;
            let answer = sender.send_request(request).await?;
            let (head, body) = answer.into_parts();
            // Without its whole body an answer proves nothing.
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            Ok((head.status, body.map(|body| body.to_bytes()).unwrap_or_default()))
        };
        match timeout_at(deadline, call).await {
            Ok(Ok((status, body))) => of_http(status, &body),
            Ok(Err(error)) => (Fate::Unknown, Some(broken(&error))),
            Err(_) => failed(Fate::Unknown, TIMEOUT, "no answer came in time"),
        }
    }

    fn json(&self, ballot: &Ballot) -> Result<Request<Full<Bytes>>, String> {
        #[derive(Serialize)]
        struct Vote<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            user_id: Option<&'a str>,
            option_id: &'a str,
        }

        let user_id = ballot.voter.user_id.as_ref().map(|user_id| user_id.as_str());
        let vote = Vote { user_id, option_id: &self.poll.options[ballot.option] };
        let body = serde_json::to_vec(&vote).map_err(|error| error.to_string())?;
        let host = self.origin.authority().map_or("", |authority| authority.as_str());
        // Ids of polls have no characters that a path would need to escape.
        let mut request = Request::post(format!("/v1/polls/{}/votes", self.poll.id))
            .header(header::HOST, host)
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT, "*/*")
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &ballot.voter.token {
            request = request.header(header::AUTHORIZATION, token.authorization().as_encoded_bytes());
        }
        request.body(Full::from(body)).map_err(|error| error.to_string())
    }
}

/// Makes a call over a connection that only it has: moves the connection's bytes until there is an answer, and then until it
/// is closed.
async fn drive(connection: impl Future<Output = ()>, call: impl Future<Output = Answer>, settle: impl FnOnce(Answer)) {
    let mut connection = pin!(connection.fuse());
    {
        let mut call = pin!(call);
        let answer = tokio::select! {
            biased;
            answer = &mut call => answer,
            // What came before the end is in the call's hands.
            () = &mut connection => call.await,
        };
        settle(answer);
    }
    // The sender is gone with the call, so the connection closes.
    if timeout(CLOSE_TIMEOUT, connection).await.is_err() {
        tracing::debug!("a connection did not close in time");
    }
}

/// Sends the requests of a gRPC client over one connection.
#[derive(Clone)]
struct Sender(GrpcSender);

impl Service<Request<Body>> for Sender {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Response<Incoming>, hyper::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Readiness<Result<(), hyper::Error>> {
        // If the connection is gone, the call says so, with the reason.
        self.0.poll_ready(cx).map(|_| Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.send_request(request).boxed()
    }
}

fn broken(error: &hyper::Error) -> Reason {
    Reason { kind: "connection_broken".into(), text: format!("the connection broke: {}", innermost(error)) }
}

/// Why there is no connection.
fn undialled(error: &DialError) -> Reason {
    use std::io::ErrorKind;
    /// `EMFILE`: the process has as many files open as it may.
    const TOO_MANY_FILES: i32 = 24;

    let kind = match error {
        DialError::Name(_) => "name_not_resolved",
        DialError::Connect(error) if error.kind() == ErrorKind::ConnectionRefused => "connect_refused",
        // All ports of this machine towards that address are in use, or were until a minute ago.
        DialError::Connect(error) if error.kind() == ErrorKind::AddrNotAvailable => "no_local_port",
        DialError::Connect(error) if error.raw_os_error() == Some(TOO_MANY_FILES) => "too_many_files",
        DialError::Connect(_) => "connect_failed",
        DialError::ConnectTimeout(_) => "connect_timeout",
        DialError::Tls(_) | DialError::Protocol(_) => "tls_failed",
        DialError::TlsTimeout(_) => "tls_timeout",
    };
    Reason { kind: kind.into(), text: error.to_string() }
}

/// What the status that ended a call says of its vote.
fn of_status(status: &Status) -> Answer {
    let fate = match Outcome::of_call(status) {
        Outcome::Durable => Fate::Accepted,
        Outcome::Rejected { .. } => Fate::Rejected,
        Outcome::Unknown { .. } => Fate::Unknown,
    };
    if let Some(cause) = status.source() {
        return failed(fate, "connection_broken", format!("the connection broke: {}", innermost(cause)));
    }
    failed(fate, name_of(status.code()), status.message())
}

/// What an answer over HTTP says of its vote. Only what is the client's fault was certainly not stored: of a 503 JSON does not say whether
/// the service or a proxy wrote it, nor whether the call was cut off.
fn of_http(status: StatusCode, body: &[u8]) -> Answer {
    #[derive(Deserialize)]
    struct Refused {
        error: Fields,
    }
    #[derive(Deserialize)]
    struct Fields {
        message: String,
    }

    if status == StatusCode::OK {
        // The service says so with an object that is empty. Whatever else answers with 200, such as the page of a network
        // that wants a login, has stored nothing.
        let is_durable = serde_json::from_slice(body).is_ok_and(|said: serde_json::Map<_, _>| said.is_empty());
        return match is_durable {
            true => (Fate::Accepted, None),
            false => failed(Fate::Unknown, NOT_OURS, "the answer with status 200 is not one of the service"),
        };
    }
    let is_refused = status.is_client_error() && status != StatusCode::REQUEST_TIMEOUT;
    let fate = if is_refused { Fate::Rejected } else { Fate::Unknown };
    let said = serde_json::from_slice(body).map(|refused: Refused| refused.error.message);
    let text = said.unwrap_or_else(|_| format!("HTTP {status}"));
    (fate, Some(Reason { kind: format!("HTTP_{}", status.as_u16()).into(), text }))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn kind((fate, reason): Answer) -> (Fate, String) {
        (fate, reason.map(|reason| reason.kind.into_owned()).unwrap_or_default())
    }

    #[test]
    fn only_what_was_certainly_not_stored_is_rejected() {
        let of = |code: u16| kind(of_http(StatusCode::from_u16(code).unwrap(), b"{}"));
        assert_eq!(of(200), (Fate::Accepted, String::new()));
        for rejected in [400, 401, 403, 404, 409, 429] {
            assert_eq!(of(rejected), (Fate::Rejected, format!("HTTP_{rejected}")));
        }
        for unknown in [201, 204, 302, 408, 500, 502, 503, 504] {
            assert_eq!(of(unknown), (Fate::Unknown, format!("HTTP_{unknown}")));
        }
        let status = |status: Status| kind(of_status(&status));
        assert_eq!(status(Status::unauthenticated("no")), (Fate::Rejected, "UNAUTHENTICATED".into()));
        assert_eq!(status(Status::failed_precondition("closed")), (Fate::Rejected, "FAILED_PRECONDITION".into()));
        assert_eq!(status(Status::unavailable("a proxy")), (Fate::Unknown, "UNAVAILABLE".into()));
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(status(Status::from_error(Box::new(reset))), (Fate::Unknown, "connection_broken".into()));
    }

    #[test]
    fn only_the_answer_of_the_service_counts_as_accepted() {
        for foreign in [&b""[..], b"<html>login</html>", b"{\"foo\": 1}", b"{\"Quota\":", b"[]", b"null"] {
            assert_eq!(kind(of_http(StatusCode::OK, foreign)), (Fate::Unknown, NOT_OURS.into()));
        }
    }

    #[test]
    fn the_reason_of_a_refusal_is_what_the_service_says() {
        let body = br#"{"error": {"code": "NOT_FOUND", "message": "there is no poll \"p\""}}"#;
        let (_, reason) = of_http(StatusCode::NOT_FOUND, body);
        assert_eq!(reason.unwrap().text, "there is no poll \"p\"");
        let (_, reason) = of_http(StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(reason.unwrap().text, "HTTP 502 Bad Gateway");
    }

    #[test]
    fn ways_to_have_no_connection_are_told_apart() {
        let of = |error: io::Error| undialled(&DialError::Connect(error)).kind;
        assert_eq!(of(io::ErrorKind::ConnectionRefused.into()), "connect_refused");
        assert_eq!(of(io::ErrorKind::AddrNotAvailable.into()), "no_local_port");
        assert_eq!(of(io::Error::from_raw_os_error(24)), "too_many_files");
        assert_eq!(of(io::ErrorKind::NetworkUnreachable.into()), "connect_failed");
        assert_eq!(undialled(&DialError::TlsTimeout(CLOSE_TIMEOUT)).kind, "tls_timeout");
    }
}
