//! The domain and the protocol of Votestream.
//!
//! Owns every decision: what a valid vote is, how votes become batches, which votes count, when a result is final. Must
//! never name an engine, open a socket or a file, or read a clock other than through [`time::Clock`]; engines are reached
//! through the traits in [`port`]. The argument behind the protocol is in ARCHITECTURE.md.
//!
//! # Words
//!
//! - **vote**: (poll, user, option), as submitted. **batch**: the votes of one stream **record**, all of one shard.
//! - **position**: sequence number of the record and index of the vote in it; the only order between votes.
//! - **lane**: the ingest side of one shard. **window**: a run of consecutive records that a consumer commits as a unit.
//! - **group**: the consumers of one service. **watermark**: all votes that arrived before it have been committed.
//! - **submitted**: every accepted vote. **counted**: one vote per user, the last one.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests read the clocks of their own"))]

mod backoff;
pub mod batch;
pub mod foreign;
pub mod group;
pub mod lane;
pub mod limits;
pub mod memory;
pub mod metrics;
pub mod mutation;
pub mod poll;
pub mod poll_cache;
pub mod poll_index;
pub mod port;
pub mod refusal;
pub mod routing;
pub mod sequence;
pub mod tally;
#[cfg(test)]
mod testing;
pub mod text;
pub mod time;
pub mod trace;
pub mod user_id;
pub mod window;

pub use poll::{Closing, Poll, PollId, PollOption, PollSource};
pub use refusal::Refusal;
pub use routing::{HashRange, HashRanges, PollHasher, ShardId, vote_hash};
pub use sequence::{Position, SequenceNumber};
pub use time::{Clock, Moment, TimeBounds, Timestamp};
pub use user_id::UserId;
