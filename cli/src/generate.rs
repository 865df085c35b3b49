//! Generated votes: deterministic users and choices for `load` and `demo`.
//!
//! Owns the random numbers of a run: the same seed gives the same votes on every machine. Must never give one user to
//! two streams: the order of a user's votes is only defined within one stream.

/// Length of a generated user id, which is that of a UUID.
const USER_ID_LEN: usize = 36;

/// The last step of SplitMix64: a bijection that spreads every bit.
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// SplitMix64: it is small and will never change, which the generators of crates do not promise.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The numbers of this seed.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// A number between 0 and 1, and neither of them.
    pub(crate) fn unit(&mut self) -> f64 {
        // 52 bits, and half of what follows them: exact in a double.
        ((self.next() >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which is not 0. The bias is below 2⁻³⁰ for every bound that is used here.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

/// A user id in the form of a random UUID, derived from a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UserId([u8; USER_ID_LEN]);

impl UserId {
    /// The id of this number under this seed. The first word is a bijection of the number. The form of a UUID takes six
    /// bits away, so two numbers could share an id only if the other 122 bits were all equal.
    pub(crate) fn new(seed: u64, number: u64) -> Self {
        const HEX: [u8; 16] = *b"0123456789abcdef";
        let high = mix(number.wrapping_add(mix(seed)));
        let low = mix(high ^ 0x5851_f42d_4c95_7f2d);
        let bits = (u128::from(high) << 64 | u128::from(low)) & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
        let mut text = [b'-'; USER_ID_LEN];
        let mut shift = 128;
        for (place, byte) in text.iter_mut().enumerate() {
            if !matches!(place, 8 | 13 | 18 | 23) {
                shift -= 4;
                *byte = HEX[(bits >> shift) as usize & 0xf];
            }
        }
        Self(text)
    }

    /// As text.
    pub(crate) fn as_str(&self) -> &str {
        // Hexadecimal digits and hyphens only.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// One generated vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generated {
    /// Number of the voter within the stream, in the order of their first votes.
    pub(crate) voter: u64,
    /// The voter's id.
    pub(crate) user_id: UserId,
    /// Index of the option.
    pub(crate) option: usize,
}

/// A run of votes, split over streams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Votes of all streams.
    pub(crate) votes: u64,
    /// Users of all streams; each of them votes at least once. At most as many as votes.
    pub(crate) voters: u64,
    /// Options to choose from; not 0.
    pub(crate) options: usize,
    /// Streams; not 0. If there are more streams than voters, each stream still makes up a voter of its own.
    pub(crate) streams: u32,
    /// Seed of users and choices.
    pub(crate) seed: u64,
}

impl Plan {
    /// The votes of one stream, in their order.
    pub(crate) fn stream(&self, stream: u32) -> Votes {
        let share = |whole: u64| {
            let streams = u64::from(self.streams);
            whole / streams + u64::from(u64::from(stream) < whole % streams)
        };
        Votes {
            random: Random(mix(self.seed ^ mix(u64::from(stream) + 1))),
            plan: *self,
            stream,
            votes_left: share(self.votes),
            voters_left: share(self.voters.min(self.votes)),
            voted: 0,
        }
    }
}

/// The votes of one stream. First votes and re-votes are mixed evenly.
#[derive(Clone, Debug)]
pub(crate) struct Votes {
    random: Random,
    plan: Plan,
    stream: u32,
    votes_left: u64,
    voters_left: u64,
    voted: u64,
}

impl Iterator for Votes {
    type Item = Generated;

    fn next(&mut self) -> Option<Generated> {
        if self.votes_left == 0 {
            return None;
        }
        // Selection sampling: with this probability, exactly the planned number of users has voted at the end.
        let voter = if self.voted == 0 || self.random.below(self.votes_left) < self.voters_left {
            self.voted += 1;
            self.voters_left = self.voters_left.saturating_sub(1);
            self.voted - 1
        } else {
            self.random.below(self.voted)
        };
        self.votes_left -= 1;
        // The smaller of two random numbers: earlier options get more votes, as in real polls, so a vote for the wrong
        // option shows in the result.
        let options = self.plan.options as u64;
        let option = self.random.below(options).min(self.random.below(options));
        let number = voter * u64::from(self.plan.streams) + u64::from(self.stream);
        Some(Generated { voter, user_id: UserId::new(self.plan.seed, number), option: option as usize })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn user_ids_look_like_uuids_and_never_change() {
        let id = UserId::new(1, 0);
        let text = id.as_str();
        assert_eq!(text.len(), 36);
        assert_eq!(text.match_indices('-').map(|(at, _)| at).collect::<Vec<_>>(), [8, 13, 18, 23]);
        assert_eq!(&text[14..15], "4");
        assert!("89ab".contains(&text[19..20]));
        assert_eq!(id, UserId::new(1, 0));
        assert_ne!(id, UserId::new(2, 0));
    }

    #[test]
    fn user_ids_are_distinct() {
        let ids: HashSet<_> = (0..100_000).map(|number| UserId::new(7, number).0).collect();
        assert_eq!(ids.len(), 100_000);
    }

    #[test]
    fn every_planned_vote_and_voter_occurs_and_no_user_is_in_two_streams() {
        for (votes, voters, streams) in [(10_000, 6_000, 4), (7, 7, 3), (5, 1, 4), (1, 1, 4), (1_000, 999, 7)] {
            let plan = Plan { votes, voters, options: 5, streams, seed: 3 };
            let mut users = HashSet::new();
            let mut total = 0;
            for stream in 0..streams {
                let generated: Vec<_> = plan.stream(stream).collect();
                total += generated.len() as u64;
                let own: HashSet<_> = generated.iter().map(|vote| vote.user_id.0).collect();
                assert!(users.is_disjoint(&own));
                users.extend(own);
                assert!(generated.iter().all(|vote| vote.option < 5));
                assert!(generated.iter().eq(plan.stream(stream).collect::<Vec<_>>().iter()));
            }
            assert_eq!(total, votes);
            assert!(users.len() as u64 >= voters);
            if voters >= u64::from(streams) {
                assert_eq!(users.len() as u64, voters);
            }
        }
    }
}
