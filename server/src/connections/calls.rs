//! The tasks of a connection's HTTP/2 calls.
//!
//! Owns the end of an answer that its client does not take. Must not affect anything else of a call. Must cost a call
//! nothing as long as its answer is taken.
//!
//! A client whose window of one stream is full still gets the answers of its other streams: one slow reader behind a
//! proxy must not end the others. So a stalled answer ends only its own call, unless nothing of the whole connection
//! was taken meanwhile.

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

/// Runs each call of a connection in its own task.
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
    /// A call and its answer, of which a part may be waiting.
    struct Running<F> {
        #[pin]
        call: F,
        link: Arc<Link>,
        // Part of the answer is ready but was not taken by the client.
        owed: bool,
        stall: Option<Pin<Box<Stall>>>,
    }
}

pin_project! {
    /// An answer that waits for its client.
    struct Stall {
        // The connection's progress when the wait began.
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
            // The handler is still working.
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
        // The call is dropped without an end, so its stream is reset.
        Poll::Ready(())
    }
}
