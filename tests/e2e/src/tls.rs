//! Certificates for tests, and a raw client with TLS.
//!
//! Owns keys that protect nothing. Must never use the client of ours: what is judged is not used to judge.

use std::{io, net::SocketAddr, path::Path, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Who issues certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate in PEM.
    pub pem: String,
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Made {
    /// The certificate, and those of its issuers if the owner sends them.
    pub certificate: String,
    /// The key.
    pub key: String,
}

/// Whom a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A server.
    Server,
    /// A client.
    Client,
}

impl Authority {
    /// A new one of this name.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut wanted = CertificateParams::new(Vec::new()).unwrap();
        wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        wanted.distinguished_name.push(DnType::CommonName, name);
        let pem = wanted.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(wanted, key), pem }
    }

    /// A certificate for these names, until the first day of a year.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    pub fn issue(&self, side: Side, names: &[&str], until: i32) -> Made {
        let key = KeyPair::generate().unwrap();
        let mut wanted = CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap();
        wanted.distinguished_name.push(DnType::CommonName, names.first().copied().unwrap_or_default());
        wanted.extended_key_usages = vec![match side {
            Side::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Side::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        wanted.not_after = date_time_ymd(until, 1, 1);
        let certificate = wanted.signed_by(&key, &self.issuer).unwrap().pem();
        Made { certificate, key: key.serialize_pem() }
    }

    /// A certificate for a server on this machine.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    pub fn server(&self) -> Made {
        self.issue(Side::Server, &["localhost", "127.0.0.1"], 2100)
    }
}

/// A client's certificate, followed by so many of issuers that all have one name, each with a key of its own and so many
/// extensions: every order of them is a path from one to the next.
///
/// # Panics
///
/// If it cannot be made.
pub fn maze(issuers: usize, extensions: u64) -> Made {
    let mut wanted = CertificateParams::default();
    wanted.distinguished_name.push(DnType::CommonName, "X");
    wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wanted.custom_extensions = (0..extensions)
        .map(|at| CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, at], vec![5, 0]))
        .collect();
    let others: String =
        (0..issuers).map(|_| wanted.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()).collect();
    let own = KeyPair::generate().unwrap();
    let issuer = Issuer::new(wanted, KeyPair::generate().unwrap());
    let certificate = CertificateParams::default().signed_by(&own, &issuer).unwrap().pem();
    Made { certificate: certificate + &others, key: own.serialize_pem() }
}

impl Made {
    /// Writes `cert.pem` and `key.pem`.
    ///
    /// # Panics
    ///
    /// If the folder takes no files.
    pub fn write(&self, folder: &Path) {
        std::fs::write(folder.join("cert.pem"), &self.certificate).unwrap();
        std::fs::write(folder.join("key.pem"), &self.key).unwrap();
    }

    /// The certificate as it is sent.
    ///
    /// # Panics
    ///
    /// If it is none.
    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }
}

/// Makes connections that trust this CA, offer these protocols, and show this certificate.
///
/// # Panics
///
/// If one of them cannot be used.
pub fn connector(ca: &str, protocols: &[&str], identity: Option<&Made>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(made) => {
            let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes()).unwrap();
            let chain = CertificateDer::pem_slice_iter(made.certificate.as_bytes()).collect::<Result<_, _>>().unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// A new connection.
///
/// # Errors
///
/// If it cannot be had.
pub async fn connect(connector: &TlsConnector, addr: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(addr).await?;
    connector.connect(ServerName::IpAddress(addr.ip().into()), socket).await
}

/// The certificate that a server shows.
///
/// # Errors
///
/// If it does not take a connection.
pub async fn shown(ca: &str, addr: SocketAddr) -> io::Result<Option<CertificateDer<'static>>> {
    let stream = connect(&connector(ca, &["h2"], None), addr).await?;
    let chain = stream.get_ref().1.peer_certificates();
    Ok(chain.and_then(|chain| chain.first()).map(|first| first.clone().into_owned()))
}

/// What a client sends first.
///
/// # Panics
///
/// Never: the name is one.
pub fn hello() -> Vec<u8> {
    let authority = Authority::new("nobody");
    let config = connector(&authority.pem, &["h2"], None).config().clone();
    let name = ServerName::try_from("localhost").unwrap();
    let mut hello = Vec::new();
    rustls::ClientConnection::new(config, name).unwrap().write_tls(&mut hello).unwrap();
    hello
}
