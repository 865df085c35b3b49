//! Writes the gRPC answers of this service, without a codec.
//!
//! Owns the bytes of answers and how many refused votes go into one. Must never take a settled vote from its session
//! before the connection asks for more bytes: what a client does not read waits in the session, which has a limit.

use std::{
    fmt::Write as _,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http_body::{Body as HttpBody, Frame};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, uint64},
};
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
use votestream_proto::v1::Rejection;

use crate::session::{Session, Settled};

/// Flag and length of a message.
const HEADER_BYTES: usize = 5;
/// A message without content in its frame: not compressed, of length 0.
const EMPTY_MESSAGE: &[u8] = &[0; HEADER_BYTES];
/// Most refused votes in a response.
const REFUSED_A_RESPONSE_MAX: usize = 512;
/// Largest response that clients accept by default.
const RESPONSE_BYTES_MAX: usize = 4 << 20;

// In the text of a refusal, a character of an id takes at most ten bytes: `\u{10ffff}` stands for four bytes.
const _: () = assert!(
    REFUSED_A_RESPONSE_MAX * (10 * (POLL_ID_BYTES_MAX + OPTION_ID_BYTES_MAX) + 200) < RESPONSE_BYTES_MAX,
    "every client takes the longest response",
);

/// An answer with one message, which may be empty.
pub(crate) fn message(message: &impl Message) -> Response<Body> {
    let bytes = if message.encoded_len() == 0 { Bytes::from_static(EMPTY_MESSAGE) } else { framed(message) };
    respond(Body::new(Once { data: Some(bytes), ended: false }))
}

/// An answer with a message whenever votes of the session are settled, until its reader has ended.
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

/// The trailers of a successful answer.
fn well() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

type Framed = Poll<Option<Result<Frame<Bytes>, Status>>>;

/// A body of one message and the trailers.
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

/// A body with messages about settled votes, and the trailers. It is dropped when the client has left; this ends the
/// reader.
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
            return Poll::Ready(Some(Ok(Frame::data(response(&settled)))));
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

/// Fields of [`StreamVotesResponse`] and of [`Rejection`].
///
/// [`StreamVotesResponse`]: votestream_proto::v1::StreamVotesResponse
const DURABLE_THROUGH: u32 = 1;
const REJECTIONS: u32 = 2;
const INDEX: u32 = 1;
/// Usual size of a refused vote in a response, to choose the size of buffers.
const REJECTION_BYTES: usize = 96;

/// A StreamVotesResponse in its frame, written field by field. Votes that are refused for the same reason share its
/// text.
fn response(settled: &Settled) -> Bytes {
    let mut bytes = Vec::with_capacity(2 * HEADER_BYTES + 8 + settled.refused.len() * REJECTION_BYTES);
    bytes.extend_from_slice(EMPTY_MESSAGE);
    if settled.through > 0 {
        uint64::encode(DURABLE_THROUGH, &settled.through, &mut bytes);
    }
    let (mut last, mut rejection, mut why) = (None, Rejection::default(), Vec::new());
    for refused in &settled.refused {
        if last.replace(&refused.refusal) != Some(&refused.refusal) {
            rejection.code = refused.code().into();
            rejection.reason.clear();
            // Writing to a string cannot fail.
            write!(rejection.reason, "{}", refused.refusal).ok();
            why.clear();
            rejection.encode_raw(&mut why);
        }
        // The index comes first. It is omitted if it is 0.
        let index_len = if refused.index > 0 { uint64::encoded_len(INDEX, &refused.index) } else { 0 };
        encode_key(REJECTIONS, WireType::LengthDelimited, &mut bytes);
        encode_varint((index_len + why.len()) as u64, &mut bytes);
        if refused.index > 0 {
            uint64::encode(INDEX, &refused.index, &mut bytes);
        }
        bytes.extend_from_slice(&why);
    }
    let len = u32::try_from(bytes.len() - HEADER_BYTES).unwrap_or(u32::MAX);
    bytes[1..HEADER_BYTES].copy_from_slice(&len.to_be_bytes());
    bytes.into()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use votestream_core::{PollId, Refusal};
    use votestream_proto::v1::StreamVotesResponse;

    use super::*;
    use crate::refusal::Refused;

    #[test]
    fn a_response_is_what_the_generated_code_makes_of_it() {
        let poll = || PollId::new("p").unwrap();
        let refusals = [
            vec![],
            vec![Refusal::Unreadable],
            vec![Refusal::Closed(poll()), Refusal::Closed(poll()), Refusal::NoSuchPoll(poll()), Refusal::NotStored],
            vec![Refusal::NotOpen(poll()); 200],
        ];
        for refusals in refusals {
            for first in [0, 1, 127, 1 << 40] {
                let refused: VecDeque<_> = (first..)
                    .zip(&refusals)
                    .map(|(index, refusal)| Refused { index, refusal: refusal.clone() })
                    .collect();
                let expected = StreamVotesResponse {
                    durable_through: first,
                    rejections: refused.iter().cloned().map(Into::into).collect(),
                };
                let settled = Settled { through: first, refused, ..Settled::default() };
                assert_eq!(response(&settled), framed(&expected), "{} from {first}", refusals.len());
            }
        }
    }
}
