//! What is left when the power is cut.
//!
//! Owns the choice of what survives of all that no sync has made durable, by mode and seed, and writing it down. Must never
//! change the disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    path::Path,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::fs::{CWD, FileType, Mode as Permissions};

use crate::{
    content::{BLOCK_BYTES, Content},
    disk::{Disk, Entries, FileState, Ino, ROOT},
};

/// What survives of the things that are not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// a: nothing.
    Nothing,
    /// b: any blocks, any directory operations.
    Some,
    /// p: any blocks, and the directory operations up to a moment.
    Ordered,
    /// c: all directory operations, no data.
    Entries,
    /// d: all data, no directory operations.
    Data,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Nothing, Self::Some, Self::Ordered, Self::Entries, Self::Data];

    /// Its letter.
    pub fn letter(self) -> &'static str {
        match self {
            Self::Nothing => "a",
            Self::Some => "b",
            Self::Ordered => "p",
            Self::Entries => "c",
            Self::Data => "d",
        }
    }

    /// By its letter.
    pub fn of_letter(letter: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.letter() == letter)
    }

    fn is_random(self) -> bool {
        matches!(self, Self::Some | Self::Ordered)
    }
}

/// What a cut kept and took of all that was not durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Toll {
    /// Blocks that survived.
    pub blocks_kept: u64,
    /// Blocks that are lost.
    pub blocks_lost: u64,
    /// Directory operations that survived.
    pub changes_kept: u64,
    /// Directory operations that are lost.
    pub changes_lost: u64,
}

/// A file or a directory that survived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree {
    /// Its bytes.
    File(Content),
    /// Nobody listens on it any more.
    Socket,
    /// Its entries.
    Directory(BTreeMap<OsString, Tree>),
}

impl Tree {
    /// Writes it to a place that does not exist, or is an empty directory.
    ///
    /// # Errors
    ///
    /// If that fails.
    pub fn export(&self, to: &Path) -> io::Result<()> {
        match self {
            Self::File(content) => content.export(to),
            Self::Socket => Ok(rustix::fs::mknodat(CWD, to, FileType::Socket, Permissions::RWXU, 0)?),
            Self::Directory(entries) => {
                fs::create_dir_all(to)?;
                entries.iter().try_for_each(|(name, tree)| tree.export(&to.join(name)))
            }
        }
    }
}

impl Disk {
    /// What survives a cut at this moment.
    pub fn survivors(&self, mode: Mode, seed: u64) -> (Tree, Toll) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut toll = Toll::default();
        let entries = self.entries_after_cut(mode, &mut rng, &mut toll);
        let contents = self.files.iter().map(|(ino, file)| {
            let content = file.after_cut(mode, &mut rng, &mut toll);
            (*ino, if file.is_socket { Tree::Socket } else { Tree::File(content) })
        });
        let contents = contents.collect();
        (tree(ROOT, &entries, &contents, &mut BTreeSet::new()), toll)
    }

    fn entries_after_cut(&self, mode: Mode, rng: &mut StdRng, toll: &mut Toll) -> Entries {
        let mut entries = self.durable.clone();
        let chance = rng.random::<f64>();
        let until = rng.random_range(0..=self.changes.len());
        for (at, change) in self.changes.iter().enumerate() {
            let kept = match mode {
                Mode::Nothing | Mode::Data => false,
                Mode::Entries => true,
                Mode::Ordered => at < until,
                Mode::Some => rng.random_bool(chance),
            };
            if kept {
                change.apply(&mut entries);
            }
            *(if kept { &mut toll.changes_kept } else { &mut toll.changes_lost }) += 1;
        }
        entries
    }
}

impl FileState {
    fn after_cut(&self, mode: Mode, rng: &mut StdRng, toll: &mut Toll) -> Content {
        let chance = if mode.is_random() { chance_of_blocks(rng) } else { 0.0 };
        let mut content = self.durable.clone();
        let flying = self.flights.iter().flat_map(|flight| &flight.blocks).map(|(at, block)| (*at, block.as_ref()));
        let dirty = self.dirty.iter().map(|at| (*at, self.now.block(*at)));
        // What is written ends here.
        let mut end = 0;
        for (at, block) in flying.chain(dirty) {
            let offset = at * BLOCK_BYTES as u64;
            if mode == Mode::Data || (rng.random_bool(chance) && offset < self.now.bytes()) {
                content.put(at, block);
                end = end.max((offset + BLOCK_BYTES as u64).min(self.now.bytes()));
                toll.blocks_kept += 1;
            } else {
                toll.blocks_lost += 1;
            }
        }
        // What lies beyond the size is cleared by going there and back.
        let bytes = self.bytes_after_cut(mode, rng, end);
        content.resize(u64::MAX);
        content.resize(bytes);
        content
    }

    /// A size is written by itself: the file may end before bytes that survived, or after bytes that did not.
    fn bytes_after_cut(&self, mode: Mode, rng: &mut StdRng, end: u64) -> u64 {
        let (durable, now) = (self.durable.bytes(), self.now.bytes());
        match mode {
            Mode::Nothing | Mode::Entries => durable,
            Mode::Data => now,
            Mode::Some | Mode::Ordered if now < durable => {
                if rng.random_bool(0.5) {
                    durable
                } else {
                    now
                }
            }
            Mode::Some | Mode::Ordered => {
                if rng.random_bool(0.5) {
                    durable.max(end)
                } else {
                    now
                }
            }
        }
    }
}

/// The chance of each block of one file: often nearly all survive, and a hole is left between them.
fn chance_of_blocks(rng: &mut StdRng) -> f64 {
    let chance = rng.random::<f64>();
    if chance > 0.8 { 0.97 } else { chance }
}

/// Entries of what does not exist, and directories that are found twice, are left out.
fn tree(of: Ino, entries: &Entries, contents: &BTreeMap<Ino, Tree>, seen: &mut BTreeSet<Ino>) -> Tree {
    let mut directory = BTreeMap::new();
    for (name, ino) in entries.get(&of).into_iter().flatten() {
        if let Some(content) = contents.get(ino) {
            directory.insert(name.clone(), content.clone());
        } else if seen.insert(*ino) {
            directory.insert(name.clone(), tree(*ino, entries, contents, seen));
        }
    }
    Tree::Directory(directory)
}
