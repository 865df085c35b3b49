//! The repository as tests read it: its files, and what cargo says of its crates.
//!
//! Must never change anything, nor read what was built.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Folders of which nothing is read: what was built or installed there is not of the repository.
const SKIPPED: [&str; 4] = ["target", "node_modules", ".git", "cdk.out"];

/// The folder of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The content of a file, by its path from the root.
///
/// # Panics
///
/// If it cannot be read.
pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The contents of all files below these paths whose names end so. What does not exist has none.
///
/// # Panics
///
/// If one of them cannot be read.
pub fn files<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>, ends: &[&str]) -> Vec<String> {
    let mut paths: Vec<_> = paths.into_iter().map(|path| root().join(path)).collect();
    let mut files = Vec::new();
    while let Some(path) = paths.pop() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Ok(entries) = fs::read_dir(&path) {
            if !SKIPPED.contains(&&*name) {
                paths.extend(entries.map(|entry| entry.unwrap().path()));
            }
        } else if path.is_file() && ends.iter().any(|end| name.ends_with(end)) {
            files.push(fs::read_to_string(&path).unwrap());
        }
    }
    files
}

/// All Rust sources below these paths, as one text.
pub fn sources<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> String {
    files(paths, &[".rs"]).concat()
}

/// What `cargo metadata` says of a workspace, by the path of its manifest from the root.
///
/// # Panics
///
/// If cargo fails.
pub fn metadata(manifest: &str, arguments: &[&str]) -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(root().join(manifest))
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
