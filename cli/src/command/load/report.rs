//! What `load` prints.
//!
//! Owns the names of the JSON, which are public contract, and the lines for people.

use std::{borrow::Cow, collections::BTreeMap};

use hdrhistogram::Histogram;
use indicatif::HumanCount;
use serde::Serialize;

use super::{
    arrivals::Curve,
    count::{Counts, Times},
};
use crate::{args::LoadArgs, failure::Failure, output};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    poll_id: String,
    sent_as: SentAs,
    /// Votes that were sent or tried: all that were asked for, unless the run was cut short.
    votes: u64,
    voters: u64,
    accepted: u64,
    pub(super) rejected: u64,
    /// Votes that were not sent, because no connection came about.
    pub(super) not_sent: u64,
    /// Votes that were sent and not answered, because the run was cut short, or because a connection broke or was too slow.
    pub(super) unknown: u64,
    /// Votes that were not accepted, by code of the API (`UNAVAILABLE`), status of HTTP (`HTTP_503`), or what became of the
    /// connection (`connect_refused`).
    errors: BTreeMap<Cow<'static, str>, u64>,
    seconds: f64,
    votes_per_second: f64,
    /// What was asked for, if there was a rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    offered: Option<Offered>,
    /// Acknowledgements in the busiest second, counted from the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    busiest_second_accepted: Option<u64>,
    /// Votes for which there was no room in flight when they were due.
    #[serde(skip_serializing_if = "Option::is_none")]
    waited: Option<u64>,
    /// Votes that this process began too late although there was room: it is too slow for the rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    late: Option<u64>,
    ack_milliseconds: Percentiles,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_milliseconds: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect_milliseconds: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_milliseconds: Option<Percentiles>,
}

/// How votes were sent.
#[derive(Debug, Serialize)]
pub(super) struct SentAs {
    /// Whether each vote was a call.
    unary: bool,
    protocol: &'static str,
    new_connections: bool,
    tls: bool,
}

impl SentAs {
    pub(super) fn of(args: &LoadArgs, tls: bool) -> Self {
        let LoadArgs { unary, new_connections, protocol, .. } = *args;
        Self { unary, protocol: protocol.name(), new_connections, tls }
    }
}

/// The rate at which votes were due.
#[derive(Debug, Serialize)]
struct Offered {
    arrivals: &'static str,
    /// The highest rate.
    rate: u64,
    /// From the first vote to the last.
    seconds: f64,
    /// On average.
    votes_per_second: f64,
    /// Votes that were due in the busiest second, counted from the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    busiest_second: Option<u64>,
}

/// From the moment at which a vote was due, or was sent if there is no rate.
#[derive(Debug, Serialize)]
struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Percentiles {
    fn of(micros: &Histogram<u64>) -> Self {
        let at = |quantile| micros.value_at_quantile(quantile) as f64 / 1e3;
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: micros.max() as f64 / 1e3 }
    }

    /// None without times.
    fn of_some(times: &Times) -> Option<Self> {
        (!times.histogram().is_empty()).then(|| Self::of(times.histogram()))
    }
}

/// What phones have beside counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pacing {
    pub(super) waited: u64,
    pub(super) late: u64,
    /// Votes that were due in the busiest second.
    pub(super) busiest_second: u64,
}

impl Report {
    /// The report of a run that took so many seconds and sent, or tried to send, so many votes.
    pub(super) fn new(
        args: &LoadArgs,
        sent_as: SentAs,
        voters: u64,
        counts: &Counts,
        pacing: Option<Pacing>,
        seconds: f64,
    ) -> Self {
        let Counts { accepted, rejected, not_sent, unknown, .. } = *counts;
        let curve = Curve::new(args.arrivals, args.votes, args.rate);
        let paced = pacing.filter(|_| curve.is_some());
        Self {
            poll_id: args.poll.clone(),
            sent_as,
            votes: accepted + rejected + not_sent + unknown,
            voters,
            accepted,
            rejected,
            not_sent,
            unknown,
            errors: counts.errors.clone(),
            seconds,
            votes_per_second: (accepted + rejected) as f64 / seconds,
            offered: curve.map(|curve| {
                let seconds = curve.length().as_secs_f64();
                Offered {
                    arrivals: args.arrivals.name(),
                    rate: args.rate,
                    seconds,
                    votes_per_second: args.votes as f64 / seconds,
                    busiest_second: paced.map(|pacing| pacing.busiest_second),
                }
            }),
            busiest_second_accepted: pacing.map(|_| counts.seconds.busiest()),
            waited: paced.map(|pacing| pacing.waited),
            late: paced.map(|pacing| pacing.late),
            ack_milliseconds: Percentiles::of(counts.ack.histogram()),
            failure_milliseconds: Percentiles::of_some(&counts.failed),
            connect_milliseconds: Percentiles::of_some(&counts.connect),
            tls_milliseconds: Percentiles::of_some(&counts.tls),
        }
    }

    /// Whether every vote was accepted.
    pub(super) fn is_whole(&self) -> bool {
        self.rejected + self.not_sent + self.unknown == 0
    }

    /// Prints the report.
    pub(super) fn show(&self, as_json: bool, planned: u64) -> Result<(), Failure> {
        if as_json { output::json(self) } else { output::lines(&self.describe(planned)) }
    }

    fn describe(&self, planned: u64) -> Vec<String> {
        let sent = if self.votes == planned {
            format!("{} votes of {} users", HumanCount(self.votes), HumanCount(self.voters))
        } else {
            format!("{} of {} votes", HumanCount(self.votes), HumanCount(planned))
        };
        let mut counts = format!("accepted {}, rejected {}", HumanCount(self.accepted), HumanCount(self.rejected));
        for (name, count) in [("not sent", self.not_sent), ("unknown", self.unknown)] {
            if count > 0 {
                counts += &format!(", {name} {}", HumanCount(count));
            }
        }
        let mut lines = vec![
            format!("{sent} in {:.2} s: {} votes/s", self.seconds, HumanCount(self.votes_per_second as u64)),
            counts,
        ];
        if !self.errors.is_empty() {
            let errors: Vec<_> =
                self.errors.iter().map(|(kind, count)| format!("{kind} {}", HumanCount(*count))).collect();
            lines.push(format!("not accepted: {}", errors.join(", ")));
        }
        lines.extend(self.offered.as_ref().map(|offered| self.describe_offered(offered)));
        let times = [
            ("acknowledged", Some(&self.ack_milliseconds).filter(|_| self.accepted > 0)),
            ("given up or refused", self.failure_milliseconds.as_ref()),
            ("connected", self.connect_milliseconds.as_ref()),
            ("TLS handshake over", self.tls_milliseconds.as_ref()),
        ];
        for (what, times) in times.into_iter().filter_map(|(what, times)| Some((what, times?))) {
            let Percentiles { p50, p90, p99, p999, max } = times;
            lines.push(format!(
                "{what} after p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, p99.9 {p999:.1} ms, at most {max:.1} ms"
            ));
        }
        lines
    }

    fn describe_offered(&self, offered: &Offered) -> String {
        let mut line = format!(
            "offered ({}): {} votes/s at most, {} on average over {:.2} s",
            offered.arrivals,
            HumanCount(offered.rate),
            HumanCount(offered.votes_per_second as u64),
            offered.seconds
        );
        if let (Some(due), Some(accepted)) = (offered.busiest_second, self.busiest_second_accepted) {
            line += &format!("; busiest second: {} due, {} accepted", HumanCount(due), HumanCount(accepted));
        }
        for (what, count) in
            [("waited for room in flight", self.waited), ("begun late, this machine is too slow", self.late)]
        {
            if let Some(count @ 1..) = count {
                line += &format!("; {} {what}", HumanCount(count));
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use indicatif::ProgressBar;
    use serde_json::Value;
    use std::time::Duration;
    use tokio::time::Instant;

    use super::*;
    use crate::{
        args::{Cli, Command},
        command::load::count::{Fate, Reason},
    };

    fn args(more: &[&str]) -> Box<LoadArgs> {
        let all = ["votestream", "load", "--poll", "p"].iter().chain(more);
        let Command::Load(args) = Cli::parse_from(all).command else { panic!() };
        args
    }

    fn counts(accepted: u64, unknown: u64) -> Counts {
        let mut counts = Counts::new(Instant::now(), ProgressBar::hidden()).unwrap();
        (counts.accepted, counts.unknown) = (accepted, unknown);
        counts
    }

    #[test]
    fn the_headline_has_what_was_sent() {
        let args = args(&[]);
        let report = |counts: &Counts| Report::new(&args, SentAs::of(&args, false), 500, counts, None, 2.0);
        assert_eq!(report(&counts(2_000, 0)).describe(2_000)[0], "2,000 votes of 500 users in 2.00 s: 1,000 votes/s");
        let lines = report(&counts(1_900, 100)).describe(1_000_000);
        assert_eq!(lines[0], "2,000 of 1,000,000 votes in 2.00 s: 950 votes/s");
        assert_eq!(lines[1], "accepted 1,900, rejected 0, unknown 100");
    }

    #[test]
    fn a_report_of_phones_says_what_was_offered_and_what_failed() {
        let args = args(&["--unary", "--new-connections", "--rate", "100", "--votes", "100"]);
        let mut counts = counts(0, 0);
        let millis = Duration::from_millis;
        for _ in 0..90 {
            counts.connected(millis(1), Some(millis(2)));
            counts.settled(Fate::Accepted, None, millis(5));
        }
        for _ in 0..10 {
            let reason = Reason { kind: "connect_refused".into(), text: "refused".into() };
            counts.settled(Fate::NotSent, Some(reason), millis(1));
        }
        let pacing = Pacing { waited: 3, late: 0, busiest_second: 98 };
        let report = Report::new(&args, SentAs::of(&args, true), 100, &counts, Some(pacing), 1.0);
        assert!(!report.is_whole());
        let lines = report.describe(100);
        assert_eq!(lines[1], "accepted 90, rejected 0, not sent 10");
        assert_eq!(lines[2], "not accepted: connect_refused 10");
        assert!(lines[3].starts_with("offered (steady): 100 votes/s at most, 100 on average over 1.00 s"), "{lines:?}");
        assert!(lines[3].contains("98 due, 90 accepted; 3 waited") && !lines[3].contains("late"), "{lines:?}");
        assert!(lines[7].starts_with("TLS handshake over after p50 2.0 ms"), "{lines:?}");
        let json: Value = serde_json::to_value(&report).unwrap();
        assert_eq!(json["errors"]["connect_refused"], 10);
        assert_eq!((&json["votes"], &json["not_sent"], &json["waited"]), (&100.into(), &10.into(), &3.into()));
        assert_eq!(json["sent_as"]["tls"], true);
        assert!(json["unknown"] == 0 && json["offered"]["busiest_second"] == 98);
    }
}
