//! Tests the files of TLS: what is wrong with them, and what happens when they change.

use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tempfile::TempDir;

use super::*;

/// A certificate for this name and its key, in PEM.
fn made(name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// The certificate of a CA, in PEM.
fn made_ca() -> String {
    let mut wanted = CertificateParams::new(Vec::new()).unwrap();
    wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wanted.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

fn write(folder: &Path, (certificate, key): &(String, String)) {
    fs::write(folder.join("cert.pem"), certificate).unwrap();
    fs::write(folder.join("key.pem"), key).unwrap();
}

fn source(folder: &Path, client_ca: bool) -> TlsSource {
    TlsSource {
        identity: TlsIdentity::Files { certificate: folder.join("cert.pem"), key: folder.join("key.pem") },
        client_ca: client_ca.then(|| folder.join("ca.pem")),
    }
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &made("one.example"));
    fs::write(folder.path().join("ca.pem"), made_ca()).unwrap();
    folder
}

/// What is in use; another value after each exchange.
fn in_use(tls: &Tls) -> *const ServerConfig {
    Arc::as_ptr(&tls.config())
}

#[test]
fn everything_that_is_wrong_is_named_with_its_file_and_no_key_is_shown() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let wrong = |client_ca| {
        let errors = Tls::open(source(folder.path(), client_ca)).unwrap_err();
        errors.into_iter().map(|error| (error.file, error.to_string())).collect::<Vec<_>>()
    };
    assert!(Tls::open(source(folder.path(), true)).is_ok());

    fs::write(at("ca.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    fs::write(at("key.pem"), "-----BEGIN PRIVATE KEY-----\ncanary canary\n-----END PRIVATE KEY-----\n").unwrap();
    fs::remove_file(at("cert.pem")).unwrap();
    let errors = wrong(true);
    let files: Vec<_> = errors.iter().map(|(file, _)| *file).collect();
    assert_eq!(files, [TlsFile::Certificate, TlsFile::Key, TlsFile::ClientCa], "{errors:?}");
    assert!(errors[0].1.contains("cert.pem: cannot be read: No such file"), "{errors:?}");
    assert!(!format!("{errors:?}").contains("canary"), "{errors:?}");

    write(folder.path(), &(made("one.example").0, made("two.example").1));
    assert_eq!(wrong(false), [(TlsFile::Key, format!("{}: does not fit the certificate", at("key.pem").display()))]);
    write(folder.path(), &(String::new(), made("two.example").1));
    assert!(wrong(false)[0].1.contains("has no certificate in PEM"));
    fs::write(at("cert.pem"), vec![b'x'; (1 << 20) + 1]).unwrap();
    assert!(wrong(false)[0].1.contains("is larger than"));
}

#[test]
fn a_change_counts_once_it_is_whole_and_a_broken_one_changes_nothing() {
    let folder = folder();
    let tls = Tls::open(source(folder.path(), true)).unwrap();
    let first = in_use(&tls);
    tls.look();
    tls.look();
    assert_eq!(in_use(&tls), first, "nothing has changed");

    write(folder.path(), &made("two.example"));
    tls.look();
    assert_eq!(in_use(&tls), first, "the writer may not be done yet");
    tls.look();
    let second = in_use(&tls);
    assert_ne!(second, first);

    fs::write(folder.path().join("key.pem"), "broken").unwrap();
    for _ in 0..4 {
        tls.look();
    }
    assert_eq!(in_use(&tls), second);
    fs::remove_file(folder.path().join("cert.pem")).unwrap();
    for _ in 0..4 {
        tls.look();
    }
    assert_eq!(in_use(&tls), second);
    write(folder.path(), &made("three.example"));
    tls.look();
    tls.look();
    assert_ne!(in_use(&tls), second, "a file that was broken is mended");
}

#[test]
fn tickets_outlive_a_certificate_and_not_the_ca_of_clients() {
    let folder = folder();
    let tls = Tls::open(source(folder.path(), true)).unwrap();
    let ticket = tls.config().ticketer.encrypt(b"a session").unwrap();
    let look = || {
        tls.look();
        tls.look();
    };
    write(folder.path(), &made("two.example"));
    look();
    assert_eq!(tls.config().ticketer.decrypt(&ticket).as_deref(), Some(&b"a session"[..]));
    fs::write(folder.path().join("ca.pem"), made_ca()).unwrap();
    look();
    assert_eq!(tls.config().ticketer.decrypt(&ticket), None);
}

#[test]
fn a_certificate_of_its_own_needs_no_file() {
    let tls = Tls::open(TlsSource { identity: TlsIdentity::SelfSigned, client_ca: None }).unwrap();
    let first = in_use(&tls);
    tls.look();
    tls.look();
    assert_eq!(in_use(&tls), first);
    assert!(!format!("{tls:?}").contains("key"), "{tls:?}");
}

#[test]
fn a_client_certificate_has_its_names_and_its_end() {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = Issuer::new(ca, ca_key);
    let mut wanted = CertificateParams::new(vec!["relay.example".to_owned(), "192.0.2.1".to_owned()]).unwrap();
    wanted.subject_alt_names.push(SanType::URI("spiffe://example/relay".try_into().unwrap()));
    wanted.not_after = date_time_ymd(2033, 5, 18);
    let der = wanted.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().clone();
    let read = ClientCertificate::read(std::slice::from_ref(&der)).unwrap();
    assert_eq!(read.names, ["relay.example", "spiffe://example/relay"]);
    assert_eq!(read.not_after, 2_000_000_000 - 2_000_000_000 % 86_400);
    let mut old = CertificateParams::default();
    old.not_after = date_time_ymd(2001, 1, 1);
    let old =
        ClientCertificate::read(&[old.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()]).unwrap();
    assert!(old.is_expired());
    assert_eq!(ClientCertificate::read(&[CertificateDer::from(vec![1, 2, 3])]), None);
    assert!(CertificateDer::from_pem_slice(made("a").0.as_bytes()).is_ok());
}

#[test]
fn an_expiry_is_told_once() {
    let (week, now) = (EXPIRES_SOON.as_secs(), 1_000_000);
    assert_eq!(Expiry::of(now + week, now), Expiry::Later);
    assert_eq!(Expiry::of(now + week - 1, now), Expiry::Soon);
    assert_eq!(Expiry::of(now, now), Expiry::Over);
    let folder = folder();
    let tls = Tls::open(source(folder.path(), false)).unwrap();
    let mut watched = tls.0.watched.lock();
    watched.own.not_after = 1;
    watched.warn();
    assert_eq!(watched.own.said, Expiry::Over);
    assert_eq!(watched.own.news(), None);
}

#[test]
fn a_client_certificate_ends_with_that_of_its_issuer() {
    let named = |name: &str, until| {
        let mut wanted = CertificateParams::new(Vec::new()).unwrap();
        wanted.distinguished_name.push(DnType::CommonName, name);
        wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        wanted.not_after = date_time_ymd(until, 1, 1);
        wanted
    };
    let root = Issuer::new(named("root", 2090), KeyPair::generate().unwrap());
    let keys = || KeyPair::generate().unwrap();
    let (early, late, own) = (keys(), keys(), keys());
    let by_root = |wanted: CertificateParams, key: &KeyPair| wanted.signed_by(key, &root).unwrap().der().clone();
    let issuers = [by_root(named("between", 2030), &early), by_root(named("between", 2040), &late)];
    let issuer = Issuer::new(named("between", 2030), early);
    let mut wanted = CertificateParams::new(vec!["relay.example".to_owned()]).unwrap();
    wanted.not_after = date_time_ymd(2050, 1, 1);
    let own = wanted.signed_by(&own, &issuer).unwrap().der().clone();
    let other = by_root(named("other", 2020), &keys());
    let circle = named("between", 2010).self_signed(&keys()).unwrap().der().clone();
    let year = |chain: &[&CertificateDer<'static>]| {
        let chain: Vec<_> = chain.iter().map(|certificate| (*certificate).clone()).collect();
        1970 + ClientCertificate::read(&chain).unwrap().not_after / 31_556_952
    };
    // The number of days is rounded up to the first of January.
    assert_eq!([year(&[&own]), year(&[&own, &issuers[0]]), year(&[&own, &other, &issuers[0]])], [2050, 2030, 2030]);
    assert_eq!([year(&[&own, &issuers[0], &issuers[1]]), year(&[&own, &circle])], [2040, 2050]);
}

#[test]
fn who_is_no_ca_issues_nothing() {
    let folder = folder();
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, made_ca() + &made("relay.example").0).unwrap();
    let errors = Tls::open(source(folder.path(), true)).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert!(errors[0].reason.starts_with("its certificate 2 is not that of a CA"), "{errors:?}");
    // Neither its purpose nor its age makes it none.
    let mut old = CertificateParams::new(Vec::new()).unwrap();
    old.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    old.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    old.not_after = date_time_ymd(2001, 1, 1);
    fs::write(&ca, old.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()).unwrap();
    let tls = Tls::open(source(folder.path(), true)).unwrap();
    tls.look();
    assert_eq!(tls.0.watched.lock().ca.as_ref().map(|ca| ca.said), Some(Expiry::Over));
}

#[test]
fn of_a_uri_only_scheme_and_host_are_the_same_in_upper_and_lower_case() {
    for (name, form) in [
        ("Relay.Example", "relay.example"),
        ("SPIFFE://Acme.Example/ns/Admin", "spiffe://acme.example/ns/Admin"),
        ("https://User@Host:8443?Q=A#F", "https://User@host:8443?Q=A#F"),
        ("https://Host", "https://host"),
        ("URN:Example:One", "urn:Example:One"),
        ("file:///A/B", "file:///A/B"),
        ("x:", "x:"),
        ("x://", "x://"),
        ("x://@", "x://@"),
        ("://A", "://a"),
    ] {
        assert_eq!(same_form(name), form);
        assert_eq!(same_form(form), form);
    }
}
