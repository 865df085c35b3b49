//! The bytes of stored values: big-endian numbers, and texts with their length before them.
//!
//! Owns the encoding primitives. Must never panic on stored bytes, whatever they are: damage is an error that names the
//! value.

use std::sync::Arc;

use votestream_core::{SequenceNumber, Timestamp, port::PortError};

/// Stored bytes are not what was written. A retry does not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Corrupt;

impl Corrupt {
    /// Makes an error that names the damaged value.
    pub(crate) fn in_a(self, what: &str) -> PortError {
        PortError::permanent(format!("the embedded store holds a damaged {what}"))
    }
}

/// Position of the last byte that is not zero. Compares whole blocks, because the files have many zeros at their end.
pub(crate) fn last_nonzero(bytes: &[u8]) -> Option<usize> {
    const ZEROS: [u8; 4_096] = [0; 4_096];
    let mut end = bytes.len();
    for block in bytes.rchunks(ZEROS.len()) {
        let start = end - block.len();
        if *block != ZEROS[..block.len()] {
            return block.iter().rposition(|byte| *byte != 0).map(|at| start + at);
        }
        end = start;
    }
    None
}

/// Appends to a value.
#[derive(Default)]
pub(crate) struct Encoder(pub(crate) Vec<u8>);

impl Encoder {
    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(crate) fn i64(&mut self, value: i64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(crate) fn u128(&mut self, value: u128) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(crate) fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(u8::from(value))
    }

    pub(crate) fn time(&mut self, value: Timestamp) -> &mut Self {
        self.i64(value.0)
    }

    pub(crate) fn sequence(&mut self, value: SequenceNumber) -> &mut Self {
        self.raw(&value.to_bytes())
    }

    /// A text of less than 4 GiB. Every text was checked against a much smaller limit before.
    pub(crate) fn text(&mut self, value: &str) -> &mut Self {
        self.u32(value.len() as u32).raw(value.as_bytes())
    }

    pub(crate) fn optional_text(&mut self, value: Option<&str>) -> &mut Self {
        match value {
            None => self.bool(false),
            Some(value) => self.bool(true).text(value),
        }
    }

    pub(crate) fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.0.extend_from_slice(value);
        self
    }
}

/// Reads a value from its start.
pub(crate) struct Decoder<'a>(pub(crate) &'a [u8]);

impl<'a> Decoder<'a> {
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Corrupt> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(Corrupt)?;
        self.0 = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Corrupt> {
        self.bytes(N)?.try_into().map_err(|_| Corrupt)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Corrupt> {
        self.array::<1>().map(|[value]| value)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Corrupt> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Corrupt> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, Corrupt> {
        self.array().map(i64::from_be_bytes)
    }

    pub(crate) fn u128(&mut self) -> Result<u128, Corrupt> {
        self.array().map(u128::from_be_bytes)
    }

    pub(crate) fn bool(&mut self) -> Result<bool, Corrupt> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Corrupt),
        }
    }

    pub(crate) fn time(&mut self) -> Result<Timestamp, Corrupt> {
        self.i64().map(Timestamp)
    }

    pub(crate) fn sequence(&mut self) -> Result<SequenceNumber, Corrupt> {
        self.array().map(SequenceNumber::from_bytes)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, Corrupt> {
        let len = self.u32()? as usize;
        std::str::from_utf8(self.bytes(len)?).map_err(|_| Corrupt)
    }

    pub(crate) fn shared_text(&mut self) -> Result<Arc<str>, Corrupt> {
        self.text().map(Arc::from)
    }

    pub(crate) fn optional_text(&mut self) -> Result<Option<&'a str>, Corrupt> {
        self.bool()?.then(|| self.text()).transpose()
    }

    /// A field that is stored only if it is set, after the byte `tag`.
    pub(crate) fn optional<T>(
        &mut self,
        tag: u8,
        read: impl FnOnce(&mut Self) -> Result<T, Corrupt>,
    ) -> Result<Option<T>, Corrupt> {
        if self.0.first() != Some(&tag) {
            return Ok(None);
        }
        self.u8()?;
        read(self).map(Some)
    }

    /// A list with its length before it. Reads no more than the remaining bytes, whatever the length says.
    pub(crate) fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T, Corrupt>) -> Result<Vec<T>, Corrupt> {
        let count = self.u32()?;
        (0..count).map(|_| item(self)).collect()
    }

    /// Checks that nothing follows.
    pub(crate) fn end(&self) -> Result<(), Corrupt> {
        if self.0.is_empty() { Ok(()) } else { Err(Corrupt) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_byte_that_is_not_zero() {
        let mut bytes = vec![0; 10_000];
        assert_eq!(last_nonzero(&bytes), None);
        assert_eq!(last_nonzero(&[]), None);
        for at in [0, 1_807, 1_808, 5_903, 5_904, 9_999] {
            bytes[at] = 1;
            assert_eq!(last_nonzero(&bytes), Some(at));
        }
    }
}
