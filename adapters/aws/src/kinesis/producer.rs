//! Puts records: gathers the records of all lanes into PutRecords calls.
//!
//! Owns the queue of records that wait for a call, bounded in bytes and in number, and the answer to each. A record is
//! tried once; its caller decides about another try. Must never answer "stored" for a record unless Kinesis named its
//! sequence number. Must never answer "not stored" unless Kinesis said so or nothing was sent.

use std::{sync::Arc, time::Duration};

use aws_sdk_kinesis::{
    Client,
    primitives::Blob,
    types::{PutRecordsRequestEntry, PutRecordsResultEntry},
};
use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};
use votestream_core::{
    SequenceNumber, ShardId,
    port::{PortError, Stored},
};

use super::{
    address::StreamAddress,
    limits::{PUT_BYTES_MAX, PUT_RECORDS_MAX, RECORD_BYTES_MAX},
    pace::{Pace, Pass},
};
use crate::client::{Verdict, port_error};

/// Kinesis requires a partition key and counts its bytes. The explicit hash key decides the shard.
const PARTITION_KEY: &str = "votes";
/// Most records that wait or are in flight.
const QUEUE_RECORDS_MAX: usize = 4_096;
/// Most bytes that wait or are in flight.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Longest wait for a place in the queue.
const QUEUE_WAIT_MAX: Duration = Duration::from_secs(2);
/// Most PutRecords calls at once.
const CALLS_MAX: usize = 16;

/// A record that waits for its call.
struct Entry {
    hash: u128,
    data: Bytes,
    answer: oneshot::Sender<Result<Stored, PortError>>,
    /// Its part of the shard's rate.
    _pass: Pass,
    /// Its place in the queue, until it is answered.
    _place: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl Entry {
    fn size(&self) -> usize {
        self.data.len() + PARTITION_KEY.len()
    }

    fn answer(self, result: Result<Stored, PortError>) {
        // This fails if the caller has given up.
        self.answer.send(result).ok();
    }
}

/// The entrance to the queue.
pub(super) struct RecordPuts {
    queue: mpsc::Sender<Entry>,
    places: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    pace: Arc<Pace>,
}

impl RecordPuts {
    /// Starts the task that gathers records into calls. The task ends when the producer is dropped.
    pub(super) fn start(client: Client, stream: StreamAddress, pace: Arc<Pace>, linger: Duration) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE_RECORDS_MAX);
        tokio::spawn(gather(waiting, Caller { client, stream, pace: pace.clone() }, linger));
        Self {
            queue,
            places: Arc::new(Semaphore::new(QUEUE_RECORDS_MAX)),
            bytes: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)),
            pace,
        }
    }

    /// Stores one record.
    pub(super) async fn put(&self, hash: u128, data: Bytes) -> Result<Stored, PortError> {
        let size = data.len() + PARTITION_KEY.len();
        if size > RECORD_BYTES_MAX {
            return Err(PortError::permanent(format!("a record of {size} bytes is larger than a shard takes")));
        }
        let stopped = || PortError::refused("the task that puts records was stopped");
        let place = async {
            let bytes = u32::try_from(size).map_or(u32::MAX, |size| size.max(1));
            let place = self.places.clone().acquire_owned().await.map_err(|_| stopped())?;
            Ok::<_, PortError>((place, self.bytes.clone().acquire_many_owned(bytes).await.map_err(|_| stopped())?))
        };
        let full = |_| PortError::refused("too many records wait to be put");
        let place = timeout(QUEUE_WAIT_MAX, place).await.map_err(full)??;
        let Some(pass) = self.pace.pass(hash, size).await else {
            return Err(PortError::refused("the shard takes no more at present"));
        };
        let (answer, answered) = oneshot::channel();
        self.queue.send(Entry { hash, data, answer, _pass: pass, _place: place }).await.map_err(|_| stopped())?;
        answered.await.unwrap_or_else(|_| Err(PortError::unknown("the call that put the record was dropped")))
    }
}

/// Gathers the records that come within `linger` of the first one, up to the limits of a call.
async fn gather(mut waiting: mpsc::Receiver<Entry>, caller: Caller, linger: Duration) {
    let calls = Arc::new(Semaphore::new(CALLS_MAX));
    let mut held_over = None;
    loop {
        let first = match held_over.take() {
            Some(entry) => entry,
            None => match waiting.recv().await {
                Some(entry) => entry,
                None => return,
            },
        };
        let ends = Instant::now() + linger;
        let mut size = first.size();
        let mut batch = vec![first];
        let mut call = None;
        while batch.len() < PUT_RECORDS_MAX {
            let next = match call {
                None => timeout_at(ends, waiting.recv()).await.unwrap_or(None),
                // More records may have come while all calls were in use.
                Some(_) => waiting.try_recv().ok(),
            };
            match next {
                Some(entry) if size + entry.size() <= PUT_BYTES_MAX => {
                    size += entry.size();
                    batch.push(entry);
                }
                Some(entry) => {
                    held_over = Some(entry);
                    break;
                }
                None if call.is_some() => break,
                None => {
                    let Ok(permit) = calls.clone().acquire_owned().await else { return };
                    call = Some(permit);
                }
            }
        }
        let call = match call {
            Some(permit) => permit,
            None => {
                let Ok(permit) = calls.clone().acquire_owned().await else { return };
                permit
            }
        };
        let caller = caller.clone();
        tokio::spawn(async move {
            caller.call(batch).await;
            drop(call);
        });
    }
}

#[derive(Clone)]
struct Caller {
    client: Client,
    stream: StreamAddress,
    pace: Arc<Pace>,
}

impl Caller {
    async fn call(&self, mut batch: Vec<Entry>) {
        // Do not send a record that nobody waits for: its batch was given up.
        batch.retain(|entry| !entry.answer.is_closed());
        if batch.is_empty() {
            return;
        }
        let mut request =
            self.client.put_records().set_stream_name(self.stream.name()).set_stream_arn(self.stream.arn());
        for entry in &batch {
            let record = PutRecordsRequestEntry::builder()
                .partition_key(PARTITION_KEY)
                .explicit_hash_key(entry.hash.to_string())
                .data(Blob::new(entry.data.clone()));
            match record.build() {
                Ok(record) => request = request.records(record),
                // The call has all its parts, so this does not happen. If it did, the answers below would not match.
                Err(error) => {
                    let text = format!("PutRecords cannot be built: {error}");
                    batch.into_iter().for_each(|entry| entry.answer(Err(PortError::permanent(text.clone()))));
                    return;
                }
            }
        }
        match request.send().await {
            Ok(output) if output.records().len() == batch.len() => {
                for (entry, result) in batch.into_iter().zip(output.records()) {
                    let result = self.stored(entry.hash, result);
                    entry.answer(result);
                }
            }
            Ok(output) => {
                let text = format!("PutRecords answered for {} of {} records", output.records().len(), batch.len());
                batch.into_iter().for_each(|entry| entry.answer(Err(PortError::unknown(text.clone()))));
            }
            Err(error) => {
                let failed = port_error("PutRecords", &error);
                tracing::debug!(records = batch.len(), %failed, "a PutRecords call failed");
                for entry in batch {
                    if error
                        .as_service_error()
                        .is_some_and(|error| error.is_provisioned_throughput_exceeded_exception())
                    {
                        self.pace.throttled(entry.hash);
                    }
                    let PortError { retryable, effect, ref message } = failed;
                    entry.answer(Err(PortError { retryable, effect, message: message.clone() }));
                }
            }
        }
    }

    /// Converts the answer for one record.
    fn stored(&self, hash: u128, result: &PutRecordsResultEntry) -> Result<Stored, PortError> {
        if let Some(code) = result.error_code() {
            if code == "ProvisionedThroughputExceededException" {
                self.pace.throttled(hash);
            }
            let message = result.error_message().unwrap_or_default();
            // Without a status: an unknown code of one record says nothing about its effect.
            return Err(Verdict::of_code(code, None).error(format!("PutRecords, one record: {code}: {message}")));
        }
        let (Some(shard), Some(Ok(sequence))) = (result.shard_id(), result.sequence_number().map(str::parse)) else {
            return Err(PortError::unknown(format!("PutRecords answered {result:?}")));
        };
        let sequence: SequenceNumber = sequence;
        Ok(Stored { shard: ShardId::new(shard), sequence })
    }
}
