//! Interim results as they change.
//!
//! Owns the way back to the service after a broken connection. Must never take a broken connection for the end of the poll.

use futures::{Stream, stream::unfold};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Status, Streaming};
use votestream_proto::v1::{WatchInterimResultsRequest, WatchInterimResultsResponse};

use crate::{
    ClientError, ResultsClient,
    retry::Backoff,
    status::{may_pass, retry_after},
};

/// The counts of a poll, whenever they change.
///
/// The client's [`Retry`](crate::Retry) bounds attempts without an update between them; a poll may well be silent for longer
/// while the connection stands.
#[derive(Debug)]
pub struct Watch {
    client: ResultsClient,
    poll_id: String,
    backoff: Backoff,
    /// Not before this moment the next attempt is made.
    pause_until: Option<Instant>,
    updates: Option<Streaming<WatchInterimResultsResponse>>,
    /// Whether a call of it was ever taken.
    was_taken: bool,
    over: bool,
}

impl Watch {
    pub(crate) fn new(client: &ResultsClient, poll_id: String) -> Self {
        let backoff = Backoff::new(client.wire.retry);
        Self {
            client: client.clone(),
            poll_id,
            backoff,
            pause_until: None,
            updates: None,
            was_taken: false,
            over: false,
        }
    }

    /// Waits for the next update; `None` once the poll is final, or after an error. A wait that is given up loses nothing.
    pub async fn next(&mut self) -> Option<Result<WatchInterimResultsResponse, ClientError>> {
        while !self.over {
            let status = match self.attempt().await {
                Ok(Some(update)) => {
                    self.backoff.progress();
                    return Some(Ok(update));
                }
                Ok(None) => break,
                Err(status) => status,
            };
            self.updates = None;
            let anew = self.client.wire.may_pass_anew(Some(&status), self.was_taken);
            let pause = if anew || may_pass(Some(&status)) { self.backoff.failed(retry_after(&status)) } else { None };
            let Some(pause) = pause else {
                self.over = true;
                return Some(Err(ClientError::call(&self.client.wire, status)));
            };
            self.pause_until = Some(Instant::now() + pause);
        }
        self.over = true;
        None
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<WatchInterimResultsResponse, ClientError>> + Send {
        unfold(self, |mut watch| async move { Some((watch.next().await?, watch)) })
    }

    /// Waits for the next update of a call, which is made if there is none.
    async fn attempt(&mut self) -> Result<Option<WatchInterimResultsResponse>, Status> {
        if let Some(pause_until) = self.pause_until {
            sleep_until(pause_until).await;
            self.pause_until = None;
        }
        let updates = match &mut self.updates {
            Some(updates) => updates,
            none => {
                // No deadline for the whole: a poll may be open for days. Keep-alive notices a service that is gone.
                let request = WatchInterimResultsRequest { poll_id: self.poll_id.clone() };
                let mut grpc = self.client.results.clone();
                let opening = timeout(self.client.wire.call_timeout, grpc.watch_interim_results(request)).await;
                let opened = opening.map_err(|_| Status::deadline_exceeded("no answer came in time"))??;
                self.backoff.under_way();
                self.was_taken = true;
                none.insert(opened.into_inner())
            }
        };
        updates.message().await
    }
}
