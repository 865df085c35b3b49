//! The services on the AWS adapters, against null engines in another process: how much CPU time of the service a vote
//! takes, and how many requests.
//!
//! The baseline of persist is the AWS SDK itself: its own client sends the same INSERT statements, 25 a call.

use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::{
    ingest::cast,
    null::{self, ROUNDS, Stats, VOTES_PER_RECORD},
    report::{Chart, Report, Series, Table, none, number},
    server::{Kind, Options, Server},
    turns::median,
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
const PERSIST_SHARDS: usize = 8;
const PERSIST_VOTES: usize = 400_000;
const TALLY_SHARDS: usize = 16;
const TALLY_VOTES: usize = 4_800_000;
const INGEST_SHARDS: usize = 16;
const INGEST_VOTES: usize = 3_000_000;
/// As many as two shards take in about six seconds: a vote that waits longer than the answer deadline is refused.
const SHARD_VOTES: usize = 600_000;
/// Longest time for one round.
const ROUND_MAX: Duration = Duration::from_secs(120);

/// Fills the tables.
pub(crate) fn run(report: &mut Report, only: Option<Part>) -> anyhow::Result<()> {
    let parts = [
        (Part::Persist, "aws persist", persist as fn(&mut Report) -> anyhow::Result<()>),
        (Part::Tally, "aws tally", tally),
        (Part::Ingest, "aws ingest", ingest),
        (Part::Shard, "aws shard", shard),
    ];
    for (part, name, run) in parts {
        if only.is_none_or(|only| only == part) {
            report.part(name, run)?;
        }
    }
    Ok(())
}

pub(crate) fn start_null(options: Options) -> anyhow::Result<Server> {
    let server = Server::start_with(Kind::Null, options)?;
    // The answer comes once the records are prepared.
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

/// Releases a round of records, and waits until the service has finished it.
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

fn row(table: &mut Table, what: &str, votes: usize, rounds: &[Round], baseline: Option<f64>) {
    let million = 1e6 / votes as f64;
    let cpu = median(rounds.iter().map(|round| round.cpu * million));
    table.row([
        what.into(),
        number(cpu, 2),
        number(1e6 / cpu, 0),
        baseline.map_or_else(none, |baseline| number(baseline / cpu, 2)),
        number(median(rounds.iter().map(|round| round.calls as f64 / votes as f64)), 4),
        number(median(rounds.iter().map(|round| votes as f64 / round.wall)), 0),
    ]);
}

/// Starts a table of what a vote costs in a service.
fn table<'a>(report: &'a mut Report, title: &str, note: &str, baseline: &str, chart: Chart) -> &'a mut Table {
    let columns = ["", "CPU s per million votes", "votes/s per core", baseline, "requests a vote", "votes/s, wall"];
    let table = report.table(title, note, &columns);
    table.chart(chart);
    table
}

fn persist(report: &mut Report) -> anyhow::Result<()> {
    let (runs, size) = (report.size(RUNS, 1), report.size(PERSIST_VOTES, 8_000));
    let note = "persist-svc on its AWS adapter against a null Kinesis and a null DynamoDB: a server in another process that \
        speaks the two JSON protocols, takes every vote, and answers calls on votes at once or after 5 ms. It shows what a vote \
        costs in the service's own CPU, not what AWS takes; HTTP without TLS. The baseline is the AWS SDK alone: the same INSERT \
        statements, 25 a call, 64 calls at a time. 8 shards, 1,000 votes a record; changed votes are of users whom the process \
        remembers.";
    let chart = Chart::bars(
        "aws-persist",
        "persist-svc against a null DynamoDB",
        "CPU s per million votes",
        &[Series::new(1, "")],
    )
    .baseline("SDK alone");
    let table = table(report, "persist-svc without AWS", note, "SDK alone / persist (CPU)", chart);
    for delay_ms in [0, 5] {
        let (mut sdk, mut new, mut changed) = (vec![], vec![], vec![]);
        for _ in 0..runs {
            let options = Options { delay_ms, shards: PERSIST_SHARDS, votes: size, ..Options::default() };
            let engines = start_null(options)?;
            let written = null::stats(engines.ingest)?.inserts;
            let baseline = Options { aws: Some(engines.ingest), votes: size, ..Options::default() };
            sdk.push(Server::start_with(Kind::Sdk, baseline)?.last_line()?.trim().parse::<f64>()?);
            anyhow::ensure!(null::stats(engines.ingest)?.inserts == written + size as u64);

            let options = Options { aws: Some(engines.ingest), ..Options::default() };
            let service = Server::start_with(Kind::PersistAws, options)?;
            let before = null::stats(engines.ingest)?;
            let votes = (size / PERSIST_SHARDS / VOTES_PER_RECORD * VOTES_PER_RECORD * PERSIST_SHARDS) as u64;
            new.push(round(&engines, &service, |now| {
                now.inserts - before.inserts == votes && now.tallied == votes as i64
            })?);
            // The service forgets a few voters. It then inserts their changed votes, and the null engine counts those
            // as new.
            let written = |now: &Stats| now.inserts - before.inserts + now.updates;
            for again in 2..=ROUNDS as u64 {
                changed.push(round(&engines, &service, |now| written(now) == votes * again)?);
            }
            let forgotten = null::stats(engines.ingest)?.inserts - before.inserts - votes;
            anyhow::ensure!(forgotten < votes / 100, "{forgotten} of {votes} voters were not remembered");
        }
        let sdk = median(sdk.into_iter()) * 1e6 / size as f64;
        table.row([format!("SDK alone, new votes, {delay_ms} ms").into(), number(sdk, 2), number(1e6 / sdk, 0)]);
        row(table, &format!("new votes, {delay_ms} ms"), size, &new, Some(sdk));
        row(table, &format!("changed votes, {delay_ms} ms"), size, &changed, Some(sdk));
    }
    Ok(())
}

fn tally(report: &mut Report) -> anyhow::Result<()> {
    let size = report.size(TALLY_VOTES, 160_000);
    let note = "The same engines, 16 shards by polling, 1,000 votes a record. Most of it is how records come: HTTP, JSON, base64.";
    let chart =
        Chart::bars("aws-tally", "tally-svc against null engines", "CPU s per million votes", &[Series::new(1, "")]);
    let table = table(report, "tally-svc without AWS", note, "", chart);
    let mut rounds = vec![];
    let options = Options { shards: TALLY_SHARDS, votes: size, ..Options::default() };
    let engines = start_null(options)?;
    let options = Options { aws: Some(engines.ingest), ..Options::default() };
    let service = Server::start_with(Kind::TallyAws, options)?;
    for again in 1..=ROUNDS as i64 {
        rounds.push(round(&engines, &service, |now| now.tallied == size as i64 * again)?);
    }
    // The first round is only a warm-up.
    row(table, "votes", size, &rounds[1..], None);
    Ok(())
}

fn ingest(report: &mut Report) -> anyhow::Result<()> {
    let (runs, size) = (report.size(RUNS, 1), report.size(INGEST_VOTES, 48_000));
    let note = "ingest-svc into a null Kinesis of 16 shards. For comparison, fluent-bit 5.1 into a stand-in that answers at once \
        took 1.8 to 2.4 CPU s per million votes, and answers before anything is durable (measured elsewhere, on the same kind of \
        machine).";
    let chart =
        Chart::bars("aws-ingest", "ingest-svc into a null Kinesis", "CPU s per million votes", &[Series::new(1, "")]);
    let table = table(report, "ingest-svc without AWS", note, "", chart);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for per_message in [100, 1_000] {
        let mut rounds = vec![];
        for _ in 0..runs {
            let engines = start_null(Options { shards: INGEST_SHARDS, ..Options::default() })?;
            let options = Options { aws: Some(engines.ingest), ..Options::default() };
            let service = Server::start_with(Kind::IngestAws, options)?;
            runtime.block_on(cast(&service, size / 3, per_message, 8))?;
            let before = null::stats(engines.ingest)?.kinesis_calls;
            let (cpu, start) = (service.cpu_seconds()?, Instant::now());
            let accepted = runtime.block_on(cast(&service, size, per_message, 8))?;
            anyhow::ensure!(accepted == size as u64, "{accepted} of {size} votes were accepted");
            rounds.push(Round {
                wall: start.elapsed().as_secs_f64(),
                cpu: service.cpu_seconds()? - cpu,
                calls: null::stats(engines.ingest)?.kinesis_calls - before,
            });
        }
        row(table, &format!("{per_message} votes a message"), size, &rounds, None);
    }
    Ok(())
}

fn shard(report: &mut Report) -> anyhow::Result<()> {
    let size = report.size(SHARD_VOTES, 40_000);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shards = 2;
    let engines = start_null(Options { shards, ..Options::default() })?;
    let options = Options { aws: Some(engines.ingest), ..Options::default() };
    let service = Server::start_with(Kind::IngestAws, options)?;
    let start = Instant::now();
    let accepted = runtime.block_on(cast(&service, size, 100, 8))?;
    let seconds = start.elapsed().as_secs_f64();
    anyhow::ensure!(accepted == size as u64, "{accepted} of {size} votes were accepted");
    let stats = null::stats(engines.ingest)?;
    let (bytes, votes) = (stats.record_bytes as f64 / size as f64, size as f64 / stats.records as f64);
    let (shard_bytes, shard_records) = (f64::from(1 << 20), 1_000.0);
    let note = "36-character user ids, two shards of a null Kinesis, which has no limits: what the service sent to one, and the \
        two limits of a shard of Kinesis computed from it.";
    let table = report.table("What one shard carries", note, &["", "figure"]);
    table.row(["bytes a vote, keys included".into(), number(bytes, 1)]);
    table.row(["votes a record".into(), number(votes, 0)]);
    table.row(["votes/s by 1 MiB/s".into(), number(shard_bytes / bytes, 0)]);
    table.row(["votes/s by 1,000 records/s".into(), number(shard_records * votes, 0)]);
    table.row(["votes/s that went through, a shard".into(), number(accepted as f64 / seconds / shards as f64, 0)]);
    table.row(["most records of a shard within a second".into(), stats.shard_records_per_second_max.into()]);
    table.row(["most bytes of a shard within a second".into(), stats.shard_bytes_per_second_max.into()]);
    Ok(())
}
