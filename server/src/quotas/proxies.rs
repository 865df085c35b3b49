//! The address of a client behind proxies.
//!
//! Owns whose word about an address is taken. Must never believe what a client may have written itself: everything to the
//! left of the first hop that is not trusted.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use http::HeaderMap;
use ipnet::IpNet;

/// The header in which each proxy names its client, after those that came with the request.
const FORWARDED_FOR: &str = "x-forwarded-for";
/// Most networks of proxies.
const NETWORKS_MAX: usize = 100;
/// Most hops that are looked at. What stands further to the left is of no interest to an honest client.
const HOPS_MAX: usize = 32;

/// Proxies whose word about their clients' addresses is taken. None by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Arc<[IpNet]>);

impl FromStr for TrustedProxies {
    type Err = String;

    /// Reads networks with commas between, such as `10.0.0.0/8,fd00::/8`. An address alone is a network of one.
    fn from_str(text: &str) -> Result<Self, String> {
        let networks = text.split(',').map(str::trim).filter(|network| !network.is_empty()).map(network);
        let networks: Arc<[IpNet]> = networks.collect::<Result<_, _>>()?;
        if networks.len() > NETWORKS_MAX {
            return Err(format!("there are {} networks, the limit is {NETWORKS_MAX}", networks.len()));
        }
        Ok(Self(networks))
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network = network.map_err(|_| format!("{text:?} is not a network: expected such as 10.0.0.0/8 or fd00::/8"))?;
    // Whoever writes 10.1.2.3/8 may mean one address or a network; and to trust everybody is to trust every client.
    if network.addr() != network.network() {
        return Err(format!(
            "{text:?} names an address within a network: expected {} or the address alone",
            network.trunc()
        ));
    }
    if network.prefix_len() == 0 {
        return Err(format!("{text:?} is everybody: then every client chooses its own address"));
    }
    Ok(network)
}

impl TrustedProxies {
    fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The address of the client that has sent a request: the rightmost hop that is not a trusted proxy. If a proxy says
    /// something that is no address, its client is unknown, and the proxy itself counts.
    pub(super) fn client(&self, peer: SocketAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.ip().to_canonical();
        if self.0.is_empty() || !self.trusts(client) {
            return client;
        }
        let lines = headers.get_all(FORWARDED_FOR).into_iter().rev();
        let hops = lines.flat_map(|line| line.as_bytes().rsplit(|&byte| byte == b',')).take(HOPS_MAX);
        for hop in hops {
            let Some(address) = address_of(hop.trim_ascii()) else { break };
            client = address;
            if !self.trusts(client) {
                break;
            }
        }
        client
    }
}

/// The address of a hop. Some proxies write the port as well.
fn address_of(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hop_from_the_right_that_is_not_trusted_counts() {
        let proxies: TrustedProxies = "10.0.0.0/8, 192.0.2.7,fd00::/8".parse().unwrap();
        let client = |peer: &str, lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(FORWARDED_FOR, line.parse().unwrap());
            }
            proxies.client(SocketAddr::new(peer.parse().unwrap(), 1), &headers).to_string()
        };
        assert_eq!(
            client("203.0.113.1", &["198.51.100.1"]),
            "203.0.113.1",
            "it is not trusted, so neither is its word"
        );
        assert_eq!(client("10.1.2.3", &[]), "10.1.2.3");
        assert_eq!(client("10.1.2.3", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(client("::ffff:10.1.2.3", &["::ffff:198.51.100.1"]), "198.51.100.1");
        assert_eq!(
            client("fd00::1", &["1.1.1.1, 198.51.100.1 ,192.0.2.7"]),
            "198.51.100.1",
            "the client wrote 1.1.1.1"
        );
        assert_eq!(client("fd00::1", &["1.1.1.1", "198.51.100.1", "10.0.0.9"]), "198.51.100.1", "several headers");
        assert_eq!(client("10.1.2.3", &["198.51.100.1:4711"]), "198.51.100.1");
        assert_eq!(client("10.1.2.3", &["[2001:db8::1]:4711"]), "2001:db8::1");
        assert_eq!(client("10.1.2.3", &["[2001:db8::1]"]), "2001:db8::1");
        assert_eq!(client("10.1.2.3", &["10.0.0.1, 10.0.0.2"]), "10.0.0.1", "a client within the house");
        for unknown in ["unknown", "", "_hidden", "198.51.100.1, unknown", "999.1.1.1"] {
            assert_eq!(client("10.1.2.3", &[unknown]), "10.1.2.3", "{unknown:?}");
        }
        let many = ["10.0.0.1"; 99].join(",");
        assert_eq!(client("10.1.2.3", &[&format!("1.1.1.1,{many}")]), "10.0.0.1", "so many proxies are none");
        let nobody = TrustedProxies::default();
        let headers = HeaderMap::from_iter([(FORWARDED_FOR.parse().unwrap(), "198.51.100.1".parse().unwrap())]);
        assert_eq!(nobody.client("10.1.2.3:1".parse().unwrap(), &headers).to_string(), "10.1.2.3");
    }

    #[test]
    fn networks_are_checked() {
        for good in ["", "127.0.0.1", "10.0.0.0/8,::1", "2001:db8::/32"] {
            assert!(good.parse::<TrustedProxies>().is_ok(), "{good}");
        }
        for bad in ["proxy.example", "10.0.0.0/33", "10.0.0.1/8", "0.0.0.0/0", "::/0", "10.0.0.0/8;::1", "10.0.0.0/"] {
            assert!(bad.parse::<TrustedProxies>().is_err(), "{bad}");
        }
    }
}
