//! Poll facts, cached for as long as the protocol allows.
//!
//! Owns how old a poll definition may be when a vote is judged by it. Age counts from the start of the read, on both
//! clocks of a [`Moment`]. Must never answer with an older one because the store is down, and never remember that a
//! poll is unknown: somebody may have created it since.

use std::{
    collections::{HashMap, hash_map},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use tokio::{sync::Notify, time::timeout};

use crate::{
    Clock, Moment, Poll, PollId,
    polls::index::IndexedPoll,
    port::{PollStore, PortError},
};

/// Most polls that are kept. When there are more, the one that was read longest ago is dropped.
const POLLS_MAX: usize = 10_000;
/// Most reads at a time. When there are more, lookups fail at once, so that made-up poll ids cannot pile up.
const READS_MAX: usize = 1_024;
/// Longest wait for one read.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// A cache of polls. Clones share it.
#[derive(Clone)]
pub struct PollCache {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn PollStore>,
    clock: Arc<dyn Clock>,
    life: Duration,
    polls: RwLock<HashMap<PollId, Cached>>,
    reads: Mutex<HashMap<PollId, Read>>,
}

#[derive(Clone)]
struct Cached {
    poll: Arc<IndexedPoll>,
    read_at: Moment,
}

/// A read in flight. Every caller who needs the same poll waits for it.
///
/// Not a watch channel: that wakes its receivers in a random order, and a simulated run must be repeatable.
#[derive(Clone)]
struct Read {
    started: Moment,
    state: Arc<ReadState>,
}

#[derive(Default)]
struct ReadState {
    answer: OnceLock<Answer>,
    /// The read has ended, with or without an answer.
    is_over: AtomicBool,
    over: Notify,
}

impl ReadState {
    /// The answer; `None` if the task that read was stopped.
    async fn answer(&self) -> Option<Answer> {
        loop {
            let over = self.over.notified();
            if self.is_over.load(Ordering::Acquire) {
                return self.answer.get().cloned();
            }
            over.await;
        }
    }
}

type Answer = Result<Option<Arc<Poll>>, SharedError>;

/// A [`PortError`] that several callers receive.
#[derive(Clone)]
struct SharedError(Arc<PortError>);

impl From<SharedError> for PortError {
    fn from(SharedError(error): SharedError) -> Self {
        Self { retryable: error.retryable, effect: error.effect, message: error.message.clone() }
    }
}

impl PollCache {
    /// An empty cache over a store. `clock` is the one by which votes are judged, and `life` is
    /// [`crate::TimeBounds::poll_cache_life`].
    pub fn new(store: Arc<dyn PollStore>, clock: Arc<dyn Clock>, life: Duration) -> Self {
        Self { inner: Arc::new(Inner { store, clock, life, polls: RwLock::default(), reads: Mutex::default() }) }
    }

    fn now(&self) -> Moment {
        Moment::of(&*self.inner.clock)
    }

    /// The poll, if it is cached and young enough, and until when it may be used without asking again. Never waits.
    /// After half of its life the poll is read again in the background, and it may be used only at once.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn peek(&self, id: &str, now: Moment) -> Option<(Arc<IndexedPoll>, Moment)> {
        let is_young = |cached: &&Cached| !now.is_past(cached.read_at.plus(self.inner.life));
        let cached = self.inner.polls.read().get(id).filter(is_young).cloned()?;
        let half = cached.read_at.plus(self.inner.life / 2);
        if now.is_past(half) {
            // If there are too many reads, the entry is read when it is too old.
            drop(self.join_read(cached.poll.id()));
            return Some((cached.poll, now));
        }
        Some((cached.poll, half))
    }

    /// The poll, no older than the cache life at the moment of the answer: to judge a vote by the clock.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or not fast enough. The caller must not fall back on older facts.
    pub async fn get(&self, id: &PollId) -> Result<Option<Arc<Poll>>, PortError> {
        Ok(self.fetch(id).await?.map(|(poll, _)| poll.poll().clone()))
    }

    /// [`Self::get`], with the index of the poll's options, and the moment until which the definition is young enough.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or not fast enough. The caller must not fall back on older facts.
    pub async fn fetch(&self, id: &PollId) -> Result<Option<(Arc<IndexedPoll>, Moment)>, PortError> {
        let since = self.now();
        if let Some(found) = self.peek(id.as_str(), since) {
            return Ok(Some(found));
        }
        let (Some(poll), read_at) = self.read_since(id, since).await? else { return Ok(None) };
        let until = read_at.plus(self.inner.life);
        if self.now().is_past(until) {
            return Err(PortError::refused("reading the poll took longer than its definition stays valid"));
        }
        // The cache has indexed the poll already, unless many other reads have pushed it out.
        let kept =
            self.inner.polls.read().get(id).filter(|kept| *kept.poll.poll() == poll).map(|kept| kept.poll.clone());
        Ok(Some((kept.unwrap_or_else(|| Arc::new(IndexedPoll::new(poll))), until)))
    }

    /// The poll, no older than the cache life at `since`: to judge votes that arrived before `since`. The answer may
    /// take longer than the cache life: a later definition is right for earlier votes, too.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub async fn get_since(&self, id: &PollId, since: Moment) -> Result<Option<Arc<Poll>>, PortError> {
        if let Some((poll, _)) = self.peek(id.as_str(), since) {
            return Ok(Some(poll.poll().clone()));
        }
        Ok(self.read_since(id, since).await?.0)
    }

    /// Reads, or joins a read in flight if that is not too old for `since`.
    async fn read_since(&self, id: &PollId, since: Moment) -> Result<(Option<Arc<Poll>>, Moment), PortError> {
        loop {
            let Some(read) = self.join_read(id) else {
                return Err(PortError::refused(format!("{READS_MAX} polls are being read already")));
            };
            let answer = read.state.answer().await;
            let poll = match answer {
                Some(answer) => answer?,
                None => return Err(PortError::refused("the task that read the poll was stopped")),
            };
            // At most one read can be too old: the next one starts after `since`.
            if !since.is_past(read.started.plus(self.inner.life)) {
                return Ok((poll, read.started));
            }
        }
    }

    /// The read of this poll that is in flight, or a new one; `None` if there are too many.
    fn join_read(&self, id: &PollId) -> Option<Read> {
        let mut reads = self.inner.reads.lock();
        if let Some(read) = reads.get(id) {
            return Some(read.clone());
        }
        if reads.len() >= READS_MAX {
            return None;
        }
        let read = Read { started: self.now(), state: Arc::default() };
        reads.insert(id.clone(), read.clone());
        // A runtime that is shutting down drops the new task at once, and the end of the task takes the lock.
        drop(reads);
        // A task of its own: if the first caller goes away, the others still get their answer.
        let task = ReadTask { inner: self.inner.clone(), id: id.clone(), read: read.clone() };
        tokio::spawn(task.run());
        Some(read)
    }
}

/// Forgets the read when it ends, in whatever way.
struct ReadTask {
    inner: Arc<Inner>,
    id: PollId,
    read: Read,
}

impl ReadTask {
    async fn run(self) {
        let answer = match timeout(READ_TIMEOUT, self.inner.store.get(&self.id)).await {
            Ok(Ok(poll)) => Ok(poll.map(Arc::new)),
            Ok(Err(error)) => Err(SharedError(Arc::new(error))),
            Err(_) => Err(SharedError(Arc::new(PortError::refused("reading the poll timed out")))),
        };
        match &answer {
            Ok(Some(poll)) => self.inner.keep(&self.id, poll, self.read.started),
            Ok(None) => {
                self.inner.polls.write().remove(&self.id);
            }
            Err(_) => {}
        }
        // The answer is set only here. The waiting callers are woken when the task ends, which is right after this.
        self.read.state.answer.set(answer).ok();
    }
}

impl Drop for ReadTask {
    fn drop(&mut self) {
        // Forget the read before it is answered: a caller who finds the answer too old must start a new read.
        self.inner.reads.lock().remove(&self.id);
        self.read.state.is_over.store(true, Ordering::Release);
        self.read.state.over.notify_waiters();
    }
}

impl Inner {
    fn keep(&self, id: &PollId, poll: &Arc<Poll>, read_at: Moment) {
        let mut polls = self.polls.write();
        if polls.len() >= POLLS_MAX && !polls.contains_key(id) {
            let now = Moment::of(&*self.clock);
            polls.retain(|_, cached| !now.is_past(cached.read_at.plus(self.life)));
            let oldest = polls.iter().min_by_key(|(_, cached)| cached.read_at.instant).map(|(id, _)| id.clone());
            if let Some(oldest) = oldest.filter(|_| polls.len() >= POLLS_MAX) {
                polls.remove(&oldest);
            }
        }
        match polls.entry(id.clone()) {
            hash_map::Entry::Occupied(mut slot) => {
                let known = slot.get_mut();
                if known.read_at.instant <= read_at.instant {
                    known.read_at = read_at;
                    // An unchanged poll keeps its place in memory, so that references into it can still be compared by
                    // address.
                    if known.poll.poll() != poll {
                        known.poll = Arc::new(IndexedPoll::new(poll.clone()));
                    }
                }
            }
            hash_map::Entry::Vacant(slot) => {
                slot.insert(Cached { poll: Arc::new(IndexedPoll::new(poll.clone())), read_at });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use async_trait::async_trait;
    use tokio::time::{Instant, advance, sleep};

    use super::*;
    use crate::{PollOption, PollSource, Timestamp, model::poll::FinalResult, port::Created};

    const LIFE: Duration = Duration::from_millis(500);

    /// tokio's clock, which the tests pause.
    fn clock() -> Arc<dyn Clock> {
        struct Paused(Instant);
        impl Clock for Paused {
            fn now(&self) -> Timestamp {
                Timestamp(1_700_000_000_000).plus(self.0.elapsed())
            }
        }
        Arc::new(Paused(Instant::now()))
    }

    /// Answers after `delay`, with the number of the read as title.
    #[derive(Default)]
    struct Store {
        reads: AtomicU64,
        delay_ms: AtomicU64,
        unknown: Mutex<bool>,
        broken: Mutex<bool>,
    }

    #[async_trait]
    impl PollStore for Store {
        async fn get(&self, id: &PollId) -> Result<Option<Poll>, PortError> {
            let read = self.reads.fetch_add(1, Ordering::Relaxed) + 1;
            sleep(Duration::from_millis(self.delay_ms.load(Ordering::Relaxed))).await;
            if *self.broken.lock() {
                return Err(PortError::refused("broken"));
            }
            let options = vec![PollOption { id: "x".into(), title: String::new() }];
            let (opens, closes) = (Timestamp(0), Timestamp(1));
            let poll = Poll::new(id.clone(), read.to_string(), options, opens, closes, PollSource::Ingest, 1);
            Ok(poll.ok().filter(|_| !*self.unknown.lock()))
        }

        async fn create(&self, _: &Poll) -> Result<Created, PortError> {
            Ok(Created::New)
        }

        async fn list(&self, _: Option<&PollId>, _: usize) -> Result<Vec<Poll>, PortError> {
            Ok(Vec::new())
        }

        async fn begin_close(&self, _: &PollId) -> Result<Option<Poll>, PortError> {
            Ok(None)
        }

        async fn close(&self, _: &PollId, _: Timestamp) -> Result<Option<Poll>, PortError> {
            Ok(None)
        }

        async fn finish(&self, _: &PollId, _: &FinalResult) -> Result<Option<Poll>, PortError> {
            Ok(None)
        }

        async fn release(&self, _: &PollId, _: Timestamp) -> Result<Option<Poll>, PortError> {
            unreachable!("nobody releases")
        }

        async fn set_needs_recount(&self, _: &PollId, _: bool) -> Result<(), PortError> {
            Ok(())
        }
    }

    fn cache() -> (Arc<Store>, PollCache, PollId) {
        let store = Arc::new(Store::default());
        (store.clone(), PollCache::new(store, clock(), LIFE), PollId::new("p").unwrap())
    }

    fn reads(store: &Store) -> u64 {
        store.reads.load(Ordering::Relaxed)
    }

    #[test]
    fn a_runtime_that_has_ended_blocks_nobody() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let handle = runtime.handle().clone();
        drop(runtime);
        let _inside = handle.enter();
        let cache = PollCache::new(Arc::new(Store::default()), clock(), LIFE);
        assert!(cache.join_read(&PollId::new("p").unwrap()).is_some());
        assert!(cache.inner.reads.lock().is_empty(), "the read that never ran is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn many_callers_share_one_read() {
        let (store, cache, id) = cache();
        store.delay_ms.store(100, Ordering::Relaxed);
        let answers = futures::future::join_all((0..50).map(|_| cache.get(&id))).await;
        assert!(answers.into_iter().all(|answer| answer.unwrap().unwrap().title == "1"));
        assert_eq!(reads(&store), 1);
        assert!(cache.peek(id.as_str(), cache.now()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn age_counts_from_the_start_of_the_read_and_is_never_exceeded() {
        let (store, cache, id) = cache();
        store.delay_ms.store(200, Ordering::Relaxed);
        cache.get(&id).await.unwrap().unwrap();
        *store.broken.lock() = true;
        advance(LIFE - Duration::from_millis(201)).await;
        assert!(cache.peek(id.as_str(), cache.now()).is_some());
        advance(Duration::from_millis(2)).await;
        assert!(cache.peek(id.as_str(), cache.now()).is_none());
        assert!(cache.get(&id).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspended_machine_makes_it_too_old() {
        let (store, cache, id) = cache();
        cache.get(&id).await.unwrap().unwrap();
        *store.broken.lock() = true;
        let now = cache.now();
        assert!(cache.peek(id.as_str(), now).is_some());
        // The monotonic clock stood still for an hour, the other one did not.
        let woken = Moment { now: now.now.plus(Duration::from_secs(3_600)), ..now };
        assert!(cache.peek(id.as_str(), woken).is_none());
        assert!(cache.get_since(&id, woken).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_outlasts_the_life_serves_consumers_only() {
        let (store, cache, id) = cache();
        store.delay_ms.store(2_000, Ordering::Relaxed);
        assert!(cache.get(&id).await.is_err());
        let since = cache.now();
        assert_eq!(cache.get_since(&id, since).await.unwrap().unwrap().title, "2");
        // A read that began too long ago: the caller waits for it, but does not use its answer.
        let early = cache.clone();
        let (first, id_of_first) = (reads(&store), id.clone());
        let waiting = tokio::spawn(async move { early.get_since(&id_of_first, early.now()).await.is_ok() });
        sleep(Duration::from_millis(1_000)).await;
        let poll = cache.get_since(&id, cache.now()).await.unwrap().unwrap();
        assert_eq!(poll.title, (first + 2).to_string());
        assert!(waiting.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn past_half_its_life_it_is_read_in_the_background() {
        let (store, cache, id) = cache();
        let peek = || cache.peek(id.as_str(), cache.now()).unwrap();
        let title = || peek().0.poll().title.clone();
        cache.get(&id).await.unwrap().unwrap();
        assert_eq!(peek().1, cache.now().plus(LIFE / 2), "until then nobody needs to ask again");
        advance(LIFE / 2 + Duration::from_millis(1)).await;
        assert_eq!(peek().1, cache.now());
        assert_eq!(title(), "1");
        while reads(&store) < 2 || title() != "2" {
            tokio::task::yield_now().await;
        }
        advance(LIFE / 2 + Duration::from_millis(1)).await;
        assert_eq!(cache.get(&id).await.unwrap().unwrap().title, "2");
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_is_not_remembered() {
        let (store, cache, id) = cache();
        *store.unknown.lock() = true;
        assert_eq!(cache.get(&id).await.unwrap(), None);
        *store.unknown.lock() = false;
        assert!(cache.get(&id).await.unwrap().is_some());
    }
}
