//! Limits on what clients may have open, and for how long.
//!
//! Owns the numbers and their defaults. Must never count anything: `connections` does that.

use std::time::Duration;

/// What all clients of a process may have open, over all its listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most connections at a time; 0 for as many as the descriptor limit allows. Never more than that.
    pub connections_max: u32,
    /// Most connections at a time from one address (IPv6: one /64 network); 0 for no limit per address.
    pub connections_per_address_max: u32,
    /// How long a connection may take from accept to the end of its first request's head.
    pub first_request: Duration,
    /// How long a request with one message may take to arrive, from the first wait for it to its end.
    pub message: Duration,
    /// How long a connection may be without a call.
    pub idle: Duration,
    /// How long an answer may wait for its client to take more of it.
    pub stalled_write: Duration,
    /// Most bytes of answers that wait for their clients, over all connections.
    pub answer_bytes_max: u64,
    /// Most bytes of requests that were received and not yet read, over all connections.
    pub request_bytes_max: u64,
}

/// Long enough for a handshake over a bad mobile link, and too short to hold connections for nothing.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// 4 MiB over a link of 3.4 Mbit/s, and far more than any other message needs.
const MESSAGE: Duration = Duration::from_secs(10);
/// Longer than the idle time-out of load balancers (60 s by default). The load balancer must close first: otherwise it
/// could send a request into a connection that the server is closing.
const IDLE: Duration = Duration::from_secs(75);
/// Longer than any pause of a mobile link that recovers.
const STALLED_WRITE: Duration = Duration::from_secs(30);
/// 200 of the largest answers (a poll of 1,000 long options is 650 KB). Slow clients hold fewer at a time.
const ANSWER_BYTES_MAX: u64 = 128 << 20;
/// The full windows of all streams of 100 connections, while the engine stalls.
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
