//! Converts the log of formats 1 to 3, which was a database, to segments.
//!
//! Must never lose or renumber a record. The segments are written next to the database. The database is removed only
//! after the directory says that it has the present format. An interrupted conversion is begun again.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `records` | shard u32, sequence u64, arrival i64, length u32 | the record |
//! | `shards` | 1, shard u32 | [`Definition`] |
//! | `shards` | 2, shard u32 | sequence and arrival of the last deleted record |

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    fs, io,
    path::Path,
};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, Slice};
use votestream_core::Timestamp;

use super::{
    SEGMENT_BYTES,
    append::{Appender, End, Put, Stamp},
    segment,
    table::{Definition, Known, Table},
};
use crate::{
    codec::{Corrupt, Decoder},
    directory::{OpenError, sync_directory, unless_missing},
    fjall_journal::{self, Synced},
};

/// Most records of a converted group.
const GROUP_RECORDS_MAX: usize = 1_024;
/// Most bytes of a converted group.
const GROUP_BYTES_MAX: usize = 8 << 20;
/// Files of the database.
const DATABASE_FILES: [&str; 3] = ["version", "lock", "keyspaces"];

/// Key of a record in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RecordKey {
    // First field: records are converted in the order of their age.
    sequence: u64,
    shard: u32,
    arrived_at: Timestamp,
}

impl RecordKey {
    fn decode(bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut key = Decoder(bytes);
        let (shard, sequence, arrived_at) = (key.u32()?, key.u64()?, key.time()?);
        key.u32()?;
        key.end()?;
        Ok(Self { sequence, shard, arrived_at })
    }
}

/// Converts the database to segments in the same directory, and syncs them.
pub(crate) fn convert(path: &Path, directory: u128) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { directory: path.to_owned(), source };
    let (numbers, unfinished) = segment::list(path).map_err(io)?;
    let begun = numbers.into_iter().map(|number| segment::path(path, number)).chain(unfinished);
    begun.into_iter().try_for_each(fs::remove_file).map_err(io)?;
    // That log synced every put and every change of shards.
    fjall_journal::check(path, Synced::Each)?;
    let converting = Converting { path, directory };
    tracing::info!(path = %path.display(), "converting the log from an earlier format");
    let records = converting.run()?;
    tracing::info!(path = %path.display(), records, "converted the log from an earlier format");
    Ok(())
}

/// Removes the database that was converted.
pub(crate) fn remove_converted(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".jnl") || DATABASE_FILES.contains(&&*name) {
            let path = entry.path();
            unless_missing(if entry.file_type()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) })?;
        }
    }
    Ok(())
}

struct Converting<'a> {
    path: &'a Path,
    directory: u128,
}

impl Converting<'_> {
    fn failed(&self, source: fjall::Error) -> OpenError {
        OpenError::Database { path: self.path.to_owned(), source }
    }

    fn io(&self, source: io::Error) -> OpenError {
        OpenError::Io { directory: self.path.to_owned(), source }
    }

    fn damaged(&self, reason: String) -> OpenError {
        OpenError::Damaged { path: self.path.to_owned(), reason }
    }

    fn run(&self) -> Result<u64, OpenError> {
        let db = Database::builder(self.path).open().map_err(|source| self.failed(source))?;
        let keyspace = |name| db.keyspace(name, KeyspaceCreateOptions::default).map_err(|source| self.failed(source));
        let (records, definitions) = (keyspace("records")?, keyspace("shards")?);
        let (mut table, number, latest) = self.table(&definitions)?;
        let mut heads = self.heads(&records, &table)?;
        // Records count up from here. The largest number that was assigned is written at the end.
        table.number = heads.queue.peek().map_or(number, |Reverse((key, _))| key.sequence - 1);
        let mut writing = Writing::begin(self, table)?;
        while let Some((key, value)) = heads.next(self)? {
            writing.push(key, value)?;
        }
        writing.flush()?;
        let table = &mut writing.table;
        (table.number, table.latest) = (table.number.max(number), table.latest.max(latest));
        writing.begin_segment()?;
        sync_directory(self.path).map_err(|source| self.io(source))?;
        Ok(writing.records)
    }

    /// The shards, and the largest number and the last clock time that are stored with them.
    fn table(&self, definitions: &Keyspace) -> Result<(Table, u64, Timestamp), OpenError> {
        let (mut table, mut deleted) = (Table::default(), BTreeMap::<u32, u64>::new());
        let (mut number, mut latest) = (0, Timestamp::ZERO);
        for guard in definitions.iter() {
            let (key, value) = guard.into_inner().map_err(|source| self.failed(source))?;
            let bad = |_| self.damaged(format!("entry {key:?} of the table of shards"));
            let mut key = Decoder(&key);
            let (kind, shard) = (key.u8().map_err(bad)?, key.u32().map_err(bad)?);
            match kind {
                1 => {
                    let definition = Definition::decode(&value).map_err(bad)?;
                    number = number.max(definition.created);
                    latest = latest.max(definition.created_at).max(definition.closed_at.unwrap_or_default());
                    table.shards.insert(shard, Known { definition, last: 0 });
                }
                2 => {
                    let mut value = Decoder(&value);
                    let (sequence, at) = (value.u64().map_err(bad)?, value.time().map_err(bad)?);
                    (number, latest) = (number.max(sequence), latest.max(at));
                    deleted.insert(shard, sequence);
                }
                _ => return Err(bad(Corrupt)),
            }
        }
        for (shard, sequence) in deleted {
            if let Some(known) = table.shards.get_mut(&shard) {
                known.last = sequence;
            }
        }
        Ok((table, number, latest))
    }

    fn heads(&self, records: &Keyspace, table: &Table) -> Result<Heads, OpenError> {
        let mut heads = Heads { shards: BTreeMap::new(), queue: BinaryHeap::new() };
        for &shard in table.shards.keys() {
            heads.shards.insert(shard, records.prefix(shard.to_be_bytes()));
            heads.advance(self, shard)?;
        }
        Ok(heads)
    }
}

/// The next record of each shard.
struct Heads {
    shards: BTreeMap<u32, fjall::Iter>,
    queue: BinaryHeap<Reverse<(RecordKey, Slice)>>,
}

impl Heads {
    fn next(&mut self, converting: &Converting<'_>) -> Result<Option<(RecordKey, Slice)>, OpenError> {
        let Some(Reverse((key, value))) = self.queue.pop() else { return Ok(None) };
        self.advance(converting, key.shard)?;
        Ok(Some((key, value)))
    }

    fn advance(&mut self, converting: &Converting<'_>, shard: u32) -> Result<(), OpenError> {
        let Some(guard) = self.shards.get_mut(&shard).and_then(Iterator::next) else { return Ok(()) };
        let (key, value) = guard.into_inner().map_err(|source| converting.failed(source))?;
        let key = RecordKey::decode(&key).map_err(|_| converting.damaged(format!("record {key:?}")))?;
        self.queue.push(Reverse((key, value)));
        Ok(())
    }
}

/// The segments that are being written.
struct Writing<'a> {
    converting: &'a Converting<'a>,
    table: Table,
    appender: Appender,
    group: Vec<(RecordKey, Slice)>,
    bytes: usize,
    records: u64,
}

impl<'a> Writing<'a> {
    fn begin(converting: &'a Converting<'a>, table: Table) -> Result<Self, OpenError> {
        let mut appender = Appender::create(converting.path, converting.directory, End::NOTHING, &table)
            .map_err(|source| converting.io(source))?;
        appender.defer_syncs();
        Ok(Self { converting, table, appender, group: Vec::new(), bytes: 0, records: 0 })
    }

    /// Adds a record. Records that were put together have one arrival time and consecutive numbers; the same holds for
    /// the records of a group.
    fn push(&mut self, key: RecordKey, value: Slice) -> Result<(), OpenError> {
        let follows = self
            .group
            .last()
            .is_none_or(|(last, _)| last.sequence + 1 == key.sequence && last.arrived_at == key.arrived_at);
        if !follows || self.group.len() >= GROUP_RECORDS_MAX || self.bytes + value.len() > GROUP_BYTES_MAX {
            self.flush()?;
        }
        self.bytes += value.len();
        self.group.push((key, value));
        Ok(())
    }

    fn flush(&mut self) -> Result<(), OpenError> {
        let Some(first) = self.group.first().map(|(key, _)| *key) else { return Ok(()) };
        if self.appender.end().seal.end + self.bytes as u64 > SEGMENT_BYTES {
            self.begin_segment()?;
        }
        let puts: Vec<_> = self.group.iter().map(|(key, data)| Put { shard: key.shard, data }).collect();
        let stamp = Stamp { arrived_at: first.arrived_at, polls: 0 };
        self.appender.append(stamp, first.sequence, &puts).map_err(|source| self.converting.io(source))?;
        for (key, _) in self.group.drain(..) {
            let damaged =
                |_| self.converting.damaged(format!("record {} belongs to no shard, or is stored twice", key.sequence));
            self.table.append(key.shard, key.sequence).map_err(damaged)?;
            self.records += 1;
        }
        self.table.latest = self.table.latest.max(first.arrived_at);
        self.bytes = 0;
        Ok(())
    }

    fn begin_segment(&mut self) -> Result<(), OpenError> {
        let io = |source| self.converting.io(source);
        self.appender.sync().map_err(io)?;
        let Converting { path, directory } = *self.converting;
        let mut next = Appender::create(path, directory, self.appender.end(), &self.table).map_err(io)?;
        next.defer_syncs();
        std::mem::replace(&mut self.appender, next).sealed();
        Ok(())
    }
}
