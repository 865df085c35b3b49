//! `votestream auth pseudonym`: under which id somebody's votes are stored.
//!
//! Must never print a key, and never guess which key a poll has.

use serde::Serialize;
use votestream_client::ResultsClient;
use votestream_core::{
    KeyId, PollId, PseudonymKeys,
    model::{poll::check_user_id, user_id::uuid_text},
};
use votestream_embedded::PSEUDONYM_KEYS;

use crate::{
    args::{Global, PseudonymArgs},
    command::up,
    failure::{Answer, Failure, Outcome},
    output, pseudonyms,
};

/// The stored id, printed for scripts.
#[derive(Serialize)]
struct Stored {
    poll_id: String,
    pseudonym_key_id: String,
    stored_user_id: String,
}

pub(super) async fn run(global: &Global, args: PseudonymArgs) -> Outcome {
    let poll = PollId::new(&args.poll).map_err(|invalid| Failure::usage(format!("--poll: {invalid}")))?;
    check_user_id(args.user.as_bytes()).map_err(|invalid| Failure::usage(format!("--user: {invalid}")))?;
    let path = match args.pseudonym_keys {
        Some(path) => path,
        None => up::data_directory(args.data_dir)?.join(PSEUDONYM_KEYS),
    };
    let id = match args.key {
        Some(id) => Some(id),
        None => key_of(global, &poll).await?,
    };
    let stored_user_id = match id {
        None => {
            output::note("the poll has no pseudonyms: its votes are stored under the ids that users vote with");
            args.user
        }
        Some(id) => stored(&pseudonyms::read(&path)?, id, &poll, &args.namespace, &args.user)
            .ok_or_else(|| Failure::usage(format!("{}: the key {id} of the poll is not in it", path.display())))?,
    };
    if id.is_some() && args.namespace.is_empty() {
        output::note("for a user without a namespace; if the auth file gives its issuer one, name it by --namespace");
    }
    if global.json {
        let pseudonym_key_id = id.map_or_else(String::new, |id| id.to_string());
        output::json(&Stored { poll_id: args.poll, pseudonym_key_id, stored_user_id })?;
    } else {
        output::line(&output::printable(&stored_user_id))?;
    }
    Ok(Answer::Yes)
}

fn stored(keys: &PseudonymKeys, id: KeyId, poll: &PollId, namespace: &str, user: &str) -> Option<String> {
    let uuid = keys.get(id)?.for_poll(poll).of(namespace, user);
    Some(uuid_text(uuid).map(char::from).iter().collect())
}

/// The key of a poll, from the service.
async fn key_of(global: &Global, poll: &PollId) -> Result<Option<KeyId>, Failure> {
    let hint = |failure| match failure {
        Failure::Failed(message) => {
            Failure::failed(format!("{message}; --key names the key of the poll without asking"))
        }
        other @ (Failure::Usage(_) | Failure::Interrupted(_)) => other,
    };
    let results: ResultsClient = global.connect_results().await.map_err(hint)?;
    let answer = results.get_poll(poll.as_str()).await;
    let answer = answer.map_err(|error| Failure::client("reading the poll", error))?;
    match answer.pseudonym_key_id.as_str() {
        "" => Ok(None),
        id => id.parse().map(Some).map_err(|error| Failure::failed(format!("the service names a wrong key: {error}"))),
    }
}
