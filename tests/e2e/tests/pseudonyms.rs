//! One person has one vote, by whatever way it comes and whichever task takes it; a task without the key of a poll takes
//! none.

use std::{net::SocketAddr, time::Duration};

use prost::Message;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic_types::StatusExt;
use votestream_core::{PseudonymKeys, model::pseudonym::PseudonymKey, port::Ports};
use votestream_e2e::stack::{Stack, TEST_BOUNDS, connect, http};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_ingest::IngestConfig;
use votestream_proto::{
    VotesMessage,
    v1::{GetPollRequest, RejectionCode, ingest_service_client::IngestServiceClient},
};
use votestream_server::{Drain, ServiceError};

const PATIENCE: Duration = Duration::from_secs(60);

fn key(byte: u8) -> PseudonymKey {
    PseudonymKey::new([byte; 32])
}

/// An ingest task of its own on the same engines.
struct Task {
    addr: SocketAddr,
    shutdown: CancellationToken,
    run: tokio::task::JoinHandle<Result<Drain, ServiceError>>,
}

impl Task {
    async fn start(ports: &Ports, keys: impl IntoIterator<Item = u8>) -> Self {
        let mut config = IngestConfig::one_machine();
        (config.bounds, config.lanes.bounds) = (TEST_BOUNDS, TEST_BOUNDS);
        config.pseudonym_keys = PseudonymKeys::new(keys.into_iter().map(key));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
        let run = tokio::spawn(votestream_ingest::run(config, ports.clone(), listener, shutdown.clone()));
        Self { addr, shutdown, run }
    }

    async fn client(&self) -> IngestServiceClient<tonic::transport::Channel> {
        IngestServiceClient::new(connect(self.addr).await)
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.run.await.unwrap().unwrap();
    }
}

fn vote(user: &str, option: &str) -> VotesMessage {
    let mut message = VotesMessage::default();
    message.push("p", user, option);
    message
}

/// Casts a vote for `option` in every way that there is. Panics unless each succeeds.
async fn cast_in_every_way(addr: SocketAddr, user: &str, option: &str) {
    let mut client = IngestServiceClient::new(connect(addr).await);
    client.cast_vote(vote(user, option)).await.unwrap();
    let answer = client.cast_votes(tokio_stream::iter([vote(user, option)])).await.unwrap().into_inner();
    assert_eq!(answer.accepted, 1, "{answer:?}");
    let mut answers = client.stream_votes(tokio_stream::iter([vote(user, option)])).await.unwrap().into_inner();
    while let Some(answer) = answers.message().await.unwrap() {
        assert_eq!(answer.rejections, []);
    }
    let headers = [("content-type", "application/json")];
    let body = json!({"user_id": user, "option_id": option}).to_string();
    assert_eq!(http(addr, "POST", "/v1/polls/p/votes", &headers, &body).await.0, 200);
    let body = json!({"cognitoid": user, "voteid": "p", "option": option}).to_string();
    assert_eq!(http(addr, "POST", "/vote", &headers, &body).await.0, 200);
    // gRPC-Web as text: base64 of a frame.
    let message = vote(user, option).encode_to_vec();
    let frame = [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message].concat();
    let headers = [("content-type", "application/grpc-web-text"), ("accept", "application/grpc-web-text")];
    let (status, body) = http(addr, "POST", "/votestream.v1.IngestService/CastVote", &headers, &base64(&frame)).await;
    assert_eq!(status, 200, "{body}");
}

/// Base64 with padding (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let chunk = |chunk: &[u8]| {
        let number = (0..3).fold(0, |number, at| number << 8 | u32::from(chunk.get(at).copied().unwrap_or(0)));
        let digit = |at: usize| {
            let is_there = at <= chunk.len();
            if is_there { char::from(DIGITS[(number >> (18 - 6 * at)) as usize & 63]) } else { '=' }
        };
        (0..4).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(chunk).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_person_has_one_vote_and_a_task_without_the_key_takes_none() {
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { bounds: TEST_BOUNDS, ..EmbeddedOptions::default() };
    let opened = EmbeddedEngine::open(dir.path(), options).unwrap();
    let ports = opened.ports();
    let keys = PseudonymKeys::new([key(1)]);
    let stack = Stack::start_with(opened.ports(), TEST_BOUNDS, |config| {
        *config = config.clone().with_pseudonyms(keys);
    })
    .await;
    stack.create_poll("p", ["a", "b"]).await;
    let got = stack.polls().await.get_poll(GetPollRequest { poll_id: "p".into() }).await.unwrap().into_inner();
    assert_eq!(got.poll.unwrap().pseudonym_key_id, key(1).id().to_string());

    // The task of the stack, and another one in the middle of a rotation.
    let rotating = Task::start(&ports, [2, 1]).await;
    for user in ["ada", "9f8b7c6d-5e4f-4a3b-8c2d-1e0f9a8b7c6d"] {
        cast_in_every_way(stack.ingest, user, "a").await;
        cast_in_every_way(rotating.addr, user, "b").await;
    }

    for keys in [vec![2], vec![]] {
        let other = Task::start(&ports, keys).await;
        let mut client = other.client().await;
        let refused = client.cast_vote(vote("ada", "a")).await.unwrap_err();
        let named = key(1).id().to_string();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        assert!(refused.message().contains(&named) && refused.message().contains("pseudonym key"), "{refused}");
        let info = refused.get_details_error_info().unwrap();
        assert_eq!(info.reason, "VOTE_NOT_STORED", "it was certainly not stored");
        let answer = client.cast_votes(tokio_stream::iter([vote("ada", "a")])).await.unwrap().into_inner();
        assert_eq!((answer.accepted, answer.rejections[0].code()), (0, RejectionCode::Unavailable));
        let (status, body) =
            http(other.addr, "POST", "/v1/polls/p/votes", &[], r#"{"user_id": "ada", "option_id": "a"}"#).await;
        assert_eq!(status, 503, "{body}");
        other.stop().await;
    }
    rotating.stop().await;

    let result = tokio::time::timeout(PATIENCE, stack.finish("p")).await.unwrap();
    let counts: Vec<_> = result.options.iter().map(|option| option.votes).collect();
    assert_eq!(counts, [0, 2], "two people, and their last votes");
    stack.stop().await;
    drop(ports);
    opened.close();
}
