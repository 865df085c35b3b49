//! Those who sign tokens, and their keys.
//!
//! Owns which key checks a token. Must never take an algorithm from a token that its issuer's entry does not name. Must
//! never use the keys of an issuer that has not been heard of for longer than [`Pace::stale`].

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse},
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    fetch::Url,
    scope::Scopes,
    signature::{Check, family},
};

/// Most keys of an issuer.
const KEYS_MAX: usize = 100;
/// By how much the clocks of an issuer and of this machine may differ, in seconds.
pub(super) const LEEWAY: u64 = 5;

/// How often the URLs of issuers are asked. Only tests have another one than the default.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How often keys are read again. An issuer publishes a new key before it signs with it.
    pub refresh: Duration,
    /// How often an unknown key, or a failure, makes the process ask again.
    pub ask_again: Duration,
    /// How long keys serve if their URL does not answer: long enough for an outage that people have to notice and repair.
    pub stale: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let refresh = Duration::from_secs(300);
        Self { refresh, ask_again: Duration::from_secs(30), stale: Duration::from_secs(24 * 3_600) }
    }
}

/// An `[[issuer]]` of the auth file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IssuerRule {
    pub(super) iss: String,
    pub(super) audiences: Vec<String>,
    pub(super) source: Source,
    pub(super) algorithms: Vec<Algorithm>,
    /// The claim that names the voter.
    pub(super) user_claim: String,
    /// The most that its tokens can have.
    pub(super) scopes: Scopes,
    pub(super) namespace: Arc<str>,
}

/// Where the keys of an issuer are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    File(PathBuf),
    Url(Url),
}

/// An issuer and its keys.
pub(super) struct Issuer {
    pub(super) rule: IssuerRule,
    keys: ArcSwap<Keys>,
    asking: Mutex<Asking>,
    /// Counts the answers of the URL, good and bad.
    pub(super) answers: watch::Sender<u64>,
}

/// The keys of an issuer.
#[derive(Clone, Default)]
pub(super) struct Keys {
    keys: Vec<Key>,
    /// When they were read; `None` if they never were.
    read_at: Option<Instant>,
}

#[derive(Clone)]
struct Key {
    kid: Option<String>,
    /// What checks a token of each of its algorithms, made once: the schedule of a secret costs as much as a short token.
    checks: Vec<(Algorithm, Arc<Check>)>,
    key: DecodingKey,
    /// The key as it was published, to see whether anything has changed.
    published: Jwk,
}

#[derive(Debug, Default)]
struct Asking {
    /// When the URL was last asked.
    asked_at: Option<Instant>,
    failed: bool,
    in_progress: bool,
    /// A token names a key that is not known.
    wanted: bool,
}

/// Why there is no key for a token.
pub(super) enum NoKey {
    /// The issuer has no such key.
    Unknown,
    /// Its keys could not be read.
    Unavailable,
    /// They are being read. Look again when the number has changed.
    Wait(watch::Receiver<u64>),
}

impl Issuer {
    pub(super) fn new(rule: IssuerRule, keys: Keys) -> Self {
        let keys = ArcSwap::from_pointee(keys);
        Self { rule, keys, asking: Mutex::default(), answers: watch::Sender::new(0) }
    }

    /// The file of its keys.
    pub(super) fn file(&self) -> Option<&PathBuf> {
        match &self.rule.source {
            Source::File(path) => Some(path),
            Source::Url(_) => None,
        }
    }

    /// What checks a token by the key that it names.
    pub(super) fn check(&self, kid: Option<&str>, algorithm: Algorithm, pace: Pace) -> Result<Arc<Check>, NoKey> {
        let keys = self.keys.load();
        let is_stale =
            matches!(self.rule.source, Source::Url(_)) && keys.read_at.is_none_or(|at| at.elapsed() > pace.stale);
        if !is_stale {
            let of = |key: &Key| key.checks.iter().find(|(fits, _)| *fits == algorithm).map(|(_, check)| check.clone());
            let mut fitting = keys.keys.iter().filter_map(|key| of(key).map(|check| (key, check)));
            let found = match kid {
                Some(kid) => fitting.find(|(key, _)| key.kid.as_deref() == Some(kid)),
                // Without a name there must be no choice.
                None => fitting.next().filter(|_| fitting.next().is_none()),
            };
            if let Some((_, check)) = found {
                return Ok(check);
            }
        }
        match self.want(pace) {
            Some(answers) => Err(NoKey::Wait(answers)),
            None if is_stale => Err(NoKey::Unavailable),
            None => Err(NoKey::Unknown),
        }
    }

    /// The keys that check its tokens, with their names, if they are in a file.
    pub(super) fn keys_of_file(&self) -> Vec<(Option<String>, Vec<Algorithm>, DecodingKey)> {
        let keys = self.keys.load();
        keys.keys.iter().map(|key| (key.kid.clone(), key.algorithms().collect(), key.key.clone())).collect()
    }

    /// Asks for the keys again, unless that was done a moment ago.
    fn want(&self, pace: Pace) -> Option<watch::Receiver<u64>> {
        if matches!(self.rule.source, Source::File(_)) {
            return None;
        }
        let mut asking = self.asking.lock();
        let may_ask = asking.in_progress || asking.asked_at.is_none_or(|at| at.elapsed() >= pace.ask_again);
        may_ask.then(|| {
            asking.wanted = true;
            self.answers.subscribe()
        })
    }

    /// The URL, if it is time to ask it. The caller must report the answer.
    pub(super) fn due(&self, pace: Pace) -> Option<Url> {
        let Source::Url(url) = &self.rule.source else { return None };
        let mut asking = self.asking.lock();
        let pause = if asking.failed || asking.wanted { pace.ask_again } else { pace.refresh };
        if asking.in_progress || asking.asked_at.is_some_and(|at| at.elapsed() < pause) {
            return None;
        }
        asking.asked_at = Some(Instant::now());
        asking.in_progress = true;
        Some(url.clone())
    }

    /// Takes the answer of the URL. Returns whether a key that served before does not any more.
    pub(super) fn answered(&self, answer: Result<(Keys, Vec<String>), String>) -> bool {
        let mut withdrawn = false;
        let failed = answer.is_err();
        match answer {
            Ok((keys, wrong)) => {
                // One bad key must not keep the issuer from changing the others, nor from withdrawing one.
                if !wrong.is_empty() {
                    tracing::warn!(
                        issuer = self.rule.iss,
                        wrong = wrong.join("; "),
                        "keys of an issuer cannot be trusted and are left out"
                    );
                }
                // That is how an issuer withdraws its only key.
                if keys.is_empty() {
                    tracing::warn!(
                        issuer = self.rule.iss,
                        "an issuer has no key for its algorithms: its tokens do not count"
                    );
                }
                let before = self.keys.swap(Arc::new(keys));
                let now = self.keys.load();
                withdrawn = before.keys.iter().any(|old| now.keys.iter().all(|new| new.published != old.published));
            }
            Err(reason) => {
                tracing::warn!(
                    issuer = self.rule.iss,
                    reason,
                    "cannot read the keys of an issuer; the old ones serve on"
                );
            }
        }
        let mut asking = self.asking.lock();
        *asking = Asking { failed, in_progress: false, wanted: false, asked_at: asking.asked_at };
        drop(asking);
        self.answers.send_modify(|answers| *answers += 1);
        withdrawn
    }

    /// Its keys.
    pub(super) fn keys(&self) -> Keys {
        Keys::clone(&self.keys.load())
    }

    /// Takes the keys of a file that has changed. Whoever calls by a token of this issuer goes on.
    pub(super) fn set_keys(&self, keys: Keys) {
        self.keys.store(Arc::new(keys));
    }

    /// Whether its keys are those of this file's content.
    pub(super) fn has_keys(&self, keys: &Keys) -> bool {
        let published = |keys: &Keys| keys.keys.iter().map(|key| key.published.clone()).collect::<Vec<_>>();
        published(&self.keys.load()) == published(keys)
    }
}

impl Keys {
    /// Reads a JWKS (RFC 7517, section 5). Keys for other purposes and of unknown kinds are left out. So are those that
    /// nobody may trust, and what is wrong with them is returned beside the others.
    pub(super) fn read(json: &[u8], algorithms: &[Algorithm]) -> Result<(Self, Vec<String>), String> {
        // The error's own text would have a part of the file, which may be a secret.
        let wrong = |error: serde_json::Error| format!("not a JWKS: line {}, column {}", error.line(), error.column());
        let set: JwkSet = serde_json::from_slice(json).map_err(wrong)?;
        if set.keys.len() > KEYS_MAX {
            return Err(format!("it has {} keys, the limit is {KEYS_MAX}", set.keys.len()));
        }
        let found: Vec<Key> = set.keys.into_iter().filter_map(|jwk| Key::of(jwk, algorithms)).collect();
        let kids: Vec<_> = found.iter().filter_map(|key| key.kid.clone()).collect();
        let is_alone = |kid: &String| kids.iter().filter(|other| *other == kid).count() == 1;
        // Of the keys without a name. One that cannot be trusted does not hold up another.
        let unnamed = found.iter().filter(|key| key.kid.is_none() && key.check().is_ok());
        let without_kid: Vec<_> = unnamed.flat_map(Key::algorithms).collect();
        let is_only = |key: &Key| {
            key.algorithms().all(|algorithm| without_kid.iter().filter(|other| **other == algorithm).count() == 1)
        };
        let mut wrong = Vec::new();
        let mut usable = |key: &Key| {
            let check = key.check().and_then(|()| match &key.kid {
                Some(kid) if !is_alone(kid) => Err("another key has the same kid".into()),
                None if !is_only(key) => {
                    Err("another key has the same algorithm and no kid either, so no token can say which is meant"
                        .into())
                }
                Some(_) | None => Ok(()),
            });
            let name = key.kid.as_deref().unwrap_or("without kid");
            check.map_err(|what| wrong.push(format!("key {name}: {what}"))).is_ok()
        };
        let keys = found.into_iter().filter(&mut usable).collect();
        Ok((Self { keys, read_at: Some(Instant::now()) }, wrong))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl Key {
    fn algorithms(&self) -> impl Iterator<Item = Algorithm> {
        self.checks.iter().map(|(algorithm, _)| *algorithm)
    }

    fn of(jwk: Jwk, algorithms: &[Algorithm]) -> Option<Self> {
        if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
            return None;
        }
        let named = jwk.common.key_algorithm.map(|named| named.to_string());
        let fits = |algorithm: &Algorithm| {
            named.as_ref().is_none_or(|named| *named == format!("{algorithm:?}")) && fits(&jwk.algorithm, *algorithm)
        };
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        let check = |algorithm: Algorithm| Some((algorithm, Arc::new(Check::new(algorithm, &key).ok()?)));
        let checks: Vec<_> = algorithms.iter().copied().filter(fits).filter_map(check).collect();
        let kid = jwk.common.key_id.clone();
        (!checks.is_empty()).then_some(Self { kid, checks, key, published: jwk })
    }

    /// Whether it is a key that can be trusted: nobody can guess a long secret, and short keys can be computed.
    fn check(&self) -> Result<(), String> {
        let length = match self.key.kind() {
            DecodingKeyKind::SecretOrDer(bytes) => bytes.len(),
            DecodingKeyKind::RsaModulusExponent { n, .. } => n.iter().skip_while(|byte| **byte == 0).count(),
        };
        match self.key.family() {
            // RFC 7518, section 3.2: at least as long as the hash.
            AlgorithmFamily::Hmac if length < SECRET_BYTES_MIN => {
                Err(format!("its secret has {length} bytes, and needs {SECRET_BYTES_MIN}"))
            }
            // RFC 7518, section 3.3.
            AlgorithmFamily::Rsa if length < RSA_BYTES_MIN => {
                Err(format!("it has {} bits, and needs {}", length * 8, RSA_BYTES_MIN * 8))
            }
            AlgorithmFamily::Ec if ![EC_BYTES_P256, EC_BYTES_P384].contains(&length) => {
                Err("x or y has a wrong length".into())
            }
            AlgorithmFamily::Ed if length != ED_BYTES => Err("x has a wrong length".into()),
            AlgorithmFamily::Hmac | AlgorithmFamily::Rsa | AlgorithmFamily::Ec | AlgorithmFamily::Ed => Ok(()),
        }
    }
}

/// Shortest secret of a key for HMAC, and shortest modulus of one for RSA.
const SECRET_BYTES_MIN: usize = 32;
const RSA_BYTES_MIN: usize = 256;
/// Lengths of public keys: a point of the curve after one byte, or the point of Ed25519.
const EC_BYTES_P256: usize = 65;
const EC_BYTES_P384: usize = 97;
const ED_BYTES: usize = 32;

/// Whether a key is one of this algorithm.
fn fits(key: &AlgorithmParameters, algorithm: Algorithm) -> bool {
    let family = family(algorithm);
    if let AlgorithmParameters::EllipticCurve(key) = key {
        let curve = if algorithm == Algorithm::ES256 { EllipticCurve::P256 } else { EllipticCurve::P384 };
        return family == Some(AlgorithmFamily::Ec) && key.curve == curve;
    }
    if let AlgorithmParameters::OctetKeyPair(key) = key {
        return algorithm == Algorithm::EdDSA && key.curve == EllipticCurve::Ed25519;
    }
    match family {
        Some(AlgorithmFamily::Hmac) => matches!(key, AlgorithmParameters::OctetKey(_)),
        Some(AlgorithmFamily::Rsa) => matches!(key, AlgorithmParameters::RSA(_)),
        Some(AlgorithmFamily::Ec | AlgorithmFamily::Ed) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(keys: Value) -> (Vec<Option<String>>, Vec<String>) {
        let json = json!({ "keys": keys }).to_string();
        let (keys, wrong) = Keys::read(json.as_bytes(), &[Algorithm::HS256, Algorithm::EdDSA]).unwrap();
        (keys.keys.into_iter().map(|key| key.kid).collect(), wrong)
    }

    fn secret(kid: &str, letters: usize) -> Value {
        json!({"kty": "oct", "kid": kid, "k": "A".repeat(letters)})
    }

    #[test]
    fn keys_that_nobody_may_trust_are_left_out_and_named() {
        let point = json!({"kty": "OKP", "crv": "Ed25519", "kid": "c", "x": "A".repeat(43)});
        let others = json!({"kty": "RSA", "kid": "d", "n": "AQ", "e": "AQAB"});
        let (kids, wrong) = read(json!([secret("a", 43), secret("b", 22), point, others]));
        assert_eq!(kids, [Some("a".to_owned()), Some("c".to_owned())]);
        assert_eq!(wrong, ["key b: its secret has 16 bytes, and needs 32"]);
    }

    #[test]
    fn of_keys_without_a_name_there_is_one_for_each_algorithm() {
        let unnamed = |mut key: Value| {
            key.as_object_mut().unwrap().remove("kid");
            key
        };
        let point = json!({"kty": "OKP", "crv": "Ed25519", "x": "A".repeat(43)});
        let (kids, wrong) = read(json!([unnamed(secret("a", 43)), point, secret("b", 43)]));
        assert_eq!((kids, wrong), (vec![None, None, Some("b".to_owned())], vec![]));
        let (kids, wrong) = read(json!([unnamed(secret("a", 43)), point, unnamed(secret("b", 44))]));
        assert_eq!(kids, [None], "the point");
        assert!(
            wrong.len() == 2 && wrong[0].starts_with("key without kid: another key has the same algorithm"),
            "{wrong:?}"
        );
        let (kids, wrong) = read(json!([unnamed(secret("a", 43)), unnamed(secret("b", 22))]));
        assert_eq!(
            (kids, &wrong[..]),
            (vec![None], &["key without kid: its secret has 16 bytes, and needs 32".into()][..])
        );
    }

    #[test]
    fn of_keys_with_the_same_name_none_is_taken() {
        let (kids, wrong) = read(json!([secret("a", 43), secret("b", 43), secret("a", 44)]));
        assert_eq!(kids, [Some("b".to_owned())]);
        assert_eq!(wrong, ["key a: another key has the same kid"; 2]);
    }
}
