//! Results as they change, as server-sent events (the HTML standard, section 9.2).
//!
//! Owns one reader per watched poll, which makes the bytes that all its watchers share. Must never let a reader's bytes
//! reach somebody else than those who may see them: each view of a poll has bytes of its own. Must never keep anything
//! for a watcher who has left, nor more than the latest state for one who is slow.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, stream};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use votestream_core::{Clock, PollId, Timestamp};
use votestream_proto::json;
use votestream_server::Caller;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    convert,
    results::{FAILURES_MAX, WATCH_INTERVAL, final_response, interim_response, may_pass},
    snapshot::{Snapshot, Snapshots, tag_of},
    status::CallError,
    viewer::Viewer,
};

/// Most polls that are watched in one process. Each is read some times a second.
const FEEDS_MAX: usize = 1_000;
/// Bytes that the watchers of a poll get in a second, all together, before its events come less often.
const BYTES_PER_SECOND: u64 = 32 << 20;
/// Longest pause between two looks at a poll, however many watch it.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Time that each watcher gets for itself after a change. All at once they would take the processor from votes until the
/// last of them is served.
const TURN: Duration = Duration::from_micros(20);
/// A shorter wait is none: timers have whole milliseconds.
const TURN_MIN: Duration = Duration::from_millis(1);
/// Longest time over which the watchers of a poll take turns: shorter than the pause between two looks.
const TURNS_MAX: Duration = Duration::from_millis(200);
/// How often something is sent even if nothing changes. Load balancers close what is silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How soon a client that was cut off should come back; the first line of each stream.
const RETRY: &str = "retry: 1000\n\n";
/// A line that says nothing.
const SILENCE: &[u8] = b": keep-alive\n\n";

/// An event as it is sent, and what tells it from others.
#[derive(Clone, Debug, Default)]
struct Event {
    bytes: Bytes,
    tag: u64,
}

impl Event {
    /// An event of this kind. With an id, a client that was cut off says whether it has seen it.
    fn new(kind: &str, tag: u64, with_id: bool, data: &str) -> Self {
        let id = if with_id { format!("id: {tag:016x}\n") } else { String::new() };
        // JSON has no line breaks, so one data line takes it.
        Self { bytes: format!("event: {kind}\n{id}data: {data}\n\n").into(), tag }
    }
}

/// The data of an event. These messages always can be written.
fn text_of(data: &impl Serialize) -> String {
    serde_json::to_string(data).unwrap_or_default()
}

/// What one kind of viewer sees.
#[derive(Clone, Debug, Default)]
struct View {
    poll: Event,
    /// `None` while the results are hidden.
    results: Option<Event>,
    /// Whether `results` never change again.
    is_final: bool,
}

/// What the viewers of a poll see.
#[derive(Clone, Debug, Default)]
struct Views {
    reader: View,
    manager: View,
    /// Over how long the watchers take turns.
    turns: Duration,
    /// Counts the moments at which something is sent in any case.
    beat: u64,
    /// Whether the reader has given up. Clients come back.
    failed: bool,
}

impl Views {
    fn of(&self, viewer: Viewer) -> &View {
        match viewer {
            Viewer::Reader => &self.reader,
            Viewer::Manager => &self.manager,
        }
    }

    fn bytes(&self) -> usize {
        self.manager.results.as_ref().map_or(0, |results| results.bytes.len())
    }
}

#[derive(Serialize)]
struct PollData {
    poll: json::Poll,
    /// Until when the results are hidden, as a sentence; empty if they are shown.
    hidden: String,
}

/// What a viewer sees now. Counts that have not changed since `before` keep their bytes.
fn view_of(snapshot: &Snapshot, viewer: Viewer, now: Timestamp, before: &View) -> View {
    let hidden = viewer.check(&snapshot.poll).err().map(|hidden| hidden.to_string());
    let shown = hidden.is_none();
    let data = PollData { poll: convert::poll(&snapshot.poll, now).into(), hidden: hidden.unwrap_or_default() };
    let data = text_of(&data);
    let poll = Event::new("poll", xxh3_64(data.as_bytes()), false, &data);
    let last = snapshot.poll.final_result.as_ref();
    let results = shown.then(|| {
        let counts = snapshot.submitted.iter().chain(&snapshot.counted).copied();
        let tag = tag_of(counts.chain([u64::from(last.is_some())]));
        if let Some(same) = before.results.as_ref().filter(|results| results.tag == tag) {
            return same.clone();
        }
        match last {
            Some(result) => {
                let last = json::Final::from(final_response(&snapshot.poll, result));
                Event::new("final", tag, true, &text_of(&last))
            }
            None => Event::new("interim", tag, true, &text_of(&json::Interim::from(interim_response(snapshot)))),
        }
    });
    View { poll, results, is_final: shown && last.is_some() }
}

/// The polls that are watched.
pub(crate) struct Feeds {
    snapshots: Arc<Snapshots>,
    clock: Arc<dyn Clock>,
    /// The newest views of each watched poll. A feed lives as long as somebody watches.
    feeds: Mutex<HashMap<PollId, Weak<watch::Receiver<Arc<Views>>>>>,
    /// Number of the next watcher.
    number: AtomicU32,
    serving: CancellationToken,
}

impl Feeds {
    pub(crate) fn new(snapshots: Arc<Snapshots>, clock: Arc<dyn Clock>, serving: CancellationToken) -> Arc<Self> {
        Arc::new(Self { snapshots, clock, feeds: Mutex::default(), number: AtomicU32::new(0), serving })
    }

    /// Watches a poll. `seen` is the id of the last event that the client has got. `None` if that was the final result,
    /// so that nothing is left to come.
    pub(crate) async fn watch(
        self: &Arc<Self>,
        viewer: Viewer,
        caller: Caller,
        id: PollId,
        seen: Option<&str>,
    ) -> Result<Option<Watcher>, Arc<CallError>> {
        // If there is no such poll, the call fails at once. Whether its results are hidden, the events say.
        let snapshot = self.snapshots.get(Viewer::Manager, &id).await?;
        let seen = seen.and_then(|seen| u64::from_str_radix(seen, 16).ok());
        let feed = self.feed(&id, &snapshot)?;
        let views = feed.borrow().clone();
        let view = views.of(viewer);
        if view.is_final && seen.is_some() && view.results.as_ref().map(|results| results.tag) == seen {
            return Ok(None);
        }
        let mut newest = watch::Receiver::clone(&feed);
        newest.mark_changed();
        let turn = turn_of(self.number.fetch_add(1, Ordering::Relaxed));
        let serving = self.serving.clone();
        Ok(Some(Watcher {
            _feed: feed,
            newest,
            viewer,
            caller,
            serving,
            poll: None,
            results: seen,
            beat: views.beat,
            turn,
            is_new: true,
        }))
    }

    /// The feed of a poll, which begins to be read if nobody has watched it.
    fn feed(
        self: &Arc<Self>,
        id: &PollId,
        snapshot: &Snapshot,
    ) -> Result<Arc<watch::Receiver<Arc<Views>>>, Arc<CallError>> {
        let mut feeds = self.feeds.lock();
        if let Some(feed) = feeds.get(id).and_then(Weak::upgrade)
            && !feed.borrow().failed
        {
            return Ok(feed);
        }
        if feeds.len() >= FEEDS_MAX {
            feeds.retain(|_, feed| feed.strong_count() > 0);
            if feeds.len() >= FEEDS_MAX {
                return Err(Arc::new(CallError::Busy("streams of events for different polls")));
            }
        }
        let (views, feed) = watch::channel(Arc::new(self.views(snapshot, &Views::default(), 0)));
        let feed = Arc::new(feed);
        feeds.insert(id.clone(), Arc::downgrade(&feed));
        tokio::spawn(self.clone().read(id.clone(), views));
        Ok(feed)
    }

    fn views(&self, snapshot: &Snapshot, before: &Views, beat: u64) -> Views {
        let now = self.clock.now();
        let reader = view_of(snapshot, Viewer::Reader, now, &before.reader);
        // Nothing is hidden from readers: all see the same bytes.
        let same = reader.results.is_some();
        let manager = if same { reader.clone() } else { view_of(snapshot, Viewer::Manager, now, &before.manager) };
        Views { reader, manager, turns: Duration::ZERO, beat, failed: false }
    }

    /// Reads a poll until nobody watches it any more.
    async fn read(self: Arc<Self>, id: PollId, views: watch::Sender<Arc<Views>>) {
        let (mut failures, mut silent) = (0, Duration::ZERO);
        loop {
            let pause = pause_for(views.borrow().bytes(), views.receiver_count());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = views.closed() => break,
                () = self.serving.cancelled() => break,
            }
            silent += pause;
            let before = views.borrow().clone();
            let beat = before.beat + u64::from(silent >= KEEP_ALIVE);
            match self.snapshots.get(Viewer::Manager, &id).await {
                Ok(snapshot) => {
                    failures = 0;
                    let after = self.views(&snapshot, &before, beat);
                    if after.differs(&before) {
                        let turns = turns_of(views.receiver_count());
                        views.send_replace(Arc::new(Views { turns, ..after }));
                    }
                }
                Err(failure) => {
                    failures += 1;
                    let failed = !may_pass(&failure) || failures >= FAILURES_MAX;
                    if failed || beat != before.beat {
                        views.send_replace(Arc::new(Views { beat, failed, ..Views::clone(&before) }));
                    }
                    if failed {
                        break;
                    }
                }
            }
            if beat != before.beat {
                silent = Duration::ZERO;
            }
        }
        let mut feeds = self.feeds.lock();
        // A new feed may have taken the place.
        if feeds.get(&id).is_some_and(|feed| feed.strong_count() == 0) {
            feeds.remove(&id);
        }
    }
}

impl Views {
    fn differs(&self, other: &Self) -> bool {
        let tags = |view: &View| (view.poll.tag, view.results.as_ref().map(|results| results.tag));
        self.beat != other.beat
            || tags(&self.reader) != tags(&other.reader)
            || tags(&self.manager) != tags(&other.manager)
    }
}

/// The turn of a watcher: multiples of the golden ratio are spread evenly, however many there are.
fn turn_of(number: u32) -> f64 {
    (f64::from(number) * 0.618_033_988_749_894_9).fract()
}

/// Over how long so many watchers take turns.
fn turns_of(watchers: usize) -> Duration {
    TURN.saturating_mul(u32::try_from(watchers).unwrap_or(u32::MAX)).min(TURNS_MAX)
}

/// How long to wait before the next look, with so many bytes for each of so many watchers.
fn pause_for(bytes: usize, watchers: usize) -> Duration {
    let bytes = (bytes as u64).saturating_mul(watchers as u64);
    Duration::from_millis(bytes.saturating_mul(1_000) / BYTES_PER_SECOND).clamp(WATCH_INTERVAL, PAUSE_MAX)
}

/// One client that watches a poll.
pub(crate) struct Watcher {
    /// Keeps the feed in the list of feeds.
    _feed: Arc<watch::Receiver<Arc<Views>>>,
    newest: watch::Receiver<Arc<Views>>,
    viewer: Viewer,
    caller: Caller,
    serving: CancellationToken,
    /// Tags of the events that were sent last.
    poll: Option<u64>,
    results: Option<u64>,
    beat: u64,
    /// When its turn comes, from 0 to 1.
    turn: f64,
    is_new: bool,
}

impl Watcher {
    /// The bytes of the stream. It ends after the final result, with the server, and with the credential.
    pub(crate) fn into_frames(self) -> impl Stream<Item = Bytes> + Send {
        stream::unfold(self, |mut watcher| async move {
            let frame = watcher.next().await?;
            Some((frame, watcher))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        if std::mem::take(&mut self.is_new) {
            return Some(Bytes::from_static(RETRY.as_bytes()));
        }
        loop {
            let views = self.newest.borrow_and_update().clone();
            if let Some(frame) = self.unsent(&views) {
                return Some(frame);
            }
            if views.failed || views.of(self.viewer).is_final {
                return None;
            }
            tokio::select! {
                changed = self.newest.changed() => changed.ok()?,
                () = self.serving.cancelled() => return None,
                _ = self.caller.ended() => return None,
            }
            let wait = self.newest.borrow().turns.mul_f64(self.turn);
            if wait >= TURN_MIN {
                tokio::time::sleep(wait).await;
            }
        }
    }

    /// The next event that this client has not got.
    fn unsent(&mut self, views: &Views) -> Option<Bytes> {
        let view = views.of(self.viewer);
        let beat = std::mem::replace(&mut self.beat, views.beat);
        if self.poll.replace(view.poll.tag) != Some(view.poll.tag) {
            return Some(view.poll.bytes.clone());
        }
        if let Some(results) = &view.results
            && self.results.replace(results.tag) != Some(results.tag)
        {
            return Some(results.bytes.clone());
        }
        (beat != views.beat).then(|| Bytes::from_static(SILENCE))
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, future::join_all, stream::BoxStream};
    use votestream_core::{
        TimeBounds, Visibility,
        model::poll::FinalResult,
        port::{Group, PollStore},
    };
    use votestream_testkit::memory::Memory;

    use super::*;
    use crate::testing::{memory, poll};

    struct House {
        memory: Memory,
        feeds: Arc<Feeds>,
        serving: CancellationToken,
    }

    fn id() -> PollId {
        PollId::new("p").unwrap()
    }

    impl House {
        async fn open(visibility: Visibility) -> Self {
            let memory = memory();
            memory.set_now(5_000);
            PollStore::create(&memory, &poll("p", 0, 10_000).with_visibility(visibility)).await.unwrap();
            let ports = memory.ports();
            let snapshots = Snapshots::new(ports.clone(), TimeBounds::ONE_MACHINE, Duration::from_millis(100));
            let serving = CancellationToken::new();
            let feeds = Feeds::new(Arc::new(snapshots), ports.clock, serving.clone());
            Self { memory, feeds, serving }
        }

        fn count(&self, votes: i64) {
            for group in [Group::Tally, Group::Persist] {
                self.memory.add_to_tally("p", group, "s", &[("x", votes)]);
            }
        }

        async fn watch(&self, viewer: Viewer) -> BoxStream<'static, Bytes> {
            let watcher = self.feeds.watch(viewer, Caller::everybody(), id(), None).await.unwrap().unwrap();
            watcher.into_frames().boxed()
        }
    }

    fn text(frame: Option<Bytes>) -> String {
        String::from_utf8(frame.unwrap().to_vec()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_watchers_share_one_reader_and_its_bytes() {
        let house = House::open(Visibility::Live).await;
        let mut watchers: Vec<_> = join_all((0..1_000).map(|_| house.watch(Viewer::Reader))).await;
        assert_eq!(house.feeds.feeds.lock().len(), 1);
        for expected in ["retry: ", "event: poll\n", "event: interim\n"] {
            let frames: Vec<_> = join_all(watchers.iter_mut().map(StreamExt::next)).await;
            let frames: Vec<Bytes> = frames.into_iter().map(Option::unwrap).collect();
            assert!(text(Some(frames[0].clone())).starts_with(expected), "{:?}", frames[0]);
            assert!(frames.iter().all(|frame| frame.as_ptr() == frames[0].as_ptr()), "{expected}");
        }
        house.count(7);
        let frames: Vec<_> = join_all(watchers.iter_mut().map(StreamExt::next)).await;
        assert!(frames.iter().all(|frame| text(frame.clone()).contains("\"total_counted\":7")), "{:?}", frames[0]);
        // Whoever leaves costs nothing any more, and the last one takes the reader along.
        drop(watchers);
        let gone = async {
            while !house.feeds.feeds.lock().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_watcher_gets_the_latest_state_only() {
        let house = House::open(Visibility::Live).await;
        let mut watcher = house.watch(Viewer::Reader).await;
        for _ in 0..3 {
            watcher.next().await.unwrap();
        }
        for _ in 0..5 {
            house.count(1);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(text(watcher.next().await).contains("\"total_counted\":5"));
        // Nothing happens, which is said now and then.
        assert_eq!(text(watcher.next().await).as_bytes(), SILENCE);
        house.serving.cancel();
        assert_eq!(watcher.next().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn readers_get_no_count_before_its_time_and_managers_do() {
        let house = House::open(Visibility::OnRelease).await;
        house.count(31_337);
        let (mut reader, mut manager) = (house.watch(Viewer::Reader).await, house.watch(Viewer::Manager).await);
        for _ in 0..2 {
            let frame = text(reader.next().await);
            assert!(!frame.contains("31337"), "{frame}");
            manager.next().await.unwrap();
        }
        assert!(text(manager.next().await).contains("\"total_counted\":31337"));
        house
            .memory
            .finish(&id(), &FinalResult { votes: vec![31_337, 0], finalized_at: Timestamp(17_000) })
            .await
            .unwrap();
        let state = text(reader.next().await);
        assert!(state.contains("POLL_STATE_FINAL") && !state.contains("31337"), "{state}");
        assert!(text(manager.next().await).contains("POLL_STATE_FINAL"));
        assert!(text(manager.next().await).starts_with("event: final\n"));
        assert_eq!(manager.next().await, None, "nothing is left to come");

        assert_eq!(text(reader.next().await).as_bytes(), SILENCE);
        house.memory.release(&id(), Timestamp(18_000)).await.unwrap();
        assert!(text(reader.next().await).contains("\"hidden\":\"\""));
        let last = text(reader.next().await);
        assert!(last.starts_with("event: final\n") && last.contains("31337"), "{last}");
        assert_eq!(reader.next().await, None);
        // Whoever has seen it is told not to come back.
        let seen = last.split("\nid: ").nth(1).unwrap().split('\n').next().unwrap();
        let again = house.feeds.watch(Viewer::Reader, Caller::everybody(), id(), Some(seen)).await;
        assert!(matches!(again, Ok(None)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_fails_ends_the_streams_and_a_new_one_begins() {
        let house = House::open(Visibility::Live).await;
        let mut watcher = house.watch(Viewer::Reader).await;
        for _ in 0..3 {
            watcher.next().await.unwrap();
        }
        house.memory.fail_next(3 * FAILURES_MAX);
        let end = async { while watcher.next().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(600), end).await.unwrap();
        house.memory.fail_next(0);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut again = house.watch(Viewer::Reader).await;
        assert!(text(again.next().await).starts_with("retry: "));
        assert!(text(again.next().await).starts_with("event: poll\n"));
        drop(watcher);
    }

    #[tokio::test(start_paused = true)]
    async fn watched_polls_are_bounded() {
        let house = House::open(Visibility::Live).await;
        let mut watchers = Vec::new();
        for at in 0..=FEEDS_MAX {
            let id = format!("q{at}");
            PollStore::create(&house.memory, &poll(&id, 0, 10_000)).await.unwrap();
            let id = PollId::new(&id).unwrap();
            let watcher = house.feeds.watch(Viewer::Reader, Caller::everybody(), id, None).await;
            match watcher {
                Ok(watcher) => watchers.push(watcher),
                Err(error) => {
                    assert_eq!((at, matches!(*error, CallError::Busy(_))), (FEEDS_MAX, true));
                    watchers.clear();
                    drop(house.watch(Viewer::Reader).await);
                    return;
                }
            }
        }
        panic!("more than {FEEDS_MAX} polls are watched");
    }

    #[test]
    fn many_watchers_take_turns() {
        assert_eq!(turns_of(1), TURN);
        assert_eq!(turns_of(1_000), Duration::from_millis(20));
        assert_eq!(turns_of(usize::MAX), TURNS_MAX);
        assert!(TURNS_MAX < WATCH_INTERVAL);
        // However many come, their turns are spread evenly.
        let mut turns: Vec<f64> = (0..1_000).map(turn_of).collect();
        turns.sort_by(f64::total_cmp);
        assert!(turns.windows(2).all(|pair| pair[1] - pair[0] < 0.004) && turns[999] < 1.0, "{turns:?}");
    }

    #[test]
    fn large_polls_with_many_watchers_come_less_often() {
        assert_eq!(pause_for(200, 1), WATCH_INTERVAL);
        assert_eq!(pause_for(200, 10_000), WATCH_INTERVAL);
        assert_eq!(pause_for(60_000, 1_000), Duration::from_millis(1_788));
        assert_eq!(pause_for(60_000, 10_000), PAUSE_MAX);
        assert_eq!(pause_for(usize::MAX, usize::MAX), PAUSE_MAX);
    }
}
