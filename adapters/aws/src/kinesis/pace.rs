//! How fast records may be put: what each shard takes in a second.
//!
//! Owns the record of what is on its way and what was lately answered, per shard. Throttling is to be the exception, so a
//! record waits here rather than be refused there. A record arrives somewhere between sending and answer, so it counts from
//! the one until a second after the other: however long calls take, no second of the shard's holds more than it takes. Must
//! never let a record of one shard overtake another.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::Notify,
    time::{sleep_until, timeout},
};
use votestream_core::{
    HashRange, ShardId,
    observe::metrics::{self, Throttled},
    port::Shard,
};

use super::limits::{SHARD_WRITE_BYTES_PER_SECOND, SHARD_WRITE_RECORDS_PER_SECOND};

/// The second over which Kinesis counts, and what clocks that tick in milliseconds may add.
const WINDOW: Duration = Duration::from_millis(1_005);
/// Longest time that a record is held back. Its lane has a deadline and learns earlier that the shard is too slow.
const HOLD_MAX: Duration = Duration::from_secs(2);
/// What is left of the rate after a throttled record. Other writers share the shard.
const SLOW_DOWN_FACTOR: f64 = 0.7;
/// The least part of the rate that is ever left.
const RATE_LEAST: f64 = 0.1;
/// Which part of the whole rate comes back each second without throttling.
const RECOVERY_PER_SECOND: f64 = 0.1;

/// A record that counts.
#[derive(Debug)]
struct Sent {
    ticket: u64,
    bytes: usize,
    /// When it was answered.
    answered: Option<Instant>,
}

/// What one shard was sent lately.
#[derive(Debug)]
struct Shares {
    sent: VecDeque<Sent>,
    next_ticket: u64,
    /// The part of the rate in use, as of a moment.
    rate: (f64, Instant),
    slowed_at: Option<Instant>,
}

impl Shares {
    fn new(now: Instant) -> Self {
        Self { sent: VecDeque::new(), next_ticket: 0, rate: (1.0, now), slowed_at: None }
    }

    fn rate(&self, now: Instant) -> f64 {
        let (rate, since) = self.rate;
        (rate + now.saturating_duration_since(since).as_secs_f64() * RECOVERY_PER_SECOND).min(1.0)
    }

    fn slow_down(&mut self, now: Instant) {
        // The records of one second are throttled together, and say one thing.
        if self.slowed_at.is_some_and(|at| now.saturating_duration_since(at) < WINDOW) {
            return;
        }
        self.slowed_at = Some(now);
        self.rate = ((self.rate(now) * SLOW_DOWN_FACTOR).max(RATE_LEAST), now);
    }

    /// Lets a record of this size go and returns its ticket; or, if there is no room, says when there may be some, if that
    /// does not depend on an answer.
    fn send(&mut self, now: Instant, bytes: usize, writers: u32) -> Result<u64, Option<Instant>> {
        let part = self.rate(now) / f64::from(writers.max(1));
        // Truncation is what is wanted.
        let bytes_max = (SHARD_WRITE_BYTES_PER_SECOND as f64 * part) as usize;
        let records_max = ((SHARD_WRITE_RECORDS_PER_SECOND as f64 * part) as usize).max(1);
        self.sent.retain(|sent| sent.answered.is_none_or(|at| now < at + WINDOW));
        let counted: usize = self.sent.iter().map(|sent| sent.bytes).sum();
        // A record that is larger than the part goes alone.
        if !self.sent.is_empty() && (counted + bytes > bytes_max || self.sent.len() >= records_max) {
            return Err(self.sent.iter().filter_map(|sent| sent.answered).min().map(|at| at + WINDOW));
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.sent.push_back(Sent { ticket, bytes, answered: None });
        Ok(ticket)
    }

    fn answered(&mut self, ticket: u64, now: Instant) {
        if let Some(sent) = self.sent.iter_mut().find(|sent| sent.ticket == ticket) {
            sent.answered = Some(now);
        }
    }
}

/// The way into one shard.
struct Gate {
    /// Held by the record that is the next to go; the others queue for it in their order.
    turn: tokio::sync::Mutex<()>,
    shares: Mutex<Shares>,
    answered: Notify,
}

/// Lets a record count until a second after this is dropped, which is when it is answered.
pub(super) struct Pass(Option<(Arc<Gate>, u64)>);

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some((gate, ticket)) = self.0.take() {
            gate.shares.lock().answered(ticket, Instant::now());
            gate.answered.notify_one();
        }
    }
}

struct Paced {
    shard: ShardId,
    range: HashRange,
    gate: Arc<Gate>,
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
        let new_gate = || {
            let (turn, answered) = (tokio::sync::Mutex::default(), Notify::new());
            Arc::new(Gate { turn, shares: Mutex::new(Shares::new(now)), answered })
        };
        let paced = |shard: &Shard| {
            let gate = known.iter().find(|known| known.shard == shard.id).map(|known| known.gate.clone());
            Paced { shard: shard.id.clone(), range: shard.range, gate: gate.unwrap_or_else(new_gate) }
        };
        *open = shards.iter().filter(|shard| shard.open).map(paced).collect();
    }

    fn gate(&self, hash: u128) -> Option<Arc<Gate>> {
        self.open.read().iter().find(|paced| paced.range.contains(hash)).map(|paced| paced.gate.clone())
    }

    /// Waits until a record for the shard that owns `hash` may go; `None` if that takes too long.
    pub(super) async fn pass(&self, hash: u128, bytes: usize) -> Option<Pass> {
        let Some(gate) = self.gate(hash) else { return Some(Pass(None)) };
        let turn = async {
            let _turn = gate.turn.lock().await;
            loop {
                let now = Instant::now();
                let sent = gate.shares.lock().send(now, bytes, self.writers);
                match sent {
                    Ok(ticket) => return Pass(Some((gate.clone(), ticket))),
                    Err(Some(at)) => {
                        // An answer makes no room at once, so it is not waited for.
                        sleep_until(at.into()).await;
                    }
                    Err(None) => gate.answered.notified().await,
                }
            }
        };
        timeout(HOLD_MAX, turn).await.ok()
    }

    /// A record was throttled although it was paced: others write to the shard too.
    pub(super) fn throttled(&self, hash: u128) {
        metrics::throttled(Throttled::Put, 1);
        if let Some(gate) = self.gate(hash) {
            gate.shares.lock().slow_down(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_second_of_the_shards_holds_more_than_it_takes(
            records in prop::collection::vec((0u64..120, 1usize..400_000, 0u64..700), 1..200),
            writers in 1u32..4,
        ) {
            let mut now = Instant::now();
            let mut shares = Shares::new(now);
            // When each was sent and answered, in the order of sending.
            let mut sent: Vec<(u64, Instant, Instant, usize)> = Vec::new();
            for (pause, bytes, call) in records {
                now += Duration::from_millis(pause);
                sent.iter().filter(|(_, _, answered, _)| *answered <= now).for_each(|&(ticket, _, answered, _)| {
                    shares.answered(ticket, answered);
                });
                match shares.send(now, bytes, writers) {
                    Ok(ticket) => sent.push((ticket, now, now + Duration::from_millis(call), bytes)),
                    Err(again) => prop_assert!(again.is_none_or(|at| at > now)),
                }
            }
            for (last, &(_, at, _, bytes)) in sent.iter().enumerate() {
                // Whatever may arrive within a second before this one does.
                let others = sent[..last].iter().filter(|(_, _, answered, _)| *answered + WINDOW > at);
                let others: Vec<_> = others.map(|(.., bytes)| *bytes).collect();
                let most = SHARD_WRITE_BYTES_PER_SECOND / writers as usize;
                prop_assert!(others.is_empty() || others.iter().sum::<usize>() + bytes <= most);
            }
        }
    }

    #[test]
    fn small_records_are_counted() {
        let now = Instant::now();
        let mut shares = Shares::new(now);
        for ticket in 0..SHARD_WRITE_RECORDS_PER_SECOND as u64 {
            assert_eq!(shares.send(now, 10, 1), Ok(ticket), "a second's worth goes at once");
        }
        assert_eq!(shares.send(now, 10, 1), Err(None), "it takes an answer");
        let answered = now + Duration::from_millis(30);
        shares.answered(7, answered);
        assert_eq!(shares.send(answered, 10, 1), Err(Some(answered + WINDOW)));
        assert!(shares.send(answered + WINDOW, 10, 1).is_ok());
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
