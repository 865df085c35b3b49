//! Copies a data directory while it is in use. The copy has the state of one moment.
//!
//! Owns the order: first the store as of one moment, then the log up to a later moment. So the log of the copy has
//! every vote that was acknowledged before the copy began, and every record that the store of the copy has processed.
//! Must never leave an incomplete copy that looks complete: `format` is written last.
//!
//! First the files of the store are linked within the data directory. Nothing is committed meanwhile, for some
//! milliseconds. Then they are copied from there while everything goes on. This is safe because tables never change and
//! the log only grows.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use votestream_core::{TimeBounds, port::PortError};

use crate::{
    directory::{self, sync_directory, sync_tree, unless_missing},
    log::EmbeddedStream,
    store::EmbeddedStore,
};

/// Directory in which the store is linked while a copy is made.
const STAGING: &str = "backup.staging";
/// File in a data directory that its owner may have put there, and that belongs into every copy: the keys of
/// pseudonyms. The engine does not read it.
pub const PSEUDONYM_KEYS: &str = "pseudonym-keys";

/// Makes copies of the data directory of an engine.
#[derive(Clone)]
pub struct Backups {
    pub(crate) directory: PathBuf,
    pub(crate) id: u128,
    pub(crate) bounds: TimeBounds,
    pub(crate) stream: Arc<EmbeddedStream>,
    pub(crate) store: Arc<EmbeddedStore>,
}

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The target directory is not empty.
    #[error("{} exists and is not empty: choose a new or an empty directory for the backup", .0.display())]
    Taken(PathBuf),
    /// The copy would lie in the data directory itself.
    #[error("{} lies in the data directory: choose a directory outside it for the backup", .0.display())]
    Inside(PathBuf),
    /// The file system refused.
    #[error("cannot copy to {}: {source}", path.display())]
    Io {
        /// The copy.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The engine is closed, or can no longer write.
    #[error("{0}")]
    Engine(#[from] PortError),
}

impl Backups {
    /// Copies the data directory to `to`, which must be empty or not exist. Blocks until all data is copied. If it
    /// fails, what it left in `to` cannot be started.
    ///
    /// # Errors
    ///
    /// If `to` is not empty, lies in the data directory or cannot be written, or if the engine is closed.
    pub fn copy(&self, to: &Path) -> Result<(), BackupError> {
        let failed = |source| BackupError::Io { path: to.to_owned(), source };
        self.claim(to)?;
        let staging = self.directory.join(STAGING);
        // This allows one copy at a time, and prevents that a segment is deleted before it is copied.
        let kept = self.stream.keep_segments();
        remove_staging(&self.directory).map_err(failed)?;
        let mark = self.store.stage(&staging, || self.stream.mark()).and_then(|mark| mark);
        let copied = mark.map_err(BackupError::from).and_then(|mark| {
            self.stream.copy(mark, &to.join("log"))?;
            copy_tree(&staging, &to.join("store")).map_err(failed)
        });
        let removed = remove_staging(&self.directory).map_err(failed);
        drop(kept);
        copied.and(removed)?;
        // After the store: a key is written before a poll names it, and is never taken away.
        self.copy_keys(to)
            .and_then(|()| sync_directory(to))
            .and_then(|()| directory::write_format(to, &self.bounds, self.id))
            .and_then(|()| sync_directory(&parent(to)))
            .map_err(failed)
    }

    /// Copies the keys of pseudonyms, if there are any, for their owner's eyes alone.
    fn copy_keys(&self, to: &Path) -> io::Result<()> {
        let mut from = match File::open(self.directory.join(PSEUDONYM_KEYS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        let mut options = File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut copy = options.open(to.join(PSEUDONYM_KEYS))?;
        io::copy(&mut from, &mut copy)?;
        copy.sync_all()
    }

    fn claim(&self, to: &Path) -> Result<(), BackupError> {
        let failed = |source| BackupError::Io { path: to.to_owned(), source };
        match fs::create_dir(to) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => created.map_err(failed)?,
        }
        let inside = to.canonicalize().and_then(|to| Ok(to.starts_with(self.directory.canonicalize()?)));
        if inside.map_err(failed)? {
            return Err(BackupError::Inside(to.to_owned()));
        }
        match fs::read_dir(to).map_err(failed)?.next() {
            None => Ok(()),
            Some(_) => Err(BackupError::Taken(to.to_owned())),
        }
    }
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Removes what an interrupted copy left.
pub(crate) fn remove_staging(directory: &Path) -> io::Result<()> {
    unless_missing(fs::remove_dir_all(directory.join(STAGING)))
}

/// Copies a directory and syncs the copy.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    copy_unsynced(from, to)?;
    sync_tree(to)
}

fn copy_unsynced(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name())))?;
        if entry.is_dir() {
            copy_unsynced(&entry, &to)?;
        } else {
            io::copy(&mut File::open(entry)?, &mut File::create_new(to)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
