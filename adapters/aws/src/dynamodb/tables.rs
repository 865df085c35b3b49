//! The tables: their names and keys. Creates them for development, and checks them when a service starts.
//!
//! Must never change a table that exists, and never create one outside development: the operator decides about
//! capacity, backups and encryption.

use std::time::Duration;

use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType, TableDescription, TableStatus,
};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use futures::future::join_all;
use tokio::time::Instant;
use votestream_core::port::PortError;

use super::{DynamoStore, Inner, polls, retry::repeat_refused, shards, tallies, votes};
use crate::client::{Failure, Verdict};

/// Longest wait for a new table. DynamoDB takes seconds.
const ACTIVE_WITHIN: Duration = Duration::from_secs(120);
/// Pause between checks of a table that is being created.
const ACTIVE_PAUSE: Duration = Duration::from_millis(250);

/// Names of the tables.
pub(super) struct TableNames {
    pub(super) polls: String,
    pub(super) votes: String,
    pub(super) tallies: String,
    pub(super) shards: String,
}

/// What a table must be like.
struct Table<'a> {
    name: &'a str,
    /// Partition key, then the sort key, if there is one. All are of type S (text).
    keys: &'a [&'a str],
}

impl TableNames {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            polls: format!("{prefix}polls"),
            votes: format!("{prefix}votes"),
            tallies: format!("{prefix}tallies"),
            shards: format!("{prefix}shards"),
        }
    }

    fn all(&self) -> [Table<'_>; 4] {
        [
            Table { name: &self.polls, keys: &[polls::POLL_ID] },
            Table { name: &self.votes, keys: &[votes::POLL_BUCKET, votes::USER_ID] },
            Table { name: &self.tallies, keys: &[tallies::POLL_ID, tallies::GROUP_SHARD] },
            Table { name: &self.shards, keys: &[shards::GROUP, shards::SHARD_ID] },
        ]
    }
}

const KEY_TYPES: [KeyType; 2] = [KeyType::Hash, KeyType::Range];

/// What is wrong with an existing table; `None` if it is right.
fn mistake(table: &Table<'_>, description: &TableDescription) -> Option<String> {
    let found: Vec<_> = description.key_schema().iter().map(|key| (key.attribute_name(), key.key_type())).collect();
    let wanted: Vec<_> = table.keys.iter().copied().zip(&KEY_TYPES).collect();
    let name = table.name;
    if found != wanted {
        let found: Vec<_> = found.into_iter().map(|(name, _)| name).collect();
        return Some(format!("table {name} has the keys {found:?}, but must have {:?}", table.keys));
    }
    let text = |key: &&&str| {
        let mut definitions = description.attribute_definitions().iter();
        definitions.any(|of| of.attribute_name() == **key && of.attribute_type() == &ScalarAttributeType::S)
    };
    table.keys.iter().find(|key| !text(key)).map(|key| format!("key {key} of table {name} must be of type S (text)"))
}

impl Inner {
    /// The status of a table, or an error that says what is wrong with it.
    async fn describe(&self, table: &Table<'_>) -> Result<TableStatus, Failure> {
        let name = table.name;
        let call = || self.client.describe_table().table_name(name).send();
        let answer = repeat_refused(&self.meters.polls, call).await.map_err(|error| match error.code() {
            Some("ResourceNotFoundException") => {
                Failure::new(Verdict::Permanent, format!("table {name} does not exist"))
            }
            Some("AccessDeniedException") => {
                let said = error.message().unwrap_or_default();
                let text = format!("no permission to describe table {name} (dynamodb:DescribeTable): {said}");
                Failure { message: text, ..Failure::of(name, &error) }
            }
            _ => Failure::of(&format!("describe table {name}"), &error),
        })?;
        let undescribed = || Failure::new(Verdict::Unknown, format!("table {name} was not described"));
        let description = answer.table().ok_or_else(undescribed)?;
        match mistake(table, description) {
            Some(mistake) => Err(Failure::new(Verdict::Permanent, mistake)),
            None => Ok(description.table_status().cloned().unwrap_or(TableStatus::Active)),
        }
    }

    async fn check(&self, table: &Table<'_>) -> Result<(), Failure> {
        let status = self.describe(table).await?;
        // A table serves reads and writes while it is being updated.
        if status == TableStatus::Active || status == TableStatus::Updating {
            return Ok(());
        }
        Err(Failure::new(Verdict::Refused, format!("table {} is {}", table.name, status.as_str())))
    }

    async fn create(&self, table: &Table<'_>) -> Result<(), Failure> {
        let built =
            |error: aws_smithy_types::error::operation::BuildError| Failure::new(Verdict::Permanent, error.to_string());
        let mut create = self.client.create_table().table_name(table.name).billing_mode(BillingMode::PayPerRequest);
        for (key, key_type) in table.keys.iter().zip(KEY_TYPES) {
            let attribute = AttributeDefinition::builder().attribute_name(*key).attribute_type(ScalarAttributeType::S);
            let element = KeySchemaElement::builder().attribute_name(*key).key_type(key_type);
            create = create
                .attribute_definitions(attribute.build().map_err(built)?)
                .key_schema(element.build().map_err(built)?);
        }
        let result = repeat_refused(&self.meters.polls, || create.clone().send()).await;
        if let Err(error) = result
            && error.code() != Some("ResourceInUseException")
        {
            return Err(Failure::of(&format!("create table {}", table.name), &error));
        }
        let deadline = Instant::now() + ACTIVE_WITHIN;
        loop {
            match self.check(table).await {
                Err(failure) if failure.verdict != Verdict::Permanent && Instant::now() < deadline => {
                    tokio::time::sleep(ACTIVE_PAUSE).await;
                }
                result => return result,
            }
        }
    }
}

/// Combines the failures of all tables, so that one attempt shows every mistake. The worst verdict counts for all.
fn all_of(results: Vec<Result<(), Failure>>) -> Result<(), Failure> {
    let failures: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    let any = |verdict| failures.iter().any(|failure| failure.verdict == verdict);
    let worst = [Verdict::Permanent, Verdict::Unauthorized].into_iter().find(|verdict| any(*verdict));
    let message = failures.iter().map(|failure| failure.message.as_str()).collect::<Vec<_>>().join("; ");
    if failures.is_empty() { Ok(()) } else { Err(Failure::new(worst.unwrap_or(Verdict::Refused), message)) }
}

impl DynamoStore {
    /// For development: creates the tables that do not exist, with on-demand billing, and waits until they serve.
    ///
    /// # Errors
    ///
    /// If DynamoDB refuses, or a table does not serve in time.
    pub async fn create_tables(&self) -> Result<(), PortError> {
        let tables = self.inner.tables.all();
        Ok(all_of(join_all(tables.iter().map(|table| self.inner.create(table))).await)?)
    }

    /// Checks that every table exists, has the right keys, and may be described. Reports all mistakes at once.
    ///
    /// # Errors
    ///
    /// If a table is missing, has other keys, or cannot be described. The error is `retryable` if every mistake may be
    /// temporary.
    pub async fn check_tables(&self) -> Result<(), PortError> {
        Ok(self.try_tables().await?)
    }

    pub(crate) async fn try_tables(&self) -> Result<(), Failure> {
        let tables = self.inner.tables.all();
        all_of(join_all(tables.iter().map(|table| self.inner.check(table))).await)
    }
}
