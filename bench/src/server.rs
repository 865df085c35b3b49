//! The servers under test, each in a process of its own: how they are started, and what CPU time they took.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::SocketAddr,
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::Context;
use clap::ValueEnum;
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_ingest::IngestConfig;
use votestream_persist::PersistConfig;
use votestream_tally::TallyConfig;

use crate::votes;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// tonic as generated: decodes every field into a string and drops it.
    Bare,
    /// ingest-svc alone on the embedded stream, with a poll.
    Ingest,
    /// All three services on the embedded engines.
    Stack,
}

#[allow(missing_docs, unreachable_pub, clippy::all)]
mod bare {
    tonic::include_proto!("votestream.v1");
}

struct Bare;

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
pub(crate) fn run(kind: Kind) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let (ingest, results) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
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
        if kind == Kind::Bare {
            let service = bare::ingest_service_server::IngestServiceServer::new(Bare);
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(ingest)
                .map(|stream| stream.inspect(|stream| drop(stream.set_nodelay(true))));
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming_shutdown(incoming, shutdown.cancelled())
                .await?;
            return Ok(());
        }
        let dir = tempfile::tempdir()?;
        let engine = EmbeddedEngine::open(dir.path(), EmbeddedOptions::default())?;
        let ports = engine.ports();
        let persist = async {
            match kind {
                Kind::Stack => votestream_persist::run(PersistConfig::one_machine(), ports.clone(), shutdown.clone())
                    .await
                    .map(drop),
                Kind::Bare | Kind::Ingest => Ok(()),
            }
        };
        let tally = async {
            match kind {
                Kind::Stack => {
                    let config = TallyConfig::one_machine();
                    votestream_tally::run(config, ports.clone(), results, shutdown.clone()).await.map(drop)
                }
                Kind::Bare | Kind::Ingest => Ok(()),
            }
        };
        if kind == Kind::Ingest {
            ports.polls.create(&votes::poll()?).await?;
        }
        let ingest = votestream_ingest::run(IngestConfig::one_machine(), ports.clone(), ingest, shutdown.clone());
        let (ingest, persist, tally) = tokio::join!(ingest, persist, tally);
        ingest?;
        persist?;
        tally?;
        engine.close();
        Ok(())
    })
}

/// A server in another process.
pub(crate) struct Server {
    child: Child,
    stdin: Option<ChildStdin>,
    pub(crate) ingest: SocketAddr,
    pub(crate) results: SocketAddr,
}

impl Server {
    /// Starts one.
    pub(crate) fn start(kind: Kind) -> anyhow::Result<Self> {
        let kind = kind.to_possible_value().context("every kind has a name")?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", kind.get_name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("standard output is piped")?).read_line(&mut line)?;
        let (ingest, results) = line.trim().split_once(' ').context("the server printed no addresses")?;
        Ok(Self { ingest: ingest.parse()?, results: results.parse()?, child, stdin })
    }

    /// CPU seconds that the process has taken, user and system.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        // proc(5): fields 14 and 15 are user and system time in clock ticks, of which Linux reports 100 a second.
        const TICKS_PER_SECOND: f64 = 100.0;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let after_name = stat.rsplit_once(')').context("/proc/PID/stat has no name")?.1;
        let mut fields = after_name.split_whitespace().skip(11);
        let mut ticks = || fields.next().and_then(|field| field.parse::<f64>().ok()).context("/proc/PID/stat is short");
        Ok((ticks()? + ticks()?) / TICKS_PER_SECOND)
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
