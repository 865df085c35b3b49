//! Passes a request from the HTTP library to the port's services, and the answer back.
//!
//! Owns the steps that are the same for every request. Must never look into the content of a request.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use tonic::{Status, body::Body};
use tower::{Service, ServiceExt};
use votestream_core::observe::metrics::ConnectionClosed;

use super::{
    host,
    inbound::Inbound,
    link::{Call, Link, Order},
    outbound::Outbound,
};
use crate::{
    ClientCertificate,
    identity::{Caller, FAILURES_MAX, Remembered},
};

/// Most calls of a connection that is to end because of wrong signatures, and which need a further check: more than its
/// client sends before it knows.
const IGNORED_MAX: u32 = 1_000;

/// Extension of every request: who is at the other end of the connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The address of the client's end.
    pub address: SocketAddr,
    /// The client's certificate. It was verified; it may have expired since the connection began.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// Whoever makes this call, once the check has let it in.
    pub(crate) caller: Caller,
    link: Arc<Link>,
}

impl Peer {
    /// The last credential of the connection.
    pub(crate) fn remembered(&self) -> &Remembered {
        &self.link.remembered
    }

    /// Notes that the signature of a token was wrong. After many in a row the connection ends: whoever shares it with
    /// others, behind a proxy, goes on over another one.
    pub(crate) fn signature_was_wrong(&self) {
        match self.link.remembered.failed() {
            FAILURES_MAX => self.link.order(Order::Part(ConnectionClosed::Signatures)),
            // It has not heard, or does not care.
            failures if failures >= FAILURES_MAX + IGNORED_MAX => {
                self.link.order(Order::End(ConnectionClosed::Signatures));
            }
            _ => {}
        }
    }
}

/// A request that is being handled.
type Handling = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// The services of a port, whichever they are. They have one type, so that the HTTP libraries are compiled once, in this
/// crate, and not for each port.
#[derive(Clone)]
pub(crate) struct Services(Arc<dyn Fn(Request<Body>) -> Handling + Send + Sync>);

impl Services {
    pub(crate) fn new<S>(services: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        Self(Arc::new(move |request| Box::pin(services.clone().oneshot(request))))
    }
}

/// The services of a port, for one connection.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) services: Services,
    pub(crate) link: Arc<Link>,
    /// Whether the listener can only be reached from this machine.
    pub(crate) is_loopback: bool,
    /// Paths of the calls that take one message. The message must arrive in time.
    pub(crate) single: Arc<[String]>,
    /// The certificate that the client gave.
    pub(crate) certificate: Option<Arc<ClientCertificate>>,
}

impl hyper::service::Service<Request<Incoming>> for Entry {
    type Response = Response<Outbound>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let call = Some(Call::begin(&self.link));
        if self.is_loopback && !host::is_of_this_machine(&request) {
            return Answer { state: State::Refused { answer: Some(refusal(&request)) }, call };
        }
        // There are few paths, and seldom two of the same length, so comparing is cheaper than hashing.
        let is_single = self.single.iter().any(|path| path == request.uri().path());
        let within = is_single.then_some(self.link.census.limits.message);
        let version = request.version();
        let mut request = request.map(|body| Body::new(Inbound::new(body, self.link.clone(), within, version)));
        let peer = Peer {
            address: self.link.peer,
            certificate: self.certificate.clone(),
            caller: Caller::default(),
            link: self.link.clone(),
        };
        request.extensions_mut().insert(peer);
        Answer { state: State::Called { answer: (self.services.0)(request) }, call }
    }
}

/// The answer to a web page whose own name points to this machine.
fn refusal(request: &Request<Incoming>) -> Response<Body> {
    let status =
        Status::permission_denied("unexpected host name: use localhost, a loopback address, or a name without a dot");
    let content_type = request.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if content_type.starts_with(b"application/grpc") {
        return status.into_http();
    }
    crate::http::failure(&status, &[]).map(Body::new)
}

/// An answer that is being made.
pub(crate) struct Answer {
    state: State,
    call: Option<Call>,
}

enum State {
    Called { answer: Handling },
    Refused { answer: Option<Response<Body>> },
}

impl Future for Answer {
    type Output = Result<Response<Outbound>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = match &mut self.state {
            State::Called { answer } => Some(ready!(answer.as_mut().poll(cx))?),
            State::Refused { answer } => answer.take(),
        };
        match answer.zip(self.call.take()) {
            Some((answer, call)) => Poll::Ready(Ok(answer.map(|body| Outbound::new(body, call)))),
            // It was answered already and must not be polled again.
            None => Poll::Pending,
        }
    }
}
