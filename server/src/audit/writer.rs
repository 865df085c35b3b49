//! The one thread that writes the log.
//!
//! Owns the queue to it, the order of lines, and what waits while the disk takes none. Must never answer an intent that
//! is not synced, and never lose how an act ended as long as the process runs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    Unwritten,
    file::Sink,
    line::{Call, Chain, Event, Outcome},
};

/// Most acts at a time. Further ones wait.
const ACTS_MAX: usize = 64;
/// Most refusals that wait to be written.
const REFUSALS_WAITING_MAX: usize = 128;
/// Length of the queue: for each act how it begins or how it ends, and the refusals.
const QUEUE_MAX: usize = 2 * ACTS_MAX + REFUSALS_WAITING_MAX;
/// Most bytes that are written at once, but for the last line.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// How soon the ends of acts are written again after the disk did not take them.
const RETRY: Duration = Duration::from_secs(1);
/// How long refusals that have no line may be unmentioned.
const MENTION: Duration = Duration::from_secs(60);
/// How long the end of a process waits for the last lines. Every answer has waited for its own.
const END_WAIT: Duration = Duration::from_secs(2);

/// An act that is in the log, and whose end is not. When it is dropped, the log says that nobody knows how it ended.
#[derive(Debug)]
pub(super) struct Begun {
    /// Number of the line with the intent.
    number: u64,
    /// `None` once the log knows how it ended.
    rest: Option<(Call, OwnedSemaphorePermit)>,
    /// Whether whoever acts knows that they may.
    is_told: bool,
    queue: SyncSender<Message>,
}

impl Begun {
    /// Writes how it ended. It is written even if the returned future is dropped.
    pub(super) fn end(mut self, outcome: Outcome) -> impl Future<Output = ()> + use<> {
        let (written, answer) = oneshot::channel();
        self.tell(outcome, Some(written));
        async move { answer.await.unwrap_or_default() }
    }

    fn tell(&mut self, outcome: Outcome, written: Option<oneshot::Sender<()>>) {
        if let Some((call, permit)) = self.rest.take() {
            let event = Event::Outcome { of: self.number, call, outcome };
            send(&self.queue, Message::End { event, permit, written });
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let outcome = if self.is_told {
            Outcome::failed("UNKNOWN", "the caller left before the answer: it may have been done, or not")
        } else {
            Outcome::failed("CANCELLED", "the caller left, or the log took too long, before it began: nothing was done")
        };
        self.tell(outcome, None);
    }
}

enum Message {
    Begin(Begin),
    End { event: Event, permit: OwnedSemaphorePermit, written: Option<oneshot::Sender<()>> },
    Refused { event: Event, permit: OwnedSemaphorePermit },
}

struct Begin {
    call: Call,
    asked: Value,
    permit: OwnedSemaphorePermit,
    queue: SyncSender<Message>,
    /// Dropped if it cannot be written.
    reply: oneshot::Sender<Begun>,
}

/// Sends what has a permit, so that the queue has room for it.
fn send(queue: &SyncSender<Message>, message: Message) {
    if queue.try_send(message).is_err() {
        tracing::error!("the thread of the audit log has ended");
    }
}

/// The way to the thread.
#[derive(Debug)]
pub(super) struct Writer {
    /// `None` once it is dropped.
    queue: Option<SyncSender<Message>>,
    acts: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    left_out: Arc<AtomicU64>,
    /// Ends with the thread.
    ended: Mutex<Receiver<()>>,
}

impl Writer {
    pub(super) fn start(sink: Sink, chain: Chain, cut: u64, left_out: Arc<AtomicU64>) -> std::io::Result<Self> {
        let (queue, messages) = sync_channel(QUEUE_MAX);
        let (running, ended) = sync_channel(1);
        let repaired = (cut > 0).then_some(Event::Repaired { bytes: cut });
        let lines = Lines { sink, chain, owed: Vec::new(), repaired, left_out: left_out.clone(), is_failing: false };
        thread::Builder::new().name("audit-log".into()).spawn(move || {
            lines.run(&messages);
            drop(running);
        })?;
        Ok(Self {
            queue: Some(queue),
            acts: Arc::new(Semaphore::new(ACTS_MAX)),
            refusals: Arc::new(Semaphore::new(REFUSALS_WAITING_MAX)),
            left_out,
            ended: Mutex::new(ended),
        })
    }

    /// Writes that somebody is about to do something.
    pub(super) async fn begin(&self, call: Call, asked: Value) -> Result<Begun, Unwritten> {
        let permit = self.acts.clone().acquire_owned().await.map_err(|_| Unwritten)?;
        let queue = self.queue.clone().ok_or(Unwritten)?;
        let (reply, answer) = oneshot::channel();
        send(&queue.clone(), Message::Begin(Begin { call, asked, permit, queue, reply }));
        let mut begun = answer.await.map_err(|_| Unwritten)?;
        begun.is_told = true;
        Ok(begun)
    }

    /// Writes that somebody was refused something. If too many wait, it is counted instead.
    pub(super) fn refused(&self, event: Event) {
        match (self.refusals.clone().try_acquire_owned(), &self.queue) {
            (Ok(permit), Some(queue)) => send(queue, Message::Refused { event, permit }),
            _ => drop(self.left_out.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.queue.take());
        // Ends with an error, one way or the other: nothing is ever sent.
        self.ended.lock().recv_timeout(END_WAIT).unwrap_or_default();
    }
}

/// How an act ended that is not in the log yet.
struct Owed {
    event: Event,
    /// Kept until it is written: so no more than [`ACTS_MAX`] are owed.
    _permit: OwnedSemaphorePermit,
}

/// The thread's own.
struct Lines {
    sink: Sink,
    chain: Chain,
    owed: Vec<Owed>,
    /// The repair at the start, until it is written.
    repaired: Option<Event>,
    left_out: Arc<AtomicU64>,
    is_failing: bool,
}

/// Whoever waits for the lines of one write.
#[derive(Default)]
struct Waiting {
    begun: Vec<(oneshot::Sender<Begun>, Begun)>,
    ended: Vec<oneshot::Sender<()>>,
    refusals: Vec<OwnedSemaphorePermit>,
}

impl Lines {
    fn run(mut self, messages: &Receiver<Message>) {
        // A repair is told even if nothing else happens.
        if self.repaired.is_some() {
            self.write(Vec::new());
        }
        loop {
            let wait = if self.owed.is_empty() { MENTION } else { RETRY };
            match messages.recv_timeout(wait) {
                Ok(first) => self.write([first].into_iter().chain(messages.try_iter().take(QUEUE_MAX))),
                Err(RecvTimeoutError::Timeout) => self.write([]),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if !self.owed.is_empty() {
            self.write([]);
        }
        for owed in &self.owed {
            tracing::error!(outcome = ?owed.event, "the audit log does not say how an act ended");
        }
    }

    /// Writes what these messages tell, and what is owed, in as few writes as possible.
    fn write(&mut self, messages: impl IntoIterator<Item = Message>) {
        let mut messages = messages.into_iter().peekable();
        loop {
            let (mut chain, mut lines, mut waiting) = (self.chain, Vec::new(), Waiting::default());
            let now = SystemTime::now();
            let mut line = |event: &Event, lines: &mut Vec<u8>| match chain.write(event, now, lines) {
                Ok(number) => Some(number),
                Err(error) => {
                    tracing::error!(%error, "cannot write a line of the audit log as JSON");
                    None
                }
            };
            if let Some(event) = &self.repaired {
                line(event, &mut lines);
            }
            let left_out = self.left_out.swap(0, Ordering::Relaxed);
            if left_out > 0 {
                line(&Event::LeftOut { refusals: left_out }, &mut lines);
            }
            for owed in &self.owed {
                line(&owed.event, &mut lines);
            }
            while let Some(message) = messages.next_if(|_| lines.len() < WRITE_BYTES_MAX) {
                match message {
                    Message::Begin(Begin { call, asked, permit, queue, reply }) => {
                        let event = Event::Intent { call: call.clone(), asked };
                        // Without a line, `reply` is dropped, and the act does not take place.
                        if let Some(number) = line(&event, &mut lines) {
                            let rest = Some((call, permit));
                            waiting.begun.push((reply, Begun { number, rest, is_told: false, queue }));
                        }
                    }
                    Message::End { event, permit, written } => {
                        line(&event, &mut lines);
                        self.owed.push(Owed { event, _permit: permit });
                        waiting.ended.extend(written);
                    }
                    Message::Refused { event, permit } => {
                        line(&event, &mut lines);
                        waiting.refusals.push(permit);
                    }
                }
            }
            if lines.is_empty() {
                return;
            }
            let is_written = self.append(&lines);
            if is_written {
                self.chain = chain;
                self.repaired = None;
                self.owed.clear();
            } else {
                self.left_out.fetch_add(left_out + waiting.refusals.len() as u64, Ordering::Relaxed);
            }
            waiting.answer(is_written);
            if messages.peek().is_none() {
                return;
            }
        }
    }

    fn append(&mut self, lines: &[u8]) -> bool {
        match self.sink.append(lines) {
            Ok(()) => {
                if self.is_failing {
                    tracing::warn!("the audit log can be written again");
                }
                self.is_failing = false;
                true
            }
            Err(error) => {
                if !self.is_failing {
                    tracing::error!(%error, "the audit log cannot be written: administrative calls are refused until it can");
                }
                self.is_failing = true;
                false
            }
        }
    }
}

impl Waiting {
    fn answer(self, is_written: bool) {
        for ended in self.ended {
            // Whoever does not wait any more does not need the answer.
            ended.send(()).unwrap_or_default();
        }
        for (reply, mut begun) in self.begun {
            if is_written {
                // If nobody waits for it, dropping it says so in the log.
                drop(reply.send(begun));
            } else {
                // It is not in the log, so its end must not be.
                begun.rest = None;
            }
        }
    }
}
