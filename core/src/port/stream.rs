//! The vote stream: a log in shards, which several groups read.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Group, PortError};
use crate::{HashRange, SequenceNumber, ShardId, Timestamp};

/// No engine drops a record earlier than this after its arrival. Kinesis keeps records for at least 24 hours ("Change
/// the data retention period" in its developer guide).
pub const RETENTION_LEAST: Duration = Duration::from_secs(24 * 3_600);

/// A shard of the stream, open or closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its name.
    pub id: ShardId,
    /// The hashes that it owns, or owned.
    pub range: HashRange,
    /// The shards whose hashes it took over: none, one (split) or two (merge).
    pub parents: Vec<ShardId>,
    /// Whether it still takes records.
    pub open: bool,
    /// Where a closed shard ends, if the engine says so: no record in it has a larger number.
    pub ends_at: Option<SequenceNumber>,
}

/// Where a record was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The shard that stored it.
    pub shard: ShardId,
    /// Its sequence number there.
    pub sequence: SequenceNumber,
}

/// A record as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its sequence number.
    pub sequence: SequenceNumber,
    /// When it arrived at the stream; every read gives the same time.
    pub arrived_at: Timestamp,
    /// Partition key with which it was put.
    pub partition_key: String,
    /// The bytes that were put.
    pub data: Bytes,
}

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// Records in ascending order, directly after those read before; no record is ever skipped. Empty if no record came
    /// while the engine waited.
    Records(Vec<Record>),
    /// The shard is closed and everything in it has been read.
    ShardEnd,
    /// Records after the starting point are older than the stream's retention and may be gone, or the stream does not
    /// know the shard any more: reading on could lose votes.
    Expired,
}

/// Reads one shard, from a starting point on.
#[async_trait]
pub trait RecordReader: Send {
    /// The next records. Waits a limited time for the first one. After an error the reader may be used again: nothing
    /// was skipped.
    async fn next(&mut self) -> Result<ReadOutcome, PortError>;
}

/// A durable stream in shards.
///
/// The contract, beyond what the methods say: each hash belongs to exactly one open shard. The sequence numbers of a
/// child shard are larger than its parents'. A shard that an answer of [`Self::put`] has named appears in
/// [`Self::list_shards`].
#[async_trait]
pub trait VoteStream: Send + Sync + 'static {
    /// All shards that the stream still knows, in the order of their creation. A closed shard whose records have all
    /// left the retention may be missing, although its children name it.
    async fn list_shards(&self) -> Result<Vec<Shard>, PortError>;

    /// Stores one record in the open shard that owns `hash`, and answers once it is durable.
    ///
    /// Records that are put one after the other into one shard keep their order. An adapter may combine the calls of
    /// several lanes in one request. After an error with [`super::Effect::None`] the record is certainly not stored and
    /// never will be.
    async fn put(&self, hash: u128, data: Bytes) -> Result<Stored, PortError>;

    /// Opens a reader of a shard that starts directly after `after`; [`SequenceNumber::ZERO`] is the oldest record.
    async fn reader(
        &self,
        group: Group,
        shard: &ShardId,
        after: SequenceNumber,
    ) -> Result<Box<dyn RecordReader>, PortError>;
}
