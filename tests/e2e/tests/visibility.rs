//! Nothing shows a count of a poll that hides its results, and everything does once it shows them: every RPC of the API,
//! every JSON route, over real sockets.

use std::{net::SocketAddr, time::Duration};

use bytes::{Buf, BufMut, Bytes};
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, Value};
use serde_json::json;
use tonic::{
    Code, Status,
    client::Grpc,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
};
use tonic_types::StatusExt;
use votestream_e2e::{
    hostile::call::Call,
    stack::{Stack, TEST_BOUNDS, connect, http},
};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_proto::{
    FILE_DESCRIPTOR_SET,
    v1::{
        ClosePollRequest, CreatePollRequest, GetFinalResultsRequest, GetPollRequest, PollOption, PollState,
        PollVisibility, ReleaseResultsRequest,
    },
};

/// Voters of the hidden polls. No other number of an answer is the same.
const VOTERS: usize = 317;
/// Methods for those who administer a poll, who see everything.
const ADMINISTRATION: [&str; 1] = ["Recount"];
/// Most messages that are read of one answer; a watching call never ends.
const MESSAGES_MAX: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);

/// Messages as bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let len = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(len)))
    }
}

/// Calls any method with a request that names the poll, if it can. Returns the messages of the answer, and how it ended.
async fn call(addr: SocketAddr, method: &MethodDescriptor, poll: &str) -> (Vec<DynamicMessage>, Status) {
    let mut request = DynamicMessage::new(method.input());
    if method.input().get_field_by_name("poll_id").is_some() {
        request.set_field_by_name("poll_id", Value::String(poll.into()));
    }
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let path: PathAndQuery = path.parse().unwrap();
    let mut grpc = Grpc::new(connect(addr).await);
    grpc.ready().await.unwrap();
    let message = Bytes::from(prost::Message::encode_to_vec(&request));
    let mut messages = Vec::new();
    let stream = tonic::Request::new(tokio_stream::iter([message]));
    let mut answer = match grpc.streaming(stream, path, Raw).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return (messages, status),
    };
    while messages.len() < MESSAGES_MAX {
        match tokio::time::timeout(Duration::from_secs(2), answer.message()).await {
            Ok(Ok(Some(message))) => messages.push(DynamicMessage::decode(method.output(), message).unwrap()),
            Ok(Ok(None)) | Err(_) => break,
            Ok(Err(status)) => return (messages, status),
        }
    }
    (messages, Status::ok(""))
}

/// Every number and text in a value.
fn leaves(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Message(message) => message.fields().for_each(|(_, value)| leaves(value, found)),
        Value::List(list) => list.iter().for_each(|value| leaves(value, found)),
        Value::Map(map) => map.values().for_each(|value| leaves(value, found)),
        Value::String(text) => found.push(text.clone()),
        Value::U64(number) => found.push(number.to_string()),
        Value::I64(number) => found.push(number.to_string()),
        Value::U32(number) => found.push(number.to_string()),
        Value::I32(number) => found.push(number.to_string()),
        Value::Bool(_) | Value::F32(_) | Value::F64(_) | Value::Bytes(_) | Value::EnumNumber(_) => {}
    }
}

/// Whether anything in the answer is or holds the number of voters.
fn shows(messages: Vec<DynamicMessage>, status: &Status) -> bool {
    let mut found = vec![status.message().to_owned()];
    messages.into_iter().for_each(|message| leaves(&Value::Message(message), &mut found));
    let count = VOTERS.to_string();
    let words = found.iter().flat_map(|text| text.split(|letter: char| !letter.is_ascii_alphanumeric()));
    words.into_iter().any(|word| word == count)
}

async fn state(stack: &Stack, poll: &str) -> PollState {
    let got = stack.polls().await.get_poll(GetPollRequest { poll_id: poll.into() }).await.unwrap();
    got.into_inner().poll.unwrap().state()
}

/// Calls every method of the API, except those that would change the poll. Returns the names of those that show a count.
async fn methods_that_show(stack: &Stack, poll: &str) -> Vec<String> {
    let mut left_out = vec!["ReleaseResults"];
    left_out.extend((state(stack, poll).await != PollState::Final).then_some("ClosePoll"));
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    let mut shown = Vec::new();
    for service in pool.services() {
        let addr = if service.name() == "IngestService" { stack.ingest } else { stack.results };
        for method in service.methods().filter(|method| !left_out.contains(&method.name())) {
            let (messages, status) =
                tokio::time::timeout(PATIENCE, call(addr, &method, poll)).await.unwrap_or_else(|_| {
                    panic!("{} does not end", method.full_name());
                });
            assert_ne!(status.code(), Code::Unimplemented, "{}", method.full_name());
            if shows(messages, &status) {
                shown.push(method.name().to_owned());
            }
        }
    }
    shown
}

/// Whether each route shows a count.
async fn json_shows(stack: &Stack, poll: &str) -> Vec<bool> {
    let about = |path: &str| format!("/v1/polls/{poll}{path}");
    let csv = [("accept", "text/csv")];
    let mut shown = Vec::new();
    for (path, headers) in [
        ("/v1/polls".to_owned(), &[][..]),
        ("/v1/status".to_owned(), &[]),
        (about(""), &[]),
        (about("/results/interim"), &[]),
        (about("/results/interim"), &csv),
        (about("/results/final"), &[]),
        (about("/results/final"), &csv),
    ] {
        shown.push(has_count(&http(stack.results, "GET", &path, headers, "").await.1));
    }
    // The stream of events does not end. Counts come right after the poll, if they come.
    let call = Call { method: "GET", path: about("/results/events"), until: Some("total_"), ..Call::default() };
    let events = Call { patience: Some(Duration::from_millis(600)), ..call }.send(stack.results).await.unwrap();
    shown.push(has_count(&String::from_utf8(events.body).unwrap()));
    shown
}

/// How often it is asked for a count that must show.
const ATTEMPTS: usize = 5;

/// No route shows a count.
const NO_ROUTE: [bool; 8] = [false; 8];

fn has_count(body: &str) -> bool {
    body.split(|letter: char| !letter.is_ascii_alphanumeric()).any(|word| word == VOTERS.to_string())
}

async fn create(stack: &Stack, poll: &str, visibility: PollVisibility) {
    let request = CreatePollRequest {
        poll_id: poll.into(),
        options: ["a", "b"].map(|id| PollOption { option_id: id.into(), title: String::new() }).into(),
        closes_at: Some((std::time::SystemTime::now() + Duration::from_secs(3_600)).into()),
        visibility: visibility.into(),
        ..CreatePollRequest::default()
    };
    let created = stack.polls().await.create_poll(request).await.unwrap().into_inner().poll.unwrap();
    assert_eq!((created.visibility(), created.released_at), (visibility, None));
    let votes: Vec<_> = (0..VOTERS).map(|at| (format!("user-{at}"), "a".to_owned())).collect();
    assert_eq!(stack.cast(poll, &votes).await.accepted, VOTERS as u64);
}

async fn close_until_final(stack: &Stack, poll: &str) {
    stack.polls().await.close_poll(ClosePollRequest { poll_id: poll.into() }).await.unwrap();
    let is_final = async {
        while state(stack, poll).await != PollState::Final {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, is_final).await.unwrap();
}

/// All votes are counted, which only those who administer the poll can see.
async fn counted(stack: &Stack, poll: &str) {
    let all = async {
        loop {
            if methods_that_show(stack, poll).await.contains(&"Recount".to_owned()) {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
}

async fn hidden(stack: &Stack, poll: &str, sentence: &str) {
    assert_eq!(methods_that_show(stack, poll).await, ADMINISTRATION, "{poll}");
    assert_eq!(json_shows(stack, poll).await, NO_ROUTE, "{poll}");
    let ask = GetFinalResultsRequest { poll_id: poll.into(), wait: false };
    let status = stack.results().await.get_final_results(ask).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    let info = status.get_details_error_info().unwrap();
    assert_eq!((info.domain.as_str(), info.reason.as_str()), ("votestream.v1", "RESULTS_HIDDEN"));
    assert!(status.message().starts_with(sentence), "{status}");
    let (status, body) = http(stack.results, "GET", &format!("/v1/polls/{poll}/results/interim"), &[], "").await;
    let expected = json!({"error": {"code": "FAILED_PRECONDITION", "message": sentence}});
    assert_eq!((status, serde_json::from_str::<serde_json::Value>(&body).unwrap()), (409, expected));
}

/// Every way that ends in a count shows it.
async fn shown(stack: &Stack, poll: &str, is_final: bool) {
    let mut expected = vec!["GetInterimResults", "WatchInterimResults"];
    expected.extend(is_final.then_some("GetFinalResults"));
    expected.push("Recount");
    let routes = [false, false, false, true, true, is_final, is_final, true];
    // What must show something is asked again: an answer may take longer than is waited for where nothing may show.
    let (mut methods_show, mut routes_show) = (Vec::new(), Vec::new());
    for _ in 0..ATTEMPTS {
        (methods_show, routes_show) = (methods_that_show(stack, poll).await, json_shows(stack, poll).await);
        if methods_show == expected && routes_show == routes {
            return;
        }
    }
    panic!("{poll}: {methods_show:?} and {routes_show:?} show a count, not {expected:?} and {routes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_way_shows_a_count_before_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { bounds: TEST_BOUNDS, ..EmbeddedOptions::default() };
    let opened = EmbeddedEngine::open(dir.path(), options).unwrap();
    let stack = Stack::start(opened.ports(), TEST_BOUNDS).await;
    let final_sentence = "the results of this poll are shown once they are final";
    let release_sentence = "the results of this poll are shown once somebody releases them";

    create(&stack, "live", PollVisibility::Live).await;
    create(&stack, "when-final", PollVisibility::WhenFinal).await;
    create(&stack, "on-release", PollVisibility::OnRelease).await;
    create(&stack, "early", PollVisibility::OnRelease).await;
    for poll in ["live", "when-final", "on-release", "early"] {
        counted(&stack, poll).await;
    }
    // The votes are in; interim results of the open poll come along a moment later.
    let live = async { while methods_that_show(&stack, "live").await.len() < 3 {} };
    tokio::time::timeout(PATIENCE, live).await.unwrap();
    shown(&stack, "live", false).await;
    hidden(&stack, "when-final", final_sentence).await;
    hidden(&stack, "on-release", release_sentence).await;

    // Once it is final, one of them shows its result, and the other still waits.
    close_until_final(&stack, "when-final").await;
    shown(&stack, "when-final", true).await;
    close_until_final(&stack, "on-release").await;
    hidden(&stack, "on-release", release_sentence).await;

    // A page of another origin cannot release anything without being asked by the browser.
    let path = "/v1/polls/on-release/release";
    for headers in [&[("origin", "https://evil.example")][..], &[("content-type", "text/plain")]] {
        assert_eq!(http(stack.results, "POST", path, headers, "").await.0, 415);
    }
    let json = [("content-type", "application/json")];
    assert_eq!(http(stack.results, "POST", path, &json, "[]").await.0, 400);
    hidden(&stack, "on-release", release_sentence).await;
    let mut released_at = None;
    for (headers, body) in [(&[][..], ""), (&json[..], "{}")] {
        let (status, body) = http(stack.results, "POST", path, headers, body).await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &body["poll"]["visibility"]), (200, &json!("POLL_VISIBILITY_ON_RELEASE")), "{body}");
        let at = body["poll"]["released_at"].as_str().unwrap().to_owned();
        assert_eq!(*released_at.get_or_insert_with(|| at.clone()), at, "the first release stays");
    }
    shown(&stack, "on-release", true).await;
    for (poll, expected) in [("none", 404), ("live", 409), ("when-final", 409), ("a%20b", 400)] {
        let (status, body) = http(stack.results, "POST", &format!("/v1/polls/{poll}/release"), &[], "").await;
        assert_eq!(status, expected, "{poll}: {body}");
    }

    // A poll that is still open shows its interim results once it is released.
    let release = ReleaseResultsRequest { poll_id: "early".into() };
    stack.results().await.release_results(release).await.unwrap();
    shown(&stack, "early", false).await;
    stack.stop().await;
    opened.close();
}
