//! Polls and results as JSON: `GET /v1/polls/{poll}` and `GET /v1/polls/{poll}/results/interim|final`.
//!
//! Owns the JSON forms: field names as in the .proto files, counts as numbers, times as RFC 3339, enums by name. Must
//! never compute a result: every route makes the request of a gRPC call and returns the answer of that call.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State, rejection::PathRejection},
    response::Response,
    routing::get,
};
use prost_types::Timestamp;
use serde::Serialize;
use tonic::Status;
use votestream_proto::v1::{self, poll_service_server::PollService, results_service_server::ResultsService};
use votestream_server::{
    Caller,
    http::{failure, success},
};

use crate::{polls::Polls, results::Results, status::CallError};

/// The routes.
pub(crate) fn routes(polls: Arc<Polls>, results: Arc<Results>) -> Router {
    let results = Router::new()
        .route("/v1/polls/{poll}/results/interim", get(interim))
        .route("/v1/polls/{poll}/results/final", get(final_results))
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

async fn poll(State(polls): State<Arc<Polls>>, caller: Caller, path: PollPath) -> Response {
    let got = async {
        let request = v1::GetPollRequest { poll_id: poll_id_of(path)? };
        let response = polls.get_poll(caller.asks(request)).await?.into_inner();
        Ok(PollResponse { poll: response.poll.map(Poll::from) })
    };
    answer(got.await)
}

async fn interim(State(results): State<Arc<Results>>, caller: Caller, path: PollPath) -> Response {
    let got = async {
        let request = v1::GetInterimResultsRequest { poll_id: poll_id_of(path)? };
        Ok(Interim::from(results.get_interim_results(caller.asks(request)).await?.into_inner()))
    };
    answer(got.await)
}

async fn final_results(State(results): State<Arc<Results>>, caller: Caller, path: PollPath) -> Response {
    let got = async {
        let request = v1::GetFinalResultsRequest { poll_id: poll_id_of(path)?, wait: false };
        Ok(Final::from(results.get_final_results(caller.asks(request)).await?.into_inner()))
    };
    answer(got.await)
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
}

#[derive(Serialize)]
struct PollOption {
    option_id: String,
    title: String,
}

impl From<v1::Poll> for Poll {
    fn from(poll: v1::Poll) -> Self {
        let (source, state) = (poll.source().as_str_name(), poll.state().as_str_name());
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
