//! Clients that begin but do not go on.

use std::{io, time::Duration};

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::sleep};

use super::{
    Http2, Target,
    votes::METHODS,
    wire::{self, setting},
};

/// Most calls of a connection that a server allows at once, or more.
const CALLS: usize = 38;
/// How long a server may take to grant room for more of a message.
const GRANTED: Duration = Duration::from_millis(250);
/// How long an unfinished call is kept.
const HELD: Duration = Duration::from_secs(1);

/// Valid beginnings of connections.
pub fn beginnings() -> Vec<Vec<u8>> {
    let preface = [wire::PREFACE, &wire::settings(&[])].concat();
    let headers = wire::frame(wire::kind::HEADERS, 4, 1, &wire::grpc_headers(METHODS[0], &[]));
    vec![
        vec![],
        wire::PREFACE[..10].to_vec(),
        wire::PREFACE.to_vec(),
        preface.clone(),
        [&preface[..], &headers[..20]].concat(),
        [&preface[..], &wire::frame(wire::kind::HEADERS, 0, 1, &wire::grpc_headers(METHODS[0], &[]))].concat(),
        [preface, headers].concat(),
        b"P".to_vec(),
        b"POST /vote HTTP/1.1\r\nhost: localhost\r\ncontent-le".to_vec(),
        b"POST /vote HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 70\r\n\r\n{"
            .to_vec(),
    ]
}

pub(super) async fn silence(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let beginnings = beginnings();
    let mut held = Vec::new();
    for _ in 0..rng.random_range(1..60) {
        let mut stream = TcpStream::connect(if rng.random() { target.ingest } else { target.results }).await?;
        stream.write_all(beginnings.choose(rng).map_or(&[][..], Vec::as_slice)).await?;
        held.push(stream);
    }
    sleep(HELD).await;
    Ok(())
}

pub(super) async fn unfinished_messages(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut connection = Http2::connect(target.ingest).await?;
    let declared = *[100, 60_000, 1 << 20, 4 << 20].choose(rng).unwrap_or(&100);
    unfinished(&mut connection, METHODS[rng.random_range(0..3)], CALLS, declared).await?;
    sleep(HELD).await;
    Ok(())
}

/// Begins this many messages of this length, and sends all except their last byte, as far as the server accepts it.
///
/// # Errors
///
/// If the server has closed the connection.
pub async fn unfinished(connection: &mut Http2, path: &str, calls: usize, declared: usize) -> io::Result<()> {
    let content = wire::message_of(0, declared as u32, &vec![0; declared - 1]);
    for _ in 0..calls {
        let stream = connection.call(path, &[]).await?;
        // A server that grants no more window does not accept more of this message.
        tokio::time::timeout(GRANTED, connection.data(stream, &content, usize::MAX, false)).await.ok();
    }
    Ok(())
}

pub(super) async fn closed_window(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let window = *[0, 1, 100].choose(rng).unwrap_or(&0);
    let connection = unread_polls(target, window, CALLS).await?;
    sleep(HELD).await;
    drop(connection);
    Ok(())
}

/// Asks for a poll again and again, on a connection that grants this window.
///
/// # Errors
///
/// If the server has closed the connection.
pub async fn unread_polls(target: &Target, window: u32, calls: usize) -> io::Result<Http2> {
    let mut connection = Http2::connect_with(target.results, &[(setting::INITIAL_WINDOW_SIZE, window)]).await?;
    let request = wire::message(&wire::field(1, target.poll.as_bytes()));
    for _ in 0..calls {
        let stream = connection.call("/votestream.v1.PollService/GetPoll", &[]).await?;
        connection.data(stream, &request, usize::MAX, true).await?;
    }
    Ok(connection)
}

pub(super) async fn dribble(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut connection = Http2::connect(target.ingest).await?;
    let stream = connection.call(METHODS[rng.random_range(0..3)], &[]).await?;
    let content = wire::message(&wire::vote("no-such-poll", "somebody", "something").repeat(20));
    for byte in content.chunks(1) {
        connection.data(stream, byte, 1, false).await?;
        sleep(Duration::from_millis(rng.random_range(0..4))).await;
    }
    Ok(())
}
