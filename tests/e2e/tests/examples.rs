//! The examples of the client, as whole programs, against a stack on the embedded engines.

use std::{
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};
use votestream_client::{Client, ResultsClient, v1};
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

/// Votes of the example that is cut off, and how often it is.
const VOTES: u64 = 200_000;
const KILLS: u64 = 3;

/// A stack on this data directory and this address, which serves.
async fn up(directory: &Path, addr: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cluster-votestream"));
    command.args(["up", "--json", "--addr", addr, "--data-dir"]).arg(directory);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let announced = timeout(TIME_MAX, lines.next_line()).await.unwrap().unwrap().expect("it ends at once");
    assert!(serde_json::from_str::<Value>(&announced).unwrap()["server"].is_string(), "{announced}");
    child
}

/// Votes that were submitted, as far as the service says so.
async fn submitted(results: &ResultsClient) -> u64 {
    results.interim_results("p").await.map_or(0, |interim| interim.total_submitted)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_cut_off_says_truly_what_became_of_each_vote() {
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let addr = format!("127.0.0.1:{port}");
    let mut server = up(dir.path(), &addr).await;
    let results = Client::builder().server_address(addr.parse().unwrap()).connect_results().await.unwrap();
    let options = vec![v1::PollOption { option_id: "a".into(), title: String::new() }];
    let closes_at = Some((std::time::SystemTime::now() + Duration::from_secs(3_600)).into());
    let poll = v1::CreatePollRequest { poll_id: "p".into(), options, closes_at, ..v1::CreatePollRequest::default() };
    results.create_poll(poll).await.unwrap();

    let mut example = Command::new(env!("CARGO_BIN_EXE_example-stream"));
    example.args([&format!("http://{addr}"), "p", "a", &VOTES.to_string()]).kill_on_drop(true);
    let mut example = example.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let mut kills = 0;
    while kills < KILLS {
        // More than at the last time, so that each kill cuts off something new.
        let before = submitted(&results).await;
        let more = async {
            while submitted(&results).await <= before && example.try_wait().unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(TIME_MAX, more).await.expect("no vote comes in");
        if example.try_wait().unwrap().is_some() {
            break;
        }
        server.kill().await.unwrap();
        kills += 1;
        server = up(dir.path(), &addr).await;
    }
    let Output { status, stdout, .. } = timeout(2 * TIME_MAX, example.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8(stdout).unwrap();
    assert!(status.success() && kills > 0, "{status}, {kills} kills: {said}");
    let (others, last) =
        said.trim_end().rsplit_once('\n').map_or(("", said.trim_end()), |(others, last)| (others, last));
    let stored: u64 = last.strip_suffix(" votes are stored").unwrap().parse().unwrap();
    let unknown = others.lines().count() as u64;
    assert_eq!(stored + unknown, VOTES, "every vote has one outcome: {said}");

    results.close_poll("p").await.unwrap();
    let last = results.wait_for_final_results("p", Some(TIME_MAX)).await.unwrap();
    assert!((stored..=stored + unknown).contains(&last.total_votes), "{} of {stored} + {unknown}", last.total_votes);
    let recount = results.recount("p", TIME_MAX).await.unwrap();
    assert!(recount.matches && recount.r#final, "{recount:?}");
    server.kill().await.unwrap();
}
