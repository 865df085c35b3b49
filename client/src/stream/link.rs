//! One stream over one connection, and the queue of what is to be sent.
//!
//! Owns when a message is sent and when a stream is closed. Must never take a message off its source while there is no room for
//! it, nor let a message of the source pass one that has to be sent again.

use std::collections::VecDeque;

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use votestream_proto::VotesMessage;

use super::{
    Observer, Source, Unsettled,
    copies::Copies,
    ledger::{Ledger, Rest},
};
use crate::IngestClient;

/// Messages that wait for the connection.
const CONNECTION_MESSAGES_MAX: usize = 4;

/// How one stream ended.
pub(super) enum LinkEnd {
    /// We closed it, and everything is settled.
    Closed,
    /// The service or the connection ended it.
    ByService(Option<Status>),
}

/// What is to be sent: first what has to be sent again, then what comes from the source.
pub(super) struct Queue<'a, T, S> {
    again: VecDeque<Rest<T>>,
    /// The next message, while it waits for a copy to land.
    held: Option<(Rest<T>, Instant)>,
    copies: Copies,
    source: &'a mut S,
}

impl<'a, T, S: Source<T>> Queue<'a, T, S> {
    pub(super) fn new(source: &'a mut S, copies: Copies) -> Self {
        Self { again: VecDeque::new(), held: None, copies, source }
    }

    /// The next message; `None` if no more come. A wait that is given up loses nothing.
    pub(super) async fn next(&mut self) -> Option<Rest<T>> {
        let (_, until) = match &mut self.held {
            Some(held) => held,
            none => {
                let next = match self.again.pop_front() {
                    Some(rest) => rest,
                    None => {
                        let outgoing = self.source.next().await?;
                        let (message, votes, tag) = (outgoing.message, outgoing.votes, outgoing.tag);
                        let since = outgoing.due.unwrap_or_else(Instant::now);
                        Rest { message, votes, before: 0, since, tag, sent: false, may_be_stored: false }
                    }
                };
                match self.copies.held_until(&next.message) {
                    Some(until) => none.insert((next, until)),
                    None => return Some(next),
                }
            }
        };
        sleep_until(*until).await;
        self.held.take().map(|(rest, _)| rest)
    }

    /// Sends this again before everything else. At the given moment its stream ended without a word on whether it was stored.
    pub(super) fn again(&mut self, unsettled: VecDeque<Rest<T>>, ended: Option<Instant>) {
        if let Some(ended) = ended {
            self.copies.note(unsettled.iter().map(|rest| &rest.message), ended);
        }
        let waiting = self.held.take().map(|(rest, _)| rest).into_iter().chain(self.again.drain(..));
        self.again = unsettled.into_iter().chain(waiting).collect();
    }

    /// What is not settled when no stream can be had any more.
    pub(super) fn left(self, unsettled: VecDeque<Rest<T>>) -> Vec<Unsettled<T>> {
        let held = self.held.map(|(rest, _)| rest);
        let all = unsettled.into_iter().chain(held).chain(self.again);
        all.map(|rest| Unsettled { tag: rest.tag, from: rest.before, may_be_stored: rest.may_be_stored }).collect()
    }
}

/// Sends a message and what follows it over one stream.
pub(super) async fn one_link<T, S: Source<T>>(
    client: &IngestClient,
    first: Rest<T>,
    queue: &mut Queue<'_, T, S>,
    ledger: &mut Ledger<T>,
    observer: &mut impl Observer<T>,
) -> LinkEnd {
    let (to_connection, messages) = mpsc::channel::<VotesMessage>(CONNECTION_MESSAGES_MAX);
    // The channel is empty, and its receiver is here.
    drop(to_connection.try_send(ledger.send(first)));
    let mut grpc = client.grpc.clone();
    let opening = timeout(client.wire.call_timeout, grpc.stream_votes(ReceiverStream::new(messages))).await;
    let mut responses = match opening {
        Ok(Ok(responses)) => responses.into_inner(),
        Ok(Err(status)) => return LinkEnd::ByService(Some(status)),
        Err(_) => return LinkEnd::ByService(Some(Status::deadline_exceeded("no answer came in time"))),
    };
    let mut to_connection = Some(to_connection);
    loop {
        // Both waits may be given up at any point: a permit that is dropped sends nothing, a message that was not taken stays
        // in the queue.
        let next = async {
            match &to_connection {
                Some(connection) if ledger.has_room() => match connection.reserve().await {
                    Ok(permit) => (permit, queue.next().await),
                    Err(_) => std::future::pending().await,
                },
                Some(_) | None => std::future::pending().await,
            }
        };
        let mut queue_is_empty = false;
        tokio::select! {
            // The end of the stream before the next message, which would be lost on it.
            biased;
            response = responses.message() => match response {
                Ok(Some(response)) => ledger.answered(response, Instant::now(), observer),
                Ok(None) | Err(_) if to_connection.is_none() && ledger.is_settled() => return LinkEnd::Closed,
                Ok(None) => return LinkEnd::ByService(None),
                Err(status) => return LinkEnd::ByService(Some(status)),
            },
            (permit, rest) = next => match rest {
                Some(rest) => permit.send(ledger.send(rest)),
                None => queue_is_empty = true,
            },
        }
        if queue_is_empty {
            // Closing our side tells the service that no more votes come.
            to_connection = None;
        }
    }
}
