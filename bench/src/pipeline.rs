//! The whole pipeline, from the client to exact and interim counts: on the embedded engines with fsync, and on
//! stand-ins for Kinesis and DynamoDB, where the same services use their AWS adapters.

use std::time::{Duration, Instant};

use crate::{
    ingest::{cast, create_poll},
    report::{Chart, Report, Series, none, number},
    server::{Kind, Options, Server},
    turns::median,
    votes,
};

/// Votes on the embedded engines, each of another voter.
const VOTES: usize = 800_000;
/// Votes on the stand-ins, which store about 17,000 a second.
const VOTES_DEV_AWS: usize = 80_000;
const SHARDS_DEV_AWS: usize = 4;
const VOTES_PER_MESSAGE: usize = 100;
const STREAMS: usize = 8;
const ROUNDS: usize = 3;
/// How often the counts are read.
const STEP: Duration = Duration::from_millis(50);
/// Longest time until everything is counted.
const COUNTED_MAX: Duration = Duration::from_secs(120);

/// The times of one run.
struct Took {
    acknowledged: f64,
    counted: f64,
    cpu: f64,
    engines_cpu: Option<f64>,
    peak_mb: f64,
}

/// Fills the table.
pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let rounds = report.size(ROUNDS, 1);
    let (embedded_votes, dev_aws_votes) = (report.size(VOTES, 40_000), report.size(VOTES_DEV_AWS, 4_000));
    let note = format!(
        "All three services in one process, {VOTES_PER_MESSAGE} votes a message, each vote of another voter; the client is another \
         process on the same cores. Embedded: {embedded_votes} votes, fsync on. On stand-ins: {dev_aws_votes} votes, the AWS \
         adapters with the settings of a distributed deployment, {SHARDS_DEV_AWS} shards; ferrokinesis and dynoxide keep everything \
         in the memory of a process of their own, and their own speed is what limits the rates. Alternating, median of {rounds}."
    );
    let columns = ["", "embedded", "on stand-ins for AWS", "stand-ins / embedded"];
    let table = report.table("Whole pipeline", &note, &columns);
    table.chart(
        Chart::bars(
            "pipeline",
            "Whole pipeline: votes a second",
            "votes/s",
            &[Series::new(1, "embedded, fsync on"), Series::new(2, "on stand-ins for AWS")],
        )
        .only("votes/s"),
    );
    let (mut embedded, mut dev_aws) = (vec![], vec![]);
    for _ in 0..rounds {
        let server = Server::start(Kind::Stack)?;
        embedded.push(measure(&server, None, embedded_votes)?);
        drop(server);
        let engines = Server::start(Kind::DevAws)?;
        let options = Options {
            aws: Some(engines.ingest),
            dynamodb: Some(engines.results),
            shards: SHARDS_DEV_AWS,
            ..Options::default()
        };
        let server = Server::start_with(Kind::StackAws, options)?;
        dev_aws.push(measure(&server, Some(&engines), dev_aws_votes)?);
    }
    let mut row = |what: &str, decimals: usize, of: fn(&Took) -> f64| {
        let (a, b) = (median(embedded.iter().map(of)), median(dev_aws.iter().map(of)));
        table.row([what.into(), number(a, decimals), number(b, decimals), number(b / a, 2)]);
    };
    row("acknowledged, votes/s", 0, |took| took.acknowledged);
    row("client to exact counts, votes/s", 0, |took| took.counted);
    row("CPU s per million votes, all three services", 2, |took| took.cpu);
    row("peak resident MB, all three services", 0, |took| took.peak_mb);
    let engines = median(dev_aws.iter().filter_map(|took| took.engines_cpu));
    table.row(["CPU s per million votes, the stand-ins".into(), none(), number(engines, 2)]);
    Ok(())
}

fn measure(server: &Server, engines: Option<&Server>, votes: usize) -> anyhow::Result<Took> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        create_poll(server).await?;
        let engines_before = engines.map(Server::cpu_seconds).transpose()?;
        let (before, start) = (server.cpu_seconds()?, Instant::now());
        let count = cast(server, votes, VOTES_PER_MESSAGE, STREAMS).await?;
        anyhow::ensure!(count == votes as u64, "{count} of {votes} votes were accepted");
        let acknowledged = votes as f64 / start.elapsed().as_secs_f64();
        let results = server.connect_results().await?;
        loop {
            let shown = results.interim_results(votes::POLL).await?;
            // No prepared vote is sent twice, so each vote is of another voter.
            if shown.total_submitted == votes as u64 && shown.total_counted == votes as u64 {
                break;
            }
            let (submitted, counted) = (shown.total_submitted, shown.total_counted);
            anyhow::ensure!(start.elapsed() < COUNTED_MAX, "{submitted} submitted and {counted} counted of {votes}");
            tokio::time::sleep(STEP).await;
        }
        let counted = votes as f64 / start.elapsed().as_secs_f64();
        let million = 1e6 / votes as f64;
        let engines_cpu = match (engines, engines_before) {
            (Some(engines), Some(before)) => Some((engines.cpu_seconds()? - before) * million),
            _ => None,
        };
        let cpu = (server.cpu_seconds()? - before) * million;
        Ok(Took { acknowledged, counted, cpu, engines_cpu, peak_mb: server.peak_mb()? })
    })
}
