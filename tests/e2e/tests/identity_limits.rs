//! Limits on how often voters, credentials and addresses may call, and the end of connections that bring one wrong
//! signature after the other: over every transport, before a body is read, and with nobody else harmed.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use votestream_core::observe::metrics::{CALLS_LIMITED, CONNECTIONS_CLOSED, ConnectionClosed, Limit};
use votestream_e2e::{
    cluster::eventually,
    hostile::{Answer, Call, Http2, transports, wire},
    house::{House, MANAGER, OTHER_RELAY, RELAY, bearing},
    issuer::{Issuer, now},
};
use votestream_proto::{VotesMessage, v1::CastVotesResponse};
use votestream_server::CallLimits;

const CAST_VOTE: &str = "/votestream.v1.IngestService/CastVote";
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest time until a refusal: far less than the time that a body may take.
const AT_ONCE: Duration = Duration::from_secs(8);

fn limits(change: impl FnOnce(&mut CallLimits)) -> CallLimits {
    let mut limits = CallLimits::default();
    change(&mut limits);
    limits
}

fn rate(text: &str) -> Option<votestream_server::Rate> {
    Some(text.parse().unwrap())
}

fn votes(poll: &str, users: &[&str]) -> VotesMessage {
    let mut message = VotesMessage::default();
    users.iter().for_each(|user| message.push(poll, user, "a"));
    message
}

/// A vote over one of the transports: gRPC, gRPC-Web over both versions of HTTP and as text, and JSON.
fn call(transport: usize, credential: &str, more: &[(&str, &str)]) -> Call {
    let (content_type, http2) = transports().nth(transport).expect("there are six");
    let mut headers = vec![("content-type".to_owned(), content_type.to_owned())];
    headers.push(("authorization".into(), format!("Bearer {credential}")));
    headers.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let message = wire::message(&wire::vote("p", "", "a"));
    let (path, body) = match content_type {
        "application/json" => ("/v1/polls/p/votes", br#"{"option_id":"a"}"#.to_vec()),
        "application/grpc-web-text" => (CAST_VOTE, wire::base64(&message)),
        _ => (CAST_VOTE, message),
    };
    Call { http2, path: path.into(), headers, body: vec![Bytes::from(body)], ..Call::default() }
}

const TRANSPORTS: usize = 6;

/// The code of an answer. A refusal because of a limit must have everything that its transport can carry.
fn code(answer: &Answer) -> Code {
    if answer.headers["content-type"].starts_with("application/json") {
        let json: Value = serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("{answer:?}"));
        let Some(code) = json["error"]["code"].as_str() else { return Code::Ok };
        if code == "RESOURCE_EXHAUSTED" {
            assert_eq!(answer.status, 429);
            let seconds: u64 = answer.headers["retry-after"].parse().unwrap();
            assert!((1..=3_600).contains(&seconds), "{answer:?}");
        }
        return (0..17).map(Code::from).find(|known| votestream_server::http::name_of(*known) == code).unwrap();
    }
    let outcome = answer.outcome();
    let (code, message) = outcome.status.unwrap_or_else(|| panic!("{answer:?}"));
    if Code::from(code as i32) == Code::ResourceExhausted {
        assert_eq!(answer.status, 200);
        assert!(message.contains("limit"), "{message}");
        let all = [&answer.headers, answer.trailers.as_ref().unwrap_or(&answer.headers)];
        let in_body =
            String::from_utf8_lossy(&wire::from_base64(&answer.body).unwrap_or(answer.body.clone())).into_owned();
        let has_details = all.iter().any(|headers| headers.contains_key("grpc-status-details-bin"));
        assert!(has_details || in_body.contains("grpc-status-details-bin"), "{answer:?}");
    }
    Code::from(code as i32)
}

async fn send(addr: SocketAddr, call: &Call) -> Code {
    code(&call.send(addr).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_calls_too_often_is_refused_on_every_transport_before_its_body_comes() {
    let house = House::open(limits(|limits| limits.per_credential = rate("10/h"))).await;
    house.create_poll("p").await;
    let addr = house.stack.ingest;
    for transport in 0..TRANSPORTS {
        let token = house.token(&json!({"sub": format!("user-{transport}")}));
        for _ in 0..10 {
            assert_eq!(send(addr, &call(transport, &token, &[])).await, Code::Ok, "{transport}");
        }
        let before = CALLS_LIMITED.get(Limit::Credential as usize);
        assert_eq!(send(addr, &call(transport, &token, &[])).await, Code::ResourceExhausted, "{transport}");
        assert!(CALLS_LIMITED.get(Limit::Credential as usize) > before);
        // The body has begun and never ends: nobody waits for it.
        let endless = Call { open: true, patience: Some(AT_ONCE), ..call(transport, &token, &[]) };
        assert_eq!(send(addr, &endless).await, Code::ResourceExhausted, "{transport}");
    }
    // The credentials of others are not counted with them, and each has its own count on both ports together.
    assert_eq!(send(addr, &call(0, &house.token(&json!({"sub": "bob"})), &[])).await, Code::Ok);
    let mut results = house.stack.results().await;
    let recount = || votestream_proto::v1::RecountRequest { poll_id: "p".into() };
    let mut refused = None;
    for _ in 0..11 {
        refused = refused.or(results.recount(bearing(MANAGER, recount())).await.err());
    }
    let refused = refused.expect("eleven calls are too many");
    let wait = refused.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(wait > Duration::from_secs(60) && wait <= Duration::from_secs(360), "{wait:?}");
    let mut ingest = house.stack.ingest().await;
    let also = ingest.cast_vote(bearing(MANAGER, votes("p", &["x"]))).await.unwrap_err();
    assert_eq!(also.code(), Code::ResourceExhausted, "{also:?}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_is_counted_over_all_tokens_and_in_streams_and_a_relay_is_not() {
    let house = House::open(limits(|limits| limits.per_voter = rate("100/h:20"))).await;
    house.create_poll("p").await;
    let mut ingest = house.stack.ingest().await;
    let token = |user: &str, jti: &str| house.token(&json!({"sub": user, "jti": jti}));
    for at in 0..20 {
        let token = token("ada", &at.to_string());
        ingest.cast_vote(bearing(&token, votes("p", &[""]))).await.unwrap();
    }
    let refused = ingest.cast_vote(bearing(&token("ada", "another"), votes("p", &[""]))).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(!refused.message().contains("ada"));
    ingest.cast_vote(bearing(&token("bob", "1"), votes("p", &[""]))).await.unwrap();

    // A stream is a call, and each of its votes is one, too. What came before is settled.
    let cast = async |token: String, messages: Vec<VotesMessage>| {
        let mut ingest = house.stack.ingest().await;
        ingest.cast_votes(bearing(&token, tokio_stream::iter(messages))).await
    };
    let once = |user: &'static str, times: usize| votes("p", &vec![user; times]);
    let taken: CastVotesResponse = cast(token("carol", "1"), vec![once("carol", 19)]).await.unwrap().into_inner();
    assert_eq!(taken.accepted, 19);
    let refused: Status = cast(token("dave", "1"), vec![once("dave", 12), once("dave", 12)]).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let refused: Status = cast(token("erin", "1"), vec![once("erin", 500)]).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.get_details_retry_info().is_none(), "it would be too much at any time");

    // A relay sends the votes of many, and so may a token that is one.
    let crowd: Vec<String> = (0..500).map(|at| format!("user-{at}")).collect();
    let crowd: Vec<&str> = crowd.iter().map(String::as_str).collect();
    for relay in [RELAY.to_owned(), house.token(&json!({"sub": "relay", "scope": "relay:p"}))] {
        let taken = cast(relay, vec![votes("p", &crowd); 4]).await.unwrap().into_inner();
        assert_eq!(taken.accepted, 2_000);
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_counted_behind_proxies_and_health_is_not() {
    let changed = limits(|limits| {
        limits.per_address = rate("10/h");
        limits.trusted_proxies = "127.0.0.0/8,192.0.2.0/24".parse().unwrap();
    });
    let house = House::open(changed).await;
    let addr = house.stack.ingest;
    let token = Issuer::new("es1").token(&json!({}));
    let from = async |forwarded: &str| send(addr, &call(0, &token, &[("x-forwarded-for", forwarded)])).await;
    for _ in 0..10 {
        assert_eq!(from("198.51.100.1").await, Code::Unauthenticated);
    }
    // A credential is not even looked at.
    assert_eq!(from("198.51.100.1").await, Code::ResourceExhausted);
    assert_eq!(from("203.0.113.7, 198.51.100.1, 192.0.2.1").await, Code::ResourceExhausted, "the left is not believed");
    assert_eq!(from("198.51.100.2").await, Code::Unauthenticated);
    assert_eq!(from("2001:db8::1").await, Code::Unauthenticated);
    for _ in 0..9 {
        assert_eq!(from("[2001:db8::2]:99").await, Code::Unauthenticated);
    }
    assert_eq!(from("2001:db8::3").await, Code::ResourceExhausted, "one network");
    for transport in 0..TRANSPORTS {
        let refused = send(addr, &call(transport, &token, &[("x-forwarded-for", "198.51.100.1")])).await;
        assert_eq!(refused, Code::ResourceExhausted, "{transport}");
    }
    // Load balancers ask for health, and tools for the methods, as often as they like.
    for path in ["/grpc.health.v1.Health/Check", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] {
        for _ in 0..30 {
            let mut open = call(0, &token, &[("x-forwarded-for", "198.51.100.1")]);
            open.path = path.into();
            open.body = vec![Bytes::from(wire::message(&[]))];
            assert_ne!(send(addr, &open).await, Code::ResourceExhausted, "{path}");
        }
    }
    house.stack.stop().await;
}

/// Tokens with signatures that are wrong, each different.
fn forged(house: &House, at: usize) -> String {
    let token = |sub: String| {
        house.issuer.token(&json!({
            "iss": votestream_e2e::house::ISS, "aud": "votestream", "sub": sub, "exp": now() + 3_600, "scope": "vote:*",
        }))
    };
    let (mine, other) = (token(format!("eve-{at}")), token(format!("mallory-{at}")));
    format!("{}.{}", mine.rsplit_once('.').unwrap().0, other.rsplit_once('.').unwrap().1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_brings_wrong_signatures_one_after_the_other_ends() {
    let house = House::open(CallLimits::default()).await;
    house.create_poll("p").await;
    let addr = house.stack.ingest;
    let closed = || CONNECTIONS_CLOSED.get(ConnectionClosed::Signatures as usize);
    let vote = wire::message(&wire::vote("p", "", "a"));
    let cast = async |connection: &mut Http2, token: &str| {
        let before = connection.heard().answered;
        let authorization = format!("Bearer {token}");
        let stream = connection.call(CAST_VOTE, &[("authorization", &authorization)]).await?;
        // The refusal may come first.
        drop(connection.data(stream, &vote, usize::MAX, true).await);
        connection.hears(|heard| heard.answered > before || heard.closed, PATIENCE).await;
        std::io::Result::Ok(())
    };

    // Nineteen wrong ones and a right one, again and again: people share this connection behind a proxy.
    let mut shared = Http2::connect(addr).await.unwrap();
    for round in 0..3 {
        for at in 0..19 {
            cast(&mut shared, &forged(&house, round * 100 + at)).await.unwrap();
        }
        cast(&mut shared, &house.token(&json!({"sub": format!("user-{round}")}))).await.unwrap();
    }
    assert_eq!((shared.heard().goaway, shared.heard().answered), (None, 60));

    // Someone streams over a connection on which another sends wrong signatures. The stream may end in its own time.
    let before = closed();
    let mut bad = Http2::connect(addr).await.unwrap();
    let token = format!("Bearer {}", house.token(&json!({"sub": "ada"})));
    let stream = bad.call("/votestream.v1.IngestService/StreamVotes", &[("authorization", &token)]).await.unwrap();
    bad.data(stream, &vote, usize::MAX, false).await.unwrap();
    assert!(bad.hears(|heard| heard.data_bytes > 0, PATIENCE).await, "{:?}", bad.heard());
    for at in 0..20 {
        cast(&mut bad, &forged(&house, 1_000 + at)).await.unwrap();
    }
    assert!(bad.hears(|heard| heard.goaway.is_some(), PATIENCE).await, "{:?}", bad.heard());
    assert!(!bad.heard().closed, "the stream goes on");
    let end = wire::frame(wire::kind::DATA, wire::flag::END_STREAM, stream, &vote);
    bad.send(&end).await.unwrap();
    assert!(bad.is_closed(PATIENCE).await, "{:?}", bad.heard());
    assert_eq!(bad.heard().answered, 21, "{:?}", bad.heard());
    eventually("the connection is counted", PATIENCE, async || if closed() > before { Ok(()) } else { Err(closed()) })
        .await;

    // So does one that does not care, and one of HTTP/1.1.
    let mut deaf = Http2::connect(addr).await.unwrap();
    let mut at = 10_000;
    while cast(&mut deaf, &forged(&house, at)).await.is_ok() && !deaf.heard().closed {
        at += 1;
        assert!(at < 13_000, "{:?}", deaf.heard());
    }
    let mut ingest = house.stack.ingest().await;
    ingest.cast_vote(bearing(OTHER_RELAY, votes("p", &["x"]))).await.unwrap();
    assert_eq!(house.finish("p").await, 5, "three users, ada, and x");
    house.close().await;
}
