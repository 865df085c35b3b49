//! A real `votestream up` under attack, with honest voters at the same time.
//!
//! Owns the process, its limits, and what is measured from outside: memory, processor time, threads, descriptors. Must
//! never require a time that a slower machine would not reach: processor time is only compared with itself, and waits
//! end after [`PATIENCE`].

use std::{
    net::SocketAddr,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::voters::{Election, PATIENCE, Voters};
use votestream_testkit::audit::Answer;

/// Clock ticks per second in `/proc`, the same on every Linux.
const TICKS: u64 = 100;
/// How long a process is measured.
const WINDOW: Duration = Duration::from_millis(500);
/// Part of a core that an idle process may use: its timers, in a debug build, on a busy machine.
const IDLE_CORES: f64 = 0.3;
/// Most output lines that are kept.
const LOG_LINES_MAX: usize = 100;
/// Number of honest clients that vote during an attack.
const VOTERS: u64 = 2;
/// The poll in which they vote first.
const POLL: &str = "beside";

/// How a process is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Soft and hard limit of open files; that of the tests if `None`.
    pub files: Option<(u64, u64)>,
    /// More arguments.
    pub arguments: Vec<String>,
    /// CA of its certificate in PEM, if the arguments turn TLS on.
    pub ca: Option<String>,
}

/// A process under attack, with honest voters.
pub struct Server {
    child: Child,
    /// Address of `IngestService` and of JSON votes.
    pub ingest: SocketAddr,
    /// Address of `ResultsService` and `PollService`.
    pub results: SocketAddr,
    output: Arc<parking_lot::Mutex<Vec<String>>>,
    election: Arc<Election>,
    voters: Option<Voters>,
    /// The polls of the honest voters.
    polls: Vec<String>,
    /// Memory before the attack, in bytes.
    memory_before: u64,
}

impl Server {
    /// Starts `votestream up` on a directory of its own, and honest voters.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub async fn start(binary: &str, seed: u64) -> Self {
        Self::start_with(binary, seed, Options::default()).await
    }

    /// Like [`Self::start`], with these options.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub async fn start_with(binary: &str, seed: u64, options: Options) -> Self {
        let binary = std::env::var("VOTESTREAM_BINARY").unwrap_or_else(|_| binary.to_owned());
        let limit =
            options.files.map_or_else(String::new, |(soft, hard)| format!("ulimit -Hn {hard}; ulimit -Sn {soft};"));
        let mut command = Command::new("bash");
        command.args(["-c", &format!("{limit} exec \"$@\""), "-", &binary]);
        command.args(["up", "--ephemeral", "--json", "--addr", "127.0.0.1:0"]);
        command.args(&options.arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        let output = Arc::<parking_lot::Mutex<Vec<String>>>::default();
        listen(child.stderr.take().unwrap(), output.clone());
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        timeout(PATIENCE, stdout.read_line(&mut line)).await.expect("it never says where it is").unwrap();
        listen(stdout, output.clone());
        let addresses: serde_json::Value =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("it says {line:?}, and {:#?}", output.lock()));
        let address = |name: &str| addresses[name].as_str().unwrap().split_once("://").unwrap().1.parse().unwrap();
        let (ingest, results) = (address("ingest"), address("results"));
        let election = Arc::<Election>::default();
        *election.places.ca.lock() = options.ca;
        election.places.ingest.lock().push(Some(ingest));
        election.places.results.lock().push(Some(results));
        election.open(POLL).await.unwrap();
        let voters = Voters::start(&election, VOTERS, seed);
        let polls = vec![POLL.to_owned()];
        let mut server =
            Self { child, ingest, results, output, election, voters: Some(voters), polls, memory_before: 0 };
        server.a_vote_gets_through("before the attack").await;
        server.memory_before = server.memory_peak();
        server
    }

    /// Ends the process as an operator would.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub async fn terminate(mut self) -> (ExitStatus, Duration) {
        if let Some(voters) = self.voters.take() {
            voters.finish().await.unwrap();
        }
        let start = Instant::now();
        let id = self.child.id().expect("it runs").to_string();
        Command::new("kill").args(["-TERM", &id]).status().await.unwrap();
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it does not end").unwrap();
        (status, start.elapsed())
    }

    fn proc(&self, file: &str) -> String {
        let id = self.child.id().unwrap_or_else(|| panic!("it has ended: {:#?}", self.output.lock()));
        std::fs::read_to_string(format!("/proc/{id}/{file}"))
            .unwrap_or_else(|error| panic!("it has ended ({error}): {:#?}", self.output.lock()))
    }

    fn status(&self, name: &str) -> u64 {
        let status = self.proc("status");
        let value =
            status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next());
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {status}"))
    }

    /// Memory that it has asked for and uses, in bytes. The pages of its binary, which the system drops and reads
    /// again as it pleases (tens of MiB), are none.
    pub fn memory(&self) -> u64 {
        ["RssAnon", "RssShmem", "VmSwap"].into_iter().map(|kind| self.status(kind) << 10).sum()
    }

    /// What it has held at most until now, in bytes, the pages of its binary included.
    fn memory_peak(&self) -> u64 {
        self.status("VmHWM") << 10
    }

    /// How much more memory it has held so far at most than at most before the attack, in bytes.
    pub fn memory_grew(&self) -> u64 {
        self.memory_peak().saturating_sub(self.memory_before)
    }

    /// Its threads.
    pub fn threads(&self) -> u64 {
        self.status("Threads")
    }

    /// Processor time that it has used.
    pub fn cpu(&self) -> Duration {
        let stat = self.proc("stat");
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 1_000 / TICKS)
    }

    /// How many cores it uses on average for a while.
    pub async fn cores(&self, window: Duration) -> f64 {
        let (start, before) = (Instant::now(), self.cpu());
        sleep(window).await;
        (self.cpu() - before).as_secs_f64() / start.elapsed().as_secs_f64()
    }

    /// Whether the process lives.
    ///
    /// # Panics
    ///
    /// If not. The message has its last output.
    pub fn lives(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            panic!("it has ended with {status}: {:#?}", self.output.lock());
        }
    }

    /// Waits until the next honest vote is acknowledged.
    ///
    /// # Panics
    ///
    /// If none is, or the process has ended.
    pub async fn a_vote_gets_through(&mut self, when: &str) {
        if self.election.is_worn() {
            // Every vote needs an option of its own, and the poll has no unused ones left.
            let next = format!("{POLL}-{}", self.polls.len());
            self.election.open(&next).await.unwrap();
            self.polls.push(next);
        }
        let (start, before) = (Instant::now(), self.election.log.count(Answer::Durable));
        while self.election.log.count(Answer::Durable) == before {
            self.lives();
            assert!(start.elapsed() < PATIENCE / 2, "no honest vote gets through {when}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the process is idle: clients that have left must not cost anything. Honest voters are paused
    /// meanwhile.
    ///
    /// # Panics
    ///
    /// If it does not become idle in time.
    pub async fn comes_to_rest(&mut self, patience: Duration) {
        if let Some(voters) = self.voters.take() {
            voters.finish().await.unwrap();
        }
        let start = Instant::now();
        let mut cores = self.cores(WINDOW).await;
        while cores > IDLE_CORES {
            assert!(start.elapsed() < patience, "after the attacker has left it still uses {cores:.2} cores");
            cores = self.cores(WINDOW).await;
        }
    }

    /// Honest voters go on.
    pub fn voters_go_on(&mut self, seed: u64) {
        self.voters.get_or_insert_with(|| Voters::start(&self.election, VOTERS, seed));
    }

    /// Called after the attack: the process must live, and count every honest vote.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub async fn counts_exactly(mut self) {
        self.lives();
        if let Some(voters) = self.voters.take() {
            voters.finish().await.unwrap();
        }
        let judged = async {
            futures::future::try_join_all(self.polls.iter().map(|poll| self.election.close(poll))).await?;
            self.election.verdict().await
        };
        let judged = judged.await;
        self.lives();
        judged.unwrap_or_else(|reason| panic!("{reason}; it said {:#?}", self.output.lock()));
    }

    /// What it said.
    pub fn said(&self) -> Vec<String> {
        self.output.lock().clone()
    }
}

/// Keeps the first lines of a pipe, and reads the rest.
fn listen(pipe: impl AsyncRead + Unpin + Send + 'static, output: Arc<parking_lot::Mutex<Vec<String>>>) {
    tokio::spawn(async move {
        let mut lines = BufReader::new(pipe).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let mut output = output.lock();
            if output.len() < LOG_LINES_MAX {
                output.push(line);
            }
        }
    });
}
