//! Accepts new connections until it is told to stop.
//!
//! Owns what happens when there are too many. Must never spin: after an error, either a connection was removed from the
//! queue, or the loop waits before the next try.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use votestream_core::observe::metrics::{self, ConnectionClosed};

use super::census::{Census, Place, TooManyOfAddress};

/// Pauses after an error that does not concern a single connection. Descriptors are free again within moments, or not
/// for a long time.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Accepts connections and passes each on with its place.
pub(crate) async fn accept(
    listener: TcpListener,
    census: Arc<Census>,
    number: u64,
    shutdown: CancellationToken,
    mut serve: impl FnMut(TcpStream, Place),
) {
    let mut trouble = Trouble::default();
    let accepting = async {
        loop {
            let (socket, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) if is_of_one_connection(&error) => continue,
                Err(error) => {
                    // End the quietest connection, because its descriptor is needed more here.
                    census.make_room();
                    tokio::time::sleep(trouble.began(&error)).await;
                    continue;
                }
            };
            trouble.ended();
            match census.place(peer, number).await {
                Ok(place) => serve(socket, place),
                Err(TooManyOfAddress) => refuse(peer),
            }
        }
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        () = accepting => {}
    }
}

fn refuse(peer: SocketAddr) {
    metrics::connection_closed(ConnectionClosed::Address);
    tracing::debug!(%peer, "connection refused: its address has too many connections");
}

/// Whether the error removed a connection from the queue. Then the next accept gets another one.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::TimedOut
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
    )
}

/// Remembers that no connection can be accepted. Logs when this begins and when it ends.
#[derive(Debug, Default)]
struct Trouble {
    pause: Option<Duration>,
}

impl Trouble {
    /// Notes an error and returns how long to wait.
    fn began(&mut self, error: &io::Error) -> Duration {
        if self.pause.is_none() {
            tracing::warn!(%error, "cannot accept connections; trying again");
        }
        let pause = self.pause.map_or(PAUSE_MIN, |pause| (pause * 2).min(PAUSE_MAX));
        self.pause = Some(pause);
        pause
    }

    fn ended(&mut self) {
        if self.pause.take().is_some() {
            tracing::info!("accepting connections again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_waited_for_longer_and_longer() {
        let (mut trouble, error) = (Trouble::default(), io::Error::from_raw_os_error(24));
        assert!(!is_of_one_connection(&error), "EMFILE");
        assert!(!is_of_one_connection(&io::Error::from_raw_os_error(23)), "ENFILE");
        assert!(is_of_one_connection(&io::Error::from_raw_os_error(103)), "ECONNABORTED");
        let pauses: Vec<_> = (0..9).map(|_| trouble.began(&error).as_millis()).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1_000, 1_000]);
        trouble.ended();
        assert_eq!(trouble.began(&error), PAUSE_MIN);
    }
}
