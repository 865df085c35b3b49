//! Appends groups to the last segment, with one sync per group.
//!
//! Owns the file that is written. Must never go on after a failed write or sync: the content of the file is unknown
//! then, and a system that could not write a page may report it as written later. Must never write a byte of a group
//! before the group before it is synced: then a power failure can damage only the last group.
//!
//! Small groups are written over zeros that are already on the disk. Then a sync only has to store the group: the
//! length of the file and its place on the disk do not change. For a large group this would not pay.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use votestream_core::Timestamp;

use super::{
    format::{
        ALIGNMENT, Entry, GROUP_HEADER_BYTES, GroupHeader, Kind, Seal, SegmentHeader, checksum, padded, record_checksum,
    },
    segment::{new_path, path},
    table::Table,
};
use crate::{codec::Encoder, directory::sync_directory};

/// Zeros that are written ahead at once. Their cost is shared by about 250 small groups.
const ZEROS_AHEAD: usize = 1 << 20;
/// Larger groups are not written over zeros: to write everything twice would cost more than it saves.
const SMALL_GROUP_BYTES: usize = 128 << 10;
/// Most memory that is kept for the next group.
const BUFFER_BYTES: usize = 1 << 20;

/// The end of the log, from which a new segment continues.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// Number of the segment.
    pub(super) segment: u64,
    pub(super) seal: Seal,
    /// Number of the last group.
    pub(super) group: u64,
}

impl End {
    /// The end of an empty log, before its first segment.
    pub(super) const NOTHING: Self = Self { segment: 0, seal: Seal { end: 0, checksum: 0 }, group: 0 };
}

/// A record to be appended.
pub(super) struct Put<'a> {
    pub(super) shard: u32,
    pub(super) data: &'a [u8],
}

/// What a group states besides its content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    pub(super) arrived_at: Timestamp,
    pub(super) polls: u64,
}

/// The last segment.
pub(super) struct Appender {
    file: File,
    path: PathBuf,
    seed: u64,
    end: End,
    /// Behind the last group, the file holds zeros up to here.
    zeroed: u64,
    zeros_ahead: bool,
    /// Whether each group is synced.
    syncs: bool,
    buffer: Vec<u8>,
}

impl Appender {
    /// Makes the segment after `end`. After a power failure it exists whole or not at all.
    pub(super) fn create(log: &Path, directory: u128, end: End, table: &Table) -> io::Result<Self> {
        let number = end.segment + 1;
        let header = SegmentHeader { directory, number, before: end.seal };
        let (temporary, path) = (new_path(log, number), path(log, number));
        let file = File::create(&temporary)?;
        file.write_all_at(&header.encode(), 0)?;
        let begin = Seal { end: super::format::SEGMENT_HEADER_BYTES as u64, checksum: end.seal.checksum };
        let mut appender = Self {
            file,
            path,
            seed: header.seed(),
            end: End { segment: number, seal: begin, group: end.group },
            zeroed: 0,
            zeros_ahead: true,
            syncs: true,
            buffer: Vec::with_capacity(BUFFER_BYTES),
        };
        let stamp = Stamp { arrived_at: table.latest, polls: table.polls };
        appender.write_state(Kind::Table, stamp, &table.encode())?;
        appender.file.sync_all()?;
        fs::rename(&temporary, &appender.path)?;
        sync_directory(log)?;
        Ok(appender)
    }

    /// Makes every write fail from now on.
    #[cfg(test)]
    pub(super) fn break_it(&mut self) {
        self.file = File::open(&self.path).unwrap();
    }

    /// The present end of the log.
    pub(super) fn end(&self) -> End {
        self.end
    }

    /// From now on syncs nothing until [`Self::sync`]. For a log that nobody reads yet.
    pub(super) fn defer_syncs(&mut self) {
        self.syncs = false;
    }

    /// Makes everything durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Appends records with one sync. Returns where their group is.
    pub(super) fn append(&mut self, stamp: Stamp, first: u64, puts: &[Put<'_>]) -> io::Result<u64> {
        let mut meta = Encoder::default();
        for (sequence, put) in (first..).zip(puts) {
            let checksum = record_checksum(self.seed, sequence, put.data);
            Entry { shard: put.shard, len: put.data.len() as u32, checksum }.encode(&mut meta);
        }
        let data: usize = puts.iter().map(|put| put.data.len()).sum();
        self.begin(Kind::Records, stamp, first, &meta.0, data);
        puts.iter().for_each(|put| self.buffer.extend_from_slice(put.data));
        self.finish()
    }

    /// Appends a group without records, with one sync.
    pub(super) fn write_state(&mut self, kind: Kind, stamp: Stamp, meta: &[u8]) -> io::Result<u64> {
        self.begin(kind, stamp, 0, meta, 0);
        self.finish()
    }

    /// Frees the space behind the end. Another segment must already say where the end is.
    pub(super) fn sealed(self) {
        if let Err(error) = self.file.set_len(self.end.seal.end) {
            tracing::warn!(%error, file = %self.path.display(), "could not cut off the unused end of a segment");
        }
    }

    fn begin(&mut self, kind: Kind, stamp: Stamp, first: u64, meta: &[u8], data_len: usize) {
        let header = GroupHeader {
            kind,
            meta_len: meta.len() as u32,
            data_len: data_len as u32,
            number: self.end.group + 1,
            previous: self.end.seal.checksum,
            first,
            arrived_at: stamp.arrived_at,
            polls: stamp.polls,
            checksum: 0,
        };
        let mut head = header.encode();
        let checksum = checksum(self.seed, &head, meta);
        head.extend(checksum.to_be_bytes());
        debug_assert_eq!(head.len(), GROUP_HEADER_BYTES);
        self.end.group += 1;
        self.end.seal.checksum = checksum;
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_BYTES);
        self.buffer.reserve(head.len() + meta.len() + data_len + ALIGNMENT as usize);
        self.buffer.extend_from_slice(&head);
        self.buffer.extend_from_slice(meta);
    }

    fn finish(&mut self) -> io::Result<u64> {
        let at = self.end.seal.end;
        self.buffer.resize(padded(self.buffer.len() as u64) as usize, 0);
        let end = at + self.buffer.len() as u64;
        self.file.write_all_at(&self.buffer, at)?;
        if self.syncs && end > self.zeroed {
            self.write_zeros(end);
        }
        if self.syncs {
            self.file.sync_data()?;
        }
        self.end.seal.end = end;
        Ok(at)
    }

    /// Writes zeros for the next groups. They only save time, so if there is no room for them the log goes on without
    /// them.
    fn write_zeros(&mut self, from: u64) {
        self.zeroed = from;
        if !self.zeros_ahead || self.buffer.len() > SMALL_GROUP_BYTES {
            return;
        }
        match self.file.write_all_at(&vec![0; ZEROS_AHEAD], from) {
            Ok(()) => self.zeroed = from + ZEROS_AHEAD as u64,
            Err(_) => self.zeros_ahead = false,
        }
    }
}
