//! The ports on AWS: one stream, four tables, the machine's clock.
//!
//! Owns the checks before a service starts. Must never create anything unless told to, and never start if a part is
//! missing.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use tokio::time::timeout;
use votestream_core::port::{PortError, Ports};

use crate::{
    client::{AwsConfig, Clients},
    dynamodb::{DynamoConfig, DynamoStore},
    kinesis::{Kinesis, KinesisConfig, Reading},
};

/// Longest time for all checks. AWS takes up to a minute to create tables.
const CONNECT_MAX: Duration = Duration::from_secs(120);

/// Names of the stream and the tables, and how this process uses them.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// Name of the stream.
    pub stream: String,
    /// Prefix of the names of the tables.
    pub table_prefix: String,
    /// For development: create the tables and the stream if they do not exist, the stream with this many shards.
    pub create_with_shards: Option<u32>,
    /// How the stream is read.
    pub reading: Reading,
    /// Number of processes that put records.
    pub writers: u32,
    /// Most write units per second that this process spends on votes; `None` sets no limit.
    pub write_units_per_second: Option<NonZeroU32>,
}

impl Deployment {
    /// An existing stream and existing tables, read by polling, without a limit on write units.
    pub fn new(stream: impl Into<String>, table_prefix: impl Into<String>) -> Self {
        Self {
            stream: stream.into(),
            table_prefix: table_prefix.into(),
            create_with_shards: None,
            reading: Reading::POLLING,
            writers: 1,
            write_units_per_second: None,
        }
    }
}

/// Why connecting failed: one line for everything that is missing or not allowed.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ConnectError(Vec<String>);

/// Connects to the stream and the tables, and checks that they exist and may be used.
///
/// # Errors
///
/// If something is missing or not allowed.
pub async fn connect(aws: &AwsConfig, deployment: Deployment) -> Result<Ports, ConnectError> {
    let connecting = timeout(CONNECT_MAX, connect_now(aws, deployment));
    connecting.await.unwrap_or_else(|_| Err(ConnectError(vec![format!("no answer within {CONNECT_MAX:?}")])))
}

async fn connect_now(aws: &AwsConfig, deployment: Deployment) -> Result<Ports, ConnectError> {
    let clients = Clients::new(aws).await;
    if clients.kinesis.config().region().is_none_or(|region| region.as_ref().is_empty()) {
        return Err(ConnectError(vec![
            "no AWS region is set: set AWS_REGION, or choose a profile that has one".into(),
        ]));
    }
    let config = DynamoConfig {
        table_prefix: deployment.table_prefix,
        write_units_per_second: deployment.write_units_per_second,
        ..DynamoConfig::default()
    };
    let store = DynamoStore::new(clients.dynamodb.clone(), &config);
    let stream_config = KinesisConfig {
        reading: deployment.reading,
        writers: deployment.writers,
        ..KinesisConfig::new(&deployment.stream)
    };
    let stream = async {
        if let Some(shards) = deployment.create_with_shards {
            Kinesis::create_stream(&clients, &deployment.stream, shards).await?;
        }
        Kinesis::connect(&clients, stream_config).await
    };
    let tables = async {
        if deployment.create_with_shards.is_some() {
            store.create_tables().await?;
        }
        store.check_tables().await
    };
    let (stream, tables) = tokio::join!(stream, tables);
    let failed = |error: &PortError| error.to_string();
    match (stream, tables) {
        (Ok(stream), Ok(())) => {
            let store = Arc::new(store);
            Ok(Ports {
                stream: Arc::new(stream),
                polls: store.clone(),
                votes: store.clone(),
                tallies: store.clone(),
                leases: store,
                clock: clients.clock,
            })
        }
        (stream, tables) => Err(ConnectError([stream.err(), tables.err()].iter().flatten().map(failed).collect())),
    }
}
