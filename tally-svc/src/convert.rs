//! Converts between the messages of the API and the types of the domain.
//!
//! Must never hold a rule of the domain, except for what a field of a message can express.

use prost_types::Timestamp as ProtoTimestamp;
use votestream_core::{Closing, Poll, PollId, PollSource, Timestamp, Visibility};
use votestream_proto::v1;

use crate::status::CallError;

/// 9999-12-31T23:59:59Z, the last second of `google.protobuf.Timestamp`.
const SECONDS_MAX: i64 = 253_402_300_799;

/// A time in a request, cut to whole milliseconds.
pub(crate) fn timestamp_of(field: &'static str, value: &ProtoTimestamp) -> Result<Timestamp, CallError> {
    if !(0..=SECONDS_MAX).contains(&value.seconds) || !(0..1_000_000_000).contains(&value.nanos) {
        return Err(CallError::field(
            field,
            "must lie between the years 1970 and 9999, with nanos from 0 to 999,999,999",
        ));
    }
    Ok(Timestamp(value.seconds * 1_000 + i64::from(value.nanos) / 1_000_000))
}

/// A time for a response.
pub(crate) fn timestamp(at: Timestamp) -> ProtoTimestamp {
    ProtoTimestamp { seconds: at.0.div_euclid(1_000), nanos: (at.0.rem_euclid(1_000) * 1_000_000) as i32 }
}

/// The id of a request's poll.
pub(crate) fn poll_id_of(id: &str) -> Result<PollId, CallError> {
    Ok(PollId::new(id)?)
}

/// A stored poll with its state at the time `now`.
pub(crate) fn poll(poll: &Poll, now: Timestamp) -> v1::Poll {
    let state = if poll.final_result.is_some() {
        v1::PollState::Final
    } else if now < poll.opens_at {
        v1::PollState::Scheduled
    } else if now < poll.closes_at && poll.closing == Closing::No {
        v1::PollState::Open
    } else {
        v1::PollState::Closed
    };
    let source = match poll.source {
        PollSource::Ingest => v1::PollSource::Ingest,
        PollSource::Stream => v1::PollSource::Stream,
    };
    let visibility = match poll.visibility {
        Visibility::Live => v1::PollVisibility::Live,
        Visibility::WhenFinal => v1::PollVisibility::WhenFinal,
        Visibility::OnRelease => v1::PollVisibility::OnRelease,
    };
    let title = |option: &votestream_core::PollOption| {
        if option.title.is_empty() { option.id.to_string() } else { option.title.clone() }
    };
    v1::Poll {
        poll_id: poll.id.to_string(),
        title: poll.title.clone(),
        options: poll
            .options
            .iter()
            .map(|option| v1::PollOption { option_id: option.id.to_string(), title: title(option) })
            .collect(),
        opens_at: Some(timestamp(poll.opens_at)),
        closes_at: Some(timestamp(poll.closes_at)),
        source: source.into(),
        expected_peak: poll.expected_peak,
        state: state.into(),
        needs_recount: poll.needs_recount,
        visibility: visibility.into(),
        released_at: poll.released_at.map(timestamp),
        pseudonym_key_id: poll.pseudonym_key.map_or_else(String::new, |key| key.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_milliseconds_within_their_range() {
        let at = |seconds, nanos| timestamp_of("t", &ProtoTimestamp { seconds, nanos }).ok();
        assert_eq!(at(0, 0), Some(Timestamp(0)));
        assert_eq!(at(1, 999_999_999), Some(Timestamp(1_999)));
        assert_eq!(at(SECONDS_MAX, 0), Some(Timestamp(SECONDS_MAX * 1_000)));
        for (seconds, nanos) in [(-1, 0), (SECONDS_MAX + 1, 0), (i64::MAX, 0), (0, -1), (0, 1_000_000_000)] {
            assert_eq!(at(seconds, nanos), None, "{seconds} {nanos}");
        }
        for ms in [0, 1, 1_999, 1_700_000_000_123] {
            assert_eq!(timestamp_of("t", &timestamp(Timestamp(ms))).ok(), Some(Timestamp(ms)));
        }
    }

    #[test]
    fn state_follows_the_times() {
        let mut stored = crate::testing::poll("p", 10, 20);
        let state = |stored: &Poll, now| poll(stored, Timestamp(now)).state();
        assert_eq!(state(&stored, 9), v1::PollState::Scheduled);
        assert_eq!(state(&stored, 10), v1::PollState::Open);
        assert_eq!(state(&stored, 20), v1::PollState::Closed);
        stored.final_result =
            Some(votestream_core::model::poll::FinalResult { votes: vec![0, 0], finalized_at: Timestamp(30) });
        assert_eq!(state(&stored, 40), v1::PollState::Final);
    }
}
