//! The vote stream on a log of its own and the store on `fjall`, in one process and durable.
//!
//! Owns the data directory: `lock` (held while it is open), `format` (version, time bounds and id), `log/` (segments) and `store/`
//! (a database with a journal). Must never acknowledge what is not synced, and never decide what counts: it keeps the
//! contracts of [`votestream_core::port`] and nothing else.
//!
//! # Why a crash keeps a prefix
//!
//! The log writes one group after the other, each synced before it is acknowledged and before the next begins; `log/recovery.rs`
//! has what a start makes of it.
//!
//! For the store, what follows rests on `fjall` 3.1 and `lsm-tree` 3.1, read in their source. A database has one journal; every
//! commit appends one batch to it under one lock (`batch/mod.rs`), with its seqno and an end marker that holds a checksum
//! (`journal/writer.rs`). All of ours are synced before that lock is released, so a batch is durable before the next begins. A
//! journal file is synced before its successor is created (`Writer::rotate`), and before a memtable becomes a table
//! (`WorkerMessage::Flush` in `worker_pool.rs`), so a table never holds what the journal may lose. Recovery replays batches in order.
//! `fjall` refuses a last batch that has lost its middle; `fjall_journal.rs` cuts it off before. So a killed process, or a lost
//! machine, loses the commit that was under way and nothing else.
//!
//! An ingestion writes sorted tables beside the journal, syncs them (`table/writer/mod.rs`), and makes them part of the keyspace
//! by one version file, synced and then renamed into place (`version/persist.rs`): all of them count from then on, or none.
//! It moves the keyspace's memtable into a table first (`tree/ingest.rs`), so the journal is synced before it begins.
//!
//! Votes, tallies and progress are decided in memory and flushed as of one moment, see `store/flush.rs`. A crash takes the store
//! back to the last flush: it then stands as it once stood, with the votes, tallies, epochs and dedup table of that moment,
//! and the groups process the records after its checkpoints again, which the log still has: it deletes only what a flushed
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
pub use backup::{BackupError, Backups};
pub use directory::OpenError;
pub use engine::{CLOCK_BEHIND_MAX, EmbeddedEngine, EmbeddedOptions};

use votestream_core::port::PortError;

/// A failed read: nothing happened.
fn read_failed(error: impl std::fmt::Display) -> PortError {
    PortError::refused(format!("the embedded engine cannot read: {error}"))
}

/// A failed write: `fjall` may have stored it.
fn write_failed(error: impl std::fmt::Display) -> PortError {
    PortError::unknown(format!("the embedded engine cannot write: {error}"))
}

/// Runs a blocking call of the engine off the executor's threads.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, PortError> + Send + 'static,
) -> Result<T, PortError> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        Err(error) => Err(PortError::unknown(format!("a call to the embedded engine did not end: {error}"))),
    }
}
