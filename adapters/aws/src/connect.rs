//! The ports on AWS: one stream, four tables, the machine's clock.
//!
//! Owns the checks before a service starts, and how often they are repeated. Must never create anything unless told to, and
//! never start if a part is missing.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use rand::RngExt;
use tokio::time::{Instant, sleep, timeout_at};
use votestream_core::port::Ports;

use crate::{
    client::{AwsConfig, Clients, Failure, Verdict},
    dynamodb::{DynamoConfig, DynamoStore},
    kinesis::{Kinesis, KinesisConfig, Reading},
};

/// Longest time for all checks. AWS takes up to a minute to create tables.
const CONNECT_MAX: Duration = Duration::from_secs(120);
/// How long refused credentials are tried again. A new role or permission takes a moment until it is known everywhere (IAM
/// User Guide, "Changes that I make are not always immediately visible"), and AWS refuses good credentials now and then. It
/// names no duration; after this one a missing permission is reported.
const CREDENTIALS_DOUBTED_FOR: Duration = Duration::from_secs(15);
/// Longest first and longest pause before the checks are repeated. When a whole deployment starts, the pauses spread what it
/// asks for: an account may describe its streams 20 times a second (DescribeStreamSummary).
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_LONGEST: Duration = Duration::from_secs(8);

/// Names of the stream and the tables, and how this process uses them.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// Name of the stream, or its ARN.
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
/// What may pass is tried again: throttling, lost answers, a table that is being created, and for a while also refused
/// credentials. Everything else is reported at once.
///
/// # Errors
///
/// If something is missing or not allowed.
pub async fn connect(aws: &AwsConfig, deployment: Deployment) -> Result<Ports, ConnectError> {
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
    let create = deployment.create_with_shards;
    let open_stream = async || {
        if let Some(shards) = create {
            Kinesis::create_stream(&clients, &stream_config.stream, shards).await?;
        }
        Kinesis::try_connect(&clients, stream_config.clone()).await
    };
    let check_tables = async || {
        if create.is_some() {
            store.create_tables().await?;
        }
        store.try_tables().await
    };
    let mut repeats = Repeats::new();
    // What was opened or checked once is not looked at again.
    let (mut stream, mut checked) = (None, None);
    loop {
        let (opened, found) = tokio::join!(
            repeats.in_time(async {
                match stream.take() {
                    Some(stream) => Ok(stream),
                    None => open_stream().await,
                }
            }),
            repeats.in_time(async {
                match checked {
                    Some(()) => Ok(()),
                    None => check_tables().await,
                }
            })
        );
        let failures = match (opened, found) {
            (Ok(stream), Ok(())) => {
                let store = Arc::new(store);
                return Ok(Ports {
                    stream: Arc::new(stream),
                    polls: store.clone(),
                    votes: store.clone(),
                    tallies: store.clone(),
                    leases: store,
                    clock: clients.clock,
                });
            }
            (opened, found) => {
                let mut failures = Vec::new();
                (stream, checked) = (keep(opened, &mut failures), keep(found, &mut failures));
                failures
            }
        };
        repeats.pause_after(failures).await?;
    }
}

fn keep<T>(result: Result<T, Failure>, failures: &mut Vec<Failure>) -> Option<T> {
    result.map_err(|failure| failures.push(failure)).ok()
}

/// How often the checks are repeated.
struct Repeats {
    started: Instant,
    pause: Duration,
}

impl Repeats {
    fn new() -> Self {
        Self { started: Instant::now(), pause: PAUSE_FIRST }
    }

    async fn in_time<T>(&self, check: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let late = |_| Failure::new(Verdict::Permanent, format!("no answer within {CONNECT_MAX:?}"));
        timeout_at(self.started + CONNECT_MAX, check).await.map_err(late)?
    }

    /// Waits before the checks are repeated, or reports the failures if that would not help.
    async fn pause_after(&mut self, failures: Vec<Failure>) -> Result<(), ConnectError> {
        let is = |verdict| failures.iter().any(|failure: &Failure| failure.verdict == verdict);
        let since = self.started.elapsed();
        // Full jitter, so that processes that started together do not stay together.
        let pause = self.pause.mul_f64(rand::rng().random_range(0.1..=1.0));
        let hopeless = is(Verdict::Permanent)
            || is(Verdict::Unauthorized) && since > CREDENTIALS_DOUBTED_FOR
            || since + pause >= CONNECT_MAX;
        let messages: Vec<_> = failures.into_iter().map(|failure| failure.message).collect();
        if hopeless {
            return Err(ConnectError(messages));
        }
        tracing::warn!(error = messages.join("; "), "a check before the start failed and is repeated");
        sleep(pause).await;
        self.pause = (self.pause * 2).min(PAUSE_LONGEST);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often a check is made that always fails so, and for how long.
    async fn tries(verdicts: &[Verdict]) -> (u32, Duration) {
        let (mut repeats, mut tries, start) = (Repeats::new(), 1, Instant::now());
        let failures = || verdicts.iter().map(|verdict| Failure::new(*verdict, "no")).collect();
        while repeats.pause_after(failures()).await.is_ok() {
            tries += 1;
        }
        (tries, start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn checks_are_repeated_as_long_as_that_may_help() {
        for verdict in [Verdict::Refused, Verdict::Unknown] {
            let (tries, time) = tries(&[verdict]).await;
            assert!((10..200).contains(&tries), "{tries}");
            assert!(time > CONNECT_MAX - PAUSE_LONGEST && time < CONNECT_MAX, "{time:?}");
        }
        let (tries_denied, time) = tries(&[Verdict::Refused, Verdict::Unauthorized]).await;
        assert!(tries_denied > 3, "{tries_denied}");
        assert!(time > CREDENTIALS_DOUBTED_FOR && time < CREDENTIALS_DOUBTED_FOR + PAUSE_LONGEST, "{time:?}");
        assert_eq!(tries(&[Verdict::Unknown, Verdict::Permanent]).await, (1, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_has_an_end() {
        let never = std::future::pending::<Result<(), Failure>>();
        let failure = Repeats::new().in_time(never).await.unwrap_err();
        assert_eq!(failure.verdict, Verdict::Permanent);
    }
}
