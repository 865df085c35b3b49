//! Marks that every flush leaves in every keyspace, so that a store whose parts are of different moments is found out.
//!
//! Owns the marks. Must never let a start go on from such a store: progress would speak of votes that are not there. A crash
//! leaves none, since a flush is whole or nothing; a copy of the files that is made while they change may be one.
//!
//! Flush `n` writes its number into place `n % 64` of each keyspace. What a keyspace holds is taken from its tables and from
//! journals. If these are of different moments, the numbers in between are missing; if keyspaces are, their last numbers differ.
//! The keyspace `polls` has marks of its own, one for each change of a poll, each with the last flush before it.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use fjall::Keyspace;

use super::{
    Inner,
    flush::{Change, Target},
};
use crate::codec::{Corrupt, Decoder, Encoder};

/// Places for marks: more flushes than one journal holds between two tables of a busy keyspace need not be told apart.
const PLACES: u64 = 64;
/// Before the place in the key of a mark, behind all other keys of every keyspace: ids are UTF-8, and no poll has such a number.
const PREFIX: [u8; 5] = [255; 5];

/// The key of a mark.
pub(super) fn key(number: u64) -> [u8; 6] {
    let [a, b, c, d, e] = PREFIX;
    [a, b, c, d, e, (number % PLACES) as u8]
}

/// Whether this is the key of a mark.
pub(super) fn is_mark(key: &[u8]) -> bool {
    key.starts_with(&PREFIX)
}

/// The value of a mark: its number, and the last flush before it.
pub(super) fn value(number: u64, flush: u64) -> Vec<u8> {
    let mut value = Encoder::default();
    value.u64(number).u64(flush);
    value.0
}

/// The marks of a flush in those keyspaces that it writes by changes.
pub(super) fn changes(number: u64) -> impl Iterator<Item = Change> {
    let mark = move |target| Change { target, key: key(number).to_vec(), value: value(number, number) };
    [Target::Tallies, Target::Leases, Target::Dictionary, Target::Flushes].into_iter().map(mark)
}

/// Why marks could not be compared, or do not fit.
pub(super) enum MomentError {
    Database(fjall::Error),
    Damaged(String),
}

/// The last mark of a keyspace, and the flush that it names; zeros if it has none.
fn last(name: &str, keyspace: &Keyspace) -> Result<(u64, u64), MomentError> {
    let mut marks = BTreeMap::new();
    for guard in keyspace.prefix(PREFIX) {
        let (found, bytes) = guard.into_inner().map_err(MomentError::Database)?;
        let damaged = |_: Corrupt| MomentError::Damaged(format!("a mark in {name}"));
        let mut bytes = Decoder(&bytes);
        let (number, flush) = (bytes.u64().map_err(damaged)?, bytes.u64().map_err(damaged)?);
        if *found != key(number) {
            return Err(damaged(Corrupt));
        }
        marks.insert(number, flush);
    }
    let Some((&last, &flush)) = marks.last_key_value() else { return Ok((0, 0)) };
    let first = last.saturating_sub(PLACES - 1).max(1);
    if !marks.keys().copied().eq(first..=last) {
        return Err(MomentError::Damaged(format!("{name} is of several moments: {COPIED}")));
    }
    Ok((last, flush))
}

/// What explains it.
const COPIED: &str = "it was copied while it was in use";

impl Inner {
    /// Compares the marks of all keyspaces, before anything is made of them. `redo` says that the last flush has written its
    /// votes, and the rest not yet. Returns the number of the last flush.
    pub(super) fn compare_moments(&self, redo: bool) -> Result<u64, MomentError> {
        let (votes, _) = last("votes", &self.votes)?;
        let complete = votes.saturating_sub(u64::from(redo));
        for (name, keyspace) in [
            ("tallies", &self.tallies),
            ("leases", &self.leases),
            ("numbers", &self.numbers_stored),
            ("flushes", &self.flushes),
        ] {
            let (number, _) = last(name, keyspace)?;
            if number != complete {
                let reason = format!("votes are of flush {complete}, {name} of flush {number}: {COPIED}");
                return Err(MomentError::Damaged(reason));
            }
        }
        let (polls, flush) = last("polls", &self.polls)?;
        if flush > votes {
            let reason = format!("polls are of flush {flush}, votes of flush {votes}: {COPIED}");
            return Err(MomentError::Damaged(reason));
        }
        self.poll_changes.store(polls, Ordering::SeqCst);
        Ok(votes)
    }
}
