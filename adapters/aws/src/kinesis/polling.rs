//! Reads a shard by GetRecords.
//!
//! Owns the iterator, and the size and the pauses of reads: one shard allows only five reads and 2 MiB per second, and
//! both groups share them. Must never assume that an iterator skipped nothing: [`Cursor`] checks that. Must never call it
//! a failure that the shard is read too fast: others read it, too, and no record is lost by waiting.

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
    cursor::{Cursor, Taken},
    limits::{GET_RECORDS_MAX, SHARD_READ_BYTES_PER_SECOND},
    shards,
};
use crate::client::port_error;

/// Pause after a throttled read, as a multiple of the pause between reads.
const THROTTLED_PAUSES: u32 = 3;

/// Most bytes that a read should bring: what the shard gives in a second. GetRecords brings up to 10 MiB, and after that
/// Kinesis refuses all readers of the shard for five seconds (GetRecords in the API reference), the other group's too.
const READ_BYTES_WANTED: usize = SHARD_READ_BYTES_PER_SECOND;
/// What the first read asks for. Nobody knows yet how large the records are, and they have 1 MiB at most. Small records
/// double it with every read.
const READ_RECORDS_FIRST: i32 = 4;
/// The least that a read asks for. Two of the largest records are as much as [`READ_BYTES_WANTED`].
const READ_RECORDS_LEAST: i32 = 2;

/// No record came.
const NOTHING: ReadOutcome = ReadOutcome::Records(Vec::new());

/// How many records a read asks for. GetRecords has a limit for records and none for bytes, so their number follows from
/// the size of those that came before.
#[derive(Debug, PartialEq, Eq)]
struct ReadSize(i32);

impl ReadSize {
    const fn new() -> Self {
        Self(READ_RECORDS_FIRST)
    }

    /// A read was refused because too much was read: the next one is half as large.
    fn throttled(&mut self) {
        self.0 = (self.0 / 2).max(READ_RECORDS_LEAST);
    }

    /// A read has brought this much. It grows while what it brings would still be wanted if it were twice as much.
    fn brought(&mut self, records: usize, bytes: usize) {
        if bytes > READ_BYTES_WANTED {
            let wanted = records.saturating_mul(READ_BYTES_WANTED) / bytes;
            self.0 = i32::try_from(wanted).unwrap_or(GET_RECORDS_MAX).clamp(READ_RECORDS_LEAST, self.0);
        } else if bytes <= READ_BYTES_WANTED / 2 {
            self.0 = self.0.saturating_mul(2).min(GET_RECORDS_MAX);
        }
    }
}

/// Reads one shard.
pub(super) struct PollingReader {
    client: Client,
    stream: StreamAddress,
    shard: ShardId,
    cursor: Cursor,
    pause: Duration,
    next_read: Instant,
    size: ReadSize,
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
        let (next_read, size) = (Instant::now(), ReadSize::new());
        Self { client, stream, shard, cursor, pause, next_read, size, iterator: Iterator::None }
    }

    /// Waits longer after Kinesis has refused a call because there were too many.
    fn throttled(&mut self) {
        self.next_read = Instant::now() + self.pause * (1 + THROTTLED_PAUSES);
        self.size.throttled();
        metrics::throttled(Throttled::Read, 1);
    }

    /// Kinesis says that it does not know the shard. If the stream is there and has forgotten it, nobody can read what was
    /// not read before.
    async fn not_found(&self, failed: PortError) -> Result<ReadOutcome, PortError> {
        if shards::is_gone(&self.client, &self.stream, &self.shard).await? {
            tracing::error!(error = %failed, "the shard has left the stream");
            return Ok(ReadOutcome::Expired);
        }
        // It is listed, so the answer cannot be right for long.
        Err(PortError::refused(failed.message))
    }

    /// Gets a new iterator. If there is none, returns what the reader answers.
    async fn get_iterator(&mut self) -> Result<Result<String, ReadOutcome>, PortError> {
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
            Ok(output) => output.shard_iterator.map(Ok).ok_or_else(|| PortError::unknown(format!("{what}: none"))),
            Err(error) => {
                let failed = port_error(&what, &error);
                match error.as_service_error() {
                    // The sequence number does not belong to this shard, or no longer does.
                    Some(error) if error.is_invalid_argument_exception() => {
                        tracing::error!(error = %failed, "the starting point is not in the stream");
                        Ok(Err(ReadOutcome::Expired))
                    }
                    Some(error) if error.is_resource_not_found_exception() => self.not_found(failed).await.map(Err),
                    Some(error) if error.is_provisioned_throughput_exceeded_exception() => {
                        self.throttled();
                        Ok(Err(NOTHING))
                    }
                    Some(_) | None => Err(failed),
                }
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
                // One that was refused waits as a read does.
                sleep_until(self.next_read).await;
                match self.get_iterator().await? {
                    Ok(iterator) => {
                        self.iterator = Iterator::At(iterator.clone());
                        iterator
                    }
                    Err(outcome) => return Ok(outcome),
                }
            }
        };
        sleep_until(self.next_read).await;
        self.next_read = Instant::now() + self.pause;
        let read = self.client.get_records().shard_iterator(iterator).limit(self.size.0);
        let read = read.set_stream_arn(self.stream.arn()).send().await;
        let output = match read {
            Ok(output) => output,
            Err(error) => {
                let failed = port_error(&format!("GetRecords of {}/{}", self.stream, self.shard), &error);
                return match error.as_service_error() {
                    // An iterator lives for five minutes. The next call starts at the last record again.
                    Some(error) if error.is_expired_iterator_exception() => {
                        self.iterator = Iterator::None;
                        Ok(NOTHING)
                    }
                    Some(error)
                        if error.is_provisioned_throughput_exceeded_exception()
                            || error.is_kms_throttling_exception() =>
                    {
                        self.throttled();
                        Ok(NOTHING)
                    }
                    Some(error) if error.is_resource_not_found_exception() => {
                        self.iterator = Iterator::None;
                        self.not_found(failed).await
                    }
                    Some(_) | None => Err(failed),
                };
            }
        };
        let bytes: usize = output.records.iter().map(|record| record.data.as_ref().len()).sum();
        self.size.brought(output.records.len(), bytes);
        let taken = self.cursor.take(output.records, output.millis_behind_latest.unwrap_or(0))?;
        // What was read counts against the shard's bytes per second: an earlier read would be refused.
        let spent = Duration::from_secs_f64(bytes as f64 / SHARD_READ_BYTES_PER_SECOND as f64);
        self.next_read = self.next_read.max(Instant::now() + spent);
        self.iterator = output.next_shard_iterator.map_or(Iterator::End, Iterator::At);
        match taken {
            Taken::Outcome(outcome) => Ok(outcome),
            Taken::StandsStill => {
                if !matches!(self.iterator, Iterator::End) {
                    tracing::warn!(shard = %self.shard, "reads stand still far behind; reading from the last record again");
                    self.iterator = Iterator::None;
                }
                Ok(NOTHING)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_become_smaller_and_grow_again() {
        const MIB: usize = 1 << 20;
        let mut size = ReadSize::new();
        (0..20).for_each(|_| size.brought(1_000, MIB / 4));
        assert_eq!(size, ReadSize(GET_RECORDS_MAX), "small records are read in large numbers");
        size.brought(100, 10 * MIB);
        assert_eq!(size, ReadSize(20), "as many of this size as are wanted");
        size.brought(20, 2 * MIB);
        assert_eq!(size, ReadSize(20), "and no more while they stay large");
        size.throttled();
        assert_eq!(size, ReadSize(10));
        (0..10).for_each(|_| size.throttled());
        assert_eq!(size, ReadSize(READ_RECORDS_LEAST), "there is always progress");
        size.brought(3, 3 * MIB);
        assert_eq!(size, ReadSize(READ_RECORDS_LEAST));
        size.brought(0, 0);
        size.brought(4, MIB);
        assert_eq!(size, ReadSize(8), "small reads grow");
        (0..20).for_each(|_| size.brought(1_000, MIB / 4));
        assert_eq!(size, ReadSize(GET_RECORDS_MAX));
    }
}
