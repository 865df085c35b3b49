//! `ResultsService`: interim results, the final result, the recount that proves it, and the release of hidden results.
//!
//! Must never answer GetFinalResults with anything but the stored result, nor read a count except for a viewer who may
//! see it.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, stream};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use votestream_core::{Poll, PollId, Visibility, model::poll::FinalResult, port::Ports};
use votestream_proto::v1::{self, results_service_server::ResultsService};
use votestream_server::{AuditLog, Caller};

use crate::{
    acts,
    convert::{self, poll_id_of, timestamp},
    finalizer::Finalizer,
    recount::Recounts,
    snapshot::{Snapshot, Snapshots},
    status::{CallError, shared},
    viewer::{Act, Viewer, viewer_of},
};

/// How often a watched or awaited poll is checked. The cache shares the reads.
pub(crate) const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// Number of failed checks in a row after which a watching or waiting call ends with the failure.
pub(crate) const FAILURES_MAX: u32 = 20;
/// The service.
pub(crate) struct Results {
    ports: Ports,
    snapshots: Arc<Snapshots>,
    recounts: Recounts,
    pub(crate) audit: AuditLog,
    shutdown: CancellationToken,
}

impl Results {
    pub(crate) fn new(
        ports: Ports,
        finalizer: Arc<Finalizer>,
        snapshots: Arc<Snapshots>,
        shutdown: CancellationToken,
    ) -> Self {
        let recounts = Recounts::new(ports.clone(), finalizer, snapshots.clone());
        Self { ports, snapshots, recounts, audit: AuditLog::default(), shutdown }
    }

    /// Notes in this log who releases and recounts results.
    pub(crate) fn audited(self, audit: AuditLog) -> Self {
        Self { audit, ..self }
    }

    async fn final_results(
        &self,
        viewer: Viewer,
        caller: &Caller,
        id: &PollId,
        wait: bool,
    ) -> Result<v1::GetFinalResultsResponse, Status> {
        let mut failures = 0;
        loop {
            match self.snapshots.get(viewer, id).await {
                Ok(snapshot) => {
                    failures = 0;
                    if let Some(result) = &snapshot.poll.final_result {
                        return Ok(final_response(&snapshot.poll, result));
                    }
                    if !wait {
                        let progress = self.snapshots.progress(&snapshot.poll).await.map_err(shared)?;
                        return Err(CallError::NotFinal(progress).into());
                    }
                }
                // It waits until the result is shown as well.
                Err(failure) if wait && matches!(*failure, CallError::ResultsHidden { .. }) => failures = 0,
                Err(failure) => {
                    failures += 1;
                    if let CallError::ResultsHidden { visibility: Visibility::WhenFinal, .. } = *failure {
                        return Err(self.hidden_until_final(id).await.into());
                    }
                    if !wait || !may_pass(&failure) || failures >= FAILURES_MAX {
                        return Err(shared(failure));
                    }
                }
            }
            pause(&self.shutdown, caller).await?;
        }
    }
}

impl Results {
    /// The answer to a question for a final result that is shown when it is final: what is missing until then.
    async fn hidden_until_final(&self, id: &PollId) -> CallError {
        // Without the progress the answer is right, too.
        let progress = self.snapshots.progress_of(id).await.unwrap_or_default();
        let more = if progress.is_empty() { progress } else { format!("; {progress}") };
        CallError::ResultsHidden { visibility: Visibility::WhenFinal, more }
    }

    async fn release(&self, id: PollId) -> Result<Poll, CallError> {
        // No vote is judged by this time, so the clock need not be trusted.
        let poll = self.ports.polls.release(&id, self.ports.clock.now()).await?;
        let poll = poll.ok_or_else(|| CallError::PollNotFound(id.clone()))?;
        self.snapshots.forget(&id);
        if poll.visibility != Visibility::OnRelease {
            return Err(CallError::NotReleased(poll.visibility));
        }
        tracing::info!(poll_id = %id, "the results of a poll are released");
        Ok(poll)
    }
}

/// Whether a failure may be temporary, so that a waiting call goes on.
pub(crate) fn may_pass(failure: &CallError) -> bool {
    matches!(failure, CallError::Unavailable)
}

/// Waits until the next check. Ends the call if its credential counts no more.
async fn pause(shutdown: &CancellationToken, caller: &Caller) -> Result<(), Status> {
    tokio::select! {
        () = tokio::time::sleep(WATCH_INTERVAL) => Ok(()),
        () = shutdown.cancelled() => Err(CallError::ShuttingDown.into()),
        denied = caller.ended() => Err(denied.into()),
    }
}

fn total(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
}

pub(crate) fn interim_response(snapshot: &Snapshot) -> v1::GetInterimResultsResponse {
    let counts = snapshot.submitted.iter().zip(&snapshot.counted);
    let options = snapshot.poll.options.iter().zip(counts);
    v1::GetInterimResultsResponse {
        poll_id: snapshot.poll.id.to_string(),
        options: options
            .map(|(option, (submitted, counted))| v1::InterimOption {
                option_id: option.id.to_string(),
                submitted: *submitted,
                counted: *counted,
            })
            .collect(),
        total_submitted: total(&snapshot.submitted),
        total_counted: total(&snapshot.counted),
        as_of: Some(timestamp(snapshot.as_of)),
    }
}

pub(crate) fn final_response(poll: &Poll, result: &FinalResult) -> v1::GetFinalResultsResponse {
    let options = poll.options.iter().zip(&result.votes);
    v1::GetFinalResultsResponse {
        poll_id: poll.id.to_string(),
        options: options
            .map(|(option, votes)| v1::FinalOption { option_id: option.id.to_string(), votes: *votes })
            .collect(),
        total_votes: total(&result.votes),
        closed_at: Some(timestamp(poll.closes_at)),
        finalized_at: Some(timestamp(result.finalized_at)),
    }
}

/// One watching call. It holds only the counts that it sent last. A response is made only when the client has room for
/// it.
struct Watch {
    id: PollId,
    viewer: Viewer,
    caller: Caller,
    snapshots: Arc<Snapshots>,
    shutdown: CancellationToken,
    sent: Option<(Vec<u64>, Vec<u64>)>,
    ended: bool,
}

impl Watch {
    /// The next response, or `None` after the final counts have been sent.
    async fn next(&mut self) -> Result<Option<v1::WatchInterimResultsResponse>, Status> {
        let mut failures = 0;
        while !self.ended {
            if self.sent.is_some() || failures > 0 {
                pause(&self.shutdown, &self.caller).await?;
            }
            match self.snapshots.get(self.viewer, &self.id).await {
                Ok(snapshot) => {
                    failures = 0;
                    self.ended = snapshot.poll.final_result.is_some();
                    let counts = (snapshot.submitted.clone(), snapshot.counted.clone());
                    if self.sent.as_ref() == Some(&counts) {
                        continue;
                    }
                    self.sent = Some(counts);
                    let v1::GetInterimResultsResponse { poll_id, options, total_submitted, total_counted, as_of } =
                        interim_response(&snapshot);
                    let response =
                        v1::WatchInterimResultsResponse { poll_id, options, total_submitted, total_counted, as_of };
                    return Ok(Some(response));
                }
                Err(failure) => {
                    failures += 1;
                    if !may_pass(&failure) || failures >= FAILURES_MAX {
                        return Err(shared(failure));
                    }
                }
            }
        }
        Ok(None)
    }

    fn into_stream(self) -> impl Stream<Item = Result<v1::WatchInterimResultsResponse, Status>> {
        stream::unfold(self, |mut watch| async move {
            let item = watch.next().await.transpose()?;
            watch.ended |= item.is_err();
            Some((item, watch))
        })
    }
}

#[tonic::async_trait]
impl ResultsService for Results {
    type WatchInterimResultsStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchInterimResultsResponse, Status>> + Send>>;

    async fn get_interim_results(
        &self,
        request: Request<v1::GetInterimResultsRequest>,
    ) -> Result<Response<v1::GetInterimResultsResponse>, Status> {
        let (viewer, _) = viewer_of(request.extensions(), &request.get_ref().poll_id, Act::Read)?;
        let id = poll_id_of(&request.get_ref().poll_id)?;
        let snapshot = self.snapshots.get(viewer, &id).await.map_err(shared)?;
        Ok(Response::new(interim_response(&snapshot)))
    }

    async fn watch_interim_results(
        &self,
        request: Request<v1::WatchInterimResultsRequest>,
    ) -> Result<Response<Self::WatchInterimResultsStream>, Status> {
        let (viewer, caller) = viewer_of(request.extensions(), &request.get_ref().poll_id, Act::Read)?;
        let id = poll_id_of(&request.get_ref().poll_id)?;
        // If the poll does not exist or is hidden, the call fails at once, not with its first response.
        self.snapshots.get(viewer, &id).await.map_err(shared)?;
        let (snapshots, shutdown) = (self.snapshots.clone(), self.shutdown.clone());
        let watch = Watch { id, viewer, caller, snapshots, shutdown, sent: None, ended: false };
        Ok(Response::new(Box::pin(watch.into_stream())))
    }

    async fn get_final_results(
        &self,
        request: Request<v1::GetFinalResultsRequest>,
    ) -> Result<Response<v1::GetFinalResultsResponse>, Status> {
        let (viewer, caller) = viewer_of(request.extensions(), &request.get_ref().poll_id, Act::Read)?;
        let id = poll_id_of(&request.get_ref().poll_id)?;
        Ok(Response::new(self.final_results(viewer, &caller, &id, request.get_ref().wait).await?))
    }

    async fn recount(&self, request: Request<v1::RecountRequest>) -> Result<Response<v1::RecountResponse>, Status> {
        let (_, extensions, v1::RecountRequest { poll_id: id }) = request.into_parts();
        let viewer = acts::allow(&self.audit, &extensions, acts::RECOUNT, &id)?;
        let work = async { Ok(self.recounts.run(viewer, poll_id_of(&id)?).await?) };
        let became = |recount: &v1::RecountResponse| json!({ "matches": recount.matches, "final": recount.r#final });
        let run = acts::run(&self.audit, &extensions, acts::RECOUNT, &id, || Value::Null, work, became);
        Ok(Response::new(run.await?))
    }

    async fn release_results(
        &self,
        request: Request<v1::ReleaseResultsRequest>,
    ) -> Result<Response<v1::ReleaseResultsResponse>, Status> {
        let (_, extensions, v1::ReleaseResultsRequest { poll_id: id }) = request.into_parts();
        acts::allow(&self.audit, &extensions, acts::RELEASE, &id)?;
        let work = async { Ok(convert::poll(&self.release(poll_id_of(&id)?).await?, self.ports.clock.now())) };
        let poll = acts::run(&self.audit, &extensions, acts::RELEASE, &id, || Value::Null, work, acts::poll).await?;
        Ok(Response::new(v1::ReleaseResultsResponse { poll: Some(poll) }))
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use tonic::Code;
    use tonic_types::StatusExt;
    use votestream_core::{
        TimeBounds, Timestamp,
        port::{Group, LostTime, PollStore, ShardRow},
    };

    use votestream_testkit::memory::Memory;

    use super::*;
    use crate::{
        recount::RECOUNTS_MAX,
        testing::{memory, poll, row},
    };

    async fn service() -> (Memory, Results) {
        let memory = memory();
        memory.set_now(5_000);
        PollStore::create(&memory, &poll("p", 0, 10_000)).await.unwrap();
        memory.add_to_tally("p", Group::Persist, "a", &[("x", 5), ("y", -1)]);
        memory.add_to_tally("p", Group::Persist, "b", &[("y", 3)]);
        memory.add_to_tally("p", Group::Tally, "a", &[("x", 8), ("y", 2)]);
        let (ports, bounds) = (memory.ports(), TimeBounds::ONE_MACHINE);
        let finalizer = Arc::new(Finalizer::new(ports.clone(), bounds));
        let snapshots = Arc::new(Snapshots::new(ports.clone(), bounds, Duration::from_millis(100)));
        (memory, Results::new(ports, finalizer, snapshots, CancellationToken::new()))
    }

    fn all(watermark: i64) -> Vec<ShardRow> {
        vec![row("s", (0, u128::MAX), watermark)]
    }

    fn id() -> PollId {
        PollId::new("p").unwrap()
    }

    fn result(votes: &[u64]) -> FinalResult {
        FinalResult { votes: votes.to_vec(), finalized_at: Timestamp(17_000) }
    }

    fn interim(id: &str) -> Request<v1::GetInterimResultsRequest> {
        Caller::everybody().asks(v1::GetInterimResultsRequest { poll_id: id.into() })
    }

    #[tokio::test(start_paused = true)]
    async fn interim_results_are_the_sums_of_both_groups() {
        let (memory, results) = service().await;
        let response = results.get_interim_results(interim("p")).await.unwrap().into_inner();
        let option = |id: &str, submitted, counted| v1::InterimOption { option_id: id.into(), submitted, counted };
        let expected = v1::GetInterimResultsResponse {
            poll_id: "p".into(),
            options: vec![option("x", 8, 5), option("y", 2, 2)],
            total_submitted: 10,
            total_counted: 7,
            as_of: Some(timestamp(Timestamp(5_000))),
        };
        assert_eq!(response, expected);
        for _ in 0..1_000 {
            results.get_interim_results(interim("p")).await.unwrap();
        }
        assert_eq!(memory.tally_reads(), 1);
        assert_eq!(results.get_interim_results(interim("q")).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(results.get_interim_results(interim("")).await.unwrap_err().code(), Code::InvalidArgument);

        memory.add_to_tally("p", Group::Persist, "b", &[("y", -3)]);
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(results.get_interim_results(interim("p")).await.unwrap_err().code(), Code::Internal);
    }

    #[tokio::test(start_paused = true)]
    async fn final_results_wait_and_never_change() {
        let (memory, results) = service().await;
        let ask = |wait| Caller::everybody().asks(v1::GetFinalResultsRequest { poll_id: "p".into(), wait });
        let early = results.get_final_results(ask(false)).await.unwrap_err();
        assert_eq!(early.code(), Code::FailedPrecondition);
        assert!(early.message().contains("closes at 1970-01-01T00:00:10Z"), "{early}");

        let waiting = results.get_final_results(ask(true));
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        memory.finish(&id(), &result(&[5, 2])).await.unwrap();
        let response = waiting.await.unwrap().into_inner();
        assert_eq!(response.options.iter().map(|option| option.votes).collect::<Vec<_>>(), [5, 2]);
        assert_eq!((response.total_votes, response.finalized_at), (7, Some(timestamp(Timestamp(17_000)))));

        memory.add_to_tally("p", Group::Persist, "b", &[("y", 9)]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(results.get_final_results(ask(false)).await.unwrap().into_inner(), response);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_with_the_server() {
        let (_, results) = service().await;
        results.shutdown.cancel();
        let ask = Caller::everybody().asks(v1::GetFinalResultsRequest { poll_id: "p".into(), wait: true });
        assert_eq!(results.get_final_results(ask).await.unwrap_err().code(), Code::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn watching_sends_changes_and_ends_with_the_final_counts() {
        let (memory, results) = service().await;
        let watch = Caller::everybody().asks(v1::WatchInterimResultsRequest { poll_id: "p".into() });
        let mut watch = results.watch_interim_results(watch).await.unwrap().into_inner();
        assert_eq!(watch.next().await.unwrap().unwrap().total_submitted, 10);
        {
            let quiet = tokio::time::timeout(Duration::from_secs(3), watch.next());
            assert!(quiet.await.is_err(), "nothing has changed");
        }
        memory.add_to_tally("p", Group::Tally, "b", &[("x", 1)]);
        assert_eq!(watch.next().await.unwrap().unwrap().total_submitted, 11);

        // A store that fails for a moment does not end the call.
        memory.fail_next(3);
        memory.add_to_tally("p", Group::Persist, "b", &[("x", 1)]);
        assert_eq!(watch.next().await.unwrap().unwrap().total_counted, 8);

        memory.add_to_tally("p", Group::Persist, "b", &[("x", 1)]);
        memory.finish(&id(), &result(&[7, 2])).await.unwrap();
        assert_eq!(watch.next().await.unwrap().unwrap().total_counted, 9);
        assert!(watch.next().await.is_none());
    }

    async fn hide(memory: &Memory, id: &str, visibility: Visibility) {
        let poll = poll(id, 0, 10_000).with_visibility(visibility);
        PollStore::create(memory, &poll).await.unwrap();
        memory.add_to_tally(id, Group::Persist, "a", &[("x", 31_337)]);
        memory.add_to_tally(id, Group::Tally, "a", &[("x", 31_338)]);
        memory.set_votes(id, &[("x", 31_337)]);
    }

    fn hidden(status: &Status, sentence: &str) {
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().starts_with(sentence), "{status}");
        assert!(!format!("{status:?}").contains("3133"), "no count in {status:?}");
        assert_eq!(status.get_details_error_info().map(|info| info.reason).as_deref(), Some("RESULTS_HIDDEN"));
    }

    /// The three ways to results for a reader, all hidden.
    async fn all_hidden(results: &Results, id: &str, sentence: &str) {
        hidden(&results.get_interim_results(interim(id)).await.unwrap_err(), sentence);
        let watch = Caller::everybody().asks(v1::WatchInterimResultsRequest { poll_id: id.into() });
        hidden(&results.watch_interim_results(watch).await.err().unwrap(), sentence);
        let last = Caller::everybody().asks(v1::GetFinalResultsRequest { poll_id: id.into(), wait: false });
        hidden(&results.get_final_results(last).await.unwrap_err(), sentence);
        let id = PollId::new(id).unwrap();
        let recount = results.recounts.run(Viewer::Reader, id.clone()).await.unwrap_err();
        hidden(&recount.into(), sentence);
        assert_eq!(results.recounts.run(Viewer::Manager, id.clone()).await.unwrap().options[0].recounted, 31_337);
        assert_eq!(results.snapshots.get(Viewer::Manager, &id).await.unwrap().counted[0], 31_337);
    }

    #[tokio::test(start_paused = true)]
    async fn results_are_hidden_until_they_are_final() {
        let (memory, results) = service().await;
        hide(&memory, "h", Visibility::WhenFinal).await;
        all_hidden(&results, "h", "the results of this poll are shown once they are final").await;
        let ask = |wait| Caller::everybody().asks(v1::GetFinalResultsRequest { poll_id: "h".into(), wait });
        let early = results.get_final_results(ask(false)).await.unwrap_err();
        assert!(early.message().contains("the poll closes at 1970-01-01T00:00:10Z"), "{early}");
        let release = Caller::everybody().asks(v1::ReleaseResultsRequest { poll_id: "h".into() });
        let refused = results.release_results(release).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        all_hidden(&results, "h", "the results of this poll are shown once they are final").await;

        let waiting = results.get_final_results(ask(true));
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        memory.finish(&PollId::new("h").unwrap(), &result(&[31_337, 0])).await.unwrap();
        assert_eq!(waiting.await.unwrap().into_inner().total_votes, 31_337);
        assert_eq!(results.get_interim_results(interim("h")).await.unwrap().into_inner().total_counted, 31_337);
    }

    #[tokio::test(start_paused = true)]
    async fn results_are_hidden_until_they_are_released() {
        let (memory, results) = service().await;
        let sentence = "the results of this poll are shown once somebody releases them";
        hide(&memory, "h", Visibility::OnRelease).await;
        all_hidden(&results, "h", sentence).await;
        memory.finish(&PollId::new("h").unwrap(), &result(&[31_337, 0])).await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        all_hidden(&results, "h", sentence).await;

        let waiting = results.get_final_results(
            Caller::everybody().asks(v1::GetFinalResultsRequest { poll_id: "h".into(), wait: true }),
        );
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(Duration::from_secs(5), &mut waiting).await.is_err(), "final, but not shown");
        let release = |id: &str| Caller::everybody().asks(v1::ReleaseResultsRequest { poll_id: id.into() });
        let first = results.release_results(release("h")).await.unwrap().into_inner().poll.unwrap();
        assert!(first.released_at.is_some());
        // Without any pause: this process has forgotten what it had read.
        assert_eq!(results.get_interim_results(interim("h")).await.unwrap().into_inner().total_counted, 31_337);
        memory.set_now(6_000);
        let again = results.release_results(release("h")).await.unwrap().into_inner().poll.unwrap();
        assert_eq!(again.released_at, first.released_at);
        assert_eq!(waiting.await.unwrap().into_inner().total_votes, 31_337);
        assert_eq!(results.release_results(release("none")).await.unwrap_err().code(), Code::NotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn a_recount_keeps_its_permit_until_its_work_has_ended() {
        let (memory, results) = service().await;
        memory.set_votes("p", &[("x", 5), ("y", 2)]);
        let finish = memory.hold_recounts();
        for round in 0..100 {
            // Begin, and cancel at once.
            let recount = results.recounts.run(Viewer::Manager, id());
            let begun = tokio::time::timeout(Duration::from_millis(1), recount).await;
            assert_eq!(begun.is_err(), round < RECOUNTS_MAX, "{round}");
        }
        assert_eq!(memory.recounts_begun() as usize, RECOUNTS_MAX);
        assert!(matches!(results.recounts.run(Viewer::Manager, id()).await, Err(CallError::Busy(_))));
        drop(finish);
        let again = async {
            while matches!(results.recounts.run(Viewer::Manager, id()).await, Err(CallError::Busy(_))) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), again).await.expect("the permits came back");
    }

    #[tokio::test(start_paused = true)]
    async fn counted_never_exceeds_submitted() {
        let (memory, results) = service().await;
        let shown = || async {
            tokio::time::advance(Duration::from_millis(100)).await;
            let response = results.get_interim_results(interim("p")).await.unwrap().into_inner();
            for option in &response.options {
                assert!(option.counted <= option.submitted, "{response:?}");
            }
            let options: Vec<_> = response.options.iter().map(|option| option.submitted).collect();
            assert_eq!(response.total_submitted, options.iter().sum::<u64>());
            assert!(response.total_counted <= response.total_submitted, "{response:?}");
            options
        };
        assert_eq!(shown().await, [8, 2]);
        // Ten votes for y: persist has committed them, tally has not.
        memory.add_to_tally("p", Group::Persist, "c", &[("y", 10)]);
        assert_eq!(shown().await, [8, 12]);
        // These users change their votes. The submitted votes still count as submitted.
        memory.add_to_tally("p", Group::Persist, "c", &[("y", -9), ("x", 9)]);
        assert_eq!(shown().await, [14, 12]);
        results.snapshots.forget(&id());
        memory.fail_next(1);
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(results.get_interim_results(interim("p")).await.is_err());
        assert_eq!(shown().await, [14, 12]);
        // Tally catches up. Then its own numbers are shown again.
        memory.add_to_tally("p", Group::Tally, "c", &[("y", 10), ("x", 9)]);
        assert_eq!(shown().await, [17, 12]);
        // Now tally is ahead.
        memory.add_to_tally("p", Group::Tally, "c", &[("x", 100)]);
        assert_eq!(shown().await, [117, 12]);
    }

    #[tokio::test(start_paused = true)]
    async fn watching_ends_with_the_server() {
        let (_, results) = service().await;
        let watch = Caller::everybody().asks(v1::WatchInterimResultsRequest { poll_id: "p".into() });
        let mut watch = results.watch_interim_results(watch).await.unwrap().into_inner();
        assert!(watch.next().await.unwrap().is_ok());
        results.shutdown.cancel();
        assert_eq!(watch.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
        assert!(watch.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_recount_clears_the_flag_only_if_it_proves_the_tallies() {
        let (memory, results) = service().await;
        memory.set_needs_recount(&id(), true).await.unwrap();
        memory.set_now(20_000);
        let flagged = || async { PollStore::get(&memory, &id()).await.unwrap().unwrap().needs_recount };
        // Not committed far enough; committed, but another count; both.
        for (watermark, recount, matches, cleared) in
            [(15_999, [5, 2], true, false), (16_000, [5, 3], false, false), (16_000, [5, 2], true, true)]
        {
            memory.set_rows(Group::Persist, all(watermark));
            memory.set_votes("p", &[("x", recount[0]), ("y", recount[1])]);
            tokio::time::advance(Duration::from_secs(1)).await;
            let response = results.recounts.run(Viewer::Manager, id()).await.unwrap();
            assert_eq!((response.matches, response.r#final), (matches, false));
            assert!(!response.progress.is_empty());
            assert_eq!(
                response.options[1],
                v1::RecountOption { option_id: "y".into(), counted: 2, recounted: recount[1] }
            );
            assert_eq!(!flagged().await, cleared, "{watermark} {recount:?}");
        }
        memory.finish(&id(), &result(&[5, 2])).await.unwrap();
        let response = results.recounts.run(Viewer::Manager, id()).await.unwrap();
        assert!(response.r#final && response.matches && response.progress.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn no_recount_makes_a_result_official_whose_votes_may_be_lost() {
        let (memory, results) = service().await;
        memory.set_now(20_000);
        memory.set_votes("p", &[("x", 5), ("y", 2)]);
        // Lost before the poll opened, or after it had closed and no vote could arrive; and in between.
        let poll = PollStore::get(&memory, &id()).await.unwrap().unwrap();
        let late = TimeBounds::ONE_MACHINE.late_after().as_millis() as i64;
        let (before, after) = (poll.opens_at.0 - late - 1, poll.closes_at.0 + late + 1);
        for (from, until, is_concerned) in [
            (before - 1, before, false),
            (after, after + 1, false),
            (before, before + 1, true),
            (after - 1, after, true),
        ] {
            memory.set_needs_recount(&id(), true).await.unwrap();
            let lost = Some(LostTime { from: Timestamp(from), until: Timestamp(until) });
            memory.set_rows(Group::Persist, all(16_000).into_iter().map(|row| ShardRow { lost, ..row }));
            tokio::time::advance(Duration::from_secs(1)).await;
            let response = results.recounts.run(Viewer::Manager, id()).await.unwrap();
            assert!(response.matches && !response.r#final);
            let poll = PollStore::get(&memory, &id()).await.unwrap().unwrap();
            assert_eq!(poll.needs_recount, is_concerned, "{from} {until}");
            assert_eq!(response.progress.contains("were lost"), is_concerned, "{}", response.progress);
        }
    }
}
