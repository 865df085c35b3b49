//! The store on DynamoDB: polls, votes, tallies and shard rows on a table each.
//!
//! Owns the tables, their names and the meters of what calls cost. Every read that a decision rests on is strongly
//! consistent, every write carries the condition that its port names. Must never decide by a clock or by what this process
//! remembers: memory only chooses which request is tried first.
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

/// How the store is set up.
#[derive(Clone, Debug)]
pub struct DynamoConfig {
    /// Put before the name of every table.
    pub table_prefix: String,
    /// Most write units a second that this process spends on votes; `None` sets no limit.
    pub write_units_per_second: Option<NonZeroU32>,
    /// How many voters are remembered, so that a changed vote saves an INSERT that fails. Four bytes each.
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
    /// Permits for calls on the table of votes, so that many windows at once do not open a connection each.
    calls: Semaphore,
}

impl DynamoStore {
    /// A store that calls through this client. Calls nothing yet.
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

    /// What calls have cost since the start of this process.
    pub fn metrics(&self) -> StoreMetrics {
        self.inner.meters.snapshot()
    }
}
