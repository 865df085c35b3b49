//! Sequence numbers and positions: the order of the stream, and the only order between votes.
//!
//! Must never be derived from a clock. Both have a byte form that sorts as the values do, for stores that compare
//! bytes.

use std::{fmt, str::FromStr};

/// Sequence number of a record, which the stream assigns.
///
/// Kinesis documents up to 56 decimal digits, which need 187 bits; this holds 192. Zero stands before every record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceNumber {
    high: u64,
    low: u128,
}

/// Why a text is not a sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sequence number is 1 to 57 decimal digits below 2^192")]
pub struct InvalidSequenceNumber;

impl SequenceNumber {
    /// Before the first record of every shard.
    pub const ZERO: Self = Self { high: 0, low: 0 };

    /// A small sequence number, such as those of the embedded engines.
    pub const fn from_u64(number: u64) -> Self {
        Self { high: 0, low: number as u128 }
    }

    /// The number if it fits into 64 bits.
    pub fn as_u64(self) -> Option<u64> {
        if self.high == 0 { u64::try_from(self.low).ok() } else { None }
    }

    /// 24 bytes that compare as the numbers do.
    pub fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.high.to_be_bytes());
        bytes[8..].copy_from_slice(&self.low.to_be_bytes());
        bytes
    }

    /// Reverses [`Self::to_bytes`].
    pub fn from_bytes(bytes: [u8; 24]) -> Self {
        let (mut high, mut low) = ([0; 8], [0; 16]);
        high.copy_from_slice(&bytes[..8]);
        low.copy_from_slice(&bytes[8..]);
        Self { high: u64::from_be_bytes(high), low: u128::from_be_bytes(low) }
    }
}

impl FromStr for SequenceNumber {
    type Err = InvalidSequenceNumber;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(InvalidSequenceNumber);
        }
        // Four limbs of 48 bits, so that limb * 10 + carry fits into 64 bits.
        let mut limbs = [0u64; 4];
        for byte in text.bytes() {
            let mut carry = u64::from(byte.wrapping_sub(b'0'));
            if carry > 9 {
                return Err(InvalidSequenceNumber);
            }
            for limb in &mut limbs {
                let value = *limb * 10 + carry;
                *limb = value & ((1 << 48) - 1);
                carry = value >> 48;
            }
            if carry > 0 {
                return Err(InvalidSequenceNumber);
            }
        }
        let [a, b, c, d] = limbs.map(u128::from);
        let low = a | b << 48 | c << 96;
        let high = (c >> 32) | d << 16;
        Ok(Self { high: high as u64, low })
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CHUNK: u128 = 1_000_000_000;
        let mut limbs = [self.high as u128, self.low >> 64, self.low & u128::from(u64::MAX)];
        let mut chunks = Vec::new();
        while limbs.iter().any(|&limb| limb > 0) {
            let mut rest = 0;
            for limb in &mut limbs {
                let value = rest << 64 | *limb;
                *limb = value / CHUNK;
                rest = value % CHUNK;
            }
            chunks.push(rest);
        }
        write!(f, "{}", chunks.pop().unwrap_or(0))?;
        chunks.iter().rev().try_for_each(|chunk| write!(f, "{chunk:09}"))
    }
}

/// Where a vote stands in the stream. Positions are totally ordered within a shard, and for one user also across
/// reshards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Sequence number of the record.
    pub sequence: SequenceNumber,
    /// Index of the vote in the record.
    pub index: u32,
}

impl Position {
    /// 28 bytes that compare as the positions do.
    pub fn to_bytes(self) -> [u8; 28] {
        let mut bytes = [0; 28];
        bytes[..24].copy_from_slice(&self.sequence.to_bytes());
        bytes[24..].copy_from_slice(&self.index.to_be_bytes());
        bytes
    }

    /// Reverses [`Self::to_bytes`].
    pub fn from_bytes(bytes: [u8; 28]) -> Self {
        let (mut sequence, mut index) = ([0; 24], [0; 4]);
        sequence.copy_from_slice(&bytes[..24]);
        index.copy_from_slice(&bytes[24..]);
        Self { sequence: SequenceNumber::from_bytes(sequence), index: u32::from_be_bytes(index) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_and_bytes_round_trip_and_keep_the_order(a: (u64, u128), b: (u64, u128), i: u32, j: u32) {
            let (a, b) = (SequenceNumber { high: a.0, low: a.1 }, SequenceNumber { high: b.0, low: b.1 });
            prop_assert_eq!(a.to_string().parse(), Ok(a));
            prop_assert_eq!(SequenceNumber::from_bytes(a.to_bytes()), a);
            let (p, q) = (Position { sequence: a, index: i }, Position { sequence: b, index: j });
            prop_assert_eq!(Position::from_bytes(p.to_bytes()), p);
            prop_assert_eq!(p.to_bytes().cmp(&q.to_bytes()), p.cmp(&q));
            let (x, y) = (a.to_string(), b.to_string());
            prop_assert_eq!((x.len(), x).cmp(&(y.len(), y)), a.cmp(&b));
        }
    }

    #[test]
    fn refuses_what_is_no_number() {
        let max = SequenceNumber { high: u64::MAX, low: u128::MAX };
        assert_eq!(max.to_string(), "6277101735386680763835789423207666416102355444464034512895");
        for bad in ["", "-1", "1x", "6277101735386680763835789423207666416102355444464034512896"] {
            assert_eq!(bad.parse::<SequenceNumber>(), Err(InvalidSequenceNumber), "{bad}");
        }
        assert_eq!("0".parse(), Ok(SequenceNumber::ZERO));
    }
}
