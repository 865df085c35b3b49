//! A stream of single votes: one side takes votes, the other has exactly one outcome for each.
//!
//! Owns how votes share messages: those that wait while the stream is busy leave together, and none waits for others. Must never
//! take a vote for which there is no room, and a vote gives its room back when its outcome was taken; so neither votes nor
//! outcomes grow with a service or a caller that is slow.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use votestream_proto::v1::Rejection;

use super::{Ended, MessageBuilder, Observer, Outgoing, Source, StreamOptions};
use crate::{ClientError, IngestClient, Outcome, Vote};

/// Votes of a message, at the most. From a few hundred on larger messages save the service nothing.
const MESSAGE_VOTES_MAX: u64 = 500;
/// Bytes after which a message takes no more votes; far below what the service takes.
const MESSAGE_BYTES: usize = 256 << 10;
/// Bytes that a vote takes on the wire beside its ids, at the most.
const VOTE_OVERHEAD_BYTES: usize = 16;
/// Bytes of the ids of a vote, at the most. The service takes less, and has its own words for what is too long.
pub const VOTE_BYTES_MAX: usize = 64 << 10;

/// Why no more votes are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamOver {
    /// The stream broke, and no other can be had. [`Outcomes::failure`] says why. The vote was not sent.
    #[error("the stream is over")]
    Broken,
    /// The ids of the vote take more than [`VOTE_BYTES_MAX`] bytes. The vote was not sent, others may be.
    #[error("the ids of the vote take more than {VOTE_BYTES_MAX} bytes")]
    TooLong,
}

/// Takes votes. Dropping it ends the stream once everything is settled.
#[derive(Debug)]
pub struct VoteSender {
    shared: Arc<Shared>,
    votes: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    bytes_max: usize,
}

/// The outcomes of votes, in the order in which they were taken.
///
/// Each vote that was taken has exactly one. They have to be read while votes are cast: what is not read keeps its room.
#[derive(Debug)]
pub struct Outcomes {
    shared: Arc<Shared>,
    runs: mpsc::UnboundedReceiver<Run>,
    run: Option<Run>,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Told when there is something to send, or when no more comes.
    filled: Notify,
}

/// Votes that were taken and are in no stream yet.
#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<(MessageBuilder, Batch)>,
    /// Votes that were ever taken.
    taken: u64,
    /// The sender is gone.
    is_closed: bool,
    /// No stream can be had any more.
    is_over: bool,
    failure: Option<ClientError>,
}

/// Votes that share a message.
#[derive(Debug)]
struct Batch {
    /// Number of its first vote.
    first: u64,
    votes: u64,
    room: Vec<OwnedSemaphorePermit>,
}

/// Outcomes of a batch.
#[derive(Debug)]
struct Run {
    next: u64,
    end: u64,
    /// Outcomes of single votes, by their numbers.
    named: VecDeque<(u64, Outcome)>,
    /// Votes below this number that are not named are durable.
    settled: u64,
    /// Outcome of all others.
    rest: Outcome,
    _room: Vec<OwnedSemaphorePermit>,
}

impl IngestClient {
    /// Opens a stream of votes, which reconnects and sends again what is not settled, unless the options say otherwise.
    ///
    /// A task of the current runtime sends the votes.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn stream_votes(&self, options: StreamOptions) -> (VoteSender, Outcomes) {
        let shared = Arc::new(Shared { waiting: Mutex::default(), filled: Notify::new() });
        #[expect(clippy::disallowed_methods, reason = "every run holds the permits of its votes, so they bound it")]
        let (settled, runs) = mpsc::unbounded_channel();
        let permits = |max: usize| Arc::new(Semaphore::new(max.clamp(1, Semaphore::MAX_PERMITS)));
        let votes = permits(usize::try_from(options.unsettled_votes_max).unwrap_or(usize::MAX));
        let (bytes, bytes_max) = (permits(options.unsettled_bytes_max), options.unsettled_bytes_max.max(1));
        let rooms = [votes.clone(), bytes.clone()];
        let (client, sending) = (self.clone(), shared.clone());
        tokio::spawn(async move {
            let mut settler = Settler { runs: settled, named: VecDeque::new() };
            let mut source = sending.clone();
            let ended = client.run(options, &mut source, &mut settler).await;
            sending.end(ended, settler, &rooms);
        });
        let sender = VoteSender { shared: shared.clone(), votes, bytes, bytes_max };
        (sender, Outcomes { shared, runs, run: None })
    }
}

impl VoteSender {
    /// Takes a vote, once there is room for it, and returns its number: votes are numbered from 0 in the order in which they
    /// are taken. A call that is dropped takes nothing.
    ///
    /// # Errors
    ///
    /// If the vote was not taken: it has no number and no outcome.
    pub async fn push(&self, vote: Vote<'_>) -> Result<u64, StreamOver> {
        let bytes = vote.poll_id.len() + vote.user_id.len() + vote.option_id.len();
        if bytes > VOTE_BYTES_MAX {
            return Err(StreamOver::TooLong);
        }
        let bytes = (bytes + VOTE_OVERHEAD_BYTES).min(self.bytes_max).min(Semaphore::MAX_PERMITS);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let votes_room = self.votes.clone().acquire_owned().await.map_err(|_| StreamOver::Broken)?;
        let bytes_room = self.bytes.clone().acquire_many_owned(bytes).await.map_err(|_| StreamOver::Broken)?;
        let number = self.shared.waiting.lock().take_in(vote, [votes_room, bytes_room])?;
        self.shared.filled.notify_one();
        Ok(number)
    }

    /// No more votes come. The outcomes of those that were taken do.
    pub fn finish(self) {}
}

impl Drop for VoteSender {
    fn drop(&mut self) {
        self.shared.waiting.lock().is_closed = true;
        self.shared.filled.notify_one();
    }
}

impl Waiting {
    fn take_in(&mut self, vote: Vote<'_>, room: [OwnedSemaphorePermit; 2]) -> Result<u64, StreamOver> {
        if self.is_over {
            return Err(StreamOver::Broken);
        }
        let number = self.taken;
        self.taken += 1;
        let is_open = |builder: &MessageBuilder| builder.votes() < MESSAGE_VOTES_MAX && builder.bytes() < MESSAGE_BYTES;
        if !self.messages.back().is_some_and(|(builder, _)| is_open(builder)) {
            let batch = Batch { first: number, votes: 0, room: Vec::new() };
            self.messages.push_back((MessageBuilder::default(), batch));
        }
        if let Some((builder, batch)) = self.messages.back_mut() {
            builder.push(vote);
            batch.votes += 1;
            batch.keep(room);
        }
        Ok(number)
    }
}

impl Batch {
    fn keep(&mut self, room: [OwnedSemaphorePermit; 2]) {
        if self.room.is_empty() {
            self.room.extend(room);
        } else {
            self.room.iter_mut().zip(room).for_each(|(kept, more)| kept.merge(more));
        }
    }
}

impl Source<Batch> for Arc<Shared> {
    async fn next(&mut self) -> Option<Outgoing<Batch>> {
        loop {
            {
                let mut waiting = self.waiting.lock();
                if let Some((builder, batch)) = waiting.messages.pop_front() {
                    return Some(builder.finish(None, batch));
                }
                if waiting.is_closed {
                    return None;
                }
            }
            // A note that came meanwhile is kept for whoever waits.
            self.filled.notified().await;
        }
    }
}

impl Shared {
    /// Settles everything that the stream has not.
    fn end(&self, ended: Ended<Batch>, mut settler: Settler, rooms: &[Arc<Semaphore>; 2]) {
        let reason = ended.failure.as_ref().map(ToString::to_string).unwrap_or_default();
        let waiting = {
            let mut waiting = self.waiting.lock();
            waiting.is_over = true;
            waiting.failure = ended.failure;
            std::mem::take(&mut waiting.messages)
        };
        rooms.iter().for_each(|room| room.close());
        for unsettled in ended.unsettled {
            let rest = if unsettled.may_be_stored {
                Outcome::Unknown { reason: format!("whether the vote was stored is not known: {reason}") }
            } else {
                Outcome::not_stored(reason.clone())
            };
            settler.hand_out(unsettled.tag, unsettled.from, rest);
        }
        for (_, batch) in waiting {
            settler.hand_out(batch, 0, Outcome::not_stored(reason.clone()));
        }
    }
}

/// Makes outcomes of what the stream says.
struct Settler {
    runs: mpsc::UnboundedSender<Run>,
    /// Outcomes of single votes in messages that are not settled as a whole, in their order.
    named: VecDeque<(u64, Outcome)>,
}

impl Settler {
    fn hand_out(&mut self, batch: Batch, settled: u64, rest: Outcome) {
        let Batch { first, votes, room } = batch;
        let end = first + votes;
        let here = self.named.partition_point(|(number, _)| *number < end);
        let named = self.named.drain(..here).collect();
        // If nobody wants to know, the room is given back here.
        drop(self.runs.send(Run { next: first, end, named, settled: first + settled, rest, _room: room }));
    }
}

impl Observer<Batch> for Settler {
    fn rejected(&mut self, place: Option<(&Batch, u64)>, rejection: Rejection) {
        if let Some((batch, at)) = place {
            self.named.push_back((batch.first + at, rejection.into()));
        }
    }

    fn settled(&mut self, batch: Batch, votes: u64, _latency: Duration) {
        self.hand_out(batch, votes, Outcome::Durable);
    }
}

impl Iterator for Run {
    type Item = (u64, Outcome);

    fn next(&mut self) -> Option<Self::Item> {
        let number = self.next;
        if number >= self.end {
            return None;
        }
        self.next += 1;
        let outcome = match self.named.pop_front_if(|(named, _)| *named == number) {
            Some((_, outcome)) => outcome,
            None if number < self.settled => Outcome::Durable,
            None => self.rest.clone(),
        };
        Some((number, outcome))
    }
}

impl Outcomes {
    /// Waits for the next outcome, and the number of its vote; `None` once the sender is gone and every vote has its outcome.
    /// A wait that is given up loses nothing.
    pub async fn next(&mut self) -> Option<(u64, Outcome)> {
        std::future::poll_fn(|cx| self.poll_outcome(cx)).await
    }

    /// Why the stream broke, if it did; at the end, and once.
    pub fn failure(&self) -> Option<ClientError> {
        self.shared.waiting.lock().failure.take()
    }

    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<Option<(u64, Outcome)>> {
        loop {
            if let Some(run) = &mut self.run {
                let outcome = run.next();
                // Gives its room back with its last outcome.
                self.run = self.run.take_if(|run| run.next < run.end);
                if outcome.is_some() {
                    return Poll::Ready(outcome);
                }
            }
            match ready!(self.runs.poll_recv(cx)) {
                Some(run) => self.run = Some(run),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl Stream for Outcomes {
    type Item = (u64, Outcome);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_outcome(cx)
    }
}
