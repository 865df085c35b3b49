//! The settings of every program with a listener. The server knows no configuration, so they are read here for it.
//!
//! Owns the names of the settings for [`Limits`] and [`Auth`], and their ranges. Must never count anything.

use std::{net::SocketAddr, time::Duration};

use votestream_server::{Auth, CorsOrigins, Identity, Limits};

use super::{Setting, Values, bytes, duration, whole};

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
        "Who may call: a file of issuers, keys and certificates, which is read again when it changes; none lets everybody do \
         everything. Must be given unless only this machine can reach the listener.",
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Program, Refused};

    const PROGRAM: Program = Program { name: "test", about: "", settings: &[LIMITS], others: &[] };

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
}
