//! The audit log of a running stack: what managers did is in it, whoever was refused as well, and neither `kill -9` nor a
//! full disk makes it lie. Runs the real binary.

mod up;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use up::Up;

/// Longer than any step here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until a condition holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn votestream(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_votestream")).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// `votestream auth log --json`: exit code and the object.
fn log(path: &Path) -> (i32, Value) {
    let (code, out, error) = votestream(&["auth", "log", path.to_str().unwrap(), "--json"]);
    assert!(!out.is_empty(), "{error}");
    (code, serde_json::from_str(&out).unwrap())
}

/// One line for each act: what, with which poll, by whom, and what came of it.
fn acts(log: &Value) -> Vec<String> {
    let text = |act: &Value, name: &str| act[name].as_str().unwrap_or("-").to_owned();
    let acts = log["acts"].as_array().unwrap().iter();
    acts.map(|act| ["act", "poll", "who", "status"].map(|name| text(act, name)).join(" | ")).collect()
}

/// A folder with an auth file.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        assert_eq!(votestream(&["auth", "init", folder.path("auth").to_str().unwrap()]).0, 0);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn token(&self, user: &str, scope: &str) -> String {
        let auth = self.path("auth/auth.toml");
        let (code, token, error) =
            votestream(&["auth", "token", "--auth", auth.to_str().unwrap(), "--user", user, "--scope", scope]);
        assert_eq!(code, 0, "{error}");
        token.trim_end().to_owned()
    }

    fn up(&self, audit_log: &Path) -> Up {
        Up::start_with("127.0.0.1:0", |command| {
            command.arg("--data-dir").arg(self.path("data")).arg("--auth").arg(self.path("auth/auth.toml"));
            command.arg("--audit-log").arg(audit_log);
        })
    }
}

/// Runs a command with a token: exit code and stderr.
fn with(up: &Up, token: Option<&str>, arguments: &[&str]) -> (i32, String) {
    let mut command = up.command(arguments);
    command.env_remove("VOTESTREAM_TOKEN").stdin(Stdio::null());
    if let Some(token) = token {
        command.env("VOTESTREAM_TOKEN", token);
    }
    let output = command.output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// Status of a request over HTTP/1.1.
fn post(url: &str, path: &str, token: Option<&str>, body: &str) -> u16 {
    let host = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let authorization = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: {host}\r\n{authorization}Content-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

const CREATE: [&str; 11] =
    ["poll", "create", "--id", "lunch", "--option", "pizza", "--option", "salad", "--closes-in", "1h", "--json"];

#[test]
fn whatever_administers_is_in_the_log_whoever_was_refused_as_well() {
    let folder = Folder::new();
    let path = folder.path("audit.log");
    let up = folder.up(&path);
    let manager = folder.token("ada", "manage:*");
    let other = folder.token("bob", "manage:dinner");
    let voter = folder.token("voter-number-7", "vote:*");
    let code = |token, arguments: &[&str]| with(&up, token, arguments).0;
    assert_eq!(code(Some(&manager), &CREATE), 0);
    assert_eq!(code(Some(&manager), &CREATE[..8]), 2, "without a time");
    assert_eq!(code(Some(&manager), &["poll", "close", "none"]), 3);
    // Refused by the handler, which knows the poll.
    assert_eq!(code(Some(&other), &["poll", "close", "lunch"]), 3);
    // Refused in front of it: by the scopes, and without a credential.
    assert_eq!(code(Some(&voter), &["poll", "close", "lunch"]), 3);
    assert_eq!(code(None, &["audit", "lunch"]), 3);
    let forged = format!("{}xx", &manager[..manager.len() - 2]);
    assert_eq!(code(Some(&forged), &["poll", "close", "lunch"]), 3);
    // The same over JSON. The poll shows its results anyway, so there is nothing to release.
    let release = |token| post(&up.results, "/v1/polls/lunch/release", token, "");
    assert_eq!((release(None), release(Some(&other)), release(Some(&manager))), (401, 403, 409));
    // Votes and reads do not administer.
    assert_eq!(post(&up.ingest, "/v1/polls/lunch/votes", Some(&voter), r#"{"option_id": "pizza"}"#), 200);
    assert_eq!(code(None, &["results", "lunch"]), 0);
    assert_eq!(code(Some(&manager), &["poll", "close", "lunch"]), 0);
    // The vote may not be counted yet.
    assert!(code(Some(&manager), &["audit", "lunch"]) < 2);

    let (code, read) = log(&path);
    assert_eq!((code, &read["intact"]), (0, &Value::from(true)));
    let expected = [
        "create | lunch | token votestream ada | OK",
        "close | none | token votestream ada | NOT_FOUND",
        "close | lunch | token votestream bob | PERMISSION_DENIED",
        "close | - | token votestream voter-number-7 | UNAUTHENTICATED",
        "recount | - | anonymous | UNAUTHENTICATED",
        "close | - | nobody | UNAUTHENTICATED",
        "release | lunch | anonymous | UNAUTHENTICATED",
        "release | lunch | token votestream bob | PERMISSION_DENIED",
        "release | lunch | token votestream ada | FAILED_PRECONDITION",
        "close | lunch | token votestream ada | OK",
        "recount | lunch | token votestream ada | OK",
    ];
    let mut told = acts(&read);
    // Which of the two codes a voter gets is not the log's affair.
    told[3] = told[3].replace("PERMISSION_DENIED", "UNAUTHENTICATED");
    assert_eq!(told, expected);
    let created = &read["acts"][0];
    assert_eq!(created["asked"]["options"][1]["option_id"], "salad");
    assert!(created["from"].as_str().unwrap().starts_with("127.0.0.1:"), "{created}");
    assert!(created["became"]["closes_at"].is_string() && created["time"].is_string(), "{created}");

    let text = fs::read_to_string(&path).unwrap();
    for secret in [&manager, &other, &voter, &forged] {
        let signature = secret.rsplit('.').next().unwrap();
        assert!(!text.contains(&signature[..20]), "a token is in the log");
    }
    assert!(!text.contains("\"counted\"") && !text.contains("\"votes\""), "counts are in the log");

    // For people, with what to note.
    let (code, out, notes) = votestream(&["auth", "log", path.to_str().unwrap()]);
    assert_eq!((code, out.lines().count()), (0, expected.len()));
    assert!(out.contains("refused: close lunch by \"token votestream bob\" from 127.0.0.1:"), "{out}");
    let head = notes.lines().last().unwrap();
    assert_eq!(head, read["head"].as_str().unwrap());
    let with_head = |path: &Path| votestream(&["auth", "log", path.to_str().unwrap(), "--head", head]).0;
    assert_eq!(with_head(&path), 0);

    // Whoever changes it is found out, and whoever removes the end is by the head.
    let copy = folder.path("copy.log");
    fs::write(&copy, text.replace("token votestream bob", "token votestream bot")).unwrap();
    let (code, out, notes) = votestream(&["auth", "log", copy.to_str().unwrap()]);
    assert!(code == 1 && notes.contains("BROKEN: line 5: it was changed") && out.lines().count() == 2, "{notes}{out}");
    let lines: Vec<&str> = text.lines().collect();
    fs::write(&copy, format!("{}\n", lines[..lines.len() - 2].join("\n"))).unwrap();
    assert_eq!((log(&copy).0, with_head(&copy)), (0, 1));
    assert_eq!(votestream(&["auth", "log", "/no/such/log"]).0, 2);
}

#[test]
fn a_second_process_and_a_foreign_file_are_refused() {
    let folder = Folder::new();
    let path = folder.path("audit.log");
    let _up = folder.up(&path);
    let second = |path: &str| votestream(&["up", "--ephemeral", "--addr", "127.0.0.1:0", "--audit-log", path]);
    let (code, _, error) = second(path.to_str().unwrap());
    assert!(code == 2 && error.contains("is in use by another process"), "{error}");
    let auth = folder.path("auth/auth.toml");
    let before = fs::read(&auth).unwrap();
    let (code, _, error) = second(auth.to_str().unwrap());
    assert!(code == 2 && error.contains("is not a whole audit log"), "{error}");
    assert_eq!(fs::read(auth).unwrap(), before);
    let both = votestream(&["up", "--ephemeral", "--json", "--audit-log", "-"]);
    assert!(both.0 == 2 && both.2.contains("both write to stdout"), "{}", both.2);
}

/// Kills the stack while the last line of the log is an intent. What was begun is in the log, and nothing else took
/// place.
#[test]
fn kill_9_between_an_intent_and_its_end_leaves_the_intent() {
    let folder = Folder::new();
    let path = folder.path("audit.log");
    let manager = folder.token("ada", "manage:*");
    let mut open = 0;
    for round in 0..40 {
        let up = folder.up(&path);
        if round == 0 {
            // On a slow disk, every other creation may be interrupted.
            assert_eq!(with(&up, Some(&manager), &CREATE).0, 0);
        }
        let creating = std::thread::scope(|scope| {
            let create = scope.spawn(|| {
                (0..200)
                    .take_while(|at| {
                        let id = format!("r{round}-{at}");
                        with(
                            &up,
                            Some(&manager),
                            &["poll", "create", "--id", &id, "--option", "a", "--closes-in", "1h"],
                        )
                        .0 == 0
                    })
                    .count()
            });
            let start = fs::metadata(&path).unwrap().len();
            until("an intent is written, and no end", || {
                let text = fs::read(&path).unwrap();
                let last = text.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default().to_vec();
                text.len() as u64 > start && String::from_utf8_lossy(&last).contains("\"kind\":\"intent\"")
            });
            rustix::process::kill_process(rustix::process::Pid::from_child(&up.child), rustix::process::Signal::KILL)
                .unwrap();
            create.join().unwrap()
        });
        assert!(creating < 200, "the stack was killed too late");
        drop(up);
        let (code, read) = log(&path);
        open = acts(&read).iter().filter(|act| act.ends_with("UNKNOWN")).count();
        assert_eq!(code, 0, "{read}");
        if open > 0 && round >= 2 {
            break;
        }
    }
    assert!(open > 0, "no act was interrupted");
    // Every poll that is there was announced in the log.
    let up = folder.up(&path);
    let listed = up.command(&["poll", "list", "--json"]).env("VOTESTREAM_TOKEN", &manager).output().unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let told: Vec<String> = acts(&log(&path).1);
    let polls = listed["polls"].as_array().unwrap();
    assert!(!polls.is_empty());
    for poll in polls {
        let start = format!("create | {} | ", poll["poll_id"].as_str().unwrap());
        assert!(told.iter().any(|act| act.starts_with(&start)), "{start} is not in the log");
    }
}

/// A small file system of its own, as root.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf) -> Option<Self> {
        fs::create_dir(&path).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&path).output();
        mounted.is_ok_and(|mounted| mounted.status.success()).then_some(Self(path))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the log may still be open when a test fails.
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[test]
fn a_full_disk_stops_managers_and_nobody_else() {
    let folder = Folder::new();
    let Some(disk) = SmallDisk::mount(folder.path("disk")) else {
        eprintln!("skipped: a full disk needs root");
        return;
    };
    let path = disk.0.join("audit.log");
    let (manager, voter) = (folder.token("ada", "manage:*"), folder.token("bob", "vote:*"));
    let up = folder.up(&path);
    assert_eq!(with(&up, Some(&manager), &CREATE).0, 0);
    let mut filler = fs::File::create(disk.0.join("filler")).unwrap();
    while filler.write_all(&[0; 512]).is_ok() {}
    let before = fs::read(&path).unwrap();
    // What is left of the last page takes a few lines.
    until("the disk is full", || with(&up, Some(&manager), &["poll", "close", "none"]).1.contains("UNAVAILABLE"));
    let (code, error) = with(&up, Some(&manager), &["poll", "close", "lunch"]);
    assert!(
        code == 3 && error.contains("the audit log of the server cannot be written, so this was not done"),
        "{error}"
    );
    assert_eq!(post(&up.ingest, "/v1/polls/lunch/votes", Some(&voter), r#"{"option_id": "pizza"}"#), 200);
    assert_eq!(with(&up, None, &["poll", "get", "lunch"]).0, 0);
    let (code, read) = log(&path);
    assert_eq!(code, 0, "{read}");
    assert!(fs::read(&path).unwrap().starts_with(&before));

    fs::remove_file(disk.0.join("filler")).unwrap();
    drop(filler);
    assert_eq!(with(&up, Some(&manager), &["poll", "close", "lunch"]).0, 0);
    let (code, read) = log(&path);
    let told = acts(&read);
    assert_eq!((code, told.last().unwrap().as_str()), (0, "close | lunch | token votestream ada | OK"));
    let closed = told.iter().filter(|act| act.starts_with("close | lunch"));
    assert_eq!(closed.count(), 1, "what was refused for the disk was not begun: {told:#?}");
    up.kill();
}
