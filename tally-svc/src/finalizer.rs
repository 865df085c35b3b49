//! Makes the results of closed polls final.
//!
//! A poll can become final once the `persist` rows whose watermark has passed `closes_at + L` cover the whole hash
//! range: then no vote that could still count is missing. Must read the rows before the tallies, both strongly
//! consistent. Must never treat a missing row as an empty shard. Several processes may do this at once: the store keeps
//! the first result.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use votestream_core::{
    Closing, HashRange, HashRanges, Moment, Poll, PollId, ShardId, TimeBounds, Timestamp,
    consume::tally::sums,
    model::poll::FinalResult,
    mutation::{self, Mutation},
    port::{Group, Ports, ShardRow, VoteStream},
    record::batch::encode_marker,
};

use crate::{convert::timestamp, status::CallError};

/// How often due polls are checked.
const TICK: Duration = Duration::from_millis(200);
/// How often idle shards get a marker while a poll waits for them.
const MARKER_INTERVAL: Duration = Duration::from_secs(1);
/// How often the stored polls are listed, for those that other processes have created or closed.
const RESCAN_INTERVAL: Duration = Duration::from_secs(5);
/// How long a poll waits after a failure.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Most polls in memory. If there are more, those that close last are dropped; a later listing finds them again.
const UNFINISHED_MAX: usize = 10_000;
/// Most polls of one call to the store.
const PAGE: usize = 100;
/// Most polls that one tick finishes.
const FINISHED_PER_TICK_MAX: usize = 64;
/// Most markers that are put at the same time.
const MARKERS_AT_ONCE: usize = 16;
/// Most shards that a progress message names.
const SHARDS_NAMED_MAX: usize = 20;

/// The latest time up to which everything is committed over the whole hash range, by all rows, ended ones included.
pub(crate) fn horizon(rows: &[ShardRow]) -> Option<Timestamp> {
    if mutation::is_active(Mutation::FinalWithoutCoverage) {
        let known = rows.iter().filter(|row| row.started && !row.progress.ended);
        return known.map(|row| row.progress.watermark).min();
    }
    let mut started: Vec<&ShardRow> = rows.iter().filter(|row| row.started).collect();
    started.sort_unstable_by_key(|row| std::cmp::Reverse(row.progress.watermark));
    let covers = |count: usize| HashRanges::union_of(started[..count].iter().map(|row| row.range)).is_all();
    if !covers(started.len()) {
        return None;
    }
    // Search for the shortest prefix that covers everything; more rows never cover less.
    let (mut short, mut long) = (0, started.len());
    while long - short > 1 {
        let middle = short + (long - short) / 2;
        if covers(middle) { long = middle } else { short = middle }
    }
    started.get(long - 1).map(|row| row.progress.watermark)
}

/// Whether records that may hold votes of the poll were lost before they were counted. Then no recount can make its
/// result official: those votes are in no store.
pub(crate) fn may_lack_votes(poll: &Poll, rows: &[ShardRow], bounds: &TimeBounds) -> bool {
    rows.iter().filter_map(|row| row.lost).any(|lost| lost.concerns(poll, bounds))
}

/// Text for people: what is missing before a poll can become final.
pub(crate) fn progress(poll: &Poll, rows: &[ShardRow], now: Timestamp, bounds: &TimeBounds) -> String {
    let required = poll.closes_at.plus(bounds.late_after());
    if now < poll.closes_at {
        return format!(
            "the poll closes at {} and can be final after {}",
            timestamp(poll.closes_at),
            timestamp(required)
        );
    }
    let mut text = format!("the poll closed at {}", timestamp(poll.closes_at));
    let mut say = |part: std::fmt::Arguments<'_>| text.push_str(&part.to_string());
    if poll.needs_recount && may_lack_votes(poll, rows, bounds) {
        say(format_args!(
            "; records that may hold votes of this poll were lost, so it gets no official result, and its counts may be too low"
        ));
    } else if poll.needs_recount {
        say(format_args!("; stored data contradict each other, so the votes must be recounted first"));
    }
    let done = |row: &&ShardRow| row.started && row.progress.watermark >= required;
    let mut missing = HashRanges::from(HashRange::ALL);
    for row in rows.iter().filter(done) {
        missing = missing.without(&row.range);
    }
    if missing.is_empty() {
        if !poll.needs_recount {
            say(format_args!("; all votes are counted, the result is about to be stored"));
        }
        return text;
    }
    say(format_args!("; all shards must have been processed up to {}", timestamp(required)));
    let behind = || rows.iter().filter(|row| !done(row) && missing.overlaps(&row.range));
    for row in behind().take(SHARDS_NAMED_MAX) {
        match row.started {
            true => say(format_args!("; {} is processed up to {}", row.shard, timestamp(row.progress.watermark))),
            false => say(format_args!("; {} waits for its parents", row.shard)),
        }
    }
    let unnamed = behind().count().saturating_sub(SHARDS_NAMED_MAX);
    if unnamed > 0 {
        say(format_args!("; and {unnamed} more shards"));
    }
    if !HashRanges::union_of(rows.iter().map(|row| row.range)).is_all() {
        say(format_args!("; some shards are not being processed at all yet"));
    }
    text
}

/// A poll that is not final, as far as this process knows.
#[derive(Clone, Copy, Debug)]
struct Unfinished {
    closes_at: Timestamp,
    needs_recount: bool,
    /// After a failure: the next try must not come before this moment.
    retry_at: Option<Instant>,
}

/// A poll that closed at least L ago.
struct Due {
    id: PollId,
    /// `closes_at + L`.
    required: Timestamp,
    needs_recount: bool,
}

/// When this process last did its periodic work.
#[derive(Default)]
struct Last {
    scan: Option<Instant>,
    marker: Option<(Instant, Timestamp)>,
    /// The latest horizon so far.
    horizon: Timestamp,
}

/// The finalizer; see the module.
pub struct Finalizer {
    ports: Ports,
    bounds: TimeBounds,
    unfinished: Mutex<BTreeMap<PollId, Unfinished>>,
}

impl Finalizer {
    /// A finalizer over these ports.
    pub fn new(ports: Ports, bounds: TimeBounds) -> Self {
        Self { ports, bounds, unfinished: Mutex::default() }
    }

    /// Notes a stored poll, so that it becomes final without waiting for the next listing.
    pub(crate) fn note(&self, poll: &Poll) {
        let mut unfinished = self.unfinished.lock();
        if poll.final_result.is_some() {
            unfinished.remove(&poll.id);
            return;
        }
        let retry_at = unfinished.get(&poll.id).and_then(|known| known.retry_at);
        let (closes_at, needs_recount) = (poll.closes_at, poll.needs_recount);
        unfinished.insert(poll.id.clone(), Unfinished { closes_at, needs_recount, retry_at });
        if unfinished.len() > UNFINISHED_MAX {
            let last = unfinished.iter().max_by_key(|(_, poll)| poll.closes_at).map(|(id, _)| id.clone());
            if let Some(last) = last {
                unfinished.remove(&last);
            }
        }
    }

    /// Makes due polls final until `shutdown`. Every step may be interrupted and repeated.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Last::default();
        let steps = async {
            loop {
                ticks.tick().await;
                if self.step(&mut last).await.is_err() {
                    // The failure was logged where it happened.
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        };
        shutdown.run_until_cancelled(steps).await;
    }

    async fn step(&self, last: &mut Last) -> Result<(), CallError> {
        if last.scan.is_none_or(|at| self.since(at) >= RESCAN_INTERVAL) {
            self.scan().await?;
            last.scan = Some(self.ports.clock.instant());
        }
        let due = self.due(Moment::of(&*self.ports.clock), last.horizon);
        let Some(latest) = due.iter().map(|poll| poll.required).max() else {
            return Ok(());
        };
        // Read the rows before the tallies: then the tallies contain everything that the rows say is committed.
        let rows = self.ports.leases.list(Group::Persist).await?;
        let horizon = horizon(&rows).unwrap_or(Timestamp::ZERO);
        last.horizon = last.horizon.max(horizon);
        let covered = due.iter().filter(|poll| poll.required <= horizon && !poll.needs_recount);
        for Due { id, .. } in covered.take(FINISHED_PER_TICK_MAX) {
            if self.finish(id, horizon).await.is_err()
                && let Some(poll) = self.unfinished.lock().get_mut(id)
            {
                poll.retry_at = Some(self.ports.clock.instant() + RETRY_AFTER);
            }
        }
        // A marker that arrived before the latest poll was due did not move its shard far enough.
        let marked = last.marker.is_some_and(|(at, stamp)| stamp >= latest && self.since(at) < MARKER_INTERVAL);
        if horizon < latest && !marked {
            let Moment { now, instant } = Moment::of(&*self.ports.clock);
            last.marker = Some((instant, now));
            put_markers(&*self.ports.stream, |_| true).await?;
        }
        Ok(())
    }

    /// Polls whose result may be stored as soon as everything is committed up to their time, in the order in which they
    /// closed. A poll that waits for a recount is included until then: before, a recount proves nothing.
    fn due(&self, Moment { now, instant }: Moment, seen: Timestamp) -> Vec<Due> {
        let unfinished = self.unfinished.lock();
        let rested = |poll: &Unfinished| poll.retry_at.is_none_or(|at| at <= instant);
        let mut due: Vec<_> = unfinished
            .iter()
            .filter(|(_, poll)| rested(poll))
            .map(|(id, poll)| Due {
                id: id.clone(),
                required: poll.closes_at.plus(self.bounds.late_after()),
                needs_recount: poll.needs_recount,
            })
            .filter(|poll| poll.required <= now && !(poll.needs_recount && poll.required <= seen))
            .collect();
        due.sort_by_key(|poll| poll.required);
        due
    }

    fn since(&self, at: Instant) -> Duration {
        self.ports.clock.instant().saturating_duration_since(at)
    }

    async fn scan(&self) -> Result<(), CallError> {
        let mut after = None;
        loop {
            let page = self.ports.polls.list(after.as_ref(), PAGE).await?;
            for poll in &page {
                self.note(poll);
                if poll.closing == Closing::Asked && poll.final_result.is_none() {
                    self.settle(&poll.id).await?;
                }
            }
            match page.last() {
                Some(last) if page.len() >= PAGE => after = Some(last.id.clone()),
                _ => return Ok(()),
            }
        }
    }

    /// Stores the final result of a poll. Everything up to `horizon` must be committed.
    async fn finish(&self, id: &PollId, horizon: Timestamp) -> Result<(), CallError> {
        let Some(poll) = self.ports.polls.get(id).await? else {
            self.unfinished.lock().remove(id);
            return Ok(());
        };
        self.note(&poll);
        if poll.final_result.is_some() || poll.needs_recount {
            return Ok(());
        }
        if poll.closing == Closing::Asked {
            return self.settle(id).await;
        }
        if poll.closes_at.plus(self.bounds.late_after()) > horizon {
            return Ok(());
        }
        let tallies = self.ports.tallies.read(id).await?;
        let votes = sums(&poll, Group::Persist, &tallies)?;
        let result = FinalResult { votes, finalized_at: self.ports.clock.now() };
        match self.ports.polls.finish(id, &result).await? {
            Some(stored) => {
                if stored.final_result.is_some() {
                    tracing::info!(poll_id = %id, "the result is final");
                }
                self.note(&stored);
            }
            None => {
                self.unfinished.lock().remove(id);
            }
        }
        Ok(())
    }

    /// Completes a ClosePoll that was begun.
    async fn settle(&self, id: &PollId) -> Result<(), CallError> {
        let closes_at = self.ports.clock.now().plus(self.bounds.settle_margin());
        if !self.ports.clock.is_trusted() {
            // A time from this clock could exclude acknowledged votes. Another process completes it, or this one later.
            return Ok(());
        }
        if let Some(poll) = self.ports.polls.close(id, closes_at).await? {
            self.note(&poll);
        }
        Ok(())
    }
}

/// Puts a record without votes into every open shard that `wanted` selects. Its arrival moves the watermark of an idle
/// shard.
pub(crate) async fn put_markers(stream: &dyn VoteStream, wanted: impl Fn(&ShardId) -> bool) -> Result<(), CallError> {
    let shards = stream.list_shards().await?;
    let marker = encode_marker();
    let puts = futures::stream::iter(shards.into_iter().filter(|shard| shard.open && wanted(&shard.id)))
        .map(|shard| stream.put(shard.range.start, marker.clone()))
        .buffer_unordered(MARKERS_AT_ONCE);
    let failures: Vec<_> = puts.filter_map(|put| std::future::ready(put.err())).collect().await;
    failures.into_iter().next().map_or(Ok(()), |error| Err(error.into()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use votestream_core::port::PollStore;

    use votestream_testkit::memory::Memory;

    use super::*;
    use crate::testing::{memory, poll, row};

    const BOUNDS: TimeBounds = TimeBounds::ONE_MACHINE;
    const L: i64 = 6_000;
    const MIDDLE: u128 = u128::MAX / 2;

    fn halves(left: i64, right: i64) -> Vec<ShardRow> {
        vec![row("left", (0, MIDDLE), left), row("right", (MIDDLE + 1, u128::MAX), right)]
    }

    proptest! {
        #[test]
        fn horizon_is_the_latest_time_that_is_covered(
            rows in prop::collection::vec((0u128..5, 0u128..5, 1i64..6, prop::bool::weighted(0.9)), 0..9)
        ) {
            let hash = |x: u128| if x == 5 { u128::MAX } else { x * (u128::MAX / 5) };
            let rows: Vec<_> = rows
                .into_iter()
                .map(|(a, b, watermark, started)| {
                    let end = if a.max(b) == 4 { u128::MAX } else { hash(a.max(b) + 1) - 1 };
                    ShardRow { started, ..row("s", (hash(a.min(b)), end), watermark) }
                })
                .collect();
            let covered = |at: i64| {
                let passed = |row: &&ShardRow| row.started && row.progress.watermark >= Timestamp(at);
                HashRanges::union_of(rows.iter().filter(passed).map(|row| row.range)).is_all()
            };
            let latest = (1..6).rev().find(|at| covered(*at)).map(Timestamp);
            prop_assert_eq!(horizon(&rows), latest);
        }
    }

    #[test]
    fn ended_rows_count_and_missing_rows_are_gaps() {
        assert_eq!(horizon(&[]), None);
        assert_eq!(horizon(&halves(5, 3)), Some(Timestamp(3)));
        assert_eq!(horizon(&halves(5, 3)[..1]), None);
        // A parent that ended early, and a child that is further.
        let mut split = halves(5, 9);
        split[0].progress.ended = true;
        split.push(ShardRow { started: false, ..row("blank", (0, MIDDLE), 0) });
        assert_eq!(horizon(&split), Some(Timestamp(5)));
        split.push(row("child", (0, MIDDLE), 7));
        assert_eq!(horizon(&split), Some(Timestamp(7)));
    }

    #[test]
    fn progress_names_what_is_missing() {
        let stored = poll("p", 0, 10_000);
        let at = |rows: &[ShardRow], now| progress(&stored, rows, Timestamp(now), &BOUNDS);
        let rows = halves(10_000 + L, 3_000);
        assert_eq!(
            at(&rows, 9_999),
            "the poll closes at 1970-01-01T00:00:10Z and can be final after 1970-01-01T00:00:16Z",
        );
        let closed = "the poll closed at 1970-01-01T00:00:10Z";
        let shards = format!("{closed}; all shards must have been processed up to 1970-01-01T00:00:16Z");
        assert_eq!(at(&rows, 20_000), format!("{shards}; right is processed up to 1970-01-01T00:00:03Z"));
        assert_eq!(at(&rows[..1], 20_000), format!("{shards}; some shards are not being processed at all yet"));
        let done = halves(20_000, 20_000);
        assert_eq!(at(&done, 20_000), format!("{closed}; all votes are counted, the result is about to be stored"));
        let flagged = Poll { needs_recount: true, ..stored.clone() };
        assert_eq!(
            progress(&flagged, &done, Timestamp(20_000), &BOUNDS),
            format!("{closed}; stored data contradict each other, so the votes must be recounted first"),
        );
    }

    /// A finalizer with a stored poll that closes at 10 s; the clock shows `now`.
    async fn finalizer(now: i64) -> (Memory, Finalizer) {
        let memory = memory();
        memory.set_now(now);
        PollStore::create(&memory, &poll("p", 0, 10_000)).await.unwrap();
        memory.add_to_tally("p", Group::Persist, "parent", &[("x", 5), ("y", -1)]);
        memory.add_to_tally("p", Group::Persist, "left", &[("x", -2), ("y", 4)]);
        memory.add_to_tally("p", Group::Tally, "left", &[("x", 99)]);
        let finalizer = Finalizer::new(memory.ports(), BOUNDS);
        (memory, finalizer)
    }

    #[tokio::test(start_paused = true)]
    async fn final_only_once_due_and_covered() {
        let (memory, finalizer) = finalizer(10_000 + L - 1).await;
        let mut last = Last::default();
        memory.set_rows(Group::Persist, halves(10_000 + L, 10_000 + L));
        finalizer.step(&mut last).await.unwrap();
        assert_eq!((memory.poll("p").final_result, memory.markers()), (None, 0), "not due");

        memory.set_now(10_000 + L);
        for rows in [halves(10_000 + L, 10_000 + L - 1), halves(99_999, 0)[..1].to_vec(), vec![]] {
            memory.set_rows(Group::Persist, rows);
            finalizer.step(&mut last).await.unwrap();
            assert_eq!(memory.poll("p").final_result, None);
        }
        assert_eq!(memory.markers(), 2, "one for each open shard, and not again at once");
        tokio::time::advance(MARKER_INTERVAL).await;
        finalizer.step(&mut last).await.unwrap();
        assert_eq!(memory.markers(), 4);

        let mut rows = halves(10_000 + L, 10_000 + L);
        rows[0].progress.ended = true;
        memory.set_rows(Group::Persist, rows);
        finalizer.step(&mut last).await.unwrap();
        let result = FinalResult { votes: vec![3, 3], finalized_at: Timestamp(10_000 + L) };
        assert_eq!(memory.poll("p").final_result, Some(result.clone()));

        memory.add_to_tally("p", Group::Persist, "left", &[("x", 1)]);
        memory.set_now(99_999);
        tokio::time::advance(RESCAN_INTERVAL).await;
        finalizer.step(&mut last).await.unwrap();
        assert_eq!(memory.poll("p").final_result, Some(result), "final is final");
        assert_eq!(memory.markers(), 4, "nothing is left to wait for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flagged_poll_waits_for_its_recount() {
        let (memory, finalizer) = finalizer(60_000).await;
        let id = PollId::new("p").unwrap();
        memory.set_needs_recount(&id, true).await.unwrap();
        let mut last = Last::default();
        finalizer.step(&mut last).await.unwrap();
        assert_eq!(memory.markers(), 2, "the recount, too, waits for every shard");
        memory.set_rows(Group::Persist, halves(50_000, 50_000));
        finalizer.step(&mut last).await.unwrap();
        tokio::time::advance(MARKER_INTERVAL).await;
        memory.fail_next(1);
        finalizer.step(&mut last).await.unwrap();
        assert_eq!(memory.markers(), 2, "nothing is read or marked while people have yet to act");
        memory.fail_next(0);
        // Flagged by another process after it was listed.
        finalizer.note(&poll("p", 0, 10_000));
        finalizer.step(&mut last).await.unwrap();
        assert_eq!(memory.poll("p").final_result, None);

        memory.set_needs_recount(&id, false).await.unwrap();
        tokio::time::advance(RESCAN_INTERVAL).await;
        finalizer.step(&mut last).await.unwrap();
        assert!(memory.poll("p").final_result.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn contradicting_tallies_and_failing_stores_make_nothing_final() {
        let (memory, finalizer) = finalizer(60_000).await;
        memory.set_rows(Group::Persist, halves(50_000, 50_000));
        memory.add_to_tally("p", Group::Persist, "parent", &[("x", -100)]);
        let mut last = Last::default();
        finalizer.step(&mut last).await.unwrap();
        assert_eq!(memory.poll("p").final_result, None);

        memory.add_to_tally("p", Group::Persist, "parent", &[("x", 100)]);
        tokio::time::advance(RETRY_AFTER).await;
        memory.fail_next(1);
        assert!(finalizer.step(&mut last).await.is_err());
        finalizer.step(&mut last).await.unwrap();
        assert!(memory.poll("p").final_result.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn it_runs_by_itself_and_stops_when_told() {
        let (memory, finalizer) = finalizer(60_000).await;
        let (finalizer, shutdown) = (Arc::new(finalizer), CancellationToken::new());
        let running = tokio::spawn({
            let (finalizer, shutdown) = (finalizer.clone(), shutdown.clone());
            async move { finalizer.run(shutdown).await }
        });
        tokio::time::sleep(TICK * 3).await;
        assert_eq!(memory.markers(), 2);
        memory.set_rows(Group::Persist, halves(50_000, 50_000));
        tokio::time::sleep(TICK * 2).await;
        assert!(memory.poll("p").final_result.is_some());
        shutdown.cancel();
        running.await.unwrap();
    }

    #[test]
    fn the_polls_in_memory_are_bounded() {
        let memory = memory();
        let finalizer = Finalizer::new(memory.ports(), BOUNDS);
        for closes_at in 1..=UNFINISHED_MAX as i64 + 3 {
            finalizer.note(&poll(&closes_at.to_string(), 0, closes_at));
        }
        assert_eq!(finalizer.unfinished.lock().len(), UNFINISHED_MAX);
        assert!(finalizer.unfinished.lock().contains_key(&PollId::new("1").unwrap()));
    }
}
