//! What it costs to know who calls: the same votes with each kind of credential, and without identity.

use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use rand::{SeedableRng, rngs::StdRng};
use serde::Serialize;
use tonic::{Code, Request, metadata::AsciiMetadataValue};
use votestream_proto::{VotesMessage, v1::ingest_service_client::IngestServiceClient};
use votestream_server::{Auth, CallLimits, Identity, Quotas, identity::signature};

use crate::{
    cores::Cores,
    report::{Cell, Report, number},
    server::{Kind, Options, Server},
    turns::{self, ROUNDS, Turns, median},
    votes,
};

/// Votes of a turn before it is known how many it needs, one a call and in streams.
const CALLS: usize = 100_000;
const STREAMED: usize = 2_000_000;
/// Connections, and calls in flight on each.
const CONNECTIONS: usize = 8;
const IN_FLIGHT: usize = 32;
/// Votes of a message in streams.
const PER_MESSAGE: usize = 100;
/// Tokens that are used again and again: far more than connections, so that no connection remembers them.
const TOKENS: usize = 10_000;

/// A secret and a key pair for these measurements only.
const SECRET: &[u8; 32] = b"a secret for measurements, 32 B.";
const SECRET_TEXT: &str = "YSBzZWNyZXQgZm9yIG1lYXN1cmVtZW50cywgMzIgQi4";
const PAIR: &str = "308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420409d1d824eadff76c5b62bae165ea4\
    83fe6a9503e802b267fed61cbc96d0ca01a14403420004a7336b2bbab2e3a71b1c80b6635432b8bf3d56b135dbbf63f8a39516c3b0f3dfedb124cf\
    a59660aab45a8d5fccc3335e85d5cea11a6854c38f9fcd8ba62519e3";
const POINT: (&str, &str) =
    ("pzNrK7qy46cbHIC2Y1QyuL89VrE1279j-KOVFsOw898", "7bEkz6WWYKq0Wo1fzMMzXoXVzqEaaFTDj5_Ni6YlGeM");
/// A relay's key, and its SHA-256.
const RELAY: &str = "a key for measurements";
const RELAY_SHA256: &str = "eda4c41f72e984eeb4a5a3abc63b144bdb68033017c4aa293caa0b93d320047d";

/// A manager's key, and its SHA-256.
pub(crate) const MANAGER: &str = "manager-for-measurements";
const MANAGER_SHA256: &str = "3043e47170f5ae0cc501b06f2442609896d0122a6d0301ede6baebc6b129c31f";

/// How callers say who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum With {
    /// Not at all; identity is off.
    Nothing,
    /// As with [`Self::KnownToken`], to a server without identity: what it costs to carry a token with each call.
    Unread,
    /// A relay's key on every connection.
    Key,
    /// A voter's token on every connection.
    OwnToken,
    /// One of [`TOKENS`] tokens with every call.
    KnownToken,
    /// The same, with limits on voters, credentials and addresses that nobody reaches.
    LimitedToken,
    /// A token of its own with every call, by HS256.
    NewHs256,
    /// The same by ES256.
    NewEs256,
    /// A token of its own with every call, by ES256, with a wrong signature.
    WrongEs256,
}

impl With {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "identity off",
            Self::Unread => "a token with each call that nobody reads (identity off)",
            Self::Key => "a relay's key",
            Self::OwnToken => "one token a connection",
            Self::KnownToken => "a remembered token with each call",
            Self::LimitedToken => "the same, and calls are limited by voter, credential and address",
            Self::NewHs256 => "a new HS256 token with each call",
            Self::NewEs256 => "a new ES256 token with each call",
            Self::WrongEs256 => "a wrong ES256 signature with each call (refused)",
        }
    }
}

/// Identity for a server under test.
pub(crate) fn identity(folder: &Path) -> anyhow::Result<Identity> {
    write(folder, "relay:*", (RELAY_SHA256, "relay:*"))?;
    let auth = Auth::File { file: folder.join("auth.toml"), revoked: None };
    Identity::open(&auth).map_err(|mistakes| anyhow::anyhow!(mistakes.join("; ")))
}

/// Writes the files of an issuer whose tokens have this scope, and of a key, by its SHA-256, and its scope.
fn write(folder: &Path, of_issuer: &str, (key, of_key): (&str, &str)) -> anyhow::Result<()> {
    let (x, y) = POINT;
    let jwks = serde_json::json!({"keys": [
        {"kty": "oct", "alg": "HS256", "kid": "h", "k": SECRET_TEXT},
        {"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "e", "x": x, "y": y},
    ]});
    let file = format!(
        "[[issuer]]\niss = \"bench\"\naud = \"votestream\"\nkeys = \"keys.json\"\nalgorithms = [\"HS256\", \"ES256\"]\n\
         scopes = [\"{of_issuer}\"]\n[[key]]\nid = \"key\"\nsha256 = \"{key}\"\nscopes = [\"{of_key}\"]\n"
    );
    std::fs::write(folder.join("keys.json"), jwks.to_string())?;
    std::fs::write(folder.join("auth.toml"), file)?;
    Ok(())
}

/// Writes the files for voters with tokens, and a manager whose key is [`MANAGER`]: `auth.toml`, and `es256.pem`, which signs.
pub(crate) fn write_phones(folder: &Path) -> anyhow::Result<()> {
    write(folder, "vote:*", (MANAGER_SHA256, "manage:*"))?;
    let pair = rcgen::KeyPair::try_from(pair()?)?;
    std::fs::write(folder.join("es256.pem"), pair.serialize_pem())?;
    Ok(())
}

/// The bytes of [`PAIR`].
fn pair() -> anyhow::Result<Vec<u8>> {
    let digits = |at: usize| u8::from_str_radix(&PAIR[at..at + 2], 16);
    Ok((0..PAIR.len()).step_by(2).map(digits).collect::<Result<_, _>>()?)
}

/// Limits that these measurements do not reach.
pub(crate) fn quotas() -> anyhow::Result<Quotas> {
    let rate = Some("1000000/s".parse().map_err(anyhow::Error::msg)?);
    let limits = CallLimits { per_voter: rate, per_credential: rate, per_address: rate, ..CallLimits::default() };
    Ok(Quotas::new(&limits))
}

/// Makes tokens.
struct Signer {
    hmac: EncodingKey,
    curve: EncodingKey,
    made: AtomicU64,
    expires_at: u64,
}

#[derive(Serialize)]
struct Claims {
    iss: &'static str,
    aud: &'static str,
    sub: String,
    jti: String,
    exp: u64,
    scope: &'static str,
}

impl Signer {
    fn new() -> anyhow::Result<Self> {
        signature::install();
        let (hmac, curve) = (EncodingKey::from_secret(SECRET), EncodingKey::from_ec_der(&pair()?));
        Ok(Self { hmac, curve, made: AtomicU64::new(0), expires_at: get_current_timestamp() + 3_600 })
    }

    /// The header of a token that no other call has.
    fn token(&self, algorithm: Algorithm) -> anyhow::Result<AsciiMetadataValue> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let claims = Claims {
            iss: "bench",
            aud: "votestream",
            sub: format!("user-{number}"),
            jti: format!("{number:016x}"),
            exp: self.expires_at,
            scope: "openid relay:bench",
        };
        let (kid, key) = if algorithm == Algorithm::HS256 { ("h", &self.hmac) } else { ("e", &self.curve) };
        let header = Header { kid: Some(kid.into()), ..Header::new(algorithm) };
        Ok(format!("Bearer {}", encode(&header, &claims, key)?).parse()?)
    }

    /// The same with a signature of something else.
    fn wrong(&self) -> anyhow::Result<AsciiMetadataValue> {
        let (one, other) = (self.token(Algorithm::ES256)?, self.token(Algorithm::ES256)?);
        let (start, _) = one.to_str()?.rsplit_once('.').context("a token has three parts")?;
        let (_, signature) = other.to_str()?.rsplit_once('.').context("a token has three parts")?;
        Ok(format!("{start}.{signature}").parse()?)
    }
}

/// Fills the tables.
pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let (rounds, quick) = (report.size(ROUNDS, 1), report.quick);
    let note = "ingest-svc with the embedded stream, one vote a call over 8 connections, 32 calls in flight on each, every vote \
        synced to disk: with identity, and in turns without. The client makes its tokens on the other core. The ratio is the \
        median of nine.";
    let columns = ["credential", "off, CPU µs a call", "with it, CPU µs a call", "with / off (CPU)"];
    let table = report.table("Calls of one vote with identity", note, &columns);
    let forms = [
        With::Unread,
        With::Key,
        With::OwnToken,
        With::KnownToken,
        With::LimitedToken,
        With::NewHs256,
        With::NewEs256,
        With::WrongEs256,
    ];
    for with in forms {
        table.row(compare(with, Form::Calls, rounds, quick)?);
    }
    let note = "As above, with client-streamed messages of 100 votes over 8 streams of one connection.";
    let columns = ["credential", "off, CPU µs a vote", "with it, CPU µs a vote", "with / off (CPU)"];
    let table = report.table("Streamed votes with identity", note, &columns);
    table.row(compare(With::Key, Form::Streams, rounds, quick)?);
    Ok(())
}

/// How votes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// One call for each.
    Calls,
    /// In streams.
    Streams,
}

fn compare(with: With, form: Form, rounds: usize, quick: bool) -> anyhow::Result<[Cell; 4]> {
    let total = if form == Form::Calls { CALLS } else { STREAMED };
    let total = if quick { total / 50 } else { total };
    let cores = Cores::new()?;
    let (off, on) = (Subject::start(&cores, With::Nothing, form)?, Subject::start(&cores, with, form)?);
    let turns = Turns::take(&off, &on, total, rounds, quick)?;
    Ok([
        with.name().into(),
        number(median(turns.first.iter().map(|run| run.cpu)), 2),
        number(median(turns.second.iter().map(|run| run.cpu)), 2),
        number(turns.median_of(|off, on| on / off), 2),
    ])
}

/// A server that is measured in turns with another one.
struct Subject {
    /// Dropped before the server ends, which waits for its connections.
    runtime: tokio::runtime::Runtime,
    server: Server,
    sender: Sender,
    form: Form,
}

impl Subject {
    fn start(cores: &Cores, with: With, form: Form) -> anyhow::Result<Self> {
        let limits = with == With::LimitedToken;
        let options = Options { identity: !matches!(with, With::Nothing | With::Unread), limits, ..Options::default() };
        let server = cores.start(|| Server::start_with(Kind::Ingest, options))??;
        let sender = Sender::new(format!("http://{}", server.ingest), with)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, server, sender, form })
    }
}

impl turns::Subject for Subject {
    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        self.server.cpu_seconds()
    }

    fn send(&self, votes: usize) -> anyhow::Result<()> {
        let taken = self.runtime.block_on(async {
            match self.form {
                Form::Calls => self.sender.call(votes).await,
                Form::Streams => self.sender.stream(votes).await,
            }
        })?;
        let with = self.sender.with;
        let expected = if with == With::WrongEs256 { 0 } else { votes as u64 };
        anyhow::ensure!(taken == expected, "{}: {taken} of {votes} votes were accepted, not {expected}", with.name());
        Ok(())
    }

    fn multiple(&self) -> usize {
        if self.form == Form::Streams { CONNECTIONS * PER_MESSAGE } else { 1 }
    }
}

/// Sends votes with credentials.
struct Sender {
    url: String,
    with: With,
    signer: Signer,
    known: Vec<AsciiMetadataValue>,
}

impl Sender {
    fn new(url: String, with: With) -> anyhow::Result<Self> {
        let signer = Signer::new()?;
        let known = (0..TOKENS).map(|_| signer.token(Algorithm::HS256)).collect::<Result<_, _>>()?;
        Ok(Self { url, with, signer, known })
    }

    /// The credential of a call.
    fn credential(&self, connection: usize, call: usize) -> anyhow::Result<Option<AsciiMetadataValue>> {
        Ok(match self.with {
            With::Nothing => None,
            With::Key => Some(format!("Bearer {RELAY}").parse()?),
            With::OwnToken => Some(self.known[connection % TOKENS].clone()),
            With::Unread | With::KnownToken | With::LimitedToken => Some(self.known[call % TOKENS].clone()),
            With::NewHs256 => Some(self.signer.token(Algorithm::HS256)?),
            With::NewEs256 => Some(self.signer.token(Algorithm::ES256)?),
            With::WrongEs256 => Some(self.signer.wrong()?),
        })
    }

    fn request<M>(&self, message: M, connection: usize, call: usize) -> anyhow::Result<Request<M>> {
        let mut request = Request::new(message);
        if let Some(credential) = self.credential(connection, call)? {
            request.metadata_mut().insert("authorization", credential);
        }
        Ok(request)
    }

    fn messages(votes: usize, count: usize) -> Vec<VotesMessage> {
        let mut rng = StdRng::seed_from_u64(votes as u64);
        (0..count).map(|_| votes::message(&mut rng, votes)).collect()
    }

    /// Casts votes with one call each. Returns the number of accepted ones.
    async fn call(&self, total: usize) -> anyhow::Result<u64> {
        let prepared = Self::messages(1, TOKENS);
        let mut connections = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            connections.push(IngestServiceClient::connect(self.url.clone()).await?);
        }
        let calls = connections.into_iter().enumerate().map(|(connection, client)| {
            let prepared = &prepared;
            let calls = (connection..total).step_by(CONNECTIONS).map(move |at| {
                let mut client = client.clone();
                async move {
                    let request = self.request(prepared[at % prepared.len()].clone(), connection, at)?;
                    match client.cast_vote(request).await {
                        Ok(_) => anyhow::Ok(1),
                        Err(status) if status.code() == Code::Unauthenticated => Ok(0),
                        // Connections with wrong signatures end, and the client opens others.
                        Err(_) if self.with == With::WrongEs256 => Ok(0),
                        Err(status) => Err(status.into()),
                    }
                }
            });
            stream::iter(calls).buffer_unordered(IN_FLIGHT).try_fold(0, async |sum, one| Ok(sum + one))
        });
        Ok(try_join_all(calls).await?.into_iter().sum())
    }

    /// Casts votes in streams of one connection. Returns the number of accepted ones.
    async fn stream(&self, total: usize) -> anyhow::Result<u64> {
        let client = IngestServiceClient::connect(self.url.clone()).await?;
        let (prepared, messages) = (Self::messages(PER_MESSAGE, 1_000), total / PER_MESSAGE / CONNECTIONS);
        let streams = (0..CONNECTIONS).map(|_| {
            let (mut client, prepared) = (client.clone(), prepared.clone());
            async move {
                let messages = (0..messages).map(move |at| prepared[at % prepared.len()].clone());
                let request = self.request(tokio_stream::iter(messages), 0, 0)?;
                anyhow::Ok(client.cast_votes(request).await?.into_inner().accepted)
            }
        });
        Ok(try_join_all(streams).await?.into_iter().sum())
    }
}
