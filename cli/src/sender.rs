//! Streams of votes: sends messages, keeps what is not settled within a bound, hands out what was settled.
//!
//! Owns the client's side of `StreamVotes`. A service may end a stream on which everything is settled, such as one that was
//! silent for long; the next message then opens another one. Must never have more than the given number of votes unsettled, and
//! never report a vote as accepted that the service has not settled, nor send one again of which the outcome is not known.

use std::{collections::VecDeque, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};
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

/// What is known when everything is settled, or no stream can be had any more.
#[derive(Debug)]
pub(crate) struct Ended<T> {
    /// Votes that were sent.
    pub(crate) sent: u64,
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
    fn new() -> Self {
        Self { sent: 0, settled: 0, pending: VecDeque::new() }
    }

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

    fn is_settled(&self) -> bool {
        self.settled == self.sent
    }

    fn has_room(&self) -> bool {
        self.sent - self.settled < UNSETTLED_VOTES_MAX
    }
}

/// How one stream ended.
enum StreamEnd {
    /// We closed it, and everything is settled.
    Closed,
    /// The service ended it.
    ByService(Option<Status>),
}

/// Sends everything that the source yields, and returns once all of it is settled or a stream broke.
pub(crate) async fn stream_votes<T>(
    channel: Channel,
    url: &str,
    mut source: mpsc::Receiver<Outgoing<T>>,
    observer: &mut impl Observer<T>,
) -> Ended<T> {
    let (mut sent, mut settled) = (0, 0);
    // Opened with its first message: a stream without votes only grows old.
    while let Some(first) = source.recv().await {
        let mut ledger = Ledger::new();
        let end = one_stream(channel.clone(), first, &mut source, &mut ledger, observer).await;
        sent += ledger.sent;
        settled += ledger.settled;
        let failure = match end {
            StreamEnd::Closed => break,
            // Every stream that is opened anew follows one that has settled votes, so this ends.
            StreamEnd::ByService(status) if ledger.is_settled() && may_go_on(status.as_ref()) => continue,
            StreamEnd::ByService(Some(status)) => Failure::rpc("casting votes", url, &status),
            StreamEnd::ByService(None) => {
                Failure::failed(format!("{url} ended the stream before every vote was settled"))
            }
        };
        let unknown_from = first_unknown(ledger, &mut source).await;
        return Ended { sent, settled, unknown_from, failure: Some(failure) };
    }
    Ended { sent, settled, unknown_from: None, failure: None }
}

/// Whether a stream on which everything is settled has ended for a reason that is none for the next one: the service, or the
/// connection, came to its end. If there is no other connection, the next message finds that out.
fn may_go_on(status: Option<&Status>) -> bool {
    status.is_none_or(|status| status.code() == Code::Unavailable || std::error::Error::source(status).is_some())
}

/// The first vote without an outcome: one that is pending, or the first that waits in the source and was not sent.
async fn first_unknown<T>(mut ledger: Ledger<T>, source: &mut mpsc::Receiver<Outgoing<T>>) -> Option<(T, u64)> {
    if let Some(pending) = ledger.pending.pop_front() {
        return Some((pending.tag, ledger.settled.saturating_sub(pending.first)));
    }
    let next = tokio::time::timeout(NEXT_MESSAGE_WAIT, source.recv()).await;
    next.ok().flatten().map(|outgoing| (outgoing.tag, 0))
}

/// Sends a message and what follows it over one stream.
async fn one_stream<T>(
    channel: Channel,
    first: Outgoing<T>,
    source: &mut mpsc::Receiver<Outgoing<T>>,
    ledger: &mut Ledger<T>,
    observer: &mut impl Observer<T>,
) -> StreamEnd {
    let (to_connection, messages) = mpsc::channel::<VotesMessage>(CONNECTION_MESSAGES_MAX);
    let send = |outgoing: Outgoing<T>, ledger: &mut Ledger<T>| {
        ledger.sent(outgoing.votes, outgoing.due.unwrap_or_else(Instant::now), outgoing.tag);
        outgoing.message
    };
    let first = send(first, ledger);
    // The channel is empty, and its receiver is here.
    drop(to_connection.try_send(first));
    let call = IngestServiceClient::new(channel).stream_votes(ReceiverStream::new(messages)).await;
    let mut responses = match call {
        Ok(responses) => responses.into_inner(),
        Err(status) => return StreamEnd::ByService(Some(status)),
    };
    let mut to_connection = Some(to_connection);
    loop {
        // Both waits may be given up at any point: a permit that is dropped sends nothing, a message that was not received
        // stays in the source.
        let next = async {
            match &to_connection {
                Some(connection) if ledger.has_room() => match connection.reserve().await {
                    Ok(permit) => (permit, source.recv().await),
                    Err(_) => std::future::pending().await,
                },
                Some(_) | None => std::future::pending().await,
            }
        };
        let mut source_is_empty = false;
        tokio::select! {
            // The end of the stream before the next message, which would be lost on it.
            biased;
            response = responses.message() => match response {
                Ok(Some(response)) => ledger.answered(response, Instant::now(), observer),
                Ok(None) if to_connection.is_none() && ledger.is_settled() => return StreamEnd::Closed,
                Ok(None) => return StreamEnd::ByService(None),
                Err(_) if to_connection.is_none() && ledger.is_settled() => return StreamEnd::Closed,
                Err(status) => return StreamEnd::ByService(Some(status)),
            },
            (permit, outgoing) = next => match outgoing {
                Some(outgoing) => permit.send(send(outgoing, ledger)),
                None => source_is_empty = true,
            },
        }
        if source_is_empty {
            // Closing our side tells the service that no more votes come.
            to_connection = None;
        }
    }
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
        let mut ledger = Ledger::new();
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
        /// Settles the first message, then ends the stream as one that was silent for long.
        EndAfterOne,
        /// Ends the stream before anything is settled.
        Refuse,
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
                if over && matches!(manner, Manner::EndAfterOne) {
                    return Some((Err(Status::unavailable("silent for long")), (messages, 0, false)));
                }
                if over {
                    return None;
                }
                loop {
                    let first = through;
                    let message = match manner {
                        // The client does not close its side while it waits for room: silence means that it is full.
                        Manner::Withhold => tokio::time::timeout(Duration::from_millis(300), messages.message()).await,
                        Manner::Settle | Manner::Break | Manner::EndAfterOne | Manner::Refuse => {
                            Ok(messages.message().await)
                        }
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
                                Manner::Refuse => {
                                    return Some((Err(Status::unavailable("refused")), (messages, through, true)));
                                }
                                Manner::Settle | Manner::Break | Manner::EndAfterOne => {
                                    let rejections = vec![rejection(first)];
                                    let answer = StreamVotesResponse { durable_through: through, rejections };
                                    let over = matches!(manner, Manner::EndAfterOne);
                                    return Some((Ok(answer), (messages, through, over)));
                                }
                            }
                        }
                        Ok(Ok(None) | Err(_)) if !matches!(manner, Manner::Withhold) => return None,
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
        // This service then settles what it has, and ends the stream before all was sent. The next one takes the rest.
        assert!(ended.failure.is_none() && ended.unknown_from.is_none(), "{ended:?}");
        assert_eq!((ended.sent, ended.settled), (100_000, 100_000));
    }

    #[tokio::test]
    async fn a_stream_that_ends_with_everything_settled_is_opened_anew() {
        let (ended, seen, _) = send(Manner::EndAfterOne, 20, 5).await;
        // A message that was on its way when the stream ended is lost with it, and reported.
        match ended.failure {
            None => assert_eq!((ended.settled, seen.settled.len()), (100, 20)),
            Some(failure) => assert!(ended.unknown_from.is_some() && ended.settled < ended.sent, "{failure:?}"),
        }
    }

    #[tokio::test]
    async fn a_service_that_takes_nothing_is_asked_once() {
        let (ended, seen, received) = send(Manner::Refuse, 10, 5).await;
        assert_eq!((ended.settled, seen.settled.len(), received), (0, 0, 5));
        assert!(ended.failure.is_some() && ended.unknown_from.is_some());
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
