//! Kills real processes with `kill -9` at random times, while honest clients vote next to hostile ones and polls are
//! closed. Then judges what is left.
//!
//! Starts, freezes, kills and restarts processes, in one run with `votestream up` or with the three services and
//! stand-ins that live in this process. Must never leave a process behind. Must never pass a run in which nothing was
//! killed.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rand::{
    RngExt, SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use votestream_aws::dynamodb::DynamoConfig;

use crate::{
    aws,
    hostile::{Attack, Target},
    voters::{Election, PATIENCE, Places, Voters},
};
use votestream_testkit::audit::Answer;

/// Most output lines that are kept of each process.
const LOG_LINES_MAX: usize = 60;
/// Clients that vote at once.
const CLIENTS: u64 = 6;
/// Number of hostile clients that begin in a round.
const STRANGERS: std::ops::Range<usize> = 1..4;
/// How long each of them goes on, in milliseconds. Some go on beyond the kill.
const ATTACK_MS: std::ops::Range<u64> = 100..2_000;
/// Shards of the stream.
const SHARDS: u32 = 3;
/// Most rounds that are added until a kill has hit a vote that waits for its answer. Each process is hit ten times.
const MORE_ROUNDS_MAX: usize = 60;
/// Rounds after which a poll is closed and another one opened.
const ROUNDS_PER_POLL: usize = 8;
/// Time between a restart and the next kill, in milliseconds. Some kills hit a process that is still starting.
const PAUSE_MS: std::ops::Range<u64> = 20..1_100;
/// How long a process is frozen, in milliseconds. Often longer than `--failover`, so that it wakes up as a zombie: an
/// old owner that still runs.
const FREEZE_MS: std::ops::Range<u64> = 500..4_000;
/// Lease times so short that leases move in every round.
const LEASES: [&str; 3] = ["--failover=1200ms", "--renew-every=300ms", "--sync-every=300ms"];

/// Paths of the binaries.
#[derive(Clone, Copy, Debug)]
pub struct Binaries {
    /// `votestream`.
    pub votestream: &'static str,
    /// `ingest-svc`.
    pub ingest: &'static str,
    /// `persist-svc`.
    pub persist: &'static str,
    /// `tally-svc`.
    pub tally: &'static str,
}

/// What was done to the processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of kills, by the name of the process.
    pub kills: BTreeMap<&'static str, usize>,
    /// Kills while votes were waiting for their answer.
    pub kills_under_load: usize,
    /// Number of processes that were frozen and woke up.
    pub freezes: usize,
    /// How often each attack was begun on a process.
    pub attacks: BTreeMap<Attack, u64>,
    /// Votes by answer: durable, rejected, unknown.
    pub votes: [u64; 3],
    /// Polls that were judged.
    pub polls: usize,
}

/// The role of a process, with its settings and its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Up,
    Ingest,
    Persist,
    Tally,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Ingest => "ingest",
            Self::Persist => "persist",
            Self::Tally => "tally",
        }
    }

    fn places(self, places: &Places) -> Vec<&Mutex<Vec<Option<SocketAddr>>>> {
        match self {
            Self::Up => vec![&places.ingest, &places.results],
            Self::Ingest => vec![&places.ingest],
            Self::Persist => vec![],
            Self::Tally => vec![&places.results],
        }
    }
}

/// What is needed to start a process again.
pub(crate) struct Slot {
    role: Role,
    /// Its place among the addresses of its role.
    at: usize,
    binary: String,
    arguments: Vec<String>,
    variables: Vec<(&'static str, String)>,
}

/// A running process.
pub(crate) struct Process {
    pub(crate) child: Child,
    output: Arc<Mutex<VecDeque<String>>>,
    /// Tasks that read its output. They end with the process.
    readers: Vec<JoinHandle<()>>,
}

impl Slot {
    /// `votestream up` on a data directory. `before` is put before the command.
    pub(crate) fn up(votestream: &'static str, before: &[&str], directory: &Path) -> Self {
        let up = ["up", "--json", "--addr", "127.0.0.1:0", "--shards"];
        let mut words: Vec<String> = before.iter().chain(&[votestream]).chain(&up).map(|&word| word.into()).collect();
        words.extend([SHARDS.to_string(), "--data-dir".into(), directory.display().to_string()]);
        let binary = words.remove(0);
        Self { role: Role::Up, at: 0, binary, arguments: words, variables: vec![] }
    }

    pub(crate) fn start(&self, election: &Arc<Election>) -> Process {
        let mut command = Command::new(&self.binary);
        // Take no variables from the shell that runs the tests: it may have some of the project, of AWS, or for
        // telemetry.
        command.args(&self.arguments).env_clear().envs(self.variables.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{} cannot be started: {error}", self.binary));
        let output = Arc::<Mutex<VecDeque<String>>>::default();
        let (stdout, stderr) = (child.stdout.take().expect("it is piped"), child.stderr.take().expect("it is piped"));
        let readers = vec![self.listen(stdout, &output, election), self.listen(stderr, &output, election)];
        Process { child, output, readers }
    }

    /// Keeps the output of the process, and reads the addresses from it.
    fn listen(
        &self,
        pipe: impl AsyncRead + Unpin + Send + 'static,
        output: &Arc<Mutex<VecDeque<String>>>,
        election: &Arc<Election>,
    ) -> JoinHandle<()> {
        let (role, at, output, election) = (self.role, self.at, output.clone(), election.clone());
        tokio::spawn(async move {
            let mut lines = BufReader::new(pipe).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                for (places, address) in role.places(&election.places).into_iter().zip(addresses(&line)) {
                    places.lock()[at] = Some(address);
                }
                let mut output = output.lock();
                if output.len() == LOG_LINES_MAX {
                    output.pop_front();
                }
                output.push_back(line);
            }
        })
    }

    /// SIGKILL, and a new process.
    async fn restart(
        &self,
        process: &mut Option<Process>,
        election: &Arc<Election>,
        report: &mut Report,
    ) -> Result<(), String> {
        if let Some(running) = process.take() {
            self.kill(running, election).await?;
            *report.kills.entry(self.role.name()).or_default() += 1;
        }
        *process = Some(self.start(election));
        Ok(())
    }

    /// SIGKILL.
    ///
    /// # Errors
    ///
    /// If it has ended by itself, which is not allowed.
    async fn kill(&self, mut process: Process, election: &Election) -> Result<(), String> {
        self.begin_kill(&mut process)?;
        self.reap(process, election).await
    }

    /// Sends SIGKILL. A process that waits for its disk notices it only when the disk answers.
    pub(crate) fn begin_kill(&self, process: &mut Process) -> Result<(), String> {
        if let Ok(Some(status)) = process.child.try_wait() {
            return Err(format!("{} ended by itself with {status}:\n{}", self.role.name(), process.said()));
        }
        process.child.start_kill().map_err(|error| format!("{} cannot be killed: {error}", self.role.name()))
    }

    /// Waits until a killed process is gone.
    pub(crate) async fn reap(&self, mut process: Process, election: &Election) -> Result<(), String> {
        let gone = timeout(PATIENCE, process.child.wait()).await;
        gone.map_err(|_| format!("{} outlives its SIGKILL", self.role.name()))?.map_err(|error| error.to_string())?;
        // Its last output must not be mistaken for the output of its successor.
        for reader in &mut process.readers {
            timeout(PATIENCE, reader).await.map_err(|_| "a pipe outlives its process")?.ok();
        }
        for places in self.role.places(&election.places) {
            places.lock()[self.at] = None;
        }
        Ok(())
    }
}

impl Process {
    /// The last lines of its output.
    pub(crate) fn said(&self) -> String {
        self.output.lock().iter().map(|line| format!("    {line}\n")).collect()
    }

    /// SIGSTOP or SIGCONT, to this process alone.
    async fn signal(&self, signal: &str) {
        if let Some(id) = self.child.id() {
            // The process may have ended. The next kill finds this.
            Command::new("kill").args([signal, &id.to_string()]).status().await.ok();
        }
    }
}

/// The addresses in a line of output. `votestream up --json` prints both; a service logs the one on which it listens.
fn addresses(line: &str) -> Vec<SocketAddr> {
    let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else { return vec![] };
    let address = |value: &serde_json::Value| value.as_str()?.trim_start_matches("http://").parse().ok();
    if let (Some(ingest), Some(results)) = (line.get("ingest"), line.get("results")) {
        return [ingest, results].into_iter().filter_map(address).collect();
    }
    let fields = line.get("fields").unwrap_or(&line);
    let listens = fields.get("message").and_then(|message| message.as_str()) == Some("listening");
    fields.get("address").filter(|_| listens).and_then(address).into_iter().collect()
}

/// Kills `votestream up` again and again, and keeps its data directory.
///
/// # Errors
///
/// What the auditor does not allow, or what never happened.
pub async fn up(binaries: Binaries, directory: &Path, rounds: usize, seed: u64) -> Result<Report, String> {
    let slot = Slot::up(binaries.votestream, &[], directory);
    run(vec![slot], rounds, seed).await
}

/// Kills the three services again and again. Each has two processes. The stand-ins live on.
///
/// # Errors
///
/// What the auditor does not allow, or what never happened.
pub async fn services(binaries: Binaries, rounds: usize, seed: u64) -> Result<Report, String> {
    let ((kinesis, _kinesis), (dynamodb, _dynamodb)) = tokio::join!(aws::kinesis(SHARDS), aws::dynamodb());
    let store = aws::dynamo_store(&dynamodb, &DynamoConfig::default()).await;
    store.create_tables().await.map_err(|error| error.to_string())?;
    let variables = vec![
        ("AWS_ENDPOINT_URL_KINESIS", kinesis),
        ("AWS_ENDPOINT_URL_DYNAMODB", dynamodb),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", "dev".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "dev".to_owned()),
    ];
    let slot = |role: Role, at: usize| {
        let (binary, own): (_, &[&str]) = match role {
            Role::Ingest => (binaries.ingest, &["--listen", "127.0.0.1:0", "--ingest-tasks", "2"]),
            Role::Persist => (binaries.persist, &LEASES),
            Role::Tally => (binaries.tally, &["--listen", "127.0.0.1:0", LEASES[0], LEASES[1], LEASES[2]]),
            Role::Up => (binaries.votestream, &[]),
        };
        let arguments = ["--stream", aws::STREAM, "--log-format", "json"].iter().chain(own);
        let arguments = arguments.map(|argument| (*argument).to_owned()).collect();
        Slot { role, at, binary: binary.into(), arguments, variables: variables.clone() }
    };
    let roles = [Role::Ingest, Role::Persist, Role::Tally];
    run(roles.into_iter().flat_map(|role| [slot(role, 0), slot(role, 1)]).collect(), rounds, seed).await
}

async fn run(slots: Vec<Slot>, rounds: usize, seed: u64) -> Result<Report, String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let election = Arc::<Election>::default();
    for slot in &slots {
        slot.role.places(&election.places).into_iter().for_each(|places| places.lock().push(None));
    }
    let mut processes: Vec<Option<Process>> = slots.iter().map(|slot| Some(slot.start(&election))).collect();
    let ended = kill_and_judge(&slots, &mut processes, &election, rounds, &mut rng).await;
    ended.map_err(|reason| {
        let running = slots.iter().zip(&processes).filter_map(|(slot, process)| Some((slot, process.as_ref()?)));
        let said = running.map(|(slot, process)| format!("{}:\n{}", slot.role.name(), process.said()));
        format!("{reason}\nseed {seed}; the processes said last:\n{}", said.collect::<String>())
    })
}

async fn kill_and_judge(
    slots: &[Slot],
    processes: &mut [Option<Process>],
    election: &Arc<Election>,
    rounds: usize,
    rng: &mut StdRng,
) -> Result<Report, String> {
    let mut report = Report::default();
    let mut closing = JoinSet::new();
    let mut poll = String::new();
    let mut victims: Vec<usize> = Vec::new();
    let voters = Voters::start(election, CLIENTS, rng.random());
    let mut strangers = JoinSet::new();
    for round in 0..rounds + MORE_ROUNDS_MAX {
        // In a few rounds, perhaps no kill hits a waiting vote. Then the kills go on.
        let hit = report.kills_under_load > 0 && election.log.count(Answer::Unknown) > 0;
        if round >= rounds && hit {
            break;
        }
        if round % ROUNDS_PER_POLL == 0 || election.is_worn() {
            // The old poll is closed, and becomes final, while the kills go on.
            let next = format!("poll-{round}");
            election.open(&next).await?;
            let old = std::mem::replace(&mut poll, next);
            if !old.is_empty() {
                let election = election.clone();
                closing.spawn(async move { election.close(&old).await });
            }
            report.polls += 1;
        }
        send_strangers(&mut strangers, election, &poll, rng);
        sleep(Duration::from_millis(rng.random_range(PAUSE_MS))).await;
        // Kill each process once before any is killed again.
        if victims.is_empty() {
            victims = (0..slots.len()).collect();
            victims.shuffle(rng);
        }
        let Some(victim) = victims.pop() else { continue };
        if slots.len() > 1 && rng.random_bool(0.3) {
            let frozen = rng.random_range(0..slots.len());
            let thaw_after = Duration::from_millis(rng.random_range(FREEZE_MS));
            if let Some(process) = &processes[frozen] {
                process.signal("-STOP").await;
                sleep(thaw_after).await;
                process.signal("-CONT").await;
                report.freezes += 1;
            }
        }
        report.kills_under_load += usize::from(election.log.waiting() > 0);
        slots[victim].restart(&mut processes[victim], election, &mut report).await?;
    }
    voters.finish().await?;
    while let Some(stranger) = timeout(PATIENCE, strangers.join_next()).await.map_err(|_| "an attack never ends")? {
        let (attack, attempts) = stranger.map_err(|error| format!("a hostile client failed: {error}"))?;
        *report.attacks.entry(attack).or_default() += attempts;
    }
    election.close(&poll).await?;
    while let Some(closed) = timeout(PATIENCE, closing.join_next()).await.map_err(|_| "a poll is never closed")? {
        closed.map_err(|error| error.to_string())??;
    }
    // Finally kill everything: final results must stay the same.
    for (slot, process) in slots.iter().zip(processes) {
        slot.restart(process, election, &mut report).await?;
    }
    election.verdict().await?;
    report.votes = [Answer::Durable, Answer::Rejected, Answer::Unknown].map(|answer| election.log.count(answer));
    Ok(report)
}

/// Starts hostile clients against the running processes. The seed chooses their kinds.
fn send_strangers(strangers: &mut JoinSet<(Attack, u64)>, election: &Election, poll: &str, rng: &mut StdRng) {
    for _ in 0..rng.random_range(STRANGERS) {
        let any = |places: &Mutex<Vec<Option<SocketAddr>>>, rng: &mut StdRng| {
            places.lock().iter().flatten().copied().collect::<Vec<_>>().choose(rng).copied()
        };
        let (ingest, results) = (any(&election.places.ingest, rng), any(&election.places.results, rng));
        let (attack, seed) = (Attack::any(rng), rng.random());
        let until = Instant::now() + Duration::from_millis(rng.random_range(ATTACK_MS));
        let (Some(ingest), Some(results)) = (ingest, results) else { continue };
        let target = Target { ingest, results, poll: poll.to_owned() };
        strangers.spawn(async move { (attack, attack.run(target, seed, until).await.attempts) });
    }
}
