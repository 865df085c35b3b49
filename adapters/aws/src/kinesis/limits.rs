//! Limits of Kinesis Data Streams.
//!
//! Owns the numbers and names the source of each. Do not rely on stand-ins to enforce them: most enforce only a few.
//! Sources: [Quotas] is <https://docs.aws.amazon.com/streams/latest/dev/service-sizes-and-limits.html>; the name of an
//! operation means its page in the API reference.
//!
//! [Quotas]: https://docs.aws.amazon.com/streams/latest/dev/service-sizes-and-limits.html

use std::time::Duration;

/// Most records of one PutRecords call. Source: PutRecords.
pub const PUT_RECORDS_MAX: usize = 500;
/// Most bytes of one PutRecords call, partition keys included. The older documentation and stand-ins say 5 MiB, the
/// newer documentation says 10 MiB. Source: PutRecords.
pub const PUT_BYTES_MAX: usize = 5 << 20;
/// Largest record: data and partition key, unless the stream was configured for more. Source: PutRecords.
pub const RECORD_BYTES_MAX: usize = 1 << 20;
/// Most bytes per second that one shard accepts. Source: Quotas.
pub const SHARD_WRITE_BYTES_PER_SECOND: usize = 1 << 20;
/// Most records per second that one shard accepts. Source: Quotas.
pub const SHARD_WRITE_RECORDS_PER_SECOND: usize = 1_000;
/// Most bytes per second that all GetRecords calls on one shard may return together. Source: Quotas.
pub const SHARD_READ_BYTES_PER_SECOND: usize = 2 << 20;
/// Most GetRecords calls per second on one shard, by all readers together. Source: GetRecords.
pub const SHARD_READS_PER_SECOND: u32 = 5;
/// Most records of one GetRecords call. Source: GetRecords.
pub const GET_RECORDS_MAX: i32 = 10_000;
/// Kinesis refuses a consumer that subscribes to the same shard again within this time. Source: SubscribeToShard.
pub const RESUBSCRIBE_AFTER: Duration = Duration::from_secs(5);
/// Most shards on one page. Source: ListShards.
pub const LIST_SHARDS_PAGE: i32 = 1_000;
