//! Code that tests share.
//!
//! Owns the contract suite for the ports, engines in memory that pass it, the auditor that judges what clients saw,
//! hostile clients, and stand-ins for AWS. Must never be used outside tests and development. Must never know a service.

pub mod audit;
pub mod contract;
#[cfg(feature = "hostile")]
pub mod hostile;
pub mod memory;
#[cfg(feature = "stand-ins")]
pub mod stand_ins;
