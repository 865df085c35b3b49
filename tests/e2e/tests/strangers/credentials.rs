//! Floods of wrong credentials, and of one that is good: whoever is honest gets through meanwhile, and memory is bounded.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{Rng, RngExt, rngs::StdRng};
use serde_json::json;
use tokio::time::Instant;
use votestream_e2e::{
    hostile::Http2,
    house::{ISS, RELAY, issuer_entry, key_entry},
    issuer::{Issuer, base64url, now},
};

use super::*;

/// How long a flood lasts.
const LASTS: Duration = Duration::from_secs(6);
/// Attackers at once.
const ATTACKERS: usize = 4;
/// Calls of an attacker that wait for their answers.
const AT_ONCE: u64 = 30;
/// Longest time of an honest vote during a flood, for ninety-nine of a hundred, when debug builds, attackers and other tests
/// share two cores.
const P99_MAX: Duration = Duration::from_secs(5);

/// A server that knows an issuer and a relay. Its honest voters of other tests come without a credential.
async fn start_with_identity(test: &str, dir: &Path, more: &[&str]) -> (Server, StdRng, Issuer) {
    let issuer = Issuer::new("es1");
    let anonymous = "[anonymous]\nscopes = [\"relay:*\", \"read:*\", \"manage:*\"]\n";
    let auth = issuer_entry("jwks.json") + &key_entry("relay-1", RELAY, "\"relay:*\"") + anonymous;
    std::fs::write(dir.join("jwks.json"), json!({"keys": [issuer.jwk()]}).to_string()).unwrap();
    std::fs::write(dir.join("auth.toml"), auth).unwrap();
    let mut arguments = vec![format!("--auth={}", dir.join("auth.toml").display())];
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    let (server, rng) = start_with(test, Options { arguments, ..Options::default() }).await;
    (server, rng, issuer)
}

/// Calls that make a flood.
const FLOOD: u64 = 500;

/// Sends calls with credentials as fast as they are answered, from one connection after the other, until `until` and until all
/// attackers together have sent enough.
async fn flood(
    addr: SocketAddr,
    until: Instant,
    mut credential: impl FnMut() -> String,
    calls: Arc<AtomicU64>,
) -> std::io::Result<()> {
    let patience = until + PATIENCE;
    let goes_on = || {
        let now = Instant::now();
        now < until || now < patience && calls.load(Ordering::Relaxed) <= FLOOD
    };
    while goes_on() {
        let mut connection = Http2::connect(addr).await?;
        let mut sent = 0;
        let vote = one_vote(BESIDE, "eve", "no such option");
        // The server ends connections with too many wrong signatures. Attackers come back.
        while goes_on() && !connection.heard().closed {
            let authorization = format!("Bearer {}", credential());
            let Ok(stream) = connection.call(METHODS[0], &[("authorization", &authorization)]).await else { break };
            drop(tokio::time::timeout(REST, connection.data(stream, &vote, usize::MAX, true)).await);
            sent += 1;
            calls.fetch_add(1, Ordering::Relaxed);
            connection.hears(|heard| heard.ended + AT_ONCE > sent || heard.closed, REST).await;
        }
    }
    Ok(())
}

/// Casts votes with a token until `until`, each by a voter of its own, and returns how long each took.
async fn honest(server: &Server, issuer: &Issuer, poll: &'static str, until: Instant) -> Vec<Duration> {
    let (mut ingest, mut took) = (ingest(server).await, Vec::new());
    while Instant::now() < until || took.len() < 20 {
        let user = format!("honest-{}", took.len());
        let claims = json!({"iss": ISS, "aud": "votestream", "sub": user, "exp": now() + 600, "scope": "vote:*"});
        let mut message = votestream_proto::VotesMessage::default();
        message.push(poll, "", "yes");
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {}", issuer.token(&claims)).parse().unwrap());
        let start = Instant::now();
        tokio::time::timeout(PATIENCE, ingest.cast_vote(request)).await.expect("no answer").unwrap();
        took.push(start.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    took.sort_unstable();
    took
}

fn p99(took: &[Duration]) -> Duration {
    took[(took.len() * 99).div_ceil(100) - 1]
}

async fn withstands(
    mut server: Server,
    issuer: &Issuer,
    what: &str,
    credentials: Vec<Box<dyn FnMut() -> String + Send>>,
) {
    create(&server, poll("tokens", &["yes"])).await;
    let (until, calls) = (Instant::now() + LASTS, Arc::<AtomicU64>::default());
    let attackers: Vec<_> = credentials
        .into_iter()
        .map(|credential| tokio::spawn(flood(server.ingest, until, credential, calls.clone())))
        .collect();
    let took = honest(&server, issuer, "tokens", until).await;
    for attacker in attackers {
        attacker.await.unwrap().unwrap();
    }
    let calls = calls.load(Ordering::Relaxed);
    eprintln!("{what}: {calls} calls of attackers, {} honest votes, p99 {:?}", took.len(), p99(&took));
    assert!(calls > FLOOD, "{what}: {calls} calls are no flood");
    assert!(p99(&took) < P99_MAX, "{what}: beside {calls} calls an honest vote takes {:?}", p99(&took));
    server.lives();
    let grew = server.memory_grew();
    assert!(grew < MEMORY_MAX, "{what}: memory has grown by {} MiB", grew >> 20);
    server.a_vote_gets_through(what).await;
    server.comes_to_rest(REST).await;
    ends_with(server, "tokens", took.len() as u64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_signatures_at_full_speed() {
    let dir = tempfile::tempdir().unwrap();
    let (server, mut rng, issuer) = start_with_identity("wrong signatures", dir.path(), &[]).await;
    let attacker = |mut rng: StdRng| -> Box<dyn FnMut() -> String + Send> {
        Box::new(move || {
            let head = json!({"alg": "ES256", "kid": "es1"});
            let claims = json!({
                "iss": ISS, "aud": "votestream", "sub": rng.random::<u64>().to_string(), "exp": now() + 600,
                "scope": "vote:*",
            });
            // Numbers within the curve's order mostly, so that all of the check is done.
            let mut signature = [0; 64];
            rng.fill_bytes(&mut signature);
            let part = |value: &serde_json::Value| base64url(value.to_string().as_bytes());
            format!("{}.{}.{}", part(&head), part(&claims), base64url(&signature))
        })
    };
    let credentials = (0..ATTACKERS).map(|_| attacker(StdRng::seed_from_u64(rng.random()))).collect();
    withstands(server, &issuer, "wrong signatures", credentials).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guessed_keys_and_noise_at_full_speed() {
    let dir = tempfile::tempdir().unwrap();
    let (server, mut rng, issuer) = start_with_identity("guessed keys", dir.path(), &[]).await;
    let attacker = |mut rng: StdRng| -> Box<dyn FnMut() -> String + Send> {
        Box::new(move || {
            let mut noise = vec![0; rng.random_range(0..3_000)];
            rng.fill_bytes(&mut noise);
            match rng.random_range(0..3) {
                0 => base64url(&noise),
                1 => format!("{}.{}.{}", base64url(&noise), base64url(&noise), base64url(&noise)),
                _ => "x".repeat(rng.random_range(0..6_000)),
            }
        })
    };
    let credentials = (0..ATTACKERS).map(|_| attacker(StdRng::seed_from_u64(rng.random()))).collect();
    withstands(server, &issuer, "guessed keys", credentials).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_above_its_limit_at_full_speed() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ["--calls-per-credential=50/s", "--calls-per-voter=50/s"];
    let (server, _, issuer) = start_with_identity("above the limit", dir.path(), &limits).await;
    let claims = json!({"iss": ISS, "aud": "votestream", "sub": "eve", "exp": now() + 600, "scope": "vote:*"});
    let token = issuer.token(&claims);
    let credentials = (0..ATTACKERS).map(|at| -> Box<dyn FnMut() -> String + Send> {
        let credential = if at % 2 == 0 { RELAY.to_owned() } else { token.clone() };
        Box::new(move || credential.clone())
    });
    withstands(server, &issuer, "above the limit", credentials.collect()).await;
}
