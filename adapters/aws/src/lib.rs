//! The vote stream on Kinesis Data Streams and the store on DynamoDB.
//!
//! Owns everything that depends on AWS: requests, limits, throttling, and the meaning of errors. The only crate that
//! names the AWS SDK. Must never decide anything about a vote, and never repeat a put, nor a write whose condition
//! does not show whether it took place: the callers own those retries, and [`votestream_core::port::PortError`] tells them
//! whether they may.

mod answers;
pub mod client;
mod connect;
mod connections;
mod date;
pub mod dynamodb;
pub mod kinesis;

pub use client::AwsConfig;
pub use connect::{ConnectError, Deployment, connect};
