//! Recounts: reads every stored vote of a poll again.
//!
//! Owns how many run at once. The permit belongs to the work and not to the call: engines read on threads that cannot
//! be stopped from outside. So when a client leaves, the permit is given back only after the work has really ended.
//! Must never clear a poll's flag unless the recount has proved the tallies.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use votestream_core::{
    Poll, PollId,
    consume::tally::sums,
    port::{Group, Ports},
};
use votestream_proto::v1;

use crate::{finalizer::Finalizer, snapshot::Snapshots, status::CallError, viewer::Viewer};

/// Most recounts at the same time. Each reads all votes of a poll.
pub(crate) const RECOUNTS_MAX: usize = 2;

/// Recounts polls.
#[derive(Clone)]
pub(crate) struct Recounts {
    ports: Ports,
    finalizer: Arc<Finalizer>,
    snapshots: Arc<Snapshots>,
    permits: Arc<Semaphore>,
}

impl Recounts {
    pub(crate) fn new(ports: Ports, finalizer: Arc<Finalizer>, snapshots: Arc<Snapshots>) -> Self {
        Self { ports, finalizer, snapshots, permits: Arc::new(Semaphore::new(RECOUNTS_MAX)) }
    }

    /// Recounts a poll. When the returned future is dropped, the work ends as soon as the engine allows it.
    pub(crate) async fn run(&self, viewer: Viewer, id: PollId) -> Result<v1::RecountResponse, CallError> {
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| CallError::Busy("recounts"))?;
        let left = CancellationToken::new();
        let _waiting = left.clone().drop_guard();
        let recounts = self.clone();
        let work = tokio::spawn(async move {
            let response = recounts.recount(viewer, id, &left).await;
            drop(permit);
            response
        });
        work.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a recount panicked or was stopped");
            Err(CallError::Internal)
        })
    }

    async fn recount(
        &self,
        viewer: Viewer,
        id: PollId,
        left: &CancellationToken,
    ) -> Result<v1::RecountResponse, CallError> {
        let mut poll = self.ports.polls.get(&id).await?.ok_or_else(|| CallError::PollNotFound(id.clone()))?;
        viewer.check(&poll)?;
        // Check this before the counts: once everything is committed, no later vote changes a count.
        let complete = self.snapshots.complete(&poll).await?;
        let rows = self.ports.tallies.read(&id).await?;
        let counted = sums(&poll, Group::Persist, &rows)?;
        // If the recount ended early, nobody reads the answer.
        let recounted = self.ports.votes.recount_unless(&poll, left).await?.ok_or(CallError::Unavailable)?;
        if recounted.len() != poll.options.len() {
            tracing::error!(poll_id = %id, "the recount does not have one number for each option");
            return Err(CallError::Internal);
        }
        let matches = counted == recounted && poll.final_result.as_ref().is_none_or(|result| result.votes == recounted);
        if poll.needs_recount && complete && matches {
            self.ports.polls.set_needs_recount(&id, false).await?;
            poll.needs_recount = false;
            self.finalizer.note(&poll);
            self.snapshots.forget(&id);
        }
        let progress = self.snapshots.progress(&poll).await.map_err(|_| CallError::Unavailable)?;
        Ok(response(&poll, counted, recounted, matches, progress))
    }
}

fn response(
    poll: &Poll,
    counted: Vec<u64>,
    recounted: Vec<u64>,
    matches: bool,
    progress: String,
) -> v1::RecountResponse {
    let options = poll.options.iter().zip(counted.into_iter().zip(recounted));
    let option = |(option, (counted, recounted)): (&votestream_core::PollOption, _)| v1::RecountOption {
        option_id: option.id.to_string(),
        counted,
        recounted,
    };
    v1::RecountResponse {
        poll_id: poll.id.to_string(),
        options: options.map(option).collect(),
        matches,
        r#final: poll.final_result.is_some(),
        progress,
    }
}
