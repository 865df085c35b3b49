//! What a file holds, in blocks of 4 KiB.
//!
//! Owns bytes in memory, sparse: a block that was never written takes no room and reads as zeros. Copies share their blocks.
//! Must never know what is durable.

use std::{
    collections::BTreeMap,
    fs::{File, Permissions},
    io,
    ops::RangeInclusive,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

/// What a disk writes as a whole, or loses as a whole.
pub const BLOCK_BYTES: usize = 4_096;

/// Mode of every file: the disk keeps no modes, and files with secrets need this one.
pub(crate) const FILE_MODE: u16 = 0o600;

/// Bytes of one block; those beyond the end of the file are zeros.
pub(crate) type Block = Arc<[u8; BLOCK_BYTES]>;

/// Bytes of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    blocks: BTreeMap<u64, Block>,
    bytes: u64,
}

/// Numbers of the blocks that hold a range which is not empty.
fn blocks_of(offset: u64, bytes: u64) -> RangeInclusive<u64> {
    offset / BLOCK_BYTES as u64..=(offset + bytes - 1) / BLOCK_BYTES as u64
}

impl Content {
    /// Size of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// One block; `None` if it is all zeros.
    pub(crate) fn block(&self, number: u64) -> Option<&Block> {
        self.blocks.get(&number)
    }

    /// Puts one block, and does not touch the size.
    pub(crate) fn put(&mut self, number: u64, block: Option<&Block>) {
        match block {
            Some(block) => self.blocks.insert(number, block.clone()),
            None => self.blocks.remove(&number),
        };
    }

    /// Up to this many bytes; fewer at the end of the file.
    pub fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let bytes = (bytes as u64).min(self.bytes.saturating_sub(offset)) as usize;
        let mut read = vec![0; bytes];
        let mut at = 0;
        while at < bytes {
            let (number, within) = place(offset + at as u64);
            let length = (BLOCK_BYTES - within).min(bytes - at);
            if let Some(block) = self.blocks.get(&number) {
                read[at..at + length].copy_from_slice(&block[within..within + length]);
            }
            at += length;
        }
        read
    }

    /// Writes, and returns the numbers of the blocks that changed. A file that was shorter grows.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<RangeInclusive<u64>> {
        let mut at = 0;
        while at < data.len() {
            let (number, within) = place(offset + at as u64);
            let length = (BLOCK_BYTES - within).min(data.len() - at);
            let block = self.blocks.entry(number).or_insert_with(|| Arc::new([0; BLOCK_BYTES]));
            Arc::make_mut(block)[within..within + length].copy_from_slice(&data[at..at + length]);
            at += length;
        }
        self.bytes = self.bytes.max(offset + data.len() as u64);
        (!data.is_empty()).then(|| blocks_of(offset, data.len() as u64))
    }

    /// Cuts the file off, or lets it grow by zeros. Returns the numbers of the blocks that changed.
    pub fn resize(&mut self, bytes: u64) -> Option<RangeInclusive<u64>> {
        let before = std::mem::replace(&mut self.bytes, bytes);
        if bytes >= before {
            return None;
        }
        let (last, within) = place(bytes);
        self.blocks.split_off(&(if within == 0 { last } else { last + 1 }));
        if let Some(block) = self.blocks.get_mut(&last) {
            Arc::make_mut(block)[within..].fill(0);
        }
        Some(blocks_of(bytes, before - bytes))
    }

    /// Reads a file of another file system.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub(crate) fn import(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut content = Self { bytes: file.metadata()?.len(), ..Self::default() };
        let mut at = 0;
        // Holes are skipped: an image of a file system is nearly all holes.
        while let Ok(start) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
            let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(start))?.min(content.bytes);
            let start = start - start % BLOCK_BYTES as u64;
            let mut data = vec![0; (end - start) as usize];
            file.read_exact_at(&mut data, start)?;
            for (number, bytes) in (start / BLOCK_BYTES as u64..).zip(data.chunks(BLOCK_BYTES)) {
                if bytes.iter().any(|&byte| byte != 0) {
                    content.write(number * BLOCK_BYTES as u64, bytes);
                }
            }
            at = end;
        }
        Ok(content)
    }

    /// Writes it as a file of another file system.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub(crate) fn export(&self, path: &Path) -> io::Result<()> {
        let file = File::create(path)?;
        file.set_permissions(Permissions::from_mode(FILE_MODE.into()))?;
        file.set_len(self.bytes)?;
        for (&number, block) in &self.blocks {
            let offset = number * BLOCK_BYTES as u64;
            let length = self.bytes.saturating_sub(offset).min(BLOCK_BYTES as u64) as usize;
            file.write_all_at(&block[..length], offset)?;
        }
        Ok(())
    }
}

/// Block, and place within it, of an offset.
fn place(offset: u64) -> (u64, usize) {
    (offset / BLOCK_BYTES as u64, (offset % BLOCK_BYTES as u64) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_gaps_are_zeros() {
        let mut content = Content::default();
        assert_eq!(content.write(5_000, &[7; 5_000]), Some(1..=2));
        assert_eq!(content.bytes(), 10_000);
        assert_eq!(content.read(4_999, 3), [0, 7, 7]);
        assert_eq!(content.read(9_998, 100), [7, 7]);
        assert_eq!(content.read(20_000, 100), []);
        assert_eq!(content.write(1, &[]), None);
    }

    #[test]
    fn what_is_cut_off_reads_as_zeros_when_the_file_grows_again() {
        let mut content = Content::default();
        content.write(0, &[7; 10_000]);
        assert_eq!(content.resize(4_097), Some(1..=2));
        assert_eq!(content.resize(10_000), None);
        assert_eq!(content.read(4_095, 4), [7, 7, 0, 0]);
        assert_eq!(content.resize(0), Some(0..=2));
        assert_eq!(content, Content::default());
    }

    #[test]
    fn files_of_other_file_systems_come_and_go_with_their_holes() {
        let directory = tempfile::tempdir().unwrap();
        let mut content = Content::default();
        content.write(3, b"start");
        content.write(1 << 30, b"far away");
        let path = directory.path().join("file");
        content.export(&path).unwrap();
        assert_eq!(Content::import(&path).unwrap(), content);
    }
}
