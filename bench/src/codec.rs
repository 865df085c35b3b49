//! The stored batch: bytes a vote, and the time to append, seal and read one.

use std::{hint::black_box, sync::Arc, time::Instant};

use rand::{SeedableRng, rngs::StdRng};
use votestream_core::{
    HashRange, PollId, Timestamp,
    batch::{self, BatchId, OpenBatch},
    vote_hash,
};

use crate::votes;

const ROUNDS: usize = 200;

/// Prints the table.
pub(crate) fn run() {
    println!("\n| votes a batch | bytes a vote | append and hash, ns a vote | seal, ns a vote | read, ns a vote |");
    println!("|---:|---:|---:|---:|---:|");
    for count in [100, 1_000, 10_000] {
        let mut rng = StdRng::seed_from_u64(1);
        let Ok(poll) = PollId::new(votes::POLL) else { return };
        let options: Vec<Arc<str>> = votes::OPTIONS.iter().map(|&option| option.into()).collect();
        let users: Vec<_> = (0..count).map(|_| votes::user(&mut rng)).collect();
        let id = BatchId { producer: u128::MAX / 3, number: 1 };
        let rounds = ROUNDS * 1_000 / count;
        let (mut append, mut seal, mut read, mut bytes) = (0.0, 0.0, 0.0, 0);
        let mut open = OpenBatch::default();
        for _ in 0..rounds {
            let start = Instant::now();
            open.clear();
            for (at, user) in users.iter().enumerate() {
                let entry = open.entry(&poll, &options[at % options.len()]);
                let accepted_at = Timestamp(1_700_000_000_000 + at as i64 / 100);
                open.push(entry, user, vote_hash(votes::POLL, user), accepted_at);
            }
            append += start.elapsed().as_secs_f64();
            let start = Instant::now();
            let record = open.seal(id, &HashRange::ALL.into(), "");
            seal += start.elapsed().as_secs_f64();
            bytes = record.len();
            let start = Instant::now();
            black_box(batch::decode(&record)).ok();
            read += start.elapsed().as_secs_f64();
        }
        let each = |seconds: f64| seconds / (rounds * count) as f64 * 1e9;
        println!(
            "| {count} | {:.1} | {:.0} | {:.0} | {:.0} |",
            bytes as f64 / count as f64,
            each(append),
            each(seal),
            each(read)
        );
    }
}
