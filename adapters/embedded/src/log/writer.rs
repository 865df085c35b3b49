//! The only thread that writes the log. It assigns sequence numbers and arrival times, uses one sync for all waiting
//! puts, and begins segments.
//!
//! Must never answer a put before its record is synced. Must never go on after a failed write: the content of the file
//! is unknown then, and a record behind a hole would be lost at the next start.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, atomic::Ordering, mpsc::SyncSender},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use votestream_core::{
    Clock, HashRange, SequenceNumber, ShardId, Timestamp,
    port::{PortError, Stored},
};

use super::{
    Log, ShardState,
    append::{self, Appender, Stamp},
    backup::Mark,
    format::Kind,
    segment::Index,
    table::{Definition, Table, encode_forgotten, encode_shards},
    tail::Oldest,
};
use crate::{store::EmbeddedStore, write_failed};

/// Most records that share a sync.
const GROUP_RECORDS_MAX: usize = 1_024;
/// Most bytes that share a sync: the first puts must not wait too long for the others.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// How long a group waits for the lanes of the last group to put again. Shorter than a sync.
const GATHER_WAIT: Duration = Duration::from_micros(100);

/// A command to the writer.
pub(super) enum Command {
    /// Append a record.
    Put {
        hash: u128,
        data: Bytes,
        answer: oneshot::Sender<Result<Stored, PortError>>,
        /// Room in the queue. It is given back with the answer.
        _permit: OwnedSemaphorePermit,
    },
    /// Close `parents` and open `children`, which own the same hashes together.
    Reshard { parents: Vec<u32>, children: Vec<HashRange>, answer: oneshot::Sender<Result<Vec<ShardId>, PortError>> },
    /// Begin a new segment, unless the last one is empty.
    Roll { answer: SyncSender<Result<(), PortError>> },
    /// Forget closed shards.
    Forget { shards: Vec<u32>, answer: SyncSender<Result<(), PortError>> },
    /// Say where the log ends.
    Mark { answer: SyncSender<Result<Mark, PortError>> },
    /// End the thread.
    Stop,
}

struct Put {
    hash: u128,
    data: Bytes,
    answer: oneshot::Sender<Result<Stored, PortError>>,
    permit: OwnedSemaphorePermit,
}

/// The next command in the queue, if there is one. With `expected`, waits a moment for the lanes that were just
/// answered to put again: otherwise the fastest lane would get a sync of its own each time.
fn gather(commands: &mut mpsc::UnboundedReceiver<Command>, expected: bool) -> Option<Command> {
    let start = Instant::now();
    loop {
        match commands.try_recv() {
            Ok(command) => return Some(command),
            Err(_) if expected && start.elapsed() < GATHER_WAIT => std::thread::yield_now(),
            Err(_) => return None,
        }
    }
}

pub(super) fn closed() -> PortError {
    PortError::permanent("the embedded stream is closed")
}

/// The state of the thread.
pub(super) struct Writer {
    log: Arc<Log>,
    store: Arc<EmbeddedStore>,
    table: Table,
    /// Open shards in the order of their hashes.
    open: Vec<Arc<ShardState>>,
    appender: Option<Appender>,
    oldest: Oldest,
    /// The cause of the first failed write.
    failed: Option<String>,
}

impl Writer {
    pub(super) fn new(log: Arc<Log>, store: Arc<EmbeddedStore>, table: Table, appender: Appender) -> Self {
        let (appender, oldest) = (Some(appender), Oldest::default());
        let mut writer = Self { log, store, table, open: Vec::new(), appender, oldest, failed: None };
        writer.find_open_shards();
        writer
    }

    fn find_open_shards(&mut self) {
        let shards = self.log.shards.read();
        self.open = shards.values().filter(|shard| shard.tail.borrow().closed_at.is_none()).cloned().collect();
        self.open.sort_unstable_by_key(|shard| shard.range);
    }

    /// Serves until it is stopped.
    pub(super) fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut puts = Vec::new();
        let mut last_group = 0;
        let mut next = commands.blocking_recv();
        while let Some(command) = next.take() {
            // Gather puts until the queue is empty, the group is full, or another command comes.
            let mut bytes = 0;
            let mut other = Some(command);
            while let Some(Command::Put { hash, data, answer, _permit: permit }) = other {
                bytes += data.len();
                puts.push(Put { hash, data, answer, permit });
                let full = puts.len() >= GROUP_RECORDS_MAX || bytes >= GROUP_BYTES_MAX;
                other = if full { None } else { gather(&mut commands, puts.len() < last_group) };
            }
            last_group = puts.len();
            self.append(&mut puts);
            // Sending an answer fails if nobody waits any more; that is no error.
            match other {
                None | Some(Command::Put { .. }) => {}
                Some(Command::Reshard { parents, children, answer }) => {
                    drop(answer.send(self.reshard(&parents, children)));
                }
                Some(Command::Roll { answer }) => drop(answer.send(self.roll())),
                Some(Command::Forget { shards, answer }) => drop(answer.send(self.forget(&shards))),
                Some(Command::Mark { answer }) => drop(answer.send(self.mark())),
                Some(Command::Stop) => break,
            }
            next = commands.blocking_recv();
        }
        self.end();
        commands.close();
        while let Ok(command) = commands.try_recv() {
            match command {
                Command::Put { answer, .. } => drop(answer.send(Err(closed()))),
                Command::Reshard { answer, .. } => drop(answer.send(Err(closed()))),
                Command::Roll { answer } | Command::Forget { answer, .. } => drop(answer.send(Err(closed()))),
                Command::Mark { answer } => drop(answer.send(Err(closed()))),
                Command::Stop => {}
            }
        }
    }

    fn refusal(&self) -> Option<PortError> {
        self.failed.as_ref().map(|why| {
            PortError::permanent(format!("the embedded stream accepts no more records, because a write failed: {why}"))
        })
    }

    /// Writes a group of puts with one sync, and answers them.
    fn append(&mut self, puts: &mut Vec<Put>) {
        if puts.is_empty() {
            return;
        }
        if let Some(refusal) = self.refusal() {
            for put in puts.drain(..) {
                drop(put.answer.send(Err(PortError::permanent(refusal.message.clone()))));
            }
            return;
        }
        // The open shards own every hash. If an owner were missing, the put is refused; it is not stored elsewhere.
        let owners: Vec<_> = puts.iter().map(|put| self.owner(put.hash)).collect();
        let first = self.table.number + 1;
        let arrived_at = self.log.clock.now();
        if let Err(error) = self.store(puts, &owners, first, arrived_at) {
            self.fail(&error);
            for put in puts.drain(..) {
                drop(put.answer.send(Err(write_failed(&error))));
            }
            return;
        }
        self.show(puts, &owners, first, arrived_at);
        let mut number = first;
        for (put, owner) in puts.drain(..).zip(owners) {
            let answer = match owner {
                Some(at) => {
                    number += 1;
                    let sequence = SequenceNumber::from_u64(number - 1);
                    Ok(Stored { shard: self.open[at].id.clone(), sequence })
                }
                None => Err(PortError::permanent(format!("no open shard owns the hash {}", put.hash))),
            };
            drop(put.permit);
            drop(put.answer.send(answer));
        }
    }

    fn owner(&self, hash: u128) -> Option<usize> {
        let at = self.open.partition_point(|shard| shard.range.end < hash);
        self.open.get(at).filter(|shard| shard.range.contains(hash)).map(|_| at)
    }

    /// Writes and syncs the puts whose hash a shard owns, and notes their positions.
    fn store(&mut self, puts: &[Put], owners: &[Option<usize>], first: u64, arrived_at: Timestamp) -> io::Result<()> {
        if owners.iter().all(Option::is_none) {
            return Ok(());
        }
        let len: usize =
            puts.iter().zip(owners).filter(|(_, owner)| owner.is_some()).map(|(put, _)| put.data.len()).sum();
        self.make_room(len as u64)?;
        let stamp = Stamp { arrived_at, polls: self.store.poll_changes() };
        let owned = puts.iter().zip(owners).filter_map(|(put, owner)| Some((put, self.open[(*owner)?].index)));
        let records: Vec<_> = owned.map(|(put, shard)| append::Put { shard, data: &put.data }).collect();
        let appender = self.appender.as_mut().ok_or_else(ended)?;
        let group = appender.append(stamp, first, &records)?;
        self.table.latest = self.table.latest.max(arrived_at);
        self.table.polls = stamp.polls;
        let mut segments = self.log.segments.write();
        let index = segments.entry(appender.end().segment).or_default();
        for (sequence, record) in (first..).zip(&records) {
            index.add(record.shard, sequence, group, record.data.len() as u32, arrived_at);
            let appended = self.table.append(record.shard, sequence);
            debug_assert!(appended.is_ok(), "it follows the one before, in a shard that is open");
        }
        index.end = appender.end().seal.end;
        self.log.bytes.fetch_add(len as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Shows synced records to readers. Wakes the readers of each shard once per group.
    fn show(&mut self, puts: &[Put], owners: &[Option<usize>], first: u64, arrived_at: Timestamp) {
        let mut last = vec![0; self.open.len()];
        let owned = puts.iter().zip(owners).filter_map(|(put, owner)| Some((put, (*owner)?)));
        for (number, (put, at)) in (first..).zip(owned) {
            let shard = self.open[at].index;
            self.log.last_records.push(&mut self.oldest, shard, number, arrived_at, put.data.clone());
            last[at] = number;
        }
        for (shard, &last) in self.open.iter().zip(&last).filter(|&(_, &last)| last > 0) {
            shard.tail.send_modify(|tail| tail.last = last);
        }
    }

    /// Begins a new segment if this group would make the present one too large.
    fn make_room(&mut self, len: u64) -> io::Result<()> {
        let end = self.appender.as_ref().ok_or_else(ended)?.end();
        let full = end.seal.end + len > self.log.options.segment_bytes;
        if full && !self.is_segment_empty() { self.begin_segment() } else { Ok(()) }
    }

    fn is_segment_empty(&self) -> bool {
        self.log.segments.read().last_key_value().is_none_or(|(_, index)| index.is_empty())
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        let before = self.appender.take().ok_or_else(ended)?;
        let appender = Appender::create(&self.log.path, self.log.directory, before.end(), &self.table)?;
        before.sealed();
        let end = appender.end();
        self.log.segments.write().insert(end.segment, Index::of_empty(end.seal.end));
        self.appender = Some(appender);
        Ok(())
    }

    fn roll(&mut self) -> Result<(), PortError> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        if self.is_segment_empty() {
            return Ok(());
        }
        self.begin_segment().map_err(|error| self.write_failed(&error))
    }

    /// The end of the log, for a copy.
    fn mark(&mut self) -> Result<Mark, PortError> {
        match (self.refusal(), &self.appender) {
            (Some(refusal), _) => Err(refusal),
            (None, Some(appender)) => Ok(Mark { segment: appender.end().segment, end: appender.end().seal.end }),
            (None, None) => Err(closed()),
        }
    }

    /// Writes the last group of a life. It tells the next start that the group before was synced.
    fn end(&mut self) {
        if self.failed.is_none()
            && let Err(error) = self.write_state(Kind::End, self.table.latest, &[])
        {
            tracing::error!(%error, "could not mark the end of the embedded stream");
        }
    }

    fn fail(&mut self, error: &io::Error) {
        tracing::error!(%error, "the embedded stream cannot write; it accepts no more records");
        self.store.broke(error.to_string());
        self.failed = Some(error.to_string());
    }

    fn write_failed(&mut self, error: &io::Error) -> PortError {
        self.fail(error);
        write_failed(error)
    }

    fn write_state(&mut self, kind: Kind, at: Timestamp, meta: &[u8]) -> io::Result<()> {
        self.make_room(meta.len() as u64)?;
        let stamp = Stamp { arrived_at: at, polls: self.store.poll_changes() };
        let appender = self.appender.as_mut().ok_or_else(ended)?;
        appender.write_state(kind, stamp, meta)?;
        let end = appender.end();
        (self.table.latest, self.table.polls) = (self.table.latest.max(at), stamp.polls);
        self.log.segments.write().entry(end.segment).or_default().end = end.seal.end;
        Ok(())
    }

    fn forget(&mut self, shards: &[u32]) -> Result<(), PortError> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        let written = self.write_state(Kind::Forgotten, self.table.latest, &encode_forgotten(shards));
        written.map_err(|error| self.write_failed(&error))?;
        let mut known = self.log.shards.write();
        for shard in shards {
            known.remove(shard);
            self.table.shards.remove(shard);
            self.log.last_records.forget(*shard);
        }
        Ok(())
    }

    fn reshard(&mut self, parents: &[u32], children: Vec<HashRange>) -> Result<Vec<ShardId>, PortError> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        let now = self.log.clock.now();
        let mut changed = BTreeMap::new();
        for parent in parents {
            let open = self.table.shards.get(parent).map(|known| &known.definition);
            let open = open.filter(|definition| definition.closed_at.is_none());
            let closed = open.cloned().ok_or_else(|| PortError::permanent("the shard is closed already"))?;
            changed.insert(*parent, Definition { closed_at: Some(now), ..closed });
        }
        let first = self.table.shards.last_key_value().map_or(0, |(&index, _)| index + 1);
        let (created, created_at) = (self.table.number + 1, now);
        let new: Vec<_> = (first..)
            .zip(children)
            .map(|(index, range)| {
                (index, Definition { range, parents: parents.to_vec(), created, created_at, closed_at: None })
            })
            .collect();
        changed.extend(new.iter().cloned());
        let written = self.write_state(Kind::Shards, now, &encode_shards(&changed));
        written.map_err(|error| self.write_failed(&error))?;
        for (index, definition) in changed {
            self.table.define(index, definition);
        }
        {
            let mut shards = self.log.shards.write();
            for parent in parents {
                if let Some(parent) = shards.get(parent) {
                    parent.tail.send_modify(|tail| tail.closed_at = Some(now));
                }
            }
            for (index, definition) in &new {
                self.log.last_records.begin(*index, 0);
                shards.insert(*index, ShardState::new(*index, definition, 0, 0));
            }
        }
        self.find_open_shards();
        Ok(new.iter().map(|(index, _)| super::shard_id(*index)).collect())
    }
}

/// The error after a failed attempt to begin a segment.
fn ended() -> io::Error {
    io::Error::other("the log has no open segment")
}
