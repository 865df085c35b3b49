//! Runs `votestream up` on a disk that is full or cannot be written. It must give a clear message, and must acknowledge
//! nothing that is not safe.
//!
//! The disks are small file systems in memory, in namespaces. A namespace ends with its first process, and everything
//! in it ends, too. Where a user may not make one (`unshare --user --mount`), the tests are skipped with a message.

use std::{
    path::Path,
    process::{Command as Blocking, Stdio},
    sync::Arc,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::Command,
    time::timeout,
};
use votestream_e2e::voters::{Election, PATIENCE, Voters, wait_until};
use votestream_testkit::audit::Answer;

const VOTESTREAM: &str = env!("CARGO_BIN_EXE_cluster-votestream");

/// Runs `up` on a small disk, and fills the disk once a file `full` exists. When `up` has ended, makes room and runs it
/// again.
const FULL: &str = r#"
mount -t tmpfs -o size=8m none "$1/disk" || exit 77
up() {
    "$0" up --json --shards 2 --data-dir "$1/disk/data" --addr 127.0.0.1:0
}
(while [ ! -e "$1/full" ]; do sleep 0.1; done; dd if=/dev/zero of="$1/disk/ballast" bs=4k 2>/dev/null; echo '{"full": 1}') &
up "$1"
echo "{\"ended\": $?}"
wait
rm "$1/disk/ballast"
up "$1"
"#;

/// Runs `up` on a disk that cannot be written.
const READ_ONLY: &str = r#"
mount -t tmpfs -o ro none "$1/disk" || exit 77
exec "$0" up --data-dir "$1/disk/data" --addr 127.0.0.1:0
"#;

/// The command that runs a script in its own namespaces. `None`, with a message, where that is not possible.
fn in_namespace(script: &str, directory: &Path) -> Option<Command> {
    let unshare = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--kill-child", "--fork"];
    let may = Blocking::new(unshare[0]).args(&unshare[1..]).args(["mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if !may.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no file system can be mounted in a namespace here");
        return None;
    }
    std::fs::create_dir(directory.join("disk")).unwrap();
    let mut command = Command::new(unshare[0]);
    command.args(&unshare[1..]).args(["sh", "-c", script, VOTESTREAM]).arg(directory);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    Some(command)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_acknowledges_nothing_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let Some(mut command) = in_namespace(FULL, directory.path()) else { return };
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut stderr = child.stderr.take().unwrap();
    let said = tokio::spawn(async move {
        let mut said = String::new();
        stderr.read_to_string(&mut said).await.ok();
        said
    });
    let mut next = async || -> serde_json::Value {
        let line = timeout(PATIENCE, lines.next_line()).await.expect("it says something in time").unwrap();
        serde_json::from_str(&line.expect("it still runs")).unwrap()
    };
    let election = Arc::<Election>::default();
    election.places.ingest.lock().push(None);
    election.places.results.lock().push(None);
    let starts = |line: &serde_json::Value| {
        let address = |name: &str| line[name].as_str().map(|url| url.trim_start_matches("http://").parse().unwrap());
        election.places.ingest.lock()[0] = address("ingest");
        election.places.results.lock()[0] = address("results");
    };
    starts(&next().await);
    election.open("p").await.unwrap();
    let voters = Voters::start(&election, 4, 1);
    let durable = || election.log.count(Answer::Durable);
    wait_until("votes are acknowledged", || durable() > 50).await.unwrap();

    std::fs::write(directory.path().join("full"), "").unwrap();
    let mut ended = None;
    for _ in 0..2 {
        let line = next().await;
        ended = ended.or(line["ended"].as_i64());
    }
    assert_eq!(ended, Some(3), "it ends with the code of a stack that broke");
    let when_full = durable();
    starts(&next().await);
    // The refused votes have used the options of the first poll.
    election.open("q").await.unwrap();
    wait_until("votes are acknowledged again", || durable() > when_full + 50).await.unwrap();
    voters.finish().await.unwrap();
    assert!(election.log.count(Answer::Rejected) + election.log.count(Answer::Unknown) > 0, "no vote met a full disk");
    for poll in ["p", "q"] {
        election.close(poll).await.unwrap();
    }
    election.verdict().await.unwrap();
    child.kill().await.unwrap();
    let said = timeout(PATIENCE, said).await.unwrap().unwrap();
    let message =
        said.lines().find(|line| line.starts_with("error: cannot write to ")).unwrap_or_else(|| panic!("{said}"));
    assert!(message.contains("disk/data") && message.contains("Acknowledged votes are safe"), "{message}");
}

#[tokio::test]
async fn a_disk_that_cannot_be_written_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let Some(mut command) = in_namespace(READ_ONLY, directory.path()) else { return };
    let output = timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("disk/data") && said.contains("Read-only file system"), "{said}");
}

#[tokio::test]
async fn what_is_no_data_directory_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    // A directory with data of which a part cannot be read: a directory is where a file should be.
    let damaged = directory.path().join("damaged");
    std::fs::create_dir_all(damaged.join("format")).unwrap();
    for path in [file, damaged] {
        let mut command = Command::new(VOTESTREAM);
        command.args(["up", "--addr", "127.0.0.1:0", "--data-dir"]).arg(&path);
        let output = timeout(PATIENCE, command.kill_on_drop(true).output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains(path.to_str().unwrap()), "{said}");
    }
}
