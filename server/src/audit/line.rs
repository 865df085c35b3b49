//! The form of a line, and the chain of hashes.
//!
//! A line is a JSON object. Its last field, `hash`, is the SHA-256 of all bytes of the line before that field; `prev` is
//! the SHA-256 of the whole line before, without its end. So `head -n 7 audit.log | tail -n 1 | tr -d '\n' | sha256sum`
//! is the `prev` of line 8.
//!
//! Owns both directions. Must never write a line that is longer than [`LINE_BYTES_MAX`], whatever a caller has sent.

use std::{net::SocketAddr, time::SystemTime};

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use votestream_core::model::hex::to_hex;

/// Longest line, in bytes, with its end: CloudWatch takes events of up to 256 KiB. The definition of a larger poll is
/// replaced by its hash.
pub const LINE_BYTES_MAX: usize = 240 << 10;
/// Longest text of a caller or of a server in a line, in bytes.
const TEXT_BYTES_MAX: usize = 1_024;
/// `prev` of the first line.
const NOTHING: [u8; 32] = [0; 32];
/// What stands between the hashed part of a line and its hash.
const BEFORE_HASH: &str = ",\"hash\":\"";
/// What stands behind the hash.
const AFTER_HASH: &str = "\"}";
/// How every line begins.
pub(super) const BEGINNING: &[u8] = b"{\"number\":";

/// A call that administers.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Call {
    act: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    poll: Option<String>,
    who: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
}

impl Call {
    pub(super) fn new(act: &'static str, poll: Option<&str>, who: &str, from: Option<SocketAddr>) -> Self {
        Self { act, poll: poll.map(cut), who: cut(who), from: from.map(|from| from.to_string()) }
    }
}

/// What came of a call.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Outcome {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    became: Option<Value>,
}

impl Outcome {
    pub(super) fn done(status: &'static str, became: Value) -> Self {
        Self { status, message: None, became: Some(became) }
    }

    pub(super) fn failed(status: &'static str, message: &str) -> Self {
        Self { status, message: Some(cut(message)), became: None }
    }
}

/// What a line tells.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Event {
    /// Somebody is about to do something.
    Intent {
        #[serde(flatten)]
        call: Call,
        asked: Value,
    },
    /// How that ended.
    Outcome {
        /// Number of the line with the intent.
        of: u64,
        #[serde(flatten)]
        call: Call,
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// Somebody was refused something before it began.
    Refused {
        #[serde(flatten)]
        call: Call,
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// So many refusals have no line of their own.
    LeftOut { refusals: u64 },
    /// At the start, a last line of so many bytes was cut off in the middle and was removed.
    Repaired { bytes: u64 },
}

impl Event {
    /// The same, with the parts that may be large replaced by their hashes.
    fn without_details(&self) -> Self {
        let hashed = |value: &Value| {
            let bytes = value.to_string().into_bytes();
            json!({ "left_out_bytes": bytes.len(), "sha256": to_hex(&hash(&bytes)) })
        };
        let mut event = self.clone();
        match &mut event {
            Self::Intent { asked, .. } => *asked = hashed(asked),
            Self::Outcome { outcome, .. } => outcome.became = outcome.became.as_ref().map(hashed),
            Self::Refused { .. } | Self::LeftOut { .. } | Self::Repaired { .. } => {}
        }
        event
    }
}

/// A text of a bounded length.
fn cut(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let end = (0..=TEXT_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// The place of the next line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) next: u64,
    prev: [u8; 32],
}

impl Default for Chain {
    fn default() -> Self {
        Self { next: 1, prev: NOTHING }
    }
}

/// A line before its hash.
#[derive(Serialize)]
struct Body<'a> {
    number: u64,
    time: String,
    #[serde(flatten)]
    event: &'a Event,
    prev: String,
}

/// What the chain needs of a line.
#[derive(Deserialize)]
struct Links {
    number: u64,
    prev: String,
}

/// Why a line does not belong where it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Wrong {
    #[error("it is not a line of an audit log")]
    NoLine,
    #[error("it was changed: its hash does not fit")]
    Hash,
    #[error("its number is {found} instead of {expected}: lines were removed, added or moved")]
    Number { found: u64, expected: u64 },
    #[error("it does not follow the line before it: that one was changed, or this one comes from another log")]
    Prev,
}

impl Chain {
    /// Writes the next line, with its end, at the end of `lines`. Returns its number.
    pub(super) fn write(&mut self, event: &Event, at: SystemTime, lines: &mut Vec<u8>) -> serde_json::Result<u64> {
        let mut body = self.body(event, at)?;
        if body.len() + BEFORE_HASH.len() + 64 + AFTER_HASH.len() + 1 > LINE_BYTES_MAX {
            body = self.body(&event.without_details(), at)?;
        }
        let start = lines.len();
        let own = to_hex(&hash(&body));
        for part in [&body[..], BEFORE_HASH.as_bytes(), own.as_bytes(), AFTER_HASH.as_bytes()] {
            lines.extend_from_slice(part);
        }
        let number = self.next;
        *self = Self { next: number + 1, prev: hash(&lines[start..]) };
        lines.push(b'\n');
        Ok(number)
    }

    /// The part of a line that is hashed.
    fn body(&self, event: &Event, at: SystemTime) -> serde_json::Result<Vec<u8>> {
        let time = prost_types::Timestamp::from(at).to_string();
        let mut body = serde_json::to_vec(&Body { number: self.next, time, event, prev: to_hex(&self.prev) })?;
        // The object is closed behind the hash.
        body.pop();
        Ok(body)
    }

    /// Reads a line without its end, which must be the next one. Returns it without its hash.
    pub(super) fn read(&mut self, line: &[u8]) -> Result<Value, Wrong> {
        let (value, links) = parse(line)?;
        if links.number != self.next {
            return Err(Wrong::Number { found: links.number, expected: self.next });
        }
        if links.prev != to_hex(&self.prev) {
            return Err(Wrong::Prev);
        }
        *self = Self { next: self.next + 1, prev: hash(line) };
        Ok(value)
    }

    /// The place behind a line without its end, whatever came before it.
    pub(super) fn after(line: &[u8]) -> Result<Self, Wrong> {
        let (_, links) = parse(line)?;
        let next = links.number.checked_add(1).ok_or(Wrong::NoLine)?;
        Ok(Self { next, prev: hash(line) })
    }
}

fn parse(line: &[u8]) -> Result<(Value, Links), Wrong> {
    let end = BEFORE_HASH.len() + 64 + AFTER_HASH.len();
    let (body, end) = line.len().checked_sub(end).map(|at| line.split_at(at)).ok_or(Wrong::NoLine)?;
    let own = end.strip_prefix(BEFORE_HASH.as_bytes()).and_then(|end| end.strip_suffix(AFTER_HASH.as_bytes()));
    let own = own.filter(|_| body.starts_with(BEGINNING)).ok_or(Wrong::NoLine)?;
    if own != to_hex(&hash(body)).as_bytes() {
        return Err(Wrong::Hash);
    }
    let object = [body, b"}"].concat();
    let value: Value = serde_json::from_slice(&object).map_err(|_| Wrong::NoLine)?;
    let links = Links::deserialize(&value).map_err(|_| Wrong::NoLine)?;
    Ok((value, links))
}

/// The hash of a line, as it stands in it.
pub(super) fn own_hash(line: &[u8]) -> Option<String> {
    let end = line.len().checked_sub(AFTER_HASH.len())?;
    let own = line.get(end.checked_sub(64)?..end)?;
    String::from_utf8(own.to_vec()).ok()
}
