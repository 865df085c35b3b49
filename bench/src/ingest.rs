//! Ingest against the bare server: the same client, the same messages, alternating.

use std::time::{Duration, Instant, SystemTime};

use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};
use rand::{SeedableRng, rngs::StdRng};
use votestream_proto::{
    VotesMessage,
    v1::{
        CreatePollRequest, PollOption, ingest_service_client::IngestServiceClient,
        poll_service_client::PollServiceClient,
    },
};

use crate::{
    cores::Cores,
    report::{Chart, Report, Series, number},
    server::{Kind, Options, Server},
    votes,
};

const STREAMS: usize = 8;
const ROUNDS: usize = 3;
/// Calls of one vote that are under way at a time on a connection, fewer than a server takes there.
const CALLS: usize = 32;
/// Connections of such calls.
const CONNECTIONS: usize = 8;
/// Users whose calls are sent again and again.
const CALL_USERS: usize = 10_000;
/// CPU time of the server that a measurement is to take: Linux counts it in hundredths of a second, of which a fast server
/// takes few for a million votes.
const CPU_SECONDS: f64 = 1.5;
/// Most times that the votes are sent for that.
const REPEATS_MAX: usize = 20;

/// How votes are sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Client-streamed messages of so many votes.
    Messages(usize),
    /// One call a vote.
    Calls,
    /// The same, and the bare server answers after [`LATE_MS`]: what it costs to wait, whatever for.
    LateCalls,
}

/// About as long as a sync takes, in milliseconds.
const LATE_MS: u64 = 1;

/// What a million votes took.
#[derive(Clone, Copy)]
struct Run {
    wall: f64,
    cpu: f64,
}

/// Fills the table.
pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let (rounds, quick) = (report.size(ROUNDS, 1), report.quick);
    let note = "ingest-svc with the embedded stream, every vote synced to disk before it is acknowledged, against tonic as \
        generated, which decodes the same messages into strings and drops them. Both with mimalloc, alternating, on one core \
        while the load has another; the ratio is the median of three.";
    let columns = [
        "votes a message",
        "bare, CPU s per million",
        "ingest, CPU s per million",
        "bare / ingest (CPU)",
        "ingest, votes/s (wall)",
    ];
    let table = report.table("Ingest against a bare tonic server", note, &columns);
    let servers = [Series::new(1, "bare tonic server"), Series::new(2, "ingest-svc, durable")];
    table.chart(Chart::bars(
        "ingest-cpu",
        "Ingest: CPU time of the server, by votes a message",
        "CPU s per million votes",
        &servers,
    ));
    for form in [Form::Messages(1), Form::Messages(100), Form::Messages(1_000), Form::Calls, Form::LateCalls] {
        let (name, total) = match form {
            Form::Messages(1) => ("1".to_owned(), 400_000),
            Form::Messages(votes) => (votes.to_string(), 2_000_000),
            Form::Calls => ("one vote a call".to_owned(), 100_000),
            Form::LateCalls => (format!("one vote a call, bare answers after {LATE_MS} ms"), 100_000),
        };
        let total = if quick { total / 50 } else { total };
        let (mut bare, mut ours, mut ratios) = (vec![], vec![], vec![]);
        for _ in 0..rounds {
            let a = measure(Kind::Bare, total, form, quick)?;
            let b = measure(Kind::Ingest, total, form, quick)?;
            ratios.push(a.cpu / b.cpu);
            bare.push(a);
            ours.push(b);
        }
        table.row([
            name.into(),
            number(median(bare.iter().map(|run| run.cpu)), 3),
            number(median(ours.iter().map(|run| run.cpu)), 3),
            number(median(ratios.iter().copied()), 2),
            number(median(ours.iter().map(|run| 1e6 / run.wall)), 0),
        ]);
    }
    Ok(())
}

/// The median.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Sends `total` votes, and unless it is to be quick as often as many as take a time that can be measured.
fn measure(kind: Kind, total: usize, form: Form, quick: bool) -> anyhow::Result<Run> {
    let delay_ms = if form == Form::LateCalls { LATE_MS } else { 0 };
    let cores = Cores::new()?;
    let server = cores.start(|| Server::start_with(kind, Options { delay_ms, ..Options::default() }))??;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let send = async |total| match form {
        Form::Messages(votes) => cast(&server, total, votes, STREAMS).await,
        Form::Calls | Form::LateCalls => call(&server, total).await,
    };
    // Until memory is mapped and caches are filled. The second half tells how many votes the measurement takes.
    runtime.block_on(send(total / 2))?;
    let cpu = server.cpu_seconds()?;
    runtime.block_on(send(total / 2))?;
    let repeats = CPU_SECONDS / (2.0 * (server.cpu_seconds()? - cpu)).max(f64::MIN_POSITIVE);
    let total = if quick { total } else { total * (repeats.ceil() as usize).clamp(1, REPEATS_MAX) };

    let (cpu, start) = (server.cpu_seconds()?, Instant::now());
    let accepted = runtime.block_on(send(total))?;
    let (wall, cpu) = (start.elapsed().as_secs_f64(), server.cpu_seconds()? - cpu);
    anyhow::ensure!(accepted == total as u64, "{accepted} of {total} votes were accepted");
    let millions = total as f64 / 1e6;
    Ok(Run { wall: wall / millions, cpu: cpu / millions })
}

/// Creates the poll, open for an hour.
pub(crate) async fn create_poll(server: &Server) -> anyhow::Result<()> {
    let mut polls = PollServiceClient::connect(format!("http://{}", server.results)).await?;
    polls
        .create_poll(CreatePollRequest {
            poll_id: votes::POLL.into(),
            options: votes::OPTIONS
                .iter()
                .map(|&option| PollOption { option_id: option.into(), title: String::new() })
                .collect(),
            closes_at: Some((SystemTime::now() + Duration::from_secs(3_600)).into()),
            ..CreatePollRequest::default()
        })
        .await?;
    Ok(())
}

/// Casts random votes over several streams of one connection. The messages are prepared once and sent again and again:
/// building them must not hide the server. Returns how many votes were accepted.
pub(crate) async fn cast(server: &Server, total: usize, per_message: usize, streams: usize) -> anyhow::Result<u64> {
    let client = IngestServiceClient::connect(format!("http://{}", server.ingest)).await?;
    let messages = total / per_message / streams;
    let mut tasks = tokio::task::JoinSet::new();
    for stream in 0..streams {
        let mut rng = StdRng::seed_from_u64(stream as u64);
        let prepared: Vec<VotesMessage> =
            (0..(100_000 / per_message).clamp(1, messages)).map(|_| votes::message(&mut rng, per_message)).collect();
        let mut client = client.clone();
        tasks.spawn(async move {
            let messages = (0..messages).map(move |at| prepared[at % prepared.len()].clone());
            client.cast_votes(tokio_stream::iter(messages)).await.map(|answer| answer.into_inner().accepted)
        });
    }
    let mut accepted = 0;
    while let Some(answer) = tasks.join_next().await {
        accepted += answer??;
    }
    Ok(accepted)
}

/// Casts votes with one call each, over several connections. Returns how many were accepted.
async fn call(server: &Server, total: usize) -> anyhow::Result<u64> {
    let mut rng = StdRng::seed_from_u64(0);
    let prepared: Vec<VotesMessage> = (0..CALL_USERS).map(|_| votes::message(&mut rng, 1)).collect();
    let mut connections = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        connections.push(IngestServiceClient::connect(format!("http://{}", server.ingest)).await?);
    }
    let calls = connections.into_iter().enumerate().map(|(connection, client)| {
        let prepared = &prepared;
        let calls = (connection..total).step_by(CONNECTIONS).map(move |at| {
            let (mut client, vote) = (client.clone(), prepared[at % prepared.len()].clone());
            async move { client.cast_vote(vote).await.map(drop) }
        });
        stream::iter(calls).buffer_unordered(CALLS).try_collect::<()>()
    });
    try_join_all(calls).await?;
    Ok(total as u64)
}
