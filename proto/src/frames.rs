//! Reads messages of votes from the frames of a gRPC stream, without copying them.
//!
//! A gRPC message is a flag, its length in four bytes, and its content. tonic copies what arrives into its own buffer
//! and splits each message from it. If each message has one vote, this costs more than the votes. [`FrameReader`] only
//! finds the ends of messages, and [`Frames`] holds as many whole messages as arrived in one piece. Only a message that
//! arrives in several pieces is copied.

use std::{fmt, mem};

use bytes::{Buf, Bytes, BytesMut};

use crate::votes::{MalformedMessage, ReceivedVotes, VoteBytes, Votes};

/// Flag and length.
const HEADER_BYTES: usize = 5;

/// Why a stream cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A message is longer than the limit, in bytes.
    TooLong(usize),
    /// A message is compressed, or has an unknown flag.
    Flag(u8),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(len) => write!(f, "a message of {len} bytes is too long"),
            Self::Flag(1) => f.write_str("a message is compressed, but the call names no compression"),
            Self::Flag(flag) => write!(f, "a message has the flag {flag}, which is not known"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Finds the messages of one stream.
#[derive(Debug)]
pub struct FrameReader {
    message_bytes_max: usize,
    /// Bytes that arrived but were not read yet.
    rest: Bytes,
    /// The beginning of a message that has not fully arrived. It comes before `rest`.
    part: BytesMut,
}

impl FrameReader {
    /// A reader for messages of at most this many bytes.
    pub fn new(message_bytes_max: usize) -> Self {
        Self { message_bytes_max, rest: Bytes::new(), part: BytesMut::new() }
    }

    /// Adds bytes that have arrived. Call it when [`FrameReader::next`] has nothing more, because what is left then is
    /// copied.
    pub fn push(&mut self, data: Bytes) {
        let left = mem::replace(&mut self.rest, data);
        if !left.is_empty() {
            self.rest = [left, mem::take(&mut self.rest)].concat().into();
        }
    }

    /// The next whole messages; `None` if there are none.
    ///
    /// # Errors
    ///
    /// If the next message cannot be read. Later calls return the same error.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Frames>, FrameError> {
        if self.part.is_empty() {
            let whole = self.whole()?;
            if whole > 0 {
                return Ok(Some(Frames(self.rest.split_to(whole))));
            }
        }
        // First complete the header, which has the length, then the rest.
        self.complete(HEADER_BYTES);
        let Some(header) = self.part.first_chunk() else { return Ok(None) };
        let end = HEADER_BYTES + self.content_bytes(header)?;
        self.complete(end);
        Ok((self.part.len() == end).then(|| Frames(mem::take(&mut self.part).freeze())))
    }

    /// Length, with its frame, of the message of which a part has arrived; `None` if it is not known yet. Call it when
    /// [`FrameReader::next`] has nothing more: then the length is one that it accepts.
    pub fn declared(&self) -> Option<usize> {
        let [_, len @ ..] = *self.part.first_chunk::<HEADER_BYTES>()?;
        Some(HEADER_BYTES + u32::from_be_bytes(len) as usize)
    }

    /// Whether no part of a message is waiting.
    pub fn is_between_messages(&self) -> bool {
        self.part.is_empty() && self.rest.is_empty()
    }

    fn content_bytes(&self, header: &[u8; HEADER_BYTES]) -> Result<usize, FrameError> {
        let [flag, len @ ..] = *header;
        let len = u32::from_be_bytes(len) as usize;
        match flag {
            0 if len <= self.message_bytes_max => Ok(len),
            0 => Err(FrameError::TooLong(len)),
            flag => Err(FrameError::Flag(flag)),
        }
    }

    /// Number of bytes of `rest` that are whole messages. An error is returned only if it concerns the first message.
    fn whole(&self) -> Result<usize, FrameError> {
        let mut whole = 0;
        while let Some((header, content)) = self.rest[whole..].split_first_chunk() {
            match self.content_bytes(header) {
                Ok(len) if len <= content.len() => whole += HEADER_BYTES + len,
                Err(error) if whole == 0 => return Err(error),
                Ok(_) | Err(_) => break,
            }
        }
        Ok(whole)
    }

    /// Moves bytes from `rest` to `part` until it has `end` bytes, as far as there are any.
    fn complete(&mut self, end: usize) {
        let lacking = end.saturating_sub(self.part.len());
        let arrived = lacking.min(self.rest.len());
        if arrived > 0 {
            // Reserve memory for all of it, so that the bytes are not moved again.
            self.part.reserve(lacking);
            self.part.extend_from_slice(&self.rest[..arrived]);
            self.rest.advance(arrived);
        }
    }
}

/// Whole messages of votes, one after the other, as they were received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frames(Bytes);

impl Frames {
    /// Whether there is a single message.
    pub fn is_one(&self) -> bool {
        self.0
            .split_first_chunk::<HEADER_BYTES>()
            .is_some_and(|([_, len @ ..], content)| u32::from_be_bytes(*len) as usize == content.len())
    }
}

impl ReceivedVotes for Frames {
    fn wire_len(&self) -> usize {
        self.0.len()
    }

    #[inline]
    fn votes(&self) -> impl Iterator<Item = Result<VoteBytes<'_>, MalformedMessage>> + Clone + Send {
        FrameVotes { frames: &self.0, message: Votes::default() }
    }
}

#[derive(Clone)]
struct FrameVotes<'a> {
    frames: &'a [u8],
    message: Votes<'a>,
}

impl<'a> Iterator for FrameVotes<'a> {
    type Item = Result<VoteBytes<'a>, MalformedMessage>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(vote) = self.message.next() {
                return Some(vote);
            }
            let ([_, len @ ..], rest) = self.frames.split_first_chunk::<HEADER_BYTES>()?;
            // `FrameReader` puts only whole messages here.
            let (content, frames) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
            self.frames = frames;
            self.message = Votes::of(content);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::VotesMessage;

    const MAX: usize = 300;

    fn frame(content: &[u8]) -> Vec<u8> {
        [&[0][..], &(content.len() as u32).to_be_bytes(), content].concat()
    }

    /// Reads a stream that arrives in these pieces. Also returns the result at its end.
    fn read(pieces: &[&[u8]]) -> (Vec<Frames>, Result<bool, FrameError>) {
        let (mut reader, mut frames) = (FrameReader::new(MAX), Vec::new());
        for piece in pieces {
            reader.push(Bytes::copy_from_slice(piece));
            loop {
                match reader.next() {
                    Ok(Some(next)) => frames.push(next),
                    Ok(None) => break,
                    Err(error) => {
                        assert_eq!(reader.next(), Err(error), "an error stays");
                        return (frames, Err(error));
                    }
                }
            }
        }
        (frames, Ok(reader.is_between_messages()))
    }

    proptest! {
        #[test]
        fn messages_come_whole_however_they_arrive(
            messages in prop::collection::vec(prop::collection::vec((".{0,9}", ".{0,60}"), 0..4), 0..30),
            cuts in prop::collection::vec(0usize..2_000, 0..20),
            end in prop::option::of(0usize..2_000),
        ) {
            let messages: Vec<_> = messages.iter().map(|votes| {
                let mut message = VotesMessage::default();
                votes.iter().for_each(|(user, option)| message.push("p", user, option));
                message
            }).filter(|message| message.wire_len() <= MAX).collect();
            let stream = messages.iter().flat_map(|message| frame(&message.encode_to_vec())).collect::<Vec<_>>();
            let stream = &stream[..end.unwrap_or(stream.len()).min(stream.len())];
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(stream.len())).chain([0, stream.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]).collect();
            let (frames, end) = read(&pieces);
            let frames: Vec<_> = frames.iter().flat_map(Frames::votes).collect();
            let (mut whole, mut expected) = (0, Vec::new());
            for message in &messages {
                if whole + HEADER_BYTES + message.wire_len() > stream.len() {
                    break;
                }
                whole += HEADER_BYTES + message.wire_len();
                expected.extend(message.votes());
            }
            prop_assert_eq!(frames, expected);
            prop_assert_eq!(end, Ok(whole == stream.len()));
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            bytes in prop::collection::vec(prop_oneof![4 => Just(0u8), 1 => any::<u8>()], 0..200), cut in 0usize..200,
        ) {
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let (pieces, cut_end) = read(&[first, second]);
            let (whole, whole_end) = read(&[&bytes]);
            let votes = |frames: &[Frames]| frames.iter().flat_map(Frames::votes).map(|vote| {
                vote.map(|vote| (vote.poll_id.to_vec(), vote.user_id.to_vec(), vote.option_id.to_vec()))
            }).collect::<Vec<_>>();
            prop_assert_eq!((votes(&pieces), cut_end), (votes(&whole), whole_end));
        }
    }

    #[test]
    fn what_is_before_an_error_is_read() {
        let mut message = VotesMessage::default();
        message.push("p", "u", "o");
        let good = frame(&message.encode_to_vec());
        let too_long = (MAX as u32 + 1).to_be_bytes();
        for (bad, error) in [
            ([&[0][..], &too_long].concat(), FrameError::TooLong(MAX + 1)),
            (vec![1, 0, 0, 0, 0], FrameError::Flag(1)),
            (vec![7, 0, 0, 0, 0], FrameError::Flag(7)),
        ] {
            for cut in 0..bad.len() {
                let (before, after) = bad.split_at(cut);
                let (frames, end) = read(&[&good, &[&good, before].concat(), after, &good]);
                assert_eq!(frames.iter().flat_map(Frames::votes).count(), 2, "cut at {cut}");
                assert_eq!(end, Err(error));
            }
        }
    }

    #[test]
    fn a_message_says_how_long_it_will_be() {
        let stream = frame(&[0; 200]);
        let mut reader = FrameReader::new(MAX);
        for (piece, declared) in [(&stream[..3], None), (&stream[3..9], Some(205)), (&stream[9..100], Some(205))] {
            reader.push(Bytes::copy_from_slice(piece));
            assert_eq!(reader.next(), Ok(None));
            assert_eq!(reader.declared(), declared);
        }
        reader.push(Bytes::copy_from_slice(&stream[100..]));
        assert!(reader.next().unwrap().is_some_and(|frames| frames.is_one()));
        assert_eq!((reader.next(), reader.declared()), (Ok(None), None));
    }

    #[test]
    fn what_comes_early_waits_its_turn() {
        let mut message = VotesMessage::default();
        message.push("p", "u", "o");
        let stream = frame(&message.encode_to_vec()).repeat(3);
        let (mut reader, mut votes) = (FrameReader::new(MAX), 0);
        stream.chunks(7).for_each(|piece| reader.push(Bytes::copy_from_slice(piece)));
        while let Some(frames) = reader.next().unwrap() {
            votes += frames.votes().count();
        }
        assert_eq!((votes, reader.is_between_messages()), (3, true));
    }

    #[test]
    fn an_unreadable_message_does_not_hide_the_next() {
        let mut message = VotesMessage::default();
        message.push("p", "u", "o");
        let stream = [frame(&[0x0a, 9]), frame(&message.encode_to_vec())].concat();
        let (frames, _) = read(&[&stream]);
        assert_eq!(frames.iter().map(Frames::is_one).collect::<Vec<_>>(), [false]);
        let (first, second) = stream.split_at(frame(&[0x0a, 9]).len());
        assert!(read(&[first, second]).0.iter().all(Frames::is_one));
        let votes: Vec<_> = frames.iter().flat_map(Frames::votes).map(|vote| vote.is_ok()).collect();
        assert_eq!(votes, [false, true]);
    }
}
