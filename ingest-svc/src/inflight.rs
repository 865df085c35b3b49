//! Limits the bytes in flight: of votes that are not settled yet, and of messages that wait for their client.
//!
//! Owns backpressure: a message waits in its client until there is room for its bytes. The room is limited by the
//! configured memory, and by what the lanes settle within a share of the answer deadline. A vote that waits in a lane
//! until the deadline is refused, so to accept it would only make its client wait in vain. Must never let anything in
//! without a permit.

use std::{
    future::pending,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, MissedTickBehavior, interval},
};
use votestream_core::{model::limits::MESSAGE_BYTES_MAX, observe::metrics};

/// Votes wait in their lanes at most for the answer deadline divided by this; a little longer while the rate falls.
const SHARE_OF_DEADLINE: u32 = 4;
/// Least room: for two messages of the largest size, so that one is read while the other is settled.
const BYTES_MIN: usize = 2 * MESSAGE_BYTES_MAX;
/// How often the room is adapted to the rate at which votes are settled.
const REGULATE_EVERY: Duration = Duration::from_millis(250);
/// Weight of the latest rate in the average. Votes are settled in batches, so single rates vary much.
const LATEST: f64 = 0.3;
/// If more than the room divided by this is free, the rate shows what clients send, not what lanes can settle.
const FREE: usize = 8;

/// The bytes that may be in flight in one process.
pub(crate) struct InflightBytes {
    free: Arc<Semaphore>,
    bytes_max: usize,
    /// Bytes given back since the last adaptation.
    settled: Arc<AtomicU64>,
}

/// A share of the bytes that may be in flight. It is given back when the last copy is dropped.
pub struct Permit(Held);

enum Held {
    /// Held by one holder; this is the usual case.
    Alone(Share),
    /// Shared by several parts of one message.
    Together(Arc<Share>),
}

struct Share {
    permit: OwnedSemaphorePermit,
    settled: Arc<AtomicU64>,
}

impl Permit {
    /// Splits this into two holders. The bytes are given back when both are dropped.
    pub(crate) fn share(self) -> (Self, Self) {
        let share = match self.0 {
            Held::Alone(share) => Arc::new(share),
            Held::Together(share) => share,
        };
        (Self(Held::Together(share.clone())), Self(Held::Together(share)))
    }
}

impl InflightBytes {
    /// Room for at most `bytes_max` bytes. Must be called within a runtime.
    pub(crate) fn new(bytes_max: usize, answer_deadline: Duration) -> Self {
        let bytes_max = bytes_max.min(u32::MAX as usize).min(Semaphore::MAX_PERMITS);
        let (free, settled) = (Arc::new(Semaphore::new(bytes_max.min(BYTES_MIN))), Arc::<AtomicU64>::default());
        let wait_max = answer_deadline / SHARE_OF_DEADLINE;
        tokio::spawn(regulate(Arc::downgrade(&free), settled.clone(), bytes_max, wait_max));
        Self { free, bytes_max, settled }
    }

    /// Waits until this many bytes may be in flight. A larger number than the least room counts as the least room.
    pub(crate) async fn acquire(&self, bytes: usize) -> Permit {
        let bytes = u32::try_from(bytes.min(self.bytes_max).min(BYTES_MIN)).unwrap_or(u32::MAX);
        let permit = take(&self.free, bytes).await;
        metrics::LANE_BYTES.add(i64::from(bytes));
        Permit(Held::Alone(Share { permit, settled: self.settled.clone() }))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let bytes = self.permit.num_permits();
        self.settled.fetch_add(bytes as u64, Ordering::Relaxed);
        metrics::LANE_BYTES.add(-(bytes as i64));
    }
}

/// Room for bytes that wait for their client: for the rest of a message, or for answers to be read.
///
/// It is separate from the room for votes in flight: a client that lets the service wait must not block others.
#[derive(Clone)]
pub(crate) struct WaitingBytes {
    free: Arc<Semaphore>,
    bytes_max: u32,
}

/// A share of [`WaitingBytes`]. It is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct WaitingPermit(#[expect(dead_code, reason = "it is held")] OwnedSemaphorePermit);

impl WaitingBytes {
    /// Room for at most `bytes_max` bytes.
    pub(crate) fn new(bytes_max: usize) -> Self {
        let bytes_max = u32::try_from(bytes_max.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        Self { free: Arc::new(Semaphore::new(bytes_max as usize)), bytes_max }
    }

    /// Waits for room for this many bytes.
    pub(crate) async fn acquire(&self, bytes: usize) -> WaitingPermit {
        WaitingPermit(take(&self.free, self.permits(bytes)).await)
    }

    /// Takes room for this many bytes, if there is enough now.
    pub(crate) fn try_acquire(&self, bytes: usize) -> Option<WaitingPermit> {
        self.free.clone().try_acquire_many_owned(self.permits(bytes)).ok().map(WaitingPermit)
    }

    fn permits(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes_max)
    }
}

/// Waits for permits, in turn.
async fn take(free: &Arc<Semaphore>, permits: u32) -> OwnedSemaphorePermit {
    match free.clone().acquire_many_owned(permits).await {
        Ok(permit) => permit,
        // These semaphores are never closed.
        Err(_) => pending().await,
    }
}

/// Adapts the room to what the lanes settle within `wait_max`. The room grows by itself: while it is small, votes are
/// settled faster than that.
#[expect(clippy::disallowed_methods, reason = "a rate is measured, no vote is judged by it")]
async fn regulate(free: Weak<Semaphore>, settled: Arc<AtomicU64>, bytes_max: usize, wait_max: Duration) {
    let bytes_min = bytes_max.min(BYTES_MIN);
    let (mut room, mut average, mut last) = (bytes_min, 0.0, Instant::now());
    let mut ticks = interval(REGULATE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(free) = free.upgrade() else { return };
        let elapsed = std::mem::replace(&mut last, Instant::now()).elapsed().as_secs_f64();
        if elapsed <= 0.0 {
            continue;
        }
        let rate = settled.swap(0, Ordering::Relaxed) as f64 / elapsed;
        average += LATEST * (rate - average);
        if free.available_permits() > room / FREE {
            continue;
        }
        let wanted = ((average * wait_max.as_secs_f64()) as usize).clamp(bytes_min, bytes_max);
        if wanted > room {
            free.add_permits(wanted - room);
        } else if let Ok(surplus) = free.acquire_many(u32::try_from(room - wanted).unwrap_or(u32::MAX)).await {
            // Removed before any waiting message can take them.
            surplus.forget();
        }
        room = wanted;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);
    const MESSAGE: usize = 8 << 10;
    const STEP: Duration = Duration::from_millis(10);

    /// Simulates clients that send as fast as they may, to lanes that settle `rate` bytes per second. Returns how long
    /// the last settled bytes had waited, and how many bytes per second were settled.
    async fn flood(inflight: &InflightBytes, rate: usize, seconds: u32) -> (Duration, usize) {
        let mut queue: VecDeque<(Instant, Permit)> = VecDeque::new();
        let (mut waited, mut total) = (Duration::ZERO, 0);
        let start = Instant::now();
        let mut budget = 0;
        while start.elapsed() < Duration::from_secs(seconds.into()) {
            while let Ok(permit) = tokio::time::timeout(Duration::ZERO, inflight.acquire(MESSAGE)).await {
                queue.push_back((Instant::now(), permit));
            }
            tokio::time::sleep(STEP).await;
            budget += rate / 100;
            while budget >= MESSAGE
                && let Some((taken, _permit)) = queue.pop_front()
            {
                (waited, budget, total) = (taken.elapsed(), budget - MESSAGE, total + MESSAGE);
            }
        }
        (waited, total / seconds as usize)
    }

    #[tokio::test(start_paused = true)]
    async fn slow_lanes_make_clients_wait_and_not_votes() {
        let inflight = InflightBytes::new(64 << 20, DEADLINE);
        let (waited, rate) = flood(&inflight, 6 << 20, 30).await;
        assert!(waited < DEADLINE / 3, "the last votes waited for {waited:?}");
        assert!(rate > 5 << 20, "the lanes were not kept busy: {rate} bytes/s");
    }

    #[tokio::test(start_paused = true)]
    async fn room_follows_the_rate_both_ways() {
        let inflight = InflightBytes::new(64 << 20, DEADLINE);
        let (waited, rate) = flood(&inflight, 100 << 20, 10).await;
        assert!(waited < DEADLINE / 3 && rate > 80 << 20, "{waited:?}, {rate} bytes/s");
        let (waited, rate) = flood(&inflight, 4 << 20, 40).await;
        assert!(waited < DEADLINE / 3, "after the lanes slowed down, votes waited for {waited:?}");
        assert!(rate > 3 << 20, "{rate} bytes/s");
        let (_, rate) = flood(&inflight, 100 << 20, 30).await;
        assert!(rate > 70 << 20, "after the lanes became fast again: {rate} bytes/s");
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_message_fits_always() {
        for bytes_max in [1 << 10, 64 << 20] {
            let inflight = InflightBytes::new(bytes_max, DEADLINE);
            drop(inflight.acquire(usize::MAX).await);
            drop(inflight.acquire(MESSAGE_BYTES_MAX).await);
        }
    }

    #[tokio::test]
    async fn bytes_come_back_when_the_last_holder_is_gone() {
        use futures::FutureExt;
        let inflight = InflightBytes::new(10, DEADLINE);
        let (first, rest) = inflight.acquire(10).await.share();
        let (second, third) = rest.share();
        for held in [first, second] {
            drop(held);
            assert!(inflight.acquire(1).now_or_never().is_none());
        }
        drop(third);
        assert!(inflight.acquire(10).now_or_never().is_some());
    }
}
