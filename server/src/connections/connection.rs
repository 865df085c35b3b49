//! HTTP on one connection.
//!
//! Owns the limits of the HTTP libraries. Must never decide when a connection ends: its `life` does.
//!
//! The HTTP/2 windows cannot be chosen freely. Since version 0.4.16, h2 closes a connection that holds too many unread
//! DATA frames of under 256 bytes. A fast stream with one vote per message looks like this as soon as the engine
//! stalls. The budget of h2 is half of the connection's window, and each small frame costs 256 bytes minus its length.
//! All streams' windows, full of the smallest votes, must fit into this budget. The assertion below checks this.

use std::{pin::Pin, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_util::either::Either;

use super::{
    calls::Calls,
    census::Place,
    entry::Entry,
    handshake::{Secure, Secured, Shaken, shake},
    inbound::{FRAME_OVERHEAD_BYTES, Metered},
    life::{self, Http},
    link::Link,
    socket::Watched,
};
use crate::gather::Gather;

/// HTTP/2 receive window of a stream.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
/// Largest HTTP/2 frame that clients may send: as much as fits into the window. Data that arrives in one piece need not
/// be put together, and costs fewer reads.
const FRAME_BYTES_MAX: u32 = STREAM_WINDOW_BYTES;
/// HTTP/2 receive window of a connection. It only sets h2's budget; the streams' windows limit what clients can send.
const CONNECTION_WINDOW_BYTES: u32 = 72 << 20;
/// Most streams of a connection. Further calls wait in the client.
const STREAMS_MAX: u32 = 38;

/// The smallest message of a vote: a frame header (5), the field of the vote (2), and three ids of one character (3 each).
const VOTE_BYTES_MIN: u64 = 5 + 2 + 3 * 3;

const _: () = assert!(
    STREAMS_MAX as u64 * (STREAM_WINDOW_BYTES as u64 / VOTE_BYTES_MIN) * (FRAME_OVERHEAD_BYTES - VOTE_BYTES_MIN)
        <= CONNECTION_WINDOW_BYTES as u64 / 2,
    "streams full of the smallest votes must fit into h2's budget for small DATA frames",
);

/// Most streams that a client may reset before the server has accepted them. Behind a proxy, all callers that give up
/// at the same moment look like one client. Such streams are freed at the end of the poll that read them, so their
/// memory (at most 16 KiB each for a head) is held once per thread, not once per connection.
const UNSEEN_RESETS_MAX: usize = 1_024;
/// Most streams that the server resets because of the client's errors, in the life of a connection. A correct client
/// has none.
const MISTAKEN_STREAMS_MAX: usize = 1_024;
/// Largest head of an HTTP/2 request.
const HEAD_BYTES_MAX: u32 = 16 << 10;
/// Largest head of an HTTP/1.1 request, and most bytes of an answer that the connection keeps.
const HTTP1_BUFFER_BYTES: usize = 64 << 10;

/// Interval of pings that check whether the client of an HTTP/2 connection still answers.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
/// How long the client may take to answer a ping.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves an accepted connection.
pub(crate) async fn run(socket: TcpStream, entry: Entry, place: Place) {
    // On Linux the connection inherits the option from the listener.
    if cfg!(not(target_os = "linux"))
        && let Err(error) = socket.set_nodelay(true)
    {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    run_over(socket, entry, place).await;
}

/// Serves a connection over any byte stream.
pub(crate) async fn run_over<C>(socket: C, entry: Entry, place: Place)
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let link = &place.link;
    let builder = builder(link);
    // TLS is above the watch, which sees what the socket takes, and below everything that counts requests and answers.
    let socket = Watched::new(socket, link.clone());
    // With TLS or without it, the stream has one type, so the HTTP libraries are compiled once.
    match link.census.tls.clone() {
        None => {
            let stream = gathered(Either::Left(socket), link);
            life::live(builder.serve_connection(TokioIo::new(stream), entry), link).await;
        }
        Some(tls) => {
            let speak = |secured: Secured<_>| {
                let entry = Entry { certificate: secured.certificate, ..entry };
                let stream = gathered(Either::Right(Box::new(secured.stream)), link);
                builder.serve_connection(TokioIo::new(stream), entry)
            };
            // The time for the first request has run since accept.
            life::live(Shaken::new(shake(socket, tls, link.clone()), speak), link).await;
        }
    }
}

/// Bytes without TLS, or with it. What TLS keeps is large, so it has its own place.
type Stream<C> = Either<Watched<C>, Box<Secure<Watched<C>>>>;

/// A stream whose requests are counted and whose answers are gathered.
fn gathered<C>(stream: Stream<C>, link: &Arc<Link>) -> Gather<Metered<Stream<C>>, Arc<Link>> {
    Gather::new(Metered::new(stream, link.clone()), link.clone())
}

fn builder(link: &Arc<Link>) -> auto::Builder<Calls> {
    let mut builder = auto::Builder::new(Calls(link.clone()));
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_pending_accept_reset_streams(UNSEEN_RESETS_MAX)
        .max_local_error_reset_streams(MISTAKEN_STREAMS_MAX)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    builder
        .http1()
        .timer(TokioTimer::new())
        // `life` has this limit. The library's own limit would also run between two requests, when no head has begun.
        .header_read_timeout(None)
        .max_buf_size(HTTP1_BUFFER_BYTES)
        // A client that closes its sending side after the request still gets its answer.
        .half_close(true);
    builder
}

impl<C> Http for auto::Connection<'_, TokioIo<C>, Entry, Calls>
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn part(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}
