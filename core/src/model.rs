//! What is true of votes and polls, whoever asks: ids and their limits, times, hashes, positions, and why a vote is refused.
//!
//! Owns every rule that says what is valid. Must never wait, nor name another room of this crate.

pub mod limits;
pub mod poll;
pub mod refusal;
pub mod routing;
pub mod sequence;
pub mod text;
pub mod time;
pub mod user_id;
