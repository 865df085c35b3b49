//! Floods of HTTP/2 frames.
//!
//! Owns frames that are cheap for a client but cost the server something. Each flood has at most a few megabytes per
//! connection.

use std::{io, time::Duration};

use rand::{Rng, RngExt, rngs::StdRng, seq::IndexedRandom};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{
    Http2, Target,
    votes::METHODS,
    wire::{self, flag, kind, setting},
};

/// Frames of a flood, on one connection.
const FRAMES: std::ops::Range<usize> = 2_000..20_000;
/// Frames that are written together.
const TOGETHER: usize = 64;
/// How long a flooder waits for the server to disconnect them.
const WAIT: Duration = Duration::from_millis(200);

/// A connection to one of the two ports.
async fn connect(target: &Target, rng: &mut StdRng) -> io::Result<Http2> {
    Http2::connect(if rng.random_bool(0.8) { target.ingest } else { target.results }).await
}

/// Sends many frames, then waits for the server's reaction.
async fn flood(connection: &mut Http2, frames: usize, mut next: impl FnMut(usize) -> Vec<u8>) -> io::Result<()> {
    for first in (0..frames).step_by(TOGETHER) {
        let bytes: Vec<u8> = (first..frames.min(first + TOGETHER)).flat_map(&mut next).collect();
        connection.send(&bytes).await?;
    }
    connection.is_closed(WAIT).await;
    Ok(())
}

pub(super) async fn resets(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut connection = connect(target, rng).await?;
    let code = rng.random_range(0..14);
    let with_content = rng.random_bool(0.5);
    let frames = rng.random_range(FRAMES) / 4;
    let path = *METHODS.choose(rng).unwrap_or(&METHODS[0]);
    let headers = wire::grpc_headers(path, &[]);
    flood(&mut connection, frames, |at| {
        let stream = at as u32 * 2 + 1;
        let mut call = wire::frame(kind::HEADERS, flag::END_HEADERS, stream, &headers);
        if with_content {
            call.extend(wire::frame(kind::DATA, 0, stream, &wire::message(&wire::vote("no-such-poll", "u", "o"))));
        }
        call.extend(wire::reset(stream, code));
        call
    })
    .await
}

pub(super) async fn continuations(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut connection = connect(target, rng).await?;
    let size = *[0, 1, 100, 16_000].choose(rng).unwrap_or(&1);
    let stream = connection.stream();
    connection.send(&wire::frame(kind::HEADERS, 0, stream, &wire::grpc_headers(METHODS[0], &[]))).await?;
    let header = if size > 10 { wire::hpack_header(0, "x", &"y".repeat(size - 8)) } else { vec![0x82; size] };
    let frames = rng.random_range(FRAMES) / (1 + size / 100);
    flood(&mut connection, frames, |_| wire::frame(kind::CONTINUATION, 0, stream, &header)).await
}

pub(super) async fn header_bomb(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut connection = connect(target, rng).await?;
    // The table remembers one large header. Then one byte names it, again and again.
    let value = "b".repeat(rng.random_range(1_000..3_900));
    let mut headers = wire::grpc_headers(METHODS[0], &[]);
    headers.extend(wire::hpack_header(0x40, "bomb", &value));
    headers.extend(vec![0x80 | 62; rng.random_range(1_000..12_000)]);
    for _ in 0..rng.random_range(1..60) {
        let stream = connection.stream();
        connection.send(&wire::frame(kind::HEADERS, flag::END_HEADERS, stream, &headers)).await?;
    }
    connection.is_closed(WAIT).await;
    Ok(())
}

pub(super) async fn settings(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut connection = connect(target, rng).await?;
    let (frames, sizes) = (rng.random_range(FRAMES), [0_u32, 1, 4_096, 65_536, 1 << 30]);
    let names = rng.random_range(0..60);
    let entries: Vec<_> = (0..names).map(|_| (rng.random_range(1..9), *sizes.choose(rng).unwrap_or(&0))).collect();
    let alternating = rng.random_bool(0.5);
    flood(&mut connection, frames / (1 + names / 8), |at| match alternating {
        true => wire::settings(&[(setting::HEADER_TABLE_SIZE, at as u32 % 2 * 4_096)]),
        false => wire::settings(&entries),
    })
    .await
}

pub(super) async fn pings(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut connection = connect(target, rng).await?;
    let frames = rng.random_range(FRAMES);
    let pongs = rng.random_bool(0.3);
    flood(&mut connection, frames, |at| {
        wire::frame(kind::PING, if pongs { flag::ACK } else { 0 }, 0, &(at as u64).to_be_bytes())
    })
    .await
}

pub(super) async fn priorities(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut connection = connect(target, rng).await?;
    let (frames, open) = (rng.random_range(FRAMES), rng.random_bool(0.5));
    if open {
        connection.call(METHODS[2], &[]).await?;
    }
    let spread = *[1_u32, 64, 1 << 20].choose(rng).unwrap_or(&1);
    flood(&mut connection, frames, |at| {
        let stream = (at as u32 % spread) * 2 + 1;
        // A call that depends on another one, sometimes on itself.
        let payload = [&(stream / 2).to_be_bytes()[..], &[at as u8]].concat();
        wire::frame(kind::PRIORITY, 0, stream, &payload)
    })
    .await
}

pub(super) async fn window_updates(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut connection = connect(target, rng).await?;
    let stream = connection.call(METHODS[2], &[]).await?;
    let (frames, more) = (rng.random_range(FRAMES), *[0, 1, 1 << 20, (1 << 31) - 1].choose(rng).unwrap_or(&1));
    let on = *[0, stream, stream + 2].choose(rng).unwrap_or(&0);
    flood(&mut connection, frames, |_| wire::window_update(on, more)).await
}

pub(super) async fn empty_frames(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut connection = connect(target, rng).await?;
    let stream = connection.call(METHODS.choose(rng).unwrap_or(&METHODS[0]), &[]).await?;
    let frames = rng.random_range(FRAMES);
    let padded = rng.random_bool(0.5);
    // The other kind is all padding.
    flood(&mut connection, frames, |_| match padded {
        true => wire::frame(kind::DATA, 8, stream, &[9, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        false => wire::frame(kind::DATA, 0, stream, &[]),
    })
    .await
}

pub(super) async fn unknown_frames(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut connection = connect(target, rng).await?;
    let (frames, size) = (rng.random_range(FRAMES), rng.random_range(0..300));
    flood(&mut connection, frames, |at| wire::frame(10 + at as u8 % 200, at as u8, at as u32 % 9, &vec![0; size])).await
}

pub(super) async fn provocations(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut connection = connect(target, rng).await?;
    provoke(&mut connection, rng.random_range(0..3), rng.random_range(FRAMES) / 4).await
}

/// Makes the server reset this many calls because of an error, in one of three ways.
///
/// # Errors
///
/// If the server has closed the connection.
pub async fn provoke(connection: &mut Http2, how: u32, calls: usize) -> io::Result<()> {
    let headers = wire::grpc_headers(METHODS[1], &[]);
    flood(connection, calls, |at| {
        let stream = at as u32 * 2 + 1;
        match how {
            // A window that overflows.
            0 => {
                let mut call = wire::frame(kind::HEADERS, flag::END_HEADERS, stream, &headers);
                call.extend(wire::window_update(stream, (1 << 31) - 1));
                call.extend(wire::window_update(stream, (1 << 31) - 1));
                call
            }
            // Content after the end.
            1 => {
                let flags = flag::END_HEADERS | flag::END_STREAM;
                let mut call = wire::frame(kind::HEADERS, flags, stream, &headers);
                call.extend(wire::frame(kind::DATA, 0, stream, b"more"));
                call
            }
            // A window that grows by nothing.
            _ => {
                let mut call = wire::frame(kind::HEADERS, flag::END_HEADERS, stream, &headers);
                call.extend(wire::window_update(stream, 0));
                call
            }
        }
    })
    .await
}

pub(super) async fn noise(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut stream = TcpStream::connect(if rng.random() { target.ingest } else { target.results }).await?;
    let good = [wire::PREFACE, &wire::settings(&[])].concat();
    let beginning = rng.random_range(0..=good.len());
    stream.write_all(&good[..beginning]).await?;
    for _ in 0..rng.random_range(1..20) {
        let mut bytes = vec![0; rng.random_range(1..20_000)];
        rng.fill_bytes(&mut bytes);
        stream.write_all(&bytes).await?;
    }
    Ok(())
}
