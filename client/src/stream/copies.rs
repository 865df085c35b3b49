//! Votes that may be stored behind our back.
//!
//! When a connection breaks, what was sent over it may wait in the service and be stored seconds later, behind its copy that is
//! sent over the next connection: the services of a deployment share no order but that of the stream. That does no harm to a
//! user who has not voted anew: both copies are the same vote. Owns which votes have to wait until no copy of an older vote of
//! the same user can land any more. Must never hold back a vote of another user for its own sake.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use tokio::time::Instant;
use votestream_proto::{ReceivedVotes, VoteBytes, VotesMessage};

use super::StreamOptions;

/// Votes that are remembered for each that may be under way: breaks may follow each other.
const REMEMBERED_PER_UNSETTLED: u64 = 4;

/// What an old vote chose, if there is but one choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    One(u64),
    Several,
}

/// Votes that were sent over connections that have broken.
pub(super) struct Copies {
    hasher: RandomState,
    land_within: Duration,
    /// When the last of them can have landed.
    until: Option<Instant>,
    /// Choices of users, by hashes. Two users with one hash, at the most, wait for each other in vain.
    choices: HashMap<u64, Choice>,
    choices_max: usize,
    /// More votes than can be remembered: nothing passes.
    is_full: bool,
}

impl Copies {
    pub(super) fn new(options: StreamOptions) -> Self {
        let choices_max = options.unsettled_votes_max.saturating_mul(REMEMBERED_PER_UNSETTLED);
        Self {
            hasher: RandomState::new(),
            land_within: options.copies_land_within,
            until: None,
            choices: HashMap::new(),
            choices_max: usize::try_from(choices_max).unwrap_or(usize::MAX),
            is_full: false,
        }
    }

    /// These messages were under way when their connection broke.
    pub(super) fn note<'m>(&mut self, messages: impl Iterator<Item = &'m VotesMessage>, broke: Instant) {
        if self.land_within.is_zero() {
            return;
        }
        self.forget(broke);
        self.until = Some(broke + self.land_within);
        for vote in messages.flat_map(ReceivedVotes::votes).flatten() {
            let (user, choice) = self.hashes(&vote);
            if self.choices.len() >= self.choices_max && !self.choices.contains_key(&user) {
                self.is_full = true;
                return;
            }
            let known = self.choices.entry(user).or_insert(Choice::One(choice));
            if *known != Choice::One(choice) {
                *known = Choice::Several;
            }
        }
    }

    /// Until when a message has to wait; `None` if it need not.
    pub(super) fn held_until(&mut self, message: &VotesMessage) -> Option<Instant> {
        self.until?;
        self.forget(Instant::now());
        let until = self.until?;
        let waits = |vote: VoteBytes<'_>| {
            let (user, choice) = self.hashes(&vote);
            self.choices.get(&user).is_some_and(|known| *known != Choice::One(choice))
        };
        (self.is_full || message.votes().flatten().any(waits)).then_some(until)
    }

    /// Forgets what has landed by now, or never will.
    fn forget(&mut self, now: Instant) {
        if self.until.is_some_and(|until| until <= now) {
            self.until = None;
            self.choices = HashMap::new();
            self.is_full = false;
        }
    }

    fn hashes(&self, vote: &VoteBytes<'_>) -> (u64, u64) {
        (self.hasher.hash_one((vote.poll_id, vote.user_id)), self.hasher.hash_one(vote.option_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(votes: &[(&str, &str)]) -> VotesMessage {
        let mut message = VotesMessage::default();
        votes.iter().for_each(|(user, option)| message.push("p", user, option));
        message
    }

    fn copies(unsettled_votes_max: u64) -> Copies {
        let land_within = Duration::from_secs(10);
        Copies::new(StreamOptions { unsettled_votes_max, copies_land_within: land_within, ..StreamOptions::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn only_another_choice_of_the_same_user_waits() {
        let mut copies = copies(100);
        let broke = Instant::now();
        assert_eq!(copies.held_until(&message(&[("u", "b")])), None);
        copies.note([message(&[("u", "a"), ("v", "a"), ("v", "b")])].iter(), broke);
        let until = Some(broke + Duration::from_secs(10));
        assert_eq!(copies.held_until(&message(&[("w", "b"), ("u", "a")])), None);
        assert_eq!(copies.held_until(&message(&[("w", "b"), ("u", "b")])), until);
        assert_eq!(copies.held_until(&message(&[("v", "b")])), until, "its older choice may land behind it");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(copies.held_until(&message(&[("u", "b"), ("v", "b")])), None);
        assert!(copies.choices.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_its_memory_everything_waits() {
        let mut copies = copies(1);
        let broke = Instant::now();
        copies.note([message(&[("a", "x"), ("b", "x"), ("c", "x"), ("d", "x")])].iter(), broke);
        assert_eq!(copies.held_until(&message(&[("w", "x")])), None);
        copies.note([message(&[("a", "x"), ("e", "x")])].iter(), broke);
        assert!(copies.held_until(&message(&[("w", "x")])).is_some());
        assert_eq!(copies.choices.len(), 4);
    }
}
