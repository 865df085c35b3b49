//! Accepts votes as JSON: `POST /vote` with the body of the AWS sample, and `POST /v1/polls/{poll}/votes`.
//!
//! Owns the form of the bodies. Must never judge a vote: both routes make the message of a CastVote call and return the
//! answer of that call.

use std::{borrow::Cow, sync::Arc};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, State, rejection::PathRejection},
    http::HeaderMap,
    response::Response,
    routing::post,
};
use serde::Deserialize;
use tonic::{Code, Status};
use votestream_core::{
    observe::metrics::{self, Rejected},
    record::foreign::{DecodeError, JsonText, JsonVote},
};
use votestream_proto::VotesMessage;
use votestream_server::{
    Caller,
    http::{check_json, failure, read_body, status_of_field, success},
    identity::Action,
};

use crate::{calls::Calls, ledger::SingleVote};

/// The API's field names in the sample's body.
const SAMPLE_NAMES: &[(&str, &str)] = &[("user_id", "cognitoid"), ("poll_id", "voteid"), ("option_id", "option")];

/// The routes.
pub(crate) fn routes(calls: Arc<Calls>) -> Router {
    Router::new().route("/vote", post(sample_vote)).route("/v1/polls/{poll}/votes", post(vote)).with_state(calls)
}

async fn sample_vote(State(calls): State<Arc<Calls>>, caller: Caller, headers: HeaderMap, body: Body) -> Response {
    if let Err(denied) = caller.require_voting() {
        return failure(&denied.into(), SAMPLE_NAMES);
    }
    let body = match read_vote_body(&headers, body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let cast = async {
        let vote = JsonVote::decode(&body).map_err(|error| invalid(&error))?;
        cast(&calls, &caller, &headers, [&vote.poll_id, &vote.user_id, &vote.option_id]).await
    };
    answer(cast.await, SAMPLE_NAMES)
}

async fn vote(
    State(calls): State<Arc<Calls>>,
    poll: Result<Path<String>, PathRejection>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Response {
    if let Err(denied) = caller.require_voting_in(poll.as_ref().map_or("", |Path(poll_id)| poll_id)) {
        return failure(&denied.into(), &[]);
    }
    let body = match read_vote_body(&headers, body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let cast = async {
        let Path(poll_id) = poll.map_err(|_| invalid_field("poll_id", "poll_id is not valid UTF-8"))?;
        let (user_id, option_id) = read_vote(&body, &poll_id, &caller).map_err(|error| invalid(&error))?;
        cast(&calls, &caller, &headers, [&poll_id, &user_id, &option_id]).await
    };
    answer(cast.await, &[])
}

/// Reads the body of a request with one vote, a JSON object. A vote that cannot be read counts as rejected.
async fn read_vote_body(headers: &HeaderMap, body: Body) -> Result<Bytes, Response> {
    let read = async {
        check_json(headers)?;
        let body = read_body(body).await?;
        // serde would accept a list as an object whose fields come in order.
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(failure(&Status::invalid_argument("the body is not a JSON object"), &[]));
        }
        Ok(body)
    };
    read.await.inspect_err(|_| metrics::rejected(Rejected::Malformed, 1))
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    user_id: Option<JsonText<'a>>,
    #[serde(borrow)]
    option_id: Option<JsonText<'a>>,
    /// Not needed, since the path names the poll. If it is there, it must be the same.
    #[serde(borrow)]
    poll_id: Option<JsonText<'a>>,
}

/// The user and the option of a vote. The user may be missing if the caller's token names it.
fn read_vote<'a>(body: &'a Bytes, poll_id: &str, caller: &Caller) -> Result<(Cow<'a, str>, Cow<'a, str>), DecodeError> {
    let fields: Fields<'_> = serde_json::from_slice(body).map_err(|error| DecodeError::Json(error.to_string()))?;
    if let Some(named) = fields.poll_id
        && JsonText::required(Some(named), "poll_id")? != poll_id
    {
        return Err(DecodeError::Json("poll_id names another poll than the path".into()));
    }
    let user_id = match fields.user_id {
        // The check of rights says what such a caller lacks: a user_id is not for it to give.
        None if caller.names_user() || !caller.may(Action::Relay, poll_id.as_bytes()) => "".into(),
        given => JsonText::required(given, "user_id")?,
    };
    Ok((user_id, JsonText::required(fields.option_id, "option_id")?))
}

async fn cast(calls: &Calls, caller: &Caller, headers: &HeaderMap, vote: [&str; 3]) -> Result<(), Status> {
    let mut message = VotesMessage::default();
    let [poll_id, user_id, option_id] = vote;
    message.push(poll_id, user_id, option_id);
    calls.cast(SingleVote::of(headers), caller, message).await
}

fn answer(cast: Result<(), Status>, names: &[(&str, &str)]) -> Response {
    match cast {
        Ok(()) => success(&serde_json::Map::new()),
        Err(status) => failure(&status, names),
    }
}

/// The status of a vote that cannot be read. Counts it.
fn invalid_field(field: &str, message: &str) -> Status {
    metrics::rejected(Rejected::Malformed, 1);
    status_of_field(Code::InvalidArgument, field, message)
}

/// The status of a vote that cannot be read. Counts it.
fn invalid(error: &DecodeError) -> Status {
    let message = error.to_string();
    match error {
        DecodeError::Missing(field) | DecodeError::Type(field) => invalid_field(field, &message),
        DecodeError::Invalid(invalid) => invalid_field(invalid.field(), &message),
        DecodeError::TooLarge(_) | DecodeError::Json(_) | DecodeError::Digest | DecodeError::Aggregate(_) => {
            metrics::rejected(Rejected::Malformed, 1);
            Status::invalid_argument(format!("the body is {message}"))
        }
    }
}
