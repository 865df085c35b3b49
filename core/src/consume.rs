//! From the stream to counts: windows of records, which votes of them count, and the groups of consumers that apply
//! them.
//!
//! Owns every decision between a stored record and a stored tally. Must never read a clock to decide whether a vote
//! counts: that depends on the stream and on stored facts alone.

pub mod dedup;
pub mod group;
pub mod tally;
pub mod window;
