//! Definitions of polls in memory: how old one may be, and how its options are found.
//!
//! Must never answer from a definition whose age is not known.

pub mod cache;
pub mod index;
