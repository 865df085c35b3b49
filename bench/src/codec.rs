//! The stored batch: bytes a vote, and the CPU time to append, seal and read one.
//!
//! Measures CPU time of the measuring thread, not wall time, since other processes run at the same time. Linux counts
//! it in hundredths of a second, so each step is repeated for about a second.

use std::{hint::black_box, sync::Arc};

use rand::{SeedableRng, rngs::StdRng};
use votestream_core::{
    HashRange, PollId, Timestamp,
    record::batch::{self, BatchId, OpenBatch},
    vote_hash,
};

use crate::{
    cpu::cpu_seconds,
    report::{Chart, Report, Series, number},
    votes,
};

/// Votes of each step.
const VOTES: usize = 20_000_000;

/// Fills the table.
pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let votes = report.size(VOTES, 200_000);
    let note = "CPU time of the measuring thread, random 36-character user ids, five options.";
    let columns = ["votes a batch", "bytes a vote", "append and hash, ns a vote", "seal, ns a vote", "read, ns a vote"];
    let table = report.table("The stored batch", note, &columns);
    let steps = [Series::new(2, "append and hash"), Series::new(3, "seal"), Series::new(4, "read")];
    table.chart(Chart::lines("codec-time", "Codec: CPU time a vote", "votes a batch", "ns a vote", &steps));
    table.chart(Chart::lines(
        "codec-bytes",
        "Codec: bytes a vote, user ids of 36 characters",
        "votes a batch",
        "bytes a vote",
        &[Series::new(1, "stored")],
    ));
    let poll = PollId::new(votes::POLL)?;
    let options: Vec<Arc<str>> = votes::OPTIONS.iter().map(|&option| option.into()).collect();
    let id = BatchId { producer: u128::MAX / 3, number: 1 };
    for count in [100, 1_000, 10_000] {
        let mut rng = StdRng::seed_from_u64(1);
        let users: Vec<_> = (0..count).map(|_| votes::user(&mut rng)).collect();
        let mut open = OpenBatch::default();
        let append = |open: &mut OpenBatch| {
            open.clear();
            for (at, user) in users.iter().enumerate() {
                let entry = open.entry(&poll, &options[at % options.len()]);
                let accepted_at = Timestamp(1_700_000_000_000 + at as i64 / 100);
                open.push(entry, user, vote_hash(votes::POLL, user), accepted_at);
            }
        };
        let appended = each(votes, count, || append(&mut open))?;
        // Appending gives the batches that sealing needs.
        let sealed = each(votes, count, || {
            append(&mut open);
            black_box(open.seal(id, &HashRange::ALL.into(), ""));
        })?;
        append(&mut open);
        let record = open.seal(id, &HashRange::ALL.into(), "");
        batch::decode(&record)?;
        let read = each(votes, count, || drop(black_box(batch::decode(&record))))?;
        let bytes = record.len() as f64 / count as f64;
        table.row([count.into(), number(bytes, 1), number(appended, 0), number(sealed - appended, 0), number(read, 0)]);
    }
    Ok(())
}

/// CPU time of this thread per vote, in nanoseconds.
fn each(votes: usize, count: usize, mut step: impl FnMut()) -> anyhow::Result<f64> {
    let before = cpu_seconds("thread-self")?;
    for _ in 0..votes / count {
        step();
    }
    Ok((cpu_seconds("thread-self")? - before) * 1e9 / votes as f64)
}
