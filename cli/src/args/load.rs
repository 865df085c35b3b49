//! The arguments of `votestream load`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::{VOTES_MAX, parse_share, parse_wait};

/// For each connection the server needs memory for its flow-control windows.
const CONNECTIONS_MAX: i64 = 1_024;
/// Keeps a message of 36-character user ids well below the largest message that the service takes.
const VOTES_PER_MESSAGE_MAX: i64 = 10_000;
/// One address has about as many ports to connect from to another.
const IN_FLIGHT_MAX: i64 = 60_000;

#[derive(Args, Debug)]
pub(crate) struct LoadArgs {
    /// Poll to vote in; its options are read from the poll service.
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    pub(crate) poll: String,
    /// Votes to cast.
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=VOTES_MAX))]
    pub(crate) votes: u64,
    /// Votes per second over all connections, the highest rate of --arrivals; 0 for as fast as the service takes them.
    #[arg(long, value_name = "R", default_value_t = 0)]
    pub(crate) rate: u64,
    /// How the rate changes. However long it takes, every vote comes, and at the time at which it is due.
    #[arg(long, value_enum, requires = "rate", default_value_t = Arrivals::Steady)]
    pub(crate) arrivals: Arrivals,
    /// Connections, with one stream each; with --unary, the connections that the calls share.
    #[arg(long, value_name = "C", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=CONNECTIONS_MAX))]
    pub(crate) connections: u32,
    /// Votes in one message.
    #[arg(long, value_name = "K", default_value_t = 200, conflicts_with = "unary", value_parser = clap::value_parser!(u32).range(1..=VOTES_PER_MESSAGE_MAX))]
    pub(crate) votes_per_message: u32,
    /// Share of the votes that replace an earlier vote of the same user, from 0 to 1.
    #[arg(long, value_name = "F", default_value_t = 0.0, value_parser = parse_share)]
    pub(crate) revote_share: f64,
    /// Number of users who vote, instead of a share of re-votes.
    #[arg(long, value_name = "M", conflicts_with = "revote_share", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) voters: Option<u64>,
    /// Seed of the users, votes and arrivals: another seed gives other ones, the same seed gives the same ones.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Vote as phones do: one call a vote, instead of streams of messages as a relay sends them. A call that fails is not
    /// made again.
    #[arg(long)]
    pub(crate) unary: bool,
    /// Open a connection for each vote, and close it after the answer. With https:// each has a whole TLS handshake.
    #[arg(long, requires = "unary", conflicts_with = "connections")]
    pub(crate) new_connections: bool,
    /// What the calls are.
    #[arg(long, value_enum, requires = "unary", default_value_t = Protocol::Grpc)]
    pub(crate) protocol: Protocol,
    /// Most votes in flight. Further ones wait until one is answered; their time counts from when they were due.
    #[arg(long, value_name = "N", requires = "unary", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=IN_FLIGHT_MAX))]
    pub(crate) in_flight: u32,
    /// How long a phone waits for the answer, its connection included. Whether its vote is stored is then unknown.
    #[arg(long, value_name = "DURATION", requires = "unary", default_value = "30s", value_parser = parse_wait)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) tokens: LoadTokenArgs,
}

/// Whose tokens phones have. Without these, all votes have the token of the command, which must be a relay's.
#[derive(Args, Debug)]
pub(crate) struct LoadTokenArgs {
    /// Voters' own tokens, one a line, as `votestream auth token --count N` prints them, with --csv or without. Each is one
    /// voter.
    #[arg(long, value_name = "FILE", requires = "unary", conflicts_with = "token_auth")]
    pub(crate) tokens: Option<PathBuf>,
    /// Sign a token for each vote, for its voter and this poll, with a key that this auth file names.
    #[arg(long, value_name = "FILE", requires = "unary")]
    pub(crate) token_auth: Option<PathBuf>,
    /// Sign with this private key by ES256 (PKCS#8, PEM), instead of with a secret of the issuer.
    #[arg(long, value_name = "FILE", requires = "token_auth", conflicts_with = "tokens")]
    pub(crate) token_key: Option<PathBuf>,
    /// The issuer to sign for, if the auth file has several.
    #[arg(long, value_name = "ISS", requires = "token_auth", conflicts_with = "tokens")]
    pub(crate) token_issuer: Option<String>,
    /// Name of the key (kid), if it is not clear.
    #[arg(long, value_name = "KID", requires = "token_auth", conflicts_with = "tokens")]
    pub(crate) token_kid: Option<String>,
}

/// How the rate of votes changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arrivals {
    /// The rate, all the time.
    Steady,
    /// A tenth of the rate, then the whole rate at once, then a tenth again, each for a third of the time.
    Spike,
    /// As after a call to vote: within a second from nothing to the rate, and then down, exponentially, to a hundredth of it.
    Announcement,
}

impl Arrivals {
    /// Its name on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Spike => "spike",
            Self::Announcement => "announcement",
        }
    }
}

/// What a call with one vote is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// CastVote by gRPC, over HTTP/2.
    Grpc,
    /// POST /v1/polls/POLL/votes with JSON over HTTP/1.1, as the page sends it.
    Json,
}

impl Protocol {
    /// Its name on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Json => "json",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::args::{Cli, Command};

    use super::*;

    fn parses(more: &[&str]) -> bool {
        Cli::try_parse_from(["votestream", "load", "--poll", "p"].iter().chain(more)).is_ok()
    }

    #[test]
    fn what_is_for_phones_needs_single_calls() {
        assert!(parses(&[]) && parses(&["--unary"]) && parses(&["--rate", "5", "--arrivals", "spike"]));
        for phones in [
            &["--new-connections"][..],
            &["--protocol", "json"],
            &["--in-flight", "7"],
            &["--timeout", "2s"],
            &["--tokens", "f"],
            &["--token-auth", "f"],
        ] {
            assert!(!parses(phones), "{phones:?}");
            assert!(parses(&[phones, &["--unary"]].concat()), "{phones:?}");
        }
    }

    #[test]
    fn wrong_combinations_are_usage_errors() {
        for wrong in [
            &["--voters", "5", "--revote-share", "0.5"][..],
            &["--arrivals", "spike"],
            &["--unary", "--votes-per-message", "5"],
            &["--unary", "--new-connections", "--connections", "5"],
            &["--unary", "--tokens", "f", "--token-auth", "g"],
            &["--unary", "--token-key", "f"],
            &["--unary", "--in-flight", "0"],
            &["--unary", "--timeout", "0s"],
        ] {
            assert!(!parses(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for arrivals in Arrivals::value_variants() {
            assert_eq!(arrivals.to_possible_value().unwrap().get_name(), arrivals.name());
        }
        for protocol in Protocol::value_variants() {
            assert_eq!(protocol.to_possible_value().unwrap().get_name(), protocol.name());
        }
        let Command::Load(args) = Cli::parse_from(["votestream", "load", "--poll", "p", "--unary"]).command else {
            panic!()
        };
        assert_eq!((args.protocol, args.in_flight), (Protocol::Grpc, 1_000));
    }
}
