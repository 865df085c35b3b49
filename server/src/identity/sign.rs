//! Makes tokens and secrets, for those who have no issuer of their own.
//!
//! Owns what a token of ours says, and where randomness comes from. Must never sign for an issuer that the auth file does
//! not name, nor with a key that would not check the token. Must never show a key in a text for people.

use std::{fmt, path::Path, sync::Arc};

use jsonwebtoken::{
    Algorithm, EncodingKey, Header, encode,
    jwk::{Jwk, JwkSet, PublicKeyUse},
};
use ring::{
    digest,
    rand::{SecureRandom, SystemRandom},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Map, Value};
use votestream_core::model::{hex::to_hex, poll::check_user_id, user_id::uuid_text};

use super::{
    issuer::Issuer,
    reload::Files,
    revoked::Revoked,
    rules::Rules,
    scope::{SCOPES_MAX, Scopes},
    signature::install,
    unix_now,
    verify::BEARER_BYTES_MAX,
};
use crate::files::read_file;

/// Bytes of a secret: as many as the hash that it is used with.
const SECRET_BYTES: usize = 32;
/// Largest file with a private key, in bytes.
const KEY_FILE_BYTES_MAX: u64 = 64 << 10;
/// Begins every bearer secret, so that people and programs that search for secrets in files know one.
const SECRET_PREFIX: &str = "votestream-";

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The auth file, or a file that it names, is wrong.
    #[error("the auth file cannot be used:\n  {}", .0.join("\n  "))]
    AuthFile(Vec<String>),
    /// No issuer of the file has a key that can sign.
    #[error(
        "{file}: no issuer has a secret to sign with: expected an [[issuer]] whose keys are a file with a key of the kind \
         \"oct\" and whose algorithms have HS256 (`votestream auth init` writes one), or a private key by --key"
    )]
    NoSecret {
        /// The auth file.
        file: String,
    },
    /// The issuer cannot sign; the text says why.
    #[error("issuer {iss}: {reason}")]
    Issuer {
        /// Its name.
        iss: String,
        /// Why it cannot.
        reason: String,
    },
    /// The file does not name the issuer.
    #[error("{file} has no issuer {iss:?}; it has {}", listed(.known))]
    UnknownIssuer {
        /// The auth file.
        file: String,
        /// The issuer that was asked for.
        iss: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// Several issuers could sign.
    #[error("{file} has several issuers that could sign, choose one: {}", listed(.issuers))]
    Ambiguous {
        /// The auth file.
        file: String,
        /// Their names.
        issuers: Vec<String>,
    },
    /// The private key cannot be used.
    #[error("{path}: {reason}")]
    Key {
        /// Its file.
        path: String,
        /// Why not.
        reason: String,
    },
    /// The token would be refused.
    #[error("{0}")]
    Claims(String),
    /// The system gave no random numbers.
    #[error("the system has no random numbers")]
    Randomness,
    /// The library refused.
    #[error("cannot sign: {0}")]
    Library(#[from] jsonwebtoken::errors::Error),
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// What a token says.
#[derive(Clone, Copy, Debug)]
pub struct Claims<'a> {
    /// The voter.
    pub user: Option<&'a str>,
    /// What it may do.
    pub scopes: &'a Scopes,
    /// When it expires, in seconds since 1970.
    pub expires_at: u64,
    /// From when on it is valid, in seconds since 1970.
    pub not_before: Option<u64>,
    /// Its name, by which it can be revoked.
    pub id: Option<&'a str>,
}

/// Signs tokens for one issuer of an auth file.
pub struct Signer {
    issuer: Arc<Issuer>,
    header: Header,
    key: EncodingKey,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("iss", &self.issuer.rule.iss).finish_non_exhaustive()
    }
}

impl Signer {
    /// Signs with a secret that an issuer of the file has in its file of keys.
    ///
    /// `iss` chooses the issuer, if there are several; `kid` the secret.
    ///
    /// # Errors
    ///
    /// If there is none, or more than one.
    pub fn with_secret(auth: &Path, iss: Option<&str>, kid: Option<&str>) -> Result<Self, SignError> {
        let issuers = issuers(auth, iss)?;
        let file = auth.display().to_string();
        let mut signers: Vec<Self> = issuers.into_iter().filter_map(|issuer| Self::of_secret(issuer, kid)).collect();
        match (signers.pop(), signers.is_empty()) {
            (Some(signer), true) => Ok(signer),
            (None, _) => Err(match (iss, kid) {
                (Some(iss), _) => {
                    let reason = "it has no such secret to sign with: its keys must be a file with a key of the kind \
                                  \"oct\", and its algorithms must have HS256; or give a private key by --key";
                    SignError::Issuer { iss: iss.into(), reason: reason.into() }
                }
                (None, _) => SignError::NoSecret { file },
            }),
            (Some(last), false) => {
                let issuers = signers.iter().chain([&last]).map(|signer| signer.issuer.rule.iss.clone()).collect();
                Err(SignError::Ambiguous { file, issuers })
            }
        }
    }

    /// The first secret of the issuer, or the one of this name.
    fn of_secret(issuer: Arc<Issuer>, kid: Option<&str>) -> Option<Self> {
        let hmac = |algorithm: &&Algorithm| matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512);
        issuer.file()?;
        let found = issuer.keys_of_file().into_iter().find_map(|(name, algorithms, key)| {
            let algorithm = *algorithms.iter().find(hmac)?;
            if kid.is_some() && kid != name.as_deref() {
                return None;
            }
            Some((name, algorithm, EncodingKey::from_secret(key.try_get_as_bytes().ok()?)))
        });
        let (name, algorithm, key) = found?;
        let header = Header { kid: name, ..Header::new(algorithm) };
        Some(Self { issuer, header, key })
    }

    /// Signs by ES256 with a private key, in PKCS#8 and PEM. `kid` is only needed if the issuer's keys are at a URL:
    /// in a file, the key that belongs to this one is found.
    ///
    /// # Errors
    ///
    /// If the key cannot be used, or would not be accepted.
    pub fn with_private_key(auth: &Path, iss: Option<&str>, path: &Path, kid: Option<&str>) -> Result<Self, SignError> {
        let wrong = |reason: String| SignError::Key { path: path.display().to_string(), reason };
        let pem = read_file(path, KEY_FILE_BYTES_MAX).map_err(|error| wrong(error.to_string()))?;
        let expected = "expected a private key for ES256 in PKCS#8 and PEM, such as `openssl genpkey -algorithm EC -pkeyopt \
                        ec_paramgen_curve:P-256` makes";
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| wrong(expected.into()))?;
        let der = der.secret_pkcs8_der();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &SystemRandom::new());
        let public = pair.map_err(|_| wrong(expected.into()))?.public_key().as_ref().to_vec();
        let mut found = Vec::new();
        let mut reasons = Vec::new();
        for issuer in issuers(auth, iss)? {
            match Self::of_private_key(issuer, der, &public, kid) {
                Ok(signer) => found.push(signer),
                Err(reason) => reasons.push(reason),
            }
        }
        let file = auth.display().to_string();
        match (found.pop(), found.is_empty()) {
            (Some(signer), true) => Ok(signer),
            (None, _) => Err(SignError::AuthFile(reasons)),
            (Some(last), false) => {
                let issuers = found.iter().chain([&last]).map(|signer| signer.issuer.rule.iss.clone()).collect();
                Err(SignError::Ambiguous { file, issuers })
            }
        }
    }

    fn of_private_key(issuer: Arc<Issuer>, der: &[u8], public: &[u8], kid: Option<&str>) -> Result<Self, String> {
        let iss = &issuer.rule.iss;
        if !issuer.rule.algorithms.contains(&Algorithm::ES256) {
            return Err(format!("issuer {iss}: its algorithms do not have ES256"));
        }
        let kid = if issuer.file().is_some() {
            let keys = issuer.keys_of_file();
            let own = keys.into_iter().find(|(_, algorithms, key)| {
                algorithms.contains(&Algorithm::ES256) && key.try_get_as_bytes().is_ok_and(|key| key == public)
            });
            own.ok_or_else(|| format!("issuer {iss}: none of its keys belongs to this private key"))?.0
        } else {
            kid.map(str::to_owned)
        };
        let header = Header { kid, ..Header::new(Algorithm::ES256) };
        Ok(Self { header, key: EncodingKey::from_ec_der(der), issuer })
    }

    /// Name of the issuer.
    pub fn issuer(&self) -> &str {
        &self.issuer.rule.iss
    }

    /// Those of these scopes that no token of the issuer can have.
    pub fn uncovered(&self, scopes: &Scopes) -> Vec<String> {
        self.issuer.rule.scopes.uncovered(scopes)
    }

    /// Signs a token.
    ///
    /// # Errors
    ///
    /// If the token would be refused for its form.
    pub fn sign(&self, claims: Claims<'_>) -> Result<String, SignError> {
        let rule = &self.issuer.rule;
        if claims.scopes.len() > SCOPES_MAX {
            let message = format!("{} scopes are too many, the limit is {SCOPES_MAX}", claims.scopes.len());
            return Err(SignError::Claims(message));
        }
        let mut body = Map::new();
        if let Some(user) = claims.user {
            check_user_id(user.as_bytes()).map_err(|invalid| SignError::Claims(invalid.to_string()))?;
            body.insert(rule.user_claim.clone(), user.into());
        }
        // After the user's claim: no name of a claim may stand in for these.
        body.insert("iss".into(), rule.iss.clone().into());
        body.insert("aud".into(), rule.audiences.first().cloned().unwrap_or_default().into());
        body.insert("scope".into(), claims.scopes.to_string().into());
        body.insert("iat".into(), unix_now().into());
        body.insert("exp".into(), claims.expires_at.into());
        if let Some(not_before) = claims.not_before {
            body.insert("nbf".into(), not_before.into());
        }
        if let Some(id) = claims.id {
            body.insert("jti".into(), id.into());
        }
        let token = encode(&self.header, &Value::Object(body), &self.key)?;
        if token.len() > BEARER_BYTES_MAX {
            let message = format!("the token would have {} bytes, the limit is {BEARER_BYTES_MAX}", token.len());
            return Err(SignError::Claims(message));
        }
        Ok(token)
    }
}

/// The issuers of an auth file: all of them, or the one of this name.
fn issuers(auth: &Path, iss: Option<&str>) -> Result<Vec<Arc<Issuer>>, SignError> {
    install();
    let (_, rules) = Files::open(auth.to_path_buf(), None).map_err(SignError::AuthFile)?;
    let Some(iss) = iss else { return Ok(rules.issuers) };
    let (found, others): (Vec<_>, Vec<_>) = rules.issuers.into_iter().partition(|issuer| issuer.rule.iss == iss);
    if found.is_empty() {
        let known = others.iter().map(|issuer| issuer.rule.iss.clone()).collect();
        return Err(SignError::UnknownIssuer { file: auth.display().to_string(), iss: iss.into(), known });
    }
    Ok(found)
}

/// Checks the text of an auth file that would be stored at this path.
///
/// # Errors
///
/// Everything that is wrong.
pub fn check_auth_file(text: &str, path: &Path) -> Result<(), Vec<String>> {
    install();
    Rules::read(text, path, Revoked::default(), None).map(drop)
}

/// Random bytes.
fn random<const N: usize>() -> Result<[u8; N], SignError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| SignError::Randomness)?;
    Ok(bytes)
}

/// A file of keys (JWKS) with one new secret for HS256.
///
/// # Errors
///
/// If the system has no random numbers.
pub fn new_key_set() -> Result<String, SignError> {
    let secret = EncodingKey::from_secret(&random::<SECRET_BYTES>()?);
    let mut key = Jwk::from_encoding_key(&secret, Algorithm::HS256)?;
    key.common.key_id = Some(to_hex(&random::<4>()?));
    key.common.public_key_use = Some(PublicKeyUse::Signature);
    let set = JwkSet { keys: vec![key] };
    serde_json::to_string_pretty(&set).map_err(|error| SignError::Claims(error.to_string()))
}

/// A user nobody has been before: a random UUID (RFC 9562, section 5.4).
///
/// # Errors
///
/// If the system has no random numbers.
pub fn random_user() -> Result<String, SignError> {
    let mut bytes = random::<16>()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(uuid_text(bytes).map(char::from).iter().collect())
}

/// A bearer secret, for a `[[key]]`.
pub struct Secret {
    /// The secret itself, for its owner only.
    pub text: String,
    /// Its SHA-256 in hex, for the auth file.
    pub sha256: String,
}

impl Secret {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// If the system has no random numbers.
    pub fn random() -> Result<Self, SignError> {
        let text = format!("{SECRET_PREFIX}{}", to_hex(&random::<SECRET_BYTES>()?));
        let sha256 = to_hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
        Ok(Self { text, sha256 })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("sha256", &self.sha256).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, header};

    use std::path::PathBuf;

    use super::*;
    use crate::{
        Auth, Caller, Identity,
        identity::{Action, verify::verify},
    };

    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
        MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgd0kwmHOOaeLSDymR\n\
        o4NJgfIjVICIUkuQQWqCmAzLesKhRANCAAQrcmov31aSoIHmE9psvr6+vH8BrtOE\n\
        jtJZcOOBYRyB57PDIfCBeqf/0+ysR2hpWNn7KnxHhzeWejWAO8FDWP6I\n-----END PRIVATE KEY-----\n";
    const PUBLIC: &str = r#"{"keys": [
        {"kty": "EC", "crv": "P-256", "kid": "other", "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
         "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"},
        {"kty": "EC", "crv": "P-256", "kid": "own", "x": "K3JqL99WkqCB5hPabL6-vrx_Aa7ThI7SWXDjgWEcgec",
         "y": "s8Mh8IF6p__T7KxHaGlY2fsqfEeHN5Z6NYA7wUNY_og"}]}"#;

    /// An auth file with these issuers, beside files of keys.
    fn files(issuers: &[(&str, &str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let mut text = String::new();
        for (at, (iss, algorithm, keys)) in issuers.iter().enumerate() {
            std::fs::write(directory.path().join(format!("{at}.json")), keys).unwrap();
            text.push_str(&format!(
                "[[issuer]]\niss = \"{iss}\"\naud = [\"a\", \"b\"]\nkeys = \"{at}.json\"\nalgorithms = [\"{algorithm}\"]\n\
                 user = \"name\"\nscopes = [\"vote:show-*\", \"read:*\"]\nnamespace = \"{iss}\"\n"
            ));
        }
        let path = directory.path().join("auth.toml");
        std::fs::write(&path, text).unwrap();
        (directory, path)
    }

    /// Whoever the server sees in a token.
    fn caller(auth: &Path, token: &str) -> Result<Caller, String> {
        let identity = Identity::open(&Auth::File { file: auth.into(), revoked: None }).unwrap();
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap())]);
        verify(&identity.0.unwrap(), &headers, None, None).map_err(|not_yet| match not_yet {
            super::super::verify::NotYet::Denied(denied) => denied.to_string(),
            super::super::verify::NotYet::Wait(_) => "wait".to_owned(),
        })
    }

    fn claims(scopes: &Scopes) -> Claims<'_> {
        Claims { user: Some("ada"), scopes, expires_at: unix_now() + 60, not_before: None, id: Some("t-1") }
    }

    #[test]
    fn the_server_accepts_what_is_signed_here() {
        let scopes = Scopes::parse(["vote:show-1", "vote:other"]).unwrap();
        let (_keep, auth) = files(&[("https://a", "HS256", &new_key_set().unwrap()), ("https://b", "ES256", PUBLIC)]);
        let private = auth.with_file_name("private.pem");
        std::fs::write(&private, PRIVATE).unwrap();
        for signer in [
            Signer::with_secret(&auth, None, None).unwrap(),
            Signer::with_secret(&auth, Some("https://a"), None).unwrap(),
            Signer::with_private_key(&auth, None, &private, None).unwrap(),
        ] {
            assert_eq!(signer.uncovered(&scopes), ["vote:other"]);
            let token = signer.sign(claims(&scopes)).unwrap();
            let caller = caller(&auth, &token).unwrap();
            assert_eq!(caller.name(), format!("token {} ada", signer.issuer()));
            assert!(caller.may(Action::Vote, b"show-1") && !caller.may(Action::Vote, b"show-2"));
            assert!(!caller.may(Action::Vote, b"other"), "the issuer's scopes do not cover it");
        }
        let signer = Signer::with_secret(&auth, None, None).unwrap();
        let later = Claims { not_before: Some(unix_now() + 3_630), ..claims(&scopes) };
        assert_eq!(caller(&auth, &signer.sign(later).unwrap()).unwrap_err(), "the token is valid only in 60 minutes");
        let early = Claims { expires_at: unix_now() - 180, ..claims(&scopes) };
        assert_eq!(caller(&auth, &signer.sign(early).unwrap()).unwrap_err(), "the token expired 3 minutes ago");
    }

    #[test]
    fn what_would_be_refused_is_not_signed() {
        let (_keep, auth) = files(&[("https://a", "HS256", &new_key_set().unwrap())]);
        let signer = Signer::with_secret(&auth, None, None).unwrap();
        let many = vec!["vote:a"; SCOPES_MAX + 1];
        let many = Scopes::parse(many).unwrap();
        assert!(matches!(signer.sign(claims(&many)), Err(SignError::Claims(_))));
        let one = Scopes::parse(["vote:a"]).unwrap();
        for user in ["", "a\nb"] {
            let claims = Claims { user: Some(user), ..claims(&one) };
            assert!(matches!(signer.sign(claims), Err(SignError::Claims(_))), "{user:?}");
        }
        let long = "x".repeat(BEARER_BYTES_MAX);
        assert!(matches!(signer.sign(Claims { id: Some(&long), ..claims(&one) }), Err(SignError::Claims(_))));
    }

    #[test]
    fn whoever_cannot_sign_is_told_why() {
        let (_keep, auth) = files(&[("https://b", "ES256", PUBLIC)]);
        let text = Signer::with_secret(&auth, None, None).unwrap_err().to_string();
        assert!(text.contains("no issuer has a secret to sign with"), "{text}");
        let text = Signer::with_secret(&auth, Some("https://c"), None).unwrap_err().to_string();
        assert!(text.contains("no issuer \"https://c\"; it has https://b"), "{text}");
        let text = Signer::with_private_key(&auth, None, &auth, None).unwrap_err().to_string();
        assert!(text.contains("expected a private key for ES256"), "{text}");
        let text = Signer::with_secret(Path::new("/no/such"), None, None).unwrap_err().to_string();
        assert!(text.contains("/no/such: No such file"), "{text}");

        let one = new_key_set().unwrap();
        let (_keep, auth) = files(&[("https://a", "HS256", &one), ("https://b", "HS256", &one)]);
        let text = Signer::with_secret(&auth, None, None).unwrap_err().to_string();
        assert!(text.contains("https://a, https://b"), "{text}");
        let private = auth.with_file_name("private.pem");
        std::fs::write(&private, PRIVATE).unwrap();
        let text = Signer::with_private_key(&auth, None, &private, None).unwrap_err().to_string();
        assert!(text.contains("issuer https://a: its algorithms do not have ES256"), "{text}");
    }

    #[test]
    fn secrets_differ_and_are_known_by_their_hash() {
        let (one, two) = (Secret::random().unwrap(), Secret::random().unwrap());
        assert!(one.text != two.text && one.text.len() == SECRET_PREFIX.len() + 64);
        assert!(!format!("{one:?}").contains(&one.text));
        let (_keep, auth) = files(&[]);
        std::fs::write(&auth, format!("[[key]]\nid = \"k\"\nsha256 = \"{}\"\nscopes = [\"relay:*\"]\n", one.sha256))
            .unwrap();
        assert_eq!(caller(&auth, &one.text).unwrap().name(), "key k");
        assert!(caller(&auth, &two.text).is_err());
        // The pasted secret is not taken for its hash.
        let wrong = format!("[[key]]\nid = \"k\"\nsha256 = \"{}\"\nscopes = [\"relay:*\"]\n", one.text);
        assert!(check_auth_file(&wrong, &auth).is_err());
        let user = random_user().unwrap();
        let parts: Vec<usize> = user.split('-').map(str::len).collect();
        assert!(parts == [8, 4, 4, 4, 12] && user.as_bytes()[14] == b'4' && b"89ab".contains(&user.as_bytes()[19]));
    }
}
