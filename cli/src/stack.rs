//! The whole stack in this process: the three services on the embedded engines.
//!
//! Owns their composition and the order of their end: ingest first, so that no vote is accepted that nobody is left to
//! answer for. Must never know how a service or an engine works.

use std::{
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use futures::future::{BoxFuture, FutureExt, select_all};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use votestream_core::port::Ports;
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions, background};
use votestream_ingest::IngestConfig;
use votestream_persist::PersistConfig;
use votestream_server::{Connections, CorsOrigins, DrainReport, Limits, ServiceError, raise_descriptor_limit};
use votestream_tally::TallyConfig;

use crate::{
    control::Control,
    failure::{Failure, innermost},
};

/// Where the stack stores.
#[derive(Debug)]
pub(crate) enum Storage {
    /// In this directory, which is created.
    Directory(PathBuf),
    /// In a temporary one, which is removed.
    Ephemeral,
}

/// What the stack needs to know.
#[derive(Debug)]
pub(crate) struct StackOptions {
    pub(crate) storage: Storage,
    pub(crate) shards: u32,
    pub(crate) ingest_addr: SocketAddr,
    pub(crate) results_addr: SocketAddr,
    pub(crate) limits: Limits,
    pub(crate) cors_allow_origins: CorsOrigins,
    /// See [`EmbeddedOptions::continue_from_log_time`].
    pub(crate) continue_from_log_time: bool,
}

impl StackOptions {
    /// A temporary stack on free ports of the loopback interface.
    pub(crate) fn ephemeral(shards: u32) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            storage: Storage::Ephemeral,
            shards,
            ingest_addr: any,
            results_addr: any,
            limits: Limits::default(),
            cors_allow_origins: CorsOrigins::default(),
            continue_from_log_time: false,
        }
    }
}

/// A running service.
struct Service {
    name: &'static str,
    shutdown: CancellationToken,
    task: JoinHandle<Result<DrainReport, ServiceError>>,
}

impl Service {
    fn spawn<F>(name: &'static str, run: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = Result<DrainReport, ServiceError>> + Send + 'static,
    {
        let shutdown = CancellationToken::new();
        Self { name, task: tokio::spawn(run(shutdown.clone())), shutdown }
    }

    /// Waits for its end; `None` if it ended well.
    async fn ended(&mut self) -> Option<Failure> {
        match (&mut self.task).await {
            // What is left undone of what was acknowledged is done at the next start.
            Ok(Ok(DrainReport::Complete | DrainReport::Incomplete)) => None,
            Ok(Err(error)) => Some(Failure::failed(format!("the {} service: {error}", self.name))),
            Err(error) => Some(Failure::failed(format!("the {} service broke: {error}", self.name))),
        }
    }
}

/// The running stack.
pub(crate) struct Stack {
    /// Where the ingest service listens.
    pub(crate) ingest_addr: SocketAddr,
    /// Where the results and poll service listens.
    pub(crate) results_addr: SocketAddr,
    /// Where everything is stored.
    pub(crate) directory: PathBuf,
    /// In the order in which they are stopped.
    services: Vec<Service>,
    /// Makes backups.
    control: Option<Control>,
    /// Holds the lock on the directory until every service has ended.
    engine: EmbeddedEngine,
    temporary: Option<TempDir>,
}

impl Stack {
    /// Opens the engines, binds both addresses and starts the services.
    pub(crate) async fn start(options: StackOptions) -> Result<Self, Failure> {
        // The addresses first: a second `up` then fails on them, before it touches the directory of the first.
        let (ingest_listener, ingest_addr) = listen(options.ingest_addr)?;
        let (results_listener, results_addr) = listen(options.results_addr)?;
        let (directory, temporary) = match options.storage {
            Storage::Directory(directory) => (directory, None),
            Storage::Ephemeral => {
                let temporary = tempfile::Builder::new()
                    .prefix("votestream-")
                    .tempdir()
                    .map_err(|error| Failure::failed(format!("cannot create a temporary directory: {error}")))?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        raise_descriptor_limit();
        let embedded = EmbeddedOptions {
            shards: options.shards,
            continue_from_log_time: options.continue_from_log_time,
            ..EmbeddedOptions::default()
        };
        let engine = open(&directory, embedded).await?;
        let control = Control::listen(&directory, engine.backups());
        let ports = engine.ports();
        let connections = Connections::new(options.limits);
        let services = services(&ports, connections, options.cors_allow_origins, ingest_listener, results_listener);
        Ok(Self { ingest_addr, results_addr, directory, services, control, engine, temporary })
    }

    /// Waits until a service ends by itself, or the disk takes no more, which neither should.
    pub(crate) async fn broken(&mut self) -> Failure {
        let ends: Vec<BoxFuture<'_, Option<Failure>>> =
            self.services.iter_mut().map(|service| service.ended().boxed()).collect();
        let (failure, at) = tokio::select! {
            (failure, at, rest) = select_all(ends) => {
                drop(rest);
                (failure, at)
            }
            cause = self.engine.broken() => {
                return Failure::failed(format!(
                    "cannot write to {}: {cause}; every vote that was acknowledged is safe. No new votes are accepted: \
                     mend that and start again",
                    self.directory.display()
                ));
            }
        };
        // Its task has been waited for; a task cannot be waited for twice.
        let service = self.services.remove(at);
        failure.unwrap_or_else(|| Failure::failed(format!("the {} service ended by itself", service.name)))
    }

    /// Stops the services one after the other, each of them once the one before has drained, then closes the engines.
    pub(crate) async fn stop(self) -> Result<(), Failure> {
        let mut first = None;
        for mut service in self.services {
            service.shutdown.cancel();
            let failure = service.ended().await;
            first = first.or(failure);
        }
        let (engine, temporary) = (self.engine, self.temporary);
        drop(self.control);
        // Closing flushes to disk, removing deletes many files: both block.
        let closed = tokio::task::spawn_blocking(move || {
            engine.close();
            temporary.map_or(Ok(()), TempDir::close)
        })
        .await;
        let closed = match closed {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Failure::failed(format!("cannot remove the temporary directory: {error}"))),
            Err(error) => Some(Failure::failed(format!("closing the engines broke: {error}"))),
        };
        first.or(closed).map_or(Ok(()), Err)
    }
}

fn services(
    ports: &Ports,
    connections: Connections,
    cors_allow_origins: CorsOrigins,
    ingest: TcpListener,
    results: TcpListener,
) -> Vec<Service> {
    let ingest = {
        let ports = ports.clone();
        let (connections, cors_allow_origins) = (connections.clone(), cors_allow_origins.clone());
        let config = IngestConfig { connections, cors_allow_origins, ..IngestConfig::one_machine() };
        Service::spawn("ingest", |shutdown| votestream_ingest::run(config, ports, ingest, shutdown))
    };
    let persist = {
        let ports = ports.clone();
        // What is stored was acknowledged already, and must not delay what comes in.
        Service::spawn("persist", |shutdown| async {
            let run = || votestream_persist::run(PersistConfig::one_machine(), ports, shutdown);
            background("votestream-persist", run)
                .await
                .map_err(|error| ServiceError::task("persist's runtime", error))?
        })
    };
    let tally = {
        let ports = ports.clone();
        let config = TallyConfig { connections, cors_allow_origins, ..TallyConfig::one_machine() };
        Service::spawn("tally", |shutdown| votestream_tally::run(config, ports, results, shutdown))
    };
    vec![ingest, persist, tally]
}

/// Listens, or says where it could not.
pub(crate) fn listen(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), Failure> {
    let bound = votestream_server::listen(addr).and_then(|listener| Ok((listener.local_addr()?, listener)));
    let (bound, listener) = bound.map_err(|error| Failure::failed(format!("cannot listen on {addr}: {error}")))?;
    Ok((listener, bound))
}

/// Opens a data directory, or says why not.
pub(crate) async fn open(directory: &Path, options: EmbeddedOptions) -> Result<EmbeddedEngine, Failure> {
    let path = directory.to_owned();
    tokio::task::spawn_blocking(move || EmbeddedEngine::open(&path, options))
        .await
        .map_err(|error| Failure::failed(format!("opening {} broke: {error}", directory.display())))?
        .map_err(|error| match std::error::Error::source(&error) {
            Some(cause) => Failure::failed(format!("{error}: {}", innermost(cause))),
            None => Failure::failed(error.to_string()),
        })
}
