//! The clocks of a process: one that never goes back, and one that watches how far it is from the clocks of others.
//!
//! Owns how time is read and when a reading may be believed. Must never decide about a vote: that takes a reading and a
//! poll.

mod system;
mod watch;

pub use system::{Machine, SystemClock, TimeSource, WallClockBehind, wall_clock};
pub use watch::{Ahead, ClockWatch, WatchedClock};
