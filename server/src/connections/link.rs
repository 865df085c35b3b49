//! The shared state of one connection.
//!
//! Owns the counts that its calls, its socket and the census share. A call changes them without a lock. Must never
//! decide anything: the connection's life and the census do.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    task::Waker,
};

use bytes::Bytes;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use votestream_core::observe::metrics::{self, ConnectionClosed};

use super::census::Census;
use crate::{gather::Calling, identity::Remembered};

/// An order to a connection, in order of urgency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    /// No order.
    #[default]
    None,
    /// The process stops: end as soon as no call is running.
    Drain,
    /// Take no more calls, and end once those that run have ended.
    Part(ConnectionClosed),
    /// Another connection needs the place: end, because no call is running.
    MakeRoom,
    /// End at once, even if calls are running.
    End(ConnectionClosed),
}

/// The memory that a connection's answers hold.
#[derive(Debug, Default)]
struct Answers {
    bytes: u64,
    /// When the client last took some of it, in milliseconds of the census.
    taken_at: u64,
    /// Whether the connection was told to end because of it. Then it no longer counts.
    written_off: bool,
    /// The answers. When they are written off they are freed at once from here, because the connection's own task may
    /// have to wait for its turn.
    held: Vec<Weak<Held>>,
}

/// Length of the list at which dropped answers are removed from it. More than a connection has streams.
const HELD_LISTED: usize = 64;

/// The memory that a connection's requests hold, as far as it was reported.
#[derive(Debug, Default)]
struct Requests {
    steps: u64,
    /// When some of it was last read, in milliseconds of the census.
    read_at: u64,
    written_off: bool,
    /// Steps that it was written off with.
    left: u64,
}

/// The memory of requests is reported in steps of this size. Small requests are never reported.
const STEP_BYTES: u64 = 64 << 10;

/// Added to `calls` when a call ends. The lower half counts running calls, the upper half ended ones.
const ENDED: u64 = 1 << 32;

/// When a connection may take more bytes of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Now,
    /// When others have given memory back.
    Later,
    /// It is about to end.
    Never,
}

/// The shared state of a connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) census: Arc<Census>,
    pub(crate) peer: SocketAddr,
    /// Who called last.
    pub(crate) remembered: Remembered,
    /// Number of the listener that accepted it.
    pub(crate) listener: u64,
    /// When it was accepted. All times here are milliseconds of the census.
    pub(crate) accepted_at: u64,
    /// Running calls in the lower half, ended calls in the upper half.
    calls: AtomicU64,
    /// When the last call ended. In the future while one is running.
    idle_since: AtomicU64,
    /// Whether the client has sent whole requests, nothing of another one, and has not closed the connection.
    whole: AtomicBool,
    /// Time since which the socket accepts no bytes; 0 if it accepts some.
    blocked_since: AtomicU64,
    /// Number of pieces of long answers that were taken.
    taken: AtomicU32,
    answers: Mutex<Answers>,
    /// Bytes of requests received so far. Only the connection's own task writes it.
    received: AtomicU64,
    /// Bytes of requests that were read, or that are known to be dropped.
    read: AtomicU64,
    /// Number of request bodies of which more may have come than was read.
    behind: AtomicU32,
    /// Copy of [`Requests::steps`], readable without the lock.
    steps: AtomicU64,
    requests: Mutex<Requests>,
    /// [`Requests::written_off`], to be seen without its lock.
    written_off: AtomicBool,
    order: Mutex<Order>,
    /// Number of orders, readable without the lock of `order`.
    ordered: AtomicU8,
    task: AtomicWaker,
}

/// The state of a connection at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) accepted_at: u64,
    /// Whether the head of a request has come.
    pub(crate) requested: bool,
    /// Whether calls are running.
    pub(crate) busy: bool,
    pub(crate) idle_since: u64,
    pub(crate) blocked_since: Option<u64>,
    /// If answers wait for the client: when some of them was last taken.
    pub(crate) waiting_since: Option<u64>,
}

impl Link {
    pub(crate) fn new(census: Arc<Census>, peer: SocketAddr, listener: u64) -> Self {
        let accepted_at = census.now();
        Self {
            census,
            peer,
            remembered: Remembered::default(),
            listener,
            accepted_at,
            calls: AtomicU64::new(0),
            idle_since: AtomicU64::new(accepted_at),
            whole: AtomicBool::new(false),
            blocked_since: AtomicU64::new(0),
            taken: AtomicU32::new(0),
            answers: Mutex::default(),
            received: AtomicU64::new(0),
            read: AtomicU64::new(0),
            behind: AtomicU32::new(0),
            steps: AtomicU64::new(0),
            requests: Mutex::default(),
            written_off: AtomicBool::new(false),
            order: Mutex::default(),
            ordered: AtomicU8::new(0),
            task: AtomicWaker::new(),
        }
    }

    pub(crate) fn address(&self) -> IpAddr {
        self.peer.ip()
    }

    pub(crate) fn state(&self) -> State {
        // Read the calls before the time: a call that ends in between has already written its time.
        let calls = self.calls.load(Ordering::Acquire);
        let blocked_since = self.blocked_since.load(Ordering::Relaxed);
        let answers = self.answers.lock();
        State {
            accepted_at: self.accepted_at,
            requested: calls != 0,
            busy: !calls.is_multiple_of(ENDED),
            idle_since: self.idle_since.load(Ordering::Acquire),
            blocked_since: (blocked_since != 0).then_some(blocked_since),
            waiting_since: (answers.bytes > 0).then_some(answers.taken_at),
        }
    }

    /// Notes whether the client has sent whole requests, nothing of another one, and has not closed the connection.
    pub(crate) fn sent_whole_requests(&self, whole: bool) {
        self.whole.store(whole, Ordering::Relaxed);
    }

    /// A number that grows whenever the client takes the end of an answer, or a piece of a long one.
    pub(crate) fn progress(&self) -> u64 {
        (self.calls.load(Ordering::Relaxed) / ENDED) + u64::from(self.taken.load(Ordering::Relaxed))
    }

    /// Notes that a piece of a long answer was taken.
    pub(crate) fn taken(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes whether the socket accepts bytes at present.
    pub(crate) fn writable(&self, writable: bool) {
        let blocked = self.blocked_since.load(Ordering::Relaxed) != 0;
        if writable == blocked {
            // Only the connection's own task writes this.
            self.blocked_since.store(if writable { 0 } else { self.census.now() }, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked_since.load(Ordering::Relaxed) != 0
    }

    /// Gives an order, unless a more urgent one was given before.
    pub(crate) fn order(&self, order: Order) {
        let mut given = self.order.lock();
        if order > *given {
            *given = order;
            self.ordered.fetch_add(1, Ordering::Release);
            drop(given);
            self.task.wake();
        }
    }

    /// The latest order, if there were more orders than `seen`. Updates `seen`.
    pub(crate) fn ordered(&self, seen: &mut u8) -> Option<Order> {
        let ordered = self.ordered.load(Ordering::Acquire);
        (ordered != *seen).then(|| {
            *seen = ordered;
            *self.order.lock()
        })
    }

    /// Wakes this task when there is an order.
    pub(crate) fn register(&self, task: &Waker) {
        self.task.register(task);
    }

    /// Whether this connection may take more bytes from its socket, as far as its requests are concerned.
    pub(crate) fn room(&self) -> Room {
        if self.written_off.load(Ordering::Relaxed) {
            return Room::Never;
        }
        // What is not reported is little, and keeps honest clients going.
        if self.steps.load(Ordering::Relaxed) > 0 && self.census.requests_are_full() { Room::Later } else { Room::Now }
    }

    /// Notes that bytes of requests have come.
    pub(crate) fn received(&self, bytes: u64) {
        let received = self.received.load(Ordering::Relaxed) + bytes;
        self.received.store(received, Ordering::Relaxed);
        let held = received.saturating_sub(self.read.load(Ordering::Relaxed));
        if held / STEP_BYTES > self.steps.load(Ordering::Relaxed) {
            self.report();
        }
    }

    /// Notes that bytes of requests were read.
    pub(crate) fn read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
        if self.steps.load(Ordering::Relaxed) > 0 {
            self.report();
        }
    }

    /// Notes one more body that may hold unread bytes.
    pub(crate) fn fell_behind(&self) {
        self.behind.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes one body less. If none is left, nothing is held: what was not read was dropped.
    pub(crate) fn caught_up(&self) {
        if self.behind.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.read.store(self.received.load(Ordering::Relaxed), Ordering::Relaxed);
            if self.steps.load(Ordering::Relaxed) > 0 {
                self.report();
            }
        }
    }

    /// Reports the memory of the requests to the census, in steps.
    fn report(&self) {
        let mut requests = self.requests.lock();
        let held = self.received.load(Ordering::Relaxed).saturating_sub(self.read.load(Ordering::Relaxed));
        let (before, steps) = (requests.steps, held / STEP_BYTES);
        if steps <= before || before == 0 {
            requests.read_at = self.census.now();
        }
        requests.steps = steps;
        self.steps.store(steps, Ordering::Relaxed);
        let too_many = !requests.written_off && self.census.hold_requests(before * STEP_BYTES, steps * STEP_BYTES);
        drop(requests);
        if too_many {
            self.census.write_off_requests();
        }
    }

    /// When its requests were last read, and how much they hold; `None` if nothing, or if they are written off.
    pub(crate) fn unread(&self) -> Option<(u64, u64)> {
        let requests = self.requests.lock();
        (!requests.written_off && requests.steps > 0).then_some((requests.read_at, requests.steps * STEP_BYTES))
    }

    /// Tells the connection to end because of the memory of its requests.
    pub(crate) fn write_off_requests(&self) {
        let mut requests = self.requests.lock();
        if !requests.written_off {
            requests.written_off = true;
            self.written_off.store(true, Ordering::Relaxed);
            self.census.requests_leave(requests.steps * STEP_BYTES);
            requests.left = requests.steps;
        }
        drop(requests);
        self.order(Order::End(ConnectionClosed::RequestBytes));
    }

    /// Last progress and bytes of the waiting answers; `None` if there are none, or if they are written off.
    pub(crate) fn waiting(&self) -> Option<(u64, u64)> {
        let answers = self.answers.lock();
        (!answers.written_off && answers.bytes > 0).then_some((answers.taken_at, answers.bytes))
    }

    /// Tells the connection to end because of the memory of its answers.
    pub(crate) fn write_off_answers(&self) {
        let mut answers = self.answers.lock();
        if !answers.written_off {
            answers.written_off = true;
            self.census.release_answers(answers.bytes);
        }
        let held: Vec<_> = answers.held.drain(..).filter_map(|held| held.upgrade()).collect();
        // Release the lock first: dropping the last copy of an answer takes it.
        drop(answers);
        held.iter().for_each(|held| drop(held.rest.lock().take()));
        self.order(Order::End(ConnectionClosed::AnswerBytes));
    }
}

impl Calling for Arc<Link> {
    fn is_busy(&self) -> bool {
        !self.calls.load(Ordering::Relaxed).is_multiple_of(ENDED)
    }

    fn awaits_answers(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let requests = self.requests.get_mut();
        if requests.written_off {
            self.census.requests_left(requests.left * STEP_BYTES);
        } else {
            self.census.hold_requests(requests.steps * STEP_BYTES, 0);
        }
    }
}

/// A running call.
#[derive(Debug)]
pub(crate) struct Call(Arc<Link>);

impl Call {
    /// Begins a call. Called when its head is complete.
    pub(crate) fn begin(link: &Arc<Link>) -> Self {
        if link.calls.fetch_add(1, Ordering::AcqRel).is_multiple_of(ENDED) {
            link.idle_since.store(u64::MAX, Ordering::Release);
        }
        Self(link.clone())
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.0
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let before = self.0.calls.fetch_add(ENDED - 1, Ordering::AcqRel);
        if before % ENDED == 1 {
            self.0.idle_since.store(self.0.census.now(), Ordering::Release);
        }
    }
}

/// Bytes of an answer. They count from when they are made until the last of them is written or the call is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    link: Arc<Link>,
    bytes: u64,
    /// The bytes that are not handed out yet. `None` if the connection is written off.
    rest: Mutex<Option<Bytes>>,
}

impl Held {
    pub(crate) fn new(link: &Arc<Link>, bytes: Bytes) -> Arc<Self> {
        let len = bytes.len() as u64;
        let held = Arc::new(Self { link: link.clone(), bytes: len, rest: Mutex::new(Some(bytes)) });
        let mut answers = link.answers.lock();
        if answers.bytes == 0 {
            answers.taken_at = link.census.now();
        }
        answers.bytes += len;
        if answers.held.len() >= HELD_LISTED {
            answers.held.retain(|held| held.strong_count() > 0);
        }
        answers.held.push(Arc::downgrade(&held));
        let written_off = answers.written_off;
        // Count under the lock, like everything that reverses it.
        let too_many = !written_off && link.census.hold_answers(len);
        drop(answers);
        link.census.add(&metrics::ANSWER_BYTES, len as i64);
        if written_off {
            held.rest.lock().take();
        } else if too_many {
            link.census.write_off_answers();
        }
        held
    }

    /// The next bytes, at most `bytes_max`, and whether they are the last. `None` if the connection is written off.
    pub(crate) fn cut(&self, bytes_max: usize) -> Option<(Bytes, bool)> {
        let mut rest = self.rest.lock();
        let bytes = rest.as_mut()?;
        if bytes.len() <= bytes_max {
            return rest.take().map(|last| (last, true));
        }
        Some((bytes.split_to(bytes_max), false))
    }

    /// Bytes that are not handed out yet.
    pub(crate) fn left(&self) -> u64 {
        self.rest.lock().as_ref().map_or(0, |rest| rest.len() as u64)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut answers = self.link.answers.lock();
        answers.bytes -= self.bytes;
        answers.taken_at = self.link.census.now();
        if !answers.written_off {
            self.link.census.release_answers(self.bytes);
        }
        self.link.census.add(&metrics::ANSWER_BYTES, -(self.bytes as i64));
    }
}
