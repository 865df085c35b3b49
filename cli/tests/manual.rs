//! What shells and `man` get: scripts that parse and complete, and pages without warnings. Runs the real binary.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

fn votestream(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_votestream")).args(arguments).output().unwrap()
}

/// Runs a program on an input, if it is installed.
fn feed(program: &str, arguments: &[&str], input: &[u8]) -> Option<Output> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        eprintln!("skipped: {program} is not installed");
        return None;
    };
    child.stdin.take().unwrap().write_all(input).unwrap();
    Some(child.wait_with_output().unwrap())
}

#[test]
fn the_version_is_that_of_every_binary() {
    let version = votestream(&["--version"]).stdout;
    assert_eq!(String::from_utf8(version).unwrap(), format!("votestream {}\n", votestream_process::VERSION));
}

#[test]
fn scripts_of_shells_parse() {
    for (shell, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
        let script = votestream(&["completions", shell]);
        assert!(script.status.success() && script.stderr.is_empty(), "{script:?}");
        if let Some(parsed) = feed(shell, &[check], &script.stdout) {
            assert!(parsed.status.success() && parsed.stderr.is_empty(), "{shell}: {parsed:?}");
        }
    }
    for shell in ["powershell", "elvish"] {
        let script = votestream(&["completions", shell]);
        assert!(String::from_utf8(script.stdout).unwrap().contains("--options-file"), "{shell}");
    }
    let unknown = votestream(&["completions", "tcsh"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8(unknown.stderr).unwrap().contains("bash, elvish, fish, powershell, zsh"));
}

#[test]
fn bash_completes_commands_and_flags() {
    let script = votestream(&["completions", "bash"]).stdout;
    for (words, expected) in [
        ("votestream poll cr", "create"),
        ("votestream poll create --options", "--options-file"),
        ("votestream results p --cs", "--csv"),
        ("votestream completions fi", "fish"),
    ] {
        let last = words.split(' ').count() - 1;
        let asking = format!(
            "\nCOMP_WORDS=({words}); COMP_CWORD={last}; _votestream votestream \"${{COMP_WORDS[{last}]}}\" \
             \"${{COMP_WORDS[{}]}}\"; echo \"${{COMPREPLY[@]}}\"",
            last - 1
        );
        let Some(answer) = feed("bash", &["--norc"], &[&script[..], asking.as_bytes()].concat()) else { return };
        assert_eq!(String::from_utf8(answer.stdout).unwrap().trim_end(), expected, "{words}");
    }
}

#[test]
fn pages_have_no_warnings() {
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("share/man/man1");
    let written = votestream(&["man", pages.to_str().unwrap()]);
    assert!(written.status.success() && written.stdout.is_empty() && written.stderr.is_empty(), "{written:?}");
    let printed = votestream(&["man"]).stdout;
    assert_eq!(std::fs::read(pages.join("votestream.1")).unwrap(), printed);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&pages).unwrap() {
        let entry = entry.unwrap();
        let page = std::fs::read(entry.path()).unwrap();
        names.push(entry.file_name().into_string().unwrap());
        if let Some(shown) = feed("groff", &["-man", "-Tutf8", "-ww"], &page) {
            assert!(shown.status.success() && shown.stderr.is_empty(), "{:?}: {shown:?}", entry.file_name());
        }
    }
    for name in ["votestream.1", "votestream-poll-create.1", "votestream-auth-token.1", "votestream-up.1"] {
        assert!(names.iter().any(|known| known == name), "{names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("help")), "{names:?}");

    let blocked = votestream(&["man", "/dev/null/man"]);
    assert_eq!(blocked.status.code(), Some(2));
    assert!(String::from_utf8(blocked.stderr).unwrap().contains("/dev/null/man: "));
}
