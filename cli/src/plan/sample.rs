//! The AWS sample's own sizing, beside which a plan is shown.
//!
//! Owns how its published run is scaled. Must never say more than it published.

use serde::Serialize;

use super::{facts, tenths};

/// The AWS sample's own sizing. Beyond its published run (20 shards), its rates are assumed to grow with its shards.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    pub(crate) shards: u64,
    pub(crate) vote_write_units: u64,
    pub(crate) write_units_per_second: u64,
    pub(crate) drain_seconds: f64,
    pub(crate) interim_write_units_per_second: f64,
    /// Price of stream and vote writes only.
    pub(crate) stream_and_writes_usd: f64,
}

impl Sample {
    /// For this peak, and so many votes that come within `arrival_seconds`. Without the price.
    pub(super) fn new(peak: u64, votes: u64, arrival_seconds: f64) -> Self {
        let shards = peak.div_ceil(facts::sample::SHARD_VOTES_PER_SECOND);
        let vote_write_units = votes * facts::sample::UNITS_PER_VOTE;
        let scale = shards as f64 / facts::sample::SHARDS as f64;
        let units_per_second = facts::sample::UNITS_PER_SECOND as f64 * scale;
        Self {
            shards,
            vote_write_units,
            write_units_per_second: units_per_second.round() as u64,
            drain_seconds: tenths((vote_write_units as f64 / units_per_second - arrival_seconds).max(0.0)),
            interim_write_units_per_second: tenths(facts::sample::INTERIM_UNITS_PER_SECOND * scale),
            stream_and_writes_usd: 0.0,
        }
    }
}
