//! Addresses of services.

use std::{
    fmt::{self, Display, Formatter},
    str::FromStr,
    sync::Arc,
};

use tonic::transport::Uri;

/// Address of a service: `http://host:port`, or `host:port`. Copies are cheap.
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
    /// Its scheme is not `http`.
    #[error("only http:// is supported; put a TLS proxy in between")]
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
        if uri.scheme_str() != Some("http") {
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
        assert_eq!(url("https://host:1"), Err(AddressError::NotHttp));
        assert_eq!(url("http://"), Err(AddressError::NotAUrl));
        assert_eq!(url(""), Err(AddressError::NotAUrl));
    }

    #[test]
    fn the_local_address_is_what_its_text_says() {
        let local = Address::local(50_051);
        assert_eq!(local.url().parse(), Ok(local.clone()));
    }
}
