//! Which pages may show ours in a frame, and the content security policy that says so.

use std::str::FromStr;

use http::HeaderValue;
use votestream_server::http::is_origin;

/// Everything that the page needs, and nothing else: its own files, its own API.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors ";

/// Pages that may show ours in a frame. None by default: whoever frames a page can make people click on what they do not
/// see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameAncestors(Vec<String>);

impl FromStr for FrameAncestors {
    type Err = String;

    /// Reads origins with blanks or commas between, such as `https://show.example https://*.example`. `self` stands for
    /// the page's own origin, and `*` for all.
    fn from_str(text: &str) -> Result<Self, String> {
        let origins = text.split([' ', ',']).filter(|origin| !origin.is_empty());
        let source = |origin: &str| match origin {
            "*" => Ok("*".to_owned()),
            "self" | "'self'" => Ok("'self'".to_owned()),
            _ if is_origin(origin, true) => Ok(origin.to_owned()),
            _ => Err(format!("{origin:?} is not an origin: expected http(s)://HOST[:PORT], self or *")),
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
