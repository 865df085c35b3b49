//! Cuts the power under `votestream up` while people vote, and judges what is left.
//!
//! Owns when and how the power is cut, as a seed decides; a site, which loses its power and starts again with what
//! survived; and its histories. Must never pass a history in which nothing was cut. Must never leave anything mounted.

mod crowd;
mod disk;
mod fault;
mod first_start;
mod history;
mod plan;
mod site;
mod volume;

pub use crowd::{Crowd, judge as judge_crowd};
pub use disk::{Cut, Disk};
pub use fault::fault;
pub use first_start::first_starts;
pub use history::history;
pub use plan::{Plan, Report};
pub use site::Site;
pub use volume::{FileSystem, Kind, Volume};
