//! Reads a shard by GetRecords.
//!
//! Owns the iterator and the pauses between reads: one shard allows only five reads and 2 MiB per second, and both
//! groups share them. Must never assume that an iterator skipped nothing: [`Cursor`] checks that.

use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_kinesis::{Client, types::ShardIteratorType};
use tokio::time::{Instant, sleep_until};
use votestream_core::{
    ShardId,
    observe::metrics::{self, Throttled},
    port::{PortError, ReadOutcome, RecordReader},
};

use super::{
    address::StreamAddress,
    cursor::Cursor,
    limits::{GET_RECORDS_MAX, SHARD_READ_BYTES_PER_SECOND},
};
use crate::client::port_error;

/// Pause after a throttled read, as a multiple of the pause between reads.
const THROTTLED_PAUSES: u32 = 3;

/// Reads one shard.
pub(super) struct PollingReader {
    client: Client,
    stream: StreamAddress,
    shard: ShardId,
    cursor: Cursor,
    pause: Duration,
    next_read: Instant,
    iterator: Iterator,
}

enum Iterator {
    None,
    At(String),
    /// The shard is closed, and everything in it was read.
    End,
}

impl PollingReader {
    pub(super) fn new(client: Client, stream: StreamAddress, shard: ShardId, cursor: Cursor, pause: Duration) -> Self {
        Self { client, stream, shard, cursor, pause, next_read: Instant::now(), iterator: Iterator::None }
    }

    /// Gets a new iterator; `None` if Kinesis does not know the starting point.
    async fn get_iterator(&mut self) -> Result<Option<String>, PortError> {
        self.cursor.restart();
        let request = self.client.get_shard_iterator().shard_id(self.shard.as_str());
        let request = request.set_stream_name(self.stream.name()).set_stream_arn(self.stream.arn());
        let request = match self.cursor.start_at() {
            None => request.shard_iterator_type(ShardIteratorType::TrimHorizon),
            Some(sequence) => {
                request.shard_iterator_type(ShardIteratorType::AtSequenceNumber).starting_sequence_number(sequence)
            }
        };
        let what = format!("GetShardIterator of {}/{}", self.stream, self.shard);
        match request.send().await {
            Ok(output) => output.shard_iterator.map(Some).ok_or_else(|| PortError::unknown(format!("{what}: none"))),
            Err(error) => {
                let failed = port_error(&what, &error);
                // The sequence number does not belong to this shard, or no longer does.
                if error.as_service_error().is_some_and(|error| error.is_invalid_argument_exception()) {
                    tracing::error!(error = %failed, "the starting point is not in the stream");
                    return Ok(None);
                }
                Err(failed)
            }
        }
    }
}

#[async_trait]
impl RecordReader for PollingReader {
    async fn next(&mut self) -> Result<ReadOutcome, PortError> {
        let iterator = match &self.iterator {
            Iterator::End => return Ok(self.cursor.end()),
            Iterator::At(iterator) => iterator.clone(),
            Iterator::None => {
                let Some(iterator) = self.get_iterator().await? else { return Ok(ReadOutcome::Expired) };
                self.iterator = Iterator::At(iterator.clone());
                iterator
            }
        };
        sleep_until(self.next_read).await;
        self.next_read = Instant::now() + self.pause;
        let read = self.client.get_records().shard_iterator(iterator).limit(GET_RECORDS_MAX);
        let read = read.set_stream_arn(self.stream.arn()).send().await;
        let output = match read {
            Ok(output) => output,
            Err(error) => {
                let service = error.as_service_error();
                if service.is_some_and(|error| error.is_expired_iterator_exception()) {
                    // An iterator lives for five minutes. The next call starts at the last record again.
                    self.iterator = Iterator::None;
                    return Ok(ReadOutcome::Records(Vec::new()));
                }
                if service.is_some_and(|error| error.is_provisioned_throughput_exceeded_exception()) {
                    self.next_read += self.pause * THROTTLED_PAUSES;
                    metrics::throttled(Throttled::Read, 1);
                }
                return Err(port_error(&format!("GetRecords of {}/{}", self.stream, self.shard), &error));
            }
        };
        let caught_up = output.records.is_empty() && output.millis_behind_latest.unwrap_or(0) == 0;
        let bytes: usize = output.records.iter().map(|record| record.data.as_ref().len()).sum();
        let outcome = self.cursor.take(output.records, caught_up)?;
        // What was read counts against the shard's bytes per second: an earlier read would be refused.
        let spent = Duration::from_secs_f64(bytes as f64 / SHARD_READ_BYTES_PER_SECOND as f64);
        self.next_read = self.next_read.max(Instant::now() + spent);
        self.iterator = output.next_shard_iterator.map_or(Iterator::End, Iterator::At);
        Ok(outcome)
    }
}
