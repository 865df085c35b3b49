//! Which version this is, and of which commit: one text for every binary.

/// Such as `0.1.0 (93371ba0c1d2, 2026-11-26)`. Without the commit in a debug build, and where it was not known.
pub const VERSION: &str = env!("BUILD_VERSION");

#[cfg(test)]
#[expect(dead_code, clippy::print_stdout, reason = "a build script has a main, and talks to cargo on stdout")]
#[path = "../build.rs"]
mod build;

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, process::Command};

    use super::build::{Commit, date, describe, of_checkout};

    #[test]
    fn the_version_has_what_is_known() {
        let commit = |hash: &str, seconds| Some(Commit { hash: hash.into(), seconds });
        let long = "93371ba0c1d20000000000000000000000000000";
        assert_eq!(describe("1.2.3", None, Some("0")).unwrap(), "1.2.3");
        let now = Some(1_795_737_600);
        assert_eq!(describe("1.2.3", commit(long, now), None).unwrap(), "1.2.3 (93371ba0c1d2, 2026-11-27)");
        assert_eq!(describe("1.2.3", commit(long, now), Some("86400")).unwrap(), "1.2.3 (93371ba0c1d2, 1970-01-02)");
        assert_eq!(describe("1.2.3", commit("abc", None), None).unwrap(), "1.2.3 (abc)");
        for wrong in ["", "v1.2", "abc\ncargo:rustc-env=X=1"] {
            assert!(describe("1", commit(wrong, None), None).unwrap_err().contains("VOTESTREAM_COMMIT"), "{wrong}");
        }
        assert!(describe("1", commit("abc", None), Some("today")).unwrap_err().contains("SOURCE_DATE_EPOCH"));
    }

    #[test]
    fn dates() {
        for (seconds, expected) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (4_107_542_399, "2100-02-28"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn a_commit_is_that_of_the_own_checkout() {
        let directory = tempfile::tempdir().unwrap();
        let project = directory.path().join("project");
        fs::create_dir_all(project.join("process")).unwrap();
        assert!(of_checkout(&project.join("process")).is_none(), "there is no checkout");
        let git = |at: &Path, arguments: &[&str]| {
            let mut command = Command::new("git");
            command.arg("-C").arg(at).args(["-c", "user.name=a", "-c", "user.email=a@example.org"]).args(arguments);
            command
                .env_remove("GIT_DIR")
                .env("GIT_COMMITTER_DATE", "2026-11-26T12:00:00Z")
                .output()
                .is_ok_and(|done| done.status.success())
        };
        if !git(directory.path(), &["init", "--quiet", "project"]) {
            // Git is not installed.
            return;
        }
        assert!(of_checkout(&project.join("process")).is_none(), "there is no commit");
        assert!(git(&project, &["commit", "--quiet", "--allow-empty", "--message=a"]));
        let commit = of_checkout(&project.join("process")).unwrap();
        assert_eq!((commit.hash.len(), commit.seconds.map(date).as_deref()), (40, Some("2026-11-26")));
        // A worktree has its HEAD elsewhere.
        assert!(git(&project, &["worktree", "add", "--quiet", "../other"]));
        fs::create_dir(directory.path().join("other/process")).unwrap();
        assert_eq!(of_checkout(&directory.path().join("other/process")).unwrap().hash, commit.hash);
        // A copy within another repository.
        fs::create_dir_all(project.join("vendor/votestream/process")).unwrap();
        assert!(of_checkout(&project.join("vendor/votestream/process")).is_none(), "that is another project's commit");
    }
}
