//! The disk: what its users see, and what of it is durable.
//!
//! Owns files, directories, and the changes that no sync has made durable. A file's blocks and size become durable by its
//! fsync; when its entry does is a matter of [`Commit`]. Must never read a clock or an engine of chance: the same calls make the
//! same disk.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ffi::{OsStr, OsString},
    io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use fuser::Errno;

use crate::content::{Block, Content};

/// Names a file or a directory for the life of a disk.
pub type Ino = u64;
/// The directory that is mounted.
pub const ROOT: Ino = 1;
/// Longest path that is told: a directory may be moved into itself by nobody, but a loop is no way to find out.
const DEPTH_MAX: usize = 32;

/// What makes a created, renamed or removed entry durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// 0: any fsync makes all changes so far durable, like the commit of the journal of ext4 and xfs.
    Journal,
    /// 1: only the fsync of its directory, which is all that POSIX promises.
    Directory,
    /// 2: the fsync of its directory; that of the file makes the file's own entry durable as well.
    DirectoryOrFile,
}

impl Commit {
    /// By its number in the command line.
    pub fn of_number(number: &str) -> Option<Self> {
        match number {
            "0" => Some(Self::Journal),
            "1" => Some(Self::Directory),
            "2" => Some(Self::DirectoryOrFile),
            _ => None,
        }
    }
}

/// A name in a directory.
pub(crate) type Place = (Ino, OsString);
/// The entries of each directory.
pub(crate) type Entries = BTreeMap<Ino, BTreeMap<OsString, Ino>>;

/// A directory operation: the entry leaves one place, appears in another, or both.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    number: u64,
    ino: Ino,
    from: Option<Place>,
    to: Option<Place>,
}

impl Change {
    /// Applies it to directories in which other changes may be missing.
    pub(crate) fn apply(&self, entries: &mut Entries) {
        if let Some((directory, name)) = &self.from
            && let Some(names) = entries.get_mut(directory)
            && names.get(name) == Some(&self.ino)
        {
            names.remove(name);
        }
        if let Some((directory, name)) = &self.to {
            entries.entry(*directory).or_default().insert(name.clone(), self.ino);
        }
    }

    fn is_in(&self, directory: Ino) -> bool {
        [&self.from, &self.to].into_iter().flatten().any(|(of, _)| *of == directory)
    }
}

/// A sync that has begun: what was there at that moment.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    number: u64,
    pub(crate) blocks: BTreeMap<u64, Option<Block>>,
    bytes: u64,
    /// Number of the first change that came later.
    changes_before: u64,
}

/// A file.
#[derive(Clone, Debug, Default)]
pub(crate) struct FileState {
    /// A name where processes meet; it holds nothing.
    pub(crate) is_socket: bool,
    /// What its users see.
    pub(crate) now: Content,
    /// What a cut leaves for sure.
    pub(crate) durable: Content,
    /// Blocks that differ since the last sync began.
    pub(crate) dirty: BTreeSet<u64>,
    /// Syncs under way, in their order.
    pub(crate) flights: VecDeque<Flight>,
}

impl FileState {
    fn touch(&mut self, blocks: Option<std::ops::RangeInclusive<u64>>) {
        self.dirty.extend(blocks.into_iter().flatten());
    }
}

/// Kinds of inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// Holds bytes.
    File,
    /// Holds names.
    Directory,
    /// A socket.
    Socket,
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Its number.
    pub ino: Ino,
    /// What kind.
    pub kind: NodeKind,
    /// Size of a file.
    pub bytes: u64,
}

/// The disk.
#[derive(Debug)]
pub struct Disk {
    commit: Commit,
    pub(crate) files: BTreeMap<Ino, FileState>,
    now: Entries,
    pub(crate) durable: Entries,
    /// Directory operations that are not durable, in their order.
    pub(crate) changes: Vec<Change>,
    next_ino: Ino,
    next_change: u64,
    next_flight: u64,
}

impl Disk {
    /// An empty disk.
    pub fn new(commit: Commit) -> Self {
        let root = Entries::from([(ROOT, BTreeMap::new())]);
        Self {
            commit,
            files: BTreeMap::new(),
            now: root.clone(),
            durable: root,
            changes: vec![],
            next_ino: ROOT + 1,
            next_change: 0,
            next_flight: 0,
        }
    }

    /// A disk on which everything that is in a directory is durable.
    ///
    /// # Errors
    ///
    /// If the directory cannot be read.
    pub fn import(commit: Commit, from: &Path) -> io::Result<Self> {
        let mut disk = Self::new(commit);
        disk.import_into(ROOT, from)?;
        disk.durable = disk.now.clone();
        Ok(disk)
    }

    fn import_into(&mut self, directory: Ino, from: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(from)? {
            let (entry, ino) = (entry?, self.take_ino());
            self.names_mut(directory).insert(entry.file_name(), ino);
            if entry.file_type()?.is_dir() {
                self.now.insert(ino, BTreeMap::new());
                self.import_into(ino, &entry.path())?;
            } else if entry.file_type()?.is_socket() {
                self.files.insert(ino, FileState { is_socket: true, ..FileState::default() });
            } else {
                let content = Content::import(&entry.path())?;
                self.files.insert(ino, FileState { now: content.clone(), durable: content, ..FileState::default() });
            }
        }
        Ok(())
    }

    fn take_ino(&mut self) -> Ino {
        self.next_ino += 1;
        self.next_ino - 1
    }

    fn names(&self, directory: Ino) -> Result<&BTreeMap<OsString, Ino>, Errno> {
        self.now.get(&directory).ok_or(Errno::ENOTDIR)
    }

    fn names_mut(&mut self, directory: Ino) -> &mut BTreeMap<OsString, Ino> {
        self.now.entry(directory).or_default()
    }

    fn file(&self, ino: Ino) -> Result<&FileState, Errno> {
        self.files.get(&ino).ok_or(Errno::EISDIR)
    }

    fn file_mut(&mut self, ino: Ino) -> Result<&mut FileState, Errno> {
        self.files.get_mut(&ino).ok_or(Errno::EISDIR)
    }

    fn change(&mut self, ino: Ino, from: Option<Place>, to: Option<Place>) {
        let change = Change { number: self.next_change, ino, from, to };
        self.next_change += 1;
        change.apply(&mut self.now);
        self.changes.push(change);
    }

    /// What an inode is.
    pub fn attributes(&self, ino: Ino) -> Attributes {
        let Some(file) = self.files.get(&ino) else { return Attributes { ino, kind: NodeKind::Directory, bytes: 0 } };
        let kind = if file.is_socket { NodeKind::Socket } else { NodeKind::File };
        Attributes { ino, kind, bytes: file.now.bytes() }
    }

    /// The path of an inode, for people: its users may have removed it.
    pub fn path(&self, ino: Ino) -> PathBuf {
        let mut names = vec![];
        let mut at = ino;
        while at != ROOT && names.len() < DEPTH_MAX {
            let holder = self.now.iter().find_map(|(directory, entries)| {
                entries.iter().find(|(_, of)| **of == at).map(|(name, _)| (*directory, name.clone()))
            });
            let Some((directory, name)) = holder else { break };
            names.push(name);
            at = directory;
        }
        names.into_iter().rev().collect()
    }

    /// What stands under a name.
    ///
    /// # Errors
    ///
    /// As the system calls answer; so do all others.
    pub fn lookup(&self, directory: Ino, name: &OsStr) -> Result<Ino, Errno> {
        self.names(directory)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    /// All entries of a directory.
    ///
    /// # Errors
    ///
    /// If it is none.
    pub fn list(&self, directory: Ino) -> Result<Vec<(OsString, Attributes)>, Errno> {
        let names = self.names(directory)?.iter();
        Ok(names.map(|(name, ino)| (name.clone(), self.attributes(*ino))).collect())
    }

    /// A new directory.
    ///
    /// # Errors
    ///
    /// If the name is taken.
    pub fn mkdir(&mut self, directory: Ino, name: &OsStr) -> Result<Ino, Errno> {
        self.must_be_free(directory, name)?;
        let ino = self.take_ino();
        self.now.insert(ino, BTreeMap::new());
        self.durable.insert(ino, BTreeMap::new());
        self.change(ino, None, Some((directory, name.into())));
        Ok(ino)
    }

    /// A new, empty file.
    ///
    /// # Errors
    ///
    /// If the name is taken.
    pub fn create(&mut self, directory: Ino, name: &OsStr) -> Result<Ino, Errno> {
        self.new_file(directory, name, false)
    }

    /// A new socket.
    ///
    /// # Errors
    ///
    /// If the name is taken.
    pub fn create_socket(&mut self, directory: Ino, name: &OsStr) -> Result<Ino, Errno> {
        self.new_file(directory, name, true)
    }

    fn new_file(&mut self, directory: Ino, name: &OsStr, is_socket: bool) -> Result<Ino, Errno> {
        self.must_be_free(directory, name)?;
        let ino = self.take_ino();
        self.files.insert(ino, FileState { is_socket, ..FileState::default() });
        self.change(ino, None, Some((directory, name.into())));
        Ok(ino)
    }

    /// Another name of a file.
    ///
    /// # Errors
    ///
    /// If the name is taken.
    pub fn link(&mut self, ino: Ino, directory: Ino, name: &OsStr) -> Result<(), Errno> {
        self.must_be_free(directory, name)?;
        self.file(ino)?;
        self.change(ino, None, Some((directory, name.into())));
        Ok(())
    }

    fn must_be_free(&self, directory: Ino, name: &OsStr) -> Result<(), Errno> {
        if self.names(directory)?.contains_key(name) { Err(Errno::EEXIST) } else { Ok(()) }
    }

    /// Removes a file, or an empty directory.
    ///
    /// # Errors
    ///
    /// If there is none, or if it is not empty.
    pub fn remove(&mut self, directory: Ino, name: &OsStr) -> Result<(), Errno> {
        let ino = self.lookup(directory, name)?;
        if self.now.get(&ino).is_some_and(|names| !names.is_empty()) {
            return Err(Errno::ENOTEMPTY);
        }
        self.change(ino, Some((directory, name.into())), None);
        Ok(())
    }

    /// Moves an entry. What stood in the new place is replaced, unless that is forbidden.
    ///
    /// # Errors
    ///
    /// If there is none, or if the new place is taken.
    pub fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr), may_replace: bool) -> Result<(), Errno> {
        let ino = self.lookup(from.0, from.1)?;
        match self.lookup(to.0, to.1) {
            Ok(_) if !may_replace => return Err(Errno::EEXIST),
            Ok(old) if self.now.get(&old).is_some_and(|names| !names.is_empty()) => return Err(Errno::ENOTEMPTY),
            Ok(_) | Err(_) => self.names(to.0)?,
        };
        self.change(ino, Some((from.0, from.1.into())), Some((to.0, to.1.into())));
        Ok(())
    }

    /// Bytes of a file.
    ///
    /// # Errors
    ///
    /// If it is none.
    pub fn read(&self, ino: Ino, offset: u64, bytes: usize) -> Result<Vec<u8>, Errno> {
        Ok(self.file(ino)?.now.read(offset, bytes))
    }

    /// Writes into the cache.
    ///
    /// # Errors
    ///
    /// If it is no file.
    pub fn write(&mut self, ino: Ino, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let file = self.file_mut(ino)?;
        let written = file.now.write(offset, data);
        file.touch(written);
        Ok(())
    }

    /// Cuts a file off, or lets it grow.
    ///
    /// # Errors
    ///
    /// If it is no file.
    pub fn resize(&mut self, ino: Ino, bytes: u64) -> Result<(), Errno> {
        let file = self.file_mut(ino)?;
        let cut_off = file.now.resize(bytes);
        file.touch(cut_off);
        Ok(())
    }

    /// Begins the sync of a file. Returns its number.
    ///
    /// # Errors
    ///
    /// If it is no file.
    pub fn begin_sync(&mut self, ino: Ino) -> Result<u64, Errno> {
        let (number, changes_before) = (self.next_flight, self.next_change);
        self.next_flight += 1;
        let file = self.file_mut(ino)?;
        let dirty = std::mem::take(&mut file.dirty).into_iter();
        let blocks = dirty.map(|number| (number, file.now.block(number).cloned())).collect();
        file.flights.push_back(Flight { number, blocks, bytes: file.now.bytes(), changes_before });
        Ok(number)
    }

    /// Whether the syncs of this file that began earlier have ended.
    pub fn may_end_sync(&self, ino: Ino, number: u64) -> bool {
        self.files.get(&ino).and_then(|file| file.flights.front()).is_none_or(|first| first.number == number)
    }

    /// Ends the sync that began first: what was there when it began is durable.
    ///
    /// # Errors
    ///
    /// If it is no file.
    pub fn end_sync(&mut self, ino: Ino) -> Result<(), Errno> {
        let file = self.file_mut(ino)?;
        let Some(flight) = file.flights.pop_front() else { return Ok(()) };
        file.durable.resize(flight.bytes);
        flight.blocks.iter().for_each(|(number, block)| file.durable.put(*number, block.as_ref()));
        match self.commit {
            Commit::Journal => self.harden(flight.changes_before, |_| true),
            Commit::Directory => {}
            Commit::DirectoryOrFile => self.harden(flight.changes_before, |it| it.ino == ino && it.to.is_some()),
        }
        Ok(())
    }

    /// A sync that fails: its blocks are no longer dirty, as in a page cache whose write-back failed. So no later sync writes
    /// them, although its users still see them.
    ///
    /// # Errors
    ///
    /// If it is no file.
    pub fn fail_sync(&mut self, ino: Ino) -> Result<(), Errno> {
        self.file_mut(ino)?.dirty.clear();
        Ok(())
    }

    /// How many changes there were so far: what a sync of a directory makes durable are those that came before it.
    pub fn changes_so_far(&self) -> u64 {
        self.next_change
    }

    /// Ends the sync of a directory that began when there were so many changes.
    pub fn end_directory_sync(&mut self, directory: Ino, changes_before: u64) {
        let all = self.commit == Commit::Journal;
        self.harden(changes_before, |change| all || change.is_in(directory));
    }

    fn harden(&mut self, before: u64, pick: impl Fn(&Change) -> bool) {
        let picked = self.changes.extract_if(.., |change| change.number < before && pick(change));
        picked.for_each(|change| change.apply(&mut self.durable));
    }
}
