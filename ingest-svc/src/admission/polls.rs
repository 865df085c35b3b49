//! Polls that messages of votes are for.
//!
//! Owns which definitions may be used for the votes of a message, and how those that are missing are looked up: together, a
//! bounded number at a time, each at most once for many votes. Must never use a definition that was too old at the moment
//! that the judging pass began with.

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

/// Most polls of a memory; beyond, all are forgotten after the message.
const POLLS_REMEMBERED_MAX: usize = 1_024;
/// Up to this many, each is looked at in turn.
const POLLS_SCANNED_MAX: usize = 16;
/// Most memories that wait for messages: more than there are threads to admit them.
const MEMORIES_MAX: usize = 64;
/// Most polls that are looked up together for one message.
pub(super) const LOOKED_UP_MAX: usize = 256;
/// How far ahead of the vote that lacks its poll others are looked for. A message is looked through once more than it is
/// judged, whatever it holds: the next vote that lacks its poll comes after these.
const SCANNED_AHEAD_MAX: usize = 16 << 10;

/// Memories of polls, for whoever admits messages.
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

/// Polls that votes were for lately. Whoever admits messages takes such a memory and gives it back, so that the cache, which all
/// share, is asked seldom.
#[derive(Default)]
pub(super) struct KnownPolls {
    known: Vec<Known>,
    /// Where each is, once there are many. Clients choose the ids: a hash that they could compute would let them make all of
    /// them meet.
    places: HashMap<PollId, usize>,
    /// Polls that were looked up for the votes of this message, and why their votes are refused.
    refused: HashMap<PollId, Refusal>,
}

/// A poll, and until when it may be used without asking the cache again.
struct Known {
    poll: Arc<IndexedPoll>,
    until: Moment,
}

/// Why a vote has no poll.
pub(super) enum Missing {
    /// It has to be looked up.
    Look,
    /// The vote is refused.
    Refuse(Refusal),
}

impl KnownPolls {
    /// The poll of a vote, if it may be used at `moment`. `last` is that of the vote before: most votes of a message are for
    /// one poll.
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

    /// Why votes for a poll that is not known are refused, or that it has to be looked up.
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

    /// Takes from the cache what the next votes need, and returns which polls it does not have, in the order of the votes.
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

    /// Begins to look up more polls: what is known of those that were not found is old.
    pub(super) fn begin_look_up(&mut self) {
        self.refused.clear();
    }

    /// Votes for this poll are refused.
    pub(super) fn refuse(&mut self, id: PollId, refusal: Refusal) {
        self.refused.insert(id, refusal);
    }

    /// Enters a poll, in place of its older definition.
    pub(super) fn enter(&mut self, poll: Arc<IndexedPoll>, until: Moment) {
        match self.place(poll.id().as_str()) {
            Some(at) => self.known[at] = Known { poll, until },
            None => {
                self.known.push(Known { poll, until });
                let count = self.known.len();
                // All of them, once they are looked up there.
                let first = if count == POLLS_SCANNED_MAX + 1 { 0 } else { count - 1 };
                if count > POLLS_SCANNED_MAX {
                    self.places
                        .extend((first..).zip(&self.known[first..]).map(|(at, new)| (new.poll.id().clone(), at)));
                }
            }
        }
    }
}

/// Polls that have to be looked up, each once.
#[derive(Default)]
struct Absent {
    order: Vec<PollId>,
    seen: HashMap<PollId, ()>,
}

impl Absent {
    /// Whether there was room.
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
