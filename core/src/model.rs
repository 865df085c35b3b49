//! The rules about votes and polls that hold everywhere: ids and their limits, times, hashes, positions, and why a vote
//! is refused.
//!
//! Owns every rule that says what is valid. Must never wait, and never use another part of this crate.

pub mod hex;
pub mod limits;
pub mod poll;
pub mod pseudonym;
pub mod refusal;
pub mod routing;
pub mod sequence;
pub mod text;
pub mod time;
pub mod user_id;
