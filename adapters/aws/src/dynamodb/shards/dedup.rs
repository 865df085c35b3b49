//! The dedup table as bytes: one binary attribute of a shard row.
//!
//! Owns the encoding and its largest size. Must never drop an entry to save space: if a table does not fit, the shard
//! stops with an error.
//!
//! Version u8, number of ranges u32, each range (start u128, end u128), number of entries u32, then each entry:
//! producer u128, index of its range u32, number u64, arrival i64. All numbers are big-endian. Many producers share a
//! few ranges, so the ranges are stored once, before the entries.

use std::collections::HashMap;

use votestream_core::{
    HashRange, Timestamp,
    port::{PortError, StoredProducer},
};

use crate::dynamodb::item::ITEM_BYTES_MAX;

const VERSION: u8 = 1;
const RANGE_BYTES: usize = 32;
const ENTRY_BYTES: usize = 16 + 4 + 8 + 8;
/// Bytes of an item that the other attributes of a row leave for this one.
const MEMORY_BYTES_MAX: usize = ITEM_BYTES_MAX - 16_000;

pub(super) fn encode(dedup: &[StoredProducer]) -> Result<Vec<u8>, PortError> {
    let mut ranges = Vec::new();
    let mut indices = HashMap::new();
    for entry in dedup {
        indices.entry(entry.range).or_insert_with(|| {
            ranges.push(entry.range);
            ranges.len() as u32 - 1
        });
    }
    let len = 1 + 4 + ranges.len() * RANGE_BYTES + 4 + dedup.len() * ENTRY_BYTES;
    if len > MEMORY_BYTES_MAX {
        return Err(PortError::permanent(format!(
            "{} producers in {} ranges do not fit into a shard row: {len} bytes of {MEMORY_BYTES_MAX}",
            dedup.len(),
            ranges.len()
        )));
    }
    let mut bytes = Vec::with_capacity(len);
    bytes.push(VERSION);
    bytes.extend_from_slice(&(ranges.len() as u32).to_be_bytes());
    for range in &ranges {
        bytes.extend_from_slice(&range.start.to_be_bytes());
        bytes.extend_from_slice(&range.end.to_be_bytes());
    }
    bytes.extend_from_slice(&(dedup.len() as u32).to_be_bytes());
    for StoredProducer { producer, range, number, arrived_at } in dedup {
        bytes.extend_from_slice(&producer.to_be_bytes());
        bytes.extend_from_slice(&indices[range].to_be_bytes());
        bytes.extend_from_slice(&number.to_be_bytes());
        bytes.extend_from_slice(&arrived_at.0.to_be_bytes());
    }
    Ok(bytes)
}

/// `None` if [`encode`] did not make these bytes.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<StoredProducer>> {
    let mut rest = bytes;
    let [VERSION] = take(&mut rest)? else { return None };
    // Collecting stops at the first entry that is missing, whatever the count says.
    let ranges = (0..u32::from_be_bytes(take(&mut rest)?)).map(|_| {
        Some(HashRange { start: u128::from_be_bytes(take(&mut rest)?), end: u128::from_be_bytes(take(&mut rest)?) })
    });
    let ranges: Vec<HashRange> = ranges.collect::<Option<_>>()?;
    let dedup = (0..u32::from_be_bytes(take(&mut rest)?)).map(|_| {
        Some(StoredProducer {
            producer: u128::from_be_bytes(take(&mut rest)?),
            range: *ranges.get(u32::from_be_bytes(take(&mut rest)?) as usize)?,
            number: u64::from_be_bytes(take(&mut rest)?),
            arrived_at: Timestamp(i64::from_be_bytes(take(&mut rest)?)),
        })
    });
    let dedup = dedup.collect::<Option<_>>()?;
    rest.is_empty().then_some(dedup)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::dynamodb::shards) fn dedup() -> impl Strategy<Value = Vec<StoredProducer>> {
        // Few ranges, so that several entries share one.
        let range =
            prop_oneof![Just(HashRange::ALL), (0u128..4, 4u128..6).prop_map(|(start, end)| HashRange { start, end })];
        let entry = (any::<u128>(), range, any::<u64>(), any::<i64>());
        let entry = entry.prop_map(|(producer, range, number, at)| StoredProducer {
            producer,
            range,
            number,
            arrived_at: Timestamp(at),
        });
        prop::collection::vec(entry, 0..40)
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(dedup in dedup()) {
            let bytes = encode(&dedup).unwrap();
            prop_assert_eq!(decode(&bytes), Some(dedup));
            prop_assert!((0..bytes.len()).all(|len| decode(&bytes[..len]).is_none()));
            prop_assert_eq!(decode(&[&bytes[..], &[0]].concat()), None);
        }

        #[test]
        fn foreign_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            // Must not panic, and must not allocate more memory than the bytes justify.
            if let Some(dedup) = decode(&bytes) {
                prop_assert!(dedup.len() * ENTRY_BYTES <= bytes.len());
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let entry = |producer| StoredProducer { producer, range: HashRange::ALL, number: 1, arrived_at: Timestamp(1) };
        let dedup: Vec<_> = (0..10_000).map(entry).collect();
        assert!(encode(&dedup).is_ok());
        let dedup: Vec<_> = (0..11_000).map(entry).collect();
        assert!(!encode(&dedup).unwrap_err().retryable);
    }
}
