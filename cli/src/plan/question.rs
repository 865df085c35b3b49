//! What is asked: an event, and how its votes come.
//!
//! Owns what may be asked. Must never plan.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;
use votestream_core::model::limits::OPTIONS_MAX;

use super::facts;

/// A higher peak must be a mistake: this is everybody in a large country within seconds.
pub(super) const PEAK_MAX: u64 = 25_000_000;
/// There are not more voters than this in the world.
pub(super) const VOTERS_MAX: u64 = 10_000_000_000;
/// The shortest event: a shorter one is only a peak.
const DURATION_MIN: Duration = Duration::from_secs(1);
/// The longest event. In a longer one, the peak says nothing about the rest.
const DURATION_MAX: Duration = Duration::from_secs(31 * 24 * 3_600);
/// The longest time that the stack is paid for.
const UP_FOR_MAX: Duration = Duration::from_secs(366 * 24 * 3_600);
/// A hundred votes of each voter. At a share of 1, no vote could be a first vote.
const REVOTE_SHARE_MAX: f64 = 0.99;
/// Most shards that a stream has now (`shards` of the CDK app).
const SHARDS_NOW_MAX: u64 = 10_000;

/// How votes reach the ingest service. It decides what they cost there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Clients {
    /// Each vote is one call over a connection of its own: phones and browsers.
    Direct,
    /// Relays send streams with many votes in each message.
    Relay,
}

/// How the token of each voter is signed. Relays have keys, which cost next to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Tokens {
    /// No voter brings a token.
    None,
    /// By a secret that the issuer and the services share.
    Hs256,
    /// RSA.
    Rs256,
    /// Ed25519.
    Eddsa,
    /// P-256.
    Es256,
}

/// The question: an event.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Question {
    /// Votes a second at the peak.
    pub(crate) peak_votes_per_second: u64,
    pub(crate) voters: u64,
    /// How long votes come in.
    #[serde(rename = "duration_seconds", serialize_with = "seconds")]
    pub(crate) duration: Duration,
    /// Share of the votes that replace an earlier one.
    pub(crate) revote_share: f64,
    /// Options of the poll.
    pub(crate) options: u64,
    /// The operator's limit on write units per second, over all persist tasks.
    pub(crate) write_units_per_second: Option<u32>,
    pub(crate) clients: Clients,
    pub(crate) tokens: Tokens,
    /// Shards that the stream has now; 0 if there is none.
    pub(crate) shards_now: u64,
    /// How long the stack runs and is paid for.
    #[serde(rename = "up_for_seconds", serialize_with = "seconds")]
    pub(crate) up_for: Duration,
    /// How long capacity of the load balancers is reserved and paid for.
    #[serde(rename = "reserved_for_seconds", serialize_with = "seconds")]
    pub(crate) reserved_for: Duration,
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

impl Question {
    /// Everything that is wrong with the question.
    pub(super) fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut check = |holds: bool, mistake: &dyn Fn() -> String| {
            if !holds {
                mistakes.push(mistake());
            }
        };
        check((1..=PEAK_MAX).contains(&self.peak_votes_per_second), &|| {
            format!("--peak must be from 1 to {PEAK_MAX} votes a second")
        });
        check((1..=VOTERS_MAX).contains(&self.voters), &|| format!("--voters must be from 1 to {VOTERS_MAX}"));
        check((DURATION_MIN..=DURATION_MAX).contains(&self.duration), &|| {
            "--duration must be from 1 second to 31 days".into()
        });
        check((0.0..=REVOTE_SHARE_MAX).contains(&self.revote_share), &|| {
            format!("--revote-share must be from 0 to {REVOTE_SHARE_MAX}")
        });
        check((1..=OPTIONS_MAX as u64).contains(&self.options), &|| {
            format!("--options must be from 1 to {OPTIONS_MAX}")
        });
        // With less than one for each task, a task would get none.
        check(self.write_units_per_second.is_none_or(|budget| u64::from(budget) >= facts::TASKS_MIN), &|| {
            format!("--write-units-per-second must be at least {}, one for each persist task", facts::TASKS_MIN)
        });
        check(self.shards_now <= SHARDS_NOW_MAX, &|| format!("--shards-now must be at most {SHARDS_NOW_MAX}"));
        check(self.up_for >= self.duration && self.up_for <= UP_FOR_MAX, &|| {
            "--up-for must be from --duration to 366 days".into()
        });
        check(self.reserved_for >= self.duration && self.reserved_for <= self.up_for, &|| {
            "--reserved-for must be from --duration to --up-for".into()
        });
        mistakes
    }

    /// Number of votes, first ones and changes. At least one for each voter.
    pub(super) fn votes(&self) -> u64 {
        // At most 10^12, which an f64 holds exactly. Never below the number of voters, however it is rounded.
        ((self.voters as f64 / (1.0 - self.revote_share)).round() as u64).max(self.voters)
    }

    /// CPU seconds of a million votes in ingest: call or message, puts, TLS, the check of the caller.
    pub(super) fn ingest_cpu_seconds_per_million(&self) -> f64 {
        facts::INGEST_CPU_SECONDS_PER_MILLION_PUT
            + match self.clients {
                Clients::Direct => {
                    facts::INGEST_CPU_SECONDS_PER_MILLION_CALLS
                        + self.tls_cpu_seconds_per_million()
                        + match self.tokens {
                            Tokens::None => 0.0,
                            Tokens::Hs256 => facts::TOKEN_CPU_SECONDS_PER_MILLION_HS256,
                            Tokens::Rs256 => facts::TOKEN_CPU_SECONDS_PER_MILLION_RS256,
                            Tokens::Eddsa => facts::TOKEN_CPU_SECONDS_PER_MILLION_EDDSA,
                            Tokens::Es256 => facts::TOKEN_CPU_SECONDS_PER_MILLION_ES256,
                        }
                }
                Clients::Relay => facts::INGEST_CPU_SECONDS_PER_MILLION_STREAMED + self.tls_cpu_seconds_per_million(),
            }
    }

    /// The part of it that TLS takes, between the load balancers and the tasks.
    pub(super) fn tls_cpu_seconds_per_million(&self) -> f64 {
        match self.clients {
            Clients::Direct => {
                facts::TLS_CPU_SECONDS_PER_MILLION_CALLS
                    + facts::TLS_CPU_SECONDS_PER_MILLION_HANDSHAKES / facts::CALLS_PER_TASK_CONNECTION
            }
            Clients::Relay => facts::TLS_CPU_SECONDS_PER_MILLION_STREAMED,
        }
    }
}
