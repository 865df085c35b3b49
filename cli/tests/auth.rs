//! `votestream auth` as a script uses it: the real binary, and a stack that asks for the tokens that it makes.

mod up;

use std::{
    collections::HashSet,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;
use tonic::Code;
use votestream_proto::v1::{self, poll_service_client::PollServiceClient};

use up::Up;

/// Longer than any step here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Exit code, stdout and stderr of `votestream auth`.
fn auth(directory: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_votestream"));
    let output = command.arg("auth").args(arguments).current_dir(directory).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A token for these scopes, by the auth file of `init`.
fn token(directory: &Path, arguments: &[&str]) -> String {
    let all: Vec<&str> =
        ["token", "--auth", "votestream-auth/auth.toml"].into_iter().chain(arguments.to_vec()).collect();
    let (code, token, errors) = auth(directory, &all);
    assert_eq!((code, token.lines().count()), (0, 1), "{errors}");
    token.trim_end().to_owned()
}

/// Status and body of a request over HTTP/1.1, as `curl` sends it.
fn http(url: &str, head: &str, token: Option<&str>, body: &str) -> (u16, Value) {
    let host = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let authorization = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
    let request = format!(
        "{head} HTTP/1.1\r\nHost: {host}\r\n{authorization}Content-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

#[test]
fn a_first_try_asks_for_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    let (code, next, errors) = auth(folder, &["init"]);
    assert_eq!(code, 0, "{errors}");
    let next: Vec<&str> = next.lines().collect();
    assert!(next[0].starts_with("votestream up --auth ") && next[1].starts_with("votestream auth token "), "{next:?}");
    let key = std::fs::metadata(folder.join("votestream-auth/keys.json")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);

    let manager = token(folder, &["--scope", "manage:*", "--expires-in", "10m"]);
    let voter = token(folder, &["--user", "ada", "--scope", "vote:lunch", "--expires-in", "10m"]);
    let up = Up::start_with("127.0.0.1:0", |command| {
        command.args(["--ephemeral", "--auth"]).arg(folder.join("votestream-auth/auth.toml"));
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut polls = PollServiceClient::connect(up.results.clone()).await.unwrap();
        let closes_at = std::time::SystemTime::now() + Duration::from_secs(3_600);
        let option = |id: &str| v1::PollOption { option_id: id.into(), title: String::new() };
        let create = |token: Option<&str>| {
            let mut request = tonic::Request::new(v1::CreatePollRequest {
                poll_id: "lunch".into(),
                options: vec![option("pizza"), option("salad")],
                closes_at: Some(closes_at.into()),
                ..v1::CreatePollRequest::default()
            });
            if let Some(token) = token {
                request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
            }
            request
        };
        assert_eq!(polls.create_poll(create(None)).await.unwrap_err().code(), Code::Unauthenticated);
        assert_eq!(polls.create_poll(create(Some(&voter))).await.unwrap_err().code(), Code::PermissionDenied);
        polls.create_poll(create(Some(&manager))).await.unwrap();
    });

    let vote = |token: Option<&str>, body: &str| http(&up.ingest, "POST /v1/polls/lunch/votes", token, body);
    assert_eq!(vote(None, r#"{"user_id": "ada", "option_id": "pizza"}"#).0, 401);
    assert_eq!(vote(Some(&manager), r#"{"user_id": "ada", "option_id": "pizza"}"#).0, 403, "a manager does not vote");
    let (status, body) = vote(Some(&voter), r#"{"user_id": "bob", "option_id": "pizza"}"#);
    assert_eq!(status, 403, "{body}");
    assert_eq!(vote(Some(&voter), r#"{"option_id": "pizza"}"#).0, 200);
    assert_eq!(vote(Some(&format!("{}x", &voter[..voter.len() - 1])), r#"{"option_id": "salad"}"#).0, 401);
    let start = Instant::now();
    loop {
        // Anonymous callers may read.
        let (status, interim) = http(&up.results, "GET /v1/polls/lunch/results/interim", None, "");
        assert_eq!(status, 200, "{interim}");
        if interim["total_counted"] == 1 {
            assert_eq!(interim["options"][0]["counted"], 1, "{interim}");
            break;
        }
        assert!(start.elapsed() < PATIENCE, "the vote is not counted: {interim}");
    }

    let (code, _, error) = up.json(&["poll", "close", "lunch"], "");
    assert_eq!(code, 3);
    assert!(
        error.contains("closing the poll is not allowed: this needs a credential with the scope manage:"),
        "{error}"
    );
    let (code, _, error) = up.json(&["cast", "--poll", "lunch", "--user", "ada", "--option", "salad"], "");
    assert!(code == 3 && error.contains("casting the vote is not allowed: "), "{error}");
}

#[test]
fn nothing_is_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    let (code, written, _) = auth(folder, &["init", "here/there", "--json"]);
    let written: Value = serde_json::from_str(&written).unwrap();
    assert_eq!((code, written["auth"].as_str().unwrap()), (0, "here/there/auth.toml"));
    let read = || ["auth.toml", "keys.json"].map(|name| std::fs::read(folder.join("here/there").join(name)).unwrap());
    let before = read();
    let (code, out, error) = auth(folder, &["init", "here/there"]);
    assert!(code == 2 && out.is_empty() && error.contains("auth.toml exists already"), "{error}");
    // A script may say that it is content with what is there, if it is right.
    let (code, _, note) = auth(folder, &["init", "here/there", "--if-missing"]);
    assert!(code == 0 && note.contains("is there already"), "{note}");
    std::fs::write(folder.join("here/there/auth.toml"), "[anonymous]\nscope = 1\n").unwrap();
    let (code, _, error) = auth(folder, &["init", "here/there", "--if-missing"]);
    assert!(code == 2 && error.contains("anonymous: scope is not known"), "{error}");
    std::fs::write(folder.join("here/there/auth.toml"), &before[0]).unwrap();
    assert_eq!((read(), auth(folder, &["init", "new", "--if-missing"]).0), (before.clone(), 0));
    // One of the two is enough, and neither a link to nowhere.
    std::fs::remove_file(folder.join("here/there/auth.toml")).unwrap();
    std::os::unix::fs::symlink("/nowhere/at/all", folder.join("here/there/auth.toml")).unwrap();
    assert_eq!(auth(folder, &["init", "here/there"]).0, 2);
    assert_eq!(std::fs::read(folder.join("here/there/keys.json")).unwrap(), before[1]);
}

#[test]
fn links_for_a_hall_have_a_user_each_and_the_token_behind_the_number_sign() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(auth(directory.path(), &["init"]).0, 0);
    let many = ["token", "--auth", "votestream-auth/auth.toml", "--scope", "vote:lunch", "--count", "500", "--csv"];
    let with_links: Vec<&str> = many.into_iter().chain(["--url-prefix", "https://vote.example/p/lunch"]).collect();
    let (code, csv, errors) = auth(directory.path(), &with_links);
    assert_eq!((code, errors.as_str()), (0, ""));
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("user,token,url"));
    let mut users = HashSet::new();
    for line in lines {
        let [user, token, url] = line.split(',').collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(url, format!("https://vote.example/p/lunch#token={token}"));
        assert!(user.len() == 36 && users.insert(user), "{user}");
    }
    assert_eq!(users.len(), 500);
    let (_, csv, _) = auth(directory.path(), &many);
    assert_eq!((csv.lines().next(), csv.lines().count()), (Some("user,token"), 501));
}

#[test]
fn tokens_that_cannot_be_used_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    assert_eq!(auth(folder, &["init"]).0, 0);
    let file = folder.join("votestream-auth/auth.toml");
    let refused = |arguments: &[&str]| {
        let all: Vec<&str> =
            ["token", "--auth", "votestream-auth/auth.toml"].into_iter().chain(arguments.to_vec()).collect();
        let (code, out, error) = auth(folder, &all);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {error}");
        error
    };
    assert!(refused(&["--user", "a", "--scope", "votes:lunch"]).contains("\"votes:lunch\" is not a scope"));
    assert!(refused(&["--scope", "vote:lunch"]).contains("give --user"));
    assert!(refused(&["--user", "a", "--scope", "vote:a", "--issuer", "x"]).contains("it has votestream"));
    let late = ["--user", "a", "--scope", "vote:a", "--not-before", "2999-01-01T00:00:00Z"];
    assert!(refused(&late).contains("expire before it is valid"));
    let (code, _, error) = auth(folder, &["token", "--auth", "no/such", "--scope", "read:*"]);
    assert!(code == 2 && error.contains("no/such: No such file"), "{error}");

    let text = std::fs::read_to_string(&file).unwrap().replace("\"vote:*\"", "\"vote:show-*\"");
    std::fs::write(&file, text).unwrap();
    let all = ["token", "--auth", "votestream-auth/auth.toml", "--user", "a", "--scope", "vote:lunch", "--json"];
    let (code, out, warning) = auth(folder, &all);
    assert!(code == 0 && warning.contains("do not cover vote:lunch"), "{warning}");
    let signed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&signed["user"], &signed["scope"]), (&Value::from("a"), &Value::from("vote:lunch")));
    std::fs::remove_file(folder.join("votestream-auth/keys.json")).unwrap();
    assert!(refused(&["--scope", "read:*"]).contains("keys.json: No such file"));
}

#[test]
fn a_key_is_shown_once_and_its_hash_goes_into_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let made = ["key", "--id", "relay \"1\"", "--scope", "relay:show-*", "--scope", "read:*"];
    let (code, secret, entry) = auth(directory.path(), &made);
    assert!(code == 0 && secret.lines().count() == 1 && !entry.contains(secret.trim_end()), "{entry}");
    // What is on stderr is an auth file by itself.
    let file = directory.path().join("auth.toml");
    std::fs::write(&file, &entry).unwrap();
    let up = Up::start_with("127.0.0.1:0", |command| {
        command.args(["--ephemeral", "--auth"]).arg(&file);
    });
    let read = |key| http(&up.results, "GET /v1/polls/none", key, "").0;
    assert_eq!((read(Some(secret.trim_end())), read(None), read(Some("other"))), (404, 401, 401));
    let (code, _, error) = auth(directory.path(), &["key", "--scope", "vote:*"]);
    assert!(code == 2 && error.contains("relay:"), "{error}");
    let (_, json, _) = auth(directory.path(), &["key", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert!(json["entry"].as_str().unwrap().contains(json["sha256"].as_str().unwrap()));
}

#[test]
fn the_auth_file_may_come_by_a_variable_and_every_mistake_is_told() {
    let up = Up::start_with("127.0.0.1:0", |command| {
        command
            .args(["--ephemeral", "--auth", "env:SHOW_AUTH"])
            .env("SHOW_AUTH", "[anonymous]\nscopes = [\"read:*\"]\n");
    });
    assert_eq!(http(&up.ingest, "POST /v1/polls/lunch/votes", None, r#"{"user_id": "a", "option_id": "b"}"#).0, 401);
    assert_eq!(http(&up.results, "GET /v1/polls/lunch", None, "").0, 404, "anybody may look");
    let refused = |address: &str, auth: &[&str], text: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_votestream"));
        command.args(["up", "--ephemeral", "--addr", address]).args(auth);
        let output = command.env("SHOW_AUTH", text).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let mistakes =
        refused("127.0.0.1:0", &["--auth", "env:SHOW_AUTH"], "[anonymous]\nscopes = [\"raed:*\"]\nuser = \"x\"\n");
    assert!(mistakes.contains("\"raed:*\" is not a scope") && mistakes.contains("user is not known"), "{mistakes}");
    // Documentation's own network (RFC 5737): nothing is bound before the decision is asked for.
    let open = refused("192.0.2.1:0", &[], "");
    assert!(open.contains("--auth is missing: others can reach 192.0.2.1:0"), "{open}");
}
