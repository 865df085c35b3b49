//! TLS of the process: the certificate, the key and the CA of clients, and how they are exchanged while it runs.
//!
//! Owns the settings of TLS that every connection of the process shares. Must never end a connection: those that stand
//! keep what they began with. Must never log a key, nor serve with less than was asked for: files that are broken change
//! nothing.
//!
//! A change counts once two looks in a row find the same: whoever writes a certificate and then its key is not caught in
//! between.

mod chains;
mod files;
mod handshakes;
mod identity;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::{
    ServerConfig,
    pki_types::UnixTime,
    server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier},
};

#[cfg(test)]
pub(crate) use self::handshakes::HANDSHAKES_MAX;
use self::{
    chains::ShortChains,
    files::{Material, Texts},
    handshakes::Handshakes,
};
pub use self::{
    files::{TlsError, TlsFile},
    identity::ClientCertificate,
};
pub(crate) use self::{handshakes::Handshake, identity::same_form};
use crate::files::Changes;

/// Time from one look at the files to the next.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A certificate that expires within this time is reported: long enough to act, and shorter than what is left when an
/// automatic renewal is due.
const EXPIRES_SOON: Duration = Duration::from_secs(7 * 24 * 3_600);
/// What clients may choose: gRPC needs the first, JSON works over both.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Where the server's own certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsIdentity {
    /// From files in PEM: the certificate with its chain, and its key.
    Files {
        /// The certificate, followed by those of its issuers.
        certificate: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
    /// Made at the start. It encrypts, and proves nothing: for the way from a load balancer that does not check it.
    SelfSigned,
}

/// Where everything that TLS needs comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSource {
    /// The server's own certificate.
    pub identity: TlsIdentity,
    /// Certificates in PEM of those who issue client certificates. Without it, no client is asked for one.
    pub client_ca: Option<PathBuf>,
}

/// TLS of the process. Copies share it.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    source: TlsSource,
    /// What new connections begin with.
    current: ArcSwap<ServerConfig>,
    watched: Mutex<Watched>,
    /// Held by whoever looks: two that look at the same moment would agree about a file that is half written.
    looking: tokio::sync::Mutex<()>,
    handshakes: Arc<Handshakes>,
}

/// What the looks at the files remember.
struct Watched {
    changes: Changes,
    /// What decides whether tickets of before are still taken.
    client_ca: u64,
    tickets: Arc<dyn ProducesTickets>,
    own: Ending,
    /// The first of the CA of clients that ends.
    ca: Option<Ending>,
}

/// A certificate that ends some day.
struct Ending {
    /// In seconds since 1970.
    not_after: u64,
    said: Expiry,
}

/// What was said about the expiry of a certificate in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Expiry {
    Later,
    Soon,
    Over,
}

impl Expiry {
    fn of(not_after: u64, now: u64) -> Self {
        match not_after.saturating_sub(now) {
            0 => Self::Over,
            left if left < EXPIRES_SOON.as_secs() => Self::Soon,
            _ => Self::Later,
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.0.source).finish()
    }
}

impl Tls {
    /// Reads everything for the first time.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the files.
    pub fn open(source: TlsSource) -> Result<Self, Vec<TlsError>> {
        let texts = Texts::read(&source);
        let changes = Changes::since(&texts);
        let client_ca = changes.digest(&texts.client_ca);
        let material = texts.parse(&source)?;
        let broken = |error| vec![TlsError::of(&source, TlsFile::Certificate, error)];
        let tickets = rustls::crypto::ring::Ticketer::new().map_err(broken)?;
        let (own, ca) = Watched::endings(&material);
        let config = configure(material, tickets.clone()).map_err(broken)?;
        let watched = Watched { changes, client_ca, tickets, own, ca };
        Ok(Self(Arc::new(Shared {
            source,
            current: ArcSwap::from_pointee(config),
            watched: Mutex::new(watched),
            looking: tokio::sync::Mutex::default(),
            handshakes: Arc::default(),
        })))
    }

    /// What a new connection begins with.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.0.current.load_full()
    }

    /// The handshakes that are in progress.
    pub(crate) fn handshakes(&self) -> &Arc<Handshakes> {
        &self.0.handshakes
    }

    /// Looks at the files from time to time, for as long as it is polled. All listeners poll it, and one of them looks.
    pub(crate) async fn keep_current(&self) {
        let _looking = self.0.looking.lock().await;
        loop {
            let tls = self.clone();
            // A file system may take its time.
            if let Err(error) = tokio::task::spawn_blocking(move || tls.look()).await {
                tracing::warn!(%error, "cannot look at the files of TLS");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Reads the files, and uses what they have if it is new and whole.
    fn look(&self) {
        let texts = Texts::read(&self.0.source);
        let mut watched = self.0.watched.lock();
        if watched.changes.look(&texts) {
            self.exchange(&texts, &mut watched);
        }
        watched.warn();
    }

    fn exchange(&self, texts: &Texts, watched: &mut Watched) {
        let material = match texts.parse(&self.0.source) {
            Ok(material) => material,
            Err(errors) => {
                for error in errors {
                    tracing::warn!(%error, "a file of TLS has changed and cannot be used; what was in use stays in use");
                }
                return;
            }
        };
        let client_ca = watched.changes.digest(&texts.client_ca);
        let tickets = match client_ca == watched.client_ca {
            true => Ok(watched.tickets.clone()),
            // A ticket stands for a certificate that was verified before, perhaps by a CA that is no longer trusted.
            false => rustls::crypto::ring::Ticketer::new(),
        };
        let endings = Watched::endings(&material);
        let made = tickets.and_then(|tickets| Ok((configure(material, tickets.clone())?, tickets)));
        match made {
            Ok((config, tickets)) => {
                self.0.current.store(Arc::new(config));
                (watched.client_ca, watched.tickets) = (client_ca, tickets);
                (watched.own, watched.ca) = endings;
                tracing::info!("the files of TLS have changed: new connections use them");
            }
            Err(error) => {
                tracing::warn!(%error, "the changed files of TLS cannot be used; what was in use stays in use")
            }
        }
    }
}

impl Watched {
    /// What ends of these, and when.
    fn endings(material: &Material) -> (Ending, Option<Ending>) {
        let ending = |not_after| Ending { not_after, said: Expiry::Later };
        (ending(material.not_after), material.client_ca.as_ref().map(|(_, not_after)| ending(*not_after)))
    }

    /// Says once when a certificate in use is about to expire, and once when it has expired.
    fn warn(&mut self) {
        self.own.warn("the certificate of TLS", "clients that check it do not connect");
        if let Some(ca) = &mut self.ca {
            ca.warn("a CA of client certificates", "what it has issued is taken all the same");
        }
    }
}

impl Ending {
    /// Says what is new of this certificate, and what its end means.
    fn warn(&mut self, what: &str, means: &str) {
        match self.news() {
            Some(Expiry::Over) => tracing::warn!("{what} has expired: {means}"),
            Some(Expiry::Soon) => tracing::warn!("{what} expires within a week"),
            Some(Expiry::Later) | None => {}
        }
    }

    /// What is to be said now and was not said before.
    fn news(&mut self) -> Option<Expiry> {
        let expiry = Expiry::of(self.not_after, UnixTime::now().as_secs());
        let is_new = expiry > self.said;
        self.said = self.said.max(expiry);
        is_new.then_some(expiry)
    }
}

/// Settings of all connections that begin from now on.
fn configure(material: Material, tickets: Arc<dyn ProducesTickets>) -> Result<ServerConfig, rustls::Error> {
    let provider = files::provider();
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match material.client_ca {
        None => builder.with_no_client_auth(),
        Some((roots, _)) => {
            // A caller without a certificate may have a token.
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).allow_unauthenticated();
            let verifier = verifier.build().map_err(|error| rustls::Error::General(error.to_string()))?;
            builder.with_client_cert_verifier(Arc::new(ShortChains { verifier }))
        }
    };
    let mut config = builder.with_cert_resolver(material.identity);
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    // Phones that come back resume with a ticket, which costs no memory here. Data before the end of the handshake
    // stays off, because it could be sent twice.
    config.ticketer = tickets;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

#[cfg(test)]
mod tests;
