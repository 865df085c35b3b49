//! Seals batches and puts them into the stream, one at a time for each lane.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use super::{
    BUSY_VOTES, LaneConfig, Outcome, Producer,
    queue::{Lane, QueuedBatch},
};
use crate::{
    HashRange, HashRanges, ShardId, Timestamp,
    mutation::{self, Mutation},
    observe::{metrics, trace},
    port::{Effect, PortError, Stored, backoff::Backoff},
    record::batch::BatchId,
};

/// First pause before a retry.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// Longest pause before a retry.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// How long a lane sleeps when nothing wakes it.
const WAKE_AT_LATEST: Duration = Duration::from_secs(3_600);

/// The hash ranges of batches that are sealed, and neither stored nor given up.
///
/// While a batch with an overlapping range is pending, a lane seals nothing: that batch may hold older votes of the
/// same users.
#[derive(Default)]
pub(super) struct PendingBatches {
    ranges: Mutex<Vec<(u64, HashRanges)>>,
    changed: Notify,
    token: AtomicU64,
}

/// Takes the batch off the list when sending it ends, in whatever way.
struct PendingBatch<'a> {
    batches: &'a PendingBatches,
    token: u64,
}

impl PendingBatches {
    fn overlaps(&self, range: &HashRange) -> bool {
        self.ranges.lock().iter().any(|(_, pending)| pending.overlaps(range))
    }

    fn add(&self, range: HashRange) -> PendingBatch<'_> {
        let token = self.token.fetch_add(1, Ordering::Relaxed);
        self.ranges.lock().push((token, range.into()));
        PendingBatch { batches: self, token }
    }
}

impl PendingBatch<'_> {
    fn narrow(&self, left: &HashRanges) {
        let mut ranges = self.batches.ranges.lock();
        if let Some((_, range)) = ranges.iter_mut().find(|(token, _)| *token == self.token) {
            range.clone_from(left);
        }
    }
}

impl Drop for PendingBatch<'_> {
    fn drop(&mut self) {
        self.batches.ranges.lock().retain(|(token, _)| *token != self.token);
        self.batches.changed.notify_waiters();
    }
}

/// Puts a lane's batches into the stream until its shard is closed.
pub(super) async fn run_lane(producer: Weak<Producer>, lane: Arc<Lane>, stopped: CancellationToken) {
    loop {
        let Some(producer) = producer.upgrade() else { return };
        let linger = match lane.next_step(&producer) {
            Step::Send(batch, pending, number) => {
                let (span, context) = span_of(&lane, &batch, number);
                let context = context.as_deref().unwrap_or_default();
                producer.send(&lane, *batch, pending, number, context).instrument(span).await;
                continue;
            }
            Step::Blocked => {
                let changed = producer.pending.changed.notified();
                if producer.pending.overlaps(&lane.range) {
                    tokio::select! {
                        biased;
                        () = stopped.cancelled() => return,
                        () = changed => {}
                    }
                }
                continue;
            }
            Step::Retired => return,
            Step::Wait(linger) => linger,
        };
        // Waits without a strong reference, so that the lanes end when the producer is dropped.
        drop(producer);
        tokio::select! {
            biased;
            () = stopped.cancelled() => return,
            () = lane.wake.notified() => {}
            () = tokio::time::sleep(linger.unwrap_or(WAKE_AT_LATEST)) => {}
        }
    }
}

/// The span of a batch on its way into the stream, and its `traceparent`. It is a child of the first trace that the
/// batch belongs to, and linked to the others.
fn span_of(lane: &Lane, batch: &QueuedBatch, number: u64) -> (Span, Option<Arc<str>>) {
    let Some((first, others)) = batch.traceparents.split_first() else { return (Span::none(), None) };
    let (span, context) = trace::child(first, || {
        tracing::info_span!(
            target: trace::TARGET, "put batch", otel.kind = "producer", trace_id = tracing::field::Empty,
            shard = %lane.shard, votes = batch.votes.len(), number,
        )
    });
    trace::link(&span, others.iter().map(|other| &**other));
    (span, context)
}

enum Step<'a> {
    Send(Box<QueuedBatch>, PendingBatch<'a>, u64),
    /// Wait for a vote, or at most this long for the linger to end.
    Wait(Option<Duration>),
    /// Wait for a batch with an overlapping range, of the lane of a closed shard.
    Blocked,
    Retired,
}

impl Lane {
    fn next_step<'a>(&self, producer: &'a Producer) -> Step<'a> {
        let mut state = self.state.lock();
        let Some(front) = state.queue.front() else {
            return if state.retired { Step::Retired } else { Step::Wait(None) };
        };
        let LaneConfig { linger, busy_linger, .. } = producer.config;
        let linger = if state.busy { linger.max(busy_linger) } else { linger };
        let linger = linger.saturating_sub(producer.clock.instant().saturating_duration_since(front.opened_at));
        if !linger.is_zero() && !front.is_full(&producer.config) {
            return Step::Wait(Some(linger));
        }
        if producer.pending.overlaps(&self.range) && !mutation::is_active(Mutation::ChildLanesDoNotWait) {
            return Step::Blocked;
        }
        // Sealed while the lane is locked, so that a refresh finds the batch either in the queue or among the pending
        // ones.
        match state.queue.pop_front() {
            Some(batch) => {
                state.busy = batch.votes.len() >= BUSY_VOTES;
                let number = producer.number.fetch_add(1, Ordering::Relaxed) + 1;
                Step::Send(Box::new(batch), producer.pending.add(self.range), number)
            }
            None => Step::Wait(None),
        }
    }
}

/// The record of a batch.
fn seal(batch: &QueuedBatch, id: BatchId, ranges: &HashRanges, trace_context: &str) -> Bytes {
    let record = batch.votes.seal(id, ranges, trace_context);
    metrics::BATCH_VOTES.record(batch.votes.len() as f64, &[]);
    metrics::BATCH_BYTES.record(record.len() as f64, &[]);
    record
}

/// How one put ended.
enum PutEnd {
    /// The record is durable.
    Stored(Stored),
    /// The engine answered with an error.
    Failed(PortError),
    /// No answer came in time.
    Unanswered,
}

impl Producer {
    /// Sends one sealed batch until every vote of it is settled.
    async fn send(
        self: &Arc<Self>,
        lane: &Lane,
        batch: QueuedBatch,
        pending: PendingBatch<'_>,
        number: u64,
        trace_context: &str,
    ) {
        let after_deadline = mutation::is_active(Mutation::AcknowledgedAfterDeadline);
        let deadline = if after_deadline { Duration::from_secs(3_600) } else { self.config.bounds.answer_deadline };
        let id = BatchId { producer: self.config.producer, number };
        let mut left = self.settle_expired(batch, deadline);
        let mut ranges = HashRanges::from(lane.range);
        let mut record = None;
        let mut outcome_if_given_up = Outcome::NotStored;
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        while let Some(oldest) = left.votes.oldest() {
            let time_left = deadline.saturating_sub(self.clock.now().since(oldest));
            if time_left.is_zero() {
                break;
            }
            let data = record.get_or_insert_with(|| seal(&left, id, &ranges, trace_context)).clone();
            match self.put_once(left.votes.hashes()[0], data, time_left).await {
                PutEnd::Stored(stored) => {
                    let Some(range) = self.range_of(&stored.shard, time_left).await else {
                        outcome_if_given_up = Outcome::Unknown;
                        break;
                    };
                    let is_whole =
                        stored.shard == lane.shard || left.votes.hashes().iter().all(|&hash| range.contains(hash));
                    self.settle_stored(&left, is_whole.then_some(oldest), &range, deadline);
                    if is_whole {
                        self.spare.keep(left);
                        return;
                    }
                    // It was stored by a shard that took over a part of the lane's hashes. The other votes are sent
                    // again, as the same batch with the remaining range.
                    ranges = ranges.without(&range);
                    left = left.retain(|at| !range.contains(left.votes.hashes()[at]));
                    pending.narrow(&ranges);
                    record = None;
                    // The stored record also holds the remaining votes, in a shard that does not own them. They may
                    // still count: a copy of the request may arrive after that shard has merged with the one that owns
                    // them.
                    if !mutation::is_active(Mutation::RestIsCertain) {
                        outcome_if_given_up = Outcome::Unknown;
                    }
                    continue;
                }
                PutEnd::Failed(error) => {
                    if error.effect == Effect::Unknown {
                        outcome_if_given_up = Outcome::Unknown;
                    }
                    if !error.retryable {
                        tracing::error!(%error, shard = %lane.shard, "the stream refuses a batch");
                        break;
                    }
                    tracing::debug!(%error, shard = %lane.shard, "put failed, trying again");
                    if mutation::is_active(Mutation::RefusedBatchIsOvertaken) && error.effect == Effect::None {
                        let mut state = lane.state.lock();
                        if !state.retired {
                            state.queue.push_back(left);
                            return;
                        }
                    }
                }
                PutEnd::Unanswered => {
                    outcome_if_given_up = Outcome::Unknown;
                    break;
                }
            }
            let pause = backoff.pause(&mut self.jitter.lock());
            tokio::time::sleep(pause).await;
        }
        if !left.votes.is_empty() {
            tracing::warn!(shard = %lane.shard, votes = left.votes.len(), outcome = ?outcome_if_given_up, "gave up a batch");
            self.settle(&left.parts, |_| Some(outcome_if_given_up));
        }
    }

    /// Settles the votes that waited too long in the queue: they were certainly never sent. Returns the other votes.
    fn settle_expired(&self, batch: QueuedBatch, deadline: Duration) -> QueuedBatch {
        let now = self.clock.now();
        let is_expired = |accepted_at: Timestamp| now.since(accepted_at) >= deadline;
        if !batch.votes.oldest().is_some_and(is_expired) {
            return batch;
        }
        let accepted_at = batch.votes.accepted_at();
        let expired = |at: usize| is_expired(accepted_at[at]);
        self.settle(&batch.parts, |at| expired(at).then_some(Outcome::NotStored));
        batch.retain(|at| !expired(at))
    }

    /// One attempt; its duration is recorded.
    async fn put_once(&self, hash: u128, data: Bytes, time_left: Duration) -> PutEnd {
        let started = self.clock.instant();
        let put = tokio::time::timeout(time_left, self.stream.put(hash, data)).await;
        let labels = match &put {
            Ok(Ok(_)) => metrics::PUT_STORED,
            Ok(Err(error)) if error.effect == Effect::None => metrics::PUT_REFUSED,
            Ok(Err(_)) | Err(_) => metrics::PUT_UNKNOWN,
        };
        let took = self.clock.instant().saturating_duration_since(started);
        metrics::PUT_DURATION.record(took.as_secs_f64(), labels);
        match put {
            Ok(Ok(stored)) => PutEnd::Stored(stored),
            Ok(Err(error)) => PutEnd::Failed(error),
            Err(_) => PutEnd::Unanswered,
        }
    }

    /// Settles the votes of a stored record whose hashes are in `range`. `oldest_of_all` is the time of the oldest
    /// vote, given only if all votes are in `range`: if that one is in time, so are the others.
    fn settle_stored(
        &self,
        batch: &QueuedBatch,
        oldest_of_all: Option<Timestamp>,
        range: &HashRange,
        deadline: Duration,
    ) {
        let now = self.clock.now();
        // A clock that the engines contradict may have stamped the votes with wrong times. The answer to the put itself
        // shows that in time, before the votes are acknowledged: see docs/exactness.md.
        let is_trusted = self.clock.is_trusted();
        let is_in_time = |accepted_at| is_trusted && now.since(accepted_at) < deadline;
        if oldest_of_all.is_some_and(is_in_time) {
            self.settled(batch.parts.settle_all(Outcome::Durable));
            return;
        }
        let (accepted_at, hashes) = (batch.votes.accepted_at(), batch.votes.hashes());
        let outcome = |at: usize| {
            let outcome = if is_in_time(accepted_at[at]) { Outcome::Durable } else { Outcome::Unknown };
            range.contains(hashes[at]).then_some(outcome)
        };
        self.settle(&batch.parts, outcome);
    }

    /// Range of the shard that stored a record. A shard that is not known yet came from a split or a merge: the map is
    /// read until it contains the shard.
    async fn range_of(self: &Arc<Self>, shard: &ShardId, patience: Duration) -> Option<HashRange> {
        let known = || {
            let map = self.map.read();
            if map.is_open(shard) { map.range(shard) } else { None }
        };
        if let Some(range) = known() {
            return Some(range);
        }
        let search = async {
            loop {
                if let Err(error) = self.refresh().await {
                    tracing::warn!(%error, "cannot refresh the shard map");
                }
                // It may be closed again already. Its range is known all the same.
                let range = self.map.read().range(shard);
                if range.is_some() {
                    return range;
                }
                tokio::time::sleep(LONGEST_PAUSE).await;
            }
        };
        tokio::time::timeout(patience, search).await.ok().flatten()
    }
}
