//! The bytes of the vote stream: batches of ours, and records that other programs write.
//!
//! Owns both formats. Must never decide whether a vote counts.

pub mod batch;
pub mod foreign;
