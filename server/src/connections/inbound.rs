//! Incoming requests: counts and limits what was received but not read.
//!
//! Owns the count of bytes that were received and not yet read. The HTTP/2 library keeps them: it reads on as long as
//! the streams' windows allow, whether or not anybody reads the streams. Must never take a lock for every frame in
//! order to be exact: what a connection holds is counted in its [`Link`], and reported in steps.
//!
//! DATA frames are counted when they come from the socket, and again when they are read from the bodies of requests.
//! The difference also contains data that the library dropped because its stream had ended. So the difference is reset
//! whenever all bodies of the connection have been read up to what has come: nothing is held then.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::Handle,
    time::{Sleep, sleep, timeout},
};
use tonic::{Status, codegen::StdError};

use super::link::{Link, Room};

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
/// Flag of the last frame of a request, if its kind is one of these two.
const END_STREAM: u8 = 1;

/// Extra time for a service that limits its messages itself: it can answer before its request is cut off here.
const AFTER_THE_SERVICE: Duration = Duration::from_secs(1);

/// Bytes of the first read. The library asks only for the preface, and would need a second system call for what came
/// with it.
const FIRST_READ_BYTES: usize = 1 << 10;

/// How long a connection waits before it looks again whether there is memory.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// Memory that a received frame takes besides its bytes. The library uses the same figure.
pub(crate) const FRAME_OVERHEAD_BYTES: u64 = 256;

/// A stream of bytes whose DATA frames are counted.
pub(crate) struct Metered<C> {
    stream: C,
    ahead: Ahead,
    frames: Frames,
    requests: Requests,
    link: Arc<Link>,
    /// While there is no memory for what would be read.
    pause: Option<Pin<Box<Sleep>>>,
}

/// Bytes that were read and not passed on.
enum Ahead {
    /// Nothing was read yet.
    Unread,
    /// The rest of the first read. Once empty, it stays empty.
    Rest(Bytes),
}

impl<C> Metered<C> {
    pub(crate) fn new(stream: C, link: Arc<Link>) -> Self {
        let frames = Frames::Preface { matched: 0 };
        Self { stream, ahead: Ahead::Unread, frames, requests: Requests::default(), link, pause: None }
    }
}

impl<C: AsyncRead + Unpin> Metered<C> {
    /// Waits until there is memory for more. The library reads on as far as the windows allow before the task can see that its
    /// connection is to end.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.link.room() {
                Room::Now => {
                    self.pause = None;
                    return Poll::Ready(Ok(()));
                }
                // The order to end has woken the task.
                Room::Never => return Poll::Pending,
                Room::Later => {
                    let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(FULL_PAUSE)));
                    ready!(pause.as_mut().poll(cx));
                    self.pause = None;
                }
            }
        }
    }

    fn read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.ahead {
            Ahead::Rest(rest) if rest.is_empty() => Pin::new(&mut self.stream).poll_read(cx, into),
            Ahead::Rest(rest) => {
                into.put_slice(&rest.split_to(rest.len().min(into.remaining())));
                Poll::Ready(Ok(()))
            }
            Ahead::Unread if into.remaining() >= FIRST_READ_BYTES => Pin::new(&mut self.stream).poll_read(cx, into),
            Ahead::Unread => {
                let mut first = [MaybeUninit::uninit(); FIRST_READ_BYTES];
                let mut first = ReadBuf::uninit(&mut first);
                ready!(Pin::new(&mut self.stream).poll_read(cx, &mut first))?;
                let (now, rest) = first.filled().split_at(first.filled().len().min(into.remaining()));
                into.put_slice(now);
                self.ahead = Ahead::Rest(Bytes::copy_from_slice(rest));
                Poll::Ready(Ok(()))
            }
        }
    }
}

/// Finds frames in the bytes that arrive, however they are split.
#[derive(Debug)]
enum Frames {
    /// Within the preface, of which this many bytes have come.
    Preface { matched: usize },
    /// Within a frame: the part of the head that has come, or the number of bytes of the payload that are missing.
    Frame { head: [u8; FRAME_HEAD_BYTES], have: usize, payload: usize },
    /// Not HTTP/2.
    Other,
}

/// The HTTP/2 requests of a connection, as far as their frames tell. It may be wrong for clients that break the rules.
#[derive(Debug, Default)]
struct Requests {
    /// The highest stream that has begun.
    last: u32,
    begun: u32,
    ended: u32,
}

impl Requests {
    /// Notes the head of a frame.
    fn note(&mut self, head: [u8; FRAME_HEAD_BYTES]) {
        let [_, _, _, kind, flags, a, b, c, d] = head;
        if kind == HEADERS {
            let stream = u32::from_be_bytes([a & 0x7f, b, c, d]);
            if stream > self.last {
                self.last = stream;
                self.begun = self.begun.wrapping_add(1);
            }
        }
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            self.ended = self.ended.wrapping_add(1);
        }
    }

    /// Whether there were requests, and all have ended.
    fn are_whole(&self) -> bool {
        self.begun > 0 && self.begun == self.ended
    }
}

impl Frames {
    /// The memory of the DATA frames that begin in these bytes.
    fn walk(&mut self, mut bytes: &[u8], requests: &mut Requests) -> u64 {
        let mut taken = 0;
        while !bytes.is_empty() {
            match self {
                Self::Other => break,
                Self::Preface { matched } => {
                    let count = bytes.len().min(PREFACE.len() - *matched);
                    if bytes[..count] != PREFACE[*matched..*matched + count] {
                        *self = Self::Other;
                        break;
                    }
                    *matched += count;
                    bytes = &bytes[count..];
                    if *matched == PREFACE.len() {
                        *self = Self::Frame { head: [0; FRAME_HEAD_BYTES], have: 0, payload: 0 };
                    }
                }
                Self::Frame { payload, .. } if *payload > 0 => {
                    let count = bytes.len().min(*payload);
                    *payload -= count;
                    bytes = &bytes[count..];
                }
                Self::Frame { head, have, payload } => {
                    let count = bytes.len().min(FRAME_HEAD_BYTES - *have);
                    head[*have..*have + count].copy_from_slice(&bytes[..count]);
                    *have += count;
                    bytes = &bytes[count..];
                    if *have == FRAME_HEAD_BYTES {
                        let [a, b, c, kind, ..] = *head;
                        *payload = u32::from_be_bytes([0, a, b, c]) as usize;
                        *have = 0;
                        requests.note(*head);
                        if kind == DATA {
                            taken += *payload as u64 + FRAME_OVERHEAD_BYTES;
                        }
                    }
                }
            }
        }
        taken
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Metered<C> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_room(cx))?;
        let before = into.filled().len();
        let read = this.read(cx, into);
        let fresh = into.filled().get(before..).unwrap_or_default();
        let taken = this.frames.walk(fresh, &mut this.requests);
        // Whoever has closed the connection waits for no answer.
        let has_closed = fresh.is_empty() && read.is_ready();
        this.link.sent_whole_requests(this.requests.are_whole() && !has_closed);
        if taken > 0 {
            this.link.received(taken);
        }
        read
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Metered<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// How much of a request that nobody reads to its end is read all the same, and for how long. A request that was
/// refused by its head is still on its way. If its stream were given up at once, the rest would come for a stream that is
/// no more; the library counts that as a fault of the client, and closes the connection after some of them: with all calls
/// of others, if a proxy is the client.
const REST_BYTES_MAX: u64 = 64 << 10;
const REST_TIME_MAX: Duration = Duration::from_secs(1);

/// The body of a request, counted as it is read.
#[derive(Debug)]
pub(crate) struct Inbound {
    /// Taken when this is dropped.
    body: Option<Incoming>,
    link: Arc<Link>,
    /// Whether the rest is read after this was dropped: the connection has other calls.
    reads_rest: bool,
    /// Whether the end, or an error, has come.
    is_over: bool,
    /// Whether more of it may have come than was read.
    behind: bool,
    time: Time,
}

/// How long a body may take.
#[derive(Debug)]
enum Time {
    /// Any time: a stream may be silent.
    Any,
    /// This long after the first wait for it.
    Within(Duration),
    /// Until this timer fires.
    Until(Pin<Box<Sleep>>),
}

impl Inbound {
    /// `within` is how long the body may take; `None` for a stream.
    pub(crate) fn new(body: Incoming, link: Arc<Link>, within: Option<Duration>, version: Version) -> Self {
        let behind = !body.is_end_stream();
        if behind {
            link.fell_behind();
        }
        let time = within.map_or(Time::Any, Time::Within);
        // HTTP/1.1 has one request at a time, and its library knows what to do with the rest.
        let reads_rest = version == Version::HTTP_2;
        Self { body: Some(body), link, reads_rest, is_over: !behind, behind, time }
    }

    /// Reads the rest in a task of its own, if there is any.
    fn read_rest(&mut self) {
        if !self.reads_rest || self.is_over {
            return;
        }
        let body = self.body.take().filter(|body| !body.is_end_stream());
        let (Some(body), Ok(runtime)) = (body, Handle::try_current()) else { return };
        let link = self.link.clone();
        let rest =
            Self { body: Some(body), link, reads_rest: false, is_over: false, behind: self.behind, time: Time::Any };
        self.behind = false;
        runtime.spawn(timeout(REST_TIME_MAX, async move {
            let (mut rest, mut bytes) = (rest, 0);
            while let Some(Ok(frame)) = rest.frame().await
                && bytes <= REST_BYTES_MAX
            {
                bytes += frame.data_ref().map_or(0, Bytes::len) as u64 + FRAME_OVERHEAD_BYTES;
            }
        }));
    }

    fn is_behind(&mut self, behind: bool) {
        if behind != self.behind {
            self.behind = behind;
            if behind {
                self.link.fell_behind();
            } else {
                self.link.caught_up();
            }
        }
    }

    /// Ready with an error if the body has not come in time.
    fn poll_time(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        if let Time::Within(within) = self.time {
            self.time = Time::Until(Box::pin(sleep(within + AFTER_THE_SERVICE)));
        }
        let Time::Until(over) = &mut self.time else { return Poll::Pending };
        ready!(over.as_mut().poll(cx));
        Poll::Ready(Status::invalid_argument("the message took too long to arrive"))
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        self.read_rest();
        self.is_behind(false);
    }
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = self.get_mut();
        // It is taken only by the end of this.
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let Poll::Ready(polled) = Pin::new(body).poll_frame(cx) else {
            this.is_behind(false);
            return this.poll_time(cx).map(|status| Some(Err(status.into())));
        };
        let Some(Ok(frame)) = polled else {
            this.is_over = true;
            this.is_behind(false);
            return Poll::Ready(polled.map(|ended| ended.map_err(Into::into)));
        };
        if let Some(data) = frame.data_ref() {
            this.link.read(data.len() as u64 + FRAME_OVERHEAD_BYTES);
        }
        this.is_over = this.is_end_stream();
        this.is_behind(!this.is_over);
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_frames_are_found_however_they_are_cut() {
        let frame = |kind: u8, payload: usize| {
            let mut bytes = (payload as u32).to_be_bytes()[1..].to_vec();
            bytes.extend([kind, 0, 0, 0, 0, 1]);
            bytes.resize(bytes.len() + payload, b'x');
            bytes
        };
        let sent = [
            PREFACE.to_vec(),
            frame(4, 0),
            frame(1, 300),
            frame(DATA, 0),
            frame(DATA, 70_000),
            frame(8, 4),
            frame(DATA, 16),
        ]
        .concat();
        for size in [1, 2, 8, 9, 10, 24, 33, 1_000, usize::MAX] {
            let (mut frames, mut requests) = (Frames::Preface { matched: 0 }, Requests::default());
            let taken: u64 = sent.chunks(size.min(sent.len())).map(|bytes| frames.walk(bytes, &mut requests)).sum();
            assert_eq!(taken, 70_000 + 16 + 3 * FRAME_OVERHEAD_BYTES, "{size}");
        }
    }

    #[test]
    fn requests_are_whole_when_all_that_have_begun_have_ended() {
        let mut requests = Requests::default();
        let mut whole = |kind: u8, flags: u8, stream: u8| {
            requests.note([0, 0, 1, kind, flags, 0, 0, 0, stream]);
            requests.are_whole()
        };
        assert!(!whole(4, END_STREAM, 0), "that is another flag of SETTINGS");
        assert!(whole(HEADERS, END_STREAM, 1));
        assert!(!whole(HEADERS, 0, 3));
        assert!(!whole(DATA, 0, 3));
        assert!(!whole(HEADERS, 0, 5));
        assert!(!whole(DATA, END_STREAM, 3));
        assert!(whole(HEADERS, END_STREAM, 5), "trailers begin no request");
        assert!(!whole(DATA, END_STREAM, 5), "a client that breaks the rules");
    }

    #[test]
    fn other_protocols_are_left_alone() {
        for other in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSN", b"P"] {
            let mut frames = Frames::Preface { matched: 0 };
            let mut requests = Requests::default();
            assert_eq!(frames.walk(other, &mut requests) + frames.walk(&[0; 90], &mut requests), 0);
            assert!(!requests.are_whole());
        }
    }
}
