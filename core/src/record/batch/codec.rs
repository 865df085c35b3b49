//! The bytes of a record: `VSB`, a format version, then a protobuf message in columns, then the UUIDs of its users, 16
//! bytes each. Two sizes stand in front of the message: its decompressed size, and its size in the record. The message
//! is a zstd frame unless both sizes are equal.
//!
//! Columns, because numbers of one kind next to each other compress well: times and choices of a batch take nearly no
//! space. zstd level 1, because higher levels are ten times slower and save little. UUIDs stay outside: they are
//! random, so compressing their text took longer than all the rest and still left 19 bytes.
//!
//! Version 1 had every user id as text, one number per vote in each column, and no UUIDs at the end. It is read, but no
//! longer written.

use std::{cell::RefCell, ops::Range, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::{
    Message,
    encoding::{WireType, decode_varint, encode_key, encode_varint},
};
use rustc_hash::FxHashMap;

use super::{Batch, BatchId, RecordBody, runs::Runs};
use crate::{
    HashRange, HashRanges, PollId, Timestamp,
    model::{
        limits::USER_ID_BYTES_MAX,
        poll::{check_option_id, check_user_id},
        user_id::{PREFIX_BYTES_MAX, UUID_TEXT_BYTES, uuid_text},
    },
};

/// First bytes of each of our records. JSON starts with a brace, and KPL aggregates start with F3 89 9A C2.
const MAGIC: [u8; 3] = *b"VSB";
/// Format version that this code writes.
const VERSION: u8 = 2;
/// The version before, which this code still reads.
const VERSION_TEXT: u8 = 1;
/// Magic, version, the decompressed size of the message and, since version 2, its size in the record; both as
/// little-endian u32.
const HEADER_BYTES: usize = 12;
/// Header of version 1.
const HEADER_TEXT_BYTES: usize = 8;
/// Smaller messages are not compressed: they hardly get smaller, and setting up zstd takes as long as 1,000 votes do.
const COMPRESSED_FROM: usize = 512;
/// Largest message, and largest text of all user ids. An open batch is sealed long before that; this bounds how much
/// memory a record of another producer can make us allocate.
pub(super) const DECODED_BYTES_MAX: usize = 16 << 20;
/// Most dictionary entries.
const DICTIONARY_MAX: usize = 1 << 20;
/// Most ranges of hashes that a batch may name, since each is looked up for every producer. A lane's batch names one,
/// and one more for every reshard during its few seconds of retries.
const RANGES_MAX: usize = 1_024;
/// zstd compression level.
const LEVEL: i32 = 1;

/// Why a record cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It does not start as our records do.
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
    /// The decompressed bytes are not a valid message; names the field.
    #[error("field {0} is invalid")]
    Field(&'static str),
}

/// The protobuf message inside. Field numbers are part of the stored format: never reuse one.
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
    /// Per run, the difference to the run before.
    #[prost(sint64, repeated, tag = "10")]
    accepted_deltas: Vec<i64>,
    /// Per run, a number that says how its user ids are stored: the length of each one in `user_block`; or
    /// [`UUIDS_FROM`] for UUIDs; or [`UUIDS_FROM`] + n for UUIDs after prefix number n of `user_prefixes`, counted from
    /// 1.
    #[prost(uint32, repeated, tag = "11")]
    user_shapes: Vec<u32>,
    /// User ids that are not UUIDs.
    #[prost(string, tag = "12")]
    user_block: String,
    /// Number of votes in each run of `accepted_deltas`; empty if every run has one vote.
    #[prost(uint32, repeated, tag = "13")]
    accepted_counts: Vec<u32>,
    /// Number of votes in each run of `user_shapes`; empty if every run has one vote.
    #[prost(uint32, repeated, tag = "14")]
    user_counts: Vec<u32>,
    #[prost(string, repeated, tag = "15")]
    user_prefixes: Vec<String>,
}

/// Shapes from this number on are UUIDs: no text is that long. Part of the stored format.
pub(super) const UUIDS_FROM: u32 = USER_ID_BYTES_MAX as u32 + 1;

thread_local! {
    /// The message before compression.
    static PLAIN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// A record without votes. Its arrival moves the clock of a shard that gets no votes.
pub fn encode_marker() -> Bytes {
    frame(&[], &[])
}

/// The columns of a batch, borrowed from wherever they are kept.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    pub(super) id: BatchId,
    pub(super) ranges: &'a HashRanges,
    pub(super) trace_context: &'a str,
    pub(super) dictionary: &'a [(PollId, Arc<str>)],
    pub(super) choices: &'a [u32],
    pub(super) accepted_at: &'a Runs<Timestamp>,
    pub(super) shapes: &'a Runs<u32>,
    pub(super) prefixes: &'a [Box<str>],
    pub(super) text: &'a str,
    pub(super) uuids: &'a [[u8; 16]],
}

/// Writes the message field by field, straight from the columns: to build a [`VoteBatch`] first would copy each of
/// them. A test checks that both ways write the same bytes.
pub(super) fn encode_columns(batch: Columns<'_>) -> Bytes {
    PLAIN.with_borrow_mut(|plain| {
        plain.clear();
        write_message(batch, plain);
        frame(plain, batch.uuids.as_flattened())
    })
}

fn write_message(batch: Columns<'_>, plain: &mut Vec<u8>) {
    use prost::encoding::{int64, uint64};

    write_bytes(1, &batch.id.producer.to_be_bytes(), plain);
    uint64::encode(2, &batch.id.number, plain);
    let ranges = batch.ranges.as_slice().iter();
    let ranges: Vec<u8> =
        ranges.flat_map(|range| [range.start.to_be_bytes(), range.end.to_be_bytes()]).flatten().collect();
    write_bytes(3, &ranges, plain);
    if !batch.trace_context.is_empty() {
        write_bytes(4, batch.trace_context.as_bytes(), plain);
    }
    let mut polls = FxHashMap::<&str, u32>::default();
    let mut entry_polls = Vec::with_capacity(batch.dictionary.len());
    for (poll, _) in batch.dictionary {
        let next = polls.len() as u32;
        entry_polls.push(*polls.entry(poll.as_str()).or_insert_with(|| {
            write_bytes(5, poll.as_str().as_bytes(), plain);
            next
        }));
    }
    write_packed(6, entry_polls.into_iter().map(u64::from), plain);
    batch.dictionary.iter().for_each(|(_, option)| write_bytes(7, option.as_bytes(), plain));
    if batch.dictionary.len() <= 0x80 {
        // Every choice fits into one byte.
        write_key(8, batch.choices.len(), plain);
        plain.extend(batch.choices.iter().map(|&choice| choice as u8));
    } else {
        write_packed(8, batch.choices.iter().copied().map(u64::from), plain);
    }
    let accepted_at = batch.accepted_at.as_slice();
    let base = accepted_at.first().map_or(0, |(first, _)| first.0);
    if base != 0 {
        int64::encode(9, &base, plain);
    }
    let mut before = base;
    let deltas = accepted_at.iter().map(|(at, _)| {
        let delta = at.0.wrapping_sub(std::mem::replace(&mut before, at.0));
        ((delta << 1) ^ (delta >> 63)) as u64
    });
    write_packed(10, deltas, plain);
    let shapes = batch.shapes.as_slice();
    write_packed(11, shapes.iter().map(|(shape, _)| u64::from(*shape)), plain);
    if !batch.text.is_empty() {
        write_bytes(12, batch.text.as_bytes(), plain);
    }
    write_counts(13, accepted_at, plain);
    write_counts(14, shapes, plain);
    batch.prefixes.iter().for_each(|prefix| write_bytes(15, prefix.as_bytes(), plain));
}

fn write_key(tag: u32, len: usize, plain: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, plain);
    encode_varint(len as u64, plain);
}

fn write_bytes(tag: u32, bytes: &[u8], plain: &mut Vec<u8>) {
    write_key(tag, bytes.len(), plain);
    plain.extend_from_slice(bytes);
}

/// Writes the length of each run, unless all lengths are 1.
fn write_counts<T>(tag: u32, runs: &[(T, u32)], plain: &mut Vec<u8>) {
    if runs.iter().any(|(_, count)| *count != 1) {
        write_packed(tag, runs.iter().map(|(_, count)| u64::from(*count)), plain);
    }
}

/// A packed field of varints.
fn write_packed(tag: u32, values: impl ExactSizeIterator<Item = u64>, plain: &mut Vec<u8>) {
    if values.len() == 0 {
        return;
    }
    encode_key(tag, WireType::LengthDelimited, plain);
    // Nearly always one byte per value: this leaves room for a length of that many bytes. If that was wrong, the values
    // are moved.
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

/// Puts the header in front of a message, compresses it if that saves bytes, and puts the UUIDs behind it.
fn frame(plain: &[u8], uuids: &[u8]) -> Bytes {
    let is_large = plain.len() >= COMPRESSED_FROM;
    let most = if is_large { zstd::zstd_safe::compress_bound(plain.len()) } else { plain.len() };
    let mut record = SpareBuffer::take(HEADER_BYTES + most + uuids.len());
    let bytes = &mut record.0;
    bytes.resize(HEADER_BYTES + most, 0);
    let (header, body) = bytes.split_at_mut(HEADER_BYTES);
    let compressed = is_large.then(|| compress(plain, body)).filter(|len| *len < plain.len());
    let len = compressed.unwrap_or_else(|| {
        body[..plain.len()].copy_from_slice(plain);
        plain.len()
    });
    header[..3].copy_from_slice(&MAGIC);
    header[3] = VERSION;
    header[4..8].copy_from_slice(&(plain.len() as u32).to_le_bytes());
    header[8..].copy_from_slice(&(len as u32).to_le_bytes());
    bytes.truncate(HEADER_BYTES + len);
    bytes.extend_from_slice(uuids);
    Bytes::from_owner(record)
}

/// Compresses into a buffer that has at least the size that zstd asks for. Returns the compressed size.
fn compress(plain: &[u8], buffer: &mut [u8]) -> usize {
    COMPRESSOR.with_borrow_mut(|slot| {
        // zstd fails only if it cannot allocate, which ends a Rust process anyway.
        let compressor =
            slot.get_or_insert_with(|| zstd::bulk::Compressor::new(LEVEL).expect("zstd has memory for a context"));
        compressor.compress_to_buffer(plain, buffer).expect("the buffer is as large as zstd asks for")
    })
}

/// Memory of a record, used again for another one. Otherwise the system would map and clear new memory for each record,
/// which takes longer than filling it.
struct SpareBuffer(Vec<u8>);

/// Memory that waits for the next record.
static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
/// Most buffers that wait. A smaller buffer than the lower bound is not worth keeping, and one of the upper bound or
/// more is too large.
const SPARE_MAX: usize = 16;
const SPARE_BYTES: Range<usize> = 8 << 10..1 << 20;

impl SpareBuffer {
    /// An empty buffer with room for this many bytes.
    fn take(bytes: usize) -> Self {
        let spare = if bytes < SPARE_BYTES.start { None } else { SPARE.lock().pop() };
        // A buffer that is too small would have to be moved later, with its content.
        let mut spare = spare.filter(|spare| spare.capacity() >= bytes).unwrap_or_else(|| Vec::with_capacity(bytes));
        spare.clear();
        Self(spare)
    }
}

impl AsRef<[u8]> for SpareBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for SpareBuffer {
    fn drop(&mut self) {
        if SPARE_BYTES.contains(&self.0.capacity()) {
            let mut spare = SPARE.lock();
            if spare.len() < SPARE_MAX {
                spare.push(std::mem::take(&mut self.0));
            }
        }
    }
}

/// The format version of the record, if it is one of ours and later than what this code reads.
pub fn later_version(record: &[u8]) -> Option<u8> {
    record.strip_prefix(&MAGIC)?.first().copied().filter(|version| *version > VERSION)
}

/// Reads a record of any origin.
///
/// # Errors
///
/// If it is not one of our records, has a later version, or is damaged.
pub fn decode(record: &[u8]) -> Result<RecordBody, DecodeError> {
    let (magic, rest) = record.split_at_checked(MAGIC.len() + 1).ok_or(DecodeError::NotOurs)?;
    if magic[..3] != MAGIC {
        return Err(DecodeError::NotOurs);
    }
    let size = |at: usize| {
        let bytes = rest.get(at..).and_then(|bytes| bytes.first_chunk()).ok_or(DecodeError::NotOurs)?;
        Ok(u32::from_le_bytes(*bytes) as usize)
    };
    let (size, frame, uuids) = match magic[3] {
        VERSION => {
            let (size, len) = (size(0)?, size(4)?);
            let (frame, uuids) = record[HEADER_BYTES..].split_at_checked(len).ok_or(DecodeError::Compression)?;
            (size, frame, uuids)
        }
        VERSION_TEXT => (size(0)?, &record[HEADER_TEXT_BYTES..], &[][..]),
        version => return Err(DecodeError::Version(version)),
    };
    if size > DECODED_BYTES_MAX {
        return Err(DecodeError::TooLarge(size));
    }
    let mut plain = if magic[3] == VERSION && frame.len() == size {
        frame.to_vec()
    } else {
        DECOMPRESSOR
            .with_borrow_mut(|slot| {
                let decompressor = match slot {
                    Some(decompressor) => decompressor,
                    None => slot.insert(zstd::bulk::Decompressor::new()?),
                };
                decompressor.decompress(frame, size)
            })
            .map_err(|_| DecodeError::Compression)?
    };
    if plain.len() != size {
        return Err(DecodeError::Compression);
    }
    let message = match read_plainly_written(&plain) {
        Some((message, block)) => {
            // The ids stay where they were decompressed.
            plain.truncate(block.end);
            plain.drain(..block.start);
            let user_block = String::from_utf8(plain).map_err(|_| DecodeError::Field("VoteBatch"))?;
            VoteBatch { user_block, ..message }
        }
        None => VoteBatch::decode(&plain[..]).map_err(|_| DecodeError::Field("VoteBatch"))?,
    };
    let (uuids, rest) = uuids.as_chunks();
    if !rest.is_empty() {
        return Err(DecodeError::Field("uuids"));
    }
    if message.producer.is_empty() && message.choices.is_empty() && uuids.is_empty() {
        return Ok(RecordBody::Marker);
    }
    batch_of(message, uuids).map(RecordBody::Batch)
}

/// Reads a message that [`write_message`] has written, except its user ids: returns where those are. `None` for any
/// other message, valid or not. A general reader of protobuf handles each number by itself, which costs as much as
/// decompressing. A test checks that both readers give the same.
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
        // Fields stand in order, and each only once unless it is a repeated text.
        if tag < before || (tag == before && !matches!(tag, 5 | 7 | 15)) {
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
            11 => message.user_shapes = read_packed(bytes, |value| value as u32)?,
            12 => block = plain.len() - rest.len() - bytes.len()..plain.len() - rest.len(),
            13 => message.accepted_counts = read_packed(bytes, |value| value as u32)?,
            14 => message.user_counts = read_packed(bytes, |value| value as u32)?,
            15 => message.user_prefixes.push(text(bytes)?),
            _ => return None,
        }
    }
    Some((message, block))
}

/// The numbers of a packed field.
#[inline]
fn read_packed<T>(mut bytes: &[u8], number: impl Fn(u64) -> T) -> Option<Vec<T>> {
    // Nearly always one byte per number.
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

/// The runs of values, if their lengths add up to the number of votes; otherwise `None`.
fn runs<'a, T: Copy>(
    values: &'a [T],
    counts: &'a [u32],
    votes: usize,
) -> Option<impl Iterator<Item = (T, usize)> + 'a> {
    let total = match counts {
        [] => values.len(),
        counts if counts.len() != values.len() || counts.contains(&0) => return None,
        // A sum that is too large does not overflow.
        counts => counts.iter().fold(0u64, |sum, &count| sum + u64::from(count)).try_into().ok()?,
    };
    let counts = counts.iter().map(|&count| count as usize).chain(std::iter::repeat(1));
    (total == votes).then(|| values.iter().copied().zip(counts))
}

fn batch_of(message: VoteBatch, uuids: &[[u8; 16]]) -> Result<Batch, DecodeError> {
    let producer: [u8; 16] = message.producer.try_into().map_err(|_| DecodeError::Field("producer"))?;
    if message.number == 0 {
        return Err(DecodeError::Field("number"));
    }
    let votes = message.choices.len();
    let accepted_runs = runs(&message.accepted_deltas, &message.accepted_counts, votes);
    let accepted_runs = accepted_runs.ok_or(DecodeError::Field("accepted_deltas"))?;
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
    // Such a range holds no hash. A batch that covers no hash would not be remembered, and every copy of it would
    // count.
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
    let mut accepted_at = Vec::with_capacity(votes);
    for (delta, count) in accepted_runs {
        at = at.wrapping_add(delta);
        accepted_at.resize(accepted_at.len() + count, Timestamp(at));
    }

    let shapes = runs(&message.user_shapes, &message.user_counts, votes).ok_or(DecodeError::Field("user_shapes"))?;
    let (user_block, user_ends) = users(message.user_block, shapes, votes, &message.user_prefixes, uuids)?;

    Ok(Batch {
        id: BatchId { producer: u128::from_be_bytes(producer), number: message.number },
        ranges: HashRanges::union_of(ranges),
        trace_context: message.trace_context,
        dictionary,
        choices: message.choices,
        accepted_at,
        user_block,
        user_ends,
    })
}

/// The text of all user ids, and where each ends.
fn users(
    block: String,
    shapes: impl Iterator<Item = (u32, usize)>,
    votes: usize,
    prefixes: &[String],
    mut uuids: &[[u8; 16]],
) -> Result<(String, Vec<u32>), DecodeError> {
    let is_text = uuids.is_empty();
    for prefix in prefixes {
        if prefix.len() > PREFIX_BYTES_MAX || check_user_id(prefix.as_bytes()).is_err() {
            return Err(DecodeError::Field("user_prefixes"));
        }
    }
    // Then every cut falls between two characters and every character is allowed, so only lengths are left to check.
    let plain = is_plain_text(block.as_bytes());
    let (mut text, mut ends) = (Vec::new(), Vec::with_capacity(votes));
    if !is_text {
        text.reserve(block.len() + uuids.len() * UUID_TEXT_BYTES);
    }
    let mut at = 0;
    for (shape, count) in shapes {
        let Some(prefix) = shape.checked_sub(UUIDS_FROM) else {
            let length = shape as usize;
            for _ in 0..count {
                let user = block.as_bytes().get(at..at + length).ok_or(DecodeError::Field("user_block"))?;
                at += length;
                // `check_user_id` checks the length and the characters, and that the cut does not fall into a
                // character.
                if if plain { length == 0 } else { check_user_id(user).is_err() } {
                    return Err(DecodeError::Field("user_block"));
                }
                if is_text {
                    ends.push(at as u32);
                } else {
                    text.extend_from_slice(user);
                    ends.push(text.len() as u32);
                }
            }
            continue;
        };
        let prefix = match prefix.checked_sub(1) {
            Some(at) => prefixes.get(at as usize).ok_or(DecodeError::Field("user_shapes"))?,
            None => "",
        };
        let these;
        (these, uuids) = uuids.split_at_checked(count).ok_or(DecodeError::Field("uuids"))?;
        let size = text.len() + count * (prefix.len() + UUID_TEXT_BYTES);
        if size > DECODED_BYTES_MAX {
            return Err(DecodeError::TooLarge(size));
        }
        for uuid in these {
            text.extend_from_slice(prefix.as_bytes());
            text.extend_from_slice(&uuid_text(*uuid));
            ends.push(text.len() as u32);
        }
    }
    if at != block.len() || !uuids.is_empty() {
        return Err(DecodeError::Field(if at != block.len() { "user_block" } else { "uuids" }));
    }
    let text = if is_text { block } else { String::from_utf8(text).map_err(|_| DecodeError::Field("user_block"))? };
    Ok((text, ends))
}

/// Whether all bytes are characters of ASCII that are not control characters.
fn is_plain_text(bytes: &[u8]) -> bool {
    // In chunks, without a branch per byte in each.
    bytes.chunks(256).all(|chunk| chunk.iter().fold(true, |all, byte| all & (0x20..0x7f).contains(byte)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::batch::{OpenBatch, encode};

    fn batch() -> impl Strategy<Value = Batch> {
        let uuid = "(|eu-west-1:|ü|.)[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}";
        let user = prop_oneof![
            "[^\\p{Cc}]{1,40}",
            uuid.prop_filter("no control characters", |id| { check_user_id(id.as_bytes()).is_ok() })
        ];
        let vote = (0u8..3, 0u8..4, user, prop_oneof![0i64..3, 0i64..1 << 40]);
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

    /// The message of a batch.
    fn plain(batch: &Batch) -> Vec<u8> {
        let record = encode(batch);
        let open = OpenBatch::of(batch);
        let mut plain = Vec::new();
        write_message(open.columns(batch.id, &batch.ranges, &batch.trace_context), &mut plain);
        assert_eq!(record[4..8], (plain.len() as u32).to_le_bytes());
        plain
    }

    proptest! {
        #[test]
        fn writes_what_prost_would(batch in batch()) {
            let plain = plain(&batch);
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
            let mut plain = plain(&batch);
            for (at, byte) in damage {
                let at = at.index(plain.len());
                plain[at] = byte;
            }
            // Messages that the fast reader leaves to the general one are not compared.
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
    fn uuid_user_ids_take_less_than_17_bytes_a_vote() {
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
        assert!(record.len() <= 17 * 1_000, "{} bytes a vote", record.len() as f64 / 1_000.0);
    }
}
