//! The polls of the votes in a message.
//!
//! Owns which definitions may be used for the votes of a message, and how missing ones are looked up: together, a
//! limited number at a time, and each at most once for many votes. Must never use a definition that was too old at the
//! moment at which the judging pass began.

use std::{
    collections::{HashMap, hash_map},
    sync::Arc,
};

use parking_lot::Mutex;
use votestream_core::{
    Moment, PollId, Refusal,
    polls::{cache::PollCache, index::IndexedPoll},
};

use super::walk::VoteResult;

/// Most polls of a memory. If it has more, all of them are forgotten after the message.
const POLLS_REMEMBERED_MAX: usize = 1_024;
/// Up to this many polls, a search checks them one after the other.
const POLLS_SCANNED_MAX: usize = 16;
/// Most memories that are kept between messages. More than there are threads that admit messages.
const MEMORIES_MAX: usize = 64;
/// Most polls that are looked up together for one message.
pub(super) const LOOKED_UP_MAX: usize = 256;
/// How many votes are searched for other missing polls, from the first vote without a poll on. So each vote is looked
/// at at most once more than it is judged: the next vote without a poll comes after these.
const SCANNED_AHEAD_MAX: usize = 16 << 10;

/// Memories of polls that are not in use.
#[derive(Default)]
pub(super) struct Memories(Mutex<Vec<KnownPolls>>);

impl Memories {
    pub(super) fn take(&self) -> KnownPolls {
        self.0.lock().pop().unwrap_or_default()
    }

    /// Keeps a memory for the next messages, unless it has become too large.
    pub(super) fn give_back(&self, mut polls: KnownPolls) {
        polls.refused.clear();
        if polls.known.len() <= POLLS_REMEMBERED_MAX {
            let mut memories = self.0.lock();
            if memories.len() < MEMORIES_MAX {
                memories.push(polls);
            }
        }
    }
}

/// Polls that recent votes were for. Each admission of messages takes such a memory and gives it back. So the shared
/// cache is seldom asked.
#[derive(Default)]
pub(super) struct KnownPolls {
    known: Vec<Known>,
    /// The index of each poll, once there are many. Clients choose the ids, so the hash must be random: with a hash
    /// that they can compute, they could make all ids collide.
    places: HashMap<PollId, usize>,
    /// Polls that were looked up for this message, and why their votes are refused.
    refused: HashMap<PollId, Refusal>,
}

/// A poll, and how long it may be used without asking the cache again.
struct Known {
    poll: Arc<IndexedPoll>,
    until: Moment,
}

/// Why a vote has no poll.
pub(super) enum Missing {
    /// The poll must be looked up.
    Look,
    /// The vote is refused.
    Refuse(Refusal),
}

impl KnownPolls {
    /// The poll of a vote, if it may be used at `moment`. `last` is the poll of the vote before, because most votes of
    /// a message are for the same poll.
    #[inline(always)]
    pub(super) fn find<'a>(
        &'a self,
        poll_id: &[u8],
        moment: Moment,
        last: &mut Option<&'a IndexedPoll>,
    ) -> Result<&'a IndexedPoll, Missing> {
        if let Some(known) = *last
            && known.is(poll_id)
        {
            return Ok(known);
        }
        let id = PollId::check(poll_id).map_err(|error| Missing::Refuse(error.into()))?;
        let known = self.valid(id, moment).ok_or_else(|| self.why(id))?;
        *last = Some(known);
        Ok(known)
    }

    /// For a poll that is not known: why its votes are refused, or that it must be looked up.
    #[cold]
    fn why(&self, id: &str) -> Missing {
        match self.refused.get(id) {
            Some(refusal) => Missing::Refuse(refusal.clone()),
            None => Missing::Look,
        }
    }

    fn valid(&self, id: &str, moment: Moment) -> Option<&IndexedPoll> {
        let known = &self.known[self.place(id)?];
        (!moment.is_past(known.until)).then_some(&known.poll)
    }

    fn place(&self, id: &str) -> Option<usize> {
        if self.known.len() <= POLLS_SCANNED_MAX {
            self.known.iter().position(|known| known.poll.is(id.as_bytes()))
        } else {
            self.places.get(id).copied()
        }
    }

    /// Takes the polls of the next votes from the cache. Returns the polls that the cache does not have, in the order
    /// of the votes.
    pub(super) fn recall<'v>(
        &mut self,
        votes: impl Iterator<Item = VoteResult<'v>>,
        cache: &PollCache,
        moment: Moment,
    ) -> Vec<PollId> {
        let mut absent = Absent::default();
        for vote in votes.take(SCANNED_AHEAD_MAX).flatten() {
            let Ok(id) = PollId::check(vote.poll_id) else { continue };
            if self.valid(id, moment).is_some() || self.refused.contains_key(id) {
                continue;
            }
            match cache.peek(id, moment) {
                Some((poll, until)) => self.enter(poll, until),
                None if absent.enter(id) => {}
                None => break,
            }
        }
        absent.order
    }

    /// Called before further polls are looked up. Forgets earlier refusals, because they are old now.
    pub(super) fn begin_look_up(&mut self) {
        self.refused.clear();
    }

    /// Refuses votes for this poll.
    pub(super) fn refuse(&mut self, id: PollId, refusal: Refusal) {
        self.refused.insert(id, refusal);
    }

    /// Enters a poll. Replaces an older definition.
    pub(super) fn enter(&mut self, poll: Arc<IndexedPoll>, until: Moment) {
        match self.place(poll.id().as_str()) {
            Some(at) => self.known[at] = Known { poll, until },
            None => {
                self.known.push(Known { poll, until });
                let count = self.known.len();
                // When the map begins to be used, enter all polls.
                let first = if count == POLLS_SCANNED_MAX + 1 { 0 } else { count - 1 };
                if count > POLLS_SCANNED_MAX {
                    self.places
                        .extend((first..).zip(&self.known[first..]).map(|(at, new)| (new.poll.id().clone(), at)));
                }
            }
        }
    }
}

/// Polls that must be looked up, each once.
#[derive(Default)]
struct Absent {
    order: Vec<PollId>,
    seen: HashMap<PollId, ()>,
}

impl Absent {
    /// Adds a poll. Returns whether there was room.
    fn enter(&mut self, id: &str) -> bool {
        if self.seen.contains_key(id) {
            return true;
        }
        let Ok(id) = PollId::new(id) else { return true };
        if self.order.len() >= LOOKED_UP_MAX {
            return false;
        }
        if let hash_map::Entry::Vacant(slot) = self.seen.entry(id) {
            self.order.push(slot.key().clone());
            slot.insert(());
        }
        true
    }
}
