//! The file of the log.
//!
//! Owns the lock on it, its last whole line, and the end of what is synced. Must never remove anything but a last line
//! that was cut off in the middle, and never begin to write to a file that is no audit log.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    line::{BEGINNING, Chain, LINE_BYTES_MAX},
    read::read,
};

/// Most bytes that are written at once, but for the last line.
pub(super) const WRITE_BYTES_MAX: usize = 1 << 20;
/// Enough of the end of a log to hold its last whole line, and whatever a write that was cut off has left behind it.
const TAIL_BYTES: u64 = (WRITE_BYTES_MAX + 2 * LINE_BYTES_MAX) as u64;

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened, read or repaired.
    #[error("the audit log {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process writes to it.
    #[error("the audit log {0} is in use by another process")]
    Locked(PathBuf),
    /// It holds something else.
    #[error(
        "{path} is not a whole audit log: {reason}. Nothing is written to it; move it away to begin a new log, and keep \
         it"
    )]
    NoLog {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The writer's thread cannot be started.
    #[error("the thread of the audit log: {0}")]
    Thread(io::Error),
}

/// Where lines go.
#[derive(Debug)]
pub(super) enum Sink {
    /// A file that keeps them.
    File(LogFile),
    /// A terminal, a pipe or a device, which cannot be synced.
    Stream(Stream),
}

/// What cannot be synced.
#[derive(Debug)]
pub(super) enum Stream {
    Stdout,
    Device(File),
}

#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    /// Length of the lines that are synced.
    synced: u64,
    /// Whether there may be something behind them.
    is_torn: bool,
}

/// Opens a log. Returns the place of its next line, and how many bytes of a torn line were removed.
pub(super) fn open(path: &Path) -> Result<(Sink, Chain, u64), OpenError> {
    let wrong = |source| OpenError::Io { path: path.to_owned(), source };
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path).map_err(wrong)?;
    let metadata = file.metadata().map_err(wrong)?;
    if !metadata.is_file() {
        return Ok((Sink::Stream(Stream::Device(file)), Chain::default(), 0));
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::Locked(path.to_owned())),
        Err(TryLockError::Error(source)) => return Err(wrong(source)),
    }
    // Another process may have written until the lock was free.
    let length = file.metadata().map_err(wrong)?.len();
    let tail = tail(&mut file, length).map_err(wrong)?;
    let (chain, whole) = end_of(&tail, length).map_err(|reason| OpenError::NoLog { path: path.to_owned(), reason })?;
    // A chain that is broken must not go on as if it were whole.
    file.rewind().map_err(wrong)?;
    if let Err(broken) = read(BufReader::new((&file).take(whole)), |_, _| ()).map_err(wrong)? {
        let reason = format!("line {}: {}", broken.line, broken.reason);
        return Err(OpenError::NoLog { path: path.to_owned(), reason });
    }
    if whole < length {
        file.set_len(whole).map_err(wrong)?;
    }
    file.sync_all().map_err(wrong)?;
    // A new file is only there after a crash if its directory was synced.
    if length == 0 {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(wrong)?;
    }
    Ok((Sink::File(LogFile { file, synced: whole, is_torn: false }), chain, length - whole))
}

/// A log on stdout.
pub(super) fn stdout() -> (Sink, Chain, u64) {
    (Sink::Stream(Stream::Stdout), Chain::default(), 0)
}

/// The end of the file.
fn tail(file: &mut File, length: u64) -> io::Result<Vec<u8>> {
    let wanted = TAIL_BYTES.min(length);
    file.seek(SeekFrom::Start(length - wanted))?;
    let mut tail = Vec::new();
    file.take(wanted).read_to_end(&mut tail)?;
    Ok(tail)
}

/// The place of the next line, and the length of the whole lines, of a file that ends like this.
fn end_of(tail: &[u8], length: u64) -> Result<(Chain, u64), String> {
    let is_end = |byte: &u8| *byte == b'\n';
    let Some(last) = tail.iter().rposition(is_end) else {
        // Only a part of a first line may be removed, not a file of somebody else.
        let shared = tail.len().min(BEGINNING.len());
        return if tail.len() as u64 == length && tail[..shared] == BEGINNING[..shared] {
            Ok((Chain::default(), 0))
        } else {
            Err("it has no lines".into())
        };
    };
    let start = tail[..last].iter().rposition(is_end).map_or(0, |before| before + 1);
    let chain = Chain::after(&tail[start..last]).map_err(|wrong| format!("its last line: {wrong}"))?;
    Ok((chain, length - (tail.len() - last - 1) as u64))
}

impl Sink {
    /// Writes whole lines. After an error none of them is there, as far as the disk allows.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.append(lines),
            Self::Stream(Stream::Stdout) => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(lines).and_then(|()| stdout.flush())
            }
            Self::Stream(Stream::Device(device)) => device.write_all(lines),
        }
    }
}

impl LogFile {
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        // What nobody can find any more is not written down.
        if self.file.metadata()?.nlink() == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the log was removed"));
        }
        if self.is_torn {
            // Half a line of an attempt before must not stand in front of a whole one.
            if self.file.metadata()?.len() > self.synced {
                self.file.set_len(self.synced)?;
            }
            self.is_torn = false;
        }
        let written = self.file.write_all(lines).and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => {
                self.synced += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Whether it is there is not known. It is written again, whole, at the next attempt.
                self.is_torn = self.file.set_len(self.synced).is_err();
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ends_of_logs_are_continued() {
        assert_eq!(end_of(b"", 0), Ok((Chain::default(), 0)));
        for torn in [&b"{"[..], b"{\"numb", b"{\"number\":1,\"time\":\"20"] {
            assert_eq!(end_of(torn, torn.len() as u64), Ok((Chain::default(), 0)));
        }
        for foreign in [&b"root:x:0:0"[..], b"root:x:0:0\n", b"{}\n", b"\n", b"\0\0\0\0", b"{\"number\":1}\n\n"] {
            assert!(end_of(foreign, foreign.len() as u64).is_err(), "{foreign:?}");
        }
        // The end of a long line of something else.
        assert!(end_of(BEGINNING, 1 << 40).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_may_be_the_end_of_a_file(tail: Vec<u8>, before in 0_u64..10) {
            if let Ok((_, whole)) = end_of(&tail, tail.len() as u64 + before) {
                proptest::prop_assert!(whole <= tail.len() as u64 + before);
            }
        }
    }
}
