//! Converts the text of a setting to a value. The error of each function says what it expected.

use std::{
    fmt::Display,
    net::{SocketAddr, ToSocketAddrs},
    ops::RangeInclusive,
    str::FromStr,
    time::Duration,
};

/// An address or a host name, and a port. If a name has several addresses, an IPv4 address is used, because every
/// client can reach it.
///
/// # Errors
///
/// If the text is not an address and port, or if no host has that name.
pub fn socket_addr(text: &str) -> Result<SocketAddr, String> {
    if let Ok(addr) = text.parse() {
        return Ok(addr);
    }
    let host_and_port = text.rsplit_once(':').filter(|(host, port)| is_host(host) && port.parse::<u16>().is_ok());
    if host_and_port.is_none() {
        return Err("expected an address and port such as 127.0.0.1:50051 or [::]:50051".into());
    }
    let found: Vec<SocketAddr> =
        text.to_socket_addrs().map_err(|error| format!("cannot find this host: {error}"))?.collect();
    let first = found.iter().find(|addr| addr.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| "this host has no address".into())
}

/// Whether a text may be a host name (RFC 1123, section 2.1; underscores are common in networks of containers).
fn is_host(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
    // A text of only digits and dots is a wrong address, not a name.
    !text.is_empty() && text.chars().all(allowed) && text.contains(|c: char| c.is_ascii_alphabetic())
}

/// `true` or `false`.
///
/// # Errors
///
/// If it is neither.
pub fn switch(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "expected true or false".into())
}

/// A whole number with a unit, such as `20ms`, `10s` or `2m`, within bounds.
///
/// # Errors
///
/// If the text is not such a value.
pub fn duration(bounds: RangeInclusive<Duration>) -> impl FnOnce(&str) -> Result<Duration, String> {
    move |text| {
        let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
        let number = text[..text.len() - unit.len()].parse::<u64>().ok();
        let factor = match unit {
            "ms" => Some(1),
            "s" => Some(1_000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            _ => None,
        };
        let duration = number.zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
        let duration = duration.ok_or("expected a duration such as 20ms, 10s or 2m")?;
        within(Duration::from_millis(duration), &bounds, |bound| format!("{bound:?}"))
    }
}

/// A whole number within bounds.
///
/// # Errors
///
/// If the text is not such a value.
pub fn whole<T>(bounds: RangeInclusive<T>) -> impl FnOnce(&str) -> Result<T, String>
where
    T: FromStr + PartialOrd + Display,
{
    move |text| {
        let number =
            text.parse().map_err(|_| format!("expected a whole number from {} to {}", bounds.start(), bounds.end()))?;
        within(number, &bounds, ToString::to_string)
    }
}

/// A number of bytes, such as `65536`, `64KiB` or `64MiB`, within bounds.
///
/// # Errors
///
/// If the text is not such a value.
pub fn bytes(bounds: RangeInclusive<usize>) -> impl FnOnce(&str) -> Result<usize, String> {
    move |text| {
        let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
        let number = text[..text.len() - unit.len()].parse::<usize>().ok();
        let factor = match unit {
            "" => Some(1),
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            "GiB" => Some(1 << 30),
            _ => None,
        };
        let bytes = number.zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
        within(bytes.ok_or("expected bytes such as 65536 or 64MiB")?, &bounds, ToString::to_string)
    }
}

/// A name of 1 to 128 characters that every engine accepts: letters, digits, `-`, `_` and `.`.
///
/// # Errors
///
/// If the text is not such a value.
pub fn text(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
    if (1..=128).contains(&text.len()) && text.chars().all(allowed) {
        Ok(text.into())
    } else {
        Err("expected 1 to 128 letters, digits, \"-\", \"_\" and \".\"".into())
    }
}

/// One of these words.
///
/// # Errors
///
/// If the text is none of these words.
pub fn one_of<T: Copy>(words: &[(&'static str, T)]) -> impl FnOnce(&str) -> Result<T, String> {
    move |text| {
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        found.ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            format!("expected {}", words.join(" or "))
        })
    }
}

fn within<T: PartialOrd>(value: T, bounds: &RangeInclusive<T>, show: impl Fn(&T) -> String) -> Result<T, String> {
    if bounds.contains(&value) {
        Ok(value)
    } else {
        Err(format!("must be from {} to {}", show(bounds.start()), show(bounds.end())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_host_names() {
        assert_eq!(socket_addr("127.0.0.1:7"), Ok(SocketAddr::from(([127, 0, 0, 1], 7))));
        assert_eq!(socket_addr("localhost:7"), Ok(SocketAddr::from(([127, 0, 0, 1], 7))));
        for wrong in
            ["localhost", ":7", "localhost:", "localhost:http", "localhost:65536", "127.0.0.256:7", "a b:7", ""]
        {
            assert!(socket_addr(wrong).unwrap_err().starts_with("expected an address and port"), "{wrong}");
        }
    }
}
