//! Checks the host name that a request uses for this server.
//!
//! Owns the defence against DNS rebinding. In this attack the name of a web page suddenly leads to 127.0.0.1. Its
//! browser then lets the page call any server there, because it believes that it is the page's own server. But it sends
//! the page's name, and nobody uses that name for a server that only this machine can reach. Must never be used for
//! other listeners: any name may lead to them.

use http::{HeaderValue, Request, header, uri::Authority};

/// Whether every host name of the request is safe: a name that strangers cannot point to this machine. Safe names are a
/// loopback address, `localhost` or a name below it, or a name without a dot, which no public DNS has. A request
/// without a name does not come from a browser.
pub(crate) fn is_of_this_machine<B>(request: &Request<B>) -> bool {
    let authority = request.uri().authority().map(Authority::as_str);
    let host = request.headers().get_all(header::HOST).into_iter().map(HeaderValue::to_str);
    // A name that cannot be read is not a name of this machine.
    authority.is_none_or(is_local) && host.into_iter().all(|host| host.is_ok_and(is_local))
}

fn is_local(authority: &str) -> bool {
    if authority.is_empty() {
        return true;
    }
    // A Host must not have a user before the name (RFC 9110, section 7.2).
    let Some(authority) = authority.parse::<Authority>().ok().filter(|_| !authority.contains('@')) else {
        return false;
    };
    let host = authority.host();
    let host = host.strip_suffix('.').unwrap_or(host);
    if let Some(v6) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return v6.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    }
    if let Ok(v4) = host.parse::<std::net::Ipv4Addr>() {
        return v4.is_loopback();
    }
    let last = host.rsplit('.').next().unwrap_or_default();
    // Browsers read a name that ends in a number as an address, and accept more forms than we do (127.1, 0x7f000001).
    let is_number = last.starts_with(|first: char| first.is_ascii_digit());
    last.eq_ignore_ascii_case("localhost") || (!host.contains('.') && !is_number && !host.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine() {
        let local = [
            "localhost",
            "LOCALHOST:50051",
            "localhost.",
            "votes.localhost:1",
            "127.0.0.1",
            "127.0.0.1:50051",
            "127.255.0.9",
            "[::1]",
            "[::1]:50051",
            "[::ffff:127.0.0.1]:80",
            "x",
            "ingest:50051",
            "",
        ];
        for host in local {
            assert!(is_local(host), "{host}");
        }
        let foreign = [
            "vote.example",
            "vote.example:50051",
            "localhost.vote.example",
            "127.0.0.1.vote.example",
            "128.0.0.1",
            "0.0.0.0:50051",
            "10.0.0.5",
            "2130706433",
            "127.1",
            "[::2]",
            "[fe80::1]:80",
            "127.0.0.1@vote.example",
            "user@localhost",
            "a b",
            ".",
            "local.host",
        ];
        for host in foreign {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn every_name_of_a_request_counts() {
        let request = |uri: &str, hosts: &[&[u8]]| {
            let request = hosts.iter().fold(Request::get(uri), |request, host| {
                request.header(header::HOST, HeaderValue::from_bytes(host).unwrap())
            });
            is_of_this_machine(&request.body(()).unwrap())
        };
        assert!(request("/", &[]));
        assert!(request("/", &[b"localhost:1"]));
        assert!(request("http://127.0.0.1:1/", &[]));
        assert!(request("http://127.0.0.1:1/", &[b"localhost"]));
        assert!(!request("/", &[b"vote.example"]));
        assert!(!request("http://vote.example/", &[]));
        assert!(!request("http://127.0.0.1:1/", &[b"vote.example"]));
        assert!(!request("http://vote.example/", &[b"localhost"]));
        assert!(!request("/", &[b"localhost", b"vote.example"]));
        assert!(!request("/", &[b"\xff"]));
    }
}
