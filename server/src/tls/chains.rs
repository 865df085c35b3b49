//! How long the chains of client certificates may be.
//!
//! Owns the bound, and nothing of the verification itself, which is the library's. Must never let it begin with more.
//!
//! The library looks for a path from a certificate to a CA among those that the client has sent. If all of these have one name,
//! every order of them is a path, and each step reads a certificate again. Ten of them, which anybody can make, kept a core busy
//! for five seconds.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

/// Most certificates between that of a client and its CA. Usually there is one, and none or two. Four of one name make 64 paths.
pub(super) const INTERMEDIATES_MAX: usize = 4;

/// A client has sent more certificates than [`INTERMEDIATES_MAX`] beside its own.
#[derive(Debug, thiserror::Error)]
#[error("the client sends {0} certificates beside its own, the limit is {INTERMEDIATES_MAX}")]
struct TooLong(usize);

/// Verifies client certificates as `verifier` does, if their chain is short.
#[derive(Debug)]
pub(super) struct ShortChains {
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for ShortChains {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if intermediates.len() > INTERMEDIATES_MAX {
            let too_long = OtherError(Arc::new(TooLong(intermediates.len())));
            return Err(CertificateError::Other(too_long).into());
        }
        self.verifier.verify_client_cert(end_entity, intermediates, now)
    }

    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
