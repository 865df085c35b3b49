//! How the text of a setting becomes a value. Each function says what it expected.

use std::{fmt::Display, net::SocketAddr, ops::RangeInclusive, str::FromStr, time::Duration};

/// An address and port.
///
/// # Errors
///
/// If it is none.
pub fn socket_addr(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected an address and port such as 127.0.0.1:50051 or [::]:50051".into())
}

/// `true` or `false`.
///
/// # Errors
///
/// If it is neither.
pub fn switch(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "expected true or false".into())
}

/// A whole number with unit, such as `20ms`, `10s` or `2m`, within bounds.
///
/// # Errors
///
/// If it is none.
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
/// If it is none.
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
/// If it is none.
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

/// A name of 1 to 128 characters of a set that every engine takes: letters, digits, `-`, `_` and `.`.
///
/// # Errors
///
/// If it is none.
pub fn text(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
    if (1..=128).contains(&text.len()) && text.chars().all(allowed) {
        Ok(text.into())
    } else {
        Err("expected 1 to 128 letters, digits, \"-\", \"_\" and \".\"".into())
    }
}

/// One of some words.
///
/// # Errors
///
/// If it is none of them.
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
