//! Certificates for measurements: keys that protect nothing.

use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// Files of a folder.
pub(crate) const CERTIFICATE: &str = "cert.pem";
pub(crate) const KEY: &str = "key.pem";
pub(crate) const CA: &str = "ca.pem";

/// A server's files, and what its clients need. All keys are P-256, as most of the web has them.
pub(crate) struct Certificates {
    folder: TempDir,
    ca: String,
    client: (String, String),
}

impl Certificates {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut root = CertificateParams::new(Vec::new())?;
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.distinguished_name.push(DnType::CommonName, "bench");
        let ca = root.self_signed(&key)?.pem();
        let issuer = Issuer::new(root, key);
        let issue = |name: &str, usage| {
            let key = KeyPair::generate()?;
            let mut wanted = CertificateParams::new(vec![name.to_owned()])?;
            wanted.extended_key_usages = vec![usage];
            anyhow::Ok((wanted.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
        };
        let (certificate, key) = issue("127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth)?;
        let client = issue("relay.example", ExtendedKeyUsagePurpose::ClientAuth)?;
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join(CERTIFICATE), certificate)?;
        fs::write(folder.path().join(KEY), key)?;
        fs::write(folder.path().join(CA), &ca)?;
        Ok(Self { folder, ca, client })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Settings of a client, which may show a certificate.
    pub(crate) fn client(&self, is_mutual: bool) -> ClientTlsConfig {
        let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca));
        let (certificate, key) = &self.client;
        if is_mutual { config.identity(Identity::from_pem(certificate, key)) } else { config }
    }
}
