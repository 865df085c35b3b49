//! `votestream up` on a machine whose wall clock jumps, by an hour and by a day, back and forth, while people vote: no vote is
//! accepted after the end of its poll by the right clock, none that was acknowledged is lost, and the log says what happened.
//!
//! The clock is moved by `libfaketime` (Debian: `faketime`); the monotonic clock is not, so that a jump ahead is what a suspended
//! machine sees as well. Skipped, with a line that says so, where it is not installed.

use std::{
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};
use votestream_e2e::{
    audit::Answer,
    voters::{Election, PATIENCE, Voters, wait_until},
};

const VOTESTREAM: &str = env!("CARGO_BIN_EXE_cluster-votestream");
const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// Within this time a clock that jumped ahead is followed.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(1);
const CLIENTS: u64 = 4;

/// `None`, with a reason, where the clock of a process cannot be moved.
fn library() -> Option<PathBuf> {
    let found = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut found = found.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    let library = found.find(|path| path.exists());
    if library.is_none() {
        eprintln!("skipped: libfaketime is not installed (apt-get install faketime)");
    }
    library
}

/// `votestream up` on a machine with a clock of its own.
struct Machine {
    directory: tempfile::TempDir,
    library: PathBuf,
    election: Arc<Election>,
    /// Lines on stderr of all starts.
    log: Arc<Mutex<Vec<String>>>,
    up: Option<Child>,
}

impl Machine {
    /// With a clock that is this far ahead of the right one.
    async fn new(library: PathBuf, ahead: i64) -> Self {
        let election = Arc::<Election>::default();
        election.places.ingest.lock().push(None);
        election.places.results.lock().push(None);
        let directory = tempfile::tempdir().unwrap();
        let mut machine = Self { directory, library, election, log: Arc::default(), up: None };
        machine.set_clock(ahead);
        machine.start(&[]).await.unwrap();
        machine
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("offset")
    }

    /// As `date --set` would.
    fn set_clock(&self, ahead: i64) {
        let new = self.directory.path().join("new");
        std::fs::write(&new, format!("{ahead:+}s\n")).unwrap();
        std::fs::rename(new, self.file()).unwrap();
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Starts it; the status with which it ended if it did not start.
    async fn start(&mut self, more: &[&str]) -> Result<(), Option<i32>> {
        let mut command = Command::new(VOTESTREAM);
        command.args([
            "up",
            "--json",
            "--shards",
            "2",
            "--ingest-addr",
            "127.0.0.1:0",
            "--results-addr",
            "127.0.0.1:0",
        ]);
        command.args(more).arg("--data-dir").arg(self.data()).env_clear();
        command.env("LD_PRELOAD", &self.library).env("FAKETIME_TIMESTAMP_FILE", self.file());
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = self.log.clone();
        let reader = tokio::spawn(async move {
            while let Ok(Some(line)) = errors.next_line().await {
                log.lock().push(line);
            }
        });
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let Some(line) = timeout(PATIENCE, lines.next_line()).await.expect("it says something").unwrap() else {
            timeout(PATIENCE, reader).await.unwrap().unwrap();
            return Err(timeout(PATIENCE, child.wait()).await.unwrap().unwrap().code());
        };
        let addresses: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = |name: &str| addresses[name].as_str().unwrap().trim_start_matches("http://").parse().ok();
        self.election.places.ingest.lock()[0] = address("ingest");
        self.election.places.results.lock()[0] = address("results");
        self.up = Some(child);
        Ok(())
    }

    async fn kill(&mut self) {
        self.up.take().unwrap().kill().await.unwrap();
        self.election.places.ingest.lock()[0] = None;
        self.election.places.results.lock()[0] = None;
    }

    /// Opens a poll that ends this long after the right time.
    async fn open(&self, poll: &str, ends: i64) {
        self.election.open_until(poll, right_time(ends)).await.unwrap();
    }

    /// Waits until so many more votes have an answer of this kind.
    async fn more(&self, answer: Answer, votes: u64) {
        let before = self.election.log.count(answer);
        let enough = || self.election.log.count(answer) >= before + votes;
        wait_until(&format!("{votes} more votes are {answer:?}"), enough).await.unwrap_or_else(|reason| {
            panic!("{reason}; the log: {:#?}", self.log.lock());
        });
    }

    /// From now on no vote in this poll is acknowledged: its end has passed by the right clock.
    async fn takes_no_more(&self, poll: &str) {
        let so_far = self.election.log.of_poll(poll).len();
        self.more(Answer::Rejected, 40).await;
        let late = self.election.log.of_poll(poll).split_off(so_far);
        let taken = late.iter().filter(|vote| vote.answer.is_some_and(|(answer, _)| answer == Answer::Durable)).count();
        assert_eq!(taken, 0, "votes were accepted after the end of {poll}; the log: {:#?}", self.log.lock());
    }

    async fn says(&self, words: &str) {
        let said = || self.log.lock().iter().any(|line| line.contains(words));
        wait_until(&format!("the log says {words:?}"), said).await.unwrap_or_else(|reason| {
            panic!("{reason}: {:#?}", self.log.lock());
        });
    }

    /// Every poll is closed, and nothing is lost or doubled.
    async fn judge(&self, voters: Voters) {
        voters.finish().await.unwrap();
        for poll in self.election.poll_ids() {
            self.election.close(&poll).await.unwrap();
        }
        self.election.verdict().await.unwrap();
    }
}

/// What a clock that is right says, and this many seconds.
fn right_time(and_seconds: i64) -> SystemTime {
    let seconds = Duration::from_secs(and_seconds.unsigned_abs());
    if and_seconds < 0 { SystemTime::now() - seconds } else { SystemTime::now() + seconds }
}

/// The clock is behind by `step` and then right: after a suspend, or a late synchronisation.
async fn jumps_ahead(library: PathBuf, step: i64) {
    let machine = Machine::new(library, -step).await;
    machine.open("p", -step / 2).await;
    let voters = Voters::start(&machine.election, CLIENTS, 1);
    machine.more(Answer::Durable, 50).await;
    machine.set_clock(0);
    sleep(FOLLOWED_WITHIN).await;
    machine.takes_no_more("p").await;
    machine.says("clock jumped ahead").await;
    // Polls of the right time are as good as ever.
    machine.open("q", HOUR).await;
    machine.more(Answer::Durable, 50).await;
    machine.judge(voters).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_ends_by_a_clock_that_jumped_an_hour_ahead() {
    let Some(library) = library() else { return };
    jumps_ahead(library, HOUR).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_ends_by_a_clock_that_jumped_a_day_ahead() {
    let Some(library) = library() else { return };
    jumps_ahead(library, DAY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back_and_forth_loses_no_vote_and_opens_no_poll_again() {
    let Some(library) = library() else { return };
    let mut machine = Machine::new(library, 0).await;
    machine.open("today", 30 * MINUTE).await;
    let voters = Voters::start(&machine.election, CLIENTS, 1);
    machine.more(Answer::Durable, 50).await;
    for ahead in [HOUR, DAY] {
        // The end of every poll of before passes, and does not come again.
        let before = machine.election.poll_ids().pop().unwrap();
        machine.set_clock(ahead);
        sleep(FOLLOWED_WITHIN).await;
        machine.takes_no_more(&before).await;
        machine.set_clock(0);
        machine.takes_no_more(&before).await;
        machine.says("clock is behind").await;
        machine.open(&format!("after-{ahead}"), ahead + 30 * MINUTE).await;
        machine.more(Answer::Durable, 50).await;
    }
    machine.judge(voters).await;
    machine.kill().await;
    start_again(&mut machine).await;
}

/// The clock is right again, and a day behind what was stored: the start says so, and what to do.
async fn start_again(machine: &mut Machine) {
    machine.log.lock().clear();
    let refused = machine.start(&[]).await.expect_err("it cannot know which of the two is wrong");
    let said = machine.log.lock().join("\n");
    assert_eq!(refused, Some(3), "{said}");
    assert!(said.contains("clock"), "{said}");
    let flag = said.split_whitespace().find(|word| word.starts_with("--")).unwrap_or_else(|| panic!("{said}"));
    let flag = flag.trim_end_matches(|c: char| !c.is_alphanumeric()).to_owned();
    machine.start(&[&flag]).await.unwrap_or_else(|_| panic!("{:#?}", machine.log.lock()));
    machine.election.verdict().await.unwrap();
    // Votes are taken by the time of the log.
    machine.open("again", DAY + 2 * HOUR).await;
    let voters = Voters::start(&machine.election, CLIENTS, 2);
    machine.more(Answer::Durable, 50).await;
    machine.judge(voters).await;
}
