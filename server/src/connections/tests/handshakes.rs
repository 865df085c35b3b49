//! Tests connections with TLS from the client's side.

use std::sync::LazyLock;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};
use tempfile::TempDir;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;
use crate::{Tls, TlsIdentity, TlsSource, tls::HANDSHAKES_MAX};

/// Who issues certificates.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    root: rcgen::Certificate,
}

/// A certificate and its key.
struct Made {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

fn ca(name: &str) -> Ca {
    let key = KeyPair::generate().unwrap();
    let mut wanted = CertificateParams::new(Vec::new()).unwrap();
    wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wanted.distinguished_name.push(DnType::CommonName, name);
    let root = wanted.self_signed(&key).unwrap();
    Ca { issuer: Issuer::new(wanted, key), root }
}

impl Ca {
    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose, until: i32) -> Made {
        let key = KeyPair::generate().unwrap();
        let mut wanted = CertificateParams::new(vec![name.to_owned()]).unwrap();
        wanted.subject_alt_names.push(SanType::URI("urn:example:one".try_into().unwrap()));
        wanted.extended_key_usages = vec![usage];
        wanted.not_after = date_time_ymd(until, 1, 1);
        Made { certificate: wanted.signed_by(&key, &self.issuer).unwrap(), key }
    }
}

static CA: LazyLock<Ca> = LazyLock::new(|| ca("ours"));
static FILES: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let server = CA.issue("votes.example", ExtendedKeyUsagePurpose::ServerAuth, 2100);
    std::fs::write(folder.path().join("cert.pem"), server.certificate.pem()).unwrap();
    std::fs::write(folder.path().join("key.pem"), server.key.serialize_pem()).unwrap();
    std::fs::write(folder.path().join("ca.pem"), CA.root.pem()).unwrap();
    folder
});

fn secured() -> Arc<Census> {
    let at = |name: &str| FILES.path().join(name);
    let identity = TlsIdentity::Files { certificate: at("cert.pem"), key: at("key.pem") };
    let tls = Tls::open(TlsSource { identity, client_ca: Some(at("ca.pem")) }).unwrap();
    Connections::secured(Limits::default(), Some(tls)).0
}

fn connector(protocols: &[&str], identity: Option<&Made>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CA.root.der().clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(made) => {
            let chain: Vec<CertificateDer<'static>> = vec![made.certificate.der().clone()];
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.key.serialize_der()));
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

type Stream = TlsStream<DuplexStream>;

async fn connect(census: &Arc<Census>, connector: TlsConnector) -> io::Result<(Stream, JoinHandle<()>)> {
    let (pipe, served) = piped(census, 1 << 16).await;
    let name = ServerName::try_from("votes.example").unwrap();
    Ok((connector.connect(name, pipe).await?, served))
}

async fn get(stream: &mut Stream, path: &str) -> io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: votes.example\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The first record of a handshake.
fn hello() -> Vec<u8> {
    let config = connector(&["h2"], None).config().clone();
    let name = ServerName::try_from("votes.example").unwrap();
    let mut hello = Vec::new();
    rustls::ClientConnection::new(config, name).unwrap().write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_never_ends_has_the_time_of_a_first_request() {
    let hello = hello();
    for (bytes, pause) in [(0, 0), (1, 0), (7, 0), (hello.len() - 1, 0), (hello.len(), 0), (hello.len(), 1_000)] {
        let census = secured();
        let (pipe, served) = piped(&census, 1 << 16).await;
        let began = Instant::now();
        let sent = hello[..bytes].to_vec();
        let (mut reads, mut writes) = tokio::io::split(pipe);
        let sending = tokio::spawn(async move {
            for byte in sent {
                drop(writes.write_all(&[byte]).await);
                sleep(Duration::from_millis(pause)).await;
            }
            writes
        });
        let mut answer = Vec::new();
        reads.read_to_end(&mut answer).await.unwrap();
        let seconds = began.elapsed().as_secs_f64();
        assert!((9.9..11.1).contains(&seconds), "{bytes} bytes: ended after {seconds} s");
        served.await.unwrap();
        drop(sending);
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_is_too_long_or_wrong_ends_at_once() {
    // A hello of 60 KB, whose records keep coming.
    let mut long = vec![1, 0, 0xea, 0x60];
    long.resize(60_004, 0);
    let records = long.chunks(16_000).map(|part| [&[22, 3, 1], &(part.len() as u16).to_be_bytes()[..], part].concat());
    for sent in [records.collect::<Vec<_>>().concat(), [&[22, 3, 3, 0, 5][..], &[9; 5]].concat(), vec![22, 9, 9, 9, 9]]
    {
        let census = secured();
        let (mut pipe, served) = piped(&census, 1 << 17).await;
        pipe.write_all(&sent).await.unwrap();
        let seconds = seconds_until_end(&mut pipe).await;
        assert!(seconds < 1.1, "{} bytes: {seconds} s", sent.len());
        drop(pipe);
        served.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_speak_tls_is_told_so() {
    for (sent, told) in [
        (&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..], true),
        (b"POST /v1/polls/p/votes HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}", true),
        (PREFACE, false),
        (b"SSH-2.0-x\r\n", true),
    ] {
        let (mut pipe, served) = piped(&secured(), 1 << 16).await;
        pipe.write_all(sent).await.unwrap();
        let mut answer = String::new();
        pipe.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("use https://\"}}"), told, "{answer}");
        assert!(told || answer.is_empty(), "{answer}");
        drop(pipe);
        served.await.unwrap();
    }
}

#[tokio::test]
async fn both_protocols_are_chosen_by_name_and_others_are_refused() {
    for (offered, chosen) in [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)] {
        let (stream, _served) = connect(&secured(), connector(offered, None)).await.unwrap();
        let protocol = stream.get_ref().1.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
        assert_eq!(protocol.as_deref(), chosen);
    }
    let error = connect(&secured(), connector(&["spdy/3"], None)).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
}

#[tokio::test]
async fn a_request_knows_the_certificate_of_its_client() {
    let right = CA.issue("relay.example", ExtendedKeyUsagePurpose::ClientAuth, 2100);
    let (mut stream, served) = connect(&secured(), connector(&[], Some(&right))).await.unwrap();
    let answer = get(&mut stream, "/peer").await.unwrap();
    assert!(answer.contains(r#"names: ["relay.example", "urn:example:one"], not_after: 4102444800"#), "{answer}");
    served.await.unwrap();
    let (mut stream, _served) = connect(&secured(), connector(&[], None)).await.unwrap();
    let answer = get(&mut stream, "/peer").await.unwrap();
    assert!(answer.contains("certificate: None"), "{answer}");
}

#[tokio::test]
async fn certificates_that_prove_nothing_are_refused_and_their_owner_learns_why() {
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    for (made, alert) in [
        (ca("theirs").issue("relay.example", client.clone(), 2100), "UnknownCA"),
        (CA.issue("relay.example", client, 2001), "CertificateExpired"),
        (CA.issue("relay.example", ExtendedKeyUsagePurpose::ServerAuth, 2100), "UnsupportedCertificate"),
    ] {
        let census = secured();
        let answer = match connect(&census, connector(&["http/1.1"], Some(&made))).await {
            // In TLS 1.3 the client may send before it learns the answer.
            Ok((mut stream, _)) => get(&mut stream, "/peer").await.unwrap_err(),
            Err(error) => error,
        };
        assert!(answer.to_string().contains(alert), "{alert}: {answer}");
    }
}

#[tokio::test]
async fn the_end_of_a_connection_is_a_word_of_tls_and_a_client_without_one_is_answered() {
    let (mut stream, served) = connect(&secured(), connector(&["http/1.1"], None)).await.unwrap();
    // `read_to_end` fails where a close_notify is missing.
    assert!(get(&mut stream, "/").await.unwrap().ends_with("here"));
    served.await.unwrap();

    let (mut stream, served) = connect(&secured(), connector(&["http/1.1"], None)).await.unwrap();
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    // The pipe below is shut, without a close_notify.
    stream.get_mut().0.shutdown().await.unwrap();
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await);
    assert!(answer.len() > LARGE_BYTES, "{} bytes", answer.len());
    served.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_handshake_too_many_ends_the_oldest() {
    let census = secured();
    let mut pipes = Vec::new();
    for _ in 0..HANDSHAKES_MAX {
        let (mut pipe, served) = piped(&census, 64).await;
        pipe.write_all(&[22]).await.unwrap();
        tokio::task::yield_now().await;
        pipes.push((pipe, served));
    }
    assert!(!pipes[0].1.is_finished());
    let (mut stream, _served) = connect(&census, connector(&["http/1.1"], None)).await.unwrap();
    assert!(get(&mut stream, "/").await.unwrap().ends_with("here"));
    let (mut oldest, served) = pipes.remove(0);
    assert!(seconds_until_end(&mut oldest).await < 0.1);
    served.await.unwrap();
    assert!(pipes.iter().all(|(_, served)| !served.is_finished()));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_noticed_below_tls() {
    let (mut stream, served) = connect(&secured(), connector(&["http/1.1"], None)).await.unwrap();
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let began = Instant::now();
    served.await.unwrap();
    let seconds = began.elapsed().as_secs_f64();
    assert!((29.9..32.1).contains(&seconds), "ended after {seconds} s");
}
