//! Load on the embedded stack from this process: a closed loop to find the top rate, and an open loop to measure
//! latency.
//!
//! In the open loop every message has a time at which it is due, and its latency counts from then: if the server stands
//! still, every message that waits for it counts. Must never slow down with the server.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use hdrhistogram::Histogram;
use rand::{SeedableRng, rngs::StdRng};
use tokio::{task::JoinSet, time::sleep_until};
use votestream_proto::{VotesMessage, v1::ingest_service_client::IngestServiceClient};

use crate::{
    cpu::cpu_seconds,
    ingest::{cast, create_poll},
    server::{Kind, Server},
    votes,
};

/// Streams of the load, all on one connection.
pub(crate) const STREAMS: usize = 8;
/// Votes of one message.
pub(crate) const PER_MESSAGE: usize = 100;
/// Messages that each stream sends again and again: 800,000 voters in all.
const PREPARED: usize = 1_000;
/// Votes of a measurement of the top rate.
pub(crate) const TOP_VOTES: usize = 1_200_000;

/// What an open loop measured.
pub(crate) struct Seen {
    /// Microseconds from the time at which a message was due to its acknowledgement.
    pub(crate) latency: Histogram<u64>,
    /// Votes that were acknowledged.
    pub(crate) votes: u64,
    /// From the first message to the last acknowledgement.
    pub(crate) seconds: f64,
}

/// Votes per second that a new stack acknowledges when clients send as fast as they can.
///
/// Ingest and its fsync can hold this rate for seconds; persist-svc stores fewer votes per second, and catches up
/// later.
pub(crate) async fn top_rate(votes: usize) -> anyhow::Result<f64> {
    let server = Server::start(Kind::Stack)?;
    create_poll(&server).await?;
    // Warm up, until memory is mapped and caches are filled.
    cast(&server, votes / 4, PER_MESSAGE, STREAMS).await?;
    let start = Instant::now();
    let accepted = cast(&server, votes, PER_MESSAGE, STREAMS).await?;
    anyhow::ensure!(accepted == votes as u64, "{accepted} of {votes} votes were accepted");
    Ok(accepted as f64 / start.elapsed().as_secs_f64())
}

/// Sends this many votes per second for this long, whatever the server does.
pub(crate) async fn open_loop(server: &Server, votes_per_second: f64, time: Duration) -> anyhow::Result<Seen> {
    let client = IngestServiceClient::connect(format!("http://{}", server.ingest)).await?;
    let interval = Duration::from_secs_f64((STREAMS * PER_MESSAGE) as f64 / votes_per_second);
    let messages = (time.as_secs_f64() / interval.as_secs_f64()) as u32;
    let mut prepared: Vec<Vec<VotesMessage>> = Vec::with_capacity(STREAMS);
    for seed in 0..STREAMS {
        let mut rng = StdRng::seed_from_u64(seed as u64);
        let different = PREPARED.min(messages as usize).max(1);
        prepared.push((0..different).map(|_| votes::message(&mut rng, PER_MESSAGE)).collect());
    }
    let start = Instant::now() + Duration::from_millis(20);
    let mut streams = JoinSet::new();
    for (at, prepared) in prepared.into_iter().enumerate() {
        // Streams take turns.
        let first = start + interval.mul_f64(at as f64 / STREAMS as f64);
        let mut client = client.clone();
        streams.spawn(async move {
            let due = move |message: u32| first + interval * message;
            let sent = stream::iter(0..messages).then(move |message| {
                let votes = prepared[message as usize % prepared.len()].clone();
                async move {
                    sleep_until(due(message).into()).await;
                    votes
                }
            });
            let mut answers = client.stream_votes(sent).await?.into_inner();
            let mut latency = Histogram::<u64>::new(3)?;
            let mut answered = 0;
            while let Some(answer) = answers.message().await? {
                let now = Instant::now();
                anyhow::ensure!(answer.rejections.is_empty(), "votes were rejected: {:?}", answer.rejections.first());
                while answered < messages && u64::from(answered + 1) * PER_MESSAGE as u64 <= answer.durable_through {
                    latency.record(now.duration_since(due(answered)).as_micros() as u64)?;
                    answered += 1;
                }
            }
            anyhow::ensure!(answered == messages, "{answered} of {messages} messages were acknowledged");
            Ok(latency)
        });
    }
    let mut latency = Histogram::<u64>::new(3)?;
    while let Some(of_stream) = streams.join_next().await {
        latency.add(of_stream??)?;
    }
    let (seconds, votes) = (start.elapsed().as_secs_f64(), latency.len() * PER_MESSAGE as u64);
    Ok(Seen { latency, votes, seconds })
}

/// A quantile in milliseconds.
pub(crate) fn milliseconds(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1e3
}

/// Part of one core that this process took since `before`, an earlier reading of its CPU seconds.
pub(crate) fn own_core(before: f64, since: Instant) -> anyhow::Result<f64> {
    Ok((cpu_seconds("self")? - before) / since.elapsed().as_secs_f64())
}
