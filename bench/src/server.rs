//! The servers under test, each in a process of its own: how they are started, and how their CPU time is read.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::SocketAddr,
    num::NonZeroU32,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use clap::{Args, ValueEnum};
use futures::FutureExt;
use tokio::{net::TcpListener, sync::Notify};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use votestream_client::{Client, ResultsClient};
use votestream_core::{
    PseudonymKeys,
    model::pseudonym::{KEY_BYTES, PseudonymKey},
};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions, background};
use votestream_ingest::IngestConfig;
use votestream_persist::PersistConfig;
use votestream_server::{Connections, Identity, Limits, Quotas, Tls, TlsIdentity, TlsSource};
use votestream_stack::{Listeners, Stack, StackConfig};
use votestream_tally::TallyConfig;
use votestream_testkit::stand_ins;

use crate::{
    cpu::cpu_seconds,
    engines::{self, Engines},
    identity,
    null::{self, NullConfig, VOTES_PER_RECORD},
    tls, votes,
};

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// tonic as generated: decodes every field into a string and drops it.
    Bare,
    /// ingest-svc alone on the embedded stream, with a poll.
    Ingest,
    /// The same, with a poll whose users get pseudonyms.
    IngestPseudonyms,
    /// All three services on the embedded engines.
    Stack,
    /// A null Kinesis and a null DynamoDB.
    Null,
    /// ingest-svc on the AWS adapters.
    IngestAws,
    /// persist-svc on the AWS adapters.
    PersistAws,
    /// tally-svc on the AWS adapters.
    TallyAws,
    /// Stand-ins for Kinesis and DynamoDB that keep what they are given, in memory.
    DevAws,
    /// All three services on the AWS adapters, in one process.
    StackAws,
    /// The AWS SDK alone: INSERT statements, 25 a call, with as many calls in flight as the adapter has.
    Sdk,
}

/// Settings of some servers.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Options {
    /// Address of Kinesis, and of DynamoDB unless that has its own
    #[arg(long)]
    pub(crate) aws: Option<SocketAddr>,
    /// Address of DynamoDB
    #[arg(long)]
    pub(crate) dynamodb: Option<SocketAddr>,
    /// Milliseconds that the null DynamoDB takes for a call on votes, and the bare server for a single vote,
    /// approximately
    #[arg(long, default_value_t = 0)]
    pub(crate) delay_ms: u64,
    /// Whether the null DynamoDB takes as long for every other call, too
    #[arg(long)]
    pub(crate) delay_all: bool,
    /// Votes per record of the null Kinesis; 0 for its default
    #[arg(long, default_value_t = 0)]
    pub(crate) record_votes: usize,
    /// Votes per second that the null Kinesis shows, after the first release; 0 for whole rounds at once
    #[arg(long, default_value_t = 0)]
    pub(crate) rate: usize,
    /// Votes after which persist-svc closes a window; 0 for its default
    #[arg(long, default_value_t = 0)]
    pub(crate) window_votes: usize,
    /// Write units per second that persist-svc may spend on votes; 0 for no limit
    #[arg(long, default_value_t = 0)]
    pub(crate) write_units: u32,
    /// Milliseconds after which tally-svc writes its sums again; 0 for its default
    #[arg(long, default_value_t = 0)]
    pub(crate) flush_ms: u64,
    /// Shards of the stream; 0 for the server's default
    #[arg(long, default_value_t = 0)]
    pub(crate) shards: usize,
    /// Votes in one round of the null Kinesis, or of the SDK
    #[arg(long, default_value_t = 0)]
    pub(crate) votes: usize,
    /// Whether ingest-svc asks its callers who they are
    #[arg(long)]
    pub(crate) identity: bool,
    /// Whether ingest-svc counts the calls of its callers
    #[arg(long)]
    pub(crate) limits: bool,
    /// Folder with the certificate of ingest, its key, and the CA of clients; without it, ingest speaks no TLS
    #[arg(long)]
    pub(crate) tls: Option<PathBuf>,
}

impl Options {
    fn engines(&self) -> anyhow::Result<Engines> {
        let kinesis = self.aws.context("--aws is missing")?;
        Ok(Engines { kinesis, dynamodb: self.dynamodb.unwrap_or(kinesis) })
    }

    /// The options as a command line.
    fn arguments(self) -> Vec<OsString> {
        let Self {
            aws,
            dynamodb,
            delay_ms,
            delay_all,
            record_votes,
            rate,
            window_votes,
            write_units,
            flush_ms,
            shards,
            votes,
            identity,
            limits,
            tls,
        } = self;
        let mut arguments = vec![
            format!("--delay-ms={delay_ms}"),
            format!("--record-votes={record_votes}"),
            format!("--rate={rate}"),
            format!("--window-votes={window_votes}"),
            format!("--write-units={write_units}"),
            format!("--flush-ms={flush_ms}"),
            format!("--shards={shards}"),
            format!("--votes={votes}"),
        ];
        arguments.extend(aws.map(|aws| format!("--aws={aws}")));
        arguments.extend(dynamodb.map(|dynamodb| format!("--dynamodb={dynamodb}")));
        arguments.extend(delay_all.then(|| "--delay-all".to_owned()));
        arguments.extend(identity.then(|| "--identity".to_owned()));
        arguments.extend(limits.then(|| "--limits".to_owned()));
        let mut arguments: Vec<OsString> = arguments.into_iter().map(OsString::from).collect();
        arguments.extend(tls.into_iter().flat_map(|tls| [OsString::from("--tls"), tls.into()]));
        arguments
    }

    /// The connections of ingest, with TLS if there is a certificate.
    fn connections(&self) -> anyhow::Result<Connections> {
        let source = self.tls.as_ref().map(|folder| TlsSource {
            identity: TlsIdentity::Files { certificate: folder.join(tls::CERTIFICATE), key: folder.join(tls::KEY) },
            client_ca: Some(folder.join(tls::CA)),
        });
        let tls = source.map(Tls::open).transpose();
        Ok(Connections::secured(Limits::default(), tls.map_err(|errors| anyhow::anyhow!("{errors:?}"))?))
    }

    fn persist(&self) -> PersistConfig {
        let mut config = PersistConfig::distributed();
        if self.window_votes > 0 {
            config.group.window.votes_max = self.window_votes;
        }
        config
    }

    fn tally(&self) -> TallyConfig {
        let mut config = TallyConfig { drain: DRAIN, ..TallyConfig::distributed() };
        if self.flush_ms > 0 {
            config.flush_interval = Duration::from_millis(self.flush_ms);
        }
        config
    }
}

/// How long a server that is no longer measured waits for connections that nobody closes. Every call was answered
/// before that.
const DRAIN: Duration = Duration::from_millis(200);

#[allow(missing_docs, unreachable_pub, clippy::all)]
mod bare {
    tonic::include_proto!("votestream.v1");
}

struct Bare {
    /// Woken when the single votes that have come may be answered; `None` if they are answered at once.
    answers: Option<Arc<Notify>>,
}

impl Bare {
    async fn drain<T>(mut inbound: Streaming<T>, votes: fn(&T) -> usize) -> Result<u64, Status> {
        let mut accepted = 0;
        while let Some(message) = inbound.message().await? {
            accepted += votes(&message) as u64;
        }
        Ok(accepted)
    }
}

#[tonic::async_trait]
impl bare::ingest_service_server::IngestService for Bare {
    async fn cast_vote(&self, _: Request<bare::CastVoteRequest>) -> Result<Response<bare::CastVoteResponse>, Status> {
        if let Some(answers) = &self.answers {
            answers.notified().await;
        }
        Ok(Response::new(bare::CastVoteResponse {}))
    }

    async fn cast_votes(
        &self,
        request: Request<Streaming<bare::CastVotesRequest>>,
    ) -> Result<Response<bare::CastVotesResponse>, Status> {
        let accepted = Self::drain(request.into_inner(), |message| message.votes.len()).await?;
        Ok(Response::new(bare::CastVotesResponse { accepted, ..Default::default() }))
    }

    type StreamVotesStream = tokio_stream::Empty<Result<bare::StreamVotesResponse, Status>>;

    async fn stream_votes(
        &self,
        _: Request<Streaming<bare::StreamVotesRequest>>,
    ) -> Result<Response<Self::StreamVotesStream>, Status> {
        Err(Status::unimplemented("not measured"))
    }
}

/// Runs a server until standard input ends. Prints the addresses of ingest and results on one line.
pub(crate) fn run(kind: Kind, options: Options) -> anyhow::Result<()> {
    votestream_server::raise_descriptor_limit();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let loopback = "127.0.0.1:0".parse()?;
        let (ingest, results) = (votestream_server::listen(loopback)?, votestream_server::listen(loopback)?);
        println!("{} {}", ingest.local_addr()?, results.local_addr()?);
        std::io::stdout().flush()?;
        let shutdown = CancellationToken::new();
        std::thread::spawn({
            let shutdown = shutdown.clone();
            move || {
                std::io::stdin().read_to_end(&mut Vec::new()).ok();
                shutdown.cancel();
            }
        });
        match kind {
            Kind::Bare => bare(ingest, Duration::from_millis(options.delay_ms), shutdown).await,
            Kind::Ingest => {
                let keys = PseudonymKeys::default();
                embedded_ingest(ingest, options, keys, shutdown).await
            }
            Kind::IngestPseudonyms => {
                let keys = PseudonymKeys::new([PseudonymKey::new([7; KEY_BYTES])]);
                embedded_ingest(ingest, options, keys, shutdown).await
            }
            Kind::Stack => stack(ingest, results, options, shutdown).await,
            Kind::Null => {
                let config = NullConfig {
                    delay: Duration::from_millis(options.delay_ms),
                    delay_all: options.delay_all,
                    shards: options.shards.max(1),
                    votes: options.votes,
                    record_votes: if options.record_votes > 0 { options.record_votes } else { VOTES_PER_RECORD },
                    rate: (options.rate > 0).then_some(options.rate as f64),
                };
                shutdown.run_until_cancelled(null::serve(ingest, config)).await.unwrap_or(Ok(()))
            }
            Kind::Sdk => engines::write_by_sdk(options.engines()?, options.votes).await,
            Kind::IngestAws => {
                let ports = engines::ports(options.engines()?, None).await?;
                votestream_ingest::run(ingest_distributed(), ports, ingest, shutdown).await?;
                Ok(())
            }
            Kind::PersistAws => {
                let ports = engines::ports(options.engines()?, NonZeroU32::new(options.write_units)).await?;
                votestream_persist::run(options.persist(), ports, shutdown).await?;
                Ok(())
            }
            Kind::TallyAws => {
                let ports = engines::ports(options.engines()?, None).await?;
                votestream_tally::run(options.tally(), ports, results, shutdown).await?;
                Ok(())
            }
            Kind::DevAws => {
                let engines = async {
                    tokio::try_join!(stand_ins::serve_kinesis(ingest), stand_ins::serve_dynamodb(results)).map(drop)
                };
                // They are not drained: connections of consumers stay open for minutes, and what they could still get
                // is lost anyway.
                Ok(shutdown.run_until_cancelled(engines).await.unwrap_or(Ok(()))?)
            }
            Kind::StackAws => {
                let shards = u32::try_from(options.shards)?;
                let ports = engines::create(options.engines()?, shards).await?;
                let config = StackConfig {
                    ingest: ingest_distributed(),
                    persist: options.persist(),
                    tally: options.tally(),
                    persist_elsewhere: None,
                };
                Stack::start(&ports, config, Listeners::Apart { ingest, results }).run_until(shutdown).await?;
                Ok(())
            }
        }
    })
}

fn ingest_one_machine() -> IngestConfig {
    IngestConfig { drain: DRAIN, ..IngestConfig::one_machine() }
}

fn ingest_distributed() -> IngestConfig {
    IngestConfig { drain: DRAIN, ..IngestConfig::distributed() }
}

async fn bare(listener: TcpListener, delay: Duration, shutdown: CancellationToken) -> anyhow::Result<()> {
    let answers = (!delay.is_zero()).then(Arc::<Notify>::default);
    if let Some(answers) = answers.clone() {
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(delay);
            loop {
                ticks.tick().await;
                answers.notify_waiters();
            }
        });
    }
    let service = bare::ingest_service_server::IngestServiceServer::new(Bare { answers });
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener)
        .map(|stream| stream.inspect(|stream| drop(stream.set_nodelay(true))));
    let server = tonic::transport::Server::builder().add_service(service);
    Ok(server.serve_with_incoming_shutdown(incoming, shutdown.cancelled()).await?)
}

async fn embedded_ingest(
    listener: TcpListener,
    options: Options,
    keys: PseudonymKeys,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let identity = if options.identity { identity::identity(dir.path())? } else { Identity::default() };
    let engine = EmbeddedEngine::open(&dir.path().join("data"), EmbeddedOptions::default())?;
    let ports = engine.ports();
    ports.polls.create(&votes::poll()?.with_pseudonym_key(keys.active())).await?;
    let quotas = if options.limits { identity::quotas()? } else { Quotas::default() };
    let connections = options.connections()?;
    let config = IngestConfig { pseudonym_keys: keys, identity, quotas, connections, ..ingest_one_machine() };
    votestream_ingest::run(config, ports, listener, shutdown).await?;
    engine.close();
    Ok(())
}

async fn stack(
    ingest: TcpListener,
    results: TcpListener,
    options: Options,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut embedded = EmbeddedOptions::default();
    if options.shards > 0 {
        embedded.shards = u32::try_from(options.shards)?;
    }
    let engine = EmbeddedEngine::open(dir.path(), embedded)?;
    let ports = engine.ports();
    let config = StackConfig {
        ingest: ingest_one_machine(),
        tally: TallyConfig { drain: DRAIN, ..TallyConfig::one_machine() },
        persist_elsewhere: Some(|name, work| background(name, work).boxed()),
        ..StackConfig::one_machine()
    };
    Stack::start(&ports, config, Listeners::Apart { ingest, results }).run_until(shutdown).await?;
    engine.close();
    Ok(())
}

/// A server in another process.
pub(crate) struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stdin: Option<ChildStdin>,
    pub(crate) ingest: SocketAddr,
    pub(crate) results: SocketAddr,
}

impl Server {
    /// A new connection for polls and results. Those calls are not measured.
    pub(crate) async fn connect_results(&self) -> anyhow::Result<ResultsClient> {
        let address = self.results.to_string().parse()?;
        Ok(Client::builder().results_address(address).connect_results().await?)
    }

    /// Starts a server.
    pub(crate) fn start(kind: Kind) -> anyhow::Result<Self> {
        Self::start_with(kind, Options::default())
    }

    /// Starts a server with options.
    pub(crate) fn start_with(kind: Kind, options: Options) -> anyhow::Result<Self> {
        let kind = kind.to_possible_value().context("every kind has a name")?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", kind.get_name()])
            .args(options.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().context("standard output is piped")?);
        stdout.read_line(&mut line)?;
        let (ingest, results) = line.trim().split_once(' ').context("the server printed no addresses")?;
        Ok(Self { ingest: ingest.parse()?, results: results.parse()?, child, stdin, stdout })
    }

    /// CPU seconds that the process has used, user and system.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        cpu_seconds(&self.child.id().to_string())
    }

    /// Waits until the server ends by itself. Returns the last line that it printed.
    pub(crate) fn last_line(mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.stdout.read_to_string(&mut line)?;
        Ok(line)
    }

    /// Largest resident size so far, in MB.
    pub(crate) fn peak_mb(&self) -> anyhow::Result<f64> {
        self.status_mb("VmHWM:")
    }

    /// Resident size now, in MB.
    pub(crate) fn resident_mb(&self) -> anyhow::Result<f64> {
        self.status_mb("VmRSS:")
    }

    fn status_mb(&self, field: &str) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with(field)).context("/proc/PID/status lacks a field")?;
        let kib: f64 = line.split_whitespace().nth(1).context("a field of /proc/PID/status has no value")?.parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stdin.take());
        self.child.wait().ok();
    }
}
