//! The JSON bodies of calls with many votes, written directly from the votes.
//!
//! Owns the bodies of `BatchExecuteStatement` and `BatchGetItem`. The SDK still signs and sends the requests and judges
//! the answers. Only its way of building a body is not used: it takes a string, a value and a place in a map for each
//! attribute, and costs as much as the rest of the call. Must never write a value without escaping, unless the value is
//! known to hold nothing that needs it.

use std::fmt::{Display, Write as _};

use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::{base64, body::SdkBody};
use bytes::Bytes;
use votestream_core::{Position, Timestamp, port::VoteWrite};

use super::{ACCEPTED_AT, OPTION, POLL_BUCKET, POSITION, PREVIOUS_OPTION, USER_ID, Write};

/// Bytes reserved for a statement with ids of usual length.
const STATEMENT_BYTES: usize = 512;
/// Bytes reserved for a key.
const KEY_BYTES: usize = 128;

/// The statements that write votes. Every value is a parameter, because one stand-in stores the text of a path that
/// stands on the right of a SET.
pub(in crate::dynamodb) struct Statements {
    /// The text from the opening brace to the opening bracket of the parameters.
    insert: String,
    replace: String,
    /// The text before and after the keys of a read.
    read: (String, String),
}

impl Statements {
    pub(in crate::dynamodb) fn new(table: &str) -> Self {
        let opened = |statement: &str| {
            let mut out = String::from("{\"Statement\":");
            push_text(&mut out, statement);
            out + ",\"Parameters\":["
        };
        let mut read = String::from("{\"RequestItems\":{");
        push_text(&mut read, table);
        read += ":{\"Keys\":[";
        let names = [POLL_BUCKET, USER_ID, OPTION, POSITION, PREVIOUS_OPTION];
        let wanted: Vec<_> = names.iter().map(|name| format!("#{name}")).collect();
        let named: Vec<_> = names.iter().map(|name| format!("\"#{name}\":\"{name}\"")).collect();
        let after = format!(
            "],\"ConsistentRead\":true,\"ProjectionExpression\":\"{}\",\"ExpressionAttributeNames\":{{{}}}}}}},\
             \"ReturnConsumedCapacity\":\"TOTAL\"}}",
            wanted.join(","),
            named.join(","),
        );
        Self {
            insert: opened(&format!(
                "INSERT INTO \"{table}\" VALUE {{'{POLL_BUCKET}': ?, '{USER_ID}': ?, '{OPTION}': ?, '{POSITION}': ?, \
                 '{ACCEPTED_AT}': ?}}"
            )),
            replace: opened(&format!(
                "UPDATE \"{table}\" SET \"{OPTION}\" = ? SET \"{POSITION}\" = ? SET \"{ACCEPTED_AT}\" = ? \
                 SET \"{PREVIOUS_OPTION}\" = ? WHERE \"{POLL_BUCKET}\" = ? AND \"{USER_ID}\" = ? AND \"{POSITION}\" = ?"
            )),
            read: (read, after),
        }
    }

    /// The body of a `BatchExecuteStatement`.
    pub(super) fn execute<'a>(&self, writes: impl ExactSizeIterator<Item = &'a Write<'a>>) -> Body {
        let mut out = String::with_capacity(writes.len() * STATEMENT_BYTES);
        out += "{\"Statements\":[";
        for (at, write) in writes.enumerate() {
            if at > 0 {
                out.push(',');
            }
            match *write {
                Write::Insert(vote) => {
                    out += &self.insert;
                    push_key(&mut out, vote);
                    out.push(',');
                    push_value(&mut out, &vote.option_id);
                    out.push(',');
                    push_position(&mut out, vote.position);
                    out.push(',');
                    push_time(&mut out, vote.accepted_at);
                }
                Write::Replace(vote, stored) => {
                    out += &self.replace;
                    push_value(&mut out, &vote.option_id);
                    out.push(',');
                    push_position(&mut out, vote.position);
                    out.push(',');
                    push_time(&mut out, vote.accepted_at);
                    out.push(',');
                    push_value(&mut out, &stored.option);
                    out.push(',');
                    push_key(&mut out, vote);
                    out.push(',');
                    push_position(&mut out, stored.position);
                }
            }
            out += "]}";
        }
        out += "],\"ReturnConsumedCapacity\":\"TOTAL\"}";
        Body(out.into())
    }

    /// The body of a `BatchGetItem` for the votes of these users.
    pub(super) fn read<'a>(&self, votes: impl ExactSizeIterator<Item = &'a VoteWrite<'a>>) -> Body {
        let (before, after) = &self.read;
        let mut out = String::with_capacity(before.len() + votes.len() * KEY_BYTES + after.len());
        out += before;
        for (at, vote) in votes.enumerate() {
            push(&mut out, format_args!("{}{{\"{POLL_BUCKET}\":", if at > 0 { "," } else { "" }));
            push_partition(&mut out, vote);
            push(&mut out, format_args!(",\"{USER_ID}\":"));
            push_value(&mut out, &vote.user_id);
            out.push('}');
        }
        out += after;
        Body(out.into())
    }
}

/// A body that replaces the one that the SDK makes.
pub(super) struct Body(Bytes);

impl Body {
    /// Puts this body into a request that is not signed yet.
    pub(super) fn replace(self) -> impl Fn(&mut HttpRequest) + Send + Sync + 'static {
        move |request| {
            request.headers_mut().insert("content-length", self.0.len().to_string());
            *request.body_mut() = SdkBody::from(self.0.clone());
        }
    }
}

fn push(out: &mut String, value: impl Display) {
    // Writing to a string cannot fail.
    write!(out, "{value}").ok();
}

/// A JSON string.
fn push_text(out: &mut String, text: &str) {
    out.push('"');
    if text.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
        out.push_str(text);
    } else {
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                control if control < ' ' => push(out, format_args!("\\u{:04x}", u32::from(control))),
                other => out.push(other),
            }
        }
    }
    out.push('"');
}

/// An attribute of type S.
fn push_value(out: &mut String, text: &str) {
    out.push_str("{\"S\":");
    push_text(out, text);
    out.push('}');
}

/// Partition key. No poll id holds a character that needs escaping.
fn push_partition(out: &mut String, vote: &VoteWrite<'_>) {
    push(out, format_args!("{{\"S\":\"{}#{}\"}}", vote.poll_id, vote.bucket));
}

/// Partition and sort key, as parameters.
fn push_key(out: &mut String, vote: &VoteWrite<'_>) {
    push_partition(out, vote);
    out.push(',');
    push_value(out, &vote.user_id);
}

fn push_position(out: &mut String, position: Position) {
    out.push_str("{\"B\":\"");
    out.push_str(&base64::encode(position.to_bytes()));
    out.push_str("\"}");
}

fn push_time(out: &mut String, at: Timestamp) {
    push(out, format_args!("{{\"N\":\"{}\"}}", at.0));
}
