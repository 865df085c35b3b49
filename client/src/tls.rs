//! TLS of the client.
//!
//! Owns whom the client trusts, and what it says when it cannot. Must never connect to a service that it cannot check.

use std::{error::Error, fmt, io, sync::Arc, time::Duration};

use rustls::{
    CertificateError, ClientConfig, InvalidMessage, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// Settings of TLS: PEM texts, as their files have them.
#[derive(Clone, Default)]
pub(crate) struct TlsOptions {
    /// The only ones that are trusted; those of the system if `None`.
    pub(crate) ca: Option<Vec<u8>>,
    /// Certificate and key of the client.
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (has_ca, has_identity) = (self.ca.is_some(), self.identity.is_some());
        f.debug_struct("TlsOptions").field("has_ca", &has_ca).field("has_identity", &has_identity).finish()
    }
}

impl TlsOptions {
    /// The same settings for connections that are not the library's. Returns what is wrong with them.
    pub(crate) fn config(&self) -> Result<ClientConfig, String> {
        let mut roots = RootCertStore::empty();
        match &self.ca {
            Some(pem) => {
                for certificate in chain(pem).ok_or("the CA has no certificate in PEM")? {
                    roots.add(certificate).map_err(|error| format!("the CA cannot be used: {error}"))?;
                }
            }
            None => {
                // Systems have some that no library reads; the others are enough.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let builder = builder.with_root_certificates(roots);
        let Some((certificate, key)) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let certificates = chain(certificate).ok_or("the client's certificate is no certificate in PEM")?;
        // The errors of the library may quote the key.
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| "the client's key is no private key in PEM without a pass phrase")?;
        builder
            .with_client_auth_cert(certificates, key)
            .map_err(|_| "the client's key does not fit its certificate".to_owned())
    }

    /// Sets TLS up. Returns what is wrong with the settings.
    pub(crate) fn apply(&self, endpoint: Endpoint, connect_timeout: Duration) -> Result<Endpoint, String> {
        let mut config = ClientTlsConfig::new().timeout(connect_timeout);
        match &self.ca {
            // The library would ignore what is no certificate.
            Some(pem) if !is_chain(pem) => return Err("the CA has no certificate in PEM".into()),
            Some(pem) => config = config.ca_certificate(Certificate::from_pem(pem)),
            None => config = config.with_native_roots(),
        }
        if let Some((certificate, key)) = &self.identity {
            if !is_chain(certificate) {
                return Err("the client's certificate is no certificate in PEM".into());
            }
            // The errors of the library may quote the key.
            if PrivateKeyDer::from_pem_slice(key).is_err() {
                return Err("the client's key is no private key in PEM without a pass phrase".into());
            }
            config = config.identity(Identity::from_pem(certificate, key));
        }
        endpoint.tls_config(config).map_err(|error| match error.source().map(ToString::to_string) {
            Some(cause) if cause.contains("KeyMismatch") => "the client's key does not fit its certificate".into(),
            cause => cause.unwrap_or_else(|| error.to_string()),
        })
    }
}

fn is_chain(pem: &[u8]) -> bool {
    chain(pem).is_some()
}

/// The certificates of a PEM text, if there is one and all can be read.
fn chain(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    certificates.ok().filter(|certificates| !certificates.is_empty())
}

/// Why a handshake failed, if it is the other side that cannot be accepted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Its certificate is not trusted: why, and whether that is because nobody known has issued it.
    Certificate { reason: String, is_unknown: bool },
    /// It speaks something else.
    NoTls,
}

/// Finds the reason in an error of the transport.
pub(crate) fn refused(error: &(dyn Error + 'static)) -> Option<Refused> {
    let mut next = Some(error);
    while let Some(error) = next {
        // Such an error hides the one in it: its source is the source of that.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let found = inner.and_then(|inner| inner.downcast_ref()).or_else(|| error.downcast_ref::<rustls::Error>());
        if let Some(found) = found {
            return of(found);
        }
        next = error.source();
    }
    None
}

fn of(error: &rustls::Error) -> Option<Refused> {
    if matches!(error, rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) {
        return Some(Refused::NoTls);
    }
    let rustls::Error::InvalidCertificate(why) = error else { return None };
    let is_unknown = matches!(why, CertificateError::UnknownIssuer);
    let is_expired = matches!(why, CertificateError::Expired | CertificateError::ExpiredContext { .. });
    let is_other = matches!(why, CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. });
    let reason = match (is_unknown, is_expired, is_other) {
        (true, ..) => "it is issued by nobody who is known here".into(),
        (_, true, _) => "it has expired".into(),
        (.., true) => "it is for another name".into(),
        _ => why.to_string(),
    };
    Some(Refused::Certificate { reason, is_unknown })
}
