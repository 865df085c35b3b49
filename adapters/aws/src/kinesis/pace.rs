//! How fast records may be put: what each shard takes in a second.
//!
//! Owns the record of what was let through lately, per shard. Throttling is to be the exception, so a record waits here rather
//! than be refused there. Must never wait itself: it answers when the record may go.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use votestream_core::{HashRange, ShardId, port::Shard};

use super::limits::{SHARD_WRITE_BYTES_PER_SECOND, SHARD_WRITE_RECORDS_PER_SECOND};

/// The second over which Kinesis counts, and a little more: on their way, requests come closer together.
const WINDOW: Duration = Duration::from_millis(1_050);
/// Longest time that a record is held back. Its lane has a deadline and learns earlier that the shard is too slow.
const HOLD_MAX: Duration = Duration::from_secs(2);
/// What is left of the rate after a throttled record, and the least that is ever left. Other writers share the shard.
const SLOW_DOWN: (f64, f64) = (0.7, 0.1);
/// Which part of the whole rate comes back each second without throttling.
const RECOVERY_PER_SECOND: f64 = 0.1;

/// What one shard was sent lately: in no [`WINDOW`] more than it takes.
#[derive(Debug)]
struct Shares {
    sent: VecDeque<(Instant, usize)>,
    bytes: usize,
    /// The part of the rate in use, as of a moment.
    rate: (f64, Instant),
    slowed_at: Option<Instant>,
}

impl Shares {
    fn new(now: Instant) -> Self {
        Self { sent: VecDeque::new(), bytes: 0, rate: (1.0, now), slowed_at: None }
    }

    fn rate(&self, now: Instant) -> f64 {
        let (rate, since) = self.rate;
        (rate + now.saturating_duration_since(since).as_secs_f64() * RECOVERY_PER_SECOND).min(1.0)
    }

    fn slow_down(&mut self, now: Instant) {
        let (factor, least) = SLOW_DOWN;
        // The records of one second are throttled together, and say one thing.
        if self.slowed_at.is_some_and(|at| now.saturating_duration_since(at) < WINDOW) {
            return;
        }
        self.slowed_at = Some(now);
        self.rate = ((self.rate(now) * factor).max(least), now);
    }

    /// When a record of this size may go, in the order of the calls; `None`, and nothing changes, if that is too late.
    fn reserve(&mut self, now: Instant, bytes: usize, writers: u32) -> Option<Instant> {
        let part = self.rate(now) / f64::from(writers.max(1));
        // Truncation is what is wanted.
        let bytes_max = (SHARD_WRITE_BYTES_PER_SECOND as f64 * part) as usize;
        let records_max = ((SHARD_WRITE_RECORDS_PER_SECOND as f64 * part) as usize).max(1);
        let mut at = self.sent.back().map_or(now, |&(last, _)| last.max(now));
        let (mut left, mut gone) = (self.bytes, 0);
        for &(sent_at, size) in &self.sent {
            let over = at >= sent_at + WINDOW;
            // A record that is larger than the part goes alone.
            let full = left + bytes > bytes_max || self.sent.len() - gone >= records_max;
            if !over && !full {
                break;
            }
            at = at.max(sent_at + WINDOW);
            left -= size;
            gone += 1;
        }
        if at.saturating_duration_since(now) > HOLD_MAX {
            return None;
        }
        self.sent.drain(..gone);
        self.bytes = left + bytes;
        self.sent.push_back((at, bytes));
        Some(at)
    }
}

struct Paced {
    shard: ShardId,
    range: HashRange,
    shares: Arc<Mutex<Shares>>,
}

/// The pace of every open shard.
#[derive(Default)]
pub(super) struct Pace {
    writers: u32,
    open: RwLock<Vec<Paced>>,
}

impl Pace {
    /// A pace for one of `writers` processes that share the shards evenly.
    pub(super) fn new(writers: u32) -> Self {
        Self { writers, open: RwLock::default() }
    }

    /// Takes over a new shard map. What shards were sent is kept.
    pub(super) fn set_shards(&self, shards: &[Shard]) {
        let now = Instant::now();
        let mut open = self.open.write();
        let known = std::mem::take(&mut *open);
        let paced = |shard: &Shard| {
            let shares = known.iter().find(|known| known.shard == shard.id).map(|known| known.shares.clone());
            let shares = shares.unwrap_or_else(|| Arc::new(Mutex::new(Shares::new(now))));
            Paced { shard: shard.id.clone(), range: shard.range, shares }
        };
        *open = shards.iter().filter(|shard| shard.open).map(paced).collect();
    }

    fn shares(&self, hash: u128) -> Option<Arc<Mutex<Shares>>> {
        self.open.read().iter().find(|paced| paced.range.contains(hash)).map(|paced| paced.shares.clone())
    }

    /// When a record for the shard that owns `hash` may go; `None` if that is too late to wait for.
    pub(super) fn reserve(&self, hash: u128, bytes: usize) -> Option<Instant> {
        let now = Instant::now();
        match self.shares(hash) {
            Some(shares) => shares.lock().reserve(now, bytes, self.writers),
            None => Some(now),
        }
    }

    /// A record was throttled although it was paced: others write to the shard too.
    pub(super) fn throttled(&self, hash: u128) {
        if let Some(shares) = self.shares(hash) {
            shares.lock().slow_down(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_window_holds_more_than_the_shard_takes(
            records in prop::collection::vec((0u64..400, 1usize..400_000), 1..200),
            writers in 1u32..4,
        ) {
            let start = Instant::now();
            let (mut now, mut shares, mut sent) = (start, Shares::new(start), Vec::new());
            for (pause, bytes) in records {
                now += Duration::from_millis(pause);
                if let Some(at) = shares.reserve(now, bytes, writers) {
                    prop_assert!(at >= now && at <= now + HOLD_MAX);
                    sent.push((at, bytes));
                }
            }
            prop_assert!(sent.is_sorted_by_key(|&(at, _)| at), "they go in the order in which they came");
            for (first, &(from, _)) in sent.iter().enumerate() {
                let inside: Vec<_> = sent[first..].iter().take_while(|(at, _)| *at < from + WINDOW).collect();
                let bytes: usize = inside.iter().map(|(_, bytes)| bytes).sum();
                let most = SHARD_WRITE_BYTES_PER_SECOND / writers as usize;
                prop_assert!(bytes <= most || inside.len() == 1, "{bytes} bytes in a second of {most}");
            }
        }
    }

    #[test]
    fn small_records_are_counted() {
        let now = Instant::now();
        let mut shares = Shares::new(now);
        for _ in 0..SHARD_WRITE_RECORDS_PER_SECOND {
            assert_eq!(shares.reserve(now, 10, 1), Some(now), "a second's worth goes at once");
        }
        assert_eq!(shares.reserve(now, 10, 1), Some(now + WINDOW));
        for _ in 1..SHARD_WRITE_RECORDS_PER_SECOND {
            assert_eq!(shares.reserve(now, 10, 1), Some(now + WINDOW));
        }
        assert_eq!(shares.reserve(now, 10, 1), None, "later than a lane waits");
        assert_eq!(shares.reserve(now + WINDOW, 10, 1), Some(now + 2 * WINDOW), "refusing has taken nothing");
    }

    #[test]
    fn throttling_slows_down_and_time_mends_it() {
        let mut now = Instant::now();
        let mut shares = Shares::new(now);
        shares.slow_down(now);
        assert!((shares.rate(now) - 0.7).abs() < 1e-9);
        shares.slow_down(now + WINDOW / 2);
        assert!((shares.rate(now) - 0.7).abs() < 1e-9, "once a second");
        for _ in 0..50 {
            now += WINDOW;
            shares.slow_down(now);
        }
        assert!(shares.rate(now) >= 0.1);
        assert!(shares.rate(now) < 0.5);
        assert!((shares.rate(now + Duration::from_secs(20)) - 1.0).abs() < 1e-9);
    }
}
