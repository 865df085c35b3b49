//! Limits how fast records are put to what each shard accepts in a second.
//!
//! Owns, per shard, the list of records that are in flight or were answered within the last second. Throttling should
//! be rare, so a record waits here instead of being refused by Kinesis. A record reaches Kinesis at some moment between
//! sending and answer. So it counts from when it is sent until one second after its answer: then no second at the shard
//! holds more than the shard accepts, however long calls take. Must never let a record of one shard overtake another.

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

/// The second over which Kinesis counts, plus what clocks with a resolution of milliseconds may add.
const WINDOW: Duration = Duration::from_millis(1_005);
/// Longest time that a record is held back. So the record's lane learns before its deadline that the shard is too slow.
const HOLD_MAX: Duration = Duration::from_secs(2);
/// What is left of the rate after a throttled record. Other writers share the shard.
const SLOW_DOWN_FACTOR: f64 = 0.7;
/// The least part of the rate that is ever left.
const RATE_LEAST: f64 = 0.1;
/// Part of the whole rate that comes back with each second without throttling.
const RECOVERY_PER_SECOND: f64 = 0.1;

/// A record that counts against the shard's rate.
#[derive(Debug)]
struct Sent {
    ticket: u64,
    bytes: usize,
    /// When it was answered.
    answered: Option<Instant>,
}

/// What was recently sent to one shard.
#[derive(Debug)]
struct Shares {
    sent: VecDeque<Sent>,
    next_ticket: u64,
    /// The part of the whole rate that may be used, and the moment at which that was so.
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
        // Records that are throttled within one second have the same cause, so they slow down once.
        if self.slowed_at.is_some_and(|at| now.saturating_duration_since(at) < WINDOW) {
            return;
        }
        self.slowed_at = Some(now);
        self.rate = ((self.rate(now) * SLOW_DOWN_FACTOR).max(RATE_LEAST), now);
    }

    /// Lets a record of this size go and returns its ticket. If there is no room, returns the time at which there may
    /// be some; `None` if that depends on an answer.
    fn send(&mut self, now: Instant, bytes: usize, writers: u32) -> Result<u64, Option<Instant>> {
        let part = self.rate(now) / f64::from(writers.max(1));
        // Truncation is intended.
        let bytes_max = (SHARD_WRITE_BYTES_PER_SECOND as f64 * part) as usize;
        let records_max = ((SHARD_WRITE_RECORDS_PER_SECOND as f64 * part) as usize).max(1);
        self.sent.retain(|sent| sent.answered.is_none_or(|at| now < at + WINDOW));
        let counted: usize = self.sent.iter().map(|sent| sent.bytes).sum();
        // A record that is larger than the allowed part goes alone.
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

/// The queue of records for one shard.
struct Gate {
    /// Held by the record that goes next. The others wait for it in order.
    turn: tokio::sync::Mutex<()>,
    shares: Mutex<Shares>,
    answered: Notify,
}

/// Permission to put one record. It is dropped when the record is answered; the record counts for one more second.
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
    /// The pace for one of `writers` processes, which share the shards evenly.
    pub(super) fn new(writers: u32) -> Self {
        Self { writers, open: RwLock::default() }
    }

    /// Takes over a new shard map. Keeps what is known about shards that stay.
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
                        // An answer does not make room at once, so do not wait for one.
                        sleep_until(at.into()).await;
                    }
                    Err(None) => gate.answered.notified().await,
                }
            }
        };
        timeout(HOLD_MAX, turn).await.ok()
    }

    /// Lowers the rate after a throttled record: it was paced, so others write to the shard, too.
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
                // All records that may arrive within the second before this one.
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
