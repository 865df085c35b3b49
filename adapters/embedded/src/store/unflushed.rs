//! Votes that were decided but are not in tables yet.
//!
//! Owns the hash by which votes are found in memory. Must never hold two values of one key. Must never be changed while
//! it is being written: new votes go to another one.

use std::hash::{BuildHasher, RandomState};

use fjall::Slice;
use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Hashes keys of votes. Users choose their ids, so the seed is random: then nobody can choose ids with equal hashes.
#[derive(Clone, Copy)]
pub(super) struct KeyHash(u64);

impl Default for KeyHash {
    fn default() -> Self {
        Self(RandomState::new().hash_one(()))
    }
}

impl KeyHash {
    /// The hash of a key. It stays the same as long as the store is open.
    pub(super) fn of(self, key: &[u8]) -> u64 {
        xxh3_64_with_seed(key, self.0)
    }
}

/// Votes by their keys, encoded as they will be stored.
#[derive(Default)]
pub(super) struct Unflushed(HashTable<(Slice, Slice)>);

impl Unflushed {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, key: &[u8], hash: u64) -> Option<&[u8]> {
        self.0.find(hash, |(known, _)| **known == *key).map(|(_, value)| &**value)
    }

    /// Stores a vote. Replaces the present value of its key.
    pub(super) fn put(&mut self, key: &Slice, hash: u64, value: Slice, hashing: KeyHash) {
        let same = |(known, _): &(Slice, Slice)| known == key;
        match self.0.entry(hash, same, |(known, _)| hashing.of(known)) {
            hashbrown::hash_table::Entry::Occupied(mut entry) => entry.get_mut().1 = value,
            hashbrown::hash_table::Entry::Vacant(entry) => drop(entry.insert((key.clone(), value))),
        }
    }

    /// Votes in the order of their keys.
    pub(super) fn sorted(&self) -> Vec<(Slice, Slice)> {
        // Most comparisons need only the first bytes. They are stored next to each other here.
        let head = |key: &[u8]| {
            let mut head = [0; 16];
            let len = key.len().min(head.len());
            head[..len].copy_from_slice(&key[..len]);
            u128::from_be_bytes(head)
        };
        let mut votes: Vec<_> = self.0.iter().map(|vote| (head(&vote.0), vote)).collect();
        votes.sort_unstable_by(|(a_head, a), (b_head, b)| a_head.cmp(b_head).then_with(|| a.0.cmp(&b.0)));
        // Copy all votes at once: each is at another place in memory, and here no other work waits for these reads.
        votes.into_iter().map(|(_, vote)| vote.clone()).collect()
    }

    /// Removes all votes and keeps the memory.
    pub(super) fn emptied(mut self) -> Self {
        self.0.clear();
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_last_value_of_each_key_in_order() {
        let hashing = KeyHash::default();
        let (mut pending, mut model) = (Unflushed::default(), BTreeMap::new());
        let keys = |number: u32| {
            let long = [&[7; 17][..], &number.to_le_bytes()].concat();
            [number.to_le_bytes().to_vec(), long, vec![0; number as usize % 40]]
        };
        for number in 0..3_000u32 {
            for key in keys(number % 1_000) {
                let (hash, value) = (hashing.of(&key), number.to_be_bytes());
                pending.put(&key[..].into(), hash, value.into(), hashing);
                assert_eq!(pending.get(&key, hash), Some(&value[..]));
                model.insert(key, value);
            }
        }
        let sorted: Vec<_> = pending.sorted().iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        assert_eq!(sorted, model.into_iter().map(|(key, value)| (key, value.to_vec())).collect::<Vec<_>>());
        assert_eq!(pending.len(), sorted.len());
        let unknown = [9; 50];
        assert_eq!(pending.get(&unknown, hashing.of(&unknown)), None);
        assert!(pending.emptied().is_empty());
    }
}
