//! The vote stream on Kinesis Data Streams and the store on DynamoDB.
//!
//! Owns everything that depends on AWS: requests, limits, throttling, and the meaning of errors. The only crate that
//! names the AWS SDK. Must never decide anything about a vote, and never retry a write by itself: the callers own
//! retries, and [`votestream_core::port::PortError`] tells them whether they may.

pub mod client;
mod connect;
mod date;
pub mod dynamodb;
pub mod kinesis;

pub use client::AwsConfig;
pub use connect::{ConnectError, Deployment, connect};
