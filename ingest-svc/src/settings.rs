//! Settings of the `ingest-svc` binary.

use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

use votestream_core::TimeBounds;
use votestream_process::config::{
    Program, Setting, Values, bytes, duration,
    engine::{self, EngineConfig},
    listener, pseudonyms, socket_addr, whole,
};
use votestream_server::Connections;

use crate::IngestConfig;

/// The binary.
pub const PROGRAM: Program = Program {
    name: "ingest-svc",
    about: "Accepts votes over gRPC, gRPC-Web and JSON, and puts them into the vote stream.",
    settings: &[
        &[
            Setting::new("listen", "ADDR", "127.0.0.1:50051", "Address of the service; port 0 picks a free one."),
            listener::CORS_ALLOW_ORIGINS,
            pseudonyms::PSEUDONYM_KEYS,
        ],
        listener::LIMITS,
        listener::IDENTITY,
        listener::TLS,
        listener::CALLS,
        engine::ENGINE,
        &[
            Setting::new("ingest-tasks", "N", "1", "How many ingest processes share the rate of the shards."),
            Setting::new("lane-linger", "DURATION", "20ms", "How long a batch waits for more votes."),
            Setting::new(
                "unsettled-bytes-max",
                "BYTES",
                "64MiB",
                "Most bytes of votes that are not settled yet; further votes wait in the clients.",
            ),
            Setting::new(
                "waiting-bytes-max",
                "BYTES",
                "64MiB",
                "Most bytes of large messages that have arrived in part, and of messages whose client does not read its \
                 answers; each of the two has this limit.",
            ),
            Setting::new("first-message-timeout", "DURATION", "1m", "How long a stream may be open without a message."),
            Setting::new("silence-timeout", "DURATION", "5m", "How long a stream may be silent after a message."),
            Setting::new("drain", "DURATION", "12s", "How long calls may take to end after a signal; at least 10s."),
        ],
        &[listener::ADMIN_ADDR],
        engine::LOGS,
    ],
    others: engine::NAMES,
};

/// How long a drain takes after the calls have ended: votes of calls that were cut off are settled within D.
pub const SETTLE_MAX: Duration = TimeBounds::DISTRIBUTED.answer_deadline;

/// Bounds of the time-outs for clients.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3_600);
/// Default drain time.
const DRAIN: Duration = Duration::from_secs(12);
/// ECS kills a task this long after the signal, unless it is configured otherwise.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

const _: () =
    assert!(DRAIN.as_secs() + SETTLE_MAX.as_secs() < STOP_TIMEOUT.as_secs(), "the drain ends before the kill");

/// What the binary needs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Stream and store.
    pub engine: EngineConfig,
    /// How many processes put records.
    pub ingest_tasks: u32,
    /// The service.
    pub ingest: IngestConfig,
}

impl Settings {
    /// Reads the settings of [`PROGRAM`].
    pub fn read(values: &mut Values) -> Option<Self> {
        let listen = values.get("listen", socket_addr);
        let identity = listener::identity(values, listen);
        let origins = listener::cors_allow_origins(values);
        let quotas = listener::quotas(values, identity.as_ref());
        let limits = listener::limits(values);
        let tls = listener::tls(values);
        let keys = pseudonyms::pseudonym_keys(values);
        let engine = EngineConfig::read(values);
        let ingest_tasks = values.get("ingest-tasks", whole(1..=10_000u32));
        let linger = values.get("lane-linger", duration(Duration::ZERO..=Duration::from_secs(1)));
        let unsettled_bytes_max = values.get("unsettled-bytes-max", bytes(8 << 20..=2 << 30));
        let waiting_bytes_max = values.get("waiting-bytes-max", bytes(8 << 20..=2 << 30));
        let first_message_timeout = values.get("first-message-timeout", duration(TIMEOUTS));
        let silence_timeout = values.get("silence-timeout", duration(TIMEOUTS));
        let drain = values.get("drain", duration(TimeBounds::DISTRIBUTED.answer_deadline..=*engine::DRAINS.end()));
        let mut ingest = IngestConfig::distributed();
        ingest.identity = identity?;
        ingest.quotas = quotas?;
        ingest.cors_allow_origins = origins?;
        ingest.pseudonym_keys = keys?;
        ingest.connections = Connections::secured(limits?, tls?);
        ingest.lanes.linger = linger?;
        ingest.unsettled_bytes_max = unsettled_bytes_max?;
        ingest.waiting_bytes_max = waiting_bytes_max?;
        ingest.first_message_timeout = first_message_timeout?;
        ingest.silence_timeout = silence_timeout?;
        ingest.drain = drain?;
        Some(Self { listen: listen?, engine: engine?, ingest_tasks: ingest_tasks?, ingest })
    }
}

#[cfg(test)]
mod tests {
    use votestream_process::config::Refused;

    use super::*;

    fn read(flags: &[&str]) -> Result<Settings, Refused> {
        let mut values = PROGRAM.read(flags.iter().map(Into::into), [])?;
        let settings = Settings::read(&mut values);
        values.finish(settings)
    }

    #[test]
    fn the_defaults_are_those_of_a_distributed_deployment() {
        let (settings, distributed) = (read(&[]).unwrap(), IngestConfig::distributed());
        assert_eq!(settings.ingest.drain, distributed.drain);
        assert_eq!(settings.ingest.drain, DRAIN);
        assert_eq!(settings.ingest.lanes.linger, distributed.lanes.linger);
        assert_eq!(settings.ingest.unsettled_bytes_max, distributed.unsettled_bytes_max);
        assert_eq!(settings.ingest.waiting_bytes_max, distributed.waiting_bytes_max);
        let timeouts = |config: &IngestConfig| (config.first_message_timeout, config.silence_timeout);
        assert_eq!(timeouts(&settings.ingest), timeouts(&distributed));
        assert_eq!(settings.ingest.bounds, TimeBounds::DISTRIBUTED);
        assert_eq!(settings.ingest.pseudonym_keys.active(), None);
        assert_eq!(settings.engine.create_with_shards, None);
    }

    #[test]
    fn wrong_values_are_reported_together() {
        let flags = [
            "--drain=5s",
            "--cors-allow-origins=vote.example",
            "--stream=a/b",
            "--unsettled-bytes-max=1MiB",
            "--pseudonym-keys=/nowhere",
        ];
        let Err(Refused::Mistakes(mistakes)) = read(&flags) else { panic!("accepted") };
        assert_eq!(mistakes.len(), flags.len(), "{mistakes:#?}");
    }
}
