//! A stack whose callers must say who they are, in this process.
//!
//! Owns its auth files and the keys of their issuer, so that a test can change both while calls run. Must never check a
//! credential itself.

use std::{path::PathBuf, time::Duration};

use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Request;
use votestream_core::model::hex::to_hex;
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_proto::v1::{ClosePollRequest, CreatePollRequest, GetFinalResultsRequest, PollOption};
use votestream_server::{Auth, CallLimits, Identity, Quotas};
use votestream_stack::StackConfig;

use crate::{
    issuer::{Issuer, now},
    stack::{Stack, TEST_BOUNDS},
};

/// The issuer of [`House::token`].
pub const ISS: &str = "https://login.test";
/// The secret of the key `manager`, which may do everything but vote.
pub const MANAGER: &str = "the-secret-of-the-manager";
/// The secret of the key `relay-1`.
pub const RELAY: &str = "the-secret-of-the-first-relay";
/// The secret of the key `relay-2`.
pub const OTHER_RELAY: &str = "the-secret-of-the-second-relay";

/// The stack and everything that belongs to it.
pub struct House {
    /// The running services.
    pub stack: Stack,
    /// Whoever signs tokens.
    pub issuer: Issuer,
    engine: EmbeddedEngine,
    dir: TempDir,
}

/// An `[[issuer]]` whose keys are at this place.
pub fn issuer_entry(keys: &str) -> String {
    format!(
        "[[issuer]]\niss = \"{ISS}\"\naud = [\"votestream\"]\nkeys = \"{keys}\"\nalgorithms = [\"ES256\"]\n\
         scopes = [\"vote:*\", \"relay:*\", \"read:*\"]\n"
    )
}

/// What an auth file says of a secret.
pub fn sha256_of(secret: &str) -> String {
    to_hex(digest(&SHA256, secret.as_bytes()).as_ref())
}

/// Longest time from closing a poll to its final result: many votes may still have to be stored.
const FINAL_MAX: Duration = Duration::from_secs(300);

/// A `[[key]]` with this secret.
pub fn key_entry(id: &str, secret: &str, scopes: &str) -> String {
    let sha256 = sha256_of(secret);
    format!("[[key]]\nid = \"{id}\"\nsha256 = \"{sha256}\"\nscopes = [{scopes}]\n")
}

/// The entries of the manager and of both relays.
pub fn keys() -> String {
    key_entry("manager", MANAGER, "\"manage:*\"")
        + &key_entry("relay-1", RELAY, "\"relay:*\"")
        + &key_entry("relay-2", OTHER_RELAY, "\"relay:*\"")
}

/// A request with a bearer credential.
///
/// # Panics
///
/// If the credential cannot be a header.
pub fn bearing<M>(credential: &str, message: M) -> Request<M> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {credential}").parse().unwrap());
    request
}

impl House {
    /// Starts a stack whose issuer has its keys in a file.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub async fn open(limits: CallLimits) -> Self {
        let issuer = Issuer::new("es1");
        let jwks = json!({"keys": [issuer.jwk()]}).to_string();
        Self::open_with(issuer, &(issuer_entry("jwks.json") + &keys()), &jwks, limits, Identity::open).await
    }

    /// Starts a stack with this auth file.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub async fn open_with(
        issuer: Issuer,
        auth: &str,
        jwks: &str,
        limits: CallLimits,
        identity: impl FnOnce(&Auth) -> Result<Identity, Vec<String>>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("jwks.json"), jwks).unwrap();
        std::fs::write(dir.path().join("auth.toml"), auth).unwrap();
        std::fs::write(dir.path().join("revoked.toml"), "").unwrap();
        let files = Auth::File { file: dir.path().join("auth.toml"), revoked: Some(dir.path().join("revoked.toml")) };
        let identity = identity(&files).unwrap();
        let options = EmbeddedOptions { bounds: TEST_BOUNDS, ..EmbeddedOptions::default() };
        let engine = EmbeddedEngine::open(&dir.path().join("data"), options).unwrap();
        let stack = Stack::start_with(engine.ports(), TEST_BOUNDS, |config| {
            let before = std::mem::replace(config, StackConfig::one_machine());
            *config = before.with_identity(identity).with_quotas(Quotas::new(&limits));
        });
        Self { stack: stack.await, issuer, engine, dir }
    }

    /// Where a file of the house is: `auth.toml`, `revoked.toml` or `jwks.json`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Replaces a file, as an editor does: in one step.
    ///
    /// # Panics
    ///
    /// If the disk is full.
    pub fn write(&self, name: &str, content: &str) {
        let new = self.dir.path().join("new");
        std::fs::write(&new, content).unwrap();
        std::fs::rename(new, self.file(name)).unwrap();
    }

    /// A token for an hour, with these changes to its claims.
    ///
    /// # Panics
    ///
    /// If the changes are no object.
    pub fn token(&self, changes: &Value) -> String {
        self.issuer.token(&claims(changes))
    }

    /// Creates a poll with the options `a` and `b`.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub async fn create_poll(&self, id: &str) {
        let option = |id: &str| PollOption { option_id: id.into(), title: String::new() };
        let request = CreatePollRequest {
            poll_id: id.into(),
            options: vec![option("a"), option("b")],
            closes_at: Some(prost_types::Timestamp { seconds: now() + 3_600, nanos: 0 }),
            ..CreatePollRequest::default()
        };
        self.stack.polls().await.create_poll(bearing(MANAGER, request)).await.unwrap();
    }

    /// Closes a poll and returns the votes of its final result, which a recount confirms.
    ///
    /// # Panics
    ///
    /// If that fails, or if the recount differs.
    pub async fn finish(&self, poll: &str) -> u64 {
        let close = ClosePollRequest { poll_id: poll.into() };
        self.stack.polls().await.close_poll(bearing(MANAGER, close)).await.unwrap();
        let request = GetFinalResultsRequest { poll_id: poll.into(), wait: true };
        let mut results = self.stack.results().await;
        let waiting = results.get_final_results(bearing(MANAGER, request));
        let result = tokio::time::timeout(FINAL_MAX, waiting).await;
        let result = result.expect("the result never becomes final").unwrap().into_inner();
        let recount = votestream_proto::v1::RecountRequest { poll_id: poll.into() };
        let recount = results.recount(bearing(MANAGER, recount)).await.unwrap().into_inner();
        assert!(recount.matches, "{result:?} {recount:?}");
        result.total_votes
    }

    /// Stops the services in good order.
    ///
    /// # Panics
    ///
    /// If one of them fails.
    pub async fn close(self) {
        self.stack.stop().await;
        let engine = self.engine;
        tokio::task::spawn_blocking(move || engine.close()).await.unwrap();
    }
}

/// Claims for an hour, with changes. A claim that becomes `null` is left out.
fn claims(changes: &Value) -> Value {
    let mut claims = json!({
        "iss": ISS, "aud": "votestream", "sub": "ada", "exp": now() + 3_600, "iat": now(), "scope": "vote:*",
    });
    if let (Some(claims), Some(changes)) = (claims.as_object_mut(), changes.as_object()) {
        claims.extend(changes.clone());
        claims.retain(|_, value| !value.is_null());
    }
    claims
}
