//! The lanes alone: from a validated vote to a settled one, into a stream in memory that answers at once or after a
//! millisecond. The baseline is the codec: it appends the same votes to a batch, and seals the batch.
//!
//! Uses one thread, and measures its CPU time. Must always check that every vote is settled.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use rand::{SeedableRng, rngs::StdRng};
use tokio::sync::Notify;
use votestream_core::{
    Clock, HashRange, PollId, SequenceNumber, ShardId,
    clock::SystemClock,
    port::{Group, PortError, RecordReader, Shard, Stored, VoteStream},
    produce::{AcceptedVote, LaneConfig, Outcome, Producer, Settle},
    record::batch::{BatchId, OpenBatch},
    vote_hash,
};

use crate::{
    cpu::cpu_seconds,
    report::{Chart, Report, Series, number},
    turns::median,
    votes,
};

const VOTES: usize = 4_000_000;
const USERS: usize = 100_000;
const PER_MESSAGE: usize = 100;
const ROUNDS: usize = 3;
/// Most votes that may be unsettled at a time.
const UNSETTLED_MAX: usize = 200_000;

/// A stream that takes records and forgets them.
struct Forgetful {
    ranges: Vec<HashRange>,
    delay: Duration,
    records: AtomicU64,
}

fn shard_id(at: usize) -> ShardId {
    ShardId::new(format!("shard-{at}"))
}

#[async_trait]
impl VoteStream for Forgetful {
    async fn list_shards(&self) -> Result<Vec<Shard>, PortError> {
        let shard = |(at, &range)| Shard { id: shard_id(at), range, parents: Vec::new(), open: true, ends_at: None };
        Ok(self.ranges.iter().enumerate().map(shard).collect())
    }

    async fn put(&self, hash: u128, _: Bytes) -> Result<Stored, PortError> {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        let at = self.ranges.iter().position(|range| range.contains(hash));
        let shard = at.map(shard_id).ok_or_else(|| PortError::permanent("no shard for a hash"))?;
        let sequence = SequenceNumber::from_u64(self.records.fetch_add(1, Ordering::Relaxed) + 1);
        Ok(Stored { shard, sequence })
    }

    async fn reader(&self, _: Group, _: &ShardId, _: SequenceNumber) -> Result<Box<dyn RecordReader>, PortError> {
        Err(PortError::permanent("nothing was kept"))
    }
}

/// Counts the outcomes of the votes.
#[derive(Default)]
struct Settled {
    durable: AtomicUsize,
    some: Notify,
}

impl Settle for Settled {
    fn settle(&self, indices: &[u32], outcome: Outcome) {
        if outcome == Outcome::Durable {
            self.durable.fetch_add(indices.len(), Ordering::Relaxed);
        }
        self.some.notify_one();
    }
}

/// Fills the table.
pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let (size, rounds) = (report.size(VOTES, 40_000), report.size(ROUNDS, 1));
    let note = "From a validated vote to its settlement, messages of 100 votes, into a stream in memory that answers at once or \
        after 1 ms. The baseline is the codec alone, with batches of as many votes as a lane's may hold: appending the same \
        votes, and sealing them, which a lane does too. CPU time of one thread; the ratio is the median of three.";
    let columns = [
        "",
        "append alone, ns a vote",
        "append and seal alone, ns a vote",
        "lanes, ns a vote",
        "append and seal / lanes",
        "votes a record",
    ];
    let table = report.table("Lanes", note, &columns);
    table.chart(Chart::bars(
        "lanes",
        "Lanes against the codec alone",
        "ns a vote",
        &[Series::new(1, "append alone"), Series::new(2, "append and seal alone"), Series::new(3, "lanes")],
    ));
    let poll = PollId::new(votes::POLL)?;
    let options: Vec<Arc<str>> = votes::OPTIONS.iter().map(|&option| option.into()).collect();
    let mut rng = StdRng::seed_from_u64(8);
    let users: Vec<String> = (0..USERS).map(|_| votes::user(&mut rng)).collect();
    let accepted: Vec<AcceptedVote<'_>> = users
        .iter()
        .enumerate()
        .map(|(at, user_id)| AcceptedVote {
            poll_id: &poll,
            option_id: &options[at % options.len()],
            user_id: user_id.into(),
            hash: vote_hash(votes::POLL, user_id),
            index: (at % PER_MESSAGE) as u32,
        })
        .collect();
    for (lanes, delay_ms) in [(1, 0), (4, 0), (16, 0), (1, 1), (4, 1), (16, 1)] {
        let (mut appended, mut sealed, mut taken, mut ratios, mut records) = (vec![], vec![], vec![], vec![], 0);
        for _ in 0..rounds {
            let append = codec(&accepted, size, false)?;
            let seal = codec(&accepted, size, true)?;
            let (ns, put) = produce(&accepted, size, lanes, Duration::from_millis(delay_ms))?;
            ratios.push(seal / ns);
            appended.push(append);
            sealed.push(seal);
            taken.push(ns);
            records = put;
        }
        table.row([
            format!("lanes: {lanes}, puts take {delay_ms} ms").into(),
            number(median(appended.into_iter()), 0),
            number(median(sealed.into_iter()), 0),
            number(median(taken.into_iter()), 0),
            number(median(ratios.into_iter()), 2),
            number(size as f64 / records as f64, 0),
        ]);
    }
    Ok(())
}

/// Nanoseconds per vote for the codec alone.
fn codec(accepted: &[AcceptedVote<'_>], size: usize, seal: bool) -> anyhow::Result<f64> {
    let batch_votes = LaneConfig::one_machine().batch_votes_max;
    let (mut open, clock) = (OpenBatch::default(), SystemClock::new());
    let before = cpu_seconds("thread-self")?;
    let (mut number, mut accepted_at) = (0, clock.now());
    for (at, vote) in accepted.iter().cycle().take(size).enumerate() {
        if at % batch_votes == 0 {
            if seal && at > 0 {
                number += 1;
                black_box(open.seal(BatchId { producer: 7, number }, &HashRange::ALL.into(), ""));
            }
            open.clear();
        }
        if at % PER_MESSAGE == 0 {
            accepted_at = clock.now();
        }
        let entry = open.entry(vote.poll_id, vote.option_id);
        open.push(entry, vote.user_id, vote.hash, accepted_at);
    }
    Ok((cpu_seconds("thread-self")? - before) * 1e9 / size as f64)
}

/// Nanoseconds per vote for the lanes, and the number of records that they put.
fn produce(accepted: &[AcceptedVote<'_>], size: usize, lanes: u32, delay: Duration) -> anyhow::Result<(f64, u64)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let stream = Arc::new(Forgetful { ranges: HashRange::split_evenly(lanes), delay, records: AtomicU64::new(0) });
        let clock = Arc::new(SystemClock::new());
        let producer = Producer::start(LaneConfig::one_machine(), stream.clone(), clock.clone()).await?;
        let settled = Arc::new(Settled::default());
        let message: Arc<dyn Settle> = settled.clone();
        let before = cpu_seconds("thread-self")?;
        for votes in accepted.chunks(PER_MESSAGE).cycle().take(size / PER_MESSAGE) {
            while producer.unsettled() > UNSETTLED_MAX {
                settled.some.notified().await;
            }
            producer.append(&message, votes, clock.now());
            // A server does the same between two messages.
            tokio::task::yield_now().await;
        }
        producer.drain().await;
        let ns = (cpu_seconds("thread-self")? - before) * 1e9 / size as f64;
        let durable = settled.durable.load(Ordering::Relaxed);
        anyhow::ensure!(durable == size, "{durable} of {size} votes are durable");
        Ok((ns, stream.records.load(Ordering::Relaxed)))
    })
}
