//! Settings of the `persist-svc` binary.

use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

use votestream_core::port::Group;
use votestream_process::config::{
    Program, Setting, Values, duration,
    engine::{self, ConsumerConfig, EngineConfig},
    listener, socket_addr, whole,
};
use votestream_server::{Limits, Tls};

/// The binary.
pub const PROGRAM: Program = Program {
    name: "persist-svc",
    about: "Stores the last vote of each user in each poll, and keeps exact tallies.",
    settings: &[
        &[Setting::optional("listen", "ADDR", "Address at which gRPC health is answered [default: nowhere].")],
        listener::LIMITS,
        listener::TLS,
        engine::ENGINE,
        engine::READING,
        engine::CONSUMER,
        &[
            Setting::new(
                "write-units-per-second",
                "N",
                "0",
                "Most write units per second that this process spends on votes; 0 for no limit.",
            ),
            Setting::new("window-votes-max", "N", "50000", "Votes after which a window is closed."),
            Setting::new("window-linger", "DURATION", "200ms", "How long a window waits for more records."),
            Setting::new(
                "drain",
                "DURATION",
                "25s",
                "How long the process may take after a signal to store the windows it has begun.",
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
    /// Address for gRPC health, if any.
    pub listen: Option<SocketAddr>,
    /// Limits of the connections there.
    pub limits: Limits,
    /// TLS of the connections there.
    pub tls: Option<Tls>,
    /// Stream and store.
    pub engine: EngineConfig,
    /// The group.
    pub consumer: ConsumerConfig,
    /// The operator's limit on write units; `None` for no limit.
    pub write_units_per_second: Option<NonZeroU32>,
    /// How long the drain may take.
    pub drain: Duration,
}

impl Settings {
    /// Reads the settings of [`PROGRAM`].
    pub fn read(values: &mut Values) -> Option<Self> {
        let listen = values.optional("listen", socket_addr);
        let limits = listener::limits(values);
        let tls = listener::tls(values);
        let engine = EngineConfig::read(values);
        let consumer = ConsumerConfig::read(values, Group::Persist);
        let write_units_per_second = values.get("write-units-per-second", engine::write_units);
        let votes_max = values.get("window-votes-max", whole(1..=1_000_000usize));
        let linger = values.get("window-linger", duration(Duration::ZERO..=Duration::from_secs(10)));
        let drain = values.get("drain", duration(engine::DRAINS));
        let mut consumer = consumer?;
        consumer.group.window.votes_max = votes_max?;
        consumer.group.window.linger = linger?;
        let (drain, write_units_per_second) = (drain?, write_units_per_second?);
        consumer.group.drain = drain;
        Some(Self {
            listen: listen?,
            limits: limits?,
            tls: tls?,
            engine: engine?,
            consumer,
            write_units_per_second,
            drain,
        })
    }
}

#[cfg(test)]
mod tests {
    use votestream_core::consume::group::GroupConfig;
    use votestream_process::config::Refused;

    use super::*;

    fn read(flags: &[&str]) -> Result<Settings, Refused> {
        let mut values = PROGRAM.read(flags.iter().map(Into::into), [])?;
        let settings = Settings::read(&mut values);
        values.finish(settings)
    }

    #[test]
    fn the_defaults_are_those_of_a_distributed_deployment() {
        let (settings, distributed) = (read(&[]).unwrap(), GroupConfig::distributed(Group::Persist));
        let group = GroupConfig { worker_id: distributed.worker_id.clone(), ..settings.consumer.group };
        assert_eq!(format!("{group:?}"), format!("{distributed:?}"));
        assert_eq!(settings.write_units_per_second, None);
    }

    #[test]
    fn a_lease_must_be_renewed_in_time() {
        let Err(Refused::Mistakes(mistakes)) = read(&["--failover=10s", "--renew-every=4s", "--drain=2m"]) else {
            panic!("accepted")
        };
        assert_eq!(mistakes.len(), 2, "{mistakes:#?}");
        assert!(mistakes.iter().any(|mistake| mistake.contains("a third of --failover")), "{mistakes:#?}");
        assert!(read(&["--failover=12s", "--renew-every=4s", "--write-units-per-second=500"]).is_ok());
    }
}
