//! Interim results and the progress of the `persist` group, read once for everybody who asks at about the same time.
//!
//! Must never mix up the groups: `submitted` comes from the `tally` rows, `counted` from the `persist` rows.

use std::{sync::Arc, time::Duration};

use votestream_core::{
    Poll, PollId, TimeBounds, Timestamp,
    port::{Group, Ports, ShardRow},
    tally::sums,
};

use crate::{cache::Cache, finalizer, status::Failure};

/// A poll and its sums at one moment, in the poll's order of options.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) poll: Poll,
    pub(crate) submitted: Vec<u64>,
    pub(crate) counted: Vec<u64>,
    pub(crate) as_of: Timestamp,
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

    /// The poll and its sums, no older than the life of the cache.
    pub(crate) async fn get(&self, id: &PollId) -> Result<Arc<Snapshot>, Arc<Failure>> {
        self.polls.get(id, || self.read(id)).await
    }

    /// The same, read now.
    pub(crate) async fn read(&self, id: &PollId) -> Result<Arc<Snapshot>, Failure> {
        let as_of = self.ports.clock.now();
        // The poll before the tallies: if it is final, the sums read afterwards are.
        let poll = self.ports.polls.get(id).await?.ok_or_else(|| Failure::PollNotFound(id.clone()))?;
        let rows = self.ports.tallies.read(id).await?;
        let submitted = sums(&poll, Group::Tally, &rows)?;
        let counted = sums(&poll, Group::Persist, &rows)?;
        Ok(Arc::new(Snapshot { poll, submitted, counted, as_of }))
    }

    /// Makes the next caller read the poll anew.
    pub(crate) fn forget(&self, id: &PollId) {
        self.polls.forget(id);
    }

    /// What is missing before the poll can become final; empty if it is final.
    pub(crate) async fn progress(&self, poll: &Poll) -> Result<String, Arc<Failure>> {
        if poll.final_result.is_some() {
            return Ok(String::new());
        }
        let read = || async { Ok(Arc::new(self.ports.leases.list(Group::Persist).await?)) };
        let rows = self.rows.get(&(), read).await?;
        Ok(finalizer::progress(poll, &rows, self.ports.clock.now(), &self.bounds))
    }

    /// Whether everything that can count for the poll has been committed.
    pub(crate) async fn complete(&self, poll: &Poll) -> Result<bool, Failure> {
        let rows = self.ports.leases.list(Group::Persist).await?;
        let required = poll.closes_at.plus(self.bounds.late_after());
        Ok(finalizer::horizon(&rows).is_some_and(|horizon| horizon >= required))
    }
}
