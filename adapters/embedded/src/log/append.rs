//! Appends groups to the last segment, each with one sync.
//!
//! Owns the file that is written. Must never go on after a failed write or sync: what the file holds by then is unknown, and a
//! system that could not write a page may call it written. Must never write a byte of a group before the group before it is
//! synced: so what a power cut damages is the last group, and nothing else.
//!
//! Small groups are written into bytes that were zeros on the disk before. A sync then has nothing to store but the group: no
//! length and no place of the file changes. A large group pays for that by itself.

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

/// Zeros that are written ahead at once: 250 small groups pay for them together.
const ZEROS_AHEAD: usize = 1 << 20;
/// Groups of more bytes are written where nothing was: to write everything twice would cost more than it brings.
const SMALL_GROUP_BYTES: usize = 128 << 10;
/// Memory that is kept for the next group.
const BUFFER_BYTES: usize = 1 << 20;

/// What a new segment goes on from.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// Number of the segment.
    pub(super) segment: u64,
    pub(super) seal: Seal,
    /// Number of the last group.
    pub(super) group: u64,
}

impl End {
    /// Before the first segment.
    pub(super) const NOTHING: Self = Self { segment: 0, seal: Seal { end: 0, checksum: 0 }, group: 0 };
}

/// A record to be appended.
pub(super) struct Put<'a> {
    pub(super) shard: u32,
    pub(super) data: &'a [u8],
}

/// What groups say beside their content.
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
    /// Up to here the file holds zeros behind the last group.
    zeroed: u64,
    zeros_ahead: bool,
    /// Whether each group is synced.
    syncs: bool,
    buffer: Vec<u8>,
}

impl Appender {
    /// Makes the segment after `end`. It is there whole, or not at all, whenever the power fails.
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

    /// Lets every write fail from now on.
    #[cfg(test)]
    pub(super) fn break_it(&mut self) {
        self.file = File::open(&self.path).unwrap();
    }

    /// Where the log ends by now.
    pub(super) fn end(&self) -> End {
        self.end
    }

    /// Syncs nothing until [`Self::sync`]: for a log that nobody reads yet.
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

    /// Gives the space behind the end back, once another segment says where the end is.
    pub(super) fn sealed(self) {
        if let Err(error) = self.file.set_len(self.end.seal.end) {
            tracing::warn!(%error, file = %self.path.display(), "the unused end of a segment could not be cut off");
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

    /// Zeros for the groups to come. Nothing rests on them, so where there is no room for them the log goes on without.
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
