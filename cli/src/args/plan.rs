//! The arguments of `plan` and `preflight`.
//!
//! Owns their names and defaults. Must never plan.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::{parse_duration, parse_share};
use crate::plan::{Clients, Question, Tokens};

/// Long enough to reserve capacity, to see that it is there, and to hold the event.
const RESERVED_FOR: Duration = Duration::from_secs(4 * 3_600);

#[derive(Args, Debug)]
pub(crate) struct PlanArgs {
    /// Votes per second at the peak.
    #[arg(long, value_name = "VOTES_PER_SECOND")]
    pub(crate) peak: u64,
    /// Users who vote.
    #[arg(long, value_name = "M")]
    pub(crate) voters: u64,
    /// How long votes come in, such as 30s, 10m or 2h.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// Share of the votes that replace an earlier vote of the same user, from 0 to 0.99.
    #[arg(long, value_name = "F", default_value_t = 0.0, value_parser = parse_share)]
    pub(crate) revote_share: f64,
    /// Options of the poll. With more of them, tallies take more write units.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) options: u64,
    /// Most write units per second that may be spent on votes, over all persist tasks [default: no limit]
    #[arg(long, value_name = "N")]
    pub(crate) write_units_per_second: Option<u32>,
    /// How votes reach the ingest service.
    #[arg(long, value_enum, default_value_t = Clients::Direct)]
    pub(crate) clients: Clients,
    /// How the token that each voter brings is signed. Relays have keys instead.
    #[arg(long, value_enum, default_value_t = Tokens::Es256)]
    pub(crate) tokens: Tokens,
    /// Shards that the stream has now, such as those that the CDK app gives it by default; 0 if there is no stream yet.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) shards_now: u64,
    /// How long the stack runs and is paid for.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
    pub(crate) up_for: Duration,
    /// How long capacity of the load balancers is reserved and paid for [default: 4h, within --duration and --up-for]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) reserved_for: Option<Duration>,
}

impl PlanArgs {
    /// What is asked.
    pub(crate) fn question(&self) -> Question {
        Question {
            peak_votes_per_second: self.peak,
            voters: self.voters,
            duration: self.duration,
            revote_share: self.revote_share,
            options: self.options,
            write_units_per_second: self.write_units_per_second,
            clients: self.clients,
            tokens: self.tokens,
            shards_now: self.shards_now,
            up_for: self.up_for,
            reserved_for: self.reserved_for.unwrap_or_else(|| RESERVED_FOR.min(self.up_for).max(self.duration)),
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct PreflightArgs {
    /// The plan: what `votestream plan --json` has printed, or `-` for standard input.
    #[arg(value_name = "PLAN.json")]
    pub(crate) plan: PathBuf,
    /// Name of the deployment: the setting `name` of the CDK app.
    #[arg(long, value_name = "NAME", default_value = "votestream")]
    pub(crate) name: String,
    /// Region of the deployment [default: that of the environment or the profile]
    #[arg(long, value_name = "REGION")]
    pub(crate) region: Option<String>,
}
