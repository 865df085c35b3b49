//! Polls and results.
//!
//! Owns deadlines of these calls, and waiting for a final result. Must never repeat a call that changes something.

use std::time::Duration;

use futures::{Stream, stream::try_unfold};
use tokio::time::{Instant, sleep_until};
use votestream_proto::v1::{
    ClosePollRequest, CreatePollRequest, GetFinalResultsRequest, GetFinalResultsResponse, GetInterimResultsRequest,
    GetInterimResultsResponse, GetPollRequest, ListPollsRequest, ListPollsResponse, Poll, RecountRequest,
    RecountResponse, ReleaseResultsRequest,
};

use crate::{ClientError, ResultsClient, Watch};

/// Polls of a page when all are listed.
const PAGE_POLLS: u32 = 1_000;
/// Pages that are read at the most: a service whose pages never end is broken.
const PAGES_MAX: u32 = 10_000;
/// One call that waits for a final result; then the next one, so that no proxy's time limit ends the wait.
const WAIT_CALL: Duration = Duration::from_secs(60);
/// Shortest time from one call that waits to the next.
const WAIT_PAUSE: Duration = Duration::from_secs(1);

impl ResultsClient {
    /// Creates a poll. Creating the same poll again succeeds, so a call that failed may be repeated.
    ///
    /// # Errors
    ///
    /// If the definition is not valid, another poll has this id, or the call fails.
    pub async fn create_poll(&self, request: CreatePollRequest) -> Result<Poll, ClientError> {
        let mut grpc = self.polls.clone();
        let call = |request| async move { grpc.create_poll(request).await };
        self.poll_of(self.wire.call(request, self.wire.call_timeout, call).await?.poll)
    }

    /// Reads a poll.
    ///
    /// # Errors
    ///
    /// If there is none with this id, or the call fails.
    pub async fn get_poll(&self, poll_id: &str) -> Result<Poll, ClientError> {
        let mut grpc = self.polls.clone();
        let request = GetPollRequest { poll_id: poll_id.to_owned() };
        let call = |request| async move { grpc.get_poll(request).await };
        self.poll_of(self.wire.call(request, self.wire.call_timeout, call).await?.poll)
    }

    /// Closes a poll early. Closing it again changes nothing, so a call that failed may be repeated.
    ///
    /// # Errors
    ///
    /// If there is none with this id, or the call fails.
    pub async fn close_poll(&self, poll_id: &str) -> Result<Poll, ClientError> {
        let mut grpc = self.polls.clone();
        let request = ClosePollRequest { poll_id: poll_id.to_owned() };
        let call = |request| async move { grpc.close_poll(request).await };
        self.poll_of(self.wire.call(request, self.wire.call_timeout, call).await?.poll)
    }

    /// Shows the results of a poll with visibility ON_RELEASE to its readers, from now on. Releasing again changes
    /// nothing, so a call that failed may be repeated.
    ///
    /// # Errors
    ///
    /// If there is none with this id, it has another visibility, or the call fails.
    pub async fn release_results(&self, poll_id: &str) -> Result<Poll, ClientError> {
        let mut grpc = self.results.clone();
        let request = ReleaseResultsRequest { poll_id: poll_id.to_owned() };
        let call = |request| async move { grpc.release_results(request).await };
        self.poll_of(self.wire.call(request, self.wire.call_timeout, call).await?.poll)
    }

    fn poll_of(&self, poll: Option<Poll>) -> Result<Poll, ClientError> {
        poll.ok_or_else(|| ClientError::Incomplete { address: self.wire.address.clone(), what: "a poll" })
    }

    /// Lists one page of polls, in the order of their ids.
    ///
    /// # Errors
    ///
    /// If the call fails.
    pub async fn list_polls(&self, request: ListPollsRequest) -> Result<ListPollsResponse, ClientError> {
        let mut grpc = self.polls.clone();
        let call = |request| async move { grpc.list_polls(request).await };
        self.wire.call(request, self.wire.call_timeout, call).await
    }

    /// All polls in the order of their ids, of which one page is kept at a time. An item is an error if a page cannot be
    /// read; it is the last.
    pub fn all_polls(&self) -> impl Stream<Item = Result<Vec<Poll>, ClientError>> + Send + use<> {
        let client = self.clone();
        try_unfold(Some((0, String::new())), move |next| {
            let client = client.clone();
            async move {
                let Some((pages, page_token)) = next else { return Ok(None) };
                let page = client.list_polls(ListPollsRequest { page_size: PAGE_POLLS, page_token }).await?;
                let more = !page.next_page_token.is_empty() && pages + 1 < PAGES_MAX;
                Ok(Some((page.polls, more.then_some((pages + 1, page.next_page_token)))))
            }
        })
    }

    /// Reads the counts as far as they are committed.
    ///
    /// # Errors
    ///
    /// If the poll does not show them yet, which [`ClientError::is_hidden`] tells, there is no such poll, or the call fails.
    pub async fn interim_results(&self, poll_id: &str) -> Result<GetInterimResultsResponse, ClientError> {
        let mut grpc = self.results.clone();
        let request = GetInterimResultsRequest { poll_id: poll_id.to_owned() };
        let call = |request| async move { grpc.get_interim_results(request).await };
        self.wire.call(request, self.wire.call_timeout, call).await
    }

    /// Shows the counts whenever they change, until the poll is final. Connects again, within the client's
    /// [`Retry`](crate::Retry), when the connection breaks.
    pub fn watch_results(&self, poll_id: &str) -> Watch {
        Watch::new(self, poll_id.to_owned())
    }

    /// Reads the final result.
    ///
    /// # Errors
    ///
    /// If there is none yet, which [`ClientError::is_not_final`] tells, the poll does not show it yet, which
    /// [`ClientError::is_hidden`] tells, there is no such poll, or the call fails.
    pub async fn final_results(&self, poll_id: &str) -> Result<GetFinalResultsResponse, ClientError> {
        self.final_call(poll_id, false, self.wire.call_timeout).await
    }

    /// Waits until the result is final and shown; for so long, or without end.
    ///
    /// # Errors
    ///
    /// If there is none by then, which [`ClientError::is_not_final`] tells, there is no such poll, or a call fails.
    pub async fn wait_for_final_results(
        &self,
        poll_id: &str,
        time_max: Option<Duration>,
    ) -> Result<GetFinalResultsResponse, ClientError> {
        let limit = time_max.map(|time_max| Instant::now() + time_max);
        loop {
            let left = limit.map_or(WAIT_CALL, |limit| limit.saturating_duration_since(Instant::now()));
            let started = Instant::now();
            let error = match self.final_call(poll_id, true, left.min(WAIT_CALL)).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            if !error.is_not_final() || limit.is_some_and(|limit| Instant::now() + WAIT_PAUSE >= limit) {
                return Err(error);
            }
            sleep_until(started + WAIT_PAUSE).await;
        }
    }

    async fn final_call(
        &self,
        poll_id: &str,
        wait: bool,
        timeout: Duration,
    ) -> Result<GetFinalResultsResponse, ClientError> {
        let mut grpc = self.results.clone();
        let request = GetFinalResultsRequest { poll_id: poll_id.to_owned(), wait };
        let call = |request| async move { grpc.get_final_results(request).await };
        self.wire.call(request, timeout, call).await
    }

    /// Counts the stored votes anew, and compares them with the tallies. It reads every vote, which takes long: the time is
    /// the caller's.
    ///
    /// # Errors
    ///
    /// If there is no such poll, too many recounts are under way, or the call fails.
    pub async fn recount(&self, poll_id: &str, time_max: Duration) -> Result<RecountResponse, ClientError> {
        let mut grpc = self.results.clone();
        let request = RecountRequest { poll_id: poll_id.to_owned() };
        let call = |request| async move { grpc.recount(request).await };
        self.wire.call(request, time_max, call).await
    }
}
