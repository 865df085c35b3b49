//! Settings of the `tally-svc` binary.

use std::{net::SocketAddr, time::Duration};

use votestream_core::port::Group;
use votestream_process::config::{
    Program, Setting, Values, duration,
    engine::{self, ConsumerConfig, EngineConfig},
    listener, pseudonyms, socket_addr,
};
use votestream_server::{AuditTarget, Connections};

use crate::TallyConfig;

/// The binary.
pub const PROGRAM: Program = Program {
    name: "tally-svc",
    about: "Counts votes as fast as they come in, and serves polls, interim and final results. For records that the stream \
            has dropped before they were counted, see tally-svc give-up --help.",
    settings: &[
        &[
            Setting::new("listen", "ADDR", "127.0.0.1:50052", "Address of the service; port 0 picks a free one."),
            listener::CORS_ALLOW_ORIGINS,
            Setting::optional(
                "frame-ancestors",
                "ORIGINS",
                "Pages that may show this one in a frame, with commas between, such as https://show.example.",
            ),
            pseudonyms::PSEUDONYM_KEYS,
            listener::AUDIT_LOG,
        ],
        listener::LIMITS,
        listener::IDENTITY,
        listener::TLS,
        listener::CALLS,
        engine::ENGINE,
        engine::READING,
        engine::CONSUMER,
        &[
            Setting::new(
                "flush-interval",
                "DURATION",
                "1s",
                "How long votes are counted in memory before the sums are written.",
            ),
            Setting::new(
                "drain",
                "DURATION",
                "25s",
                "How long the process may take after a signal to end calls and write the last sums.",
            ),
        ],
        &[listener::ADMIN_ADDR],
        engine::LOGS,
    ],
    others: engine::NAMES,
};

/// What the binary needs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Stream and store.
    pub engine: EngineConfig,
    /// Read by enhanced fan-out instead of polling.
    pub fan_out: bool,
    /// Where it is written who administers. Not opened yet: asking for help must not lock a file.
    pub audit_log: Option<AuditTarget>,
    /// The service.
    pub tally: TallyConfig,
    /// How long the drain may take.
    pub drain: Duration,
}

impl Settings {
    /// Reads the settings of [`PROGRAM`].
    pub fn read(values: &mut Values) -> Option<Self> {
        let listen = values.get("listen", socket_addr);
        let identity = listener::identity(values, listen);
        let origins = listener::cors_allow_origins(values);
        let ancestors = values.optional("frame-ancestors", str::parse);
        let quotas = listener::quotas(values, identity.as_ref());
        let limits = listener::limits(values);
        let tls = listener::tls(values);
        let keys = pseudonyms::pseudonym_keys(values);
        let audit_log = listener::audit_log(values);
        let engine = EngineConfig::read(values);
        let consumer = ConsumerConfig::read(values, Group::Tally);
        let flush_interval = values.get("flush-interval", duration(Duration::ZERO..=Duration::from_secs(60)));
        let drain = values.get("drain", duration(engine::DRAINS));
        let ConsumerConfig { fan_out, mut group } = consumer?;
        group.drain = drain?;
        let tally = TallyConfig {
            group,
            flush_interval: flush_interval?,
            identity: identity?,
            quotas: quotas?,
            cors_allow_origins: origins?,
            frame_ancestors: ancestors?.unwrap_or_default(),
            pseudonym_key: keys?.active(),
            connections: Connections::secured(limits?, tls?),
            ..TallyConfig::distributed()
        };
        Some(Self { listen: listen?, engine: engine?, fan_out, audit_log: audit_log?, tally, drain: drain? })
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
        let (settings, distributed) = (read(&[]).unwrap(), TallyConfig::distributed());
        assert_eq!(settings.tally.flush_interval, distributed.flush_interval);
        assert_eq!(settings.tally.group.bounds, distributed.group.bounds);
        assert_eq!(settings.tally.pseudonym_key, distributed.pseudonym_key);
        assert!(settings.drain > distributed.drain, "calls end before the whole drain does");
        assert_eq!(settings.audit_log, None);
        let target = |text: &str| read(&["--audit-log", text]).unwrap().audit_log.unwrap();
        assert_eq!((target("-"), target("a/b")), (AuditTarget::Stdout, AuditTarget::File("a/b".into())));
    }

    #[test]
    fn wrong_values_are_reported_together() {
        let Err(Refused::Mistakes(mistakes)) =
            read(&["--flush-interval=2h", "--consumer=kcl", "--listen=x", "--pseudonym-keys=/nowhere"])
        else {
            panic!("accepted")
        };
        assert_eq!(mistakes.len(), 4, "{mistakes:#?}");
    }
}
