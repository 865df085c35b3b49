//! Results as they change, as server-sent events (the HTML standard, section 9.2).
//!
//! Owns one reader per watched poll, which makes the bytes that all its watchers share. Must never let a reader's bytes
//! reach somebody else than those who may see them: each view of a poll has bytes of its own. Must never keep anything
//! for a watcher who has left, nor more than the latest state for one who is slow.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
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
    snapshot::{Snapshot, Snapshots},
    status::CallError,
    viewer::Viewer,
};

/// Most polls that are watched in one process. Each is read some times a second.
const FEEDS_MAX: usize = 1_000;
/// Bytes that the watchers of a poll get in a second, all together, before its events come less often.
const BYTES_PER_SECOND: u64 = 32 << 20;
/// Longest pause between two looks at a poll, however many watch it.
const PAUSE_MAX: Duration = Duration::from_secs(5);
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
    fn new(kind: &str, tag: u64, with_id: bool, data: &impl Serialize) -> Self {
        // JSON has no line breaks, so one data line takes it. The messages always can be written.
        let data = serde_json::to_string(data).unwrap_or_default();
        let id = if with_id { format!("id: {tag:016x}\n") } else { String::new() };
        Self { bytes: format!("event: {kind}\n{id}data: {data}\n\n").into(), tag }
    }
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

fn view_of(snapshot: &Snapshot, viewer: Viewer, now: Timestamp) -> View {
    let hidden = viewer.check(&snapshot.poll).err().map(|hidden| hidden.to_string());
    let shown = hidden.is_none();
    let data = PollData { poll: convert::poll(&snapshot.poll, now).into(), hidden: hidden.unwrap_or_default() };
    let tag = xxh3_64(&serde_json::to_vec(&data).unwrap_or_default());
    let poll = Event::new("poll", tag, false, &data);
    let results = shown.then(|| {
        let last = snapshot.poll.final_result.as_ref();
        let counts = snapshot.submitted.iter().chain(&snapshot.counted).copied();
        let tag = xxh3_64(&counts.chain([u64::from(last.is_some())]).flat_map(u64::to_le_bytes).collect::<Vec<_>>());
        match last {
            Some(result) => Event::new("final", tag, true, &json::Final::from(final_response(&snapshot.poll, result))),
            None => Event::new("interim", tag, true, &json::Interim::from(interim_response(snapshot))),
        }
    });
    View { poll, results, is_final: shown && snapshot.poll.final_result.is_some() }
}

/// The polls that are watched.
pub(crate) struct Feeds {
    snapshots: Arc<Snapshots>,
    clock: Arc<dyn Clock>,
    /// The newest views of each watched poll. A feed lives as long as somebody watches.
    feeds: Mutex<HashMap<PollId, Weak<watch::Receiver<Arc<Views>>>>>,
    serving: CancellationToken,
}

impl Feeds {
    pub(crate) fn new(snapshots: Arc<Snapshots>, clock: Arc<dyn Clock>, serving: CancellationToken) -> Arc<Self> {
        Arc::new(Self { snapshots, clock, feeds: Mutex::default(), serving })
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
        let (views, feed) = watch::channel(Arc::new(self.views(snapshot, 0)));
        let feed = Arc::new(feed);
        feeds.insert(id.clone(), Arc::downgrade(&feed));
        tokio::spawn(self.clone().read(id.clone(), views));
        Ok(feed)
    }

    fn views(&self, snapshot: &Snapshot, beat: u64) -> Views {
        let now = self.clock.now();
        let reader = view_of(snapshot, Viewer::Reader, now);
        // Nothing is hidden from readers: all see the same bytes.
        let same = reader.results.is_some();
        let manager = if same { reader.clone() } else { view_of(snapshot, Viewer::Manager, now) };
        Views { reader, manager, beat, failed: false }
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
                    let after = self.views(&snapshot, beat);
                    if after.differs(&before) {
                        views.send_replace(Arc::new(after));
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
