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

use http::{HeaderMap, HeaderValue, header};
use jsonwebtoken::{
    Algorithm,
    dangerous::insecure_decode_claims,
    decode, decode_header,
    errors::{Error, ErrorKind},
};
use parking_lot::Mutex;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use tokio::sync::watch;
use votestream_core::observe::metrics::Denial;

use super::{
    Inner,
    caller::{Caller, Credential, Denied, Source, expired, in_words, user_of},
    issuer::{LEEWAY, NoKey},
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
    let rule = rules.certificates.iter().find(|rule| names.iter().any(|name| name.eq_ignore_ascii_case(&rule.san)));
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
    if let Some(credential) = rules.remembered.get(&digest) {
        return Ok(credential);
    }
    if !may_check {
        let message = "too many tokens with wrong signatures came on this connection: connect again";
        return Err(Denied::new(Denial::NotChecked, message).into());
    }
    let credential = Arc::new(token(rules, secret, &digest, now)?);
    credential.check(rules, now)?;
    rules.remembered.insert(digest, credential.clone());
    Ok(credential)
}

fn digest_of(secret: &[u8]) -> Digest {
    let mut digest = [0; 32];
    digest.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, secret).as_ref());
    digest
}

/// Verifies a token.
fn token(rules: &Rules, token: &[u8], digest: &Digest, now: u64) -> Result<Credential, NotYet> {
    if token.iter().filter(|byte| **byte == b'.').count() != 2 {
        return Err(Denied::new(Denial::UnknownKey, "the credential is neither a token nor a key that is known").into());
    }
    let head = decode_header(token).map_err(|error| unreadable(&error))?;
    if head.crit.is_some() {
        return Err(Denied::new(Denial::Algorithm, "the token has critical extensions, and none is known").into());
    }
    let claims: Map<String, Value> = insecure_decode_claims(token).map_err(|error| unreadable(&error))?;
    let iss = claims.get("iss").and_then(Value::as_str).unwrap_or_default();
    let issuer = rules.issuers.iter().find(|issuer| issuer.rule.iss == iss);
    let issuer =
        issuer.ok_or_else(|| Denied::new(Denial::UnknownIssuer, "the token's issuer (iss) is not trusted here"))?;
    let validation = issuer.validation(head.alg).ok_or_else(|| {
        Denied::new(Denial::Algorithm, format!("the token's algorithm {:?} is not one of its issuer's", head.alg))
    })?;
    let expires_at = seconds(&claims, "exp")?;
    let expires_at =
        expires_at.ok_or_else(|| Denied::new(Denial::Claims, "the token does not say when it expires (exp)"))?;
    if now >= expires_at.saturating_add(LEEWAY) {
        return Err(expired("token", now - expires_at).into());
    }
    let starts_at = seconds(&claims, "nbf")?.unwrap_or(0);
    if starts_at > now.saturating_add(LEEWAY) {
        let message = format!("the token is valid only in {}", in_words(starts_at - now));
        return Err(Denied::new(Denial::NotYetValid, message).into());
    }
    let issued_at = seconds(&claims, "iat")?;
    if let Some(at) = issued_at.filter(|at| *at > now.saturating_add(LEEWAY)) {
        // A revocation of what was issued before would miss it.
        let message = format!("the token was issued {} in the future", in_words(at - now));
        return Err(Denied::new(Denial::NotYetValid, message).into());
    }
    let key = issuer.key(head.kid.as_deref(), head.alg, rules.pace).map_err(|no_key| match no_key {
        NoKey::Wait(answers) => NotYet::Wait(answers),
        NoKey::Unknown => Denied::new(Denial::UnknownKey, "the token's key (kid) is not one of its issuer's").into(),
        NoKey::Unavailable => {
            Denied::new(Denial::KeysUnavailable, "the keys of the token's issuer cannot be read at the moment").into()
        }
    })?;
    decode::<IgnoredAny>(token, &key, validation).map_err(|error| refused(&error, head.alg))?;
    let scopes = match claims.get("scope") {
        Some(Value::String(text)) => Scopes::of_claim(text),
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
            Some(Value::String(jti)) => Some(jti.as_str().into()),
            // Otherwise nobody could revoke it.
            Some(_) => return Err(Denied::new(Denial::Claims, "the token's jti is not a text").into()),
        },
        issued_at,
    };
    let namespace = issuer.rule.namespace.clone();
    Ok(Credential { source, namespace, user, scopes, expires_at: Some(expires_at) })
}

/// A moment of a claim, in seconds since 1970. Fractions are allowed (RFC 7519, section 2).
fn seconds(claims: &Map<String, Value>, name: &str) -> Result<Option<u64>, Denied> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let fraction = || value.as_f64().filter(|seconds| (0.0..1e12).contains(seconds)).map(|seconds| seconds as u64);
    match value.as_u64().or_else(fraction) {
        Some(seconds) => Ok(Some(seconds)),
        None => Err(Denied::new(Denial::Claims, format!("the token's {name} is not a time"))),
    }
}

fn unreadable(error: &Error) -> Denied {
    // `none` is no algorithm that could be read.
    let is_of_algorithm = matches!(error.kind(), ErrorKind::InvalidAlgorithmName | ErrorKind::InvalidAlgorithm);
    malformed(if is_of_algorithm { "the token's algorithm is not known" } else { "the token cannot be read" })
}

fn refused(error: &Error, algorithm: Algorithm) -> Denied {
    let kind = error.kind();
    if let ErrorKind::MissingRequiredClaim(claim) = kind {
        let reason = if claim == "aud" { Denial::Audience } else { Denial::Claims };
        return Denied::new(reason, format!("the token has no {claim}"));
    }
    let known = [
        (ErrorKind::InvalidAudience, Denial::Audience, "the token is for another audience (aud)"),
        (ErrorKind::ExpiredSignature, Denial::Expired, "the token has expired"),
        (ErrorKind::ImmatureSignature, Denial::NotYetValid, "the token is not valid yet"),
        (ErrorKind::InvalidSignature, Denial::Signature, "the token's signature is wrong"),
    ];
    match known.into_iter().find(|(known, ..)| known == kind) {
        Some((_, reason, message)) => Denied::new(reason, message),
        None => Denied::new(Denial::Signature, format!("the token cannot be checked by {algorithm:?}")),
    }
}
