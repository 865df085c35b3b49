//! Controls the disk whose power is cut: a separate process (`tests/disk`) in its own mount namespace.
//!
//! Builds, mounts and commands it. Everything that is mounted in the namespace ends with the last process in it, so
//! nothing is left behind, however a test ends. Must never access the mounted disk itself: such an access may wait for
//! ever.

use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    process::{Command as Blocking, Stdio},
    sync::OnceLock,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::{mpsc, watch},
    time::timeout,
};

use crate::voters::PATIENCE;

/// Most answers of the disk that nobody has read yet; there is one per command.
const ANSWERS_MAX: usize = 16;

/// Start of a command that runs in its own mount namespace.
const UNSHARE: [&str; 4] = ["unshare", "--mount", "--propagation", "private"];

/// Why no disk can be mounted on this machine; `None` if it is possible.
pub(super) fn missing() -> Option<&'static str> {
    let may_unshare = || Blocking::new(UNSHARE[0]).args(&UNSHARE[1..]).arg("true").output();
    if File::options().read(true).write(true).open("/dev/fuse").is_err() {
        Some("/dev/fuse cannot be opened: needs root, and FUSE in the kernel")
    } else if !may_unshare().is_ok_and(|output| output.status.success()) {
        Some("no mount namespace can be made: needs root, and `unshare`")
    } else {
        None
    }
}

/// The binary of the disk. It has its own workspace, so the first call builds it.
///
/// # Errors
///
/// If it cannot be built.
fn binary() -> Result<&'static Path, String> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BINARY.get_or_init(build).as_deref().map_err(Clone::clone)
}

fn build() -> Result<PathBuf, String> {
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    // TARGET/PROFILE/deps/TEST
    let target = test.ancestors().nth(3).ok_or("the test's binary is in no target directory")?.join("disk");
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../disk/Cargo.toml");
    let mut cargo = Blocking::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--manifest-path"]).arg(manifest).arg("--target-dir").arg(&target);
    // Use the compiler of this cargo, because crates may choose another one for themselves.
    let compiler = Path::new(env!("CARGO")).with_file_name("rustc");
    if compiler.exists() {
        cargo.env("RUSTC", compiler);
    }
    let output = cargo.output().map_err(|error| format!("cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("the disk cannot be built:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(target.join("debug/volatile-disk"))
}

/// What a cut did.
#[derive(Clone, Debug)]
pub struct Cut {
    /// The event before which it came; `now` if the test asked for it.
    pub before: String,
    /// The file of the event, or its directory.
    pub path: String,
    /// The letter of its mode.
    pub mode: String,
    /// Blocks that survived, and blocks that are lost.
    pub blocks: [u64; 2],
    /// Directory operations that survived, and those that are lost.
    pub changes: [u64; 2],
}

impl Cut {
    fn of(line: &Value) -> Result<Self, String> {
        let pair = |name: &str| [0, 1].map(|at| line[name][at].as_u64().unwrap_or_default());
        match line["error"].as_str() {
            Some(error) => Err(format!("what survived cannot be written: {error}")),
            None => Ok(Self {
                before: line["before"].as_str().unwrap_or_default().into(),
                path: line["path"].as_str().unwrap_or_default().into(),
                mode: line["mode"].as_str().unwrap_or_default().into(),
                blocks: pair("blocks"),
                changes: pair("changes"),
            }),
        }
    }
}

/// Watches the cuts of a disk.
#[derive(Clone, Debug)]
pub struct Cuts(watch::Receiver<Option<Result<Cut, String>>>);

impl Cuts {
    /// Waits for a cut.
    ///
    /// # Errors
    ///
    /// If what survived could not be written down.
    pub async fn cut(&self) -> Result<Cut, String> {
        let mut cut = self.0.clone();
        let cut = cut.wait_for(Option::is_some).await.map_err(|_| "the disk has ended")?;
        cut.clone().unwrap_or_else(|| Err("there was no cut".into()))
    }
}

/// A mounted disk whose power can be cut.
#[derive(Debug)]
pub struct Disk {
    child: Child,
    stdin: ChildStdin,
    answers: mpsc::Receiver<Value>,
    cut: watch::Receiver<Option<Result<Cut, String>>>,
    failed: watch::Receiver<Option<String>>,
    mount: PathBuf,
    out: PathBuf,
}

impl Disk {
    /// Mounts a disk with the content of `from`. The mount and what survives a cut are below `at`.
    ///
    /// # Errors
    ///
    /// If that fails.
    pub async fn mount(from: &Path, at: &Path, commit: u8, sync: Duration) -> Result<Self, String> {
        let (mount, out) = (at.join("mount"), at.join("out"));
        std::fs::create_dir_all(&mount).map_err(|error| error.to_string())?;
        let binary = tokio::task::spawn_blocking(binary).await.map_err(|error| error.to_string())??;
        let mut command = Command::new(UNSHARE[0]);
        command.args(&UNSHARE[1..]).arg(binary).args([&mount, from, &out].map(|path| path.as_os_str()));
        command.args([commit.to_string(), sync.as_micros().to_string()]);
        // It is not killed when it is dropped. At the end of its stdin it ends in an order in which file systems on it
        // can be released.
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("unshare: {error}"))?;
        let stdin = child.stdin.take().ok_or("it is piped")?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("it is piped")?).lines();
        let (say, answers) = mpsc::channel(ANSWERS_MAX);
        let (say_cut, cut) = watch::channel(None);
        let (say_failed, failed) = watch::channel(None);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let line: Value = serde_json::from_str(&line).unwrap_or_default();
                if let Some(cut) = line.get("cut") {
                    say_cut.send_replace(Some(Cut::of(cut)));
                } else if let Some(failed) = line.get("failed") {
                    say_failed.send_replace(Some(failed.to_string()));
                } else if say.send(line).await.is_err() {
                    return;
                }
            }
        });
        let mut disk = Self { child, stdin, answers, cut, failed, mount, out };
        disk.answer().await?;
        Ok(disk)
    }

    async fn answer(&mut self) -> Result<Value, String> {
        let answer = timeout(PATIENCE, self.answers.recv()).await.map_err(|_| "the disk does not answer")?;
        answer.ok_or_else(|| "the disk has ended".into())
    }

    /// Gives the disk a command.
    ///
    /// # Errors
    ///
    /// If the disk does not execute it.
    pub async fn tell(&mut self, command: &str) -> Result<Value, String> {
        let line = format!("{command}\n");
        self.stdin.write_all(line.as_bytes()).await.map_err(|error| format!("the disk has ended: {error}"))?;
        let answer = self.answer().await?;
        if answer.get("not understood").is_some() { Err(format!("the disk: {answer}")) } else { Ok(answer) }
    }

    /// Watches the cuts of this disk.
    pub fn watch(&self) -> Cuts {
        Cuts(self.cut.clone())
    }

    /// Cuts the power now, by this command. It may have been cut just before.
    ///
    /// # Errors
    ///
    /// If what survives cannot be written down.
    pub async fn cut_now(&mut self, command: &str) -> Result<Cut, String> {
        self.tell(command).await?;
        timeout(PATIENCE, self.watch().cut()).await.map_err(|_| "the power cannot be cut")?
    }

    /// The fault that began last: its event and its file.
    pub fn failed(&self) -> Option<String> {
        self.failed.borrow().clone()
    }

    /// Where it is mounted, for processes in its namespace.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// What to put before a command so that it sees the mounts.
    pub fn enter(&self) -> Vec<String> {
        let process = self.child.id().unwrap_or_default().to_string();
        ["nsenter", "--target", &process, "--mount", "--"].map(String::from).into()
    }

    /// Runs a command in the namespace until it ends. Returns what it printed.
    ///
    /// # Errors
    ///
    /// If it fails, with what it says.
    pub async fn run<'a>(&self, command: impl IntoIterator<Item = &'a OsStr>) -> Result<String, String> {
        let enter = self.enter();
        let mut process = Command::new(&enter[0]);
        process.args(&enter[1..]).args(command).kill_on_drop(true);
        let output = timeout(PATIENCE, process.output()).await.map_err(|_| format!("{process:?} does not end"))?;
        let output = output.map_err(|error| format!("{process:?}: {error}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(format!("{process:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)))
    }

    /// Ends the disk. Processes that wait for an answer get an error, so kill them first. Returns the directory with
    /// what survived the cut.
    ///
    /// # Errors
    ///
    /// If it does not end.
    pub async fn end(self) -> Result<PathBuf, String> {
        let Self { mut child, stdin, out, .. } = self;
        drop(stdin);
        let ended = timeout(PATIENCE, child.wait()).await.map_err(|_| "the disk does not end")?;
        ended.map_err(|error| error.to_string())?;
        Ok(out)
    }
}
