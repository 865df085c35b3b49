//! What a connection writes, gathered into few writes.
//!
//! Owns when bytes leave. Must never keep them for longer than it takes to let every task that is ready have its turn, nor
//! keep the server's first frame from a client that waits for it.
//!
//! HTTP/2 answers of a connection's calls come from a task each, and each wakes the connection, which tokio lets run at once.
//! Left to itself, it writes every answer with a system call of its own, which is a tenth of a small call. So a write that comes
//! first waits behind the tasks that are ready; whatever they answer leaves with it. Where no call is under way, nothing could
//! leave with it, and it does not wait.
//!
//! The first frame, SETTINGS, comes before the library has read anything. It leaves with what the library has to say about the
//! client's first bytes, which are here already: a write less, and a wakeup less for the client.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Head of an HTTP/2 frame: three bytes of length, the kind, and five more.
const FRAME_HEAD_BYTES: usize = 9;
const SETTINGS: u8 = 4;
/// A first frame up to this size is kept; ours has half of it.
const FIRST_BYTES_MAX: usize = 64;

/// A connection whose writes wait until other tasks have had their turn.
pub(crate) struct Gather<C, B> {
    connection: C,
    /// Whether calls are under way.
    is_busy: B,
    /// The next write has waited.
    waited: bool,
    /// Nothing was written yet.
    is_first: bool,
    /// The first frame, as long as it is kept.
    first: Vec<u8>,
    /// The client was asked for more, and had nothing, since the first frame is kept.
    asked: bool,
}

impl<C, B> Gather<C, B> {
    /// `is_busy`: whether calls of the connection are under way.
    pub(crate) fn new(connection: C, is_busy: B) -> Self {
        Self { connection, is_busy, waited: false, is_first: true, first: Vec::new(), asked: false }
    }
}

impl<C: AsyncWrite + Unpin, B: Fn() -> bool> Gather<C, B> {
    /// Writes `bytes`, the beginning of what `write` writes.
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
            // A task that wakes itself goes behind the others.
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

    /// Writes the first frame if it was kept, and `bytes` behind it. Returns how many of these were written.
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

/// Whether these bytes are the one frame that the server begins with.
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
        // The library flushes before it reads, and again when it has read all that was there.
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
