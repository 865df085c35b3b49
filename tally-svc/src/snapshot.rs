//! Interim results and the progress of the `persist` group, read once for all callers that ask at about the same time.
//!
//! Must never confuse the groups: `counted` comes from the `persist` rows, `submitted` from the `tally` rows. The
//! groups read the stream independently, so `persist` may be ahead. Must never show more counted votes than submitted
//! ones. Must never give a snapshot to a viewer who may not see it.

use std::{sync::Arc, time::Duration};

use votestream_core::{
    Poll, PollId, TimeBounds, Timestamp,
    consume::tally::sums,
    port::{Group, Ports, ShardRow},
};
use xxhash_rust::xxh3::xxh3_64;

use crate::{cache::Cache, finalizer, status::CallError, viewer::Viewer};

/// A poll and its sums at one moment, in the poll's order of options.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) poll: Poll,
    pub(crate) submitted: Vec<u64>,
    pub(crate) counted: Vec<u64>,
    pub(crate) as_of: Timestamp,
}

/// The number of votes that were certainly submitted, per option. It is at least the count of `tally`. It is also at
/// least the count of `persist`, which may be ahead: each user who counts for an option has submitted a vote for it.
/// And it is at least the number that was shown before: `counted` falls when users change their votes, but what they
/// submitted does not. None of the three is more than what the stream holds.
fn at_least(mut submitted: Vec<u64>, counted: &[u64], shown: &[u64]) -> Vec<u64> {
    for (at, submitted) in submitted.iter_mut().enumerate() {
        let known = [counted, shown].into_iter().filter_map(|counts| counts.get(at)).max();
        *submitted = (*submitted).max(known.copied().unwrap_or(0));
    }
    submitted
}

/// A number that changes with the counts. It is the same in every process.
pub(crate) fn tag_of(counts: impl Iterator<Item = u64>) -> u64 {
    xxh3_64(&counts.flat_map(u64::to_le_bytes).collect::<Vec<_>>())
}

/// Reads polls with their sums.
pub(crate) struct Snapshots {
    ports: Ports,
    bounds: TimeBounds,
    polls: Cache<PollId, Arc<Snapshot>>,
    rows: Cache<(), Arc<Vec<ShardRow>>>,
}

impl Snapshots {
    pub(crate) fn new(ports: Ports, bounds: TimeBounds, life: Duration) -> Self {
        Self { ports, bounds, polls: Cache::new(life), rows: Cache::new(life) }
    }

    /// The poll and its sums for this viewer, not older than the life of the cache. All viewers share what is read.
    pub(crate) async fn get(&self, viewer: Viewer, id: &PollId) -> Result<Arc<Snapshot>, Arc<CallError>> {
        let snapshot = self.polls.get(id, |before| self.read(id, before)).await?;
        viewer.check(&snapshot.poll)?;
        Ok(snapshot)
    }

    /// The same, read now. `before` is the snapshot that was shown last.
    async fn read(&self, id: &PollId, before: Option<Arc<Snapshot>>) -> Result<Arc<Snapshot>, CallError> {
        let as_of = self.ports.clock.now();
        // Read the poll before the tallies: if it is final, the sums that are read afterwards are final, too.
        let poll = self.ports.polls.get(id).await?.ok_or_else(|| CallError::PollNotFound(id.clone()))?;
        let rows = self.ports.tallies.read(id).await?;
        let counted = sums(&poll, Group::Persist, &rows)?;
        let shown = before.as_ref().map_or(&[][..], |before| &before.submitted);
        let submitted = at_least(sums(&poll, Group::Tally, &rows)?, &counted, shown);
        Ok(Arc::new(Snapshot { poll, submitted, counted, as_of }))
    }

    /// Makes the next caller read the poll again.
    pub(crate) fn forget(&self, id: &PollId) {
        self.polls.forget(id);
    }

    /// What is missing before the poll can become final; empty if it is final. Has times and shards, and no count.
    pub(crate) async fn progress(&self, poll: &Poll) -> Result<String, Arc<CallError>> {
        if poll.final_result.is_some() {
            return Ok(String::new());
        }
        let read = |_| async { Ok(Arc::new(self.ports.leases.list(Group::Persist).await?)) };
        let rows = self.rows.get(&(), read).await?;
        Ok(finalizer::progress(poll, &rows, self.ports.clock.now(), &self.bounds))
    }

    /// The same for a poll that this process may have to read first. Has no count, so everybody may read it.
    pub(crate) async fn progress_of(&self, id: &PollId) -> Result<String, Arc<CallError>> {
        let snapshot = self.get(Viewer::Manager, id).await?;
        self.progress(&snapshot.poll).await
    }

    /// Whether everything that can count for the poll has been committed, and nothing of it was lost.
    pub(crate) async fn complete(&self, poll: &Poll) -> Result<bool, CallError> {
        let rows = self.ports.leases.list(Group::Persist).await?;
        let required = poll.closes_at.plus(self.bounds.late_after());
        let is_covered = finalizer::horizon(&rows).is_some_and(|horizon| horizon >= required);
        Ok(is_covered && !finalizer::may_lack_votes(poll, &rows, &self.bounds))
    }
}
