//! Runs `votestream up`, and one of three services, on a machine whose wall clock jumps by an hour and by a day, back
//! and forth, while people vote. No vote may be accepted after the end of its poll by the right clock, no acknowledged
//! vote may be lost, and the log must say what happened.
//!
//! `libfaketime` (Debian: `faketime`) moves the wall clock but not the monotonic clock, so a jump ahead looks like a
//! suspend of the machine. The tests are skipped with a message where it is not installed.

use std::{
    path::{Path, PathBuf},
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
use tonic::{Code, transport::Channel};
use votestream_e2e::{
    cluster::{Binaries, Cluster, Process, eventually},
    stack::connect,
    voters::{Election, PATIENCE, Voters, wait_until},
};
use votestream_proto::{VotesMessage, v1::ingest_service_client::IngestServiceClient};
use votestream_testkit::audit::Answer;

const VOTESTREAM: &str = env!("CARGO_BIN_EXE_cluster-votestream");
const BINARIES: Binaries = Binaries {
    ingest: env!("CARGO_BIN_EXE_cluster-ingest-svc"),
    persist: env!("CARGO_BIN_EXE_cluster-persist-svc"),
    tally: env!("CARGO_BIN_EXE_cluster-tally-svc"),
};
const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// Time within which the process follows a clock that jumped ahead.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(1);
const CLIENTS: u64 = 4;

/// Path of the library. `None`, with a message, if the clock of a process cannot be moved here.
fn library() -> Option<PathBuf> {
    let found = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut found = found.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    let library = found.find(|path| path.exists());
    if library.is_none() {
        eprintln!("skipped: libfaketime is not installed (apt-get install faketime)");
    }
    library
}

/// `votestream up` on a machine with its own clock.
struct Machine {
    directory: tempfile::TempDir,
    library: PathBuf,
    election: Arc<Election>,
    /// Lines on stderr of all starts.
    log: Arc<Mutex<Vec<String>>>,
    up: Option<Child>,
}

impl Machine {
    /// A machine whose clock is this far ahead of the right one.
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

    /// Sets the clock, like `date --set`.
    fn set_clock(&self, ahead: i64) {
        let new = self.directory.path().join("new");
        std::fs::write(&new, format!("{ahead:+}s\n")).unwrap();
        std::fs::rename(new, self.file()).unwrap();
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Starts the process. If it does not start, returns its exit status.
    async fn start(&mut self, more: &[&str]) -> Result<(), Option<i32>> {
        let mut command = Command::new(VOTESTREAM);
        command.args(["up", "--json", "--shards", "2", "--addr", "127.0.0.1:0"]);
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

    /// Waits until this many more votes have this answer.
    async fn more(&self, answer: Answer, votes: u64) {
        let before = self.election.log.count(answer);
        let enough = || self.election.log.count(answer) >= before + votes;
        wait_until(&format!("{votes} more votes are {answer:?}"), enough).await.unwrap_or_else(|reason| {
            panic!("{reason}; the log: {:#?}", self.log.lock());
        });
    }

    /// Checks that no vote in this poll is acknowledged from now on, because its end has passed by the right clock.
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

    /// Closes every poll, and checks that nothing is lost or doubled.
    async fn judge(&self, voters: Voters) {
        voters.finish().await.unwrap();
        for poll in self.election.poll_ids() {
            self.election.close(&poll).await.unwrap();
        }
        self.election.verdict().await.unwrap();
    }
}

/// The right time plus this many seconds.
fn right_time(and_seconds: i64) -> SystemTime {
    let seconds = Duration::from_secs(and_seconds.unsigned_abs());
    if and_seconds < 0 { SystemTime::now() - seconds } else { SystemTime::now() + seconds }
}

/// The clock is behind by `step` and then becomes right, as after a suspend or a late synchronisation.
async fn jumps_ahead(library: PathBuf, step: i64) {
    let machine = Machine::new(library, -step).await;
    machine.open("p", -step / 2).await;
    let voters = Voters::start(&machine.election, CLIENTS, 1);
    machine.more(Answer::Durable, 50).await;
    machine.set_clock(0);
    sleep(FOLLOWED_WITHIN).await;
    machine.takes_no_more("p").await;
    machine.says("clock jumped ahead").await;
    // Polls with the right time work as before.
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
        // The end of every earlier poll has passed, and does not come again.
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

/// The clock is right again, and a day behind the stored votes. The start must say so, and say what to do.
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
    // Votes are accepted by the time of the log.
    machine.open("again", DAY + 2 * HOUR).await;
    let voters = Voters::start(&machine.election, CLIENTS, 2);
    machine.more(Answer::Durable, 50).await;
    machine.judge(voters).await;
}

/// An ingest service of a cluster, on a machine with its own clock.
struct Ingest {
    offset: PathBuf,
    process: Process,
    client: IngestServiceClient<Channel>,
    /// Number of votes so far. Each is from a new user.
    sent: u64,
    acknowledged: u64,
    unknown: u64,
}

impl Ingest {
    /// Starts the service with a right clock.
    async fn start(cluster: &Cluster, library: &Path, directory: &Path, name: &str) -> Self {
        let offset = directory.join(name);
        std::fs::write(&offset, "+0s\n").unwrap();
        let variables = [
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", offset.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        let (process, address) = cluster.start_ingest_apart(name, &variables).await;
        let client = IngestServiceClient::new(connect(address).await);
        Self { offset, process, client, sent: 0, acknowledged: 0, unknown: 0 }
    }

    /// Casts a vote of a new user. Returns the answer.
    async fn cast(&mut self, poll: &str) -> Code {
        self.sent += 1;
        let mut message = VotesMessage::default();
        message.push(poll, &format!("{}-{}", self.process.name(), self.sent), "a");
        let code = self.client.cast_vote(message).await.map_or_else(|status| status.code(), |_| Code::Ok);
        self.acknowledged += u64::from(code == Code::Ok);
        self.unknown += u64::from(code == Code::DeadlineExceeded);
        code
    }
}

/// The clock of one of three services jumps. The engines' answers contradict it, so this service acknowledges nothing.
/// What it acknowledged before counts, and a service with a right clock takes its place.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_services_whose_clock_jumps_loses_no_vote() {
    let Some(library) = library() else { return };
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::with_shards(BINARIES, 2).await;
    let _tally = cluster.start_tally("tally", &[]).await;
    let _persist = cluster.start_persist("persist", &[]);
    cluster.create_poll_until("p", ["a"], right_time(3 * DAY)).await;
    let (mut acknowledged, mut unknown) = (0, 0);
    for (name, ahead) in [("hour", HOUR), ("day", DAY), ("back", -HOUR)] {
        let mut ingest = Ingest::start(&cluster, &library, directory.path(), name).await;
        eventually("votes are acknowledged", PATIENCE, async || {
            let code = ingest.cast("p").await;
            if ingest.acknowledged >= 20 { Ok(()) } else { Err(code) }
        })
        .await;
        std::fs::write(&ingest.offset, format!("{ahead:+}s\n")).unwrap();
        if ahead > 0 {
            eventually("votes are refused", PATIENCE, async || {
                let code = ingest.cast("p").await;
                if code == Code::Unavailable { Ok(()) } else { Err(code) }
            })
            .await;
            assert!(ingest.process.logged("clock") > 0, "the log says nothing about the clock");
            // From then on no vote is acknowledged.
            for _ in 0..20 {
                assert_ne!(ingest.cast("p").await, Code::Ok);
            }
        } else {
            // A clock that was set back goes on more slowly, and is trusted as long as nothing contradicts it.
            for _ in 0..20 {
                ingest.cast("p").await;
            }
        }
        (acknowledged, unknown) = (acknowledged + ingest.acknowledged, unknown + ingest.unknown);
    }
    let total = cluster.finish("p").await.total_votes;
    assert!(
        (acknowledged..=acknowledged + unknown).contains(&total),
        "{acknowledged} + {unknown} votes, {total} count"
    );
}
