//! Stored tallies: one item per (poll, group, shard).
//!
//! Owns their encoding: every option is an attribute of its own, so that one request adds to any number of them. Must
//! never add a window twice: the same write that adds has the stored position in its condition.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnConsumedCapacity};
use futures::{StreamExt, TryStreamExt, stream};
use votestream_core::{
    PollId, SequenceNumber, ShardId,
    port::{Group, PortError, TallyDelta, TallyRow, TallyStore},
};

use super::{
    DynamoStore, Inner,
    item::{Damaged, Item, Reader, as_number, number, sequence, text},
    meter::Kind,
    retry::repeat_refused,
};
use crate::client::port_error;

/// Partition key.
pub(super) const POLL_ID: &str = "poll_id";
/// Sort key: `group#shard_id`. No group's name holds a `#`.
pub(super) const GROUP_SHARD: &str = "group_shard";
const POSITION: &str = "position";
const EPOCH: &str = "epoch";
/// Prefix of an attribute that counts an option. The option's id follows, so no option can take the name of another
/// attribute.
const COUNT: &str = "c#";

/// Most requests of one call that are in flight at the same time.
const ADDS_IN_FLIGHT: usize = 16;
/// Most options that one update expression adds to. An expression holds 4 KB and 300 operators (Amazon DynamoDB
/// Developer Guide, "Quotas and limits").
const ADDED_BY_EXPRESSION_MAX: usize = 250;
const _: () = assert!(ADDED_BY_EXPRESSION_MAX * "#c249 :c249,".len() < 3_500, "the expression fits");
/// How often a tally of more options is read and written again. It has one writer, unless an old owner of the shard
/// still runs.
const ROUNDS_MAX: u32 = 20;

fn sort_key(group: Group, shard: &ShardId) -> String {
    format!("{}#{shard}", group.as_str())
}

/// The group of a stored name.
fn group_of(name: &str) -> Option<Group> {
    [Group::Persist, Group::Tally].into_iter().find(|group| group.as_str() == name)
}

fn encode(poll_id: &PollId, row: &TallyRow, epoch: u64) -> Item {
    let TallyRow { group, shard, counts, position } = row;
    let mut item = HashMap::from([
        (POLL_ID.to_owned(), text(poll_id.as_str())),
        (GROUP_SHARD.to_owned(), text(&sort_key(*group, shard))),
        (POSITION.to_owned(), sequence(*position)),
        (EPOCH.to_owned(), number(epoch)),
    ]);
    item.extend(counts.iter().map(|(option, count)| (format!("{COUNT}{option}"), number(count))));
    item
}

fn decode(item: &Item) -> Result<TallyRow, Damaged> {
    let reader = Reader(item);
    let key = reader.text(GROUP_SHARD)?;
    let parts = key.split_once('#').and_then(|(group, shard)| Some((group_of(group)?, ShardId::new(shard))));
    let (group, shard) = parts.ok_or_else(|| Damaged::at(GROUP_SHARD))?;
    let count = |(name, value): (&String, &AttributeValue)| {
        let option = name.strip_prefix(COUNT)?;
        Some(as_number(value).map(|count| (Arc::from(option), count)).ok_or_else(|| Damaged::at(name)))
    };
    let counts = item.iter().filter_map(count).collect::<Result<_, _>>()?;
    Ok(TallyRow { group, shard, counts, position: reader.sequence(POSITION)? })
}

/// Adds both lists, option by option.
fn sum(stored: Vec<(Arc<str>, i64)>, added: &[(Arc<str>, i64)]) -> Vec<(Arc<str>, i64)> {
    let mut sums: HashMap<Arc<str>, i64> = stored.into_iter().collect();
    for (option, count) in added {
        *sums.entry(option.clone()).or_default() += count;
    }
    sums.into_iter().collect()
}

/// Where a delta goes.
#[derive(Clone, Copy)]
struct Target<'a> {
    group: Group,
    shard: &'a ShardId,
    window_end: SequenceNumber,
    epoch: u64,
}

impl Inner {
    async fn add_delta(&self, target: Target<'_>, delta: &TallyDelta) -> Result<(), PortError> {
        if delta.counts.len() > ADDED_BY_EXPRESSION_MAX {
            return self.add_many(target, delta).await;
        }
        let mut update = String::from("SET #position = :end, #epoch = :epoch");
        let mut names =
            HashMap::from([("#position".to_owned(), POSITION.to_owned()), ("#epoch".to_owned(), EPOCH.to_owned())]);
        let mut values = HashMap::from([
            (":end".to_owned(), sequence(target.window_end)),
            (":epoch".to_owned(), number(target.epoch)),
        ]);
        for (at, (option, count)) in delta.counts.iter().enumerate() {
            update += if at == 0 { " ADD " } else { "," };
            update += &format!("#c{at} :c{at}");
            names.insert(format!("#c{at}"), format!("{COUNT}{option}"));
            values.insert(format!(":c{at}"), number(count));
        }
        let result = repeat_refused(&self.meters.tallies, || {
            self.client
                .update_item()
                .table_name(&self.tables.tallies)
                .key(POLL_ID, text(delta.poll_id.as_str()))
                .key(GROUP_SHARD, text(&sort_key(target.group, target.shard)))
                .update_expression(&update)
                .condition_expression("attribute_not_exists(#position) OR #position < :end")
                .set_expression_attribute_names(Some(names.clone()))
                .set_expression_attribute_values(Some(values.clone()))
                .return_consumed_capacity(ReturnConsumedCapacity::Total)
                .send()
        })
        .await;
        self.meters.tallies.conditional("add to a tally", result.map(|answer| answer.consumed_capacity)).map(drop)
    }

    /// Adds to more options than an expression holds: reads the item, and replaces it if it has not changed since.
    async fn add_many(&self, target: Target<'_>, delta: &TallyDelta) -> Result<(), PortError> {
        for _ in 0..ROUNDS_MAX {
            let answer = repeat_refused(&self.meters.tallies, || {
                self.client
                    .get_item()
                    .table_name(&self.tables.tallies)
                    .key(POLL_ID, text(delta.poll_id.as_str()))
                    .key(GROUP_SHARD, text(&sort_key(target.group, target.shard)))
                    .consistent_read(true)
                    .return_consumed_capacity(ReturnConsumedCapacity::Total)
                    .send()
            })
            .await
            .map_err(|error| port_error("read a tally", &error))?;
            self.meters.tallies.consumed(Kind::Read, answer.consumed_capacity());
            let stored = answer.item.as_ref().map(decode).transpose();
            let stored = stored.map_err(|damaged| damaged.in_table(&self.tables.tallies))?;
            if stored.as_ref().is_some_and(|stored| stored.position >= target.window_end) {
                return Ok(());
            }
            let (condition, read) = match &stored {
                None => ("attribute_not_exists(#position)", None),
                Some(stored) => ("#position = :read", Some(sequence(stored.position))),
            };
            let row = TallyRow {
                group: target.group,
                shard: target.shard.clone(),
                counts: sum(stored.map(|stored| stored.counts).unwrap_or_default(), &delta.counts),
                position: target.window_end,
            };
            let item = encode(&delta.poll_id, &row, target.epoch);
            let values = read.map(|read| HashMap::from([(":read".to_owned(), read)]));
            let result = repeat_refused(&self.meters.tallies, || {
                self.client
                    .put_item()
                    .table_name(&self.tables.tallies)
                    .set_item(Some(item.clone()))
                    .condition_expression(condition)
                    .expression_attribute_names("#position", POSITION)
                    .set_expression_attribute_values(values.clone())
                    .return_consumed_capacity(ReturnConsumedCapacity::Total)
                    .send()
            })
            .await;
            let result = result.map(|answer| answer.consumed_capacity);
            if self.meters.tallies.conditional("write a tally", result)? {
                return Ok(());
            }
        }
        Err(PortError::unknown(format!(
            "the tally of {} changed during each of {ROUNDS_MAX} attempts to add to it",
            delta.poll_id
        )))
    }
}

#[async_trait]
impl TallyStore for DynamoStore {
    async fn add(
        &self,
        group: Group,
        shard: &ShardId,
        window_end: SequenceNumber,
        epoch: u64,
        deltas: &[TallyDelta],
    ) -> Result<(), PortError> {
        let target = Target { group, shard, window_end, epoch };
        let inner = &self.inner;
        let adds = deltas.iter().map(|delta| inner.add_delta(target, delta)).collect::<Vec<_>>();
        stream::iter(adds).buffer_unordered(ADDS_IN_FLIGHT).try_collect().await
    }

    async fn read(&self, poll_id: &PollId) -> Result<Vec<TallyRow>, PortError> {
        let inner = &self.inner;
        let mut rows = Vec::new();
        let mut start = None;
        loop {
            let page = repeat_refused(&inner.meters.tallies, || {
                inner
                    .client
                    .query()
                    .table_name(&inner.tables.tallies)
                    .consistent_read(true)
                    .key_condition_expression("#key = :key")
                    .expression_attribute_names("#key", POLL_ID)
                    .expression_attribute_values(":key", text(poll_id.as_str()))
                    .return_consumed_capacity(ReturnConsumedCapacity::Total)
                    .set_exclusive_start_key(start.clone())
                    .send()
            })
            .await
            .map_err(|error| port_error("read tallies", &error))?;
            inner.meters.tallies.consumed(Kind::Read, page.consumed_capacity());
            for item in page.items() {
                rows.push(decode(item).map_err(|damaged| damaged.in_table(&inner.tables.tallies))?);
            }
            start = page.last_evaluated_key;
            if start.is_none() {
                return Ok(rows);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(
            sums in prop::collection::btree_map(".{1,40}", any::<i64>(), 0..20),
            shard in ".{1,40}", position: u64, epoch: u64, tally: bool,
        ) {
            let counts = sums.iter().map(|(option, count)| (Arc::from(option.as_str()), *count)).collect();
            let group = if tally { Group::Tally } else { Group::Persist };
            let position = SequenceNumber::from_u64(position);
            let row = TallyRow { group, shard: ShardId::new(shard), counts, position };
            let mut read = decode(&encode(&PollId::new("p").unwrap(), &row, epoch)).unwrap();
            read.counts.sort_unstable();
            prop_assert_eq!(read, row);
        }
    }

    #[test]
    fn sums_add_what_is_new_too() {
        let counts = |counts: &[(&str, i64)]| counts.iter().map(|(o, c)| (Arc::from(*o), *c)).collect::<Vec<_>>();
        let mut sums = sum(counts(&[("a", 1), ("b", 2)]), &counts(&[("b", -5), ("c", 3)]));
        sums.sort_unstable();
        assert_eq!(sums, counts(&[("a", 1), ("b", -3), ("c", 3)]));
    }
}
