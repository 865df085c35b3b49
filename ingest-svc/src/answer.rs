//! What a call of ours is answered: gRPC responses, written without a codec between.
//!
//! Owns the bytes of answers and how many refused votes go into one. Must never take a settled vote off its session before the
//! connection asks for more bytes: what a client does not read waits in the session, which is bounded.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http_body::{Body as HttpBody, Frame};
use prost::Message;
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Status,
    body::Body,
    codegen::{
        Bytes,
        http::{HeaderMap, HeaderValue, Response, header},
    },
    metadata::GRPC_CONTENT_TYPE,
};
use votestream_core::model::limits::{OPTION_ID_BYTES_MAX, POLL_ID_BYTES_MAX};
use votestream_proto::v1::StreamVotesResponse;

use crate::session::{Session, Settled};

/// Flag and length of a message.
const HEADER_BYTES: usize = 5;
/// A message without content in its frame: not compressed, of length 0.
const EMPTY_MESSAGE: &[u8] = &[0; HEADER_BYTES];
/// Most refused votes in a response.
const REFUSED_A_RESPONSE_MAX: usize = 512;
/// What clients take at the most, unless they are told otherwise.
const RESPONSE_BYTES_MAX: usize = 4 << 20;

// A character of an id takes ten bytes at the most in the text of a refusal, as `\u{10ffff}` does for four.
const _: () = assert!(
    REFUSED_A_RESPONSE_MAX * (10 * (POLL_ID_BYTES_MAX + OPTION_ID_BYTES_MAX) + 200) < RESPONSE_BYTES_MAX,
    "every client takes the longest response",
);

/// The answer that holds one message, or none of content.
pub(crate) fn message(message: &impl Message) -> Response<Body> {
    let bytes = if message.encoded_len() == 0 { Bytes::from_static(EMPTY_MESSAGE) } else { framed(message) };
    respond(Body::new(Once { data: Some(bytes), ended: false }))
}

/// The answer that goes on as votes of the session are settled, until its reader has ended.
pub(crate) fn stream(session: Arc<Session>, reader: AbortOnDropHandle<Result<(), Status>>) -> Response<Body> {
    respond(Body::new(Answers { session, reader, ended: false }))
}

fn respond(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}

/// A message in its frame.
fn framed(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + len);
    bytes.push(0);
    bytes.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    message.encode_raw(&mut bytes);
    bytes.into()
}

/// The end of an answer that went well.
fn well() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

type Framed = Poll<Option<Result<Frame<Bytes>, Status>>>;

/// A message and the end.
struct Once {
    data: Option<Bytes>,
    ended: bool,
}

impl HttpBody for Once {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Framed {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = (!std::mem::replace(&mut self.ended, true)).then(|| Ok(Frame::trailers(well())));
        Poll::Ready(trailers)
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// Messages as votes are settled, and the end. Whoever drops it, because the client has left, ends the reader.
struct Answers {
    session: Arc<Session>,
    reader: AbortOnDropHandle<Result<(), Status>>,
    ended: bool,
}

impl HttpBody for Answers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Framed {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(settled) = ready!(self.session.poll_settled(cx, REFUSED_A_RESPONSE_MAX)) {
            return Poll::Ready(Some(Ok(Frame::data(framed(&response(settled))))));
        }
        let ended = ready!(Pin::new(&mut self.reader).poll(cx)).unwrap_or_else(|error| {
            tracing::error!(%error, "the task that reads a client's stream failed");
            Err(Status::internal("internal error"))
        });
        self.ended = true;
        let trailers = match ended {
            Ok(()) => well(),
            Err(status) => {
                let mut trailers = HeaderMap::with_capacity(3);
                status.add_header(&mut trailers)?;
                trailers
            }
        };
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

fn response(settled: Settled) -> StreamVotesResponse {
    StreamVotesResponse {
        durable_through: settled.through,
        rejections: settled.refused.into_iter().map(Into::into).collect(),
    }
}
