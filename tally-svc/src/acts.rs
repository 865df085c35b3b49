//! The calls that administer, and what the audit log says of them.
//!
//! Owns the names of the acts, and that each is in the log before it takes place. Must never put counts into the log: it
//! may be read by people who must not see them yet.

use http::{Extensions, Method};
use prost_types::Timestamp;
use serde_json::{Value, json};
use tonic::Status;
use votestream_proto::v1;
use votestream_server::AuditLog;

use crate::viewer::{Act, Viewer, viewer_of};

/// Creates a poll.
pub(crate) const CREATE: &str = "create";
/// Closes a poll early.
pub(crate) const CLOSE: &str = "close";
/// Shows the hidden results of a poll.
pub(crate) const RELEASE: &str = "release";
/// Counts the stored votes again.
pub(crate) const RECOUNT: &str = "recount";

/// Which requests administer: gRPC methods by their paths, and JSON routes.
const METHODS: [(&str, &str); 4] = [
    ("/votestream.v1.PollService/CreatePoll", CREATE),
    ("/votestream.v1.PollService/ClosePoll", CLOSE),
    ("/votestream.v1.ResultsService/ReleaseResults", RELEASE),
    ("/votestream.v1.ResultsService/Recount", RECOUNT),
];

/// The act of a request, and its poll if the path has one.
pub(crate) fn of_request<'a>(method: &Method, path: &'a str) -> Option<(&'static str, Option<&'a str>)> {
    if method != Method::POST {
        return None;
    }
    let Some(rest) = path.strip_prefix("/v1/polls") else {
        return METHODS.iter().find(|(known, _)| *known == path).map(|(_, act)| (*act, None));
    };
    if rest.is_empty() {
        return Some((CREATE, None));
    }
    let (poll, last) = rest.strip_prefix('/')?.split_once('/')?;
    let act = [CLOSE, RELEASE, RECOUNT].into_iter().find(|act| *act == last)?;
    Some((act, Some(poll)))
}

/// Checks that whoever makes a request may administer the poll. The log knows if not.
///
/// # Errors
///
/// The answer to the caller.
pub(crate) fn allow(log: &AuditLog, extensions: &Extensions, act: &'static str, poll: &str) -> Result<Viewer, Status> {
    match viewer_of(extensions, poll, Act::Administer) {
        Ok((viewer, _)) => Ok(viewer),
        Err(denied) => {
            let status = Status::from(denied);
            log.refused(extensions, act, Some(poll), &status);
            Err(status)
        }
    }
}

/// Does something that was allowed, with what was asked for and what came of it in the log. `became` says what the poll
/// became.
///
/// # Errors
///
/// Those of the work, and UNAVAILABLE if the log cannot be written. Then nothing was done.
pub(crate) async fn run<T>(
    log: &AuditLog,
    extensions: &Extensions,
    act: &'static str,
    poll: &str,
    asked: impl FnOnce() -> Value,
    work: impl Future<Output = Result<T, Status>>,
    became: impl FnOnce(&T) -> Value,
) -> Result<T, Status> {
    let begun = log.begin(extensions, act, poll, asked).await?;
    let result = work.await;
    begun.ended(result.as_ref().map(became)).await;
    result
}

/// A moment as text, or as it was sent if it is none.
fn moment(at: Option<&Timestamp>) -> Value {
    /// From the year 1 to the year 9999, as RFC 3339 can write it.
    const YEARS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
    match at {
        None => Value::Null,
        Some(at) if YEARS.contains(&at.seconds) && (0..1_000_000_000).contains(&at.nanos) => at.to_string().into(),
        Some(at) => json!({ "seconds": at.seconds, "nanos": at.nanos }),
    }
}

/// The definition of a poll, as it was asked for.
pub(crate) fn definition(request: &v1::CreatePollRequest) -> Value {
    let option = |option: &v1::PollOption| json!({ "option_id": option.option_id, "title": option.title });
    json!({
        "title": request.title,
        "options": request.options.iter().map(option).collect::<Vec<_>>(),
        "opens_at": moment(request.opens_at.as_ref()),
        "closes_at": moment(request.closes_at.as_ref()),
        "source": v1::PollSource::try_from(request.source).map_or("?", |source| source.as_str_name()),
        "expected_peak": request.expected_peak,
        "visibility": v1::PollVisibility::try_from(request.visibility).map_or("?", |seen| seen.as_str_name()),
    })
}

/// What a poll became.
pub(crate) fn poll(poll: &v1::Poll) -> Value {
    json!({
        "opens_at": moment(poll.opens_at.as_ref()),
        "closes_at": moment(poll.closes_at.as_ref()),
        "state": poll.state().as_str_name(),
        "visibility": poll.visibility().as_str_name(),
        "released_at": moment(poll.released_at.as_ref()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NEEDS;
    use votestream_server::identity::{Action, Need};

    #[test]
    fn every_method_that_needs_manage_is_an_act() {
        let manage = NEEDS.iter().filter(|(_, need)| *need == Need::Some(Action::Manage));
        let mut manage: Vec<_> = manage.map(|(path, _)| *path).collect();
        let mut acts: Vec<_> = METHODS.iter().map(|(path, _)| *path).collect();
        manage.sort_unstable();
        acts.sort_unstable();
        assert_eq!(manage, acts);
    }

    #[test]
    fn requests_that_administer_are_known_by_their_paths() {
        let post = |path| of_request(&Method::POST, path);
        assert_eq!(post("/votestream.v1.PollService/ClosePoll"), Some((CLOSE, None)));
        assert_eq!(post("/v1/polls"), Some((CREATE, None)));
        assert_eq!(post("/v1/polls/lunch/release"), Some((RELEASE, Some("lunch"))));
        assert_eq!(post("/v1/polls/lunch/recount"), Some((RECOUNT, Some("lunch"))));
        for other in ["/v1/polls/lunch", "/v1/polls/lunch/votes", "/v1/pollster", "/votestream.v1.PollService/GetPoll"]
        {
            assert_eq!(post(other), None, "{other}");
        }
        assert_eq!(of_request(&Method::GET, "/v1/polls"), None);
    }

    #[test]
    fn any_definition_can_be_told() {
        let at = |seconds, nanos| Some(Timestamp { seconds, nanos });
        let request = v1::CreatePollRequest {
            opens_at: at(i64::MIN, i32::MIN),
            closes_at: at(0, 5),
            source: -7,
            visibility: i32::MAX,
            ..v1::CreatePollRequest::default()
        };
        let told = definition(&request);
        assert_eq!(told["opens_at"]["seconds"], i64::MIN);
        assert_eq!(told["closes_at"], "1970-01-01T00:00:00.000000005Z");
        assert_eq!((&told["source"], &told["visibility"]), (&json!("?"), &json!("?")));
    }
}
