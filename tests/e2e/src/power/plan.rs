//! When and how the power is cut, and what happened then.
//!
//! Owns all random draws from a seed, and the count of what happened. Must never draw from another source.

use std::{collections::BTreeMap, time::Duration};

use rand::{RngExt, rngs::StdRng};

use super::disk::Cut;

/// Modes: which of the data that is not durable survives, by the letter of the disk's command. A mode that is listed
/// more often is chosen more often.
const MODES: [&str; 8] = ["a", "b", "b", "b", "p", "p", "c", "d"];
/// How long to wait for an armed cut, in milliseconds, before the power is cut anyway.
const LOAD_MS: std::ops::Range<u64> = 100..3_000;
/// Time of a sync, in microseconds: from a fast SSD to a slow disk, where more writes are in flight.
const SYNC_US: std::ops::Range<u64> = 200..6_000;
/// Events before which the power is cut, and the largest count of each. Files are created, removed and truncated when
/// tables are flushed, when the log continues in a new file, and when old files are removed.
const EVENTS: [(&str, u64); 12] = [
    ("write", 25),
    ("write", 25),
    ("fsync", 10),
    ("fsyncend", 10),
    ("fsyncend", 10),
    ("fsyncend", 10),
    ("create", 2),
    ("rename", 2),
    ("unlink", 2),
    ("truncate", 2),
    ("fsyncdir", 2),
    ("any", 60),
];
/// Number of events of a start before which a cut may come.
const START_EVENTS: u64 = 60;

/// When and how the power is cut.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The letter of what survives.
    pub mode: &'static str,
    /// Seed for a random mode.
    pub seed: u64,
    /// The event that it comes before, and its count; `None` for a moment that no event tells.
    pub before: Option<(&'static str, u64)>,
    /// Whether events count from the start of the process; otherwise from when it is ready.
    pub while_starting: bool,
    /// Latest time of the cut after the process is ready.
    pub within: Duration,
    /// Time of a sync.
    pub sync: Duration,
}

impl Plan {
    /// Draws a plan.
    pub fn draw(rng: &mut StdRng) -> Self {
        let while_starting = rng.random_bool(0.25);
        let (event, count_max) = EVENTS[rng.random_range(0..EVENTS.len())];
        let before = if while_starting {
            Some(("any", rng.random_range(1..=START_EVENTS)))
        } else {
            rng.random_bool(0.85).then(|| (event, rng.random_range(1..=count_max)))
        };
        Self {
            mode: MODES[rng.random_range(0..MODES.len())],
            seed: rng.random_range(0..u64::from(u32::MAX)),
            before,
            while_starting,
            within: Duration::from_millis(rng.random_range(LOAD_MS)),
            sync: Duration::from_micros(rng.random_range(SYNC_US)),
        }
    }

    /// A plan with a cut before this event of a start.
    pub fn at_start(rng: &mut StdRng, event: u64) -> Self {
        Self { before: Some(("any", event)), while_starting: true, ..Self::draw(rng) }
    }

    /// The command to the disk before the wait; `None` if the cut does not wait for an event.
    pub(super) fn arm(&self) -> Option<String> {
        let (event, count) = self.before?;
        Some(format!("arm {} {} {event} {count}", self.mode, self.seed))
    }

    /// The command to the disk that cuts the power now.
    pub(super) fn cut(&self) -> String {
        format!("cut {} {}", self.mode, self.seed)
    }
}

/// What was done, and to how many votes.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Cuts, by the letter of their mode and their event.
    pub cuts: BTreeMap<String, usize>,
    /// Cuts, by the part of the data directory that the event concerned.
    pub places: BTreeMap<String, usize>,
    /// Cuts while votes were waiting for their answer.
    pub under_load: usize,
    /// Cuts before a process was ready.
    pub while_starting: usize,
    /// Blocks, and directory operations, that were lost.
    pub lost: [u64; 2],
    /// Votes by answer: durable, rejected, unknown. Without the crowd.
    pub votes: [u64; 3],
    /// Acknowledged votes of the crowd.
    pub crowd: u64,
}

impl Report {
    /// Number of cuts.
    pub fn total(&self) -> usize {
        self.cuts.values().sum()
    }

    /// Adds what happened elsewhere.
    pub fn add(&mut self, other: Self) {
        other.cuts.into_iter().for_each(|(cut, times)| *self.cuts.entry(cut).or_default() += times);
        other.places.into_iter().for_each(|(place, times)| *self.places.entry(place).or_default() += times);
        self.under_load += other.under_load;
        self.while_starting += other.while_starting;
        self.crowd += other.crowd;
        self.lost.iter_mut().zip(other.lost).for_each(|(mine, more)| *mine += more);
        self.votes.iter_mut().zip(other.votes).for_each(|(mine, more)| *mine += more);
    }

    pub(super) fn note(&mut self, cut: &Cut) {
        *self.cuts.entry(format!("{} {}", cut.mode, cut.before)).or_default() += 1;
        *self.places.entry(part(&cut.path)).or_default() += 1;
        self.lost[0] += cut.blocks[1];
        self.lost[1] += cut.changes[1];
    }
}

/// The first three names of a path, without the numbers of files.
fn part(path: &str) -> String {
    let names = path.split('/').take(3).map(|name| name.trim_matches(|c: char| c.is_ascii_digit() || c == '-'));
    names.collect::<Vec<_>>().join("/")
}
