//! Votes and calls that try to cost more than they should.

use std::{io, time::Duration};

use rand::{Rng, RngExt, rngs::StdRng, seq::IndexedRandom};
use tokio::time::{sleep, timeout};

use super::{
    Http2, Target,
    wire::{self, flag, kind, setting},
};

/// The methods of `IngestService`.
pub const METHODS: [&str; 3] = [
    "/votestream.v1.IngestService/CastVote",
    "/votestream.v1.IngestService/CastVotes",
    "/votestream.v1.IngestService/StreamVotes",
];
/// Calls of a connection at once.
const CALLS: usize = 38;
/// How long a call may take before it is cancelled.
const WAIT: Duration = Duration::from_millis(500);

/// Sends a call, and waits for its end for a limited time.
async fn call(connection: &mut Http2, path: &str, content: &[u8], frame_bytes: usize) -> io::Result<()> {
    let ended = connection.heard().ended;
    let sent = async {
        let stream = connection.call(path, &[]).await?;
        connection.data(stream, content, frame_bytes, true).await?;
        if content.is_empty() {
            connection.send(&wire::frame(kind::DATA, flag::END_STREAM, stream, &[])).await?;
        }
        connection.hears(|heard| heard.ended > ended || heard.closed, WAIT).await;
        Ok(())
    };
    timeout(WAIT * 2, sent).await.unwrap_or(Ok(()))
}

/// Bytes that are nearly a message of votes. No vote can count, because its poll does not exist.
pub fn nearly_votes(rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..rng.random_range(0..40) {
        match rng.random_range(0..9) {
            0 => bytes.extend(wire::vote("no-such-poll", "u", "o")),
            // A vote, a group, numbers of every width, lengths beyond the end, tags of nothing.
            1 => bytes.extend(wire::field(1, &[0x0b, 0x0c])),
            2 => bytes.extend([0x0b].repeat(rng.random_range(1..300))),
            3 => bytes.extend([0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
            4 => bytes.extend([0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
            5 => bytes.extend([0x00, 0x07, 0x0d, 0x01, 0x09]),
            6 => bytes.extend(wire::field(1, &wire::field(2, &[0xff, 0xfe, 0xc0]))),
            7 => bytes.extend(wire::field(rng.random_range(2..1 << 29), &[1, 2, 3])),
            _ => bytes.push(rng.random()),
        }
    }
    bytes.truncate(rng.random_range(0..=bytes.len()));
    bytes
}

pub(super) async fn bad_protobuf(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut connection = Http2::connect(target.ingest).await?;
    for _ in 0..50 {
        let messages: Vec<u8> = (0..rng.random_range(1..4)).flat_map(|_| wire::message(&nearly_votes(rng))).collect();
        let frame_bytes = *[1, 7, 300, usize::MAX].choose(rng).unwrap_or(&1);
        call(&mut connection, METHODS[rng.random_range(0..3)], &messages, frame_bytes).await?;
    }
    Ok(())
}

pub(super) async fn bad_frames(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut connection = Http2::connect(target.ingest).await?;
    for _ in 0..50 {
        let vote = wire::vote("no-such-poll", "u", "o");
        let declared = *[0, 1, vote.len() as u32, vote.len() as u32 + 9, 4 << 20, u32::MAX].choose(rng).unwrap_or(&0);
        let mut content = wire::message_of(*[0, 1, 2, 128, 255].choose(rng).unwrap_or(&1), declared, &vote);
        if rng.random_bool(0.1) {
            rng.fill_bytes(&mut content);
        }
        call(&mut connection, METHODS[rng.random_range(0..3)], &content, usize::MAX).await?;
    }
    Ok(())
}

/// A message of votes for this many polls that do not exist.
pub fn votes_for_unknown_polls(polls: usize, rng: &mut StdRng) -> Vec<u8> {
    let word: u32 = rng.random();
    wire::message(&(0..polls).flat_map(|at| wire::vote(&format!("q{word:x}-{at:x}"), "u", "o")).collect::<Vec<_>>())
}

pub(super) async fn unknown_polls(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut connection = Http2::connect(target.ingest).await?;
    let polls = rng.random_range(500..4_000);
    let content = votes_for_unknown_polls(polls, rng);
    // And leaves.
    call(&mut connection, METHODS[rng.random_range(1..3)], &content, usize::MAX).await
}

pub(super) async fn unread_rejections(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut connection = Http2::connect_with(target.ingest, &[(setting::INITIAL_WINDOW_SIZE, 0)]).await?;
    let stream = connection.call(METHODS[2], &[]).await?;
    let message = wire::message(&[0x0a, 0].repeat(rng.random_range(1_000..100_000)));
    for _ in 0..10 {
        timeout(WAIT, connection.data(stream, &message, usize::MAX, false)).await.unwrap_or(Ok(()))?;
    }
    sleep(WAIT).await;
    Ok(())
}

pub(super) async fn cancelled_recounts(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut connection = Http2::connect(target.results).await?;
    recounts(&mut connection, &target.poll, rng.random_range(1..60)).await
}

/// Recounts, each cancelled at once.
///
/// # Errors
///
/// If the server has closed the connection.
pub async fn recounts(connection: &mut Http2, poll: &str, times: usize) -> io::Result<()> {
    let request = wire::message(&wire::field(1, poll.as_bytes()));
    for _ in 0..times {
        let stream = connection.call("/votestream.v1.ResultsService/Recount", &[]).await?;
        connection.data(stream, &request, usize::MAX, true).await?;
        // Enough time to begin but not to end.
        sleep(Duration::from_millis(1)).await;
        connection.send(&wire::reset(stream, 8)).await?;
    }
    Ok(())
}

pub(super) async fn small_frames(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut connection = Http2::connect(target.ingest).await?;
    let message = wire::message(&wire::vote("no-such-poll", "u", "o"));
    let mut streams = Vec::new();
    for _ in 0..CALLS {
        streams.push(connection.call(METHODS[rng.random_range(1..3)], &[]).await?);
    }
    for _ in 0..rng.random_range(10..200) {
        let frames: Vec<u8> = streams.iter().flat_map(|&stream| wire::frame(kind::DATA, 0, stream, &message)).collect();
        connection.send(&frames).await?;
    }
    Ok(())
}
