//! Reads files that are read again and again.
//!
//! Owns what is taken for a file, and when a change of one counts. Must never wait for a file, nor read more of it than its
//! limit: whoever can put something in its place could stop the thread that reads it, or fill the memory. Must never keep
//! what it has read, which may be a secret.

use std::{
    fs::{File, OpenOptions},
    hash::{BuildHasher, Hash, RandomState},
    io::{Error, ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::OFlags;

/// Opens what may be a file, to read it. A pipe that nobody writes to is not waited for.
///
/// # Errors
///
/// If it cannot be opened.
pub fn open_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

/// Reads a file of at most `bytes_max` bytes.
///
/// # Errors
///
/// If it cannot be read, is too large, or is no file: a pipe has no end, nor has a device.
pub fn read_file(path: &Path, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    let file = open_file(path)?;
    if !file.metadata()?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("it is larger than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// Finds out whether files have changed, by their content: a secret that is mounted anew may keep its time of change.
///
/// A change counts once two looks in a row find the same. Whoever writes a file slowly, or one file after the other, is not
/// caught in between: half a list of keys may be a good list.
#[derive(Debug)]
pub(crate) struct Changes {
    /// Keyed, so that nobody can make two contents that look alike.
    hasher: RandomState,
    /// What counted last.
    known: u64,
    /// Something else, found by the last look alone.
    candidate: Option<u64>,
}

impl Changes {
    /// Begins with the content that is in use.
    pub(crate) fn since(content: &impl Hash) -> Self {
        let hasher = RandomState::new();
        Self { known: hasher.hash_one(content), candidate: None, hasher }
    }

    /// What tells one content from another.
    pub(crate) fn digest(&self, content: &impl Hash) -> u64 {
        self.hasher.hash_one(content)
    }

    /// Takes what a look has found. Returns whether it is a change that counts. Each is returned once.
    pub(crate) fn look(&mut self, content: &impl Hash) -> bool {
        let found = self.digest(content);
        if found == self.known {
            self.candidate = None;
        } else if self.candidate.replace(found) == Some(found) {
            self.known = found;
            self.candidate = None;
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_change_counts_when_two_looks_in_a_row_find_it() {
        let mut changes = Changes::since(&"a");
        for (found, counts) in [
            ("a", false),
            ("b", false),
            ("c", false),
            ("c", true),
            ("c", false),
            ("d", false),
            ("c", false),
            ("d", false),
        ] {
            assert_eq!(changes.look(&found), counts, "{found}");
        }
        assert!(changes.look(&"d"));
    }

    #[test]
    fn what_has_no_end_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "12345678").unwrap();
        symlink(path("file"), path("link")).unwrap();
        symlink("/dev/zero", path("zero")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(path("pipe")).status().unwrap();
        assert!(made.success());
        assert_eq!(read_file(&path("file"), 8).unwrap(), b"12345678");
        assert_eq!(read_file(&path("link"), 8).unwrap(), b"12345678");
        assert_eq!(read_file(&path("file"), 7).unwrap_err().to_string(), "it is larger than 7 bytes");
        for name in ["zero", "pipe", "."] {
            let error = read_file(&path(name), 8).unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{name}: {error}");
        }
        assert_eq!(read_file(&path("none"), 8).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
