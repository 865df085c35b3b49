//! Requests in JSON.
//!
//! Owns the form of their bodies: field names and enums as in the .proto files, times in RFC 3339, whole numbers as ids
//! and titles. Must never judge a poll: the same code does that for every client.

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::HeaderMap;
use serde::Deserialize;
use serde_json::Value;
use tonic::Status;
use votestream_core::record::foreign::JsonText;
use votestream_proto::{json::to_proto, v1};
use votestream_server::http::{check_json, read_body_within};

use crate::status::CallError;

/// The body of a request that declares it as JSON.
pub(super) async fn body(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Bytes, Response> {
    check_json(headers)?;
    read_body_within(body, bytes_max).await
}

/// Whether a body is empty, or an object without fields.
pub(super) fn is_nothing(body: &[u8]) -> bool {
    body.is_empty() || serde_json::from_slice(body).is_ok_and(|fields: serde_json::Map<_, _>| fields.is_empty())
}

/// `CreatePollRequest`. A field that it does not have is refused: whoever misspells `visibility` must not show results.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PollFields<'a> {
    #[serde(borrow)]
    poll_id: Option<JsonText<'a>>,
    #[serde(borrow)]
    title: Option<JsonText<'a>>,
    #[serde(borrow, default)]
    options: Vec<OptionFields<'a>>,
    opens_at: Option<Value>,
    closes_at: Option<Value>,
    source: Option<Value>,
    expected_peak: Option<Value>,
    visibility: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OptionFields<'a> {
    #[serde(borrow)]
    option_id: Option<JsonText<'a>>,
    #[serde(borrow)]
    title: Option<JsonText<'a>>,
}

/// The poll of a request.
pub(super) fn poll(body: &[u8]) -> Result<v1::CreatePollRequest, Status> {
    // serde would accept a list as an object whose fields come in order.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Status::invalid_argument("the body is not a JSON object"));
    }
    let fields: PollFields<'_> =
        serde_json::from_slice(body).map_err(|error| Status::invalid_argument(format!("the body: {error}")))?;
    let option = |option: OptionFields<'_>| {
        Ok::<_, CallError>(v1::PollOption {
            option_id: text(option.option_id, "options.option_id")?,
            title: text(option.title, "options.title")?,
        })
    };
    Ok(v1::CreatePollRequest {
        poll_id: text(fields.poll_id, "poll_id")?,
        title: text(fields.title, "title")?,
        options: fields.options.into_iter().map(option).collect::<Result<_, _>>()?,
        opens_at: time(fields.opens_at, "opens_at")?,
        closes_at: time(fields.closes_at, "closes_at")?,
        source: named(fields.source, "source", v1::PollSource::from_str_name)?.map_or(0, i32::from),
        expected_peak: match fields.expected_peak {
            None | Some(Value::Null) => 0,
            Some(number) => number
                .as_u64()
                .ok_or_else(|| CallError::field("expected_peak", "is not a whole number of votes per second"))?,
        },
        visibility: named(fields.visibility, "visibility", v1::PollVisibility::from_str_name)?.map_or(0, i32::from),
    })
}

/// A text, which may be absent.
fn text(value: Option<JsonText<'_>>, field: &'static str) -> Result<String, CallError> {
    match value {
        None => Ok(String::new()),
        Some(JsonText::Text(text)) => Ok(text.into_owned()),
        Some(JsonText::Other) => Err(CallError::field(field, "is neither a string nor a whole number")),
    }
}

/// A time with an offset, which may be absent.
fn time(value: Option<Value>, field: &'static str) -> Result<Option<prost_types::Timestamp>, CallError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        // RFC 3339 has no brackets, by which a zone could contradict the offset.
        Some(Value::String(text)) if !text.contains('[') => match text.parse() {
            Ok(at) => Ok(Some(to_proto(at))),
            Err(_) => Err(not_a_time(field)),
        },
        Some(_) => Err(not_a_time(field)),
    }
}

fn not_a_time(field: &'static str) -> CallError {
    CallError::field(field, "is not a time in RFC 3339, such as 2026-05-16T21:00:00Z")
}

/// A value of an enum by its name, which may be absent.
fn named<E>(
    value: Option<Value>,
    field: &'static str,
    known: impl Fn(&str) -> Option<E>,
) -> Result<Option<E>, CallError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_str().and_then(known) {
            Some(value) => Ok(Some(value)),
            None => Err(CallError::field(field, "is not a name that the .proto file has")),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_whole_poll() {
        let body = json!({
            "poll_id": 7, "title": "Lunch", "options": [{"option_id": "a", "title": "A"}, {"option_id": 2}],
            "opens_at": "2026-05-16T23:00:00+02:00", "closes_at": "2026-05-16T22:00:00.5Z",
            "source": "POLL_SOURCE_STREAM", "expected_peak": 9, "visibility": "POLL_VISIBILITY_WHEN_FINAL",
        });
        let option = |id: &str, title: &str| v1::PollOption { option_id: id.into(), title: title.into() };
        let at = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
        let expected = v1::CreatePollRequest {
            poll_id: "7".into(),
            title: "Lunch".into(),
            options: vec![option("a", "A"), option("2", "")],
            opens_at: at(1_778_965_200, 0),
            closes_at: at(1_778_968_800, 500_000_000),
            source: v1::PollSource::Stream.into(),
            expected_peak: 9,
            visibility: v1::PollVisibility::WhenFinal.into(),
        };
        assert_eq!(poll(body.to_string().as_bytes()).unwrap(), expected);
        assert_eq!(poll(b"{}").unwrap(), v1::CreatePollRequest::default());
    }

    #[test]
    fn mistakes_name_their_field() {
        for (body, named) in [
            ("[]", "not a JSON object"),
            ("{", "the body"),
            (r#"{"poll_id": 1.5}"#, "poll_id"),
            (r#"{"poll": "a"}"#, "unknown field `poll`"),
            (r#"{"poll_id": "a", "poll_id": "b"}"#, "duplicate field `poll_id`"),
            (r#"{"options": [{"id": "a"}]}"#, "unknown field `id`"),
            (r#"{"options": [{"option_id": {}}]}"#, "options.option_id"),
            (r#"{"closes_at": "2026-05-16T23:00:00"}"#, "closes_at"),
            (r#"{"closes_at": "2026-05-16T23:00:00+01:00[Europe/Berlin]"}"#, "closes_at"),
            (r#"{"opens_at": 5}"#, "opens_at"),
            (r#"{"source": "INGEST"}"#, "source"),
            (r#"{"visibility": 2}"#, "visibility"),
            (r#"{"expected_peak": -1}"#, "expected_peak"),
        ] {
            let error = poll(body.as_bytes()).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().contains(named), "{body}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..60), text in ".{0,20}") {
            drop(poll(&body));
            drop(poll(json!({"poll_id": text, "closes_at": text, "source": text}).to_string().as_bytes()));
        }
    }
}
