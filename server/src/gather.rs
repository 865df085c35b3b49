//! Gathers what a connection writes into few system calls.
//!
//! Owns when bytes are written. Must never delay them longer than until every ready task has run once. Must never keep
//! the server's first frame from a client that waits for it.
//!
//! Each HTTP/2 call of a connection has its own task. Each answer wakes the connection, and tokio runs it at once.
//! Without this module, the connection would write every answer with its own system call, which is a tenth of a small
//! call. So the first write waits until the ready tasks have run; their answers are written together with it. If no
//! call is running, nothing could be added, and the write does not wait.
//!
//! The library writes the first frame, SETTINGS, before it has read anything. It is kept until the library answers the
//! client's first bytes, which are already here. That saves a write, and a wakeup in the client.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Head of an HTTP/2 frame: three bytes of length, the kind, and five more.
const FRAME_HEAD_BYTES: usize = 9;
const SETTINGS: u8 = 4;
/// A first frame up to this size is kept. Ours is half as large.
const FIRST_BYTES_MAX: usize = 64;

/// A connection whose writes wait until other tasks have run.
pub(crate) struct Gather<C, B> {
    connection: C,
    /// Whether calls are running.
    is_busy: B,
    /// Whether the next write has already waited.
    waited: bool,
    /// Whether nothing was written yet.
    is_first: bool,
    /// The first frame while it is kept.
    first: Vec<u8>,
    /// Since the first frame is kept, a read has found no more bytes from the client.
    asked: bool,
}

impl<C, B> Gather<C, B> {
    /// `is_busy` says whether calls of the connection are running.
    pub(crate) fn new(connection: C, is_busy: B) -> Self {
        Self { connection, is_busy, waited: false, is_first: true, first: Vec::new(), asked: false }
    }
}

impl<C: AsyncWrite + Unpin, B: Fn() -> bool> Gather<C, B> {
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
        if !self.waited && (self.is_busy)() {
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
            if written > of_first {
                return Poll::Ready(Ok(written - of_first));
            }
        }
        Poll::Ready(Ok(0))
    }
}

/// Whether these bytes are exactly the frame with which the server begins.
fn is_settings(bytes: &[u8]) -> bool {
    let len = bytes.len();
    (FRAME_HEAD_BYTES..=FIRST_BYTES_MAX).contains(&len)
        && bytes.starts_with(&[0, 0, (len - FRAME_HEAD_BYTES) as u8, SETTINGS])
}

impl<C: AsyncWrite + Unpin, B: Fn() -> bool + Unpin> AsyncWrite for Gather<C, B> {
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

impl<C: AsyncRead + Unpin, B: Unpin> AsyncRead for Gather<C, B> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.connection).poll_read(cx, into);
        this.asked |= read.is_pending();
        read
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

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
            Gather::new(near, || true).write_all(b"answer").await.unwrap();
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
            let mut near = Gather::new(near, || true);
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

    #[tokio::test]
    async fn where_no_call_is_under_way_nothing_is_waited_for() {
        let (near, mut far) = duplex(64);
        let mut near = Gather::new(near, || false);
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
                let mut near = Gather::new(near, || true);
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
            let mut near = Gather::new(near, || true);
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

    #[tokio::test]
    async fn nothing_but_a_first_frame_is_kept() {
        for other in [&b"HTTP/1.1 100 Continue\r\n\r\n"[..], &[0, 0, 0, 1, 0, 0, 0, 0, 0], &[FIRST, FIRST].concat()] {
            let (near, mut far) = duplex(64);
            let mut near = Gather::new(near, || false);
            near.write_all(other).await.unwrap();
            let mut written = vec![0; other.len()];
            far.read_exact(&mut written).await.unwrap();
            assert_eq!(written, other);
        }
    }
}
