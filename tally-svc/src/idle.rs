//! Keeps the checkpoints of idle shards within the stream's retention.
//!
//! A reader starts at the last processed record and must see it again, because that proves that no record was skipped.
//! If a shard is silent for longer than the retention, that record is gone, and the next owner would have to stop,
//! although nothing was lost. So a silent shard gets a record without votes in time. Must never need to know the
//! retention: half of the shortest retention of any engine is longer than [`AFTER`].

use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use votestream_core::{
    SequenceNumber, ShardId, Timestamp,
    port::{Group, Ports},
};

use crate::{finalizer::put_markers, status::CallError};

/// How old a shard's last record may become. Kinesis keeps records for at least 24 hours ("Change the data retention
/// period" in its developer guide). The rest of that time is for consumers that are late or stopped.
pub(crate) const AFTER: Duration = Duration::from_secs(6 * 3_600);
const _: () = assert!(AFTER.as_secs() * 2 <= 24 * 3_600);
/// Number of checks within this time.
const LOOKS: u32 = 4;
/// Shortest pause between two checks, for any setting.
const LOOK_MIN: Duration = Duration::from_millis(10);
/// Longest wait after a failure.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Puts markers until `shutdown`. Several processes may do this at once: each sees the effect of the others' markers.
pub(crate) async fn run(ports: &Ports, after: Duration, shutdown: CancellationToken) {
    let pause = (after / LOOKS).max(LOOK_MIN);
    let mut looks = tokio::time::interval(pause);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let steps = async {
        loop {
            looks.tick().await;
            if let Err(error) = look(ports, after).await {
                tracing::warn!(%error, "could not put markers into idle shards; trying again later");
                looks.reset_after(pause.min(RETRY_AFTER));
            }
        }
    };
    shutdown.run_until_cancelled(steps).await;
}

/// Puts a marker into each open shard whose last committed record is old. Both groups read the marker, so the rows of
/// one group are enough.
async fn look(ports: &Ports, after: Duration) -> Result<(), CallError> {
    let after = i64::try_from(after.as_millis()).unwrap_or(i64::MAX);
    let oldest = Timestamp(ports.clock.now().0.saturating_sub(after));
    let rows = ports.leases.list(Group::Persist).await?;
    // A shard without a checkpoint is read from its beginning and needs no marker. But after a loss the beginning is the
    // oldest record that is left, and the shard must get on while that one is there.
    let idle: Vec<ShardId> = rows
        .into_iter()
        .filter(|row| row.started && !row.progress.ended)
        .filter(|row| row.progress.checkpoint > SequenceNumber::ZERO || row.lost.is_some())
        .filter(|row| row.progress.watermark <= oldest)
        .map(|row| row.shard)
        .collect();
    if idle.is_empty() {
        return Ok(());
    }
    tracing::debug!(shards = idle.len(), "putting a marker into each idle shard");
    put_markers(&*ports.stream, |shard| idle.contains(shard)).await
}

#[cfg(test)]
mod tests {
    use votestream_core::port::ShardRow;

    use super::*;
    use crate::testing::{memory, row};

    const HOUR: i64 = 3_600_000;
    const HALVES: [(u128, u128); 2] = [(0, u128::MAX / 2), (u128::MAX / 2 + 1, u128::MAX)];

    /// The row of an open shard whose last record arrived at this hour.
    fn at(shard: &str, hour: i64) -> ShardRow {
        let mut row = row(shard, HALVES[usize::from(shard == "s1")], hour * HOUR);
        row.progress.checkpoint = SequenceNumber::from_u64(1);
        row
    }

    #[tokio::test]
    async fn only_open_shards_with_an_old_checkpoint_get_a_marker() {
        let memory = memory();
        let unread = row("s1", HALVES[1], 0);
        let blank = ShardRow { started: false, ..at("s1", 0) };
        let mut ended = at("s1", 0);
        ended.progress.ended = true;
        for (now, second, markers) in [
            (6 * HOUR - 1, at("s1", 0), 0),
            (6 * HOUR, at("s1", 0), 2),
            (6 * HOUR, at("s1", 1), 1),
            (6 * HOUR, unread, 1),
            (6 * HOUR, blank, 1),
            (6 * HOUR, ended, 1),
            (6 * HOUR, at("closed", 0), 1),
        ] {
            let before = memory.markers();
            memory.set_now(now);
            memory.set_rows(Group::Persist, vec![at("s0", 0), second.clone()]);
            look(&memory.ports(), AFTER).await.unwrap();
            assert_eq!(memory.markers() - before, markers, "{second:?}");
        }
    }

    /// Ten silent days: nobody votes, no poll is due, and a new owner could start at any minute. The consumers read the
    /// markers.
    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_stays_readable() {
        const DAYS: i64 = 10;
        let memory = memory();
        memory.set_rows(Group::Persist, vec![at("s0", 0), at("s1", 0)]);
        let ports = memory.ports();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { run(&ports, AFTER, shutdown).await }
        });
        let (mut last, mut markers, mut failures) = (0, 0, 0);
        for minute in 0..DAYS * 24 * 60 {
            memory.set_now(minute * 60_000);
            if minute % 600 == 0 {
                memory.fail_next(1);
                failures += 1;
            }
            tokio::time::sleep(Duration::from_secs(60)).await;
            if memory.markers() > markers {
                markers = memory.markers();
                last = minute / 60;
                memory.set_rows(Group::Persist, vec![at("s0", last), at("s1", last)]);
            }
            assert!(minute / 60 - last <= 8, "the last record is too old at minute {minute}");
        }
        shutdown.cancel();
        running.await.unwrap();
        assert!(memory.failures_left() == 0 && failures > 0, "the failures took place");
        // Two shards, at most four times a day.
        assert!((2 * 3 * DAYS..=2 * 4 * DAYS).contains(&(markers as i64)), "{markers}");
    }
}
