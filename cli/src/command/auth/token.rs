//! `votestream auth token`: signs tokens.
//!
//! Owns the forms in which they are printed. Must never print anything but tokens on stdout.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use votestream_server::identity::{Action, Claims, Scopes, Signer, random_user};

use super::scopes_of;
use crate::{
    args::{AuthTokenArgs, Global},
    failure::{Answer, Failure, Outcome},
    output,
};

/// A signed token, for scripts.
#[derive(Serialize)]
struct Signed<'a> {
    token: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    issuer: &'a str,
    scope: &'a str,
    expires_at: jiff::Timestamp,
}

pub(super) fn run(global: &Global, args: &AuthTokenArgs) -> Outcome {
    let scopes = scopes_of(&args.scopes)?;
    if args.user.is_none() && args.count.is_none() && scopes.allow_some(Action::Vote) {
        return Err(Failure::usage(
            "a token with the scope vote:… names its voter: give --user, or --count for random ones",
        ));
    }
    let (auth, issuer, kid) = (&args.auth, args.issuer.as_deref(), args.kid.as_deref());
    let signer = match &args.key {
        Some(key) => Signer::with_private_key(auth, issuer, key, kid)?,
        None => Signer::with_secret(auth, issuer, kid)?,
    };
    let uncovered = signer.uncovered(&scopes);
    if !uncovered.is_empty() {
        output::note(&format!(
            "warning: the scopes of issuer {} in {} do not cover {}: the token cannot be used for that",
            output::printable(signer.issuer()),
            auth.display(),
            uncovered.join(" ")
        ));
    }
    let times = Times::of(args)?;
    Tokens { global, args, signer, scopes, times }.print()?;
    Ok(Answer::Yes)
}

/// When a token is valid, in seconds since 1970.
#[derive(Clone, Copy)]
struct Times {
    not_before: Option<u64>,
    expires_at: u64,
}

impl Times {
    fn of(args: &AuthTokenArgs) -> Result<Self, Failure> {
        let far = || Failure::usage("--expires-in: this is too far in the future");
        let expires = SystemTime::now().checked_add(args.expires_in).ok_or_else(far)?;
        let expires_at = expires.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // What cannot be shown as a time is too far away.
        jiff::Timestamp::from_second(i64::try_from(expires_at).map_err(|_| far())?).map_err(|_| far())?;
        if args.expires_in < Duration::from_secs(1) {
            return Err(Failure::usage("--expires-in: expected at least 1s"));
        }
        let not_before = args.not_before.map(|at| u64::try_from(at.as_second()).unwrap_or(0));
        if not_before.is_some_and(|at| at >= expires_at) {
            return Err(Failure::usage("the token would expire before it is valid: --expires-in counts from now"));
        }
        Ok(Self { not_before, expires_at })
    }
}

/// The tokens of one command.
struct Tokens<'a> {
    global: &'a Global,
    args: &'a AuthTokenArgs,
    signer: Signer,
    scopes: Scopes,
    times: Times,
}

impl Tokens<'_> {
    fn print(&self) -> Result<(), Failure> {
        if self.args.csv {
            output::line(if self.args.url_prefix.is_some() { "user,token,url" } else { "user,token" })?;
        }
        let Some(count) = self.args.count else { return self.print_one(self.args.user.as_deref()) };
        for _ in 0..count {
            self.print_one(Some(&random_user()?))?;
            if output::is_closed() {
                break;
            }
        }
        Ok(())
    }

    fn print_one(&self, user: Option<&str>) -> Result<(), Failure> {
        let Times { not_before, expires_at } = self.times;
        let claims = Claims { user, scopes: &self.scopes, expires_at, not_before, id: self.args.jti.as_deref() };
        let token = self.signer.sign(claims)?;
        // What is behind # stays in the browser: it is in no log of a server.
        let url = self.args.url_prefix.as_ref().map(|prefix| format!("{prefix}#token={token}"));
        if self.global.json {
            let expires_at = jiff::Timestamp::from_second(i64::try_from(expires_at).unwrap_or(i64::MAX));
            return output::json(&Signed {
                token: &token,
                user,
                url,
                issuer: self.signer.issuer(),
                scope: &self.scopes.to_string(),
                expires_at: expires_at.unwrap_or(jiff::Timestamp::MAX),
            });
        }
        if !self.args.csv {
            return output::line(&url.unwrap_or(token));
        }
        let user = csv_field(user.unwrap_or_default());
        match url {
            Some(url) => output::line(&format!("{user},{token},{}", csv_field(&url))),
            None => output::line(&format!("{user},{token}")),
        }
    }
}

/// A field of CSV (RFC 4180).
fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) || text.starts_with(' ') || text.ends_with(' ') {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_csv() {
        assert_eq!(csv_field("ada"), "ada");
        assert_eq!(csv_field("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(csv_field(" a"), "\" a\"");
    }
}
