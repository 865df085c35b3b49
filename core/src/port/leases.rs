//! Shard rows: who owns a shard in a group, and how far it has come.

use async_trait::async_trait;

use super::{Group, PortError};
use crate::{HashRange, Poll, SequenceNumber, ShardId, TimeBounds, Timestamp};

/// The last batch number of one producer for one range of hashes, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredProducer {
    /// Id of the producer, random per start of an ingest process.
    pub producer: u128,
    /// The hashes that the number is valid for.
    pub range: HashRange,
    /// The last batch number that was processed.
    pub number: u64,
    /// The shard clock when it was processed.
    pub arrived_at: Timestamp,
}

/// How far a shard's consumer has come. Every write of progress has this in its condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// End of the last window that is committed.
    pub checkpoint: SequenceNumber,
    /// End of the window that is being applied; equal to `checkpoint` if none is.
    pub window_end: SequenceNumber,
}

impl Span {
    /// No window is being applied behind this number.
    pub const fn committed(checkpoint: SequenceNumber) -> Self {
        Self { checkpoint, window_end: checkpoint }
    }

    /// Whether a window is being applied.
    pub fn is_open(&self) -> bool {
        self.window_end > self.checkpoint
    }
}

/// How far a shard has been processed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// End of the last window that is committed.
    pub checkpoint: SequenceNumber,
    /// End of the window that is being applied; equal to `checkpoint` if none is.
    pub window_end: SequenceNumber,
    /// Dedup table at the checkpoint.
    pub dedup: Vec<StoredProducer>,
    /// Shard clock at the checkpoint: the largest arrival timestamp up to it. It is also the watermark.
    pub watermark: Timestamp,
    /// The shard is closed and everything in it is committed.
    pub ended: bool,
}

impl Progress {
    /// The two ends.
    pub fn span(&self) -> Span {
        Span { checkpoint: self.checkpoint, window_end: self.window_end }
    }
}

/// Ownership of a shard in a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// Who owns it, if anybody.
    pub owner: Option<String>,
    /// The owner raises it as a sign of life, with a write of its own.
    pub counter: u64,
    /// Each take-over raises it: the fencing token of all progress.
    pub epoch: u64,
    /// Who has asked the owner to hand over.
    pub wanted_by: Option<String>,
}

/// Between these times of arrival, the stream dropped records of a shard that the group had not read. Somebody has
/// decided that the group goes on without them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostTime {
    /// The shard clock before the first lost record.
    pub from: Timestamp,
    /// No lost record arrived later.
    pub until: Timestamp,
}

impl LostTime {
    /// The shortest time that holds both.
    #[must_use]
    pub fn joined(self, other: Self) -> Self {
        Self { from: self.from.min(other.from), until: self.until.max(other.until) }
    }

    /// Whether votes that count for the poll may have been in the lost records. A vote counts only if its record
    /// arrived at most L before or after it was accepted, by the shard clock, and that is never before `from`.
    pub fn concerns(&self, poll: &Poll, bounds: &TimeBounds) -> bool {
        let late_after = bounds.late_after();
        poll.opens_at <= self.until.plus(late_after) && self.from <= poll.closes_at.plus(late_after)
    }
}

/// The row of one shard in one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardRow {
    /// The shard.
    pub shard: ShardId,
    /// Its hashes.
    pub range: HashRange,
    /// Its parents.
    pub parents: Vec<ShardId>,
    /// Whether it may be processed: all parents have ended, and the shard has inherited their state. Until then
    /// `progress` is blank.
    pub started: bool,
    /// Who owns it.
    pub lease: Lease,
    /// How far it has come.
    pub progress: Progress,
    /// Where the closed shard ends, once that is known: no record has a larger number.
    pub ends_at: Option<SequenceNumber>,
    /// What the group went on without.
    pub lost: Option<LostTime>,
}

impl ShardRow {
    /// A row that nobody has worked on. It may be processed at once if the shard has no parents.
    pub fn new(shard: ShardId, range: HashRange, parents: Vec<ShardId>) -> Self {
        let started = parents.is_empty();
        let (lease, progress) = (Lease::default(), Progress::default());
        Self { shard, range, parents, started, lease, progress, ends_at: None, lost: None }
    }
}

/// The conditions and effects of [`LeaseStore`], for engines that hold rows in memory. `None` means that the condition
/// failed.
impl ShardRow {
    /// The lease after [`LeaseStore::take`].
    pub fn taken(&self, observed: &Lease, owner: &str) -> Option<Lease> {
        let Lease { epoch, counter, .. } = self.lease;
        let unchanged = (epoch, counter) == (observed.epoch, observed.counter);
        let takeable = unchanged && self.started && !self.progress.ended;
        takeable.then(|| Lease { owner: Some(owner.into()), counter: counter + 1, epoch: epoch + 1, wanted_by: None })
    }

    /// The lease after [`LeaseStore::renew`].
    pub fn renewed(&self, epoch: u64) -> Option<Lease> {
        let lease = &self.lease;
        let holds = lease.epoch == epoch && lease.owner.is_some();
        holds.then(|| Lease { counter: lease.counter + 1, ..lease.clone() })
    }

    /// The lease after [`LeaseStore::release`], if that changes anything.
    pub fn released(&self, epoch: u64) -> Option<Lease> {
        let holds = self.lease.epoch == epoch && self.lease.owner.is_some();
        holds.then(|| Lease { owner: None, ..self.lease.clone() })
    }

    /// The lease after [`LeaseStore::request`].
    pub fn requested(&self, epoch: u64, by: &str) -> Option<Lease> {
        let free = self.lease.epoch == epoch && self.lease.wanted_by.is_none();
        free.then(|| Lease { wanted_by: Some(by.into()), ..self.lease.clone() })
    }

    /// [`LeaseStore::note_end`].
    pub fn note_end(&mut self, ends_at: SequenceNumber) {
        self.ends_at.get_or_insert(ends_at);
    }

    /// [`LeaseStore::note_lost`].
    pub fn note_lost(&mut self, lost: LostTime) {
        self.lost = Some(self.lost.map_or(lost, |known| known.joined(lost)));
    }

    /// Whether [`LeaseStore::delete`] may delete the row.
    pub fn is_deletable(&self) -> bool {
        self.progress.ended && self.lost.is_none()
    }

    /// [`LeaseStore::write_progress`] as a whole.
    pub fn advance(&mut self, epoch: u64, previous: Span, progress: &Progress) -> WriteOutcome {
        if self.lease.epoch != epoch || self.progress.span() != previous || self.progress.ended {
            return WriteOutcome::Refused(Some(Box::new(self.clone())));
        }
        self.progress = progress.clone();
        WriteOutcome::Stored
    }
}

/// What a conditional write did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The condition was true, and the write took place.
    Stored,
    /// The condition failed. This is the present row (strongly consistent), if there is one.
    Refused(Option<Box<ShardRow>>),
}

/// Shard rows. Every read is strongly consistent; every write is conditional.
#[async_trait]
pub trait LeaseStore: Send + Sync + 'static {
    /// All rows of a group.
    async fn list(&self, group: Group) -> Result<Vec<ShardRow>, PortError>;

    /// Stores a row, unless there is one: a blank one, with `started` that of a shard without parents, or an ended one
    /// for a shard that nobody can read any more.
    async fn create(&self, group: Group, row: &ShardRow) -> Result<(), PortError>;

    /// Writes the state that a child inherits and marks it as started, on the condition that it is not. Succeeds if it
    /// already was.
    async fn start(&self, group: Group, shard: &ShardId, inherited: &Progress) -> Result<(), PortError>;

    /// Takes the shard: owner, epoch + 1, counter + 1, no `wanted_by`. The condition is that epoch and counter are the
    /// ones of `observed`, and that the row is started and not ended. Returns the row that this very write produced, or
    /// `None` if the condition failed.
    async fn take(
        &self,
        group: Group,
        shard: &ShardId,
        observed: &Lease,
        owner: &str,
    ) -> Result<Option<ShardRow>, PortError>;

    /// Raises the counter, on the condition that the epoch is this one and there is an owner. Returns the lease after
    /// the write, or `None` if the condition failed.
    async fn renew(&self, group: Group, shard: &ShardId, epoch: u64) -> Result<Option<Lease>, PortError>;

    /// Clears the owner, on the condition that the epoch is this one. It is not an error if the condition fails.
    async fn release(&self, group: Group, shard: &ShardId, epoch: u64) -> Result<(), PortError>;

    /// Sets `wanted_by`, on the condition that the epoch is this one and nobody else has asked.
    async fn request(&self, group: Group, shard: &ShardId, epoch: u64, by: &str) -> Result<(), PortError>;

    /// Writes progress, on the condition that the epoch is this one, the stored span is `previous`, and
    /// the shard has not ended.
    async fn write_progress(
        &self,
        group: Group,
        shard: &ShardId,
        epoch: u64,
        previous: Span,
        progress: &Progress,
    ) -> Result<WriteOutcome, PortError>;

    /// Notes where a closed shard ends, unless that is noted. Does nothing if there is no row. This is a fact about the
    /// stream and never changes, so it needs no lease.
    async fn note_end(&self, group: Group, shard: &ShardId, ends_at: SequenceNumber) -> Result<(), PortError>;

    /// Notes that records were lost, together with what is noted already ([`LostTime::joined`]). Does nothing if there
    /// is no row. After an error, a part of the time may be noted.
    async fn note_lost(&self, group: Group, shard: &ShardId, lost: LostTime) -> Result<(), PortError>;

    /// Deletes a row, on the condition that the shard has ended and nothing was lost. It is not an error if the
    /// condition fails, or if there is no row.
    async fn delete(&self, group: Group, shard: &ShardId) -> Result<(), PortError>;
}
