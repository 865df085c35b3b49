//! What a client streams: read from the connection's buffers, past tonic's.
//!
//! Owns the way of a call's body to the task that reads it, and what its errors mean. Must never take the body of a call
//! that tonic reads.

use std::{
    convert::Infallible,
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use http_body_util::BodyExt;
use parking_lot::Mutex;
use tonic::{
    Code, Request, Status,
    body::Body,
    codegen::{Body as _, http},
    server::NamedService,
};
use tower::Service;
use votestream_core::limits::MESSAGE_BYTES_MAX;
use votestream_proto::{FrameError, FrameReader, Frames};

/// Methods whose requests are streams of votes.
const STREAMING: [&str; 2] = ["/votestream.v1.IngestService/StreamVotes", "/votestream.v1.IngestService/CastVotes"];

/// The generated service, which finds the bodies of streams beside their requests. Everything but the messages of these
/// streams is tonic's affair.
#[derive(Clone)]
pub(crate) struct BodiesAside<S>(pub(crate) S);

/// A body beside its request, until somebody takes it. What a request carries has to be `Clone` and `Sync`.
#[derive(Clone)]
struct Aside(Arc<Mutex<Option<Body>>>);

impl<S: NamedService> NamedService for BodiesAside<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for BodiesAside<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if STREAMING.contains(&request.uri().path()) {
            let body = mem::take(request.body_mut());
            request.extensions_mut().insert(Aside(Arc::new(Mutex::new(Some(body)))));
        }
        self.0.call(request)
    }
}

/// Messages of one call.
pub(crate) struct Inbound {
    body: Body,
    frames: FrameReader,
}

impl Inbound {
    /// Of a call that came through [`BodiesAside`].
    pub(crate) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let body = request.extensions().get::<Aside>().and_then(|aside| aside.0.lock().take());
        body.map(Self::new).ok_or_else(|| Status::internal("the body of the call is missing"))
    }

    /// In the body of a call.
    pub(crate) fn new(body: Body) -> Self {
        Self { body, frames: FrameReader::new(MESSAGE_BYTES_MAX) }
    }

    /// Whether the end is known to have come, without waiting for it.
    pub(crate) fn has_ended(&self) -> bool {
        self.frames.is_between_messages() && self.body.is_end_stream()
    }

    /// The next messages, as many as arrived in one piece; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Frames>, Status> {
        loop {
            match self.frames.next() {
                Ok(None) => {}
                Ok(frames) => return Ok(frames),
                Err(error @ FrameError::TooLong(_)) => return Err(Status::out_of_range(error.to_string())),
                Err(error @ FrameError::Flag(_)) => return Err(Status::internal(error.to_string())),
            }
            match self.body.frame().await {
                // Trailers of a request mean nothing.
                Some(Ok(frame)) => self.frames.push(frame.into_data().unwrap_or_default()),
                // The client has hung up: what came before counts.
                Some(Err(status)) if status.code() == Code::Cancelled => return Ok(None),
                Some(Err(status)) => return Err(status),
                None if self.frames.is_between_messages() => return Ok(None),
                None => return Err(Status::internal("the stream ends within a message")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::codegen::Bytes;
    use tower::{ServiceExt, service_fn};
    use votestream_proto::{ReceivedVotes, VotesMessage, v1::ingest_service_server};

    use super::*;

    type Read = (usize, Result<(), Code>);

    /// Sends a call with this body through the service, and reads what the call's handler finds.
    async fn read(path: &str, body: Vec<Result<&[u8], Status>>) -> Result<Read, Code> {
        let body: Vec<_> = body.into_iter().map(|data| data.map(Bytes::copy_from_slice)).collect();
        let body = axum::body::Body::from_stream(futures::stream::iter(body));
        let request = http::Request::post(path).body(Body::new(body)).unwrap();
        let (found, mut read) = tokio::sync::mpsc::unbounded_channel();
        let handler = service_fn(move |request: http::Request<Body>| {
            found.send(Inbound::of(&Request::from_http(request))).unwrap();
            std::future::ready(Ok::<_, Infallible>(http::Response::new(Body::empty())))
        });
        BodiesAside(handler).oneshot(request).await.unwrap();
        let mut inbound = read.recv().await.unwrap().map_err(|status| status.code())?;
        let mut votes = 0;
        loop {
            match inbound.next().await {
                Ok(Some(frames)) => votes += frames.votes().count(),
                Ok(None) => return Ok((votes, Ok(()))),
                Err(status) => return Ok((votes, Err(status.code()))),
            }
        }
    }

    fn message() -> Vec<u8> {
        let mut message = VotesMessage::default();
        message.push("poll", "user", "option");
        let len = message.wire_len() as u32;
        let mut framed = [&[0][..], &len.to_be_bytes()].concat();
        prost::Message::encode(&message, &mut framed).unwrap();
        framed
    }

    #[tokio::test]
    async fn a_stream_is_read_to_its_end_or_to_what_is_wrong() {
        let message = message();
        let (first, second) = message.split_at(9);
        let both = [&message[..], &message].concat();
        let too_long = [&[0][..], &(MESSAGE_BYTES_MAX as u32 + 1).to_be_bytes()].concat();
        for (body, expected) in [
            (vec![], (0, Ok(()))),
            (vec![Ok(&both[..]), Ok(&message)], (3, Ok(()))),
            (vec![Ok(&[][..]), Ok(first), Ok(second)], (1, Ok(()))),
            (vec![Ok(&message), Ok(first)], (1, Err(Code::Internal))),
            (vec![Ok(&message), Ok(&[1, 0, 0, 0, 0])], (1, Err(Code::Internal))),
            (vec![Ok(&message), Ok(&too_long)], (1, Err(Code::OutOfRange))),
            // Hung up, and broken.
            (vec![Ok(&message), Ok(first), Err(Status::cancelled(""))], (1, Ok(()))),
            (vec![Ok(&message), Err(Status::unknown(""))], (1, Err(Code::Unknown))),
        ] {
            assert_eq!(read(STREAMING[0], body).await, Ok(expected));
        }
    }

    #[tokio::test]
    async fn only_streams_of_votes_are_taken_from_tonic() {
        for method in STREAMING {
            assert!(method.starts_with(&format!("/{}/", ingest_service_server::SERVICE_NAME)));
            assert_eq!(read(method, vec![]).await, Ok((0, Ok(()))));
        }
        let single = format!("/{}/CastVote", ingest_service_server::SERVICE_NAME);
        assert_eq!(read(&single, vec![]).await, Err(Code::Internal));
    }
}
