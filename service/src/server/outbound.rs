//! An answer on its way out.
//!
//! Owns how much of an answer the HTTP library holds, and what all answers hold together. The library asks for the next piece when
//! the client has room for it, and keeps a piece that the client has no room for; so pieces are small. Must cost a small answer
//! nothing: only larger ones are counted.

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

/// Largest piece that is handed out: HTTP/2 frames are no larger, unless a client asks for it.
const PIECE_BYTES: usize = 16 << 10;

/// Smaller pieces are not counted: the streams of a connection times this is less than a connection takes anyway.
const COUNTED_BYTES: usize = 1 << 10;

thread_local! {
    /// What the answer of the call that is being polled on this thread says of itself, for whoever polls it.
    static TURN: Cell<Turn> = const { Cell::new(Turn { owed: false, taken: false }) };
}

/// What happened to a call's answer in one turn of its task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turn {
    /// The last piece was not taken yet, or it was not asked whether there is another.
    pub(crate) owed: bool,
    /// The HTTP library came for a piece.
    pub(crate) taken: bool,
}

impl Turn {
    /// Lets `poll` have its turn, and says what happened in it.
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
    /// What the body gave first, before anybody asked for it.
    first: Option<Given>,
    /// What the body gave and is not handed out yet.
    rest: Option<Piece>,
    /// Pieces that were handed out.
    pieces: usize,
    /// It is under way until the answer is handed out.
    call: Call,
}

/// A piece of an answer, counted until the last of its kind is written.
#[derive(Debug)]
pub(crate) struct Piece {
    bytes: Bytes,
    _held: Option<Arc<Held>>,
}

/// What a body gives at a time.
type Given = Option<Result<Frame<Piece>, Status>>;

impl Outbound {
    pub(crate) fn new(body: Body, call: Call) -> Self {
        let mut this = Self { body, first: None, rest: None, pieces: 0, call };
        // A body may hold what it will give in another form, as large as that, and the library does not ask for it while the client
        // has no room. So it is made at once, and counted. Whoever asks later is woken by what comes later.
        if let Poll::Ready(given) = this.pull(&mut Context::from_waker(Waker::noop())) {
            this.first = Some(given);
        }
        this
    }

    /// What the body gives next, counted.
    fn pull(&mut self, cx: &mut Context<'_>) -> Poll<Given> {
        let given = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(given.map(|given| {
            given.map(|frame| match frame.into_data() {
                Ok(bytes) => {
                    let counted = bytes.len() > COUNTED_BYTES;
                    let held = counted.then(|| Held::new(self.call.link(), bytes.len() as u64));
                    Frame::data(Piece { bytes, _held: held })
                }
                Err(frame) => Frame::trailers(frame.into_trailers().unwrap_or_else(|_| HeaderMap::new())),
            })
        }))
    }

    /// The next piece of what the body gave, whose memory is free when all pieces of it are.
    fn cut(&mut self, mut piece: Piece) -> Piece {
        if piece.bytes.len() <= PIECE_BYTES {
            return piece;
        }
        let first = piece.bytes.split_to(PIECE_BYTES);
        let first = Piece { bytes: first, _held: piece._held.clone() };
        self.rest = Some(piece);
        first
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, Status>>> {
        if let Some(rest) = self.rest.take() {
            return Poll::Ready(Some(Ok(Frame::data(self.cut(rest)))));
        }
        let given = match self.first.take() {
            Some(given) => given,
            None => ready!(self.pull(cx)),
        };
        Poll::Ready(given.map(|given| {
            given.map(|frame| match frame.into_data() {
                Ok(piece) => Frame::data(self.cut(piece)),
                Err(trailers) => trailers,
            })
        }))
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
            // Small answers have a piece and a trailer; their end is progress enough.
            if this.pieces > 2 {
                this.call.link().taken();
            }
        }
        TURN.set(Turn { owed: next.is_ready(), taken: true });
        next
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && matches!(self.first, None | Some(None)) && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.iter().flatten().flatten().filter_map(Frame::data_ref);
        let rest = first.chain(&self.rest).map(|piece| piece.bytes.len() as u64).sum::<u64>();
        let mut hint = self.body.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(hint.lower().saturating_add(rest));
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
