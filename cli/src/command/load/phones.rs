//! Votes that come one by one, each from a phone.
//!
//! Owns when each begins, and how many are in flight. Must never let a slow service hide votes: one that is due and finds no
//! room waits, its time counts from when it was due, and the report says how many waited.

use std::{sync::Arc, time::Duration};

use indicatif::ProgressBar;
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use votestream_server::raise_descriptor_limit;

use super::{
    Poll,
    arrivals::{Curve, Moments},
    call::{Ballot, Caller},
    count::{Counts, Fate, Reason, Seconds},
    report::Pacing,
    tokens::Tokens,
};
use crate::{
    args::{Global, LoadArgs, Protocol},
    failure::Failure,
    generate::{Generated, Votes},
};

/// A vote that begins so much later than it was due, although there was room, is late: timers of this process wake up within a
/// millisecond or two.
const LATE: Duration = Duration::from_millis(10);
/// Descriptors that this process needs beside those of votes in flight.
const DESCRIPTORS_RESERVED: u64 = 64;

/// What phones need before the first vote.
pub(super) struct Phones {
    caller: Caller,
    tokens: Tokens,
    counts: Mutex<Counts>,
    room: usize,
}

impl Phones {
    /// Reads tokens, looks up the service, and opens the connections that calls share.
    pub(super) async fn prepare(
        global: &Global,
        args: &LoadArgs,
        poll: Poll,
        tokens: Tokens,
        progress: &ProgressBar,
    ) -> Result<Self, Failure> {
        let shared = (!args.new_connections).then_some(args.connections);
        let dialer = global.ingest_dialer(Caller::http(args.protocol), args.timeout, tokens.are_sent()).await?;
        let room = match (shared, args.protocol) {
            // Such a connection carries one call at a time.
            (Some(connections), Protocol::Json) => args.in_flight.min(connections),
            (Some(_), Protocol::Grpc) | (None, Protocol::Grpc | Protocol::Json) => args.in_flight,
        };
        let descriptors = raise_descriptor_limit();
        let needed = u64::from(shared.unwrap_or(room)) + DESCRIPTORS_RESERVED;
        if descriptors < needed {
            return Err(Failure::usage(format!(
                "this process may open {descriptors} files, and needs {needed}: raise `ulimit -n`, or lower --in-flight"
            )));
        }
        let counts = Mutex::new(Counts::new(Instant::now(), progress.clone())?);
        let caller = Caller::new(dialer, args.protocol, shared, args.timeout, poll)?;
        caller.open(args.connections, &counts).await?;
        Ok(Self { caller, tokens, counts, room: room as usize })
    }

    /// Casts the votes, until all are settled or it is told to stop.
    pub(super) async fn cast(
        self,
        args: &LoadArgs,
        votes: Votes,
        stop: &CancellationToken,
    ) -> Result<(Counts, Pacing), Failure> {
        let phones = Arc::new(self);
        let start = Instant::now();
        let moments = Curve::new(args.arrivals, args.votes, args.rate).map(|curve| Moments::new(curve, args.seed));
        let (under_way, room) = (TaskTracker::new(), Arc::new(Semaphore::new(phones.room)));
        phones.counts.lock().starts(start);
        let mut pacer = Pacer { start, moments, held_until: start, due: Seconds::default(), waited: 0, late: 0 };
        let begin = async {
            for vote in votes {
                let (due, permit) = pacer.next(&room).await;
                let phones = phones.clone();
                under_way.spawn(async move {
                    phones.vote(&vote, due).await;
                    drop(permit);
                });
            }
        };
        // Votes that have begun are settled in any case.
        stop.run_until_cancelled(begin).await;
        under_way.close();
        under_way.wait().await;
        let pacing = Pacing { waited: pacer.waited, late: pacer.late, busiest_second: pacer.due.busiest() };
        let phones = Arc::into_inner(phones).ok_or_else(|| Failure::failed("a vote is still under way"))?;
        Ok((phones.counts.into_inner(), pacing))
    }

    async fn vote(&self, vote: &Generated, due: Instant) {
        match self.tokens.voter(vote) {
            Ok(voter) => self.caller.cast(Ballot { voter, option: vote.option }, due, &self.counts).await,
            Err(text) => {
                let reason = Reason { kind: "no_token".into(), text };
                self.counts.lock().settled(Fate::NotSent, Some(reason), due.elapsed());
            }
        }
    }
}

/// Lets one vote after the other begin.
struct Pacer {
    start: Instant,
    /// None if each begins as soon as there is room.
    moments: Option<Moments>,
    /// When there was room again after a vote had found none.
    held_until: Instant,
    /// Votes that were due in each second.
    due: Seconds,
    waited: u64,
    late: u64,
}

impl Pacer {
    /// Waits until the next vote is due and has room. Returns when it was due.
    async fn next(&mut self, room: &Arc<Semaphore>) -> (Instant, OwnedSemaphorePermit) {
        let due = self.moments.as_mut().and_then(Moments::next);
        if let Some(after) = due {
            self.due.count(after);
            let at = self.start + after;
            // A timer of the past costs a turn of the runtime all the same.
            if at > Instant::now() {
                sleep_until(at).await;
            }
        }
        let due = due.map(|after| self.start + after);
        let free = room.clone().try_acquire_owned().ok();
        let has_waited = free.is_none() || due.is_some_and(|due| due < self.held_until);
        let permit = match free {
            Some(permit) => permit,
            None => match room.clone().acquire_owned().await {
                Ok(permit) => {
                    self.held_until = Instant::now();
                    permit
                }
                // Nobody closes it.
                Err(_) => std::future::pending().await,
            },
        };
        let now = Instant::now();
        if has_waited {
            self.waited += 1;
        } else if due.is_some_and(|due| now - due > LATE) {
            self.late += 1;
        }
        (due.unwrap_or(now), permit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Arrivals;

    fn pacer(rate: u64) -> Pacer {
        let start = Instant::now();
        let moments = Curve::new(Arrivals::Steady, 1_000, rate).map(|curve| Moments::new(curve, 1));
        Pacer { start, moments, held_until: start, due: Seconds::default(), waited: 0, late: 0 }
    }

    #[tokio::test(start_paused = true)]
    async fn votes_begin_when_they_are_due() {
        let (mut pacer, room) = (pacer(1_000), Arc::new(Semaphore::new(1_000)));
        for moment in Moments::new(Curve::new(Arrivals::Steady, 1_000, 1_000).unwrap(), 1) {
            let (due, permit) = pacer.next(&room).await;
            assert_eq!(due - pacer.start, moment);
            assert!(Instant::now() >= due && Instant::now() - due <= Duration::from_millis(2));
            drop(permit);
        }
        assert_eq!((pacer.waited, pacer.late), (0, 0));
        assert!(pacer.start.elapsed() <= Duration::from_secs(1));
    }

    /// With room for two, a service that stands still for half a second holds up what is due in it, and no more.
    #[tokio::test(start_paused = true)]
    async fn what_is_due_while_there_is_no_room_waits_and_keeps_its_time() {
        let (mut pacer, room) = (pacer(1_000), Arc::new(Semaphore::new(2)));
        let (mut dues, mut longest) = (Vec::new(), Duration::ZERO);
        for at in 0..999 {
            let (due, permit) = pacer.next(&room).await;
            longest = longest.max(due.elapsed());
            dues.push(due);
            if at == 200 {
                let permits = [permit, pacer.next(&room).await.1];
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    drop(permits);
                });
            }
        }
        assert!(dues.is_sorted());
        assert!((450..=550).contains(&pacer.waited), "{}", pacer.waited);
        assert!(longest >= Duration::from_millis(490), "{longest:?}");
        assert_eq!(pacer.late, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_rate_a_vote_is_due_when_it_has_room() {
        let (mut pacer, room) = (pacer(0), Arc::new(Semaphore::new(1)));
        let (first, permit) = pacer.next(&room).await;
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(70)).await;
            drop(permit);
        });
        let (second, _permit) = pacer.next(&room).await;
        assert_eq!(second - first, Duration::from_millis(70));
    }
}
