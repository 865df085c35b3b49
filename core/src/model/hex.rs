//! Bytes as hex digits.
//!
//! Owns the one form in which keys, their ids and digests are written. Must never accept half a byte.

/// The bytes as hex digits in lower case.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of as many hex digits in lower case. `None` for any other text.
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let mut bytes = [0; N];
    if pairs.len() != N {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_nothing_else_is_read() {
        assert_eq!(from_hex(&to_hex(&[0, 9, 0x7f, 0xff])), Some([0, 9, 0x7f, 0xff]));
        assert_eq!(to_hex(&[0, 0xab]), "00ab");
        for wrong in ["", "0", "000", "0000", "0G", "AB", " 0", "+1", "\u{e9}"] {
            assert_eq!(from_hex::<1>(wrong), None, "{wrong:?}");
        }
    }
}
