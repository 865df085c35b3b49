//! Watches the socket of a connection.
//!
//! Owns when it counts as blocked: its client takes no bytes. Must be below every layer that delays writes on purpose.
//! Must be dropped when the connection has ended.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::link::Link;

/// A socket that tells its [`Link`] whether it accepts bytes.
pub(crate) struct Watched<C> {
    socket: C,
    link: Arc<Link>,
    /// The client has closed its sending side.
    ended: bool,
}

impl<C> Watched<C> {
    pub(crate) fn new(socket: C, link: Arc<Link>) -> Self {
        Self { socket, link, ended: false }
    }

    fn note<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.link.writable(written.is_ready());
        written
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Watched<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bytes);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        self.note(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The socket is closed in a moment anyway, which tells the client the same without another system call.
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        let shut = Pin::new(&mut self.socket).poll_shutdown(cx);
        self.note(shut)
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Watched<C> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (room, before) = (into.remaining(), into.filled().len());
        let read = Pin::new(&mut self.socket).poll_read(cx, into);
        self.ended |= room > 0 && into.filled().len() == before && matches!(read, Poll::Ready(Ok(())));
        read
    }
}
