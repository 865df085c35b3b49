//! The services on the AWS adapters, against null engines in another process: what a vote costs in the service's own CPU, and
//! how many requests it takes.
//!
//! The baseline of persist is the AWS SDK itself: the same INSERT statements, 25 a call, by its own client.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use aws_sdk_dynamodb::types::{AttributeValue, BatchStatementRequest};
use clap::ValueEnum;
use futures::{StreamExt, TryStreamExt, stream};
use rand::{SeedableRng, rngs::StdRng};
use votestream_aws::{AwsConfig, Deployment, client::Clients, connect};
use votestream_core::port::Ports;

use crate::{
    ingest::{cast, median},
    null::{self, ROUNDS, Stats, VOTES_PER_RECORD},
    server::{Kind, Options, Server},
    votes,
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// persist-svc: new and changed votes
    Persist,
    /// tally-svc: from the record to the counters
    Tally,
    /// ingest-svc into a null stream
    Ingest,
    /// What one shard carries
    Shard,
}

const RUNS: usize = 3;
/// Calls in flight of the SDK alone, as in the adapter.
const SDK_CALLS: usize = 64;
const SDK_STATEMENTS: usize = 25;
const PERSIST_SHARDS: usize = 8;
const PERSIST_VOTES: usize = 400_000;
const TALLY_SHARDS: usize = 16;
const TALLY_VOTES: usize = 4_800_000;
const INGEST_SHARDS: usize = 16;
const INGEST_VOTES: usize = 3_000_000;
/// As many as two shards take in some six seconds: what waits longer than the answer deadline is refused.
const SHARD_VOTES: usize = 600_000;
/// Longest time for one round.
const ROUND_MAX: Duration = Duration::from_secs(120);

/// Prints the tables.
pub(crate) fn run(only: Option<Part>) -> anyhow::Result<()> {
    let is = |part| only.is_none_or(|only| only == part);
    if is(Part::Persist) {
        persist()?;
    }
    if is(Part::Tally) {
        tally()?;
    }
    if is(Part::Ingest) {
        ingest()?;
    }
    if is(Part::Shard) {
        shard()?;
    }
    Ok(())
}

fn config(engines: SocketAddr) -> AwsConfig {
    let endpoint = Some(format!("http://{engines}"));
    AwsConfig { kinesis_endpoint: endpoint.clone(), dynamodb_endpoint: endpoint, ..AwsConfig::stand_in() }
}

/// The ports of a measured service. The poll is there.
pub(crate) async fn ports(engines: SocketAddr) -> anyhow::Result<Ports> {
    let ports = connect(&config(engines), Deployment::new("bench", "votestream-")).await?;
    ports.polls.create(&votes::poll()?).await?;
    Ok(ports)
}

/// The SDK alone: writes so many new votes.
pub(crate) async fn write_by_sdk(engines: SocketAddr, count: usize) -> anyhow::Result<()> {
    let client = Clients::new(&config(engines)).await.dynamodb;
    let mut rng = StdRng::seed_from_u64(5);
    let mut calls = Vec::with_capacity(count / SDK_STATEMENTS);
    for call in 0..count / SDK_STATEMENTS {
        let mut request = client.batch_execute_statement();
        for at in 0..SDK_STATEMENTS {
            let statement = BatchStatementRequest::builder()
                .statement("INSERT INTO \"votestream-votes\" VALUE {'poll_bucket': ?, 'user_id': ?, 'option': ?, 'position': ?, 'accepted_at': ?}")
                .parameters(AttributeValue::S(format!("{}#{}", votes::POLL, at * 40)))
                .parameters(AttributeValue::S(votes::user(&mut rng)))
                .parameters(AttributeValue::S(votes::option(&mut rng).to_owned()))
                .parameters(AttributeValue::B(aws_smithy_types::Blob::new([7; 28])))
                .parameters(AttributeValue::N((1_700_000_000_000 + call).to_string()));
            request = request.statements(statement.build()?);
        }
        calls.push(request);
    }
    let ready = cpu_of_self()?;
    let mut answers = stream::iter(calls.into_iter().map(|call| call.send())).buffer_unordered(SDK_CALLS);
    let mut answered = 0;
    while let Some(answer) = answers.try_next().await? {
        answered += answer.responses().len();
    }
    anyhow::ensure!(answered == count, "{answered} answers to {count} statements");
    println!("{}", cpu_of_self()? - ready);
    Ok(())
}

fn cpu_of_self() -> anyhow::Result<f64> {
    crate::server::cpu_seconds("self")
}

fn start_null(options: Options) -> anyhow::Result<Server> {
    let server = Server::start_with(Kind::Null, options)?;
    // Answered once the records are prepared.
    null::stats(server.ingest)?;
    Ok(server)
}

/// What one round took.
#[derive(Clone, Copy)]
struct Round {
    wall: f64,
    cpu: f64,
    calls: u64,
}

/// Releases a round of records, and waits until the service is done with it.
fn round(engines: &Server, service: &Server, done: impl Fn(&Stats) -> bool) -> anyhow::Result<Round> {
    let before = null::stats(engines.ingest)?;
    let (cpu, start) = (service.cpu_seconds()?, Instant::now());
    null::release(engines.ingest)?;
    loop {
        let now = null::stats(engines.ingest)?;
        if done(&now) {
            return Ok(Round {
                wall: start.elapsed().as_secs_f64(),
                cpu: service.cpu_seconds()? - cpu,
                calls: now.dynamodb_calls + now.kinesis_calls - before.dynamodb_calls - before.kinesis_calls,
            });
        }
        anyhow::ensure!(start.elapsed() < ROUND_MAX, "not done within {ROUND_MAX:?}: {now:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn print(what: &str, votes: usize, rounds: &[Round], baseline: Option<f64>) {
    let million = 1e6 / votes as f64;
    let cpu = median(rounds.iter().map(|round| round.cpu * million));
    println!(
        "| {what} | {cpu:.2} | {:.0} | {} | {:.4} | {:.0} |",
        1e6 / cpu,
        baseline.map_or_else(String::new, |baseline| format!("{:.2}", baseline / cpu)),
        median(rounds.iter().map(|round| round.calls as f64 / votes as f64)),
        median(rounds.iter().map(|round| votes as f64 / round.wall)),
    );
}

fn header(what: &str, baseline: &str) {
    println!(
        "\n| {what} | CPU s per million votes | votes/s per core | {baseline} | requests a vote | votes/s, wall |"
    );
    println!("|---|---:|---:|---:|---:|---:|");
}

fn persist() -> anyhow::Result<()> {
    header("persist-svc", "SDK alone / persist (CPU)");
    for delay_ms in [0, 5] {
        let (mut sdk, mut new, mut changed) = (vec![], vec![], vec![]);
        for _ in 0..RUNS {
            let options = Options { delay_ms, shards: PERSIST_SHARDS, votes: PERSIST_VOTES, aws: None };
            let engines = start_null(options)?;
            let written = null::stats(engines.ingest)?.inserts;
            let baseline = Options { aws: Some(engines.ingest), votes: PERSIST_VOTES, ..Options::default() };
            sdk.push(Server::start_with(Kind::Sdk, baseline)?.last_line()?.trim().parse::<f64>()?);
            anyhow::ensure!(null::stats(engines.ingest)?.inserts == written + PERSIST_VOTES as u64);

            let options = Options { aws: Some(engines.ingest), ..Options::default() };
            let service = Server::start_with(Kind::PersistAws, options)?;
            let before = null::stats(engines.ingest)?;
            let votes = (PERSIST_VOTES / PERSIST_SHARDS / VOTES_PER_RECORD * VOTES_PER_RECORD * PERSIST_SHARDS) as u64;
            new.push(round(&engines, &service, |now| {
                now.inserts - before.inserts == votes && now.tallied == votes as i64
            })?);
            // A few voters are forgotten, and the null engine takes them for new ones.
            let written = |now: &Stats| now.inserts - before.inserts + now.updates;
            for again in 2..=ROUNDS as u64 {
                changed.push(round(&engines, &service, |now| written(now) == votes * again)?);
            }
            let forgotten = null::stats(engines.ingest)?.inserts - before.inserts - votes;
            anyhow::ensure!(forgotten < votes / 100, "{forgotten} of {votes} voters were not remembered");
        }
        let million = 1e6 / PERSIST_VOTES as f64;
        let sdk = median(sdk.into_iter()) * million;
        println!("| SDK alone, new votes, {delay_ms} ms | {sdk:.2} | {:.0} | | | |", 1e6 / sdk);
        print(&format!("new votes, {delay_ms} ms"), PERSIST_VOTES, &new, Some(sdk));
        print(&format!("changed votes, {delay_ms} ms"), PERSIST_VOTES, &changed, Some(sdk));
    }
    Ok(())
}

fn tally() -> anyhow::Result<()> {
    header("tally-svc", "");
    let mut rounds = vec![];
    let options = Options { shards: TALLY_SHARDS, votes: TALLY_VOTES, ..Options::default() };
    let engines = start_null(options)?;
    let options = Options { aws: Some(engines.ingest), ..Options::default() };
    let service = Server::start_with(Kind::TallyAws, options)?;
    for again in 1..=ROUNDS as i64 {
        rounds.push(round(&engines, &service, |now| now.tallied == TALLY_VOTES as i64 * again)?);
    }
    // The first one warms up.
    print("votes", TALLY_VOTES, &rounds[1..], None);
    Ok(())
}

fn ingest() -> anyhow::Result<()> {
    header("ingest-svc", "");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for per_message in [100, 1_000] {
        let mut rounds = vec![];
        for _ in 0..RUNS {
            let engines = start_null(Options { shards: INGEST_SHARDS, ..Options::default() })?;
            let options = Options { aws: Some(engines.ingest), ..Options::default() };
            let service = Server::start_with(Kind::IngestAws, options)?;
            runtime.block_on(cast(&service, INGEST_VOTES / 3, per_message, 8))?;
            let before = null::stats(engines.ingest)?.kinesis_calls;
            let (cpu, start) = (service.cpu_seconds()?, Instant::now());
            let accepted = runtime.block_on(cast(&service, INGEST_VOTES, per_message, 8))?;
            anyhow::ensure!(accepted == INGEST_VOTES as u64, "{accepted} of {INGEST_VOTES} votes were accepted");
            rounds.push(Round {
                wall: start.elapsed().as_secs_f64(),
                cpu: service.cpu_seconds()? - cpu,
                calls: null::stats(engines.ingest)?.kinesis_calls - before,
            });
        }
        print(&format!("{per_message} votes a message"), INGEST_VOTES, &rounds, None);
    }
    Ok(())
}

fn shard() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shards = 2;
    let engines = start_null(Options { shards, ..Options::default() })?;
    let options = Options { aws: Some(engines.ingest), ..Options::default() };
    let service = Server::start_with(Kind::IngestAws, options)?;
    let start = Instant::now();
    let accepted = runtime.block_on(cast(&service, SHARD_VOTES, 100, 8))?;
    let seconds = start.elapsed().as_secs_f64();
    anyhow::ensure!(accepted == SHARD_VOTES as u64, "{accepted} of {SHARD_VOTES} votes were accepted");
    let stats = null::stats(engines.ingest)?;
    let (bytes, votes) = (stats.record_bytes as f64 / SHARD_VOTES as f64, SHARD_VOTES as f64 / stats.records as f64);
    let (shard_bytes, shard_records) = (f64::from(1 << 20), 1_000.0);
    println!("\n| what one shard carries, 36-character user ids | |");
    println!("|---|---:|");
    println!("| bytes a vote, keys included | {bytes:.1} |");
    println!("| votes a record | {votes:.0} |");
    println!("| votes/s by 1 MiB/s | {:.0} |", shard_bytes / bytes);
    println!("| votes/s by 1,000 records/s | {:.0} |", shard_records * votes);
    println!("| votes/s that went through, a shard | {:.0} |", accepted as f64 / seconds / shards as f64);
    println!("| most records of a shard within a second | {} |", stats.shard_records_per_second_max);
    println!("| most bytes of a shard within a second | {} |", stats.shard_bytes_per_second_max);
    Ok(())
}
