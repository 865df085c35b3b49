//! The store on DynamoDB: one table each for polls, votes, tallies and shard rows.
//!
//! Owns the tables, their names and the meters of what calls cost. Every read that a decision is based on is strongly
//! consistent. Every write carries the condition that its port names. Must never decide by a clock or by what this
//! process remembers: what it remembers only chooses which request is tried first.
//!
//! | table | partition key | sort key | item |
//! |---|---|---|---|
//! | `PREFIXpolls` | `poll_id` | | `polls.rs` |
//! | `PREFIXvotes` | `poll_bucket` (poll_id#bucket) | `user_id` | `votes.rs` |
//! | `PREFIXtallies` | `poll_id` | `group_shard` (group#shard_id) | `tallies.rs` |
//! | `PREFIXshards` | `shard_group` | `shard_id` | `shards.rs` |

mod budget;
mod item;
mod known_voters;
mod meter;
mod polls;
mod retry;
mod shards;
mod tables;
mod tallies;
mod votes;

use std::{num::NonZeroU32, sync::Arc};

use aws_sdk_dynamodb::Client;
use tokio::sync::Semaphore;

pub use self::meter::{StoreMetrics, TableMetrics};
use self::{
    budget::WriteBudget,
    known_voters::KnownVoters,
    meter::Meters,
    tables::TableNames,
    votes::{CALLS_IN_FLIGHT, Statements},
};

/// Settings of the store.
#[derive(Clone, Debug)]
pub struct DynamoConfig {
    /// Prefix of the name of every table.
    pub table_prefix: String,
    /// Most write units per second that this process spends on votes; `None` sets no limit.
    pub write_units_per_second: Option<NonZeroU32>,
    /// How many voters are remembered, four bytes each. For a remembered voter the store skips an INSERT that would
    /// fail.
    pub voters_remembered: usize,
}

impl Default for DynamoConfig {
    fn default() -> Self {
        Self { table_prefix: "votestream-".into(), write_units_per_second: None, voters_remembered: 8 << 20 }
    }
}

/// The store. Implements the ports of polls, votes, tallies and leases.
#[derive(Clone)]
pub struct DynamoStore {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    tables: TableNames,
    statements: Statements,
    meters: Meters,
    budget: WriteBudget,
    voters: KnownVoters,
    /// Permits for calls on the table of votes: without them, many windows at once would open a connection each.
    calls: Semaphore,
}

impl DynamoStore {
    /// Makes a store that uses this client. Makes no call yet.
    pub fn new(client: Client, config: &DynamoConfig) -> Self {
        let tables = TableNames::new(&config.table_prefix);
        let inner = Inner {
            client,
            statements: Statements::new(&tables.votes),
            tables,
            meters: Meters::new(),
            budget: WriteBudget::new(config.write_units_per_second),
            voters: KnownVoters::new(config.voters_remembered),
            calls: Semaphore::new(CALLS_IN_FLIGHT),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The cost of all calls since this process started.
    pub fn metrics(&self) -> StoreMetrics {
        self.inner.meters.snapshot()
    }
}
