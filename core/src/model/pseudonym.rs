//! Ids of the keys that make pseudonyms of users.
//!
//! Owns how such an id is written. Must never hold a key.

use std::{fmt, str::FromStr};

/// Id of a key. It is derived from the key, so two keys never have the same one by mistake, and it says nothing about
/// the key. Written as 16 hex digits in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// A text is not the id of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the id of a key is 16 hex digits in lower case")]
pub struct NoKeyId;

impl FromStr for KeyId {
    type Err = NoKeyId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 16 || !text.bytes().all(digits) {
            return Err(NoKeyId);
        }
        u64::from_str_radix(text, 16).map(|id| Self(id.to_be_bytes())).map_err(|_| NoKeyId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        for id in [KeyId([0; 8]), KeyId([0, 1, 2, 0x7f, 0x80, 0xab, 0xcd, 0xef]), KeyId([255; 8])] {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for text in ["", "0", "+123456789abcdef", "00000000000000000", "0123456789ABCDEF", "0123456789abcdeg"] {
            assert_eq!(text.parse::<KeyId>(), Err(NoKeyId), "{text}");
        }
    }
}
