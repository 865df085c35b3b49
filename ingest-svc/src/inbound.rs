//! Reads the messages that a client sends in a call from the connection's buffers.
//!
//! Owns how long a message may be, how long it may take, and where its parts wait until it is whole. Must never keep
//! more than [`PART_FREE`] bytes of a message without room for all of it. Must never wait for a client without a limit.

use std::{
    fmt::Display,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http_body::{Body as _, Frame};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tonic::{Code, Status, body::Body, codegen::Bytes};
use tonic_types::{ErrorDetails, StatusExt};
use votestream_core::{
    model::limits::SINGLE_VOTE_BYTES_MAX,
    observe::metrics::{self, Rejected},
};
use votestream_proto::{FrameError, FrameReader, Frames};

use crate::{
    calls::RETRY_AFTER,
    inflight::{WaitingBytes, WaitingPermit},
    refusal::not_stored,
};

/// A message up to this size needs no room while only a part of it has come: the waiting task itself takes as much
/// memory. A single vote is never longer.
const PART_FREE: usize = SINGLE_VOTE_BYTES_MAX;

/// What a call may send, and how long that may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Longest message, in bytes.
    pub(crate) message_bytes_max: usize,
    /// Longest time from the first byte of a message to its last.
    pub(crate) message_time_max: Duration,
    /// Longest time from the beginning of the call to its first message.
    pub(crate) first_message_max: Duration,
    /// Longest time from one message to the next.
    pub(crate) silence_max: Duration,
}

/// Why a call's messages cannot be read any further.
#[derive(Debug)]
pub(crate) enum Unreadable {
    /// A message is longer than the limit, in bytes.
    TooLong(usize),
    /// The frame of a message is not a valid gRPC frame.
    Frame(FrameError),
    /// The call ends within a message.
    CutOff,
    /// A message took longer than this.
    Slow(Duration),
    /// There was no message for this long.
    Silent(Duration),
    /// Too many large messages are being received.
    Crowded,
    /// The connection failed with this status.
    Broken(Status),
}

impl Unreadable {
    /// The status for the client. `message` names the message. Counts the rejection.
    pub(crate) fn status(&self, message: &dyn Display) -> Status {
        let malformed = |reason: String| {
            // The number of votes in such a message is not known, so count one.
            metrics::rejected(Rejected::Malformed, 1);
            Status::invalid_argument(reason)
        };
        match self {
            Self::TooLong(max) => {
                malformed(format!("{message} is larger than {max} bytes, the limit of a message in this call"))
            }
            Self::Frame(error) => malformed(format!("{message} cannot be read: {error}")),
            Self::CutOff => malformed(format!("{message} cannot be read: the call ends within it")),
            Self::Slow(max) => {
                not_stored(format!("{message} did not arrive within {max:?}; it was not stored, send it again"))
            }
            Self::Silent(max) => {
                Status::unavailable(format!("nothing came for {max:?}; every vote before has its answer, call again"))
            }
            Self::Crowded => Status::with_error_details(
                Code::ResourceExhausted,
                format!(
                    "too many large messages are being received; {message} was not stored, send it later or in parts"
                ),
                ErrorDetails::with_retry_info(Some(RETRY_AFTER)),
            ),
            Self::Broken(status) if [Code::Internal, Code::Unknown].contains(&status.code()) => {
                // Either the client sent what the transport does not accept, such as wrong base64; or the connection
                // broke, and nobody reads this.
                metrics::rejected(Rejected::Malformed, u64::from(status.code() == Code::Internal));
                Status::invalid_argument(format!("{message} cannot be read: {}", status.message()))
            }
            Self::Broken(status) => Status::new(status.code(), status.message()),
        }
    }
}

/// Messages that arrived in one piece.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) frames: Frames,
    /// Room for the first of them, if a part of it had to wait for the rest. Keep it until the messages have room in
    /// flight: until then they are counted nowhere else.
    pub(crate) permit: Option<WaitingPermit>,
}

/// Messages of one call.
pub(crate) struct Inbound {
    body: Body,
    frames: FrameReader,
    limits: Limits,
    room: WaitingBytes,
    /// Room for the message of which a part has come.
    permit: Option<WaitingPermit>,
    /// When the present wait for the client began.
    since: Option<Instant>,
    /// Whether a message has come.
    any: bool,
    timer: Timer,
}

impl Inbound {
    /// The messages in the body of a call.
    pub(crate) fn new(body: Body, limits: Limits, room: WaitingBytes) -> Self {
        let frames = FrameReader::new(limits.message_bytes_max);
        Self { body, frames, limits, room, permit: None, since: None, any: false, timer: Timer::default() }
    }

    /// Whether the end has already come. Does not wait.
    pub(crate) fn has_ended(&self) -> bool {
        self.frames.is_between_messages() && self.body.is_end_stream()
    }

    /// The next messages, as many as arrived in one piece; `None` at the end. Nothing is lost if the future is dropped
    /// before it is ready.
    pub(crate) async fn next(&mut self) -> Result<Option<Received>, Unreadable> {
        loop {
            match self.frames.next() {
                Ok(None) => {}
                Ok(Some(frames)) => {
                    (self.since, self.any) = (None, true);
                    return Ok(Some(Received { frames, permit: self.permit.take() }));
                }
                Err(FrameError::TooLong(_)) => return Err(Unreadable::TooLong(self.limits.message_bytes_max)),
                Err(error @ FrameError::Flag(_)) => return Err(Unreadable::Frame(error)),
            }
            self.make_room().await?;
            match self.frame().await? {
                // Trailers of a request have no meaning.
                Some(Ok(frame)) => self.frames.push(frame.into_data().unwrap_or_default()),
                // The client has left. The votes that came before count.
                Some(Err(status)) if status.code() == Code::Cancelled => return Ok(None),
                Some(Err(status)) => return Err(Unreadable::Broken(status)),
                None if self.frames.is_between_messages() => return Ok(None),
                None => return Err(Unreadable::CutOff),
            }
        }
    }

    /// When the present wait began: now, unless it has begun before.
    #[expect(clippy::disallowed_methods, reason = "a wait for a client is measured, no vote is judged by it")]
    fn since(&mut self) -> Instant {
        *self.since.get_or_insert_with(Instant::now)
    }

    /// Waits for room for the rest of a message, before more of it is kept.
    async fn make_room(&mut self) -> Result<(), Unreadable> {
        if let Some(bytes) = self.frames.declared().filter(|&bytes| bytes > PART_FREE)
            && self.permit.is_none()
        {
            let deadline = self.since() + self.limits.message_time_max;
            let permit = timeout_at(deadline, self.room.acquire(bytes)).await.map_err(|_| Unreadable::Crowded)?;
            self.permit = Some(permit);
        }
        Ok(())
    }

    /// The next frame of the body.
    fn frame(&mut self) -> impl Future<Output = Result<Option<Result<Frame<Bytes>, Status>>, Unreadable>> {
        poll_fn(|cx| match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
                if self.frames.is_between_messages() && data.is_some_and(|data| !data.is_empty()) {
                    // A message has begun.
                    self.since = None;
                }
                Poll::Ready(Ok(frame))
            }
            Poll::Pending => self.poll_late(cx).map(Err),
        })
    }

    /// Ready once the client has taken too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Unreadable> {
        let (max, late): (_, fn(Duration) -> Unreadable) = if !self.frames.is_between_messages() {
            (self.limits.message_time_max, Unreadable::Slow)
        } else if self.any {
            (self.limits.silence_max, Unreadable::Silent)
        } else {
            (self.limits.first_message_max, Unreadable::Silent)
        };
        let deadline = self.since() + max;
        self.timer.poll_until(cx, deadline).map(|()| late(max))
    }
}

/// A timer that is seldom set again: as long as messages come in time, only the deadline moves.
#[derive(Default)]
struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, stream};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;
    use votestream_core::model::limits::MESSAGE_BYTES_MAX;
    use votestream_proto::{ReceivedVotes, VotesMessage};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LIMITS: Limits = Limits {
        message_bytes_max: MESSAGE_BYTES_MAX,
        message_time_max: SECOND.saturating_mul(10),
        first_message_max: SECOND.saturating_mul(60),
        silence_max: SECOND.saturating_mul(300),
    };

    fn inbound_with(body: Body, room: usize) -> Inbound {
        Inbound::new(body, LIMITS, WaitingBytes::new(room))
    }

    /// Reads a call with this body. Returns the number of votes, and the result after them.
    async fn read(body: Vec<Result<&[u8], Status>>) -> (usize, Result<(), Unreadable>) {
        let body: Vec<_> = body.into_iter().map(|data| data.map(Bytes::copy_from_slice)).collect();
        let body = Body::new(axum::body::Body::from_stream(stream::iter(body)));
        let (mut inbound, mut votes) = (inbound_with(body, MESSAGE_BYTES_MAX), 0);
        loop {
            match inbound.next().await {
                Ok(Some(received)) => votes += received.frames.votes().count(),
                Ok(None) => return (votes, Ok(())),
                Err(error) => return (votes, Err(error)),
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
    async fn a_call_is_read_to_its_end_or_to_what_is_wrong() {
        let message = message();
        let (first, second) = message.split_at(9);
        let both = [&message[..], &message].concat();
        let too_long = [&[0][..], &(MESSAGE_BYTES_MAX as u32 + 1).to_be_bytes()].concat();
        for (body, votes, wrong) in [
            (vec![], 0, None),
            (vec![Ok(&both[..]), Ok(&message)], 3, None),
            (vec![Ok(&[][..]), Ok(first), Ok(second)], 1, None),
            (vec![Ok(&message), Ok(first)], 1, Some(Code::InvalidArgument)),
            (vec![Ok(&message), Ok(&[1, 0, 0, 0, 0])], 1, Some(Code::InvalidArgument)),
            (vec![Ok(&message), Ok(&too_long)], 1, Some(Code::InvalidArgument)),
            // The client left; the connection broke; the translation of gRPC-Web refused the body.
            (vec![Ok(&message), Ok(first), Err(Status::cancelled(""))], 1, None),
            (vec![Ok(&message), Err(Status::unknown(""))], 1, Some(Code::InvalidArgument)),
            (vec![Ok(&message), Err(Status::internal("no base64"))], 1, Some(Code::InvalidArgument)),
        ] {
            let (read, end) = read(body).await;
            assert_eq!((read, end.err().map(|error| error.status(&"a message").code())), (votes, wrong));
        }
    }

    /// A body that is sent piece by piece.
    fn slowly() -> (mpsc::Sender<Result<Bytes, Status>>, Body) {
        let (pieces, body) = mpsc::channel(64);
        (pieces, Body::new(axum::body::Body::from_stream(ReceiverStream::new(body))))
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_silent_or_slow_is_waited_for_only_so_long() {
        let message = message();
        // The service waits. After the first message, this many bytes of a second one are sent, byte by byte.
        for (first, bytes, max) in [(0, 0, 60), (1, 0, 300), (1, 1, 10), (0, 12, 10)] {
            let (pieces, body) = slowly();
            let mut inbound = inbound_with(body, MESSAGE_BYTES_MAX);
            if first > 0 {
                pieces.send(Ok(Bytes::from(message.clone()))).await.unwrap();
                assert!(inbound.next().await.unwrap().is_some());
            }
            let start = Instant::now();
            let rest = message[..bytes].to_vec();
            tokio::spawn(async move {
                for byte in rest {
                    pieces.send(Ok(Bytes::from(vec![byte]))).await.ok();
                    tokio::time::sleep(SECOND / 2).await;
                }
                // Frames without content do not count as activity.
                while pieces.send(Ok(Bytes::new())).await.is_ok() {
                    tokio::time::sleep(SECOND).await;
                }
            });
            let error = inbound.next().await.unwrap_err();
            assert_eq!(error.status(&"a message").code(), Code::Unavailable);
            let waited = start.elapsed();
            assert!((max * SECOND..max * SECOND + SECOND).contains(&waited), "{first} {bytes}: {waited:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn large_messages_that_are_never_finished_take_no_more_than_their_room() {
        let header = |len: usize| [&[0][..], &(len as u32).to_be_bytes(), &[0; 100]].concat();
        let room = WaitingBytes::new(1 << 20);
        let mut calls = Vec::new();
        for (len, gets_room) in [(600 << 10, true), (600 << 10, false), (PART_FREE / 2, true), (500 << 10, false)] {
            let (pieces, body) = slowly();
            pieces.send(Ok(header(len).into())).await.unwrap();
            let mut inbound = Inbound::new(body, LIMITS, room.clone());
            assert!(inbound.next().now_or_never().is_none());
            let large = len > PART_FREE;
            assert_eq!(inbound.permit.is_some(), gets_room && large, "{len}");
            calls.push((pieces, inbound));
        }
        let (first, mut second) = (calls.remove(0), calls.remove(0));
        let crowded = second.1.next().await.unwrap_err();
        assert_eq!(crowded.status(&"a message").code(), Code::ResourceExhausted);
        drop(first);
        // A client that has left frees its room.
        let (pieces, body) = slowly();
        pieces.send(Ok(header(600 << 10).into())).await.unwrap();
        let mut next = Inbound::new(body, LIMITS, room);
        assert!(next.next().now_or_never().is_none() && next.permit.is_some());
    }
}
