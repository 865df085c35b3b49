//! Aggregates of the Kinesis Producer Library: F3 89 9A C2, a protobuf message, and the MD5 digest of that message.
//!
//! The message is read in place, field by field: a generated type would allocate many times the size of the record, and
//! somebody else decides that size. Field numbers are those of the library's `aggregation-format.md`.

use md5::{Digest, Md5};

use super::{Builder, DecodeError, ForeignVotes, JsonVote, VOTES_MAX};

/// First bytes of every aggregate.
pub const MAGIC: [u8; 4] = [0xf3, 0x89, 0x9a, 0xc2];
/// Bytes of the digest at the end.
const DIGEST_BYTES: usize = 16;

/// Hash of a partition key, as Kinesis and its libraries compute it: MD5, read as a number.
pub fn key_hash(partition_key: &[u8]) -> u128 {
    u128::from_be_bytes(Md5::digest(partition_key).into())
}

/// Reads an aggregate of JSON votes.
///
/// # Errors
///
/// If it is damaged. A part that is not a JSON vote, or names a key that is not in the tables, is marked as unreadable
/// and keeps its index.
pub fn decode(record: &[u8]) -> Result<ForeignVotes, DecodeError> {
    let body = record.strip_prefix(&MAGIC).ok_or(DecodeError::Aggregate("magic"))?;
    let (message, digest) = body.split_last_chunk::<DIGEST_BYTES>().ok_or(DecodeError::Digest)?;
    if Md5::digest(message)[..] != digest[..] {
        return Err(DecodeError::Digest);
    }

    // The tables may come after the records that refer to them. Each key is hashed once, when it is read: many records
    // may share one long key.
    let (mut partition_keys, mut explicit_keys, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    let mut fields = Fields(message);
    while let Some((number, value)) = fields.next("AggregatedRecord")? {
        match (number, value) {
            (1, Value::Bytes(key)) => push(&mut partition_keys, key_hash(key), "partition_key_table")?,
            (2, Value::Bytes(key)) => push(&mut explicit_keys, explicit_hash(key), "explicit_hash_key_table")?,
            (3, Value::Bytes(part)) => push(&mut parts, part, "records")?,
            (1..=3, _) => return Err(DecodeError::Aggregate("AggregatedRecord")),
            _ => {}
        }
    }

    let mut builder = Builder::default();
    for part in parts {
        let part = Part::decode(part);
        let hash = part.as_ref().ok().and_then(|part| part.hash(&partition_keys, &explicit_keys));
        let vote = match (&part, hash) {
            (Ok(part), Some(_)) => JsonVote::decode(part.data),
            (Ok(_), None) => Err(DecodeError::Aggregate("key index")),
            (Err(error), _) => Err(error.clone()),
        };
        // A part that cannot be read keeps its place, so that the other votes keep their indices.
        builder.push(vote).ok();
        builder.votes.hashes.push(hash.unwrap_or(0));
    }
    Ok(builder.votes)
}

fn push<T>(values: &mut Vec<T>, value: T, field: &'static str) -> Result<(), DecodeError> {
    if values.len() >= VOTES_MAX {
        return Err(DecodeError::Aggregate(field));
    }
    values.push(value);
    Ok(())
}

/// An explicit hash key: a decimal number of 128 bits.
fn explicit_hash(key: &[u8]) -> Option<u128> {
    std::str::from_utf8(key).ok().filter(|key| !key.starts_with('+'))?.parse().ok()
}

/// One record of an aggregate.
#[derive(Default)]
struct Part<'a> {
    partition_key: Option<u64>,
    explicit_key: Option<u64>,
    data: &'a [u8],
}

impl<'a> Part<'a> {
    fn decode(message: &'a [u8]) -> Result<Self, DecodeError> {
        let (mut part, mut fields) = (Self::default(), Fields(message));
        while let Some((number, value)) = fields.next("Record")? {
            match (number, value) {
                (1, Value::Number(index)) => part.partition_key = Some(index),
                (2, Value::Number(index)) => part.explicit_key = Some(index),
                (3, Value::Bytes(data)) => part.data = data,
                (1..=3, _) => return Err(DecodeError::Aggregate("Record")),
                // Tags; only producers use them.
                _ => {}
            }
        }
        Ok(part)
    }

    /// The hash by which it was routed; `None` if it names a key that is not in the tables.
    fn hash(&self, partition_keys: &[u128], explicit_keys: &[Option<u128>]) -> Option<u128> {
        let at = |index: u64| usize::try_from(index).ok();
        // The partition key is required, even if the explicit hash key decides.
        let routed = partition_keys.get(at(self.partition_key?)?).copied();
        match self.explicit_key {
            Some(index) => routed.and(*explicit_keys.get(at(index)?)?),
            None => routed,
        }
    }
}

/// The value of a protobuf field.
#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// A number of fixed size. None of the fields that we read has this type.
    Fixed,
}

/// Reads the fields of a protobuf message one by one.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self, message: &'static str) -> Result<Option<(u64, Value<'a>)>, DecodeError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        self.field().map(Some).ok_or(DecodeError::Aggregate(message))
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(len)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        Some((key >> 3, value)).filter(|(number, _)| *number > 0)
    }

    fn varint(&mut self) -> Option<u64> {
        prost::encoding::decode_varint(&mut self.0).ok()
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use prost::Message;

    use super::*;

    /// The library's message, for writing.
    #[derive(Clone, PartialEq, Message)]
    struct AggregatedRecord {
        #[prost(string, repeated, tag = "1")]
        partition_key_table: Vec<String>,
        #[prost(string, repeated, tag = "2")]
        explicit_hash_key_table: Vec<String>,
        #[prost(message, repeated, tag = "3")]
        records: Vec<Record>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Record {
        #[prost(uint64, required, tag = "1")]
        partition_key_index: u64,
        #[prost(uint64, optional, tag = "2")]
        explicit_hash_key_index: Option<u64>,
        #[prost(bytes = "vec", required, tag = "3")]
        data: Vec<u8>,
    }

    /// Frames a message.
    pub(crate) fn seal(message: &[u8]) -> Vec<u8> {
        [&MAGIC[..], message, &Md5::digest(message)].concat()
    }

    /// An aggregate of (partition key, explicit hash, data), each key once in its table.
    pub(crate) fn aggregate(parts: &[(&str, Option<u128>, Vec<u8>)]) -> Vec<u8> {
        let mut message = AggregatedRecord::default();
        let index = |table: &mut Vec<String>, key: String| {
            let known = table.iter().position(|known| *known == key);
            known.unwrap_or_else(|| {
                table.push(key);
                table.len() - 1
            }) as u64
        };
        for (key, hash, data) in parts {
            let record = Record {
                partition_key_index: index(&mut message.partition_key_table, (*key).to_owned()),
                explicit_hash_key_index: hash.map(|hash| index(&mut message.explicit_hash_key_table, hash.to_string())),
                data: data.clone(),
            };
            message.records.push(record);
        }
        seal(&message.encode_to_vec())
    }

    #[test]
    fn keys_that_are_not_there_spoil_one_vote_only() {
        let vote = super::super::tests::json("p", "u", "x");
        let record = |partition, explicit| Record {
            partition_key_index: partition,
            explicit_hash_key_index: explicit,
            data: vote.clone(),
        };
        let message = AggregatedRecord {
            partition_key_table: vec!["u".into()],
            explicit_hash_key_table: vec!["7".into(), "-1".into(), "340282366920938463463374607431768211456".into()],
            records: vec![
                record(0, None),
                record(1, None),
                record(0, Some(0)),
                record(0, Some(1)),
                record(0, Some(2)),
                record(0, Some(3)),
                record(u64::MAX, Some(0)),
                Record { data: b"nothing".to_vec(), ..record(0, None) },
                record(0, None),
            ],
        };
        let votes = decode(&seal(&message.encode_to_vec())).unwrap();
        assert_eq!(votes.len(), 9);
        assert_eq!(votes.unreadable(), [1, 3, 4, 5, 6, 7]);
        assert_eq!((votes.hashes()[0], votes.hashes()[2], votes.hashes()[8]), (key_hash(b"u"), 7, key_hash(b"u")));
    }

    #[test]
    fn tables_may_follow_and_tags_are_skipped() {
        let vote = super::super::tests::json("p", "u", "x");
        let tagged = [&[8u8, 0, 26, vote.len() as u8][..], &vote, &[0x22, 2, 10, 0]].concat();
        let message = [&[26u8, tagged.len() as u8][..], &tagged, &[10, 1, b'u']].concat();
        let votes = decode(&seal(&message)).unwrap();
        assert_eq!((votes.len(), votes.unreadable(), votes.hashes()), (1, &[][..], &[key_hash(b"u")][..]));
    }

    #[test]
    fn the_hash_is_that_of_kinesis() {
        // MD5 of "a": 0cc175b9c0f1b6a831c399e269772661 (RFC 1321).
        assert_eq!(key_hash(b"a"), 0x0cc1_75b9_c0f1_b6a8_31c3_99e2_6977_2661);
    }

    /// Four votes as the Python package `aws-kinesis-agg` 1.2.3 writes them, the last with an explicit hash of 2^127.
    #[test]
    fn reads_what_another_library_wrote() {
        let record = include_bytes!("aggregate-of-aws-kinesis-agg-1.2.3.bin");
        let votes = decode(record).unwrap();
        assert_eq!(votes.hashes(), [key_hash(b"ada"), key_hash(b"bob"), key_hash(b"ada"), 1 << 127]);
        let (batch, ..) = votes.into_parts(crate::Timestamp(1));
        let read: Vec<_> = (0..batch.len())
            .map(|index| (batch.user_id(index), &*batch.dictionary[batch.choices[index] as usize].1))
            .collect();
        assert_eq!(read, [("ada", "pizza"), ("bob", "salad"), ("ada", "salad"), ("cy", "pizza")]);
    }

    #[test]
    fn too_many_parts_are_refused() {
        // 2 bytes each: an empty record.
        let message = [26u8, 0].repeat(VOTES_MAX + 1);
        assert_eq!(decode(&seal(&message)), Err(DecodeError::Aggregate("records")));
        let many = [26u8, 0].repeat(1_000);
        assert_eq!(decode(&seal(&many)).unwrap().unreadable().len(), 1_000);
    }
}
