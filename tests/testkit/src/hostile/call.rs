//! A call of any bytes over HTTP/1.1 or HTTP/2. The whole answer is kept.
//!
//! Owns how a client reads gRPC, gRPC-Web and gRPC-Web in text. Must never repair an answer: missing parts stay
//! missing.

use std::{collections::BTreeMap, convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use super::wire;

/// Longest time that an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// First byte of the frame with the trailers of gRPC-Web.
const TRAILERS: u8 = 0x80;

/// The transports of every gRPC method: content type, and whether over HTTP/2.
pub const GRPC_TRANSPORTS: [(&str, bool); 4] = [
    ("application/grpc", true),
    ("application/grpc-web+proto", true),
    ("application/grpc-web+proto", false),
    ("application/grpc-web-text", false),
];

/// All transports: [`GRPC_TRANSPORTS`], and JSON over both versions of HTTP.
pub fn transports() -> impl Iterator<Item = (&'static str, bool)> {
    GRPC_TRANSPORTS.into_iter().chain([("application/json", false), ("application/json", true)])
}

/// The request.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// HTTP/2, or HTTP/1.1.
    pub http2: bool,
    /// The method; POST if empty.
    pub method: &'static str,
    /// The path.
    pub path: String,
    /// Headers, after those that HTTP itself needs.
    pub headers: Vec<(String, String)>,
    /// The pieces in which the body is sent.
    pub body: Vec<Bytes>,
    /// Whether the body does not end.
    pub open: bool,
    /// How long to wait for an answer; a minute if `None`.
    pub patience: Option<Duration>,
    /// A text with which the part of the body ends that is read, for bodies that do not end.
    pub until: Option<&'static str>,
    /// Gets a permit when the first bytes of the body have come.
    pub begun: Option<Arc<Semaphore>>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status; 0 if there was no answer.
    pub status: u16,
    /// Headers.
    pub headers: BTreeMap<String, String>,
    /// Content.
    pub body: Vec<u8>,
    /// Trailers of HTTP.
    pub trailers: Option<BTreeMap<String, String>>,
    /// How it broke, if it did.
    pub broken: Option<String>,
}

/// How a gRPC client reads an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// HTTP status.
    pub http: u16,
    /// The content type.
    pub content_type: String,
    /// gRPC status and its message.
    pub status: Option<(u32, String)>,
    /// Where the status was: `headers`, `trailers` or `body`.
    pub status_in: &'static str,
    /// Messages.
    pub messages: Vec<Vec<u8>>,
    /// How it broke, if it did.
    pub broken: Option<String>,
}

/// Names and values. A value that is not text is converted as well as possible.
fn map(headers: &HeaderMap) -> BTreeMap<String, String> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

/// The causes of an error, in words.
fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl Call {
    /// Sends the call on its own connection.
    ///
    /// # Errors
    ///
    /// If it cannot connect. Later errors are part of the answer.
    pub async fn send(&self, addr: SocketAddr) -> io::Result<Answer> {
        let method = if self.method.is_empty() { "POST" } else { self.method };
        self.send_with(addr, Request::builder().method(method)).await
    }

    /// Sends the call on its own connection, with the method and the headers of this request before its own: headers may
    /// be other bytes than text there.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub async fn send_with(&self, addr: SocketAddr, request: http::request::Builder) -> io::Result<Answer> {
        let stream = TokioIo::new(TcpStream::connect(addr).await?);
        let pieces = self.body.clone().into_iter().map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
        let pieces = stream::iter(pieces);
        let body = match self.open {
            true => StreamBody::new(pieces.chain(stream::pending()).boxed()),
            false => StreamBody::new(pieces.boxed()),
        };
        let uri = if self.http2 { format!("http://{addr}{}", self.path) } else { self.path.clone() };
        let mut request = request.uri(uri);
        if !self.http2 && !self.headers.iter().any(|(name, _)| name == "host") {
            request = request.header("host", addr.to_string());
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(body).map_err(io::Error::other)?;
        let end = Instant::now() + self.patience.unwrap_or(PATIENCE);
        let answered = async {
            let response = if self.http2 {
                let (mut sender, connection) =
                    http2::handshake(TokioExecutor::new(), stream).await.map_err(io::Error::other)?;
                tokio::spawn(connection);
                // Kept until the answer is read; without it the connection would close.
                let response = sender.send_request(request).await;
                return Ok(received(response, self, end).await);
            } else {
                let (mut sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
                tokio::spawn(connection);
                sender.send_request(request).await
            };
            Ok(received(response, self, end).await)
        };
        let nothing = || Ok(Answer { broken: Some("no answer".into()), ..Answer::default() });
        timeout_at(end, answered).await.unwrap_or_else(|_| nothing())
    }
}

/// Reads an answer until it ends, the text has come, or the time is up. What has come by then is kept.
async fn received(response: Result<http::Response<Incoming>, hyper::Error>, call: &Call, end: Instant) -> Answer {
    let response = match response {
        Ok(response) => response,
        Err(error) => return Answer { broken: Some(causes(&error)), ..Answer::default() },
    };
    let (head, mut body) = response.into_parts();
    let mut answer = Answer { status: head.status.as_u16(), headers: map(&head.headers), ..Answer::default() };
    loop {
        // A little earlier than the call is given up, which would lose what has come.
        let Ok(frame) = timeout_at(end - Duration::from_millis(50), body.frame()).await else {
            answer.broken = Some("the body does not end".into());
            break;
        };
        let Some(frame) = frame else { break };
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => {
                if answer.body.is_empty()
                    && !data.is_empty()
                    && let Some(begun) = &call.begun
                {
                    begun.add_permits(1);
                }
                answer.body.extend(data);
                if call.until.is_some_and(|end| String::from_utf8_lossy(&answer.body).contains(end)) {
                    break;
                }
            }
            Ok(Err(frame)) => answer.trailers = frame.trailers_ref().map(map),
            Err(error) => {
                answer.broken = Some(causes(&error));
                break;
            }
        }
    }
    answer
}

impl Answer {
    /// How a gRPC client reads the answer.
    pub fn outcome(&self) -> Outcome {
        let content_type = self.headers.get("content-type").cloned().unwrap_or_default();
        let mut outcome =
            Outcome { http: self.status, broken: self.broken.clone(), content_type, ..Outcome::default() };
        let text = outcome.content_type.starts_with("application/grpc-web-text");
        let body = if text { wire::from_base64(&self.body) } else { Some(self.body.clone()) };
        let Some(body) = body else {
            outcome.broken = Some("the body is no base64".into());
            return outcome;
        };
        let mut in_body = None;
        if outcome.content_type.starts_with("application/grpc") {
            in_body = outcome.read_frames(&body);
        }
        let places =
            [("body", in_body.as_ref()), ("trailers", self.trailers.as_ref()), ("headers", Some(&self.headers))];
        for (place, headers) in places {
            if let Some(code) = headers.and_then(|headers| headers.get("grpc-status")) {
                let message = headers.and_then(|headers| headers.get("grpc-message")).cloned().unwrap_or_default();
                outcome.status = code.parse().ok().map(|code| (code, message));
                outcome.status_in = place;
                break;
            }
        }
        outcome
    }
}

impl Outcome {
    /// Reads the messages of a body. Returns its trailers.
    fn read_frames(&mut self, mut body: &[u8]) -> Option<BTreeMap<String, String>> {
        while let Some(([flag, len @ ..], rest)) = body.split_first_chunk::<5>() {
            let Some((content, rest)) = rest.split_at_checked(u32::from_be_bytes(*len) as usize) else { break };
            body = rest;
            if flag & TRAILERS != 0 {
                let text = String::from_utf8_lossy(content).into_owned();
                let pairs = text.lines().filter_map(|line| line.split_once(':'));
                if !body.is_empty() {
                    self.broken = Some("the trailers are not the last frame".into());
                }
                return Some(pairs.map(|(name, value)| (name.trim().into(), value.trim().into())).collect());
            }
            self.messages.push(content.to_vec());
        }
        if !body.is_empty() {
            self.broken.get_or_insert_with(|| "the body ends within a frame".into());
        }
        None
    }
}
