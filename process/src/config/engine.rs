//! Settings of the stream and the store, which every service has, and of consumer groups.
//!
//! Must never name an adapter: binaries turn this into what their adapter wants.

use std::{num::NonZeroU32, ops::RangeInclusive, time::Duration};

use votestream_core::{consume::group::GroupConfig, port::Group};

use super::{Setting, Values, duration, one_of, switch, text, whole};

/// Settings of every service.
pub const ENGINE: &[Setting] = &[
    Setting::new("stream", "NAME", "votestream", "Name of the Kinesis stream, or its ARN, also of another account."),
    Setting::new("table-prefix", "PREFIX", "votestream-", "Start of the names of the DynamoDB tables."),
    Setting::switch("create-tables", "For development only: create the stream and the tables that do not exist."),
    Setting::new("shards", "N", "4", "Number of shards of the stream, if --create-tables creates it."),
];

/// Setting of everything that reads the stream.
pub const READING: &[Setting] = &[Setting::new(
    "consumer",
    "KIND",
    "polling",
    "How the stream is read: polling, or fan-out (faster, and AWS bills it).",
)];

/// Settings of services that read the stream as a group, besides [`READING`].
pub const CONSUMER: &[Setting] = &[
    Setting::optional(
        "worker-id",
        "ID",
        "Name of this process in its group; no other running process may have it [default: random].",
    ),
    Setting::new(
        "failover",
        "DURATION",
        "10s",
        "How long a lease must not be renewed before another process takes it.",
    ),
    Setting::new("renew-every", "DURATION", "3s", "How often a lease is renewed; at most a third of --failover."),
    Setting::new("sync-every", "DURATION", "2s", "How often this process looks for shards and leases."),
];

/// Settings of every process.
pub const LOGS: &[Setting] = &[Setting::new(
    "log-format",
    "FORMAT",
    "text",
    "Format of logs: text, or json (one object per line, with trace ids).",
)];

/// Names of the settings of all services: they may share one environment.
pub const NAMES: &[&str] = &[
    "listen",
    "admin-addr",
    "cors-allow-origins",
    "frame-ancestors",
    "connections-max",
    "connections-per-address-max",
    "auth",
    "auth-revoked",
    "calls-per-voter",
    "calls-per-credential",
    "calls-per-address",
    "trusted-proxies",
    "first-request-timeout",
    "message-timeout",
    "idle-timeout",
    "stalled-write-timeout",
    "answer-bytes-max",
    "request-bytes-max",
    "auth",
    "auth-revoked",
    "tls-cert",
    "tls-key",
    "tls-client-ca",
    "tls-self-signed",
    "lane-linger",
    "unsettled-bytes-max",
    "waiting-bytes-max",
    "first-message-timeout",
    "silence-timeout",
    "ingest-tasks",
    "pseudonym-keys",
    "consumer",
    "worker-id",
    "failover",
    "renew-every",
    "sync-every",
    "write-units-per-second",
    "window-linger",
    "window-votes-max",
    "flush-interval",
    "audit-log",
    "drain",
];

/// The stream and the tables that a process uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Name of the stream, or its ARN.
    pub stream: String,
    /// Prefix of the names of the tables.
    pub table_prefix: String,
    /// Create the stream (with this many shards) and the tables if they do not exist.
    pub create_with_shards: Option<u32>,
}

impl EngineConfig {
    /// Reads [`ENGINE`].
    pub fn read(values: &mut Values) -> Option<Self> {
        let (stream, table_prefix) = (values.get("stream", stream), values.get("table-prefix", text));
        let (create, shards) = (values.get("create-tables", switch), values.get("shards", whole(1..=10_000u32)));
        Some(Self { stream: stream?, table_prefix: table_prefix?, create_with_shards: create?.then_some(shards?) })
    }
}

/// The name of a stream, or its ARN.
fn stream(value: &str) -> Result<String, String> {
    const EXPECTED: &str = "expected 1 to 128 letters, digits, \"-\", \"_\" and \".\", or \
                            arn:aws:kinesis:REGION:ACCOUNT:stream/NAME";
    let Some(arn) = value.strip_prefix("arn:") else { return text(value).map_err(|_| EXPECTED.into()) };
    let parts: Vec<&str> = arn.splitn(5, ':').collect();
    let valid = match parts[..] {
        [partition, "kinesis", region, account, resource] => {
            [partition, region].iter().all(|part| text(part).is_ok())
                && account.len() == 12
                && account.bytes().all(|digit| digit.is_ascii_digit())
                && resource.strip_prefix("stream/").is_some_and(|name| text(name).is_ok())
        }
        _ => false,
    };
    if valid { Ok(value.into()) } else { Err(EXPECTED.into()) }
}

/// How this process reads the stream.
#[derive(Clone, Debug)]
pub struct ConsumerConfig {
    /// Read by enhanced fan-out instead of polling.
    pub fan_out: bool,
    /// Settings of the consumer group.
    pub group: GroupConfig,
}

/// Reads [`READING`]: whether the stream is read by enhanced fan-out.
pub fn reads_by_fan_out(values: &mut Values) -> Option<bool> {
    values.get("consumer", one_of(&[("polling", false), ("fan-out", true)]))
}

/// Bounds of lease times.
const LEASES: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(300);

impl ConsumerConfig {
    /// Reads [`READING`] and [`CONSUMER`].
    pub fn read(values: &mut Values, group: Group) -> Option<Self> {
        let fan_out = reads_by_fan_out(values);
        let worker_id = values.optional("worker-id", text);
        let (failover, renew_every) =
            (values.get("failover", duration(LEASES)), values.get("renew-every", duration(LEASES)));
        let sync_every = values.get("sync-every", duration(LEASES));
        if let (Some(failover), Some(renew_every)) = (failover, renew_every) {
            values.check(renew_every * 3 <= failover, || {
                format!("--renew-every {renew_every:?} must be at most a third of --failover {failover:?}")
            });
        }
        let mut group = GroupConfig::distributed(group);
        if let Some(worker_id) = worker_id? {
            group.worker_id = worker_id;
        }
        (group.failover, group.renew_every, group.sync_every) = (failover?, renew_every?, sync_every?);
        Some(Self { fan_out: fan_out?, group })
    }
}

/// Reads a limit of write units per second; 0 means no limit.
///
/// # Errors
///
/// If it is not a whole number.
pub fn write_units(text: &str) -> Result<Option<NonZeroU32>, String> {
    whole(0..=u32::MAX)(text).map(NonZeroU32::new)
}

/// Bounds of the drain time: ECS kills a process at most 120 seconds after it has asked it to stop.
pub const DRAINS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(115);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_a_name_or_an_arn() {
        for valid in [
            "votes",
            "votes_2.eu-west-1",
            "arn:aws:kinesis:eu-west-1:123456789012:stream/votes",
            "arn:aws-us-gov:kinesis:us-gov-west-1:123456789012:stream/votes.2",
        ] {
            assert_eq!(stream(valid).as_deref(), Ok(valid));
        }
        for wrong in [
            "",
            "vo tes",
            "stream/votes",
            "arn:aws:dynamodb:eu-west-1:123456789012:table/votes",
            "arn:aws:kinesis:eu-west-1:123456789012:votes",
            "arn:aws:kinesis:eu-west-1:123456789012:stream/",
            "arn:aws:kinesis:eu-west-1:123456789012:stream/votes/consumer/group:1",
            "arn:aws:kinesis::123456789012:stream/votes",
            "arn:aws:kinesis:eu-west-1:12345678901x:stream/votes",
        ] {
            assert!(stream(wrong).unwrap_err().contains("stream/NAME"), "{wrong}");
        }
    }
}
