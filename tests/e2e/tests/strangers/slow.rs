//! Every wait has a limit, and connections that do nothing do not block others.

use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use votestream_e2e::hostile::{Http2, slow::beginnings, votes::METHODS, wire::flag, wire::frame, wire::kind};

use super::*;

/// Longest time until the server ends an endless request. The limits are at most 10 s, and the machine is busy.
const END_MAX: Duration = Duration::from_secs(75);

/// No. 6: more connections than the process may have files. New clients still get in, and no processor time is wasted.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_keep_nobody_out() {
    // They stay for longer than this takes: otherwise their end would end a busy loop as well.
    let arguments = ["--first-request-timeout", "10m"].map(str::to_owned).to_vec();
    let options = Options { files: Some((1_024, 1_024)), arguments, ..Options::default() };
    let (mut server, mut rng) = start_with("few files", options).await;
    let mut held = Vec::new();
    for _ in 0..rng.random_range(1_100..1_500) {
        match timeout(Duration::from_secs(2), TcpStream::connect(server.ingest)).await {
            Ok(Ok(connection)) => held.push(connection),
            Ok(Err(_)) | Err(_) => break,
        }
    }
    // At first the server takes in those that connected.
    let (start, window) = (Instant::now(), Duration::from_secs(2));
    let mut cores = server.cores(window).await;
    while cores >= 0.5 {
        assert!(start.elapsed() < PATIENCE, "{} idle connections cost {cores:.2} cores", held.len());
        cores = server.cores(window).await;
    }
    server.a_vote_gets_through("beside idle connections").await;
    drop(held);
    server.comes_to_rest(REST).await;
    server.counts_exactly().await;
}

/// No. 6: the soft limit of files is raised to the hard one.
#[tokio::test(flavor = "multi_thread")]
async fn the_soft_limit_of_files_is_raised() {
    let options = Options { files: Some((256, 4_096)), ..Options::default() };
    let (mut server, mut rng) = start_with("soft limit", options).await;
    let mut held = Vec::new();
    for at in 0..rng.random_range(400..700) {
        let connection = Http2::connect(server.ingest).await.unwrap();
        let served = connection.hears(|heard| heard.frames.contains_key(&kind::SETTINGS), PATIENCE).await;
        assert!(served, "connection {at} is not served");
        held.push(connection);
    }
    server.a_vote_gets_through("beside many connections").await;
    drop(held);
    server.counts_exactly().await;
}

/// Withstood: thousands of HTTP/2 connections that do nothing.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_idle_connections_cost_little() {
    let (mut server, mut rng) = start("idle connections").await;
    let mut held = Vec::new();
    let hello = [wire::PREFACE, &wire::settings(&[])].concat();
    for _ in 0..rng.random_range(2_500..3_500) {
        let mut connection = TcpStream::connect(server.ingest).await.unwrap();
        connection.write_all(&hello).await.unwrap();
        held.push(connection);
    }
    server.a_vote_gets_through("beside thousands of connections").await;
    let grew = server.memory_grew();
    assert!(grew < MEMORY_MAX, "{} connections cost {} MiB", held.len(), grew >> 20);
    server.comes_to_rest(REST).await;
    drop(held);
    server.counts_exactly().await;
}

/// Limits that are short enough for a test. An honest voter needs less, even on a busy machine.
fn impatient() -> Options {
    let arguments = ["--first-request-timeout=5s", "--message-timeout=5s", "--idle-timeout=8s"];
    Options { arguments: arguments.map(String::from).into(), ..Options::default() }
}

/// No. 8: a connection without activity ends; a connection with a call stays open.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_end_and_those_with_a_call_do_not() {
    let (server, _) = start_with("idle", impatient()).await;
    let calling = async || {
        let mut connection = Http2::connect(server.ingest).await.unwrap();
        let stream = connection.call(METHODS[2], &[]).await.unwrap();
        let vote = one_vote(BESIDE, "nobody", "no such option");
        connection.data(stream, &vote, usize::MAX, false).await.unwrap();
        assert!(connection.hears(|heard| heard.data_bytes > 0, PATIENCE).await, "{:?}", connection.heard());
        (connection, stream)
    };
    let ((mut idle, ended), (mut busy, open)) = (calling().await, calling().await);
    idle.send(&frame(kind::DATA, flag::END_STREAM, ended, &[])).await.unwrap();
    // Pongs do not count as calls.
    let closed = async {
        while !idle.is_closed(Duration::from_millis(300)).await {
            idle.send(&frame(kind::PING, 0, 0, &[0; 8])).await.ok();
        }
    };
    timeout(END_MAX, closed).await.expect("a connection without a call never ends");
    let before = busy.heard().data_bytes;
    busy.data(open, &one_vote(BESIDE, "nobody", "no such option"), usize::MAX, true).await.unwrap();
    assert!(busy.hears(|heard| heard.ended == 1, PATIENCE).await, "{:?}", busy.heard());
    assert!(busy.heard().data_bytes > before, "a call was cut off as idle: {:?}", busy.heard());
    server.counts_exactly().await;
}

/// How long a raw connection lives that sends `beginning`, and then sends `more` from time to time.
async fn life_of(addr: std::net::SocketAddr, beginning: Vec<u8>, more: Vec<u8>) -> Option<Duration> {
    let start = tokio::time::Instant::now();
    let mut stream = TcpStream::connect(addr).await.ok()?;
    stream.write_all(&beginning).await.ok()?;
    let (mut read, mut write) = stream.into_split();
    let talking = async move {
        for byte in more.chunks(1).cycle() {
            sleep(Duration::from_millis(500)).await;
            if write.write_all(byte).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let listening = async move {
        let mut buffer = [0; 4_096];
        // Answers do not matter, only the end.
        while matches!(read.read(&mut buffer).await, Ok(1..)) {}
    };
    let ended = async {
        tokio::select! {
            () = talking => {}
            () = listening => {}
        }
    };
    timeout(END_MAX, ended).await.ok().map(|()| start.elapsed())
}

/// No. 8: a client that connects without a complete request is disconnected.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_come_to_the_point_is_shown_out() {
    let (server, mut rng) = start_with("half a request", impatient()).await;
    let mut lives = tokio::task::JoinSet::new();
    let preface = [wire::PREFACE, &wire::settings(&[])].concat();
    let pong = frame(kind::PING, flag::ACK, 0, &[0; 8]);
    let mut cases: Vec<_> = beginnings().into_iter().map(|beginning| (beginning, vec![])).collect();
    cases.push((preface.clone(), pong));
    cases.push((b"POST /vote HTTP/1.1\r\nhost: localhost\r\n".to_vec(), b"x: y\r\n".to_vec()));
    cases.push((
        b"POST /vote HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9000\r\n\r\n"
            .to_vec(),
        b"{ \n".to_vec(),
    ));
    for (at, (beginning, more)) in cases.into_iter().enumerate() {
        for addr in [server.ingest, server.results] {
            let (beginning, more) = (beginning.clone(), more.clone());
            let pause = Duration::from_millis(rng.random_range(0..300));
            lives.spawn(async move {
                sleep(pause).await;
                let what = String::from_utf8_lossy(&beginning).into_owned();
                (at, what, life_of(addr, beginning, more).await)
            });
        }
    }
    let mut endless = Vec::new();
    while let Some(life) = lives.join_next().await {
        let (at, what, life) = life.unwrap();
        if life.is_none() {
            endless.push((at, what));
        }
    }
    endless.sort();
    assert!(endless.is_empty(), "still open after {END_MAX:?}: {endless:#?}");
    server.counts_exactly().await;
}

/// No. 8: a call whose message comes byte by byte, or not at all, is ended, even if its connection is active.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_does_not_come_has_an_end() {
    let (mut server, mut rng) = start_with("message byte by byte", impatient()).await;
    let mut calls = tokio::task::JoinSet::new();
    for method in METHODS {
        for pause in [None, Some(Duration::from_millis(rng.random_range(100..900)))] {
            let mut connection = Http2::connect(server.ingest).await.unwrap();
            calls.spawn(async move {
                let stream = connection.call(method, &[]).await.unwrap();
                let message = wire::message(&wire::vote(BESIDE, &"u".repeat(250), "no such option"));
                connection.data(stream, &message[..7], usize::MAX, false).await.unwrap();
                let bytes = message[7..].chunks(1);
                for byte in bytes.take_while(|_| pause.is_some()) {
                    let ended = connection.hears(|heard| heard.ended > 0 || heard.closed, pause.unwrap()).await;
                    if ended || connection.data(stream, byte, 1, false).await.is_err() {
                        break;
                    }
                }
                let ended = connection.hears(|heard| heard.ended > 0 || heard.closed, END_MAX).await;
                (method, pause, ended)
            });
        }
    }
    while let Some(call) = calls.join_next().await {
        let (method, pause, ended) = call.unwrap();
        assert!(ended, "method {method}, a byte every {pause:?}: the call never ends");
    }
    server.a_vote_gets_through("beside slow messages").await;
    server.counts_exactly().await;
}

/// No. 19: connections without a call do not delay the end of the process.
#[tokio::test(flavor = "multi_thread")]
async fn connections_without_a_call_do_not_delay_the_end() {
    let (server, _) = start("end").await;
    let (status, usual) = server.terminate().await;
    assert_eq!(status.code(), Some(0));
    // The limits of calls are far longer than the difference that is allowed. A machine that stands still just then is another
    // matter, so one of three attempts is enough.
    let mut took = Duration::MAX;
    for _ in 0..3 {
        took = took.min(ends_beside_half_requests().await);
        if took < usual + Duration::from_secs(3) {
            return;
        }
    }
    panic!("it took {took:?} to end, and {usual:?} without half requests");
}

/// How long a server takes to end to which many connections are open, none with a call.
async fn ends_beside_half_requests() -> Duration {
    let (server, mut rng) = start("end beside half requests").await;
    let mut held = Vec::new();
    for addr in [server.ingest, server.results] {
        // Without the two beginnings that are calls (6 and 9): calls have the drain time.
        for beginning in
            beginnings().into_iter().enumerate().filter(|(at, _)| ![6, 9].contains(at)).map(|(_, bytes)| bytes)
        {
            for _ in 0..rng.random_range(1..4) {
                let mut connection = TcpStream::connect(addr).await.unwrap();
                connection.write_all(&beginning).await.unwrap();
                held.push(connection);
            }
        }
    }
    sleep(Duration::from_millis(300)).await;
    let (status, took) = server.terminate().await;
    assert_eq!(status.code(), Some(0));
    took
}
