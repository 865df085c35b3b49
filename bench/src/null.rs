//! A null Kinesis and a null DynamoDB: one server that implements as much of the two JSON protocols as the measurements
//! need.
//!
//! Runs in a process of its own, so that the cost of the engines is not counted as that of the services. It answers at
//! once, or answers calls on the table of votes after a set time. It stores no vote, and refuses nothing. Must never be
//! used to show that something is correct.

mod dynamodb;
mod kinesis;

use std::{
    convert::Infallible,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

pub(crate) use self::kinesis::{ROUNDS, VOTES_PER_RECORD};
use self::{dynamodb::Dynamo, kinesis::Kinesis};

/// Settings of the null engines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NullConfig {
    /// How long a call on the table of votes takes.
    pub(crate) delay: Duration,
    /// Whether every other call to DynamoDB takes as long, too.
    pub(crate) delay_all: bool,
    /// Shards of the stream.
    pub(crate) shards: usize,
    /// Votes in one round of prepared records, over all shards; 0 for none.
    pub(crate) votes: usize,
    /// Votes in one prepared record.
    pub(crate) record_votes: usize,
    /// Votes per second that are shown after the first release, over all shards. If it is set, there is only one round.
    pub(crate) rate: Option<f64>,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Stats {
    /// Calls to DynamoDB.
    pub(crate) dynamodb_calls: u64,
    /// Calls to Kinesis.
    pub(crate) kinesis_calls: u64,
    /// Statements that stored a new vote.
    pub(crate) inserts: u64,
    /// Statements that replaced a vote.
    pub(crate) updates: u64,
    /// Sum of what was added to tallies.
    pub(crate) tallied: i64,
    /// Write units for votes: one for each KiB of an item, rounded up.
    pub(crate) vote_units: u64,
    /// Write units for tallies.
    pub(crate) tally_units: u64,
    /// Write units for everything else: checkpoints and leases.
    pub(crate) other_units: u64,
    /// Records that were put.
    pub(crate) records: u64,
    /// Bytes of those records.
    pub(crate) record_bytes: u64,
    /// Most records that one shard got within one second.
    pub(crate) shard_records_per_second_max: u64,
    /// Most bytes that one shard got within one second.
    pub(crate) shard_bytes_per_second_max: u64,
    /// Shards that somebody reads.
    pub(crate) shards_read: usize,
}

struct Engines {
    kinesis: Kinesis,
    dynamo: Dynamo,
    delay: Duration,
    delay_all: bool,
}

impl Engines {
    async fn answer(&self, request: Request<Incoming>) -> anyhow::Result<Bytes> {
        let path = request.uri().path().to_owned();
        let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok()).map(str::to_owned);
        let body = request.into_body().collect().await?.to_bytes();
        let Some(target) = target else {
            return match path.as_str() {
                "/stats" => Ok(serde_json::to_vec(&self.stats())?.into()),
                "/release" => {
                    self.kinesis.release();
                    Ok(Bytes::new())
                }
                _ => anyhow::bail!("no operation and no path of ours: {path}"),
            };
        };
        let (service, operation) = target.split_once('.').context("an operation without a service")?;
        if service.starts_with("Kinesis") {
            return self.kinesis.answer(operation, &body);
        }
        let (answer, of_votes) = self.dynamo.answer(operation, &body)?;
        if (of_votes || self.delay_all) && !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        Ok(answer)
    }

    fn stats(&self) -> Stats {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (shard_records_per_second_max, shard_bytes_per_second_max) = self.kinesis.busiest_second();
        Stats {
            dynamodb_calls: count(&self.dynamo.calls),
            kinesis_calls: count(&self.kinesis.calls),
            inserts: count(&self.dynamo.inserts),
            updates: count(&self.dynamo.updates),
            tallied: self.dynamo.tallied.load(Ordering::Relaxed),
            vote_units: count(&self.dynamo.vote_units),
            tally_units: count(&self.dynamo.tally_units),
            other_units: count(&self.dynamo.other_units),
            records: count(&self.kinesis.records),
            record_bytes: count(&self.kinesis.record_bytes),
            shard_records_per_second_max,
            shard_bytes_per_second_max,
            shards_read: self.kinesis.shards_read(),
        }
    }
}

/// Serves until the process ends.
pub(crate) async fn serve(listener: TcpListener, config: NullConfig) -> anyhow::Result<()> {
    let engines = Arc::new(Engines {
        kinesis: Kinesis::new(&config)?,
        dynamo: Dynamo::default(),
        delay: config.delay,
        delay_all: config.delay_all,
    });
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let engines = engines.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let engines = engines.clone();
                async move {
                    let (status, body) = match engines.answer(request).await {
                        Ok(body) => (200, body),
                        Err(error) => {
                            eprintln!("the null engines were asked what they do not know: {error:#}");
                            (400, Bytes::from_static(b"{\"__type\":\"ValidationException\"}"))
                        }
                    };
                    let mut response = Response::new(Full::new(body));
                    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
                    let json = hyper::header::HeaderValue::from_static("application/x-amz-json-1.0");
                    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
                    Ok::<_, Infallible>(response)
                }
            });
            // A client that goes away is no error.
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
        });
    }
}

/// Sends a request to a null server in another process.
fn ask(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    Ok(body.to_owned())
}

/// What a null server has counted.
pub(crate) fn stats(address: SocketAddr) -> anyhow::Result<Stats> {
    Ok(serde_json::from_str(&ask(address, "/stats")?)?)
}

/// Tells a null server to show one more round of its records.
pub(crate) fn release(address: SocketAddr) -> anyhow::Result<()> {
    ask(address, "/release").map(drop)
}
