//! Code that whole-system tests share.
//!
//! Owns a stack of all three services in one process, ports that fail on purpose, processes that are killed, and power that is
//! cut. Must never be used outside tests.

pub mod aws;
pub mod aws_edge;
pub mod cluster;
pub mod collector;
pub mod crash;
pub mod faults;
pub mod hostile;
pub mod house;
pub mod http_faults;
pub mod issuer;
pub mod mayor;
pub mod power;
pub mod reshard;
pub mod stack;
pub mod tls;
pub mod tree;
pub mod voters;
