//! Reads ahead: fetches and decodes the records of a shard while earlier ones are being applied.
//!
//! Owns the reader, and the bounds on records that were read and not yet processed, of one shard and of all shards of the
//! group in this process. Must never skip a record, never read on after the stream has dropped records that were not
//! read, never pass on a record whose arrival is in our future, and never let one shard keep the others from going on.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::sleep,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Clock, SequenceNumber, ShardId,
    consume::window::ReadRecord,
    observe::metrics,
    port::{Group, PortError, ReadOutcome, RecordReader, VoteStream, backoff::SeededBackoff},
    record::batch,
};

/// Most decoded bytes that wait to be processed, per shard.
const BYTES_MAX: u32 = 32 << 20;
/// Most records that wait to be processed, per shard.
const RECORDS_MAX: usize = 1_024;
/// Failed reads in a row after which the shard is given up, so that another worker may try.
const FAILURES_MAX: u32 = 12;

/// How often the clock is looked at while a record waits for it.
const CLOCK_LOOK_EVERY: Duration = Duration::from_secs(1);

/// The share of a record in the bounds. Dropping it gives the share back.
pub(super) struct Share {
    _of_shard: OwnedSemaphorePermit,
    /// `None` for the one record that a shard has beyond what the group may have.
    _of_group: Option<OwnedSemaphorePermit>,
}

/// What was read.
pub(super) enum Fetched {
    /// The next record, and its share of the bounds.
    Record(ReadRecord, Share),
    /// The shard is closed, and all its records have been passed on.
    End,
    /// Records were dropped by the stream before they were read.
    Expired,
    /// Reading fails.
    Failed(PortError),
}

/// The bound on what all shards of a group in this process have read ahead.
#[derive(Clone)]
pub(super) struct Budget {
    bytes: Arc<Semaphore>,
    max: u32,
}

impl Budget {
    pub(super) fn new(bytes_max: usize) -> Self {
        let max = u32::try_from(bytes_max).unwrap_or(u32::MAX);
        Self { bytes: Arc::new(Semaphore::new(max as usize)), max }
    }

    /// Waits for room for so many bytes, at most [`BYTES_MAX`]. A shard of which nothing waits gets in whatever the others
    /// have: what fills the budget may belong to shards whose windows cannot be applied at present, and this one must not
    /// wait for them. `None` if the bounds are closed.
    async fn share(&self, size: u32, of_shard: &Arc<Semaphore>) -> Option<Share> {
        let of_group = tokio::select! {
            biased;
            share = self.bytes.clone().acquire_many_owned(size.min(self.max)) => Some(share.ok()?),
            nothing_waits = of_shard.acquire_many(BYTES_MAX) => {
                drop(nothing_waits.ok()?);
                None
            }
        };
        let of_shard = of_shard.clone().acquire_many_owned(size).await.ok()?;
        Some(Share { _of_shard: of_shard, _of_group: of_group })
    }
}

/// Tells whether a record arrived in our future.
pub(super) struct Present {
    pub(super) clock: Arc<dyn Clock>,
    /// Largest difference between our clock and the stream's.
    pub(super) skew_max: Duration,
}

impl Present {
    /// Waits until our clock could agree with the stream's clock at the arrival of the record. A shard's clock is its
    /// latest arrival. One arrival from the future would make every later vote late, for good and in both groups, and
    /// only people can tell which clock is wrong. During the wait the lease is kept, and the shard's age grows.
    async fn reach(&self, group: Group, shard: &ShardId, record: &ReadRecord) {
        let ahead = || record.arrived_at.since(self.clock.now().plus(self.skew_max));
        let mut left = ahead();
        if left.is_zero() {
            return;
        }
        let (sequence, arrived_at) = (record.sequence, record.arrived_at);
        metrics::record_of_the_future(group);
        tracing::error!(
            shard = %shard, %sequence, ?left,
            "a record arrived at {arrived_at}, which our clock has not reached: this clock or the stream's is wrong; the \
             shard waits until our clock gets there"
        );
        while !left.is_zero() {
            sleep(left.min(CLOCK_LOOK_EVERY)).await;
            left = ahead();
        }
        tracing::info!(shard = %shard, %sequence, "our clock has reached the arrival of the record: the shard goes on");
    }
}

/// A reader that runs ahead.
pub(super) struct Prefetch {
    fetched: mpsc::Receiver<Fetched>,
    _task: AbortOnDropHandle<()>,
}

impl Prefetch {
    /// Starts to read at the first record behind `after`.
    pub(super) fn start(
        stream: Arc<dyn VoteStream>,
        group: Group,
        shard: ShardId,
        after: SequenceNumber,
        backoff: SeededBackoff,
        (present, budget): (Present, Budget),
    ) -> Self {
        let (sender, fetched) = mpsc::channel(RECORDS_MAX);
        let task = Task { stream, group, shard, after, backoff, present, budget, reader: None, sender };
        Self { fetched, _task: AbortOnDropHandle::new(tokio::spawn(task.run())) }
    }

    /// The next thing that was read. Safe to cancel.
    pub(super) async fn next(&mut self) -> Fetched {
        let gone = || Fetched::Failed(PortError::refused("the task that reads the shard was stopped"));
        self.fetched.recv().await.unwrap_or_else(gone)
    }

    /// The next thing, if it is there already.
    pub(super) fn ready(&mut self) -> Option<Fetched> {
        self.fetched.try_recv().ok()
    }
}

struct Task {
    stream: Arc<dyn VoteStream>,
    group: Group,
    shard: ShardId,
    after: SequenceNumber,
    backoff: SeededBackoff,
    present: Present,
    budget: Budget,
    reader: Option<Box<dyn RecordReader>>,
    sender: mpsc::Sender<Fetched>,
}

impl Task {
    async fn run(mut self) {
        let bytes = Arc::new(Semaphore::new(BYTES_MAX as usize));
        let last = loop {
            // What is being read is in no bound yet. So a read begins only if there is some room.
            if self.budget.share(1, &bytes).await.is_none() {
                return;
            }
            match self.read().await {
                Ok(ReadOutcome::Records(records)) => {
                    self.backoff.reset();
                    for record in &records {
                        // A later version of the service has acknowledged these votes. Discarding the record would lose
                        // them, so the shard stops until such a version reads it.
                        if let Some(version) = batch::later_version(&record.data) {
                            let sequence = record.sequence;
                            let reason =
                                format!("record {sequence} has format {version}, which this version cannot read");
                            self.sender.send(Fetched::Failed(PortError::permanent(reason))).await.ok();
                            return;
                        }
                        let record = ReadRecord::decode(record);
                        self.present.reach(self.group, &self.shard, &record).await;
                        // A single record may be larger than the bound.
                        let size = u32::try_from(record.bytes()).map_or(BYTES_MAX, |size| size.min(BYTES_MAX));
                        let Some(share) = self.budget.share(size, &bytes).await else { return };
                        if self.sender.send(Fetched::Record(record, share)).await.is_err() {
                            return;
                        }
                    }
                }
                Ok(ReadOutcome::ShardEnd) => break Fetched::End,
                Ok(ReadOutcome::Expired) => break Fetched::Expired,
                Err(error) => {
                    let pause = self.backoff.pause();
                    if !error.retryable || self.backoff.attempts() >= FAILURES_MAX {
                        break Fetched::Failed(error);
                    }
                    tracing::warn!(shard = %self.shard, %error, "reading failed, trying again");
                    sleep(pause).await;
                }
            }
        };
        // If this fails, the consumer is gone.
        self.sender.send(last).await.ok();
    }

    async fn read(&mut self) -> Result<ReadOutcome, PortError> {
        let reader = match &mut self.reader {
            Some(reader) => reader,
            None => self.reader.insert(self.stream.reader(self.group, &self.shard, self.after).await?),
        };
        reader.next().await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    /// What the shard gets at once.
    fn at_once(budget: &Budget, size: u32, of_shard: &Arc<Semaphore>) -> Option<Share> {
        budget.share(size, of_shard).now_or_never().flatten()
    }

    #[test]
    fn shards_share_a_budget_and_none_waits_for_another() {
        let budget = Budget::new(1_000);
        let shards = [(); 3].map(|()| Arc::new(Semaphore::new(BYTES_MAX as usize)));
        let large = at_once(&budget, 900, &shards[0]).unwrap();
        assert!(at_once(&budget, 101, &shards[0]).is_none(), "the budget is spent");
        // The other shards have nothing yet, so each gets its first record, however large.
        let first = shards[1..].iter().map(|shard| at_once(&budget, BYTES_MAX, shard).unwrap());
        let first: Vec<_> = first.collect();
        assert!(shards[1..].iter().all(|shard| at_once(&budget, 101, shard).is_none()), "and no second one");
        // One that waits while its last record is taken does not wait for the other shards any longer.
        let mut waiting = Box::pin(budget.share(101, &shards[1]));
        assert!((&mut waiting).now_or_never().is_none());
        drop(first);
        assert!(waiting.now_or_never().flatten().is_some());
        assert_eq!(budget.bytes.available_permits(), 100, "what the first shard holds is still counted");
        drop(large);
        assert_eq!(budget.bytes.available_permits(), 1_000);
        let whole = at_once(&budget, BYTES_MAX, &shards[0]).unwrap();
        assert_eq!(budget.bytes.available_permits(), 0, "a record that is larger than the budget takes all of it");
        drop(whole);
    }
}
