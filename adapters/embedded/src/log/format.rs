//! The bytes of a segment file: its header, and groups of records.
//!
//! Owns their encoding and their checksums. Must never accept bytes as a group that were not written as a group of this
//! segment: the seed of every checksum is made of the ids of directory and segment.
//!
//! A segment is a header of 64 bytes, then groups, each padded to a multiple of 8 bytes. Numbers are big-endian.
//!
//! | header | bytes | | group | bytes |
//! |---|---|---|---|---|
//! | magic, version | 12 | | magic, kind, 3 zeros | 8 |
//! | reserved | 4 | | length of its meta data, of its data | 8 |
//! | id of the directory | 16 | | number of the group, checksum of the group before | 16 |
//! | number of the segment | 8 | | number of the first record, arrival | 16 |
//! | end of the segment before, checksum of its last group | 16 | | changes of polls so far | 8 |
//! | checksum | 8 | | checksum of all this and the meta data | 8 |
//!
//! The meta data of records are shard u32, length u32 and checksum u64 of each. Their data follow in the same order.
//! Groups of other kinds have no data. A group names the checksum of the group before it. So it proves that the group
//! before was synced, because it was written later.

use votestream_core::Timestamp;
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed};

use crate::codec::{Corrupt, Decoder, Encoder};

/// Bytes of a segment's header.
pub(super) const SEGMENT_HEADER_BYTES: usize = 64;
/// Bytes of a group's header.
pub(super) const GROUP_HEADER_BYTES: usize = 64;
/// Bytes of a record's entry in the meta data.
const ENTRY_BYTES: usize = 16;
/// Groups begin at multiples of this.
pub(super) const ALIGNMENT: u64 = 8;
/// Largest meta data: those of a table with a hundred thousand shards. A header that claims more is not a group.
const META_BYTES_MAX: u32 = 16 << 20;
/// Largest data: a full group and one more record. A header that claims more is not a group.
const DATA_BYTES_MAX: u32 = 32 << 20;

const SEGMENT_MAGIC: [u8; 8] = *b"VSTRMLOG";
const SEGMENT_VERSION: u32 = 1;
pub(super) const GROUP_MAGIC: [u8; 4] = *b"VSgr";

/// Where a segment ends, and the checksum of its last group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seal {
    pub(super) end: u64,
    pub(super) checksum: u64,
}

/// The header of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Id of the data directory.
    pub(super) directory: u128,
    pub(super) number: u64,
    /// The end of the segment before this one.
    pub(super) before: Seal,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let Self { directory, number, before: Seal { end, checksum } } = *self;
        let mut bytes = Encoder(Vec::with_capacity(SEGMENT_HEADER_BYTES));
        bytes.raw(&SEGMENT_MAGIC).u32(SEGMENT_VERSION).u32(0).u128(directory).u64(number).u64(end).u64(checksum);
        let own = xxh3_64(&bytes.0);
        bytes.u64(own);
        bytes.0
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Corrupt> {
        let (covered, own) = bytes.split_at_checked(SEGMENT_HEADER_BYTES - 8).ok_or(Corrupt)?;
        let mut own = Decoder(own);
        let mut header = Decoder(covered);
        if header.bytes(8)? != SEGMENT_MAGIC || header.u32()? != SEGMENT_VERSION || own.u64()? != xxh3_64(covered) {
            return Err(Corrupt);
        }
        own.end()?;
        header.u32()?;
        let (directory, number) = (header.u128()?, header.u64()?);
        Ok(Self { directory, number, before: Seal { end: header.u64()?, checksum: header.u64()? } })
    }

    /// The seed of all checksums in the segment.
    pub(super) fn seed(&self) -> u64 {
        let mut bytes = Encoder::default();
        bytes.u128(self.directory).u64(self.number);
        xxh3_64(&bytes.0)
    }
}

/// What a group holds. These numbers are stored in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The state after everything before this segment. Every segment begins with one.
    Table = 0,
    Records = 1,
    /// Shards that are new or have changed.
    Shards = 2,
    /// Shards that are no longer needed.
    Forgotten = 3,
    /// The log was closed in order, so the group before was synced. If a start finds that group damaged, it is damage
    /// and not a torn tail.
    End = 4,
}

/// The header of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupHeader {
    pub(super) kind: Kind,
    pub(super) meta_len: u32,
    pub(super) data_len: u32,
    pub(super) number: u64,
    /// Checksum of the group before, even if that is in another segment.
    pub(super) previous: u64,
    /// Number of its first record; the others follow without gaps.
    pub(super) first: u64,
    pub(super) arrived_at: Timestamp,
    /// Number of changes of polls in the store so far.
    pub(super) polls: u64,
    pub(super) checksum: u64,
}

impl GroupHeader {
    /// Encodes all fields except the checksum.
    pub(super) fn encode(&self) -> Vec<u8> {
        // Every field is named, so that a new one cannot be forgotten here.
        let Self { kind, meta_len, data_len, number, previous, first, arrived_at, polls, checksum: _ } = *self;
        let mut bytes = Encoder(Vec::with_capacity(GROUP_HEADER_BYTES));
        bytes.raw(&GROUP_MAGIC).u8(kind as u8).raw(&[0; 3]).u32(meta_len).u32(data_len);
        bytes.u64(number).u64(previous).u64(first).time(arrived_at).u64(polls);
        bytes.0
    }

    /// Reads a header. The caller must compare its checksum with [`checksum`].
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut header = Decoder(bytes);
        if header.bytes(4)? != GROUP_MAGIC {
            return Err(Corrupt);
        }
        let kind = match header.u8()? {
            0 => Kind::Table,
            1 => Kind::Records,
            2 => Kind::Shards,
            3 => Kind::Forgotten,
            4 => Kind::End,
            _ => return Err(Corrupt),
        };
        header.bytes(3)?;
        let (meta_len, data_len) = (header.u32()?, header.u32()?);
        if meta_len > META_BYTES_MAX || data_len > DATA_BYTES_MAX {
            return Err(Corrupt);
        }
        Ok(Self {
            kind,
            meta_len,
            data_len,
            number: header.u64()?,
            previous: header.u64()?,
            first: header.u64()?,
            arrived_at: header.time()?,
            polls: header.u64()?,
            checksum: header.u64()?,
        })
    }

    /// Bytes from the start of this group to the start of the next one.
    pub(super) fn size(&self) -> u64 {
        padded(GROUP_HEADER_BYTES as u64 + u64::from(self.meta_len) + u64::from(self.data_len))
    }
}

/// The next multiple of the alignment.
pub(super) fn padded(len: u64) -> u64 {
    len.next_multiple_of(ALIGNMENT)
}

/// Checksum of a group: of its meta data, and of its header up to the checksum.
pub(super) fn checksum(seed: u64, header: &[u8], meta: &[u8]) -> u64 {
    let mut hash = Xxh3::with_seed(seed);
    hash.update(&header[..GROUP_HEADER_BYTES - 8]);
    hash.update(meta);
    hash.digest()
}

/// Checksum of a record.
pub(super) fn record_checksum(seed: u64, sequence: u64, data: &[u8]) -> u64 {
    xxh3_64_with_seed(data, seed ^ sequence)
}

/// The entry of a record in the meta data of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) shard: u32,
    pub(super) len: u32,
    pub(super) checksum: u64,
}

impl Entry {
    pub(super) fn encode(&self, meta: &mut Encoder) {
        meta.u32(self.shard).u32(self.len).u64(self.checksum);
    }
}

/// The entries of a group of records, each with the record's number and the offset of its data behind the meta data.
pub(super) fn entries(header: &GroupHeader, meta: &[u8]) -> Result<Vec<(u64, u64, Entry)>, Corrupt> {
    let mut bytes = Decoder(meta);
    let (mut found, mut place) = (Vec::with_capacity(meta.len() / ENTRY_BYTES), 0);
    while !bytes.0.is_empty() {
        let entry = Entry { shard: bytes.u32()?, len: bytes.u32()?, checksum: bytes.u64()? };
        found.push((header.first.checked_add(found.len() as u64).ok_or(Corrupt)?, place, entry));
        place += u64::from(entry.len);
    }
    if place == u64::from(header.data_len) { Ok(found) } else { Err(Corrupt) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_and_damage_is_an_error() {
        let header = SegmentHeader { directory: 7, number: 3, before: Seal { end: 99, checksum: 8 } };
        let bytes = header.encode();
        assert_eq!((bytes.len(), SegmentHeader::decode(&bytes)), (SEGMENT_HEADER_BYTES, Ok(header)));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(SegmentHeader::decode(&damaged), Err(Corrupt), "byte {at}");
            assert_eq!(SegmentHeader::decode(&bytes[..at]), Err(Corrupt));
        }
        assert_ne!(header.seed(), SegmentHeader { number: 4, ..header }.seed());
        assert_ne!(header.seed(), SegmentHeader { directory: 8, ..header }.seed());
    }

    #[test]
    fn a_group_is_covered_by_its_checksum() {
        let group = GroupHeader {
            kind: Kind::Records,
            meta_len: 32,
            data_len: 5,
            number: 1,
            previous: 2,
            first: 3,
            arrived_at: Timestamp(4),
            polls: 5,
            checksum: 6,
        };
        let mut bytes = group.encode();
        bytes.extend(6u64.to_be_bytes());
        assert_eq!((bytes.len(), GroupHeader::decode(&bytes)), (GROUP_HEADER_BYTES, Ok(group)));
        assert_eq!(group.size(), 104);
        let whole = checksum(1, &bytes, b"meta");
        assert_ne!(checksum(2, &bytes, b"meta"), whole);
        assert_ne!(checksum(1, &bytes, b"mets"), whole);
        for at in 0..GROUP_HEADER_BYTES - 8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_ne!(checksum(1, &damaged, b"meta"), whole, "byte {at}");
        }
        let mut meta = Encoder::default();
        let entry = |len| Entry { shard: 1, len, checksum: 9 };
        entry(2).encode(&mut meta);
        entry(3).encode(&mut meta);
        assert_eq!(entries(&group, &meta.0), Ok(vec![(3, 0, entry(2)), (4, 2, entry(3))]));
        assert_eq!(entries(&GroupHeader { data_len: 6, ..group }, &meta.0), Err(Corrupt));
        assert_eq!(entries(&group, &meta.0[..31]), Err(Corrupt));
    }
}
