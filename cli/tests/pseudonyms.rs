//! `votestream up` stores no user id, whatever happens to it, and one person has one vote before and after.

mod up;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use up::Up;

/// Part of every user id here, and of nothing else.
const CANARY: &str = "canary-7f3a9c";
const PATIENCE: Duration = Duration::from_secs(120);

fn start(directory: &Path, more: &[&str]) -> Up {
    Up::start_with("127.0.0.1:0", |command| {
        command.env_remove("VOTESTREAM_PSEUDONYM_KEYS").arg("--data-dir").arg(directory).args(more);
        let log = fs::File::options().create(true).append(true).open(directory.with_extension("log")).unwrap();
        command.env("RUST_LOG", "trace").stderr(log);
    })
}

/// A start that must fail.
fn refused(directory: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_votestream"));
    command.args(["up", "--json", "--addr", "127.0.0.1:0", "--data-dir"]);
    command.arg(directory).args(more).stdin(Stdio::null()).output().unwrap()
}

impl Up {
    fn create(&self, poll: &str) {
        let create = ["poll", "create", "--id", poll, "--option", "a", "--option", "b", "--closes-in", "1h"];
        assert_eq!(self.json(&create, "").0, 0);
    }

    /// Users `0..users` vote. Returns how many votes were accepted.
    fn cast(&self, poll: &str, users: usize, option: &str) -> u64 {
        let votes: String = (0..users).map(|user| format!("{poll},{CANARY}-{user},{option}\n")).collect();
        self.json(&["cast", "--file", "-"], &votes).1["accepted"].as_u64().unwrap()
    }

    /// Waits until so many users are counted.
    fn counted(&self, poll: &str, submitted: u64, users: u64) {
        let start = Instant::now();
        loop {
            let results = self.json(&["results", poll], "").1;
            if results["total_submitted"] == json!(submitted) && results["total_counted"] == json!(users) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{results}");
        }
    }

    fn finish(&self, poll: &str) -> Value {
        assert_eq!(self.json(&["poll", "close", poll], "").0, 0);
        let (code, last, _) = self.json(&["results", poll, "--final", "--wait", "--timeout", "60s"], "");
        assert_eq!(code, 0, "it becomes final");
        let (code, recount, _) = self.json(&["audit", poll], "");
        assert_eq!((code, &recount["matches"]), (0, &json!(true)));
        json!([last["options"][0]["votes"], last["options"][1]["votes"]])
    }
}

/// Files below a path that hold these bytes.
fn files_with(path: &Path, bytes: &[u8]) -> Vec<String> {
    if path.is_dir() {
        return fs::read_dir(path).unwrap().flat_map(|entry| files_with(&entry.unwrap().path(), bytes)).collect();
    }
    // One letter a byte, since searching a text is much faster than searching bytes. The socket of the stack cannot be
    // read.
    let letters = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect::<String>();
    let holds = fs::read(path).is_ok_and(|content| letters(&content).contains(&letters(bytes)));
    holds.then(|| path.display().to_string()).into_iter().collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn one_person_has_one_vote_and_no_name_whatever_happens() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let up = start(&data, &[]);
    up.create("p");
    assert_eq!(up.cast("p", 300, "a"), 300);
    up.counted("p", 300, 300);
    up.kill();
    let up = start(&data, &[]);
    assert_eq!(up.cast("p", 200, "b"), 200);
    up.counted("p", 500, 300);

    // A backup has the key, so that whoever votes again after it was restored is the same person.
    let copy = directory.path().join("copy");
    let (code, _, said) = up.json(&["backup", copy.to_str().unwrap(), "--data-dir", data.to_str().unwrap()], "");
    assert_eq!(code, 0, "{said}");
    let restored = start(&copy, &[]);
    assert_eq!(restored.cast("p", 100, "a"), 100);
    restored.counted("p", 600, 300);
    assert_eq!(restored.finish("p"), json!([200, 100]));
    assert_eq!(up.finish("p"), json!([100, 200]));

    // The stored id is the one that the command prints, and it is really stored.
    let key = data.join("pseudonym-keys");
    let asked =
        ["auth", "pseudonym", "--poll", "p", "--user", &format!("{CANARY}-7"), "--data-dir", data.to_str().unwrap()];
    let (code, stored, said) = up.json(&asked, "");
    assert_eq!(code, 0, "{said}");
    let id = stored["stored_user_id"].as_str().unwrap().to_owned();
    let digits: String = id.chars().filter(|letter| *letter != '-').collect();
    let uuid = u128::from_str_radix(&digits, 16).unwrap().to_be_bytes();
    let by_id = stored["pseudonym_key_id"].as_str().unwrap();
    let unasked =
        ["auth", "pseudonym", "--poll", "p", "--user", &format!("{CANARY}-7"), "--key", by_id, "--pseudonym-keys"];
    let (code, again, said) = up.json(&[&unasked[..], &[key.to_str().unwrap()]].concat(), "");
    assert_eq!((code, &again), (0, &stored), "{said}");
    drop((up, restored));
    assert!(!files_with(&data, &uuid).is_empty(), "the pseudonym is stored");
    assert_eq!(files_with(directory.path(), CANARY.as_bytes()), [""; 0], "nothing names a user");
    // Nor does anything but the two key files hold a key.
    let secret = text(&fs::read(&key).unwrap());
    let secret = secret.lines().rfind(|line| !line.starts_with('#')).unwrap();
    let mut with_key = files_with(directory.path(), secret.as_bytes());
    with_key.sort();
    let expected = [copy.join("pseudonym-keys"), key.clone()].map(|path| path.display().to_string());
    assert_eq!(with_key, expected);
    for path in expected {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn without_pseudonyms_ids_are_stored_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let up = start(&data, &["--pseudonym-keys", "none"]);
    up.create("plain");
    assert_eq!(up.cast("plain", 3, "a"), 3);
    assert!(!data.join("pseudonym-keys").exists());
    let user = format!("{CANARY}-0");
    let asked = ["auth", "pseudonym", "--poll", "plain", "--user", &user, "--data-dir", data.to_str().unwrap()];
    assert_eq!(up.json(&asked, "").1["stored_user_id"], json!(user));
    up.kill();
    assert!(!files_with(&data, CANARY.as_bytes()).is_empty(), "so the search of the other test would find it");

    // Polls keep what they were created with, whatever the setting is.
    let up = start(&data, &[]);
    up.create("keyed");
    assert_eq!((up.cast("plain", 3, "b"), up.cast("keyed", 3, "a")), (3, 3));
    up.kill();
    let up = start(&data, &["--pseudonym-keys", "none"]);
    up.create("plain-2");
    assert_eq!((up.cast("plain", 3, "a"), up.cast("keyed", 3, "b"), up.cast("plain-2", 3, "a")), (3, 3, 3));
    let key_of = |poll: &str| up.json(&["poll", "get", poll], "").1["poll"]["pseudonym_key_id"].clone();
    assert_eq!((key_of("plain"), key_of("plain-2")), (json!(""), json!("")));
    assert_ne!(key_of("keyed"), json!(""));
    for (poll, expected) in [("plain", json!([3, 0])), ("keyed", json!([0, 3])), ("plain-2", json!([3, 0]))] {
        assert_eq!(up.finish(poll), expected, "{poll}");
    }
}

#[test]
fn a_lost_key_costs_its_polls_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let (data, aside) = (directory.path().join("data"), directory.path().join("aside"));
    let key = data.join("pseudonym-keys");
    let up = start(&data, &[]);
    up.create("p");
    assert_eq!(up.cast("p", 5, "a"), 5);
    let id = up.json(&["poll", "get", "p"], "").1["poll"]["pseudonym_key_id"].as_str().unwrap().to_owned();
    up.kill();

    // Another user of the machine may read it: nothing starts.
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let open = refused(&data, &[]);
    assert_eq!(open.status.code(), Some(2));
    assert!(text(&open.stderr).contains("mode 644") && text(&open.stderr).contains("chmod 600"), "{open:?}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    fs::rename(&key, &aside).unwrap();
    let up = start(&data, &[]);
    let said = text(&fs::read(data.with_extension("log")).unwrap());
    assert!(said.contains(&format!("WARNING   poll p needs the pseudonym key {id}")), "{said}");
    let (code, cast, said) = up.json(&["cast", "--poll", "p", "--user", "ada", "--option", "a"], "");
    assert_ne!(code, 0, "{cast}");
    assert!(said.contains(&id) || cast.to_string().contains(&id), "{cast} {said}");
    up.create("q");
    assert_eq!(up.cast("q", 5, "a"), 5, "new polls get a new key");
    up.kill();

    // Both keys in one file: all polls have theirs, and the first is for new ones.
    let both = text(&fs::read(&key).unwrap()) + &text(&fs::read(&aside).unwrap());
    fs::write(&key, both).unwrap();
    let up = start(&data, &[]);
    assert_eq!((up.cast("p", 5, "b"), up.cast("q", 5, "b")), (5, 5));
    assert_eq!((up.finish("p"), up.finish("q")), (json!([0, 5]), json!([0, 5])));
    drop(up);

    // A file that is given elsewhere.
    let other = directory.path().join("other");
    fs::write(&other, "not a key\n\nneither\n").unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
    let wrong = refused(&data, &["--pseudonym-keys", other.to_str().unwrap()]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("line 1") && text(&wrong.stderr).contains("line 3"), "{wrong:?}");
    fs::write(&other, format!("{}\n", "5a".repeat(32))).unwrap();
    let up = start(&data, &["--pseudonym-keys", other.to_str().unwrap()]);
    up.create("r");
    let poll = up.json(&["poll", "get", "r"], "").1;
    assert_ne!(poll["poll"]["pseudonym_key_id"], json!(id));
    assert_eq!(up.cast("r", 5, "a"), 5);
}
