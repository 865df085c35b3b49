//! Polls and results over HTTP, as JSON, CSV and events.
//!
//! Owns the routes under `/v1` but for those of votes. `json/read` reads requests, `json/answer` makes answers and says
//! how long they may be kept, `events` has the streams. Must never compute a result: every route makes the request of a
//! gRPC call and returns the answer of that call. `web/openapi.json` describes all of it.

mod answer;
mod read;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{self, Path, Query, State, rejection::PathRejection, rejection::QueryRejection},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::StreamExt;
use http::{Extensions, HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use tonic::{Request, Status, metadata::MetadataMap};
use votestream_core::{
    observe::metrics::{self, ReadCounter},
    port::Group,
};
use votestream_proto::{
    json,
    v1::{self, poll_service_server::PollService, results_service_server::ResultsService},
};
use votestream_server::{
    Caller,
    http::{check_json, failure, read_body, success},
    identity::Action,
};

use self::answer::{Answer, Kept};
use crate::{
    acts,
    events::Feeds,
    polls::Polls,
    results::Results,
    snapshot::tag_of,
    status::{CallError, shared},
    viewer::{Act, viewer_of},
};

/// What the routes call.
pub(crate) struct Api {
    pub(crate) polls: Arc<Polls>,
    pub(crate) results: Arc<Results>,
    pub(crate) feeds: Arc<Feeds>,
    /// Whether votes come in by this process, too, so that it knows how many were refused.
    pub(crate) takes_votes: bool,
}

/// The routes.
pub(crate) fn routes(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/polls", get(list).post(create))
        .route("/v1/polls/{poll}", get(poll))
        .route("/v1/polls/{poll}/close", post(close))
        .route("/v1/polls/{poll}/release", post(release))
        .route("/v1/polls/{poll}/recount", post(recount))
        .route("/v1/polls/{poll}/results/interim", get(interim))
        .route("/v1/polls/{poll}/results/final", get(final_results))
        .route("/v1/polls/{poll}/results/events", get(events))
        .route("/v1/status", get(status))
        .with_state(api)
}

type Shared = State<Arc<Api>>;
type PollPath = Result<Path<String>, PathRejection>;

fn poll_id_of(path: PollPath) -> Result<String, Status> {
    path.map(|Path(poll_id)| poll_id).map_err(|_| CallError::field("poll_id", "is not valid UTF-8").into())
}

/// The message as a request by the same caller.
fn call<T>(message: T, extensions: &Extensions) -> Request<T> {
    Request::from_parts(MetadataMap::new(), extensions.clone(), message)
}

/// How long an answer about a poll may be kept: what everybody may see, by everybody.
fn kept(extensions: &Extensions, poll_id: &str, kept: Kept) -> Kept {
    if Caller::of(extensions).sees_what_all_see(poll_id) { kept } else { Kept::Never }
}

#[derive(Deserialize)]
struct Page {
    page_size: Option<u32>,
    #[serde(default)]
    page_token: String,
}

async fn list(
    State(api): Shared,
    page: Result<Query<Page>, QueryRejection>,
    headers: HeaderMap,
    extensions: Extensions,
) -> Response {
    let got = async {
        let Query(Page { page_size, page_token }) = page.map_err(|_| {
            CallError::field("page_size", "must be a whole number, and no other parameter but page_token")
        })?;
        let request = v1::ListPollsRequest { page_size: page_size.unwrap_or(0), page_token };
        Caller::of(&extensions).require_some(Action::Read)?;
        let response = api.polls.list_polls(call(request, &extensions)).await?.into_inner();
        let kept = if Caller::of(&extensions).is_anybody() { Kept::Second } else { Kept::Never };
        Ok(Answer::json(&json::PollList::from(response)).kept(kept))
    };
    answer::send(got.await, &headers)
}

async fn create(State(api): Shared, headers: HeaderMap, extensions: Extensions, body: Body) -> Response {
    if let Err(status) = api.polls.allow_creating(&extensions) {
        return failure(&status, &[]);
    }
    let request = match read::body(&headers, body, crate::REQUEST_BYTES_MAX).await {
        Ok(body) => read::poll(&body),
        Err(response) => return response,
    };
    let created = async {
        let response = api.polls.create_poll(call(request?, &extensions)).await?.into_inner();
        poll_answer(response.poll)
    };
    answer::send(created.await, &headers)
}

fn poll_answer(poll: Option<v1::Poll>) -> Result<Answer, Status> {
    // The services always set it.
    let poll = poll.ok_or_else(|| Status::internal("the answer has no poll"))?;
    Ok(Answer::json(&json::PollResponse { poll: poll.into() }))
}

async fn poll(State(api): Shared, path: PollPath, headers: HeaderMap, extensions: Extensions) -> Response {
    let got = async {
        let request = v1::GetPollRequest { poll_id: poll_id_of(path)? };
        let kept = kept(&extensions, &request.poll_id, Kept::Second);
        Ok(poll_answer(api.polls.get_poll(call(request, &extensions)).await?.into_inner().poll)?.kept(kept))
    };
    answer::send(got.await, &headers)
}

/// Administers a poll: the rights come first, then the body, which must be empty or `{}`. A body of another content type
/// is refused, so that a page of another origin cannot act without being asked.
async fn administer(
    api: &Api,
    act: &'static str,
    path: PollPath,
    request: extract::Request,
    work: impl AsyncFnOnce(String, &Extensions) -> Result<Answer, Status>,
) -> Response {
    let (head, body) = request.into_parts();
    let poll_id = match poll_id_of(path) {
        Ok(poll_id) => poll_id,
        Err(status) => return failure(&status, &[]),
    };
    if let Err(status) = acts::allow(&api.results.audit, &head.extensions, act, &poll_id) {
        return failure(&status, &[]);
    }
    if let Err(unsupported) = check_json(&head.headers) {
        return unsupported.into();
    }
    match read_body(body).await {
        Ok(body) if read::is_nothing(&body) => answer::send(work(poll_id, &head.extensions).await, &head.headers),
        Ok(_) => failure(&Status::invalid_argument("the body must be empty, or {}"), &[]),
        Err(response) => response,
    }
}

async fn close(State(api): Shared, path: PollPath, request: extract::Request) -> Response {
    let work = async |poll_id, by: &Extensions| {
        poll_answer(api.polls.close_poll(call(v1::ClosePollRequest { poll_id }, by)).await?.into_inner().poll)
    };
    administer(&api, acts::CLOSE, path, request, work).await
}

async fn release(State(api): Shared, path: PollPath, request: extract::Request) -> Response {
    let work = async |poll_id, by: &Extensions| {
        let request = call(v1::ReleaseResultsRequest { poll_id }, by);
        poll_answer(api.results.release_results(request).await?.into_inner().poll)
    };
    administer(&api, acts::RELEASE, path, request, work).await
}

async fn recount(State(api): Shared, path: PollPath, request: extract::Request) -> Response {
    let work = async |poll_id, by: &Extensions| {
        let recount = api.results.recount(call(v1::RecountRequest { poll_id }, by)).await?.into_inner();
        Ok(Answer::json(&json::Recount::from(recount)))
    };
    administer(&api, acts::RECOUNT, path, request, work).await
}

/// The titles of a poll's options, for answers that people read.
async fn titles(api: &Api, poll_id: &str, extensions: &Extensions) -> Result<Vec<v1::PollOption>, Status> {
    let request = v1::GetPollRequest { poll_id: poll_id.to_owned() };
    let poll = api.polls.get_poll(call(request, extensions)).await?.into_inner().poll;
    Ok(poll.unwrap_or_default().options)
}

async fn interim(State(api): Shared, path: PollPath, headers: HeaderMap, extensions: Extensions) -> Response {
    let got = async {
        let request = v1::GetInterimResultsRequest { poll_id: poll_id_of(path)? };
        let kept = kept(&extensions, &request.poll_id, Kept::Second);
        let interim = api.results.get_interim_results(call(request, &extensions)).await?.into_inner();
        let tag = tag_of(interim.options.iter().flat_map(|option| [option.submitted, option.counted]));
        let answer = if answer::wants_csv(&headers) {
            let titles = titles(&api, &interim.poll_id, &extensions).await?;
            let rows = interim.options.iter().zip(&titles);
            Answer::csv(
                ["option_id", "title", "submitted", "counted"],
                rows.map(|(option, titled)| {
                    let counts = [option.submitted, option.counted].map(|count| count.to_string());
                    let [submitted, counted] = counts;
                    [option.option_id.clone(), titled.title.clone(), submitted, counted]
                }),
            )
        } else {
            Answer::json(&json::Interim::from(interim))
        };
        Ok(answer.tagged(tag).kept(kept))
    };
    answer::send(got.await, &headers)
}

async fn final_results(State(api): Shared, path: PollPath, headers: HeaderMap, extensions: Extensions) -> Response {
    let got = async {
        let request = v1::GetFinalResultsRequest { poll_id: poll_id_of(path)?, wait: false };
        let kept = kept(&extensions, &request.poll_id, Kept::ForEver);
        let last = api.results.get_final_results(call(request, &extensions)).await?.into_inner();
        let tag = tag_of(last.options.iter().map(|option| option.votes));
        let answer = if answer::wants_csv(&headers) {
            let titles = titles(&api, &last.poll_id, &extensions).await?;
            let rows = last.options.iter().zip(&titles);
            Answer::csv(
                ["option_id", "title", "votes"],
                rows.map(|(option, titled)| [option.option_id.clone(), titled.title.clone(), option.votes.to_string()]),
            )
        } else {
            Answer::json(&json::Final::from(last))
        };
        Ok(answer.tagged(tag).kept(kept))
    };
    answer::send(got.await, &headers)
}

/// Header by which a client that was cut off says what it has seen.
const LAST_EVENT_ID: &str = "last-event-id";

async fn events(State(api): Shared, path: PollPath, headers: HeaderMap, extensions: Extensions) -> Response {
    let subscribed = async {
        let poll_id = poll_id_of(path)?;
        let (viewer, caller) = viewer_of(&extensions, &poll_id, Act::Read)?;
        let id = crate::convert::poll_id_of(&poll_id)?;
        let seen = headers.get(LAST_EVENT_ID).and_then(|seen| seen.to_str().ok());
        api.feeds.watch(viewer, caller, id, seen).await.map_err(shared)
    };
    match subscribed.await {
        Ok(Some(watcher)) => {
            let frames = watcher.into_frames().map(Ok::<_, std::convert::Infallible>);
            let headers = [
                (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
                (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
                // nginx would collect events until its buffer is full.
                (http::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
            ];
            (headers, Body::from_stream(frames)).into_response()
        }
        // The client has seen the final result; without this answer, browsers would ask for ever.
        Ok(None) => (StatusCode::NO_CONTENT, [(header::CACHE_CONTROL, "no-store")]).into_response(),
        Err(status) => failure(&status, &[]),
    }
}

/// How this process is.
#[derive(Serialize)]
struct StatusBody {
    version: &'static str,
    groups: Vec<GroupStatus>,
    /// Votes that were refused since the start, by reason. `None` if votes do not come in by this process.
    rejected: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Serialize)]
struct GroupStatus {
    group: &'static str,
    /// Shards that this process consumes.
    shards: usize,
    /// How far the slowest of them is behind. `None` if there is none.
    behind_ms: Option<u64>,
}

async fn status(State(api): Shared, caller: Caller) -> Response {
    if let Err(denied) = caller.require_some(Action::Manage) {
        return failure(&denied.into(), &[]);
    }
    let ages = metrics::shard_ages(api.polls.now());
    let group = |group: Group| {
        let ages: Vec<_> = ages.iter().filter(|(of, _, _)| *of == group).map(|(_, _, age)| age.as_millis()).collect();
        let behind_ms = ages.iter().max().map(|age| u64::try_from(*age).unwrap_or(u64::MAX));
        GroupStatus { group: group.as_str(), shards: ages.len(), behind_ms }
    };
    let groups = [Group::Persist, Group::Tally].map(group).into();
    let rejected = api.takes_votes.then(|| {
        let mut reasons = serde_json::Map::new();
        metrics::VOTES_REJECTED.read(&mut |labels, votes| {
            let reason = labels.first().map_or("", |(_, reason)| reason);
            reasons.insert(reason.to_owned(), votes.into());
        });
        reasons
    });
    success(&StatusBody { version: env!("CARGO_PKG_VERSION"), groups, rejected })
}
