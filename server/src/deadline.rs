//! The deadline of a gRPC call. Its client sends it as `grpc-timeout`.
//!
//! Owns the end of a call whose time is up: the client gets DEADLINE_EXCEEDED, and the work for it is dropped. Must
//! never stand before JSON, for which the header has no meaning. Must never stand before the translation of gRPC-Web,
//! which would not recognise the end of the call. Must cost a call without a deadline no more than the look for the
//! header.

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

/// Name of the header.
const GRPC_TIMEOUT: &str = "grpc-timeout";
/// Most digits of a deadline.
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

/// A body type that can wrap a body with a deadline.
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
            // The time is already up: do not begin.
            Some(Duration::ZERO) => Answer::Refused { status: Some(exceeded()) },
            Some(timeout) => Answer::Timed { answer: self.0.call(request), over: Some(Box::pin(sleep(timeout))) },
            // A value that cannot be read is no deadline. The generated services do the same.
            None => Answer::Untimed { answer: self.0.call(request) },
        }
    }
}

pin_project! {
    /// An answer, or the error that its time is up.
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
                // It was answered already and must not be polled again.
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
        // Check the deadline first: otherwise a body that always has more data would never end.
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
        // The body may end earlier.
        let mut hint = SizeHint::new();
        if let Some(upper) = self.body.as_ref().and_then(|body| body.size_hint().upper()) {
            hint.set_upper(upper);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    };

    use axum::{Router, routing::post};
    use http::header;
    use http_body_util::BodyExt;
    use tokio::time::Instant;
    use tonic::{Code, service::Routes};
    use tonic_health::server::{HealthReporter, HealthService};
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::{Part, Surface};

    #[test]
    fn deadlines_are_read_as_the_protocol_has_them() {
        let parse = |text: &str| parse(&HeaderValue::from_str(text).unwrap());
        let rows = [
            ("1H", Duration::from_secs(3_600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("4m", Duration::from_millis(4)),
            ("5u", Duration::from_micros(5)),
            ("00000006n", Duration::from_nanos(6)),
            ("99999999H", Duration::from_secs(99_999_999 * 3_600)),
            ("0S", Duration::ZERO),
        ];
        for (text, timeout) in rows {
            assert_eq!(parse(text), Some(timeout), "{text}");
        }
        for text in ["", "S", "1", "1s", "1 S", "-1S", "+1S", "1.5S", "123456789S", "0x1S", "1SS", "eins"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    struct Work(Arc<AtomicBool>);

    impl Drop for Work {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Calls a service whose call and stream never end. Also returns a flag that says whether its work was dropped.
    async fn call(timeout: &str, is_stream: bool) -> (Response<Body>, Arc<AtomicBool>) {
        let dropped = Arc::new(AtomicBool::new(false));
        let flag = dropped.clone();
        let service = service_fn(move |_: Request<Body>| {
            let work = Work(flag.clone());
            async move {
                if !is_stream {
                    std::future::pending::<()>().await;
                }
                let frames = futures::stream::unfold(work, |work| async {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    Some((Ok::<_, Status>(Frame::data(Bytes::from_static(b"more"))), work))
                });
                Ok::<_, Infallible>(Response::new(Body::new(http_body_util::StreamBody::new(frames))))
            }
        });
        let request = Request::post("/").header(GRPC_TIMEOUT, timeout).body(Body::empty()).unwrap();
        let answer = Deadline(service).oneshot(request).await.unwrap();
        (answer, dropped)
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_and_a_stream_end_with_their_deadline_and_so_does_their_work() {
        let began = Instant::now();
        let (answer, dropped) = call("2S", false).await;
        assert_eq!(Status::from_header_map(answer.headers()).unwrap().code(), Code::DeadlineExceeded);
        assert!(dropped.load(Ordering::Relaxed) && began.elapsed() < Duration::from_millis(2_010));

        let (answer, dropped) = call("2S", true).await;
        assert!(Status::from_header_map(answer.headers()).is_none(), "its head was sent in time");
        let mut body = answer.into_body();
        while !dropped.load(Ordering::Relaxed) {
            body.frame().await.unwrap().unwrap();
        }
        assert!(body.frame().await.is_none() && began.elapsed() < Duration::from_millis(4_020));

        let (answer, _) = call("2S", true).await;
        let trailers = answer.into_body().collect().await.unwrap().trailers().cloned().unwrap();
        assert_eq!(Status::from_header_map(&trailers).unwrap().code(), Code::DeadlineExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_begun_without_time_and_what_cannot_be_read_is_no_deadline() {
        let begun = AtomicUsize::new(0);
        for timeout in ["0n", "soon"] {
            let service = service_fn(|_: Request<Body>| {
                begun.fetch_add(1, Ordering::Relaxed);
                async { Ok::<_, Infallible>(Response::new(Body::empty())) }
            });
            let request = Request::post("/").header(GRPC_TIMEOUT, timeout).body(Body::empty()).unwrap();
            let answer = Deadline(service).call(request).await.unwrap();
            let status = Status::from_header_map(answer.headers()).map(|status| status.code());
            let expected = if timeout == "0n" { (0, Some(Code::DeadlineExceeded)) } else { (1, None) };
            assert_eq!((begun.load(Ordering::Relaxed), status), expected, "{timeout}");
        }
    }

    /// A health watch, which never ends, and a JSON route that takes a second.
    fn surface(reporter: &HealthReporter) -> Routes {
        let health = HealthService::from_health_reporter(reporter.clone());
        let grpc = Routes::new(tonic_health::pb::health_server::HealthServer::new(health));
        let json = Router::new().route(
            "/vote",
            post(async || {
                tokio::time::sleep(Duration::from_secs(1)).await;
                "voted"
            }),
        );
        Surface::new([Part { grpc, json, ..Part::default() }]).into_routes()
    }

    async fn ask(path: &str, content_type: &str, timeout: &str) -> (u16, Bytes, Option<HeaderMap>) {
        let request = Request::post(path).version(http::Version::HTTP_2).header(header::CONTENT_TYPE, content_type);
        let message = Bytes::from_static(&[0; 5]);
        let body = Body::new(http_body_util::Full::new(message));
        let reporter = HealthReporter::new();
        let answer =
            surface(&reporter).oneshot(request.header(GRPC_TIMEOUT, timeout).body(body).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap();
        let trailers = body.trailers().cloned();
        (status, body.to_bytes(), trailers)
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_is_one_for_grpc_and_grpc_web_and_nothing_for_json() {
        let watch = "/grpc.health.v1.Health/Watch";
        let (_, _, trailers) = ask(watch, "application/grpc", "3S").await;
        assert_eq!(Status::from_header_map(&trailers.unwrap()).unwrap().code(), Code::DeadlineExceeded);

        let (status, body, _) = ask(watch, "application/grpc-web+proto", "3S").await;
        let trailer = body
            .windows(14)
            .any(|window| window.eq_ignore_ascii_case(b"grpc-status:4\r") || window.starts_with(b"grpc-status:4"));
        assert!(status == 200 && trailer, "{}", body.escape_ascii());

        let (status, body, _) = ask("/vote", "application/json", "1u").await;
        assert_eq!((status, &body[..]), (200, &b"voted"[..]));
    }
}
