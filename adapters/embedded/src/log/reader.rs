//! Reads one shard.
//!
//! Must never skip a record: if records have left retention, the reader reports it, even if they leave while it reads.
//! Must never return bytes that are not what was written.

use std::{io, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use votestream_core::{
    SequenceNumber,
    port::{PortError, ReadOutcome, Record, RecordReader},
};

use super::{
    Log, ShardState, Tail,
    format::{Entry, GROUP_HEADER_BYTES, GroupHeader, Kind, SegmentHeader, entries, record_checksum},
    segment::{self, At, CHUNK_BYTES, Window},
    tail::Limits,
};
use crate::{blocking, read_failed};

/// The most that one call reads.
const READ_MAX: Limits = Limits { records: 64, bytes: 2 << 20 };
/// How long a call waits for a record.
const READ_WAIT: Duration = Duration::from_millis(100);

pub(super) struct Reader {
    log: Arc<Log>,
    shard: Arc<ShardState>,
    tail: watch::Receiver<Tail>,
    after: u64,
    /// Position of the next group while records are read from files.
    cursor: Option<Cursor>,
}

impl Reader {
    pub(super) fn new(log: Arc<Log>, shard: Arc<ShardState>, after: u64) -> Self {
        let tail = shard.tail.subscribe();
        Self { log, shard, tail, after, cursor: None }
    }

    /// Reads records up to `last`: from memory if it has all of them, otherwise from files.
    async fn read(&mut self, last: u64) -> Result<Vec<Record>, PortError> {
        let (shard, after) = (self.shard.index, self.after);
        if let Some(records) = self.log.last_records.read(shard, after, last, READ_MAX) {
            self.cursor = None;
            return Ok(records);
        }
        let (log, cursor) = (self.log.clone(), self.cursor.take());
        let (records, cursor) = blocking(move || {
            let mut scan = Scan { log: &log, shard, after, last, limits: READ_MAX, records: Vec::new() };
            let cursor = scan.run(cursor)?;
            Ok((scan.records, cursor))
        })
        .await?;
        self.cursor = cursor;
        Ok(records)
    }
}

#[async_trait]
impl RecordReader for Reader {
    async fn next(&mut self) -> Result<ReadOutcome, PortError> {
        let after = self.after;
        let readable = self.tail.wait_for(|tail| tail.last > after || tail.closed_at.is_some());
        // A timeout needs no handling: the read below finds nothing then.
        drop(tokio::time::timeout(READ_WAIT, readable).await);
        let tail = *self.tail.borrow();
        let records = if tail.last > after { self.read(tail.last).await } else { Ok(Vec::new()) };
        // Check after the read: `deleted` is raised before a file is deleted, so it shows whether the read missed
        // records.
        if self.shard.deleted() > after {
            return Ok(ReadOutcome::Expired);
        }
        let records = records?;
        match records.last() {
            Some(last) => self.after = last.sequence.as_u64().unwrap_or(after),
            None if tail.closed_at.is_some() => return Ok(ReadOutcome::ShardEnd),
            None => {}
        }
        Ok(ReadOutcome::Records(records))
    }
}

/// The position of a group in an open file.
struct Cursor {
    segment: u64,
    seed: u64,
    at: u64,
    window: Window,
}

/// One call that reads from files.
struct Scan<'a> {
    log: &'a Log,
    shard: u32,
    after: u64,
    last: u64,
    limits: Limits,
    records: Vec<Record>,
}

impl Scan<'_> {
    /// Reads until the limits or the last record are reached. Returns where to go on; `None` if the index must be asked
    /// again.
    fn run(&mut self, cursor: Option<Cursor>) -> Result<Option<Cursor>, PortError> {
        let begin = match cursor {
            None => self.find()?,
            some => some,
        };
        let Some(mut cursor) = begin else { return Ok(None) };
        loop {
            let group = cursor.window.group(cursor.seed, cursor.at).map_err(read_failed)?;
            let At::Group(group, meta) = group else { return Err(self.damaged(&cursor)) };
            if group.kind == Kind::Records && !self.take(&mut cursor, &group, &meta)? {
                return Ok(Some(cursor));
            }
            if self.after >= self.last {
                return Ok(None);
            }
            let next = cursor.at + group.size();
            if next / CHUNK_BYTES == cursor.at / CHUNK_BYTES && next < self.end_of(cursor.segment) {
                cursor.at = next;
                continue;
            }
            // The index knows where to go on in the next chunk, unless that is in another segment.
            cursor = match self.jump(cursor, next)? {
                Some(cursor) => cursor,
                None => return Ok(None),
            };
        }
    }

    fn end_of(&self, segment: u64) -> u64 {
        self.log.segments.read().get(&segment).map_or(0, |index| index.end)
    }

    fn find(&self) -> Result<Option<Cursor>, PortError> {
        let segments = self.log.segments.read();
        let found = segments.iter().find_map(|(number, index)| Some((*number, index.find(self.shard, self.after)?)));
        drop(segments);
        found.map(|(segment, at)| self.open(segment, at)).transpose()
    }

    fn jump(&self, cursor: Cursor, from: u64) -> Result<Option<Cursor>, PortError> {
        let segments = self.log.segments.read();
        let here = segments.get(&cursor.segment).and_then(|index| index.next(self.shard, from));
        if let Some(at) = here {
            return Ok(Some(Cursor { at, ..cursor }));
        }
        let mut later = segments.range(cursor.segment + 1..);
        let found = later.find_map(|(number, index)| Some((*number, index.next(self.shard, 0)?)));
        drop(segments);
        found.map(|(segment, at)| self.open(segment, at)).transpose()
    }

    fn open(&self, segment: u64, at: u64) -> Result<Cursor, PortError> {
        let path = segment::path(&self.log.path, segment);
        let window = Window::open(&path);
        let window = window.map_err(|error: io::Error| read_failed(format!("{}: {error}", path.display())))?;
        let header = SegmentHeader { directory: self.log.directory, number: segment, before: Default::default() };
        Ok(Cursor { segment, seed: header.seed(), at, window })
    }

    /// Takes the shard's records from a group. Returns false if the limits are reached before the end of the group.
    fn take(&mut self, cursor: &mut Cursor, group: &GroupHeader, meta: &[u8]) -> Result<bool, PortError> {
        let entries = entries(group, meta).map_err(|_| self.damaged(cursor))?;
        let data = cursor.at + GROUP_HEADER_BYTES as u64 + u64::from(group.meta_len);
        for (sequence, place, entry) in entries {
            if entry.shard != self.shard || sequence <= self.after || sequence > self.last {
                continue;
            }
            if !self.limits.take(entry.len as usize) {
                return Ok(false);
            }
            let data = self.data(cursor, data + place, sequence, entry)?;
            self.records.push(Record {
                sequence: SequenceNumber::from_u64(sequence),
                arrived_at: group.arrived_at,
                partition_key: String::new(),
                data,
            });
            self.after = sequence;
        }
        Ok(true)
    }

    fn data(&self, cursor: &mut Cursor, at: u64, sequence: u64, entry: Entry) -> Result<Bytes, PortError> {
        let data = cursor.window.read(at, entry.len as usize).map_err(read_failed)?;
        if data.len() != entry.len as usize || record_checksum(cursor.seed, sequence, data) != entry.checksum {
            return Err(self.damaged(cursor));
        }
        Ok(Bytes::copy_from_slice(data))
    }

    fn damaged(&self, cursor: &Cursor) -> PortError {
        let path = segment::path(&self.log.path, cursor.segment);
        PortError::permanent(format!("the log is damaged: {}, byte {}", path.display(), cursor.at))
    }
}
