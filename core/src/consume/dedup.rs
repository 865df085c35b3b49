//! Dedup table: the last batch number of each producer, per range of hashes, which makes a second copy of a batch
//! recognisable.
//!
//! Owns what counts as a duplicate. Must never forget an entry before the shard clock is 2 L past its arrival, not even
//! to save space: when the table is full it reports an error, and the shard stops. Must never take the maximum of the
//! two parents of a merge: their entries are kept side by side, each for the hashes of its own parent.

use std::collections::BTreeMap;

use crate::{
    HashRange, HashRanges, TimeBounds, Timestamp,
    mutation::{self, Mutation},
    port::StoredProducer,
};

/// Most entries of one shard: they are stored in the shard row, an entry takes about 60 bytes, and a DynamoDB item
/// holds 400 KB.
pub const DEDUP_ENTRIES_MAX: usize = 6_000;

/// The table would not fit into the shard row. Stop and alarm: evicting would count votes twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("dedup table holds {0} entries, the limit is {DEDUP_ENTRIES_MAX}")]
pub struct DedupTableFull(pub usize);

/// The number kept for a range of hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    range: HashRange,
    number: u64,
    arrived_at: Timestamp,
}

/// What one shard remembers of the batches it has processed.
#[derive(Clone, Debug, Default)]
pub struct DedupTable {
    /// Per producer, disjoint entries in ascending order. Ordered, so that equal tables have equal stored forms.
    producers: BTreeMap<u128, Vec<Entry>>,
    /// Number of entries of all producers.
    entries: usize,
    /// No entry arrived before this. As long as nothing can expire, expiring costs nothing.
    oldest: Timestamp,
}

impl PartialEq for DedupTable {
    fn eq(&self, other: &Self) -> bool {
        self.producers == other.producers
    }
}

impl Eq for DedupTable {}

impl DedupTable {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Whether a vote of this hash, in this batch of the producer, was processed before, or a later batch was.
    pub fn is_duplicate(&self, producer: u128, hash: u128, number: u64) -> bool {
        if mutation::is_active(Mutation::NoDedup) {
            return false;
        }
        let Some(entries) = self.producers.get(&producer) else { return false };
        let at = entries.partition_point(|entry| entry.range.end < hash);
        entries.get(at).is_some_and(|entry| entry.range.contains(hash) && entry.number >= number)
    }

    /// Whether any hash of `ranges` could be a duplicate. If not, no vote of the batch needs to be hashed.
    pub fn may_hold_duplicate(&self, producer: u128, ranges: &HashRanges, number: u64) -> bool {
        let entries = self.producers.get(&producer);
        entries.into_iter().flatten().any(|entry| entry.number >= number && ranges.overlaps(&entry.range))
    }

    /// Remembers a batch for these hashes: raises their number, never lowers it, and renews their arrival. The caller
    /// must call [`Self::expire`] and then [`Self::check`].
    pub fn record(&mut self, producer: u128, ranges: &HashRanges, number: u64, clock: Timestamp) {
        let whole = [HashRange::ALL];
        let per_producer = mutation::is_active(Mutation::DedupPerProducer);
        for &range in if per_producer { &whole } else { ranges.as_slice() } {
            // The arrival is renewed even if the number stays, as in the model of the protocol.
            self.merge(producer, Entry { range, number, arrived_at: clock }, |old, new| Entry {
                range: old.range,
                number: old.number.max(new.number),
                arrived_at: new.arrived_at,
            });
        }
    }

    /// The part of the table that a child shard of this range inherits.
    pub fn clip(&self, range: &HashRange) -> Self {
        let mut clipped = Self { oldest: self.oldest, ..Self::default() };
        for (&producer, entries) in &self.producers {
            let inside: Vec<Entry> = entries
                .iter()
                .filter_map(|entry| entry.range.intersection(range).map(|range| Entry { range, ..*entry }))
                .collect();
            if !inside.is_empty() {
                clipped.entries += inside.len();
                clipped.producers.insert(producer, inside);
            }
        }
        clipped
    }

    /// Adds the table of another parent. Parents own different hashes, so no two entries overlap.
    pub fn absorb(&mut self, other: &Self) {
        for (&producer, entries) in &other.producers {
            for &entry in entries {
                self.merge(producer, entry, higher);
            }
        }
    }

    /// Drops what arrived more than `memory_life` before the shard clock.
    pub fn expire(&mut self, clock: Timestamp, bounds: &TimeBounds) {
        let life = bounds.memory_life();
        if self.entries == 0 || self.oldest.plus(life) >= clock {
            return;
        }
        let mut oldest = clock;
        let mut kept = 0;
        self.producers.retain(|_, entries| {
            entries.retain(|entry| entry.arrived_at.plus(life) >= clock);
            kept += entries.len();
            oldest = entries.iter().map(|entry| entry.arrived_at).min().map_or(oldest, |first| oldest.min(first));
            !entries.is_empty()
        });
        (self.entries, self.oldest) = (kept, oldest);
    }

    /// Whether the table fits into a shard row.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub fn check(&self) -> Result<(), DedupTableFull> {
        if self.entries > DEDUP_ENTRIES_MAX { Err(DedupTableFull(self.entries)) } else { Ok(()) }
    }

    /// The stored form.
    pub fn to_stored(&self) -> Vec<StoredProducer> {
        let mut stored = Vec::with_capacity(self.entries);
        for (&producer, entries) in &self.producers {
            stored.extend(entries.iter().map(|&Entry { range, number, arrived_at }| StoredProducer {
                producer,
                range,
                number,
                arrived_at,
            }));
        }
        stored
    }

    /// Reverses [`Self::to_stored`].
    pub fn from_stored(stored: &[StoredProducer]) -> Self {
        let mut dedup = Self::default();
        for &StoredProducer { producer, range, number, arrived_at } in stored {
            if range.start <= range.end {
                dedup.merge(producer, Entry { range, number, arrived_at }, higher);
            }
        }
        dedup
    }

    /// Lays a new entry over those of the producer. Where both cover a hash, `both(old, new)` returns the entry to
    /// keep, with the range of `old`.
    fn merge(&mut self, producer: u128, new: Entry, both: impl Fn(Entry, Entry) -> Entry) {
        self.oldest = if self.entries == 0 { new.arrived_at } else { self.oldest.min(new.arrived_at) };
        let entries = self.producers.entry(producer).or_default();
        // Nearly every batch covers exactly the hashes of the batch before.
        if let [only] = &mut entries[..]
            && only.range == new.range
        {
            *only = both(*only, new);
            return;
        }
        let before = entries.len();
        let mut merged: Vec<Entry> = Vec::with_capacity(before + 2);
        let mut uncovered = HashRanges::from(new.range);
        for &old in entries.iter() {
            let Some(common) = old.range.intersection(&new.range) else {
                merged.push(old);
                continue;
            };
            uncovered = uncovered.without(&common);
            let outside = HashRanges::from(old.range).without(&common);
            merged.extend(outside.as_slice().iter().map(|&range| Entry { range, ..old }));
            merged.push(both(Entry { range: common, ..old }, new));
        }
        merged.extend(uncovered.as_slice().iter().map(|&range| Entry { range, ..new }));
        merged.sort_unstable_by_key(|entry| entry.range);
        merged.dedup_by(|next, last| {
            // Disjoint and ascending: if `last` ended at the last hash there would be no `next`.
            let joins = (last.number, last.arrived_at) == (next.number, next.arrived_at)
                && last.range.end.checked_add(1) == Some(next.range.start);
            if joins {
                last.range.end = next.range.end;
            }
            joins
        });
        self.entries = self.entries + merged.len() - before;
        *entries = merged;
    }
}

/// The entry to keep where two stored entries overlap, which no correct row has: the one that forgets the least.
fn higher(old: Entry, new: Entry) -> Entry {
    Entry { range: old.range, number: old.number.max(new.number), arrived_at: old.arrived_at.max(new.arrived_at) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const BOUNDS: TimeBounds = TimeBounds::ONE_MACHINE;

    /// Hashes at both ends of the space.
    fn hash(x: u128) -> u128 {
        if x < 6 { x } else { u128::MAX - (11 - x) }
    }

    fn all_hashes() -> impl Iterator<Item = u128> {
        (0..12).map(hash)
    }

    fn range() -> impl Strategy<Value = HashRange> {
        (0u128..12, 0u128..12).prop_map(|(a, b)| HashRange { start: hash(a.min(b)), end: hash(a.max(b)) })
    }

    #[derive(Clone, Debug)]
    enum Op {
        Record(u128, Vec<HashRange>, u64),
        Expire(i64),
        Clip(HashRange),
        Merge(u128),
        Store,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0..3u128, prop::collection::vec(range(), 1..3), 1..9u64).prop_map(|(p, r, n)| Op::Record(p, r, n)),
            3 => (0..9_000i64).prop_map(Op::Expire),
            1 => range().prop_map(Op::Clip),
            1 => (1..12u128).prop_map(Op::Merge),
            1 => Just(Op::Store),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_memory_per_hash(ops in prop::collection::vec(op(), 1..30)) {
            let mut dedup = DedupTable::default();
            let mut model: HashMap<(u128, u128), (u64, Timestamp)> = HashMap::new();
            let mut clock = Timestamp(1_000);
            for op in ops {
                match op {
                    Op::Record(producer, ranges, number) => {
                        let ranges = HashRanges::union_of(ranges);
                        dedup.record(producer, &ranges, number, clock);
                        for hash in all_hashes().filter(|&hash| ranges.contains(hash)) {
                            let kept = model.entry((producer, hash)).or_insert((0, clock));
                            *kept = (kept.0.max(number), clock);
                        }
                    }
                    Op::Expire(passed) => {
                        clock = Timestamp(clock.0 + passed);
                        dedup.expire(clock, &BOUNDS);
                        model.retain(|_, kept| kept.1.plus(BOUNDS.memory_life()) >= clock);
                    }
                    Op::Clip(range) => {
                        dedup = dedup.clip(&range);
                        model.retain(|(_, hash), _| range.contains(*hash));
                    }
                    Op::Merge(at) => {
                        // Split into two children, then merge them again: nothing may change.
                        let mut left = dedup.clip(&HashRange { start: 0, end: hash(at) - 1 });
                        left.absorb(&dedup.clip(&HashRange { start: hash(at), end: u128::MAX }));
                        prop_assert_eq!(&left, &dedup);
                        dedup = left;
                    }
                    Op::Store => {
                        let stored = dedup.to_stored();
                        let again = DedupTable::from_stored(&stored);
                        prop_assert_eq!(&again, &dedup);
                        prop_assert_eq!(again.len(), stored.len());
                        dedup = again;
                    }
                }
                prop_assert_eq!(dedup.len(), dedup.to_stored().len());
                for producer in 0..3 {
                    for number in 1..10 {
                        let mut any = false;
                        for hash in all_hashes() {
                            let expected = model.get(&(producer, hash)).is_some_and(|kept| kept.0 >= number);
                            prop_assert_eq!(dedup.is_duplicate(producer, hash, number), expected);
                            any |= expected;
                        }
                        if any {
                            prop_assert!(dedup.may_hold_duplicate(producer, &HashRange::ALL.into(), number));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn neighbours_that_are_equal_become_one() {
        let mut dedup = DedupTable::default();
        for range in HashRange::split_evenly(8) {
            dedup.record(1, &range.into(), 7, Timestamp(5));
        }
        assert_eq!(dedup.len(), 1);
        assert!(!dedup.may_hold_duplicate(1, &HashRange::ALL.into(), 8));
        assert!(dedup.may_hold_duplicate(1, &HashRange::ALL.into(), 7));
    }

    #[test]
    fn at_the_bound_it_is_an_error_and_nothing_is_forgotten() {
        let mut dedup = DedupTable::default();
        for producer in 0..DEDUP_ENTRIES_MAX as u128 {
            dedup.record(producer, &HashRange::ALL.into(), 1, Timestamp(5));
        }
        assert_eq!(dedup.check(), Ok(()));
        dedup.record(u128::MAX, &HashRange::ALL.into(), 1, Timestamp(5));
        assert_eq!(dedup.check(), Err(DedupTableFull(DEDUP_ENTRIES_MAX + 1)));
        assert!(dedup.is_duplicate(0, 0, 1));
    }
}
