//! A durable engine in one process: the vote stream on its own log, the store on `fjall`.
//!
//! Owns the data directory: `lock` (held while it is open), `format` (version, time bounds and id), `log/` (segments)
//! and `store/` (a database with a journal). Must never acknowledge what is not synced. Must never decide which votes
//! count: it keeps the contracts of [`votestream_core::port`] and nothing else.
//!
//! # Why a crash loses only the end
//!
//! The log writes one group after the other. Each group is synced before it is acknowledged and before the next one
//! begins. `log/recovery.rs` says what a start does with the log.
//!
//! For the store, the following was read in the source of `fjall` 3.1 and `lsm-tree` 3.1. A database has one journal.
//! Every commit appends one batch to it under one lock (`batch/mod.rs`), with its seqno and an end marker that holds a
//! checksum (`journal/writer.rs`). We sync every commit before that lock is released, so a batch is durable before the
//! next one begins. A journal file is synced before its successor is created (`Writer::rotate`), and before a memtable
//! becomes a table (`WorkerMessage::Flush` in `worker_pool.rs`), so a table never holds what the journal may lose.
//! Recovery replays batches in order. `fjall` refuses a last batch that has lost its middle; `fjall_journal.rs` cuts
//! such a batch off before. So if the process is killed or the machine fails, only the commit that was in progress is
//! lost.
//!
//! An ingestion writes sorted tables without the journal, syncs them (`table/writer/mod.rs`), and makes them part of
//! the keyspace by one version file, which is synced and then renamed into place (`version/persist.rs`). So from then
//! on all of them count, or none. Before it begins, it moves the keyspace's memtable into a table (`tree/ingest.rs`),
//! so the journal is synced before.
//!
//! Votes, tallies and progress are decided in memory and flushed as of one moment, see `store/flush.rs`. A crash takes
//! the store back to the last flush, with the votes, tallies, epochs and dedup table of that moment. Then the groups
//! process the records after its checkpoints again. The log still has these records: it deletes only what a flushed
//! checkpoint covers.

mod background;
mod backup;
mod codec;
mod directory;
mod engine;
mod files;
mod fjall_journal;
mod log;
mod pairing;
mod store;

pub use background::background;
pub use backup::{BackupError, Backups, PSEUDONYM_KEYS};
pub use directory::OpenError;
pub use engine::{CLOCK_BEHIND_MAX, EmbeddedEngine, EmbeddedOptions};

use votestream_core::port::PortError;

/// The error of a failed read. It had no effect.
fn read_failed(error: impl std::fmt::Display) -> PortError {
    PortError::refused(format!("the embedded engine cannot read: {error}"))
}

/// The error of a failed write. `fjall` may have stored the data.
fn write_failed(error: impl std::fmt::Display) -> PortError {
    PortError::unknown(format!("the embedded engine cannot write: {error}"))
}

/// Runs a blocking call of the engine on another thread than the executor's.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, PortError> + Send + 'static,
) -> Result<T, PortError> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        Err(error) => Err(PortError::unknown(format!("a call to the embedded engine did not end: {error}"))),
    }
}
