//! Reads files that are read again and again.
//!
//! Owns what is taken for a file. Must never wait for one, nor read more of it than its limit: whoever can put something in its
//! place could stop the thread that reads it, or fill the memory.

use std::{
    fs::OpenOptions,
    io::{Error, ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::OFlags;

/// Reads a file of at most `bytes_max` bytes.
///
/// # Errors
///
/// If it cannot be read, is too large, or is no file: a pipe has no end, nor has a device.
pub fn read_file(path: &Path, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    // A pipe that nobody writes to must not be waited for.
    let flags = OFlags::NONBLOCK.bits();
    let file = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path)?;
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

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
