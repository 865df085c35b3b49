//! From the bytes of a record to counters: decodes, decides and counts as tally-svc does, in this process, without the
//! engines. The baseline is only decoding the same records.

use std::{hint::black_box, sync::Arc};

use async_trait::async_trait;
use rand::{SeedableRng, rngs::StdRng};
use votestream_core::{
    Clock, HashRange, PollId, SequenceNumber, ShardId, TimeBounds, Timestamp,
    clock::SystemClock,
    consume::{
        group::ApplierFactory,
        window::{ReadRecord, ShardState, Window, decide},
    },
    port::{Group, PortError, Record, TallyDelta, TallyRow, TallyStore},
    record::batch::{self, BatchId, OpenBatch},
    vote_hash,
};
use votestream_tally::TallyAppliers;

use crate::{
    cpu::cpu_seconds,
    report::{Chart, Report, Series, number},
    turns::median,
    votes,
};

const VOTES: usize = 1_000_000;
/// Votes of one window: as many as come to a busy shard between two flushes.
const WINDOW_VOTES: usize = 50_000;
const PASSES: usize = 8;
const ROUNDS: usize = 3;

/// A tally store that takes everything and keeps nothing.
struct Nowhere;

#[async_trait]
impl TallyStore for Nowhere {
    async fn add(
        &self,
        _: Group,
        _: &ShardId,
        _: SequenceNumber,
        _: u64,
        deltas: &[TallyDelta],
    ) -> Result<(), PortError> {
        let votes: i64 = deltas.iter().flat_map(|delta| &delta.counts).map(|(_, count)| count).sum();
        if votes == WINDOW_VOTES as i64 { Ok(()) } else { Err(PortError::permanent(format!("{votes} were counted"))) }
    }

    async fn read(&self, _: &PollId) -> Result<Vec<TallyRow>, PortError> {
        Ok(Vec::new())
    }
}

/// Fills the table.
pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let (passes, rounds, votes) = report.size((PASSES, ROUNDS, VOTES), (1, 1, 2 * WINDOW_VOTES));
    let note = "What tally-svc does with the bytes of a record, without the engines: decode, check every id, decide which votes \
        count, add up. The baseline is decoding the same records. CPU time of one thread.";
    let columns = [
        "votes a record",
        "decode, ns a vote",
        "record to counters, ns a vote",
        "decode / record to counters",
        "votes/s per core",
    ];
    let table = report.table("From a record to counters", note, &columns);
    let series = [Series::new(1, "decode"), Series::new(2, "record to counters")];
    table.chart(Chart::bars("counters", "Tally: CPU time by votes a record", "ns a vote", &series));
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for per_record in [100, 1_000, 10_000] {
        let records = records(votes, per_record)?;
        let (mut floor, mut all) = (vec![], vec![]);
        for _ in 0..rounds {
            floor.push(each(votes, passes, || decode(&records))?);
            all.push(each(votes, passes, || runtime.block_on(count(&records, per_record)))?);
        }
        let ratio = median(floor.iter().zip(&all).map(|(floor, all)| floor / all));
        let (floor, all) = (median(floor.into_iter()), median(all.into_iter()));
        table.row([per_record.into(), number(floor, 0), number(all, 0), number(ratio, 2), number(1e9 / all, 0)]);
    }
    Ok(())
}

/// CPU time per vote, in nanoseconds.
fn each(votes: usize, passes: usize, mut pass: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    pass()?;
    let before = cpu_seconds("self")?;
    for _ in 0..passes {
        pass()?;
    }
    Ok((cpu_seconds("self")? - before) * 1e9 / (passes * votes) as f64)
}

fn records(votes: usize, per_record: usize) -> anyhow::Result<Vec<Record>> {
    let mut rng = StdRng::seed_from_u64(4);
    let poll = PollId::new(votes::POLL)?;
    let options: Vec<Arc<str>> = votes::OPTIONS.iter().map(|&option| option.into()).collect();
    let now = SystemClock::new().now();
    let mut open = OpenBatch::default();
    let records = (1..=(votes / per_record) as u64).map(|number| {
        open.clear();
        for at in 0..per_record {
            let user = votes::user(&mut rng);
            let entry = open.entry(&poll, &options[at * 7 % options.len()]);
            open.push(entry, &user, vote_hash(votes::POLL, &user), Timestamp(now.0 + at as i64 / 50));
        }
        let data = open.seal(BatchId { producer: 7, number }, &HashRange::ALL.into(), "");
        Record { sequence: SequenceNumber::from_u64(number), arrived_at: now, partition_key: String::new(), data }
    });
    Ok(records.collect())
}

fn decode(records: &[Record]) -> anyhow::Result<()> {
    for Record { data, .. } in records {
        black_box(batch::decode(data)?);
    }
    Ok(())
}

async fn count(records: &[Record], per_record: usize) -> anyhow::Result<()> {
    let poll = Arc::new(votes::poll()?);
    let polls = [(poll.id.clone(), poll)].into();
    let mut applier = TallyAppliers::new(Arc::new(Nowhere)).applier();
    let (mut state, mut start) = (ShardState::default(), SequenceNumber::ZERO);
    for chunk in records.chunks(WINDOW_VOTES / per_record) {
        let read: Vec<_> = chunk.iter().map(ReadRecord::decode).collect();
        let decision = decide(&read, state, &HashRange::ALL, &polls, &TimeBounds::DISTRIBUTED)?;
        let end = chunk[chunk.len() - 1].sequence;
        let window = Window {
            shard: ShardId::new("shard"),
            epoch: 1,
            start,
            end,
            selected: decision.selected,
            polls: decision.polls,
        };
        applier.apply(&window).await?;
        (state, start) = (decision.state, end);
    }
    Ok(())
}
