//! One vote, one call.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use votestream_client::{CALL_TIMEOUT, Cause, Client, Outcome, Retry, Vote};

use crate::fake::{Network, casts};

const VOTE: Vote<'_> = Vote { poll_id: "p", user_id: "u", option_id: "o" };

fn not_stored() -> Status {
    let details = ErrorDetails::with_error_info("VOTE_NOT_STORED", "votestream.v1", HashMap::new());
    Status::with_error_details(Code::Unavailable, "the stream is away", details)
}

fn crowded(retry_after: Duration) -> Status {
    Status::with_error_details(Code::ResourceExhausted, "full", ErrorDetails::with_retry_info(Some(retry_after)))
}

/// Casts a vote to a service whose calls end so, one after the other, and then well. Returns how many calls there were.
async fn cast(ends: Vec<Status>, retry: Retry) -> (Outcome, usize) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let (_network, channel) = casts(move |call| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::ready(ends.get(call).cloned().map_or(Ok(()), Err))
    });
    let outcome = Client::builder().retry(retry).ingest_over(channel).cast(VOTE).await;
    (outcome, calls.load(Ordering::SeqCst))
}

#[tokio::test(start_paused = true)]
async fn what_was_certainly_not_stored_is_cast_again() {
    let start = Instant::now();
    let ends = vec![not_stored(), crowded(Duration::from_secs(7)), not_stored()];
    assert_eq!(cast(ends, Retry::DEFAULT).await, (Outcome::Durable, 4));
    assert!(start.elapsed() >= Duration::from_secs(7), "the service's own pause is kept");
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_stored_is_never_cast_again() {
    let unproven = [
        Status::unavailable("a proxy has no backend"),
        Status::resource_exhausted("a proxy takes no more"),
        Status::deadline_exceeded("too late"),
        Status::cancelled("gone"),
        Status::unknown("what"),
        Status::internal("broken"),
    ];
    for status in unproven {
        let (outcome, calls) = cast(vec![status.clone()], Retry::DEFAULT).await;
        assert!(matches!(&outcome, Outcome::Unknown { reason } if reason.contains(status.message())), "{outcome:?}");
        assert_eq!(calls, 1, "{status:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_have_their_cause_and_the_services_words() {
    let refusals = [
        (Status::invalid_argument("a"), Cause::Invalid),
        (Status::not_found("b"), Cause::NoSuchPoll),
        (Status::failed_precondition("c"), Cause::NotOpen),
        (Status::permission_denied("d"), Cause::NotAllowed),
        (Status::unauthenticated("e"), Cause::NotAllowed),
    ];
    for (status, cause) in refusals {
        let reason = status.message().to_owned();
        assert_eq!(cast(vec![status], Retry::DEFAULT).await, (Outcome::Rejected { cause, reason }, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_and_time_are_bounded() {
    let retry = Retry { attempts_max: 3, ..Retry::DEFAULT };
    let (outcome, calls) = cast(vec![not_stored(); 9], retry).await;
    assert_eq!(outcome, Outcome::Rejected { cause: Cause::NotStored, reason: "the stream is away".into() });
    assert_eq!(calls, 3);
    let start = Instant::now();
    let retry = Retry { attempts_max: u32::MAX, ..Retry::DEFAULT };
    let (outcome, _) = cast(vec![not_stored(); 1_000], retry).await;
    assert!(matches!(outcome, Outcome::Rejected { cause: Cause::NotStored, .. }));
    assert!(start.elapsed() <= retry.time_max);
}

fn client_of((network, channel): (Network, tonic::transport::Channel)) -> (Network, votestream_client::IngestClient) {
    (network, Client::builder().ingest_over(channel))
}

#[tokio::test(start_paused = true)]
async fn without_a_connection_nothing_was_sent_and_it_is_tried_again() {
    let (network, client) = client_of(casts(|_| async { Ok(()) }));
    network.refuse(true);
    let back = network.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(10)).await;
        back.refuse(false);
    });
    assert_eq!(client.cast(VOTE).await, Outcome::Durable);
    assert!(network.connections() > 3);
    network.refuse(true);
    network.cut();
    // The first call may notice that the connection is gone, which proves nothing; the next ones have none.
    client.cast(VOTE).await;
    let outcome = client.cast(VOTE).await;
    assert!(matches!(outcome, Outcome::Rejected { cause: Cause::NotStored, .. }), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_in_a_call_leaves_the_outcome_unknown() {
    let (cut, mut cuts) = tokio::sync::mpsc::unbounded_channel();
    let (network, client) = client_of(casts(move |_| {
        cut.send(()).ok();
        std::future::pending()
    }));
    let cutting = network.clone();
    tokio::spawn(async move {
        while cuts.recv().await.is_some() {
            cutting.cut();
        }
    });
    let outcome = client.cast(VOTE).await;
    assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
    assert_eq!(network.connections(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_does_not_answer_is_waited_for_and_then_unknown() {
    let (_network, client) = client_of(casts(|_| std::future::pending()));
    let start = Instant::now();
    let outcome = client.cast(VOTE).await;
    assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
    assert!(start.elapsed() >= CALL_TIMEOUT && start.elapsed() < CALL_TIMEOUT * 2, "{:?}", start.elapsed());
}
