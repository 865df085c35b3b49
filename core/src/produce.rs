//! Lanes: the ingest side of the stream, one lane for each shard.
//!
//! Owns the order of a user's votes on their way into the stream, and the outcome of each. All votes of one user go
//! through one lane. A lane has one record in flight at a time, and retries it before it sends the next. A batch keeps
//! its votes, its number and its `accepted_at` on every retry. Must never report a vote as durable unless a shard whose
//! range holds its hash stored it, and the answer came within D of its `accepted_at`.

mod map;
mod queue;
mod send;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use rand::{SeedableRng, rngs::StdRng};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::{map::LaneMap, queue::SpareBatches, send::PendingBatches};
use crate::{
    Clock, PollId, TimeBounds, Timestamp, UserId,
    observe::metrics,
    port::{PortError, VoteStream, backoff::SeededBackoff},
};

/// How a vote ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It is durable and will be counted.
    Durable,
    /// It was certainly not stored and will not be sent again.
    NotStored,
    /// Nobody knows whether it was stored.
    Unknown,
}

/// Receives the outcomes of the votes of one message.
pub trait Settle: Send + Sync + 'static {
    /// Called exactly once for each vote, with the index that the vote was appended with; one call may settle many.
    /// Must not block.
    fn settle(&self, indices: &[u32], outcome: Outcome);
}

/// A vote that passed validation.
#[derive(Clone, Copy, Debug)]
pub struct AcceptedVote<'a> {
    /// The poll.
    pub poll_id: &'a PollId,
    /// The option, as the poll holds it.
    pub option_id: &'a Arc<str>,
    /// The user.
    pub user_id: UserId<'a>,
    /// [`crate::vote_hash`] of poll and user.
    pub hash: u128,
    /// Identifies the vote in [`Settle::settle`].
    pub index: u32,
}

/// Settings of the lanes.
#[derive(Clone, Copy, Debug)]
pub struct LaneConfig {
    /// Id of this producer, random per start of the process.
    pub producer: u128,
    /// Seed of the retry jitter.
    pub seed: u64,
    /// The protocol's time limits.
    pub bounds: TimeBounds,
    /// How long the first vote of a batch waits for others before the batch is sealed.
    pub linger: Duration,
    /// The same for a batch that comes after one of [`BUSY_VOTES`] or more, if that is longer.
    pub busy_linger: Duration,
    /// Most votes of a batch.
    pub batch_votes_max: usize,
    /// Size at which a batch is sealed, before compression, in bytes.
    pub batch_bytes_max: usize,
    /// How often the shard map is read again without a special reason.
    pub refresh_every: Duration,
}

impl LaneConfig {
    /// For a stream on the same machine: no linger while votes are few, since the next batch fills while the last one
    /// is being stored.
    #[expect(clippy::disallowed_methods, reason = "no two starts may share an id; the simulation gives its own")]
    pub fn one_machine() -> Self {
        Self {
            producer: rand::random(),
            seed: rand::random(),
            bounds: TimeBounds::ONE_MACHINE,
            linger: Duration::ZERO,
            busy_linger: Duration::from_millis(5),
            batch_votes_max: 16_384,
            batch_bytes_max: 512 << 10,
            refresh_every: Duration::from_secs(10),
        }
    }

    /// For a stream behind a network, where a put takes tens of milliseconds and each record costs money.
    pub fn distributed() -> Self {
        Self { bounds: TimeBounds::DISTRIBUTED, linger: Duration::from_millis(20), ..Self::one_machine() }
    }
}

/// From this many votes in a batch on, the lane counts as busy. While a put is in flight, so many votes arrive that a
/// longer wait makes records and syncs fewer; at this rate those cost more processor time than the votes themselves.
pub const BUSY_VOTES: usize = 512;

/// Attempts to read the shard map at the start, over some seconds. With more attempts, whoever starts the process would
/// learn too late what is wrong.
const START_ATTEMPTS_MAX: u32 = 8;

/// All lanes of one ingest process.
pub struct Producer {
    config: LaneConfig,
    spare: SpareBatches,
    stream: Arc<dyn VoteStream>,
    clock: Arc<dyn Clock>,
    /// Locked for reading while votes are appended, and for writing while lanes are replaced.
    map: RwLock<LaneMap>,
    /// Locked while the map is refreshed, so that only one refresh runs at a time.
    refreshing: tokio::sync::Mutex<()>,
    /// The last batch number, over all lanes.
    number: AtomicU64,
    /// Batches that are sealed, and neither stored nor given up.
    pending: PendingBatches,
    /// Votes that were appended and are not settled yet.
    unsettled: AtomicUsize,
    /// Woken when `unsettled` becomes zero.
    idle: Notify,
    jitter: Mutex<StdRng>,
    /// Ends the lanes' tasks.
    stopped: CancellationToken,
}

impl Producer {
    /// Reads the shard map and starts a lane for each open shard.
    ///
    /// # Errors
    ///
    /// If the map cannot be read in several attempts, or another attempt would not help.
    ///
    /// Boxed, so that it is compiled here and not again in each crate that awaits it.
    pub fn start(
        config: LaneConfig,
        stream: Arc<dyn VoteStream>,
        clock: Arc<dyn Clock>,
    ) -> BoxFuture<'static, Result<Arc<Self>, PortError>> {
        Box::pin(Self::start_now(config, stream, clock))
    }

    async fn start_now(
        config: LaneConfig,
        stream: Arc<dyn VoteStream>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, PortError> {
        let producer = Arc::new(Self {
            config,
            spare: SpareBatches::new(config, clock.clone()),
            stream,
            clock,
            map: RwLock::new(LaneMap::default()),
            refreshing: tokio::sync::Mutex::new(()),
            number: AtomicU64::new(0),
            pending: PendingBatches::default(),
            unsettled: AtomicUsize::new(0),
            idle: Notify::new(),
            jitter: Mutex::new(StdRng::seed_from_u64(config.seed)),
            stopped: CancellationToken::new(),
        });
        let mut backoff = SeededBackoff::new(&config.seed.to_be_bytes());
        while let Err(error) = producer.refresh().await {
            let pause = backoff.pause();
            if !error.retryable || backoff.attempts() >= START_ATTEMPTS_MAX {
                return Err(error);
            }
            tracing::warn!(%error, "cannot read the shard map, trying again");
            tokio::time::sleep(pause).await;
        }
        tokio::spawn(map::refresh_regularly(Arc::downgrade(&producer), config.refresh_every, producer.stopped.clone()));
        Ok(producer)
    }

    /// Appends the votes of one message, in their order. Every vote is settled later, exactly once. Does not wait: the
    /// caller limits how many bytes are unsettled.
    pub fn append(&self, message: &Arc<dyn Settle>, votes: &[AcceptedVote<'_>], accepted_at: Timestamp) {
        self.append_traced(message, votes, accepted_at, "");
    }

    /// [`Self::append`] for a message of a sampled trace; see [`crate::observe::trace::child`]. The batches that take
    /// the votes belong to that trace. `traceparent` is empty if there is none.
    pub fn append_traced(
        &self,
        message: &Arc<dyn Settle>,
        votes: &[AcceptedVote<'_>],
        accepted_at: Timestamp,
        traceparent: &str,
    ) {
        self.unsettled.fetch_add(votes.len(), Ordering::AcqRel);
        metrics::VOTES_UNSETTLED.add(votes.len() as i64);
        let map = self.map.read();
        match votes {
            [] => {}
            [vote] => {
                let lane = map.lane(vote.hash);
                lane.append(&self.spare, message, std::iter::once(vote), accepted_at, traceparent);
            }
            votes => {
                // One lane after the other, so that each is locked once per message. Within a lane the votes keep their
                // order, so the votes of a user do, too. This is a counting sort: first find where each lane's votes
                // begin, then put each vote in its place.
                let lanes: Vec<u32> = votes.iter().map(|vote| map.index(vote.hash)).collect();
                let mut ends = vec![0u32; map.len() + 1];
                lanes.iter().for_each(|&lane| ends[lane as usize + 1] += 1);
                for lane in 1..ends.len() {
                    ends[lane] += ends[lane - 1];
                }
                let mut order = vec![0u32; votes.len()];
                for (at, &lane) in lanes.iter().enumerate() {
                    let end = &mut ends[lane as usize];
                    order[*end as usize] = at as u32;
                    *end += 1;
                }
                let mut start = 0;
                for (lane, &end) in ends[..map.len()].iter().enumerate() {
                    let group = &order[std::mem::replace(&mut start, end as usize)..end as usize];
                    if !group.is_empty() {
                        let votes = group.iter().map(|&at| &votes[at as usize]);
                        map.at(lane as u32).append(&self.spare, message, votes, accepted_at, traceparent);
                    }
                }
            }
        }
    }

    /// Number of votes that were appended and are not settled.
    pub fn unsettled(&self) -> usize {
        self.unsettled.load(Ordering::Acquire)
    }

    /// Waits until every appended vote is settled. That takes no longer than D after the last append.
    pub async fn drain(&self) {
        loop {
            let idle = self.idle.notified();
            if self.unsettled() == 0 {
                return;
            }
            idle.await;
        }
    }

    fn settle(&self, parts: &queue::Parts, outcome_of: impl Fn(usize) -> Option<Outcome>) {
        self.settled(parts.settle(outcome_of));
    }

    /// Notes that this many votes are settled.
    fn settled(&self, settled: usize) {
        metrics::VOTES_UNSETTLED.add(-(settled as i64));
        if settled > 0 && self.unsettled.fetch_sub(settled, Ordering::AcqRel) == settled {
            self.idle.notify_waiters();
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.stopped.cancel();
    }
}
