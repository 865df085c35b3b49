//! Computes routing hashes of accepted votes, several at a time.
//!
//! Owns when they are computed. The multiplications of one hash depend on each other, so the CPU would wait; several
//! hashes together keep it busy. Must never let a vote leave without its hash.

use votestream_core::{model::routing::VoteKey, polls::index::IndexedPoll, produce::AcceptedVote, vote_hash};

/// Accepted votes without a hash.
pub(super) struct Unhashed<'a> {
    keys: [VoteKey; HASHED_TOGETHER],
    /// For each key: the index of its accepted vote, and its poll.
    votes: [(usize, Option<&'a IndexedPoll>); HASHED_TOGETHER],
    count: usize,
}

/// Number of votes that are hashed together: see [`PollHasher::write_key`].
///
/// [`PollHasher::write_key`]: votestream_core::PollHasher::write_key
const HASHED_TOGETHER: usize = 16;

impl<'a> Unhashed<'a> {
    pub(super) fn new() -> Self {
        Self { keys: [[0; _]; HASHED_TOGETHER], votes: [(0, None); HASHED_TOGETHER], count: 0 }
    }

    /// Notes the vote that is accepted next; or computes and returns its hash.
    #[inline(always)]
    pub(super) fn add(
        &mut self,
        poll: &'a IndexedPoll,
        user_id: &[u8],
        accepted: &mut [AcceptedVote<'_>],
    ) -> Option<u128> {
        if self.count == HASHED_TOGETHER {
            self.hash(accepted);
        }
        if !poll.hasher().write_key(user_id, &mut self.keys[self.count]) {
            return Some(vote_hash(poll.id().as_str(), user_id));
        }
        self.votes[self.count] = (accepted.len(), Some(poll));
        self.count += 1;
        None
    }

    /// Computes the hashes of the votes that were noted.
    pub(super) fn hash(&mut self, accepted: &mut [AcceptedVote<'_>]) {
        for (key, (at, poll)) in self.keys.iter().zip(self.votes).take(self.count) {
            if let (Some(vote), Some(poll)) = (accepted.get_mut(at), poll) {
                vote.hash = poll.hasher().hash_of_key(key);
            }
        }
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use votestream_core::{Closing, Poll, PollId, PollSource, Timestamp, UserId, Visibility};

    use super::*;

    #[test]
    fn every_vote_has_its_hash_when_all_are_judged() {
        let poll = |id: &str| {
            IndexedPoll::new(Arc::new(Poll {
                id: PollId::new(id).unwrap(),
                title: String::new(),
                options: Vec::new(),
                opens_at: Timestamp(0),
                closes_at: Timestamp(1),
                closing: Closing::No,
                source: PollSource::Ingest,
                expected_peak: 0,
                buckets: 1,
                visibility: Visibility::Live,
                released_at: None,
                pseudonym_key: None,
                needs_recount: false,
                final_result: None,
            }))
        };
        // The longest poll id leaves no place for a user in the key.
        let polls = [poll("p"), poll("another"), poll(&"long".repeat(16))];
        let users: Vec<_> = (0..5 * HASHED_TOGETHER + 3)
            .map(|at| match at % 5 {
                0 => format!("user-{at}"),
                _ => format!("00000000-0000-4000-8000-{at:012}"),
            })
            .collect();
        let option_id: Arc<str> = "option".into();
        let (mut unhashed, mut accepted) = (Unhashed::new(), Vec::new());
        for (at, user) in users.iter().enumerate() {
            let poll = &polls[at % 7 % polls.len()];
            let hash = unhashed.add(poll, user.as_bytes(), &mut accepted).unwrap_or_default();
            let (poll_id, user_id) = (poll.id(), UserId::of(user));
            accepted.push(AcceptedVote { poll_id, option_id: &option_id, user_id, hash, index: at as u32 });
        }
        unhashed.hash(&mut accepted);
        for (vote, user) in accepted.iter().zip(&users) {
            assert_eq!(vote.hash, vote_hash(vote.poll_id.as_str(), user), "{user} in {}", vote.poll_id);
        }
    }
}
