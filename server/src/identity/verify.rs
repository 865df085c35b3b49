//! Turns the credential of a request into a caller.
//!
//! Owns the order of the checks: everything that costs little comes before a signature. Must never let a token through
//! whose issuer, audience, times, algorithm and signature were not all checked.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, header};
use jsonwebtoken::{
    decode_header,
    errors::{Error, ErrorKind},
};
use parking_lot::Mutex;
use tokio::sync::watch;
use votestream_core::observe::metrics::Denial;

use super::{
    Inner,
    caller::{Caller, Credential, Denied, Source, expired, in_words, user_of},
    claims::{Claim, Claims},
    issuer::{LEEWAY, NoKey},
    known::Head,
    rules::{Digest, Rules},
    scope::Scopes,
    unix_now,
};
use crate::ClientCertificate;

/// Longest bearer credential, in bytes.
pub(crate) const BEARER_BYTES_MAX: usize = 4_096;

/// So many wrong signatures in a row end a connection. Signatures are what costs most, and an honest client that has a
/// wrong token does not try another one each time.
pub(crate) const FAILURES_MAX: u32 = 20;

/// The last credential of a connection: most callers use one for all their calls.
#[derive(Default)]
pub(crate) struct Remembered {
    last: Mutex<Option<Last>>,
    /// Signatures that were wrong, or were not checked any more, since the last good credential.
    failures: AtomicU32,
}

impl fmt::Debug for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remembered")
    }
}

struct Last {
    /// The rules by which it was verified.
    version: u64,
    header: HeaderValue,
    credential: Arc<Credential>,
}

/// Why there is no caller yet.
pub(super) enum NotYet {
    Denied(Denied),
    /// The keys of the issuer are being read. Try again when the number has changed.
    Wait(watch::Receiver<u64>),
}

impl From<Denied> for NotYet {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

/// Finds out who sent a request.
pub(super) fn verify(
    inner: &Arc<Inner>,
    headers: &HeaderMap,
    certificate: Option<&ClientCertificate>,
    remembered: Option<&Remembered>,
) -> Result<Caller, NotYet> {
    let (rules, now) = (inner.rules.load(), unix_now());
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let credential = match (given.next(), given.next()) {
        (None, _) => without_header(&rules, certificate)?,
        (Some(header), None) => match remembered.and_then(|remembered| remembered.get(header, rules.version)) {
            Some(known) => known,
            None => {
                let credential = bearer(&rules, header, now, remembered.is_none_or(Remembered::may_check))?;
                if let Some(remembered) = remembered {
                    remembered.set(header, rules.version, &credential);
                }
                credential
            }
        },
        (Some(_), Some(_)) => return Err(malformed("the header authorization is given twice").into()),
    };
    // What is remembered was checked by the same rules. Only time has passed since.
    credential.check_expiry(now)?;
    Ok(Caller::known(credential, inner.clone()))
}

impl Remembered {
    fn get(&self, header: &HeaderValue, version: u64) -> Option<Arc<Credential>> {
        let last = self.last.lock();
        let last = last.as_ref().filter(|last| last.version == version && last.header == header)?;
        Some(last.credential.clone())
    }

    fn set(&self, header: &HeaderValue, version: u64, credential: &Arc<Credential>) {
        *self.last.lock() = Some(Last { version, header: header.clone(), credential: credential.clone() });
        if self.may_check() {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Whether signatures of unknown tokens are checked on this connection. Once it is to end, they are not.
    fn may_check(&self) -> bool {
        self.failures.load(Ordering::Relaxed) < FAILURES_MAX
    }

    /// Counts a signature that was wrong, or was not checked any more. Returns how many there were in a row.
    pub(crate) fn failed(&self) -> u32 {
        self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }
}

fn malformed(message: &'static str) -> Denied {
    Denied::new(Denial::Malformed, message)
}

/// A caller by its certificate, or without any credential.
fn without_header(rules: &Rules, certificate: Option<&ClientCertificate>) -> Result<Arc<Credential>, Denied> {
    let names = certificate.map_or(&[][..], |certificate| &certificate.names);
    let rule = rules.certificates.iter().find(|rule| names.contains(&rule.san));
    if let Some((rule, certificate)) = rule.zip(certificate) {
        let source = Source::Certificate(rule.clone());
        let credential = Credential::of(source, rule.namespace.clone(), rule.scopes.clone());
        return Ok(Arc::new(Credential { expires_at: Some(certificate.not_after), ..credential }));
    }
    rules.anonymous.clone().ok_or_else(|| {
        Denied::new(Denial::Missing, "a credential is missing: send a token or a key as authorization: Bearer ...")
    })
}

/// A caller by its key or its token.
fn bearer(rules: &Rules, header: &HeaderValue, now: u64, may_check: bool) -> Result<Arc<Credential>, NotYet> {
    let bytes = header.as_bytes();
    let secret = bytes
        .split_at_checked(7)
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, secret)| secret.trim_ascii());
    let secret = secret.filter(|secret| !secret.is_empty());
    let secret =
        secret.ok_or_else(|| malformed("the header authorization must be: Bearer, a blank, and a token or a key"))?;
    if secret.len() > BEARER_BYTES_MAX {
        return Err(Denied::new(Denial::Malformed, format!("the token is longer than {BEARER_BYTES_MAX} bytes")).into());
    }
    // The digest, not the secret, is looked up: how long that takes tells nothing about the secret.
    let digest = digest_of(secret);
    if let Some(rule) = rules.keys.get(&digest) {
        let source = Source::Key(rule.clone());
        return Ok(Arc::new(Credential::of(source, rule.namespace.clone(), rule.scopes.clone())));
    }
    if let Some(credential) = rules.known.credential(&digest) {
        return Ok(credential);
    }
    if !may_check {
        let message = "too many tokens with wrong signatures came on this connection: connect again";
        return Err(Denied::new(Denial::NotChecked, message).into());
    }
    let (credential, is_cheap) = token(rules, secret, &digest, now)?;
    credential.check(rules, now)?;
    let credential = Arc::new(credential);
    rules.known.remember(&digest, &credential, is_cheap);
    Ok(credential)
}

/// By what a secret or a token is looked up.
pub(super) fn digest_of(secret: &[u8]) -> Digest {
    let mut digest = [0; 32];
    digest.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, secret).as_ref());
    digest
}

/// The three parts of a token: its head, its claims and its signature.
fn parts(token: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let mut parts = token.split(|byte| *byte == b'.');
    let three = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some(three)
}

/// What the first part of a token says, which is this text.
fn read_head(token: &[u8], text: &[u8]) -> Result<Arc<Head>, Denied> {
    let head = decode_header(token).map_err(|error| unreadable(&error))?;
    if head.crit.is_some() {
        return Err(Denied::new(Denial::Algorithm, "the token has critical extensions, and none is known"));
    }
    Ok(Arc::new(Head { text: text.into(), algorithm: head.alg, kid: head.kid.map(Into::into) }))
}

/// Verifies a token. Also returns whether its signature is cheap.
///
/// `jsonwebtoken::decode` would read its head twice and its claims twice more, which costs as much as everything else. So the
/// library reads each head once, `claims` the rest, and the rules of the library's `Validation` stand here. The tests compare the
/// two.
fn token(rules: &Rules, token: &[u8], digest: &Digest, now: u64) -> Result<(Credential, bool), NotYet> {
    let Some((head_text, claims, signature)) = parts(token) else {
        return Err(Denied::new(Denial::UnknownKey, "the credential is neither a token nor a key that is known").into());
    };
    let signed = &token[..head_text.len() + 1 + claims.len()];
    let known_head = rules.known.head(head_text);
    let head = known_head.clone().map_or_else(|| read_head(token, head_text), Ok)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| malformed("the token cannot be read"))?;
    let claims = Claims::read(&claims).map_err(|_| malformed("the token cannot be read"))?;
    let iss = claims.get("iss").and_then(Claim::text).unwrap_or_default();
    let issuer = rules.issuers.iter().find(|issuer| issuer.rule.iss == iss);
    let issuer =
        issuer.ok_or_else(|| Denied::new(Denial::UnknownIssuer, "the token's issuer (iss) is not trusted here"))?;
    if !issuer.rule.algorithms.contains(&head.algorithm) {
        let message = format!("the token's algorithm {:?} is not one of its issuer's", head.algorithm);
        return Err(Denied::new(Denial::Algorithm, message).into());
    }
    let expires_at = claims.seconds("exp", f64::floor)?;
    let expires_at =
        expires_at.ok_or_else(|| Denied::new(Denial::Claims, "the token does not say when it expires (exp)"))?;
    if now >= expires_at.saturating_add(LEEWAY) {
        return Err(expired("token", now - expires_at).into());
    }
    // The library rounds.
    let starts_at = claims.seconds("nbf", f64::round)?.unwrap_or(0);
    if starts_at > now.saturating_add(LEEWAY) {
        let message = format!("the token is valid only in {}", in_words(starts_at - now));
        return Err(Denied::new(Denial::NotYetValid, message).into());
    }
    let issued_at = claims.seconds("iat", f64::floor)?;
    if let Some(at) = issued_at.filter(|at| *at > now.saturating_add(LEEWAY)) {
        // A revocation of what was issued before would miss it.
        let message = format!("the token was issued {} in the future", in_words(at - now));
        return Err(Denied::new(Denial::NotYetValid, message).into());
    }
    let check = issuer.check(head.kid.as_deref(), head.algorithm, rules.pace).map_err(|no_key| match no_key {
        NoKey::Wait(answers) => NotYet::Wait(answers),
        NoKey::Unknown => Denied::new(
            Denial::UnknownKey,
            match head.kid {
                Some(_) => "the token's key (kid) is not one of its issuer's for its algorithm",
                None => "the token names no key (kid), and its issuer has not just one for its algorithm",
            },
        )
        .into(),
        NoKey::Unavailable => {
            Denied::new(Denial::KeysUnavailable, "the keys of the token's issuer cannot be read at the moment").into()
        }
    })?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| malformed("the token cannot be read"))?;
    if !check.accepts(signed, &signature) {
        return Err(Denied::new(Denial::Signature, "the token's signature is wrong").into());
    }
    if known_head.is_none() {
        rules.known.remember_head(&head);
    }
    claims.check_audience(&issuer.rule.audiences)?;
    let scopes = match claims.get("scope") {
        Some(Claim::Text(text)) => Scopes::of_claim(text),
        None => Some(Scopes::default()),
        Some(_) => None,
    };
    let scopes = scopes.ok_or_else(|| {
        Denied::new(Denial::Claims, "the token's scope must be a text with at most 64 scopes of this service")
    })?;
    let user = claims.get(&issuer.rule.user_claim).map(user_of).transpose()?;
    let source = Source::Token {
        issuer: issuer.clone(),
        digest: *digest,
        jti: match claims.get("jti") {
            None => None,
            Some(Claim::Text(jti)) => Some(jti.as_ref().into()),
            // Otherwise nobody could revoke it.
            Some(_) => return Err(Denied::new(Denial::Claims, "the token's jti is not a text").into()),
        },
        issued_at,
    };
    let namespace = issuer.rule.namespace.clone();
    Ok((Credential { source, namespace, user, scopes, expires_at: Some(expires_at) }, check.is_cheap()))
}

fn unreadable(error: &Error) -> Denied {
    // `none` is no algorithm that could be read.
    let is_of_algorithm = matches!(error.kind(), ErrorKind::InvalidAlgorithmName | ErrorKind::InvalidAlgorithm);
    malformed(if is_of_algorithm { "the token's algorithm is not known" } else { "the token cannot be read" })
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeSet};

    use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
    use proptest::{
        prelude::*,
        sample::select,
        test_runner::{Config, TestRunner},
    };
    use ring::hmac;
    use serde::de::IgnoredAny;

    use super::*;
    use crate::identity::{revoked::Revoked, signature::install};

    const SECRET: &[u8] = &[7; 32];

    fn rules() -> Rules {
        let dir = tempfile::tempdir().unwrap();
        let keys = format!(r#"{{"keys": [{{"kty": "oct", "kid": "k", "k": "{}"}}]}}"#, URL_SAFE_NO_PAD.encode(SECRET));
        std::fs::write(dir.path().join("keys.json"), keys).unwrap();
        let text = "[[issuer]]\niss = \"us\"\naud = [\"a\", \"b\"]\nkeys = \"keys.json\"\nalgorithms = [\"HS256\"]\n\
                    scopes = [\"read:*\"]\n";
        Rules::read(text, &dir.path().join("auth.toml"), Revoked::default(), None).unwrap_or_else(|_| unreachable!())
    }

    /// What `jsonwebtoken` makes of a token by the same rules.
    fn library(token: &[u8]) -> Result<(), ErrorKind> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_issuer(&["us"]);
        validation.set_audience(&["a", "b"]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let decoded = decode::<IgnoredAny>(token, &DecodingKey::from_secret(SECRET), &validation);
        decoded.map(drop).map_err(|error| error.kind().clone())
    }

    /// Values of a claim, as JSON, with the moment from which seconds are counted. Most tokens get the first one.
    fn value(claim: &'static str) -> impl Strategy<Value = Option<(&'static str, i64)>> {
        let odd: &[Option<(&str, i64)>] = match claim {
            "iss" => &[Some((r#""them""#, 0)), Some((r#"["us"]"#, 0)), Some(("7", 0)), Some(("null", 0)), None],
            "aud" => &[
                Some((r#""c""#, 0)),
                Some((r#"["c", "b"]"#, 0)),
                Some((r#"["c", "c"]"#, 0)),
                Some((r#"["a", 7]"#, 0)),
                Some((r#"[["a"]]"#, 0)),
                Some((r#"{"a": "a"}"#, 0)),
                Some(("[]", 0)),
                Some(("null", 0)),
                Some((r#""\u0061""#, 0)),
                None,
            ],
            _ => &[
                Some(("at", -1_000)),
                Some(("at", -3)),
                Some(("at", 3)),
                Some(("at", 1_000)),
                Some(("at.7", -5)),
                Some(("at.7", 5)),
                Some(("at.7", -1_000)),
                Some(("at.7", 1_000)),
                Some((r#""at""#, 1_000)),
                Some(("-1", 0)),
                Some(("1e300", 0)),
                Some(("18446744073709551615", 0)),
                Some(("null", 0)),
                Some(("[]", 0)),
                None,
            ],
        };
        let usual = match claim {
            "iss" => Some((r#""us""#, 0)),
            "aud" => Some((r#""a""#, 0)),
            "exp" => Some(("at", 600)),
            _ => None,
        };
        prop_oneof![4 => Just(usual), 1 => select(odd)]
    }

    /// Tokens. One byte of some was changed after they were signed.
    fn tokens(now: u64) -> impl Strategy<Value = Vec<u8>> {
        const CLAIMS: [&str; 5] = ["iss", "aud", "exp", "nbf", "iat"];
        let values = CLAIMS.map(value);
        let twice = prop_oneof![8 => Just(None), 1 => select(&CLAIMS[..]).prop_map(Some)];
        let head = prop_oneof![
            6 => Just(r#"{"alg":"HS256","kid":"k"}"#),
            1 => select(&[
                r#"{"alg":"HS256"}"#,
                r#"{"alg":"HS256","kid":"other"}"#,
                r#"{"alg":"HS384","kid":"k"}"#,
                r#"{"alg":"ES256","kid":"k"}"#,
                r#"{"alg":"none"}"#,
                r#"{"alg":"HS256","crit":["x"],"x":1}"#,
                r#"{"alg":"HS256","alg":"HS256"}"#,
            ][..]),
        ];
        let change = prop_oneof![4 => Just(None), 1 => any::<(prop::sample::Index, u8)>().prop_map(Some)];
        (head, values, twice, change).prop_map(move |(head, values, twice, change)| {
            let mut members = Vec::new();
            for (name, value) in CLAIMS.into_iter().zip(values) {
                let Some((text, offset)) = value else { continue };
                let member =
                    format!("\"{name}\":{}", text.replace("at", &now.saturating_add_signed(offset).to_string()));
                members.extend(vec![member; if twice == Some(name) { 2 } else { 1 }]);
            }
            let payload = format!("{{{}}}", members.join(","));
            let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(head), URL_SAFE_NO_PAD.encode(payload));
            let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), signed.as_bytes());
            let mut token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)).into_bytes();
            if let Some((at, byte)) = change {
                let at = at.index(token.len());
                token[at] = byte;
            }
            token
        })
    }

    #[test]
    fn what_the_library_refuses_is_refused_here_for_the_same_reason() {
        install();
        let (rules, now) = (rules(), unix_now());
        let seen = RefCell::new(BTreeSet::new());
        let mut runner = TestRunner::new(Config { cases: 20_000, failure_persistence: None, ..Config::default() });
        let compared = runner.run(&tokens(now), |bytes| {
            let ours = match token(&rules, &bytes, &[0; 32], unix_now()) {
                Ok(_) => None,
                Err(NotYet::Denied(denied)) => Some(denied.reason),
                Err(NotYet::Wait(_)) => return Err(TestCaseError::fail("keys of a file are never waited for")),
            };
            let theirs = library(&bytes);
            match &theirs {
                // Ours are stricter: a claim that comes twice, an issuer in a list, a token from the future, a key that has
                // another name, extensions. But what is signed and meant for us by the library is so for us.
                Ok(()) => prop_assert!(!matches!(ours, Some(Denial::Signature | Denial::Audience)), "{ours:?}"),
                Err(kind) => {
                    prop_assert!(ours.is_some(), "the library refuses it: {kind:?}");
                    let without = ErrorKind::MissingRequiredClaim("aud".to_owned());
                    let same = [
                        (ErrorKind::InvalidSignature, Denial::Signature),
                        (ErrorKind::InvalidAudience, Denial::Audience),
                        (without, Denial::Audience),
                    ];
                    let same = same.into_iter().find(|(known, _)| known == kind).map(|(_, reason)| reason);
                    // Here the key's name and all times come before the signature.
                    let earlier = matches!(ours, Some(Denial::Signature | Denial::Audience));
                    prop_assert!(!earlier || same == ours, "{ours:?}, the library: {kind:?}");
                }
            }
            seen.borrow_mut().insert(format!("{ours:?} {}", theirs.is_ok()));
            Ok(())
        });
        compared.unwrap_or_else(|failed| panic!("{failed}"));
        let seen = seen.into_inner();
        for expected in ["None true", "Some(Signature) false", "Some(Audience) false", "Some(Malformed) true"] {
            assert!(seen.contains(expected), "{expected} never happened: {seen:?}");
        }
    }
}
