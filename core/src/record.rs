//! The bytes of the vote stream: our batches, and records that other programs write.
//!
//! Owns both formats. Must never decide whether a vote counts.

pub mod batch;
pub mod foreign;
