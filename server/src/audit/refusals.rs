//! How many refusals get a line of their own.
//!
//! Owns that bound: whoever can reach the port can be refused as often as they like, and must neither fill the disk nor
//! hide what others did. Must never leave out a refusal without counting it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Most lines at once.
const BURST: u32 = 60;
/// One more line each time that so much has passed: some 30 MB a day at most.
const EVERY: Duration = Duration::from_secs(1);

/// The bounds for callers whose credential counts, and for all others. A flood of strangers does not hide an insider.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    known: Mutex<Bucket>,
    strangers: Mutex<Bucket>,
    left_out: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Bucket {
    left: u32,
    filled_at: Instant,
}

impl Default for Bucket {
    fn default() -> Self {
        Self { left: BURST, filled_at: Instant::now() }
    }
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let steps = now.saturating_duration_since(self.filled_at).as_secs() / EVERY.as_secs();
        if steps > 0 {
            self.left = self.left.saturating_add(u32::try_from(steps).unwrap_or(u32::MAX)).min(BURST);
            self.filled_at += Duration::from_secs(steps * EVERY.as_secs());
        }
        let taken = self.left > 0;
        self.left -= u32::from(taken);
        taken
    }
}

impl Refusals {
    /// Whether one more refusal gets a line. If not, it is counted.
    pub(super) fn admit(&self, is_known: bool) -> bool {
        let bucket = if is_known { &self.known } else { &self.strangers };
        let admitted = bucket.lock().take(Instant::now());
        if !admitted {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    /// Number of refusals without a line that the log does not know of yet.
    pub(super) fn left_out(&self) -> Arc<AtomicU64> {
        self.left_out.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_strangers_hides_no_insider() {
        let refusals = Refusals::default();
        let admitted = (0..1_000).filter(|_| refusals.admit(false)).count();
        assert!((60..100).contains(&admitted), "{admitted}");
        assert_eq!(refusals.left_out.load(Ordering::Relaxed), 1_000 - admitted as u64);
        assert!(refusals.admit(true));
        let mut bucket = Bucket::default();
        let start = bucket.filled_at;
        assert_eq!((0..100).filter(|_| bucket.take(start)).count(), 60);
        assert_eq!((0..100).filter(|_| bucket.take(start + Duration::from_millis(3_500))).count(), 3);
        assert_eq!((0..100).filter(|_| bucket.take(start + Duration::from_secs(4))).count(), 1);
        assert_eq!((0..100).filter(|_| bucket.take(start + Duration::from_secs(400))).count(), 60);
    }
}
