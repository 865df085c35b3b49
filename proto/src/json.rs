//! The API's messages as JSON: field names as in the .proto files, counts as numbers, times in RFC 3339, enums by name.
//!
//! Owns the JSON shapes that programs rely on, of the routes and of the command line. Must never rename a field of the
//! API or add one that the API does not have.

#![allow(missing_docs, reason = "the .proto files have the documentation of every field")]

use jiff::Timestamp;
use serde::Serialize;

use crate::v1;

/// `Poll`.
#[derive(Debug, Serialize)]
pub struct Poll {
    pub poll_id: String,
    pub title: String,
    pub options: Vec<PollOption>,
    pub opens_at: Option<Timestamp>,
    pub closes_at: Option<Timestamp>,
    pub source: &'static str,
    pub expected_peak: u64,
    pub state: &'static str,
    pub needs_recount: bool,
    pub visibility: &'static str,
    pub released_at: Option<Timestamp>,
    pub pseudonym_key_id: String,
}

/// `PollOption`.
#[derive(Debug, Serialize)]
pub struct PollOption {
    pub option_id: String,
    pub title: String,
}

/// `CreatePollResponse`, `GetPollResponse`, `ClosePollResponse` and `ReleaseResultsResponse`.
#[derive(Debug, Serialize)]
pub struct PollResponse {
    pub poll: Poll,
}

/// `ListPollsResponse`.
#[derive(Debug, Serialize)]
pub struct PollList {
    pub polls: Vec<Poll>,
    pub next_page_token: String,
}

/// `GetInterimResultsResponse` and `WatchInterimResultsResponse`.
#[derive(Debug, Serialize)]
pub struct Interim {
    pub poll_id: String,
    pub options: Vec<InterimOption>,
    pub total_submitted: u64,
    pub total_counted: u64,
    pub as_of: Option<Timestamp>,
}

/// `InterimOption`.
#[derive(Debug, Serialize)]
pub struct InterimOption {
    pub option_id: String,
    pub submitted: u64,
    pub counted: u64,
}

/// `GetFinalResultsResponse`.
#[derive(Debug, Serialize)]
pub struct Final {
    pub poll_id: String,
    pub options: Vec<FinalOption>,
    pub total_votes: u64,
    pub closed_at: Option<Timestamp>,
    pub finalized_at: Option<Timestamp>,
}

/// `FinalOption`.
#[derive(Debug, Serialize)]
pub struct FinalOption {
    pub option_id: String,
    pub votes: u64,
}

impl From<v1::ListPollsResponse> for PollList {
    fn from(response: v1::ListPollsResponse) -> Self {
        let polls = response.polls.into_iter().map(Poll::from).collect();
        Self { polls, next_page_token: response.next_page_token }
    }
}

/// `RecountResponse`.
#[derive(Debug, Serialize)]
pub struct Recount {
    pub poll_id: String,
    pub options: Vec<RecountOption>,
    pub matches: bool,
    #[serde(rename = "final")]
    pub is_final: bool,
    pub progress: String,
}

/// `RecountOption`.
#[derive(Debug, Serialize)]
pub struct RecountOption {
    pub option_id: String,
    pub counted: u64,
    pub recounted: u64,
}

/// A moment from the API; `None` if it is absent or out of range.
pub fn moment(timestamp: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    timestamp.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok())
}

/// A moment for the API.
pub fn to_proto(timestamp: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: timestamp.as_second(), nanos: timestamp.subsec_nanosecond() }
}

impl From<v1::Poll> for Poll {
    fn from(poll: v1::Poll) -> Self {
        Self {
            opens_at: moment(poll.opens_at.as_ref()),
            closes_at: moment(poll.closes_at.as_ref()),
            source: poll.source().as_str_name(),
            state: poll.state().as_str_name(),
            visibility: poll.visibility().as_str_name(),
            released_at: moment(poll.released_at.as_ref()),
            poll_id: poll.poll_id,
            title: poll.title,
            options: poll
                .options
                .into_iter()
                .map(|option| PollOption { option_id: option.option_id, title: option.title })
                .collect(),
            expected_peak: poll.expected_peak,
            needs_recount: poll.needs_recount,
            pseudonym_key_id: poll.pseudonym_key_id,
        }
    }
}

impl From<v1::GetInterimResultsResponse> for Interim {
    fn from(response: v1::GetInterimResultsResponse) -> Self {
        Self {
            as_of: moment(response.as_of.as_ref()),
            poll_id: response.poll_id,
            options: response
                .options
                .into_iter()
                .map(|option| InterimOption {
                    option_id: option.option_id,
                    submitted: option.submitted,
                    counted: option.counted,
                })
                .collect(),
            total_submitted: response.total_submitted,
            total_counted: response.total_counted,
        }
    }
}

impl From<v1::WatchInterimResultsResponse> for Interim {
    fn from(response: v1::WatchInterimResultsResponse) -> Self {
        v1::GetInterimResultsResponse {
            poll_id: response.poll_id,
            options: response.options,
            total_submitted: response.total_submitted,
            total_counted: response.total_counted,
            as_of: response.as_of,
        }
        .into()
    }
}

impl From<v1::GetFinalResultsResponse> for Final {
    fn from(response: v1::GetFinalResultsResponse) -> Self {
        Self {
            closed_at: moment(response.closed_at.as_ref()),
            finalized_at: moment(response.finalized_at.as_ref()),
            poll_id: response.poll_id,
            options: response
                .options
                .into_iter()
                .map(|option| FinalOption { option_id: option.option_id, votes: option.votes })
                .collect(),
            total_votes: response.total_votes,
        }
    }
}

impl From<v1::RecountResponse> for Recount {
    fn from(response: v1::RecountResponse) -> Self {
        Self {
            poll_id: response.poll_id,
            options: response
                .options
                .into_iter()
                .map(|option| RecountOption {
                    option_id: option.option_id,
                    counted: option.counted,
                    recounted: option.recounted,
                })
                .collect(),
            matches: response.matches,
            is_final: response.r#final,
            progress: response.progress,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 500_000_000 })
    }

    #[test]
    fn a_poll() {
        let poll = v1::Poll {
            poll_id: "p".into(),
            title: "T".into(),
            options: vec![v1::PollOption { option_id: "a".into(), title: "A".into() }],
            opens_at: at(0),
            closes_at: None,
            source: v1::PollSource::Ingest.into(),
            expected_peak: 7,
            state: v1::PollState::Open.into(),
            needs_recount: false,
            visibility: v1::PollVisibility::OnRelease.into(),
            released_at: at(2),
            pseudonym_key_id: "00ff".into(),
        };
        assert_eq!(
            serde_json::to_value(PollResponse { poll: poll.into() }).unwrap(),
            json!({"poll": {
                "poll_id": "p", "title": "T", "options": [{"option_id": "a", "title": "A"}],
                "opens_at": "1970-01-01T00:00:00.5Z", "closes_at": null, "source": "POLL_SOURCE_INGEST",
                "expected_peak": 7, "state": "POLL_STATE_OPEN", "needs_recount": false,
                "visibility": "POLL_VISIBILITY_ON_RELEASE", "released_at": "1970-01-01T00:00:02.5Z",
                "pseudonym_key_id": "00ff",
            }})
        );
    }

    #[test]
    fn results() {
        let interim = v1::WatchInterimResultsResponse {
            poll_id: "p".into(),
            options: vec![v1::InterimOption { option_id: "a".into(), submitted: 3, counted: 2 }],
            total_submitted: 3,
            total_counted: 2,
            as_of: at(1),
        };
        assert_eq!(
            serde_json::to_value(Interim::from(interim)).unwrap(),
            json!({
                "poll_id": "p", "options": [{"option_id": "a", "submitted": 3, "counted": 2}],
                "total_submitted": 3, "total_counted": 2, "as_of": "1970-01-01T00:00:01.5Z",
            })
        );
        let last = v1::GetFinalResultsResponse {
            poll_id: "p".into(),
            options: vec![v1::FinalOption { option_id: "a".into(), votes: 2 }],
            total_votes: 2,
            closed_at: at(2),
            finalized_at: at(3),
        };
        assert_eq!(
            serde_json::to_value(Final::from(last)).unwrap(),
            json!({
                "poll_id": "p", "options": [{"option_id": "a", "votes": 2}], "total_votes": 2,
                "closed_at": "1970-01-01T00:00:02.5Z", "finalized_at": "1970-01-01T00:00:03.5Z",
            })
        );
        let recount = v1::RecountResponse {
            poll_id: "p".into(),
            options: vec![v1::RecountOption { option_id: "a".into(), counted: 2, recounted: 2 }],
            matches: true,
            r#final: true,
            progress: String::new(),
        };
        assert_eq!(
            serde_json::to_value(Recount::from(recount)).unwrap(),
            json!({
                "poll_id": "p", "options": [{"option_id": "a", "counted": 2, "recounted": 2}],
                "matches": true, "final": true, "progress": "",
            })
        );
    }

    #[test]
    fn moments_survive_the_way_there_and_back() {
        let now: Timestamp = "2026-05-16T20:15:00.123Z".parse().unwrap();
        assert_eq!(moment(Some(&to_proto(now))), Some(now));
        assert_eq!(moment(Some(&prost_types::Timestamp { seconds: i64::MAX, nanos: 0 })), None);
    }
}
