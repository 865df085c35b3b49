//! tally-svc: counts votes as fast as they come in, and serves polls, interim results and final results.
//!
//! Owns the sums of the `tally` group, the APIs `PollService` and `ResultsService`, and the moment at which a result
//! becomes final. Must never compute a final result from anything but the `persist` rows and tallies in the stores.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests read the clocks of their own"))]

mod acts;
mod applier;
mod cache;
mod convert;
mod counters;
mod events;
mod finalizer;
pub mod give_up;
mod idle;
mod json;
mod polls;
mod recount;
mod results;
pub mod settings;
mod snapshot;
mod status;
#[cfg(test)]
mod testing;
mod viewer;

use std::{
    future::{Future, ready},
    sync::Arc,
    time::Duration,
};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use votestream_core::{
    KeyId,
    consume::group::{self, GroupConfig},
    port::{Group, Ports},
};
use votestream_proto::v1::{
    poll_service_server::{self, PollServiceServer},
    results_service_server::{self, ResultsServiceServer},
};
use votestream_server::{
    AuditLog, Connections, CorsOrigins, Drain, Identity, Part, Quotas, Running, ServiceError, Surface,
    identity::{Action, Need, Needs},
};

pub use applier::TallyAppliers;
pub use finalizer::Finalizer;
pub use polls::new_poll;
pub use votestream_web::FrameAncestors;

use crate::{events::Feeds, polls::Polls, results::Results, snapshot::Snapshots};

/// How often an embedded deployment writes its sums.
const FLUSH_INTERVAL: Duration = Duration::from_millis(250);
/// How often a distributed deployment writes its sums. Each write costs one write unit per poll and shard.
const FLUSH_INTERVAL_DISTRIBUTED: Duration = Duration::from_secs(1);
/// How old an interim result may be.
const CACHE_LIFE: Duration = Duration::from_millis(100);
/// How long running calls may take after the service was told to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// Largest request: a poll with the most options, the longest ids and titles takes 650 KB.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Settings of the tally service.
#[derive(Clone, Debug)]
pub struct TallyConfig {
    /// Leases, windows and time limits of the `tally` group.
    pub group: GroupConfig,
    /// How long a window collects votes before its sums are written.
    pub flush_interval: Duration,
    /// How old interim results may be. However many callers ask, each poll is read from the stores at most once in this
    /// time.
    pub cache_life: Duration,
    /// How long running calls may take after the service was told to stop.
    pub drain: Duration,
    /// How old the last record of a shard may become before the shard gets a record without votes.
    pub idle_after: Duration,
    /// How callers are told apart; off by default.
    pub identity: Identity,
    /// How often others may call; not limited by default.
    pub quotas: Quotas,
    /// Id of the key that makes pseudonyms of the users of new polls; `None` if they are stored as they are.
    pub pseudonym_key: Option<KeyId>,
    /// Where it is written who administers; off by default.
    pub audit: AuditLog,
    /// Web pages that may call from a browser; none by default.
    pub cors_allow_origins: CorsOrigins,
    /// Connections of this process, over all its listeners.
    pub connections: Connections,
    /// Pages that may show ours in a frame; none by default.
    pub frame_ancestors: FrameAncestors,
    /// Whether votes come in by this process, too.
    pub takes_votes: bool,
}

impl TallyConfig {
    /// Settings for one process on one machine.
    pub fn one_machine() -> Self {
        Self {
            group: GroupConfig::one_machine(Group::Tally),
            flush_interval: FLUSH_INTERVAL,
            cache_life: CACHE_LIFE,
            drain: DRAIN,
            idle_after: idle::AFTER,
            identity: Identity::default(),
            quotas: Quotas::default(),
            pseudonym_key: None,
            audit: AuditLog::default(),
            cors_allow_origins: CorsOrigins::default(),
            connections: Connections::default(),
            frame_ancestors: FrameAncestors::default(),
            takes_votes: false,
        }
    }

    /// Settings for several processes, and engines behind a network. Sums are written less often, because each write
    /// costs.
    pub fn distributed() -> Self {
        Self {
            group: GroupConfig::distributed(Group::Tally),
            flush_interval: FLUSH_INTERVAL_DISTRIBUTED,
            ..Self::one_machine()
        }
    }
}

/// What the callers of each method need for some poll. The handlers check for which.
const NEEDS: Needs = &[
    ("/votestream.v1.PollService/CreatePoll", Need::Some(Action::Manage)),
    ("/votestream.v1.PollService/ClosePoll", Need::Some(Action::Manage)),
    ("/votestream.v1.PollService/GetPoll", Need::Some(Action::Read)),
    ("/votestream.v1.PollService/ListPolls", Need::Some(Action::Read)),
    ("/votestream.v1.ResultsService/GetInterimResults", Need::Some(Action::Read)),
    ("/votestream.v1.ResultsService/WatchInterimResults", Need::Some(Action::Read)),
    ("/votestream.v1.ResultsService/GetFinalResults", Need::Some(Action::Read)),
    ("/votestream.v1.ResultsService/Recount", Need::Some(Action::Manage)),
    ("/votestream.v1.ResultsService/ReleaseResults", Need::Some(Action::Manage)),
];

/// The service, before it is on a port.
pub struct Tally {
    polls: Arc<Polls>,
    results: Arc<Results>,
    feeds: Arc<Feeds>,
    frame_ancestors: FrameAncestors,
    takes_votes: bool,
    finalizer: Arc<Finalizer>,
    ports: Ports,
    group: GroupConfig,
    idle_after: Duration,
}

impl Tally {
    /// Makes the service ready. Calls that wait or watch end once `serving` is cancelled.
    pub fn new(config: &TallyConfig, ports: Ports, serving: CancellationToken) -> Self {
        match config.pseudonym_key {
            Some(key) => tracing::info!(%key, "users of new polls are stored under pseudonyms"),
            None => tracing::info!("user ids of new polls are stored as they are"),
        }
        let mut group = config.group.clone();
        group.window.linger = config.flush_interval;
        let bounds = group.bounds;

        let snapshots = Arc::new(Snapshots::new(ports.clone(), bounds, config.cache_life));
        let finalizer = Arc::new(Finalizer::new(ports.clone(), bounds));
        let polls = Polls::new(ports.clone(), bounds, config.pseudonym_key, finalizer.clone(), snapshots.clone());
        let feeds = Feeds::new(snapshots.clone(), ports.clock.clone(), serving.clone());
        let results = Results::new(ports.clone(), finalizer.clone(), snapshots, serving);
        Self {
            feeds,
            frame_ancestors: config.frame_ancestors.clone(),
            takes_votes: config.takes_votes,
            polls: Arc::new(polls.audited(config.audit.clone())),
            results: Arc::new(results.audited(config.audit.clone())),
            finalizer,
            ports,
            group,
            idle_after: config.idle_after,
        }
    }

    fn results_server(&self) -> ResultsServiceServer<Results> {
        ResultsServiceServer::from_arc(self.results.clone()).max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    /// What it puts on a port.
    pub fn part(&self) -> Part {
        let polls = PollServiceServer::from_arc(self.polls.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
        let api = json::Api {
            polls: self.polls.clone(),
            results: self.results.clone(),
            feeds: self.feeds.clone(),
            takes_votes: self.takes_votes,
        };
        Part {
            names: &[poll_service_server::SERVICE_NAME, results_service_server::SERVICE_NAME],
            grpc: Routes::new(polls).add_service(self.results_server()),
            needs: NEEDS,
            json: json::routes(Arc::new(api)),
            open: votestream_web::routes(&self.frame_ancestors),
            acts: Some(acts::of_request),
        }
    }

    /// Counts, and makes results final, until `shutdown`.
    ///
    /// # Errors
    ///
    /// If one of its tasks ends by itself. The others are then stopped, too: a process that does half its work must not
    /// look healthy.
    pub fn work(self, shutdown: CancellationToken) -> Running {
        self.work_beside(Box::pin(ready(Ok(Drain::Complete))), shutdown.child_token())
    }

    /// The same, with another essential task, which does not end before `stop` unless it fails.
    fn work_beside(self, served: Running, stop: CancellationToken) -> Running {
        Box::pin(self.work_until(served, stop))
    }

    async fn work_until(self, served: Running, stop: CancellationToken) -> Result<Drain, ServiceError> {
        let Self { finalizer, ports, group, idle_after, .. } = self;
        let appliers = Arc::new(TallyAppliers::new(ports.tallies.clone()));
        let idle_ports = ports.clone();
        let (grouped, served, finalized, kept) = tokio::join!(
            essential("the tally group", &stop, async {
                group::run(group, ports, appliers, stop.clone())
                    .await
                    .map_err(|error| ServiceError::task("the tally group", error))
            }),
            served,
            essential("the finalizer", &stop, async {
                finalizer.run(stop.clone()).await;
                Ok(Drain::Complete)
            }),
            essential("the care of idle shards", &stop, async {
                idle::run(&idle_ports, idle_after, stop.clone()).await;
                Ok(Drain::Complete)
            }),
        );
        Ok(grouped?.and(served?).and(finalized?).and(kept?))
    }
}

impl TallyConfig {
    /// A port with these parts, to the callers whom these settings let in.
    pub fn surface(&self, parts: impl IntoIterator<Item = Part>) -> Surface {
        Surface::new(parts)
            .for_pages_of(self.cors_allow_origins.clone())
            .behind(self.identity.clone())
            .limited(self.quotas.clone())
            .audited(self.audit.clone())
    }
}

/// Runs the `tally` group, a server of its own and the finalizer until `shutdown`.
///
/// # Errors
///
/// As [`Tally::work`], and if the server ends by itself.
pub fn run(config: TallyConfig, ports: Ports, listener: TcpListener, shutdown: CancellationToken) -> Running {
    let stop = shutdown.child_token();
    let tally = Tally::new(&config, ports, stop.clone());
    let (surface, front) = (config.surface([tally.part()]), tally.results_server());
    let until = stop.clone();
    let served = Box::pin(async move {
        let TallyConfig { connections, drain, .. } = config;
        let serving = votestream_server::serve(surface, front, listener, &connections, until.clone(), drain);
        essential("the gRPC server", &until, serving).await
    });
    tally.work_beside(served, stop)
}

/// Runs an essential task. When it ends, the other tasks are told to stop.
async fn essential(
    name: &'static str,
    stop: &CancellationToken,
    task: impl Future<Output = Result<Drain, ServiceError>>,
) -> Result<Drain, ServiceError> {
    let ended = task.await;
    if stop.is_cancelled() {
        return ended;
    }
    stop.cancel();
    ended.and(Err(ServiceError::task(name, "it stopped without being told to")))
}
