//! `votestream auth init`: a key and an auth file for a first try.
//!
//! Owns the two files. Must never overwrite one, nor let others read the key.

use std::{
    fs::{DirBuilder, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::Serialize;
use votestream_server::identity::{check_auth_file, new_key_set};

use crate::{
    args::{AuthInitArgs, Global},
    failure::{Answer, Failure, Outcome},
    output,
};

/// Name of the file of keys.
const KEYS: &str = "keys.json";
/// Name of the auth file.
const AUTH: &str = "auth.toml";
/// The auth file.
const AUTH_TEXT: &str = r#"# Who may call, and what they may do. It is read again when it changes.

[[issuer]]                            # tokens that `votestream auth token` signs with the secret in keys.json
iss = "votestream"
aud = ["votestream"]
keys = "keys.json"                    # whoever can read this file can sign: keep it secret
algorithms = ["HS256"]
scopes = ["vote:*", "relay:*", "read:*", "manage:*"]   # the most that a token can have

[anonymous]                           # callers without a token
scopes = ["read:*"]
"#;

/// What was written, for scripts.
#[derive(Serialize)]
struct Written {
    auth: PathBuf,
    keys: PathBuf,
    next: Vec<String>,
}

pub(super) fn run(global: &Global, args: &AuthInitArgs) -> Outcome {
    let (auth, keys) = (args.directory.join(AUTH), args.directory.join(KEYS));
    for path in [&auth, &keys] {
        if path.symlink_metadata().is_ok() {
            return Err(Failure::usage(format!("{} exists already, and nothing is overwritten", path.display())));
        }
    }
    let failed =
        |path: &Path, error: std::io::Error| Failure::usage(format!("cannot write {}: {error}", path.display()));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&args.directory)
        .map_err(|error| failed(&args.directory, error))?;
    write(&keys, 0o600, &new_key_set()?).map_err(|error| failed(&keys, error))?;
    write(&auth, 0o644, AUTH_TEXT).map_err(|error| failed(&auth, error))?;
    check_auth_file(AUTH_TEXT, &auth)
        .map_err(|mistakes| Failure::failed(format!("the written file is wrong: {}", mistakes.join("; "))))?;
    let file = quoted(&auth.display().to_string());
    let next = vec![
        format!("votestream up --auth {file}"),
        format!("votestream auth token --auth {file} --user ada --scope 'vote:*' --expires-in 1h"),
    ];
    if global.json {
        output::json(&Written { auth, keys, next })?;
    } else {
        output::note(&format!("wrote {} and {}", auth.display(), keys.display()));
        output::note("next, start a stack that asks for tokens, and sign one for a voter:");
        output::lines(&next)?;
    }
    Ok(Answer::Yes)
}

/// Writes a new file.
fn write(path: &Path, mode: u32, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// A text as one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_shell() {
        assert_eq!(quoted("votestream-auth/auth.toml"), "votestream-auth/auth.toml");
        assert_eq!(quoted("a b/it's"), r"'a b/it'\''s'");
    }
}
