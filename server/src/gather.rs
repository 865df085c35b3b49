//! Gathers what a connection writes into few system calls.
//!
//! Owns when bytes are written. Must never delay them longer than until every ready task has run once, but for the first
//! frames of a connection. Must never keep those for longer than a moment from a client that may wait for them.
//!
//! Each HTTP/2 call of a connection has its own task. Each answer wakes the connection, and tokio runs it at once.
//! Without this module, the connection would write every answer with its own system call, which is a tenth of a small
//! call. So the first write waits until the ready tasks have run; their answers are written together with it. If no
//! call is running, nothing could be added, and the write does not wait.
//!
//! The library writes the first frame, SETTINGS, before it has read anything. It is kept until the library answers the
//! client's first bytes, which are already here. Then both wait. Most clients send a request in the same moment, and once
//! it is whole they have nothing to do but wait for its answer; so do these frames, up to [`ANSWER_WAIT_MAX`]. A client that
//! sends no request before it has seen SETTINGS waits [`REQUEST_WAIT_MAX`]. For a new connection with one vote this saves a
//! write, one or two reads, and wakeups in the client.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// Head of an HTTP/2 frame: three bytes of length, the kind, and five more.
const FRAME_HEAD_BYTES: usize = 9;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
/// A first frame up to this size is kept. Ours is half as large.
const FIRST_BYTES_MAX: usize = 64;
/// How long the first frames wait for the rest of a request. Clients write the parts of one within microseconds.
const REQUEST_WAIT_MAX: Duration = Duration::from_millis(1);
/// How long they wait for the answer to requests that are whole. On one machine a vote is stored within some milliseconds.
/// A client that wants to know the settings before its second call does not notice so short a time.
const ANSWER_WAIT_MAX: Duration = Duration::from_millis(20);

/// What is known of a connection's calls.
pub(crate) trait Calling {
    /// Whether calls are running.
    fn is_busy(&self) -> bool;

    /// Whether the client has sent whole requests, nothing of another one, and has not closed the connection.
    fn awaits_answers(&self) -> bool;
}

/// A connection whose writes wait until other tasks have run.
pub(crate) struct Gather<C, K> {
    connection: C,
    calling: K,
    /// Whether the next write has already waited.
    waited: bool,
    /// Whether nothing was written yet.
    is_first: bool,
    /// The first frame while it is kept.
    first: Vec<u8>,
    /// Since the first frame is kept, a read has found no more bytes from the client.
    asked: bool,
    /// While the first frames wait.
    wait: Option<Pin<Box<FirstWait>>>,
}

pin_project! {
    /// The first frames wait for a request and its answer.
    struct FirstWait {
        // Whether the client's requests are whole.
        whole: bool,
        #[pin]
        over: Sleep,
    }
}

impl<C, K> Gather<C, K> {
    /// A connection that writes its first frame next.
    pub(crate) fn new(connection: C, calling: K) -> Self {
        Self { connection, calling, waited: false, is_first: true, first: Vec::new(), asked: false, wait: None }
    }
}

impl<C: AsyncWrite + Unpin, K: Calling> Gather<C, K> {
    /// Calls `write` when it is time. `bytes` is the beginning of what it writes.
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        write: impl FnOnce(Pin<&mut C>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if std::mem::take(&mut self.is_first) && is_settings(bytes) {
            self.first = bytes.to_vec();
            return Poll::Ready(Ok(bytes.len()));
        }
        if !self.first.is_empty() && is_greeting(bytes) {
            ready!(self.poll_first_wait(cx));
        }
        if !self.waited && self.calling.is_busy() {
            self.waited = true;
            // A task that wakes itself runs after the other ready tasks.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let written = match ready!(self.write_first(cx, bytes))? {
            0 => ready!(write(Pin::new(&mut self.connection), cx)),
            written => Ok(written),
        };
        self.waited = false;
        Poll::Ready(written)
    }

    /// Ready when the first frames need not wait any longer.
    fn poll_first_wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let new = || Box::pin(FirstWait { whole: false, over: sleep(REQUEST_WAIT_MAX) });
        let mut wait = self.wait.get_or_insert_with(new).as_mut().project();
        match (*wait.whole, self.calling.awaits_answers()) {
            (false, true) => {
                *wait.whole = true;
                wait.over.as_mut().reset(Instant::now() + ANSWER_WAIT_MAX);
            }
            // The client has begun another request, and may be waiting for what the frames allow.
            (true, false) => return Poll::Ready(()),
            (false, false) | (true, true) => {}
        }
        wait.over.poll(cx)
    }

    /// Writes the first frame, if it is kept, followed by `bytes`. Returns how many of `bytes` were written.
    fn write_first(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        while !self.first.is_empty() {
            let both = [IoSlice::new(&self.first), IoSlice::new(bytes)];
            let written = ready!(Pin::new(&mut self.connection).poll_write_vectored(cx, &both))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_first = written.min(self.first.len());
            self.first.drain(..of_first);
            if self.first.is_empty() {
                self.wait = None;
            }
            if written > of_first {
                return Poll::Ready(Ok(written - of_first));
            }
        }
        Poll::Ready(Ok(0))
    }
}

/// Whether these bytes are only frames with which the library answers the first ones of a client.
fn is_greeting(mut bytes: &[u8]) -> bool {
    while let Some(([a, b, c, kind, ..], rest)) = bytes.split_first_chunk::<FRAME_HEAD_BYTES>() {
        let len = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        match rest.split_at_checked(len) {
            Some((_, next)) if [SETTINGS, WINDOW_UPDATE].contains(kind) => bytes = next,
            Some(_) | None => return false,
        }
    }
    bytes.is_empty()
}

/// Whether these bytes are exactly the frame with which the server begins.
fn is_settings(bytes: &[u8]) -> bool {
    let len = bytes.len();
    (FRAME_HEAD_BYTES..=FIRST_BYTES_MAX).contains(&len)
        && bytes.starts_with(&[0, 0, (len - FRAME_HEAD_BYTES) as u8, SETTINGS])
}

impl<C: AsyncWrite + Unpin, K: Calling + Unpin> AsyncWrite for Gather<C, K> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write(cx, bytes, |connection, cx| connection.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bytes.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
        self.get_mut().write(cx, first, |connection, cx| connection.poll_write_vectored(cx, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // The library flushes before it reads, and again when it has read everything that had come.
        if this.asked {
            ready!(this.write_first(cx, &[]))?;
        }
        Pin::new(&mut this.connection).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.write_first(cx, &[]))?;
        Pin::new(&mut this.connection).poll_shutdown(cx)
    }
}

impl<C: AsyncRead + Unpin, K: Unpin> AsyncRead for Gather<C, K> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.connection).poll_read(cx, into);
        this.asked |= read.is_pending() && !this.first.is_empty();
        read
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use futures::FutureExt;
    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// Calls as a test wants them.
    #[derive(Clone, Copy)]
    struct Calls {
        busy: bool,
        awaits: bool,
    }

    impl Calls {
        const NONE: Self = Self { busy: false, awaits: false };
        const BUSY: Self = Self { busy: true, awaits: false };
        const AWAITED: Self = Self { busy: true, awaits: true };
    }

    impl Calling for Calls {
        fn is_busy(&self) -> bool {
            self.busy
        }

        fn awaits_answers(&self) -> bool {
            self.awaits
        }
    }

    #[tokio::test]
    async fn a_write_waits_for_the_tasks_that_are_ready_and_for_no_other() {
        const TASKS: usize = 20;
        let (near, mut far) = duplex(64);
        let ran = Arc::<AtomicUsize>::default();
        let counted = ran.clone();
        let never = tokio::spawn(std::future::pending::<()>());
        let write = tokio::spawn(async move {
            for _ in 0..TASKS {
                let ran = counted.clone();
                tokio::spawn(async move { ran.fetch_add(1, Ordering::Relaxed) });
            }
            Gather::new(near, Calls::BUSY).write_all(b"answer").await.unwrap();
            counted.load(Ordering::Relaxed)
        });
        assert_eq!(write.await.unwrap(), TASKS);
        never.abort();
        let mut written = Vec::new();
        far.read_to_end(&mut written).await.unwrap();
        assert_eq!(written, b"answer");
    }

    #[tokio::test]
    async fn nothing_is_lost_or_moved_where_writes_are_cut() {
        let (near, mut far) = duplex(7);
        let bytes: Vec<u8> = (0..=255).cycle().take(5_000).collect();
        let sent = bytes.clone();
        let write = tokio::spawn(async move {
            let mut near = Gather::new(near, Calls::BUSY);
            let (first, second) = sent.split_at(2_000);
            near.write_all(first).await.unwrap();
            near.flush().await.unwrap();
            let mut rest = second;
            while !rest.is_empty() {
                let (first, second) = rest.split_at(rest.len() / 2);
                let written = near.write_vectored(&[IoSlice::new(first), IoSlice::new(second)]).await.unwrap();
                rest = &rest[written..];
            }
            near.shutdown().await.unwrap();
        });
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        write.await.unwrap();
        assert!(read == bytes);
    }

    /// SETTINGS without a setting.
    const FIRST: &[u8] = &[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];
    /// That the client's were read, and a wider window.
    const ACKNOWLEDGEMENT: &[u8] =
        &[0, 0, 0, SETTINGS, 1, 0, 0, 0, 0, 0, 0, 4, WINDOW_UPDATE, 0, 0, 0, 0, 0, 4, 127, 0, 1];

    #[tokio::test]
    async fn where_no_call_is_under_way_nothing_is_waited_for() {
        let (near, mut far) = duplex(64);
        let mut near = Gather::new(near, Calls::NONE);
        assert!(near.write_all(b"answer").now_or_never().is_some());
        drop(near);
        let mut written = Vec::new();
        far.read_to_end(&mut written).await.unwrap();
        assert_eq!(written, b"answer");
    }

    #[tokio::test]
    async fn the_first_frame_leaves_with_the_next_write_whatever_is_cut() {
        for room in [1, 5, FIRST.len(), 64] {
            let (near, mut far) = duplex(room);
            let write = tokio::spawn(async move {
                let mut near = Gather::new(near, Calls::BUSY);
                near.write_all(FIRST).await.unwrap();
                near.flush().await.unwrap();
                assert!(!near.first.is_empty(), "nothing was read yet");
                near.write_all(b"and more").await.unwrap();
            });
            let mut written = Vec::new();
            far.read_to_end(&mut written).await.unwrap();
            write.await.unwrap();
            assert_eq!(written, [FIRST, b"and more"].concat(), "{room}");
        }
    }

    #[tokio::test]
    async fn a_client_that_waits_for_the_first_frame_gets_it() {
        for closes in [false, true] {
            let (near, mut far) = duplex(64);
            let mut near = Gather::new(near, Calls::BUSY);
            near.write_all(FIRST).await.unwrap();
            if closes {
                near.shutdown().await.unwrap();
            } else {
                assert!(near.read_u8().now_or_never().is_none());
                near.flush().await.unwrap();
            }
            let mut written = [0; FIRST.len()];
            far.read_exact(&mut written).await.unwrap();
            assert_eq!(written, FIRST);
        }
    }

    /// Bytes that are to be written, to which an answer may be added.
    async fn write_more(gather: &mut Gather<DuplexStream, Calls>, bytes: &Mutex<Vec<u8>>) {
        poll_fn(|cx| {
            let mut bytes = bytes.lock();
            let written = ready!(Pin::new(&mut *gather).poll_write(cx, &bytes)).unwrap();
            bytes.drain(..written);
            if bytes.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_frames_leave_with_the_answer_that_the_client_waits_for() {
        let (near, mut far) = duplex(64);
        let mut near = Gather::new(near, Calls::AWAITED);
        near.write_all(FIRST).await.unwrap();
        let bytes = Mutex::new(ACKNOWLEDGEMENT.to_vec());
        let begun = Instant::now();
        assert!(write_more(&mut near, &bytes).now_or_never().is_none());
        assert!(far.read_u8().now_or_never().is_none());
        bytes.lock().extend(b"answer");
        write_more(&mut near, &bytes).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        drop(near);
        let mut written = Vec::new();
        far.read_to_end(&mut written).await.unwrap();
        assert_eq!(written, [FIRST, ACKNOWLEDGEMENT, b"answer"].concat());
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_frame_waits_also_for_a_client_whose_first_bytes_came_late() {
        let (near, mut far) = duplex(64);
        let mut near = Gather::new(near, Calls::AWAITED);
        assert!(near.read_u8().now_or_never().is_none());
        far.write_u8(1).await.unwrap();
        near.read_u8().await.unwrap();
        near.write_all(FIRST).await.unwrap();
        near.flush().await.unwrap();
        assert!(far.read_u8().now_or_never().is_none());
        assert!(near.write_all(ACKNOWLEDGEMENT).now_or_never().is_none());
        assert!(near.read_u8().now_or_never().is_none());
        assert!(far.read_u8().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_frames_wait_only_for_a_moment() {
        for (calls, wait) in
            [(Calls::AWAITED, ANSWER_WAIT_MAX), (Calls::BUSY, REQUEST_WAIT_MAX), (Calls::NONE, REQUEST_WAIT_MAX)]
        {
            for room in [1, 64] {
                let (near, mut far) = duplex(room);
                let mut near = Gather::new(near, calls);
                near.write_all(FIRST).await.unwrap();
                let (begun, bytes) = (Instant::now(), Mutex::new(ACKNOWLEDGEMENT.to_vec()));
                let reading = async {
                    let mut written = vec![0; FIRST.len() + ACKNOWLEDGEMENT.len()];
                    far.read_exact(&mut written).await.unwrap();
                    written
                };
                let ((), written) = tokio::join!(write_more(&mut near, &bytes), reading);
                assert_eq!(written, [FIRST, ACKNOWLEDGEMENT].concat());
                let waited = begun.elapsed();
                assert!(wait <= waited && waited <= wait + Duration::from_millis(1), "{waited:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_frames_do_not_wait_for_a_second_request() {
        let (near, mut far) = duplex(64);
        let mut near = Gather::new(near, Calls::NONE);
        near.write_all(FIRST).await.unwrap();
        let begun = Instant::now();
        for calls in [Calls::NONE, Calls::AWAITED] {
            near.calling = calls;
            assert!(near.write_all(ACKNOWLEDGEMENT).now_or_never().is_none());
        }
        tokio::time::advance(ANSWER_WAIT_MAX / 2).await;
        assert!(near.write_all(ACKNOWLEDGEMENT).now_or_never().is_none());
        near.calling = Calls::BUSY;
        near.write_all(ACKNOWLEDGEMENT).await.unwrap();
        assert_eq!(begun.elapsed(), ANSWER_WAIT_MAX / 2);
        let mut written = vec![0; FIRST.len() + ACKNOWLEDGEMENT.len()];
        far.read_exact(&mut written).await.unwrap();
        assert_eq!(written, [FIRST, ACKNOWLEDGEMENT].concat());
    }

    #[test]
    fn a_greeting_is_nothing_but_settings_and_windows() {
        for greeting in [FIRST, ACKNOWLEDGEMENT] {
            assert!(is_greeting(greeting));
            assert!(!is_greeting(&greeting[..greeting.len() - 1]));
            for kind in [0, 1, 3, 6, 7] {
                assert!(!is_greeting(&[greeting, &[0, 0, 1, kind, 0, 0, 0, 0, 0, 9]].concat()));
            }
        }
    }

    #[tokio::test]
    async fn nothing_but_a_first_frame_is_kept() {
        for other in [&b"HTTP/1.1 100 Continue\r\n\r\n"[..], &[0, 0, 0, 1, 0, 0, 0, 0, 0], &[FIRST, FIRST].concat()] {
            let (near, mut far) = duplex(64);
            let mut near = Gather::new(near, Calls::NONE);
            near.write_all(other).await.unwrap();
            let mut written = vec![0; other.len()];
            far.read_exact(&mut written).await.unwrap();
            assert_eq!(written, other);
        }
    }
}
