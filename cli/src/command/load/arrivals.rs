//! When votes are due.
//!
//! Owns the curves of `--arrivals`. Must never depend on how the service answers: a vote is due when it is due, whatever
//! became of those before it.
//!
//! A curve has a highest rate R (`--rate`) and as many votes N as are asked for; together they say how long it takes.
//! With t in seconds from the start, votes come at the rate
//!
//! - steady: R, for N / R.
//! - spike: R / 10, then R, then R / 10, each for a third of N / 0.4 R.
//! - announcement: R · t / a while t ≤ a, then R · exp(-(t - a) / τ) until that is R / 100. The rise a is one second, or
//!   N / 2 R if that is less, so that at least three quarters of the votes come after it. τ follows from N.

use std::time::Duration;

use crate::{args::Arrivals, generate::Random};

/// Seconds of the rise of an announcement: how soon people have their phone in hand.
const RISE_SECONDS: f64 = 1.0;
/// Part of the highest rate at which an announcement ends.
const END: f64 = 0.01;
/// Part of the highest rate before and after a spike.
const BASE: f64 = 0.1;

/// The rate over the time of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Curve {
    arrivals: Arrivals,
    votes: f64,
    rate: f64,
}

impl Curve {
    /// The curve of this many votes, at this rate a second at its highest; none without a rate.
    pub(super) fn new(arrivals: Arrivals, votes: u64, rate: u64) -> Option<Self> {
        (rate > 0 && votes > 0).then_some(Self { arrivals, votes: votes as f64, rate: rate as f64 })
    }

    /// When this part of the votes, from 0 to 1, has come, from the start.
    pub(super) fn at(&self, part: f64) -> Duration {
        let seconds = match self.arrivals {
            Arrivals::Steady => part * self.votes / self.rate,
            Arrivals::Spike => self.spike(part),
            Arrivals::Announcement => self.announcement(part),
        };
        // Rounding may make the first moment a little less than nothing.
        Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
    }

    /// From the first vote to the last.
    pub(super) fn length(&self) -> Duration {
        self.at(1.0)
    }

    fn spike(&self, part: f64) -> f64 {
        let third = self.votes / (self.rate * (1.0 + 2.0 * BASE));
        // Parts of the votes that come before the spike, and until its end.
        let before = BASE / (1.0 + 2.0 * BASE);
        let until = 1.0 - before;
        if part < before {
            third * part / before
        } else if part <= until {
            third * (1.0 + (part - before) / (until - before))
        } else {
            third * (2.0 + (part - until) / before)
        }
    }

    fn announcement(&self, part: f64) -> f64 {
        let rise = RISE_SECONDS.min(self.votes / (2.0 * self.rate));
        let rising = self.rate * rise / 2.0;
        let come = part * self.votes;
        if come <= rising {
            return (2.0 * come * rise / self.rate).sqrt();
        }
        let decay = (self.votes - rising) / (self.rate * (1.0 - END));
        rise - decay * (1.0 - (come - rising) / (self.rate * decay)).max(END).ln()
    }
}

/// The moments of the single votes of a curve, one after the other: random ones, since people do not know of each other, but
/// the same ones for the same seed.
#[derive(Clone, Debug)]
pub(super) struct Moments {
    curve: Curve,
    random: Random,
    left: u64,
    /// Part of the curve's votes that have come.
    reached: f64,
}

impl Moments {
    pub(super) fn new(curve: Curve, seed: u64) -> Self {
        Self { curve, random: Random::new(seed), left: curve.votes as u64, reached: 0.0 }
    }
}

impl Iterator for Moments {
    type Item = Duration;

    /// The smallest of as many independent random numbers as votes are left, above the one before: order statistics, without
    /// keeping and sorting them.
    fn next(&mut self) -> Option<Duration> {
        if self.left == 0 {
            return None;
        }
        let step = -(self.random.unit().ln() / self.left as f64).exp_m1();
        self.reached = (self.reached + (1.0 - self.reached) * step).clamp(self.reached, 1.0);
        self.left -= 1;
        Some(self.curve.at(self.reached))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Arrivals; 3] = [Arrivals::Steady, Arrivals::Spike, Arrivals::Announcement];

    fn curve(arrivals: Arrivals, votes: u64, rate: u64) -> Curve {
        Curve::new(arrivals, votes, rate).unwrap()
    }

    /// Votes that come from one part of the curve's length to another.
    fn within(moments: &[Duration], from: f64, to: f64) -> usize {
        moments.iter().filter(|at| (from..to).contains(&at.as_secs_f64())).count()
    }

    proptest! {
        #[test]
        fn every_vote_comes_in_order_and_within_the_length(
            votes in 1_u64..5_000,
            rate in 1_u64..100_000,
            seed: u64,
            which in 0_usize..3,
        ) {
            let curve = curve(ALL[which], votes, rate);
            let moments: Vec<_> = Moments::new(curve, seed).collect();
            prop_assert_eq!(moments.len() as u64, votes);
            prop_assert!(moments.is_sorted());
            prop_assert!(moments[moments.len() - 1] <= curve.length());
            prop_assert_eq!(moments, Moments::new(curve, seed).collect::<Vec<_>>());
        }

        /// The slope of the curve is never above the rate, and reaches it.
        #[test]
        fn no_curve_is_steeper_than_its_rate(votes in 100_u64..1_000_000, rate in 1_u64..100_000, which in 0_usize..3) {
            const STEPS: u32 = 10_000;
            let curve = curve(ALL[which], votes, rate);
            let of_step = votes as f64 / f64::from(STEPS);
            let moments: Vec<f64> =
                (0..=STEPS).map(|step| curve.at(f64::from(step) / f64::from(STEPS)).as_secs_f64()).collect();
            let mut steepest = 0.0_f64;
            for pair in moments.windows(2) {
                prop_assert!(pair[1] >= pair[0]);
                // Durations have nanoseconds.
                steepest = steepest.max(of_step / (pair[1] - pair[0] + 2e-9));
            }
            let rate = rate as f64;
            prop_assert!(steepest <= rate * 1.001, "{steepest} of {rate}");
            let rounding = 2e-9 * rate / of_step;
            prop_assert!(steepest >= rate * 0.99 / (1.0 + 2.0 * rounding), "{steepest} of {rate}");
        }
    }

    #[test]
    fn a_steady_curve_has_the_rate_at_all_times() {
        let curve = curve(Arrivals::Steady, 20_000, 1_000);
        assert_eq!(curve.length(), Duration::from_secs(20));
        assert_eq!(curve.at(0.25), Duration::from_secs(5));
        let moments: Vec<_> = Moments::new(curve, 1).collect();
        for second in 0..20 {
            let came = within(&moments, f64::from(second), f64::from(second + 1));
            // Six standard deviations of the binomial distribution.
            assert!((800..=1_200).contains(&came), "{came} in second {second}");
        }
        assert_ne!(moments, Moments::new(curve, 2).collect::<Vec<_>>());
    }

    #[test]
    fn a_spike_is_ten_times_what_is_around_it_and_comes_at_once() {
        // 12 s: 1,000 votes in each outer third, 10,000 in the middle one.
        let curve = curve(Arrivals::Spike, 12_000, 2_500);
        let length = curve.length().as_secs_f64();
        assert!((length - 12.0).abs() < 1e-6, "{length}");
        let moments: Vec<_> = Moments::new(curve, 1).collect();
        let (before, spike, after) =
            (within(&moments, 0.0, 4.0), within(&moments, 4.0, 8.0), within(&moments, 8.0, 12.1));
        assert!((820..=1_180).contains(&before) && (820..=1_180).contains(&after), "{before} {after}");
        assert!((9_750..=10_250).contains(&spike), "{spike}");
        let (last, first) = (within(&moments, 3.5, 4.0), within(&moments, 4.0, 4.5));
        assert!(first > 6 * last, "{last} in the half second before, {first} in the one after");
    }

    #[test]
    fn an_announcement_rises_within_a_second_and_decays() {
        let curve = curve(Arrivals::Announcement, 100_000, 10_000);
        // τ = (100,000 - 5,000) / 9,900.
        let tau = 95.0 / 9.9;
        let length = curve.length().as_secs_f64();
        assert!((length - (1.0 + tau * 100_f64.ln())).abs() < 1e-6, "{length}");
        let moments: Vec<_> = Moments::new(curve, 1).collect();
        let rising = within(&moments, 0.0, 1.0);
        assert!((4_600..=5_400).contains(&rising), "{rising}");
        assert!(within(&moments, 0.0, 0.5) < rising / 3, "it is steeper at its end");
        let full = within(&moments, 1.0, 2.0);
        assert!((9_000..=10_000).contains(&full), "{full}");
        // After ln 2 times τ it is half.
        let half = within(&moments, 1.0 + tau * 2_f64.ln(), 2.0 + tau * 2_f64.ln());
        assert!((f64::from(half as u32) / f64::from(full as u32) - 0.5).abs() < 0.05, "{half} of {full}");
    }

    #[test]
    fn few_votes_still_make_a_whole_announcement() {
        let curve = curve(Arrivals::Announcement, 100, 10_000);
        assert_eq!(curve.at(0.25), Duration::from_millis(5));
        assert!(curve.length() > Duration::from_millis(30));
        assert!(Curve::new(Arrivals::Steady, 5, 0).is_none());
    }
}
