//! Which shard a vote belongs to.
//!
//! Owns the hash space: all votes of one (poll, user) have one hash, and a shard owns a range of hashes. Must never
//! change: stored data depends on it.

use std::{fmt, sync::Arc};

use xxhash_rust::xxh3::Xxh3;

use crate::{PollId, model::user_id::UUID_TEXT_BYTES};

/// Hash of (poll, user): `xxh3_128(poll_id, 0, user_id)`. The stream's explicit hash key.
#[inline]
pub fn vote_hash(poll_id: &str, user_id: impl AsRef<[u8]>) -> u128 {
    // Hashing one contiguous slice is several times faster than hashing a stream of parts, and nearly all ids fit into
    // a small one.
    fn joined<const N: usize>(poll: &[u8], user: &[u8]) -> u128 {
        let mut bytes = [0; N];
        let len = poll.len() + 1 + user.len();
        bytes[..poll.len()].copy_from_slice(poll);
        bytes[poll.len() + 1..len].copy_from_slice(user);
        xxhash_rust::xxh3::xxh3_128(&bytes[..len])
    }
    let (poll, user) = (poll_id.as_bytes(), user_id.as_ref());
    let len = poll.len() + 1 + user.len();
    if len <= 64 {
        joined::<64>(poll, user)
    } else if len <= 128 {
        joined::<128>(poll, user)
    } else {
        let mut hasher = Xxh3::new();
        hasher.update(poll);
        hasher.update(&[0]);
        hasher.update(user);
        hasher.digest128()
    }
}

/// The ids of a poll and a user, padded with zeros.
pub type VoteKey = [u8; 64];

/// [`vote_hash`] for the votes of one poll whose users are UUIDs.
#[derive(Clone, Debug)]
pub struct PollHasher {
    /// The poll's id and a zero, with room for a UUID after them.
    key: VoteKey,
    /// Where the user's id begins.
    start: usize,
}

impl PollHasher {
    /// For a poll.
    pub fn new(poll_id: &PollId) -> Self {
        let (mut key, id) = ([0; 64], poll_id.as_str().as_bytes());
        let start = id.len() + 1;
        if let Some(slot) = key.get_mut(..id.len()) {
            slot.copy_from_slice(id);
        }
        Self { key, start }
    }

    /// Writes the poll's id and a user's, one after the other. Returns whether that was possible: it is not if the
    /// user's id is not a UUID, or if the poll's id is long.
    ///
    /// To hash a key right after writing it makes the processor wait until the write has reached its cache, together
    /// with all writes before. So it is better to write many keys first, and to hash them after that.
    #[inline(always)]
    pub fn write_key(&self, user_id: &[u8], key: &mut VoteKey) -> bool {
        // Copies whose length the compiler knows take a fraction of the time.
        *key = self.key;
        if let Ok(uuid) = <&[u8; UUID_TEXT_BYTES]>::try_from(user_id)
            && let Some(slot) = key.get_mut(self.start..self.start + UUID_TEXT_BYTES)
        {
            slot.copy_from_slice(uuid);
            return true;
        }
        false
    }

    /// [`vote_hash`] of the key that [`Self::write_key`] wrote.
    #[inline(always)]
    pub fn hash_of_key(&self, key: &VoteKey) -> u128 {
        xxhash_rust::xxh3::xxh3_128(&key[..(self.start + UUID_TEXT_BYTES).min(key.len())])
    }
}

/// The bucket of a user, out of the `buckets` of a poll: `xxh3_64(user_id)` modulo the count. Must never change: it is
/// part of the key under which a vote is stored, so with another value an earlier vote of the user would not be found.
pub fn bucket(user_id: &str, buckets: u32) -> u32 {
    (xxhash_rust::xxh3::xxh3_64(user_id.as_bytes()) % u64::from(buckets.max(1))) as u32
}

/// Name of a shard, as the stream calls it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(Arc<str>);

impl ShardId {
    /// The shard of this name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A run of hashes, both ends included, as in Kinesis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HashRange {
    /// First hash.
    pub start: u128,
    /// Last hash.
    pub end: u128,
}

impl HashRange {
    /// All hashes.
    pub const ALL: Self = Self { start: 0, end: u128::MAX };

    /// Whether the hash is in the range.
    pub fn contains(&self, hash: u128) -> bool {
        self.start <= hash && hash <= self.end
    }

    /// The hashes that are in both ranges, if any.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start <= end).then_some(Self { start, end })
    }

    /// The hash space in `count` equal ranges (the last one takes the remainder), as Kinesis divides a new stream.
    pub fn split_evenly(count: u32) -> Vec<Self> {
        let count = u128::from(count.max(1));
        let width = u128::MAX / count;
        (0..count)
            .map(|i| Self {
                start: i * width + i.min(1),
                end: if i + 1 == count { u128::MAX } else { (i + 1) * width },
            })
            .collect()
    }
}

/// A set of hashes as disjoint ranges in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HashRanges(Vec<HashRange>);

impl From<HashRange> for HashRanges {
    fn from(range: HashRange) -> Self {
        Self(vec![range])
    }
}

impl HashRanges {
    /// The union of any ranges.
    pub fn union_of(ranges: impl IntoIterator<Item = HashRange>) -> Self {
        let mut sorted: Vec<_> = ranges.into_iter().filter(|range| range.start <= range.end).collect();
        sorted.sort_unstable();
        let mut union: Vec<HashRange> = Vec::with_capacity(sorted.len());
        for range in sorted {
            match union.last_mut() {
                Some(last) if last.end == u128::MAX || range.start <= last.end + 1 => {
                    last.end = last.end.max(range.end)
                }
                _ => union.push(range),
            }
        }
        Self(union)
    }

    /// The ranges, disjoint and ascending.
    pub fn as_slice(&self) -> &[HashRange] {
        &self.0
    }

    /// Whether no hash is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the hash is in the set.
    pub fn contains(&self, hash: u128) -> bool {
        self.0.iter().any(|range| range.contains(hash))
    }

    /// Whether the set shares a hash with the range.
    pub fn overlaps(&self, range: &HashRange) -> bool {
        self.0.iter().any(|own| own.intersection(range).is_some())
    }

    /// Whether every hash of the set is in the range.
    pub fn within(&self, range: &HashRange) -> bool {
        self.0.iter().all(|own| range.start <= own.start && own.end <= range.end)
    }

    /// Whether the set holds all hashes.
    pub fn is_all(&self) -> bool {
        self.0 == [HashRange::ALL]
    }

    /// The part of the set that is in the range.
    pub fn intersection(&self, range: &HashRange) -> Self {
        Self(self.0.iter().filter_map(|own| own.intersection(range)).collect())
    }

    /// The set without the range.
    pub fn without(&self, range: &HashRange) -> Self {
        let mut left = Vec::with_capacity(self.0.len() + 1);
        for own in &self.0 {
            if own.start < range.start {
                left.push(HashRange { start: own.start, end: own.end.min(range.start - 1) });
            }
            if own.end > range.end {
                left.push(HashRange { start: own.start.max(range.end + 1), end: own.end });
            }
        }
        Self::union_of(left)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Small numbers, so that ranges touch and overlap. They are mapped to both ends of the hash space.
    fn range() -> impl Strategy<Value = HashRange> {
        (0u128..12, 0u128..12).prop_map(|(a, b)| {
            let hash = |x: u128| if x < 6 { x } else { u128::MAX - (11 - x) };
            HashRange { start: hash(a.min(b)), end: hash(a.max(b)) }
        })
    }

    proptest! {
        #[test]
        fn set_arithmetic_agrees_with_membership(ranges in prop::collection::vec(range(), 0..5), other in range()) {
            let set = HashRanges::union_of(ranges.iter().copied());
            let (left, common) = (set.without(&other), set.intersection(&other));
            for hash in (0..6).chain(u128::MAX - 5..=u128::MAX) {
                let member = ranges.iter().any(|range| range.contains(hash));
                prop_assert_eq!(set.contains(hash), member);
                prop_assert_eq!(left.contains(hash), member && !other.contains(hash));
                prop_assert_eq!(common.contains(hash), member && other.contains(hash));
            }
            prop_assert_eq!(set.overlaps(&other), !common.is_empty());
            prop_assert_eq!(set.within(&other), left.is_empty());
        }

        #[test]
        fn even_split_covers_everything_once(count in 1u32..300) {
            let ranges = HashRange::split_evenly(count);
            prop_assert_eq!(ranges.len(), count as usize);
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end + 1 == pair[1].start));
            prop_assert!(HashRanges::union_of(ranges).is_all());
        }

        #[test]
        fn hash_is_that_of_the_joined_bytes(poll in ".{0,20}", user in ".{0,90}") {
            let joined = [poll.as_bytes(), &[0], user.as_bytes()].concat();
            prop_assert_eq!(vote_hash(&poll, &user), xxhash_rust::xxh3::xxh3_128(&joined));
        }

        #[test]
        fn the_hash_of_a_poll_is_the_same(poll in "[a-z]{1,64}", user in "[0-9a-f-]{36}|.{0,200}") {
            let (hasher, mut key) = (PollHasher::new(&PollId::new(&poll).unwrap()), [0; _]);
            let written = hasher.write_key(user.as_bytes(), &mut key);
            prop_assert_eq!(written, user.len() == UUID_TEXT_BYTES && poll.len() + 1 + user.len() <= key.len());
            if written {
                prop_assert_eq!(hasher.hash_of_key(&key), vote_hash(&poll, &user));
            }
        }
    }

    #[test]
    fn buckets_stay_where_they_are() {
        assert_eq!(
            ["", "alice", "00000000-0000-4000-8000-000000000000"].map(|user| bucket(user, 1_000)),
            [138, 80, 607]
        );
        assert_eq!(bucket("alice", 0), 0);
    }
}
