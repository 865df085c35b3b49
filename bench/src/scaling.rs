//! How the cost of a vote depends on shards, connections, votes per message, voters, polls and the share of re-votes.
//!
//! Runs the whole stack on the embedded engines, a new one for each run. Every run is compared with two runs at a
//! middle point in the same table, one before it and one after it, because the speed of the machine changes from minute
//! to minute.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use futures::{StreamExt, TryStreamExt, stream};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use votestream_proto::{VotesMessage, v1::ingest_service_client::IngestServiceClient};

use crate::{
    report::{Chart, Report, Series, number},
    server::{Kind, Options, Server},
    votes,
};

/// What is varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Shards of the stream
    Shards,
    /// Connections of clients
    Connections,
    /// Votes per message
    Message,
    /// Voters who have voted before
    Voters,
    /// Polls open at a time
    Polls,
    /// Share of votes that replace an earlier one
    Revotes,
}

/// One run.
#[derive(Clone, Copy)]
struct Shape {
    shards: usize,
    connections: usize,
    per_message: usize,
    /// Voters whose votes are stored before the measurement. Each of them may vote again.
    voters: usize,
    polls: usize,
    /// Percentage of the measured votes that come from those voters.
    revotes: usize,
}

const MIDDLE: Shape = Shape { shards: 4, connections: 8, per_message: 100, voters: 100_000, polls: 10, revotes: 50 };
/// Votes of a measurement.
const VOTES: usize = 300_000;
/// Votes of a measurement with one vote per message.
const VOTES_SINGLE: usize = 100_000;
/// How much is measured.
#[derive(Clone, Copy)]
struct Size {
    votes: usize,
    votes_single: usize,
}

/// Votes per message while voters are stored.
const STORE_PER_MESSAGE: usize = 500;
const STORE_CONNECTIONS: usize = 8;
/// Votes that are prepared at a time while voters are stored.
const STORE_CHUNK: usize = 500_000;
/// Calls in flight that create polls.
const CREATE_CALLS: usize = 32;

/// Longest time until everything is counted.
const SETTLE_MAX: Duration = Duration::from_secs(60);
/// How often the server is checked during that time.
const SETTLE_STEP: Duration = Duration::from_millis(250);
/// Most CPU seconds that an idle server may take within one step.
const IDLE_CPU_SECONDS: f64 = 0.025;

/// The costs of a run.
#[derive(Clone, Copy)]
struct Took {
    votes_per_second: f64,
    cpu_us: f64,
}

/// Fills the tables.
pub(crate) fn run(report: &mut Report, only: Option<Part>) -> anyhow::Result<()> {
    for &part in Part::value_variants() {
        if only.is_none_or(|only| only == part) {
            let value = part.to_possible_value();
            let name = value.as_ref().map_or("", |value| value.get_name());
            report.part(&format!("scaling {name}"), |report| vary(report, part))?;
        }
    }
    Ok(())
}

fn vary(report: &mut Report, part: Part) -> anyhow::Result<()> {
    let (what, file, points): (_, _, &[usize]) = match part {
        Part::Shards => ("shards", "scaling-shards", &[1, 2, 4, 8, 16]),
        Part::Connections => ("connections", "scaling-connections", &[1, 10, 100, 1_000]),
        Part::Message => ("votes a message", "scaling-message", &[1, 10, 100, 1_000, 10_000]),
        Part::Voters if report.many => {
            ("voters who voted before", "scaling-voters", &[10_000, 100_000, 1_000_000, 10_000_000])
        }
        Part::Voters => ("voters who voted before", "scaling-voters", &[10_000, 100_000, 1_000_000]),
        Part::Polls => ("polls", "scaling-polls", &[1, 10, 100, 1_000]),
        Part::Revotes => ("re-votes, percent", "scaling-revotes", &[0, 50, 90]),
    };
    let size =
        report.size(Size { votes: VOTES, votes_single: VOTES_SINGLE }, Size { votes: 10_000, votes_single: 2_000 });
    // The largest point of a quick run.
    let most = if part == Part::Polls { 100 } else { 10_000 };
    let (middle, points) = if report.quick {
        (
            Shape { voters: 2_000, ..MIDDLE },
            points.iter().copied().filter(|&point| point <= most).max().into_iter().collect(),
        )
    } else {
        (MIDDLE, points.to_vec())
    };
    let note = format!(
        "The stack on the embedded engines, a new one for each run. Each run stands between two of a middle point: {} shards, \
         {} connections, {} votes a message, {} voters who voted before, {} polls, {} % of the votes re-votes{}. CPU time of \
         all three services, until they have nothing left to do.",
        middle.shards,
        middle.connections,
        middle.per_message,
        middle.voters,
        middle.polls,
        middle.revotes,
        if part == Part::Voters { "; in this table all votes are re-votes" } else { "" }
    );
    let columns = [
        what,
        "acknowledged, votes/s",
        "votes/s against the middle",
        "CPU µs a vote",
        "the middle then, CPU µs a vote",
        "CPU against the middle",
    ];
    let table = report.table(&format!("Scaling: {what}"), &note, &columns);
    let series = [Series::new(3, "this run"), Series::new(4, "the middle point before and after it")];
    table.chart(Chart::lines(file, "CPU time of all three services", what, "µs a vote", &series));
    // Every run is between two runs of the middle; neighbours share one.
    let mut before = measure(middle, size)?;
    for point in points {
        let shape = match part {
            Part::Shards => Shape { shards: point, ..middle },
            Part::Connections => Shape { connections: point, ..middle },
            Part::Message => Shape { per_message: point, ..middle },
            // All votes come from the stored voters, so each of them looks one up.
            Part::Voters => Shape { voters: point, revotes: 100, ..middle },
            Part::Polls => Shape { polls: point, ..middle },
            Part::Revotes => Shape { revotes: point, ..middle },
        };
        let took = match measure(shape, size) {
            Ok(took) => took,
            Err(error) => {
                if let Some(table) = report.last_table() {
                    table.row([point.into(), "failed".into()]);
                }
                report.failed(format!("{point} {what}: {error:#}"));
                continue;
            }
        };
        // The machine does not change within the seconds of a quick run, so one run of the middle is enough.
        let after = if report.quick { before } else { measure(middle, size)? };
        let rate = (before.votes_per_second + after.votes_per_second) / 2.0;
        let cpu = (before.cpu_us + after.cpu_us) / 2.0;
        if let Some(table) = report.last_table() {
            table.row([
                point.into(),
                number(took.votes_per_second, 0),
                number(took.votes_per_second / rate, 2),
                number(took.cpu_us, 2),
                number(cpu, 2),
                number(took.cpu_us / cpu, 2),
            ]);
        }
        before = after;
    }
    Ok(())
}

fn measure(shape: Shape, size: Size) -> anyhow::Result<Took> {
    let options = Options { shards: shape.shards, ..Options::default() };
    let server = Server::start_with(Kind::Stack, options)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let polls: Vec<String> = (0..shape.polls).map(|at| format!("poll-{at}")).collect();
        create(&server, &polls).await?;
        let mut rng = StdRng::seed_from_u64(6);
        // A voter is kept as the seed of their name, because ten million names take too much memory. Each votes in one
        // poll.
        let mut stored: Vec<u32> = (0..u32::try_from(shape.voters)?).collect();
        let mut submitted = vec![0; polls.len()];
        store(&server, &stored, &polls, &mut rng, &mut submitted).await?;

        let votes = if shape.per_message == 1 { size.votes_single } else { size.votes };
        let again = votes * shape.revotes / 100;
        stored.shuffle(&mut rng);
        let mut voters: Vec<u32> = stored.iter().copied().cycle().take(again).collect();
        voters.extend((u32::try_from(shape.voters)?..).take(votes - again));
        voters.shuffle(&mut rng);
        let sent = messages(&voters, &polls, shape.per_message, &mut rng, &mut submitted);
        let clients = connect(&server, shape.connections).await?;
        let (cpu, start) = (server.cpu_seconds()?, Instant::now());
        cast(clients, sent).await?;
        let seconds = start.elapsed().as_secs_f64();
        let cpu = settle(&server, &polls, &submitted).await? - cpu;
        Ok(Took { votes_per_second: votes as f64 / seconds, cpu_us: cpu * 1e6 / votes as f64 })
    })
}

/// Voters whose votes are stored, one vote each.
pub(crate) struct Crowd {
    polls: Vec<String>,
    submitted: Vec<u64>,
    voters: u32,
    rng: StdRng,
}

impl Crowd {
    /// An empty crowd, on a server without polls.
    pub(crate) async fn new(server: &Server) -> anyhow::Result<Self> {
        let polls = vec!["crowd".to_owned()];
        create(server, &polls).await?;
        Ok(Self { polls, submitted: vec![0], voters: 0, rng: StdRng::seed_from_u64(6) })
    }

    /// Lets more voters vote, up to this number, and waits until everything is counted.
    pub(crate) async fn grow(&mut self, server: &Server, voters: usize) -> anyhow::Result<()> {
        let more: Vec<u32> = (self.voters..u32::try_from(voters)?).collect();
        store(server, &more, &self.polls, &mut self.rng, &mut self.submitted).await?;
        self.voters = u32::try_from(voters)?;
        Ok(())
    }
}

/// Stores one vote of each of these voters.
async fn store(
    server: &Server,
    voters: &[u32],
    polls: &[String],
    rng: &mut StdRng,
    submitted: &mut [u64],
) -> anyhow::Result<()> {
    for chunk in voters.chunks(STORE_CHUNK) {
        let sent = messages(chunk, polls, STORE_PER_MESSAGE, rng, submitted);
        cast(connect(server, STORE_CONNECTIONS).await?, sent).await?;
        settle(server, polls, submitted).await?;
    }
    Ok(())
}

async fn create(server: &Server, polls: &[String]) -> anyhow::Result<()> {
    let client = server.connect_results().await?;
    let calls = polls.iter().map(|poll| {
        let (client, request) = (client.clone(), votes::create_request(poll));
        async move { client.create_poll(request).await.map(drop) }
    });
    Ok(stream::iter(calls).buffer_unordered(CREATE_CALLS).try_collect().await?)
}

/// Waits until the server has nothing left to do and shows every vote. Returns the CPU seconds that it had taken before
/// it was asked for results.
async fn settle(server: &Server, polls: &[String], submitted: &[u64]) -> anyhow::Result<f64> {
    let results = server.connect_results().await?;
    let start = Instant::now();
    loop {
        let before = server.cpu_seconds()?;
        tokio::time::sleep(SETTLE_STEP).await;
        let now = server.cpu_seconds()?;
        if now - before <= IDLE_CPU_SECONDS {
            let mut missing = 0;
            for (poll, &submitted) in polls.iter().zip(submitted) {
                let shown = results.interim_results(poll).await?.total_submitted;
                missing += submitted - shown.min(submitted);
            }
            if missing == 0 {
                return Ok(now);
            }
        }
        anyhow::ensure!(start.elapsed() < SETTLE_MAX, "not everything is counted after {SETTLE_MAX:?}");
    }
}

/// One vote of each of these voters.
fn messages(
    voters: &[u32],
    polls: &[String],
    per_message: usize,
    rng: &mut StdRng,
    submitted: &mut [u64],
) -> Vec<VotesMessage> {
    let message = |voters: &[u32]| {
        let mut message = VotesMessage::with_capacity(voters.len() * 60);
        for &voter in voters {
            let poll = voter as usize % polls.len();
            submitted[poll] += 1;
            let user = votes::user(&mut StdRng::seed_from_u64(u64::from(voter)));
            message.push(&polls[poll], &user, votes::OPTIONS[rng.random_range(0..votes::OPTIONS.len())]);
        }
        message
    };
    voters.chunks(per_message).map(message).collect()
}

/// Opens this many connections.
async fn connect(server: &Server, connections: usize) -> anyhow::Result<Vec<IngestServiceClient<Channel>>> {
    let mut clients = Vec::with_capacity(connections);
    for _ in 0..connections {
        clients.push(IngestServiceClient::connect(format!("http://{}", server.ingest)).await?);
    }
    Ok(clients)
}

/// Casts these votes, over one stream of each connection.
async fn cast(clients: Vec<IngestServiceClient<Channel>>, messages: Vec<VotesMessage>) -> anyhow::Result<()> {
    let (connections, messages) = (clients.len(), Arc::new(messages));
    let mut tasks = JoinSet::new();
    for (at, mut client) in clients.into_iter().enumerate() {
        let messages = messages.clone();
        tasks.spawn(async move {
            let of_stream = (at..messages.len()).step_by(connections).map(move |at| messages[at].clone());
            client.cast_votes(tokio_stream::iter(of_stream)).await.map(|answer| answer.into_inner().rejected)
        });
    }
    while let Some(rejected) = tasks.join_next().await {
        let rejected = rejected??;
        anyhow::ensure!(rejected == 0, "{rejected} votes were rejected");
    }
    Ok(())
}
