//! The state of the log besides its records: shards, the numbers that were assigned, and the store that it belongs to.
//!
//! Owns how a group changes that state. Must never depend on anything but the groups: every segment begins with the
//! table of its moment, so that earlier segments may be deleted.

use std::collections::BTreeMap;

use votestream_core::{HashRange, Timestamp};

use super::format::{GroupHeader, Kind, entries};
use crate::codec::{Corrupt, Decoder, Encoder};

/// The stored definition of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Definition {
    pub(super) range: HashRange,
    pub(super) parents: Vec<u32>,
    /// A number that no record has. It is larger than the numbers of the parents' records and smaller than those of its
    /// own.
    pub(super) created: u64,
    pub(super) created_at: Timestamp,
    pub(super) closed_at: Option<Timestamp>,
}

impl Definition {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut value = Encoder::default();
        value.u128(self.range.start).u128(self.range.end).u32(self.parents.len() as u32);
        for parent in &self.parents {
            value.u32(*parent);
        }
        value.u64(self.created).time(self.created_at).bool(self.closed_at.is_some());
        value.time(self.closed_at.unwrap_or(Timestamp::ZERO));
        value.0
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut value = Decoder(bytes);
        let range = HashRange { start: value.u128()?, end: value.u128()? };
        let parents = value.list(Decoder::u32)?;
        let (created, created_at) = (value.u64()?, value.time()?);
        let (closed, closed_at) = (value.bool()?, value.time()?);
        value.end()?;
        Ok(Self { range, parents, created, created_at, closed_at: closed.then_some(closed_at) })
    }
}

/// A shard and its last record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) definition: Definition,
    /// Number of its last record; 0 if there was none yet.
    pub(super) last: u64,
}

/// Which lives of the directory belong together. A life is the time from one start to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lives {
    /// The present life; a random number.
    pub(crate) current: u128,
    /// The life that the store knew when the present one began. The store still has it until it is told of the present
    /// one.
    pub(crate) before: u128,
}

/// Everything that must be known besides the records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) shards: BTreeMap<u32, Known>,
    /// The largest number that was assigned.
    pub(super) number: u64,
    /// The last time of the clock that was written.
    pub(super) latest: Timestamp,
    /// Number of changes of polls in the store so far.
    pub(super) polls: u64,
    pub(super) lives: Lives,
}

impl Table {
    /// The table of a new log.
    pub(super) fn new(shards: u32) -> Self {
        let definitions = HashRange::split_evenly(shards).into_iter().map(|range| Known {
            definition: Definition {
                range,
                parents: Vec::new(),
                created: 0,
                created_at: Timestamp::ZERO,
                closed_at: None,
            },
            last: 0,
        });
        Self { shards: (0..).zip(definitions).collect(), ..Self::default() }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        // Every field is named, so that a new one cannot be forgotten here.
        let Self { shards, number, latest, polls, lives: Lives { current, before } } = self;
        let mut value = Encoder::default();
        value.u64(*number).time(*latest).u64(*polls).u128(*current).u128(*before).u32(shards.len() as u32);
        for (index, Known { definition, last }) in shards {
            put_shard(&mut value, *index, definition);
            value.u64(*last);
        }
        value.0
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut value = Decoder(bytes);
        let (number, latest, polls) = (value.u64()?, value.time()?, value.u64()?);
        let lives = Lives { current: value.u128()?, before: value.u128()? };
        let shards = value.list(|value| {
            let (index, definition) = take_shard(value)?;
            Ok((index, Known { definition, last: value.u64()? }))
        })?;
        value.end()?;
        Ok(Self { shards: shards.into_iter().collect(), number, latest, polls, lives })
    }

    /// Changes the table by a group.
    pub(super) fn apply(&mut self, group: &GroupHeader, meta: &[u8]) -> Result<(), Corrupt> {
        match group.kind {
            Kind::Table => self.follow(Self::decode(meta)?)?,
            Kind::Records => {
                for (sequence, _, entry) in entries(group, meta)? {
                    self.append(entry.shard, sequence)?;
                }
            }
            Kind::Shards => {
                for (index, definition) in decode_shards(meta)? {
                    self.define(index, definition);
                }
            }
            Kind::Forgotten => {
                let mut value = Decoder(meta);
                value.list(Decoder::u32)?.iter().for_each(|index| drop(self.shards.remove(index)));
                value.end()?;
            }
            Kind::End => {}
        }
        self.latest = self.latest.max(group.arrived_at);
        self.polls = self.polls.max(group.polls);
        Ok(())
    }

    /// Compares the table at the start of a segment with the state after the groups before it. The lives may be new,
    /// and numbers may have been skipped. The first segment may begin with any table.
    fn follow(&mut self, next: Self) -> Result<(), Corrupt> {
        let same = |next: &Self| next.number >= self.number && next.shards == self.shards;
        if !self.shards.is_empty() && !same(&next) {
            return Err(Corrupt);
        }
        *self = next;
        Ok(())
    }

    /// Notes that a record was appended.
    pub(super) fn append(&mut self, shard: u32, sequence: u64) -> Result<(), Corrupt> {
        if sequence <= self.number {
            return Err(Corrupt);
        }
        self.shards.get_mut(&shard).ok_or(Corrupt)?.last = sequence;
        self.number = sequence;
        Ok(())
    }

    /// Adds or changes a shard.
    pub(super) fn define(&mut self, index: u32, definition: Definition) {
        self.number = self.number.max(definition.created);
        self.latest = self.latest.max(definition.created_at).max(definition.closed_at.unwrap_or_default());
        let last = self.shards.get(&index).map_or(0, |known| known.last);
        self.shards.insert(index, Known { definition, last });
    }
}

fn put_shard(value: &mut Encoder, index: u32, definition: &Definition) {
    let definition = definition.encode();
    value.u32(index).u32(definition.len() as u32).raw(&definition);
}

fn take_shard(value: &mut Decoder<'_>) -> Result<(u32, Definition), Corrupt> {
    let (index, len) = (value.u32()?, value.u32()?);
    Ok((index, Definition::decode(value.bytes(len as usize)?)?))
}

/// Meta data of a group of shards.
pub(super) fn encode_shards(shards: &BTreeMap<u32, Definition>) -> Vec<u8> {
    let mut value = Encoder::default();
    value.u32(shards.len() as u32);
    shards.iter().for_each(|(index, definition)| put_shard(&mut value, *index, definition));
    value.0
}

fn decode_shards(meta: &[u8]) -> Result<Vec<(u32, Definition)>, Corrupt> {
    let mut value = Decoder(meta);
    let shards = value.list(take_shard)?;
    value.end()?;
    Ok(shards)
}

/// Meta data of a group of forgotten shards.
pub(super) fn encode_forgotten(shards: &[u32]) -> Vec<u8> {
    let mut value = Encoder::default();
    value.u32(shards.len() as u32);
    for index in shards {
        value.u32(*index);
    }
    value.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_comes_back_and_damage_is_an_error() {
        let mut table = Table::new(3);
        table.lives = Lives { current: 5, before: 4 };
        table.append(1, 7).unwrap();
        let definition = Definition {
            parents: vec![0, 1],
            created: 8,
            created_at: Timestamp(9),
            closed_at: Some(Timestamp(10)),
            ..table.shards[&0].definition.clone()
        };
        table.define(3, definition);
        assert_eq!((table.number, table.latest), (8, Timestamp(10)));
        let bytes = table.encode();
        assert_eq!(Table::decode(&bytes), Ok(table.clone()));
        for len in 0..bytes.len() {
            assert_eq!(Table::decode(&bytes[..len]), Err(Corrupt));
        }
        assert_eq!(table.append(1, 8), Err(Corrupt), "numbers go up");
        assert_eq!(table.append(9, 9), Err(Corrupt), "there is no such shard");
        let next = Table { lives: Lives { current: 6, before: 5 }, ..table.clone() };
        assert_eq!(table.follow(next.clone()), Ok(()));
        assert_eq!(table.lives, next.lives);
        assert_eq!(table.follow(Table { number: 9, ..next.clone() }), Ok(()), "numbers may be left out");
        assert_eq!(table.follow(next), Err(Corrupt), "and never come back");
    }
}
