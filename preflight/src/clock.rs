//! Compares the clock of this machine with the `Date` of AWS's answers.
//!
//! Must never change a request or fail a call. Says nothing of the clocks of tasks: each of them watches its own.

use std::sync::Arc;

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
use parking_lot::Mutex;
use votestream_core::{
    TimeBounds, Timestamp,
    clock::{Ahead, wall_clock},
};

use crate::report::Line;

/// Remembers the answer that shows the largest difference.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch(Arc<Mutex<Option<Ahead>>>);

/// The time on our clock when the request was sent.
#[derive(Debug)]
struct SentAt(Timestamp);

impl Storable for SentAt {
    type Storer = StoreReplace<Self>;
}

impl Watch {
    fn answered(&self, answer: Ahead) {
        let mut furthest = self.0.lock();
        if furthest.is_none_or(|known| answer.certain().abs() > known.certain().abs()) {
            *furthest = Some(answer);
        }
    }

    /// Go if the clocks do not contradict each other by more than the services assume.
    pub(crate) fn line(&self) -> Line {
        const WHAT: &str = "clock of this machine";
        let skew_max = TimeBounds::DISTRIBUTED.clock_skew_max;
        let needed = format!("within {} ms of AWS's", skew_max.as_millis());
        let Some(ahead) = *self.0.lock() else {
            return Line::no_go(WHAT, "not seen: no answer had a Date", needed, "repeat once AWS answers");
        };
        match ahead.certain() {
            0 => Line::go(WHAT, "agrees", needed),
            certain if !ahead.contradicts(skew_max) => Line::go(WHAT, format!("{certain} ms"), needed),
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
        call.interceptor_state().store_put(SentAt(wall_clock()));
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
            self.answered(Ahead::of(*sent, wall_clock(), Timestamp(date.secs().saturating_mul(1_000))));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certain_counts() {
        let answer = |sent, received, date| Ahead::of(Timestamp(sent), Timestamp(received), Timestamp(date));
        // Sent, received, the second of AWS's clock.
        for (sent, received, date, expected) in [
            (5_000, 5_100, 5_000, 0),
            (5_900, 6_100, 5_000, 0),
            (5_900, 6_100, 6_000, 0),
            (7_200, 7_300, 5_000, 1_200),
            (5_000, 5_100, 7_000, -1_900),
        ] {
            assert_eq!(answer(sent, received, date).certain(), expected, "{sent}, {received}, {date}");
        }
        let watch = Watch::default();
        assert!(!watch.line().go);
        watch.answered(answer(5_000, 5_100, 5_000));
        assert!(watch.line().go);
        watch.answered(answer(7_200, 7_300, 5_000));
        assert!(!watch.line().go && watch.line().found.contains("1200 ms ahead"));
        watch.answered(answer(5_000, 5_100, 5_000));
        assert!(!watch.line().go, "the largest difference stays");
    }
}
