//! The tasks of a connection's HTTP/2 calls.
//!
//! Owns the end of an answer that its client does not take. Must leave everything else of a call alone, and must cost a call
//! nothing as long as its answer is taken.
//!
//! A client that has closed its window still gets its other streams' answers: one slow reader behind a proxy must not end the
//! others. So a stalled answer ends its call alone, unless nothing of the whole connection was taken meanwhile.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use hyper::rt::Executor;
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use votestream_core::observe::metrics::ConnectionClosed;

use super::{
    link::{Link, Order},
    outbound::Turn,
};

/// Runs the calls of a connection, each in a task of its own.
#[derive(Clone, Debug)]
pub(crate) struct Calls(pub(crate) Arc<Link>);

impl<F> Executor<F> for Calls
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, call: F) {
        tokio::spawn(Running { call, link: self.0.clone(), owed: false, stall: None });
    }
}

pin_project! {
    /// A call, and the answer that it may owe.
    struct Running<F> {
        #[pin]
        call: F,
        link: Arc<Link>,
        // The client has not taken all that is ready.
        owed: bool,
        stall: Option<Pin<Box<Stall>>>,
    }
}

pin_project! {
    /// An answer that waits for its client.
    struct Stall {
        // What the connection had taken when this began.
        progress: u64,
        #[pin]
        over: Sleep,
    }
}

impl<F: Future<Output = ()>> Future for Running<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let (polled, turn) = Turn::of(*this.owed, || this.call.poll(cx));
        if polled.is_ready() {
            return Poll::Ready(());
        }
        *this.owed = turn.owed;
        if turn.taken {
            *this.stall = None;
        }
        if !turn.owed {
            // The handler is at work.
            return Poll::Pending;
        }
        let stall = this.stall.get_or_insert_with(|| {
            let over = sleep(this.link.census.limits.stalled_write);
            Box::pin(Stall { progress: this.link.progress(), over })
        });
        ready!(stall.as_mut().project().over.poll(cx));
        if stall.progress == this.link.progress() {
            this.link.order(Order::End(ConnectionClosed::StalledWrite));
        }
        // Dropped without an end, a call's stream is reset.
        Poll::Ready(())
    }
}
