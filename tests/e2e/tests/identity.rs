//! Every call with every kind of credential, over every transport: the right answer each, and nothing changed by any but the
//! right ones.
//!
//! The methods come from the descriptors and the answers from one table, so that a new method cannot be forgotten. Tokens
//! are put together by hand.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use prost::Message;
use prost_types::FileDescriptorSet;
use serde_json::{Value, json};
use tonic::Code;
use votestream_core::{
    Poll, PollId, PollOption, PollSource, PseudonymKeys, Timestamp,
    model::pseudonym::{KEY_BYTES, PseudonymKey},
};
use votestream_e2e::{
    hostile::{Call, GRPC_TRANSPORTS, wire},
    house::sha256_of,
    issuer::{Issuer, base64url, now, sign_by_hmac, unsigned},
    stack::{Stack, TEST_BOUNDS},
};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_proto::v1;
use votestream_server::{Auth, Identity};
use votestream_stack::StackConfig;

const ISS: &str = "https://login.test";
const RELAY: &str = "a-secret-that-nobody-guesses";

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nobody is let in by this credential.
    Bad,
    /// It is good, and for another poll.
    ForeignPoll,
    /// It is a voter's, and the vote names another user.
    ForeignUser,
    /// It has the right.
    Right,
}

struct Credential {
    name: &'static str,
    kind: Kind,
    authorization: Vec<String>,
}

fn bearer(token: impl std::fmt::Display) -> Vec<String> {
    vec![format!("Bearer {token}")]
}

/// Claims that are right, with changes. A claim that becomes `null` is left out.
fn claims(changes: &Value) -> Value {
    let mut claims = json!({
        "iss": ISS, "aud": "votestream", "sub": "ada", "exp": now() + 600, "iat": now(), "jti": "one",
        "scope": "openid vote:p relay:p read:p manage:p manage:new",
    });
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

fn credentials(issuer: &Issuer, stranger: &Issuer) -> Vec<Credential> {
    let good = claims(&json!({}));
    let head = |alg: &str| json!({"alg": alg, "kid": issuer.kid});
    let good_token = issuer.token(&good);
    let (start, signature) = good_token.rsplit_once('.').unwrap();
    let other_claims = base64url(claims(&json!({"sub": "eve"})).to_string().as_bytes());
    let swapped = format!("{}.{other_claims}.{signature}", start.split('.').next().unwrap());
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", base64url(issuer.public()));
    let changed = |changes: Value| bearer(issuer.token(&claims(&changes)));
    let bad = [
        ("none", vec![]),
        ("expired", changed(json!({"exp": now() - 180}))),
        ("not yet valid", changed(json!({"nbf": now() + 600}))),
        ("no expiry", changed(json!({"exp": null}))),
        ("expiry is a text", changed(json!({"exp": "tomorrow"}))),
        ("wrong issuer", changed(json!({"iss": "https://login.evil"}))),
        ("no issuer", changed(json!({"iss": null}))),
        ("wrong audience", changed(json!({"aud": "another service"}))),
        ("no audience", changed(json!({"aud": null}))),
        ("revoked", changed(json!({"jti": "stolen"}))),
        ("revoked user", changed(json!({"sub": "mallory"}))),
        ("too many scopes", changed(json!({"scope": "vote:p ".repeat(65)}))),
        ("scope is a list", changed(json!({"scope": ["vote:p"]}))),
        ("user is no text", changed(json!({"sub": {"name": "ada"}}))),
        ("jti is no text", changed(json!({"jti": 77}))),
        ("issued in the future", changed(json!({"iat": now() + 3_600}))),
        ("alg none", bearer(unsigned(&good))),
        ("alg none, signed", bearer(issuer.sign(&json!({"alg": "none"}), &good))),
        ("HMAC with the public key", bearer(sign_by_hmac(&head("HS256"), &good, issuer.public()))),
        ("HMAC with the public key as PEM", bearer(sign_by_hmac(&head("HS256"), &good, pem.as_bytes()))),
        ("HMAC with the JWK", bearer(sign_by_hmac(&head("HS256"), &good, issuer.jwk().to_string().as_bytes()))),
        ("HMAC without kid", bearer(sign_by_hmac(&json!({"alg": "HS256"}), &good, issuer.public()))),
        ("algorithm that is not the issuer's", bearer(issuer.sign(&head("ES384"), &good))),
        ("unknown kid", bearer(issuer.sign(&json!({"alg": "ES256", "kid": "es2"}), &good))),
        (
            "critical extension",
            bearer(issuer.sign(&json!({"alg": "ES256", "kid": issuer.kid, "crit": ["b64"]}), &good)),
        ),
        ("another's signature", bearer(stranger.sign(&head("ES256"), &good))),
        ("other claims", bearer(swapped)),
        ("no signature", bearer(format!("{start}."))),
        ("cut off", bearer(&good_token[..good_token.len() - 2])),
        ("not a token", bearer("a.b.c")),
        ("too long", bearer(issuer.token(&claims(&json!({"note": "x".repeat(4_096)}))))),
        ("unknown key", bearer("a-secret-that-somebody-guessed")),
        ("digest of a key", bearer(sha256_of(RELAY))),
        ("no secret", bearer("")),
        ("another scheme", vec![format!("Basic {RELAY}")]),
        ("two headers", vec![format!("Bearer {RELAY}"), format!("Bearer {RELAY}")]),
    ];
    let bad = bad.into_iter().map(|(name, authorization)| Credential { name, kind: Kind::Bad, authorization });
    let foreign = json!({"scope": "vote:q relay:p2 read:q manage:other"});
    // The token may have any scope, but the issuer's entry only some.
    let beyond = issuer.token(&claims(&json!({"iss": "https://small.test"})));
    let others = [
        ("foreign poll", Kind::ForeignPoll, bearer(issuer.token(&claims(&foreign)))),
        ("scopes beyond the issuer's", Kind::ForeignPoll, bearer(beyond)),
        ("foreign user", Kind::ForeignUser, bearer(issuer.token(&claims(&json!({"sub": "bob", "scope": "vote:*"}))))),
        ("right", Kind::Right, bearer(&good_token)),
        ("right, HS256", Kind::Right, bearer(issuer.secret_token(&good))),
        ("right, several audiences", Kind::Right, bearer(issuer.token(&claims(&json!({"aud": ["x", "votestream"]}))))),
        ("right, a key", Kind::Right, vec![format!("bEaReR {RELAY}")]),
    ];
    bad.chain(others.map(|(name, kind, authorization)| Credential { name, kind, authorization })).collect()
}

/// Writes the auth files.
fn auth(dir: &Path, issuer: &Issuer) -> Auth {
    let jwks = json!({"keys": [issuer.jwk(), issuer.secret_jwk()]});
    std::fs::write(dir.join("jwks.json"), jwks.to_string()).unwrap();
    let file = format!(
        r#"
        [[issuer]]
        iss = "{ISS}"
        aud = ["votestream"]
        keys = "jwks.json"
        algorithms = ["ES256", "HS256"]
        scopes = ["vote:*", "relay:*", "read:*", "manage:*"]
        namespace = "members"

        [[issuer]]
        iss = "https://small.test"
        aud = "votestream"
        keys = "jwks.json"
        algorithms = ["ES256"]
        scopes = ["vote:other", "read:other", "manage:other"]
        namespace = "guests"

        [[key]]
        id = "relay-1"
        sha256 = "{}"
        scopes = ["relay:p", "read:p*", "manage:p", "manage:new"]
        namespace = "members"
        "#,
        sha256_of(RELAY)
    );
    std::fs::write(dir.join("auth.toml"), file).unwrap();
    let revoked =
        "[[revoked]]\njti = \"stolen\"\n[[revoked]]\nuser = \"mallory\"\nissued_before = 2100-01-01T00:00:00Z\n";
    std::fs::write(dir.join("revoked.toml"), revoked).unwrap();
    Auth::File { file: dir.join("auth.toml"), revoked: Some(dir.join("revoked.toml")) }
}

/// What a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    /// A vote of `ada` in `p`, alone.
    Vote,
    /// The same in a stream.
    Stream,
    /// Poll `p`, or the poll `new`.
    Poll,
    /// All polls that the caller may see.
    List,
    /// No poll, but callers with a right for some poll.
    Process,
}

/// A method, and how a right call ends.
struct Route {
    path: String,
    http: &'static str,
    is_json: bool,
    content: Vec<u8>,
    about: About,
    needs: &'static str,
    right: Code,
}

/// When the poll `new` closes, the same for all calls that create it.
fn closing() -> prost_types::Timestamp {
    static AT: std::sync::LazyLock<i64> = std::sync::LazyLock::new(|| now() + 3_600);
    prost_types::Timestamp { seconds: *AT, nanos: 0 }
}

fn vote(user: &str) -> Vec<u8> {
    wire::vote("p", user, "a")
}

/// Every method of the descriptors.
fn routes() -> Vec<Route> {
    let set = FileDescriptorSet::decode(votestream_proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut routes = Vec::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                routes.push(grpc(&format!("/{}.{}/{}", file.package(), service.name(), method.name()), method.name()));
            }
        }
    }
    let json = |http, path: &str, body: Value, about, needs, right| Route {
        path: path.into(),
        http,
        is_json: true,
        content: body.to_string().into_bytes(),
        about,
        needs,
        right,
    };
    let new = json!({"poll_id": "new", "options": [{"option_id": "a"}], "closes_at": closing().to_string()});
    let ada = json!({"user_id": "ada", "option_id": "a"});
    let sample = json!({"cognitoid": "ada", "voteid": "p", "option": "a"});
    routes.extend([
        json("POST", "/vote", sample, About::Vote, "vote", Code::Ok),
        json("POST", "/v1/polls/p/votes", ada, About::Vote, "vote", Code::Ok),
        json("GET", "/v1/polls/p", json!({}), About::Poll, "read", Code::Ok),
        json("GET", "/v1/polls/p/results/interim", json!({}), About::Poll, "read", Code::Ok),
        json("GET", "/v1/polls/p/results/final", json!({}), About::Poll, "read", Code::FailedPrecondition),
        json("GET", "/v1/polls/p/results/events", json!({}), About::Poll, "read", Code::Ok),
        json("GET", "/v1/polls", json!({}), About::List, "read", Code::Ok),
        json("POST", "/v1/polls/p/release", json!({}), About::Poll, "manage", Code::Ok),
        json("POST", "/v1/polls/p/recount", json!({}), About::Poll, "manage", Code::Ok),
        json("POST", "/v1/polls", new, About::Poll, "manage", Code::Ok),
        json("POST", "/v1/polls/new/close", json!({}), About::Poll, "manage", Code::Ok),
        json("GET", "/v1/status", json!({}), About::Process, "manage", Code::Ok),
    ]);
    routes
}

fn grpc(path: &str, method: &str) -> Route {
    let poll = |id: &str| wire::field(1, id.as_bytes());
    let later = v1::CreatePollRequest {
        poll_id: "new".into(),
        options: vec![v1::PollOption { option_id: "a".into(), title: String::new() }],
        closes_at: Some(closing()),
        ..Default::default()
    };
    let (content, about, needs, right) = match method {
        "CastVote" => (vote("ada"), About::Vote, "vote", Code::Ok),
        "CastVotes" | "StreamVotes" => (vote("ada"), About::Stream, "vote", Code::Ok),
        "CreatePoll" => (later.encode_to_vec(), About::Poll, "manage", Code::Ok),
        "ClosePoll" => (poll("new"), About::Poll, "manage", Code::Ok),
        "Recount" | "ReleaseResults" => (poll("p"), About::Poll, "manage", Code::Ok),
        "GetPoll" | "GetInterimResults" => (poll("p"), About::Poll, "read", Code::Ok),
        "GetFinalResults" => (poll("p"), About::Poll, "read", Code::FailedPrecondition),
        // The poll goes on, so only its deadline ends the call.
        "WatchInterimResults" => (poll("p"), About::Poll, "read", Code::DeadlineExceeded),
        "ListPolls" => (vec![], About::List, "read", Code::Ok),
        _ => panic!("the table has no row for {method}"),
    };
    let content = wire::message(&content);
    Route { path: path.into(), http: "POST", is_json: false, content, about, needs, right }
}

/// What a caller is told.
fn expected(route: &Route, kind: Kind) -> (Code, &'static str) {
    match (kind, route.about) {
        (Kind::Bad, _) => (Code::Unauthenticated, ""),
        (Kind::Right, About::Stream) => (route.right, "accepted"),
        (Kind::Right, _) => (route.right, ""),
        // Rights are judged vote by vote.
        (Kind::ForeignPoll | Kind::ForeignUser, About::Stream) => (Code::Ok, "rejected"),
        (Kind::ForeignPoll, About::List) => (Code::Ok, "without p"),
        (Kind::ForeignPoll, About::Process) => (Code::Ok, ""),
        (Kind::ForeignPoll | Kind::ForeignUser, _) => (Code::PermissionDenied, ""),
    }
}

fn code_named(name: &str) -> Code {
    let codes = (0..17).map(Code::from);
    let mut codes = codes.filter(|code| votestream_server::http::name_of(*code) == name);
    codes.next().unwrap_or_else(|| panic!("{name}"))
}

/// Sends a call. Returns its status, and what became of the vote in it.
async fn send(
    addr: SocketAddr,
    route: &Route,
    transport: (&str, bool),
    authorization: &[String],
) -> (Code, String, &'static str) {
    let (content_type, http2) = if route.is_json { ("application/json", false) } else { transport };
    let is_text = content_type.ends_with("text");
    let body = if is_text { wire::base64(&route.content) } else { route.content.clone() };
    let mut headers = vec![("content-type".to_owned(), content_type.to_owned())];
    headers.extend(authorization.iter().map(|value| ("authorization".to_owned(), value.clone())));
    if route.right == Code::DeadlineExceeded {
        headers.push(("grpc-timeout".to_owned(), "400m".to_owned()));
    }
    let body = if route.http == "GET" { vec![] } else { vec![Bytes::from(body)] };
    let until = Some("event: poll");
    let call = Call { http2, method: route.http, path: route.path.clone(), headers, body, until, ..Call::default() };
    let answer = call.send(addr).await.unwrap();
    if answer.headers.get("content-type").is_some_and(|content_type| content_type == "text/event-stream") {
        return (Code::Ok, String::new(), "");
    }
    if route.is_json {
        let json: Value = serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("{answer:?}"));
        let error = &json["error"];
        let code = error["code"].as_str().map_or(Code::Ok, code_named);
        if code == Code::Unauthenticated {
            assert_eq!(answer.status, 401);
            assert!(answer.headers["www-authenticate"].starts_with("Bearer "), "{answer:?}");
        }
        let lists = |poll: &str| json["polls"].as_array().unwrap().iter().any(|listed| listed["poll_id"] == poll);
        let became = if code == Code::Ok && route.about == About::List && !lists("p") { "without p" } else { "" };
        return (code, error["message"].as_str().unwrap_or_default().to_owned(), became);
    }
    let outcome = answer.outcome();
    let (code, message) = outcome.status.clone().unwrap_or_else(|| panic!("{} {outcome:?}", route.path));
    let code = Code::from(code as i32);
    if code == Code::Unauthenticated {
        assert!(answer.headers.contains_key("www-authenticate"), "{answer:?}");
    }
    let became = match (route.path.rsplit('/').next().unwrap(), outcome.messages.first()) {
        ("CastVotes", Some(message)) => {
            let response = v1::CastVotesResponse::decode(&message[..]).unwrap();
            let code = response.rejections.first().map(v1::Rejection::code);
            assert!(code.is_none_or(|code| code == v1::RejectionCode::NotAllowed), "{response:?}");
            if response.accepted == 1 { "accepted" } else { "rejected" }
        }
        ("StreamVotes", Some(_)) => {
            let all = outcome.messages.iter().map(|message| v1::StreamVotesResponse::decode(&message[..]).unwrap());
            let rejections: Vec<_> = all.flat_map(|response| response.rejections).collect();
            assert!(rejections.iter().all(|rejection| rejection.code() == v1::RejectionCode::NotAllowed));
            if rejections.is_empty() { "accepted" } else { "rejected" }
        }
        ("ListPolls", Some(message)) => {
            let response = v1::ListPollsResponse::decode(&message[..]).unwrap();
            if response.polls.iter().any(|poll| poll.poll_id == "p") { "" } else { "without p" }
        }
        _ => "",
    };
    (code, message, became)
}

/// What is stored about the polls.
async fn stored(engine: &EmbeddedEngine) -> Vec<String> {
    let ports = engine.ports();
    let polls = ports.polls.list(None, 100).await.unwrap();
    let mut stored = Vec::new();
    for poll in polls {
        let votes = ports.votes.recount(&poll).await.unwrap();
        stored.push(format!("{poll:?} {votes:?}"));
    }
    stored
}

struct House {
    engine: EmbeddedEngine,
    stack: Stack,
    issuer: Issuer,
    dir: tempfile::TempDir,
}

impl House {
    async fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let issuer = Issuer::new("es1");
        let identity = Identity::open(&auth(dir.path(), &issuer)).unwrap();
        let options = EmbeddedOptions { bounds: TEST_BOUNDS, ..EmbeddedOptions::default() };
        let engine = EmbeddedEngine::open(&dir.path().join("data"), options).unwrap();
        let stack = Stack::start_with(engine.ports(), TEST_BOUNDS, |config| {
            let keys = PseudonymKeys::new([PseudonymKey::new([7; KEY_BYTES])]);
            let whole = std::mem::replace(config, StackConfig::one_machine());
            *config = whole.with_identity(identity).with_pseudonyms(keys);
        });
        let stack = stack.await;
        let house = Self { engine, stack, issuer, dir };
        house.create("p").await;
        house
    }

    /// Creates a poll as a manager of everything.
    async fn create(&self, id: &str) {
        let token = self.issuer.token(&claims(&json!({"scope": "manage:*"})));
        let mut request = tonic::Request::new(v1::CreatePollRequest {
            poll_id: id.into(),
            options: vec![v1::PollOption { option_id: "a".into(), title: String::new() }],
            closes_at: Some(prost_types::Timestamp { seconds: now() + 3_600, nanos: 0 }),
            visibility: v1::PollVisibility::OnRelease.into(),
            ..Default::default()
        });
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        self.stack.polls().await.create_poll(request).await.unwrap();
    }

    fn addr(&self, route: &Route) -> SocketAddr {
        if route.needs == "vote" { self.stack.ingest } else { self.stack.results }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_with_every_credential_over_every_transport() {
    let house = House::open().await;
    let before = stored(&house.engine).await;
    let (credentials, routes) = (credentials(&house.issuer, &Issuer::new("es1")), routes());
    assert!(routes.iter().filter(|route| !route.is_json).count() >= 12);
    let (mut wrong, mut seen) = (Vec::new(), BTreeMap::<&str, usize>::new());
    for is_right in [false, true] {
        for route in &routes {
            for credential in credentials.iter().filter(|credential| (credential.kind == Kind::Right) == is_right) {
                let transports = if route.is_json { &GRPC_TRANSPORTS[..1] } else { &GRPC_TRANSPORTS[..] };
                for transport in transports {
                    let (code, became) = expected(route, credential.kind);
                    let answer = send(house.addr(route), route, *transport, &credential.authorization).await;
                    if (answer.0, answer.2) != (code, became) {
                        wrong.push(format!(
                            "{} over {transport:?} with {:?}: {answer:?}, expected {code:?} {became}",
                            route.path, credential.name
                        ));
                    }
                    *seen.entry(credential.name).or_default() += 1;
                }
            }
        }
        if !is_right {
            assert_eq!(stored(&house.engine).await, before, "a call that was denied has changed something");
        }
    }
    assert!(wrong.is_empty(), "{} answers are wrong:\n{}", wrong.len(), wrong.join("\n"));
    let calls = routes.iter().map(|route| if route.is_json { 1 } else { GRPC_TRANSPORTS.len() }).sum::<usize>();
    assert!(seen.values().all(|count| *count == calls) && seen.len() == credentials.len(), "{seen:?}");
    assert_ne!(stored(&house.engine).await, before);
    house.stack.stop().await;
    drop(house.dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn denials_say_why_and_never_what_was_sent() {
    let house = House::open().await;
    let route = routes().into_iter().find(|route| route.path == "/v1/polls/p/results/interim").unwrap();
    let token = |changes: Value| bearer(house.issuer.token(&claims(&changes)));
    let rows = [
        (vec![], "a credential is missing"),
        (token(json!({"exp": now() - 200})), "the token expired 3 minutes ago"),
        (token(json!({"nbf": now() + 300})), "the token is valid only in"),
        (token(json!({"aud": "CANARY"})), "the token is for another audience (aud)"),
        (token(json!({"iss": "CANARY"})), "the token's issuer (iss) is not trusted here"),
        (token(json!({"scope": "read:dinner CANARY"})), "the credential's scopes do not cover read:p"),
        (token(json!({"jti": "stolen", "sub": "CANARY"})), "the token was revoked"),
        (bearer("CANARY"), "the credential is neither a token nor a key that is known"),
        (bearer("CANARY.CANARY.CANARY"), "the token cannot be read"),
        (bearer(unsigned(&claims(&json!({"sub": "CANARY"})))), "the token cannot be read"),
    ];
    for (authorization, words) in rows {
        let (_, message, _) = send(house.stack.results, &route, GRPC_TRANSPORTS[0], &authorization).await;
        assert!(message.starts_with(words) && !message.contains("CANARY"), "{message:?}, expected {words:?}");
    }
    house.stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_votes_as_the_token_says_and_nobody_else_does() {
    let house = House::open().await;
    let ada = bearer(house.issuer.token(&claims(&json!({"scope": "vote:p", "sub": "ada"}))));
    let post = |user: Option<&str>| {
        let body = user.map_or(json!({"option_id": "a"}), |user| json!({"option_id": "a", "user_id": user}));
        let mut route = routes().into_iter().find(|route| route.path == "/v1/polls/p/votes").unwrap();
        route.content = body.to_string().into_bytes();
        route
    };
    for (user, code) in [(None, Code::Ok), (Some("ada"), Code::Ok), (Some("Ada"), Code::PermissionDenied)] {
        let answer = send(house.stack.ingest, &post(user), GRPC_TRANSPORTS[0], &ada).await;
        assert_eq!(answer.0, code, "{user:?}: {answer:?}");
    }
    // A token that names nobody is not asked for a name, over no transport: it could only be refused.
    let nobody = bearer(house.issuer.token(&claims(&json!({"scope": "vote:p", "sub": null}))));
    for user in [None, Some("ada")] {
        let answer = send(house.stack.ingest, &post(user), GRPC_TRANSPORTS[0], &nobody).await;
        assert_eq!(answer.0, Code::PermissionDenied, "{user:?}: {answer:?}");
    }
    // A relay without a user of its own must name one.
    let relay = bearer(RELAY);
    assert_eq!(send(house.stack.ingest, &post(None), GRPC_TRANSPORTS[0], &relay).await.0, Code::InvalidArgument);
    assert_eq!(send(house.stack.ingest, &post(Some("ada")), GRPC_TRANSPORTS[0], &relay).await.0, Code::Ok);
    let ports = house.engine.ports();
    let poll = ports.polls.list(None, 1).await.unwrap().remove(0);
    let waiting = async {
        while ports.votes.recount(&poll).await.unwrap() != [1] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("all four votes are one person's");
    house.stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_name_of_two_issuers_is_two_people_and_a_relay_of_one_speaks_for_its_own() {
    let house = House::open().await;
    house.create("other").await;
    let post = |user: Option<&str>| {
        let body = user.map_or(json!({"option_id": "a"}), |user| json!({"option_id": "a", "user_id": user}));
        let mut route = routes().into_iter().find(|route| route.path == "/v1/polls/p/votes").unwrap();
        (route.path, route.content) = ("/v1/polls/other/votes".into(), body.to_string().into_bytes());
        route
    };
    let token = |iss: &str, scope: &str| {
        bearer(house.issuer.token(&claims(&json!({"iss": iss, "sub": "ada", "scope": scope}))))
    };
    let relay = token(ISS, "relay:other");
    for (user, authorization) in [
        (None, token(ISS, "vote:other")),
        (None, token("https://small.test", "vote:other")),
        (Some("ada"), relay.clone()),
        (Some("bob"), relay),
    ] {
        let answer = send(house.stack.ingest, &post(user), GRPC_TRANSPORTS[0], &authorization).await;
        assert_eq!(answer.0, Code::Ok, "{answer:?}");
    }
    // The member ada, whose relay has voted again for her; the guest ada; and bob.
    let ports = house.engine.ports();
    let poll = ports.polls.list(None, 1).await.unwrap().remove(0);
    assert_eq!(poll.id.as_str(), "other");
    let waiting = async {
        while ports.votes.recount(&poll).await.unwrap() != [3] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("three people have voted");
    house.stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_calls_do_not_end_the_connection_of_others() {
    let house = House::open().await;
    let client = house.stack.ingest().await;
    // More than the library allows mistakes in the life of a connection.
    let calls = (0..3_000).map(|_| {
        let mut client = client.clone();
        async move { client.cast_vote(votestream_proto::VotesMessage::default()).await.unwrap_err() }
    });
    let denied: Vec<tonic::Status> = futures::stream::iter(calls).buffer_unordered(32).collect().await;
    let other = denied.iter().find(|status| status.code() != Code::Unauthenticated);
    assert!(denied.len() == 3_000 && other.is_none(), "{other:?}");
    house.stack.stop().await;
}

/// A vote as JSON.
fn post(poll: &str, body: &Value) -> Route {
    let mut route = routes().into_iter().find(|route| route.path == "/v1/polls/p/votes").unwrap();
    (route.path, route.content) = (format!("/v1/polls/{poll}/votes"), body.to_string().into_bytes());
    route
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_forgets_a_name_and_a_body_that_contradicts_its_path_are_refused() {
    let house = House::open().await;
    // The relay's token names a user of its own.
    let relay = bearer(house.issuer.token(&claims(&json!({"scope": "relay:p"}))));
    for (body, code) in [
        (json!({"userId": "bob", "option_id": "a"}), Code::InvalidArgument),
        (json!({"user_id": "bob", "option_id": "a", "poll_id": "q"}), Code::InvalidArgument),
        (json!({"user_id": "bob", "option_id": "a", "poll_id": "p"}), Code::Ok),
    ] {
        let answer = send(house.stack.ingest, &post("p", &body), GRPC_TRANSPORTS[0], &relay).await;
        assert_eq!(answer.0, code, "{body}: {answer:?}");
    }
    house.stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_with_plain_ids_takes_no_votes_of_users_with_a_namespace() {
    let house = House::open().await;
    let options = vec![PollOption { id: "a".into(), title: String::new() }];
    let times = [Timestamp(now() * 1_000 - 1_000), Timestamp((now() + 3_600) * 1_000)];
    let plain = PollId::new("plain").unwrap();
    let plain = Poll::new(plain, String::new(), options, times[0], times[1], PollSource::Ingest, 1).unwrap();
    assert!(house.engine.ports().polls.create(&plain).await.is_ok());
    let ada = bearer(house.issuer.token(&claims(&json!({"scope": "vote:plain"}))));
    let (code, message, _) =
        send(house.stack.ingest, &post("plain", &json!({"option_id": "a"})), GRPC_TRANSPORTS[0], &ada).await;
    assert!(code == Code::PermissionDenied && message.contains("plain user ids"), "{message}");
    house.stack.stop().await;
}
