//! Reads a message of votes without copying it.
//!
//! `CastVoteRequest`, `CastVotesRequest` and `StreamVotesRequest` have the same wire form: votes in field 1. Decoding
//! them into strings would cost three allocations per vote, and one id that is not UTF-8 would make the whole message
//! invalid. [`VotesMessage`] keeps the received bytes instead, and [`VotesMessage::votes`] returns slices of them. The
//! caller must check the slices: nothing here knows what a valid id is.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, encode_varint, encoded_len_varint, skip_field},
};

/// Field number 1, wire type 2: `votes` in the requests, `poll_id` in a vote.
const TAG_1: u8 = (1 << 3) | 2;
/// Field number 2, wire type 2: `user_id`.
const TAG_2: u8 = (2 << 3) | 2;
/// Field number 3, wire type 2: `option_id`.
const TAG_3: u8 = (3 << 3) | 2;

/// A request that holds votes, in its wire form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VotesMessage {
    /// The bytes of a received message: a shared slice of the connection's buffer.
    received: Bytes,
    /// The bytes of a message that is being built. `received` and this are both non-empty only if votes were pushed
    /// onto a received message.
    built: BytesMut,
}

/// A holder of votes in their received form.
pub trait ReceivedVotes {
    /// Size on the wire, in bytes.
    fn wire_len(&self) -> usize;

    /// The votes in their order. An item is an error if this vote, or the rest of its message, cannot be read.
    ///
    /// A clone of the iterator continues at the same place, so that a caller can look ahead.
    fn votes(&self) -> impl Iterator<Item = Result<VoteBytes<'_>, MalformedMessage>> + Clone + Send;
}

/// One vote of a message, not checked: the bytes may be empty, too long, or not UTF-8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VoteBytes<'a> {
    /// `Vote.poll_id`.
    pub poll_id: &'a [u8],
    /// `Vote.user_id`.
    pub user_id: &'a [u8],
    /// `Vote.option_id`.
    pub option_id: &'a [u8],
}

/// The bytes are not a protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedMessage;

impl std::fmt::Display for MalformedMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not a valid protobuf message")
    }
}

impl std::error::Error for MalformedMessage {}

impl VotesMessage {
    /// An empty message with room for `bytes` bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { received: Bytes::new(), built: BytesMut::with_capacity(bytes) }
    }

    /// Appends a vote.
    pub fn push(&mut self, poll_id: &str, user_id: &str, option_id: &str) {
        let field = |value: &str| match value.len() {
            0 => 0,
            len => 1 + encoded_len_varint(len as u64) + len,
        };
        let len = field(poll_id) + field(user_id) + field(option_id);
        self.built.put_u8(TAG_1);
        encode_varint(len as u64, &mut self.built);
        for (tag, value) in [(TAG_1, poll_id), (TAG_2, user_id), (TAG_3, option_id)] {
            if !value.is_empty() {
                self.built.put_u8(tag);
                encode_varint(value.len() as u64, &mut self.built);
                self.built.put_slice(value.as_bytes());
            }
        }
    }

    /// The same message, of which copies share the bytes: for one that may have to be sent again.
    pub fn shared(mut self) -> Self {
        if self.received.is_empty() {
            self.received = self.built.split().freeze();
        } else if !self.built.is_empty() {
            self.received = [&self.received[..], &self.built].concat().into();
            self.built.clear();
        }
        self
    }

    /// The message without its first `votes` votes, which shares its bytes.
    pub fn without_first(self, votes: u64) -> Self {
        let shared = self.shared();
        let mut rest = Votes::of(&shared.received);
        // Whether they can be read is not asked here.
        for _ in 0..votes {
            if rest.next().is_none() {
                break;
            }
        }
        let left = shared.received.len() - rest.rest.len();
        Self { received: shared.received.slice(left..), built: BytesMut::new() }
    }

    /// Whether nothing was received and nothing was pushed. A message of unknown fields is not empty, although it has
    /// no vote.
    pub fn is_empty(&self) -> bool {
        self.wire_len() == 0
    }
}

impl ReceivedVotes for VotesMessage {
    fn wire_len(&self) -> usize {
        self.received.len() + self.built.len()
    }

    #[inline]
    fn votes(&self) -> impl Iterator<Item = Result<VoteBytes<'_>, MalformedMessage>> + Clone + Send {
        Votes { rest: &self.received, then: &self.built }
    }
}

/// The votes of one message.
#[derive(Clone, Default)]
pub(crate) struct Votes<'a> {
    rest: &'a [u8],
    /// The bytes that come after `rest`.
    then: &'a [u8],
}

impl<'a> Votes<'a> {
    pub(crate) fn of(message: &'a [u8]) -> Self {
        Self { rest: message, then: &[] }
    }
}

impl<'a> Iterator for Votes<'a> {
    type Item = Result<VoteBytes<'a>, MalformedMessage>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.rest.is_empty() {
                self.rest = std::mem::take(&mut self.then);
                if self.rest.is_empty() {
                    return None;
                }
            }
            match next_field(&mut self.rest) {
                Ok(Some((1, vote))) => return Some(read_vote(vote)),
                Ok(_) => {}
                Err(malformed) => {
                    self.rest = &[];
                    return Some(Err(malformed));
                }
            }
        }
    }
}

#[inline]
fn read_vote(mut bytes: &[u8]) -> Result<VoteBytes<'_>, MalformedMessage> {
    let mut vote = VoteBytes::default();
    while !bytes.is_empty() {
        match next_field(&mut bytes)? {
            Some((1, value)) => vote.poll_id = value,
            Some((2, value)) => vote.user_id = value,
            Some((3, value)) => vote.option_id = value,
            _ => {}
        }
    }
    Ok(vote)
}

/// Takes one field from the front. Returns its number and value; `None` if it is not length-delimited.
#[inline(always)]
fn next_field<'a>(bytes: &mut &'a [u8]) -> Result<Option<(u32, &'a [u8])>, MalformedMessage> {
    // Nearly every field has a one-byte tag and a one-byte length.
    if let [tag, len, rest @ ..] = *bytes
        && tag & 0x87 == 2
        && *len < 0x80
        && rest.len() >= usize::from(*len)
    {
        let (value, rest) = rest.split_at(usize::from(*len));
        *bytes = rest;
        return Ok(Some((u32::from(tag >> 3), value)));
    }
    next_field_of_any_kind(bytes)
}

#[cold]
fn next_field_of_any_kind<'a>(bytes: &mut &'a [u8]) -> Result<Option<(u32, &'a [u8])>, MalformedMessage> {
    let (number, wire_type) = prost::encoding::decode_key(bytes).map_err(|_| MalformedMessage)?;
    if wire_type != WireType::LengthDelimited {
        skip_field(wire_type, number, bytes, DecodeContext::default()).map_err(|_| MalformedMessage)?;
        return Ok(None);
    }
    let len = prost::encoding::decode_varint(bytes).map_err(|_| MalformedMessage)?;
    let len = usize::try_from(len).map_err(|_| MalformedMessage)?;
    if len > bytes.len() {
        return Err(MalformedMessage);
    }
    let (value, rest) = bytes.split_at(len);
    *bytes = rest;
    Ok(Some((number, value)))
}

impl Message for VotesMessage {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.received);
        buf.put_slice(&self.built);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        // Only reached when a VotesMessage stands inside another message, which none of ours does.
        if tag == 1 && wire_type == WireType::LengthDelimited {
            let mut value = Vec::new();
            prost::encoding::bytes::merge(wire_type, &mut value, buf, ctx)?;
            self.built.put_u8(TAG_1);
            encode_varint(value.len() as u64, &mut self.built);
            self.built.put_slice(&value);
            Ok(())
        } else {
            skip_field(wire_type, tag, buf, ctx)
        }
    }

    fn merge(&mut self, mut buf: impl Buf) -> Result<(), DecodeError> {
        // Of a tonic decode buffer this is a reference count, not a copy.
        self.received = buf.copy_to_bytes(buf.remaining());
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        self.wire_len()
    }

    fn clear(&mut self) {
        self.received = Bytes::new();
        self.built.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What prost generates for the same messages.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Reference {
        #[prost(message, repeated, tag = "1")]
        votes: Vec<ReferenceVote>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct ReferenceVote {
        #[prost(string, tag = "1")]
        poll_id: String,
        #[prost(string, tag = "2")]
        user_id: String,
        #[prost(string, tag = "3")]
        option_id: String,
    }

    fn read(message: &VotesMessage) -> Vec<Result<ReferenceVote, MalformedMessage>> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        message
            .votes()
            .map(|vote| {
                vote.map(|vote| ReferenceVote {
                    poll_id: text(vote.poll_id),
                    user_id: text(vote.user_id),
                    option_id: text(vote.option_id),
                })
            })
            .collect()
    }

    proptest! {
        #[test]
        fn agrees_with_prost(votes in prop::collection::vec((".{0,9}", ".{0,200}", ".{0,9}"), 0..20)) {
            let reference = Reference {
                votes: votes
                    .iter()
                    .cloned()
                    .map(|(poll_id, user_id, option_id)| ReferenceVote { poll_id, user_id, option_id })
                    .collect(),
            };
            let mut built = VotesMessage::default();
            for (poll, user, option) in &votes {
                built.push(poll, user, option);
            }
            prop_assert_eq!(built.encode_to_vec(), reference.encode_to_vec());
            let received = VotesMessage::decode(&reference.encode_to_vec()[..]).unwrap();
            let read: Result<Vec<_>, _> = read(&received).into_iter().collect();
            prop_assert_eq!(read.unwrap(), reference.votes);
        }

        #[test]
        fn never_panics_and_always_ends(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let message = VotesMessage::decode(&bytes[..]).unwrap();
            prop_assert!(message.votes().count() <= bytes.len());
        }
    }

    proptest! {
        #[test]
        fn what_is_left_are_the_votes_behind_the_first(received in 0_u64..5, pushed in 0_u64..5, skipped in 0_u64..12) {
            let mut message = VotesMessage::default();
            (0..received).for_each(|at| message.push("p", &at.to_string(), "o"));
            message = VotesMessage::decode(&message.encode_to_vec()[..]).unwrap();
            (received..received + pushed).for_each(|at| message.push("p", &at.to_string(), "o"));
            let all = read(&message);
            let left = message.without_first(skipped);
            prop_assert_eq!(&read(&left)[..], all.get(skipped as usize..).unwrap_or_default());
            prop_assert_eq!(left.clone().shared(), left);
        }
    }

    #[test]
    fn one_unreadable_vote_does_not_hide_the_next() {
        let mut message = VotesMessage::default();
        message.push("p", "u", "o");
        let mut bytes = message.encode_to_vec();
        let good = bytes.clone();
        // A vote whose inner length points past its end.
        bytes.extend([TAG_1, 2, TAG_2, 9]);
        bytes.extend(&good);
        let read = read(&VotesMessage::decode(&bytes[..]).unwrap());
        assert_eq!(read.len(), 3);
        assert!(read[0].is_ok() && read[1].is_err() && read[2].is_ok());
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let mut message = VotesMessage::default();
        message.push("p", "u", "o");
        let mut bytes = vec![(9 << 3), 1, (10 << 3) | 2, 1, 0];
        bytes.extend(message.encode_to_vec());
        assert_eq!(read(&VotesMessage::decode(&bytes[..]).unwrap()).len(), 1);
    }
}
