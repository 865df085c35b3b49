//! Credentials that are taken back while their streams run: the streams end within seconds, and what they were told is what
//! is stored. Everybody else goes on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};
use votestream_e2e::{
    cluster::eventually,
    house::{House, MANAGER, OTHER_RELAY, RELAY, bearing, issuer_entry, key_entry, keys},
    issuer::now,
};
use votestream_proto::{
    VotesMessage,
    v1::{WatchInterimResultsRequest, ingest_service_client::IngestServiceClient},
};
use votestream_server::CallLimits;

const PATIENCE: Duration = Duration::from_secs(60);
/// Within this time a stream ends after the file was written.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
const PER_MESSAGE: usize = 20;
const QUEUED: usize = 4;

/// A stream of new voters that goes on until somebody ends it.
struct Streaming {
    durable: watch::Receiver<u64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<(Result<(), Status>, Instant)>,
}

impl Streaming {
    fn start(mut ingest: IngestServiceClient<Channel>, credential: &str, poll: &'static str) -> Self {
        let (to_stream, messages) = mpsc::channel(QUEUED);
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        tokio::spawn(async move {
            for message in 0.. {
                let mut votes = VotesMessage::default();
                (0..PER_MESSAGE).for_each(|at| votes.push(poll, &format!("user-{message}-{at}"), "a"));
                if stopped.load(Ordering::Relaxed) || to_stream.send(votes).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        let request = bearing(credential, ReceiverStream::new(messages));
        let (told, durable) = watch::channel(0);
        let task = tokio::spawn(async move {
            let stream = async {
                let mut answers = ingest.stream_votes(request).await?.into_inner();
                while let Some(answer) = answers.message().await? {
                    assert!(answer.rejections.is_empty(), "{answer:?}");
                    told.send_replace(answer.durable_through);
                }
                Ok(())
            };
            (stream.await, Instant::now())
        });
        Self { durable, stop, task }
    }

    /// Waits until more votes are durable.
    async fn goes_on(&mut self) {
        let now = *self.durable.borrow();
        let more = timeout(PATIENCE, self.durable.wait_for(|durable| *durable > now + 100)).await;
        more.expect("the stream stands still").expect("the stream has ended");
    }

    /// Waits for the end that somebody has brought about at this time. Returns the number of votes that are durable.
    async fn ends(self, since: Instant, words: &str) -> u64 {
        let (ended, at) = timeout(PATIENCE, self.task).await.expect("the stream does not end").unwrap();
        let status = ended.expect_err("the stream ended as if nothing was wrong");
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        assert!(status.message().contains(words), "{status:?}");
        assert!(status.message().contains("votes after durable_through were not accepted"), "{status:?}");
        assert!(at - since < ENDS_WITHIN, "{words}: it took {:?}", at - since);
        *self.durable.borrow()
    }

    async fn stops(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let (ended, _) = timeout(PATIENCE, self.task).await.expect("the stream does not end").unwrap();
        ended.unwrap();
        *self.durable.borrow()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_revoked_credentials_end_and_what_they_were_told_is_stored() {
    let house = House::open(CallLimits::default()).await;
    for poll in ["key", "rights", "jti", "user", "expired", "beside"] {
        house.create_poll(poll).await;
    }
    let relay = |jti: &str, user: &str, changes: serde_json::Value| {
        let mut claims = json!({"jti": jti, "sub": user, "scope": "relay:*"});
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        house.token(&claims)
    };
    let start = async |credential: &str, poll| {
        let mut streaming = Streaming::start(house.stack.ingest().await, credential, poll);
        streaming.goes_on().await;
        streaming
    };
    let mut beside = start(OTHER_RELAY, "beside").await;
    let mut by_key = start(RELAY, "key").await;
    let by_jti = start(&relay("stolen", "one", json!({})), "jti").await;
    let by_user = start(&relay("good", "fired", json!({"iat": now() - 60})), "user").await;
    let mut hired = start(&relay("good", "hired", json!({"iat": now() - 60})), "rights").await;

    // Broken files change nothing.
    let auth = std::fs::read_to_string(house.file("auth.toml")).unwrap();
    for (name, broken) in [
        ("auth.toml", "[[key]\n"),
        ("auth.toml", "[[key]]\nid = \"x\"\n"),
        ("auth.toml", ""),
        ("revoked.toml", "[[revoked]]\nuser = \"hired\"\n"),
        ("jwks.json", "{\"keys\":"),
    ] {
        let good = std::fs::read_to_string(house.file(name)).unwrap();
        house.write(name, broken);
        // Twice the time between two looks.
        let seen = Instant::now();
        while seen.elapsed() < Duration::from_secs(2) {
            by_key.goes_on().await;
            hired.goes_on().await;
        }
        house.write(name, &good);
    }
    std::fs::remove_file(house.file("revoked.toml")).unwrap();
    let seen = Instant::now();
    while seen.elapsed() < Duration::from_secs(2) {
        beside.goes_on().await;
    }
    house.write("revoked.toml", "");

    // A key is taken out of the file.
    let since = Instant::now();
    house.write("auth.toml", &auth.replace(&key_entry("relay-1", RELAY, "\"relay:*\""), ""));
    let mut durable = vec![("key", by_key.ends(since, "the key was revoked").await)];
    let again = house.stack.ingest().await.stream_votes(bearing(RELAY, tokio_stream::empty())).await;
    assert_eq!(again.unwrap_err().code(), Code::Unauthenticated);

    // A token is stolen, and a user is fired. Both are still valid by themselves.
    let moment = |seconds: i64| prost_types::Timestamp { seconds, nanos: 0 }.to_string();
    let since = Instant::now();
    let revoked = format!(
        "[[revoked]]\njti = \"stolen\"\n[[revoked]]\nuser = \"fired\"\nissued_before = {}\n\
         [[revoked]]\nuser = \"hired\"\nissued_before = {}\n",
        moment(now() - 10),
        moment(now() - 600)
    );
    house.write("revoked.toml", &revoked);
    durable.push(("jti", by_jti.ends(since, "the token was revoked").await));
    durable.push(("user", by_user.ends(since, "the token was revoked").await));
    // A token that was issued afterwards counts.
    let fresh = start(&relay("new", "fired", json!({})), "user").await;
    hired.goes_on().await;

    // A list that has become empty is a mistake, too.
    house.write("revoked.toml", "");
    let seen = Instant::now();
    while seen.elapsed() < Duration::from_secs(2) {
        beside.goes_on().await;
    }
    let stolen = relay("stolen", "one", json!({}));
    let again = house.stack.ingest().await.stream_votes(bearing(&stolen, tokio_stream::empty())).await;
    assert_eq!(again.unwrap_err().code(), Code::Unauthenticated);
    house.write("revoked.toml", &revoked);

    // A credential expires while it streams. Clocks may differ by five seconds.
    let expires = now() + 3;
    let by_time =
        Streaming::start(house.stack.ingest().await, &relay("short", "short", json!({"exp": expires})), "expired");
    let left = Duration::from_secs(3 + 5);
    durable.push(("expired", by_time.ends(Instant::now() + left, "the token expired").await));

    // New keys in the issuer's file end nobody's stream.
    let jwks = json!({"keys": [house.issuer.jwk(), votestream_e2e::issuer::Issuer::new("es2").jwk()]});
    house.write("jwks.json", &jwks.to_string());
    let seen = Instant::now();
    while seen.elapsed() < Duration::from_secs(2) {
        hired.goes_on().await;
    }

    // The rights of the issuer's tokens become fewer.
    let since = Instant::now();
    let fewer = issuer_entry("jwks.json").replace("\"relay:*\", ", "");
    house.write("auth.toml", &(fewer + &keys()));
    durable.push(("rights", hired.ends(since, "has changed").await));
    let more = fresh.ends(since, "has changed").await;
    assert!(more > 0);

    beside.goes_on().await;
    durable.push(("beside", beside.stops().await));
    for (poll, durable) in durable {
        let counted = house.finish(poll).await;
        // Users of the fresh stream are those of the one before, as far as it came.
        let expected = if poll == "user" { durable.max(more) } else { durable };
        assert_eq!(counted, expected, "{poll}");
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vote_whose_token_is_revoked_while_it_arrives_does_not_count() {
    let house = House::open(CallLimits::default()).await;
    house.create_poll("p").await;
    let token = house.token(&json!({"jti": "slow", "sub": "slow", "scope": "vote:p"}));
    let body = r#"{"option_id": "a"}"#;
    let head = format!(
        "POST /v1/polls/p/votes HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         authorization: Bearer {token}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let mut socket = tokio::net::TcpStream::connect(house.stack.ingest).await.unwrap();
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&body.as_bytes()[..5]).await.unwrap();
    house.write("revoked.toml", "[[revoked]]\njti = \"slow\"\n");
    eventually("the token is refused", PATIENCE, async || {
        // Without a vote it says nothing else.
        match house.stack.ingest().await.stream_votes(bearing(&token, tokio_stream::empty())).await {
            Err(status) if status.code() == Code::Unauthenticated => Ok(()),
            other => Err(other.map(drop)),
        }
    })
    .await;
    socket.write_all(&body.as_bytes()[5..]).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, socket.read_to_string(&mut answer)).await.expect("no answer").unwrap();
    assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("the token was revoked"), "{answer}");
    assert_eq!(house.finish("p").await, 0);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_watches_results_sees_no_more_of_them_once_revoked() {
    let house = House::open(CallLimits::default()).await;
    house.create_poll("p").await;
    let token = house.token(&json!({"jti": "spy", "scope": "read:p"}));
    let watch = WatchInterimResultsRequest { poll_id: "p".into() };
    let mut watched =
        house.stack.results().await.watch_interim_results(bearing(&token, watch)).await.unwrap().into_inner();
    assert!(watched.message().await.unwrap().is_some());
    let since = Instant::now();
    house.write("revoked.toml", "[[revoked]]\njti = \"spy\"\n");
    let ended = async {
        loop {
            match watched.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended as if nothing was wrong"),
                Err(status) => return status,
            }
        }
    };
    let status = timeout(PATIENCE, ended).await.expect("it does not end");
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(since.elapsed() < ENDS_WITHIN, "{:?}", since.elapsed());
    // So does everything else that it may ask for.
    let request = || votestream_proto::v1::GetInterimResultsRequest { poll_id: "p".into() };
    let mut results = house.stack.results().await;
    assert!(results.get_interim_results(bearing(&token, request())).await.is_err());
    eventually("the manager reads on", PATIENCE, async || {
        results.get_interim_results(bearing(MANAGER, request())).await.map(drop)
    })
    .await;
    house.close().await;
}
