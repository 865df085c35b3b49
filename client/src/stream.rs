//! Streams of votes: sends messages, keeps what is not settled within bounds, hands out what was settled, resumes.
//!
//! Owns the client's side of `StreamVotes`. A service may end a stream on which everything is settled, such as one that was
//! silent for long; the next message then opens another one. When a stream breaks, everything from the first vote on that is
//! not settled is sent again, in its order: whatever of it had been stored is replaced by its copy, and the last vote of each
//! user stays the last. Must never have more unsettled than its settings allow, never report a vote as durable that the
//! service has not settled, never pass a vote by an earlier one of the same user, and without `resume` never send one again.

mod copies;
mod ledger;
mod link;
mod message;
mod votes;

use std::{future::Future, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Status};
use votestream_proto::v1::Rejection;

use self::{
    copies::Copies,
    ledger::Ledger,
    link::{LinkEnd, Queue, one_link},
};
pub use self::{
    message::{MessageBuilder, Outgoing},
    votes::{Outcomes, StreamOver, VOTE_BYTES_MAX, VoteSender},
};
use crate::{
    ClientError, IngestClient, Retry,
    retry::Backoff,
    status::{is_not_stored, may_pass, retry_after},
};

/// Votes of one stream that may be under way, unless told otherwise. At 10 ms from message to acknowledgement enough for 3
/// million votes/s.
pub const UNSETTLED_VOTES_MAX: u64 = 32_768;
/// Bytes of messages of one stream that may be under way, unless told otherwise: twice the largest message.
pub const UNSETTLED_BYTES_MAX: usize = 8 << 20;
/// Messages that wait between a source and its stream; a good capacity for the channel of
/// [`IngestClient::stream_messages`].
pub const SOURCE_MESSAGES_MAX: usize = 8;
/// How long after a stream has broken what was sent over it may still be stored, unless told otherwise. By the settings of a
/// distributed deployment a vote that is stored more than 12 s after it was taken does not count; 3 s are left for the service
/// to take what the connection had brought.
pub const COPIES_LAND_WITHIN: Duration = Duration::from_secs(15);
/// How long to wait for the next message once the stream is over, only to name it: a source such as a terminal may have none
/// for hours.
const NEXT_MESSAGE_WAIT: Duration = Duration::from_millis(500);

/// Settings of a stream of votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// Whether a stream that breaks is opened again, and what is not settled is sent again. Otherwise its outcome is unknown.
    pub resume: bool,
    /// Bounds of repeated attempts, counted from the last vote that was settled.
    pub retry: Retry,
    /// Votes that may be under way. A message is sent if there are fewer, however many it has.
    pub unsettled_votes_max: u64,
    /// Bytes of messages that may be under way. A message is sent if there are fewer, however long it is.
    pub unsettled_bytes_max: usize,
    /// How long after a break a vote that was sent before may still be stored. For so long a vote of the same user for another
    /// option is held back, and everything behind it, so that the old vote cannot land behind the new one. Zero holds nothing
    /// back.
    pub copies_land_within: Duration,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            resume: true,
            retry: Retry::DEFAULT,
            unsettled_votes_max: UNSETTLED_VOTES_MAX,
            unsettled_bytes_max: UNSETTLED_BYTES_MAX,
            copies_land_within: COPIES_LAND_WITHIN,
        }
    }
}

/// What learns what has become of messages, in their order.
pub trait Observer<T> {
    /// A vote was rejected, or its outcome is unknown to the service: its place in its message with that message's tag. The
    /// place is `None` if the service named a vote that was not under way.
    fn rejected(&mut self, place: Option<(&T, u64)>, rejection: Rejection);
    /// A message is settled as a whole: its votes are durable, except those that were rejected. Its time runs from when it
    /// was due.
    fn settled(&mut self, tag: T, votes: u64, latency: Duration);
}

/// What is known when everything is settled, or no stream can be had any more.
#[derive(Debug)]
pub struct Ended<T> {
    /// Votes that were sent, each counted once.
    pub sent: u64,
    /// Votes that were settled, from the first one on.
    pub settled: u64,
    /// The messages that are not settled as a whole, in their order. The last one may be one that was not sent: the next of
    /// the source.
    pub unsettled: Vec<Unsettled<T>>,
    /// Why the stream broke, if it did.
    pub failure: Option<ClientError>,
}

/// A message of which the outcome is not known as a whole.
#[derive(Debug)]
pub struct Unsettled<T> {
    /// What the observer knows it by.
    pub tag: T,
    /// Place of the first vote whose outcome is not known; those before are settled.
    pub from: u64,
    /// Whether the votes from there on may have been stored. If not, they certainly were not.
    pub may_be_stored: bool,
}

/// Where messages come from.
pub(crate) trait Source<T> {
    /// The next message; `None` if no more come. A wait that is given up loses nothing.
    fn next(&mut self) -> impl Future<Output = Option<Outgoing<T>>> + Send;
}

impl<T: Send> Source<T> for mpsc::Receiver<Outgoing<T>> {
    fn next(&mut self) -> impl Future<Output = Option<Outgoing<T>>> + Send {
        self.recv()
    }
}

impl IngestClient {
    /// Sends everything that the source yields, and returns once all of it is settled or no stream can be had any more.
    pub async fn stream_messages<T: Send>(
        &self,
        options: StreamOptions,
        mut source: mpsc::Receiver<Outgoing<T>>,
        observer: &mut (impl Observer<T> + Send),
    ) -> Ended<T> {
        let mut ended = self.run(options, &mut source, observer).await;
        if ended.failure.is_some() && ended.unsettled.is_empty() {
            let next = timeout(NEXT_MESSAGE_WAIT, source.recv()).await;
            let next = next.ok().flatten();
            ended.unsettled.extend(next.map(|outgoing| Unsettled { tag: outgoing.tag, from: 0, may_be_stored: false }));
        }
        ended
    }

    /// One stream after the other, until the source has ended or no stream can be had any more.
    async fn run<T: Send>(
        &self,
        options: StreamOptions,
        source: &mut (impl Source<T> + Send),
        observer: &mut (impl Observer<T> + Send),
    ) -> Ended<T> {
        let mut queue = Queue::new(source, Copies::new(options));
        let mut ledger = Ledger::new(options);
        let mut backoff = Backoff::new(options.retry);
        // Opened with its first message: a stream without votes only grows old.
        while let Some(first) = queue.next().await {
            let before = ledger.settled_in_all();
            let end = one_link(self, first, &mut queue, &mut ledger, observer).await;
            if ledger.settled_in_all() > before {
                backoff.progress();
            }
            let status = match end {
                LinkEnd::Closed => break,
                LinkEnd::ByService(status) => status,
            };
            let is_settled = ledger.is_settled();
            let may_be_stored = !status.as_ref().is_some_and(is_not_stored);
            let unsettled = ledger.take(may_be_stored);
            // Every stream that is opened anew follows one that has settled votes, so this ends.
            if is_settled && may_go_on(status.as_ref()) {
                continue;
            }
            let anew = self.wire.may_pass_anew(status.as_ref(), ledger.settled_in_all() > 0);
            let pause = if options.resume && (anew || may_pass(status.as_ref())) {
                backoff.failed(status.as_ref().and_then(retry_after))
            } else {
                None
            };
            let Some(pause) = pause else {
                let (sent, settled) = (ledger.sent_in_all(), ledger.settled_in_all());
                let unsettled = queue.left(unsettled);
                let failure = match status {
                    Some(status) => ClientError::call(&self.wire, status),
                    None => ClientError::Ended { address: self.wire.address.clone() },
                };
                return Ended { sent, settled, unsettled, failure: Some(failure) };
            };
            queue.again(unsettled, may_be_stored.then(Instant::now));
            sleep(pause).await;
        }
        Ended { sent: ledger.sent_in_all(), settled: ledger.settled_in_all(), unsettled: Vec::new(), failure: None }
    }
}

/// Whether a stream on which everything is settled has ended for a reason that is none for the next one: the service, or the
/// connection, came to its end. If there is no other connection, the next message finds that out.
fn may_go_on(status: Option<&Status>) -> bool {
    status.is_none_or(|status| status.code() == Code::Unavailable || std::error::Error::source(status).is_some())
}
