//! Links the store's files, as of one moment, into another directory while the store is in use.
//!
//! Must never let anything be committed meanwhile. Tables may still be merged. If this happens while a keyspace is
//! linked, the keyspace is linked again.

use std::{fs, io, path::Path};

use votestream_core::port::PortError;

use super::EmbeddedStore;
use crate::{fjall_journal, write_failed};

/// Most attempts to link a keyspace while its tables are merged. A merge takes much longer than linking.
const ATTEMPTS_MAX: usize = 100;

/// The file of a keyspace that names its present tables.
const CURRENT: &str = "current";

impl EmbeddedStore {
    /// Links everything that was answered so far into a new directory. Calls `moment` before anything more is answered.
    pub(crate) fn stage<T>(&self, to: &Path, moment: impl FnOnce() -> T) -> Result<T, PortError> {
        // Write everything into the files. This flush writes most of it, before other calls have to wait.
        self.inner.flush()?;
        let mut flushing = self.inner.flushing.lock();
        // From here no flush runs, no poll is changed, and nothing else commits.
        let _polls = self.inner.polls_lock.lock();
        self.inner.flush_under(&mut flushing)?;
        self.link(to).map_err(write_failed)?;
        Ok(moment())
    }

    fn link(&self, to: &Path) -> io::Result<()> {
        fs::create_dir(to)?;
        // Copy the journals before the tables: what leaves a journal is in tables by then, and what is in both counts
        // once.
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

/// Links every file that does not change.
fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name())))?;
        let linked = if entry.is_dir() { link_tree(&entry, &to) } else { link(&entry, &to) };
        crate::directory::unless_missing(linked)?;
    }
    Ok(())
}

/// Makes a hard link to a file, or a copy where hard links are not possible.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => fs::copy(from, to).map(drop),
        linked => linked,
    }
}
