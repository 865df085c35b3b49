//! The position of a reader in its shard.
//!
//! Owns the proof that nothing was skipped. If the starting point has left the retention, Kinesis silently starts at
//! the oldest record. So a reader starts **at** the last processed record, not after it, and expects to see that record
//! again. If it is there, nothing after it was deleted. If it is not, records after it may be deleted, and the answer
//! is [`ReadOutcome::Expired`]. One case cannot be detected: if the start is [`SequenceNumber::ZERO`], records that the
//! stream dropped before anybody read them. Must never deliver a record twice or out of order.

use aws_sdk_kinesis::types::Record as KinesisRecord;
use bytes::Bytes;
use votestream_core::{
    SequenceNumber, Timestamp,
    port::{PortError, ReadOutcome, Record},
};

/// After this many empty answers in a row, with "caught up" and without the starting point, the reader decides that the
/// starting point is gone. One empty answer is not enough: Kinesis may not have searched the whole shard for it.
const EMPTY_ANSWERS_MAX: u32 = 3;

/// A reader that is this far behind stands where the shortest retention ends ("Change the data retention period" in the
/// developer guide of Kinesis says 24 hours), but for what clocks may differ.
const BEHIND_RETENTION_MS: i64 = 24 * 3_600_000 - 60_000;
/// After this many empty answers in a row, so far behind and never closer, the iterator stands still. Kinesis also
/// answers without records while it looks for some, but then each answer is closer to the end of the shard.
const STILL_ANSWERS_MAX: u32 = 60;

/// The position of a reader.
#[derive(Debug)]
pub(super) struct Cursor {
    after: SequenceNumber,
    /// Whether it is proven that no record directly after `after` is missing.
    proven: bool,
    empty_answers: u32,
    /// Empty answers in a row that came no closer to the end of the shard, and how far behind they were.
    still: (u32, i64),
}

/// What came of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// What the reader returns.
    Outcome(ReadOutcome),
    /// The iterator stands still, far behind. A new one has to show the last record again.
    StandsStill,
}

impl Cursor {
    pub(super) fn new(after: SequenceNumber) -> Self {
        Self { after, proven: after == SequenceNumber::ZERO, empty_answers: 0, still: (0, i64::MAX) }
    }

    /// The record to start at; `None` means the oldest.
    pub(super) fn start_at(&self) -> Option<String> {
        (self.after > SequenceNumber::ZERO).then(|| self.after.to_string())
    }

    /// Begins again at the last record: a new iterator has to show that record first.
    pub(super) fn restart(&mut self) {
        *self = Self::new(self.after);
    }

    /// Takes the records of an answer. `behind_ms` says how far it is behind the end of the shard.
    pub(super) fn take(&mut self, records: Vec<KinesisRecord>, behind_ms: i64) -> Result<Taken, PortError> {
        // All records are checked before the first is taken, so that after an error none is taken.
        let records = records.into_iter().map(convert).collect::<Result<Vec<_>, _>>()?;
        let (is_empty, mut new) = (records.is_empty(), Vec::with_capacity(records.len()));
        for record in records {
            if record.sequence == self.after {
                self.proven = true;
            } else if record.sequence > self.after {
                if !self.proven {
                    return Ok(Taken::Outcome(self.expired()));
                }
                self.after = record.sequence;
                new.push(record);
            }
        }
        if !self.proven && is_empty && behind_ms == 0 {
            self.empty_answers += 1;
            if self.empty_answers >= EMPTY_ANSWERS_MAX {
                return Ok(Taken::Outcome(self.expired()));
            }
        }
        if self.stands_still(is_empty, behind_ms) {
            self.still.0 = 0;
            return Ok(if self.proven { Taken::StandsStill } else { Taken::Outcome(self.expired()) });
        }
        Ok(Taken::Outcome(ReadOutcome::Records(new)))
    }

    fn stands_still(&mut self, is_empty: bool, behind_ms: i64) -> bool {
        let (answers, nearest) = self.still;
        let is_still = is_empty && behind_ms >= BEHIND_RETENTION_MS && behind_ms >= nearest;
        self.still = (if is_still { answers + 1 } else { 0 }, if is_empty { nearest.min(behind_ms) } else { i64::MAX });
        self.still.0 >= STILL_ANSWERS_MAX
    }

    /// The outcome once the shard has ended: everything was read, unless the starting point was never seen.
    pub(super) fn end(&self) -> ReadOutcome {
        if self.proven { ReadOutcome::ShardEnd } else { self.expired() }
    }

    /// Whether it is proven that no record directly after the last one is missing.
    pub(super) fn is_proven(&self) -> bool {
        self.proven
    }

    fn expired(&self) -> ReadOutcome {
        tracing::error!(after = %self.after, "the starting point has left the stream's retention");
        ReadOutcome::Expired
    }
}

fn convert(record: KinesisRecord) -> Result<Record, PortError> {
    let sequence = record.sequence_number.parse().map_err(|error| {
        PortError::permanent(format!("a record's sequence number is {:?}: {error}", record.sequence_number))
    })?;
    let arrived_at = record.approximate_arrival_timestamp.and_then(|at| at.to_millis().ok());
    let arrived_at =
        arrived_at.ok_or_else(|| PortError::permanent(format!("record {sequence} has no arrival time")))?;
    Ok(Record {
        sequence,
        arrived_at: Timestamp(arrived_at),
        partition_key: record.partition_key.unwrap_or_default(),
        data: Bytes::from(record.data.into_inner()),
    })
}

#[cfg(test)]
mod tests {
    use aws_sdk_kinesis::primitives::{Blob, DateTime};

    use super::*;

    fn record(sequence: u64) -> KinesisRecord {
        KinesisRecord::builder()
            .sequence_number(sequence.to_string())
            .approximate_arrival_timestamp(DateTime::from_millis(sequence as i64 + 7))
            .partition_key("key")
            .data(Blob::new(b"data"))
            .build()
            .unwrap()
    }

    fn take(cursor: &mut Cursor, sequences: &[u64], caught_up: bool) -> Option<Vec<u64>> {
        let behind_ms = if caught_up { 0 } else { 1_000 };
        match cursor.take(sequences.iter().map(|&sequence| record(sequence)).collect(), behind_ms).unwrap() {
            Taken::Outcome(ReadOutcome::Records(records)) => {
                assert!(
                    records.iter().all(|record| record.arrived_at.0 == record.sequence.as_u64().unwrap() as i64 + 7)
                );
                Some(records.iter().map(|record| record.sequence.as_u64().unwrap()).collect())
            }
            Taken::Outcome(ReadOutcome::Expired) => None,
            Taken::Outcome(ReadOutcome::ShardEnd) | Taken::StandsStill => unreachable!(),
        }
    }

    fn at(after: u64) -> Cursor {
        Cursor::new(SequenceNumber::from_u64(after))
    }

    #[test]
    fn from_the_oldest_everything_is_let_through_once() {
        let mut cursor = at(0);
        assert_eq!(cursor.start_at(), None);
        assert_eq!(take(&mut cursor, &[], true), Some(vec![]));
        assert_eq!(take(&mut cursor, &[3, 5], true), Some(vec![3, 5]));
        assert_eq!(take(&mut cursor, &[3, 5, 6], false), Some(vec![6]), "what comes again is not new");
        assert_eq!(cursor.start_at(), Some("6".into()));
        assert_eq!(cursor.end(), ReadOutcome::ShardEnd);
    }

    #[test]
    fn a_starting_point_has_to_show_itself() {
        let mut cursor = at(5);
        assert_eq!(take(&mut cursor, &[], false), Some(vec![]), "not there yet");
        assert_eq!(take(&mut cursor, &[5], true), Some(vec![]));
        assert_eq!(take(&mut cursor, &[7], true), Some(vec![7]));
        cursor.restart();
        assert_eq!(take(&mut cursor, &[7, 9], true), Some(vec![9]));

        assert_eq!(take(&mut at(5), &[6], true), None, "4 and 5 have gone, perhaps more");
        let mut cursor = at(5);
        assert_eq!(take(&mut cursor, &[], true), Some(vec![]));
        assert_eq!(cursor.end(), ReadOutcome::Expired, "the shard ended without it");
        assert_eq!(take(&mut cursor, &[], true), Some(vec![]));
        assert_eq!(take(&mut cursor, &[], true), None, "caught up without having seen it");
    }

    /// Empty answers that are so far behind, until something else comes.
    fn empty(cursor: &mut Cursor, behind_ms: i64) -> (u32, Taken) {
        let mut answers = 1;
        loop {
            match cursor.take(Vec::new(), behind_ms).unwrap() {
                Taken::Outcome(ReadOutcome::Records(_)) if answers < 1_000 => answers += 1,
                taken @ (Taken::Outcome(_) | Taken::StandsStill) => return (answers, taken),
            }
        }
    }

    #[test]
    fn empty_answers_a_day_behind_do_not_go_on_for_ever() {
        const DAY_MS: i64 = 86_400_000;
        let gone = |(answers, taken): (u32, Taken)| {
            assert_eq!(taken, Taken::Outcome(ReadOutcome::Expired));
            assert!((STILL_ANSWERS_MAX..1_000).contains(&answers), "{answers}");
        };
        gone(empty(&mut at(5), DAY_MS));
        // A reader that has seen its starting point looks for it again first.
        let mut cursor = at(5);
        assert_eq!(take(&mut cursor, &[5, 6], false), Some(vec![6]));
        assert_eq!(empty(&mut cursor, DAY_MS).1, Taken::StandsStill);
        cursor.restart();
        gone(empty(&mut cursor, DAY_MS + 5));
        // Answers that come closer are on their way to records, and so are those that are less far behind.
        let mut cursor = at(5);
        for closer in 0..2 * i64::from(STILL_ANSWERS_MAX) {
            let taken = cursor.take(Vec::new(), 3 * DAY_MS - closer).unwrap();
            assert_eq!(taken, Taken::Outcome(ReadOutcome::Records(Vec::new())));
        }
        assert_eq!(empty(&mut at(5), DAY_MS / 2).0, 1_000);
    }

    #[test]
    fn a_record_without_its_parts_is_an_error() {
        let mut bad = record(5);
        bad.approximate_arrival_timestamp = None;
        let mut cursor = at(0);
        assert!(!cursor.take(vec![record(4), bad], 0).unwrap_err().retryable);
        assert_eq!(take(&mut cursor, &[4, 5], true), Some(vec![4, 5]), "an error takes nothing");
        let mut bad = record(5);
        bad.sequence_number = "shard".into();
        assert!(!at(0).take(vec![bad], 0).unwrap_err().retryable);
    }
}
