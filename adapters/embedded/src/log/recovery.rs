//! Reads the log at a start: its segments, whether they are whole, and the state that results.
//!
//! Owns the decision between a torn tail and damage. Must never discard what might have been acknowledged. Must never
//! change a file before everything was checked.
//!
//! - Groups are synced one after the other, and a group is acknowledged after its sync. So a power failure can damage
//!   only the last group of the last segment, and nobody was told that this group was stored. This is a *torn tail*. It
//!   is discarded, and a log line says so.
//! - A group behind a damaged one proves that the damaged one was synced. This is *damage*, and the start is refused.
//!   Any error in a segment that is not the last one is damage, too: the next segment was made after its last group was
//!   synced, and says where it ends.
//! - The last group may exist only in the system's memory, if the process that wrote it was killed or its sync failed.
//!   It is written again and synced before anybody can read it.
//!
//! In segments before the last one, the data of records that both groups have processed are not read: otherwise a start
//! would read the whole log.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{
    append::End,
    format::{
        ALIGNMENT, GROUP_HEADER_BYTES, GROUP_MAGIC, GroupHeader, Kind, SEGMENT_HEADER_BYTES, Seal, SegmentHeader,
        entries, record_checksum,
    },
    segment::{self, At, Index, Window},
    table::Table,
};
use crate::{
    codec::last_nonzero,
    directory::{OpenError, sync_directory},
};

/// Bytes that are read at once when the end of a segment is searched.
const SEARCH_BYTES: usize = 1 << 20;

/// What was found in the log.
pub(super) struct Recovered {
    pub(super) table: Table,
    pub(super) segments: BTreeMap<u64, Index>,
    /// The last record of each shard that left retention.
    pub(super) deleted: BTreeMap<u32, u64>,
    pub(super) end: End,
    /// The largest number that was assigned before the last life began.
    pub(super) life_from: u64,
    /// Where the last group begins.
    last: u64,
    /// Number of bytes behind the last whole group, if they are not all zeros.
    torn: Option<u64>,
    unfinished: Vec<PathBuf>,
    directory: PathBuf,
}

/// Reads a log. `unprocessed` says whether a group has not processed a record yet. Changes nothing.
pub(super) fn read(
    log: &Path,
    directory: u128,
    unprocessed: &dyn Fn(u32, u64) -> bool,
) -> Result<Recovered, OpenError> {
    let io = |source| OpenError::Io { directory: log.to_owned(), source };
    let (numbers, unfinished) = segment::list(log).map_err(io)?;
    let Some(&first) = numbers.first() else {
        return Err(OpenError::Incomplete { directory: log.to_owned(), reason: "the log has no segment".to_owned() });
    };
    let mut found = Recovered {
        table: Table::default(),
        segments: BTreeMap::new(),
        deleted: BTreeMap::new(),
        end: End::NOTHING,
        life_from: 0,
        last: 0,
        torn: None,
        unfinished,
        directory: log.to_owned(),
    };
    let mut headers = Vec::with_capacity(numbers.len());
    for (number, expected) in numbers.into_iter().zip(first..) {
        let path = segment::path(log, expected);
        if number != expected {
            return Err(damaged(&path, 0, "the file is missing, but later ones are there"));
        }
        headers.push(read_header(&path, number, directory)?);
    }
    for (at, header) in headers.iter().enumerate() {
        let seal = headers.get(at + 1).map(|next| next.before);
        let mut reading = Reading::new(log, header, seal, unprocessed)?;
        reading.run(&mut found)?;
    }
    Ok(found)
}

fn damaged(file: &Path, offset: u64, reason: impl Into<String>) -> OpenError {
    OpenError::DamagedLog { file: file.to_owned(), offset, reason: reason.into() }
}

fn read_header(path: &Path, number: u64, directory: u128) -> Result<SegmentHeader, OpenError> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    match read {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(damaged(path, 0, "the file ends before its header does"));
        }
        Err(source) => return Err(OpenError::Io { directory: path.to_owned(), source }),
    }
    let header = SegmentHeader::decode(&bytes).map_err(|_| damaged(path, 0, "the header of the segment is damaged"))?;
    if header.directory != directory {
        return Err(OpenError::Foreign { path: path.to_owned(), found: header.directory, wanted: directory });
    }
    if header.number != number {
        return Err(damaged(path, 0, format!("it is segment {}, under another name", header.number)));
    }
    Ok(header)
}

/// One segment while it is read.
struct Reading<'a> {
    path: PathBuf,
    number: u64,
    seed: u64,
    before: Seal,
    window: Window,
    /// Where the segment must end; set if another segment follows.
    seal: Option<Seal>,
    unprocessed: &'a dyn Fn(u32, u64) -> bool,
}

/// The result of reading a group.
enum Next {
    Whole(GroupHeader, Vec<u8>),
    /// There is no group, or it is not whole, for this reason.
    Not(&'static str),
}

impl<'a> Reading<'a> {
    fn new(
        log: &Path,
        header: &SegmentHeader,
        seal: Option<Seal>,
        unprocessed: &'a dyn Fn(u32, u64) -> bool,
    ) -> Result<Self, OpenError> {
        let path = segment::path(log, header.number);
        let window = Window::open(&path).map_err(|source| OpenError::Io { directory: path.clone(), source })?;
        let (number, seed, before) = (header.number, header.seed(), header.before);
        Ok(Self { path, number, seed, before, window, seal, unprocessed })
    }

    fn io(&self, source: io::Error) -> OpenError {
        OpenError::Io { directory: self.path.clone(), source }
    }

    fn run(&mut self, found: &mut Recovered) -> Result<(), OpenError> {
        let first = found.segments.is_empty();
        if first {
            found.end.seal = self.before;
        } else if found.end.seal != self.before {
            return Err(damaged(&self.path, 0, "the segment does not follow the segment before it"));
        }
        let mut index = Index::of_empty(SEGMENT_HEADER_BYTES as u64);
        let mut end =
            End { segment: self.number, seal: Seal { end: index.end, ..self.before }, group: found.end.group };
        while self.seal.is_none_or(|seal| end.seal.end < seal.end) {
            let at = end.seal.end;
            match self.next(at).map_err(|error| self.io(error))? {
                Next::Whole(group, meta) => {
                    // The number of the very first group is accepted as it is: the groups before it were deleted.
                    let follows = end.group == 0 && first || group.number == end.group + 1;
                    if !follows || group.previous != end.seal.checksum {
                        return Err(damaged(&self.path, at, "a group does not follow the one before it"));
                    }
                    self.apply(found, &mut index, at, &group, &meta)?;
                    found.last = at;
                    end.group = group.number;
                    end.seal = Seal { end: at + group.size(), checksum: group.checksum };
                }
                Next::Not(reason) => {
                    self.end_of_log(found, at, reason)?;
                    break;
                }
            }
        }
        if self.seal.is_some_and(|seal| seal != end.seal) {
            return Err(damaged(&self.path, end.seal.end, "the segment does not end where the next segment says"));
        }
        if end.group == found.end.group {
            return Err(damaged(&self.path, end.seal.end, "the segment holds no group"));
        }
        index.end = end.seal.end;
        found.end = end;
        found.segments.insert(self.number, index);
        Ok(())
    }

    fn next(&mut self, at: u64) -> io::Result<Next> {
        let At::Group(group, meta) = self.window.group(self.seed, at)? else {
            return Ok(Next::Not("a group is damaged"));
        };
        if group.kind == Kind::Records {
            let Ok(entries) = entries(&group, &meta) else { return Ok(Next::Not("a group is damaged")) };
            let data = at + GROUP_HEADER_BYTES as u64 + u64::from(group.meta_len);
            for (sequence, place, entry) in entries {
                // In the last segment, any group may be the one that was not synced, so its records are always checked.
                if self.seal.is_some() && !(self.unprocessed)(entry.shard, sequence) {
                    continue;
                }
                let bytes = self.window.read(data + place, entry.len as usize)?;
                if bytes.len() != entry.len as usize || record_checksum(self.seed, sequence, bytes) != entry.checksum {
                    return Ok(Next::Not("a record is damaged"));
                }
            }
        }
        Ok(Next::Whole(group, meta))
    }

    fn apply(
        &self,
        found: &mut Recovered,
        index: &mut Index,
        at: u64,
        group: &GroupHeader,
        meta: &[u8],
    ) -> Result<(), OpenError> {
        let contradicts = |_| damaged(&self.path, at, "a group contradicts those before it");
        let begins = at == SEGMENT_HEADER_BYTES as u64;
        if begins != (group.kind == Kind::Table) {
            return Err(damaged(&self.path, at, "a segment does not begin with its table"));
        }
        let life = found.table.lives;
        found.table.apply(group, meta).map_err(contradicts)?;
        if found.table.lives != life {
            found.life_from = found.table.number;
        }
        if begins && found.segments.is_empty() {
            found.deleted = found.table.shards.iter().map(|(shard, known)| (*shard, known.last)).collect();
        }
        if group.kind == Kind::Records {
            for (sequence, _, entry) in entries(group, meta).map_err(contradicts)? {
                index.add(entry.shard, sequence, at, entry.len, group.arrived_at);
            }
        }
        Ok(())
    }

    /// Called when no further group can be read: decides whether nothing follows, a torn tail, or damage.
    fn end_of_log(&mut self, found: &mut Recovered, at: u64, reason: &str) -> Result<(), OpenError> {
        if self.seal.is_some() {
            return Err(damaged(&self.path, at, reason));
        }
        let (len, written) = self.search(at).map_err(|error| self.io(error))?;
        if let Some(later) = written {
            let reason = format!("{reason}, and a whole group follows at byte {later}");
            return Err(damaged(&self.path, at, reason));
        }
        found.torn = len.map(|end| end - at);
        Ok(())
    }

    /// Searches behind `from`. Returns the end of the last byte that is not zero, and the first whole group, wherever
    /// it begins.
    fn search(&mut self, from: u64) -> io::Result<(Option<u64>, Option<u64>)> {
        let mut end = None;
        let mut at = from;
        loop {
            let bytes = self.window.read(at, SEARCH_BYTES)?;
            if bytes.is_empty() {
                return Ok((end, None));
            }
            let len = bytes.len();
            if let Some(last) = last_nonzero(bytes) {
                end = Some(at + last as u64 + 1);
                let places = (0..last).step_by(ALIGNMENT as usize);
                let begins = places.filter(|place| bytes[*place..].starts_with(&GROUP_MAGIC));
                let begins: Vec<_> = begins.map(|place| at + place as u64).filter(|group| *group > from).collect();
                for group in begins {
                    if matches!(self.window.group(self.seed, group)?, At::Group(..)) {
                        return Ok((end, Some(group)));
                    }
                }
            }
            at += len as u64;
        }
    }
}

impl Recovered {
    #[cfg(test)]
    pub(super) fn last_group(&self) -> u64 {
        self.last
    }

    /// Prepares the log for new writes. Everything that is read from now on is durable.
    pub(super) fn settle(&self) -> Result<(), OpenError> {
        let last = segment::path(&self.directory, self.end.segment);
        let io = |source| OpenError::Io { directory: self.directory.clone(), source };
        if let Some(bytes) = self.torn {
            tracing::warn!(
                file = %last.display(), offset = self.end.seal.end, bytes,
                "the end of the log was being written when the machine or the process stopped; nothing of it was \
                 acknowledged, and it is discarded"
            );
        }
        rewrite(&last, self.last, self.end.seal.end).map_err(io)?;
        for unfinished in &self.unfinished {
            fs::remove_file(unfinished).map_err(io)?;
        }
        sync_directory(&self.directory).map_err(io)
    }
}

/// Writes the last group of a segment again, and syncs it. If a sync failed before, the system may have pages in its
/// memory that it believes to be written. A new write forces it to write them. Earlier groups were synced.
fn rewrite(path: &Path, from: u64, end: u64) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut buffer = vec![0; SEARCH_BYTES];
    let mut at = from;
    while at < end {
        let len = usize::try_from(end - at).map_or(SEARCH_BYTES, |left| left.min(SEARCH_BYTES));
        file.read_exact_at(&mut buffer[..len], at)?;
        file.write_all_at(&buffer[..len], at)?;
        at += len as u64;
    }
    file.sync_all()
}
