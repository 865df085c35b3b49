//! The settings of every program with a listener. The server knows no configuration, so they are read here for it.
//!
//! Owns the names of the settings for [`Limits`], [`Auth`], [`CallLimits`] and [`Tls`], and their ranges. Must never count
//! anything.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use votestream_server::{
    AuditTarget, Auth, CallLimits, CorsOrigins, Identity, Limits, Quotas, Tls, TlsError, TlsFile, TlsIdentity,
    TlsSource,
};

use super::{Setting, Values, bytes, duration, socket_addr, switch, whole};

/// Which web pages of other origins may call.
pub const CORS_ALLOW_ORIGINS: Setting = Setting::optional(
    "cors-allow-origins",
    "ORIGINS",
    "Web pages that may call, with commas between; * for all [default: none].",
);

/// Reads [`CORS_ALLOW_ORIGINS`].
pub fn cors_allow_origins(values: &mut Values) -> Option<CorsOrigins> {
    Some(values.optional(CORS_ALLOW_ORIGINS.name, str::parse)?.unwrap_or_default())
}

/// Who may call.
pub const IDENTITY: &[Setting] = &[
    Setting::optional(
        "auth",
        "FILE|none",
        "Who may call: a file of issuers, keys and certificates, which is read again when it changes, or env:NAME for a variable \
         with its text; none lets everybody do everything. Must be given unless only this machine can reach the listener.",
    ),
    Setting::optional("auth-revoked", "FILE", "Tokens that count no more; read again when it changes [default: none]."),
];

/// Reads [`IDENTITY`] for a listener on this address, and the files.
pub fn identity(values: &mut Values, listen: Option<SocketAddr>) -> Option<Identity> {
    let auth = values.optional("auth", |text| Ok(text.to_owned()));
    let revoked = values.optional("auth-revoked", |text| Ok(text.to_owned()));
    let auth = match auth_of(auth?.as_deref(), revoked?.as_deref(), &[listen?]) {
        Ok(auth) => auth,
        Err(mistake) => {
            values.check(false, || mistake);
            return None;
        }
    };
    values.merge(Identity::open(&auth))
}

/// How callers are told apart on these addresses. Fails closed: an address that others can reach needs a decision.
///
/// # Errors
///
/// Says what is missing.
pub fn auth_of(auth: Option<&str>, revoked: Option<&str>, listen: &[SocketAddr]) -> Result<Auth, String> {
    match (auth, revoked) {
        (Some("none") | None, Some(_)) => Err("--auth-revoked needs --auth FILE".into()),
        (Some("none"), None) => Ok(Auth::Off),
        (Some(file), revoked) => Ok(Auth::File { file: file.into(), revoked: revoked.map(Into::into) }),
        (None, None) => match listen.iter().find(|address| !address.ip().to_canonical().is_loopback()) {
            None => Ok(Auth::Off),
            Some(address) => Err(format!(
                "--auth is missing: others can reach {address}, so say who may call, by a file; or --auth none, which lets everybody \
                 vote as anybody"
            )),
        },
    }
}

/// How often others may call.
pub const CALLS: &[Setting] = &[
    Setting::optional(
        "calls-per-voter",
        "RATE",
        "Most calls of a voter, a user whom tokens name, such as 20/s, 600/m or 1000/h, and 600/m:20 for 20 at once. Votes \
         that a voter sends in a stream count as calls, those of a relay do not. Needs --auth FILE [default: no limit].",
    ),
    Setting::optional(
        "calls-per-credential",
        "RATE",
        "Most calls with a key, a certificate or a token; a stream is one call. Needs --auth FILE [default: no limit].",
    ),
    Setting::optional(
        "calls-per-address",
        "RATE",
        "Most calls from one address, or one /64 of IPv6; a stream is one call. Whole countries can sit behind one address \
         [default: no limit].",
    ),
    Setting::optional(
        "trusted-proxies",
        "NETWORKS",
        "Proxies whose X-Forwarded-For is believed, such as 10.0.0.0/8,fd00::/8: calls count for the rightmost address in it \
         that is no such proxy [default: none].",
    ),
];

/// Reads [`CALLS`]. `identity` is what was read of [`IDENTITY`].
pub fn quotas(values: &mut Values, identity: Option<&Identity>) -> Option<Quotas> {
    let per_voter = values.optional("calls-per-voter", str::parse);
    let per_credential = values.optional("calls-per-credential", str::parse);
    let per_address = values.optional("calls-per-address", str::parse);
    let trusted_proxies = values.optional("trusted-proxies", str::parse);
    let limits = CallLimits {
        per_voter: per_voter?,
        per_credential: per_credential?,
        per_address: per_address?,
        trusted_proxies: trusted_proxies?.unwrap_or_default(),
    };
    match quotas_of(&limits, identity?) {
        Ok(quotas) => Some(quotas),
        Err(mistake) => {
            values.check(false, || mistake);
            None
        }
    }
}

/// What counts calls against these limits.
///
/// # Errors
///
/// If there is a limit that could not hold: a limit that does nothing is worse than none.
pub fn quotas_of(limits: &CallLimits, identity: &Identity) -> Result<Quotas, String> {
    if limits.need_identity() && !identity.is_on() {
        return Err(
            "--calls-per-voter and --calls-per-credential need --auth FILE: without it nobody says who calls".into()
        );
    }
    Ok(Quotas::new(limits))
}

/// Where operators ask.
pub const ADMIN_ADDR: Setting = Setting::optional(
    "admin-addr",
    "ADDR",
    "Address of its own for operators: GET /metrics for Prometheus, /healthz and /readyz, over HTTP without TLS; port 0 picks a \
     free one. It asks for no credential, so nobody outside must be able to reach it [default: none].",
);

/// Reads [`ADMIN_ADDR`].
pub fn admin_addr(values: &mut Values) -> Option<Option<SocketAddr>> {
    values.optional(ADMIN_ADDR.name, socket_addr)
}

/// Who administered what.
pub const AUDIT_LOG: Setting = Setting::optional(
    "audit-log",
    "FILE|-",
    "Where every creation, close, release and recount of a poll is written before it takes place, also the refused ones, as \
     JSON lines that are chained by hashes; - for stdout [default: none].",
);

/// Reads [`AUDIT_LOG`].
pub fn audit_log(values: &mut Values) -> Option<Option<AuditTarget>> {
    values.optional(AUDIT_LOG.name, str::parse)
}

/// Longest time-out of a connection that may be set.
const WAIT_MAX: Duration = Duration::from_secs(3_600);

/// Limits on what clients may have open.
pub const LIMITS: &[Setting] = &[
    Setting::new(
        "connections-max",
        "N",
        "0",
        "Most connections at a time; 0 for as many as the descriptor limit allows. A further one closes the one that has been \
         without a call longest.",
    ),
    Setting::new(
        "connections-per-address-max",
        "N",
        "0",
        "Most connections at a time from one address, or one /64 of IPv6; 0 for no such limit, since whole countries \
         can sit behind one address.",
    ),
    Setting::new(
        "first-request-timeout",
        "DURATION",
        "10s",
        "How long a new connection may take until the head of its first request is complete.",
    ),
    Setting::new(
        "message-timeout",
        "DURATION",
        "10s",
        "How long the message of a call with a single message may take to arrive.",
    ),
    Setting::new(
        "idle-timeout",
        "DURATION",
        "75s",
        "How long a connection may be without a call; must be longer than the idle time-out of a load balancer.",
    ),
    Setting::new(
        "stalled-write-timeout",
        "DURATION",
        "30s",
        "How long an answer may wait for its client to take more of it.",
    ),
    Setting::new(
        "answer-bytes-max",
        "BYTES",
        "128MiB",
        "Bytes of answers that wait for their clients; above it, the connection that has stood still longest is closed.",
    ),
    Setting::new(
        "request-bytes-max",
        "BYTES",
        "256MiB",
        "Memory for requests that were received and not yet read; above it, the connection that has stood still \
         longest is closed.",
    ),
];

/// Reads [`LIMITS`].
pub fn limits(values: &mut Values) -> Option<Limits> {
    let connections_max = values.get("connections-max", whole(0..=u32::MAX));
    let connections_per_address_max = values.get("connections-per-address-max", whole(0..=u32::MAX));
    let waits = || duration(Duration::from_secs(1)..=WAIT_MAX);
    let first_request = values.get("first-request-timeout", waits());
    let message = values.get("message-timeout", waits());
    let idle = values.get("idle-timeout", waits());
    let stalled_write = values.get("stalled-write-timeout", waits());
    let budget = || bytes(8 << 20..=1 << 40);
    let answer_bytes_max = values.get("answer-bytes-max", budget());
    let request_bytes_max = values.get("request-bytes-max", budget());
    Some(Limits {
        connections_max: connections_max?,
        connections_per_address_max: connections_per_address_max?,
        first_request: first_request?,
        message: message?,
        idle: idle?,
        stalled_write: stalled_write?,
        answer_bytes_max: answer_bytes_max? as u64,
        request_bytes_max: request_bytes_max? as u64,
    })
}

/// TLS of the listener.
pub const TLS: &[Setting] = &[
    Setting::optional(
        "tls-cert",
        "FILE",
        "The server's certificate in PEM, followed by those of its issuers; all connections then use TLS 1.2 or 1.3. Read \
         again when it changes [default: no TLS].",
    ),
    Setting::optional("tls-key", "FILE", "The private key of --tls-cert in PEM; read again when it changes."),
    Setting::optional(
        "tls-client-ca",
        "FILE",
        "Certificates in PEM of those who issue client certificates. A client may give one; one that is not theirs is \
         refused. Read again when it changes [default: clients are not asked].",
    ),
    Setting::switch(
        "tls-self-signed",
        "Use TLS with a certificate that is made at the start, which clients cannot check: for the way from a load \
         balancer.",
    ),
];

/// Reads [`TLS`] and its files. The inner `None` means that there is no TLS.
pub fn tls(values: &mut Values) -> Option<Option<Tls>> {
    let certificate = values.optional("tls-cert", path);
    let key = values.optional("tls-key", path);
    let client_ca = values.optional("tls-client-ca", path);
    let self_signed = values.optional("tls-self-signed", switch);
    let source = tls_source(certificate?, key?, client_ca?, self_signed?.unwrap_or_default());
    let read = match source {
        Ok(None) => return Some(None),
        Ok(Some(source)) => Tls::open(source).map_err(|errors| errors.iter().map(tls_mistake).collect()),
        Err(mistakes) => Err(mistakes),
    };
    values.merge(read).map(Some)
}

/// Where TLS comes from; `None` if there is none.
///
/// # Errors
///
/// Everything that does not go together.
pub fn tls_source(
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
    self_signed: bool,
) -> Result<Option<TlsSource>, Vec<String>> {
    let mut mistakes = Vec::new();
    let mut note = |is_wrong: bool, mistake: &str| mistakes.extend(is_wrong.then(|| mistake.to_owned()));
    note(certificate.is_some() && key.is_none(), "--tls-cert: needs --tls-key");
    note(key.is_some() && certificate.is_none(), "--tls-key: needs --tls-cert");
    let has_files = certificate.is_some() || key.is_some();
    note(self_signed && has_files, "--tls-self-signed: makes its own certificate: leave out --tls-cert and --tls-key");
    note(client_ca.is_some() && !has_files && !self_signed, "--tls-client-ca: needs --tls-cert and --tls-key");
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let identity = match certificate.zip(key) {
        Some((certificate, key)) => TlsIdentity::Files { certificate, key },
        None if self_signed => TlsIdentity::SelfSigned,
        None => return Ok(None),
    };
    Ok(Some(TlsSource { identity, client_ca }))
}

/// A mistake in a file, with the flag that names it.
pub fn tls_mistake(error: &TlsError) -> String {
    let flag = match error.file {
        TlsFile::Certificate => "--tls-cert",
        TlsFile::Key => "--tls-key",
        TlsFile::ClientCa => "--tls-client-ca",
    };
    format!("{flag}: {error}")
}

fn path(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Program, Refused};

    const PROGRAM: Program = Program { name: "test", about: "", settings: &[LIMITS, TLS], others: &[] };

    fn read(flags: &[&str]) -> Result<Limits, Refused> {
        let mut values = PROGRAM.read(flags.iter().map(Into::into), [])?;
        let limits = limits(&mut values);
        values.finish(limits)
    }

    #[test]
    fn the_defaults_of_the_settings_are_those_of_the_struct() {
        assert_eq!(read(&[]).unwrap(), Limits::default());
        let given = read(&["--connections-max=9", "--idle-timeout=2m", "--answer-bytes-max=8MiB"]).unwrap();
        assert_eq!(
            given,
            Limits {
                connections_max: 9,
                idle: Duration::from_secs(120),
                answer_bytes_max: 8 << 20,
                ..Limits::default()
            }
        );
    }

    #[test]
    fn wrong_values_are_reported_together() {
        let flags = ["--idle-timeout=0s", "--connections-max=-1", "--answer-bytes-max=1", "--first-request-timeout=2h"];
        let Err(Refused::Mistakes(mistakes)) = read(&flags) else { panic!("accepted") };
        assert_eq!(mistakes.len(), flags.len(), "{mistakes:#?}");
    }
    fn with_tls(flags: &[&str]) -> Result<Option<Tls>, Vec<String>> {
        let Ok(mut values) = PROGRAM.read(flags.iter().map(Into::into), []) else { panic!("help") };
        let tls = tls(&mut values);
        values.finish(tls).map_err(|refused| match refused {
            Refused::Mistakes(mistakes) => mistakes,
            Refused::Answered(answer) => panic!("{answer}"),
        })
    }

    #[test]
    fn tls_is_off_or_whole() {
        assert!(with_tls(&[]).unwrap().is_none());
        assert!(with_tls(&["--tls-self-signed"]).unwrap().is_some());
        let missing = "/nonexistent/file.pem";
        for (flags, mistakes) in [
            (&["--tls-cert=c"][..], &["--tls-cert: needs --tls-key"][..]),
            (&["--tls-key=k"], &["--tls-key: needs --tls-cert"]),
            (&["--tls-client-ca=a"], &["--tls-client-ca: needs --tls-cert and --tls-key"]),
            (&["--tls-self-signed", "--tls-cert=c"], &["--tls-cert: needs", "--tls-self-signed: makes"]),
            (
                &["--tls-cert", missing, "--tls-key", missing, "--tls-client-ca", missing],
                &[
                    "--tls-cert: /nonexistent/file.pem: cannot be read",
                    "--tls-key: /nonexistent/file.pem: cannot be read",
                    "--tls-client-ca: /nonexistent/file.pem: cannot be read",
                ],
            ),
        ] {
            let found = with_tls(flags).unwrap_err();
            assert_eq!(found.len(), mistakes.len(), "{found:#?}");
            assert!(found.iter().zip(mistakes).all(|(found, mistake)| found.starts_with(mistake)), "{found:#?}");
        }
    }
}
