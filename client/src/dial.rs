//! Connections to the ingest service that are opened one by one, for programs that act for many clients at once.
//!
//! Owns the addresses behind the service's name, and how long a connection and its handshake took. Must never resume a TLS
//! session, since every connection is taken for another client's, and never retry: what a connection met is what is
//! measured.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rustls::{
    client::Resumption,
    pki_types::{InvalidDnsNameError, ServerName},
};
use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, error::Elapsed, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;

use crate::{Address, ClientBuilder, ClientError};

/// How long addresses of a name are used before it is looked up again. Elastic Load Balancing changes those of a load balancer
/// as it grows, and lets resolvers keep them for 60 s ("How Elastic Load Balancing works").
const ADDRESSES_FRESH: Duration = Duration::from_secs(20);

/// Bytes of a connection, with TLS or without.
pub type Transport = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Version of HTTP that a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1, for JSON.
    One,
    /// HTTP/2, for gRPC.
    Two,
}

impl Http {
    /// Its name in a TLS handshake (ALPN).
    const fn name(self) -> &'static [u8] {
        match self {
            Self::One => b"http/1.1",
            Self::Two => b"h2",
        }
    }
}

/// Opens connections to the ingest service. Copies share the addresses that they have found.
#[derive(Clone)]
pub struct Dialer(Arc<Inner>);

struct Inner {
    address: Address,
    http: Http,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    timeout: Duration,
    known: Mutex<Known>,
}

/// What is known of the service's name.
struct Known {
    addresses: Arc<[SocketAddr]>,
    /// When they were looked up, or when somebody began to do that.
    since: Instant,
    /// The next one to use: a name with several addresses spreads its clients.
    next: usize,
}

/// A new connection.
#[derive(Debug)]
pub struct Dialed {
    /// Takes and brings the bytes.
    pub transport: Transport,
    /// How long TCP took.
    pub connect: Duration,
    /// How long the TLS handshake took, if there was one.
    pub tls: Option<Duration>,
}

/// Why there is no connection. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name of the host has no address.
    #[error("the name cannot be resolved: {0}")]
    Name(io::Error),
    /// TCP failed.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// TCP took too long.
    #[error("no connection came about within {0:?}")]
    ConnectTimeout(Duration),
    /// The handshake failed.
    #[error("the TLS handshake failed: {0}")]
    Tls(io::Error),
    /// The handshake took too long.
    #[error("the TLS handshake was not over within {0:?}")]
    TlsTimeout(Duration),
    /// The service does not speak the version of HTTP that was asked for.
    #[error("the service does not offer {0:?} over TLS")]
    Protocol(Http),
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("address", &self.0.address).field("http", &self.0.http).finish_non_exhaustive()
    }
}

impl ClientBuilder {
    /// What opens connections to the ingest service, one by one, each within this time or the time-out of connections, whichever
    /// is shorter. `has_token` says whether a token will be sent over them, also if it is not that of these settings.
    ///
    /// # Errors
    ///
    /// If the name has no address, if the settings of TLS cannot be used, or if a token would be sent unencrypted to another
    /// machine.
    pub async fn ingest_dialer(&self, http: Http, within: Duration, has_token: bool) -> Result<Dialer, ClientError> {
        let address = self.ingest().clone();
        let tls = match address.is_secure() {
            true => Some(self.connector(&address, http).map_err(|reason| ClientError::Tls { reason })?),
            false if has_token && !address.is_loopback() => return Err(ClientError::TokenInTheClear { address }),
            false => None,
        };
        let found =
            resolve(&address).await.map_err(|error| ClientError::Unresolved { address: address.clone(), error })?;
        let known = Mutex::new(Known { addresses: found, since: Instant::now(), next: 0 });
        let timeout = within.min(self.timeout_of_connections());
        Ok(Dialer(Arc::new(Inner { address, http, tls, timeout, known })))
    }

    fn connector(&self, address: &Address, http: Http) -> Result<(TlsConnector, ServerName<'static>), String> {
        let mut config = self.tls().config()?;
        config.alpn_protocols = vec![http.name().to_vec()];
        // A ticket of one client would make the handshakes of all others cheap.
        config.resumption = Resumption::disabled();
        let host = address.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(|error: InvalidDnsNameError| error.to_string())?;
        Ok((TlsConnector::from(Arc::new(config)), name))
    }
}

impl Dialer {
    /// Where the service is.
    pub fn address(&self) -> &Address {
        &self.0.address
    }

    /// Opens a connection.
    ///
    /// # Errors
    ///
    /// If there is none within the time. Nothing was sent then.
    pub async fn dial(&self) -> Result<Dialed, DialError> {
        let begun = Instant::now();
        let addresses = self.addresses().await?;
        let within = self.0.timeout;
        let socket = match timeout(within, connect(&addresses)).await {
            Ok(socket) => socket.map_err(DialError::Connect)?,
            Err(Elapsed { .. }) => return Err(DialError::ConnectTimeout(within)),
        };
        socket.set_nodelay(true).map_err(DialError::Connect)?;
        let connect = begun.elapsed();
        let Some((connector, name)) = &self.0.tls else {
            return Ok(Dialed { transport: Either::Left(socket), connect, tls: None });
        };
        let begun = Instant::now();
        let stream = match timeout(within, connector.connect(name.clone(), socket)).await {
            Ok(stream) => stream.map_err(DialError::Tls)?,
            Err(Elapsed { .. }) => return Err(DialError::TlsTimeout(within)),
        };
        // Who speaks HTTP/1.1 may say nothing.
        let chosen = stream.get_ref().1.alpn_protocol();
        if chosen != Some(self.0.http.name()) && (self.0.http == Http::Two || chosen.is_some()) {
            return Err(DialError::Protocol(self.0.http));
        }
        Ok(Dialed { transport: Either::Right(Box::new(stream)), connect, tls: Some(begun.elapsed()) })
    }

    /// The addresses of the name, the one to use first.
    async fn addresses(&self) -> Result<Vec<SocketAddr>, DialError> {
        let is_stale = {
            let mut known = self.0.known.lock();
            let is_stale = known.since.elapsed() >= ADDRESSES_FRESH;
            if is_stale {
                // One looks, the others go on with what there is.
                known.since = Instant::now();
            }
            is_stale
        };
        if is_stale {
            let found = timeout(self.0.timeout, resolve(&self.0.address)).await;
            // If the resolver is gone for a while, what it said last may still be true.
            if let Ok(Ok(found)) = found {
                self.0.known.lock().addresses = found;
            }
        }
        let mut known = self.0.known.lock();
        let count = known.addresses.len();
        if count == 0 {
            return Err(DialError::Name(io::ErrorKind::NotFound.into()));
        }
        let first = known.next % count;
        known.next = first + 1;
        Ok(known.addresses.iter().cycle().skip(first).take(count).copied().collect())
    }
}

/// Connects to the first address that answers.
async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    TcpStream::connect(addresses).await
}

async fn resolve(address: &Address) -> io::Result<Arc<[SocketAddr]>> {
    let host = address.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let found: Arc<[SocketAddr]> = lookup_host((host, address.port())).await?.collect();
    if found.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn dialer(url: &str) -> Dialer {
        let builder = ClientBuilder::default().ingest_address(url.parse().unwrap());
        builder.ingest_dialer(Http::One, Duration::from_secs(5), true).await.unwrap()
    }

    #[tokio::test]
    async fn a_connection_says_how_long_it_took_and_each_is_a_new_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialer = dialer(&format!("http://{}", listener.local_addr().unwrap())).await;
        let (first, second) = (dialer.dial().await.unwrap(), dialer.dial().await.unwrap());
        assert!(first.tls.is_none() && first.connect > Duration::ZERO);
        let ((_, one), (_, two)) = (listener.accept().await.unwrap(), listener.accept().await.unwrap());
        assert_ne!(one, two);
        drop((first, second));
    }

    #[tokio::test]
    async fn nobody_there_is_an_error_of_the_connection() {
        // The port was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dialer = dialer(&format!("http://127.0.0.1:{port}")).await;
        let error = dialer.dial().await.unwrap_err();
        assert!(
            matches!(&error, DialError::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused),
            "{error}"
        );
    }

    #[tokio::test]
    async fn addresses_take_turns_and_one_that_refuses_is_passed_over() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let dialer = dialer(&format!("http://{open}")).await;
        let shut = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        dialer.0.known.lock().addresses = [shut, open].into();
        let turns = [dialer.addresses().await.unwrap(), dialer.addresses().await.unwrap()];
        assert_eq!(turns, [vec![shut, open], vec![open, shut]]);
        for _ in 0..2 {
            let dialed = dialer.dial().await.unwrap();
            let Either::Left(socket) = dialed.transport else { panic!("there is no TLS") };
            assert_eq!(socket.peer_addr().unwrap(), open);
        }
    }

    #[tokio::test]
    async fn a_token_is_not_sent_to_another_machine_in_the_clear() {
        let builder = ClientBuilder::default().ingest_address("http://10.0.0.1:1".parse().unwrap());
        let refused = builder.ingest_dialer(Http::One, Duration::from_secs(1), true).await;
        assert!(matches!(refused, Err(ClientError::TokenInTheClear { .. })), "{refused:?}");
        assert!(builder.ingest_dialer(Http::One, Duration::from_secs(1), false).await.is_ok());
    }
}
