//! The command line: every command, flag and default.
//!
//! Owns the public contract of the command line. Must never do anything except parse and check single values.

mod auth;
mod load;
mod plan;
mod time;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use votestream_client::Address;
use votestream_process::{VERSION, config::socket_addr};
use votestream_server::{AuditTarget, CallLimits, CorsOrigins, Limits, Rate, TrustedProxies};
use votestream_stack::FrameAncestors;

pub(crate) use self::auth::{AuthCommand, AuthInitArgs, AuthKeyArgs, AuthLogArgs, AuthTokenArgs, PseudonymArgs};
pub(crate) use self::load::{Arrivals, LoadArgs, LoadTokenArgs, Protocol};
pub(crate) use self::plan::{PlanArgs, PreflightArgs};
use self::time::{parse_duration, parse_time};
use crate::option_file::NewOption;

/// What the help says after the commands. `command::manual` reads its form.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done, and the answer is yes
  1  the answer is no: votes were rejected, an audit differs, a result is not final, a demo was not exact, an audit log
     was changed, a preflight is no-go
  2  usage: wrong arguments, or a file that cannot be read
  3  a service cannot be reached, or a call failed
  128 + N  signal N ended the command before it was done: 130 ctrl-c, 143 SIGTERM, 129 SIGHUP
`up` is done, with exit code 0, once a signal has stopped it and every vote is answered. A second signal stops every
command at once. If the reader of the output leaves, such as `head`, only the output ends.";

/// Counts votes: runs the stack on one machine, and sends commands to a running one.
#[derive(Debug, Parser)]
#[command(name = "votestream", version = VERSION, after_help = EXIT_CODES, after_long_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Where the server is.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "VOTESTREAM_SERVER",
        default_value = "http://127.0.0.1:50051"
    )]
    pub(crate) server: Address,
    /// Where votes are cast, if the ingest service has an address of its own [default: that of --server]
    #[arg(long, global = true, value_name = "URL", env = "VOTESTREAM_INGEST")]
    pub(crate) ingest: Option<Address>,
    /// Where polls and results are, if the results service has an address of its own [default: that of --server]
    #[arg(long, global = true, value_name = "URL", env = "VOTESTREAM_RESULTS")]
    pub(crate) results: Option<Address>,
    /// Certificates in PEM of those whom to trust with https://, and no others [default: those of the system]
    #[arg(long, global = true, value_name = "FILE", env = "VOTESTREAM_TLS_CA")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Client certificate in PEM for https://, followed by those of its issuers.
    #[arg(long, id = "tls_cert", global = true, value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert in PEM.
    #[arg(long, id = "tls_key", global = true, value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// File with the token that says who calls; read again when it changes [default: the variable VOTESTREAM_TOKEN]
    #[arg(long, global = true, value_name = "FILE", env = "VOTESTREAM_TOKEN_FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Print one JSON object on stdout, with the field names of the API; everything else goes to stderr.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the whole stack on this machine, stored in a directory.
    Up(Box<UpArgs>),
    /// Show the whole stack at work: cast votes, close, and prove that the final result is exact.
    Demo(DemoArgs),
    /// Create, read, list and close polls.
    #[command(subcommand)]
    Poll(PollCommand),
    /// Cast one vote, or the votes of a file.
    Cast(CastArgs),
    /// Show the results of a poll.
    Results(ResultsArgs),
    /// Copy a data directory as it is now, whether a stack runs on it or not. The copy is an ordinary data directory;
    /// every vote that was acknowledged before is in it.
    Backup(BackupArgs),
    /// Count the stored votes again and compare them with the tallies; exit code 1 if they differ.
    Audit(AuditArgs),
    /// Cast many generated votes and measure throughput and acknowledgement times.
    Load(Box<LoadArgs>),
    /// Make tokens and keys, for callers to say who they are, and find under which id somebody's votes are stored.
    #[command(subcommand)]
    Auth(AuthCommand),
    /// Estimate what an event needs on AWS: shards, tasks, write units, time and price. Makes no calls.
    Plan(PlanArgs),
    /// Compare an AWS account with a plan before a show: go or no-go, line by line. Only reads. Needs a build with
    /// `--features aws`.
    Preflight(PreflightArgs),
    /// Print the script by which a shell completes these commands and their flags.
    Completions {
        /// The shell.
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Print the manual page votestream(1), or write the pages of all commands.
    Man {
        /// Directory for the pages, such as ~/.local/share/man/man1; it is created if it does not exist.
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Run stand-ins for Kinesis and DynamoDB on this machine, in memory, for the services' own binaries. Needs a build
    /// with `--features dev-aws`.
    DevAws(DevAwsArgs),
}

#[derive(Args, Debug)]
pub(crate) struct DevAwsArgs {
    /// Address of the Kinesis stand-in; port 0 picks a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4567", value_parser = socket_addr)]
    pub(crate) kinesis_addr: SocketAddr,
    /// Address of the DynamoDB stand-in; port 0 picks a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000", value_parser = socket_addr)]
    pub(crate) dynamodb_addr: SocketAddr,
    /// Shards of the stream that the services create.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=SHARDS_MAX))]
    pub(crate) shards: u32,
}

#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    /// Address of everything: the page, gRPC, gRPC-Web and JSON. May have a host name; port 0 picks a free one.
    #[arg(long, value_name = "ADDR", alias = "ingest-addr", env = "VOTESTREAM_ADDR", default_value = "127.0.0.1:50051", value_parser = socket_addr)]
    pub(crate) addr: SocketAddr,
    /// Address of its own for polls, results and the page, so that --addr takes votes only [default: none]
    #[arg(long, value_name = "ADDR", env = "VOTESTREAM_RESULTS_ADDR", value_parser = socket_addr)]
    pub(crate) results_addr: Option<SocketAddr>,
    /// Open the page in a browser.
    #[arg(long)]
    pub(crate) open: bool,
    /// Play a show that votes, so that the page has something to show. Everything is stored in a temporary directory.
    #[arg(long, conflicts_with_all = ["data_dir", "auth", "tls_cert", "tls_self_signed", "results_addr"])]
    pub(crate) demo: bool,
    /// Pages that may show this one in a frame, with blanks between, such as https://show.example [default: none].
    #[arg(
        long,
        value_name = "ORIGINS",
        default_value = "",
        hide_default_value = true,
        env = "VOTESTREAM_FRAME_ANCESTORS"
    )]
    pub(crate) frame_ancestors: FrameAncestors,
    /// Where everything is stored [default: $XDG_DATA_HOME/votestream or ~/.local/share/votestream]
    #[arg(long, value_name = "DIR", conflicts_with = "ephemeral")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Store in a temporary directory that is removed at the end.
    #[arg(long)]
    pub(crate) ephemeral: bool,
    /// Shards of a new stream; an existing one keeps its own.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=SHARDS_MAX))]
    pub(crate) shards: u32,
    /// Web pages that may call, with commas between, such as https://vote.example; * for all [default: none].
    #[arg(long, value_name = "ORIGINS", default_value = "", hide_default_value = true)]
    pub(crate) cors_allow_origins: CorsOrigins,
    /// File with the keys of the pseudonyms under which voters of new polls are stored, or none to store their ids. Without
    /// it, a key is made in the data directory, and every backup has it. Polls that are there keep their key or their ids.
    #[arg(long, value_name = "FILE|none", env = "VOTESTREAM_PSEUDONYM_KEYS")]
    pub(crate) pseudonym_keys: Option<String>,
    /// Continue with the time of the stored votes although this machine's clock is more than 10 s behind it. Use it if
    /// the clock was ahead when they were stored and is right now: time runs a tenth slower until the clock has caught
    /// up.
    #[arg(long)]
    pub(crate) continue_from_log_time: bool,
    #[command(flatten)]
    pub(crate) auth: AuthArgs,
    /// Where every creation, close, release and recount of a poll is written before it takes place, also the refused
    /// ones, as JSON lines that are chained by hashes; - for stdout. `votestream auth log` reads it [default: none]
    #[arg(long, value_name = "FILE|-", env = "VOTESTREAM_AUDIT_LOG", allow_hyphen_values = true)]
    pub(crate) audit_log: Option<AuditTarget>,
    /// Address of its own for operators: GET /metrics for Prometheus, /healthz and /readyz, over HTTP without TLS; port 0
    /// picks a free one. It asks for no credential, so nobody outside must be able to reach it [default: none]
    #[arg(long, value_name = "ADDR", env = "VOTESTREAM_ADMIN_ADDR", value_parser = socket_addr)]
    pub(crate) admin_addr: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) calls: CallArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
}

/// TLS of both addresses.
#[derive(Args, Clone, Debug)]
pub(crate) struct TlsArgs {
    /// The server's certificate in PEM, followed by those of its issuers; all connections then use TLS 1.2 or 1.3. Read
    /// again when it changes [default: no TLS]
    #[arg(long, id = "tls_cert", value_name = "FILE", env = "VOTESTREAM_TLS_CERT")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert in PEM; read again when it changes.
    #[arg(long, id = "tls_key", value_name = "FILE", env = "VOTESTREAM_TLS_KEY")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Certificates in PEM of those who issue client certificates. A client may give one; one that is not theirs is
    /// refused. Read again when it changes [default: clients are not asked]
    #[arg(long, value_name = "FILE", env = "VOTESTREAM_TLS_CLIENT_CA")]
    pub(crate) tls_client_ca: Option<PathBuf>,
    /// Use TLS with a certificate that is made at the start, which clients cannot check: for the way from a load
    /// balancer.
    #[arg(long, env = "VOTESTREAM_TLS_SELF_SIGNED")]
    pub(crate) tls_self_signed: bool,
}

/// Who may call.
#[derive(Args, Clone, Debug)]
pub(crate) struct AuthArgs {
    /// Who may call: a file of issuers, keys and certificates, which is read again when it changes; none lets everybody do
    /// everything. Must be given unless only this machine can reach both addresses.
    #[arg(long, value_name = "FILE|none", env = "VOTESTREAM_AUTH")]
    pub(crate) auth: Option<String>,
    /// Tokens that count no more; read again when it changes.
    #[arg(long, value_name = "FILE", env = "VOTESTREAM_AUTH_REVOKED")]
    pub(crate) auth_revoked: Option<String>,
}

/// How often others may call, over both addresses.
#[derive(Args, Clone, Debug)]
pub(crate) struct CallArgs {
    /// Most calls of a voter, a user whom tokens name, such as 20/s, 600/m or 1000/h, and 600/m:20 for 20 at once. Votes
    /// that a voter sends in a stream count as calls, those of a relay do not. Needs --auth FILE [default: no limit]
    #[arg(long, value_name = "RATE", env = "VOTESTREAM_CALLS_PER_VOTER")]
    calls_per_voter: Option<Rate>,
    /// Most calls with a key, a certificate or a token; a stream is one call. Needs --auth FILE [default: no limit]
    #[arg(long, value_name = "RATE", env = "VOTESTREAM_CALLS_PER_CREDENTIAL")]
    calls_per_credential: Option<Rate>,
    /// Most calls from one address, or one /64 of IPv6; a stream is one call. Whole countries can sit behind one address
    /// [default: no limit]
    #[arg(long, value_name = "RATE", env = "VOTESTREAM_CALLS_PER_ADDRESS")]
    calls_per_address: Option<Rate>,
    /// Proxies whose X-Forwarded-For is believed, such as 10.0.0.0/8,fd00::/8: calls count for the rightmost address in
    /// it that is no such proxy [default: none]
    #[arg(long, value_name = "NETWORKS", env = "VOTESTREAM_TRUSTED_PROXIES")]
    trusted_proxies: Option<TrustedProxies>,
}

impl From<CallArgs> for CallLimits {
    fn from(args: CallArgs) -> Self {
        Self {
            per_voter: args.calls_per_voter,
            per_credential: args.calls_per_credential,
            per_address: args.calls_per_address,
            trusted_proxies: args.trusted_proxies.unwrap_or_default(),
        }
    }
}

/// Limits on what clients may have open, over both addresses.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct LimitArgs {
    /// Most connections at a time; 0 for as many as the descriptor limit allows. A further one closes the one that has
    /// been without a call longest.
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections_max)]
    connections_max: u32,
    /// Most connections at a time from one address, or one /64 of IPv6; 0 for no such limit, since whole countries can
    /// sit behind one address.
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections_per_address_max)]
    connections_per_address_max: u32,
    /// How long a new connection may take until the head of its first request is complete.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_wait)]
    first_request_timeout: Duration,
    /// How long the message of a call with a single message may take to arrive.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_wait)]
    message_timeout: Duration,
    /// How long a connection may be without a call; must be longer than the idle time-out of a load balancer.
    #[arg(long, value_name = "DURATION", default_value = "75s", value_parser = parse_wait)]
    idle_timeout: Duration,
    /// How long an answer may wait for its client to take more of it.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_wait)]
    stalled_write_timeout: Duration,
    /// Bytes of answers that wait for their clients; above it, the connection that has stood still longest is closed.
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().answer_bytes_max)]
    answer_bytes_max: u64,
    /// Memory for requests that were received and not yet read; above it, the connection that has stood still longest
    /// is closed.
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().request_bytes_max)]
    request_bytes_max: u64,
}

impl From<LimitArgs> for Limits {
    fn from(args: LimitArgs) -> Self {
        Self {
            connections_max: args.connections_max,
            connections_per_address_max: args.connections_per_address_max,
            first_request: args.first_request_timeout,
            message: args.message_timeout,
            idle: args.idle_timeout,
            stalled_write: args.stalled_write_timeout,
            answer_bytes_max: args.answer_bytes_max,
            request_bytes_max: args.request_bytes_max,
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct BackupArgs {
    /// Where the copy goes: a directory that is empty or not there yet.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// Directory to copy [default: as of `up`]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// With more shards than this, one machine loses more than it gains.
const SHARDS_MAX: i64 = 256;

#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Votes to cast.
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=VOTES_MAX))]
    pub(crate) votes: u64,
    /// Users who cast them; with fewer users than votes, some users change their votes. At most one user for each vote.
    #[arg(long, value_name = "M", default_value_t = 600_000, value_parser = clap::value_parser!(u64).range(1..=DEMO_VOTERS_MAX))]
    pub(crate) voters: u64,
    /// Shards of the stream.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=SHARDS_MAX))]
    pub(crate) shards: u32,
    /// Seed of the votes: another seed gives other votes, the same seed gives the same ones.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub(crate) seed: u64,
}

/// A run of more votes than this is a mistake.
const VOTES_MAX: u64 = 10_000_000_000;
/// The demo's own model needs two bytes per voter.
const DEMO_VOTERS_MAX: u64 = 1_000_000_000;

#[derive(Debug, Subcommand)]
pub(crate) enum PollCommand {
    /// Create a poll.
    Create(PollCreateArgs),
    /// Show a poll.
    Get {
        /// Id of the poll.
        #[arg(value_name = "POLL", allow_negative_numbers = true)]
        poll: String,
    },
    /// List all polls.
    List,
    /// Close a poll early.
    Close {
        /// Id of the poll.
        #[arg(value_name = "POLL", allow_negative_numbers = true)]
        poll: String,
    },
    /// Show the results of a poll that was created with --visibility on-release, from now on.
    Release {
        /// Id of the poll.
        #[arg(value_name = "POLL", allow_negative_numbers = true)]
        poll: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct PollCreateArgs {
    /// Id of the poll: letters, digits and "-", "_", ".", "~", but not "." or ".." alone.
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) id: String,
    /// Title for people.
    #[arg(long, default_value = "", hide_default_value = true, allow_negative_numbers = true)]
    pub(crate) title: String,
    /// An option: its id, or its id and a title for people, such as pizza='Pizza Margherita'. Give it once for each option;
    /// no two ids may look alike. The id ends at the first =; one that has a = in it can be given by --options-file.
    #[arg(
        long = "option",
        value_name = "ID[=TITLE]",
        required_unless_present = "options_file",
        allow_negative_numbers = true,
        value_parser = parse_option
    )]
    pub(crate) options: Vec<NewOption>,
    /// Options from a file, which follow those of --option; - for stdin: CSV `option_id,title` in UTF-8, one option a line.
    /// The title may be missing. The file may have a header, quotes, and tabs or semicolons instead of commas; blanks around
    /// a field are ignored unless they are inside quotes.
    #[arg(long, value_name = "FILE")]
    pub(crate) options_file: Option<PathBuf>,
    /// When voting starts [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) opens_at: Option<jiff::Timestamp>,
    /// When voting ends, with an offset or a time zone: 2026-05-16T23:00:00+02:00 or 2026-05-16T23:00[Europe/Berlin].
    #[arg(
        long,
        value_name = "TIME",
        value_parser = parse_time,
        required_unless_present = "closes_in",
        conflicts_with = "closes_in"
    )]
    pub(crate) closes_at: Option<jiff::Timestamp>,
    /// How long from now voting goes on, such as 90s, 15m, 1h30m, 2d or 1w; a day has 24 hours.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) closes_in: Option<Duration>,
    /// Expected peak in votes per second; it decides over how many partitions of the store the votes are spread
    /// [default: 1000]
    #[arg(long, value_name = "VOTES_PER_SECOND", default_value_t = 0, hide_default_value = true)]
    pub(crate) expected_peak: u64,
    /// Where the votes come from.
    #[arg(long, value_enum, default_value_t = Source::Ingest)]
    pub(crate) source: Source,
    /// When readers may see the results.
    #[arg(long, value_enum, default_value_t = Visibility::Live)]
    pub(crate) visibility: Visibility,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Visibility {
    /// Always.
    Live,
    /// Once they are final.
    WhenFinal,
    /// Once they are released by `votestream poll release`.
    OnRelease,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Source {
    /// The ingest service.
    Ingest,
    /// Other producers, which write to the stream themselves.
    Stream,
}

#[derive(Args, Debug)]
pub(crate) struct CastArgs {
    /// Poll of the vote.
    #[arg(long, value_name = "ID", required_unless_present = "file", allow_negative_numbers = true)]
    pub(crate) poll: Option<String>,
    /// User who votes; not needed if the token names its user.
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    pub(crate) user: Option<String>,
    /// Option that the user chooses.
    #[arg(long, value_name = "ID", required_unless_present = "file", allow_negative_numbers = true)]
    pub(crate) option: Option<String>,
    /// Cast the votes of a file, - for stdin: CSV `poll_id,user_id,option_id` in UTF-8, or one JSON object with the
    /// same fields per line. CSV may have a header, quotes, and tabs or semicolons instead of commas; blanks around a
    /// field are ignored unless they are inside quotes.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["poll", "user", "option"])]
    pub(crate) file: Option<PathBuf>,
    /// Start at this line of the file, to continue after an interruption.
    #[arg(long, value_name = "LINE", default_value_t = 1, requires = "file", hide_default_value = true)]
    pub(crate) from_line: u64,
}

#[derive(Args, Debug)]
pub(crate) struct ResultsArgs {
    /// Id of the poll.
    #[arg(value_name = "POLL", allow_negative_numbers = true)]
    pub(crate) poll: String,
    /// Show the results as they change, until they are final. With --json, one object per line.
    #[arg(long, conflicts_with = "is_final")]
    pub(crate) watch: bool,
    /// Show the final result; exit code 1 if there is none yet, or if it is not shown yet.
    #[arg(long = "final", id = "is_final")]
    pub(crate) is_final: bool,
    /// Print CSV with a header: option_id,title,submitted,counted or, with --final, option_id,title,votes. Ids and titles are
    /// printed as they are. A spreadsheet takes those that begin with =, +, - or @ for formulas: import the first two
    /// columns as text.
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    pub(crate) csv: bool,
    /// Wait until the result is final and shown.
    #[arg(long, requires = "is_final")]
    pub(crate) wait: bool,
    /// Wait no longer than this, such as 90s or 2h [default: no limit]
    #[arg(long, value_name = "DURATION", requires = "wait", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Args, Debug)]
pub(crate) struct AuditArgs {
    /// Id of the poll.
    #[arg(value_name = "POLL", allow_negative_numbers = true)]
    pub(crate) poll: String,
}

/// An option: `ID` or `ID=TITLE`.
fn parse_option(text: &str) -> Result<NewOption, String> {
    let (option_id, title) = text.split_once('=').unwrap_or((text, ""));
    if option_id.is_empty() {
        return Err("expected ID or ID=TITLE".into());
    }
    Ok(NewOption { option_id: option_id.to_owned(), title: title.to_owned() })
}

/// Time-outs of connections, in the range that the services accept.
fn parse_wait(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        wait if (Duration::from_secs(1)..=Duration::from_secs(3_600)).contains(&wait) => Ok(wait),
        _ => Err("expected a duration from 1s to 1h".into()),
    }
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        Ok(_) | Err(_) => Err("expected a number from 0 to 1".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_limits_of_up_are_those_of_the_services() {
        let limits = |flags: &[&str]| {
            let Command::Up(args) = Cli::parse_from(["votestream", "up"].iter().chain(flags)).command else { panic!() };
            Limits::from(args.limits)
        };
        assert_eq!(limits(&[]), Limits::default());
        let given = Limits { connections_max: 9, idle: Duration::from_secs(120), ..Limits::default() };
        assert_eq!(limits(&["--connections-max", "9", "--idle-timeout", "2m"]), given);
        assert!(Cli::try_parse_from(["votestream", "up", "--idle-timeout", "0s"]).is_err());
    }

    #[test]
    fn the_certificate_of_up_is_the_servers_and_of_other_commands_the_clients() {
        let up = ["votestream", "up", "--tls-cert", "c", "--tls-key", "k"];
        let Command::Up(args) = Cli::parse_from(up).command else { panic!() };
        assert_eq!((args.tls.tls_cert, args.tls.tls_key), (Some("c".into()), Some("k".into())));
        for arguments in [
            ["votestream", "--tls-cert", "c", "--tls-key", "k", "poll", "list"],
            ["votestream", "poll", "list", "--tls-key", "k", "--tls-cert", "c"],
        ] {
            let global = Cli::parse_from(arguments).global;
            assert_eq!((global.tls_cert, global.tls_key), (Some("c".into()), Some("k".into())));
        }
        let mut command = Cli::command();
        command.build();
        let up = command.find_subcommand_mut("up").unwrap().render_long_help().to_string();
        assert!(up.contains("The server's certificate") && !up.contains("Client certificate"), "{up}");
    }

    #[test]
    fn an_option_is_an_id_and_maybe_a_title() {
        let option = |text: &str| parse_option(text).map(|option| (option.option_id, option.title));
        let good = |id: &str, title: &str| Ok((id.to_owned(), title.to_owned()));
        assert_eq!(option("pizza"), good("pizza", ""));
        assert_eq!(option("pizza=Pizza Margherita"), good("pizza", "Pizza Margherita"));
        assert_eq!(option("sum=1 + 1 = 2"), good("sum", "1 + 1 = 2"));
        assert_eq!(option("-5="), good("-5", ""));
        assert_eq!(option("🍕=🍕 & شاورما"), good("🍕", "🍕 & شاورما"));
        assert!(option("=Pizza").is_err() && option("").is_err());
    }

    #[test]
    fn shares() {
        assert_eq!(parse_share("0.25"), Ok(0.25));
        assert!(parse_share("1.5").is_err());
        assert!(parse_share("NaN").is_err());
    }

    #[test]
    fn a_negative_number_is_an_id() {
        let cast = ["votestream", "cast", "--poll", "-5", "--user", "-1001234", "--option", "-1"];
        let Command::Cast(args) = Cli::try_parse_from(cast).unwrap().command else { panic!() };
        assert_eq!((args.poll.as_deref(), args.user.as_deref()), (Some("-5"), Some("-1001234")));
        assert!(Cli::try_parse_from(["votestream", "results", "-5"]).is_ok());
        // A flag whose value was forgotten is still a mistake.
        let forgotten = ["votestream", "cast", "--poll", "p", "--option", "a", "--user", "--json"];
        assert!(Cli::try_parse_from(forgotten).is_err());
    }

    #[test]
    fn hosts_have_names() {
        let up = ["votestream", "up", "--addr", "localhost:5", "--results-addr", "[::1]:6"];
        let Command::Up(args) = Cli::try_parse_from(up).unwrap().command else { panic!() };
        assert_eq!((args.addr.port(), args.results_addr.map(|addr| addr.port())), (5, Some(6)));
        assert!(args.addr.ip().is_loopback());
        assert!(Cli::try_parse_from(["votestream", "up", "--ingest-addr", "localhost"]).is_err());
    }

    #[test]
    fn wrong_combinations_are_usage_errors() {
        for arguments in [
            &["votestream", "cast", "--poll", "p", "--user", "u"][..],
            &["votestream", "cast", "--file", "-", "--poll", "p"],
            &["votestream", "poll", "create", "--id", "p", "--option", "a"],
            &["votestream", "poll", "create", "--id", "p", "--closes-in", "1h"],
            &["votestream", "results", "p", "--wait"],
            &["votestream", "results", "p", "--csv", "--json"],
            &["votestream", "results", "p", "--csv", "--watch"],
            &["votestream", "up", "--ephemeral", "--data-dir", "d"],
        ] {
            assert!(Cli::try_parse_from(arguments).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn global_flags_may_follow_the_command() {
        let given = ["votestream", "results", "p", "--json", "--server", "host:1", "--results", "host:2"];
        let global = Cli::try_parse_from(given).unwrap().global;
        assert!(global.json && global.ingest.is_none());
        assert_eq!((global.server.url(), global.results.unwrap().url()), ("http://host:1", "http://host:2"));
    }
}
