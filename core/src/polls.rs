//! Definitions of polls in memory: how old one may be, and how an option is found in one.
//!
//! Must never answer from a definition of unknown age.

pub mod cache;
pub mod index;
