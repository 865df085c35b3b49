//! What was measured, what AWS promises, and what is assumed: every number that a plan uses, with its source.
//!
//! Must never compute a plan. Quotas of accounts are in `plan/quotas.rs`. For a better measurement, only the number here has to change.

/// Votes a second that a shard of 1 MiB/s carries: 16 bytes a vote and 250 a record (bench/report/report.md, "The
/// stored batch": 18.5, 16.1 and 16.0 bytes a vote at 100, 1,000 and 10,000 votes), even with 1,000 records a second,
/// the most that it takes. User ids that are not UUIDs take about as many bytes as they have characters, less what zstd
/// saves.
pub(super) const SHARD_VOTES_PER_SECOND: u64 = 48_000;
/// Half of a shard is left free. If calls fail for some seconds, the votes that waited go through in as many seconds;
/// and two groups that poll a shard read at most twice as fast as votes are planned to be written. Splitting shards
/// takes minutes.
pub(super) const SHARD_HEADROOM: u64 = 2;
/// Two, so that both consumers of a group have work.
pub(super) const SHARDS_MIN: u64 = 2;
/// Bytes that a vote of a UUID takes in the stream, if records are small (bench/report/report.md, "The stored batch").
pub(super) const STREAM_BYTES_PER_VOTE: f64 = 20.0;
/// Records a second that a shard takes (Amazon Kinesis Data Streams Developer Guide, "Quotas and limits").
pub(super) const SHARD_RECORDS_PER_SECOND: u64 = 1_000;
/// Calls of UpdateShardCount for a stream in 24 hours (Amazon Kinesis Data Streams API reference, "UpdateShardCount").
pub(super) const RESHARDINGS_A_DAY: u64 = 10;
/// Records a second of one lane: a batch waits 20 ms (the ingest service's `lane-linger`), and a put is assumed to take
/// 10 ms.
pub(super) const LANE_RECORDS_PER_SECOND: u64 = 33;
/// Groups that read the stream: persist and tally.
pub(super) const GROUPS: u64 = 2;
/// Bytes of one PUT payload unit (Amazon Kinesis Data Streams pricing).
pub(super) const PUT_PAYLOAD_UNIT_BYTES: f64 = 25_000.0;

/// Write units of a vote of a new voter: an INSERT of an item below 1 KB, which `adapters/aws` asserts.
pub(super) const UNITS_PER_NEW_VOTE: u64 = 1;
/// Most write units of a changed vote: an INSERT whose condition fails, and the write that replaces. A process that
/// remembers the voter needs only one, and several changes within a window count as one.
pub(super) const UNITS_PER_CHANGED_VOTE_MAX: u64 = 2;
/// Write units a second that one DynamoDB partition takes.
pub(super) const PARTITION_UNITS_PER_SECOND: u64 = votestream_core::model::poll::PARTITION_WRITES_PER_SECOND;
/// Most buckets that a poll gets.
pub(super) const BUCKETS_MAX: u64 = votestream_core::model::poll::BUCKETS_MAX as u64;
/// Warm write units for each that the votes need. With twice as many partitions as even buckets would fill, and sixteen
/// buckets for each of them, the hottest partition is done within seconds of the others (`plan/spread.rs`).
pub(super) const WARM_FACTOR: u64 = 2;
/// How sure the figures of the hottest partition are: in 19 of 20 cases it is no worse.
pub(super) const SURE_SHARE: f64 = 0.95;
/// Write units a second that a new on-demand table takes at once (Amazon DynamoDB Developer Guide, "Warm throughput").
pub(super) const TABLE_WARM_UNITS_PER_SECOND: u64 = 4_000;
/// Read units a second that it takes at once (the same page).
pub(super) const TABLE_WARM_READ_UNITS_PER_SECOND: f64 = 12_000.0;
/// Write units a second of a table unless the account asks for more (Amazon DynamoDB Developer Guide, "Quotas").
pub(super) const TABLE_QUOTA_UNITS_PER_SECOND: u64 = 40_000;
/// Bytes of a stored vote with a 36-character user id: keys, option, position, times (estimated from the item's
/// attributes).
pub(super) const VOTE_ITEM_BYTES: f64 = 200.0;
/// Bytes that DynamoDB adds to each item for storage (Amazon DynamoDB Developer Guide, "Item sizes and formats").
pub(super) const ITEM_OVERHEAD_BYTES: f64 = 100.0;
/// Bytes of one read unit (the same guide).
pub(super) const READ_UNIT_BYTES: f64 = 4_096.0;
/// Read units of a changed vote: the stored vote is read before it is replaced.
pub(super) const READ_UNITS_PER_CHANGED_VOTE: u64 = 1;
/// Most bytes of items that one query reads (Amazon DynamoDB Developer Guide, "Querying tables").
pub(super) const QUERY_PAGE_BYTES: f64 = 1_048_576.0;
/// Queries of a recount in flight (`BUCKETS_IN_FLIGHT` in `adapters/aws`).
pub(super) const QUERIES_IN_FLIGHT: f64 = 16.0;
/// How long a query takes besides its items. Assumed.
pub(super) const QUERY_SECONDS: f64 = 0.005;
/// Bytes of items a second that one query reads. Assumed.
pub(super) const QUERY_BYTES_PER_SECOND: f64 = 10e6;
/// CPU seconds of a million items of a recount in the AWS SDK. Assumed: a quarter of what it takes to write them.
pub(super) const RECOUNT_CPU_SECONDS_PER_MILLION: f64 = 1.5;

/// How long the stream keeps records, by default in the CDK app, and at most (Kinesis, "Changing the data retention period").
pub(super) const RETENTION_HOURS: u64 = 24;
pub(super) const RETENTION_HOURS_MAX: u64 = 8_760;
/// The stream keeps records for at least so many times as long as persist is behind: an outage comes on top.
pub(super) const RETENTION_FACTOR: f64 = 2.0;

/// Votes a second of one task of the fleet that rehearses with new connections (`deploy/RUNBOOK.md`). Assumed.
pub(super) const FLEET_TASK_VOTES_PER_SECOND: u64 = 5_000;
/// vCPUs of such a task (`deploy/lib/load-stack.ts`).
pub(super) const FLEET_TASK_VCPUS: u64 = 2;

/// vCPUs of an ingest and of a persist task, as the CDK app has them by default.
pub(super) const TASK_VCPUS: u64 = 2;
/// vCPUs of a tally task, by default in the CDK app.
pub(super) const TALLY_TASK_VCPUS: u64 = 1;
/// GB of memory per vCPU of every task.
pub(super) const MEMORY_GB_PER_VCPU: u64 = 2;
/// Two, so that one task may fail or be replaced.
pub(super) const TASKS_MIN: u64 = 2;
/// Part of a task's CPU that is planned for. The rest is for TLS, telemetry, deployments, and slower cores than the
/// measured one.
pub(super) const CPU_SHARE: f64 = 0.6;
/// Most ingest tasks: each shard's dedup table holds 6,000 producers (`DEDUP_ENTRIES_MAX` in
/// `core/src/consume/dedup.rs`), and while all tasks are replaced there are twice as many.
pub(super) const INGEST_TASKS_MAX: u64 = 3_000;

/// CPU seconds of a million unary calls with one vote each, if the service shares its cores with others: 17 to 20, of
/// which tonic takes 12 to 14. With a core of its own the service takes 12 to 16 (bench/README.md, "Before and after").
pub(super) const INGEST_CPU_SECONDS_PER_MILLION_CALLS: f64 = 19.0;
/// CPU seconds of a million votes in streams of 100 a message (the same table).
pub(super) const INGEST_CPU_SECONDS_PER_MILLION_STREAMED: f64 = 0.17;
/// CPU seconds of a million calls for their bytes over TLS between load balancer and task: two small records each way.
/// Assumed.
pub(super) const TLS_CPU_SECONDS_PER_MILLION_CALLS: f64 = 1.0;
/// The same for a million votes in streams, 80 bytes each. Assumed: AES in hardware, a gigabyte a second.
pub(super) const TLS_CPU_SECONDS_PER_MILLION_STREAMED: f64 = 0.1;
/// CPU seconds of a million handshakes (measured on one core with rustls and P-256; 152 with a client certificate).
pub(super) const TLS_CPU_SECONDS_PER_MILLION_HANDSHAKES: f64 = 78.0;
/// Calls that a load balancer sends over one of its connections to a task. Assumed.
pub(super) const CALLS_PER_TASK_CONNECTION: f64 = 100.0;
/// CPU seconds of a million tokens that are checked for the first time, by their algorithm (measured on one core with
/// ring). Each voter brings another one.
pub(super) const TOKEN_CPU_SECONDS_PER_MILLION_HS256: f64 = 2.0;
/// The same for RS256.
pub(super) const TOKEN_CPU_SECONDS_PER_MILLION_RS256: f64 = 15.5;
/// The same for EdDSA.
pub(super) const TOKEN_CPU_SECONDS_PER_MILLION_EDDSA: f64 = 24.0;
/// The same for ES256.
pub(super) const TOKEN_CPU_SECONDS_PER_MILLION_ES256: f64 = 35.0;
/// CPU seconds of the puts of a million votes: the AWS SDK takes 1.7 µs for a small record of some 25 votes, 91 µs for
/// 50 kB.
pub(super) const INGEST_CPU_SECONDS_PER_MILLION_PUT: f64 = 0.1;
/// CPU seconds of a million votes in persist and tally together, without the AWS SDK. When DynamoDB takes 5 ms, persist
/// takes 0.6 more than the SDK alone, and tally takes 0.1 (bench/report/report.md). Windows of few votes cost more, so
/// this is nearly twice as much.
pub(super) const CONSUMER_CPU_SECONDS_PER_MILLION: f64 = 1.17;
/// CPU seconds of a million items in the AWS SDK at 25 statements a `BatchExecuteStatement` (measured against a server
/// that answers at once, without TLS).
pub(super) const SDK_CPU_SECONDS_PER_MILLION_ITEMS: f64 = 6.1;
/// Most items of the SDK for a changed vote: a failed INSERT, a read, a write. The read is assumed to cost as much as a
/// write.
pub(super) const ITEMS_PER_CHANGED_VOTE_MAX: u64 = 3;
/// Items in flight of one persist task: 64 calls of 25 (`CALLS_IN_FLIGHT`, `STATEMENTS_MAX` in `adapters/aws`).
pub(super) const ITEMS_IN_FLIGHT: u64 = 64 * 25;
/// How long DynamoDB is assumed to take for a call of 25.
pub(super) const DYNAMODB_CALL_SECONDS: f64 = 0.010;

/// From the last vote to a complete table, if persist keeps up: window linger, idle commit, polling, one write.
/// Assumed.
pub(super) const PERSIST_LAG_SECONDS: f64 = 2.0;
/// Windows a second of a shard in persist (its `window-linger` of 200 ms).
pub(super) const PERSIST_WINDOWS_PER_SECOND: f64 = 5.0;
/// Flushes a second of a shard in tally (its `flush-interval` of 1 s).
pub(super) const TALLY_FLUSHES_PER_SECOND: f64 = 1.0;
/// Lease renewals a second of a shard and group (`renew-every` of 3 s).
pub(super) const RENEWALS_PER_SECOND: f64 = 1.0 / 3.0;
/// Bytes of a tally row besides its options: keys, position and epoch, with their names. Estimated.
pub(super) const TALLY_ROW_BYTES: u64 = 200;
/// Bytes of an option in it: its id of some 16 bytes, the prefix of its attribute, its count. Estimated.
pub(super) const TALLY_OPTION_BYTES: u64 = 26;
/// Options that one write adds to. With more, the row is read and written again (`ADDED_BY_EXPRESSION_MAX` in
/// `adapters/aws`).
pub(super) const TALLY_OPTIONS_ADDED_MAX: u64 = 250;
/// Bytes of a shard row without its dedup table. Estimated.
pub(super) const SHARD_ROW_BYTES: u64 = 500;
/// Bytes of one producer in it (`ENTRY_BYTES` in `adapters/aws`).
pub(super) const PRODUCER_BYTES: u64 = 36;
/// Bytes of a write unit. One is counted for every 1 KB of the whole item, even if one attribute changes (Amazon DynamoDB
/// Developer Guide, "Read and write operations").
pub(super) const WRITE_UNIT_BYTES: u64 = 1_024;

/// New connections a second of one load balancer capacity unit (Elastic Load Balancing pricing).
pub(super) const LCU_CONNECTIONS_PER_SECOND: u64 = 25;
/// Connections that are open in a minute, of one unit (the same page).
pub(super) const LCU_OPEN_CONNECTIONS: u64 = 3_000;
/// Most units that one Application Load Balancer may have reserved (Quotas for your Application Load Balancers).
pub(super) const LCU_RESERVED_MAX: u64 = 15_000;
/// Fewest units that can be reserved (aws-cdk-lib refuses less). A new load balancer is assumed to take a load below it.
pub(super) const LCU_RESERVED_MIN: u64 = 100;
/// Most public load balancers that the CDK app makes (`LOAD_BALANCERS_MAX` in `deploy/lib/config.ts`).
pub(super) const LOAD_BALANCERS_MAX: u64 = 10;
/// The load balancers of operators and of relays.
pub(super) const LOAD_BALANCERS_APART: u64 = 2;
/// After so many seconds a load balancer closes a connection without a call, by default (Application Load Balancers,
/// "Connection idle timeout").
pub(super) const BALANCER_IDLE_SECONDS: u64 = 60;
/// From a vote's arrival at the load balancer to its answer: the linger of a lane, a put, and a queue. Assumed.
pub(super) const CALL_SECONDS: f64 = 0.1;
/// Votes a second of one relay's connection. Assumed.
pub(super) const RELAY_VOTES_PER_SECOND: u64 = 10_000;
/// Requests a second of a CloudFront distribution unless the account asks for more (Amazon CloudFront Developer Guide,
/// "Quotas").
pub(super) const CLOUDFRONT_REQUESTS_PER_SECOND: u64 = 250_000;
/// Bytes an hour of one load balancer capacity unit (the same page).
pub(super) const LCU_BYTES_PER_HOUR: f64 = 1e9;
/// Bytes of a vote in a unary call of its own over TLS, with its answer. Assumed; the handshake is not included, since
/// it counts as a connection.
pub(super) const CALL_BYTES: f64 = 1_000.0;
/// Bytes of a vote in a stream of many a message: two ids of some 40 bytes and the framing.
pub(super) const STREAMED_VOTE_BYTES: f64 = 80.0;

/// The AWS sample, as published, for 20,000 votes/s during 10 minutes.
pub(super) mod sample {
    /// Its rule for shards: one record a vote.
    pub(crate) const SHARD_VOTES_PER_SECOND: u64 = 1_000;
    /// Each vote is written twice.
    pub(crate) const UNITS_PER_VOTE: u64 = 2;
    /// Shards of the published run.
    pub(crate) const SHARDS: u64 = 20;
    /// Write units a second of the published run at batch size 25.
    pub(crate) const UNITS_PER_SECOND: u64 = 18_000;
    /// Write units a second of its interim results with a window of 5 s.
    pub(crate) const INTERIM_UNITS_PER_SECOND: f64 = 52.0;
}
