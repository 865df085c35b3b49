//! A stream of single votes, as one that resumes and as one that does not.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt;
use tokio::{sync::Notify, time::Instant};
use tonic::{Status, Streaming};
use votestream_client::{
    Cause, Client, Outcome, Outcomes, Retry, StreamOptions, StreamOver, Token, VOTE_BYTES_MAX, Vote, VoteSender,
    v1::{Rejection, RejectionCode, StreamVotesResponse},
};
use votestream_proto::{ReceivedVotes, VotesMessage};

use crate::fake::{Answers, Network, casts, streams};

fn vote<'a>(user_id: &'a str, option_id: &'a str) -> Vote<'a> {
    Vote { poll_id: "p", user_id, option_id }
}

fn through(durable_through: u64) -> StreamVotesResponse {
    StreamVotesResponse { durable_through, rejections: Vec::new() }
}

/// Users whose votes came over each stream, in their order.
type Took = Arc<Mutex<Vec<Vec<String>>>>;

fn users(message: &VotesMessage) -> Vec<String> {
    message.votes().map(|vote| String::from_utf8_lossy(vote.unwrap().user_id).into_owned()).collect()
}

/// A service that settles everything but the last vote of its first streams, which it then ends with a status.
fn ends(statuses: Vec<Status>) -> (Network, tonic::transport::Channel, Took) {
    let took = Took::default();
    let taking = took.clone();
    let (network, channel) = streams(move |at, mut messages: Streaming<VotesMessage>, answers: Answers| {
        let (taking, end) = (taking.clone(), statuses.get(at).cloned());
        async move {
            taking.lock().unwrap().push(Vec::new());
            let mut count = 0;
            while let Ok(Some(message)) = messages.message().await {
                count += message.votes().count() as u64;
                taking.lock().unwrap()[at].extend(users(&message));
                answers.send(Ok(through(count - u64::from(end.is_some())))).await.ok()?;
                if end.is_some() {
                    return end;
                }
            }
            None
        }
    });
    (network, channel, took)
}

async fn push_all(sender: VoteSender, votes: u64) {
    for at in 0..votes {
        assert_eq!(sender.push(vote(&at.to_string(), "o")).await, Ok(at));
    }
}

#[tokio::test(start_paused = true)]
async fn it_resumes_from_the_first_vote_that_is_not_settled() {
    let statuses = vec![Status::unavailable("stops"), Status::resource_exhausted("full"), Status::internal("what")];
    let (_network, channel, took) = ends(statuses);
    let (sender, outcomes) = Client::builder().ingest_over(channel).stream_votes(StreamOptions::default());
    let (seen, ()) = tokio::join!(outcomes.collect::<Vec<_>>(), push_all(sender, 5));
    assert_eq!(seen, (0..5).map(|number| (number, Outcome::Durable)).collect::<Vec<_>>());
    let took = took.lock().unwrap();
    assert_eq!(took.len(), 4);
    for streams in took.windows(2) {
        assert_eq!(streams[0].last(), streams[1].first(), "{took:?}");
    }
    assert_eq!(took[3].last().map(String::as_str), Some("4"));
}

#[tokio::test(start_paused = true)]
async fn without_resume_everything_unsettled_is_unknown_and_nothing_more_is_taken() {
    let (_network, channel, took) = ends(vec![Status::unavailable("stops")]);
    let options = StreamOptions { resume: false, ..StreamOptions::default() };
    let (sender, mut outcomes) = Client::builder().ingest_over(channel).stream_votes(options);
    for at in ["0", "1", "2"] {
        sender.push(vote(at, "o")).await.unwrap();
    }
    let seen: Vec<_> = outcomes.by_ref().take(3).map(|(_, outcome)| outcome).collect().await;
    assert_eq!(seen[..2], [Outcome::Durable, Outcome::Durable]);
    assert!(matches!(&seen[2], Outcome::Unknown { reason } if reason.contains("stops")), "{seen:?}");
    assert_eq!(sender.push(vote("3", "o")).await, Err(StreamOver::Broken));
    assert_eq!(outcomes.next().await, None);
    assert!(outcomes.failure().is_some_and(|failure| failure.to_string().contains("stops")));
    assert_eq!(took.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn when_attempts_are_used_up_every_vote_has_its_outcome() {
    let (network, channel, _) = ends(vec![Status::unavailable("stops"); 9]);
    let retry = Retry { attempts_max: 3, ..Retry::DEFAULT };
    let client = Client::builder().ingest_over(channel);
    let (sender, outcomes) = client.stream_votes(StreamOptions { retry, ..StreamOptions::default() });
    sender.push(vote("0", "o")).await.unwrap();
    let seen: Vec<_> = outcomes.collect().await;
    assert!(matches!(&seen[..], [(0, Outcome::Unknown { .. })]), "{seen:?}");
    assert_eq!(network.connections(), 1, "a stream that ended does not end its connection");

    // Nothing was sent at all.
    let (network, channel, _) = ends(Vec::new());
    network.refuse(true);
    let client = Client::builder().ingest_over(channel);
    let (sender, outcomes) = client.stream_votes(StreamOptions { retry, ..StreamOptions::default() });
    sender.push(vote("0", "o")).await.unwrap();
    let seen: Vec<_> = outcomes.collect().await;
    assert!(matches!(&seen[..], [(0, Outcome::Rejected { cause: Cause::NotStored, .. })]), "{seen:?}");
    assert_eq!(network.connections(), 3);
}

#[tokio::test(start_paused = true)]
async fn rejections_name_their_votes_and_the_rest_is_durable() {
    let (_network, channel) = streams(|_, mut messages, answers| async move {
        let mut count = 0;
        while let Ok(Some(message)) = messages.message().await {
            let first = count;
            count += message.votes().count() as u64;
            let rejections = (first..count).filter(|index| index % 3 == 0).map(|index| Rejection {
                index,
                code: RejectionCode::PollClosed.into(),
                reason: format!("closed {index}"),
            });
            let rejections = rejections.collect();
            answers.send(Ok(StreamVotesResponse { durable_through: count, rejections })).await.ok()?;
        }
        None
    });
    let (sender, outcomes) = Client::builder().ingest_over(channel).stream_votes(StreamOptions::default());
    let (seen, ()) = tokio::join!(outcomes.collect::<Vec<_>>(), push_all(sender, 2_000));
    assert_eq!(seen.len(), 2_000);
    for (at, (number, outcome)) in (0..).zip(seen) {
        let expected = match at % 3 {
            0 => Outcome::Rejected { cause: Cause::NotOpen, reason: format!("closed {at}") },
            _ => Outcome::Durable,
        };
        assert_eq!((number, outcome), (at, expected));
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_slow_holds_the_sender_back() {
    let (_network, channel, _) = ends(Vec::new());
    let options = StreamOptions { unsettled_votes_max: 10, ..StreamOptions::default() };
    let (sender, mut outcomes) = Client::builder().ingest_over(channel).stream_votes(options);
    let taken = Arc::new(Mutex::new(0));
    let counted = taken.clone();
    let pushing = tokio::spawn(async move {
        for at in 0..100 {
            sender.push(vote("u", "o")).await.unwrap();
            *counted.lock().unwrap() = at + 1;
        }
    });
    for read in 0..100_u64 {
        // Whatever can happen has happened: the clock moves only when nobody has anything to do.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let taken = *taken.lock().unwrap();
        assert!(taken <= read + 10 && (taken > read || taken == 100), "{taken} taken, {read} read");
        assert_eq!(outcomes.next().await, Some((read, Outcome::Durable)));
    }
    pushing.await.unwrap();
    assert_eq!(outcomes.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn with_room_for_one_vote_one_task_can_push_and_read() {
    let (_network, channel, _) = ends(Vec::new());
    for options in [
        StreamOptions { unsettled_votes_max: 1, ..StreamOptions::default() },
        StreamOptions { unsettled_bytes_max: 1, ..StreamOptions::default() },
    ] {
        let (sender, mut outcomes) = Client::builder().ingest_over(channel.clone()).stream_votes(options);
        for at in 0..50 {
            assert_eq!(sender.push(vote("u", "o")).await, Ok(at));
            assert_eq!(outcomes.next().await, Some((at, Outcome::Durable)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_vote_that_is_far_too_long_is_not_taken() {
    let (_network, channel, _) = ends(Vec::new());
    let (sender, mut outcomes) = Client::builder().ingest_over(channel).stream_votes(StreamOptions::default());
    assert_eq!(sender.push(vote(&"u".repeat(VOTE_BYTES_MAX), "o")).await, Err(StreamOver::TooLong));
    assert_eq!(sender.push(vote("u", "o")).await, Ok(0));
    sender.finish();
    assert_eq!(outcomes.next().await, Some((0, Outcome::Durable)));
    assert_eq!(outcomes.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn outcomes_nobody_reads_do_not_stop_the_stream() {
    let (_network, channel, took) = ends(Vec::new());
    let options = StreamOptions { unsettled_votes_max: 3, ..StreamOptions::default() };
    let (sender, outcomes): (_, Outcomes) = Client::builder().ingest_over(channel).stream_votes(options);
    drop(outcomes);
    push_all(sender, 100).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(took.lock().unwrap().iter().flatten().count(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_changed_mind_waits_until_no_old_vote_can_land_behind_it() {
    let took = Took::default();
    let (taking, got) = (took.clone(), Arc::new(Notify::new()));
    let getting = got.clone();
    let (network, channel) = streams(move |at, mut messages, answers: Answers| {
        let (taking, getting) = (taking.clone(), getting.clone());
        async move {
            taking.lock().unwrap().push(Vec::new());
            let mut count = 0;
            while let Ok(Some(message)) = messages.message().await {
                count += message.votes().count() as u64;
                taking.lock().unwrap()[at].extend(users(&message));
                getting.notify_one();
                if at > 0 {
                    answers.send(Ok(through(count))).await.ok()?;
                }
            }
            None
        }
    });
    let options = StreamOptions { copies_land_within: Duration::from_secs(9), ..StreamOptions::default() };
    let (sender, mut outcomes) = Client::builder().ingest_over(channel).stream_votes(options);
    sender.push(vote("u", "a")).await.unwrap();
    got.notified().await;
    let broke = Instant::now();
    network.cut();
    assert_eq!(outcomes.next().await, Some((0, Outcome::Durable)), "the same vote does not wait");
    sender.push(vote("v", "a")).await.unwrap();
    assert_eq!(outcomes.next().await, Some((1, Outcome::Durable)), "nor does another user");
    assert!(broke.elapsed() < Duration::from_secs(1));
    sender.push(vote("u", "b")).await.unwrap();
    assert_eq!(outcomes.next().await, Some((2, Outcome::Durable)));
    assert!(broke.elapsed() >= Duration::from_secs(9), "{:?}", broke.elapsed());
    assert_eq!(*took.lock().unwrap(), [vec!["u"], vec!["u", "v", "u"]]);
}

#[tokio::test(start_paused = true)]
async fn every_call_and_stream_says_who_calls_and_a_token_that_expires_is_followed_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "one").unwrap();
    // Each stream settles its first message, and ends at the next one.
    let (network, channel) = streams(move |at, mut messages: Streaming<VotesMessage>, answers: Answers| async move {
        messages.message().await.ok()?;
        answers.send(Ok(through(1))).await.ok()?;
        messages.message().await.ok()??;
        (at < 2).then(|| Status::unauthenticated("the token has expired"))
    });
    let client = Client::builder().token(Token::from_file(&path).unwrap()).ingest_over(channel);
    let (sender, mut outcomes) = client.stream_votes(StreamOptions::default());
    for (at, token) in [(0, "one"), (1, "two"), (2, "three")] {
        std::fs::write(&path, token).unwrap();
        // The file is read again for streams that begin a second later.
        tokio::time::sleep(Duration::from_secs(2)).await;
        sender.push(vote("u", "o")).await.unwrap();
        assert_eq!(outcomes.next().await, Some((at, Outcome::Durable)));
    }
    drop(sender);
    assert_eq!(outcomes.next().await, None);
    let bearer = |token: &str| Some(format!("Bearer {token}"));
    assert_eq!(network.authorizations(), ["one", "two", "three"].map(bearer));

    // One that was never taken is wrong, and what cannot change is not tried again.
    for (token, first) in [(Token::from_file(&path), false), (Token::new("fixed"), true)] {
        let (network, channel) =
            streams(move |_, mut messages: Streaming<VotesMessage>, answers: Answers| async move {
                messages.message().await.ok()?;
                if first {
                    answers.send(Ok(through(1))).await.ok()?;
                    messages.message().await.ok()?;
                }
                Some(Status::unauthenticated("no"))
            });
        let client = Client::builder().token(token.unwrap()).ingest_over(channel);
        let (sender, outcomes) = client.stream_votes(StreamOptions::default());
        sender.push(vote("0", "o")).await.unwrap();
        if first {
            tokio::time::sleep(Duration::from_secs(1)).await;
            sender.push(vote("1", "o")).await.unwrap();
        }
        let seen: Vec<_> = outcomes.collect().await;
        assert!(matches!(seen.last(), Some((_, Outcome::Unknown { .. }))), "{seen:?}");
        assert_eq!(network.authorizations().len(), 1);
    }
    let (network, channel) = casts(|_| std::future::ready(Ok(())));
    let caller = Client::builder().token(Token::new("call").unwrap()).ingest_over(channel);
    assert_eq!(caller.cast(vote("0", "o")).await, Outcome::Durable);
    assert_eq!(network.authorizations(), [bearer("call")]);
}
