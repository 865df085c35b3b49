//! Streams of whole messages, without resume: whoever sends them decides what is sent again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};
use votestream_client::{
    Client, ClientError, Ended, MessageBuilder, Observer, SOURCE_MESSAGES_MAX, StreamOptions, UNSETTLED_VOTES_MAX,
    Vote,
    v1::{Rejection, StreamVotesResponse},
};
use votestream_proto::{ReceivedVotes, VotesMessage};

use crate::fake::{Answers, streams};

#[derive(Default)]
struct Seen {
    rejected: Vec<Option<(&'static str, u64)>>,
    settled: Vec<(&'static str, u64)>,
}

impl Observer<&'static str> for Seen {
    fn rejected(&mut self, place: Option<(&&'static str, u64)>, _rejection: Rejection) {
        self.rejected.push(place.map(|(tag, at)| (*tag, at)));
    }

    fn settled(&mut self, tag: &'static str, votes: u64, _latency: Duration) {
        self.settled.push((tag, votes));
    }
}

/// What a service does with a stream's messages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Settles each message at once and rejects its first vote.
    Settle,
    /// Settles nothing until the client has closed its side or stopped sending; then it ends the stream.
    Withhold,
    /// Settles the first message, then breaks the stream.
    Break,
    /// Settles the first message, then ends the stream as one that was silent for long.
    EndAfterOne,
    /// Ends the stream before anything is settled.
    Refuse,
    /// Ends the stream before anything is settled, and gives no reason.
    Leave,
}

/// Longest pause between messages of a client that has room: on a paused clock any time is long.
const SILENCE: Duration = Duration::from_millis(300);

async fn handle(
    manner: Manner,
    mut messages: Streaming<VotesMessage>,
    answers: Answers,
    received: Arc<AtomicU64>,
) -> Option<Status> {
    let mut through = 0;
    loop {
        let first = through;
        let message = if manner == Manner::Withhold {
            // The client does not close its side while it waits for room: silence means that it is full.
            tokio::time::timeout(SILENCE, messages.message()).await.unwrap_or(Ok(None))
        } else {
            messages.message().await
        };
        let Ok(Some(message)) = message else { break };
        through += message.votes().count() as u64;
        received.fetch_max(through, Ordering::SeqCst);
        match manner {
            Manner::Withhold => continue,
            Manner::Break if first > 0 => return Some(Status::unavailable("broken")),
            Manner::Refuse => return Some(Status::unavailable("refused")),
            Manner::Leave => return None,
            Manner::Settle | Manner::Break | Manner::EndAfterOne => {}
        }
        let rejections = vec![Rejection { index: first, ..Rejection::default() }];
        answers.send(Ok(StreamVotesResponse { durable_through: through, rejections })).await.ok()?;
        if manner == Manner::EndAfterOne {
            return Some(Status::unavailable("silent for long"));
        }
    }
    if manner == Manner::Withhold {
        answers.send(Ok(StreamVotesResponse { durable_through: through, rejections: Vec::new() })).await.ok()?;
    }
    None
}

/// Sends `messages` messages of `votes` votes to a service of that manner.
async fn send(manner: Manner, messages: usize, votes: u64) -> (Ended<&'static str>, Seen, u64) {
    let received = Arc::new(AtomicU64::new(0));
    let counted = received.clone();
    let (_network, channel) = streams(move |_, messages, answers| handle(manner, messages, answers, counted.clone()));
    let client = Client::builder().ingest_over(channel);
    let (to_stream, source) = mpsc::channel(SOURCE_MESSAGES_MAX);
    tokio::spawn(async move {
        for _ in 0..messages {
            let mut builder = MessageBuilder::new(votes as usize);
            (0..votes).for_each(|_| builder.push(Vote { poll_id: "p", user_id: "u", option_id: "o" }));
            if to_stream.send(builder.finish(None, "m")).await.is_err() {
                return;
            }
        }
    });
    let mut seen = Seen::default();
    let options = StreamOptions { resume: false, ..StreamOptions::default() };
    let ended = client.stream_messages(options, source, &mut seen).await;
    (ended, seen, received.load(Ordering::SeqCst))
}

fn is_whole(ended: &Ended<&'static str>) -> bool {
    ended.failure.is_none() && ended.unsettled.is_empty()
}

#[tokio::test(start_paused = true)]
async fn everything_is_sent_and_settled() {
    let (ended, seen, _) = send(Manner::Settle, 400, 200).await;
    assert!(is_whole(&ended), "{ended:?}");
    assert_eq!((ended.sent, ended.settled), (80_000, 80_000));
    assert_eq!(seen.settled, vec![("m", 200); 400]);
    assert_eq!(seen.rejected, vec![Some(("m", 0)); 400]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_service_is_sent_no_more_than_the_bound() {
    let (ended, _, received) = send(Manner::Withhold, 1_000, 100).await;
    assert!((UNSETTLED_VOTES_MAX..UNSETTLED_VOTES_MAX + 100).contains(&received), "{received}");
    // This service then settles what it has, and ends the stream before all was sent. The next one takes the rest.
    assert!(is_whole(&ended), "{ended:?}");
    assert_eq!((ended.sent, ended.settled), (100_000, 100_000));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_with_everything_settled_is_opened_anew() {
    let (ended, seen, _) = send(Manner::EndAfterOne, 20, 5).await;
    // A message that was on its way when the stream ended is lost with it, and reported.
    match ended.failure {
        None => assert_eq!((ended.settled, seen.settled.len()), (100, 20)),
        Some(failure) => assert!(!ended.unsettled.is_empty() && ended.settled < ended.sent, "{failure:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_takes_nothing_is_asked_once() {
    let (ended, seen, received) = send(Manner::Refuse, 10, 5).await;
    assert_eq!((ended.settled, seen.settled.len(), received), (0, 0, 5));
    assert!(ended.failure.is_some() && ended.unsettled[0].may_be_stored);
    let (ended, ..) = send(Manner::Leave, 10, 5).await;
    assert!(matches!(ended.failure, Some(ClientError::Ended { .. })), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_says_from_where_on_nothing_is_known() {
    let (ended, seen, _) = send(Manner::Break, 10, 5).await;
    assert_eq!((ended.settled, &seen.settled[..]), (5, &[("m", 5)][..]));
    assert_eq!((ended.unsettled[0].tag, ended.unsettled[0].from), ("m", 0));
    let status = ended.failure.as_ref().and_then(ClientError::status).map(|status| (status.code(), status.message()));
    assert_eq!(status, Some((Code::Unavailable, "broken")));
}
