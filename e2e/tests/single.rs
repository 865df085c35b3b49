//! CastVote, whatever arrives as its request: ingest reads and answers these calls itself.

use tonic::{Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery, metadata::AsciiMetadataValue};
use votestream_core::limits::MESSAGE_BYTES_MAX;
use votestream_e2e::stack::{Stack, TEST_BOUNDS, connect};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_proto::{SmallBufferCodec, VotesMessage, v1::CastVoteResponse};

/// A message of votes.
fn message(votes: &[(&str, &str, &str)]) -> VotesMessage {
    let mut message = VotesMessage::default();
    votes.iter().for_each(|(poll, user, option)| message.push(poll, user, option));
    message
}

/// Calls CastVote, compressed or not as `encoding` says, with as many messages as given, which no generated client does.
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
    let huge = vote(&"x".repeat(MESSAGE_BYTES_MAX));
    let limit = MESSAGE_BYTES_MAX.to_string();
    // What tonic answers, it answers for calls that name an encoding.
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
