//! Compares the clock of this machine with the `Date` of AWS's answers.
//!
//! Must never change a request or fail a call. Says nothing of the clocks of tasks: each of them watches its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{
            Intercept,
            context::{BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef},
        },
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::{
    DateTime,
    config_bag::{ConfigBag, Storable, StoreReplace},
    date_time::Format,
};

use crate::report::Line;

/// How far clocks of a distributed deployment may differ, in milliseconds.
const SKEW_MS_MAX: i64 = 500;
/// A `Date` has whole seconds.
const RESOLUTION_MS: i64 = 1_000;
/// No answer had a `Date`.
const UNKNOWN: i64 = i64::MIN;

/// Remembers the largest difference that is certain, in milliseconds; positive if our clock is ahead.
#[derive(Clone, Debug)]
pub(crate) struct Watch(Arc<AtomicI64>);

impl Default for Watch {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(UNKNOWN)))
    }
}

/// The time on our clock when the request was sent.
#[derive(Debug)]
struct SentAt(i64);

impl Storable for SentAt {
    type Storer = StoreReplace<Self>;
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The difference that is certain if AWS wrote `date`, in whole seconds, between these two readings of our clock.
fn difference(sent: i64, received: i64, date: i64) -> i64 {
    // AWS's clock was between `date` and a second later at some moment between both readings.
    let ahead = sent.saturating_sub(date.saturating_add(RESOLUTION_MS));
    let behind = date.saturating_sub(received);
    if ahead > 0 { ahead } else { -behind.max(0) }
}

impl Watch {
    fn answered(&self, sent: i64, received: i64, date: i64) {
        let certain = difference(sent, received, date);
        let further = |known| (known == UNKNOWN || certain.abs() > i64::abs(known)).then_some(certain);
        // If it is not further, the known one stays.
        let _unchanged = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, further);
    }

    /// Go if the clocks do not contradict each other by more than the services assume.
    pub(crate) fn line(&self) -> Line {
        const WHAT: &str = "clock of this machine";
        let needed = format!("within {SKEW_MS_MAX} ms of AWS's");
        match self.0.load(Ordering::Relaxed) {
            UNKNOWN => Line::no_go(WHAT, "not seen: no answer had a Date", needed, "repeat once AWS answers"),
            0 => Line::go(WHAT, "agrees", needed),
            certain if certain.abs() <= SKEW_MS_MAX => Line::go(WHAT, format!("{certain} ms"), needed),
            certain => {
                let side = if certain > 0 { "ahead" } else { "behind" };
                let found = format!("at least {} ms {side}", certain.abs());
                Line::no_go(WHAT, found, needed, "synchronise it: whoever watches the show by it sees wrong times")
            }
        }
    }
}

impl Intercept for Watch {
    fn name(&self) -> &'static str {
        "Watch"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        call: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        call.interceptor_state().store_put(SentAt(now_ms()));
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        call: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let date = date.and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
        if let (Some(date), Some(SentAt(sent))) = (date, call.load::<SentAt>()) {
            self.answered(*sent, now_ms(), date.secs().saturating_mul(1_000));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certain_counts() {
        // Sent, received, the second of AWS's clock.
        for (sent, received, date, expected) in [
            (5_000, 5_100, 5_000, 0),
            (5_900, 6_100, 5_000, 0),
            (5_900, 6_100, 6_000, 0),
            (7_200, 7_300, 5_000, 1_200),
            (5_000, 5_100, 7_000, -1_900),
        ] {
            assert_eq!(difference(sent, received, date), expected, "{sent}, {received}, {date}");
        }
        let watch = Watch::default();
        assert!(!watch.line().go);
        watch.answered(5_000, 5_100, 5_000);
        assert!(watch.line().go);
        watch.answered(7_200, 7_300, 5_000);
        assert!(!watch.line().go && watch.line().found.contains("1200 ms ahead"));
        watch.answered(5_000, 5_100, 5_000);
        assert!(!watch.line().go, "the largest difference stays");
    }
}
