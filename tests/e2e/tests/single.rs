//! Tests CastVote with all kinds of requests: ingest reads and answers these calls without the generated service.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery, metadata::AsciiMetadataValue};
use votestream_core::model::limits::SINGLE_VOTE_BYTES_MAX;
use votestream_e2e::stack::{Stack, TEST_BOUNDS, connect};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_ingest::IngestConfig;
use votestream_proto::{
    SmallBufferCodec, VotesMessage,
    v1::{CastVoteResponse, ingest_service_client::IngestServiceClient},
};

/// A message of votes.
fn message(votes: &[(&str, &str, &str)]) -> VotesMessage {
    let mut message = VotesMessage::default();
    votes.iter().for_each(|(poll, user, option)| message.push(poll, user, option));
    message
}

/// Calls CastVote with these messages, compressed if `encoding` says so. No generated client can send several messages.
async fn call(stack: &Stack, messages: Vec<VotesMessage>, encoding: Option<&'static str>) -> Result<(), Status> {
    let mut client = Grpc::new(connect(stack.ingest).await);
    client.ready().await.unwrap();
    let mut request = Request::new(tokio_stream::iter(messages));
    if let Some(encoding) = encoding {
        request.metadata_mut().insert("grpc-encoding", AsciiMetadataValue::from_static(encoding));
    }
    let path = PathAndQuery::from_static("/votestream.v1.IngestService/CastVote");
    let codec = SmallBufferCodec::<VotesMessage, CastVoteResponse>::default();
    client.client_streaming(request, path, codec).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_takes_one_vote_and_says_what_else_it_got() {
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { bounds: TEST_BOUNDS, ..EmbeddedOptions::default() };
    let engine = EmbeddedEngine::open(dir.path(), options).unwrap();
    let stack = Stack::start(engine.ports(), TEST_BOUNDS).await;
    stack.create_poll("p", ["a", "b"]).await;

    let vote = |user: &str| message(&[("p", user, "a")]);
    let huge = vote(&"x".repeat(SINGLE_VOTE_BYTES_MAX));
    let limit = SINGLE_VOTE_BYTES_MAX.to_string();
    // For a call that names an encoding, the answers are those of tonic.
    let cases = [
        (vec![vote("u")], None, None),
        (vec![vote("v")], Some("identity"), None),
        (vec![vote("w")], Some("gzip"), Some((Code::Unimplemented, "gzip"))),
        (vec![], None, Some((Code::InvalidArgument, "vote is missing"))),
        (vec![message(&[])], None, Some((Code::InvalidArgument, "vote is missing"))),
        (vec![vote("w"), vote("x")], None, Some((Code::InvalidArgument, "one message"))),
        (vec![vote("w"), message(&[])], None, Some((Code::InvalidArgument, "one message"))),
        (
            vec![message(&[("p", "w", "a"), ("p", "x", "a")])],
            None,
            Some((Code::InvalidArgument, "vote is given twice")),
        ),
        (vec![huge], None, Some((Code::InvalidArgument, &limit))),
        (vec![message(&[("p", "w", "c")])], None, Some((Code::InvalidArgument, "option_id"))),
        (vec![message(&[("q", "w", "a")])], None, Some((Code::NotFound, "poll_id"))),
    ];
    for (messages, encoding, expected) in cases {
        let shown = format!("{} messages, encoding {encoding:?}, {expected:?}", messages.len());
        match (call(&stack, messages, encoding).await, expected) {
            (Ok(()), None) => {}
            (Err(status), Some((code, part))) if status.code() == code && status.message().contains(part) => {}
            (answer, _) => panic!("{shown}: {answer:?}"),
        }
    }

    let result = stack.finish("p").await;
    assert_eq!(result.total_votes, 2, "exactly what was taken");
    stack.stop().await;
}

/// A stream without votes, or without further votes, is ended by the server. Earlier votes have their answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_says_nothing_has_an_end() {
    const SILENCE: Duration = Duration::from_secs(1);
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { bounds: TEST_BOUNDS, ..EmbeddedOptions::default() };
    let engine = EmbeddedEngine::open(dir.path(), options).unwrap();
    let stack = Stack::start(engine.ports(), TEST_BOUNDS).await;
    stack.create_poll("p", ["a"]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let config = IngestConfig {
        bounds: TEST_BOUNDS,
        first_message_timeout: SILENCE,
        silence_timeout: SILENCE,
        ..IngestConfig::one_machine()
    };
    let ingest = tokio::spawn(votestream_ingest::run(config, engine.ports(), listener, stop.clone()));

    let mut client = IngestServiceClient::new(connect(addr).await);
    for votes in [0, 1] {
        // The sending side stays open.
        let (sender, messages) = tokio::sync::mpsc::channel(1);
        if votes > 0 {
            sender.send(message(&[("p", "u", "a")])).await.unwrap();
        }
        let mut answers = client.stream_votes(ReceiverStream::new(messages)).await.unwrap().into_inner();
        let mut through = 0;
        let status = loop {
            match answers.message().await {
                Ok(Some(answer)) => (through, _) = (answer.durable_through, assert!(answer.rejections.is_empty())),
                Ok(None) => panic!("a stream that was not finished ended well"),
                Err(status) => break status,
            }
        };
        assert_eq!((through, status.code()), (votes, Code::Unavailable));
        assert!(status.message().contains("nothing came for 1s"), "{status}");
    }
    stop.cancel();
    ingest.await.unwrap().unwrap();
    assert_eq!(stack.finish("p").await.total_votes, 1);
    stack.stop().await;
}
