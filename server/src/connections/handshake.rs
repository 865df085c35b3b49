//! The TLS handshake of a connection.
//!
//! Owns what happens between accept and HTTP: the first byte, the handshake within its bytes, and whose certificate it
//! brought. Must never decide how long it may take: the connection's `life` does, from accept on. Must never hold more
//! for a client that sends nothing than a connection without TLS does.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use votestream_core::observe::metrics::{self, ConnectionClosed};

use super::{life::Http, link::Link};
use crate::tls::{ClientCertificate, Handshake, Tls};

/// First byte of every TLS handshake.
const HANDSHAKE_RECORD: u8 = 22;
/// Most bytes that a client may send before its handshake is over: the longest hello and a long chain of certificates.
const HANDSHAKE_BYTES_MAX: usize = 32 << 10;
/// Most bytes of answers that TLS keeps while the socket takes none. One record has half of it.
const BUFFER_BYTES_MAX: usize = 32 << 10;
/// How long a client may take to read why its handshake failed.
const LINGER: Duration = Duration::from_secs(1);
/// Most bytes of it that are read meanwhile. What is left unread would make the system take back what was written.
const LINGER_BYTES_MAX: u64 = 64 << 10;
/// The answer to a request without TLS.
const USE_HTTPS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n\
    {\"error\":{\"code\":\"INVALID_ARGUMENT\",\"message\":\"this port speaks TLS: use https://\"}}";

/// A connection after its handshake.
pub(super) struct Secure<C>(TlsStream<Begun<C>>);

/// What a handshake has brought about.
pub(super) struct Secured<C> {
    pub(super) stream: Secure<C>,
    /// The client's certificate, if it gave one.
    pub(super) certificate: Option<Arc<ClientCertificate>>,
}

/// Speaks TLS on a connection until its handshake is over. `None` if there is nothing left to do: it failed, and the
/// client was told.
pub(super) async fn shake<C>(mut socket: C, tls: Tls, link: Arc<Link>) -> Option<Secured<C>>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    // A client that is silent costs nothing more until its first byte.
    let first = socket.read_u8().await.ok()?;
    if first != HANDSHAKE_RECORD {
        refuse(&link, ConnectionClosed::PlainText, &"it does not speak TLS");
        // A gRPC client could not read this answer.
        let answer = if first == b'P' && socket.read_u8().await.ok()? == b'R' { &[][..] } else { USE_HTTPS };
        part(socket, answer).await;
        return None;
    }
    let handshake = Handshake::begin(tls.handshakes(), &link);
    let begun = Begun { socket, first: Some(first), left: HANDSHAKE_BYTES_MAX };
    let accept = TlsAcceptor::from(tls.config())
        .accept_with(begun, |session| session.set_buffer_limit(Some(BUFFER_BYTES_MAX)))
        .into_fallible();
    let accepted = accept.await;
    drop(handshake);
    let mut stream = match accepted {
        Ok(stream) => stream,
        Err((error, begun)) => {
            // Those that left in the middle have ended it themselves.
            if error.kind() == io::ErrorKind::InvalidData {
                refuse(&link, ConnectionClosed::Handshake, &error);
                part(begun.socket, &[]).await;
            }
            return None;
        }
    };
    let (begun, session) = stream.get_mut();
    begun.left = usize::MAX;
    let given = session.peer_certificates().filter(|chain| !chain.is_empty());
    // A session that is resumed brings the certificates that were verified when it began.
    let certificate = match given.map(ClientCertificate::read) {
        None => None,
        Some(Some(certificate)) if !certificate.is_expired() => Some(Arc::new(certificate)),
        Some(_) => {
            refuse(&link, ConnectionClosed::Handshake, &"its certificate has expired, or cannot be read");
            drop(stream.shutdown().await);
            return None;
        }
    };
    Some(Secured { stream: Secure(stream), certificate })
}

fn refuse(link: &Link, reason: ConnectionClosed, why: &dyn std::fmt::Display) {
    metrics::connection_closed(reason);
    tracing::debug!(peer = %link.peer, %why, "connection closed before its first request");
}

/// Writes the last bytes, and gives the client a moment to read them.
async fn part<C: AsyncRead + AsyncWrite + Unpin>(mut socket: C, last: &[u8]) {
    let parting = async {
        socket.write_all(last).await?;
        socket.shutdown().await?;
        tokio::io::copy(&mut socket.take(LINGER_BYTES_MAX), &mut tokio::io::sink()).await
    };
    // Whether it has read them is up to the client.
    drop(tokio::time::timeout(LINGER, parting).await);
}

/// A socket whose first byte was read already, and which brings only so many more.
struct Begun<C> {
    socket: C,
    first: Option<u8>,
    left: usize,
}

impl<C: AsyncRead + Unpin> AsyncRead for Begun<C> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let first = self.first.take();
        if let Some(first) = first {
            into.put_slice(&[first]);
        }
        let read = Pin::new(&mut self.socket).poll_read(cx, into);
        if first.is_none() || read.is_ready() {
            ready!(read)?;
        }
        let read = into.filled().len() - before;
        if self.left < read {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "its handshake is too long")));
        }
        if self.left < usize::MAX {
            self.left -= read;
        }
        Poll::Ready(Ok(()))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Begun<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncRead for Secure<C> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.0).poll_read(cx, into)) {
            // The client has closed its side without a word of TLS. HTTP marks the end of every request itself, so a
            // request that was cut off is noticed, and one that is whole gets its answer.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            read => Poll::Ready(read),
        }
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Secure<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

pin_project! {
    /// A connection that speaks HTTP after its handshake. Its `life` sees one connection.
    pub(super) struct Shaken<T, B, H> {
        begin: Option<B>,
        #[pin]
        state: State<T, H>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<T, H> {
        Handshake { #[pin] handshake: T },
        Http { #[pin] http: H },
        Over,
    }
}

impl<T, B, H> Shaken<T, B, H> {
    /// `begin` begins to speak HTTP on what the handshake yields.
    pub(super) fn new(handshake: T, begin: B) -> Self {
        Self { begin: Some(begin), state: State::Handshake { handshake } }
    }
}

impl<T, B, H, S> Future for Shaken<T, B, H>
where
    T: Future<Output = Option<S>>,
    B: FnOnce(S) -> H,
    H: Future,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProjection::Over => return Poll::Ready(()),
                StateProjection::Http { http } => return http.poll(cx).map(drop),
                StateProjection::Handshake { handshake } => match ready!(handshake.poll(cx)).zip(this.begin.take()) {
                    Some((secured, begin)) => State::Http { http: begin(secured) },
                    None => State::Over,
                },
            };
            this.state.set(next);
        }
    }
}

impl<T, B, H, S> Http for Shaken<T, B, H>
where
    T: Future<Output = Option<S>>,
    B: FnOnce(S) -> H,
    H: Http,
{
    fn part(self: Pin<&mut Self>) {
        let mut this = self.project();
        match this.state.as_mut().project() {
            StateProjection::Http { http } => http.part(),
            // There is nobody to say goodbye to yet.
            StateProjection::Handshake { .. } | StateProjection::Over => this.state.set(State::Over),
        }
    }
}
