//! The examples of the client, as whole programs, against a stack on the embedded engines.

use std::{process::Output, time::Duration};

use tokio::{process::Command, time::timeout};
use votestream_e2e::stack::{Stack, TEST_BOUNDS};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};

/// Longest time that an example may take on a busy machine.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Runs an example to its end, and returns what it printed.
async fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    let ran = timeout(TIME_MAX, command.args(arguments).kill_on_drop(true).output()).await;
    let Output { status, stdout, stderr } = ran.expect("the example does not end").unwrap();
    assert!(status.success(), "{program}: {status}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_does_what_it_says() {
    let (cast, stream, watch) =
        (env!("CARGO_BIN_EXE_example-cast"), env!("CARGO_BIN_EXE_example-stream"), env!("CARGO_BIN_EXE_example-watch"));
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { bounds: TEST_BOUNDS, ..EmbeddedOptions::default() };
    let engine = EmbeddedEngine::open(dir.path(), options).unwrap();
    let stack = Stack::start(engine.ports(), TEST_BOUNDS).await;
    stack.create_poll("p", ["a", "b"]).await;
    let (ingest, results) = (format!("http://{}", stack.ingest), format!("http://{}", stack.results));

    assert_eq!(run(cast, &[&ingest, "p", "user-0", "b"]).await, "stored, and will be counted\n");
    let rejected = run(cast, &[&ingest, "p", "user-0", "c"]).await;
    assert!(rejected.starts_with("rejected (Invalid): "), "{rejected}");
    assert_eq!(run(stream, &[&ingest, "p", "a", "1000"]).await, "1000 votes are stored\n");
    let unknown = run(stream, &[&ingest, "no-such-poll", "a", "1"]).await;
    assert!(unknown.starts_with("vote 0 was rejected (NoSuchPoll): "), "{unknown}");

    let watching = tokio::spawn(async move { run(watch, &[&results, "p"]).await });
    stack.finish("p").await;
    let watched = watching.await.unwrap();
    assert!(watched.starts_with("so far: ") && watched.contains("so far: 1000 users, 1001 votes\n"), "{watched}");
    assert!(watched.ends_with("final: a 1000\nfinal: b 0\n"), "{watched}");
    stack.stop().await;
    engine.close();
}
