//! Marks that every flush writes into every keyspace. They reveal a store whose parts are from different moments.
//!
//! Owns the marks. Must never let a start go on with such a store: progress would cover votes that are missing. A crash
//! does not cause this, since a flush is written completely or not at all. A copy of the files that was made while they
//! changed can be such a store.
//!
//! Flush `n` writes its number into place `n % 64` of each keyspace. The content of a keyspace comes from its tables
//! and from journals. If these are from different moments, numbers in between are missing. If keyspaces are from
//! different moments, their last numbers differ. The keyspace `polls` has its own marks, one for each change of a poll;
//! each names the last flush before it.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use fjall::Keyspace;

use super::{
    Inner,
    flush::{Change, Target},
};
use crate::codec::{Corrupt, Decoder, Encoder};

/// Number of places for marks. One journal holds fewer flushes between two tables of a busy keyspace, so older marks
/// are not needed.
const PLACES: u64 = 64;
/// Start of the key of a mark; the place follows. It sorts behind all other keys of every keyspace: ids are UTF-8, and
/// no poll has such a number.
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

/// The marks of a flush for the keyspaces that it writes by changes.
pub(super) fn changes(number: u64) -> impl Iterator<Item = Change> {
    let mark = move |target| Change { target, key: key(number).to_vec(), value: value(number, number) };
    [Target::Tallies, Target::Leases, Target::Dictionary, Target::Flushes].into_iter().map(mark)
}

/// Why marks could not be compared, or do not fit together.
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
        return Err(MomentError::Damaged(format!("{name} is from several moments: {COPIED}")));
    }
    Ok((last, flush))
}

/// The usual cause, for error messages.
const COPIED: &str = "it was copied while it was in use";

impl Inner {
    /// Compares the marks of all keyspaces, before the store is used. `redo` says that the last flush has written its
    /// votes but not the rest. Returns the number of the last flush.
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
                let reason = format!("votes are from flush {complete}, {name} from flush {number}: {COPIED}");
                return Err(MomentError::Damaged(reason));
            }
        }
        let (polls, flush) = last("polls", &self.polls)?;
        if flush > votes {
            let reason = format!("polls are from flush {flush}, votes from flush {votes}: {COPIED}");
            return Err(MomentError::Damaged(reason));
        }
        self.poll_changes.store(polls, Ordering::SeqCst);
        Ok(votes)
    }
}
