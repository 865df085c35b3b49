//! What browsers and programs without gRPC get, on one address: the page, JSON, CSV, events, what may be kept, and the
//! document that describes all of it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use votestream_e2e::{
    hostile::{Answer, Call, wire},
    house::{House, MANAGER, RELAY, issuer_entry, keys},
    issuer::Issuer,
    stack::{Stack, TEST_BOUNDS},
};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_server::{CallLimits, Identity};

const PATIENCE: Duration = Duration::from_secs(60);

struct Site {
    stack: Stack,
    engine: EmbeddedEngine,
    _dir: tempfile::TempDir,
}

impl Site {
    async fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = EmbeddedOptions { bounds: TEST_BOUNDS, ..EmbeddedOptions::default() };
        let engine = EmbeddedEngine::open(&dir.path().join("data"), options).unwrap();
        let stack = Stack::start_as_one(engine.ports(), TEST_BOUNDS, |_| ()).await;
        Self { stack, engine, _dir: dir }
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        get(&self.stack, path, headers, None).await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        post(&self.stack, path, body, None).await
    }

    /// The stream of events of a poll until this text has come.
    async fn events(&self, poll: &str, headers: &[(&str, &str)], until: &'static str) -> String {
        text(&get(&self.stack, &format!("/v1/polls/{poll}/results/events"), headers, Some(until)).await)
    }

    async fn close(self) {
        self.stack.stop().await;
        self.engine.close();
    }
}

fn owned(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

async fn get(stack: &Stack, path: &str, headers: &[(&str, &str)], until: Option<&'static str>) -> Answer {
    let call = Call { method: "GET", path: path.into(), headers: owned(headers), until, ..Call::default() };
    call.send(stack.results).await.unwrap()
}

async fn post(stack: &Stack, path: &str, body: &Value, token: Option<&str>) -> Answer {
    let mut headers = owned(&[("content-type", "application/json")]);
    headers.extend(token.map(|token| ("authorization".to_owned(), format!("Bearer {token}"))));
    let body = vec![body.to_string().into_bytes().into()];
    Call { path: path.into(), headers, body, ..Call::default() }.send(stack.results).await.unwrap()
}

fn text(answer: &Answer) -> String {
    String::from_utf8(answer.body.clone()).unwrap()
}

fn read(answer: &Answer) -> Value {
    assert_eq!(answer.headers["content-type"], "application/json", "{answer:?}");
    serde_json::from_slice(&answer.body).unwrap()
}

fn in_an_hour() -> String {
    prost_types::Timestamp::from(std::time::SystemTime::now() + Duration::from_secs(3_600)).to_string()
}

fn poll(id: &str, visibility: &str) -> Value {
    let options = [json!({"option_id": "a", "title": "Äpfel, \"rot\""}), json!({"option_id": "b"})];
    json!({"poll_id": id, "title": "T", "options": options, "closes_at": in_an_hour(),
        "visibility": format!("POLL_VISIBILITY_{visibility}")})
}

async fn vote(site: &Site, poll: &str, user: &str, option: &str) -> u16 {
    let vote = json!({"user_id": user, "option_id": option});
    site.post(&format!("/v1/polls/{poll}/votes"), &vote).await.status
}

/// Asks until the answer is right.
async fn until<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let asked = async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("{what} does not come"))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_everything() {
    let site = Site::open().await;
    assert_eq!(site.post("/v1/polls", &poll("p", "LIVE")).await.status, 200);
    for (content_type, http2) in votestream_e2e::hostile::GRPC_TRANSPORTS {
        for (path, message) in [
            ("/votestream.v1.IngestService/CastVote", wire::vote("p", "u", "a")),
            ("/votestream.v1.PollService/GetPoll", wire::field(1, b"p")),
            ("/votestream.v1.ResultsService/GetInterimResults", wire::field(1, b"p")),
            ("/grpc.health.v1.Health/Check", wire::field(1, b"votestream.v1.IngestService")),
            ("/grpc.health.v1.Health/Check", wire::field(1, b"votestream.v1.ResultsService")),
        ] {
            let body = wire::message(&message);
            let body = if content_type.ends_with("text") { wire::base64(&body) } else { body };
            let headers = owned(&[("content-type", content_type)]);
            let call = Call { http2, path: path.into(), headers, body: vec![body.into()], ..Call::default() };
            let outcome = call.send(site.stack.ingest).await.unwrap().outcome();
            assert_eq!(outcome.status.map(|(code, _)| code), Some(0), "{path} {content_type} {http2}");
        }
        let headers = owned(&[("content-type", content_type)]);
        let call = Call { http2, path: "/votestream.v1.NoService/Call".into(), headers, ..Call::default() };
        let outcome = call.send(site.stack.ingest).await.unwrap().outcome();
        assert_eq!(outcome.status.map(|(code, _)| code), Some(12), "{content_type} {http2}");
    }
    for path in ["/", "/p/p", "/p/p/screen", "/operate"] {
        let page = site.get(path, &[]).await;
        assert_eq!((page.status, page.headers["content-type"].as_str()), (200, "text/html; charset=utf-8"), "{path}");
    }
    for (path, status) in [("/v1/polls/none", 404), ("/nothing", 404), ("/v1/polls/p/close", 405)] {
        let answer = site.get(path, &[]).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.headers["cache-control"], "no-store", "{path}");
        read(&answer);
    }
    assert_eq!(vote(&site, "p", "v", "b").await, 200);
    assert_eq!(vote(&site, "p", "v", "c").await, 400);
    let status = read(&site.get("/v1/status", &[]).await);
    assert!(status["rejected"]["option_not_found"].as_u64() >= Some(1), "{status}");
    let totals = until("both votes", async || {
        let interim = read(&site.get("/v1/polls/p/results/interim", &[]).await);
        (interim["total_counted"] == 2 && interim["total_submitted"] == 5).then(|| interim["options"].clone())
    });
    assert_eq!(
        totals.await,
        json!([
            {"option_id": "a", "submitted": 4, "counted": 1}, {"option_id": "b", "submitted": 1, "counted": 1}
        ])
    );
    let table = text(&site.get("/v1/polls/p/results/interim", &[("accept", "text/csv")]).await);
    assert_eq!(table, "option_id,title,submitted,counted\r\na,\"Äpfel, \"\"rot\"\"\",4,1\r\nb,b,1,1\r\n");
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_are_administered_by_json() {
    let site = Site::open().await;
    let lunch = poll("lunch", "LIVE");
    let created = read(&site.post("/v1/polls", &lunch).await)["poll"].clone();
    assert_eq!(
        (&created["state"], &created["options"][0]["title"]),
        (&json!("POLL_STATE_OPEN"), &json!("Äpfel, \"rot\""))
    );
    // The same again, and something else under its id.
    assert_eq!(read(&site.post("/v1/polls", &lunch).await)["poll"], created);
    let other = site.post("/v1/polls", &poll("lunch", "WHEN_FINAL")).await;
    assert_eq!((other.status, &read(&other)["error"]["code"]), (409, &json!("ALREADY_EXISTS")));
    for (change, field) in [
        (json!({"poll_id": "a b"}), json!("poll_id")),
        (json!({"closes_at": "soon"}), json!("closes_at")),
        (json!({"closes_at": "2020-01-01T00:00:00Z"}), json!("closes_at")),
        (json!({"visibility": "NEVER"}), json!("visibility")),
        (json!({"options": []}), json!("options")),
        (json!({"visibilty": "POLL_VISIBILITY_WHEN_FINAL"}), Value::Null),
    ] {
        let mut wrong = poll("wrong", "LIVE");
        wrong.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let answer = site.post("/v1/polls", &wrong).await;
        assert_eq!((answer.status, &read(&answer)["error"]["field"]), (400, &field), "{change}");
    }
    // The largest poll that there may be, and a body that is larger.
    let option = |at: usize| json!({"option_id": format!("{at:0>128}"), "title": "t".repeat(512)});
    let mut large =
        json!({"poll_id": "large", "closes_at": in_an_hour(), "options": (0..1_000).map(option).collect::<Vec<_>>()});
    assert_eq!(site.post("/v1/polls", &large).await.status, 200);
    large["title"] = "t".repeat(1 << 20).into();
    assert_eq!(site.post("/v1/polls", &large).await.status, 413);
    let page = read(&site.get("/v1/polls?page_size=1", &[]).await);
    assert_eq!((page["polls"].as_array().unwrap().len(), &page["polls"][0]["poll_id"]), (1, &json!("large")));
    let next = format!("/v1/polls?page_token={}", page["next_page_token"].as_str().unwrap());
    let next = read(&site.get(&next, &[]).await);
    assert_eq!((&next["polls"][0]["poll_id"], &next["next_page_token"]), (&json!("lunch"), &json!("")));
    for wrong in ["page_size=x", "page_size=-1", "page_token=%00"] {
        assert_eq!(site.get(&format!("/v1/polls?{wrong}"), &[]).await.status, 400, "{wrong}");
    }

    // A page of another origin cannot do anything without being asked by the browser.
    for act in ["", "/lunch/close", "/lunch/release", "/lunch/recount"] {
        let headers = owned(&[("content-type", "text/plain"), ("origin", "https://evil.example")]);
        let body = vec![lunch.to_string().into_bytes().into()];
        let call = Call { path: format!("/v1/polls{act}"), headers, body, ..Call::default() };
        assert_eq!(call.send(site.stack.results).await.unwrap().status, 415, "{act}");
    }
    assert_eq!(vote(&site, "lunch", "u", "a").await, 200);
    let closed = read(&site.post("/v1/polls/lunch/close", &json!({})).await)["poll"].clone();
    assert_eq!(closed["state"], "POLL_STATE_CLOSED");
    let answer = site.get("/v1/polls/lunch/results/final", &[]).await;
    assert!(answer.status == 409 || answer.status == 200, "{answer:?}");
    let last = until("the final result", async || {
        let answer = site.get("/v1/polls/lunch/results/final", &[]).await;
        (answer.status == 200).then_some(answer)
    });
    let last = last.await;
    assert_eq!(last.headers["cache-control"], "public, max-age=31536000, immutable");
    assert_eq!(read(&last)["options"], json!([{"option_id": "a", "votes": 1}, {"option_id": "b", "votes": 0}]));
    let recount = read(&site.post("/v1/polls/lunch/recount", &json!({})).await);
    assert_eq!((&recount["matches"], &recount["final"]), (&json!(true), &json!(true)));
    assert_eq!(site.post("/v1/polls/lunch/recount", &json!({"sure": true})).await.status, 400);
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_everything_that_happens() {
    let site = Site::open().await;
    assert_eq!(site.get("/v1/polls/none/results/events", &[]).await.status, 404);
    assert_eq!(site.post("/v1/polls", &poll("p", "ON_RELEASE")).await.status, 200);
    for user in ["u", "v", "w"] {
        assert_eq!(vote(&site, "p", user, "a").await, 200);
    }
    // A stream begins before the release, and goes on behind it.
    let beginning = site.events("p", &[], "somebody releases them");
    let beginning = beginning.await;
    assert!(beginning.starts_with("retry: 1000\n\nevent: poll\ndata: {\"poll\":{"), "{beginning}");
    assert!(!beginning.contains("total_") && !beginning.contains("counted"), "{beginning}");
    let whole = tokio::spawn({
        let path = "/v1/polls/p/results/events".to_owned();
        let call = Call { method: "GET", path, until: Some("event: final"), ..Call::default() };
        let addr = site.stack.results;
        async move { call.send(addr).await.unwrap() }
    });
    assert_eq!(site.post("/v1/polls/p/release", &json!({})).await.status, 200);
    let counts = site.events("p", &[], "\"total_counted\":3").await;
    let id = counts.split("\nid: ").last().unwrap().split('\n').next().unwrap().to_owned();

    // Whoever comes back gets what it has not seen: the poll, and nothing of the counts until they change.
    let again = site.events("p", &[("last-event-id", &id)], "POLL_STATE_OPEN").await;
    assert!(!again.contains("event: interim"), "{again}");
    assert_eq!(vote(&site, "p", "x", "b").await, 200);
    let changed = site.events("p", &[("last-event-id", &id)], "\"total_counted\":4").await;
    assert!(!changed.contains("\"total_counted\":3"), "{changed}");
    // An id that makes no sense counts as none.
    for nonsense in ["", "zz", &"f".repeat(5_000)] {
        site.events("p", &[("last-event-id", nonsense)], "\"total_counted\":4").await;
    }

    assert_eq!(site.post("/v1/polls/p/close", &json!({})).await.status, 200);
    let whole = text(&tokio::time::timeout(PATIENCE, whole).await.unwrap().unwrap());
    let states = ["OPEN", "CLOSED", "FINAL"].map(|state| whole.find(&format!("POLL_STATE_{state}")));
    assert!(states[0].is_some() && states.is_sorted(), "{whole}");
    assert!(whole.find("event: interim") < whole.find("event: final"), "{whole}");
    // The stream ends after the final result, and whoever has it is told not to come back.
    let path = "/v1/polls/p/results/events";
    let last = get(&site.stack, path, &[], None).await;
    assert_eq!((last.status, &last.broken), (200, &None));
    let last = text(&last);
    assert!(last.contains("\"total_votes\":4") && !last.contains("event: interim"), "{last}");
    let id = last.split("\nid: ").last().unwrap().split('\n').next().unwrap();
    assert_eq!(site.get(path, &[("last-event-id", id)]).await.status, 204);
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_end_with_the_server() {
    let site = Site::open().await;
    assert_eq!(site.post("/v1/polls", &poll("p", "LIVE")).await.status, 200);
    const WATCHERS: u32 = 20;
    let begun = Arc::new(Semaphore::new(0));
    let calls = (0..WATCHERS).map(|_| {
        let path = "/v1/polls/p/results/events".to_owned();
        let call = Call { method: "GET", path, begun: Some(begun.clone()), ..Call::default() };
        let addr = site.stack.results;
        tokio::spawn(async move { call.send(addr).await.unwrap() })
    });
    let calls: Vec<_> = calls.collect();
    // A connection that the server has not accepted yet may be reset.
    let all = tokio::time::timeout(PATIENCE, begun.acquire_many(WATCHERS)).await;
    all.expect("every watcher is told of the poll").unwrap().forget();
    site.events("p", &[], "event: interim").await;
    site.close().await;
    for call in calls {
        let answer = call.await.unwrap();
        assert!(answer.broken.is_none(), "{answer:?}");
    }
}

/// What may be kept is what everybody may see.
#[tokio::test(flavor = "multi_thread")]
async fn caches_keep_only_what_everybody_sees() {
    let issuer = Issuer::new("es1");
    let jwks = json!({"keys": [issuer.jwk()]}).to_string();
    let auth = issuer_entry("jwks.json") + &keys() + "\n[anonymous]\nscopes = [\"read:open*\"]\n";
    let house = House::open_with(issuer, &auth, &jwks, CallLimits::default(), Identity::open).await;
    let (manager, reader) = (MANAGER.to_owned(), house.token(&json!({"scope": "read:*"})));
    for (id, visibility) in [("open", "LIVE"), ("open-later", "ON_RELEASE"), ("closed", "LIVE")] {
        let created = post(&house.stack, "/v1/polls", &poll(id, visibility), Some(&manager)).await;
        assert_eq!(
            (created.status, created.headers["cache-control"].as_str()),
            (200, "private, no-store"),
            "{created:?}"
        );
    }
    let cache = async |path: &str, token: Option<&str>| {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        let answer = get(&house.stack, path, &headers, Some("event: poll")).await;
        (answer.status, answer.headers["cache-control"].clone())
    };
    let kept = || "public, max-age=1, s-maxage=1, stale-while-revalidate=5".to_owned();
    let never = || "private, no-store".to_owned();
    let error = || "no-store".to_owned();
    for (path, token, expected) in [
        ("/v1/polls/open/results/interim", None, (200, kept())),
        ("/v1/polls/open/results/interim", Some(&reader), (200, kept())),
        ("/v1/polls/open/results/interim", Some(&manager), (200, never())),
        ("/v1/polls/open", None, (200, kept())),
        ("/v1/polls/open/results/events", None, (200, error())),
        // What is hidden from readers, and what only some may read.
        ("/v1/polls/open-later/results/interim", None, (409, error())),
        ("/v1/polls/open-later/results/interim", Some(&reader), (409, error())),
        ("/v1/polls/open-later/results/interim", Some(&manager), (200, never())),
        ("/v1/polls/closed/results/interim", None, (401, error())),
        ("/v1/polls/closed/results/interim", Some(&reader), (200, never())),
        ("/v1/polls/open/results/final", None, (409, error())),
        ("/v1/polls", None, (200, kept())),
        ("/v1/polls", Some(&reader), (200, never())),
        ("/v1/status", None, (401, error())),
        ("/v1/status", Some(&manager), (200, error())),
    ] {
        assert_eq!(cache(path, token.map(String::as_str)).await, expected, "{path}");
    }
    // The same counts have the same tag, and a client that has them is told so.
    let path = "/v1/polls/open/results/interim";
    let first = get(&house.stack, path, &[], None).await;
    let tag = first.headers["etag"].clone();
    let again = get(&house.stack, path, &[("if-none-match", &tag)], None).await;
    assert_eq!((again.status, again.body.len(), &again.headers["etag"]), (304, 0, &tag));
    assert_eq!(again.headers["cache-control"], first.headers["cache-control"]);
    let vote = json!({"user_id": "u", "option_id": "a"});
    let headers = owned(&[("content-type", "application/json"), ("authorization", &format!("Bearer {RELAY}"))]);
    let body = vec![vote.to_string().into_bytes().into()];
    let cast = Call { path: "/v1/polls/open/votes".into(), headers, body, ..Call::default() };
    assert_eq!(cast.send(house.stack.ingest).await.unwrap().status, 200);
    until("another tag", async || {
        let changed = get(&house.stack, path, &[("if-none-match", &tag)], None).await;
        (changed.status == 200 && changed.headers["etag"] != tag).then_some(())
    })
    .await;
    // The page itself needs no credential, even a wrong one.
    for token in [None, Some("wrong")] {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        assert_eq!(get(&house.stack, "/p/open", &headers, None).await.status, 200);
    }
}

/// Whether a value is one that a schema allows; else what is wrong. Knows the words that the document uses.
fn fits(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str() {
        let schema = document.pointer(name.trim_start_matches('#')).ok_or_else(|| format!("{name} is missing"))?;
        return fits(document, schema, value, at);
    }
    let types = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
    let is = |kind: &Value| match kind.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        other => panic!("{at}: unknown type {other:?}"),
    };
    if !types.iter().any(is) {
        return Err(format!("{at} is {value}, expected {types:?}"));
    }
    if let Some(names) = schema["enum"].as_array()
        && !names.contains(value)
    {
        return Err(format!("{at} is {value}, expected one of {names:?}"));
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        fits(document, &schema["items"], item, &format!("{at}[{index}]"))?;
    }
    let Some(fields) = value.as_object() else { return Ok(()) };
    for name in schema["required"].as_array().into_iter().flatten() {
        if !fields.contains_key(name.as_str().unwrap()) {
            return Err(format!("{at} lacks {name}"));
        }
    }
    for (name, field) in fields {
        let others = Some(&schema["additionalProperties"]).filter(|others| others.is_object());
        let known = schema["properties"].get(name).or(others);
        let known = known.ok_or_else(|| format!("{at} has {name}, which is not in the document"))?;
        fits(document, known, field, &format!("{at}.{name}"))?;
    }
    Ok(())
}

/// The routes that a source file serves.
fn routes_in(file: &str) -> BTreeSet<String> {
    let path = format!("{}/../../{file}", env!("CARGO_MANIFEST_DIR"));
    let source = std::fs::read_to_string(path).unwrap();
    source.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_says_what_is_served() {
    let site = Site::open().await;
    let document = read(&site.get("/openapi.json", &[]).await);
    let served = ["tally-svc/src/json.rs", "ingest-svc/src/json.rs", "web/src/lib.rs"].map(routes_in);
    let mut served: BTreeSet<_> = served.into_iter().flatten().collect();
    assert!(served.remove("/openapi.json"));
    let described = document["paths"].as_object().unwrap();
    assert_eq!(described.keys().cloned().collect::<BTreeSet<_>>(), served);

    // Every operation, in an order in which it succeeds, and in one in which it fails.
    let vote = json!({"user_id": "u", "option_id": "a"});
    let sample = json!({"cognitoid": 5, "voteid": "p", "option": "a"});
    let calls = [
        ("post", "/v1/polls", poll("p", "ON_RELEASE"), 200),
        ("post", "/v1/polls", json!({"poll_id": "p"}), 400),
        ("get", "/v1/polls", json!({}), 200),
        ("get", "/v1/polls/{poll}", json!({}), 200),
        ("post", "/v1/polls/{poll}/votes", vote, 200),
        ("post", "/v1/polls/{poll}/votes", json!({}), 400),
        ("post", "/vote", sample, 200),
        ("get", "/v1/polls/{poll}/results/interim", json!({}), 409),
        ("post", "/v1/polls/{poll}/release", json!({}), 200),
        ("get", "/v1/polls/{poll}/results/interim", json!({}), 200),
        ("get", "/v1/polls/{poll}/results/final", json!({}), 409),
        ("post", "/v1/polls/{poll}/recount", json!({}), 200),
        ("get", "/v1/status", json!({}), 200),
        ("get", "/p/{poll}/qr.svg", json!({}), 400),
        ("post", "/v1/polls/{poll}/close", json!({}), 200),
    ];
    let check = |path: &str, method: &str, answer: &Answer| {
        let responses = &described[path][method]["responses"];
        let response = responses.get(answer.status.to_string()).unwrap_or(&responses["default"]);
        let response = match response["$ref"].as_str() {
            Some(name) => document.pointer(name.trim_start_matches('#')).unwrap(),
            None => response,
        };
        let schema = &response["content"]["application/json"]["schema"];
        fits(&document, schema, &read(answer), "body").unwrap_or_else(|wrong| panic!("{method} {path}: {wrong}"));
    };
    for (method, path, body, status) in calls {
        let target = path.replace("{poll}", "p");
        let answer = if method == "get" { site.get(&target, &[]).await } else { site.post(&target, &body).await };
        assert_eq!(answer.status, status, "{method} {path} {answer:?}");
        check(path, method, &answer);
    }
    let last = until("the final result", async || {
        let answer = site.get("/v1/polls/p/results/final", &[]).await;
        (answer.status == 200).then_some(answer)
    });
    check("/v1/polls/{poll}/results/final", "get", &last.await);
    // The data of events fits, too.
    let events = text(&get(&site.stack, "/v1/polls/p/results/events", &[], None).await);
    for (kind, schema) in [("poll", "PollEvent"), ("final", "Final")] {
        let data = events.split(&format!("event: {kind}\n")).nth(1).unwrap();
        let data = data.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        let schema = &document["components"]["schemas"][schema];
        fits(&document, schema, &serde_json::from_str(data).unwrap(), kind).unwrap();
    }
    site.close().await;
}

/// As many as a process watches at a time.
const WATCHED_POLLS_MAX: usize = 1_000;

/// A stream of events that stays open until it is dropped; its HTTP status.
async fn open_events(addr: std::net::SocketAddr, poll: &str) -> (u16, tokio::net::TcpStream) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let request = format!("GET /v1/polls/{poll}/results/events HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    (std::str::from_utf8(&head[9..]).unwrap().parse().unwrap(), stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn more_polls_than_a_process_watches_are_refused_until_others_leave() {
    votestream_server::raise_descriptor_limit();
    let site = Site::open().await;
    let option = votestream_proto::v1::PollOption { option_id: "a".into(), title: String::new() };
    let closes_at = Some((std::time::SystemTime::now() + Duration::from_secs(3_600)).into());
    let polls = site.stack.polls().await;
    let created = (0..=WATCHED_POLLS_MAX).map(|at| {
        let (mut polls, options) = (polls.clone(), vec![option.clone()]);
        async move {
            let poll_id = format!("p{at}");
            let request = votestream_proto::v1::CreatePollRequest { poll_id, options, closes_at, ..Default::default() };
            polls.create_poll(request).await.unwrap();
        }
    });
    futures::StreamExt::collect::<Vec<_>>(futures::StreamExt::buffer_unordered(futures::stream::iter(created), 32))
        .await;
    let mut watching = Vec::new();
    for at in 0..WATCHED_POLLS_MAX {
        let (status, stream) = open_events(site.stack.results, &format!("p{at}")).await;
        assert_eq!(status, 200, "{at}");
        watching.push(stream);
    }
    let last = format!("p{WATCHED_POLLS_MAX}");
    assert_eq!(open_events(site.stack.results, &last).await.0, 429);
    // Another watcher of a poll that is watched costs no reader.
    assert_eq!(open_events(site.stack.results, "p0").await.0, 200);
    // Whoever leaves makes room.
    watching.truncate(WATCHED_POLLS_MAX / 2);
    until("room", async || (open_events(site.stack.results, &last).await.0 == 200).then_some(())).await;
    drop(watching);
    site.close().await;
}
