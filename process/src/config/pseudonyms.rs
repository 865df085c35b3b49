//! The setting with the keys of pseudonyms, and the file that holds them.
//!
//! Owns what such a file must be. Must never say anything of what is in it, and never read one that everybody may read.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use votestream_core::{PseudonymKeys, model::pseudonym::PseudonymKey};
use votestream_server::open_file;

use super::{Setting, Values};

/// Keys of the pseudonyms under which the users of polls are stored.
pub const PSEUDONYM_KEYS: Setting = Setting::new(
    "pseudonym-keys",
    "FILE|none",
    "none",
    "File with the keys of pseudonyms under which users are stored, one of 64 hex digits a line, the first for new \
     polls, or env:NAME for a variable with its text; none stores the user ids of new polls as they are. All ingest and \
     tally processes need the same keys.",
);

/// What stands before the name of a variable with the text of a file: containers get their secrets by variables.
const VARIABLE: &str = "env:";
/// What stands for no file.
const NONE: &str = "none";
/// Largest file. The most keys, with room for comments.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Where keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// From nowhere: user ids of new polls are stored as they are.
    None,
    /// From this file.
    File(PathBuf),
}

impl From<&str> for KeySource {
    fn from(text: &str) -> Self {
        if text == NONE { Self::None } else { Self::File(text.into()) }
    }
}

/// Reads [`PSEUDONYM_KEYS`], and the file that it names.
pub fn pseudonym_keys(values: &mut Values) -> Option<PseudonymKeys> {
    values.get(PSEUDONYM_KEYS.name, |text| match KeySource::from(text) {
        KeySource::None => Ok(PseudonymKeys::default()),
        KeySource::File(path) => read(&path).map_err(|error| error.to_string()),
    })
}

/// Why a file with keys cannot be used. No text of the file is in it.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("cannot read the file with the keys: {0}")]
    Io(#[from] io::Error),
    /// Everybody may read or change it.
    #[error(
        "every user of this machine may read or change it (mode {mode:03o}); chmod 600 it, and make new keys if others had access"
    )]
    Open {
        /// Its permissions.
        mode: u32,
    },
    /// It is not a file.
    #[error("it is not a file")]
    NoFile,
    /// There is no such variable.
    #[error("there is no variable of this name")]
    NoVariable,
    /// Its content is wrong; all mistakes.
    #[error("{}", .0.join("; "))]
    Content(Vec<String>),
}

/// Reads a file with keys, or `env:` and the name of a variable that has its text.
///
/// # Errors
///
/// If it cannot be read, if every user of the machine may read or change it, or if its content is wrong.
pub fn read(path: &Path) -> Result<PseudonymKeys, KeyFileError> {
    if let Some(name) = path.to_str().and_then(|path| path.strip_prefix(VARIABLE)) {
        let text = std::env::var_os(name).ok_or(KeyFileError::NoVariable)?;
        return keys_of(text.into_encoded_bytes());
    }
    let file = open_file(path)?;
    check(&file.metadata()?)?;
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)?;
    keys_of(text)
}

fn keys_of(text: Vec<u8>) -> Result<PseudonymKeys, KeyFileError> {
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(KeyFileError::Content(vec![format!("it is larger than {FILE_BYTES_MAX} bytes")]));
    }
    let text = String::from_utf8(text).map_err(|_| KeyFileError::Content(vec!["it is not UTF-8".to_owned()]))?;
    PseudonymKeys::from_text(&text).map_err(KeyFileError::Content)
}

fn check(metadata: &Metadata) -> Result<(), KeyFileError> {
    if !metadata.is_file() {
        return Err(KeyFileError::NoFile);
    }
    #[cfg(unix)]
    {
        // Others than the owner and the group.
        const OTHERS: u32 = 0o006;
        let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777;
        if mode & OTHERS != 0 {
            return Err(KeyFileError::Open { mode });
        }
    }
    Ok(())
}

/// Writes a file with one key, which only its owner may read. It appears whole or not at all, and is durable after
/// this.
///
/// # Errors
///
/// If the file system refuses.
pub fn write(path: &Path, key: &PseudonymKey) -> io::Result<()> {
    let (temporary, directory) = (path.with_extension("new"), path.parent().unwrap_or(Path::new(".")));
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    let about = "# Keys of pseudonyms. Without them the votes of their polls are refused. Keep them secret, and a copy elsewhere.\n\
                 # The first line is for new polls. Never remove a line before the polls that need it are gone.\n";
    file.write_all(format!("{about}{}\n", key.to_secret_text()).as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    #[cfg(unix)]
    File::open(directory)?.sync_all()?;
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn a_written_file_is_read_and_belongs_to_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let (path, key) = (directory.path().join("pseudonym-keys"), PseudonymKey::new([9; 32]));
        // What a killed process left is in nobody's way.
        fs::write(path.with_extension("new"), "half").unwrap();
        write(&path, &key).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap().active(), Some(key.id()));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_everybody_may_read_is_refused() {
        let key = PseudonymKey::new([9; 32]).to_secret_text();
        for (mode, works) in [(0o600, true), (0o440, true), (0o644, false), (0o604, false), (0o602, false)] {
            let read = read(file(&key, mode).path());
            assert_eq!(read.is_ok(), works, "{mode:o}");
            let said = read.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(works || said.contains(&format!("(mode {mode:03o})")), "{said}");
        }
    }

    #[test]
    fn a_variable_may_have_the_text() {
        let key = PseudonymKey::new([9; 32]);
        assert_eq!(keys_of(key.to_secret_text().into_bytes()).unwrap().active(), Some(key.id()));
        // Variables of the test runner, which are no keys.
        let error = |name: &str| read(Path::new(name)).unwrap_err().to_string();
        assert_eq!(error("env:VOTESTREAM_THAT_NOBODY_SETS"), "there is no variable of this name");
        let (said, value) = (error("env:CARGO_MANIFEST_DIR"), std::env::var("CARGO_MANIFEST_DIR").unwrap());
        assert!(said.contains("line 1") && !said.contains(&value), "{said}");
    }

    #[test]
    fn what_is_wrong_is_said_without_a_word_of_the_file() {
        let error = |path: &Path| read(path).unwrap_err().to_string();
        assert!(error(Path::new("/nowhere/keys")).contains("cannot read the file"));
        assert_eq!(error(&std::env::temp_dir()), "it is not a file");
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(error(&pipe), "it is not a file", "and it is not waited for");
        let said = error(file("secret\nsecret two\n", 0o600).path());
        assert!(said.contains("line 1") && said.contains("line 2") && !said.contains("secret"), "{said}");
        assert!(error(file(&"#".repeat(70_000), 0o600).path()).contains("larger than"));
    }
}
