//! `votestream auth key`: a secret for a tool or a relay.
//!
//! Owns the entry for the auth file. Must never store the secret.

use serde::Serialize;
use votestream_server::identity::{Secret, check_auth_file};

use super::scopes_of;
use crate::{
    args::{AuthKeyArgs, Global},
    failure::{Answer, Failure, Outcome},
    output,
};

/// What was made, for scripts.
#[derive(Serialize)]
struct Made {
    secret: String,
    id: String,
    sha256: String,
    entry: String,
}

pub(super) fn run(global: &Global, args: &AuthKeyArgs) -> Outcome {
    let scopes = scopes_of(&args.scopes)?.to_string();
    let Secret { text: secret, sha256 } = Secret::random()?;
    let id = args.id.clone().unwrap_or_else(|| format!("key-{}", &sha256[..8]));
    let mut entry = format!("[[key]]\nid = {}\nsha256 = \"{sha256}\"\n", quoted(&id));
    let scopes: Vec<String> = scopes.split(' ').map(quoted).collect();
    entry.push_str(&format!("scopes = [{}]\n", scopes.join(", ")));
    if let Some(namespace) = &args.namespace {
        entry.push_str(&format!("namespace = {}\n", quoted(namespace)));
    }
    check_auth_file(&entry, "auth.toml".as_ref()).map_err(|mistakes| Failure::usage(mistakes.join("; ")))?;
    if global.json {
        output::json(&Made { secret, id, sha256, entry })?;
    } else {
        output::note(
            "# The secret is on stdout, and nowhere else: give it to its owner. This goes into the auth file:",
        );
        output::note(entry.trim_end());
        output::line(&secret)?;
    }
    Ok(Answer::Yes)
}

/// A text as TOML writes it: the escapes of JSON are escapes of TOML as well, but for characters that need not be
/// escaped in either.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}
