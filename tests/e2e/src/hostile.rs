//! The hostile clients of the testkit, and a `votestream up` whose memory and processor time are measured from outside.
//!
//! Owns the server under attack ([`server`]). Must never know what an attack sends.

pub mod server;

pub use server::{Options, Server};
pub use votestream_testkit::hostile::*;
