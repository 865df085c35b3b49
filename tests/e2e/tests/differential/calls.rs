//! The calls: some by hand, most at random.

use std::{fmt, time::Duration};

use bytes::Bytes;
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use votestream_core::model::limits::{MESSAGE_BYTES_MAX, SINGLE_VOTE_BYTES_MAX};
use votestream_e2e::hostile::{
    Call,
    votes::{METHODS, nearly_votes},
    wire,
};

/// A method of `IngestService`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    CastVote,
    CastVotes,
    StreamVotes,
}

const ALL: [Method; 3] = [Method::CastVote, Method::CastVotes, Method::StreamVotes];

/// How long to wait for an answer to a call that does not end. Many times its deadline.
const OPEN: Duration = Duration::from_secs(4);

/// The protocol of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Grpc,
    Web,
    WebText,
}

/// One call.
pub(crate) struct Case {
    pub(crate) method: Method,
    pub(crate) call: Call,
    /// The frames of its body, before they were converted to text or split.
    frames: Vec<u8>,
    http2: bool,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frames = self.frames.get(..60).unwrap_or(&self.frames);
        let (http, open) = (if self.http2 { "HTTP/2" } else { "HTTP/1.1" }, if self.call.open { ", open" } else { "" });
        write!(f, "{:?} over {http}, {:?}, {} bytes{open}: ", self.method, self.call.headers, self.frames.len())?;
        write!(f, "{}", frames.escape_ascii())
    }
}

impl Case {
    fn new(method: Method, way: Way, http2: bool, frames: Vec<u8>, headers: &[(&str, &str)]) -> Self {
        let content_type = match way {
            Way::Grpc => "application/grpc",
            Way::Web => "application/grpc-web",
            Way::WebText => "application/grpc-web-text",
        };
        let body = if way == Way::WebText { wire::base64(&frames) } else { frames.clone() };
        let mut all = Vec::new();
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            all.push(("content-type", content_type));
        }
        if way == Way::Grpc && http2 {
            all.push(("te", "trailers"));
        } else if way != Way::Grpc {
            all.push(("accept", content_type));
        }
        // Here, a header without a value means that the header is removed.
        all.retain(|(name, _)| !headers.contains(&(*name, "")));
        all.extend(headers.iter().filter(|(_, value)| !value.is_empty()));
        let path = METHODS[ALL.iter().position(|known| *known == method).unwrap_or(0)].to_owned();
        let headers = all.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let body = body.chunks(16 << 10).map(Bytes::copy_from_slice).collect();
        let call = Call { http2, path, headers, body, ..Call::default() };
        Self { method, call, frames, http2 }
    }

    /// Whether some message of the call cannot be read, or is too long.
    pub(crate) fn is_unreadable(&self) -> bool {
        let mut rest = &self.frames[..];
        let mut messages = 0;
        while let Some(([flag, len @ ..], after)) = rest.split_first_chunk::<5>() {
            let len = u32::from_be_bytes(*len) as usize;
            let max = if self.method == Method::CastVote { SINGLE_VOTE_BYTES_MAX } else { MESSAGE_BYTES_MAX };
            if *flag != 0 || len > max || len > after.len() {
                return true;
            }
            messages += 1;
            rest = &after[len..];
        }
        !rest.is_empty() || (self.method == Method::CastVote && messages == 0)
    }

    /// Whether there is a second message, or the beginning of one.
    pub(crate) fn has_second_message(&self) -> bool {
        let first = self.frames.first_chunk::<5>().map(|[_, len @ ..]| 5 + u32::from_be_bytes(*len) as usize);
        first.is_some_and(|first| self.frames.len() > first)
    }

    /// Whether the body ends after the header of a message, before its content.
    pub(crate) fn ends_after_header(&self) -> bool {
        let mut rest = &self.frames[..];
        while let Some(([_, len @ ..], after)) = rest.split_first_chunk::<5>() {
            let len = u32::from_be_bytes(*len) as usize;
            if after.is_empty() {
                return len > 0;
            }
            rest = after.get(len..).unwrap_or_default();
        }
        false
    }

    /// Whether its content type is not gRPC.
    pub(crate) fn is_of_another_type(&self) -> bool {
        let content_type = self.call.headers.iter().find(|(name, _)| name == "content-type");
        content_type.is_none_or(|(_, value)| !value.starts_with("application/grpc"))
    }

    /// Whether its deadline is invalid. In gRPC a deadline has up to eight digits and a unit.
    pub(crate) fn has_bad_deadline(&self) -> bool {
        let deadline = self.call.headers.iter().find(|(name, _)| name == "grpc-timeout");
        deadline.is_some_and(|(_, text)| {
            let digits = text.strip_suffix(['H', 'M', 'S', 'm', 'u', 'n']).unwrap_or_default();
            !(1..=8).contains(&digits.len()) || !digits.bytes().all(|digit| digit.is_ascii_digit())
        })
    }

    /// Whether its deadline ends it.
    pub(crate) fn expires(&self) -> bool {
        self.call.open && self.call.headers.iter().any(|(name, _)| name == "grpc-timeout")
    }
}

fn vote(poll: &str, user: &str, option: &str) -> Vec<u8> {
    wire::message(&wire::vote(poll, user, option))
}

/// Every way on every version of HTTP.
const WAYS: [(Way, bool); 6] = [
    (Way::Grpc, true),
    (Way::Grpc, false),
    (Way::Web, true),
    (Way::Web, false),
    (Way::WebText, true),
    (Way::WebText, false),
];

/// Calls that failed once, and similar ones.
pub(crate) fn by_hand() -> Vec<Case> {
    let good = || vote("open", "u", "a");
    let bodies = [
        good(),
        vec![],
        wire::message(&[]),
        [good(), good()].concat(),
        [good(), wire::message(&[])].concat(),
        wire::message(&[wire::vote("open", "u", "a"), wire::vote("open", "v", "a")].concat()),
        // A vote, and bytes that are not protobuf.
        wire::message(&[wire::vote("open", "u", "a"), vec![0x0a]].concat()),
        wire::message(&[wire::vote("open", "u", "a"), vec![0x07, 0xff]].concat()),
        // A vote, and a field that later versions may add.
        wire::message(&[wire::vote("open", "u", "a"), wire::field(9, b"later")].concat()),
        wire::message(&[wire::vote("open", "u", "a"), wire::vote("open", "v", "a"), vec![0x07]].concat()),
        good()[..8].to_vec(),
        good()[..5].to_vec(),
        good()[..3].to_vec(),
        [good(), good()[..8].to_vec()].concat(),
        [vec![1], good()[1..].to_vec()].concat(),
        [vec![0x80], good()[1..].to_vec()].concat(),
        wire::message_of(0, MESSAGE_BYTES_MAX as u32 + 1, b"x"),
        wire::message_of(0, u32::MAX, b"x"),
        vote("open", &"u".repeat(SINGLE_VOTE_BYTES_MAX), "a"),
        vote("none", "u", "a"),
        vote("closed", "u", "a"),
        vote("later", "u", "a"),
        vote("stream", "u", "a"),
        vote("open", "u", "z"),
        vote("", "", ""),
        vote("open", "u\n", "a"),
        wire::message(&wire::field(
            1,
            &[wire::field(1, b"open"), wire::field(2, &[0xff]), wire::field(3, b"a")].concat(),
        )),
    ];
    let mut cases = Vec::new();
    for method in ALL {
        for (way, http2) in WAYS {
            for body in &bodies {
                cases.push(Case::new(method, way, http2, body.clone(), &[]));
                cases.push(Case::new(method, way, http2, body.clone(), &[("grpc-encoding", "identity")]));
            }
            for encoding in ["gzip", "zstd", "snappy", "IDENTITY", "identity,gzip"] {
                cases.push(Case::new(method, way, http2, good(), &[("grpc-encoding", encoding)]));
            }
            for timeout in ["10S", "1H", "99999999m", "999999999S", "1", "S", "-1S", "1.5S", "1x"] {
                cases.push(Case::new(method, way, http2, good(), &[("grpc-timeout", timeout)]));
            }
            cases.push(Case::new(method, way, http2, good(), &[("te", "")]));
            cases.push(Case::new(method, way, http2, good(), &[("grpc-accept-encoding", "gzip, zstd")]));
            for body in [vec![], good()[..8].to_vec()] {
                let mut case = Case::new(method, way, http2, body, &[("grpc-timeout", "200m")]);
                case.call.open = true;
                case.call.patience = Some(OPEN);
                cases.push(case);
            }
        }
        for content_type in [
            "application/grpc+proto",
            "application/grpc;charset=utf-8",
            "application/grpc+json",
            "application/grpc-web+proto",
            "application/grpc-web+json",
            "application/grpc-websocket",
            "application/grpcfoo",
            "application/GRPC",
            "text/plain",
            "application/octet-stream",
        ] {
            for http2 in [true, false] {
                cases.push(Case::new(method, Way::Grpc, http2, good(), &[("content-type", content_type)]));
            }
        }
    }
    cases
}

/// A message of votes, for polls of every kind.
fn message(rng: &mut StdRng) -> Vec<u8> {
    let mut content = Vec::new();
    let long = "x".repeat(rng.random_range(60..300));
    for _ in 0..*[0, 1, 1, 1, 1, 2, 5].choose(rng).unwrap_or(&1) {
        let poll = *["open", "open", "open", "open", "closed", "later", "stream", "none", "", "o/p", &long]
            .choose(rng)
            .unwrap_or(&"");
        let user =
            *["u", "ü", "\u{202e}", "\0", "", "00000000-0000-4000-8000-000000000000", &long].choose(rng).unwrap_or(&"");
        let option = *["a", "a", "b", "c", "", "\n", &long].choose(rng).unwrap_or(&"");
        content.extend(wire::vote(poll, user, option));
    }
    if rng.random_bool(0.1) {
        content.extend(nearly_votes(rng));
    }
    content
}

/// Any call.
pub(crate) fn at_random(rng: &mut StdRng) -> Case {
    let mut frames = Vec::new();
    for _ in 0..*[0, 1, 1, 1, 1, 1, 2, 3].choose(rng).unwrap_or(&1) {
        let message = message(rng);
        frames.extend(match rng.random_range(0..20) {
            0 => wire::message_of(rng.random(), message.len() as u32, &message),
            1 => wire::message_of(0, rng.random(), &message),
            2 => wire::message_of(0, (message.len() as u32).saturating_sub(rng.random_range(0..9)), &message),
            3 => wire::message(&nearly_votes(rng)),
            _ => wire::message(&message),
        });
    }
    if rng.random_bool(0.1) {
        frames.truncate(rng.random_range(0..=frames.len()));
    }
    let mut headers = Vec::new();
    if rng.random_bool(0.2) {
        headers.push(("grpc-encoding", *["identity", "identity", "gzip", "deflate"].choose(rng).unwrap_or(&"gzip")));
    }
    if rng.random_bool(0.2) {
        headers.push(("grpc-timeout", *["9S", "50000m", "x", "0", "1M"].choose(rng).unwrap_or(&"x")));
    }
    if rng.random_bool(0.1) {
        headers.push(("te", ""));
    }
    let (way, http2) = *WAYS.choose(rng).unwrap_or(&WAYS[0]);
    let mut case = Case::new(*ALL.choose(rng).unwrap_or(&ALL[0]), way, http2, frames, &headers);
    // The same bytes in other pieces.
    let body = case.call.body.concat();
    let mut cuts: Vec<_> = (0..rng.random_range(0..6)).map(|_| rng.random_range(0..=body.len())).collect();
    cuts.extend([0, body.len()]);
    cuts.sort_unstable();
    case.call.body = cuts.windows(2).map(|cut| Bytes::copy_from_slice(&body[cut[0]..cut[1]])).collect();
    case
}
