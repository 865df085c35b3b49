//! The clock of a machine, as a process may use it.
//!
//! Owns how readings follow a wall clock that jumps. Must never go back: two votes, or a vote and the answer to it,
//! would change their order.
//!
//! When the wall clock is ahead of the readings, they follow it at once: after a suspend, or when a machine that
//! started with a wrong time has learnt the right one, polls must close by the right time. When the wall clock was set
//! back, readings do not go back. They go on at nine tenths of the normal speed until the wall clock has caught up: a
//! poll that has just closed stays closed, and no vote looks late.

use std::{
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::observe::metrics;
use crate::{Clock, Timestamp};

/// Where the two clocks of a machine are read.
pub trait TimeSource: Send + Sync + 'static {
    /// The wall clock. It may jump.
    fn wall(&self) -> Timestamp;

    /// The monotonic clock. It may stand still while the machine is suspended.
    fn monotonic(&self) -> Instant;
}

/// The clocks of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine;

impl TimeSource for Machine {
    #[expect(clippy::disallowed_methods, reason = "the place where the wall clock is read")]
    fn wall(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(Timestamp::ZERO, |since| Timestamp::ZERO.plus(since))
    }

    #[expect(clippy::disallowed_methods, reason = "the place where the monotonic clock is read")]
    fn monotonic(&self) -> Instant {
        Instant::now()
    }
}

/// What the machine's wall clock says, for logs and metrics only: it may go back.
pub fn wall_clock() -> Timestamp {
    Machine.wall()
}

/// Up to this step, readings follow the wall clock without a further check. A longer step is compared with the
/// monotonic clock: it is either a jump, or a time in which nobody asked for a reading.
const STEP_MAX_MS: i64 = 1_000;
/// From this difference on, the log tells operators about it.
const WORTH_SAYING_MS: i64 = 1_000;
/// A wall clock that is behind by less than this does not stop a start: the difference is gone within ten times as
/// long.
const BEHIND_AT_START: Duration = Duration::from_secs(1);

/// The wall clock shows a time before a moment that has certainly passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the machine's clock says {wall}, but {floor} has certainly passed")]
pub struct WallClockBehind {
    /// What the wall clock says.
    pub wall: Timestamp,
    /// The moment that has passed.
    pub floor: Timestamp,
}

/// The machine's clock, except that it never goes back. See the module.
#[derive(Debug)]
pub struct SystemClock<S = Machine> {
    source: S,
    /// The largest reading so far.
    latest: AtomicI64,
    /// Readings are ahead of the wall clock.
    is_ahead: AtomicBool,
    course: Mutex<Course>,
}

/// How readings are computed when they cannot simply follow the wall clock.
#[derive(Debug)]
struct Course {
    /// Set while readings are ahead of the wall clock: the reading when it was set back, and the instant of that.
    returning: Option<(Timestamp, Instant)>,
    /// The last reading of both clocks. It shows whether a long step is a jump or a time without readings.
    seen: (Timestamp, Instant),
    /// The log has told operators that readings are ahead.
    said: bool,
}

/// What the log tells operators. It is written after the lock is released: a subscriber of the log may ask for the
/// time.
enum News {
    Nothing,
    JumpedAhead { by_ms: i64, wall: Timestamp },
    Ahead { by_ms: i64, wall: Timestamp },
    Together,
}

impl SystemClock {
    /// A clock that starts at the machine's time.
    pub fn new() -> Self {
        Self::over(Machine, Timestamp::ZERO)
    }

    /// A clock that starts at the machine's time or at `floor`, whichever is later. If that is `floor`, it returns to
    /// the machine's time as it does after the wall clock was set back.
    ///
    /// An engine that stamps records with this clock passes its latest stamp: if an arrival were earlier than a
    /// previous one, acknowledged votes would look late.
    pub fn not_before(floor: Timestamp) -> Self {
        Self::over(Machine, floor)
    }

    /// [`Self::not_before`], but refuses a wall clock that is far behind: either it is wrong now, or it was wrong when
    /// the floor was stamped.
    ///
    /// # Errors
    ///
    /// If it is behind by more than the skew bound, and by more than a second.
    pub fn starting_after(floor: Timestamp, skew_max: Duration) -> Result<Self, WallClockBehind> {
        Self::starting_over(Machine, floor, skew_max)
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: TimeSource> SystemClock<S> {
    /// A clock over other sources: see [`SystemClock::not_before`].
    pub fn over(source: S, floor: Timestamp) -> Self {
        let (wall, at) = (source.wall(), source.monotonic());
        let is_ahead = floor > wall;
        Self {
            source,
            latest: AtomicI64::new(wall.max(floor).0),
            is_ahead: AtomicBool::new(is_ahead),
            course: Mutex::new(Course { returning: is_ahead.then_some((floor, at)), seen: (wall, at), said: false }),
        }
    }

    /// A clock over other sources: see [`SystemClock::starting_after`].
    ///
    /// # Errors
    ///
    /// If the wall clock is too far behind.
    pub fn starting_over(source: S, floor: Timestamp, skew_max: Duration) -> Result<Self, WallClockBehind> {
        let wall = source.wall();
        if wall.plus(skew_max.max(BEHIND_AT_START)) < floor {
            return Err(WallClockBehind { wall, floor });
        }
        Ok(Self::over(source, floor))
    }

    /// The reading when it cannot simply follow the wall clock.
    #[cold]
    fn now_by_both(&self) -> Timestamp {
        let mut course = self.course.lock();
        // Read again: another thread's reading may have overtaken the one that led here.
        let (wall, at) = (self.source.wall(), self.source.monotonic());
        let latest = Timestamp(self.latest.load(Ordering::Relaxed));
        let (now, news) = course.go_on(wall, at, latest);
        self.is_ahead.store(course.returning.is_some(), Ordering::Relaxed);
        let now = Timestamp(self.latest.fetch_max(now.0, Ordering::Relaxed).max(now.0));
        metrics::CLOCK_AHEAD.set(now.0.saturating_sub(wall.0));
        drop(course);
        news.say();
        now
    }
}

impl Course {
    fn go_on(&mut self, wall: Timestamp, at: Instant, latest: Timestamp) -> (Timestamp, News) {
        let (seen_wall, seen_at) = std::mem::replace(&mut self.seen, (wall, at));
        let expected = seen_wall.plus(at.saturating_duration_since(seen_at));
        let since_set_back = |(from, since): (Timestamp, Instant)| {
            let elapsed = at.saturating_duration_since(since);
            from.plus(elapsed - elapsed / 10)
        };
        let ours = self.returning.map_or(latest, since_set_back).max(latest);
        if wall >= ours {
            self.returning = None;
            let news = match wall.0.saturating_sub(expected.0) {
                by_ms if by_ms > WORTH_SAYING_MS => News::JumpedAhead { by_ms, wall },
                _ if self.said => News::Together,
                _ => News::Nothing,
            };
            self.said = false;
            return (wall, news);
        }
        self.returning.get_or_insert((ours, at));
        let by_ms = ours.0.saturating_sub(wall.0);
        let news = if by_ms > WORTH_SAYING_MS && !self.said { News::Ahead { by_ms, wall } } else { News::Nothing };
        self.said |= by_ms > WORTH_SAYING_MS;
        (ours, news)
    }
}

impl News {
    fn say(&self) {
        match self {
            Self::Nothing => {}
            Self::JumpedAhead { by_ms, wall } => tracing::warn!(
                by_ms,
                "the machine's clock jumped ahead, to {wall}: it was suspended, restored, or set; polls close by this time"
            ),
            Self::Ahead { by_ms, wall } => tracing::warn!(
                by_ms,
                "the machine's clock is behind our time: it says {wall}; our time runs at nine tenths of its speed \
                 until it has caught up, and polls close by our time until then"
            ),
            Self::Together => tracing::info!("the machine's clock and our time agree again"),
        }
    }
}

impl<S: TimeSource> Clock for SystemClock<S> {
    fn now(&self) -> Timestamp {
        let wall = self.source.wall();
        let latest = self.latest.load(Ordering::Relaxed);
        if self.is_ahead.load(Ordering::Relaxed) || !(0..STEP_MAX_MS).contains(&wall.0.saturating_sub(latest)) {
            return self.now_by_both();
        }
        // Most readings are in the same millisecond as an earlier one.
        if wall.0 > latest { Timestamp(self.latest.fetch_max(wall.0, Ordering::Relaxed).max(wall.0)) } else { wall }
    }

    fn instant(&self) -> Instant {
        self.source.monotonic()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use proptest::prelude::*;

    use super::*;

    /// Two clocks that stand where they are put.
    #[derive(Clone)]
    struct Still {
        wall: Arc<AtomicI64>,
        elapsed: Arc<AtomicU64>,
        start: Instant,
    }

    const START: i64 = 1_700_000_000_000;

    impl Still {
        fn new() -> Self {
            Self { wall: Arc::new(AtomicI64::new(START)), elapsed: Arc::default(), start: Instant::now() }
        }

        /// Both clocks go on.
        fn pass(&self, ms: u64) {
            self.wall.fetch_add(ms as i64, Ordering::Relaxed);
            self.elapsed.fetch_add(ms, Ordering::Relaxed);
        }

        /// The wall clock jumps.
        fn jump(&self, ms: i64) {
            self.wall.fetch_add(ms, Ordering::Relaxed);
        }
    }

    impl TimeSource for Still {
        fn wall(&self) -> Timestamp {
            Timestamp(self.wall.load(Ordering::Relaxed))
        }

        fn monotonic(&self) -> Instant {
            self.start + Duration::from_millis(self.elapsed.load(Ordering::Relaxed))
        }
    }

    fn clock(floor: i64) -> (Still, SystemClock<Still>) {
        let source = Still::new();
        (source.clone(), SystemClock::over(source, Timestamp(floor)))
    }

    #[test]
    fn the_wall_clock_is_followed_ahead_at_once() {
        let (source, clock) = clock(0);
        for jump in [1, 999, 1_000, 3_600_000, 86_400_000] {
            source.jump(jump);
            assert_eq!(clock.now(), source.wall());
            source.pass(7);
            assert_eq!(clock.now(), source.wall());
        }
    }

    #[test]
    fn set_back_it_is_returned_to_at_nine_tenths_of_its_speed() {
        let (source, clock) = clock(0);
        source.pass(10);
        let before = clock.now();
        source.jump(-10_000);
        assert_eq!(clock.now(), before);
        source.pass(50_000);
        assert_eq!(clock.now(), before.plus(Duration::from_millis(45_000)));
        // Set back once more: still the same course.
        source.jump(-1_000);
        source.pass(10_000);
        assert_eq!(clock.now(), before.plus(Duration::from_millis(54_000)));
        source.pass(49_980);
        assert!(clock.now() > source.wall());
        source.pass(20);
        assert_eq!(clock.now(), source.wall());
        source.pass(100);
        assert_eq!(clock.now(), source.wall());
    }

    #[test]
    fn a_jump_that_was_wrong_and_is_taken_back_is_returned_from() {
        let (source, clock) = clock(0);
        let start = clock.now();
        source.jump(3_600_000);
        assert_eq!(clock.now(), source.wall());
        source.jump(-3_600_000);
        assert_eq!(clock.now(), start.plus(Duration::from_millis(3_600_000)));
        source.pass(1_000);
        assert_eq!(clock.now(), start.plus(Duration::from_millis(3_600_900)));
        // And the wall clock jumps ahead of us again.
        source.jump(4_000_000);
        assert_eq!(clock.now(), source.wall());
    }

    #[test]
    fn it_starts_at_the_floor_and_returns_from_there() {
        let (source, clock) = clock(START + 5_000);
        assert_eq!(clock.now(), Timestamp(START + 5_000));
        source.pass(1_000);
        assert_eq!(clock.now(), Timestamp(START + 5_900));
        source.pass(49_000);
        assert_eq!(clock.now(), Timestamp(START + 50_000));
    }

    #[test]
    fn a_start_far_behind_is_refused_with_both_times() {
        let start = |floor: i64, skew_max: u64| {
            SystemClock::starting_over(Still::new(), Timestamp(START + floor), Duration::from_millis(skew_max)).err()
        };
        assert_eq!(start(-5, 0), None);
        assert_eq!(start(1_000, 0), None);
        assert_eq!(start(5_000, 5_000), None);
        let refused = start(1_001, 500);
        assert_eq!(refused, Some(WallClockBehind { wall: Timestamp(START), floor: Timestamp(START + 1_001) }));
        let text = refused.unwrap().to_string();
        assert!(text.contains("2023-11-14T22:13:20.000Z") && text.contains("2023-11-14T22:13:21.001Z"), "{text}");
    }

    #[test]
    fn operators_are_told_once_of_each_change() {
        let told = |course: &mut Course, wall: i64, at: Instant, latest: i64| {
            let (now, news) = course.go_on(Timestamp(wall), at, Timestamp(latest));
            let news = match news {
                News::Nothing => "",
                News::JumpedAhead { .. } => "jumped",
                News::Ahead { .. } => "ahead",
                News::Together => "together",
            };
            (now.0, news)
        };
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut course = Course { returning: None, seen: (Timestamp(0), start), said: false };
        // A time without readings is no jump.
        assert_eq!(told(&mut course, 5_000, at(5_000), 0), (5_000, ""));
        assert_eq!(told(&mut course, 9_000, at(6_000), 5_000), (9_000, "jumped"));
        assert_eq!(told(&mut course, 10_000, at(7_000), 9_000), (10_000, ""));
        assert_eq!(told(&mut course, 9_500, at(7_000), 10_000), (10_000, ""));
        assert_eq!(told(&mut course, 8_000, at(7_000), 10_000), (10_000, "ahead"));
        assert_eq!(told(&mut course, 8_100, at(7_100), 10_000), (10_090, ""));
        assert_eq!(told(&mut course, 28_000, at(27_000), 10_090), (28_000, "together"));
        assert_eq!(told(&mut course, 28_500, at(27_500), 28_000), (28_500, ""));
    }

    #[test]
    fn threads_never_see_it_go_back() {
        let (source, clock) = clock(0);
        let seen = AtomicI64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let before = seen.load(Ordering::SeqCst);
                        let now = clock.now().0;
                        assert!(now >= before, "{now} after {before}");
                        seen.fetch_max(now, Ordering::SeqCst);
                    }
                });
            }
            for step in 0..3_000i64 {
                source.pass(3);
                source.jump([700, -900, 0, 2_500, -2_000][step as usize % 5]);
            }
        });
    }

    proptest! {
        #[test]
        fn readings_never_go_back_nor_stay_behind(
            floor in -10_000i64..10_000,
            steps in prop::collection::vec((0u64..20_000, prop_oneof![Just(0i64), -100_000i64..100_000]), 1..40),
        ) {
            let (source, clock) = clock(START + floor);
            let mut before = clock.now();
            for (pass, jump) in steps {
                source.pass(pass);
                source.jump(jump);
                let now = clock.now();
                prop_assert!(now >= before);
                prop_assert!(now >= source.wall());
                // Ahead of the wall clock, it runs slower.
                let slowed = before.plus(Duration::from_millis(pass * 9 / 10 + 1));
                prop_assert!(now == source.wall() || now <= slowed, "{now} of {before} and {}", source.wall());
                before = now;
            }
        }
    }
}
