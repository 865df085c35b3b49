//! Outgoing answers: hands them out in pieces, and counts what waits.
//!
//! Owns how much of an answer the HTTP library holds, and the memory of all answers together. The library asks for the
//! next piece when the client has room for it, and keeps a piece that the client has no room for. So pieces are small.
//! Must cost a small answer nothing: only larger ones are counted.

use std::{
    cell::Cell,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tonic::{Status, body::Body};

use super::link::{Call, Held};

/// Largest piece that is handed out. HTTP/2 frames are not larger unless a client asks for it.
const PIECE_BYTES: usize = 16 << 10;

/// Data up to this size are not counted: for all streams of a connection, this is less than the connection itself
/// takes.
const COUNTED_BYTES: usize = 1 << 10;

thread_local! {
    /// What happened to the answer of the call that is polled on this thread. The answer sets it, and the poller reads
    /// it.
    static TURN: Cell<Turn> = const { Cell::new(Turn { owed: false, taken: false }) };
}

/// What happened to a call's answer in one poll of its task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turn {
    /// The library has not taken the last piece yet, or has not asked whether there is another.
    pub(crate) owed: bool,
    /// The HTTP library asked for a piece.
    pub(crate) taken: bool,
}

impl Turn {
    /// Runs `poll`, and returns what happened in it.
    pub(crate) fn of<T>(owed: bool, poll: impl FnOnce() -> T) -> (T, Self) {
        TURN.set(Self { owed, taken: false });
        let polled = poll();
        (polled, TURN.get())
    }
}

/// An answer's body.
#[derive(Debug)]
pub(crate) struct Outbound {
    body: Body,
    /// What the body returned and is not handed out yet.
    next: Option<Given>,
    /// Pieces that were handed out.
    pieces: usize,
    /// The call runs until the whole answer is handed out.
    call: Call,
}

/// What a body returned.
#[derive(Debug)]
enum Given {
    /// Data that do not count.
    Small(Bytes),
    /// Data that count, as long as the connection is not written off.
    Large(Arc<Held>),
    Trailers(HeaderMap),
    Error(Status),
    End,
}

/// A piece of an answer. The data count until their last piece is written.
#[derive(Debug)]
pub(crate) struct Piece {
    bytes: Bytes,
    _held: Option<Arc<Held>>,
}

impl Outbound {
    pub(crate) fn new(body: Body, call: Call) -> Self {
        let mut this = Self { body, next: None, pieces: 0, call };
        // A body may hold its data in another form, which is as large, and the library does not ask for the data while
        // the client has no room. So make the data at once, and count them. A later poll registers its own waker.
        if let Poll::Ready(given) = this.pull(&mut Context::from_waker(Waker::noop())) {
            this.next = Some(given);
        }
        this
    }

    /// Takes what the body returns next, and counts it.
    fn pull(&mut self, cx: &mut Context<'_>) -> Poll<Given> {
        Poll::Ready(match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) if bytes.len() <= COUNTED_BYTES => Given::Small(bytes),
                Ok(bytes) => Given::Large(Held::new(self.call.link(), bytes)),
                Err(frame) => Given::Trailers(frame.into_trailers().unwrap_or_else(|_| HeaderMap::new())),
            },
            Some(Err(error)) => Given::Error(error),
            None => Given::End,
        })
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, Status>>> {
        let given = match self.next.take() {
            Some(given) => given,
            None => ready!(self.pull(cx)),
        };
        Poll::Ready(match given {
            Given::Small(bytes) => Some(Ok(Frame::data(Piece { bytes, _held: None }))),
            Given::Large(held) => Some(self.cut(held).map(Frame::data)),
            Given::Trailers(trailers) => Some(Ok(Frame::trailers(trailers))),
            Given::Error(error) => Some(Err(error)),
            Given::End => None,
        })
    }

    /// The next piece of these data. Their memory is freed when all pieces are dropped.
    fn cut(&mut self, held: Arc<Held>) -> Result<Piece, Status> {
        let Some((bytes, is_last)) = held.cut(PIECE_BYTES) else {
            return Err(Status::resource_exhausted("the client did not take the answer in time"));
        };
        if !is_last {
            self.next = Some(Given::Large(held.clone()));
        }
        Ok(Piece { bytes, _held: Some(held) })
    }
}

impl http_body::Body for Outbound {
    type Data = Piece;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, Status>>> {
        let this = self.get_mut();
        let next = this.next(cx);
        if next.is_ready() {
            this.pieces += 1;
            // A small answer has one piece and a trailer; its end counts as progress.
            if this.pieces > 2 {
                this.call.link().taken();
            }
        }
        TURN.set(Turn { owed: next.is_ready(), taken: true });
        next
    }

    fn is_end_stream(&self) -> bool {
        match &self.next {
            None => self.body.is_end_stream(),
            Some(given) => matches!(given, Given::End),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let next = match &self.next {
            Some(Given::Small(bytes)) => bytes.len() as u64,
            Some(Given::Large(held)) => held.left(),
            Some(Given::Trailers(_) | Given::Error(_) | Given::End) | None => 0,
        };
        let mut hint = self.body.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(next));
        }
        hint.set_lower(hint.lower().saturating_add(next));
        hint
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        self.bytes.copy_to_bytes(length)
    }
}
