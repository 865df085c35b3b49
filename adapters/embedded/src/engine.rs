//! The engine: one open data directory.
//!
//! Owns the order of creating, opening and closing. Must never open a database without the lock on its directory. Must
//! never release the lock before both halves (log and store) are closed. Must never change anything before it has
//! checked that both halves belong together.

use std::{path::Path, sync::Arc, time::Duration};

use votestream_core::{
    ShardId, TimeBounds, Timestamp,
    clock::SystemClock,
    port::{PortError, Ports},
};

use crate::{
    backup::{self, Backups},
    directory::{self, DirectoryLock, Format, OpenError},
    log::{self, EmbeddedStream, Found, LogOptions},
    pairing,
    store::{EmbeddedStore, Identity},
};

/// How far the machine's clock may be behind the last arrival in the log at a start. Time synchronisation and leap
/// seconds move a clock by a second or two. Then the engine's clock runs a tenth slower until the machine's clock has
/// caught up, and nobody notices. If the machine's clock is farther behind, either it or the log is wrong, and only a
/// person can tell which.
pub const CLOCK_BEHIND_MAX: Duration = Duration::from_secs(10);

/// Settings of the engine.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddedOptions {
    /// Number of shards of a new stream; an existing one keeps its own.
    pub shards: u32,
    /// How long records are kept at least, within the limit `retention_bytes`.
    pub retention: Duration,
    /// Most bytes of records that are kept. Records that a group has not processed are kept even beyond this limit.
    pub retention_bytes: u64,
    /// The protocol's time limits. A directory that was written with other limits is refused.
    pub bounds: TimeBounds,
    /// Continue from the log's time even if the machine's clock is behind it by more than [`CLOCK_BEHIND_MAX`].
    pub continue_from_log_time: bool,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            shards: 4,
            retention: Duration::from_secs(24 * 3_600),
            retention_bytes: 8 << 30,
            bounds: TimeBounds::ONE_MACHINE,
            continue_from_log_time: false,
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
    backups: Backups,
}

impl EmbeddedEngine {
    /// Opens a data directory, or makes a new one. Blocks while it replays data that was not yet in tables.
    ///
    /// # Errors
    ///
    /// If another process has it open; if it cannot be read or written; if something in it is missing, damaged, or from
    /// another directory, version or moment; or if the machine's clock is far behind it. In all these cases no vote was
    /// acknowledged.
    pub fn open(dir: &Path, options: EmbeddedOptions) -> Result<Self, OpenError> {
        Self::open_with(dir, options, log::SEGMENT_BYTES)
    }

    /// Like [`Self::open`], with segments of this size.
    pub(crate) fn open_with(dir: &Path, options: EmbeddedOptions, segment_bytes: u64) -> Result<Self, OpenError> {
        log::check_shards(options.shards)?;
        let lock = Arc::new(directory::lock(dir)?);
        let (id, store) = match directory::inspect(dir, &options.bounds)? {
            Format::None => create(dir, &options, &lock)?,
            Format::Present(id) => open_store(dir, id, &lock)?,
            earlier @ (Format::Version1 | Format::Version2 | Format::Version3) => {
                convert(dir, earlier, &options, &lock)?
            }
        };
        let found = Found::read(&dir.join("log"), id, &store)?;
        let lives = pairing::compare(dir, id, &found, &store)?;
        let clock = Arc::new(clock_of(dir, found.latest(), options.continue_from_log_time)?);
        let EmbeddedOptions { retention, retention_bytes, .. } = options;
        let log = LogOptions { retention, retention_bytes, segment_bytes };
        let stream = EmbeddedStream::start(found, lives, log, clock.clone(), store.clone(), lock)?;
        let backups = Backups {
            directory: dir.to_owned(),
            id,
            bounds: options.bounds,
            stream: stream.clone(),
            store: store.clone(),
        };
        let engine = Self { stream, store, clock, backups };
        pairing::tell(dir, id, lives, &engine.store)?;
        let removed = backup::remove_staging(dir);
        removed.map_err(|source| OpenError::Io { directory: dir.to_owned(), source })?;
        Ok(engine)
    }

    /// The ports of this engine. May be called any number of times.
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

    /// Makes backups of the data directory while it is in use. The directory stays locked until the returned value is
    /// dropped, too.
    pub fn backups(&self) -> Backups {
        self.backups.clone()
    }

    /// Waits until a write fails, and returns the reason: the disk is full or broken. From then on nothing is written
    /// and nothing is acknowledged. Acknowledged votes are safe. To go on, open the directory again.
    pub async fn broken(&self) -> String {
        let mut broken = self.store.broken();
        match broken.wait_for(Option::is_some).await {
            Ok(cause) => cause.clone().unwrap_or_default(),
            // This does not happen: the store lives as long as this engine.
            Err(_) => std::future::pending().await,
        }
    }

    /// Splits an open shard. The hashes of the second child start at `at`. The parent keeps its records but accepts no
    /// new ones.
    ///
    /// # Errors
    ///
    /// If the shard is not open, `at` is not inside it, or the log cannot be written.
    pub async fn split_shard(&self, shard: &ShardId, at: u128) -> Result<(ShardId, ShardId), PortError> {
        self.stream.split(shard, at).await
    }

    /// Merges two open shards with neighbouring hash ranges. The parents keep their records but accept no new ones.
    ///
    /// # Errors
    ///
    /// If a shard is not open, if the shards are not neighbours, or if the log cannot be written.
    pub async fn merge_shards(&self, first: &ShardId, second: &ShardId) -> Result<ShardId, PortError> {
        self.stream.merge(first, second).await
    }

    #[cfg(test)]
    pub(crate) fn stream(&self) -> &Arc<EmbeddedStream> {
        &self.stream
    }

    #[cfg(test)]
    pub(crate) fn store(&self) -> &Arc<EmbeddedStore> {
        &self.store
    }

    /// Makes everything durable that was answered so far, counts and progress included.
    ///
    /// # Errors
    ///
    /// If the disk cannot be written.
    pub fn flush(&self) -> Result<(), PortError> {
        self.store.make_durable()
    }

    /// Stops the engine's threads and flushes everything. Waiting puts are answered first; later puts are refused.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for EmbeddedEngine {
    fn drop(&mut self) {
        self.stream.stop();
        if let Err(error) = self.store.make_durable() {
            tracing::error!(%error, "could not flush the embedded store while closing it");
        }
    }
}

/// Makes both halves of a new directory. Makes them again if an earlier attempt was interrupted.
fn create(
    dir: &Path,
    options: &EmbeddedOptions,
    lock: &DirectoryLock,
) -> Result<(u128, Arc<EmbeddedStore>), OpenError> {
    let failed = |source| OpenError::Io { directory: dir.to_owned(), source };
    let id = rand::random();
    directory::begin_creation(dir).map_err(failed)?;
    log::create(&dir.join("log"), id, options.shards)?;
    let path = dir.join("store");
    let store = EmbeddedStore::open(&path, Format::None, lock.clone())?;
    own(&path, &store, id)?;
    // The database syncs its files, but not the directory of its keyspaces after it has made them.
    directory::sync_directory(&path.join("keyspaces")).map_err(failed)?;
    directory::sync_directory(&path).map_err(failed)?;
    directory::end_creation(dir, &options.bounds, id).map_err(failed)?;
    Ok((id, Arc::new(store)))
}

fn own(path: &Path, store: &EmbeddedStore, directory: u128) -> Result<(), OpenError> {
    let owned = store.set_identity(Identity { directory, life: 0 });
    owned.map_err(|error| OpenError::Damaged { path: path.to_owned(), reason: error.message })
}

/// Opens the store of a directory that has both halves.
fn open_store(dir: &Path, id: u128, lock: &DirectoryLock) -> Result<(u128, Arc<EmbeddedStore>), OpenError> {
    let failed = |source| OpenError::Io { directory: dir.to_owned(), source };
    require(dir, "log", "")?;
    require(dir, "store", "version")?;
    directory::forget_creation(dir).map_err(failed)?;
    log::remove_converted(&dir.join("log")).map_err(failed)?;
    let store = EmbeddedStore::open(&dir.join("store"), Format::Present(id), lock.clone())?;
    Ok((id, Arc::new(store)))
}

/// Refuses a directory if one of its halves is missing.
fn require(dir: &Path, half: &str, file: &str) -> Result<(), OpenError> {
    let exists = dir.join(half).join(file).try_exists();
    match exists.map_err(|source| OpenError::Io { directory: dir.to_owned(), source })? {
        true => Ok(()),
        false => Err(OpenError::Incomplete {
            directory: dir.to_owned(),
            reason: format!("{:?} is missing in it", Path::new(half).join(file)),
        }),
    }
}

/// Converts a directory of an earlier format to the present one.
fn convert(
    dir: &Path,
    format: Format,
    options: &EmbeddedOptions,
    lock: &DirectoryLock,
) -> Result<(u128, Arc<EmbeddedStore>), OpenError> {
    let failed = |source| OpenError::Io { directory: dir.to_owned(), source };
    // That version wrote `format` first, then the store, then the log. A database writes its file `version` last.
    let made = |half: &str| Ok(std::fs::read(dir.join(half).join("version")).is_ok_and(|bytes| !bytes.is_empty()));
    let log_made = made("log").map_err(failed)?;
    if !log_made && !made("store").map_err(failed)? {
        return create(dir, options, lock);
    }
    require(dir, "store", "version")?;
    let store = EmbeddedStore::open(&dir.join("store"), format, lock.clone())?;
    if !log_made {
        let blank = store.is_blank();
        if blank.map_err(|error| OpenError::Damaged { path: dir.join("store"), reason: error.message })? {
            drop(store);
            return create(dir, options, lock);
        }
        require(dir, "log", "version")?;
    }
    let id = rand::random();
    own(&dir.join("store"), &store, id)?;
    log::convert(&dir.join("log"), id)?;
    directory::end_creation(dir, &options.bounds, id).map_err(failed)?;
    log::remove_converted(&dir.join("log")).map_err(failed)?;
    Ok((id, Arc::new(store)))
}

/// The clock that stamps records. It does not start before the last stored record.
fn clock_of(dir: &Path, latest: Timestamp, continue_from_log_time: bool) -> Result<SystemClock, OpenError> {
    if continue_from_log_time {
        return Ok(SystemClock::not_before(latest));
    }
    SystemClock::starting_after(latest, CLOCK_BEHIND_MAX).map_err(|behind| OpenError::Clock {
        directory: dir.to_owned(),
        clock: behind.wall,
        log: behind.floor,
    })
}

#[cfg(test)]
mod tests;
