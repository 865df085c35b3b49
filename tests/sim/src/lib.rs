//! A deterministic simulation: the real lanes, admission, consumer groups, appliers and finalizer, over a stream and a store
//! that fail in every way that the network and a crash allow.
//!
//! Owns one run: one seed gives one schedule on a paused clock. The engines (`world`) keep what the real ones promise, and
//! nothing more: answers get lost after the write took place, requests land late and twice, records show late. Processes
//! (`host`) crash between any two steps, freeze and wake up as zombies, and have clocks that differ. Clients (`clients`)
//! write down what they sent and what they were told, other `producers` what they have put into the stream; the `auditor` judges the stored facts from that alone.

mod auditor;
mod clients;
mod host;
mod producers;
mod run;
pub mod scripted;
mod world;

pub use run::{Report, Settings, run};
pub use world::{Fault, Faults};
