//! An issuer of tokens, as another program would be one.
//!
//! Owns keys and signatures. Must never use the code that checks them: every token is put together by hand, right or wrong.

use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use serde_json::{Value, json};

use crate::hostile::wire;

/// A time in seconds since 1970.
pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}

/// Base64 as in tokens (RFC 4648, section 5), without padding.
pub fn base64url(bytes: &[u8]) -> String {
    let text = String::from_utf8(wire::base64(bytes)).unwrap_or_default();
    text.trim_end_matches('=').replace('+', "-").replace('/', "_")
}

/// An issuer with one key for ES256 and one secret for HS256.
pub struct Issuer {
    /// The name of its key for ES256.
    pub kid: String,
    pair: EcdsaKeyPair,
    secret: [u8; 32],
}

impl Issuer {
    /// An issuer with new keys.
    ///
    /// # Panics
    ///
    /// If the system has no random numbers.
    pub fn new(kid: &str) -> Self {
        let (random, curve) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let key = EcdsaKeyPair::generate_pkcs8(curve, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(curve, key.as_ref(), &random).unwrap();
        let mut secret = [0; 32];
        random.fill(&mut secret).unwrap();
        Self { kid: kid.into(), pair, secret }
    }

    /// The public key: a point of the curve.
    pub fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// Its public key, as a JWKS has it.
    pub fn jwk(&self) -> Value {
        let (x, y) = self.public()[1..].split_at(32);
        json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.kid,
            "x": base64url(x), "y": base64url(y),
        })
    }

    /// Its secret, as a JWKS has it. The name is that of the key with `-secret` after it.
    pub fn secret_jwk(&self) -> Value {
        json!({"kty": "oct", "alg": "HS256", "kid": format!("{}-secret", self.kid), "k": base64url(&self.secret)})
    }

    /// A token with this head and these claims, signed by ES256 whatever the head says.
    ///
    /// # Panics
    ///
    /// If the system has no random numbers.
    pub fn sign(&self, head: &Value, claims: &Value) -> String {
        let message = message(head, claims);
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", base64url(signature.as_ref()))
    }

    /// A token with these claims.
    pub fn token(&self, claims: &Value) -> String {
        self.sign(&json!({"alg": "ES256", "typ": "JWT", "kid": self.kid}), claims)
    }

    /// A token with these claims, signed by HS256 with its secret.
    pub fn secret_token(&self, claims: &Value) -> String {
        sign_by_hmac(&json!({"alg": "HS256", "kid": format!("{}-secret", self.kid)}), claims, &self.secret)
    }
}

fn message(head: &Value, claims: &Value) -> String {
    format!("{}.{}", base64url(head.to_string().as_bytes()), base64url(claims.to_string().as_bytes()))
}

/// A token that is signed with any bytes as a secret.
pub fn sign_by_hmac(head: &Value, claims: &Value, secret: &[u8]) -> String {
    let message = message(head, claims);
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", base64url(signature.as_ref()))
}

/// A token without a signature.
pub fn unsigned(claims: &Value) -> String {
    format!("{}.", message(&json!({"alg": "none", "typ": "JWT"}), claims))
}
