//! The whole stack on the embedded engines, in this process.
//!
//! Owns where it stores and listens, and the messages about how it ended. Must never know how a service or an engine
//! works.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use futures::FutureExt;
use tempfile::TempDir;
use tokio::net::TcpListener;
use votestream_client::{Address, AddressError};
use votestream_core::{KeyId, PollId};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions, background};
use votestream_server::{AuditLog, Connections, CorsOrigins, Identity, Limits, Quotas, Tls, raise_descriptor_limit};
use votestream_stack::{FrameAncestors, Listeners, StackConfig, StackError};

use crate::{
    control::Control,
    failure::{Failure, innermost},
    pseudonyms::{self, Keys},
};

/// Where the stack stores its data.
#[derive(Debug)]
pub(crate) enum Storage {
    /// In this directory, which is created if it does not exist.
    Directory(PathBuf),
    /// In a temporary directory, which is removed at the end.
    Ephemeral,
}

/// Settings of the stack.
#[derive(Debug)]
pub(crate) struct StackOptions {
    pub(crate) storage: Storage,
    pub(crate) shards: u32,
    pub(crate) addr: SocketAddr,
    /// Of polls, results and the page; `addr` if there is none.
    pub(crate) results_addr: Option<SocketAddr>,
    pub(crate) identity: Identity,
    pub(crate) quotas: Quotas,
    pub(crate) audit: AuditLog,
    pub(crate) limits: Limits,
    /// TLS of all addresses.
    pub(crate) tls: Option<Tls>,
    pub(crate) cors_allow_origins: CorsOrigins,
    pub(crate) frame_ancestors: FrameAncestors,
    pub(crate) pseudonym_keys: Keys,
    /// See [`EmbeddedOptions::continue_from_log_time`].
    pub(crate) continue_from_log_time: bool,
}

impl StackOptions {
    /// A temporary stack on a free port of the loopback interface.
    pub(crate) fn ephemeral(shards: u32) -> Self {
        Self {
            storage: Storage::Ephemeral,
            shards,
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            results_addr: None,
            identity: Identity::default(),
            quotas: Quotas::default(),
            audit: AuditLog::default(),
            limits: Limits::default(),
            tls: None,
            cors_allow_origins: CorsOrigins::default(),
            frame_ancestors: FrameAncestors::default(),
            pseudonym_keys: Keys::Directory,
            continue_from_log_time: false,
        }
    }
}

/// The running stack.
pub(crate) struct RunningStack {
    /// Where votes come in.
    pub(crate) ingest_addr: SocketAddr,
    /// Where polls, results and the page are: the same address, unless they have one of their own.
    pub(crate) results_addr: SocketAddr,
    /// Where all data is stored.
    pub(crate) directory: PathBuf,
    /// Id of the key of pseudonyms in new polls.
    pub(crate) pseudonym_key: Option<KeyId>,
    /// Polls whose votes are refused, and the key that they need.
    pub(crate) keys_missing: Vec<(PollId, KeyId)>,
    /// Connections of clients, at both addresses.
    pub(crate) connections: Connections,
    services: votestream_stack::Stack,
    /// Makes backups.
    control: Option<Control>,
    /// Holds the lock on the directory until every service has ended.
    engine: EmbeddedEngine,
    temporary: Option<TempDir>,
}

impl RunningStack {
    /// Opens the engines, binds the addresses and starts the services.
    pub(crate) async fn start(options: StackOptions) -> Result<Self, Failure> {
        // The addresses are bound first: a second `up` then fails there, before it touches the directory of the first
        // one.
        let (ingest, ingest_addr) = listen(options.addr)?;
        let (listeners, results_addr) = match options.results_addr.map(listen).transpose()? {
            Some((results, results_addr)) => (Listeners::Apart { ingest, results }, results_addr),
            None => (Listeners::One(ingest), ingest_addr),
        };
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
        let keys = options.pseudonym_keys.on(&directory)?;
        let ports = engine.ports();
        let keys_missing = pseudonyms::missing(&*ports.polls, &keys).await;
        let keys_missing = keys_missing.map_err(|error| Failure::failed(format!("cannot list the polls: {error}")))?;
        let pseudonym_key = keys.active();
        let control = Control::listen(&directory, engine.backups());
        let connections = Connections::secured(options.limits, options.tls);
        let mut config = StackConfig::one_machine()
            .with_connections(connections.clone())
            .with_identity(options.identity)
            .with_quotas(options.quotas)
            .with_pseudonyms(keys)
            .with_audit(options.audit)
            .with_cors(options.cors_allow_origins)
            .with_frame_ancestors(options.frame_ancestors);
        config.persist_elsewhere = Some(|name, work| background(name, work).boxed());
        let services = votestream_stack::Stack::start(&ports, config, listeners);
        Ok(Self {
            ingest_addr,
            results_addr,
            directory,
            pseudonym_key,
            keys_missing,
            connections,
            services,
            control,
            engine,
            temporary,
        })
    }

    /// Where clients of this machine reach it, if it has one address.
    pub(crate) fn address(&self) -> Result<Address, Failure> {
        self.ingest_addr.to_string().parse().map_err(|error: AddressError| Failure::failed(error.to_string()))
    }

    /// Waits until a service ends by itself, or the disk takes no more data. Neither should happen.
    pub(crate) async fn broken(&mut self) -> Failure {
        tokio::select! {
            broken = self.services.broken() => broken.into(),
            cause = self.engine.broken() => Failure::failed(format!(
                "cannot write to {}: {cause}. Acknowledged votes are safe. No new votes are accepted: fix that and start again",
                self.directory.display()
            )),
        }
    }

    /// Stops the services one after the other: each one once the one before has drained. Then closes the engines.
    pub(crate) async fn stop(self) -> Result<(), Failure> {
        // Unfinished work on acknowledged votes is done at the next start.
        let first = self.services.stop().await.err().map(Failure::from);
        let (engine, temporary) = (self.engine, self.temporary);
        drop(self.control);
        // Closing flushes to disk, and removing deletes many files: both block.
        let closed = tokio::task::spawn_blocking(move || {
            engine.close();
            temporary.map_or(Ok(()), TempDir::close)
        })
        .await;
        let closed = match closed {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Failure::failed(format!("cannot remove the temporary directory: {error}"))),
            Err(error) => Some(Failure::failed(format!("closing the engines failed: {error}"))),
        };
        first.or(closed).map_or(Ok(()), Err)
    }
}

impl From<StackError> for Failure {
    fn from(error: StackError) -> Self {
        Self::failed(error.to_string())
    }
}

/// Binds the address, or names it in the error.
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
        .map_err(|error| Failure::failed(format!("opening {} failed: {error}", directory.display())))?
        .map_err(|error| match std::error::Error::source(&error) {
            Some(cause) => Failure::failed(format!("{error}: {}", innermost(cause))),
            None => Failure::failed(error.to_string()),
        })
}
