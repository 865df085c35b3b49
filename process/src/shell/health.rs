//! `SERVICE health`: asks the service that runs with the same configuration whether it serves. For health checks of
//! containers whose image holds only the service.
//!
//! Must never start anything, and never wait longer than a health check does. Must never send anything secret: with TLS,
//! it takes any certificate. The one of the service is for the names by which clients know it, and without TLS nothing is
//! checked either: who listens on this port of this machine is the service.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tonic::transport::{ClientTlsConfig, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{ProcessError, answer, print_out};
use crate::config::{Program, Refused, socket_addr, switch};

/// First argument that makes the program ask instead of serve.
pub(super) const COMMAND: &str = "health";
/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) fn main(program: &Program, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let (addr, tls) = match address(program, arguments) {
        Ok(address) => address,
        Err(refused) => return answer(program, refused),
    };
    let asked = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))
        .and_then(|runtime| runtime.block_on(ask(addr, tls)));
    match asked {
        Ok(()) => {
            print_out(&format!("{} at {addr} serves\n", program.name));
            ExitCode::SUCCESS
        }
        Err(reason) => {
            print_out(&format!("{} at {addr}: {reason}\n", program.name));
            ExitCode::from(ProcessError::start(reason).code())
        }
    }
}

/// The address at which the service can be reached on its own machine, and whether it speaks TLS.
fn address(program: &Program, arguments: impl Iterator<Item = OsString>) -> Result<(SocketAddr, bool), Refused> {
    let mut values = program.read(arguments, std::env::vars_os())?;
    let listen = values.get("listen", socket_addr);
    // The files are the service's affair.
    let certificate = values.optional("tls-cert", |_| Ok(()));
    let self_signed = values.optional("tls-self-signed", switch);
    let tls = certificate.flatten().is_some() || self_signed.flatten().unwrap_or_default();
    let mut addr = values.finish(listen)?;
    if addr.ip().is_unspecified() {
        addr.set_ip(if addr.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) });
    }
    Ok((addr, tls))
}

async fn ask(addr: SocketAddr, tls: bool) -> Result<(), String> {
    let asked = async {
        let scheme = if tls { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{addr}")).map_err(|error| error.to_string())?;
        let endpoint = match tls {
            true => endpoint.tls_config_with_verifier(ClientTlsConfig::new(), Arc::new(AnyCertificate::new())),
            false => Ok(endpoint),
        };
        let channel = endpoint.map_err(|error| error.to_string())?.connect().await;
        let channel = channel.map_err(|error| match std::error::Error::source(&error) {
            Some(cause) if tls => format!("no service listens there, or none with TLS: {cause}"),
            Some(_) | None => "no service listens there".to_owned(),
        })?;
        let request = HealthCheckRequest { service: String::new() };
        let answer = HealthClient::new(channel).check(request).await.map_err(|status| status.to_string())?;
        match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            status @ (ServingStatus::Unknown | ServingStatus::NotServing | ServingStatus::ServiceUnknown) => {
                Err(format!("the service answers {}", status.as_str_name()))
            }
        }
    };
    tokio::time::timeout(TIMEOUT, asked).await.unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}")))
}

/// Takes any certificate whose owner has its key.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl AnyCertificate {
    fn new() -> Self {
        Self(rustls::crypto::ring::default_provider().signature_verification_algorithms)
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use votestream_server::{Connections, Limits, Tls, TlsIdentity, TlsSource};

    use super::*;
    use crate::{
        config::{Setting, listener},
        shell::Process,
    };

    const PROGRAM: Program = Program {
        name: "test-svc",
        about: "",
        settings: &[&[Setting::optional("listen", "ADDR", "")], listener::TLS],
        others: &[],
    };

    #[tokio::test]
    async fn a_running_service_serves_until_it_is_told_to_stop() {
        let source = TlsSource { identity: TlsIdentity::SelfSigned, client_ca: None };
        for tls in [None, Some(Tls::open(source).unwrap())] {
            let process = Process { shutdown: CancellationToken::new(), admin: None };
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let is_secure = tls.is_some();
            assert!(ask(free, is_secure).await.unwrap_err().starts_with("no service listens there"));
            process.serve_health(free, Connections::secured(Limits::default(), tls)).await.unwrap();
            ask(free, is_secure).await.unwrap();
            assert!(ask(free, !is_secure).await.is_err());
            process.shutdown.cancel();
            let stopped = async { while ask(free, is_secure).await.is_ok() {} };
            tokio::time::timeout(Duration::from_secs(30), stopped).await.expect("it never stopped");
        }
    }

    #[test]
    fn the_address_is_that_of_the_configuration() {
        let read = |flags: &[&str]| address(&PROGRAM, flags.iter().map(OsString::from));
        assert_eq!(read(&["--listen=0.0.0.0:50051"]).unwrap(), ("127.0.0.1:50051".parse().unwrap(), false));
        assert_eq!(read(&["--listen=[::]:50051"]).unwrap(), ("[::1]:50051".parse().unwrap(), false));
        assert_eq!(read(&["--listen=127.0.0.2:1"]).unwrap(), ("127.0.0.2:1".parse().unwrap(), false));
        assert!(read(&["--listen=127.0.0.2:1", "--tls-self-signed"]).unwrap().1);
        assert!(read(&["--listen=127.0.0.2:1", "--tls-cert=/c.pem"]).unwrap().1);
        assert!(matches!(read(&["--listen=here"]), Err(Refused::Mistakes(mistakes)) if mistakes.len() == 1));
    }
}
