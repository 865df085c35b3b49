//! Reads one shard.
//!
//! Must never skip a record: what has left retention is reported, even if it leaves while it is being read.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use votestream_core::{
    SequenceNumber,
    port::{PortError, ReadOutcome, Record, RecordReader},
};

use super::{Log, RecordKey, ShardState, Tail};
use crate::{blocking, read_failed};

/// Most records of one call.
const READ_RECORDS_MAX: usize = 64;
/// Bytes after which a call returns.
const READ_BYTES_MAX: usize = 2 << 20;
/// How long a call waits for a record.
const READ_WAIT: Duration = Duration::from_millis(100);

pub(super) struct Reader {
    log: Arc<Log>,
    shard: Arc<ShardState>,
    tail: watch::Receiver<Tail>,
    after: u64,
}

impl Reader {
    pub(super) fn new(log: Arc<Log>, shard: Arc<ShardState>, after: u64) -> Self {
        let tail = shard.tail.subscribe();
        Self { log, shard, tail, after }
    }
}

#[async_trait]
impl RecordReader for Reader {
    async fn next(&mut self) -> Result<ReadOutcome, PortError> {
        let after = self.after;
        let readable = self.tail.wait_for(|tail| tail.last > after || tail.closed_at.is_some());
        // Whether it waited in vain shows in what follows.
        drop(tokio::time::timeout(READ_WAIT, readable).await);
        let tail = *self.tail.borrow();
        let mut records = Vec::new();
        if tail.last > after {
            let (log, shard) = (self.log.clone(), self.shard.index);
            records = blocking(move || scan(&log, shard, after, tail.last)).await?;
        }
        // After the scan: `deleted` is raised before a record is deleted, so a record that the scan missed shows here.
        if self.shard.deleted() > after {
            return Ok(ReadOutcome::Expired);
        }
        match records.last() {
            Some(last) => self.after = last.sequence.as_u64().unwrap_or(after),
            None if tail.closed_at.is_some() => return Ok(ReadOutcome::ShardEnd),
            None => {}
        }
        Ok(ReadOutcome::Records(records))
    }
}

fn scan(log: &Log, shard: u32, after: u64, last: u64) -> Result<Vec<Record>, PortError> {
    let range = RecordKey::prefix(shard, after.saturating_add(1))..RecordKey::prefix(shard, last.saturating_add(1));
    let (mut records, mut bytes) = (Vec::new(), 0);
    for guard in log.records.range(range) {
        let (key, data) = guard.into_inner().map_err(read_failed)?;
        let key = RecordKey::decode(&key).map_err(|corrupt| corrupt.in_a("record"))?;
        bytes += data.len();
        records.push(Record {
            sequence: SequenceNumber::from_u64(key.sequence),
            arrived_at: key.arrived_at,
            partition_key: String::new(),
            data: Bytes::copy_from_slice(&data),
        });
        if records.len() >= READ_RECORDS_MAX || bytes >= READ_BYTES_MAX {
            break;
        }
    }
    Ok(records)
}
