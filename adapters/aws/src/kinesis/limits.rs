//! What Kinesis Data Streams allows.
//!
//! Owns the numbers and names where each comes from. Must never be relied on to be enforced by a stand-in: most enforce few of
//! them. Sources: [Quotas] is <https://docs.aws.amazon.com/streams/latest/dev/service-sizes-and-limits.html>, an operation's
//! name stands for its page in the API reference.
//!
//! [Quotas]: https://docs.aws.amazon.com/streams/latest/dev/service-sizes-and-limits.html

use std::time::Duration;

/// Most records of one PutRecords call. Source: PutRecords.
pub const PUT_RECORDS_MAX: usize = 500;
/// Most bytes of one PutRecords call, partition keys included: 5 MiB in the older documentation and in stand-ins, 10 MiB in
/// the newer. Source: PutRecords.
pub const PUT_BYTES_MAX: usize = 5 << 20;
/// Largest record: data and partition key, unless the stream was configured for more. Source: PutRecords.
pub const RECORD_BYTES_MAX: usize = 1 << 20;
/// What one shard takes in a second, in bytes. Source: Quotas.
pub const SHARD_WRITE_BYTES_PER_SECOND: usize = 1 << 20;
/// What one shard takes in a second, in records. Source: Quotas.
pub const SHARD_WRITE_RECORDS_PER_SECOND: usize = 1_000;
/// What all GetRecords calls on one shard may return in a second. Source: Quotas.
pub const SHARD_READ_BYTES_PER_SECOND: usize = 2 << 20;
/// GetRecords calls on one shard in a second, over all readers. Source: GetRecords.
pub const SHARD_READS_PER_SECOND: u32 = 5;
/// Most records of one GetRecords call. Source: GetRecords.
pub const GET_RECORDS_MAX: i32 = 10_000;
/// How soon a consumer may subscribe to the same shard again; earlier it is refused. Source: SubscribeToShard.
pub const RESUBSCRIBE_AFTER: Duration = Duration::from_secs(5);
/// Most shards of one page. Source: ListShards.
pub const LIST_SHARDS_PAGE: i32 = 1_000;
