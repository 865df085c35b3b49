//! Reads a shard by enhanced fan-out: Kinesis pushes the records to each registered consumer, up to 2 MiB per second to
//! each.
//!
//! Owns the registration of the groups and the subscription to each shard. Kinesis ends a subscription after five
//! minutes, or earlier. Must never continue where it cannot prove that nothing was skipped: see [`Cursor`].

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use aws_sdk_kinesis::{
    Client,
    operation::subscribe_to_shard::SubscribeToShardOutput,
    types::{ConsumerStatus, ShardIteratorType, StartingPosition, SubscribeToShardEvent, SubscribeToShardEventStream},
};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, sleep_until, timeout},
};
use votestream_core::{
    ShardId,
    observe::metrics,
    port::{Group, PortError, ReadOutcome, RecordReader},
};

use super::{
    Attempts,
    address::StreamAddress,
    cursor::{Cursor, Taken},
    shards,
};
use crate::{
    client::{describe, judge, port_error},
    connections::HttpClients,
};

/// How long a reader waits for an event before it returns nothing.
const EVENT_WAIT: Duration = Duration::from_millis(500);
/// After this time without an event the subscription is dead: Kinesis sends an event every five seconds even without
/// records.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// How long a new consumer is waited for. Kinesis takes some ten seconds.
const REGISTRATION_WAIT: Attempts = Attempts { times: 120, pause: Duration::from_millis(500) };

/// One group as a registered consumer of the stream.
pub(super) struct RegisteredConsumer {
    client: Client,
    stream_arn: Arc<str>,
    name: String,
    /// Its ARN, once it is known to be active.
    arn: Mutex<Option<String>>,
}

impl RegisteredConsumer {
    pub(super) fn new(client: Client, stream_arn: Arc<str>, prefix: &str, group: Group) -> Self {
        Self { client, stream_arn, name: format!("{prefix}-{}", group.as_str()), arn: Mutex::default() }
    }

    /// The consumer's ARN. Registers the consumer if it does not exist; several processes may do so at once.
    async fn arn(&self) -> Result<String, PortError> {
        let mut known = self.arn.lock().await;
        if let Some(arn) = &*known {
            return Ok(arn.clone());
        }
        let Attempts { times, pause } = REGISTRATION_WAIT;
        for _ in 0..times {
            match self.describe().await? {
                Some((arn, ConsumerStatus::Active)) => return Ok(known.insert(arn).clone()),
                None => self.register().await?,
                // It is being created, or an earlier one is being deleted.
                Some(_) => sleep(pause).await,
            }
        }
        Err(PortError::refused(format!("consumer {} did not become active", self.name)))
    }

    async fn describe(&self) -> Result<Option<(String, ConsumerStatus)>, PortError> {
        let request = self.client.describe_stream_consumer().stream_arn(&*self.stream_arn).consumer_name(&self.name);
        match request.send().await {
            Ok(output) => Ok(output.consumer_description.map(|found| (found.consumer_arn, found.consumer_status))),
            Err(error) if error.as_service_error().is_some_and(|error| error.is_resource_not_found_exception()) => {
                Ok(None)
            }
            Err(error) => Err(port_error(&format!("DescribeStreamConsumer of {}", self.name), &error)),
        }
    }

    async fn register(&self) -> Result<(), PortError> {
        let request = self.client.register_stream_consumer().stream_arn(&*self.stream_arn).consumer_name(&self.name);
        match request.send().await {
            Ok(_) => Ok(()),
            // Another process has just registered it.
            Err(error) if error.as_service_error().is_some_and(|error| error.is_resource_in_use_exception()) => Ok(()),
            Err(error) => Err(port_error(&format!("RegisterStreamConsumer of {}", self.name), &error)),
        }
    }

    async fn forget(&self) {
        *self.arn.lock().await = None;
    }
}

struct Subscription {
    output: SubscribeToShardOutput,
    last_event: Instant,
    /// The last event named the shard's children, so the shard is closed.
    closed: bool,
}

/// No record came.
const NOTHING: ReadOutcome = ReadOutcome::Records(Vec::new());

/// Reads one shard.
pub(super) struct FanOutReader {
    client: Client,
    stream: StreamAddress,
    http_clients: HttpClients,
    /// Each reader has its own pool. On a shared connection, records that nobody has taken yet would fill the
    /// connection's window and block all other calls.
    http_client: SharedHttpClient,
    consumer: Arc<RegisteredConsumer>,
    shard: ShardId,
    cursor: Cursor,
    /// The sequence number at which Kinesis tells us to continue, even if no record came.
    continuation: Option<String>,
    subscription: Option<Subscription>,
    pause: Duration,
    next_subscription: Instant,
    ended: bool,
}

impl FanOutReader {
    pub(super) fn new(
        (client, stream): (Client, StreamAddress),
        http_clients: HttpClients,
        consumer: Arc<RegisteredConsumer>,
        shard: ShardId,
        cursor: Cursor,
        pause: Duration,
    ) -> Self {
        let now = Instant::now();
        Self {
            client,
            stream,
            http_client: http_clients.one(),
            http_clients,
            consumer,
            shard,
            cursor,
            continuation: None,
            subscription: None,
            pause,
            next_subscription: now,
            ended: false,
        }
    }

    /// Subscribes; `None` if Kinesis does not know the starting point, or has forgotten the shard.
    async fn subscribe(&mut self) -> Result<Option<Subscription>, PortError> {
        sleep_until(self.next_subscription).await;
        self.next_subscription = Instant::now() + self.pause;
        let arn = self.consumer.arn().await?;
        let position = match (&self.continuation, self.cursor.start_at()) {
            // Everything up to this sequence number was taken.
            (Some(sequence), _) => {
                StartingPosition::builder().r#type(ShardIteratorType::AfterSequenceNumber).sequence_number(sequence)
            }
            (None, Some(sequence)) => {
                self.cursor.restart();
                StartingPosition::builder().r#type(ShardIteratorType::AtSequenceNumber).sequence_number(sequence)
            }
            (None, None) => StartingPosition::builder().r#type(ShardIteratorType::TrimHorizon),
        };
        let position = position.build().map_err(|error| PortError::permanent(error.to_string()))?;
        let request = self.client.subscribe_to_shard().consumer_arn(arn).shard_id(self.shard.as_str());
        let overrides = aws_sdk_kinesis::config::Builder::new().http_client(self.http_client.clone());
        match request.starting_position(position).customize().config_override(overrides).send().await {
            Ok(output) => Ok(Some(Subscription { output, last_event: Instant::now(), closed: false })),
            Err(error) => {
                let failed = port_error(&format!("SubscribeToShard of {}", self.shard), &error);
                let service = error.as_service_error();
                if service.is_some_and(|error| error.is_resource_not_found_exception()) {
                    if shards::is_gone(&self.client, &self.stream, &self.shard).await? {
                        tracing::error!(error = %failed, "the shard has left the stream");
                        return Ok(None);
                    }
                    // Somebody may have deleted the consumer: look for it and register it again.
                    self.consumer.forget().await;
                    return Err(PortError::refused(failed.message));
                }
                if service.is_some_and(|error| error.is_invalid_argument_exception()) {
                    if self.continuation.take().is_some() {
                        return Err(PortError::refused(failed.message));
                    }
                    tracing::error!(error = %failed, "the starting point is not in the stream");
                    return Ok(None);
                }
                Err(failed)
            }
        }
    }

    fn take(&mut self, event: SubscribeToShardEvent) -> Result<ReadOutcome, PortError> {
        let closed = event.child_shards.as_ref().is_some_and(|children| !children.is_empty());
        let SubscribeToShardEvent { records, continuation_sequence_number, millis_behind_latest, .. } = event;
        // At the end of a shard Kinesis sends no continuation. Stand-ins name the children earlier, and then still send
        // records.
        self.ended = closed && (continuation_sequence_number.is_empty() || records.is_empty());
        if let Some(subscription) = &mut self.subscription {
            subscription.closed = closed;
        }
        let taken = self.cursor.take(records, millis_behind_latest)?;
        if self.cursor.is_proven() && !continuation_sequence_number.is_empty() {
            self.continuation = Some(continuation_sequence_number);
        }
        Ok(match taken {
            Taken::Outcome(outcome) => outcome,
            Taken::StandsStill => {
                if !self.ended {
                    tracing::warn!(shard = %self.shard, "events stand still far behind; subscribing at the last record again");
                    // Without a continuation, the last record has to show itself.
                    (self.subscription, self.continuation) = (None, None);
                }
                NOTHING
            }
        })
    }

    /// Ends the subscription. Records that were taken stay taken.
    fn over(&mut self) {
        if self.subscription.take().is_some_and(|subscription| subscription.closed) {
            self.ended = true;
        }
    }
}

#[async_trait]
impl RecordReader for FanOutReader {
    async fn next(&mut self) -> Result<ReadOutcome, PortError> {
        if self.ended {
            self.subscription = None;
            return Ok(self.cursor.end());
        }
        if self.subscription.is_none() {
            match self.subscribe().await? {
                Some(subscription) => self.subscription = Some(subscription),
                None => return Ok(ReadOutcome::Expired),
            }
        }
        let Some(subscription) = &mut self.subscription else { return Ok(NOTHING) };
        let Ok(event) = timeout(EVENT_WAIT, subscription.output.event_stream.recv()).await else {
            if subscription.last_event.elapsed() > SILENCE_MAX {
                tracing::warn!(shard = %self.shard, "a subscription sent no events for too long; subscribing again");
                self.subscription = None;
                // Its connection is likely to have stalled, and must not take the next subscription.
                self.http_client = self.http_clients.one();
                metrics::engine_timed_out();
            }
            return Ok(NOTHING);
        };
        subscription.last_event = Instant::now();
        match event {
            Ok(Some(SubscribeToShardEventStream::SubscribeToShardEvent(event))) => {
                let taken = self.take(event);
                if taken.is_err() {
                    self.subscription = None;
                }
                taken
            }
            // An event that this version does not know; a later version of the service may send it.
            Ok(Some(_)) => Ok(NOTHING),
            // The five minutes are over, or another subscription of this consumer has replaced this one.
            Ok(None) => {
                self.over();
                Ok(NOTHING)
            }
            Err(error) => {
                self.subscription = None;
                let text = describe(&format!("subscription to {}", self.shard), &error);
                // Reading changes nothing, so another subscription is tried even if the failure looks final.
                tracing::debug!(verdict = ?judge(&error, None), text, "a subscription broke");
                Err(PortError::refused(text))
            }
        }
    }
}
