//! Shared by the unit tests: engines in memory with a clock that only moves when a test moves it.

use votestream_core::{
    HashRange, Poll, PollId, PollOption, PollSource, ShardId, Timestamp,
    port::{Progress, ShardRow},
};
use votestream_testkit::memory::Memory;

/// Engines with two open shards, `s0` and `s1`, and a closed one, at time 0.
pub(crate) fn memory() -> Memory {
    let memory = Memory::new(2);
    memory.add_closed_shard("closed", HashRange::ALL);
    memory.set_now(0);
    memory
}

/// A poll with the options x and y.
pub(crate) fn poll(id: &str, opens_at: i64, closes_at: i64) -> Poll {
    let options = ["x", "y"].map(|id| PollOption { id: id.into(), title: String::new() }).to_vec();
    let (opens, closes) = (Timestamp(opens_at), Timestamp(closes_at));
    Poll::new(PollId::new(id).unwrap(), "title".into(), options, opens, closes, PollSource::Ingest, 1_000).unwrap()
}

/// A started row.
pub(crate) fn row(shard: &str, (start, end): (u128, u128), watermark: i64) -> ShardRow {
    let progress = Progress { watermark: Timestamp(watermark), ..Progress::default() };
    ShardRow { progress, ..ShardRow::new(ShardId::new(shard), HashRange { start, end }, Vec::new()) }
}
