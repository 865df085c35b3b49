//! Votes for the measurements: user ids are UUIDs of 36 characters, and there are five options.

use std::time::{Duration, SystemTime};

use rand::{RngExt, rngs::StdRng};
use votestream_client::v1;
use votestream_core::{Clock, Poll, PollId, PollOption, PollSource, Timestamp, clock::SystemClock};
use votestream_proto::VotesMessage;

/// The poll that all votes are for.
pub(crate) const POLL: &str = "bench";
/// Its options.
pub(crate) const OPTIONS: [&str; 5] = ["option-0", "option-1", "option-2", "option-3", "option-4"];

/// Its expected peak, in votes a second.
const PEAK: u64 = 1_000_000;

/// A poll with these options, open for an hour.
pub(crate) fn create_request(poll_id: &str) -> v1::CreatePollRequest {
    let option = |&id: &&str| v1::PollOption { option_id: id.into(), title: String::new() };
    v1::CreatePollRequest {
        poll_id: poll_id.into(),
        options: OPTIONS.iter().map(option).collect(),
        closes_at: Some((SystemTime::now() + Duration::from_secs(3_600)).into()),
        ..v1::CreatePollRequest::default()
    }
}

/// A random user id.
pub(crate) fn user(rng: &mut StdRng) -> String {
    let (a, b): (u64, u64) = (rng.random(), rng.random());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        0x8000 | (b >> 48) & 0x3fff,
        b & 0xffff_ffff_ffff
    )
}

/// A random option.
pub(crate) fn option(rng: &mut StdRng) -> &'static str {
    OPTIONS[rng.random_range(0..OPTIONS.len())]
}

/// A message of random votes.
pub(crate) fn message(rng: &mut StdRng, votes: usize) -> VotesMessage {
    message_for(rng, votes, option)
}

/// A message of random votes for an option that the poll does not have.
pub(crate) fn refused(rng: &mut StdRng, votes: usize) -> VotesMessage {
    message_for(rng, votes, |_| "option-9")
}

fn message_for(rng: &mut StdRng, votes: usize, option: fn(&mut StdRng) -> &'static str) -> VotesMessage {
    let mut message = VotesMessage::with_capacity(votes * 60);
    for _ in 0..votes {
        message.push(POLL, &user(rng), option(rng));
    }
    message
}

/// The poll, as if it had opened an hour ago and would stay open for another hour.
pub(crate) fn poll() -> anyhow::Result<Poll> {
    const HOUR_MS: i64 = 3_600_000;
    let options = OPTIONS.iter().map(|&id| PollOption { id: id.into(), title: String::new() }).collect();
    let now = SystemClock::new().now();
    let (opens_at, closes_at) = (Timestamp(now.0 - HOUR_MS), Timestamp(now.0 + HOUR_MS));
    Ok(Poll::new(PollId::new(POLL)?, String::new(), options, opens_at, closes_at, PollSource::Ingest, PEAK)?)
}
