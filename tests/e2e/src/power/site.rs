//! A site: `votestream up` on one data directory, which loses its power and starts again with what survived.
//!
//! Starts processes, leaves them and waits for them. Must never help a start: no file is repaired or removed between a
//! cut and the next start.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::sleep;

use super::volume::{Kind, Volume};
use crate::{
    crash::{Process, Slot},
    voters::{Election, wait_until},
};

/// How long the last output of an ended process may take through its pipes.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A place where votes are accepted.
pub struct Site {
    /// The kind of disk under the data directory.
    pub kind: Kind,
    /// The directory for everything.
    pub directory: TempDir,
    /// The election that runs here.
    pub election: Arc<Election>,
    votestream: &'static str,
}

/// A process on a volume that has power.
pub struct Running {
    /// The volume of the data directory.
    pub volume: Volume,
    /// `votestream up`.
    pub(super) process: Process,
    slot: Slot,
}

impl Site {
    /// A new, empty site.
    ///
    /// # Errors
    ///
    /// If there is no room for it.
    pub fn new(kind: Kind, votestream: &'static str) -> Result<Self, String> {
        let directory = tempfile::Builder::new().prefix("votestream-power-").tempdir();
        let directory = directory.map_err(|error| error.to_string())?;
        let election = Arc::<Election>::default();
        election.places.ingest.lock().push(None);
        election.places.results.lock().push(None);
        Ok(Self { kind, directory, election, votestream })
    }

    /// An empty directory, as before the first start.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub fn nothing(&self) -> Result<PathBuf, String> {
        let nothing = self.directory.path().join("nothing");
        std::fs::create_dir(&nothing).map_err(|error| error.to_string())?;
        Ok(nothing)
    }

    /// Turns the power on: mounts a volume with the content of `state`.
    ///
    /// # Errors
    ///
    /// If it cannot be mounted.
    pub async fn mount(&self, state: &Path, round: usize, sync: Duration) -> Result<Volume, String> {
        Volume::mount(self.kind, state, &self.directory.path().join(format!("round-{round}")), sync).await
    }

    /// Starts a process.
    pub fn start(&self, volume: Volume) -> Running {
        let enter = volume.disk.enter();
        let enter: Vec<&str> = enter.iter().map(String::as_str).collect();
        let slot = Slot::up(self.votestream, &enter, &volume.directory);
        let process = slot.start(&self.election);
        Running { volume, process, slot }
    }

    /// Waits until a process accepts calls.
    ///
    /// # Errors
    ///
    /// If it ends instead, or does not accept calls in time.
    pub async fn is_up(&self, running: &mut Running) -> Result<(), String> {
        let mut ended = None;
        let places = &self.election.places;
        let started = wait_until("votestream up is ready", || {
            ended = running.process.child.try_wait().ok().flatten();
            ended.is_some() || (places.ingest.lock()[0].is_some() && places.results.lock()[0].is_some())
        });
        started.await?;
        let Some(status) = ended else { return Ok(()) };
        sleep(LAST_WORDS).await;
        Err(format!("it does not start: {status}"))
    }

    /// Waits until a process accepts calls, and checks that everything acknowledged is there. Opens a poll if votes
    /// need one.
    ///
    /// # Errors
    ///
    /// If it does not start, or if something is missing.
    pub async fn is_whole(&self, running: &mut Running, round: usize) -> Result<(), String> {
        self.is_up(running).await?;
        self.election.must_know_polls().await?;
        if self.election.is_worn() { self.election.open(&format!("poll-{round}")).await } else { Ok(()) }
    }

    /// Waits until a process has ended by itself, or until it is known that it goes on. Returns whether it has ended.
    ///
    /// # Errors
    ///
    /// If neither happens in time.
    pub async fn is_over(
        &self,
        running: &mut Running,
        mut goes_on: impl FnMut(&mut Running) -> bool,
    ) -> Result<bool, String> {
        let mut ended = false;
        let waited = wait_until("the process ends by itself, or goes on", || {
            ended = !matches!(running.process.child.try_wait(), Ok(None));
            ended || goes_on(running)
        });
        waited.await?;
        Ok(ended)
    }

    /// Takes leave of a process that has ended by itself. Returns its exit code, its last output, and the volume.
    ///
    /// # Errors
    ///
    /// If it has not ended.
    pub async fn bury(&self, running: Running) -> Result<(Option<i32>, String, Volume), String> {
        let Running { volume, mut process, slot } = running;
        sleep(LAST_WORDS).await;
        let (said, status) = (process.said(), process.child.try_wait().ok().flatten());
        slot.reap(process, &self.election).await?;
        Ok((status.and_then(|status| status.code()), said, volume))
    }

    /// Sends SIGKILL and ends the disk. A process that waits for its disk dies once the disk has ended, and answers
    /// nobody in between. Returns the directory with what survived a cut.
    ///
    /// # Errors
    ///
    /// If the process has ended by itself, or if one of the two does not end.
    pub async fn leave(&self, running: Running) -> Result<PathBuf, String> {
        let Running { volume, mut process, slot } = running;
        slot.begin_kill(&mut process)?;
        let out = volume.disk.end().await?;
        slot.reap(process, &self.election).await?;
        Ok(out)
    }
}

impl Running {
    /// A reason, followed by the last output of the process.
    pub fn said(&self, reason: &str) -> String {
        format!("{reason}\nthe process said last:\n{}", self.process.said())
    }
}
