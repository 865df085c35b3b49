//! Remembers who has voted, so that a changed vote is not first tried as a new one.
//!
//! A fixed table of fingerprints, four per row: no allocation and no lock after the start. It may forget a voter, which
//! costs one INSERT that fails. It mistakes one voter in a billion for another, which costs one read. Must never decide
//! an outcome.

use std::sync::atomic::{AtomicU32, Ordering};

use votestream_core::vote_hash;

/// Fingerprints in a row.
const WAYS: usize = 4;

pub(super) struct KnownVoters {
    rows: Vec<[AtomicU32; WAYS]>,
}

impl KnownVoters {
    pub(super) fn new(voters: usize) -> Self {
        let rows = voters.div_ceil(WAYS);
        Self { rows: std::iter::repeat_with(Default::default).take(rows).collect() }
    }

    /// The row, the fingerprint (never 0, which marks an empty place) and the place to overwrite when the row is full.
    fn place(&self, poll_id: &str, user_id: &str) -> Option<(&[AtomicU32; WAYS], u32, usize)> {
        let hash = vote_hash(poll_id, user_id);
        let row = (hash as u64).checked_rem(self.rows.len() as u64)? as usize;
        Some((self.rows.get(row)?, ((hash >> 64) as u32).max(1), (hash >> 96) as usize % WAYS))
    }

    /// Whether the voter has probably been seen.
    pub(super) fn contains(&self, poll_id: &str, user_id: &str) -> bool {
        self.place(poll_id, user_id)
            .is_some_and(|(row, print, _)| row.iter().any(|way| way.load(Ordering::Relaxed) == print))
    }

    /// Remembers the voter, in place of another if the row is full.
    pub(super) fn insert(&self, poll_id: &str, user_id: &str) {
        let Some((row, print, victim)) = self.place(poll_id, user_id) else { return };
        for way in row {
            let found = way.load(Ordering::Relaxed);
            if found == print || found == 0 {
                way.store(print, Ordering::Relaxed);
                return;
            }
        }
        row[victim].store(print, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_most_of_what_fits_and_invents_nobody() {
        let voters = KnownVoters::new(4_096);
        let user = |at: u32| format!("user-{at}");
        (0..2_000).for_each(|at| voters.insert("p", &user(at)));
        let seen = (0..2_000).filter(|at| voters.contains("p", &user(*at))).count();
        assert!(seen > 1_800, "{seen} of 2,000");
        assert_eq!((2_000..20_000).filter(|at| voters.contains("p", &user(*at))).count(), 0);
        assert_eq!((0..2_000).filter(|at| voters.contains("q", &user(*at))).count(), 0, "polls do not mix");
        // Many times more voters than places: the newest are still there.
        (2_000..200_000).for_each(|at| voters.insert("p", &user(at)));
        assert!(voters.contains("p", &user(199_999)));
    }

    #[test]
    fn without_room_nothing_is_remembered() {
        let voters = KnownVoters::new(0);
        voters.insert("p", "u");
        assert!(!voters.contains("p", "u"));
    }
}
