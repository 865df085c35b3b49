//! A stalled engine under many small messages.

use std::{path::Path, time::Duration};

use votestream_core::{TimeBounds, port::Ports};
use votestream_e2e::{
    faults::StallingStream,
    stack::{Stack, TEST_BOUNDS},
};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_proto::{VotesMessage, v1::GetInterimResultsRequest};

fn engine(dir: &Path, bounds: TimeBounds) -> EmbeddedEngine {
    EmbeddedEngine::open(dir, EmbeddedOptions { bounds, ..EmbeddedOptions::default() }).unwrap()
}

async fn submitted(stack: &Stack, poll: &str) -> u64 {
    let request = GetInterimResultsRequest { poll_id: poll.into() };
    stack.results().await.get_interim_results(request).await.unwrap().into_inner().total_submitted
}

/// Waits until interim results show this many submitted votes.
async fn wait_for_submitted(stack: &Stack, poll: &str, votes: u64) {
    let shown = async {
        while submitted(stack, poll).await != votes {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), shown).await.expect("interim results never showed every vote");
}

/// 30 fast streams with one vote per message on one connection, while the engine stalls for two seconds. By itself h2
/// would close a connection that holds too many small DATA frames, see `server/src/connections/connection.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_engine_closes_no_connection_and_loses_nothing() {
    const STREAMS: usize = 30;
    const VOTES: usize = if cfg!(debug_assertions) { 300_000 } else { 1_000_000 };
    let dir = tempfile::tempdir().unwrap();
    let bounds = TimeBounds { answer_deadline: Duration::from_secs(30), ..TEST_BOUNDS };
    let opened = engine(dir.path(), bounds);
    let stream = StallingStream::new(opened.ports().stream);
    let stack = Stack::start(Ports { stream: stream.clone(), ..opened.ports() }, bounds).await;
    stack.create_poll("p", ["a", "b"]).await;

    let client = stack.ingest().await;
    let mut streams = tokio::task::JoinSet::new();
    for at in 0..STREAMS {
        let mut client = client.clone();
        streams.spawn(async move {
            let messages = (0..VOTES / STREAMS).map(move |vote| {
                let mut message = VotesMessage::with_capacity(32);
                message.push("p", &format!("user-{at}-{vote}"), "a");
                message
            });
            client.cast_votes(tokio_stream::iter(messages)).await.map(tonic::Response::into_inner)
        });
    }
    wait_until(|| stack_has_votes(&opened)).await;
    stream.stall(true);
    let stall = tokio::time::sleep(Duration::from_secs(2));
    stall.await;
    stream.stall(false);
    let mut accepted = 0;
    while let Some(answer) = streams.join_next().await {
        let answer = answer.unwrap().expect("a connection was closed");
        assert_eq!(answer.rejected, 0, "{:?}", answer.rejections);
        accepted += answer.accepted;
    }
    assert_eq!(accepted as usize, VOTES / STREAMS * STREAMS);
    assert!(stream.held_back() > 0, "the stall held no put back");
    wait_for_submitted(&stack, "p", accepted).await;
    stack.stop().await;
}

async fn wait_until<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let met = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), met).await.expect("the condition was never met");
}

/// Whether a tally row exists, that is, votes arrive at the tallies.
async fn stack_has_votes(engine: &EmbeddedEngine) -> bool {
    let poll = votestream_core::PollId::new("p").unwrap();
    !engine.ports().tallies.read(&poll).await.unwrap().is_empty()
}
