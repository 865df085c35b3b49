//! Makes backups of a running `votestream up` under load, one after the other, and restores each. Every vote that was
//! acknowledged before a backup began must be in it, and its final result must be its recount.

use std::{
    fs::{File, read_to_string},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use futures::future::try_join_all;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};
use votestream_e2e::{
    power::{Crowd, judge_crowd},
    voters::{Election, PATIENCE, Voters, wait_until},
};
use votestream_testkit::audit::{Answer, SentVote, as_copied};

const VOTESTREAM: &str = env!("CARGO_BIN_EXE_cluster-votestream");
const BACKUPS: usize = 6;
const EVERY: Duration = Duration::from_secs(1);
const CLIENTS: u64 = 4;
const POLL: &str = "p";

/// Starts with a data directory. Returns the process and its addresses for votes and for results.
async fn up(directory: &Path) -> Result<(Child, SocketAddr, SocketAddr), String> {
    let mut command = Command::new(VOTESTREAM);
    command.args(["up", "--json", "--shards", "2", "--addr", "127.0.0.1:0"]);
    command.arg("--data-dir").arg(directory).env_clear();
    let log = directory.with_extension("log");
    let errors = File::create(&log).map_err(|error| error.to_string())?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("it is piped")?).lines();
    let line = timeout(PATIENCE, lines.next_line()).await.map_err(|_| "it says nothing")?;
    let line = line.map_err(|error| error.to_string())?;
    let line = line.ok_or_else(|| format!("it does not start: {}", read_to_string(log).unwrap_or_default()))?;
    let addresses: serde_json::Value = serde_json::from_str(&line).map_err(|error| error.to_string())?;
    let address = |name: &str| {
        let address = addresses[name].as_str().and_then(|url| url.trim_start_matches("http://").parse().ok());
        address.ok_or(format!("no address in {line}"))
    };
    Ok((child, address("ingest")?, address("results")?))
}

/// A backup, and what was known before it began and after it was complete.
struct Backup {
    directory: PathBuf,
    votes: Vec<SentVote>,
    /// Numbers of votes of the crowd that must, and that may, be in it.
    crowd: std::ops::RangeInclusive<u64>,
}

async fn back_up(from: &Path, to: PathBuf, election: &Election, crowd: &Crowd) -> Backup {
    let (before, [_, durable, _]) = (election.log.of_poll(POLL), crowd.now());
    let mut command = Command::new(VOTESTREAM);
    command.arg("backup").arg(&to).arg("--data-dir").arg(from).env_clear().kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    let (after, [sent, ..]) = (election.log.of_poll(POLL), crowd.now());
    Backup { directory: to, votes: as_copied(&before, after), crowd: durable..=sent }
}

async fn restore(election: &Election, backup: &Backup) -> Result<(), String> {
    let in_it = |reason| format!("{}: {reason}", backup.directory.display());
    let (_process, ingest, results) = up(&backup.directory).await.map_err(in_it)?;
    let restored = election.elsewhere(ingest, results);
    let (poll, crowd) = tokio::join!(restored.close(POLL), judge_crowd(&restored, backup.crowd.clone()));
    poll.and(crowd).map_err(in_it)?;
    restored.verdict_on(POLL, &backup.votes).await.map_err(in_it)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_backup_under_load_holds_what_was_acknowledged_before_it() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let (_process, ingest, results) = up(&data).await.unwrap();
    let election = Arc::new(Election::default().elsewhere(ingest, results));
    election.open(POLL).await.unwrap();
    Crowd::open(&election).await.unwrap();
    let (voters, crowd) = (Voters::start(&election, CLIENTS, 1), Crowd::start(&election, Duration::from_millis(5)));
    wait_until("votes are acknowledged", || election.log.count(Answer::Durable) > 50 && crowd.durable() > 2_000)
        .await
        .unwrap();
    let mut backups = vec![];
    for number in 0..BACKUPS {
        let next = sleep(EVERY);
        backups.push(back_up(&data, directory.path().join(format!("backup-{number}")), &election, &crowd).await);
        next.await;
    }
    assert!(backups.windows(2).all(|two| two[0].crowd.start() < two[1].crowd.start()), "votes came in all the time");
    let restored = try_join_all(backups.iter().map(|backup| restore(&election, backup))).await;
    restored.unwrap();
    // The copies must not have changed the original.
    voters.finish().await.unwrap();
    election.close(POLL).await.unwrap();
    crowd.verdict(&election).await.unwrap();
    election.verdict().await.unwrap();
}
