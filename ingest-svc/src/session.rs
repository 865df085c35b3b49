//! One client stream: which of its votes are settled, in order.
//!
//! Owns the ledger between the task that reads votes and the one that answers. Must never pass a message before all of its
//! votes are settled, and never grow with a client that does not read its answers.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::codegen::http::HeaderMap;
use tracing::Span;
use votestream_core::lane::{Outcome, Settle};
use votestream_proto::v1::Rejection;
use votestream_service::telemetry::request_span;

use crate::{
    ledger::{Admitted, Ledger, rejection},
    room::Room,
};

/// Most groups of messages of one stream that are read and not yet answered.
const UNANSWERED_MESSAGES_MAX: usize = 4_096;

/// The messages of one stream that are read and not yet answered.
#[derive(Default)]
pub struct Session {
    messages: Mutex<VecDeque<Arc<Message>>>,
    /// Woken when a message is settled, answered, or the last one has been read.
    changed: Notify,
    closed: AtomicBool,
    /// Ends with the session, when its last vote is settled. Disabled unless the client's trace is sampled.
    span: Option<Span>,
    /// `traceparent` of the span.
    traceparent: Option<Arc<str>>,
}

/// Messages of a stream that were admitted together.
struct Message {
    /// Weak, since the session holds its messages.
    session: Weak<Session>,
    /// Index of its first vote in the stream.
    first: u64,
    /// Index after its last vote.
    end: u64,
    /// Votes that are not settled.
    unsettled: AtomicUsize,
    rejections: Mutex<Vec<Rejection>>,
    /// Its share of the bytes that may be unsettled. Given back when it is settled, not when it is answered.
    room: Mutex<Option<Room>>,
}

/// A settled run of votes.
pub struct Settled {
    /// Index after the last vote of the run.
    pub through: u64,
    /// Votes of the run that are not durable, in index order.
    pub rejections: Vec<Rejection>,
}

impl Session {
    /// A session of the trace that a request's headers name.
    pub(crate) fn of(headers: &HeaderMap, method: &'static str) -> Arc<Self> {
        let (span, traceparent) = request_span(headers, method);
        Arc::new(Self { span: (!span.is_none()).then_some(span), traceparent, ..Self::default() })
    }

    /// The span that work for this session belongs to.
    pub(crate) fn span(&self) -> Span {
        self.span.clone().unwrap_or_else(Span::none)
    }

    /// Waits until there is room for another unanswered message.
    pub async fn ready(&self) {
        loop {
            let changed = self.changed.notified();
            if self.messages.lock().len() < UNANSWERED_MESSAGES_MAX {
                return;
            }
            changed.await;
        }
    }

    /// No more messages will be entered.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Waits for the next votes to be settled and takes them off the ledger; `None` once everything is settled and the
    /// session is closed.
    pub async fn settled(&self) -> Option<Settled> {
        loop {
            let changed = self.changed.notified();
            let closed = self.closed.load(Ordering::Acquire);
            let mut settled: Option<Settled> = None;
            let empty = {
                let mut messages = self.messages.lock();
                while let Some(message) = messages.front()
                    && message.unsettled.load(Ordering::Acquire) == 0
                {
                    let run = settled.get_or_insert_with(|| Settled { through: 0, rejections: Vec::new() });
                    run.through = message.end;
                    let mut rejections = std::mem::take(&mut *message.rejections.lock());
                    rejections.sort_unstable_by_key(|rejection| rejection.index);
                    run.rejections.append(&mut rejections);
                    messages.pop_front();
                }
                messages.is_empty()
            };
            if settled.is_some() {
                self.changed.notify_waiters();
                return settled;
            }
            if closed && empty {
                return None;
            }
            changed.await;
        }
    }
}

impl Ledger for Session {
    fn enter(self: &Arc<Self>, admitted: Admitted) -> Arc<dyn Settle> {
        let Admitted { first, accepted, rejections, room } = admitted;
        let message = Arc::new(Message {
            session: Arc::downgrade(self),
            first,
            end: first + (accepted + rejections.len()) as u64,
            unsettled: AtomicUsize::new(accepted),
            rejections: Mutex::new(rejections),
            room: Mutex::new(room),
        });
        self.messages.lock().push_back(message.clone());
        if accepted == 0 {
            message.done();
        }
        message
    }

    fn traceparent(&self) -> &str {
        self.traceparent.as_deref().unwrap_or_default()
    }
}

impl Message {
    fn done(&self) {
        self.room.lock().take();
        if let Some(session) = self.session.upgrade() {
            session.changed.notify_waiters();
        }
    }
}

impl Settle for Message {
    fn settle(&self, indices: &[u32], outcome: Outcome) {
        if outcome != Outcome::Durable {
            let rejections = indices.iter().filter_map(|&index| rejection(self.first + u64::from(index), outcome));
            self.rejections.lock().extend(rejections);
        }
        if self.unsettled.fetch_sub(indices.len(), Ordering::AcqRel) == indices.len() {
            self.done();
        }
    }
}
