//! The vote stream: a log in shards that several groups read.

use async_trait::async_trait;
use bytes::Bytes;

use super::{Group, PortError};
use crate::{HashRange, SequenceNumber, ShardId, Timestamp};

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
    /// When it arrived at the stream: the same at every reading.
    pub arrived_at: Timestamp,
    /// Partition key under which it was put.
    pub partition_key: String,
    /// What was put.
    pub data: Bytes,
}

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// Records in ascending order, directly after those read before; none is ever skipped. Empty if there was none within
    /// the time that the engine waits.
    Records(Vec<Record>),
    /// The shard is closed and everything in it has been read.
    ShardEnd,
    /// Records after the starting point have left the stream's retention: reading on would lose votes.
    Expired,
}

/// Reads one shard from one starting point on.
#[async_trait]
pub trait RecordReader: Send {
    /// The next records. Waits a bounded time for one to come. After an error the reader may be used again: nothing was
    /// skipped.
    async fn next(&mut self) -> Result<ReadOutcome, PortError>;
}

/// A durable stream in shards.
///
/// Contract, beyond what the methods say: the open shards own every hash exactly once. A child shard's sequence numbers are
/// larger than its parents'. A shard that [`Self::put`] has named appears in [`Self::list_shards`].
#[async_trait]
pub trait VoteStream: Send + Sync + 'static {
    /// All shards that the stream still knows, in the order of their creation; parents may be missing once they have expired.
    async fn list_shards(&self) -> Result<Vec<Shard>, PortError>;

    /// Stores one record in the open shard that owns `hash`, and answers once it is durable.
    ///
    /// Records put one after the other into one shard keep their order. An adapter may gather the calls of several lanes
    /// into one request. With [`super::Effect::None`] the record is certainly not stored and never will be.
    async fn put(&self, hash: u128, data: Bytes) -> Result<Stored, PortError>;

    /// Opens a reader of a shard that starts directly after `after`; [`SequenceNumber::ZERO`] is the oldest record.
    async fn reader(
        &self,
        group: Group,
        shard: &ShardId,
        after: SequenceNumber,
    ) -> Result<Box<dyn RecordReader>, PortError>;
}
