//! Segment files: their names, the positions of a shard's records in them, and how they are read.
//!
//! Owns the index, which is small: one position per shard and MiB. Must never read more of a file at once than a group
//! needs.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use votestream_core::Timestamp;

use super::format::{GROUP_HEADER_BYTES, GroupHeader, checksum};

/// End of a segment's file name.
const SUFFIX: &str = ".segment";
/// End of the file name of a segment that is being made.
const NEW_SUFFIX: &str = ".new";
/// The index has one position per shard in this many bytes. So a reader reads at most this many bytes to find a record.
pub(super) const CHUNK_BYTES: u64 = 1 << 20;
/// Least bytes that are read at once: several groups if they are small.
const WINDOW_BYTES: usize = 64 << 10;

/// The file of a segment.
pub(super) fn path(log: &Path, number: u64) -> PathBuf {
    log.join(format!("{number:010}{SUFFIX}"))
}

/// The file of a segment that is being made.
pub(super) fn new_path(log: &Path, number: u64) -> PathBuf {
    log.join(format!("{number:010}{NEW_SUFFIX}"))
}

/// Lists a directory: the numbers of its segments in order, and the files of segments that were never completed.
pub(super) fn list(log: &Path) -> io::Result<(Vec<u64>, Vec<PathBuf>)> {
    let (mut numbers, mut unfinished) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(log)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.ends_with(NEW_SUFFIX) {
            unfinished.push(entry.path());
        } else if let Some(number) = name.strip_suffix(SUFFIX).and_then(|number| number.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok((numbers, unfinished))
}

/// Positions of one shard's records in a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Places {
    /// Number of the last record.
    last: u64,
    /// For each chunk that has records of the shard: the number of the first record, and the position of its group.
    first: Vec<(u64, u64)>,
}

/// The content of a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    /// End of the last group.
    pub(super) end: u64,
    /// Total bytes of its records.
    pub(super) bytes: u64,
    /// Arrival of its last record.
    pub(super) latest: Timestamp,
    shards: BTreeMap<u32, Places>,
}

impl Index {
    /// The index of a segment without records that ends here.
    pub(super) fn of_empty(end: u64) -> Self {
        Self { end, ..Self::default() }
    }

    /// Adds a record that was appended in the group at this position.
    pub(super) fn add(&mut self, shard: u32, sequence: u64, group: u64, len: u32, arrived_at: Timestamp) {
        let places = self.shards.entry(shard).or_default();
        places.last = sequence;
        if places.first.last().is_none_or(|(_, place)| place / CHUNK_BYTES != group / CHUNK_BYTES) {
            places.first.push((sequence, group));
        }
        self.bytes += u64::from(len);
        self.latest = self.latest.max(arrived_at);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    /// Each shard that has records here, with the number of its last record.
    pub(super) fn last_of_shards(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.shards.iter().map(|(shard, places)| (*shard, places.last))
    }

    /// Where to start reading a shard's records after `after`, if there are any.
    pub(super) fn find(&self, shard: u32, after: u64) -> Option<u64> {
        let places = self.shards.get(&shard).filter(|places| places.last > after)?;
        let at = places.first.partition_point(|(sequence, _)| *sequence <= after);
        places.first.get(at.saturating_sub(1)).map(|(_, place)| *place)
    }

    /// The first position at or behind `from` where records of a shard may be.
    pub(super) fn next(&self, shard: u32, from: u64) -> Option<u64> {
        let places = self.shards.get(&shard)?;
        let at = places.first.partition_point(|(_, place)| *place < from);
        places.first.get(at).map(|(_, place)| *place)
    }
}

/// A file that is read from front to back.
pub(super) struct Window {
    file: File,
    start: u64,
    bytes: Vec<u8>,
}

/// What is at a position of a file.
pub(super) enum At {
    /// The header and meta data of a group. Their checksum is right.
    Group(GroupHeader, Vec<u8>),
    /// Anything else, or the end of the file.
    Nothing,
}

impl Window {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, start: 0, bytes: Vec::new() })
    }

    /// Reads `len` bytes at a position; fewer at the end of the file.
    pub(super) fn read(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let inside = |start: u64, held: usize| {
            let from = usize::try_from(at.checked_sub(start)?).ok()?;
            (from.checked_add(len)? <= held).then_some(from)
        };
        let from = match inside(self.start, self.bytes.len()) {
            Some(from) => from,
            None => {
                self.fill(at, len.max(WINDOW_BYTES))?;
                0
            }
        };
        Ok(&self.bytes[from..self.bytes.len().min(from + len)])
    }

    fn fill(&mut self, at: u64, len: usize) -> io::Result<()> {
        (self.start, self.bytes) = (at, std::mem::take(&mut self.bytes));
        self.bytes.resize(len, 0);
        let mut filled = 0;
        while filled < len {
            match self.file.read_at(&mut self.bytes[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.bytes.clear();
                    return Err(error);
                }
            }
        }
        self.bytes.truncate(filled);
        Ok(())
    }

    /// The group at a position, if there is one. Does not check its data.
    pub(super) fn group(&mut self, seed: u64, at: u64) -> io::Result<At> {
        let Ok(header) = GroupHeader::decode(self.read(at, GROUP_HEADER_BYTES)?) else { return Ok(At::Nothing) };
        let whole = self.read(at, GROUP_HEADER_BYTES + header.meta_len as usize)?;
        let Some((head, meta)) = whole.split_at_checked(GROUP_HEADER_BYTES) else { return Ok(At::Nothing) };
        if meta.len() != header.meta_len as usize || checksum(seed, head, meta) != header.checksum {
            return Ok(At::Nothing);
        }
        Ok(At::Group(header, meta.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_leads_to_every_record_and_over_none() {
        let mut index = Index::default();
        // Groups of 100 kB. Every third has a record of shard 0, every fiftieth has one of shard 1.
        let groups: Vec<_> = (1..500u64).map(|sequence| (sequence, 64 + sequence * 100_000)).collect();
        let has = |shard: u32, sequence: u64| sequence.is_multiple_of(if shard == 0 { 3 } else { 50 });
        for &(sequence, place) in &groups {
            for shard in (0..2).filter(|shard| has(*shard, sequence)) {
                index.add(shard, sequence, place, 1, Timestamp(sequence as i64));
            }
        }
        for shard in 0..2 {
            let of_shard: Vec<_> = groups.iter().filter(|(sequence, _)| has(shard, *sequence)).collect();
            for after in 0..500 {
                let wanted = of_shard.iter().find(|(sequence, _)| *sequence > after).map(|(_, place)| *place);
                let found = index.find(shard, after);
                assert_eq!(found.is_some(), wanted.is_some());
                // Not behind the record. Between the last record that was read and this position lies at most the rest
                // of a chunk.
                assert!(found <= wanted);
                if let (Some(found), Some(wanted)) = (found, wanted)
                    && found / CHUNK_BYTES != wanted / CHUNK_BYTES
                {
                    let next = (found / CHUNK_BYTES + 1) * CHUNK_BYTES;
                    assert!(index.next(shard, next).unwrap() <= wanted, "the way from chunk to chunk");
                }
            }
        }
        assert_eq!((index.find(2, 0), index.next(2, 0), index.find(0, 498)), (None, None, None));
        assert_eq!((index.bytes, index.latest), (166 + 9, Timestamp(498)));
    }

    #[test]
    fn files_are_listed_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        for number in [10, 2, 9_999_999_999] {
            fs::write(path(dir.path(), number), "").unwrap();
        }
        fs::write(new_path(dir.path(), 3), "").unwrap();
        fs::write(dir.path().join("notes.txt"), "").unwrap();
        let (numbers, unfinished) = list(dir.path()).unwrap();
        assert_eq!((numbers, unfinished), (vec![2, 10, 9_999_999_999], vec![new_path(dir.path(), 3)]));
    }

    #[test]
    fn a_window_reads_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let bytes: Vec<u8> = (0..200_000u32).map(|at| (at % 251) as u8).collect();
        fs::write(&file, &bytes).unwrap();
        let mut window = Window::open(&file).unwrap();
        for (at, len) in [(0, 10), (5, 64 << 10), (70_000, 100_000), (69_999, 3), (199_990, 50), (300_000, 4), (0, 1)] {
            let expected = bytes.get(at..).map_or(&[][..], |rest| &rest[..rest.len().min(len)]);
            assert_eq!(window.read(at as u64, len).unwrap(), expected, "{at}, {len}");
        }
    }
}
