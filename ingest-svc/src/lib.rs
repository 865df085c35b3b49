//! ingest-svc: accepts votes over gRPC, gRPC-Web and JSON, and puts them into the vote stream.
//!
//! Owns the admission of votes: validation against the polls, backpressure by bytes, and the answer to each vote. Must
//! never answer for a vote before its lane has settled it. Must never hold more unsettled bytes than configured.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests read the clocks of their own"))]

mod admission;
mod answer;
mod calls;
mod edge;
mod inbound;
mod inflight;
mod json;
mod ledger;
mod refusal;
mod session;
pub mod settings;

pub use admission::{Admission, Crowded};
pub use inflight::Permit;
pub use ledger::{Admitted, Ledger};
pub use refusal::Refused;
pub use session::{Session, Settled};
pub use votestream_server::Caller;

use std::{sync::Arc, time::Duration};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use votestream_core::{
    PseudonymKeys, TimeBounds,
    polls::cache::PollCache,
    port::Ports,
    produce::{LaneConfig, Producer},
};
use votestream_proto::v1::ingest_service_server;
use votestream_server::{
    Connections, CorsOrigins, Identity, Part, Quotas, Running, ServiceError, Surface,
    identity::{Need, Needs},
};

/// Settings of the ingest service.
#[derive(Clone, Debug)]
pub struct IngestConfig {
    /// The protocol's time limits.
    pub bounds: TimeBounds,
    /// Settings of the lanes.
    pub lanes: LaneConfig,
    /// Most bytes of votes, as received, that are not settled yet; fewer while the stream is slow. Further votes wait
    /// in the clients.
    pub unsettled_bytes_max: usize,
    /// Most bytes of messages that wait for their client: large messages wait for their rest, others until the client
    /// reads its answers. The limit applies to each of the two.
    pub waiting_bytes_max: usize,
    /// How long a stream of votes may be open without a message.
    pub first_message_timeout: Duration,
    /// How long a stream of votes may be silent after a message.
    pub silence_timeout: Duration,
    /// How long a single vote waits for room before it is refused with RESOURCE_EXHAUSTED.
    pub unary_patience: Duration,
    /// How long running calls may take to end once shutdown has begun. At least D, so that every vote can be answered.
    pub drain: Duration,
    /// How callers are told apart; off by default.
    pub identity: Identity,
    /// How often others may call; not limited by default.
    pub quotas: Quotas,
    /// Keys of the pseudonyms under which users are stored; none by default. Votes of polls whose key is not among them
    /// are refused.
    pub pseudonym_keys: PseudonymKeys,
    /// Web pages that may call from a browser; none by default.
    pub cors_allow_origins: CorsOrigins,
    /// Connections of this process, over all its listeners.
    pub connections: Connections,
}

impl IngestConfig {
    /// Settings for engines in the same process.
    pub fn one_machine() -> Self {
        let bounds = TimeBounds::ONE_MACHINE;
        Self {
            bounds,
            lanes: LaneConfig::one_machine(),
            unsettled_bytes_max: 64 << 20,
            waiting_bytes_max: 64 << 20,
            first_message_timeout: Duration::from_secs(60),
            silence_timeout: Duration::from_secs(300),
            unary_patience: Duration::from_millis(500),
            drain: bounds.answer_deadline + Duration::from_secs(2),
            identity: Identity::default(),
            quotas: Quotas::default(),
            pseudonym_keys: PseudonymKeys::default(),
            cors_allow_origins: CorsOrigins::default(),
            connections: Connections::default(),
        }
    }

    /// Settings for several processes, and engines behind a network.
    pub fn distributed() -> Self {
        let bounds = TimeBounds::DISTRIBUTED;
        let drain = bounds.answer_deadline + Duration::from_secs(2);
        Self { bounds, lanes: LaneConfig::distributed(), drain, ..Self::one_machine() }
    }
}

/// What the callers of each method need. The votes themselves are judged one by one.
const NEEDS: Needs = &[
    ("/votestream.v1.IngestService/CastVote", Need::Voting),
    ("/votestream.v1.IngestService/CastVotes", Need::Voting),
    ("/votestream.v1.IngestService/StreamVotes", Need::Voting),
];

/// The service, before it is on a port.
pub struct Ingest {
    calls: Arc<calls::Calls>,
    producer: Arc<Producer>,
    connections: Connections,
    drain: Duration,
    shutdown: CancellationToken,
}

impl Ingest {
    /// Makes the service ready. It ends its streams at `shutdown`.
    ///
    /// # Errors
    ///
    /// If the shard map cannot be read.
    pub async fn start(
        config: &IngestConfig,
        ports: &Ports,
        shutdown: CancellationToken,
    ) -> Result<Self, ServiceError> {
        tracing::info!(keys = %config.pseudonym_keys, "pseudonyms");
        let producer = Producer::start(config.lanes, ports.stream.clone(), ports.clock.clone())
            .await
            .map_err(|error| ServiceError::task("reading the shard map", error))?;
        let polls = PollCache::new(ports.polls.clone(), ports.clock.clone(), config.bounds.poll_cache_life);
        let admission = Arc::new(Admission::new(config, producer.clone(), polls, ports.clock.clone()));
        let calls = Arc::new(calls::Calls::new(config, admission, shutdown.clone()));
        Ok(Self { calls, producer, connections: config.connections.clone(), drain: config.drain, shutdown })
    }

    /// What it puts on a port.
    pub fn part(&self) -> Part {
        Part {
            names: &[ingest_service_server::SERVICE_NAME],
            grpc: tonic::service::Routes::new(edge::Edge(self.calls.clone())),
            needs: NEEDS,
            json: json::routes(self.calls.clone()),
            ..Part::default()
        }
    }

    /// Serves the surface, which has this service, on the listener until shutdown. Then finishes the streams, flushes the
    /// lanes, and answers all clients.
    ///
    /// # Errors
    ///
    /// If the listener fails, or a task panicked.
    pub fn serve(self, surface: Surface, listener: TcpListener) -> Running {
        let Self { calls, producer, connections, drain, shutdown } = self;
        Box::pin(async move {
            let served = votestream_server::serve(surface, edge::Edge(calls), listener, &connections, shutdown, drain);
            let report = served.await?;
            // Votes of calls that were cut off are still in the lanes. They are settled within D.
            producer.drain().await;
            Ok(report)
        })
    }
}

/// Serves `IngestService` alone on the listener until shutdown; see [`Ingest::serve`].
///
/// # Errors
///
/// As [`Ingest::start`] and [`Ingest::serve`].
pub fn run(config: IngestConfig, ports: Ports, listener: TcpListener, shutdown: CancellationToken) -> Running {
    Box::pin(async move {
        let ingest = Ingest::start(&config, &ports, shutdown).await?;
        let surface = Surface::new([ingest.part()])
            .for_pages_of(config.cors_allow_origins)
            .behind(config.identity)
            .limited(config.quotas);
        ingest.serve(surface, listener).await
    })
}
