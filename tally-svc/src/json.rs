//! Polls and results as JSON: `GET /v1/polls/{poll}`, `GET /v1/polls/{poll}/results/interim|final`, and `POST
//! /v1/polls/{poll}/release`.
//!
//! Owns the JSON forms: field names as in the .proto files, counts as numbers, times as RFC 3339, enums by name. Must
//! never compute a result: every route makes the request of a gRPC call and returns the answer of that call.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    response::Response,
    routing::{get, post},
};
use http::{Extensions, HeaderMap};
use prost_types::Timestamp;
use serde::Serialize;
use tonic::{Request, Status, metadata::MetadataMap};
use votestream_proto::v1::{self, poll_service_server::PollService, results_service_server::ResultsService};
use votestream_server::http::{check_json, failure, read_body, success};

use crate::{polls::Polls, results::Results, status::CallError};

/// The routes.
pub(crate) fn routes(polls: Arc<Polls>, results: Arc<Results>) -> Router {
    let results = Router::new()
        .route("/v1/polls/{poll}/results/interim", get(interim))
        .route("/v1/polls/{poll}/results/final", get(final_results))
        .route("/v1/polls/{poll}/release", post(release))
        .with_state(results);
    Router::new().route("/v1/polls/{poll}", get(poll)).with_state(polls).merge(results)
}

type PollPath = Result<Path<String>, PathRejection>;

fn poll_id_of(path: PollPath) -> Result<String, Status> {
    path.map(|Path(poll_id)| poll_id).map_err(|_| CallError::field("poll_id", "is not valid UTF-8").into())
}

fn answer(result: Result<impl Serialize, Status>) -> Response {
    match result {
        Ok(body) => success(&body),
        Err(status) => failure(&status, &[]),
    }
}

/// The message as a request by the same caller.
fn call<T>(message: T, extensions: Extensions) -> Request<T> {
    Request::from_parts(MetadataMap::new(), extensions, message)
}

async fn poll(State(polls): State<Arc<Polls>>, path: PollPath, extensions: Extensions) -> Response {
    let got = async {
        let request = v1::GetPollRequest { poll_id: poll_id_of(path)? };
        let response = polls.get_poll(call(request, extensions)).await?.into_inner();
        Ok(PollResponse { poll: response.poll.map(Poll::from) })
    };
    answer(got.await)
}

async fn interim(State(results): State<Arc<Results>>, path: PollPath, extensions: Extensions) -> Response {
    let got = async {
        let request = v1::GetInterimResultsRequest { poll_id: poll_id_of(path)? };
        Ok(Interim::from(results.get_interim_results(call(request, extensions)).await?.into_inner()))
    };
    answer(got.await)
}

async fn final_results(State(results): State<Arc<Results>>, path: PollPath, extensions: Extensions) -> Response {
    let got = async {
        let request = v1::GetFinalResultsRequest { poll_id: poll_id_of(path)?, wait: false };
        Ok(Final::from(results.get_final_results(call(request, extensions)).await?.into_inner()))
    };
    answer(got.await)
}

/// Needs no body; an empty JSON object will do. A body of another content type is refused, so that a page of another
/// origin cannot release results without being asked.
async fn release(
    State(results): State<Arc<Results>>,
    path: PollPath,
    extensions: Extensions,
    headers: HeaderMap,
    body: Body,
) -> Response {
    if let Err(unsupported) = check_json(&headers) {
        return unsupported.into();
    }
    match read_body(body).await {
        Ok(body) if is_nothing(&body) => {}
        Ok(_) => return failure(&Status::invalid_argument("the body must be empty, or {}"), &[]),
        Err(response) => return response,
    }
    let released = async {
        let request = v1::ReleaseResultsRequest { poll_id: poll_id_of(path)? };
        let response = results.release_results(call(request, extensions)).await?.into_inner();
        Ok(PollResponse { poll: response.poll.map(Poll::from) })
    };
    answer(released.await)
}

/// Whether a body is empty, or an object without fields.
fn is_nothing(body: &[u8]) -> bool {
    body.is_empty() || serde_json::from_slice(body).is_ok_and(|fields: serde_json::Map<_, _>| fields.is_empty())
}

fn moment(at: Option<Timestamp>) -> Option<String> {
    at.map(|at| at.to_string())
}

#[derive(Serialize)]
struct PollResponse {
    poll: Option<Poll>,
}

#[derive(Serialize)]
struct Poll {
    poll_id: String,
    title: String,
    options: Vec<PollOption>,
    opens_at: Option<String>,
    closes_at: Option<String>,
    source: &'static str,
    expected_peak: u64,
    state: &'static str,
    needs_recount: bool,
    visibility: &'static str,
    released_at: Option<String>,
    pseudonym_key_id: String,
}

#[derive(Serialize)]
struct PollOption {
    option_id: String,
    title: String,
}

impl From<v1::Poll> for Poll {
    fn from(poll: v1::Poll) -> Self {
        let (source, state) = (poll.source().as_str_name(), poll.state().as_str_name());
        let visibility = poll.visibility().as_str_name();
        let options = poll.options.into_iter();
        Self {
            poll_id: poll.poll_id,
            title: poll.title,
            options: options.map(|v1::PollOption { option_id, title }| PollOption { option_id, title }).collect(),
            opens_at: moment(poll.opens_at),
            closes_at: moment(poll.closes_at),
            source,
            expected_peak: poll.expected_peak,
            state,
            needs_recount: poll.needs_recount,
            visibility,
            released_at: moment(poll.released_at),
            pseudonym_key_id: poll.pseudonym_key_id,
        }
    }
}

#[derive(Serialize)]
struct Interim {
    poll_id: String,
    options: Vec<InterimOption>,
    total_submitted: u64,
    total_counted: u64,
    as_of: Option<String>,
}

#[derive(Serialize)]
struct InterimOption {
    option_id: String,
    submitted: u64,
    counted: u64,
}

impl From<v1::GetInterimResultsResponse> for Interim {
    fn from(response: v1::GetInterimResultsResponse) -> Self {
        let option =
            |v1::InterimOption { option_id, submitted, counted }| InterimOption { option_id, submitted, counted };
        Self {
            poll_id: response.poll_id,
            options: response.options.into_iter().map(option).collect(),
            total_submitted: response.total_submitted,
            total_counted: response.total_counted,
            as_of: moment(response.as_of),
        }
    }
}

#[derive(Serialize)]
struct Final {
    poll_id: String,
    options: Vec<FinalOption>,
    total_votes: u64,
    closed_at: Option<String>,
    finalized_at: Option<String>,
}

#[derive(Serialize)]
struct FinalOption {
    option_id: String,
    votes: u64,
}

impl From<v1::GetFinalResultsResponse> for Final {
    fn from(response: v1::GetFinalResultsResponse) -> Self {
        let option = |v1::FinalOption { option_id, votes }| FinalOption { option_id, votes };
        Self {
            poll_id: response.poll_id,
            options: response.options.into_iter().map(option).collect(),
            total_votes: response.total_votes,
            closed_at: moment(response.closed_at),
            finalized_at: moment(response.finalized_at),
        }
    }
}
