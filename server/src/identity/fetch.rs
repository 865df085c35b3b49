//! Reads the keys of an issuer from its URL.
//!
//! Owns the limits of that request. Must never follow a redirect: the file names the URL that is trusted. Must never use
//! plain HTTP beyond this machine.

use std::{fmt, net::IpAddr, str::FromStr, time::Duration};

use bytes::Bytes;
use http::Uri;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

/// Largest JWKS, in bytes.
pub(super) const JWKS_BYTES_MAX: u64 = 1 << 20;
/// How long the answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A URL of keys: HTTPS, or a loopback address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url(Uri);

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|_| format!("{text:?} is not a URL"))?;
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        match uri.scheme_str() {
            Some("https") if !host.is_empty() => Ok(Self(uri)),
            Some("http") if is_here => Ok(Self(uri)),
            _ => Err(format!(
                "{text:?} must be an https:// URL, since whoever changes the keys on the way may forge votes"
            )),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads what is at the URL.
pub(super) async fn fetch(url: Url) -> Result<Bytes, String> {
    let get = async {
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
            .map_err(|error| format!("no trusted certificates on this machine: {error}"))?
            .https_or_http()
            .enable_http1()
            .build();
        let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
        let answer = client.get(url.0.clone()).await.map_err(|error| reasons(&error))?;
        if !answer.status().is_success() {
            return Err(format!("{url} answered {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), JWKS_BYTES_MAX as usize).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| format!("{url}: {error}"))
    };
    match tokio::time::timeout(TIMEOUT, get).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("{url} took longer than {} s", TIMEOUT.as_secs())),
    }
}

/// An error and its causes.
fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_over_tls_or_from_this_machine() {
        for good in
            ["https://login.example/jwks.json", "http://127.0.0.1:9/jwks", "http://[::1]:9/", "http://localhost/k"]
        {
            assert!(good.parse::<Url>().is_ok(), "{good}");
        }
        for bad in ["http://login.example/jwks.json", "http://10.0.0.1/k", "ftp://x/y", "https://", "jwks.json", ""] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
    }
}
