//! Who a client is by its certificate.
//!
//! Owns what the rest of the server learns of a certificate. Must never decide what its owner may do. Must only be asked
//! about certificates that were verified.

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, Error, KeyUsage};

use super::chains::INTERMEDIATES_MAX;

/// A client certificate that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Its subject alternative names that are DNS names or URIs; DNS names, schemes and hosts are in lower case.
    pub names: Vec<String>,
    /// When it expires, or the certificate of its issuer if that is earlier, in seconds since 1970.
    pub not_after: u64,
}

/// Whether a name has the scheme of a URI. So it is never taken for a DNS name, which has no colon.
fn is_uri(name: &str) -> bool {
    name.contains(':')
}

/// A DNS name or a URI in the form in which equal names are equal texts: DNS names, and of URIs the scheme and the host, are the
/// same in upper and lower case (RFC 3986, section 6.2.2.1). The rest of a URI is not.
pub(crate) fn same_form(name: &str) -> String {
    if !is_uri(name) {
        return name.to_ascii_lowercase();
    }
    let (scheme, rest) = name.split_once(':').unwrap_or((name, ""));
    let authority = rest.strip_prefix("//").map_or("", |rest| rest.split(['/', '?', '#']).next().unwrap_or(""));
    let host = authority.rsplit('@').next().unwrap_or("");
    let host_at = if authority.is_empty() { 0 } else { "//".len() + authority.len() - host.len() };
    let (before, host_and_rest) = rest.split_at(host_at);
    let (host, after) = host_and_rest.split_at(host.len());
    format!("{}:{before}{}{after}", scheme.to_ascii_lowercase(), host.to_ascii_lowercase())
}

impl ClientCertificate {
    /// Reads a verified certificate, which is followed by those of its issuers. `None` if it cannot be read.
    pub(crate) fn read(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let (own, issuers) = chain.split_first()?;
        let parsed = EndEntityCert::try_from(own).ok()?;
        let names = parsed.valid_dns_names().chain(parsed.valid_uri_names().filter(|name| is_uri(name))).map(same_form);
        Some(Self { names: names.collect(), not_after: not_after(&parsed)?.min(end_of(&parsed, issuers)) })
    }

    /// Whether it has expired by now.
    pub(crate) fn is_expired(&self) -> bool {
        self.not_after < UnixTime::now().as_secs()
    }
}

/// When a verified certificate ends because those of its issuers do. Of several that may have issued one, the last to end counts.
fn end_of(own: &EndEntityCert<'_>, issuers: &[CertificateDer<'_>]) -> u64 {
    let parsed = issuers.iter().filter_map(|issuer| EndEntityCert::try_from(issuer).ok());
    // One that has issued itself is a CA that the server knows, or none at all: it proves nothing, whenever it ends.
    let issuers: Vec<_> = parsed
        .filter(|issuer| issuer.subject() != issuer.issuer())
        .filter_map(|issuer| Some((not_after(&issuer)?, issuer)))
        .collect();
    let (mut end, mut wanted) = (u64::MAX, own.issuer());
    for _ in 0..INTERMEDIATES_MAX {
        let possible = issuers.iter().filter(|(_, issuer)| issuer.subject() == wanted);
        let Some((ends, issuer)) = possible.max_by_key(|(ends, _)| *ends) else { break };
        (end, wanted) = (end.min(*ends), issuer.issuer());
    }
    end
}

/// When a certificate expires, in seconds since 1970. The library tells it to those who ask too late: it looks at the
/// time first, before any signature.
pub(super) fn not_after(certificate: &EndEntityCert<'_>) -> Option<u64> {
    let never = UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::MAX));
    match used_by_a_client(certificate, never) {
        Err(Error::CertExpired { not_after, .. }) => Some(not_after.as_secs()),
        Ok(()) | Err(_) => None,
    }
}

/// When the certificate of a CA expires; `None` if it is not one of a CA. The library tells it to those who take it for a
/// client's.
pub(super) fn end_of_ca(certificate: &EndEntityCert<'_>) -> Option<u64> {
    let end = not_after(certificate)?;
    let last_moment = UnixTime::since_unix_epoch(std::time::Duration::from_secs(end));
    (used_by_a_client(certificate, last_moment) == Err(Error::CaUsedAsEndEntity)).then_some(end)
}

fn used_by_a_client(certificate: &EndEntityCert<'_>, at: UnixTime) -> Result<(), Error> {
    certificate.verify_for_usage(&[], &[], &[], at, KeyUsage::client_auth(), None, None).map(drop)
}
