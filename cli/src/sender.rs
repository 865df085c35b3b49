//! One stream of votes: sends messages, keeps what is not settled within a bound, hands out what was settled.
//!
//! Owns the client's side of `StreamVotes`. Must never have more than the given number of votes unsettled, and never report
//! a vote as accepted that the service has not settled.

use std::{collections::VecDeque, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use votestream_proto::{
    ReceivedVotes, VotesMessage,
    v1::{Rejection, StreamVotesResponse, ingest_service_client::IngestServiceClient},
};

use crate::failure::Failure;

/// Votes of one stream that may be under way. At 10 ms from message to acknowledgement enough for 3 million votes/s.
pub(crate) const UNSETTLED_VOTES_MAX: u64 = 32_768;
/// Messages that wait between the source and the stream.
pub(crate) const SOURCE_MESSAGES_MAX: usize = 8;
/// Messages that wait for the connection.
const CONNECTION_MESSAGES_MAX: usize = 4;
/// How long to wait for the next message once the stream is over, only to name it: a source such as a terminal may have
/// none for hours.
const NEXT_MESSAGE_WAIT: Duration = Duration::from_millis(500);

/// A message to send.
#[derive(Debug)]
pub(crate) struct Outgoing<T> {
    /// The votes.
    pub(crate) message: VotesMessage,
    /// How many.
    pub(crate) votes: u64,
    /// When it should have been sent, if that was planned: a message that had to wait for earlier ones was slow all the
    /// same.
    pub(crate) due: Option<Instant>,
    /// What the observer needs to know about the message's votes.
    pub(crate) tag: T,
}

/// What one response has settled.
pub(crate) trait Observer<T> {
    /// A vote was rejected: its place in its message with that message's tag, if the service named a vote of ours.
    fn rejected(&mut self, place: Option<(&T, u64)>, rejection: Rejection);
    /// A message is settled as a whole.
    fn settled(&mut self, tag: &T, votes: u64, latency: Duration);
}

/// What is known when a stream has ended.
#[derive(Debug)]
pub(crate) struct Ended<T> {
    /// Votes that were settled, from the first one on.
    pub(crate) settled: u64,
    /// The message with the first vote of which nothing is known, and that vote's place, if the stream broke.
    pub(crate) unknown_from: Option<(T, u64)>,
    /// Why the stream broke.
    pub(crate) failure: Option<Failure>,
}

struct Pending<T> {
    first: u64,
    votes: u64,
    since: Instant,
    tag: T,
}

struct Ledger<T> {
    sent: u64,
    settled: u64,
    pending: VecDeque<Pending<T>>,
}

impl<T> Ledger<T> {
    fn sent(&mut self, votes: u64, since: Instant, tag: T) {
        self.pending.push_back(Pending { first: self.sent, votes, since, tag });
        self.sent += votes;
    }

    fn answered(&mut self, response: StreamVotesResponse, now: Instant, observer: &mut impl Observer<T>) {
        for rejection in response.rejections {
            let after = self.pending.partition_point(|pending| pending.first <= rejection.index);
            let pending = after.checked_sub(1).and_then(|at| self.pending.get(at));
            let place = pending
                .filter(|pending| rejection.index - pending.first < pending.votes)
                .map(|pending| (&pending.tag, rejection.index - pending.first));
            observer.rejected(place, rejection);
        }
        // A service that claims more than was sent must not make us claim it too.
        self.settled = self.settled.max(response.durable_through.min(self.sent));
        while let Some(pending) = self.pending.pop_front_if(|pending| pending.first + pending.votes <= self.settled) {
            observer.settled(&pending.tag, pending.votes, now.saturating_duration_since(pending.since));
        }
    }
}

/// Sends everything that the source yields, and returns once all of it is settled or the stream broke.
pub(crate) async fn stream_votes<T>(
    channel: Channel,
    url: &str,
    mut source: mpsc::Receiver<Outgoing<T>>,
    observer: &mut impl Observer<T>,
) -> Ended<T> {
    let (to_connection, messages) = mpsc::channel::<VotesMessage>(CONNECTION_MESSAGES_MAX);
    let mut ledger = Ledger { sent: 0, settled: 0, pending: VecDeque::new() };
    let mut failure = None;
    let call = IngestServiceClient::new(channel).stream_votes(ReceiverStream::new(messages)).await;
    match call {
        Err(status) => failure = Some(Failure::rpc("casting votes", url, &status)),
        Ok(responses) => {
            let mut responses = responses.into_inner();
            let mut to_connection = Some(to_connection);
            loop {
                let room = ledger.sent - ledger.settled < UNSETTLED_VOTES_MAX;
                // Both waits may be given up at any point: a permit that is dropped sends nothing, a message that was not
                // received stays in the source.
                let next = async {
                    match &to_connection {
                        Some(connection) if room => match connection.reserve().await {
                            Ok(permit) => Some((permit, source.recv().await)),
                            Err(_) => std::future::pending().await,
                        },
                        Some(_) | None => std::future::pending().await,
                    }
                };
                let mut source_is_empty = false;
                tokio::select! {
                    response = responses.message() => match response {
                        Ok(Some(response)) => ledger.answered(response, Instant::now(), observer),
                        Ok(None) => break,
                        Err(status) => {
                            failure = Some(Failure::rpc("casting votes", url, &status));
                            break;
                        }
                    },
                    next = next => match next {
                        Some((permit, Some(outgoing))) => {
                            ledger.sent(outgoing.votes, outgoing.due.unwrap_or_else(Instant::now), outgoing.tag);
                            permit.send(outgoing.message);
                        }
                        Some((_, None)) | None => source_is_empty = true,
                    },
                }
                if source_is_empty {
                    // Closing our side tells the service that no more votes come.
                    to_connection = None;
                }
            }
        }
    }
    if failure.is_none() && ledger.settled < ledger.sent {
        failure = Some(Failure::failed(format!("{url} ended the stream before every vote was settled")));
    }
    // Whatever waits in the source was not sent; the first vote of it is the first without an outcome if none is pending.
    let next = match ledger.pending.pop_front() {
        Some(pending) => Some((pending.tag, ledger.settled.saturating_sub(pending.first))),
        None => match tokio::time::timeout(NEXT_MESSAGE_WAIT, source.recv()).await {
            Ok(next) => next.map(|outgoing| (outgoing.tag, 0)),
            Err(_) => None,
        },
    };
    if next.is_some() && failure.is_none() {
        failure = Some(Failure::failed(format!("{url} ended the stream before every vote was sent")));
    }
    Ended { settled: ledger.settled, unknown_from: next, failure }
}

/// A message that is filled vote by vote.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    message: VotesMessage,
    votes: u64,
}

impl Builder {
    /// With room for votes of 36-character user ids.
    pub(crate) fn new(votes: usize) -> Self {
        const VOTE_BYTES: usize = 64;
        Self { message: VotesMessage::with_capacity(votes * VOTE_BYTES), votes: 0 }
    }

    /// Adds a vote.
    pub(crate) fn push(&mut self, poll_id: &str, user_id: &str, option_id: &str) {
        self.message.push(poll_id, user_id, option_id);
        self.votes += 1;
    }

    /// Votes in it.
    pub(crate) fn votes(&self) -> u64 {
        self.votes
    }

    /// Bytes of it.
    pub(crate) fn bytes(&self) -> usize {
        self.message.wire_len()
    }

    /// The message.
    pub(crate) fn finish<T>(self, due: Option<Instant>, tag: T) -> Outgoing<T> {
        Outgoing { message: self.message, votes: self.votes, due, tag }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use futures::{Stream, StreamExt, stream::BoxStream};
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response, Status, Streaming};
    use votestream_proto::v1::{
        CastVoteResponse, CastVotesResponse,
        ingest_service_server::{IngestService, IngestServiceServer},
    };

    use super::*;
    use crate::connect::{self, Target};

    #[derive(Default)]
    struct Seen {
        rejected: Vec<Option<(&'static str, u64)>>,
        settled: Vec<(&'static str, u64)>,
    }

    impl Observer<&'static str> for Seen {
        fn rejected(&mut self, place: Option<(&&'static str, u64)>, _rejection: Rejection) {
            self.rejected.push(place.map(|(tag, at)| (*tag, at)));
        }

        fn settled(&mut self, tag: &&'static str, votes: u64, _latency: Duration) {
            self.settled.push((tag, votes));
        }
    }

    fn rejection(index: u64) -> Rejection {
        Rejection { index, ..Rejection::default() }
    }

    #[test]
    fn rejections_find_their_message_and_only_whole_messages_are_settled() {
        let now = Instant::now();
        let mut ledger = Ledger { sent: 0, settled: 0, pending: VecDeque::new() };
        let mut seen = Seen::default();
        for (tag, votes) in [("a", 3), ("b", 2), ("c", 4)] {
            ledger.sent(votes, now, tag);
        }
        ledger.answered(
            StreamVotesResponse { durable_through: 6, rejections: vec![rejection(0), rejection(4), rejection(5)] },
            now,
            &mut seen,
        );
        assert_eq!(seen.rejected, [Some(("a", 0)), Some(("b", 1)), Some(("c", 0))]);
        assert_eq!(seen.settled, [("a", 3), ("b", 2)]);
        ledger.answered(
            StreamVotesResponse { durable_through: 99, rejections: vec![rejection(1), rejection(40)] },
            now,
            &mut seen,
        );
        assert_eq!(seen.rejected[3..], [None, None]);
        assert_eq!(seen.settled[2..], [("c", 4)]);
        assert_eq!(ledger.settled, 9);
    }

    /// What a service does with a stream's messages.
    #[derive(Clone, Copy)]
    enum Manner {
        /// Settles each message at once and rejects its first vote.
        Settle,
        /// Settles nothing until the client has closed its side or stopped sending.
        Withhold,
        /// Settles the first message, then breaks the stream.
        Break,
    }

    struct Service {
        manner: Manner,
        received: Arc<AtomicU64>,
    }

    type Answers = BoxStream<'static, Result<StreamVotesResponse, Status>>;

    fn answers(
        manner: Manner,
        received: Arc<AtomicU64>,
        messages: Streaming<VotesMessage>,
    ) -> impl Stream<Item = Result<StreamVotesResponse, Status>> {
        futures::stream::unfold((messages, 0, false), move |(mut messages, mut through, over)| {
            let received = received.clone();
            async move {
                if over {
                    return None;
                }
                loop {
                    let first = through;
                    let message = match manner {
                        // The client does not close its side while it waits for room: silence means that it is full.
                        Manner::Withhold => tokio::time::timeout(Duration::from_millis(300), messages.message()).await,
                        Manner::Settle | Manner::Break => Ok(messages.message().await),
                    };
                    match message {
                        Ok(Ok(Some(message))) => {
                            through += message.votes().count() as u64;
                            received.fetch_max(through, Ordering::SeqCst);
                            match manner {
                                Manner::Withhold => {}
                                Manner::Break if first > 0 => {
                                    return Some((Err(Status::unavailable("broken")), (messages, through, true)));
                                }
                                Manner::Settle | Manner::Break => {
                                    let rejections = vec![rejection(first)];
                                    let answer = StreamVotesResponse { durable_through: through, rejections };
                                    return Some((Ok(answer), (messages, through, false)));
                                }
                            }
                        }
                        Ok(Ok(None) | Err(_)) if matches!(manner, Manner::Settle | Manner::Break) => return None,
                        Ok(Ok(None) | Err(_)) | Err(_) => {
                            let answer = StreamVotesResponse { durable_through: through, rejections: Vec::new() };
                            return Some((Ok(answer), (messages, through, true)));
                        }
                    }
                }
            }
        })
    }

    #[tonic::async_trait]
    impl IngestService for Service {
        type StreamVotesStream = Answers;

        async fn cast_vote(&self, _: Request<VotesMessage>) -> Result<Response<CastVoteResponse>, Status> {
            Err(Status::unimplemented("not part of this test"))
        }

        async fn cast_votes(&self, _: Request<Streaming<VotesMessage>>) -> Result<Response<CastVotesResponse>, Status> {
            Err(Status::unimplemented("not part of this test"))
        }

        async fn stream_votes(&self, request: Request<Streaming<VotesMessage>>) -> Result<Response<Answers>, Status> {
            Ok(Response::new(answers(self.manner, self.received.clone(), request.into_inner()).boxed()))
        }
    }

    /// Sends `messages` messages of `votes` votes to a service of that manner.
    async fn send(manner: Manner, messages: usize, votes: u64) -> (Ended<&'static str>, Seen, u64) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target: Target = listener.local_addr().unwrap().to_string().parse().unwrap();
        let received = Arc::new(AtomicU64::new(0));
        let service = Service { manner, received: received.clone() };
        let server = tonic::transport::Server::builder().add_service(IngestServiceServer::new(service));
        let serving = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let channel = connect::connect("ingest", &target).await.unwrap();
        let (to_stream, source) = mpsc::channel(SOURCE_MESSAGES_MAX);
        tokio::spawn(async move {
            for _ in 0..messages {
                let mut builder = Builder::new(votes as usize);
                (0..votes).for_each(|_| builder.push("p", "u", "o"));
                if to_stream.send(builder.finish(None, "m")).await.is_err() {
                    return;
                }
            }
        });
        let mut seen = Seen::default();
        let ended = stream_votes(channel, target.url(), source, &mut seen).await;
        serving.abort();
        (ended, seen, received.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn everything_is_sent_and_settled() {
        let (ended, seen, _) = send(Manner::Settle, 400, 200).await;
        assert!(ended.failure.is_none() && ended.unknown_from.is_none(), "{ended:?}");
        assert_eq!(ended.settled, 80_000);
        assert_eq!(seen.settled, vec![("m", 200); 400]);
        assert_eq!(seen.rejected, vec![Some(("m", 0)); 400]);
    }

    #[tokio::test]
    async fn a_silent_service_is_sent_no_more_than_the_bound() {
        let (ended, _, received) = send(Manner::Withhold, 1_000, 100).await;
        assert!((UNSETTLED_VOTES_MAX..UNSETTLED_VOTES_MAX + 100).contains(&received), "{received}");
        // This service then settles what it has, and ends the stream before all was sent.
        assert_eq!(ended.settled, received);
        assert!(ended.failure.is_some() && ended.unknown_from.is_some(), "{ended:?}");
    }

    #[tokio::test]
    async fn a_broken_stream_says_from_where_on_nothing_is_known() {
        let (ended, seen, _) = send(Manner::Break, 10, 5).await;
        assert_eq!(ended.settled, 5);
        assert_eq!(seen.settled, [("m", 5)]);
        assert_eq!(ended.unknown_from, Some(("m", 0)));
        assert!(matches!(ended.failure, Some(Failure::Failed(reason)) if reason.contains("broken")));
    }
}
