//! The life of one connection: decides when the server ends it.
//!
//! Owns the timers. One timer serves for all of them: when it fires, the connection's state decides what is due. Must
//! never end a call that makes progress: a handler may wait as long as it needs.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Sleep, sleep_until};
use votestream_core::observe::metrics::ConnectionClosed;

use super::link::{Link, Order, State};
use crate::Limits;

/// How long a client may take to close the connection after it was told that it ends: a round trip over a bad link.
const PARTING: Duration = Duration::from_secs(1);
/// The same if other connections wait for the place.
const PARTING_IN_HASTE: Duration = Duration::from_millis(250);

/// An HTTP connection that can be told to accept no more calls.
pub(crate) trait Http: Future {
    /// Accepts no more calls, finishes the running ones, and then ends.
    fn part(self: Pin<&mut Self>);
}

/// What must be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// Nothing until this time.
    At(u64),
    /// Stop accepting calls.
    Part(ConnectionClosed),
    /// End the connection.
    End(ConnectionClosed),
}

/// The timers of a connection.
struct Timers {
    first_request: u64,
    idle: u64,
    stalled_write: u64,
    order: Order,
    /// Time since which it accepts no more calls, and the reason.
    parted: Option<(u64, ConnectionClosed)>,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 4)
}

impl Timers {
    fn new(limits: &Limits) -> Self {
        Self {
            first_request: millis(limits.first_request),
            idle: millis(limits.idle),
            stalled_write: millis(limits.stalled_write),
            order: Order::None,
            parted: None,
        }
    }

    fn due(&self, state: &State, now: u64) -> Due {
        if let Order::End(reason) = self.order {
            return Due::End(reason);
        }
        let stalled = state.blocked_since.or(state.waiting_since.filter(|_| !state.busy));
        let stalls_at = stalled.map(|since| since + self.stalled_write);
        if stalls_at.is_some_and(|at| at <= now) {
            return Due::End(ConnectionClosed::StalledWrite);
        }
        match self.without_stall(state, now, stalled.is_some()) {
            Due::At(at) => Due::At(stalls_at.map_or(at, |stalls_at| at.min(stalls_at))),
            due @ (Due::Part(_) | Due::End(_)) => due,
        }
    }

    fn without_stall(&self, state: &State, now: u64, writing: bool) -> Due {
        if let Some((since, reason)) = self.parted {
            let parting = millis(if self.order == Order::MakeRoom { PARTING_IN_HASTE } else { PARTING });
            let over = since.max(state.idle_since.min(now)) + parting;
            return match over <= now {
                true if !state.busy && !writing => Due::End(reason),
                true => Due::At(now + parting),
                false => Due::At(over),
            };
        }
        match self.order {
            Order::Drain if !state.requested => Due::End(ConnectionClosed::Shutdown),
            Order::Drain => Due::Part(ConnectionClosed::Shutdown),
            Order::MakeRoom if !state.requested => Due::End(ConnectionClosed::MadeRoom),
            Order::MakeRoom => Due::Part(ConnectionClosed::MadeRoom),
            Order::Part(reason) => Due::Part(reason),
            Order::None | Order::End(_) => self.undisturbed(state, now),
        }
    }

    fn undisturbed(&self, state: &State, now: u64) -> Due {
        let (since, time, reason) = match state.requested {
            false => (state.accepted_at, self.first_request, ConnectionClosed::FirstRequest),
            true => (state.idle_since.min(now), self.idle, ConnectionClosed::Idle),
        };
        match since + time {
            over if over > now => Due::At(over),
            _ if state.busy => Due::At(now + time),
            _ => Due::Part(reason),
        }
    }
}

/// Runs a connection to its end.
pub(crate) async fn live(http: impl Http, link: &Link) {
    let (mut http, mut timers) = (pin!(http), Timers::new(&link.census.limits));
    let mut timer = pin!(sleep_until(link.census.instant(link.accepted_at + timers.first_request)));
    let (mut seen, mut blocked) = (0, false);
    poll_fn(|cx| {
        link.register(cx.waker());
        if http.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let ordered = link.ordered(&mut seen);
        if let Some(order) = ordered {
            timers.order = order;
        }
        let newly_blocked = link.is_blocked() && !blocked;
        blocked = link.is_blocked();
        if ordered.is_none() && !newly_blocked && timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        act(&mut timers, http.as_mut(), timer.as_mut(), link, cx)
    })
    .await;
    if let Some((_, reason)) = timers.parted {
        link.census.closed(reason);
    }
}

/// Does everything that is due.
fn act<H: Http>(
    timers: &mut Timers,
    mut http: Pin<&mut H>,
    mut timer: Pin<&mut Sleep>,
    link: &Link,
    cx: &mut Context<'_>,
) -> Poll<()> {
    loop {
        let now = link.census.now();
        match timers.due(&link.state(), now) {
            Due::At(at) => {
                timer.as_mut().reset(link.census.instant(at));
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
            Due::Part(reason) => {
                timers.parted = Some((now, reason));
                http.as_mut().part();
                if http.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
            }
            Due::End(reason) => {
                timers.parted = Some((now, reason));
                tracing::debug!(peer = %link.peer, ?reason, "connection ended");
                return Poll::Ready(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_000_000;

    fn timers() -> Timers {
        Timers::new(&Limits::default())
    }

    /// A connection without a call since this time.
    fn quiet(idle_since: u64) -> State {
        State { accepted_at: 1, requested: true, busy: false, idle_since, blocked_since: None, waiting_since: None }
    }

    #[test]
    fn each_limit_has_its_time() {
        let (idle, stalled) = (75_000, 30_000);
        assert_eq!(timers().due(&quiet(NOW), NOW), Due::At(NOW + idle));
        assert_eq!(timers().due(&quiet(NOW - idle), NOW), Due::Part(ConnectionClosed::Idle));
        let silent = State { accepted_at: NOW - 10_000, requested: false, ..quiet(NOW - 10_000) };
        assert_eq!(timers().due(&silent, NOW - 1), Due::At(NOW));
        assert_eq!(timers().due(&silent, NOW), Due::Part(ConnectionClosed::FirstRequest));
        let blocked = State { blocked_since: Some(NOW - stalled), busy: true, ..quiet(u64::MAX) };
        assert_eq!(timers().due(&blocked, NOW - 1), Due::At(NOW));
        assert_eq!(timers().due(&blocked, NOW), Due::End(ConnectionClosed::StalledWrite));
        // The HTTP library has the whole answer, but the client takes nothing.
        let waiting = State { waiting_since: Some(NOW - stalled), ..quiet(NOW - 1) };
        assert_eq!(timers().due(&waiting, NOW), Due::End(ConnectionClosed::StalledWrite));
        assert_eq!(timers().due(&State { busy: true, ..waiting }, NOW), Due::At(NOW - 1 + idle));
    }

    #[test]
    fn an_order_waits_for_calls_and_for_what_is_being_written() {
        let parted =
            Timers { order: Order::Drain, parted: Some((NOW - 60_000, ConnectionClosed::Shutdown)), ..timers() };
        assert_eq!(parted.due(&quiet(NOW - 60_000), NOW), Due::End(ConnectionClosed::Shutdown));
        let writing = State { blocked_since: Some(NOW - 5), ..quiet(NOW - 60_000) };
        assert_eq!(parted.due(&writing, NOW), Due::At(NOW + 1_000));
        assert_eq!(parted.due(&State { busy: true, ..quiet(u64::MAX) }, NOW), Due::At(NOW + 1_000));
        let told = Timers { order: Order::End(ConnectionClosed::AnswerBytes), ..timers() };
        assert_eq!(told.due(&State { busy: true, ..quiet(1) }, NOW), Due::End(ConnectionClosed::AnswerBytes));
    }

    proptest! {
        /// The timer must not fire again and again for nothing.
        #[test]
        fn nothing_is_waited_for_in_a_circle(
            accepted in 0..NOW, idle in prop_oneof![0..NOW, Just(u64::MAX)], requested: bool, busy: bool,
            blocked in proptest::option::of(1..=NOW), waiting in proptest::option::of(1..=NOW),
            order in prop_oneof![
                Just(Order::None), Just(Order::Drain), Just(Order::MakeRoom), Just(Order::Part(ConnectionClosed::Signatures)),
            ],
            parted in proptest::option::of(0..=NOW),
        ) {
            let state = State {
                accepted_at: accepted, requested, busy, idle_since: idle, blocked_since: blocked, waiting_since: waiting,
            };
            let timers = Timers { order, parted: parted.map(|since| (since, ConnectionClosed::Idle)), ..timers() };
            let mut now = NOW;
            for _ in 0..4 {
                let Due::At(at) = timers.due(&state, now) else { return Ok(()) };
                prop_assert!(at > now);
                now = at;
            }
            prop_assert!(now >= NOW + 250, "four times within {} ms", now - NOW);
        }
    }
}
