//! A running `votestream up`, for the tests of the commands.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::Value;

/// Killed at the end of the test.
pub(crate) struct Up {
    pub(crate) child: Child,
    pub(crate) ingest: String,
    pub(crate) results: String,
}

/// Where a stack says that its services listen: ingest, and results.
pub(crate) fn announced(up: &mut Child) -> (String, String) {
    let mut line = String::new();
    BufReader::new(up.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let addresses: Value = serde_json::from_str(&line).unwrap();
    let address = |name: &str| addresses[name].as_str().unwrap().to_owned();
    (address("ingest"), address("results"))
}

impl Up {
    /// Starts one on this data directory.
    pub(crate) fn start(directory: &Path) -> Self {
        Self::start_with("127.0.0.1:0", |command| {
            command.arg("--data-dir").arg(directory);
        })
    }

    /// Starts one with further arguments, and waits until it says where it listens. Its stderr is dropped, unless `change` says
    /// otherwise.
    pub(crate) fn start_with(addr: &str, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_votestream"));
        command.args(["up", "--json", "--addr", addr]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let (ingest, results) = announced(&mut child);
        Self { child, ingest, results }
    }

    /// A command for this stack, with pipes.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_votestream"));
        command.args(["--ingest", &self.ingest, "--results", &self.results]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command with `--json`: exit code, the object on stdout, and stderr.
    pub(crate) fn json(&self, arguments: &[&str], input: &str) -> (i32, Value, String) {
        let mut child = self.command(arguments).arg("--json").spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(stdout.lines().count() <= 1, "one object on stdout: {stdout}");
        let object = if stdout.is_empty() { Value::Null } else { serde_json::from_str(&stdout).unwrap() };
        (output.status.code().unwrap(), object, String::from_utf8(output.stderr).unwrap())
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Already dead if the test has stopped it.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
