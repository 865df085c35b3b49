//! The keys of an issuer at a URL: exchanged while a relay streams, withdrawn, asked for too often, and not to be had.
//!
//! Whatever the URL does, calls by keys that are known go on, nothing of the relay's stream is lost, and what was acknowledged
//! is what a recount finds.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};
use votestream_e2e::{
    cluster::eventually,
    house::{House, ISS, bearing, issuer_entry, keys},
    issuer::{Issuer, now},
};
use votestream_proto::{VotesMessage, v1::ingest_service_client::IngestServiceClient};
use votestream_server::{CallLimits, Identity, identity::Pace};

const PATIENCE: Duration = Duration::from_secs(60);
/// Votes that the relay sends at least. `VOTESTREAM_RELAYED` sets another number.
const RELAYED: u64 = 50_000;
const PER_MESSAGE: u64 = 100;
/// Messages that wait for the connection.
const QUEUED: usize = 8;
/// As often as the URL may be asked in this test.
const PACE: Pace =
    Pace { refresh: Duration::from_secs(1), ask_again: Duration::from_secs(1), stale: Duration::from_secs(24 * 3_600) };

/// What the URL answers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mode {
    Keys(String),
    /// Nothing, and the connection stays open.
    Silence,
    Status(&'static str, Vec<u8>),
    /// The keys are elsewhere.
    Redirect(SocketAddr),
    /// The connection is closed at once.
    Closed,
}

/// A small web server with keys.
struct Jwks {
    address: SocketAddr,
    mode: Arc<Mutex<Mode>>,
    asked: Arc<AtomicUsize>,
    task: Option<JoinHandle<()>>,
}

impl Jwks {
    async fn start(keys: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, asked) = (Arc::new(Mutex::new(Mode::Keys(keys))), Arc::default());
        let mut server = Self { address, mode, asked, task: None };
        server.listen(listener);
        server
    }

    fn listen(&mut self, listener: TcpListener) {
        let (mode, asked) = (self.mode.clone(), self.asked.clone());
        self.task = Some(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, mode.lock().clone()));
                asked.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }

    fn answers(&self, mode: Mode) {
        *self.mode.lock() = mode;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Waits until it was asked again. Then nobody has an older answer in hand.
    async fn is_asked(&self) {
        let before = self.asked();
        eventually("the URL is asked", PATIENCE, async || match self.asked() {
            asked if asked > before => Ok(()),
            asked => Err(asked),
        })
        .await;
    }

    /// Connections are refused from now on.
    async fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            drop(task.await);
        }
    }

    async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.listen(listener);
    }
}

async fn answer(mut stream: TcpStream, mode: Mode) {
    let mut request = [0; 1_024];
    if mode == Mode::Closed || stream.read(&mut request).await.is_err() {
        return;
    }
    let (status, more, body) = match mode {
        Mode::Keys(keys) => ("200 OK", String::new(), keys.into_bytes()),
        Mode::Status(status, body) => (status, String::new(), body),
        Mode::Redirect(to) => ("302 Found", format!("location: http://{to}/evil\r\n"), Vec::new()),
        Mode::Closed => return,
        Mode::Silence => {
            // Until the client gives up.
            drop(stream.read(&mut request).await);
            return;
        }
    };
    let head = format!("HTTP/1.1 {status}\r\n{more}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    // A client that does not want so much leaves.
    drop(stream.write_all(&[head.as_bytes(), &body].concat()).await);
}

/// Votes that the relay sends at least.
fn relayed_at_least() -> u64 {
    std::env::var("VOTESTREAM_RELAYED").ok().and_then(|number| number.parse().ok()).unwrap_or(RELAYED)
}

fn jwks(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

fn claims(user: &str, scope: &str) -> Value {
    json!({"iss": ISS, "aud": "votestream", "sub": user, "exp": now() + 3_600, "iat": now(), "scope": scope})
}

fn one_vote(poll: &str) -> VotesMessage {
    let mut message = VotesMessage::default();
    message.push(poll, "", "a");
    message
}

/// A house whose issuer has its keys at a URL.
async fn house(server: &Jwks, issuer: Issuer) -> House {
    let entry = issuer_entry(&format!("http://{}/jwks.json", server.address)) + &keys();
    let open = |auth: &_| Identity::open_at(auth, PACE);
    House::open_with(issuer, &entry, "{}", CallLimits::default(), open).await
}

/// A relay that streams new voters until it is told to stop, and has sent enough.
struct Relay {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    task: JoinHandle<Result<u64, Status>>,
}

impl Relay {
    fn start(mut ingest: IngestServiceClient<Channel>, token: &str, poll: &'static str) -> Self {
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (to_stream, messages) = tokio::sync::mpsc::channel(QUEUED);
        let (stopped, counted, wanted) = (stop.clone(), sent.clone(), relayed_at_least());
        tokio::spawn(async move {
            loop {
                let before = counted.load(Ordering::Relaxed);
                if before >= wanted && stopped.load(Ordering::Relaxed) {
                    return;
                }
                let mut message = VotesMessage::default();
                (before..before + PER_MESSAGE).for_each(|at| message.push(poll, &format!("relayed-{at}"), "b"));
                if to_stream.send(message).await.is_err() {
                    return;
                }
                counted.fetch_add(PER_MESSAGE, Ordering::Relaxed);
                if before >= wanted {
                    // Enough to see that the stream goes on.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        });
        let request = bearing(token, ReceiverStream::new(messages));
        let task = tokio::spawn(async move {
            let mut answers = ingest.stream_votes(request).await?.into_inner();
            let mut durable = 0;
            while let Some(answer) = answers.message().await? {
                assert!(answer.rejections.is_empty(), "{answer:?}");
                durable = answer.durable_through;
            }
            Ok(durable)
        });
        Self { stop, sent, task }
    }

    /// Ends the stream. Returns the number of votes, each of which must be durable.
    async fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        // A minute for each 50,000, and one more.
        let minutes = relayed_at_least() / RELAYED + 1;
        let durable = timeout(PATIENCE * minutes as u32, self.task).await.expect("the stream does not end").unwrap();
        assert_eq!(durable.expect("the stream was cut off"), self.sent.load(Ordering::Relaxed));
        self.sent.load(Ordering::Relaxed)
    }
}

/// Casts votes of new users one after the other, each with a token of its own.
struct Prober {
    ingest: IngestServiceClient<Channel>,
    voters: u64,
}

impl Prober {
    async fn probe(&mut self, issuer: &Issuer) -> Result<(), Status> {
        let token = issuer.token(&claims(&format!("probe-{}", self.voters), "vote:p"));
        let cast = self.ingest.cast_vote(bearing(&token, one_vote("p")));
        timeout(PATIENCE, cast).await.expect("a vote is not answered")?;
        self.voters += 1;
        Ok(())
    }

    /// Probes all the time until the URL was asked again twice. Every vote must get through.
    async fn until_asked(&mut self, issuer: &Issuer, server: &Jwks, what: &str) {
        let (before, start) = (server.asked(), Instant::now());
        while server.asked() < before + 2 {
            self.probe(issuer).await.unwrap_or_else(|status| panic!("{what}: {status:?}"));
            assert!(start.elapsed() < PATIENCE, "{what}: the URL is not asked again");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_exchanged_and_their_url_fails_while_a_relay_streams() {
    let (one, two) = (Issuer::new("one"), Issuer::new("two"));
    let keys_of_both =
        jwks(&[one.jwk(), two.jwk(), json!({"kty": "AKP", "alg": "ML-DSA-44", "kid": "later", "pub": "x"})]);
    let mut server = Jwks::start(jwks(&[one.jwk()])).await;
    let house = house(&server, Issuer::new("none")).await;
    house.create_poll("p").await;
    let relay_token = one.token(&claims("the relay", "relay:p"));
    let relay = Relay::start(house.stack.ingest().await, &relay_token, "p");
    let mut prober = Prober { ingest: house.stack.ingest().await, voters: 0 };
    prober.probe(&one).await.unwrap();

    // A new key is published before it signs, beside one of a kind that nobody knows yet.
    server.answers(Mode::Keys(keys_of_both.clone()));
    prober.until_asked(&one, &server, "both keys are published").await;
    prober.probe(&two).await.unwrap();

    // The URL fails in every way, and old keys serve on.
    let elsewhere = Jwks::start(jwks(&[Issuer::new("two").jwk()])).await;
    let large = [b"{\"keys\":[".to_vec(), vec![b' '; 2 << 20], b"]}".to_vec()].concat();
    for (what, mode) in [
        ("error", Mode::Status("500 Internal Server Error", jwks(&[]).into_bytes())),
        ("not there", Mode::Status("404 Not Found", b"{}".to_vec())),
        ("garbage", Mode::Status("200 OK", b"<html>maintenance</html>".to_vec())),
        ("no keys", Mode::Status("200 OK", b"{}".to_vec())),
        ("deep", Mode::Status("200 OK", vec![b'['; 100_000])),
        ("large", Mode::Status("200 OK", large)),
        ("redirect", Mode::Redirect(elsewhere.address)),
        ("closed", Mode::Closed),
        ("silence", Mode::Silence),
    ] {
        server.answers(mode);
        if what == "silence" {
            // Its answer takes its time, and nobody waits for it.
            server.is_asked().await;
            for _ in 0..20 {
                prober.probe(&two).await.unwrap();
            }
        } else {
            prober.until_asked(&two, &server, what).await;
        }
    }
    assert_eq!(elsewhere.asked(), 0, "a redirect was followed");
    server.stop().await;
    for _ in 0..20 {
        prober.probe(&two).await.unwrap();
    }

    // The old key is withdrawn, and counts for no new call any more: not even for a token that was verified before, on a
    // connection that has used it.
    let mut known = Prober { ingest: house.stack.ingest().await, voters: 0 };
    let token = one.token(&claims("grace", "vote:p"));
    known.ingest.cast_vote(bearing(&token, one_vote("p"))).await.unwrap();
    server.answers(Mode::Keys(jwks(&[two.jwk()])));
    server.start_again().await;
    let refused = eventually("the old key counts no more", PATIENCE, async || {
        known.ingest.cast_vote(bearing(&token, one_vote("p"))).await.err().ok_or(())
    });
    assert_eq!(refused.await.code(), Code::Unauthenticated);
    assert_eq!(prober.probe(&one).await.unwrap_err().code(), Code::Unauthenticated);
    prober.probe(&two).await.unwrap();

    // The only key is withdrawn.
    server.answers(Mode::Keys(jwks(&[])));
    eventually("nothing counts any more", PATIENCE, async || prober.probe(&two).await.err().ok_or(())).await;
    server.answers(Mode::Keys(keys_of_both));
    eventually("both count again", PATIENCE, async || prober.probe(&one).await).await;

    // The stream has seen nothing of all that.
    let relayed = relay.finish().await;
    assert!(relayed >= relayed_at_least());
    assert_eq!(house.finish("p").await, relayed + prober.voters + 1, "{} probes", prober.voters);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_makes_the_url_be_asked_and_never_often() {
    let (one, stranger) = (Issuer::new("one"), Issuer::new("stranger"));
    let server = Jwks::start(jwks(&[one.jwk()])).await;
    let house = house(&server, Issuer::new("none")).await;
    house.create_poll("p").await;
    let mut prober = Prober { ingest: house.stack.ingest().await, voters: 0 };
    eventually("the keys are read", PATIENCE, async || prober.probe(&one).await).await;
    let (before, start) = (server.asked(), Instant::now());
    let mut refused = 0;
    while start.elapsed() < Duration::from_secs(4) {
        let status = prober.probe(&stranger).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        refused += 1;
    }
    let (asked, seconds) = (server.asked() - before, start.elapsed().as_secs() as usize);
    assert!(refused > 10 && asked <= seconds + 1, "{refused} calls with an unknown key asked {asked} times");
    assert!(asked > 0, "nobody asked");
    prober.probe(&one).await.unwrap();
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_is_down_at_the_start_is_asked_until_it_answers() {
    let one = Issuer::new("one");
    let mut server = Jwks::start(jwks(&[one.jwk()])).await;
    server.stop().await;
    let house = house(&server, Issuer::new("none")).await;
    house.create_poll("p").await;
    let mut prober = Prober { ingest: house.stack.ingest().await, voters: 0 };
    // The caller may try again: it is not its token that is wrong.
    assert_eq!(prober.probe(&one).await.unwrap_err().code(), Code::Unavailable);
    // Whoever has a key calls meanwhile.
    server.start_again().await;
    eventually("the issuer is back", PATIENCE, async || prober.probe(&one).await).await;

    // The rights of its tokens change while it is down again. Its keys serve on.
    server.stop().await;
    let entry = issuer_entry(&format!("http://{}/jwks.json", server.address)).replace("\"read:*\"", "\"read:q\"");
    house.write("auth.toml", &(entry + &keys()));
    let token = one.token(&claims("reader", "read:p vote:p"));
    let poll = || votestream_proto::v1::GetPollRequest { poll_id: "p".into() };
    let mut polls = house.stack.polls().await;
    eventually("the change holds", PATIENCE, async || match polls.get_poll(bearing(&token, poll())).await {
        Err(status) if status.code() == Code::PermissionDenied => Ok(()),
        other => Err(other.map(drop)),
    })
    .await;
    prober.probe(&one).await.unwrap();
    house.close().await;
}
