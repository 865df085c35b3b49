//! The same meaning on every path: the same request gets the same answer, and no answer says something wrong.

use std::time::Duration;

use bytes::Bytes;
use rand::{RngExt, seq::IndexedRandom};
use tonic::Code;
use votestream_e2e::hostile::{
    Call, Http2,
    votes::METHODS,
    wire::{self, flag, kind},
};
use votestream_proto::v1::{PollOption, poll_service_client::PollServiceClient};

use super::*;

const OK: Option<(u32, String)> = Some((0, String::new()));

/// No. 1: a request of a browser gets a complete answer, over both versions of HTTP.
#[tokio::test(flavor = "multi_thread")]
async fn a_vote_by_grpc_web_is_answered_whole() {
    let (server, mut rng) = start("grpc-web").await;
    create(&server, poll("web", &["yes"])).await;
    let types = [
        "application/grpc-web",
        "application/grpc-web+proto",
        "application/grpc-web-text",
        "application/grpc-web-text+proto",
    ];
    let mut voters = 0;
    for http2 in [false, true] {
        for content_type in types {
            for (method, path) in METHODS.into_iter().enumerate() {
                voters += 1;
                let message = one_vote("web", &format!("browser-{voters}"), "yes");
                let text = content_type.contains("text");
                let body = if text { wire::base64(&message) } else { message };
                let (first, second) = body.split_at(rng.random_range(0..=body.len()));
                let headers = [("content-type", content_type), ("accept", content_type), ("x-grpc-web", "1")];
                let call = Call {
                    http2,
                    path: path.into(),
                    headers: headers.map(|(name, value)| (name.into(), value.into())).into(),
                    body: vec![Bytes::copy_from_slice(first), Bytes::copy_from_slice(second)],
                    ..Call::default()
                };
                let outcome = call.send(server.ingest).await.unwrap().outcome();
                let shown = format!("HTTP/2 {http2}, {content_type}, {path}: {outcome:?}");
                assert_eq!((outcome.http, &outcome.status, outcome.status_in), (200, &OK, "body"), "{shown}");
                assert_eq!((outcome.messages.len(), outcome.broken), (1, None), "{shown}");
                assert!(outcome.messages[0].is_empty() == (method == 0), "{shown}");
            }
        }
    }
    ends_with(server, "web", voters).await;
}

/// No. 5: however many votes of a valid message are rejected, every client learns of each rejection.
#[tokio::test(flavor = "multi_thread")]
async fn every_rejection_arrives_in_answers_that_a_client_takes() {
    let (server, mut rng) = start("rejections").await;
    create(&server, poll("p", &["yes"])).await;
    let votes = rng.random_range(120_000..150_000_u64);
    let message = (0..votes).flat_map(|at| wire::vote("p", &format!("u{at:06}"), "maybe")).collect::<Vec<_>>();
    let mut call = grpc(2, &[], wire::message(&message));
    call.body = call.body[0].chunks(16 << 10).map(Bytes::copy_from_slice).collect();
    let outcome = call.send(server.ingest).await.unwrap().outcome();
    assert_eq!((&outcome.status, &outcome.broken), (&OK, &None));
    let longest = outcome.messages.iter().map(Vec::len).max().unwrap();
    // The size that every gRPC client accepts, with a margin for clients that count more than the message.
    assert!(longest < 3 << 20, "an answer has {longest} bytes");
    let mut seen = Vec::new();
    for message in &outcome.messages {
        let response: votestream_proto::v1::StreamVotesResponse = prost::Message::decode(&message[..]).unwrap();
        assert!(response.rejections.iter().all(|rejection| rejection.index < response.durable_through));
        seen.extend(response.rejections.iter().map(|rejection| rejection.index));
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..votes), "each of {votes} rejections exactly once");
    server.counts_exactly().await;
}

/// No. 10: a gRPC deadline has no effect on JSON, and 200 means that the vote is durable.
#[tokio::test(flavor = "multi_thread")]
async fn json_says_200_only_for_what_is_durable() {
    let (server, mut rng) = start("json deadlines").await;
    create(&server, poll("json", &["yes"])).await;
    let mut durable = 0;
    for at in 0..60 {
        let timeout = *["1n", "1u", "0m", "0S", "1m", "99999999n", "1H", "x"].choose(&mut rng).unwrap();
        let headers = [("content-type", "application/json"), ("grpc-timeout", timeout)];
        let answer = json_vote(&server, "json", &format!("voter-{at}"), &headers).await;
        assert_eq!((answer.status, &answer.body[..]), (200, &b"{}"[..]), "grpc-timeout: {timeout}: {answer:?}");
        durable += 1;
    }
    ends_with(server, "json", durable).await;
}

/// No. 11: a page of another origin cannot cast a vote with a request that a browser sends without a check.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_cannot_vote_unasked() {
    let (server, mut rng) = start("pages").await;
    create(&server, poll("page", &["yes"])).await;
    let simple = [
        "text/plain",
        "text/plain;charset=UTF-8",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "application/jsonp",
        "text/json",
    ];
    for content_type in simple {
        let origin = format!("https://{}.example", rng.random::<u32>());
        let mut headers = vec![("origin", origin.as_str())];
        if !content_type.is_empty() {
            headers.push(("content-type", content_type));
        }
        let answer = json_vote(&server, "page", "victim", &headers).await;
        assert_eq!(answer.status, 415, "{content_type:?}: {answer:?}");
    }
    // A host name that was made to point to this machine: then the page and the service have the same origin.
    for host in
        ["evil.example", "evil.example:50051", "localhost.evil.example", "127.0.0.1.evil.example", "169.254.1.1"]
    {
        let headers = [("content-type", "application/json"), ("host", host)];
        let answer = json_vote(&server, "page", "victim", &headers).await;
        assert!((400..500).contains(&answer.status), "host {host}: {answer:?}");
    }
    let port = server.ingest.port();
    let good = [
        "localhost".to_owned(),
        format!("localhost:{port}"),
        format!("127.0.0.1:{port}"),
        format!("[::1]:{port}"),
        "LOCALHOST".to_owned(),
    ];
    for (at, host) in good.iter().enumerate() {
        for content_type in ["application/json", "application/json; charset=utf-8", "Application/JSON"] {
            let headers = [("content-type", content_type), ("host", host)];
            let answer = json_vote(&server, "page", &format!("voter-{at}"), &headers).await;
            assert_eq!(answer.status, 200, "host {host}, {content_type}: {answer:?}");
        }
    }
    ends_with(server, "page", good.len() as u64).await;
}

/// No. 15: a deadline applies to every call, and an expired call says so.
#[tokio::test(flavor = "multi_thread")]
async fn deadlines_are_those_of_grpc() {
    let (server, mut rng) = start("deadlines").await;
    let half = one_vote("beside", "nobody", "no such option")[..9].to_vec();
    for method in 0..3 {
        for body in [vec![], half.clone()] {
            let millis = rng.random_range(50..400);
            let call = Call { open: true, ..grpc(method, &[("grpc-timeout", &format!("{millis}m"))], body.clone()) };
            let outcome = call.send(server.ingest).await.unwrap().outcome();
            let code = outcome.status.as_ref().map(|(code, _)| *code);
            assert_eq!(code, Some(Code::DeadlineExceeded as u32), "method {method}, {} bytes: {outcome:?}", body.len());
        }
    }
    server.counts_exactly().await;
}

/// No. 16: naming no compression means the same as naming `identity`.
#[tokio::test(flavor = "multi_thread")]
async fn identity_changes_no_answer() {
    let (server, mut rng) = start("identity").await;
    create(&server, poll("p", &["yes"])).await;
    let vote = || one_vote("p", "u", "yes");
    let bodies = [
        vote(),
        vec![],
        [vote(), vote()].concat(),
        [vote(), vec![0; 5]].concat(),
        vote()[..vote().len() - rng.random_range(1..5)].to_vec(),
        [vec![1], vote()[1..].to_vec()].concat(),
        wire::message_of(0, 5 << 20, b"x"),
        wire::message(&vec![0x0a; rng.random_range(1..50)]),
        one_vote("p", "u", "no"),
    ];
    for method in 0..3 {
        for body in &bodies {
            let plain = grpc(method, &[], body.clone()).send(server.ingest).await.unwrap().outcome();
            let named = grpc(method, &[("grpc-encoding", "identity")], body.clone());
            let named = named.send(server.ingest).await.unwrap().outcome();
            assert_eq!(named, plain, "method {method}, body {body:?}");
        }
    }
    server.counts_exactly().await;
}

/// No. 17: a request that cannot be read gets an error that says so.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_protobuf_is_called_that() {
    let (server, mut rng) = start("protobuf").await;
    create(&server, poll("p", &["yes"])).await;
    // None of these is a field.
    for junk in [&[0x0a][..], &[0x0a, 0x7f], &[0x07], &[0x0c], &[0xff; 11], &[0x0b, 0x0b]] {
        let vote = wire::vote("p", &format!("u{}", rng.random::<u16>()), "yes");
        let message = wire::message(&[&vote[..], junk].concat());
        let outcome = grpc(0, &[], message).send(server.ingest).await.unwrap().outcome();
        let (code, message) = outcome.status.clone().unwrap();
        assert_eq!(code, Code::InvalidArgument as u32, "{junk:?}: {outcome:?}");
        assert!(!message.contains("twice"), "{junk:?}: {message}");
    }
    ends_with(server, "p", 0).await;
}

/// No. 18: an id that no URL can name is not allowed.
#[tokio::test(flavor = "multi_thread")]
async fn a_poll_that_no_url_reaches_cannot_be_created() {
    let (server, _) = start("ids").await;
    let mut polls = PollServiceClient::new(connect(server.results).await);
    for id in [".", ".."] {
        let refused = polls.create_poll(poll(id, &["yes"])).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{id:?}: {refused}");
    }
    // Every other id with dots can be used.
    for id in ["...", ".a", "a..", "-", "_", "~"] {
        create(&server, poll(id, &["yes"])).await;
        let answer = json_vote(&server, id, "u", &[("content-type", "application/json")]).await;
        assert_eq!(answer.status, 200, "{id}: {answer:?}");
    }
    server.counts_exactly().await;
}

/// The README's limits: the allowed maximum is accepted, and one more is refused.
#[tokio::test(flavor = "multi_thread")]
async fn ids_and_messages_are_taken_up_to_their_limits() {
    let (server, mut rng) = start("limits").await;
    let (longest, user) = ("p".repeat(64), format!("ü{}", "u".repeat(254)));
    let option = "o".repeat(128);
    let mut polls = PollServiceClient::new(connect(server.results).await);
    let mut request = poll(&longest, &[&option]);
    request.options.extend((1..1_000).map(|at| PollOption { option_id: at.to_string(), title: String::new() }));
    polls.create_poll(request.clone()).await.unwrap();
    request.options.push(PollOption { option_id: "one more".into(), title: String::new() });
    let longer = [
        CreatePollRequest { poll_id: "more-options".into(), ..request },
        poll(&format!("{longest}p"), &["a"]),
        poll("longer-option", &[&format!("{option}o")]),
    ];
    for request in longer {
        let id = request.poll_id.clone();
        let refused = polls.create_poll(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{id}: {refused}");
    }
    for (user, option, code) in [
        (user.clone(), option.clone(), 0),
        (format!("{user}u"), option.clone(), 3),
        (user.clone(), format!("{option}o"), 3),
        (format!("{}\u{7f}", &user[..200]), option.clone(), 3),
    ] {
        let outcome = grpc(0, &[], one_vote(&longest, &user, &option)).send(server.ingest).await.unwrap().outcome();
        assert_eq!(outcome.status.as_ref().map(|(code, _)| *code), Some(code), "{user} {option}: {outcome:?}");
    }
    // Votes up to the limit of a message; the rest of the message is an unknown field.
    for (bytes, code) in [(4 << 20, 0), ((4 << 20) + 1 + rng.random_range(0..1_000), 3)] {
        let mut message = wire::vote(&longest, "v", "1");
        let rest: usize = bytes - message.len();
        message.extend(wire::field(9, &vec![0; rest - 5]));
        assert_eq!(message.len(), bytes);
        let mut call = grpc(1, &[], wire::message(&message));
        call.body = call.body[0].chunks(16 << 10).map(Bytes::copy_from_slice).collect();
        let outcome = call.send(server.ingest).await.unwrap().outcome();
        assert_eq!(outcome.status.as_ref().map(|(code, _)| *code), Some(code), "{bytes} bytes: {outcome:?}");
    }
    ends_with(server, &longest, 2).await;
}

/// No. 24: what some clients of a proxy do does not harm its other clients.
#[tokio::test(flavor = "multi_thread")]
async fn callers_of_a_shared_connection_do_not_pay_for_others() {
    let (server, mut rng) = start("shared connection").await;
    create(&server, poll("shared", &["yes"])).await;
    let mut proxy = Http2::connect(server.ingest).await.unwrap();
    let headers = [0, 1, 2].map(|method| wire::grpc_headers(METHODS[method], &[]));
    let mut innocent = 0;
    for burst in 0..60 {
        let mut calls = Vec::new();
        let mut resets = Vec::new();
        for _ in 0..rng.random_range(10..36) {
            let stream = proxy.stream();
            let method = rng.random_range(0..3);
            calls.extend(wire::frame(kind::HEADERS, flag::END_HEADERS, stream, &headers[method]));
            resets.extend(wire::reset(stream, 8));
        }
        // Some are cancelled at once, others after they have begun.
        if burst % 2 == 0 {
            calls.append(&mut resets);
        }
        proxy.send(&calls).await.unwrap();
        innocent += 1;
        let stream = proxy.call(METHODS[0], &[]).await.unwrap();
        let vote = one_vote("shared", &format!("innocent-{innocent}"), "yes");
        let ended = proxy.heard().answered;
        proxy.data(stream, &vote, usize::MAX, true).await.unwrap_or_else(|error| {
            panic!("innocent call {innocent}: {error}, {:?}", proxy.heard());
        });
        proxy.send(&resets).await.unwrap();
        let answered = proxy.hears(|heard| heard.answered > ended || heard.goaway.is_some(), PATIENCE).await;
        let heard = proxy.heard();
        assert!(answered && heard.goaway.is_none(), "innocent call {innocent}: {heard:?}");
    }
    ends_with(server, "shared", innocent).await;
}

/// No. 3: an acknowledged vote counts, even if it waited behind others while its poll was closed.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_while_a_poll_closes_counts() {
    let (mut server, mut rng) = start("closing").await;
    server.comes_to_rest(REST).await;
    let mut races = tokio::task::JoinSet::new();
    for race in 0..3 {
        let (id, empty) = (format!("closing-{race}"), rng.random_range(100_000..1_900_000));
        let pause = Duration::from_millis(rng.random_range(380..480));
        let mut request = poll(&id, &["yes"]);
        request.options.push(PollOption { option_id: "no".into(), title: String::new() });
        create(&server, request).await;
        let mut votes = votestream_proto::VotesMessage::default();
        votes.push(&id, "early", "yes");
        ingest(&server).await.cast_vote(votes).await.unwrap();
        let cached = tokio::time::Instant::now();
        close(&server, &id).await;
        let body = wire::message(&[[0x0a, 0].repeat(empty), wire::vote(&id, "late", "no")].concat());
        let mut call = grpc(1, &[], vec![]);
        call.body = body.chunks(16 << 10).map(Bytes::copy_from_slice).collect();
        tokio::time::sleep_until(cached + pause).await;
        let outcome = call.send(server.ingest).await.unwrap().outcome();
        let answer = outcome.messages.first().unwrap_or_else(|| panic!("{outcome:?}"));
        let answer: votestream_proto::v1::CastVotesResponse = prost::Message::decode(&answer[..]).unwrap();
        let results = server.results;
        races.spawn(async move {
            let mut client =
                votestream_proto::v1::results_service_client::ResultsServiceClient::new(connect(results).await);
            let request = GetFinalResultsRequest { poll_id: id, wait: true };
            let result = client.get_final_results(request).await.unwrap().into_inner();
            assert_eq!(
                result.total_votes,
                1 + answer.accepted,
                "{empty} empty votes, sent after {pause:?}: {answer:?}"
            );
        });
    }
    while let Some(race) = races.join_next().await {
        race.unwrap();
    }
    server.counts_exactly().await;
}
