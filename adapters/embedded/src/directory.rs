//! The data directory: its lock, and what its `format` file says.
//!
//! Owns who may open the directory. Must never let two processes in, and never open data of another format or of other
//! time bounds: votes that were acknowledged under one L could be discarded as late under another.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use votestream_core::TimeBounds;

/// Format of everything below the directory.
const FORMAT_VERSION: u32 = 3;
/// What a format file begins with.
const FORMAT_NAME: &str = "votestream embedded";
/// Most bytes of a format file that are read.
const FORMAT_BYTES_MAX: u64 = 4_096;

/// What a directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Votes with their ids as they are. The store converts them when it is opened.
    Version1,
    /// As now, but nothing was ever written past the journal.
    Version2,
    /// What this version writes.
    Present,
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
    /// It holds data, but not ours or of another version.
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
    /// A database holds what was never written.
    #[error("the database {} is damaged: {reason}", path.display())]
    Damaged {
        /// Its directory.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
}

/// Creates the directory if need be and locks it. The lock lasts as long as the file is open.
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

/// Checks the format file of a locked directory, or writes it into a new one.
pub(crate) fn check_format(directory: &Path, bounds: &TimeBounds) -> Result<Format, OpenError> {
    let io = |source| OpenError::Io { directory: directory.to_owned(), source };
    let format = |reason: String| OpenError::Format { directory: directory.to_owned(), reason };
    let path = directory.join("format");
    let text = match File::open(&path) {
        Ok(file) => io::read_to_string(io::Read::take(file, FORMAT_BYTES_MAX)).map_err(io)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // The file is written before the databases are made.
            for database in ["log", "store"] {
                if directory.join(database).try_exists().map_err(io)? {
                    return Err(format(format!("there is {database:?}, but no file \"format\"")));
                }
            }
            write_format(directory, bounds).map_err(io)?;
            return Ok(Format::Present);
        }
        Err(error) => return Err(io(error)),
    };
    let (version, stored) =
        text.split_once('\n').ok_or_else(|| format("the file \"format\" is incomplete".to_owned()))?;
    let found = match version.strip_prefix(FORMAT_NAME).and_then(|version| version.trim_start().parse().ok()) {
        Some(FORMAT_VERSION) => Format::Present,
        Some(1) => Format::Version1,
        Some(2) => Format::Version2,
        Some(_) | None => {
            return Err(format(format!("its format is {version:?}, this version reads up to {:?}", version_line())));
        }
    };
    let (stored, wanted) = (stored.trim_end(), bounds_line(bounds));
    if stored != wanted {
        return Err(OpenError::Bounds { directory: directory.to_owned(), stored: stored.to_owned(), wanted });
    }
    Ok(found)
}

/// Notes that everything in the directory is of the present format by now.
pub(crate) fn set_present(directory: &Path, bounds: &TimeBounds) -> Result<(), OpenError> {
    write_format(directory, bounds).map_err(|source| OpenError::Io { directory: directory.to_owned(), source })
}

fn version_line() -> String {
    format!("{FORMAT_NAME} {FORMAT_VERSION}")
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

/// Whole or not at all: a new file, synced, under its final name.
fn write_format(directory: &Path, bounds: &TimeBounds) -> io::Result<()> {
    let temporary = directory.join("format.new");
    let mut file = File::create(&temporary)?;
    file.write_all(format!("{}\n{}\n", version_line(), bounds_line(bounds)).as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join("format"))?;
    sync_directory(directory)
}

/// Makes a rename durable.
#[cfg(unix)]
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Makes a rename durable: the file system's own affair where directories cannot be opened.
#[cfg(not(unix))]
fn sync_directory(_: &Path) -> io::Result<()> {
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
        fs::write(&path, text.replace("embedded 3", "embedded 4")).unwrap();
        let message = refusal(dir.path(), options);
        assert!(message.contains("embedded 4") && message.contains("embedded 3"), "{message}");
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
