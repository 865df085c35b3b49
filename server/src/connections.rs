//! The connections of one port and their requests, from accept to close.
//!
//! Owns the path of a connection: `accept` accepts it, the `census` gives it a place, `handshake` begins TLS on it,
//! `connection` speaks HTTP on it,
//! `entry` passes its requests on and `outbound` returns the answers. If its client does not end it, its `life` does.
//! Must never know what the services do.
//!
//! Everything here has a limit: the number of connections ([`Limits`](crate::Limits) and descriptors); the time until a
//! first request, without a call, and for a piece of an answer; and the memory of answers and requests.

mod accept;
mod calls;
mod census;
mod connection;
mod descriptors;
mod entry;
mod handshake;
mod host;
mod inbound;
mod life;
mod link;
mod outbound;
mod socket;

use std::{io, sync::Arc, time::Duration};

use tokio::net::TcpListener;
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use votestream_core::observe::metrics::ConnectionClosed;

pub use census::Connections;
pub(crate) use census::network;
pub use descriptors::raise_descriptor_limit;
pub use entry::Peer;
pub(crate) use link::{Link, Order};

use crate::Drain;
use entry::Entry;
pub(crate) use entry::Services;

/// Serves `services` on the listener until `shutdown`. Then connections without a call end, the others have the time
/// `drain` to finish, and after that the rest is cut off. `single` holds the paths of the calls that take one message.
///
/// # Errors
///
/// If the listener's address cannot be read.
pub(crate) async fn serve(
    listener: TcpListener,
    services: Services,
    single: Arc<[String]>,
    connections: &Connections,
    shutdown: &CancellationToken,
    drain: Duration,
) -> io::Result<Drain> {
    let is_loopback = listener.local_addr()?.ip().to_canonical().is_loopback();
    // Acknowledgements are small. They must not wait until the client's system confirms earlier packets.
    if let Err(error) = rustix::net::sockopt::set_tcp_nodelay(&listener, true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let census = &connections.0;
    let number = census.listener();
    let tracker = TaskTracker::new();
    let serve = {
        let tracker = tracker.clone();
        move |socket, place: census::Place| {
            let entry = Entry {
                services: services.clone(),
                link: place.link.clone(),
                is_loopback,
                single: single.clone(),
                certificate: None,
            };
            // Boxed: the runtime would move it several times, and it is large.
            tracker.spawn(Box::pin(connection::run(socket, entry, place)));
        }
    };
    // Certificates are exchanged until the last connection has ended: others may wait for the places of this listener.
    let _current = census.tls.clone().map(|tls| {
        let current = tokio::spawn(async move { tls.keep_current().await });
        AbortOnDropHandle::new(current)
    });
    // Accept in a task of its own: the caller may not run on a thread of the runtime, and then it would be woken for
    // every connection.
    let accepting = tokio::spawn(accept::accept(listener, census.clone(), number, shutdown.clone(), serve));
    if let Err(error) = AbortOnDropHandle::new(accepting).await
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
    tracker.close();
    census.order_all(number, Order::Drain);
    if tokio::time::timeout(drain, tracker.wait()).await.is_ok() {
        return Ok(Drain::Complete);
    }
    census.order_all(number, Order::End(ConnectionClosed::Shutdown));
    Ok(Drain::Incomplete)
}

#[cfg(test)]
mod tests;
