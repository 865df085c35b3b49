//! The vote stream on Kinesis Data Streams.
//!
//! Owns the producer, the shard map and both ways of reading. Must never retry a put, and never interpret a record.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use aws_sdk_kinesis::{Client, types::StreamStatus};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::sleep;
use votestream_core::{
    SequenceNumber, ShardId,
    port::{Group, PortError, RecordReader, Shard, Stored, VoteStream},
};

use crate::{
    client::{Clients, Failure, Verdict, port_error},
    connections::HttpClients,
};

mod address;
mod cursor;
mod fanout;
pub mod limits;
mod pace;
mod polling;
mod producer;
mod shards;

use address::StreamAddress;
use cursor::Cursor;
use fanout::{FanOutReader, RegisteredConsumer};
use pace::Pace;
use polling::PollingReader;
use producer::RecordPuts;

/// How long a record waits for others to share its call, unless configured. A call takes ten milliseconds, so this adds
/// little.
const LINGER: Duration = Duration::from_millis(3);
/// Groups that share a shard's reads.
const GROUPS: u32 = 2;
/// How long a new stream is waited for. Kinesis takes some ten seconds.
const CREATION_WAIT: Attempts = Attempts { times: 240, pause: Duration::from_millis(250) };

/// How often something is looked at again, and after which pause each.
#[derive(Clone, Copy)]
struct Attempts {
    times: u32,
    pause: Duration,
}

/// How the shards are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// By GetRecords. It costs nothing extra; all groups together may do five reads and 2 MiB per second and shard.
    Polling {
        /// Pause between two reads of one shard by one group. May be shorter than [`Reading::POLLING_PAUSE`] only on
        /// stand-ins.
        pause: Duration,
    },
    /// By SubscribeToShard. Each group gets 2 MiB per second and shard; AWS charges for it.
    EnhancedFanOut {
        /// Start of the names of the registered consumers. A dash and the group follow.
        consumer: String,
        /// Shortest time between two subscriptions to the same shard. May be shorter than [`limits::RESUBSCRIBE_AFTER`]
        /// only on stand-ins.
        resubscribe_after: Duration,
    },
}

impl Reading {
    /// Pause between two reads. It keeps both groups together within five reads per second, and leaves one read for a
    /// hand-over.
    pub const POLLING_PAUSE: Duration =
        Duration::from_millis(1_000 * GROUPS as u64 / (limits::SHARD_READS_PER_SECOND as u64 - 1));

    /// Polling within the limits of Kinesis.
    pub const POLLING: Self = Self::Polling { pause: Self::POLLING_PAUSE };

    /// How the services read: by enhanced fan-out under the names that the CDK app registers, or by polling.
    pub fn of_services(fan_out: bool) -> Self {
        if fan_out { Self::enhanced_fan_out("votestream") } else { Self::POLLING }
    }

    /// Enhanced fan-out within the limits of Kinesis.
    pub fn enhanced_fan_out(consumer: impl Into<String>) -> Self {
        Self::EnhancedFanOut { consumer: consumer.into(), resubscribe_after: limits::RESUBSCRIBE_AFTER }
    }
}

/// Name of the stream, and how to use it.
#[derive(Clone, Debug)]
pub struct KinesisConfig {
    /// Name of the stream, or its ARN.
    pub stream: String,
    /// How shards are read.
    pub reading: Reading,
    /// How long a record waits for others to share its call.
    pub linger: Duration,
    /// Number of processes that put records. Each uses an equal part of a shard's rate.
    pub writers: u32,
}

impl KinesisConfig {
    /// A stream that only this process writes to, read by polling.
    pub fn new(stream: impl Into<String>) -> Self {
        Self { stream: stream.into(), reading: Reading::POLLING, linger: LINGER, writers: 1 }
    }
}

/// The vote stream.
pub struct Kinesis {
    client: Client,
    stream: StreamAddress,
    reading: Reading,
    consumers: [Arc<RegisteredConsumer>; GROUPS as usize],
    http_clients: HttpClients,
    producer: RecordPuts,
    pace: Arc<Pace>,
    /// Shards that an answer named but no shard map has shown yet.
    unlisted: Mutex<BTreeSet<ShardId>>,
    /// Shards of the last map.
    listed: Mutex<BTreeSet<ShardId>>,
}

impl Kinesis {
    /// Opens the stream.
    ///
    /// # Errors
    ///
    /// If the stream does not exist, is not active, or may not be used by this process.
    pub async fn connect(clients: &Clients, config: KinesisConfig) -> Result<Self, PortError> {
        Ok(Self::try_connect(clients, config).await?)
    }

    pub(crate) async fn try_connect(clients: &Clients, config: KinesisConfig) -> Result<Self, Failure> {
        let client = clients.kinesis.clone();
        let stream = StreamAddress::new(&config.stream).map_err(|wrong| Failure::new(Verdict::Permanent, wrong))?;
        let what = format!("the stream {:?}", config.stream);
        let ours = client.config().region().map(AsRef::as_ref).unwrap_or_default();
        if let Some(region) = stream.region()
            && region != ours
        {
            let text = format!("{what} is in the region {region}, but this process calls the region {ours:?}");
            return Err(Failure::new(Verdict::Permanent, text));
        }
        let request = client.describe_stream_summary().set_stream_name(stream.name()).set_stream_arn(stream.arn());
        let described = request.send().await.map_err(|error| {
            let missing = error.as_service_error().is_some_and(|error| error.is_resource_not_found_exception());
            let hint = "there is no such stream in this region and account";
            Failure::of(&if missing { format!("{what}: {hint}") } else { what.clone() }, &error)
        })?;
        let summary = described.stream_description_summary;
        let empty = || Failure::new(Verdict::Unknown, format!("{what}: an empty description"));
        let summary = summary.ok_or_else(empty)?;
        if !matches!(summary.stream_status, StreamStatus::Active | StreamStatus::Updating) {
            return Err(Failure::new(Verdict::Refused, format!("{what} is {}", summary.stream_status)));
        }
        let arn = Arc::<str>::from(summary.stream_arn);
        let first = shards::list(&client, &stream).await?;
        let prefix = match &config.reading {
            Reading::EnhancedFanOut { consumer, .. } => consumer.as_str(),
            Reading::Polling { .. } => "",
        };
        let consumer = |group| Arc::new(RegisteredConsumer::new(client.clone(), arn.clone(), prefix, group));
        let pace = Arc::new(Pace::new(config.writers));
        let kinesis = Self {
            consumers: [consumer(Group::Persist), consumer(Group::Tally)],
            producer: RecordPuts::start(client.clone(), stream.clone(), pace.clone(), config.linger),
            client,
            stream,
            reading: config.reading,
            http_clients: clients.http_clients.clone(),
            pace,
            unlisted: Mutex::default(),
            listed: Mutex::default(),
        };
        kinesis.take_over(&first);
        Ok(kinesis)
    }

    /// For development: creates the stream with this many shards if it does not exist, and waits until it can be used.
    /// Sets nothing but the number of shards.
    ///
    /// # Errors
    ///
    /// If Kinesis refuses, or the stream does not become active in time.
    pub async fn create_stream(clients: &Clients, stream: &str, shards: u32) -> Result<(), PortError> {
        let what = format!("CreateStream {stream:?}");
        if stream.starts_with("arn:") {
            return Err(PortError::permanent(format!("{what}: a stream is created by its name")));
        }
        let shards = i32::try_from(shards).map_err(|_| PortError::permanent(format!("{what}: {shards} shards")))?;
        let created = clients.kinesis.create_stream().stream_name(stream).shard_count(shards).send().await;
        if let Err(error) = created
            && !error.as_service_error().is_some_and(|error| error.is_resource_in_use_exception())
        {
            return Err(port_error(&what, &error));
        }
        let Attempts { times, pause } = CREATION_WAIT;
        for _ in 0..times {
            let described = clients.kinesis.describe_stream_summary().stream_name(stream).send().await;
            let described = described.map_err(|error| port_error(&what, &error))?;
            if described.stream_description_summary.is_some_and(|found| found.stream_status == StreamStatus::Active) {
                return Ok(());
            }
            sleep(pause).await;
        }
        Err(PortError::refused(format!("{what}: it did not become active")))
    }

    fn take_over(&self, shards: &[Shard]) {
        self.pace.set_shards(shards);
        *self.listed.lock() = shards.iter().map(|shard| shard.id.clone()).collect();
    }
}

#[async_trait]
impl VoteStream for Kinesis {
    async fn list_shards(&self) -> Result<Vec<Shard>, PortError> {
        let Attempts { times, pause } = shards::MISSING_SHARD_READS;
        for read in 0..times {
            if read > 0 {
                sleep(pause).await;
            }
            let shards = shards::list(&self.client, &self.stream).await?;
            let complete = {
                let mut unlisted = self.unlisted.lock();
                unlisted.retain(|named| !shards.iter().any(|shard| shard.id == *named));
                unlisted.is_empty()
            };
            if complete {
                self.take_over(&shards);
                return Ok(shards);
            }
        }
        Err(PortError::refused(format!("ListShards of {} does not show shards that take records", self.stream)))
    }

    async fn put(&self, hash: u128, data: Bytes) -> Result<Stored, PortError> {
        let stored = self.producer.put(hash, data).await?;
        if !self.listed.lock().contains(&stored.shard) {
            self.unlisted.lock().insert(stored.shard.clone());
        }
        Ok(stored)
    }

    async fn reader(
        &self,
        group: Group,
        shard: &ShardId,
        after: SequenceNumber,
    ) -> Result<Box<dyn RecordReader>, PortError> {
        let (client, cursor) = (self.client.clone(), Cursor::new(after));
        Ok(match &self.reading {
            Reading::Polling { pause } => {
                Box::new(PollingReader::new(client, self.stream.clone(), shard.clone(), cursor, *pause))
            }
            Reading::EnhancedFanOut { resubscribe_after, .. } => {
                let consumer = match group {
                    Group::Persist => &self.consumers[0],
                    Group::Tally => &self.consumers[1],
                };
                let (http, consumer) = (self.http_clients.clone(), consumer.clone());
                let calls = (client, self.stream.clone());
                Box::new(FanOutReader::new(calls, http, consumer, shard.clone(), cursor, *resubscribe_after))
            }
        })
    }
}
