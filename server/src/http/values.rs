//! What values of headers mean, for every route that asks.
//!
//! Owns how lists with weights, lists of tags, and origins are read. Must never decide what follows from them.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// The items of all headers of this name, in lower case, each with its weight from 0 to 1 (RFC 9110, section 12.4.2). A
/// weight that cannot be read counts as none, which is 1.
pub fn weighted(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = (String, f32)> {
    let lists = headers.get_all(name).iter().filter_map(|list| list.to_str().ok());
    lists.flat_map(|list| list.split(',')).map(|item| {
        let mut parts = item.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let weight = weight.and_then(|weight| weight.trim().parse().ok());
        (name, weight.filter(|weight| (0.0..=1.0).contains(weight)).unwrap_or(1.0))
    })
}

/// Whether a client has the version with this tag (RFC 9110, section 13.1.2; the comparison is weak).
pub fn has_version(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    fn opaque(tag: &str) -> &str {
        let tag = tag.trim();
        tag.strip_prefix("W/").unwrap_or(tag)
    }
    let Ok(tag) = tag.to_str() else { return false };
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|known| known.to_str().ok());
    known.flat_map(|known| known.split(',')).any(|known| known.trim() == "*" || opaque(known) == opaque(tag))
}

/// Whether a text is an origin, such as `https://vote.example` or `http://[::1]:8080`. The host may begin with `*.` if
/// `wildcards` says so.
pub fn is_origin(text: &str, wildcards: bool) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn items_have_their_weights() {
        let accepted = headers(header::ACCEPT, &["Text/CSV; q=0.5;x=1, a/b", "c/d;Q=0, e/f;q=NaN, g/h;q=7", ""]);
        let found: Vec<_> = weighted(&accepted, header::ACCEPT).collect();
        let expected = [("text/csv", 0.5), ("a/b", 1.0), ("c/d", 0.0), ("e/f", 1.0), ("g/h", 1.0), ("", 1.0)];
        assert_eq!(found, expected.map(|(name, weight)| (name.to_owned(), weight)));
    }

    #[test]
    fn versions_are_compared_weakly() {
        let has =
            |known: &[&str], tag: &str| has_version(&headers(header::IF_NONE_MATCH, known), &tag.parse().unwrap());
        for known in [&["W/\"a\""][..], &["\"a\""], &["\"x\" , W/\"a\""], &["\"x\"", "\"a\""], &["*"]] {
            assert!(has(known, "W/\"a\"") && has(known, "\"a\""), "{known:?}");
        }
        for other in [&[][..], &["\"b\""], &["a"], &["WW/\"a\""]] {
            assert!(!has(other, "W/\"a\""), "{other:?}");
        }
    }
}
