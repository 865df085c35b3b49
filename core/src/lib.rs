//! The domain and the protocol of Votestream.
//!
//! Owns every decision: what a valid vote is, how votes become batches, which votes count, when a result is final. Must
//! never name an engine, open a socket or a file, or read a clock except through [`Clock`]; engines are reached through
//! the traits in [`port`]. ARCHITECTURE.md explains why the protocol is right.
//!
//! # Words
//!
//! - **vote**: (poll, user, option), as submitted. **batch**: the votes of one stream **record**, all of one shard.
//! - **position**: sequence number of the record and index of the vote in it; the only order between votes.
//! - **lane**: the ingest side of one shard. **window**: a run of consecutive records that a consumer commits as a unit.
//! - **group**: the consumers of one service. **watermark**: all votes that arrived before it have been committed.
//! - **submitted**: every accepted vote. **counted**: one vote per user, the last one.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests read the clocks of their own"))]

pub mod clock;
pub mod consume;
pub mod model;
pub mod mutation;
pub mod observe;
pub mod polls;
pub mod port;
pub mod produce;
pub mod record;

pub use model::{
    poll::{Closing, Poll, PollId, PollOption, PollSource, Visibility},
    pseudonym::{KeyId, PseudonymKeys},
    refusal::Refusal,
    routing::{HashRange, HashRanges, PollHasher, ShardId, vote_hash},
    sequence::{Position, SequenceNumber},
    time::{Clock, Moment, TimeBounds, Timestamp},
    user_id::UserId,
};
