//! The data directory: its lock, what its `format` file says, and whether its creation was finished.
//!
//! Owns who may open the directory. Must never let two processes open it. Must never open data of another format or
//! with other time bounds: votes that were acknowledged under one L could be discarded as late under another.
//!
//! While a directory is created, it holds the file `creating`, which is written first. `format` is written last. A
//! start that finds `creating` without `format` creates everything again; nothing can have been acknowledged before.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use votestream_core::{TimeBounds, Timestamp};

/// Format of everything in the directory.
const FORMAT_VERSION: u32 = 4;
/// The first words of a format file.
const FORMAT_NAME: &str = "votestream embedded";
/// Most bytes that are read of a format file.
const FORMAT_BYTES_MAX: u64 = 4_096;
/// File that exists in a directory until it is complete.
const CREATING: &str = "creating";
/// Text before the id in a format file.
const ID: &str = "id=";

/// What a directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Nothing, or what an unfinished creation left.
    None,
    /// Votes that hold ids as text. The store converts them when it is opened.
    Version1,
    /// An older log. The store is as now, but everything was written through the journal.
    Version2,
    /// An older log.
    Version3,
    /// The format that this version writes, with the id of the directory.
    Present(u128),
}

/// Why a data directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the data directory {} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// The file system refused.
    #[error("the data directory {} cannot be used", directory.display())]
    Io {
        /// The directory.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It holds data of another program or of another version.
    #[error("the data directory {} holds data that this version cannot read: {reason}", directory.display())]
    Format {
        /// The directory.
        directory: PathBuf,
        /// What was found.
        reason: String,
    },
    /// It was written with other time bounds.
    #[error("the data directory {} was written with other time bounds: {stored}; asked for: {wanted}", directory.display())]
    Bounds {
        /// The directory.
        directory: PathBuf,
        /// Bounds of the stored data.
        stored: String,
        /// Bounds that were asked for.
        wanted: String,
    },
    /// The number of shards is out of range.
    #[error("the number of shards must be 1 to {max}, not {shards}")]
    Shards {
        /// What was asked for.
        shards: u32,
        /// The limit.
        max: u32,
    },
    /// A database cannot be opened.
    #[error("the database {} cannot be opened", path.display())]
    Database {
        /// Its directory.
        path: PathBuf,
        /// What the engine said.
        source: fjall::Error,
    },
    /// A database holds bytes that were never written.
    #[error("the database {} is damaged: {reason}; restore a backup of the data directory", path.display())]
    Damaged {
        /// Its directory.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The log holds bytes that were never written, and not only at its end, where a power failure can leave them.
    #[error(
        "the log is damaged: {}, byte {offset}: {reason}. A power failure does not explain this, so acknowledged votes may \
         be lost. Check the disk, and restore a backup of the data directory", file.display()
    )]
    DamagedLog {
        /// The file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What was found.
        reason: String,
    },
    /// A part of the directory is missing.
    #[error(
        "the data directory {} is incomplete: {reason}. Put the missing part back, or restore a backup of the whole \
         directory; to begin with nothing, give an empty directory", directory.display()
    )]
    Incomplete {
        /// The directory.
        directory: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// A part of the directory belongs to another directory.
    #[error(
        "{} belongs to another data directory ({found:032x}, not {wanted:032x}). Put the right one back, or restore a \
         backup of the whole directory", path.display()
    )]
    Foreign {
        /// The part that does not belong here.
        path: PathBuf,
        /// Id of the directory that it belongs to.
        found: u128,
        /// Id of this directory.
        wanted: u128,
    },
    /// Log and store belong to one directory, but are from different moments.
    #[error(
        "log and store in {} do not belong together: {reason}. They were copied or restored at different moments. Restore \
         a backup of the whole directory, made with `votestream backup` or while nothing ran", directory.display()
    )]
    Mismatch {
        /// The directory.
        directory: PathBuf,
        /// Which of them is older, and how that shows.
        reason: String,
    },
    /// The machine's clock is far behind the log.
    #[error(
        "the clock of this machine is behind the votes in {}:\n  the clock now          {}\n  the last stored vote   {}\n\
         If the clock is wrong now, set it and start again.\n\
         If the clock was wrong then, add --continue-from-log-time: time then runs a tenth slower until the clock has caught up.",
        directory.display(), clock, log
    )]
    Clock {
        /// The directory.
        directory: PathBuf,
        /// Time on the machine's clock.
        clock: Timestamp,
        /// The last arrival in the log.
        log: Timestamp,
    },
}

/// The lock on the data directory, shared by both databases. Declared last in them, so that it is dropped last.
pub(crate) type DirectoryLock = Arc<File>;

/// Creates the directory if it does not exist, and locks it. The lock lasts as long as the returned file is open.
pub(crate) fn lock(directory: &Path) -> Result<File, OpenError> {
    let io = |source| OpenError::Io { directory: directory.to_owned(), source };
    fs::create_dir_all(directory).map_err(io)?;
    let path = directory.join("lock");
    let file = File::options().create(true).truncate(false).read(true).write(true).open(path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(directory.to_owned())),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

/// What a locked directory holds, by its format file.
pub(crate) fn inspect(directory: &Path, bounds: &TimeBounds) -> Result<Format, OpenError> {
    let io = |source| OpenError::Io { directory: directory.to_owned(), source };
    let format = |reason: String| OpenError::Format { directory: directory.to_owned(), reason };
    let text = match File::open(directory.join("format")) {
        Ok(file) => io::read_to_string(io::Read::take(file, FORMAT_BYTES_MAX)).map_err(io)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !directory.join(CREATING).try_exists().map_err(io)? {
                for database in ["log", "store"] {
                    if directory.join(database).try_exists().map_err(io)? {
                        return Err(format(format!("it has {database:?}, but no file \"format\"")));
                    }
                }
            }
            return Ok(Format::None);
        }
        Err(error) => return Err(io(error)),
    };
    let mut lines = text.lines();
    let (Some(version), Some(stored)) = (lines.next(), lines.next()) else {
        return Err(format("the file \"format\" is incomplete".to_owned()));
    };
    let id = lines.next().and_then(|line| u128::from_str_radix(line.strip_prefix(ID)?, 16).ok());
    let number = version.strip_prefix(FORMAT_NAME).and_then(|version| version.trim_start().parse().ok());
    let found = match (number, id) {
        (Some(FORMAT_VERSION), Some(id)) => Format::Present(id),
        (Some(FORMAT_VERSION), None) => return Err(format("the file \"format\" names no id".to_owned())),
        (Some(1), _) => Format::Version1,
        (Some(2), _) => Format::Version2,
        (Some(3), _) => Format::Version3,
        (Some(_) | None, _) => {
            return Err(format(format!(
                "its format is {version:?}, this version reads up to {FORMAT_NAME} {FORMAT_VERSION}"
            )));
        }
    };
    let wanted = bounds_line(bounds);
    if stored != wanted {
        return Err(OpenError::Bounds { directory: directory.to_owned(), stored: stored.to_owned(), wanted });
    }
    Ok(found)
}

/// Begins to create everything in a directory. Removes what an unfinished creation left.
pub(crate) fn begin_creation(directory: &Path) -> io::Result<()> {
    File::create(directory.join(CREATING))?.sync_all()?;
    sync_directory(directory)?;
    // The directory itself and all directories above it must exist after a power failure, too.
    for ancestor in directory.canonicalize()?.ancestors().skip(1) {
        if let Err(error) = sync_directory(ancestor) {
            // We did not make a directory that we may not read.
            tracing::debug!(%error, directory = %ancestor.display(), "cannot sync a directory");
        }
    }
    // An earlier version wrote it first.
    unless_missing(fs::remove_file(directory.join("format")))?;
    sync_directory(directory)?;
    for database in ["log", "store"] {
        unless_missing(fs::remove_dir_all(directory.join(database)))?;
    }
    sync_directory(directory)
}

/// Ends the creation. Everything must exist and be synced.
pub(crate) fn end_creation(directory: &Path, bounds: &TimeBounds, id: u128) -> io::Result<()> {
    sync_directory(directory)?;
    write_format(directory, bounds, id)?;
    forget_creation(directory)
}

/// Removes the file `creating` after a creation was finished.
pub(crate) fn forget_creation(directory: &Path) -> io::Result<()> {
    unless_missing(fs::remove_file(directory.join(CREATING)))
}

/// Ignores the error that a file does not exist.
pub(crate) fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Syncs every file and directory below a path. Files may be deleted meanwhile.
pub(crate) fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let synced = if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())
        } else {
            File::open(entry.path()).and_then(|file| file.sync_all())
        };
        unless_missing(synced)?;
    }
    sync_directory(path)
}

fn bounds_line(bounds: &TimeBounds) -> String {
    // Every field is named, so that a new one cannot be forgotten here.
    let TimeBounds { answer_deadline, clock_skew_max, poll_cache_life } = bounds;
    let millis = Duration::as_millis;
    format!(
        "answer_deadline={}ms clock_skew_max={}ms poll_cache_life={}ms",
        millis(answer_deadline),
        millis(clock_skew_max),
        millis(poll_cache_life)
    )
}

/// Writes the file `format`: everything in the directory has the present format. The file appears whole or not at all,
/// because a new file is synced and then renamed.
pub(crate) fn write_format(directory: &Path, bounds: &TimeBounds, id: u128) -> io::Result<()> {
    let temporary = directory.join("format.new");
    let mut file = File::create(&temporary)?;
    let text = format!("{FORMAT_NAME} {FORMAT_VERSION}\n{}\n{ID}{id:032x}\n", bounds_line(bounds));
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join("format"))?;
    sync_directory(directory)
}

/// Syncs a directory, so that files that were created, renamed or removed in it are so after a power failure.
#[cfg(unix)]
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Does nothing on systems where directories cannot be opened: there such changes are durable by themselves.
#[cfg(not(unix))]
pub(crate) fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EmbeddedEngine, EmbeddedOptions};

    fn refusal(dir: &Path, options: EmbeddedOptions) -> String {
        EmbeddedEngine::open(dir, options).err().expect("it opened").to_string()
    }

    #[test]
    fn one_engine_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let options = EmbeddedOptions::default();
        let engine = EmbeddedEngine::open(dir.path(), options).unwrap();
        let message = refusal(dir.path(), options);
        assert!(message.contains("in use by another process") && message.contains(dir.path().to_str().unwrap()));
        let ports = engine.ports();
        engine.close();
        assert!(refusal(dir.path(), options).contains("in use"), "ports may still write");
        drop(ports);
        EmbeddedEngine::open(dir.path(), options).unwrap();
    }

    #[test]
    fn other_formats_and_bounds_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let options = EmbeddedOptions::default();
        drop(EmbeddedEngine::open(dir.path(), options).unwrap());
        let other = EmbeddedOptions { bounds: TimeBounds::DISTRIBUTED, ..options };
        let message = refusal(dir.path(), other);
        assert!(message.contains("answer_deadline=5000ms") && message.contains("answer_deadline=10000ms"), "{message}");

        let path = dir.path().join("format");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("embedded 4", "embedded 5")).unwrap();
        let message = refusal(dir.path(), options);
        assert!(message.contains("embedded 5") && message.contains("embedded 4"), "{message}");
        fs::remove_file(&path).unwrap();
        assert!(refusal(dir.path(), options).contains("no file \"format\""));
        fs::write(&path, text).unwrap();
        EmbeddedEngine::open(dir.path(), options).unwrap();
    }

    #[test]
    fn what_is_no_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(refusal(&file, EmbeddedOptions::default()).contains(file.to_str().unwrap()));
        let none = EmbeddedOptions { shards: 0, ..EmbeddedOptions::default() };
        assert!(refusal(dir.path(), none).contains("number of shards"));
    }
}
