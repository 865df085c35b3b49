//! Shard rows: which process owns a shard in a group, and how far the shard is processed.
//!
//! Owns their encoding and the condition of each write. The lease counter must never be written together with anything
//! but a take-over. Progress must never be written without its epoch, its predecessor and `ended` in the condition.
//!
//! The attributes `owner` and `wanted_by` are absent if there is no such process, `ends_at` if it is not known, and
//! `lost_from` and `lost_until` if nothing was lost. The dedup table is one binary attribute, see `dedup.rs`.

mod dedup;

use std::collections::HashMap;

use async_trait::async_trait;
use aws_sdk_dynamodb::{
    operation::update_item::{UpdateItemError, UpdateItemOutput, builders::UpdateItemFluentBuilder},
    types::{AttributeValue, ReturnConsumedCapacity, ReturnValue, ReturnValuesOnConditionCheckFailure},
};
use votestream_core::{
    HashRange, SequenceNumber, ShardId, Timestamp,
    port::{Group, Lease, LeaseStore, LostTime, PortError, Progress, ShardRow, Span, WriteOutcome},
};

use super::{
    DynamoStore, Inner,
    item::{Damaged, Item, Reader, binary, number, sequence, text, time},
    meter::Kind,
    retry::repeat_refused,
};
use crate::client::port_error;

/// Partition key.
pub(super) const GROUP: &str = "shard_group";
/// Sort key.
pub(super) const SHARD_ID: &str = "shard_id";
const HASH_START: &str = "hash_start";
const HASH_END: &str = "hash_end";
const PARENTS: &str = "parents";
const STARTED: &str = "started";
const OWNER: &str = "owner";
const COUNTER: &str = "lease_counter";
const EPOCH: &str = "epoch";
const WANTED_BY: &str = "wanted_by";
const CHECKPOINT: &str = "checkpoint";
const WINDOW_END: &str = "window_end";
const MEMORY: &str = "producer_memory";
const WATERMARK: &str = "watermark";
const ENDED: &str = "ended";
const ENDS_AT: &str = "ends_at";
const LOST_FROM: &str = "lost_from";
const LOST_UNTIL: &str = "lost_until";

/// Hashes are stored as text, as in Kinesis: a hash has up to 39 digits, a DynamoDB number only 38.
fn encode(group: Group, row: &ShardRow) -> Result<Item, PortError> {
    // Every field is named, so that a new one cannot be forgotten here.
    let ShardRow { shard, range, parents, started, lease, progress, ends_at, lost } = row;
    let Lease { owner, counter, epoch, wanted_by } = lease;
    let mut item = Item::from([
        (GROUP.to_owned(), text(group.as_str())),
        (SHARD_ID.to_owned(), text(shard.as_str())),
        (HASH_START.to_owned(), text(&range.start.to_string())),
        (HASH_END.to_owned(), text(&range.end.to_string())),
        (PARENTS.to_owned(), AttributeValue::L(parents.iter().map(|parent| text(parent.as_str())).collect())),
        (STARTED.to_owned(), AttributeValue::Bool(*started)),
        (COUNTER.to_owned(), number(counter)),
        (EPOCH.to_owned(), number(epoch)),
    ]);
    item.extend(owner.iter().map(|owner| (OWNER.to_owned(), text(owner))));
    item.extend(wanted_by.iter().map(|by| (WANTED_BY.to_owned(), text(by))));
    item.extend(encode_progress(progress)?.map(|(name, value)| (name.to_owned(), value)));
    item.extend(ends_at.iter().map(|end| (ENDS_AT.to_owned(), sequence(*end))));
    if let Some(LostTime { from, until }) = lost {
        item.extend([(LOST_FROM.to_owned(), time(*from)), (LOST_UNTIL.to_owned(), time(*until))]);
    }
    Ok(item)
}

fn encode_progress(progress: &Progress) -> Result<[(&'static str, AttributeValue); 5], PortError> {
    let Progress { checkpoint, window_end, dedup, watermark, ended } = progress;
    Ok([
        (CHECKPOINT, sequence(*checkpoint)),
        (WINDOW_END, sequence(*window_end)),
        (MEMORY, binary(dedup::encode(dedup)?)),
        (WATERMARK, time(*watermark)),
        (ENDED, AttributeValue::Bool(*ended)),
    ])
}

fn decode_lease(item: &Item) -> Result<Lease, Damaged> {
    let item = Reader(item);
    Ok(Lease {
        owner: item.optional_text(OWNER)?.map(str::to_owned),
        counter: item.number(COUNTER)?,
        epoch: item.number(EPOCH)?,
        wanted_by: item.optional_text(WANTED_BY)?.map(str::to_owned),
    })
}

fn decode(item: &Item) -> Result<ShardRow, Damaged> {
    let reader = Reader(item);
    let hash = |name: &str| reader.text(name)?.parse().map_err(|_| Damaged::at(name));
    Ok(ShardRow {
        shard: ShardId::new(reader.text(SHARD_ID)?),
        range: HashRange { start: hash(HASH_START)?, end: hash(HASH_END)? },
        parents: reader.list(PARENTS, |parent| parent.as_s().ok().map(|parent| ShardId::new(parent.as_str())))?,
        started: reader.bool(STARTED)?,
        lease: decode_lease(item)?,
        progress: Progress {
            checkpoint: reader.sequence(CHECKPOINT)?,
            window_end: reader.sequence(WINDOW_END)?,
            dedup: dedup::decode(reader.binary(MEMORY)?).ok_or_else(|| Damaged::at(MEMORY))?,
            watermark: reader.time(WATERMARK)?,
            ended: reader.bool(ENDED)?,
        },
        ends_at: reader.optional_sequence(ENDS_AT)?,
        lost: decode_lost(reader)?,
    })
}

/// Both ends are written one after the other. If only the first was written, nothing was done about the loss yet.
fn decode_lost(item: Reader<'_>) -> Result<Option<LostTime>, Damaged> {
    if !item.has(LOST_FROM) {
        return Ok(None);
    }
    let from = item.time(LOST_FROM)?;
    let until = if item.has(LOST_UNTIL) { item.time(LOST_UNTIL)? } else { from };
    Ok(Some(LostTime { from, until }))
}

/// The result of a conditional write of a row.
enum Written {
    /// The row after the write, if it was asked for.
    Stored(Option<Item>),
    /// The condition did not hold. This is the stored row, if there is one.
    Refused(Option<Item>),
}

/// A conditional write of one row: its expressions, and the names and values in them.
struct Change<'a> {
    what: &'static str,
    update: &'a str,
    condition: &'a str,
    /// Attributes. In expressions, each is named by itself behind a `#`.
    names: &'a [&'a str],
    values: Vec<(&'a str, AttributeValue)>,
    returns: ReturnValue,
}

impl Inner {
    fn row_update(&self, group: Group, shard: &ShardId, change: &Change<'_>) -> UpdateItemFluentBuilder {
        let names = change.names.iter().map(|name| (format!("#{name}"), (*name).to_owned())).collect();
        let values = change.values.iter().map(|(name, value)| (format!(":{name}"), value.clone())).collect();
        self.client
            .update_item()
            .table_name(&self.tables.shards)
            .key(GROUP, text(group.as_str()))
            .key(SHARD_ID, text(shard.as_str()))
            .update_expression(change.update)
            .condition_expression(change.condition)
            .set_expression_attribute_names(Some(names))
            .set_expression_attribute_values(Some(values).filter(|values: &HashMap<_, _>| !values.is_empty()))
            .return_values(change.returns.clone())
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
    }

    async fn change_row(&self, group: Group, shard: &ShardId, change: Change<'_>) -> Result<Written, PortError> {
        let update = self.row_update(group, shard, &change);
        let result = repeat_refused(&self.meters.shards, || update.clone().send()).await;
        match result {
            Ok(UpdateItemOutput { attributes, consumed_capacity, .. }) => {
                self.meters.shards.consumed(Kind::Write, &consumed_capacity);
                Ok(Written::Stored(attributes))
            }
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(failed)) => {
                    self.meters.shards.unreported(1);
                    // Engines without this feature return no item. Then a read has to find out.
                    let item = match failed.item.clone() {
                        Some(item) if !item.is_empty() => Some(item),
                        _ => self.read_row(group, shard).await?,
                    };
                    Ok(Written::Refused(item))
                }
                _ => Err(port_error(change.what, &error)),
            },
        }
    }

    async fn read_row(&self, group: Group, shard: &ShardId) -> Result<Option<Item>, PortError> {
        let answer = repeat_refused(&self.meters.shards, || {
            self.client
                .get_item()
                .table_name(&self.tables.shards)
                .key(GROUP, text(group.as_str()))
                .key(SHARD_ID, text(shard.as_str()))
                .consistent_read(true)
                .return_consumed_capacity(ReturnConsumedCapacity::Total)
                .send()
        })
        .await
        .map_err(|error| port_error("read a shard row", &error))?;
        self.meters.shards.consumed(Kind::Read, answer.consumed_capacity());
        Ok(answer.item)
    }

    fn damaged_row(&self, damaged: Damaged) -> PortError {
        damaged.in_table(&self.tables.shards)
    }

    /// The row that a write returned.
    fn returned<T>(
        &self,
        item: Option<Item>,
        decode: impl FnOnce(&Item) -> Result<T, Damaged>,
    ) -> Result<T, PortError> {
        // The write took place, but its result is not known.
        let item = item.ok_or_else(|| PortError::unknown("a write to a shard row returned no row"))?;
        decode(&item).map_err(|damaged| self.damaged_row(damaged))
    }
}

#[async_trait]
impl LeaseStore for DynamoStore {
    async fn list(&self, group: Group) -> Result<Vec<ShardRow>, PortError> {
        let inner = &self.inner;
        let mut rows = Vec::new();
        let mut start = None;
        loop {
            let page = repeat_refused(&inner.meters.shards, || {
                inner
                    .client
                    .query()
                    .table_name(&inner.tables.shards)
                    .consistent_read(true)
                    .key_condition_expression("#key = :key")
                    .expression_attribute_names("#key", GROUP)
                    .expression_attribute_values(":key", text(group.as_str()))
                    .return_consumed_capacity(ReturnConsumedCapacity::Total)
                    .set_exclusive_start_key(start.clone())
                    .send()
            })
            .await
            .map_err(|error| port_error("list shard rows", &error))?;
            inner.meters.shards.consumed(Kind::Read, page.consumed_capacity());
            for item in page.items() {
                rows.push(decode(item).map_err(|damaged| inner.damaged_row(damaged))?);
            }
            start = page.last_evaluated_key;
            if start.is_none() {
                return Ok(rows);
            }
        }
    }

    async fn create(&self, group: Group, row: &ShardRow) -> Result<(), PortError> {
        let inner = &self.inner;
        let item = encode(group, row)?;
        let result = repeat_refused(&inner.meters.shards, || {
            inner
                .client
                .put_item()
                .table_name(&inner.tables.shards)
                .set_item(Some(item.clone()))
                .condition_expression("attribute_not_exists(#shard)")
                .expression_attribute_names("#shard", SHARD_ID)
                .return_consumed_capacity(ReturnConsumedCapacity::Total)
                .send()
        })
        .await;
        inner.meters.shards.conditional("create a shard row", result.map(|answer| answer.consumed_capacity)).map(drop)
    }

    async fn start(&self, group: Group, shard: &ShardId, inherited: &Progress) -> Result<(), PortError> {
        let mut values = encode_progress(inherited)?.to_vec();
        values.extend([("yes", AttributeValue::Bool(true)), ("no", AttributeValue::Bool(false))]);
        let change = Change {
            what: "start a shard row",
            update: "SET #started = :yes, #checkpoint = :checkpoint, #window_end = :window_end, \
                     #producer_memory = :producer_memory, #watermark = :watermark, #ended = :ended",
            condition: "#started = :no",
            names: &[STARTED, CHECKPOINT, WINDOW_END, MEMORY, WATERMARK, ENDED],
            values,
            returns: ReturnValue::None,
        };
        match self.inner.change_row(group, shard, change).await? {
            Written::Stored(_) | Written::Refused(Some(_)) => Ok(()),
            Written::Refused(None) => Err(PortError::permanent(format!("cannot start {shard}: it has no shard row"))),
        }
    }

    async fn take(
        &self,
        group: Group,
        shard: &ShardId,
        observed: &Lease,
        owner: &str,
    ) -> Result<Option<ShardRow>, PortError> {
        let change = Change {
            what: "take a shard",
            update: "SET #owner = :owner, #epoch = :next_epoch, #lease_counter = :next_counter REMOVE #wanted_by",
            condition: "#epoch = :epoch AND #lease_counter = :counter AND #started = :yes AND #ended = :no",
            names: &[OWNER, EPOCH, COUNTER, WANTED_BY, STARTED, ENDED],
            values: vec![
                ("owner", text(owner)),
                ("epoch", number(observed.epoch)),
                ("counter", number(observed.counter)),
                ("next_epoch", number(observed.epoch + 1)),
                ("next_counter", number(observed.counter + 1)),
                ("yes", AttributeValue::Bool(true)),
                ("no", AttributeValue::Bool(false)),
            ],
            returns: ReturnValue::AllNew,
        };
        match self.inner.change_row(group, shard, change).await? {
            Written::Stored(item) => self.inner.returned(item, decode).map(Some),
            Written::Refused(_) => Ok(None),
        }
    }

    async fn renew(&self, group: Group, shard: &ShardId, epoch: u64) -> Result<Option<Lease>, PortError> {
        let change = Change {
            what: "renew a lease",
            update: "ADD #lease_counter :one",
            condition: "#epoch = :epoch AND attribute_exists(#owner)",
            names: &[COUNTER, EPOCH, OWNER],
            values: vec![("epoch", number(epoch)), ("one", number(1))],
            returns: ReturnValue::AllNew,
        };
        match self.inner.change_row(group, shard, change).await? {
            Written::Stored(item) => self.inner.returned(item, decode_lease).map(Some),
            Written::Refused(_) => Ok(None),
        }
    }

    async fn release(&self, group: Group, shard: &ShardId, epoch: u64) -> Result<(), PortError> {
        let change = Change {
            what: "release a lease",
            update: "REMOVE #owner",
            condition: "#epoch = :epoch AND attribute_exists(#owner)",
            names: &[OWNER, EPOCH],
            values: vec![("epoch", number(epoch))],
            returns: ReturnValue::None,
        };
        self.inner.change_row(group, shard, change).await.map(drop)
    }

    async fn request(&self, group: Group, shard: &ShardId, epoch: u64, by: &str) -> Result<(), PortError> {
        let change = Change {
            what: "ask for a shard",
            update: "SET #wanted_by = :by",
            condition: "#epoch = :epoch AND attribute_not_exists(#wanted_by)",
            names: &[WANTED_BY, EPOCH],
            values: vec![("epoch", number(epoch)), ("by", text(by))],
            returns: ReturnValue::None,
        };
        self.inner.change_row(group, shard, change).await.map(drop)
    }

    async fn write_progress(
        &self,
        group: Group,
        shard: &ShardId,
        epoch: u64,
        previous: Span,
        progress: &Progress,
    ) -> Result<WriteOutcome, PortError> {
        let mut values = encode_progress(progress)?.to_vec();
        values.extend([
            ("epoch", number(epoch)),
            ("previous_checkpoint", sequence(previous.checkpoint)),
            ("previous_end", sequence(previous.window_end)),
            ("no", AttributeValue::Bool(false)),
        ]);
        let change = Change {
            what: "write progress",
            update: "SET #checkpoint = :checkpoint, #window_end = :window_end, #producer_memory = :producer_memory, \
                     #watermark = :watermark, #ended = :ended",
            condition: "#epoch = :epoch AND #checkpoint = :previous_checkpoint AND #window_end = :previous_end \
                        AND #ended = :no",
            names: &[CHECKPOINT, WINDOW_END, MEMORY, WATERMARK, ENDED, EPOCH],
            values,
            returns: ReturnValue::None,
        };
        match self.inner.change_row(group, shard, change).await? {
            Written::Stored(_) => Ok(WriteOutcome::Stored),
            Written::Refused(None) => Ok(WriteOutcome::Refused(None)),
            Written::Refused(Some(item)) => {
                let row = decode(&item).map_err(|damaged| self.inner.damaged_row(damaged))?;
                Ok(WriteOutcome::Refused(Some(Box::new(row))))
            }
        }
    }

    async fn note_end(&self, group: Group, shard: &ShardId, ends_at: SequenceNumber) -> Result<(), PortError> {
        let change = Change {
            what: "note the end of a shard",
            update: "SET #ends_at = :ends_at",
            condition: "attribute_exists(#epoch) AND attribute_not_exists(#ends_at)",
            names: &[ENDS_AT, EPOCH],
            values: vec![("ends_at", sequence(ends_at))],
            returns: ReturnValue::None,
        };
        self.inner.change_row(group, shard, change).await.map(drop)
    }

    async fn note_lost(&self, group: Group, shard: &ShardId, lost: LostTime) -> Result<(), PortError> {
        let earlier: (&str, &str, Timestamp) = (LOST_FROM, ">", lost.from);
        for (name, moves, at) in [earlier, (LOST_UNTIL, "<", lost.until)] {
            let condition =
                format!("attribute_exists(#epoch) AND (attribute_not_exists(#{name}) OR #{name} {moves} :at)");
            let update = format!("SET #{name} = :at");
            let change = Change {
                what: "note what was lost",
                update: &update,
                condition: &condition,
                names: &[name, EPOCH],
                values: vec![("at", time(at))],
                returns: ReturnValue::None,
            };
            self.inner.change_row(group, shard, change).await?;
        }
        Ok(())
    }

    async fn delete(&self, group: Group, shard: &ShardId) -> Result<(), PortError> {
        let inner = &self.inner;
        let deleted = repeat_refused(&inner.meters.shards, || {
            inner
                .client
                .delete_item()
                .table_name(&inner.tables.shards)
                .key(GROUP, text(group.as_str()))
                .key(SHARD_ID, text(shard.as_str()))
                .condition_expression("#ended = :yes AND attribute_not_exists(#lost_from)")
                .expression_attribute_names("#ended", ENDED)
                .expression_attribute_names("#lost_from", LOST_FROM)
                .expression_attribute_values(":yes", AttributeValue::Bool(true))
                .return_consumed_capacity(ReturnConsumedCapacity::Total)
                .send()
        })
        .await;
        inner.meters.shards.conditional("delete a shard row", deleted.map(|answer| answer.consumed_capacity)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(
            shard in ".{1,40}", range: (u128, u128), parents in prop::collection::vec(".{1,40}", 0..3),
            flags: (bool, bool), owner in prop::option::of(".{1,20}"), wanted_by in prop::option::of(".{1,20}"),
            numbers: (u64, u64, u64, u64, i64), dedup in dedup::tests::dedup(),
            ends_at in prop::option::of(any::<u64>()), lost in prop::option::of((any::<i64>(), any::<i64>())),
        ) {
            let (counter, epoch, checkpoint, window_end, watermark) = numbers;
            let row = ShardRow {
                shard: ShardId::new(shard),
                range: HashRange { start: range.0, end: range.1 },
                parents: parents.into_iter().map(ShardId::new).collect(),
                started: flags.0,
                lease: Lease { owner, counter, epoch, wanted_by },
                progress: Progress {
                    checkpoint: SequenceNumber::from_u64(checkpoint),
                    window_end: SequenceNumber::from_u64(window_end),
                    dedup,
                    watermark: Timestamp(watermark),
                    ended: flags.1,
                },
                ends_at: ends_at.map(SequenceNumber::from_u64),
                lost: lost.map(|(from, until)| LostTime { from: Timestamp(from), until: Timestamp(until) }),
            };
            prop_assert_eq!(decode(&encode(Group::Tally, &row).unwrap()), Ok(row));
        }
    }
}
