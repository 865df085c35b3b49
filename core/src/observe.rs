//! What operators see: the list of all metrics, and traces.
//!
//! Owns names, units and attributes. Must never name an exporter.

pub mod metrics;
pub mod trace;
