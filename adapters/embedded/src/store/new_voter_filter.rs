//! Remembers in memory who may have voted. Most votes come from users who have not, and for them nothing needs to be
//! read.
//!
//! Owns a Bloom filter over the keys of votes. Must never call a user new who has voted. So it answers only for polls
//! of which it has seen every vote: those that got their first vote since the store was opened.

use fastbloom::BloomFilter;

/// Size of the filter: 32 MB once votes come. With 25 million votes one new voter in a hundred is looked up without
/// need, with 50 million one in thirteen.
const BITS: usize = 1 << 28;
/// Bits that are set for a vote. Few, because each costs a cache miss.
const BITS_PER_VOTE: u32 = 4;

/// The filter.
pub(super) struct NewVoterFilter {
    /// The filter; made at the first vote.
    filter: Option<BloomFilter>,
    /// Number of the first poll for which it answers.
    first_poll: u32,
}

impl NewVoterFilter {
    /// A filter for polls from this number on, which have no votes yet.
    pub(super) fn new(first_poll: u32) -> Self {
        Self { filter: None, first_poll }
    }

    /// Notes that a user votes. Returns true if they are certainly new; `false` means that they may be new or not.
    pub(super) fn votes(&mut self, poll: u32, key_hash: u64) -> bool {
        let filter = self.filter.get_or_insert_with(|| BloomFilter::with_num_bits(BITS).seed(&0).hashes(BITS_PER_VOTE));
        let may_be_known = filter.insert_hash(key_hash);
        !may_be_known && poll >= self.first_poll
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::unflushed::KeyHash;

    #[test]
    fn nobody_is_new_twice_nor_in_an_older_poll() {
        let (mut voters, hashing) = (NewVoterFilter::new(3), KeyHash::default());
        let hash = |number: u32| hashing.of(&number.to_be_bytes());
        let new = (0..10_000).filter(|&number| voters.votes(3, hash(number))).count();
        assert!(new > 9_990, "{new}");
        assert!((0..10_000).all(|number| !voters.votes(3, hash(number))));
        assert!((10_000..20_000).all(|number| !voters.votes(2, hash(number))));
    }
}
