//! Tests connections from the client's side: over pipes with a paused clock, and over sockets where accept matters.

mod frames;
mod handshakes;

use std::{
    convert::Infallible,
    future::pending,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tonic::body::Body;
use tower::service_fn;

use self::frames::{Client, DATA, Frame, GOAWAY, PING, PREFACE, RST_STREAM, WINDOW_UPDATE};
use super::{census::Census, *};
use crate::Limits;

const LARGE_BYTES: usize = 650_000;
const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);
/// Shorter than the time that a client has to answer a ping.
const SLOW: Duration = Duration::from_secs(50);
const SECOND: Duration = Duration::from_secs(1);

/// Services whose answer depends only on the path.
fn services() -> Services {
    Services::new(service_fn(answer))
}

fn answer(request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
    let of = |bytes: Vec<u8>| Ok(Response::new(Body::new(Full::new(Bytes::from(bytes)))));
    async move {
        match request.uri().path() {
            "/large" => of(vec![b'x'; LARGE_BYTES]),
            "/never" => pending().await,
            // Does not read what is sent to it.
            "/deaf" => {
                let _request = request;
                pending().await
            }
            "/slow" => {
                sleep(SLOW).await;
                of(b"slow".to_vec())
            }
            "/peer" => of(format!("{:?}", request.extensions().get::<Peer>()).into_bytes()),
            "/single" => match request.into_body().collect().await {
                Ok(body) => of(body.to_bytes().to_vec()),
                Err(status) => of(status.message().to_owned().into()),
            },
            "/read" => {
                of(request.into_body().collect().await.map_or(0, |body| body.to_bytes().len()).to_string().into())
            }
            _ => of(b"here".to_vec()),
        }
    }
    .boxed()
}

fn single() -> Arc<[String]> {
    ["/single".to_owned()].into()
}

fn census(limits: Limits) -> Arc<Census> {
    Connections::new(limits).0
}

/// A connection of this census over a pipe that holds `pipe_bytes` in each direction.
async fn piped(census: &Arc<Census>, pipe_bytes: usize) -> (DuplexStream, JoinHandle<()>) {
    let place = census.place(PEER, 0).await.unwrap();
    let (near, far) = duplex(pipe_bytes);
    let entry = Entry {
        services: services(),
        link: place.link.clone(),
        is_loopback: false,
        single: single(),
        certificate: None,
    };
    (far, tokio::spawn(connection::run_over(near, entry, place)))
}

async fn client(census: &Arc<Census>, window: u32) -> (Client, JoinHandle<()>) {
    let (pipe, served) = piped(census, 1 << 20).await;
    (Client::begin(pipe, window).await, served)
}

/// Seconds until the server ends the connection, whatever it sends before.
async fn seconds_until_end(pipe: &mut DuplexStream) -> f64 {
    let began = Instant::now();
    let mut sent = [0; 4_096];
    while pipe.read(&mut sent).await.is_ok_and(|read| read > 0) {}
    began.elapsed().as_secs_f64()
}

/// A small generator, so that a failure repeats.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_frames_leave_with_the_first_answer_or_after_a_moment() {
    let hello = [PREFACE, &Frame::settings(&[]).bytes()].concat();
    let begun = Frame::headers(1, "/never", false).bytes();
    for (sent, waits_ms, holds_answer) in [
        (vec![Frame::headers(1, "/", true).bytes()], 0..=0, true),
        (vec![Frame::headers(1, "/never", true).bytes()], 20..=22, false),
        (vec![begun.clone()], 1..=2, false),
        (vec![begun, Frame::data(1, b"whole").with_end().bytes()], 20..=22, false),
        (vec![], 1..=2, false),
    ] {
        let census = census(Limits::default());
        let (mut pipe, served) = piped(&census, 1 << 16).await;
        let started = Instant::now();
        pipe.write_all(&[hello.clone(), sent.concat()].concat()).await.unwrap();
        let mut first = vec![0; 1_000];
        let read = pipe.read(&mut first).await.unwrap();
        let waited = started.elapsed().as_millis();
        assert!(waits_ms.contains(&waited), "{sent:?}: {waited} ms");
        assert_eq!(first[..read].windows(4).any(|bytes| bytes == b"here"), holds_answer, "{sent:?}");
        drop(pipe);
        served.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_frames_do_not_wait_for_a_client_that_has_left() {
    for waited_ms in [0, 5] {
        let census = census(Limits::default());
        let (mut pipe, served) = piped(&census, 1 << 16).await;
        let request = Frame::headers(1, "/never", true).bytes();
        pipe.write_all(&[PREFACE, &Frame::settings(&[]).bytes(), &request].concat()).await.unwrap();
        sleep(Duration::from_millis(waited_ms)).await;
        pipe.shutdown().await.unwrap();
        let left = Instant::now();
        served.await.unwrap();
        assert!(left.elapsed() <= Duration::from_millis(2), "{:?}", left.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_request_ends_whatever_it_sends_instead() {
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let census = census(Limits::default());
        let (mut pipe, served) = piped(&census, 1 << 16).await;
        let began = Instant::now();
        let settings = Frame::settings(&[]).bytes();
        let whole = match dice.below(4) {
            0 => b"POST /v1/polls/p/votes HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n".to_vec(),
            1 => PREFACE.to_vec(),
            2 => [PREFACE, &settings].concat(),
            // A head that continues without end.
            _ => [PREFACE, &settings, &Frame::headers(1, "/", false).without_end_of_head().bytes()].concat(),
        };
        let complete = dice.below(2) == 0;
        let cut = if complete { whole.len() } else { dice.below(whole.len()) };
        for byte in &whole[..cut] {
            pipe.write_all(&[*byte]).await.unwrap();
            sleep(Duration::from_millis(dice.below(50) as u64)).await;
        }
        // Pongs and pings are no requests.
        let speaks = complete && whole.starts_with(PREFACE) && whole.len() == PREFACE.len() + settings.len();
        let (mut reads, mut writes) = tokio::io::split(pipe);
        let ticking = tokio::spawn(async move {
            while speaks && writes.write_all(&Frame::ping(true).bytes()).await.is_ok() {
                sleep(SECOND).await;
            }
            writes
        });
        let mut sent = Vec::new();
        drop(reads.read_to_end(&mut sent).await);
        let seconds = began.elapsed().as_secs_f64();
        assert!((9.9..11.6).contains(&seconds), "seed {seed}: ended after {seconds} s");
        served.await.unwrap();
        ticking.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_call_ends_and_one_with_a_call_does_not() {
    let census = census(Limits::default());
    let (mut pipe, _served) = piped(&census, 1 << 16).await;
    pipe.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let seconds = seconds_until_end(&mut pipe).await;
    assert!((124.9..126.2).contains(&seconds), "HTTP/1.1: {seconds} s");

    let (mut client, _served) = client(&census, 1 << 16).await;
    client.send(Frame::headers(1, "/slow", true)).await;
    let began = Instant::now();
    let frames = client.until_end().await;
    let seconds = began.elapsed().as_secs_f64();
    assert!((124.9..126.2).contains(&seconds), "HTTP/2: {seconds} s");
    assert!(frames.iter().any(|frame| frame.payload == b"slow"), "{frames:?}");
    assert!(frames.iter().any(|frame| frame.kind == GOAWAY), "{frames:?}");
}

#[tokio::test(start_paused = true)]
async fn half_a_head_on_a_kept_connection_ends_with_its_idle_time() {
    let census = census(Limits::default());
    let (mut pipe, _served) = piped(&census, 1 << 16).await;
    pipe.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut first = [0; 15];
    pipe.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    pipe.write_all(b"GET / HTTP/1.1\r\nho").await.unwrap();
    let seconds = seconds_until_end(&mut pipe).await;
    assert!((74.9..76.2).contains(&seconds), "{seconds} s");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_shut_its_side_gets_its_answer() {
    let census = census(Limits::default());
    let (mut pipe, served) = piped(&census, 1 << 16).await;
    pipe.write_all(b"POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc").await.unwrap();
    pipe.shutdown().await.unwrap();
    let mut answer = Vec::new();
    pipe.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK") && answer.ends_with(b"slow"), "{}", answer.escape_ascii());
    served.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_message_has_its_time_and_a_stream_has_any() {
    let census = census(Limits::default());
    for dribbles in [false, true] {
        let (mut client, served) = client(&census, 1 << 16).await;
        client.send(Frame::headers(1, "/single", false)).await;
        client.send(Frame::headers(3, "/read", false)).await;
        let began = Instant::now();
        let mut bytes = 0;
        while began.elapsed() < 9 * SECOND {
            if dribbles {
                client.send(Frame::data(1, b"x")).await;
            }
            client.send(Frame::data(3, b"x")).await;
            bytes += 1;
            sleep(SECOND).await;
        }
        let frames = client.until(|frame| frame.stream == 1 && frame.kind == DATA).await;
        assert_eq!(frames.last().unwrap().payload, b"the message took too long to arrive", "{dribbles}");
        let seconds = began.elapsed().as_secs_f64();
        assert!((10.9..11.2).contains(&seconds), "{seconds} s");
        sleep(SLOW).await;
        client.send(Frame::data(3, b"x").with_end()).await;
        client.until(|frame| frame.payload == (bytes + 1).to_string().as_bytes()).await;
        assert!(!served.is_finished());
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_takes_ends_its_connection() {
    let census = census(Limits::default());
    // The socket accepts nothing more.
    let (mut pipe, served) = piped(&census, 1_000).await;
    pipe.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let began = Instant::now();
    served.await.unwrap();
    let seconds = began.elapsed().as_secs_f64();
    assert!((29.9..31.0).contains(&seconds), "HTTP/1.1: {seconds} s");
    // The stream's window is closed, for a large answer and for a small one.
    for path in ["/large", "/"] {
        let (mut client, served) = client(&census, 0).await;
        client.send(Frame::headers(1, path, true)).await;
        let began = Instant::now();
        served.await.unwrap();
        let seconds = began.elapsed().as_secs_f64();
        assert!((29.9..31.0).contains(&seconds), "HTTP/2, {path}: {seconds} s");
    }
    assert_eq!(census.answer_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_answer_leaves_the_other_calls_of_its_connection_alone() {
    let census = census(Limits::default());
    let (mut client, served) = client(&census, 0).await;
    client.send(Frame::headers(1, "/large", true)).await;
    let mut stream = 3;
    let began = Instant::now();
    // Another caller behind the same proxy.
    let reset = loop {
        client.send(Frame::headers(stream, "/", true)).await;
        client.send(Frame::window(stream, 100)).await;
        let frames = client.until(|frame| frame.payload == b"here" || frame.kind == RST_STREAM).await;
        if frames.iter().any(|frame| frame.kind == RST_STREAM) {
            break frames;
        }
        stream += 2;
        sleep(SECOND).await;
    };
    let seconds = began.elapsed().as_secs_f64();
    assert!((29.9..32.0).contains(&seconds), "{seconds} s");
    assert!(reset.iter().all(|frame| frame.kind != RST_STREAM || frame.stream == 1), "{reset:?}");
    assert!(!served.is_finished());
    assert_eq!(census.answer_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_taken_slowly_is_given_whole() {
    let census = census(Limits::default());
    let (mut client, served) = client(&census, 0).await;
    client.send(Frame::headers(1, "/large", true)).await;
    let mut taken = 0;
    while taken < LARGE_BYTES {
        sleep(Duration::from_secs(20)).await;
        client.send(Frame::window(1, 16 << 10)).await;
        client.send(Frame::window(0, 16 << 10)).await;
        let wanted = (16 << 10).min(LARGE_BYTES - taken);
        let mut came = 0;
        while came < wanted {
            came += client.data(1).await;
        }
        taken += came;
    }
    assert_eq!(taken, LARGE_BYTES);
    assert!(!served.is_finished());
    assert_eq!(census.answer_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn answers_that_wait_hold_no_more_than_their_share() {
    let budget = 8 << 20;
    let census = census(Limits { answer_bytes_max: budget, ..Limits::default() });
    let mut clients = Vec::new();
    for _ in 0..4 {
        let (mut client, served) = client(&census, 0).await;
        for stream in 0..10 {
            client.send(Frame::headers(1 + 2 * stream, "/large", true)).await;
            client.until(|frame| frame.stream == 1 + 2 * stream).await;
            assert!(census.answer_bytes() <= budget, "{}", census.answer_bytes());
        }
        clients.push((client, served));
        sleep(SECOND).await;
    }
    // The oldest were closed for the newest.
    let ended: Vec<bool> = clients.iter().map(|(_, served)| served.is_finished()).collect();
    assert_eq!(ended, [true, true, true, false]);
}

#[tokio::test(start_paused = true)]
async fn the_quietest_connection_makes_room() {
    let census = census(Limits { connections_max: 3, ..Limits::default() });
    let (mut idle, idle_served) = client(&census, 1 << 16).await;
    idle.send(Frame::headers(1, "/", true)).await;
    idle.until(|frame| frame.payload == b"here").await;
    sleep(SECOND).await;
    let (_silent, silent_served) = piped(&census, 1 << 16).await;
    let (mut busy, busy_served) = client(&census, 1 << 16).await;
    busy.send(Frame::headers(1, "/never", true)).await;
    sleep(SECOND).await;
    // The connection that never sent a request goes first, although the other has been idle for longer.
    let (mut fourth, _) = client(&census, 1 << 16).await;
    assert!(silent_served.is_finished() && !idle_served.is_finished());
    fourth.send(Frame::headers(1, "/never", true)).await;
    sleep(SECOND).await;
    let (mut fifth, fifth_served) = client(&census, 1 << 16).await;
    assert!(idle_served.is_finished() && !busy_served.is_finished());
    fifth.send(Frame::headers(1, "/slow", true)).await;
    sleep(SECOND).await;
    // All connections have calls, so the next one waits until one has none.
    let began = Instant::now();
    let (_sixth, _) = client(&census, 1 << 16).await;
    assert!(began.elapsed() > SLOW - 2 * SECOND, "{:?}", began.elapsed());
    assert!(fifth_served.is_finished() && !busy_served.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_crowd_of_silent_connections_leaves_those_with_calls_alone() {
    for seed in 0..5 {
        let (mut dice, max) = (Dice(seed), 40);
        let census = census(Limits { connections_max: max, ..Limits::default() });
        let mut callers = Vec::new();
        for _ in 0..20 {
            let (mut caller, served) = client(&census, 1 << 16).await;
            caller.send(Frame::headers(1, "/never", true)).await;
            callers.push((caller, served));
        }
        let mut crowd = Vec::new();
        for _ in 0..500 {
            crowd.push(timeout(SECOND, piped(&census, 64)).await.expect("no place"));
            sleep(Duration::from_millis(dice.below(20) as u64)).await;
        }
        assert!(callers.iter().all(|(_, served)| !served.is_finished()), "seed {seed}");
        let open = crowd.iter().filter(|(_, served)| !served.is_finished()).count();
        assert!(open <= 20, "{open}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_has_no_more_than_its_share() {
    let census = census(Limits { connections_per_address_max: 2, ..Limits::default() });
    let of = |address: &str| SocketAddr::new(address.parse().unwrap(), 1);
    let first = census.place(of("192.0.2.7"), 0).await.unwrap();
    let _mapped = census.place(of("::ffff:192.0.2.7"), 0).await.unwrap();
    census.place(of("192.0.2.7"), 0).await.unwrap_err();
    let _other = census.place(of("192.0.2.8"), 0).await.unwrap();
    drop(first);
    let _again = census.place(of("192.0.2.7"), 0).await.unwrap();
    let _v6 = census.place(of("2001:db8::1"), 0).await.unwrap();
    let _neighbour = census.place(of("2001:db8::ffff:2"), 0).await.unwrap();
    census.place(of("2001:db8::3"), 0).await.unwrap_err();
    census.place(of("2001:db8:0:1::3"), 0).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn at_the_end_only_calls_are_waited_for() {
    let census = census(Limits::default());
    let (_silent, silent) = piped(&census, 64).await;
    let (mut half, half_served) = piped(&census, 64).await;
    half.write_all(b"POST /vote HTTP/1.1\r\nhost: x\r\ncontent-le").await.unwrap();
    let (mut prefaced, prefaced_served) = piped(&census, 64).await;
    prefaced.write_all(PREFACE).await.unwrap();
    let (mut idle, idle_served) = client(&census, 1 << 16).await;
    idle.send(Frame::headers(1, "/", true)).await;
    idle.until(|frame| frame.payload == b"here").await;
    let (mut busy, busy_served) = client(&census, 1 << 16).await;
    busy.send(Frame::headers(1, "/slow", true)).await;
    sleep(SECOND).await;
    census.order_all(0, Order::Drain);
    let began = Instant::now();
    for served in [silent, half_served, prefaced_served] {
        served.await.unwrap();
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    // The client does not react.
    idle_served.await.unwrap();
    assert!(began.elapsed() < 2 * SECOND, "{:?}", began.elapsed());
    let frames = busy.until_end().await;
    assert!(frames.iter().any(|frame| frame.payload == b"slow"), "{frames:?}");
    busy_served.await.unwrap();
    let seconds = began.elapsed().as_secs_f64();
    assert!((48.0..52.0).contains(&seconds), "{seconds} s");
}

#[tokio::test(start_paused = true)]
async fn streams_full_of_the_smallest_votes_are_within_the_budget() {
    let census = census(Limits::default());
    let (mut client, served) = client(&census, 1 << 16).await;
    for at in 0..38 {
        client.send(Frame::headers(1 + 2 * at, "/deaf", false)).await;
    }
    let vote = [b'v'; 16];
    for _ in 0..(64 << 10) / vote.len() {
        for at in 0..38 {
            client.send(Frame::data(1 + 2 * at, &vote)).await;
        }
    }
    client.send(Frame::ping(false)).await;
    let frames = client.until(|frame| frame.kind == PING || frame.kind == GOAWAY).await;
    assert!(frames.iter().all(|frame| frame.kind != GOAWAY), "{frames:?}");
    assert!(!served.is_finished());
}

#[tokio::test(start_paused = true)]
async fn requests_that_nobody_reads_hold_no_more_than_their_share() {
    let budget = 8 << 20;
    let census = census(Limits { request_bytes_max: budget, ..Limits::default() });
    let mut clients = Vec::new();
    for _ in 0..4 {
        let (mut client, served) = client(&census, 1 << 16).await;
        for at in 0..20 {
            client.send(Frame::headers(1 + 2 * at, "/deaf", false)).await;
            // The memory of frames counts, not only their content.
            for _ in 0..800 {
                drop(client.try_send_bytes(&Frame::data(1 + 2 * at, b"v").bytes()).await);
            }
            sleep(Duration::from_millis(1)).await;
            assert!(census.request_bytes() <= budget, "{}", census.request_bytes());
        }
        clients.push((client, served));
    }
    let ended: Vec<bool> = clients.iter().map(|(_, served)| served.is_finished()).collect();
    assert_eq!(ended, [true, true, false, false]);
    drop(clients);
    sleep(SECOND).await;
    assert_eq!(census.request_bytes(), 0);
}

/// What is written off stays in memory until its connection is gone.
#[tokio::test(start_paused = true)]
async fn a_connection_that_is_to_end_reads_no_more_and_others_wait_for_its_memory() {
    const BUDGET: u64 = 8 << 20;
    let census = census(Limits { request_bytes_max: BUDGET, ..Limits::default() });
    let holding = async |bytes| {
        let place = census.place(PEER, 0).await.unwrap();
        let (near, mut far) = duplex(64);
        far.write_all(b"xx").await.unwrap();
        place.link.received(bytes);
        // The next one has stood still for a shorter time.
        sleep(SECOND).await;
        (inbound::Metered::new(near, place.link.clone()), far, place)
    };
    let (mut first, mut second, mut third) = (holding(BUDGET - 1).await, holding(BUDGET / 2).await, holding(0).await);
    assert!(first.0.read_u8().now_or_never().is_none(), "it is to end");
    assert!(timeout(SECOND, second.0.read_u8()).await.is_err(), "the memory of the first is not there yet");
    assert!(third.0.read_u8().now_or_never().is_some(), "it holds nothing");
    drop(first);
    assert!(timeout(SECOND, second.0.read_u8()).await.is_ok(), "the memory of the first is free");
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_read_hold_nothing_and_neither_do_those_that_were_given_up() {
    let census = census(Limits::default());
    let (mut client, served) = client(&census, 1 << 16).await;
    // Until then, the connection's window is the protocol's default.
    client.until(|frame| frame.kind == WINDOW_UPDATE).await;
    for round in 0..20 {
        let deaf = 1 + 4 * round;
        client.send(Frame::headers(deaf, "/deaf", false)).await;
        client.send(Frame::data(deaf, &[b'x'; 60_000])).await;
        client.send(Frame::reset(deaf)).await;
        // The stream has ended, so the library drops what comes for it.
        client.send(Frame::data(deaf, &[b'x'; 5_000])).await;
        client.send(Frame::headers(deaf + 2, "/read", false)).await;
        client.send(Frame::data(deaf + 2, &[b'x'; 60_000])).await;
        client.send(Frame::data(deaf + 2, b"x").with_end()).await;
        client.until(|frame| frame.payload == b"60001").await;
        assert_eq!(census.request_bytes(), 0, "{round}");
    }
    assert!(!served.is_finished());
}

#[tokio::test(start_paused = true)]
async fn callers_that_give_up_together_do_not_end_the_connection_of_the_others() {
    let census = census(Limits::default());
    let (mut client, served) = client(&census, 1 << 16).await;
    client.send(Frame::headers(1, "/read", false)).await;
    let mut burst = Vec::new();
    for at in 1..=500 {
        burst.extend(Frame::headers(1 + 2 * at, "/never", true).bytes());
        burst.extend(Frame::reset(1 + 2 * at).bytes());
    }
    client.send_bytes(&burst).await;
    client.send(Frame::data(1, b"innocent").with_end()).await;
    let frames = client.until(|frame| frame.payload == b"8" || frame.kind == GOAWAY).await;
    assert!(frames.iter().all(|frame| frame.kind != GOAWAY), "{frames:?}");
    assert!(!served.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_makes_mistakes_without_end_is_sent_away() {
    let census = census(Limits::default());
    let (mut client, served) = client(&census, 1 << 16).await;
    let mut resets = 0;
    for at in 0..3_000 {
        if served.is_finished() {
            break;
        }
        // DATA after the end of its stream.
        let bytes =
            [Frame::headers(1 + 2 * at, "/never", true).bytes(), Frame::data(1 + 2 * at, b"late").bytes()].concat();
        if client.try_send_bytes(&bytes).await.is_err() {
            break;
        }
        resets += 1;
        tokio::task::yield_now().await;
    }
    assert!(resets < 2_000, "{resets} mistakes");
    timeout(Duration::from_secs(60), served).await.expect("it goes on").unwrap();
}

/// A server on a socket of this machine.
async fn listening(limits: Limits, drain: Duration) -> (SocketAddr, CancellationToken, JoinHandle<Drain>) {
    let listener = crate::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let (addr, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
    let (stop, connections) = (shutdown.clone(), Connections::new(limits));
    let served =
        tokio::spawn(
            async move { super::serve(listener, services(), single(), &connections, &stop, drain).await.unwrap() },
        );
    (addr, shutdown, served)
}

async fn ask(addr: SocketAddr, path: &str, host: &str) -> String {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_newcomer_gets_through_a_crowd_of_silent_sockets() {
    // Nothing else than the end of the process may end the silent ones.
    let limits = Limits { connections_max: 50, first_request: 600 * SECOND, ..Limits::default() };
    let (addr, shutdown, served) = listening(limits, 120 * SECOND).await;
    let mut crowd = Vec::new();
    for _ in 0..300 {
        crowd.push(TcpStream::connect(addr).await.unwrap());
    }
    let answer = timeout(20 * SECOND, ask(addr, "/", "localhost")).await.expect("no place");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    shutdown.cancel();
    assert_eq!(timeout(60 * SECOND, served).await.unwrap().unwrap(), Drain::Complete);
}

#[tokio::test]
async fn what_is_not_finished_in_time_is_cut_off() {
    let (addr, shutdown, served) = listening(Limits::default(), Duration::from_millis(300)).await;
    let mut socket = TcpStream::connect(addr).await.unwrap();
    socket.write_all(b"GET /never HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let answer = ask(addr, "/peer", "localhost").await;
    assert!(answer.contains("Some(Peer { address: 127.0.0.1:"), "{answer}");
    shutdown.cancel();
    assert_eq!(served.await.unwrap(), Drain::Incomplete);
    let mut rest = Vec::new();
    timeout(20 * SECOND, socket.read_to_end(&mut rest)).await.expect("the call goes on").ok();
}

#[tokio::test]
async fn a_page_with_a_name_of_its_own_is_refused_on_loopback() {
    let (addr, _shutdown, _served) = listening(Limits::default(), SECOND).await;
    let answer = ask(addr, "/", "vote.example:80").await;
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden") && answer.contains("PERMISSION_DENIED"), "{answer}");
    assert!(ask(addr, "/", &addr.to_string()).await.starts_with("HTTP/1.1 200 OK"));
}
