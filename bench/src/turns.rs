//! Two servers that take turns.
//!
//! Owns how long a turn is and what comes out of many. Must never compare turns that are far apart: a machine's speed changes
//! from second to second.

use std::time::Instant;

/// Turns of each of two servers.
pub(crate) const ROUNDS: usize = 9;
/// CPU time of the server that a turn should take. Linux counts it in hundredths of a second, so this is the fiftieth part
/// that a turn may be wrong by. Short turns are better than exact ones.
const CPU_SECONDS: f64 = 0.5;
/// Most votes of a turn, as a multiple of those of the warm-up.
const REPEATS_MAX: f64 = 20.0;

/// A server with its load.
pub(crate) trait Subject {
    /// CPU time that the server has taken.
    fn cpu_seconds(&self) -> anyhow::Result<f64>;

    /// Sends votes until all are answered as expected.
    fn send(&self, votes: usize) -> anyhow::Result<()>;

    /// The number of votes of a turn must be a multiple of this.
    fn multiple(&self) -> usize {
        1
    }
}

/// The cost of a million votes.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub(crate) wall: f64,
    pub(crate) cpu: f64,
    /// CPU time of this run.
    cpu_seconds: f64,
}

/// What two servers took, turn by turn.
pub(crate) struct Turns {
    pub(crate) first: Vec<Run>,
    pub(crate) second: Vec<Run>,
}

impl Turns {
    /// Lets two servers take turns, once both are warm. `total` is roughly the number of votes of a turn; `quick` leaves it so.
    pub(crate) fn take(
        first: &impl Subject,
        second: &impl Subject,
        total: usize,
        rounds: usize,
        quick: bool,
    ) -> anyhow::Result<Self> {
        let (votes_of_first, votes_of_second) = (warm_up(first, total, quick)?, warm_up(second, total, quick)?);
        let mut turns = Self { first: vec![], second: vec![] };
        for _ in 0..rounds {
            turns.first.push(turn(first, votes_of_first)?);
            turns.second.push(turn(second, votes_of_second)?);
        }
        Ok(turns)
    }

    /// The median of a ratio of CPU times, of turns that followed each other.
    pub(crate) fn median_of(&self, ratio: impl Fn(f64, f64) -> f64) -> f64 {
        median(self.first.iter().zip(&self.second).map(|(first, second)| ratio(first.cpu, second.cpu)))
    }
}

/// The median.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Sends votes until memory is mapped and caches are filled. Returns how many a turn needs.
fn warm_up(subject: &impl Subject, total: usize, quick: bool) -> anyhow::Result<usize> {
    let half = (total / 2).next_multiple_of(subject.multiple());
    turn(subject, half)?;
    let repeats = CPU_SECONDS / turn(subject, half)?.cpu_seconds.max(f64::MIN_POSITIVE);
    let votes = if quick { half } else { (half as f64 * repeats.min(REPEATS_MAX)) as usize };
    Ok(votes.next_multiple_of(subject.multiple()))
}

fn turn(subject: &impl Subject, votes: usize) -> anyhow::Result<Run> {
    let (cpu, start) = (subject.cpu_seconds()?, Instant::now());
    subject.send(votes)?;
    let (wall, cpu_seconds) = (start.elapsed().as_secs_f64(), subject.cpu_seconds()? - cpu);
    let millions = votes as f64 / 1e6;
    Ok(Run { wall: wall / millions, cpu: cpu_seconds / millions, cpu_seconds })
}
