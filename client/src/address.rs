//! Addresses of services.

use std::{
    fmt::{self, Display, Formatter},
    net::IpAddr,
    str::FromStr,
    sync::Arc,
};

use tonic::transport::Uri;

/// Address of a service: `https://host`, `http://host:port`, or `host:port`, which means `http`. Copies are cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(Arc<Parts>);

#[derive(Debug, PartialEq, Eq)]
struct Parts {
    url: String,
    uri: Uri,
}

impl Address {
    /// The address as a URL.
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// Whether it is one with TLS.
    pub fn is_secure(&self) -> bool {
        self.0.uri.scheme_str() == Some("https")
    }

    /// Its host, as it is written there.
    pub fn host(&self) -> &str {
        self.0.uri.host().unwrap_or_default()
    }

    /// Whether it certainly is on this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        let host = self.host().trim_start_matches('[').trim_end_matches(']');
        host.eq_ignore_ascii_case("localhost")
            || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
    }

    /// Its port, or that of its scheme.
    pub(crate) fn port(&self) -> u16 {
        self.0.uri.port_u16().unwrap_or(if self.is_secure() { 443 } else { 80 })
    }

    pub(crate) fn uri(&self) -> Uri {
        self.0.uri.clone()
    }

    /// A port of this machine, where `votestream up` listens.
    pub(crate) fn local(port: u16) -> Self {
        let url = format!("http://127.0.0.1:{port}");
        let uri = Uri::builder().scheme("http").authority(format!("127.0.0.1:{port}")).path_and_query("/").build();
        Self(Arc::new(Parts { url, uri: uri.unwrap_or_default() }))
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.url())
    }
}

/// Why a text is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It is no URL with a host.
    #[error("expected a URL such as http://127.0.0.1:50051")]
    NotAUrl,
    /// Its scheme is neither `https` nor `http`.
    #[error("expected https:// or http://")]
    NotHttp,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = url.parse().map_err(|_| AddressError::NotAUrl)?;
        if uri.host().is_none_or(str::is_empty) {
            return Err(AddressError::NotAUrl);
        }
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(AddressError::NotHttp);
        }
        Ok(Self(Arc::new(Parts { url: url.trim_end_matches('/').to_owned(), uri })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let url = |text: &str| text.parse::<Address>().map(|address| address.url().to_owned());
        assert_eq!(url("127.0.0.1:1"), Ok("http://127.0.0.1:1".into()));
        assert_eq!(url("http://host:1/"), Ok("http://host:1".into()));
        assert_eq!(url("[::1]:1"), Ok("http://[::1]:1".into()));
        assert_eq!(url("https://host:1"), Ok("https://host:1".into()));
        assert_eq!(url("https://host"), Ok("https://host".into()));
        assert_eq!(url("ftp://host:1"), Err(AddressError::NotHttp));
        assert_eq!(url("http://"), Err(AddressError::NotAUrl));
        assert_eq!(url(""), Err(AddressError::NotAUrl));
    }

    #[test]
    fn what_stays_on_this_machine() {
        let is_loopback = |text: &str| text.parse::<Address>().unwrap().is_loopback();
        for local in ["127.0.0.1:1", "http://127.9.0.1:1", "[::1]:1", "http://LOCALHOST:1", "[::ffff:127.0.0.1]:1"] {
            assert!(is_loopback(local), "{local}");
        }
        for other in ["127.0.0.1.example:1", "localhost.example:1", "10.0.0.1:1", "[::2]:1", "0.0.0.0:1"] {
            assert!(!is_loopback(other), "{other}");
        }
        let is_secure = |text: &str| text.parse::<Address>().unwrap().is_secure();
        assert!(is_secure("https://host") && !is_secure("http://host") && !is_secure("host:443"));
    }

    #[test]
    fn the_local_address_is_what_its_text_says() {
        let local = Address::local(50_051);
        assert_eq!(local.url().parse(), Ok(local.clone()));
    }
}
