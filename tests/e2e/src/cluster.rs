//! A deployment of real processes: the binaries of the services, with stand-ins for Kinesis and DynamoDB in this
//! process.
//!
//! Starts, kills and stops processes, makes a load that behaves as the API asks of a relay, and reads lease rows. Must
//! never leave a process behind. Must never wait without a limit: what did not happen in time is reported, with the
//! last logs of every process.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fmt::Debug,
    net::SocketAddr,
    path::Path,
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Streaming, transport::Channel};
use votestream_aws::{
    client::Clients,
    dynamodb::{DynamoConfig, DynamoStore},
};
use votestream_core::port::{Group, LeaseStore, ShardRow};
use votestream_proto::{
    VotesMessage,
    v1::{
        ClosePollRequest, CreatePollRequest, GetFinalResultsRequest, GetFinalResultsResponse, GetInterimResultsRequest,
        GetInterimResultsResponse, PollOption, RecountRequest, RejectionCode, StreamVotesResponse,
        ingest_service_client::IngestServiceClient, poll_service_client::PollServiceClient,
        results_service_client::ResultsServiceClient,
    },
};

use crate::aws::{Server, dynamo_store, dynamodb, kinesis_clients};

/// Longest time that a single step may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Longest time from closing a poll to its final result: all votes of an election may still have to be stored.
const FINAL_MAX: Duration = Duration::from_secs(240);
/// How often a condition is checked.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Most log lines that are kept of each process.
const LOG_LINES_MAX: usize = 400;
/// Votes that a relay puts into a message.
const VOTES_PER_MESSAGE: usize = 50;
/// Most streams of one relay that may break.
const STREAMS_MAX: usize = 100;
/// Most votes that a relay holds until they are durable.
const OPEN_MAX: usize = 4_000;

/// Paths of the binaries. A test finds those of its own package.
#[derive(Clone, Copy, Debug)]
pub struct Binaries {
    /// `ingest-svc`.
    pub ingest: &'static str,
    /// `persist-svc`.
    pub persist: &'static str,
    /// `tally-svc`.
    pub tally: &'static str,
}

/// Calls `look` again and again until it finds something.
///
/// # Panics
///
/// If it finds nothing within `within`. The message says what the last look saw.
pub async fn eventually<T, S: Debug>(what: &str, within: Duration, mut look: impl AsyncFnMut() -> Result<T, S>) -> T {
    let start = Instant::now();
    loop {
        match timeout(within, look()).await {
            Ok(Ok(found)) => return found,
            Ok(Err(_)) if start.elapsed() < within => sleep(LOOK_EVERY).await,
            Ok(Err(seen)) => panic!("{what}: not within {within:?}; the last look saw {seen:?}"),
            Err(_) => panic!("{what}: a look took longer than {within:?}"),
        }
    }
}

/// A running service. Killed when it is dropped.
pub struct Process {
    name: String,
    child: Child,
    log: Arc<Mutex<VecDeque<String>>>,
    address: watch::Receiver<Option<SocketAddr>>,
}

impl Process {
    fn start(binary: &str, name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        eprintln!("{name}: {} {}", Path::new(binary).display(), arguments.join(" "));
        let mut child = Command::new(binary)
            .args(arguments)
            // Take no variables from the shell that runs the tests: it may have some of the project, of AWS, or for
            // telemetry.
            .env_clear()
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        let stderr = child.stderr.take().expect("it is piped");
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let (found, address) = watch::channel(None);
        let lines = log.clone();
        tokio::spawn(async move {
            let mut stderr = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = stderr.next_line().await {
                if let Some(bound) = address_in(&line) {
                    found.send_replace(Some(bound));
                }
                let mut lines = lines.lock();
                if lines.len() == LOG_LINES_MAX {
                    lines.pop_front();
                }
                lines.push_back(line);
            }
        });
        Self { name: name.into(), child, log, address }
    }

    /// Its name, which is its worker id.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address that it listens on, once it does.
    ///
    /// # Panics
    ///
    /// If it never says so.
    pub async fn address(&mut self) -> SocketAddr {
        let found = timeout(PATIENCE, self.address.wait_for(Option::is_some)).await;
        match found {
            Ok(Ok(address)) => address.expect("it was waited for"),
            failed => panic!("{} does not listen: {failed:?}", self.name),
        }
    }

    /// Where it answers operators. Its log says that.
    ///
    /// # Panics
    ///
    /// If it never says so.
    pub async fn admin(&self) -> SocketAddr {
        eventually(&format!("{} has an admin address", self.name), PATIENCE, async || {
            let lines = self.log.lock();
            let found = lines.iter().find_map(|line| field_in(line, "metrics and health are answered", "admin"));
            found.ok_or("no line of it")
        })
        .await
    }

    /// SIGKILL.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap_or_else(|error| panic!("{} cannot be killed: {error}", self.name));
    }

    /// SIGTERM, to this process alone.
    pub async fn terminate(&self) {
        let id = self.child.id().unwrap_or_else(|| panic!("{} has ended by itself", self.name)).to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status().await.expect("kill can be run");
        assert!(sent.success(), "{} cannot be told to stop: {sent}", self.name);
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// If that takes longer than `within`.
    pub async fn ended(&mut self, within: Duration) -> ExitStatus {
        let ended = timeout(within, self.child.wait()).await;
        ended.unwrap_or_else(|_| panic!("{} does not stop within {within:?}", self.name)).expect("it can be waited for")
    }

    /// Sends SIGTERM and waits for a good end: exit code 0 says that everything was finished.
    ///
    /// # Panics
    ///
    /// If it ends with another code, or not within `within`.
    pub async fn stop(mut self, within: Duration) {
        self.terminate().await;
        let ended = self.ended(within).await;
        assert!(ended.success(), "{} stopped with {ended}", self.name);
    }

    /// Number of its last log lines that contain this text.
    pub fn logged(&self, text: &str) -> usize {
        self.log.lock().iter().filter(|line| line.contains(text)).count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines = self.log.lock();
            eprintln!("--- the log of {}:", self.name);
            lines.iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// The address in the line that a service logs when it listens.
fn address_in(line: &str) -> Option<SocketAddr> {
    field_in(line, "listening", "address")
}

/// An address in a line with this message.
fn field_in(line: &str, message: &str, name: &str) -> Option<SocketAddr> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields").unwrap_or(&line);
    (fields.get("message")? == message).then(|| fields.get(name)?.as_str()?.parse().ok())?
}

/// Stream, tables and the settings of every process.
pub struct Cluster {
    binaries: Binaries,
    stream: String,
    kinesis: String,
    dynamodb: String,
    clients: Clients,
    store: DynamoStore,
    variables: Vec<(String, String)>,
    _servers: Vec<Server>,
    /// Addresses of ingest services for relays.
    pub ingest: Addresses,
    /// Addresses of services for results.
    pub results: Addresses,
}

/// Addresses of the processes of one service that accept calls.
#[derive(Clone, Debug, Default)]
pub struct Addresses(Arc<Mutex<Vec<SocketAddr>>>);

impl Addresses {
    /// Adds a process that listens.
    pub fn add(&self, address: SocketAddr) {
        self.0.lock().push(address);
    }

    /// Removes an address before its process stops, or after it was killed.
    pub fn remove(&self, address: SocketAddr) {
        self.0.lock().retain(|known| *known != address);
    }

    fn pick(&self, turn: usize) -> Option<SocketAddr> {
        let addresses = self.0.lock();
        addresses.get(turn % addresses.len().max(1)).copied()
    }

    /// A connection to one of them. Another `turn` gives another one.
    async fn connect(&self, turn: usize) -> Channel {
        let start = Instant::now();
        loop {
            let failed = match self.pick(turn) {
                None => "no process takes calls".to_owned(),
                Some(address) => {
                    let endpoint = Channel::from_shared(format!("http://{address}")).expect("it is an address");
                    match endpoint.connect_timeout(PATIENCE).connect().await {
                        Ok(channel) => return channel,
                        Err(error) => format!("{address}: {error}"),
                    }
                }
            };
            assert!(start.elapsed() < PATIENCE, "no connection within {PATIENCE:?}: {failed}");
            sleep(LOOK_EVERY).await;
        }
    }
}

impl Cluster {
    /// A deployment without processes, with these endpoints. The servers live as long as the deployment.
    pub async fn over(
        binaries: Binaries,
        stream: &str,
        kinesis: (String, Server),
        dynamodb: (String, Vec<Server>),
    ) -> Self {
        let clients = kinesis_clients(&kinesis.0).await;
        let store = dynamo_store(&dynamodb.0, &DynamoConfig { voters_remembered: 0, ..DynamoConfig::default() }).await;
        Self {
            binaries,
            stream: stream.into(),
            kinesis: kinesis.0,
            dynamodb: dynamodb.0,
            clients,
            store,
            variables: Vec::new(),
            _servers: std::iter::once(kinesis.1).chain(dynamodb.1).collect(),
            ingest: Addresses::default(),
            results: Addresses::default(),
        }
    }

    /// Gives every process these variables. They come before the endpoints that the deployment has.
    pub fn with_variables<'a>(mut self, variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.variables.extend(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// A deployment without processes, on a stream of this many shards, with its tables.
    pub async fn with_shards(binaries: Binaries, shards: u32) -> Self {
        let (dynamodb, server) = dynamodb().await;
        let kinesis = crate::aws::kinesis(shards).await;
        let cluster = Self::over(binaries, crate::aws::STREAM, kinesis, (dynamodb, vec![server])).await;
        cluster.store.create_tables().await.expect("the stand-in creates tables");
        cluster
    }

    fn start(&self, binary: &str, name: &str, arguments: &[&str]) -> Process {
        self.start_with(binary, name, arguments, &[])
    }

    /// Starts a process with more variables.
    fn start_with(&self, binary: &str, name: &str, arguments: &[&str], more: &[(&str, &str)]) -> Process {
        let mut all = vec!["--stream", &self.stream, "--log-format", "json"];
        all.extend(arguments);
        let variables = [
            ("AWS_ENDPOINT_URL_KINESIS", &*self.kinesis),
            ("AWS_ENDPOINT_URL_DYNAMODB", &*self.dynamodb),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "dev"),
            ("AWS_SECRET_ACCESS_KEY", "dev"),
            ("RUST_BACKTRACE", "1"),
        ];
        let of_all: Vec<_> = self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Process::start(binary, name, &all, &[&variables, &of_all[..], more].concat())
    }

    /// Starts an ingest service and waits until it accepts calls.
    pub async fn start_ingest(&self, name: &str, arguments: &[&str]) -> Process {
        let mut process = self.start(self.binaries.ingest, name, &[&["--listen", "127.0.0.1:0"], arguments].concat());
        self.ingest.add(process.address().await);
        process
    }

    /// Starts an ingest service with these variables, and waits until it accepts calls. It is not added to
    /// [`Self::ingest`].
    pub async fn start_ingest_apart(&self, name: &str, variables: &[(&str, &str)]) -> (Process, SocketAddr) {
        let mut process = self.start_with(self.binaries.ingest, name, &["--listen", "127.0.0.1:0"], variables);
        let address = process.address().await;
        (process, address)
    }

    /// Starts a tally service and waits until it accepts calls.
    pub async fn start_tally(&self, name: &str, arguments: &[&str]) -> Process {
        let arguments = [&["--listen", "127.0.0.1:0", "--worker-id", name], arguments].concat();
        let mut process = self.start(self.binaries.tally, name, &arguments);
        self.results.add(process.address().await);
        process
    }

    /// Starts a persist service. It is ready once it owns shards.
    pub fn start_persist(&self, name: &str, arguments: &[&str]) -> Process {
        self.start(self.binaries.persist, name, &[&["--worker-id", name], arguments].concat())
    }

    /// The rows of a group.
    pub async fn rows(&self, group: Group) -> Vec<ShardRow> {
        self.store.list(group).await.expect("the shard rows can be read")
    }

    /// Number of open shards of each worker. Shards without an owner are under "".
    pub async fn shares(&self, group: Group) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        for row in self.rows(group).await.into_iter().filter(|row| row.started && !row.progress.ended) {
            *shares.entry(row.lease.owner.unwrap_or_default()).or_default() += 1;
        }
        shares
    }

    /// Waits until the open shards of a group are owned like this. Returns how long that took.
    pub async fn shared(&self, group: Group, wanted: &[(&str, usize)], within: Duration) -> Duration {
        let start = Instant::now();
        let wanted: BTreeMap<String, usize> = wanted.iter().map(|(name, shards)| ((*name).into(), *shards)).collect();
        let what = format!("{wanted:?} own the shards of {group:?}");
        eventually(&what, within, async || {
            let shares = self.shares(group).await;
            if shares == wanted { Ok(()) } else { Err(shares) }
        })
        .await;
        start.elapsed()
    }

    /// Clients with which a test calls Kinesis like an operator.
    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// Name of the stream.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// A new connection to an ingest service.
    pub async fn ingest(&self) -> IngestServiceClient<Channel> {
        IngestServiceClient::new(self.ingest.connect(0).await)
    }

    /// A new connection to the results of a tally service.
    pub async fn results(&self) -> ResultsServiceClient<Channel> {
        ResultsServiceClient::new(self.results.connect(0).await)
    }

    /// Creates a poll that is open for an hour.
    pub async fn create_poll<'a>(&self, id: &str, options: impl IntoIterator<Item = &'a str>) {
        self.create_poll_until(id, options, SystemTime::now() + Duration::from_secs(3_600)).await;
    }

    /// Creates a poll that closes at this time.
    pub async fn create_poll_until<'a>(
        &self,
        id: &str,
        options: impl IntoIterator<Item = &'a str>,
        closes_at: SystemTime,
    ) {
        let options = options.into_iter();
        let request = CreatePollRequest {
            poll_id: id.into(),
            options: options.map(|id| PollOption { option_id: id.into(), title: String::new() }).collect(),
            closes_at: Some(closes_at.into()),
            ..CreatePollRequest::default()
        };
        let mut polls = PollServiceClient::new(self.results.connect(0).await);
        polls.create_poll(request).await.expect("the poll is created");
    }

    /// Interim results.
    pub async fn interim(&self, poll: &str) -> GetInterimResultsResponse {
        let request = GetInterimResultsRequest { poll_id: poll.into() };
        self.results().await.get_interim_results(request).await.expect("interim results").into_inner()
    }

    /// Closes a poll and waits for its final result.
    pub async fn finish(&self, poll: &str) -> GetFinalResultsResponse {
        let mut polls = PollServiceClient::new(self.results.connect(0).await);
        polls.close_poll(ClosePollRequest { poll_id: poll.into() }).await.expect("the poll is closed");
        let request = GetFinalResultsRequest { poll_id: poll.into(), wait: true };
        let mut results = self.results().await;
        let waiting = timeout(FINAL_MAX, results.get_final_results(request)).await;
        match waiting {
            Ok(result) => result.expect("the final result").into_inner(),
            Err(_) => {
                let request = GetFinalResultsRequest { poll_id: poll.into(), wait: false };
                let now = results.get_final_results(request).await;
                panic!("the result is not final within {FINAL_MAX:?}: {now:?}")
            }
        }
    }

    /// Closes the poll of a load, and compares its final result with what the load knows: the last vote of every user
    /// counts, every acknowledged vote is submitted once, and nothing else is. A recount agrees.
    pub async fn is_exact(&self, poll: &str, cast: &Cast) {
        let result = self.finish(poll).await;
        let found: BTreeMap<_, _> = result.options.into_iter().map(|option| (option.option_id, option.votes)).collect();
        let mut model: BTreeMap<String, u64> = found.keys().map(|option| (option.clone(), 0)).collect();
        for option in cast.last.values() {
            *model.entry(option.to_string()).or_default() += 1;
        }
        let recount = self.results().await.recount(RecountRequest { poll_id: poll.into() }).await;
        let recount = recount.expect("a recount").into_inner();
        let submitted = eventually("every acknowledged vote is submitted", PATIENCE, async || {
            let submitted = self.interim(poll).await.total_submitted;
            if submitted >= cast.acknowledged { Ok(submitted) } else { Err((submitted, cast.acknowledged)) }
        })
        .await;
        let Cast { acknowledged, rejected, sent, streams, .. } = cast;
        eprintln!(
            "{poll}: {submitted} submitted, {acknowledged} acknowledged, {rejected} refused, {sent} sent in {streams} \
             streams, {} voters",
            cast.last.len()
        );
        assert_eq!(found, model, "the last vote of every user counts");
        assert_eq!(result.total_votes, cast.last.len() as u64);
        assert!(recount.matches && recount.r#final, "{recount:?}");
        assert!(submitted <= *sent, "{submitted} submitted, but only {sent} were ever sent");
    }
}

/// A load: how many relays, and what each of them sends.
#[derive(Clone, Copy, Debug)]
pub struct LoadPlan {
    /// Relays, each with users of its own.
    pub relays: usize,
    /// Votes a second of each.
    pub rate: usize,
    /// Users of each; they vote again and again. `None`: every vote is a new user's.
    pub users: Option<usize>,
}

/// What a load has cast.
#[derive(Debug, Default)]
pub struct Cast {
    /// The last vote of each user.
    pub last: HashMap<String, Arc<String>>,
    /// Votes that were acknowledged.
    pub acknowledged: u64,
    /// Votes that the service refused because it could not accept them at the moment. They count as not cast.
    pub rejected: u64,
    /// Votes that were sent, including those that were sent again.
    pub sent: u64,
    /// Streams that were opened.
    pub streams: u64,
}

/// Relays that cast votes until they are told to stop.
pub struct Load {
    stop: CancellationToken,
    relays: JoinSet<Cast>,
    acknowledged: Arc<AtomicU64>,
}

impl Load {
    /// Starts casting votes for these options.
    pub fn start(cluster: &Cluster, poll: &str, options: &[String], plan: LoadPlan) -> Self {
        let (stop, acknowledged) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let options: Vec<Arc<String>> = options.iter().cloned().map(Arc::new).collect();
        let mut relays = JoinSet::new();
        for number in 0..plan.relays {
            relays.spawn(
                Relay {
                    number,
                    poll: poll.into(),
                    options: options.clone(),
                    plan,
                    addresses: cluster.ingest.clone(),
                    stop: stop.clone(),
                    acknowledged: acknowledged.clone(),
                    rng: StdRng::seed_from_u64(number as u64),
                    open: VecDeque::new(),
                    cast: Cast::default(),
                    cast_until_now: 0,
                }
                .run(),
            );
        }
        Self { stop, relays, acknowledged }
    }

    /// Votes that are acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until this many more votes are acknowledged. So what happened before happened under load.
    pub async fn goes_on(&self, votes: u64) {
        let goal = self.acknowledged() + votes;
        eventually("the load goes on", PATIENCE, async || {
            let now = self.acknowledged();
            if now >= goal { Ok(()) } else { Err((now, goal)) }
        })
        .await;
    }

    /// Stops casting, and waits until everything is acknowledged.
    pub async fn finish(mut self) -> Cast {
        self.stop.cancel();
        let mut all = Cast::default();
        while let Some(cast) =
            timeout(PATIENCE, self.relays.join_next()).await.expect("the last votes are acknowledged in time")
        {
            let cast = cast.expect("a relay does not fail");
            all.last.extend(cast.last);
            all.acknowledged += cast.acknowledged;
            all.rejected += cast.rejected;
            all.sent += cast.sent;
            all.streams += cast.streams;
        }
        all
    }
}

/// A client that follows the API's documentation: after a broken stream it sends again from `durable_through`, in
/// order.
struct Relay {
    number: usize,
    poll: String,
    options: Vec<Arc<String>>,
    plan: LoadPlan,
    addresses: Addresses,
    stop: CancellationToken,
    acknowledged: Arc<AtomicU64>,
    rng: StdRng,
    /// Votes that were cast and are not durable, in order.
    open: VecDeque<(String, Arc<String>)>,
    cast: Cast,
    cast_until_now: usize,
}

impl Relay {
    async fn run(mut self) -> Cast {
        let mut ticks = interval(Duration::from_millis(100));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        for turn in self.number..self.number + STREAMS_MAX {
            let channel = self.addresses.connect(turn).await;
            self.cast.streams += 1;
            let (send, messages) = mpsc::channel(4);
            let opened = IngestServiceClient::new(channel).stream_votes(ReceiverStream::new(messages)).await;
            let Ok(answers) = opened else { continue };
            let mut answers = answers.into_inner();
            let (mut send, mut through, mut next) = (Some(send), 0, 0);
            let mut rejected = HashSet::new();
            // Until the stream breaks.
            loop {
                let stopping = self.stop.is_cancelled();
                if stopping && next == self.open.len() {
                    send = None;
                }
                let to_send = send.clone().filter(|_| next < self.open.len());
                tokio::select! {
                    answer = answers.next() => match answer {
                        Some(Ok(answer)) => {
                            for rejection in answer.rejections {
                                let code = rejection.code();
                                assert_eq!(code, RejectionCode::Unavailable, "{rejection:?}");
                                rejected.insert(rejection.index);
                            }
                            let settled = (answer.durable_through - through) as usize;
                            assert!(settled <= next, "only what was sent is settled");
                            next -= settled;
                            for (index, (user, option)) in (through..).zip(self.open.drain(..settled)) {
                                if rejected.remove(&index) {
                                    self.cast.rejected += 1;
                                    continue;
                                }
                                self.cast.acknowledged += 1;
                                self.acknowledged.fetch_add(1, Ordering::Relaxed);
                                self.cast.last.insert(user, option);
                            }
                            through = answer.durable_through;
                        }
                        Some(Err(_)) | None => break,
                    },
                    permit = async { to_send.expect("it is checked").reserve_owned().await },
                        if send.is_some() && next < self.open.len() =>
                    {
                        let Ok(permit) = permit else {
                            // The stream is broken. The answers end with the error.
                            send = None;
                            continue;
                        };
                        let mut message = VotesMessage::default();
                        let end = self.open.len().min(next + VOTES_PER_MESSAGE);
                        for (user, option) in self.open.range(next..end) {
                            message.push(&self.poll, user, option);
                        }
                        self.cast.sent += (end - next) as u64;
                        next = end;
                        permit.send(message);
                    }
                    _ = ticks.tick(), if !stopping => self.vote(),
                    () = self.stop.cancelled(), if !stopping => {}
                }
            }
            if self.stop.is_cancelled() && self.open.is_empty() {
                return self.cast;
            }
        }
        panic!("relay {}: {STREAMS_MAX} streams broke", self.number);
    }

    /// Casts the votes of a tenth of a second, unless too many are waiting.
    fn vote(&mut self) {
        for _ in 0..self.plan.rate / 10 {
            if self.open.len() >= OPEN_MAX {
                return;
            }
            let user = match self.plan.users {
                Some(users) => self.rng.random_range(0..users),
                None => self.cast_until_now,
            };
            self.cast_until_now += 1;
            let option = self.options[self.rng.random_range(0..self.options.len())].clone();
            self.open.push_back((format!("relay-{}-user-{user}", self.number), option));
        }
    }
}

/// Casts these votes, each of another user, by calls that `stream` makes. Votes that are rejected for one of the reasons
/// `again` are cast again. Returns the number of acknowledged votes, which is all of them.
///
/// # Panics
///
/// If a vote is rejected for another reason, or again and again.
pub async fn cast_all(
    poll: &str,
    votes: &[(String, String)],
    again: &[RejectionCode],
    stream: impl AsyncFn(Vec<VotesMessage>) -> Streaming<StreamVotesResponse>,
) -> usize {
    const ATTEMPTS_MAX: usize = 20;
    const PER_MESSAGE: usize = 200;
    let (mut left, mut accepted) = (votes.to_vec(), 0);
    for _ in 0..ATTEMPTS_MAX {
        let messages = left.chunks(PER_MESSAGE).map(|votes| {
            let mut message = VotesMessage::default();
            votes.iter().for_each(|(user, option)| message.push(poll, user, option));
            message
        });
        let mut answers = stream(messages.collect()).await;
        let (mut rejected, mut through) = (Vec::new(), 0);
        while let Some(answer) = answers.message().await.expect("the stream goes on") {
            through = answer.durable_through as usize;
            for rejection in answer.rejections {
                assert!(again.contains(&rejection.code()), "{rejection:?}");
                rejected.push(left[rejection.index as usize].clone());
            }
        }
        assert_eq!(through, left.len(), "every vote is settled");
        accepted += left.len() - rejected.len();
        left = rejected;
        if left.is_empty() {
            return accepted;
        }
        eprintln!("{} votes are cast again", left.len());
    }
    panic!("{} votes were rejected {ATTEMPTS_MAX} times", left.len());
}
