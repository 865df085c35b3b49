//! Who a client is by its certificate.
//!
//! Owns what the rest of the server learns of a certificate. Must never decide what its owner may do. Must only be asked
//! about certificates that were verified.

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, Error, KeyUsage};

/// A client certificate that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Its subject alternative names that are DNS names or URIs.
    pub names: Vec<String>,
    /// When it expires, in seconds since 1970.
    pub not_after: u64,
}

/// Whether a name has the scheme of a URI. So it is never taken for a DNS name, which has no colon.
fn is_uri(name: &&str) -> bool {
    name.contains(':')
}

impl ClientCertificate {
    /// Reads a verified certificate. `None` if it cannot be read.
    pub(crate) fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let parsed = EndEntityCert::try_from(certificate).ok()?;
        let names =
            parsed.valid_dns_names().chain(parsed.valid_uri_names().filter(is_uri)).map(str::to_owned).collect();
        Some(Self { names, not_after: not_after(&parsed)? })
    }

    /// Whether it has expired by now.
    pub(crate) fn is_expired(&self) -> bool {
        self.not_after < UnixTime::now().as_secs()
    }
}

/// When a certificate expires, in seconds since 1970. The library tells it to those who ask too late: it looks at the
/// time first, before any signature.
pub(super) fn not_after(certificate: &EndEntityCert<'_>) -> Option<u64> {
    let never = UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::MAX));
    match certificate.verify_for_usage(&[], &[], &[], never, KeyUsage::client_auth(), None, None) {
        Err(Error::CertExpired { not_after, .. }) => Some(not_after.as_secs()),
        Ok(_) | Err(_) => None,
    }
}
