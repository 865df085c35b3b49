//! Writes what was decided in memory: votes, tallies, shard rows and new numbers of one moment, completely or not at
//! all.
//!
//! Owns that moment, the two ways to write it, and the thread that flushes. Must never let a row or a tally become
//! durable without the votes that it covers, nor votes without their rows and tallies.
//!
//! The vote stream is the write-ahead log of all this: after a crash, what was lost is processed again from the stored
//! checkpoints. So votes need no journal of their own. If a user changes their vote between two flushes, only the last
//! vote is written.
//!
//! - A few votes are written in one commit with everything else, through the journal.
//! - Many votes are written as a sorted table, without journal and memtable (*ingestion*). This is one write to one
//!   keyspace. So it also holds the rows and tallies of that moment, as one value under [`REDO_KEY`]. Afterwards these
//!   are committed to their own keyspaces. If a crash comes in between, the next start commits them ([`Inner::redo`]).
//!   It knows whether this is necessary, because the number of the last completed ingestion is stored.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use fjall::PersistMode;
use votestream_core::port::PortError;

use super::{
    Inner,
    moments::{self, MomentError},
    unflushed::Unflushed,
};
use crate::{
    background::give_way,
    codec::{Corrupt, Decoder, Encoder},
};

/// Longest time between two flushes. Limits what is processed again after a crash.
pub(super) const FLUSH_EVERY: Duration = Duration::from_secs(2);
/// Number of votes at which a flush begins. This is a table of 7 MB, which is synced within the time that an
/// acknowledgement may take. Debug builds, and so the tests that kill processes, flush often and in both ways.
const FLUSH_VOTES: usize = if cfg!(debug_assertions) { 2_000 } else { 200_000 };
/// Number of votes in memory at which further votes wait for the running flush.
const PENDING_VOTES_MAX: usize = 2 * FLUSH_VOTES;
/// Number of votes from which they are written as a table. Each table costs a sync, and many small tables make reads
/// slow.
const INGEST_VOTES: usize = if cfg!(debug_assertions) { 100 } else { 50_000 };
/// Most unmerged tables before another one is written. From 30 on `fjall` stops commits.
const UNMERGED_TABLES_MAX: usize = 28;
/// How long a flush waits for tables to be merged. Then it goes on: with more tables reads are slower, but nothing is
/// lost.
const MERGE_WAIT_MAX: Duration = Duration::from_secs(10);
/// Pause between two checks while a flush waits for merges.
const MERGE_LOOK_EVERY: Duration = Duration::from_millis(20);

/// Key in the keyspace of votes, behind all votes: rows and tallies of the last ingestion. No poll has such a number.
const REDO_KEY: [u8; 4] = [255; 4];
/// Key in the keyspace `flushes`: number (u64) of the last ingestion whose rows and tallies are committed.
const REDONE_KEY: &str = "redone";

/// A keyspace that a flush writes besides that of the votes. These numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Target {
    Tallies = 0,
    Leases = 1,
    Dictionary = 2,
    Flushes = 3,
}

/// A value that a flush writes. An empty value of [`Target::Leases`] deletes: no row is empty.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) target: Target,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// Everything that was decided up to one moment and is not written yet.
struct Moment {
    number: u64,
    votes: Arc<Unflushed>,
    changes: Vec<Change>,
}

/// State of the running flush.
pub(super) struct Flushing {
    /// Number of the last ingestion.
    ingestion: u64,
    /// Number of the last flush.
    moment: u64,
    /// An emptied table, kept for its memory.
    spare: Option<Unflushed>,
}

impl Flushing {
    pub(super) fn new(ingestion: u64, moment: u64) -> Self {
        Self { ingestion, moment, spare: None }
    }
}

fn encode_redo(ingestion: u64, changes: &[Change]) -> Vec<u8> {
    let mut value = Encoder::default();
    value.u64(ingestion).u32(changes.len() as u32);
    for Change { target, key, value: new } in changes {
        value.u8(*target as u8).u32(key.len() as u32).raw(key).u32(new.len() as u32).raw(new);
    }
    value.0
}

fn decode_redo(value: &[u8]) -> Result<(u64, Vec<Change>), Corrupt> {
    let mut value = Decoder(value);
    let ingestion = value.u64()?;
    let changes = value.list(|value| {
        let target = match value.u8()? {
            0 => Target::Tallies,
            1 => Target::Leases,
            2 => Target::Dictionary,
            3 => Target::Flushes,
            _ => return Err(Corrupt),
        };
        let mut bytes = || {
            let len = value.u32()? as usize;
            value.bytes(len).map(<[u8]>::to_vec)
        };
        Ok(Change { target, key: bytes()?, value: bytes()? })
    })?;
    value.end()?;
    Ok((ingestion, changes))
}

/// Why the last ingestion could not be completed.
pub(super) enum RedoError {
    Database(fjall::Error),
    Damaged(String),
}

impl Inner {
    /// Commits the rows and tallies of the last ingestion, unless this was done. Returns the state for the next flush.
    pub(super) fn redo(&self) -> Result<Flushing, RedoError> {
        let redo = self.votes.get(REDO_KEY).map_err(RedoError::Database)?;
        let redo = redo.map(|redo| decode_redo(&redo)).transpose();
        let redo = redo.map_err(|_| RedoError::Damaged("last ingestion".to_owned()))?;
        let redone = match self.flushes.get(REDONE_KEY).map_err(RedoError::Database)? {
            None => 0,
            Some(redone) => {
                Decoder(&redone).u64().map_err(|_| RedoError::Damaged("number of an ingestion".to_owned()))?
            }
        };
        let pending = redo.as_ref().filter(|(ingestion, _)| redone < *ingestion);
        let moment = self.compare_moments(pending.is_some()).map_err(|error| match error {
            MomentError::Database(source) => RedoError::Database(source),
            MomentError::Damaged(reason) => RedoError::Damaged(reason),
        })?;
        if let Some((ingestion, changes)) = pending {
            self.commit_changes(Some(*ingestion), None, changes).map_err(RedoError::Database)?;
        }
        self.last_flush.store(moment, Ordering::SeqCst);
        Ok(Flushing::new(redo.map_or(0, |(ingestion, _)| ingestion), moment))
    }

    /// Writes and syncs everything that was decided before this call.
    pub(super) fn flush(&self) -> Result<(), PortError> {
        self.flush_under(&mut self.flushing.lock())
    }

    /// Like [`Self::flush`], for a caller that already holds the lock.
    pub(super) fn flush_under(&self, flushing: &mut Flushing) -> Result<(), PortError> {
        self.check_unbroken()?;
        let Some(moment) = self.begin_flush(flushing) else { return Ok(()) };
        self.write(flushing, &moment).map_err(|error| self.write_failed(&error))?;
        self.end_flush(flushing, moment);
        Ok(())
    }

    /// Sets aside what was decided, so that new decisions do not change it. It can still be read.
    fn begin_flush(&self, flushing: &mut Flushing) -> Option<Moment> {
        // Lock all three together, in the order in which a window changes them, so that they are of one moment.
        let (mut votes, mut tallies, mut rows) = (self.deciding.lock(), self.tallies_decided.lock(), self.rows.lock());
        if votes.pending.is_empty() && tallies.is_unchanged() && rows.is_unchanged() {
            return None;
        }
        let pending = Arc::new(std::mem::replace(&mut votes.pending, flushing.spare.take().unwrap_or_default()));
        votes.flushing = Some(pending.clone());
        let changed = tallies.begin_flush();
        let mut changes = rows.take_changes();
        // The decided votes hold these numbers.
        changes.extend(self.numbers.write().take_changes());
        // Release the locks: other calls may go on while tallies are encoded.
        drop((votes, tallies, rows));
        changes.extend(changed.iter().map(|(key, tally)| tally.change(key)));
        let number = flushing.moment + 1;
        changes.extend(moments::changes(number));
        Some(Moment { number, votes: pending, changes })
    }

    fn write(&self, flushing: &mut Flushing, moment: &Moment) -> Result<(), fjall::Error> {
        if moment.votes.len() < INGEST_VOTES {
            return self.journal(moment);
        }
        self.wait_for_merges();
        self.ingest(flushing, moment)?;
        self.complete(flushing, moment)
    }

    /// Writes everything in one commit.
    fn journal(&self, moment: &Moment) -> Result<(), fjall::Error> {
        self.commit_changes(None, Some(moment), &moment.changes)
    }

    /// Writes everything in one table. Afterwards it is durable, but only [`Self::redo`] finds its rows and tallies.
    fn ingest(&self, flushing: &mut Flushing, moment: &Moment) -> Result<(), fjall::Error> {
        // This replaces the rows and tallies of the ingestion before. They were committed and synced since.
        let number = flushing.ingestion + 1;
        let mut ingestion = self.votes.start_ingestion()?;
        for (key, value) in moment.votes.sorted() {
            ingestion.write(key, value)?;
        }
        ingestion.write(REDO_KEY, encode_redo(number, &moment.changes))?;
        ingestion.write(moments::key(moment.number), moments::value(moment.number, moment.number))?;
        ingestion.finish()?;
        flushing.ingestion = number;
        Ok(())
    }

    /// After [`Self::ingest`]: writes rows and tallies to their own keyspaces.
    fn complete(&self, flushing: &Flushing, moment: &Moment) -> Result<(), fjall::Error> {
        self.commit_changes(Some(flushing.ingestion), None, &moment.changes)
    }

    fn commit_changes(
        &self,
        redone: Option<u64>,
        votes: Option<&Moment>,
        changes: &[Change],
    ) -> Result<(), fjall::Error> {
        // `SyncData` is enough: to read the file, only its length and its blocks are needed.
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncData));
        if let Some(moment) = votes {
            for (key, value) in moment.votes.sorted() {
                batch.insert(&self.votes, key, value);
            }
            batch.insert(&self.votes, moments::key(moment.number), moments::value(moment.number, moment.number));
        }
        for Change { target, key, value } in changes {
            let keyspace = match target {
                Target::Tallies => &self.tallies,
                Target::Leases => &self.leases,
                Target::Dictionary => &self.numbers_stored,
                Target::Flushes => &self.flushes,
            };
            if *target == Target::Leases && value.is_empty() {
                batch.remove(keyspace, &**key);
            } else {
                batch.insert(keyspace, &**key, &**value);
            }
        }
        if let Some(ingestion) = redone {
            batch.insert(&self.flushes, REDONE_KEY, ingestion.to_be_bytes());
        }
        batch.commit()
    }

    fn end_flush(&self, flushing: &mut Flushing, moment: Moment) {
        self.tallies_decided.lock().end_flush();
        self.deciding.lock().flushing = None;
        flushing.moment = moment.number;
        self.last_flush.store(moment.number, Ordering::SeqCst);
        // No one else holds the table now.
        flushing.spare = Arc::into_inner(moment.votes).map(Unflushed::emptied);
    }

    fn wait_for_merges(&self) {
        let until = Instant::now() + MERGE_WAIT_MAX;
        while self.votes.l0_table_count() > UNMERGED_TABLES_MAX && Instant::now() < until {
            std::thread::sleep(MERGE_LOOK_EVERY);
        }
    }

    /// Called with the number of votes in memory after votes were decided. Flushes if there are too many.
    pub(super) fn after_votes(&self, pending: usize) -> Result<(), PortError> {
        if pending >= PENDING_VOTES_MAX {
            return self.flush();
        }
        if pending >= FLUSH_VOTES {
            self.flush_soon.wake();
        }
        Ok(())
    }
}

/// Asks the thread to flush now.
pub(super) struct FlushSoon(SyncSender<()>);

impl FlushSoon {
    pub(super) fn new() -> (Self, Receiver<()>) {
        let (sender, asked) = sync_channel(1);
        (Self(sender), asked)
    }

    fn wake(&self) {
        match self.0.try_send(()) {
            // An error means that the thread is awake, or has ended because the store is closed or broken.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }
}

/// The thread that flushes. It ends when this is dropped.
pub(super) struct Flusher {
    inner: Arc<Inner>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    pub(super) fn start(inner: Arc<Inner>, asked: Receiver<()>, every: Duration) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (store, stopped) = (inner.clone(), stop.clone());
        let run = move || {
            give_way();
            loop {
                match asked.recv_timeout(every) {
                    Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                // Read this before the flush, so that the last flush writes everything.
                let last = stopped.load(Ordering::SeqCst);
                // A failed write ends the engine: see `EmbeddedEngine::broken`.
                if store.flush().is_err() || last {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("votestream-flush".into()).spawn(run)?;
        Ok(Self { inner, stop, thread: Some(thread) })
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.inner.flush_soon.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that flushes the embedded store had panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::EmbeddedStore;

    impl EmbeddedStore {
        /// Flushes as if there were many votes, or few. Calls `crash` after the ingestion and before anything else.
        pub(crate) fn flush_as(&self, many: bool, crash: impl FnOnce()) {
            let inner = &self.inner;
            let mut flushing = inner.flushing.lock();
            let Some(moment) = inner.begin_flush(&mut flushing) else { return };
            if many {
                inner.ingest(&mut flushing, &moment).unwrap();
                crash();
                inner.complete(&flushing, &moment).unwrap();
            } else {
                inner.journal(&moment).unwrap();
            }
            inner.end_flush(&mut flushing, moment);
        }
    }

    #[test]
    fn a_redo_comes_back_and_damage_is_an_error() {
        let changes = || {
            let change = |target, key: &[u8], value: &[u8]| Change { target, key: key.to_vec(), value: value.to_vec() };
            vec![change(Target::Tallies, b"k", b"value"), change(Target::Leases, b"", &[0; 300])]
        };
        let redo = encode_redo(7, &changes());
        assert_eq!(decode_redo(&redo), Ok((7, changes())));
        for len in 0..redo.len() {
            assert_eq!(decode_redo(&redo[..len]), Err(Corrupt));
        }
        assert_eq!(decode_redo(&encode_redo(1, &[])), Ok((1, Vec::new())));
    }
}
