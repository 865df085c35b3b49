//! The way in: connections, load balancers, and CloudFront as the other way.
//!
//! Owns how many of what the voters' connections need. Must never count on a load balancer that grows during the event:
//! it takes minutes.

use serde::Serialize;

use super::{
    facts,
    question::{Clients, Question},
};

/// What stands between the voters and the tasks of ingest.
#[derive(Debug, Serialize)]
pub(crate) struct Edge {
    pub(crate) new_connections_per_second: u64,
    /// Connections that are open at the same time: an idle one is closed by the load balancer after a minute.
    pub(crate) open_connections: u64,
    /// Calls that are in flight at the same time: connections from the load balancers to the ingest tasks, if each carries
    /// one call at a time (HTTP/1.1). gRPC needs fewer.
    pub(crate) calls_in_flight: u64,
    /// CPU seconds a second of all ingest tasks for TLS between load balancers and tasks. Handshakes with voters are the
    /// load balancers' own, and part of their capacity units.
    pub(crate) ingest_tls_cpu_seconds_per_second: f64,
    /// CPU seconds a second that handshakes with voters would cost the tasks if they had no load balancer.
    pub(crate) voter_tls_cpu_seconds_per_second: f64,
    pub(crate) capacity_units: CapacityUnits,
    /// Public Application Load Balancers, among which a name in the DNS divides the voters.
    pub(crate) load_balancers: u64,
    /// Capacity units to reserve for each of them; 0 if a new one takes the load anyway.
    pub(crate) reserved_units_each: u64,
    pub(crate) reserved_units: u64,
    /// The other way, for phones: CloudFront keeps its connections to the load balancers.
    pub(crate) cloudfront: Option<CloudFront>,
}

/// Load balancer capacity units at the peak, by what needs them. The largest counts.
#[derive(Debug, Serialize)]
pub(crate) struct CapacityUnits {
    pub(crate) new_connections: u64,
    pub(crate) open_connections: u64,
    pub(crate) bytes: u64,
    pub(crate) needed: u64,
}

/// CloudFront in front of the load balancers.
#[derive(Debug, Serialize)]
pub(crate) struct CloudFront {
    pub(crate) distributions: u64,
    pub(crate) requests_per_second_each_max: u64,
    /// Load balancers behind it, and their units.
    pub(crate) load_balancers: u64,
    pub(crate) capacity_units: u64,
    /// Price of the requests alone.
    pub(crate) requests_usd: f64,
}

impl Edge {
    /// Without prices.
    pub(super) fn new(question: &Question, votes: u64) -> Self {
        let peak = question.peak_votes_per_second;
        let (new, bytes_per_vote) = match question.clients {
            Clients::Direct => (peak, facts::CALL_BYTES),
            // All relays connect within a second, before the event.
            Clients::Relay => (peak.div_ceil(facts::RELAY_VOTES_PER_SECOND), facts::STREAMED_VOTE_BYTES),
        };
        let open = match question.clients {
            Clients::Direct => votes.min(new * facts::BALANCER_IDLE_SECONDS),
            Clients::Relay => new,
        };
        let in_flight = match question.clients {
            Clients::Direct => (peak as f64 * facts::CALL_SECONDS).ceil() as u64,
            Clients::Relay => new,
        };
        let bytes_units = (peak as f64 * bytes_per_vote * 3_600.0 / facts::LCU_BYTES_PER_HOUR).ceil() as u64;
        let units_of = |new: u64, open: u64| {
            let new_connections = new.div_ceil(facts::LCU_CONNECTIONS_PER_SECOND);
            let open_connections = open.div_ceil(facts::LCU_OPEN_CONNECTIONS);
            let needed = new_connections.max(open_connections).max(bytes_units);
            CapacityUnits { new_connections, open_connections, bytes: bytes_units, needed }
        };
        let capacity_units = units_of(new, open);
        let load_balancers = balancers(capacity_units.needed);
        let reserved_units_each = match capacity_units.needed.div_ceil(load_balancers) {
            needed if needed < facts::LCU_RESERVED_MIN => 0,
            needed => needed,
        };
        let cloudfront = (question.clients == Clients::Direct).then(|| {
            // Calls in flight keep a connection each to the load balancers, and it stays.
            let behind = units_of(0, in_flight).needed;
            CloudFront {
                distributions: peak.div_ceil(facts::CLOUDFRONT_REQUESTS_PER_SECOND),
                requests_per_second_each_max: facts::CLOUDFRONT_REQUESTS_PER_SECOND,
                load_balancers: balancers(behind),
                capacity_units: behind,
                requests_usd: 0.0,
            }
        });
        let millions_per_second = peak as f64 / 1e6;
        Self {
            new_connections_per_second: new,
            open_connections: open,
            calls_in_flight: in_flight,
            ingest_tls_cpu_seconds_per_second: question.tls_cpu_seconds_per_million() * millions_per_second,
            voter_tls_cpu_seconds_per_second: facts::TLS_CPU_SECONDS_PER_MILLION_HANDSHAKES * new as f64 / 1e6,
            capacity_units,
            load_balancers,
            reserved_units_each,
            reserved_units: reserved_units_each * load_balancers,
            cloudfront,
        }
    }
}

/// Load balancers that may have so many units reserved.
fn balancers(units: u64) -> u64 {
    units.div_ceil(facts::LCU_RESERVED_MAX).max(1)
}
