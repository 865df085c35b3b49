//! Whole-system tests: what they share.
//!
//! Owns the contract suite that every adapter must pass, a stack of all three services in one process, and ports that
//! fail on purpose. Must never be used outside tests.

pub mod aws;
pub mod cluster;
pub mod contract;
pub mod faults;
pub mod reshard;
pub mod stack;
