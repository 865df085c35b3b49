//! A cache with a short life: however many callers ask for a key, only one of them reads, and the others wait for its
//! answer.
//!
//! Must never answer with something older than its life. Must never keep more entries than its limit. Must never hold a
//! lock while it waits for a read.

use std::{future::Future, hash::Hash, sync::Arc, time::Duration};

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::status::CallError;

/// Most entries. Callers of further keys read for themselves.
const ENTRIES_MAX: usize = 10_000;

type Answer<V> = Result<V, Arc<CallError>>;

/// The clock for the age of entries. The age of an interim result decides nothing about votes.
#[expect(clippy::disallowed_methods, reason = "no vote is judged by it")]
fn now() -> Instant {
    Instant::now()
}

struct Slot<V> {
    latest: Mutex<Option<(Instant, Answer<V>)>>,
    /// The last answer that was not a failure, of any age.
    last_good: Mutex<Option<V>>,
    /// Held by the caller that reads.
    flight: tokio::sync::Mutex<()>,
}

/// The cache; see the module.
pub(crate) struct Cache<K: Eq + Hash, V> {
    slots: DashMap<K, Arc<Slot<V>>>,
    life: Duration,
}

impl<K: Eq + Hash + Clone, V: Clone> Cache<K, V> {
    pub(crate) fn new(life: Duration) -> Self {
        Self { slots: DashMap::new(), life }
    }

    /// The latest answer for a key; read again if it is too old. Failures are kept as well: otherwise every caller in
    /// turn would ask an engine that is down. `read` gets the last good answer, if it is still kept.
    pub(crate) async fn get<F>(&self, key: &K, read: impl FnOnce(Option<V>) -> F) -> Answer<V>
    where
        F: Future<Output = Result<V, CallError>>,
    {
        let Some(slot) = self.slot(key) else {
            return read(None).await.map_err(Arc::new);
        };
        if let Some(answer) = self.fresh(&slot) {
            return answer;
        }
        let _flight = slot.flight.lock().await;
        if let Some(answer) = self.fresh(&slot) {
            return answer;
        }
        let before = slot.last_good.lock().clone();
        let answer = read(before).await.map_err(Arc::new);
        if let Ok(good) = &answer {
            *slot.last_good.lock() = Some(good.clone());
        }
        *slot.latest.lock() = Some((now(), answer.clone()));
        answer
    }

    /// Makes the next caller read again.
    pub(crate) fn forget(&self, key: &K) {
        if let Some(slot) = self.slots.get(key) {
            *slot.latest.lock() = None;
        }
    }

    fn fresh(&self, slot: &Slot<V>) -> Option<Answer<V>> {
        let latest = slot.latest.lock();
        latest
            .as_ref()
            .filter(|(at, _)| now().saturating_duration_since(*at) < self.life)
            .map(|(_, answer)| answer.clone())
    }

    fn slot(&self, key: &K) -> Option<Arc<Slot<V>>> {
        if let Some(slot) = self.slots.get(key) {
            return Some(slot.clone());
        }
        if self.slots.len() >= ENTRIES_MAX {
            // A slot that a caller holds is in use, even if it is old.
            self.slots.retain(|_, slot| Arc::strong_count(slot) > 1 || self.fresh(slot).is_some());
            if self.slots.len() >= ENTRIES_MAX {
                return None;
            }
        }
        let empty = || {
            let (latest, last_good) = (Mutex::new(None), Mutex::new(None));
            Arc::new(Slot { latest, last_good, flight: tokio::sync::Mutex::new(()) })
        };
        Some(self.slots.entry(key.clone()).or_insert_with(empty).clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn thousands_of_callers_cost_one_read() {
        let cache = Arc::new(Cache::<u8, u32>::new(Duration::from_millis(100)));
        let reads = AtomicU32::new(0);
        let call = || {
            cache.get(&7, |_| async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                Ok(reads.fetch_add(1, Ordering::Relaxed))
            })
        };
        let answers = futures::future::join_all((0..5_000).map(|_| call())).await;
        assert!(answers.iter().all(|answer| matches!(answer, Ok(0))));
        tokio::time::advance(Duration::from_millis(99)).await;
        assert!(matches!(call().await, Ok(0)));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(matches!(call().await, Ok(1)));
        cache.forget(&7);
        assert!(matches!(call().await, Ok(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_who_leaves_does_not_block_the_others() {
        let cache = Cache::<u8, u32>::new(Duration::from_millis(100));
        {
            let stuck = cache.get(&1, |_| std::future::pending());
            tokio::pin!(stuck);
            assert!(futures::poll!(&mut stuck).is_pending());
        }
        assert!(matches!(cache.get(&1, |_| async { Ok(4) }).await, Ok(4)));
    }

    #[tokio::test(start_paused = true)]
    async fn it_stays_within_its_bound() {
        let cache = Cache::<usize, usize>::new(Duration::from_millis(100));
        for key in 0..ENTRIES_MAX + 50 {
            assert!(matches!(cache.get(&key, |_| async { Ok(key) }).await, Ok(answer) if answer == key));
        }
        assert_eq!(cache.slots.len(), ENTRIES_MAX);
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(cache.get(&usize::MAX, |_| async { Ok(0) }).await.is_ok());
        assert_eq!(cache.slots.len(), 1);
    }
}
