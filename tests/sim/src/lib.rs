//! A deterministic simulation: runs the real lanes, admission, consumer groups, appliers and finalizer, with a stream
//! and a store that fail in every way that the network and a crash allow.
//!
//! Owns one run: one seed gives one schedule on a paused clock. The engines (`world`) keep what the real ones promise,
//! and nothing more: answers are lost after the write took effect, requests arrive late and twice, records become
//! visible late. Processes (`host`) crash between any two steps, freeze and wake up as zombies, and have different
//! clocks. Clients (`clients`) log what they sent and which answers they got; other `producers` log what they have put
//! into the stream. From these logs alone the `auditor` judges the stored facts.

mod auditor;
mod clients;
mod host;
mod producers;
mod run;
pub mod scripted;
mod world;

pub use run::{Report, Settings, run};
pub use world::{Fault, Faults};
