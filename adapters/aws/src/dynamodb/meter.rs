//! Meters the cost of calls, as DynamoDB itself reports it, for this store and for the metrics of the process.
//!
//! Must never estimate: if DynamoDB charges a write but no answer reports its units, that write is counted separately.

use std::{
    error::Error as StdError,
    sync::atomic::{AtomicU64, Ordering},
};

use aws_sdk_dynamodb::types::ConsumedCapacity;
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use votestream_core::{
    observe::metrics::{self, Table, Throttled},
    port::PortError,
};

use crate::client::port_error;

/// Units are counted in tenths, because DynamoDB also charges half units.
const TENTHS: f64 = 10.0;

/// Meter of one table.
pub(super) struct Meter {
    table: Table,
    requests: AtomicU64,
    throttles: AtomicU64,
    write_units: AtomicU64,
    read_units: AtomicU64,
    unreported_writes: AtomicU64,
}

/// Whether a call reads or writes. The answers of AWS and of stand-ins only name the total.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Read,
    Write,
}

impl Meter {
    fn new(table: Table) -> Self {
        Self {
            table,
            requests: AtomicU64::new(0),
            throttles: AtomicU64::new(0),
            write_units: AtomicU64::new(0),
            read_units: AtomicU64::new(0),
            unreported_writes: AtomicU64::new(0),
        }
    }

    pub(super) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn throttled(&self, count: usize) {
        self.throttles.fetch_add(count as u64, Ordering::Relaxed);
        let operation = match self.table {
            Table::Votes => Throttled::WriteVotes,
            Table::Tallies => Throttled::WriteTallies,
            Table::Shards | Table::Polls => Throttled::Other,
        };
        metrics::throttled(operation, count as u64);
    }

    pub(super) fn consumed<'a>(&self, kind: Kind, capacity: impl IntoIterator<Item = &'a ConsumedCapacity>) {
        let units: f64 = capacity.into_iter().filter_map(ConsumedCapacity::capacity_units).sum();
        let counter = match kind {
            Kind::Read => &self.read_units,
            Kind::Write => {
                metrics::write_units(self.table, units);
                &self.write_units
            }
        };
        counter.fetch_add((units * TENTHS).round() as u64, Ordering::Relaxed);
    }

    /// Counts writes whose condition failed and whose units the answer does not name.
    pub(super) fn unreported(&self, writes: usize) {
        self.unreported_writes.fetch_add(writes as u64, Ordering::Relaxed);
    }

    /// Meters a write under a condition. Returns whether the condition held. `what` names the write for logs.
    pub(super) fn conditional<E>(
        &self,
        what: &str,
        written: Result<Option<ConsumedCapacity>, SdkError<E, HttpResponse>>,
    ) -> Result<bool, PortError>
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        match written {
            Ok(capacity) => {
                self.consumed(Kind::Write, &capacity);
                Ok(true)
            }
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => {
                self.unreported(1);
                Ok(false)
            }
            Err(error) => Err(port_error(what, &error)),
        }
    }

    fn snapshot(&self) -> TableMetrics {
        let units = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64 / TENTHS;
        TableMetrics {
            requests: self.requests.load(Ordering::Relaxed),
            throttles: self.throttles.load(Ordering::Relaxed),
            write_units: units(&self.write_units),
            read_units: units(&self.read_units),
            unreported_writes: self.unreported_writes.load(Ordering::Relaxed),
        }
    }
}

/// Meters of all tables.
pub(super) struct Meters {
    pub(super) polls: Meter,
    pub(super) votes: Meter,
    pub(super) tallies: Meter,
    pub(super) shards: Meter,
}

impl Meters {
    pub(super) fn new() -> Self {
        Self {
            polls: Meter::new(Table::Polls),
            votes: Meter::new(Table::Votes),
            tallies: Meter::new(Table::Tallies),
            shards: Meter::new(Table::Shards),
        }
    }

    pub(super) fn snapshot(&self) -> StoreMetrics {
        StoreMetrics {
            polls: self.polls.snapshot(),
            votes: self.votes.snapshot(),
            tallies: self.tallies.snapshot(),
            shards: self.shards.snapshot(),
        }
    }
}

/// Cost of the calls on one table.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TableMetrics {
    /// Calls that were sent, retries included.
    pub requests: u64,
    /// Calls and statements that were refused for their rate.
    pub throttles: u64,
    /// Write units as DynamoDB reported them.
    pub write_units: f64,
    /// Read units as DynamoDB reported them.
    pub read_units: f64,
    /// Writes whose condition failed: their answer is an error and names no units. DynamoDB charges them all the same,
    /// one unit for each 1 KB (Amazon DynamoDB Developer Guide, "Read and write operations").
    pub unreported_writes: u64,
}

/// Cost of all calls, by table.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StoreMetrics {
    /// Table of polls.
    pub polls: TableMetrics,
    /// Table of votes.
    pub votes: TableMetrics,
    /// Table of tallies.
    pub tallies: TableMetrics,
    /// Table of shard rows.
    pub shards: TableMetrics,
}
