//! A gRPC call's deadline, which its client sends as `grpc-timeout`.
//!
//! Owns the end of a call whose time is up: the client gets DEADLINE_EXCEEDED, and what was running for it is dropped. Must
//! never stand in front of JSON, to which the header means nothing, nor of the translation of gRPC-Web, which would not know the
//! end of the call for one. Must cost a call without a deadline no more than the look for the header.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body, server::NamedService};
use tower::{Layer, Service};

/// The header.
const GRPC_TIMEOUT: &str = "grpc-timeout";
/// Digits that a deadline may have.
const DIGITS_MAX: usize = 8;

/// Reads a deadline: up to eight digits and a unit.
fn parse(value: &HeaderValue) -> Option<Duration> {
    let (&unit, digits) = value.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(number * 3_600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

fn exceeded() -> Status {
    Status::deadline_exceeded("the deadline of the call has passed")
}

/// Puts [`Deadline`] in front of services.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, service: S) -> Deadline<S> {
        Deadline(service)
    }
}

/// A gRPC service whose calls end with their deadlines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline<S>(pub(crate) S);

impl<S: NamedService> NamedService for Deadline<S> {
    const NAME: &'static str = S::NAME;
}

/// A body type that can hold one that ends with its deadline.
pub(crate) trait Boxed: HttpBody<Data = Bytes> + Default + Sized {
    fn boxed(body: Timed<Self>) -> Self;
}

impl Boxed for Body {
    fn boxed(body: Timed<Self>) -> Self {
        Self::new(body)
    }
}

impl Boxed for axum::body::Body {
    fn boxed(body: Timed<Self>) -> Self {
        Self::new(body)
    }
}

impl<S, Q, B> Service<Request<Q>> for Deadline<S>
where
    S: Service<Request<Q>, Response = Response<B>, Error = Infallible>,
    B: Boxed,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let Some(value) = request.headers().get(GRPC_TIMEOUT) else {
            return Answer::Untimed { answer: self.0.call(request) };
        };
        match parse(value) {
            // Nothing is begun that nobody can wait for.
            Some(Duration::ZERO) => Answer::Refused { status: Some(exceeded()) },
            Some(timeout) => Answer::Timed { answer: self.0.call(request), over: Some(Box::pin(sleep(timeout))) },
            None => Answer::Refused { status: Some(Status::invalid_argument("grpc-timeout cannot be read")) },
        }
    }
}

pin_project! {
    /// An answer, or that its time is up.
    #[project = AnswerProjection]
    #[project_replace = AnswerReplaced]
    pub(crate) enum Answer<F> {
        Untimed { #[pin] answer: F },
        Timed { #[pin] answer: F, over: Option<Pin<Box<Sleep>>> },
        Refused { status: Option<Status> },
    }
}

impl<F, B> Future for Answer<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: Boxed,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.as_mut().project() {
            AnswerProjection::Untimed { answer } => answer.poll(cx),
            AnswerProjection::Timed { answer, over } => {
                if let Poll::Ready(answered) = answer.poll(cx) {
                    let over = over.take();
                    let timed = |body| B::boxed(Timed { body: Some(body), over });
                    return Poll::Ready(answered.map(|answer| answer.map(timed)));
                }
                if let Some(over) = over {
                    ready!(over.as_mut().poll(cx));
                }
                self.project_replace(Answer::Refused { status: None });
                Poll::Ready(Ok(exceeded().into_http()))
            }
            AnswerProjection::Refused { status } => match status.take() {
                Some(status) => Poll::Ready(Ok(status.into_http())),
                // It was answered, and is not to be polled again.
                None => Poll::Pending,
            },
        }
    }
}

pin_project! {
    /// A body that ends with its call's deadline.
    pub(crate) struct Timed<B> {
        #[pin]
        body: Option<B>,
        over: Option<Pin<Box<Sleep>>>,
    }
}

impl<B: HttpBody<Data = Bytes>> HttpBody for Timed<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let Some(body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        // Looked at first: a body that always has more would never end.
        let is_over = this.over.as_mut().is_some_and(|over| over.as_mut().poll(cx).is_ready());
        if !is_over {
            return body.poll_frame(cx);
        }
        this.body.set(None);
        let mut trailers = HeaderMap::new();
        if exceeded().add_header(&mut trailers).is_err() {
            trailers.clear();
        }
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        // It may end sooner.
        let mut hint = SizeHint::new();
        if let Some(upper) = self.body.as_ref().and_then(|body| body.size_hint().upper()) {
            hint.set_upper(upper);
        }
        hint
    }
}
