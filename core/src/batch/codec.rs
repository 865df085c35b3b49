//! The bytes of a record: `VSB`, a format version, the size of what follows once decompressed, then a zstd frame with one
//! protobuf message in columns.
//!
//! Columns, because ids of one kind next to each other compress well: the lengths and choices of a batch nearly vanish, and
//! a 36-character UUID takes about 19 bytes, of which 16 are its entropy. zstd level 1, because higher levels are ten times
//! slower and save nothing on random ids.

use std::{cell::RefCell, ops::Range, sync::Arc};

use bytes::Bytes;
use prost::{
    Message,
    encoding::{WireType, decode_varint, encode_key, encode_varint},
};

use super::{Batch, BatchId, RecordBody};
use crate::{
    limits::USER_ID_BYTES_MAX,
    poll::{PollId, check_option_id, check_user_id},
    routing::{HashRange, HashRanges},
    time::Timestamp,
};

/// First bytes of every record of ours. JSON starts with a brace and KPL aggregates with F3 89 9A C2.
const MAGIC: [u8; 3] = *b"VSB";
/// Format version that this code writes, and the only one that it reads.
const VERSION: u8 = 1;
/// Magic, version, and the decompressed size as a little-endian u32.
const HEADER_BYTES: usize = 8;
/// Largest decompressed message. An open batch is sealed long before; this bounds what a foreign record can make us allocate.
pub(super) const DECODED_BYTES_MAX: usize = 16 << 20;
/// Most dictionary entries.
const DICTIONARY_MAX: usize = 1 << 20;
/// Most ranges of hashes that a batch may name: each is looked up for every producer. A lane's batch names one, and one
/// more for every reshard within its few seconds of retries.
const RANGES_MAX: usize = 1_024;
/// zstd compression level.
const LEVEL: i32 = 1;

/// Why a record cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It does not start as a record of ours does.
    #[error("not a Votestream record")]
    NotOurs,
    /// Its format version is not known.
    #[error("format version {0} is not known")]
    Version(u8),
    /// It claims to be larger than any batch.
    #[error("decompressed size {0} exceeds {DECODED_BYTES_MAX}")]
    TooLarge(usize),
    /// It does not decompress.
    #[error("not a zstd frame of the stated size")]
    Compression,
    /// What was compressed is not a valid message; names the field.
    #[error("field {0} is invalid")]
    Field(&'static str),
}

/// The protobuf message inside. Field numbers are stored format: never reuse one.
#[derive(Clone, PartialEq, Message)]
struct VoteBatch {
    /// 16 bytes; empty in a marker.
    #[prost(bytes = "vec", tag = "1")]
    producer: Vec<u8>,
    #[prost(uint64, tag = "2")]
    number: u64,
    /// 32 bytes a range: start and end, big-endian.
    #[prost(bytes = "vec", tag = "3")]
    ranges: Vec<u8>,
    #[prost(string, tag = "4")]
    trace_context: String,
    #[prost(string, repeated, tag = "5")]
    polls: Vec<String>,
    /// Dictionary: the entry's poll, as an index into `polls`.
    #[prost(uint32, repeated, tag = "6")]
    entry_polls: Vec<u32>,
    /// Dictionary: the entry's option.
    #[prost(string, repeated, tag = "7")]
    entry_options: Vec<String>,
    #[prost(uint32, repeated, tag = "8")]
    choices: Vec<u32>,
    /// Milliseconds since the Unix epoch of the first vote.
    #[prost(int64, tag = "9")]
    accepted_base: i64,
    /// Per vote, the difference to the vote before.
    #[prost(sint64, repeated, tag = "10")]
    accepted_deltas: Vec<i64>,
    #[prost(uint32, repeated, tag = "11")]
    user_lengths: Vec<u32>,
    #[prost(string, tag = "12")]
    user_block: String,
}

thread_local! {
    /// The message before compression.
    static PLAIN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// The context, and the record before its size is known.
    static COMPRESSOR: RefCell<(Option<zstd::bulk::Compressor<'static>>, Vec<u8>)> =
        const { RefCell::new((None, Vec::new())) };
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// A record without votes: its arrival moves the clock of an idle shard.
pub fn encode_marker() -> Bytes {
    frame(&[])
}

/// The columns of a batch, wherever they stand.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    pub(super) id: BatchId,
    pub(super) ranges: &'a HashRanges,
    pub(super) trace_context: &'a str,
    pub(super) dictionary: &'a [(PollId, Arc<str>)],
    pub(super) choices: &'a [u32],
    pub(super) accepted_at: &'a [Timestamp],
    pub(super) user_block: &'a str,
    pub(super) user_ends: &'a [u32],
}

/// The record of a batch.
pub fn encode(batch: &Batch) -> Bytes {
    encode_columns(Columns {
        id: batch.id,
        ranges: &batch.ranges,
        trace_context: &batch.trace_context,
        dictionary: &batch.dictionary,
        choices: &batch.choices,
        accepted_at: &batch.accepted_at,
        user_block: &batch.user_block,
        user_ends: &batch.user_ends,
    })
}

/// Writes the message field by field, straight from the columns: going through [`VoteBatch`] would copy each of them. That
/// both write the same bytes is tested.
pub(super) fn encode_columns(batch: Columns<'_>) -> Bytes {
    PLAIN.with_borrow_mut(|plain| {
        plain.clear();
        write_message(batch, plain);
        frame(plain)
    })
}

fn write_message(batch: Columns<'_>, plain: &mut Vec<u8>) {
    use prost::encoding::{bytes, int64, string, uint32, uint64};

    bytes::encode(1, &batch.id.producer.to_be_bytes().to_vec(), plain);
    uint64::encode(2, &batch.id.number, plain);
    let ranges = batch.ranges.as_slice().iter();
    let ranges: Vec<u8> =
        ranges.flat_map(|range| [range.start.to_be_bytes(), range.end.to_be_bytes()]).flatten().collect();
    bytes::encode(3, &ranges, plain);
    if !batch.trace_context.is_empty() {
        string::encode(4, &batch.trace_context.to_owned(), plain);
    }
    let (mut polls, mut entry_polls): (Vec<String>, Vec<u32>) = (Vec::new(), Vec::new());
    for (poll, _) in batch.dictionary {
        let known = polls.iter().position(|known| known == poll.as_str());
        entry_polls.push(known.unwrap_or(polls.len()) as u32);
        if known.is_none() {
            polls.push(poll.as_str().to_owned());
        }
    }
    string::encode_repeated(5, &polls, plain);
    uint32::encode_packed(6, &entry_polls, plain);
    let options: Vec<String> = batch.dictionary.iter().map(|(_, option)| option.to_string()).collect();
    string::encode_repeated(7, &options, plain);
    uint32::encode_packed(8, batch.choices, plain);
    let base = batch.accepted_at.first().map_or(0, |first| first.0);
    if base != 0 {
        int64::encode(9, &base, plain);
    }
    let mut before = base;
    let deltas = batch.accepted_at.iter().map(|at| {
        let delta = at.0.wrapping_sub(std::mem::replace(&mut before, at.0));
        ((delta << 1) ^ (delta >> 63)) as u64
    });
    write_packed(10, deltas, plain);
    let mut start = 0;
    let lengths = batch.user_ends.iter().map(|&end| u64::from(end - std::mem::replace(&mut start, end)));
    write_packed(11, lengths, plain);
    if !batch.user_block.is_empty() {
        encode_key(12, WireType::LengthDelimited, plain);
        encode_varint(batch.user_block.len() as u64, plain);
        plain.extend_from_slice(batch.user_block.as_bytes());
    }
}

/// A packed field of varints.
fn write_packed(tag: u32, values: impl ExactSizeIterator<Item = u64>, plain: &mut Vec<u8>) {
    if values.len() == 0 {
        return;
    }
    encode_key(tag, WireType::LengthDelimited, plain);
    // Nearly always one byte a value: room for that length is left, and the values move if it was wrong.
    let (at, guess) = (plain.len(), values.len());
    encode_varint(guess as u64, plain);
    let start = plain.len();
    for value in values {
        if value < 0x80 { plain.push(value as u8) } else { encode_varint(value, plain) }
    }
    let len = plain.len() - start;
    if len != guess {
        let mut length = Vec::new();
        encode_varint(len as u64, &mut length);
        plain.splice(at..start, length);
    }
}

/// Compresses a message and puts the header in front.
fn frame(plain: &[u8]) -> Bytes {
    COMPRESSOR.with_borrow_mut(|(compressor, record)| {
        // zstd fails only where it cannot allocate, which ends a Rust process anyway.
        let compressor = match compressor {
            Some(compressor) => compressor,
            None => compressor.insert(zstd::bulk::Compressor::new(LEVEL).expect("zstd has memory for a context")),
        };
        record.resize(HEADER_BYTES + zstd::zstd_safe::compress_bound(plain.len()), 0);
        let (header, body) = record.split_at_mut(HEADER_BYTES);
        header[..3].copy_from_slice(&MAGIC);
        header[3] = VERSION;
        header[4..].copy_from_slice(&(plain.len() as u32).to_le_bytes());
        let len = compressor.compress_to_buffer(plain, body).expect("the buffer is as large as zstd asks for");
        // An exact copy: the record is kept until it is stored, the scratch buffer for ever.
        Bytes::copy_from_slice(&record[..HEADER_BYTES + len])
    })
}

/// Reads a record of any origin.
pub fn decode(record: &[u8]) -> Result<RecordBody, DecodeError> {
    let (header, frame) = record.split_at_checked(HEADER_BYTES).ok_or(DecodeError::NotOurs)?;
    if header[..3] != MAGIC {
        return Err(DecodeError::NotOurs);
    }
    if header[3] != VERSION {
        return Err(DecodeError::Version(header[3]));
    }
    let size = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
    if size > DECODED_BYTES_MAX {
        return Err(DecodeError::TooLarge(size));
    }
    let mut plain = DECOMPRESSOR
        .with_borrow_mut(|slot| {
            let decompressor = match slot {
                Some(decompressor) => decompressor,
                None => slot.insert(zstd::bulk::Decompressor::new()?),
            };
            decompressor.decompress(frame, size)
        })
        .map_err(|_| DecodeError::Compression)?;
    if plain.len() != size {
        return Err(DecodeError::Compression);
    }
    let message = match read_plainly_written(&plain) {
        Some((message, block)) => {
            // The ids stay where they were decompressed to.
            plain.truncate(block.end);
            plain.drain(..block.start);
            let user_block = String::from_utf8(plain).map_err(|_| DecodeError::Field("VoteBatch"))?;
            VoteBatch { user_block, ..message }
        }
        None => VoteBatch::decode(&plain[..]).map_err(|_| DecodeError::Field("VoteBatch"))?,
    };
    if message.producer.is_empty() && message.choices.is_empty() {
        return Ok(RecordBody::Marker);
    }
    batch_of(message).map(RecordBody::Batch)
}

/// Reads a message as [`write_message`] writes it, without its user ids: returns where those stand. `None` for any other
/// message, valid or not: a general reader of protobuf handles each number by itself, which costs as much as decompressing.
/// That both read the same is tested.
fn read_plainly_written(plain: &[u8]) -> Option<(VoteBatch, Range<usize>)> {
    const fn key(tag: u8, wire_type: WireType) -> u8 {
        tag << 3 | wire_type as u8
    }
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let mut message = VoteBatch::default();
    let (mut block, mut before, mut rest) = (0..0, 0, plain);
    while let Some((&field, after)) = rest.split_first() {
        rest = after;
        let tag = field >> 3;
        // Fields stand in order, and once, unless they are repeated texts.
        if tag < before || (tag == before && !matches!(tag, 5 | 7)) {
            return None;
        }
        before = tag;
        let value = read_varint(&mut rest)?;
        if field == key(2, WireType::Varint) {
            message.number = value;
            continue;
        }
        if field == key(9, WireType::Varint) {
            message.accepted_base = value as i64;
            continue;
        }
        if field != key(tag, WireType::LengthDelimited) {
            return None;
        }
        let bytes;
        (bytes, rest) = rest.split_at_checked(usize::try_from(value).ok()?)?;
        match tag {
            1 => message.producer = bytes.to_vec(),
            3 => message.ranges = bytes.to_vec(),
            4 => message.trace_context = text(bytes)?,
            5 => message.polls.push(text(bytes)?),
            6 => message.entry_polls = read_packed(bytes, |value| value as u32)?,
            7 => message.entry_options.push(text(bytes)?),
            8 => message.choices = read_packed(bytes, |value| value as u32)?,
            10 => message.accepted_deltas = read_packed(bytes, |value| (value >> 1) as i64 ^ -((value & 1) as i64))?,
            11 => message.user_lengths = read_packed(bytes, |value| value as u32)?,
            12 => block = plain.len() - rest.len() - bytes.len()..plain.len() - rest.len(),
            _ => return None,
        }
    }
    Some((message, block))
}

/// The numbers of a packed field.
#[inline]
fn read_packed<T>(mut bytes: &[u8], number: impl Fn(u64) -> T) -> Option<Vec<T>> {
    // Nearly always one byte a number.
    if bytes.iter().fold(0, |all, byte| all | byte) < 0x80 {
        return Some(bytes.iter().map(|&byte| number(byte.into())).collect());
    }
    let mut numbers = Vec::with_capacity(bytes.len());
    while !bytes.is_empty() {
        numbers.push(number(read_varint(&mut bytes)?));
    }
    Some(numbers)
}

#[inline]
fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    match bytes.split_first() {
        Some((&byte, rest)) if byte < 0x80 => {
            *bytes = rest;
            Some(byte.into())
        }
        _ => decode_varint(bytes).ok(),
    }
}

fn batch_of(message: VoteBatch) -> Result<Batch, DecodeError> {
    let producer: [u8; 16] = message.producer.try_into().map_err(|_| DecodeError::Field("producer"))?;
    if message.number == 0 {
        return Err(DecodeError::Field("number"));
    }
    let votes = message.choices.len();
    if message.accepted_deltas.len() != votes {
        return Err(DecodeError::Field("accepted_deltas"));
    }
    if message.user_lengths.len() != votes {
        return Err(DecodeError::Field("user_lengths"));
    }
    let (ranges, rest) = message.ranges.as_chunks::<32>();
    if !rest.is_empty() || ranges.is_empty() || ranges.len() > RANGES_MAX {
        return Err(DecodeError::Field("ranges"));
    }
    let ranges = ranges.iter().map(|bytes| {
        let (mut start, mut end) = ([0; 16], [0; 16]);
        start.copy_from_slice(&bytes[..16]);
        end.copy_from_slice(&bytes[16..]);
        HashRange { start: u128::from_be_bytes(start), end: u128::from_be_bytes(end) }
    });
    // Such a range holds no hash. A batch that covers nothing would be remembered nowhere, and each copy of it count.
    if ranges.clone().any(|range| range.start > range.end) {
        return Err(DecodeError::Field("ranges"));
    }

    if message.entry_polls.len() != message.entry_options.len() || message.entry_options.len() > DICTIONARY_MAX {
        return Err(DecodeError::Field("entry_polls"));
    }
    let polls = message.polls.iter().map(|id| PollId::new(id)).collect::<Result<Vec<_>, _>>();
    let polls = polls.map_err(|_| DecodeError::Field("polls"))?;
    let mut dictionary = Vec::with_capacity(message.entry_polls.len());
    for (poll, option) in message.entry_polls.iter().zip(message.entry_options) {
        let poll = polls.get(*poll as usize).ok_or(DecodeError::Field("entry_polls"))?;
        check_option_id(option.as_bytes()).map_err(|_| DecodeError::Field("entry_options"))?;
        dictionary.push((poll.clone(), Arc::<str>::from(option)));
    }
    if message.choices.iter().copied().max().is_some_and(|largest| largest as usize >= dictionary.len()) {
        return Err(DecodeError::Field("choices"));
    }

    let mut at = message.accepted_base;
    let accepted_at = message.accepted_deltas.into_iter().map(|delta| {
        at = at.wrapping_add(delta);
        Timestamp(at)
    });
    let accepted_at = accepted_at.collect();

    let (mut user_ends, mut end) = (message.user_lengths, 0u32);
    let block = message.user_block.as_bytes();
    // Then every cut is one between characters, and every character is allowed, so that only lengths are left to check.
    let plain = is_plain_text(block);
    for slot in &mut user_ends {
        let (start, length) = (end, *slot as usize);
        end = end.checked_add(*slot).ok_or(DecodeError::Field("user_lengths"))?;
        let allowed = if plain {
            (1..=USER_ID_BYTES_MAX).contains(&length)
        } else {
            // Checks the length, the characters, and that the cut does not fall into one.
            block.get(start as usize..end as usize).is_some_and(|user| check_user_id(user).is_ok())
        };
        if !allowed {
            return Err(DecodeError::Field("user_block"));
        }
        *slot = end;
    }
    if end as usize != message.user_block.len() {
        return Err(DecodeError::Field("user_block"));
    }

    Ok(Batch {
        id: BatchId { producer: u128::from_be_bytes(producer), number: message.number },
        ranges: HashRanges::union_of(ranges),
        trace_context: message.trace_context,
        dictionary,
        choices: message.choices,
        accepted_at,
        user_block: message.user_block,
        user_ends,
    })
}

/// Whether all bytes are characters of ASCII that are not control characters.
fn is_plain_text(bytes: &[u8]) -> bool {
    // In chunks, each without a branch a byte.
    bytes.chunks(256).all(|chunk| chunk.iter().fold(true, |all, byte| all & (0x20..0x7f).contains(byte)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batch::OpenBatch;

    fn batch() -> impl Strategy<Value = Batch> {
        let vote = (0u8..3, 0u8..4, "[^\\p{Cc}]{1,40}", 0i64..1 << 40);
        (prop::collection::vec(vote, 1..60), any::<u128>(), 1u64.., "[0-9a-f-]{0,55}").prop_map(
            |(votes, producer, number, trace_context)| {
                let mut open = OpenBatch::default();
                for (poll, option, user, at) in votes {
                    let poll = PollId::new(&format!("poll-{poll}")).unwrap();
                    let entry = open.entry(&poll, &format!("option {option}").into());
                    open.push(entry, &user, 7, Timestamp(at));
                }
                let ranges = HashRanges::union_of([
                    HashRange { start: 3, end: producer / 2 + 3 },
                    HashRange { start: u128::MAX - 9, end: u128::MAX },
                ]);
                open.to_batch(BatchId { producer, number }, ranges, trace_context)
            },
        )
    }

    proptest! {
        #[test]
        fn round_trips(batch in batch()) {
            prop_assert_eq!(decode(&encode(&batch)), Ok(RecordBody::Batch(batch)));
        }

        #[test]
        fn any_damage_is_an_error_or_a_valid_batch(batch in batch(), at: prop::sample::Index, byte: u8) {
            let mut record = encode(&batch).to_vec();
            let at = at.index(record.len());
            record[at] = byte;
            if let Ok(RecordBody::Batch(read)) = decode(&record) {
                for index in 0..read.len() {
                    prop_assert!(!read.user_id(index).is_empty());
                    prop_assert!((read.choices[index] as usize) < read.dictionary.len());
                }
            }
            prop_assert!(decode(&record[..at]).is_err());
        }

        #[test]
        fn foreign_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&bytes).is_err());
        }
    }

    proptest! {
        #[test]
        fn writes_what_prost_would(batch in batch()) {
            let mut plain = Vec::new();
            let Batch { id, ranges, trace_context, dictionary, choices, accepted_at, user_block, user_ends } = &batch;
            let columns = Columns { id: *id, ranges, trace_context, dictionary, choices, accepted_at, user_block, user_ends };
            write_message(columns, &mut plain);
            let general = VoteBatch::decode(&plain[..]).unwrap();
            prop_assert_eq!(general.encode_to_vec(), &*plain);
            let (message, block) = read_plainly_written(&plain).unwrap();
            let user_block = String::from_utf8(plain[block].to_vec()).unwrap();
            prop_assert_eq!(VoteBatch { user_block, ..message }, general);
        }

        #[test]
        fn reads_any_message_as_prost_would(
            batch in batch(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut plain = Vec::new();
            let Batch { id, ranges, trace_context, dictionary, choices, accepted_at, user_block, user_ends } = &batch;
            let columns = Columns { id: *id, ranges, trace_context, dictionary, choices, accepted_at, user_block, user_ends };
            write_message(columns, &mut plain);
            for (at, byte) in damage {
                let at = at.index(plain.len());
                plain[at] = byte;
            }
            // What the quick reader leaves to the general one is not compared.
            if let Some((message, block)) = read_plainly_written(&plain) {
                let quick = String::from_utf8(plain[block].to_vec()).ok();
                let quick = quick.map(|user_block| VoteBatch { user_block, ..message });
                prop_assert_eq!(quick, VoteBatch::decode(&plain[..]).ok());
            }
        }
    }

    #[test]
    fn marker_round_trips() {
        assert_eq!(decode(&encode_marker()), Ok(RecordBody::Marker));
    }

    #[test]
    fn future_versions_and_bombs_are_refused() {
        let mut record = encode_marker().to_vec();
        record[3] = VERSION + 1;
        assert_eq!(decode(&record), Err(DecodeError::Version(VERSION + 1)));
        record[3] = VERSION;
        record[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(decode(&record), Err(DecodeError::TooLarge(u32::MAX as usize)));
    }

    #[test]
    fn a_batch_names_a_bounded_number_of_ranges() {
        let record = |count: u128| {
            let ranges = HashRanges::union_of((0..count).map(|n| HashRange { start: 2 * n, end: 2 * n }));
            encode(&OpenBatch::default().to_batch(BatchId { producer: 1, number: 1 }, ranges, String::new()))
        };
        assert!(decode(&record(RANGES_MAX as u128)).is_ok());
        assert_eq!(decode(&record(RANGES_MAX as u128 + 1)), Err(DecodeError::Field("ranges")));
    }

    #[test]
    fn uuid_user_ids_take_less_than_24_bytes_a_vote() {
        let mut open = OpenBatch::default();
        let poll = PollId::new("final").unwrap();
        let mut state = 1u128;
        for vote in 0..1_000i64 {
            let mut next = || {
                state = state.wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645).wrapping_add(1);
                (state >> 64) as u64
            };
            let (a, b) = (next(), next());
            let user = format!(
                "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
                a >> 32,
                (a >> 16) & 0xffff,
                a & 0xfff,
                0x8000 | (b >> 48) & 0x3fff,
                b & 0xffff_ffff_ffff
            );
            assert_eq!(user.len(), 36);
            let entry = open.entry(&poll, &format!("option-{}", next() % 5).into());
            open.push(entry, &user, 0, Timestamp(1_700_000_000_000 + vote / 10));
        }
        let id = BatchId { producer: state, number: 77 };
        let record = encode(&open.to_batch(id, HashRange::ALL.into(), String::new()));
        assert!(record.len() <= 24 * 1_000, "{} bytes a vote", record.len() as f64 / 1_000.0);
    }
}
