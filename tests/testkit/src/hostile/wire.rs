//! Bytes of HTTP/2, gRPC and protobuf, made by hand, so that each byte can be wrong.
//!
//! Must never check anything: its purpose is to make what is not allowed.

/// What every HTTP/2 client sends first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 9;

/// Kinds of HTTP/2 frames.
pub mod kind {
    /// Content of a call.
    pub const DATA: u8 = 0;
    /// Begins a call.
    pub const HEADERS: u8 = 1;
    /// Weight of a call, no longer used.
    pub const PRIORITY: u8 = 2;
    /// Cancels a call.
    pub const RST_STREAM: u8 = 3;
    /// Settings, or their acknowledgement.
    pub const SETTINGS: u8 = 4;
    /// Asks whether the other side is alive.
    pub const PING: u8 = 6;
    /// The connection ends.
    pub const GOAWAY: u8 = 7;
    /// More may be sent.
    pub const WINDOW_UPDATE: u8 = 8;
    /// More of the headers.
    pub const CONTINUATION: u8 = 9;
}

/// Flags of HTTP/2 frames.
pub mod flag {
    /// The last frame of a call (DATA, HEADERS).
    pub const END_STREAM: u8 = 1;
    /// An acknowledgement (SETTINGS, PING).
    pub const ACK: u8 = 1;
    /// The headers are complete.
    pub const END_HEADERS: u8 = 4;
}

/// Numbers of HTTP/2 settings.
pub mod setting {
    /// Bytes of the header table.
    pub const HEADER_TABLE_SIZE: u16 = 1;
    /// Bytes that a call may be sent before it grants more.
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
}

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + payload.len());
    frame.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A SETTINGS frame.
pub fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let payload = settings.iter().flat_map(|(name, value)| {
        let (name, value) = (name.to_be_bytes(), value.to_be_bytes());
        name.into_iter().chain(value)
    });
    frame(kind::SETTINGS, 0, 0, &payload.collect::<Vec<_>>())
}

/// A WINDOW_UPDATE frame.
pub fn window_update(stream: u32, bytes: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
}

/// A RST_STREAM frame.
pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(kind::RST_STREAM, 0, stream, &code.to_be_bytes())
}

/// A number of HPACK with this many bits in the first byte, whose other bits are `first`.
pub fn hpack_number(first: u8, bits: u32, value: usize) -> Vec<u8> {
    let full = (1_usize << bits) - 1;
    if value < full {
        return vec![first | value as u8];
    }
    let mut number = vec![first | full as u8];
    let mut rest = value - full;
    while rest > 127 {
        number.push(rest as u8 & 127 | 128);
        rest >>= 7;
    }
    number.push(rest as u8);
    number
}

/// A literal header in HPACK. `first` says whether the table remembers it: 0x00 no, 0x40 yes.
pub fn hpack_header(first: u8, name: &str, value: &str) -> Vec<u8> {
    let mut header = vec![first];
    for text in [name, value] {
        header.extend(hpack_number(0, 7, text.len()));
        header.extend(text.as_bytes());
    }
    header
}

/// The headers of a request in HPACK. `more` follows the headers that every gRPC call has.
pub fn grpc_headers(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let every = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    every.iter().chain(more).flat_map(|(name, value)| hpack_header(0, name, value)).collect()
}

/// A number of protobuf.
pub fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 127 {
        bytes.push(value as u8 & 127 | 128);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A field of bytes.
pub fn field(number: u64, content: &[u8]) -> Vec<u8> {
    let mut field = varint(number << 3 | 2);
    field.extend(varint(content.len() as u64));
    field.extend(content);
    field
}

/// A vote, as the field of a request.
pub fn vote(poll: &str, user: &str, option: &str) -> Vec<u8> {
    let vote = [field(1, poll.as_bytes()), field(2, user.as_bytes()), field(3, option.as_bytes())].concat();
    field(1, &vote)
}

/// A gRPC message: flag, length, content.
pub fn message(content: &[u8]) -> Vec<u8> {
    message_of(0, content.len() as u32, content)
}

/// A gRPC message whose declared length may be wrong.
pub fn message_of(flag: u8, declared: u32, content: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(5 + content.len());
    message.push(flag);
    message.extend(declared.to_be_bytes());
    message.extend(content);
    message
}

/// The letters of base64.
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Bytes in base64, as in gRPC-Web text.
pub fn base64(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    for chunk in bytes.chunks(3) {
        let number = chunk.iter().chain(&[0; 2]).take(3).fold(0_usize, |number, byte| number << 8 | usize::from(*byte));
        let letters = (0..4).map(|at| BASE64[number >> (18 - 6 * at) & 63]).take(chunk.len() + 1);
        text.extend(letters);
        text.resize(text.len().next_multiple_of(4), b'=');
    }
    text
}

/// Decodes base64. The text may consist of several parts, each with its own padding. `None` if it is not base64.
pub fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for four in text.chunks(4) {
        let letters = four.iter().take_while(|letter| **letter != b'=').count();
        if four.len() != 4 || letters < 2 {
            return None;
        }
        let number = four.iter().try_fold(0, |number, letter| {
            let at = BASE64.iter().position(|known| known == letter).or((*letter == b'=').then_some(0))?;
            Some(number << 6 | at as u32)
        })?;
        bytes.extend(number.to_be_bytes()[1..].iter().take(letters - 1));
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_standards() {
        // RFC 7541, C.1.
        assert_eq!(hpack_number(0, 5, 10), [10]);
        assert_eq!(hpack_number(0, 5, 1337), [31, 154, 10]);
        assert_eq!(varint(300), [0xac, 0x02]);
        // RFC 4648, 10.
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text.as_bytes());
            assert_eq!(from_base64(text.as_bytes()).unwrap(), bytes.as_bytes());
        }
        assert_eq!(from_base64(b"Zg==Zg==").unwrap(), b"ff");
        assert_eq!(from_base64(b"Zg="), None);
    }

    #[test]
    fn a_vote_is_what_the_product_reads() {
        use votestream_proto::{ReceivedVotes, VotesMessage};
        let mut expected = VotesMessage::default();
        expected.push("poll", "user", "option");
        let bytes = vote("poll", "user", "option");
        let read: VotesMessage = prost::Message::decode(&bytes[..]).unwrap();
        assert_eq!(read.votes().collect::<Vec<_>>(), expected.votes().collect::<Vec<_>>());
    }
}
