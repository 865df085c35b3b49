//! What a connection writes, gathered into few writes.
//!
//! Owns when bytes leave. Must never keep them for longer than it takes to let every task that is ready have its turn.
//!
//! HTTP/2 answers of a connection's calls come from a task each, and each wakes the connection, which tokio lets run at once.
//! Left to itself, it writes every answer with a system call of its own, which is a tenth of a small call. So a write that comes
//! first waits behind the tasks that are ready; whatever they answer leaves with it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection whose writes wait until other tasks have had their turn.
pub(crate) struct Gather<C> {
    connection: C,
    /// The next write has waited.
    waited: bool,
}

impl<C> Gather<C> {
    pub(crate) fn new(connection: C) -> Self {
        Self { connection, waited: false }
    }
}

impl<C: AsyncWrite + Unpin> Gather<C> {
    fn write<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut C>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if !self.waited {
            self.waited = true;
            // A task that wakes itself goes behind the others.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let written = ready!(write(Pin::new(&mut self.connection), cx));
        self.waited = false;
        Poll::Ready(written)
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Gather<C> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write(cx, |connection, cx| connection.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write(cx, |connection, cx| connection.poll_write_vectored(cx, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().connection).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().connection).poll_shutdown(cx)
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Gather<C> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().connection).poll_read(cx, into)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

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
            Gather::new(near).write_all(b"answer").await.unwrap();
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
            let mut near = Gather::new(near);
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
}
