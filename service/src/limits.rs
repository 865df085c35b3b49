//! How much clients may have open, and for how long.
//!
//! Owns the numbers and the settings that carry them. Must never count anything: `server` does that.

use std::time::Duration;

use crate::config::{Setting, Values, bytes, duration, whole};

/// What the clients of a process may have open, over all its listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time; 0 for as many as the descriptor limit allows. More than it allows are never taken.
    pub connections_max: u32,
    /// Connections at a time from one address (IPv6: one /64 network); 0 for no limit of its own.
    pub connections_per_address_max: u32,
    /// How long a connection may take from accept to the end of its first request's head.
    pub first_request: Duration,
    /// How long a request of one message may take from when it is waited for until its end.
    pub message: Duration,
    /// How long a connection may be without a call.
    pub idle: Duration,
    /// How long an answer may wait for its client to take more of it.
    pub stalled_write: Duration,
    /// Bytes of answers that wait for their clients, over all connections.
    pub answer_bytes_max: u64,
    /// Bytes of requests that were received and not yet read, over all connections.
    pub request_bytes_max: u64,
}

/// Long enough for a handshake over a bad mobile link, and too short to hold connections for nothing.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// 4 MiB over a link of 3.4 Mbit/s, and far more than any other message needs.
const MESSAGE: Duration = Duration::from_secs(10);
/// Longer than the idle time-out of load balancers (60 s by default): they must be the ones to close, or they would send a
/// request into a connection that is being closed.
const IDLE: Duration = Duration::from_secs(75);
/// Longer than any pause of a mobile link that recovers.
const STALLED_WRITE: Duration = Duration::from_secs(30);
/// 200 of the largest answers (a poll of 1,000 long options is 650 KB), which is more than slow links hold at a time.
const ANSWER_BYTES_MAX: u64 = 128 << 20;
/// All streams of 100 connections with full windows, while the engine stalls.
const REQUEST_BYTES_MAX: u64 = 256 << 20;

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 0,
            connections_per_address_max: 0,
            first_request: FIRST_REQUEST,
            message: MESSAGE,
            idle: IDLE,
            stalled_write: STALLED_WRITE,
            answer_bytes_max: ANSWER_BYTES_MAX,
            request_bytes_max: REQUEST_BYTES_MAX,
        }
    }
}

/// No wait of a connection may be longer than this.
const WAIT_MAX: Duration = Duration::from_secs(3_600);

impl Limits {
    /// The settings of every program with a listener.
    pub const SETTINGS: &[Setting] = &[
        Setting::new(
            "connections-max",
            "N",
            "0",
            "Most connections at a time; 0 for as many as the descriptor limit allows. One more closes the one that has been \
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
            "How long the message of a call that takes one may take to arrive.",
        ),
        Setting::new(
            "idle-timeout",
            "DURATION",
            "75s",
            "How long a connection may be without a call; longer than the idle time-out of a load balancer in front.",
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

    /// Reads [`Self::SETTINGS`].
    pub fn read(values: &mut Values) -> Option<Self> {
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
        Some(Self {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Program, Refused};

    const PROGRAM: Program = Program { name: "test", about: "", settings: &[Limits::SETTINGS], others: &[] };

    fn read(flags: &[&str]) -> Result<Limits, Refused> {
        let mut values = PROGRAM.read(flags.iter().map(Into::into), [])?;
        let limits = Limits::read(&mut values);
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
