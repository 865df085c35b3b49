//! The engine: one data directory, opened.
//!
//! Owns the order of opening and closing. Must never open a database without the lock on its directory, and never release
//! the lock before both databases are closed.

use std::{fs::File, path::Path, sync::Arc, time::Duration};

use votestream_core::{
    ShardId, TimeBounds,
    port::{PortError, Ports},
    time::SystemClock,
};

use crate::{
    directory::{self, Format, OpenError},
    log::{EmbeddedStream, LogOptions},
    store::EmbeddedStore,
};

/// Settings of the engine.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddedOptions {
    /// Number of shards of a new stream; an existing one keeps its own.
    pub shards: u32,
    /// How long records are kept at least, unless they are too many.
    pub retention: Duration,
    /// How many bytes of records are kept at most. Records that a group has not processed are kept all the same.
    pub retention_bytes: u64,
    /// The protocol's time limits. Data that was written with others is refused.
    pub bounds: TimeBounds,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            shards: 4,
            retention: Duration::from_secs(24 * 3_600),
            retention_bytes: 8 << 30,
            bounds: TimeBounds::ONE_MACHINE,
        }
    }
}

/// An open data directory.
///
/// The directory stays locked until this and all [`Ports`] are dropped.
pub struct EmbeddedEngine {
    stream: Arc<EmbeddedStream>,
    store: Arc<EmbeddedStore>,
    clock: Arc<SystemClock>,
}

impl EmbeddedEngine {
    /// Opens a data directory, or makes a new one. Blocks: data that was not yet in tables is replayed.
    pub fn open(dir: &Path, options: EmbeddedOptions) -> Result<Self, OpenError> {
        let lock = Arc::new(directory::lock(dir)?);
        let format = directory::check_format(dir, &options.bounds)?;
        let store = Arc::new(EmbeddedStore::open(&dir.join("store"), format, lock.clone())?);
        if format != Format::Present {
            directory::set_present(dir, &options.bounds)?;
        }
        let log = LogOptions {
            shards: options.shards,
            retention: options.retention,
            retention_bytes: options.retention_bytes,
        };
        let (stream, clock) = EmbeddedStream::open(&dir.join("log"), log, store.clone(), lock)?;
        Ok(Self { stream, store, clock })
    }

    /// The ports of this engine. Any number of copies may be in use.
    pub fn ports(&self) -> Ports {
        Ports {
            stream: self.stream.clone(),
            polls: self.store.clone(),
            votes: self.store.clone(),
            tallies: self.store.clone(),
            leases: self.store.clone(),
            clock: self.clock.clone(),
        }
    }

    /// Waits until a write fails, and says why: the disk is full, or broken. From then on nothing is written and nothing is
    /// acknowledged; what was acknowledged is safe. Only opening the directory anew helps.
    pub async fn broken(&self) -> String {
        let mut broken = self.store.broken();
        match broken.wait_for(Option::is_some).await {
            Ok(cause) => cause.clone().unwrap_or_default(),
            // The store lives as long as this engine, so this does not happen.
            Err(_) => std::future::pending().await,
        }
    }

    /// Splits an open shard: the second child's hashes start at `at`. The parent keeps its records and takes no more.
    pub async fn split_shard(&self, shard: &ShardId, at: u128) -> Result<(ShardId, ShardId), PortError> {
        self.stream.split(shard, at).await
    }

    /// Merges two open shards whose hashes are neighbours. The parents keep their records and take no more.
    pub async fn merge_shards(&self, first: &ShardId, second: &ShardId) -> Result<ShardId, PortError> {
        self.stream.merge(first, second).await
    }

    #[cfg(test)]
    pub(crate) fn stream(&self) -> &Arc<EmbeddedStream> {
        &self.stream
    }

    /// Makes everything that was answered durable, counts and progress included.
    pub fn flush(&self) -> Result<(), PortError> {
        self.store.make_durable()
    }

    /// Stops the engine's threads and flushes everything. Puts that wait are answered first; later ones are refused.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for EmbeddedEngine {
    fn drop(&mut self) {
        self.stream.stop();
        if let Err(error) = self.store.make_durable() {
            tracing::error!(%error, "the embedded store could not be flushed at its end");
        }
    }
}

/// The lock on the data directory, shared by both databases. Declared last in them, so that it is dropped last.
pub(crate) type DirectoryLock = Arc<File>;
