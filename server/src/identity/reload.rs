//! Follows the auth file, the revocations, and the keys of issuers.
//!
//! Owns when they are read again. Must never replace good rules by a file with a mistake or by half a file, and never end a
//! call whose credential still counts.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::{
    Inner,
    fetch::{JWKS_BYTES_MAX, fetch},
    issuer::Keys,
    revoked::Revoked,
    rules::Rules,
};
use crate::files::{Changes, read_file};

/// How often the files are looked at. A change counts at the second look, so what was revoked ends within a few seconds.
const LOOK: Duration = Duration::from_secs(1);
/// Largest file, in bytes.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// Most issuers that are named because only revocations have them.
const UNKNOWN_ISSUERS_NAMED: usize = 10;

/// What stands before the name of a variable that holds a file's text: containers get their secrets by variables.
const VARIABLE: &str = "env:";

/// The files.
#[derive(Debug)]
pub(super) struct Files {
    auth: PathBuf,
    revoked: Option<PathBuf>,
    changes: Mutex<Changes>,
}

/// What the files hold at present.
#[derive(Debug, Hash)]
struct Content {
    auth: String,
    revoked: Option<String>,
    /// Files with keys.
    keys: Vec<(PathBuf, Option<Vec<u8>>)>,
}

impl Files {
    /// Reads everything for the first time.
    pub(super) fn open(auth: PathBuf, revoked: Option<PathBuf>) -> Result<(Self, Rules), Vec<String>> {
        let content = Content::read(&auth, revoked.as_deref(), None);
        let changes = Mutex::new(Changes::since(&content));
        let files = Self { auth, revoked, changes };
        let rules = files.rules(content, None)?;
        warn_of_unknown_issuers(&rules);
        Ok((files, rules))
    }

    fn rules(&self, content: Result<Content, String>, before: Option<&Rules>) -> Result<Rules, Vec<String>> {
        let content = content.map_err(|mistake| vec![mistake])?;
        let named = |path: &Path, mistakes: Vec<String>| -> Vec<String> {
            mistakes.into_iter().map(|mistake| format!("{}: {mistake}", path.display())).collect()
        };
        let revokes = before.is_some_and(|before| !before.revoked.is_empty());
        let revoked = match (&self.revoked, &content.revoked) {
            // A disk that is full, or a program that writes it anew and was stopped.
            (Some(path), Some(text)) if revokes && text.trim().is_empty() => Err(named(
                path,
                vec!["it has become empty; to revoke nothing any more, write a comment (#) into it".into()],
            )),
            (Some(path), Some(text)) => Revoked::read(text).map_err(|mistakes| named(path, mistakes)),
            _ => Ok(Revoked::default()),
        };
        let (revoked, mut mistakes) = match revoked {
            Ok(revoked) => (revoked, Vec::new()),
            Err(mistakes) => (Revoked::default(), mistakes),
        };
        match Rules::read(&content.auth, &self.auth, revoked, before) {
            Ok(rules) if mistakes.is_empty() => Ok(rules),
            Ok(_) => Err(mistakes),
            Err(more) => {
                mistakes.extend(named(&self.auth, more));
                Err(mistakes)
            }
        }
    }

    /// The rules of the files, if they have changed since they were last read and say something else. Blocks.
    fn changed(&self, before: &Rules) -> Option<Result<Rules, Vec<String>>> {
        let content = Content::read(&self.auth, self.revoked.as_deref(), Some(before));
        if !self.changes.lock().look(&content) {
            return None;
        }
        match self.rules(content, Some(before)) {
            // A comment, or the first look at the files with keys.
            Ok(rules) if rules.is_like(before) => None,
            rules => Some(rules),
        }
    }
}

impl Content {
    fn read(auth: &Path, revoked: Option<&Path>, before: Option<&Rules>) -> Result<Self, String> {
        let text = |path: &Path| {
            let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
            if let Some(variable) = path.to_str().and_then(|path| path.strip_prefix(VARIABLE)) {
                return std::env::var(variable).map_err(|error| named(&error));
            }
            let bytes = read_file(path, FILE_BYTES_MAX).map_err(|error| named(&error))?;
            String::from_utf8(bytes).map_err(|_| named(&"it is not UTF-8"))
        };
        let files = before.into_iter().flat_map(|rules| &rules.issuers).filter_map(|issuer| issuer.file());
        Ok(Self {
            auth: text(auth)?,
            revoked: revoked.map(text).transpose()?,
            keys: files.map(|path| (path.clone(), read_file(path, JWKS_BYTES_MAX).ok())).collect(),
        })
    }
}

/// Says which issuers revocations name that nobody knows. No mistake: an issuer that is taken out of the auth file must not stay
/// because a revocation names it still.
fn warn_of_unknown_issuers(rules: &Rules) {
    for iss in unknown_issuers(rules) {
        tracing::warn!(iss, "a revocation names an issuer that the auth file does not have: it revokes nothing");
    }
}

/// The first issuers that only revocations name.
fn unknown_issuers(rules: &Rules) -> Vec<&str> {
    let is_known = |iss: &str| rules.issuers.iter().any(|issuer| issuer.rule.iss == iss);
    let mut unknown: Vec<_> = rules.revoked.issuers().into_iter().filter(|iss| !is_known(iss)).collect();
    unknown.sort_unstable();
    unknown.truncate(UNKNOWN_ISSUERS_NAMED);
    unknown
}

/// Follows files and keys until the identity is dropped.
pub(super) async fn follow(inner: Weak<Inner>) {
    let mut fetching = JoinSet::new();
    loop {
        let Some(strong) = inner.upgrade() else { return };
        look(&strong).await;
        let rules = strong.rules.load();
        for issuer in &rules.issuers {
            if let Some(url) = issuer.due(rules.pace) {
                let (issuer, inner) = (issuer.clone(), inner.clone());
                fetching.spawn(async move {
                    let answer = fetch(url).await.and_then(|json| Keys::read(&json, &issuer.rule.algorithms));
                    if issuer.answered(answer)
                        && let Some(inner) = inner.upgrade()
                    {
                        inner.rules.rcu(|rules| rules.renewed());
                    }
                });
            }
        }
        drop(rules);
        drop(strong);
        while fetching.try_join_next().is_some() {}
        tokio::time::sleep(LOOK).await;
    }
}

/// Reads the files again if they have changed.
async fn look(inner: &Arc<Inner>) {
    let reading = inner.clone();
    let read = tokio::task::spawn_blocking(move || reading.files.changed(&reading.rules.load()));
    match read.await {
        Ok(Some(Ok(mut rules))) => {
            tracing::info!("the auth files have changed and hold from now on");
            warn_of_unknown_issuers(&rules);
            rules.install_keys();
            inner.rules.store(Arc::new(rules));
            inner.changes.send_modify(|changes| *changes += 1);
        }
        Ok(Some(Err(mistakes))) => {
            tracing::error!(
                mistakes = mistakes.join("; "),
                "the auth files have mistakes; what was read before holds on"
            );
        }
        Ok(None) => {}
        Err(error) => tracing::error!(%error, "reading the auth files panicked"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 2] = ["a", "b"];

    /// An auth file with so many keys.
    fn auth(count: usize) -> String {
        let entry = |name: &&str| {
            format!("[[key]]\nid = \"{name}\"\nsha256 = \"{}\"\nscopes = [\"read:*\"]\n", name.repeat(64))
        };
        KEYS[..count].iter().map(entry).collect()
    }

    #[test]
    fn issuers_that_only_revocations_name_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let (path, revoked) = (dir.path().join("auth.toml"), dir.path().join("revoked.toml"));
        std::fs::write(&path, auth(1)).unwrap();
        let entries =
            (10..22).map(|at| format!("[[revoked]]\niss = \"{at}\"\njti = \"a\"\n[[revoked]]\njti = \"b\"\n"));
        std::fs::write(&revoked, entries.collect::<String>()).unwrap();
        let (_, rules) = Files::open(path, Some(revoked)).unwrap();
        let expected: Vec<_> = (10..20).map(|at| at.to_string()).collect();
        assert_eq!(unknown_issuers(&rules), expected);
    }

    #[test]
    fn a_file_that_is_still_being_written_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.toml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write(&auth(2));
        let (files, rules) = Files::open(path.clone(), None).unwrap();
        assert!(files.changed(&rules).is_none());
        // Half of it is a good file, and has one key less.
        write(&auth(1));
        assert!(files.changed(&rules).is_none());
        write(&auth(2));
        assert!((0..3).all(|_| files.changed(&rules).is_none()));
        std::fs::remove_file(&path).unwrap();
        assert!(files.changed(&rules).is_none());
        write(&auth(1));
        assert!(files.changed(&rules).is_none());
        let changed = files.changed(&rules).unwrap().unwrap();
        assert!(!changed.is_like(&rules));
        assert!((0..3).all(|_| files.changed(&changed).is_none()));
        // What stays wrong is said once.
        write("nothing");
        assert!(files.changed(&changed).is_none());
        assert!(files.changed(&changed).unwrap().is_err());
        assert!(files.changed(&changed).is_none());
    }
}
