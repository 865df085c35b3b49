//! The files of TLS.
//!
//! Owns how they are read and what may be wrong with them. Must never take more memory than their bound, and never show
//! a key in an error.

use std::{
    fmt::{self, Display},
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use rustls::{
    InconsistentKeys, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    server::ResolvesServerCert,
    sign::{CertifiedKey, SigningKey, SingleCertAndKey},
};
use webpki::EndEntityCert;

use super::{
    TlsIdentity, TlsSource,
    identity::{end_of_ca, not_after},
};
use crate::files::read_file;

/// Largest file: more than a hundred certificates.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Names of a self-signed certificate. Nobody checks them.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The one provider of cryptography.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    PROVIDER.clone()
}

/// One of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFile {
    /// The server's certificate and its chain.
    Certificate,
    /// The key of that certificate.
    Key,
    /// The CA of client certificates.
    ClientCa,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError {
    /// Which file.
    pub file: TlsFile,
    /// Where it is; `None` for a certificate that is made at the start.
    pub path: Option<PathBuf>,
    /// What is wrong with it.
    pub reason: String,
}

impl Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{}: {}", path.display(), self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

impl std::error::Error for TlsError {}

impl TlsError {
    pub(super) fn of(source: &TlsSource, file: TlsFile, reason: impl Display) -> Self {
        let path = match (&source.identity, file) {
            (_, TlsFile::ClientCa) => source.client_ca.clone(),
            (TlsIdentity::Files { certificate, .. }, TlsFile::Certificate) => Some(certificate.clone()),
            (TlsIdentity::Files { key, .. }, TlsFile::Key) => Some(key.clone()),
            (TlsIdentity::SelfSigned, TlsFile::Certificate | TlsFile::Key) => None,
        };
        Self { file, path, reason: reason.to_string() }
    }
}

/// The content of a file, or why it cannot be read.
type Text = Result<Vec<u8>, String>;

/// What the files contain at present; `None` for a file that is not used.
#[derive(Hash)]
pub(super) struct Texts {
    identity: Option<(Text, Text)>,
    pub(super) client_ca: Option<Text>,
}

/// What the files mean.
pub(super) struct Material {
    pub(super) identity: Arc<dyn ResolvesServerCert>,
    /// When the certificate expires, in seconds since 1970.
    pub(super) not_after: u64,
    /// The CA of clients, and when the first of their certificates expires, in seconds since 1970.
    pub(super) client_ca: Option<(Arc<RootCertStore>, u64)>,
}

fn read(path: &Path) -> Text {
    read_file(path, FILE_BYTES_MAX).map_err(|error| format!("cannot be read: {error}"))
}

impl Texts {
    pub(super) fn read(source: &TlsSource) -> Self {
        let identity = match &source.identity {
            TlsIdentity::Files { certificate, key } => Some((read(certificate), read(key))),
            TlsIdentity::SelfSigned => None,
        };
        Self { identity, client_ca: source.client_ca.as_deref().map(read) }
    }

    /// Finds out what they mean, or everything that is wrong with them.
    pub(super) fn parse(&self, source: &TlsSource) -> Result<Material, Vec<TlsError>> {
        let mut errors = Vec::new();
        let mut note = |file, reason: String| errors.push(TlsError::of(source, file, reason));
        let identity = match &self.identity {
            None => self_signed().map_err(|reason| note(TlsFile::Certificate, reason)).ok(),
            Some((chain, key)) => {
                let chain = of(chain, certificates).map_err(|reason| note(TlsFile::Certificate, reason)).ok();
                let key = of(key, private_key).map_err(|reason| note(TlsFile::Key, reason)).ok();
                chain
                    .zip(key)
                    .and_then(|(chain, key)| certified(chain, key).map_err(|(file, reason)| note(file, reason)).ok())
            }
        };
        let client_ca = match &self.client_ca {
            None => Some(None),
            Some(text) => of(text, roots).map_err(|reason| note(TlsFile::ClientCa, reason)).ok().map(Some),
        };
        match identity.zip(client_ca) {
            Some(((identity, not_after), client_ca)) => {
                Ok(Material { identity: Arc::new(SingleCertAndKey::from(identity)), not_after, client_ca })
            }
            None => Err(errors),
        }
    }
}

fn of<T>(text: &Text, parse: impl FnOnce(&[u8]) -> Result<T, String>) -> Result<T, String> {
    text.as_ref().map_err(String::clone).and_then(|text| parse(text))
}

fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err("has no certificate in PEM (BEGIN CERTIFICATE)".into()),
        Ok(chain) => Ok(chain),
        Err(error) => Err(format!("is no PEM: {error}")),
    }
}

fn private_key(text: &[u8]) -> Result<Arc<dyn SigningKey>, String> {
    // The errors of the libraries are not shown: they may quote the file.
    let key = PrivateKeyDer::from_pem_slice(text)
        .map_err(|_| "has no private key in PEM (BEGIN PRIVATE KEY) without a pass phrase")?;
    loaded(key)
}

fn loaded(key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, String> {
    let loaded = provider().key_provider.load_private_key(key);
    loaded.map_err(|_| "has a key that cannot be used: expected RSA, P-256, P-384 or Ed25519".into())
}

/// The certificate with its key, and when it expires.
fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
) -> Result<(CertifiedKey, u64), (TlsFile, String)> {
    let leaf = chain.first().ok_or((TlsFile::Certificate, String::from("has no certificate")))?;
    let unreadable = |error| (TlsFile::Certificate, format!("its first certificate cannot be used: {error}"));
    let parsed = EndEntityCert::try_from(leaf).map_err(unreadable)?;
    // One that tells no time is not refused for it.
    let not_after = not_after(&parsed).unwrap_or(u64::MAX);
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err((TlsFile::Key, "does not fit the certificate".into()))
        }
        Ok(()) | Err(_) => Ok((certified, not_after)),
    }
}

/// The CA of clients, and when the first of their certificates expires.
fn roots(text: &[u8]) -> Result<(Arc<RootCertStore>, u64), String> {
    let (mut roots, mut first_end) = (RootCertStore::empty(), u64::MAX);
    for (at, certificate) in certificates(text)?.into_iter().enumerate() {
        let unusable = |error: &dyn Display| format!("has a certificate that cannot be used: {error}");
        let parsed = EndEntityCert::try_from(&certificate).map_err(|error| unusable(&error))?;
        // The library takes any certificate for that of a CA here, and its owner could issue others.
        let end = end_of_ca(&parsed).ok_or_else(|| {
            let number = at + 1;
            format!("its certificate {number} is not that of a CA (basicConstraints): it could not be told who issues others")
        })?;
        first_end = first_end.min(end);
        roots.add(certificate).map_err(|error| unusable(&error))?;
    }
    Ok((Arc::new(roots), first_end))
}

fn self_signed() -> Result<(CertifiedKey, u64), String> {
    let made = || {
        let key = rcgen::KeyPair::generate()?;
        let mut wanted = rcgen::CertificateParams::new(OWN_NAMES.map(String::from).to_vec())?;
        wanted.distinguished_name.push(rcgen::DnType::CommonName, "votestream");
        Ok((wanted.self_signed(&key)?, key))
    };
    let (certificate, key) =
        made().map_err(|error: rcgen::Error| format!("cannot make a self-signed certificate: {error}"))?;
    let key = loaded(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))?;
    certified(vec![certificate.der().clone()], key).map_err(|(_, reason)| reason)
}
