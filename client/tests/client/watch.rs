//! Interim results as they change.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures::{StreamExt, stream};
use tonic::{Code, Status};
use votestream_client::{Client, ClientError, Retry, v1::WatchInterimResultsResponse};

use crate::fake::{Update, watches};

fn update(total_submitted: u64) -> Update {
    Ok(WatchInterimResultsResponse { total_submitted, ..WatchInterimResultsResponse::default() })
}

/// What a client sees of a service whose calls go so, one after the other.
async fn watch(calls: Vec<Vec<Update>>, retry: Retry) -> (Vec<Result<u64, Code>>, usize) {
    let made = Arc::new(AtomicUsize::new(0));
    let counted = made.clone();
    let (_network, channel) = watches(move |call| {
        counted.fetch_add(1, Ordering::SeqCst);
        stream::iter(calls.get(call).cloned().unwrap_or_default()).boxed()
    });
    let client = Client::builder().retry(retry).results_over(channel);
    let seen = client.watch_results("p").into_stream().map(|update| match update {
        Ok(update) => Ok(update.total_submitted),
        Err(ClientError::Call { status, .. }) => Err(status.code()),
        Err(other) => panic!("{other}"),
    });
    (seen.collect().await, made.load(Ordering::SeqCst))
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_after_breaks_and_ends_with_the_poll() {
    let broken = || Err(Status::unavailable("it stops"));
    let calls = vec![
        vec![update(1), update(2), broken()],
        vec![broken()],
        vec![Err(Status::resource_exhausted("too slow"))],
        vec![update(3), broken()],
        vec![update(4)],
    ];
    assert_eq!(watch(calls, Retry::DEFAULT).await, (vec![Ok(1), Ok(2), Ok(3), Ok(4)], 5));
}

#[tokio::test(start_paused = true)]
async fn what_stays_wrong_is_said_once() {
    let calls = vec![vec![Err(Status::not_found("no such poll"))], vec![update(1)]];
    assert_eq!(watch(calls, Retry::DEFAULT).await, (vec![Err(Code::NotFound)], 1));
}

#[tokio::test(start_paused = true)]
async fn attempts_without_an_update_are_bounded() {
    let retry = Retry { attempts_max: 3, ..Retry::DEFAULT };
    let broken = vec![Err(Status::unavailable("it stops"))];
    let mut calls = vec![broken.clone(), broken.clone(), vec![update(1), broken[0].clone()]];
    calls.extend(vec![broken; 9]);
    assert_eq!(watch(calls, retry).await, (vec![Ok(1), Err(Code::Unavailable)], 5));
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_given_up_loses_nothing() {
    let (network, channel) = watches(|call| match call {
        0 => stream::iter([update(1)]).chain(stream::pending()).boxed(),
        _ => stream::iter([update(2)]).boxed(),
    });
    let mut watch = Client::builder().results_over(channel).watch_results("p");
    assert!(watch.next().await.is_some_and(|update| update.is_ok_and(|update| update.total_submitted == 1)));
    network.cut();
    // Given up again and again, in calls and in pauses.
    let mut polls = 0;
    let second = loop {
        polls += 1;
        assert!(polls < 10_000, "no update comes");
        tokio::select! {
            biased;
            update = watch.next() => break update,
            () = tokio::time::sleep(std::time::Duration::from_millis(10)) => {}
        }
    };
    assert!(second.is_some_and(|update| update.is_ok_and(|update| update.total_submitted == 2)));
    assert!(watch.next().await.is_none() && watch.next().await.is_none());
}
