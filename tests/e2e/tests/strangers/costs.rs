//! Costs are limited, whatever is sent: processor time is linear in the bytes, memory is limited by settings, and
//! clients that have left cost nothing.

use std::time::Duration;

use rand::{RngExt, rngs::StdRng};
use votestream_core::{TimeBounds, port::Ports};
use votestream_e2e::{
    faults::StallingStream,
    hostile::{
        Http2, floods,
        http2::Heard,
        slow::{unfinished, unread_polls},
        votes::{METHODS, recounts, votes_for_unknown_polls},
        wire::{flag, frame, kind, setting},
    },
    stack::{Stack, TEST_BOUNDS},
};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_proto::v1::{GetInterimResultsRequest, PollOption};

use super::*;

/// Calls of a connection at once.
const CALLS: usize = 38;

/// Processor time of a message with votes for this many unknown polls.
async fn cost_of_unknown_polls(server: &Server, polls: usize, rng: &mut StdRng) -> Duration {
    let mut connection = Http2::connect(server.ingest).await.unwrap();
    let before = server.cpu();
    let stream = connection.call(METHODS[1], &[]).await.unwrap();
    connection.data(stream, &votes_for_unknown_polls(polls, rng), usize::MAX, true).await.unwrap();
    assert!(connection.hears(|heard| heard.ended > 0, PATIENCE).await, "{polls} unknown polls are never answered");
    server.cpu() - before
}

/// No. 2: the cost of a message is linear in its bytes, and ends when its client leaves.
#[tokio::test(flavor = "multi_thread")]
async fn votes_for_unknown_polls_cost_what_their_bytes_cost() {
    let (mut server, mut rng) = start("unknown polls").await;
    server.comes_to_rest(REST).await;
    let polls = rng.random_range(800..1_200);
    cost_of_unknown_polls(&server, 100, &mut rng).await;
    // Before and after, since the machine's speed changes.
    let before = cost_of_unknown_polls(&server, polls, &mut rng).await;
    let four_times = cost_of_unknown_polls(&server, 4 * polls, &mut rng).await;
    let once = before.max(cost_of_unknown_polls(&server, polls, &mut rng).await);
    // Quadratic cost would be sixteen times as much.
    let bound = 8 * once + Duration::from_millis(150);
    assert!(four_times < bound, "{polls} unknown polls cost {once:?}, four times as many {four_times:?}");

    server.voters_go_on(rng.random());
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut connection = Http2::connect(server.ingest).await.unwrap();
        let stream = connection.call(METHODS[1], &[]).await.unwrap();
        let polls = rng.random_range(15_000..25_000);
        connection.data(stream, &votes_for_unknown_polls(polls, &mut rng), usize::MAX, true).await.unwrap();
        held.push(connection);
    }
    server.a_vote_gets_through("beside messages for unknown polls").await;
    drop(held);
    server.comes_to_rest(REST).await;
    server.counts_exactly().await;
}

/// No. 4: rejections that are not read count against a limit.
#[tokio::test(flavor = "multi_thread")]
async fn rejections_that_nobody_reads_are_bounded() {
    let (mut server, mut rng) = start("unread rejections").await;
    let mut senders = tokio::task::JoinSet::new();
    for method in [2, 2, 1] {
        let votes = rng.random_range(500_000..2_000_000);
        let ingest = server.ingest;
        senders.spawn(async move {
            let mut connection = Http2::connect_with(ingest, &[(setting::INITIAL_WINDOW_SIZE, 0)]).await?;
            let stream = connection.call(METHODS[method], &[]).await?;
            let message = wire::message(&[0x0a, 0].repeat(votes));
            for _ in 0..10 {
                connection.data(stream, &message, usize::MAX, false).await?;
            }
            connection.is_closed(PATIENCE).await;
            std::io::Result::Ok(())
        });
    }
    tokio::time::sleep(Duration::from_secs(6)).await;
    server.lives();
    let grew = server.memory_grew();
    assert!(grew < MEMORY_MAX, "memory grew by {} MiB", grew >> 20);
    drop(senders);
    server.a_vote_gets_through("after rejections that nobody read").await;
    server.comes_to_rest(REST).await;
    server.counts_exactly().await;
}

/// No. 7: the memory for unfinished messages is limited, and so is the time that they may take.
#[tokio::test(flavor = "multi_thread")]
async fn unfinished_messages_are_bounded_and_end() {
    let (mut server, mut rng) = start("unfinished messages").await;
    let mut connections = Vec::new();
    for method in [0, 1, 2, 2] {
        let mut connection = Http2::connect(server.ingest).await.unwrap();
        let declared = rng.random_range(3 << 20..=4 << 20);
        connections.push(tokio::spawn(async move {
            unfinished(&mut connection, METHODS[method], CALLS, declared).await.ok();
            let ended = |heard: &Heard| heard.closed || heard.goaway.is_some() || heard.ended >= CALLS as u64;
            (method, connection.hears(ended, PATIENCE).await, connection.heard())
        }));
    }
    for connection in connections {
        let (method, ended, heard) = connection.await.unwrap();
        assert!(ended, "method {method}: the calls of unfinished messages do not end: {heard:?}");
    }
    let grew = server.memory_grew();
    assert!(grew < MEMORY_MAX, "memory grew by {} MiB", grew >> 20);
    server.a_vote_gets_through("after unfinished messages").await;
    server.comes_to_rest(REST).await;
    server.counts_exactly().await;
}

/// No. 9: the memory for answers that a client does not take is limited, and its connection ends.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_takes_are_bounded_and_end() {
    let arguments = ["--stalled-write-timeout=6s".into(), format!("--answer-bytes-max={}", 32 << 20)];
    let options = Options { arguments: arguments.into(), ..Options::default() };
    let (mut server, mut rng) = start_with("closed window", options).await;
    let long = "o".repeat(120);
    let mut request = poll("large", &[]);
    let option = |at| PollOption { option_id: format!("{long}-{at}"), title: long.repeat(3) };
    request.options = (0..1_000).map(option).collect();
    create(&server, request).await;
    let target = Target { poll: "large".into(), ..target(&server) };
    let mut connections = Vec::new();
    for _ in 0..20 {
        connections.push(unread_polls(&target, rng.random_range(0..2), CALLS).await.unwrap());
    }
    server.a_vote_gets_through("beside answers that nobody takes").await;
    for connection in connections {
        assert!(
            connection.is_closed(Duration::from_secs(75)).await,
            "a stalled write has no end: {:?}",
            connection.heard()
        );
    }
    let grew = server.memory_grew();
    assert!(grew < MEMORY_MAX, "memory grew by {} MiB", grew >> 20);
    server.comes_to_rest(REST).await;
    server.counts_exactly().await;
}

/// Withstood: calls that fill their windows, on many connections, whose clients do not read answers, so that the server
/// does not read the calls either.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_nobody_reads_are_bounded() {
    let options = Options { arguments: vec![format!("--request-bytes-max={}", 32 << 20)], ..Options::default() };
    let (mut server, mut rng) = start_with("unread requests", options).await;
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..rng.random_range(20..40) {
        let ingest = server.ingest;
        let votes = rng.random_range(5_000..30_000);
        senders.spawn(async move {
            let mut connection = Http2::connect_with(ingest, &[(setting::INITIAL_WINDOW_SIZE, 0)]).await?;
            let mut streams = Vec::new();
            for _ in 0..CALLS {
                streams.push(connection.call(METHODS[2], &[]).await?);
            }
            let message = wire::message(&[0x0a, 0].repeat(votes));
            for stream in streams.into_iter().cycle() {
                let sent = connection.data(stream, &message, usize::MAX, false);
                tokio::time::timeout(Duration::from_millis(100), sent).await.unwrap_or(Ok(()))?;
            }
            std::io::Result::Ok(())
        });
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    server.lives();
    let grew = server.memory_grew();
    assert!(grew < MEMORY_MAX, "memory grew by {} MiB", grew >> 20);
    drop(senders);
    server.a_vote_gets_through("after requests that nobody read").await;
    server.comes_to_rest(REST).await;
    server.counts_exactly().await;
}

/// No. 12: recounts whose callers have left do not accumulate and do not go on.
#[tokio::test(flavor = "multi_thread")]
async fn cancelled_recounts_do_not_pile_up() {
    let (mut server, mut rng) = start("cancelled recounts").await;
    create(&server, poll("counted", &["yes"])).await;
    let votes: Vec<u8> = (0..20_000).flat_map(|at| wire::vote("counted", &format!("user-{at}"), "yes")).collect();
    let mut call = grpc(1, &[], wire::message(&votes));
    call.body = call.body[0].chunks(16 << 10).map(bytes::Bytes::copy_from_slice).collect();
    let outcome = call.send(server.ingest).await.unwrap().outcome();
    assert_eq!(outcome.status, Some((0, String::new())));
    let threads = server.threads();
    let mut most = 0;
    for _ in 0..20 {
        // If the server has closed this connection, use another one.
        let mut connection = Http2::connect(server.results).await.unwrap();
        recounts(&mut connection, "counted", rng.random_range(10..30)).await.ok();
        most = most.max(server.threads());
    }
    assert!(most < threads + 40, "{most} threads, {threads} before");
    server.a_vote_gets_through("beside recounts").await;
    server.comes_to_rest(REST).await;
    server.counts_exactly().await;
}

/// No. 13: the smallest votes, one per frame, on as many calls as are allowed, while the engine stalls: no connection
/// is closed.
#[tokio::test(flavor = "multi_thread")]
async fn the_smallest_frames_close_no_connection_while_the_engine_stalls() {
    /// As many of the smallest frames as fit into the window of a stream.
    const FRAMES: usize = 4_000;
    let dir = tempfile::tempdir().unwrap();
    let bounds = TimeBounds { answer_deadline: Duration::from_secs(30), ..TEST_BOUNDS };
    let options = EmbeddedOptions { bounds, ..EmbeddedOptions::default() };
    let engine = EmbeddedEngine::open(dir.path(), options).unwrap();
    let stream = StallingStream::new(engine.ports().stream);
    let stack = Stack::start(Ports { stream: stream.clone(), ..engine.ports() }, bounds).await;
    stack.create_poll("p", ["a"]).await;
    stream.stall(true);
    let message = one_vote("p", "u", "a");
    let mut connection = Http2::connect(stack.ingest).await.unwrap();
    // The window of the whole connection.
    assert!(connection.hears(|heard| heard.frames.contains_key(&kind::WINDOW_UPDATE), PATIENCE).await);
    let mut streams = Vec::new();
    for at in 0..CALLS {
        streams.push(connection.call(METHODS[1 + at % 2], &[]).await.unwrap());
    }
    for _ in 0..FRAMES / 100 {
        for &stream in &streams {
            connection.send(&frame(kind::DATA, 0, stream, &message).repeat(100)).await.unwrap();
        }
    }
    assert!(!connection.is_closed(Duration::from_secs(1)).await, "{:?}", connection.heard());
    stream.stall(false);
    for &stream in &streams {
        connection.send(&frame(kind::DATA, flag::END_STREAM, stream, &[])).await.unwrap();
    }
    assert!(connection.hears(|heard| heard.ended == CALLS as u64, PATIENCE).await, "{:?}", connection.heard());
    let heard = connection.heard();
    assert_eq!((heard.goaway, heard.resets.len()), (None, 0));
    let request = GetInterimResultsRequest { poll_id: "p".into() };
    let counted = async {
        let mut results = stack.results().await;
        while results.get_interim_results(request.clone()).await.unwrap().into_inner().total_submitted
            < (CALLS * FRAMES) as u64
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("not every vote is counted");
    stack.stop().await;
}

/// No. 14: a client that makes the server reset calls again and again is disconnected.
#[tokio::test(flavor = "multi_thread")]
async fn errors_of_a_connection_come_to_an_end() {
    let (mut server, mut rng) = start("errors without end").await;
    for how in 0..3 {
        let mut connection = Http2::connect(server.ingest).await.unwrap();
        let calls = rng.random_range(5_000..8_000);
        // The client is disconnected, or has sent everything.
        floods::provoke(&mut connection, how, calls).await.ok();
        let thrown_out = connection.hears(|heard| heard.closed || heard.goaway.is_some(), PATIENCE).await;
        let heard = connection.heard();
        assert!(thrown_out, "way {how}: {calls} provocations: {heard:?}");
        let resets: u64 = heard.resets.values().sum();
        assert!(resets < 4_000, "way {how}: {resets} resets before the end");
    }
    server.a_vote_gets_through("after errors without end").await;
    server.comes_to_rest(REST).await;
    server.counts_exactly().await;
}
