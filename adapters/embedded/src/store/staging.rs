//! The store's files as of one moment, linked to another place while it is in use.
//!
//! Must never let anything be committed meanwhile. Tables are merged all the same: what a keyspace consists of is taken again
//! if that happened in the middle.

use std::{fs, io, path::Path};

use votestream_core::port::PortError;

use super::EmbeddedStore;
use crate::{fjall_journal, write_failed};

/// Attempts to link a keyspace while its tables are merged. A merge takes far longer than linking.
const ATTEMPTS_MAX: usize = 100;

/// The file of a keyspace that names what it consists of.
const CURRENT: &str = "current";

impl EmbeddedStore {
    /// Links everything that was answered to a new directory. `moment` is called before anything more is answered.
    pub(crate) fn stage<T>(&self, to: &Path, moment: impl FnOnce() -> T) -> Result<T, PortError> {
        // Everything into the files, most of it before anybody has to wait.
        self.inner.flush()?;
        let mut flushing = self.inner.flushing.lock();
        // No flush comes in between, no poll is changed, and nothing else commits.
        let _polls = self.inner.polls_lock.lock();
        self.inner.flush_under(&mut flushing)?;
        self.link(to).map_err(write_failed)?;
        Ok(moment())
    }

    fn link(&self, to: &Path) -> io::Result<()> {
        fs::create_dir(to)?;
        // Before the tables: what leaves a journal is in tables by then, and what is in both counts once.
        fjall_journal::copy(&self.path, to)?;
        fs::write(to.join("lock"), "")?;
        fs::copy(self.path.join("version"), to.join("version"))?;
        let keyspaces = to.join("keyspaces");
        fs::create_dir(&keyspaces)?;
        for entry in fs::read_dir(self.path.join("keyspaces"))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                link_keyspace(&entry.path(), &keyspaces.join(entry.file_name()))?;
            }
        }
        Ok(())
    }
}

fn link_keyspace(from: &Path, to: &Path) -> io::Result<()> {
    for _ in 0..ATTEMPTS_MAX {
        let before = fs::read(from.join(CURRENT))?;
        link_tree(from, to)?;
        if fs::read(from.join(CURRENT))? == before && fs::read(to.join(CURRENT)).is_ok_and(|linked| linked == before) {
            return Ok(());
        }
        fs::remove_dir_all(to)?;
    }
    Err(io::Error::other(format!("the tables in {} did not stop changing", from.display())))
}

/// Links every file that stays.
fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name())))?;
        let linked = if entry.is_dir() { link_tree(&entry, &to) } else { link(&entry, &to) };
        crate::directory::unless_missing(linked)?;
    }
    Ok(())
}

/// A second name for a file, or a copy where there are no such names.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => fs::copy(from, to).map(drop),
        linked => linked,
    }
}
