//! The one thread that writes records: it gives out sequence numbers and arrival times, and shares each sync between all
//! puts that wait.
//!
//! Must never answer a put before its record is synced, and never go on after a failed write: what the journal holds by then
//! is unknown, and a record behind a hole would be lost at the next start.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use fjall::PersistMode;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use votestream_core::{
    Clock, HashRange, SequenceNumber, ShardId,
    port::{PortError, Stored},
};

use super::{Definition, Log, RecordKey, ShardState, definition_key};
use crate::write_failed;

/// Most records that share a sync.
const GROUP_RECORDS_MAX: usize = 1_024;
/// Most bytes that share a sync: the answers of the first must not wait for too many others.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// How long a group waits for a put that came with the last group: less than a sync takes.
const GATHER_WAIT: Duration = Duration::from_micros(100);

/// What the writer is asked to do.
pub(super) enum Command {
    /// Append a record.
    Put {
        hash: u128,
        data: Bytes,
        answer: oneshot::Sender<Result<Stored, PortError>>,
        /// Room in the queue, given back with the answer.
        _permit: OwnedSemaphorePermit,
    },
    /// Close `parents`, which own together what `children` will own.
    Reshard { parents: Vec<u32>, children: Vec<HashRange>, answer: oneshot::Sender<Result<Vec<ShardId>, PortError>> },
    /// End.
    Stop,
}

struct Put {
    hash: u128,
    data: Bytes,
    answer: oneshot::Sender<Result<Stored, PortError>>,
    permit: OwnedSemaphorePermit,
}

/// The next command that is there. With `expected`, gives the lanes that were answered last a moment to put again: else the
/// fastest of them would have a sync to itself each time.
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
    definitions: BTreeMap<u32, Definition>,
    /// Open shards in the order of their hashes.
    open: Vec<Arc<ShardState>>,
    /// The largest number that was given out.
    number: u64,
    /// Set by the first failed write.
    failed: Option<String>,
}

impl Writer {
    pub(super) fn new(log: Arc<Log>, definitions: BTreeMap<u32, Definition>, number: u64) -> Self {
        let mut writer = Self { log, definitions, open: Vec::new(), number, failed: None };
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
            // Gather puts until the queue is empty, the group is full, or something else comes.
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
            match other {
                None | Some(Command::Put { .. }) => {}
                Some(Command::Reshard { parents, children, answer }) => {
                    // Nobody may wait for the answer any more.
                    drop(answer.send(self.reshard(&parents, children)));
                }
                Some(Command::Stop) => break,
            }
            next = commands.blocking_recv();
        }
        commands.close();
        while let Ok(command) = commands.try_recv() {
            match command {
                Command::Put { answer, .. } => drop(answer.send(Err(closed()))),
                Command::Reshard { answer, .. } => drop(answer.send(Err(closed()))),
                Command::Stop => {}
            }
        }
    }

    fn refusal(&self) -> Option<PortError> {
        self.failed.as_ref().map(|why| {
            PortError::permanent(format!("the embedded stream takes no more, since a write has failed: {why}"))
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
        let arrived_at = self.log.clock.now();
        // Nothing but the length and the blocks of the file is needed to read it.
        let mut batch = self.log.db.batch().durability(Some(PersistMode::SyncData));
        let (mut stored, mut bytes) = (Vec::with_capacity(puts.len()), 0);
        for put in puts.iter() {
            let at = self.open.partition_point(|shard| shard.range.end < put.hash);
            // The open shards own every hash; were one missing, the put is refused rather than stored elsewhere.
            let Some(shard) = self.open.get(at).filter(|shard| shard.range.contains(put.hash)) else {
                stored.push(None);
                continue;
            };
            self.number += 1;
            let key = RecordKey { shard: shard.index, sequence: self.number, arrived_at, len: put.data.len() as u32 };
            batch.insert(&self.log.records, key.to_bytes(), &put.data[..]);
            bytes += put.data.len() as u64;
            stored.push(Some((at, self.number)));
        }
        if let Err(error) = batch.commit() {
            self.fail(&error);
            for put in puts.drain(..) {
                drop(put.answer.send(Err(write_failed(&error))));
            }
            return;
        }
        self.log.bytes.fetch_add(bytes, Ordering::Relaxed);
        // Each shard's readers are woken once a group.
        let mut last = vec![0; self.open.len()];
        for &(at, number) in stored.iter().flatten() {
            last[at] = number;
        }
        for (shard, &last) in self.open.iter().zip(&last).filter(|&(_, &last)| last > 0) {
            shard.tail.send_modify(|tail| tail.last = last);
        }
        for (put, stored) in puts.drain(..).zip(stored) {
            let answer = match stored {
                Some((at, number)) => {
                    Ok(Stored { shard: self.open[at].id.clone(), sequence: SequenceNumber::from_u64(number) })
                }
                None => Err(PortError::permanent(format!("no open shard owns the hash {}", put.hash))),
            };
            drop(put.permit);
            drop(put.answer.send(answer));
        }
    }

    fn fail(&mut self, error: &fjall::Error) {
        tracing::error!(%error, "the embedded stream cannot write; it takes no more records");
        self.log.store.broke(error);
        self.failed = Some(error.to_string());
    }

    fn reshard(&mut self, parents: &[u32], children: Vec<HashRange>) -> Result<Vec<ShardId>, PortError> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        let now = self.log.clock.now();
        let mut changed = BTreeMap::new();
        for parent in parents {
            let definition = self.definitions.get(parent).filter(|definition| definition.closed_at.is_none());
            let closed = definition.cloned().ok_or_else(|| PortError::permanent("the shard is closed already"))?;
            changed.insert(*parent, Definition { closed_at: Some(now), ..closed });
        }
        self.number += 1;
        let first = self.definitions.last_key_value().map_or(0, |(&index, _)| index + 1);
        let (created, created_at) = (self.number, now);
        let new: Vec<_> = (first..)
            .zip(children)
            .map(|(index, range)| {
                (index, Definition { range, parents: parents.to_vec(), created, created_at, closed_at: None })
            })
            .collect();
        changed.extend(new.iter().cloned());
        let mut batch = self.log.db.batch().durability(Some(PersistMode::SyncAll));
        for (&index, definition) in &changed {
            batch.insert(&self.log.definitions, definition_key(index), definition.encode());
        }
        if let Err(error) = batch.commit() {
            self.fail(&error);
            return Err(write_failed(error));
        }
        self.definitions.extend(changed);
        {
            let mut shards = self.log.shards.write();
            for parent in parents {
                if let Some(parent) = shards.get(parent) {
                    parent.tail.send_modify(|tail| tail.closed_at = Some(now));
                }
            }
            shards.extend(new.iter().map(|(index, definition)| (*index, ShardState::new(*index, definition, 0, 0))));
        }
        self.find_open_shards();
        Ok(new.iter().map(|(index, _)| super::shard_id(*index)).collect())
    }
}
