//! Keeps the records that were written last in memory, because consumers mostly read these.
//!
//! Owns how many are kept. Must never hold a record that is not synced. Must never have a gap: it holds all records of
//! a shard after a certain number.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use votestream_core::{SequenceNumber, Timestamp, port::Record};

/// Most bytes of records that are kept, overhead included: a second or two of the fastest stream.
const TAIL_BYTES_MAX: usize = 32 << 20;
/// Overhead of a record in bytes.
const RECORD_COST: usize = 96;

/// A record that is kept.
struct Kept {
    sequence: u64,
    arrived_at: Timestamp,
    data: Bytes,
}

/// The last records of one shard.
struct OfShard {
    /// Records up to this number are not here.
    gone: u64,
    records: VecDeque<Kept>,
}

/// The last records of all shards.
#[derive(Default)]
pub(super) struct LastRecords {
    shards: Mutex<HashMap<u32, Arc<Mutex<OfShard>>>>,
}

/// The order of the kept records by age. Only the writer uses it.
#[derive(Default)]
pub(super) struct Oldest {
    queue: VecDeque<(u32, usize)>,
    bytes: usize,
}

impl LastRecords {
    /// Adds a shard whose records up to `gone` are not here.
    pub(super) fn begin(&self, shard: u32, gone: u64) {
        self.shards.lock().insert(shard, Arc::new(Mutex::new(OfShard { gone, records: VecDeque::new() })));
    }

    /// Removes a forgotten shard.
    pub(super) fn forget(&self, shard: u32) {
        self.shards.lock().remove(&shard);
    }

    fn of(&self, shard: u32) -> Option<Arc<Mutex<OfShard>>> {
        self.shards.lock().get(&shard).cloned()
    }

    /// Adds a record that was synced.
    pub(super) fn push(&self, oldest: &mut Oldest, shard: u32, sequence: u64, arrived_at: Timestamp, data: Bytes) {
        let Some(of) = self.of(shard) else { return };
        let cost = data.len() + RECORD_COST;
        oldest.queue.push_back((shard, cost));
        oldest.bytes += cost;
        of.lock().records.push_back(Kept { sequence, arrived_at, data });
        while oldest.bytes > TAIL_BYTES_MAX {
            let Some((shard, cost)) = oldest.queue.pop_front() else { break };
            oldest.bytes -= cost;
            let Some(of) = self.of(shard) else { continue };
            let mut of = of.lock();
            if let Some(record) = of.records.pop_front() {
                of.gone = record.sequence;
            }
        }
    }

    /// The records of a shard after `after` and up to `last`; `None` if some of them are not here.
    pub(super) fn read(&self, shard: u32, after: u64, last: u64, limits: Limits) -> Option<Vec<Record>> {
        let of = self.of(shard)?;
        let of = of.lock();
        if after < of.gone {
            return None;
        }
        let first = of.records.partition_point(|record| record.sequence <= after);
        let mut left = limits;
        let read =
            of.records.range(first..).take_while(|record| record.sequence <= last && left.take(record.data.len()));
        let record = |record: &Kept| Record {
            sequence: SequenceNumber::from_u64(record.sequence),
            arrived_at: record.arrived_at,
            partition_key: String::new(),
            data: record.data.clone(),
        };
        Some(read.map(record).collect())
    }
}

/// How much a call reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

impl Limits {
    /// Whether one more record of this size may be read: yes, as long as there is room for one byte.
    pub(super) fn take(&mut self, len: usize) -> bool {
        if self.records == 0 || self.bytes == 0 {
            return false;
        }
        self.records -= 1;
        self.bytes = self.bytes.saturating_sub(len);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_all_records_behind_a_number_and_not_too_many() {
        let (tail, mut oldest) = (LastRecords::default(), Oldest::default());
        tail.begin(0, 5);
        tail.begin(1, 0);
        let limits = Limits { records: 10, bytes: 1_000 };
        assert!(tail.read(0, 4, 9, limits).is_none() && tail.read(2, 0, 9, limits).is_none());
        assert_eq!(tail.read(0, 5, 9, limits).unwrap(), []);
        let mebibyte = Bytes::from(vec![1; 1 << 20]);
        for sequence in 6..100u64 {
            tail.push(&mut oldest, (sequence % 2) as u32, sequence, Timestamp(sequence as i64), mebibyte.clone());
            assert!(oldest.bytes <= TAIL_BYTES_MAX);
        }
        assert_eq!(oldest.queue.len(), 31);
        assert!(tail.read(1, 66, 99, limits).is_none());
        let numbers = |records: Vec<Record>| -> Vec<_> {
            records.iter().map(|record| record.sequence.as_u64().unwrap()).collect()
        };
        let many = Limits { records: 4, bytes: usize::MAX };
        assert_eq!(numbers(tail.read(1, 71, 99, many).unwrap()), [73, 75, 77, 79]);
        assert_eq!(numbers(tail.read(1, 93, 97, many).unwrap()), [95, 97], "what is not to be read yet");
        assert_eq!(numbers(tail.read(0, 70, 99, limits).unwrap()), [72], "bytes");
        tail.forget(1);
        assert!(tail.read(1, 99, 99, limits).is_none());
        (100..200).for_each(|sequence| tail.push(&mut oldest, 0, sequence, Timestamp(0), mebibyte.clone()));
    }
}
