//! Whole-system tests: what they share.
//!
//! Owns the contract suite that every adapter must pass, a stack of all three services in one process, ports that fail
//! on purpose, processes that are killed, power that is cut, and the auditor that judges what clients saw. Must never be used outside tests.

pub mod audit;
pub mod aws;
pub mod cluster;
pub mod contract;
pub mod crash;
pub mod faults;
pub mod hostile;
pub mod http_faults;
pub mod power;
pub mod reshard;
pub mod stack;
pub mod voters;
