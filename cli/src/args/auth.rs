//! The arguments of `votestream auth`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use votestream_core::KeyId;

use super::time::{parse_duration, parse_time};

/// Most tokens of one command: more people than any hall holds.
const TOKENS_MAX: i64 = 1_000_000;

#[derive(Debug, Subcommand)]
pub(crate) enum AuthCommand {
    /// Write a key and an auth file for a first try. Overwrites nothing.
    Init(AuthInitArgs),
    /// Sign a token with a key of the auth file, and print it. Or sign many, for links that are handed out.
    Token(AuthTokenArgs),
    /// Make a secret for a tool or a relay: print it once, and the entry for the auth file, which has only its hash.
    Key(AuthKeyArgs),
    /// Print the id under which a user's vote in a poll is stored. Asks the results service which key the poll has.
    Pseudonym(PseudonymArgs),
    /// Check that nothing in an audit log was changed, and show who administered what; exit code 1 if it was changed.
    Log(AuthLogArgs),
}

#[derive(Args, Debug)]
pub(crate) struct AuthInitArgs {
    /// Where the files go; the directory is created if it does not exist.
    #[arg(value_name = "DIR", default_value = "votestream-auth")]
    pub(crate) directory: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct AuthTokenArgs {
    /// The auth file, which names the issuer and its keys.
    #[arg(long, value_name = "FILE", env = "VOTESTREAM_AUTH")]
    pub(crate) auth: PathBuf,
    /// The user that the token names: whoever has it votes as this user.
    #[arg(long, value_name = "ID", conflicts_with = "count", allow_negative_numbers = true)]
    pub(crate) user: Option<String>,
    /// What the token allows: vote:POLL, relay:POLL, read:POLL or manage:POLL, where POLL is a poll id, or its beginning
    /// and *. Give it once for each scope.
    #[arg(long = "scope", value_name = "SCOPE", required = true)]
    pub(crate) scopes: Vec<String>,
    /// How long from now the token is valid, such as 90s, 15m, 1h30m, 2d or 1w; a day has 24 hours.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "1h")]
    pub(crate) expires_in: Duration,
    /// From when on it is valid, with an offset or a time zone [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) not_before: Option<jiff::Timestamp>,
    /// A name of the token (jti), by which it can be revoked.
    #[arg(long, value_name = "ID", conflicts_with = "count")]
    pub(crate) jti: Option<String>,
    /// The issuer to sign for, if the auth file has several.
    #[arg(long, value_name = "ISS")]
    pub(crate) issuer: Option<String>,
    /// Sign with this private key by ES256 (PKCS#8, PEM), instead of with a secret of the issuer.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Name of the key (kid), if it is not clear: which of several secrets, or the name of --key at the issuer's URL.
    #[arg(long, value_name = "KID")]
    pub(crate) kid: Option<String>,
    /// Make this many tokens, each for a random user. One a line, unless --csv or --json is given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=TOKENS_MAX))]
    pub(crate) count: Option<u32>,
    /// Print CSV with a header: user,token, and url with --url-prefix.
    #[arg(long, conflicts_with = "json")]
    pub(crate) csv: bool,
    /// Also print links to this page, such as https://vote.example/p/lunch. The token is in the part behind #, which
    /// browsers do not send: print the links as codes.
    #[arg(long, value_name = "URL", value_parser = parse_url_prefix)]
    pub(crate) url_prefix: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct AuthKeyArgs {
    /// Name of the key in the auth file and in the audit log [default: a new one]
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
    /// What the key allows; give it once for each scope.
    #[arg(long = "scope", value_name = "SCOPE", default_value = "relay:*")]
    pub(crate) scopes: Vec<String>,
    /// Whose users it votes for, if the auth file has namespaces.
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct PseudonymArgs {
    /// Poll of the vote.
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    pub(crate) poll: String,
    /// User who voted.
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    pub(crate) user: String,
    /// Namespace of the user, if there are several.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(crate) namespace: String,
    /// Data directory with the keys [default: as of `up`]
    #[arg(long, value_name = "DIR", conflicts_with = "pseudonym_keys")]
    pub(crate) data_dir: Option<PathBuf>,
    /// File with the keys.
    #[arg(long, value_name = "FILE")]
    pub(crate) pseudonym_keys: Option<PathBuf>,
    /// Id of the poll's key, as `votestream poll get` shows it, to ask no service.
    #[arg(long, value_name = "KEY_ID")]
    pub(crate) key: Option<KeyId>,
}

#[derive(Args, Debug)]
pub(crate) struct AuthLogArgs {
    /// The audit log of `up` or tally-svc, while it is written or afterwards.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// A hash that this command printed before. It must still be in the log: then no line up to there was changed or
    /// removed since.
    #[arg(long, value_name = "HASH")]
    pub(crate) head: Option<String>,
}

/// The beginning of a link, to which the token is added.
fn parse_url_prefix(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let is_url = host.is_some_and(|host| !host.is_empty() && !host.starts_with('/'));
    if !is_url || text.contains(|c: char| c == '#' || c.is_whitespace() || c.is_control()) {
        return Err("expected a URL such as https://vote.example/p/lunch, without #".into());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn links_are_urls_without_a_fragment() {
        assert!(parse_url_prefix("https://vote.example/p/lunch?lang=de").is_ok());
        for wrong in ["vote.example", "ftp://a", "https://", "https:///p", "https://a/#b", "https://a b"] {
            assert!(parse_url_prefix(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn wrong_combinations_are_usage_errors() {
        let token = ["votestream", "auth", "token", "--auth", "f", "--scope", "vote:a"];
        let parses = |more: &[&str]| Cli::try_parse_from(token.iter().chain(more)).is_ok();
        assert!(parses(&[]) && parses(&["--count", "3", "--csv"]) && parses(&["--user", "-5", "--csv"]));
        assert!(!parses(&["--count", "3", "--user", "a"]) && !parses(&["--count", "0"]));
        assert!(!parses(&["--csv", "--json"]) && !parses(&["--count", "3", "--jti", "a"]));
        assert!(Cli::try_parse_from(["votestream", "auth", "token", "--auth", "f"]).is_err(), "no scope");
    }
}
