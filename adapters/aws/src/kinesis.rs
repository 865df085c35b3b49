//! The vote stream on Kinesis Data Streams.
