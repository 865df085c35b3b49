//! How unevenly the buckets of a poll fall on the partitions of a table.
//!
//! Owns the model of it: DynamoDB hashes partition keys, so each bucket falls on any partition with the same
//! probability, and the partition with the most buckets decides when all votes are stored. Must never draw at random:
//! these are the probabilities themselves. The test draws, with named seeds, and compares.
//!
//! Assumed, and not confirmed by AWS: the partitions of a warmed table take equal parts of the hashes; none is split
//! while votes come in, which takes DynamoDB minutes; and none takes more than its rate, not even for a while.

/// Below this, a probability is 0 and the model ends.
const NEGLIGIBLE: f64 = 1e-9;

/// The number of buckets in the partition that has the most.
pub(super) struct Spread {
    /// At `n`: the probability that no partition has more than `n` buckets.
    at_most: Vec<f64>,
}

impl Spread {
    /// For so many buckets over so many partitions, at least two.
    pub(super) fn new(buckets: u64, partitions: u64) -> Self {
        let share = 1.0 / partitions.max(2) as f64;
        // Binomial, in logarithms: far from its mean a probability is too small for an f64.
        let mut logarithm = buckets as f64 * (-share).ln_1p();
        let (mut in_one, mut at_most) = (0.0, Vec::new());
        for n in 0..=buckets {
            in_one += logarithm.exp();
            // As if partitions did not depend on each other. They do a little: what one has, the others lack, so this
            // is slightly on the safe side.
            let in_all = in_one.min(1.0).powf(partitions as f64);
            at_most.push(in_all);
            if in_all > 1.0 - NEGLIGIBLE {
                break;
            }
            logarithm += ((buckets - n) as f64 / (n + 1) as f64).ln() + share.ln() - (-share).ln_1p();
        }
        Self { at_most }
    }

    /// Mean over all ways in which the buckets may fall.
    pub(super) fn mean(&self, of: impl Fn(u64) -> f64) -> f64 {
        let mut below = 0.0;
        let parts = self.at_most.iter().zip(0..).map(|(at_most, most)| {
            let probability = at_most - below;
            below = *at_most;
            if probability > 0.0 { probability * of(most) } else { 0.0 }
        });
        parts.sum()
    }

    /// In this share of all ways, no partition has more buckets.
    pub(super) fn within(&self, share: f64) -> u64 {
        self.at_most.iter().take_while(|at_most| **at_most < share).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    /// Seeds of the draws.
    const SEEDS: std::ops::Range<u64> = 0..20;

    /// Most buckets of a partition, drawn with a seed.
    fn drawn(seed: u64, buckets: u64, partitions: u64) -> u64 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut counts = vec![0; partitions as usize];
        (0..buckets).for_each(|_| counts[rng.random_range(0..partitions as usize)] += 1);
        *counts.iter().max().unwrap()
    }

    /// Seconds until the hottest partition has stored its part, after votes have come for `seconds` at this rate.
    fn drain(most: u64, buckets: u64, rate: f64, seconds: f64) -> f64 {
        let load = rate * most as f64 / buckets as f64 / 1_000.0;
        seconds * (load - 1.0).max(0.0)
    }

    #[test]
    fn the_model_says_what_twenty_draws_show() {
        // Buckets and partitions of the smallest, of a middle and of the largest sizes, and one bucket a partition.
        for (buckets, partitions) in [(16, 4), (320, 40), (1_000, 1_000), (16_000, 2_000), (65_536, 20_000)] {
            let spread = Spread::new(buckets, partitions);
            let draws: Vec<_> = SEEDS.map(|seed| drawn(seed, buckets, partitions) as f64).collect();
            let mean = draws.iter().sum::<f64>() / draws.len() as f64;
            let model = spread.mean(|most| most as f64);
            assert!((model - mean).abs() < 0.12 * mean, "{buckets} over {partitions}: {model}, drawn {mean}");
            let more = draws.iter().filter(|most| **most > spread.within(0.95) as f64).count();
            assert!(more <= 4, "{buckets} over {partitions}: {more} of 20 have more than {}", spread.within(0.95));
        }
    }

    #[test]
    fn one_bucket_a_partition_takes_minutes_and_sixteen_take_seconds() {
        let million =
            |buckets, partitions| Spread::new(buckets, partitions).mean(|most| drain(most, buckets, 1_000_000.0, 30.0));
        let thousands =
            |buckets, partitions| Spread::new(buckets, partitions).mean(|most| drain(most, buckets, 20_000.0, 600.0));
        assert!((120.0..150.0).contains(&million(1_000, 1_000)), "{}", million(1_000, 1_000));
        assert!((18.0 * 60.0..26.0 * 60.0).contains(&thousands(20, 20)), "{}", thousands(20, 20));
        assert!((4.0..9.0).contains(&million(16_000, 2_000)), "{}", million(16_000, 2_000));
        assert!((2.0..15.0).contains(&thousands(320, 40)), "{}", thousands(320, 40));
    }

    #[test]
    fn probabilities_add_up() {
        for (buckets, partitions) in [(1, 4), (16, 4), (65_536, 4), (65_536, 200_000)] {
            let spread = Spread::new(buckets, partitions);
            assert!((spread.mean(|_| 1.0) - 1.0).abs() < 1e-6, "{buckets} over {partitions}");
            assert!(spread.at_most.is_sorted());
            let most = spread.within(0.95);
            assert!(most >= buckets.div_ceil(partitions) && most <= buckets, "{buckets} over {partitions}: {most}");
        }
    }
}
