//! What the consumers do with a window besides decoding it: they decide which votes count, and keep only each user's
//! last one. The baseline is decoding the same records.

use std::sync::Arc;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use votestream_core::{
    Clock, HashRange, PollId, SequenceNumber, ShardId, TimeBounds, Timestamp,
    clock::SystemClock,
    consume::{
        tally::last_votes,
        window::{ReadRecord, ShardState, Window, decide},
    },
    port::Record,
    record::batch::{BatchId, OpenBatch},
    vote_hash,
};

use crate::{
    cpu::cpu_seconds,
    report::{Chart, Report, Series, number},
    turns::median,
    votes,
};

/// Votes in the records, not counting copies.
const VOTES: usize = 500_000;
const WINDOW_VOTES: usize = 50_000;
const VOTES_PER_RECORD: usize = 1_000;
const PASSES: usize = 40;
const ROUNDS: usize = 3;

/// Properties of the records.
#[derive(Clone, Copy)]
struct Stream {
    name: &'static str,
    /// How many votes a user casts within a window, on average.
    votes_a_user: usize,
    /// How often each record is in the stream.
    copies: usize,
}

const STREAMS: [Stream; 3] = [
    Stream { name: "each user votes once", votes_a_user: 1, copies: 1 },
    Stream { name: "each user votes ten times", votes_a_user: 10, copies: 1 },
    Stream { name: "each record is there twice", votes_a_user: 1, copies: 2 },
];

/// CPU nanoseconds of each step.
#[derive(Clone, Copy, Default)]
struct Steps {
    decode: f64,
    decide: f64,
    reduce: f64,
}

/// Fills the table.
pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let (passes, rounds, votes) = report.size((PASSES, ROUNDS, VOTES), (1, 1, 2 * WINDOW_VOTES));
    let note = "Windows of 50,000 votes in records of 1,000, in this process, without engines. Deciding is what both consumers do: \
        duplicates, late votes, polls, ranges. Reducing to each user's last vote is what persist-svc does then. The baseline is \
        decoding the same records. CPU time of one thread for each vote that was read, copies included; the ratio is the median \
        of three.";
    let columns = [
        "",
        "decode, ns a vote",
        "decide, ns a vote",
        "reduce, ns a vote",
        "decode / decode and decide",
        "votes that count",
    ];
    let table = report.table("Windows", note, &columns);
    table.chart(Chart::bars(
        "windows",
        "What a window costs besides decoding",
        "ns a vote",
        &[Series::new(1, "decode"), Series::new(2, "decide"), Series::new(3, "reduce to last votes")],
    ));
    for stream in STREAMS {
        let records = records(stream, votes)?;
        let read = (records.len() * VOTES_PER_RECORD * passes) as f64;
        let (mut taken, mut counted) = (vec![], 0);
        pass(&records)?;
        for _ in 0..rounds {
            let mut sum = Steps::default();
            for _ in 0..passes {
                let (steps, votes) = pass(&records)?;
                counted = votes;
                sum.decode += steps.decode;
                sum.decide += steps.decide;
                sum.reduce += steps.reduce;
            }
            taken.push(sum);
        }
        let ns = |step: fn(&Steps) -> f64| median(taken.iter().map(|sum| step(sum) * 1e9 / read));
        table.row([
            stream.name.into(),
            number(ns(|steps| steps.decode), 1),
            number(ns(|steps| steps.decide), 1),
            number(ns(|steps| steps.reduce), 1),
            number(median(taken.iter().map(|steps| steps.decode / (steps.decode + steps.decide))), 2),
            counted.into(),
        ]);
    }
    Ok(())
}

fn records(stream: Stream, votes: usize) -> anyhow::Result<Vec<Record>> {
    let mut rng = StdRng::seed_from_u64(9);
    let poll = PollId::new(votes::POLL)?;
    let options: Vec<Arc<str>> = votes::OPTIONS.iter().map(|&option| option.into()).collect();
    let now = SystemClock::new().now();
    let (mut open, mut records, mut users) = (OpenBatch::default(), Vec::new(), Vec::new());
    for number in 1..=votes / VOTES_PER_RECORD {
        if (number - 1) % (WINDOW_VOTES / VOTES_PER_RECORD) == 0 {
            users = (0..WINDOW_VOTES / stream.votes_a_user).map(|_| votes::user(&mut rng)).collect::<Vec<_>>();
        }
        open.clear();
        for at in 0..VOTES_PER_RECORD {
            let user = match stream.votes_a_user {
                1 => &users[(number - 1) * VOTES_PER_RECORD % WINDOW_VOTES + at],
                _ => &users[rng.random_range(0..users.len())],
            };
            let entry = open.entry(&poll, &options[rng.random_range(0..options.len())]);
            open.push(entry, user, vote_hash(votes::POLL, user), Timestamp(now.0 + at as i64 / 50));
        }
        let data = open.seal(BatchId { producer: 7, number: number as u64 }, &HashRange::ALL.into(), "");
        for _ in 0..stream.copies {
            let sequence = SequenceNumber::from_u64(records.len() as u64 + 1);
            records.push(Record { sequence, arrived_at: now, partition_key: String::new(), data: data.clone() });
        }
    }
    Ok(records)
}

/// CPU seconds of each step over all records, and the number of votes that are left at the end.
fn pass(records: &[Record]) -> anyhow::Result<(Steps, usize)> {
    let poll = Arc::new(votes::poll()?);
    let polls = [(poll.id.clone(), poll)].into();
    let windows: Vec<_> = records.chunks(WINDOW_VOTES / VOTES_PER_RECORD).collect();
    let mut steps = Steps::default();

    // Each step runs over all windows before the next one: the clock is much coarser than one step of one window.
    let mut last = cpu_seconds("thread-self")?;
    let mut lap = |step: &mut f64| {
        let now = cpu_seconds("thread-self")?;
        *step += now - last;
        last = now;
        anyhow::Ok(())
    };
    let read: Vec<Vec<_>> = windows.iter().map(|records| records.iter().map(ReadRecord::decode).collect()).collect();
    lap(&mut steps.decode)?;
    let (mut state, mut decisions) = (ShardState::default(), Vec::with_capacity(read.len()));
    for records in &read {
        let decision = decide(records, state, &HashRange::ALL, &polls, &TimeBounds::DISTRIBUTED)?;
        state = decision.state;
        decisions.push((decision.selected, decision.polls));
    }
    lap(&mut steps.decide)?;
    let decided: Vec<_> = decisions
        .into_iter()
        .zip(&windows)
        .map(|((selected, polls), records)| Window {
            shard: ShardId::new("shard"),
            epoch: 1,
            start: SequenceNumber::ZERO,
            end: records[records.len() - 1].sequence,
            selected,
            polls,
        })
        .collect();
    let mut counted = 0;
    lap(&mut 0.0)?;
    for window in &decided {
        counted += last_votes(window)?.len();
    }
    lap(&mut steps.reduce)?;
    Ok((steps, counted))
}
