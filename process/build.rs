//! Says which commit is built: `0.1.0 (93371ba0c1d2, 2026-11-26)`. Without git or without a checkout, only the version.
//!
//! - `VOTESTREAM_COMMIT` names the commit where there is no checkout, as in an image, and `SOURCE_DATE_EPOCH` the date.
//! - The date is the commit's, so that one commit gives one binary whenever it is built.
//! - A debug build does not look for the commit. Otherwise everything above this crate would be built again after each commit.
//! - Files that were changed since the commit are not mentioned: they do not run this again.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// Digits of a commit that are shown.
const DIGITS: usize = 12;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name: &str| {
        println!("cargo::rerun-if-env-changed={name}");
        env::var(name).ok().filter(|value| !value.is_empty())
    };
    let (given, epoch) = (variable("VOTESTREAM_COMMIT"), variable("SOURCE_DATE_EPOCH"));
    let is_release = variable("PROFILE").as_deref() == Some("release");
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let commit = match given {
        Some(hash) => Some(Commit { hash, seconds: None }),
        None if is_release => of_checkout(&here),
        None => None,
    };
    let version = match describe(&env::var("CARGO_PKG_VERSION").unwrap_or_default(), commit, epoch.as_deref()) {
        Ok(version) => version,
        Err(mistake) => {
            println!("cargo::error={mistake}");
            return;
        }
    };
    println!("cargo::rustc-env=BUILD_VERSION={version}");
}

/// What is built.
pub(crate) struct Commit {
    pub(crate) hash: String,
    /// Since 1970.
    pub(crate) seconds: Option<i64>,
}

/// The version with the commit and its date, as far as they are known.
pub(crate) fn describe(version: &str, commit: Option<Commit>, epoch: Option<&str>) -> Result<String, String> {
    let Some(Commit { hash, seconds }) = commit else { return Ok(version.to_owned()) };
    if hash.is_empty() || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!("VOTESTREAM_COMMIT: {hash:?}: expected a commit, in hexadecimal digits"));
    }
    let epoch = epoch.map(|text| text.parse().map_err(|_| format!("SOURCE_DATE_EPOCH: {text:?}: expected seconds")));
    let hash = &hash[..hash.len().min(DIGITS)];
    Ok(match epoch.transpose()?.or(seconds) {
        Some(seconds) => format!("{version} ({hash}, {})", date(seconds)),
        None => format!("{version} ({hash})"),
    })
}

/// The commit of a checkout of this project. Another repository that has a copy of it has other commits.
pub(crate) fn of_checkout(here: &Path) -> Option<Commit> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(here).args(arguments).env_remove("GIT_DIR").output().ok()?;
        let text = output.status.success().then(|| String::from_utf8(output.stdout).ok())??;
        Some(text.trim_end().to_owned())
    };
    if git(&["rev-parse", "--show-prefix"])?.trim_end_matches('/') != here.file_name()?.to_str()? {
        return None;
    }
    // Each of these changes only if the commit may have. A file that is missing would run this at every build.
    let head = git(&["rev-parse", "--symbolic-full-name", "HEAD"])?;
    for name in ["HEAD", "logs/HEAD", &head] {
        let file = here.join(git(&["rev-parse", "--git-path", name])?);
        if file.is_file() {
            println!("cargo::rerun-if-changed={}", file.display());
        }
    }
    let shown = git(&["show", "--no-patch", "--no-show-signature", "--format=%H %ct", "HEAD"])?;
    let (hash, seconds) = shown.split_once(' ')?;
    Some(Commit { hash: hash.to_owned(), seconds: seconds.parse().ok() })
}

/// The date in UTC (the algorithm `civil_from_days` by Howard Hinnant).
pub(crate) fn date(seconds: i64) -> String {
    let days = seconds.div_euclid(86_400) + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Years begin in March.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}
