//! Signatures of tokens, checked and made by ring.
//!
//! Owns which algorithms there are, and which key fits which. Must never contain cryptography of its own: it only hands
//! bytes on. It is the provider of `jsonwebtoken`, whose own two would bring a second library for cryptography into the tree.

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::{ErrorKind, Result},
    signature::{Error, Signer, Verifier},
};
use ring::{
    hmac, rand,
    signature::{self as asymmetric, EcdsaKeyPair, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm},
};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: signer,
    verifier_factory: verifier,
    // Only needed to make a JWK from a key.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes ring the provider of `jsonwebtoken` in this process. Must be called before tokens are read or made.
pub fn install() {
    // Whoever was here before has installed the same one.
    PROVIDER.install_default().unwrap_or_default();
}

/// The family of an algorithm's keys; `None` if nothing here knows the algorithm.
pub(crate) fn family(algorithm: Algorithm) -> Option<AlgorithmFamily> {
    if of(&HMAC, algorithm).is_some() {
        Some(AlgorithmFamily::Hmac)
    } else if of(&RSA, algorithm).is_some() {
        Some(AlgorithmFamily::Rsa)
    } else if algorithm == Algorithm::EdDSA {
        Some(AlgorithmFamily::Ed)
    } else {
        of(&CURVES, algorithm).map(|_| AlgorithmFamily::Ec)
    }
}

const HMAC: [(Algorithm, &hmac::Algorithm); 3] = [
    (Algorithm::HS256, &hmac::HMAC_SHA256),
    (Algorithm::HS384, &hmac::HMAC_SHA384),
    (Algorithm::HS512, &hmac::HMAC_SHA512),
];
const RSA: [(Algorithm, &asymmetric::RsaParameters); 6] = [
    (Algorithm::RS256, &asymmetric::RSA_PKCS1_2048_8192_SHA256),
    (Algorithm::RS384, &asymmetric::RSA_PKCS1_2048_8192_SHA384),
    (Algorithm::RS512, &asymmetric::RSA_PKCS1_2048_8192_SHA512),
    (Algorithm::PS256, &asymmetric::RSA_PSS_2048_8192_SHA256),
    (Algorithm::PS384, &asymmetric::RSA_PSS_2048_8192_SHA384),
    (Algorithm::PS512, &asymmetric::RSA_PSS_2048_8192_SHA512),
];
const CURVES: [(Algorithm, &dyn VerificationAlgorithm); 3] = [
    (Algorithm::ES256, &asymmetric::ECDSA_P256_SHA256_FIXED),
    (Algorithm::ES384, &asymmetric::ECDSA_P384_SHA384_FIXED),
    (Algorithm::EdDSA, &asymmetric::ED25519),
];

/// The entry of an algorithm.
fn of<T: Copy>(table: &[(Algorithm, T)], algorithm: Algorithm) -> Option<T> {
    table.iter().find(|(known, _)| *known == algorithm).map(|(_, entry)| *entry)
}

/// Checks signatures of one algorithm with one key.
pub(crate) struct Check {
    algorithm: Algorithm,
    key: CheckKey,
}

enum CheckKey {
    Secret(hmac::Key),
    Rsa(&'static asymmetric::RsaParameters, DecodingKey),
    Curve(&'static dyn VerificationAlgorithm, DecodingKey),
}

impl Check {
    /// # Errors
    ///
    /// If the key is for another algorithm.
    pub(crate) fn new(algorithm: Algorithm, key: &DecodingKey) -> Result<Self> {
        // A public key must never be taken for a secret, nor the key of one family for that of another.
        if family(algorithm) != Some(key.family()) {
            return Err(ErrorKind::InvalidKeyFormat.into());
        }
        let key = if let Some(hash) = of(&HMAC, algorithm) {
            CheckKey::Secret(hmac::Key::new(*hash, key.try_get_as_bytes()?))
        } else if let Some(parameters) = of(&RSA, algorithm) {
            CheckKey::Rsa(parameters, key.clone())
        } else {
            CheckKey::Curve(of(&CURVES, algorithm).ok_or(ErrorKind::InvalidAlgorithm)?, key.clone())
        };
        Ok(Self { algorithm, key })
    }

    /// Whether a check costs less than a microsecond.
    pub(crate) fn is_cheap(&self) -> bool {
        matches!(self.key, CheckKey::Secret(_))
    }

    /// Whether the message was signed with this key.
    pub(crate) fn accepts(&self, message: &[u8], signature: &[u8]) -> bool {
        let checked = match &self.key {
            CheckKey::Secret(key) => hmac::verify(key, message, signature),
            CheckKey::Rsa(parameters, key) => match key.kind() {
                DecodingKeyKind::SecretOrDer(der) => {
                    UnparsedPublicKey::new(*parameters, der).verify(message, signature)
                }
                DecodingKeyKind::RsaModulusExponent { n, e } => {
                    RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
                }
            },
            CheckKey::Curve(algorithm, key) => {
                let Ok(key) = key.try_get_as_bytes() else { return false };
                UnparsedPublicKey::new(*algorithm, key).verify(message, signature)
            }
        };
        checked.is_ok()
    }
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    Ok(Box::new(Check::new(*algorithm, key)?))
}

impl Verifier<Vec<u8>> for Check {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        if self.accepts(message, signature) { Ok(()) } else { Err(Error::new()) }
    }
}

impl JwtVerifier for Check {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

/// Signs with one key.
struct Sign {
    algorithm: Algorithm,
    key: SignKey,
}

enum SignKey {
    Secret(hmac::Key),
    Curve(EcdsaKeyPair),
}

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    let algorithm = *algorithm;
    if family(algorithm) != Some(key.family()) {
        return Err(ErrorKind::InvalidKeyFormat.into());
    }
    let key = if let Some(hash) = of(&HMAC, algorithm) {
        SignKey::Secret(hmac::Key::new(*hash, key.as_bytes()))
    } else if algorithm == Algorithm::ES256 {
        let curve = &asymmetric::ECDSA_P256_SHA256_FIXED_SIGNING;
        let pair = EcdsaKeyPair::from_pkcs8(curve, key.as_bytes(), &rand::SystemRandom::new());
        SignKey::Curve(pair.map_err(|_| ErrorKind::InvalidEcdsaKey)?)
    } else {
        // Nothing here signs with other algorithms.
        return Err(ErrorKind::InvalidAlgorithm.into());
    };
    Ok(Box::new(Sign { algorithm, key }))
}

impl Signer<Vec<u8>> for Sign {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, Error> {
        match &self.key {
            SignKey::Secret(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
            SignKey::Curve(key) => {
                let signed = key.sign(&rand::SystemRandom::new(), message);
                signed.map(|signature| signature.as_ref().to_vec()).map_err(|_| Error::new())
            }
        }
    }
}

impl JwtSigner for Sign {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
