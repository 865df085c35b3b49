//! Which pages may show ours in a frame, and the content security policy that says so.

use std::str::FromStr;

use http::HeaderValue;

/// Everything that the page needs, and nothing else: its own files, its own API.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors ";

/// Pages that may show ours in a frame. None by default: whoever frames a page can make people click on what they do not
/// see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameAncestors(Vec<String>);

/// A text that names no origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAnOrigin(String);

impl std::fmt::Display for NotAnOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} is not an origin: expected http(s)://HOST[:PORT], self or *", self.0)
    }
}

impl std::error::Error for NotAnOrigin {}

/// Whether a text is an origin, such as `https://vote.example` or `http://[::1]:8080`. The host may begin with `*.` if
/// `wildcards` says so.
pub(crate) fn is_origin(text: &str, wildcards: bool) -> bool {
    let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else { return false };
    let (host, port) = match rest.rsplit_once(':') {
        // The colons of an IPv6 address are within brackets.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        Some(_) | None => (rest, None),
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let named = || {
        let host = host.strip_prefix("*.").filter(|_| wildcards).unwrap_or(host);
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    address.map_or_else(named, |address| address.parse::<std::net::Ipv6Addr>().is_ok())
        && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

impl FromStr for FrameAncestors {
    type Err = NotAnOrigin;

    /// Reads origins with blanks or commas between, such as `https://show.example https://*.example`. `self` stands for
    /// the page's own origin, and `*` for all.
    fn from_str(text: &str) -> Result<Self, NotAnOrigin> {
        let origins = text.split([' ', ',']).filter(|origin| !origin.is_empty());
        let source = |origin: &str| match origin {
            "*" => Ok("*".to_owned()),
            "self" | "'self'" => Ok("'self'".to_owned()),
            _ if is_origin(origin, true) => Ok(origin.to_owned()),
            _ => Err(NotAnOrigin(origin.to_owned())),
        };
        origins.map(source).collect::<Result<_, _>>().map(Self)
    }
}

impl FrameAncestors {
    /// The policy of a document.
    pub(crate) fn policy(&self) -> HeaderValue {
        let ancestors = if self.0.is_empty() { "'none'".to_owned() } else { self.0.join(" ") };
        // Origins have only visible ASCII characters.
        HeaderValue::from_str(&format!("{POLICY}{ancestors}"))
            .unwrap_or(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_checked() {
        for good in ["", "*", "self", "https://a.example", "https://*.a.example, http://localhost:8080 http://[::1]:1"]
        {
            assert!(good.parse::<FrameAncestors>().is_ok(), "{good}");
        }
        for bad in [
            "a.example",
            "https://",
            "https://a.example/",
            "https://a.example;script-src *",
            "https://a:b",
            "https://[::1",
            "javascript:1",
            "https://a.*",
        ] {
            assert!(bad.parse::<FrameAncestors>().is_err(), "{bad}");
        }
        let policy = "https://a.example self".parse::<FrameAncestors>().unwrap().policy();
        assert!(policy.to_str().unwrap().ends_with("frame-ancestors https://a.example 'self'"));
        assert!(!is_origin("https://*.a", false) && is_origin("https://a.example:8443", false));
    }
}
