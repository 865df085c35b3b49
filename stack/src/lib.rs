//! The three services in one process, over any engines.
//!
//! Owns their composition and the order in which they stop: ingest first, so that no vote is accepted that the others
//! can no longer process. Must never know how a service or an engine works. Must never open an engine: the owner of the
//! ports closes it afterwards.

use std::{future::Future, io};

use futures::future::{BoxFuture, FutureExt, select_all};
use tokio::{
    net::TcpListener,
    task::{JoinError, JoinHandle},
};
use tokio_util::sync::CancellationToken;
use votestream_core::{PseudonymKeys, port::Ports};
use votestream_ingest::{Ingest, IngestConfig};
use votestream_persist::PersistConfig;
use votestream_server::{AuditLog, Connections, CorsOrigins, Drain, Identity, Quotas, ServiceError};
use votestream_tally::{Tally, TallyConfig};

pub use votestream_tally::FrameAncestors;

/// How a service ended.
pub type Ended = Result<Drain, ServiceError>;

/// A service that has not been started.
pub type Work = Box<dyn FnOnce() -> BoxFuture<'static, Ended> + Send>;

/// Runs a service on its own threads. The first argument is the service's name.
pub type Elsewhere = fn(&'static str, Work) -> BoxFuture<'static, io::Result<Ended>>;

/// Where the stack serves.
#[derive(Debug)]
pub enum Listeners {
    /// Everything on one.
    One(TcpListener),
    /// Votes on one, polls and results on the other, as the services do that run as processes of their own.
    Apart {
        /// For votes.
        ingest: TcpListener,
        /// For polls and results.
        results: TcpListener,
    },
}

/// Settings of the three services.
#[derive(Clone, Debug)]
pub struct StackConfig {
    /// Settings of ingest.
    pub ingest: IngestConfig,
    /// Settings of persist.
    pub persist: PersistConfig,
    /// Settings of tally.
    pub tally: TallyConfig,
    /// Runs persist elsewhere than on the runtime of the other services. Persist stores votes that were acknowledged
    /// before, and must not delay new votes.
    pub persist_elsewhere: Option<Elsewhere>,
}

impl StackConfig {
    /// Settings for engines on this machine.
    pub fn one_machine() -> Self {
        Self {
            ingest: IngestConfig::one_machine(),
            persist: PersistConfig::one_machine(),
            tally: TallyConfig { takes_votes: true, ..TallyConfig::one_machine() },
            persist_elsewhere: None,
        }
    }

    /// Counts the clients of all listeners together.
    #[must_use]
    pub fn with_connections(mut self, connections: Connections) -> Self {
        self.ingest.connections = connections.clone();
        self.tally.connections = connections;
        self
    }

    /// Lets only those call whom `identity` lets in.
    #[must_use]
    pub fn with_identity(mut self, identity: Identity) -> Self {
        self.ingest.identity = identity.clone();
        self.tally.identity = identity;
        self
    }

    /// Counts the calls of all listeners together.
    #[must_use]
    pub fn with_quotas(mut self, quotas: Quotas) -> Self {
        self.ingest.quotas = quotas.clone();
        self.tally.quotas = quotas;
        self
    }

    /// Stores the users of new polls under pseudonyms, by the active one of these keys.
    #[must_use]
    pub fn with_pseudonyms(mut self, keys: PseudonymKeys) -> Self {
        self.tally.pseudonym_key = keys.active();
        self.ingest.pseudonym_keys = keys;
        self
    }

    /// Writes into this log who administers.
    #[must_use]
    pub fn with_audit(mut self, audit: AuditLog) -> Self {
        self.tally.audit = audit;
        self
    }

    /// Lets these pages show the one of the stack in a frame.
    #[must_use]
    pub fn with_frame_ancestors(mut self, ancestors: FrameAncestors) -> Self {
        self.tally.frame_ancestors = ancestors;
        self
    }

    /// Allows web pages of these origins to call.
    #[must_use]
    pub fn with_cors(mut self, origins: CorsOrigins) -> Self {
        self.ingest.cors_allow_origins = origins.clone();
        self.tally.cors_allow_origins = origins;
        self
    }
}

/// Why a service of the stack ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// It failed.
    #[error("the {0} service: {1}")]
    Failed(&'static str, #[source] ServiceError),
    /// It panicked.
    #[error("the {0} service panicked: {1}")]
    Broke(&'static str, #[source] JoinError),
    /// It ended without a reason.
    #[error("the {0} service ended by itself")]
    ByItself(&'static str),
}

struct Service {
    name: &'static str,
    shutdown: CancellationToken,
    task: JoinHandle<Ended>,
}

impl Service {
    fn spawn<F>(name: &'static str, run: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = Ended> + Send + 'static,
    {
        Self::spawn_until(CancellationToken::new(), name, run)
    }

    fn spawn_until<F>(shutdown: CancellationToken, name: &'static str, run: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = Ended> + Send + 'static,
    {
        Self { name, task: tokio::spawn(run(shutdown.clone())), shutdown }
    }

    async fn ended(&mut self) -> Result<Drain, StackError> {
        match (&mut self.task).await {
            Ok(Ok(report)) => Ok(report),
            Ok(Err(error)) => Err(StackError::Failed(self.name, error)),
            Err(error) => Err(StackError::Broke(self.name, error)),
        }
    }
}

/// The running services. If this is dropped without [`Self::stop`], they go on until their runtime ends.
pub struct Stack {
    /// The services, in the order in which they are stopped.
    services: Vec<Service>,
}

impl Stack {
    /// Starts the services.
    pub fn start(ports: &Ports, config: StackConfig, listeners: Listeners) -> Self {
        let StackConfig { ingest: ingest_config, persist: persist_config, tally: tally_config, persist_elsewhere } =
            config;
        let (ingest, tally) = match listeners {
            Listeners::One(listener) => {
                // What is on the port ends when the port does, before persist and the counting of tally.
                let (ports, serving) = (ports.clone(), CancellationToken::new());
                let counts = Tally::new(&tally_config, ports.clone(), serving.clone());
                let results = counts.part();
                let ingest = Service::spawn_until(serving, "ingest", |shutdown| async move {
                    let ingest = Ingest::start(&ingest_config, &ports, shutdown).await?;
                    let surface = tally_config.surface([ingest.part(), results]);
                    ingest.serve(surface, listener).await
                });
                (ingest, Service::spawn("tally", |shutdown| counts.work(shutdown)))
            }
            Listeners::Apart { ingest, results } => {
                let run = votestream_ingest::run;
                let ingest = Service::spawn("ingest", |stop| run(ingest_config, ports.clone(), ingest, stop));
                let run = votestream_tally::run;
                (ingest, Service::spawn("tally", |stop| run(tally_config, ports.clone(), results, stop)))
            }
        };
        let services = vec![
            ingest,
            Service::spawn("persist", |shutdown| {
                let run = votestream_persist::run;
                let ports = ports.clone();
                match persist_elsewhere {
                    None => run(persist_config, ports, shutdown).boxed(),
                    Some(elsewhere) => {
                        let work: Work = Box::new(move || run(persist_config, ports, shutdown).boxed());
                        async move {
                            let ended = elsewhere("votestream-persist", work).await;
                            ended.map_err(|error| ServiceError::task("persist's runtime", error))?
                        }
                        .boxed()
                    }
                }
            }),
            tally,
        ];
        Self { services }
    }

    /// Waits until a service ends by itself, which should not happen. The others go on; [`Self::stop`] stops them.
    pub async fn broken(&mut self) -> StackError {
        let ends: Vec<_> = self.services.iter_mut().map(|service| service.ended().boxed()).collect();
        if ends.is_empty() {
            return std::future::pending().await;
        }
        let (ended, at, others) = select_all(ends).await;
        drop(others);
        // A task that has ended must not be awaited again.
        let service = self.services.remove(at);
        ended.map_or_else(|error| error, |_| StackError::ByItself(service.name))
    }

    /// Stops the services one after the other, each after the one before has drained. Returns `Incomplete` if one of
    /// them could not finish in time. Work for acknowledged votes that is left is done after the next start.
    ///
    /// # Errors
    ///
    /// The first failure. The other services are still stopped.
    pub async fn stop(self) -> Result<Drain, StackError> {
        let mut stopped = Ok(Drain::Complete);
        for mut service in self.services {
            service.shutdown.cancel();
            stopped = match (stopped, service.ended().await) {
                (Ok(before), Ok(report)) => Ok(before.and(report)),
                (Err(first), _) | (Ok(_), Err(first)) => Err(first),
            };
        }
        stopped
    }

    /// Runs until `shutdown` is cancelled, then stops.
    ///
    /// # Errors
    ///
    /// As [`Self::stop`], and if a service ends by itself.
    pub async fn run_until(mut self, shutdown: CancellationToken) -> Result<Drain, StackError> {
        let broken = tokio::select! {
            broken = self.broken() => Some(broken),
            () = shutdown.cancelled() => None,
        };
        let stopped = self.stop().await;
        broken.map_or(stopped, Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &'static str, run: impl Future<Output = Ended> + Send + 'static) -> Service {
        Service::spawn(name, |_| run)
    }

    fn until_told(name: &'static str, ended: impl FnOnce() -> Ended + Send + 'static) -> Service {
        Service::spawn(name, |shutdown| async move {
            shutdown.cancelled().await;
            ended()
        })
    }

    #[tokio::test]
    async fn who_ends_first_is_named_and_the_others_can_be_stopped() {
        let mut stack = Stack {
            services: vec![
                until_told("one", || Ok(Drain::Incomplete)),
                service("two", async { Ok(Drain::Complete) }),
                until_told("three", || Ok(Drain::Complete)),
            ],
        };
        assert_eq!(stack.broken().await.to_string(), "the two service ended by itself");
        assert!(matches!(stack.stop().await, Ok(Drain::Incomplete)));
    }

    #[tokio::test]
    async fn the_first_failure_is_reported_after_all_have_stopped() {
        let (all, mut last) = tokio::sync::oneshot::channel();
        let stack = Stack {
            services: vec![
                until_told("one", || Err(ServiceError::task("its task", "no reason"))),
                until_told("two", || panic!("on purpose")),
                until_told("three", || {
                    assert!(all.send(()).is_ok());
                    Ok(Drain::Complete)
                }),
            ],
        };
        let Err(error) = stack.stop().await else { panic!("stopped well") };
        assert_eq!(error.to_string(), "the one service: its task ended: no reason");
        assert!(last.try_recv().is_ok(), "the last service was not stopped");
    }
}
