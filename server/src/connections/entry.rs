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
use pin_project_lite::pin_project;
use tonic::{Status, body::Body};
use tower::{Service, ServiceExt, util::Oneshot};

use super::{
    host,
    inbound::Inbound,
    link::{Call, Link},
    outbound::Outbound,
};
use crate::{
    ClientCertificate,
    identity::{Caller, Remembered},
};

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
}

/// The services of a port, for one connection.
#[derive(Clone)]
pub(crate) struct Entry<S> {
    pub(crate) services: S,
    pub(crate) link: Arc<Link>,
    /// Whether the listener can only be reached from this machine.
    pub(crate) is_loopback: bool,
    /// Paths of the calls that take one message. The message must arrive in time.
    pub(crate) single: Arc<[String]>,
    /// The certificate that the client gave.
    pub(crate) certificate: Option<Arc<ClientCertificate>>,
}

impl<S> hyper::service::Service<Request<Incoming>> for Entry<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    type Response = Response<Outbound>;
    type Error = Infallible;
    type Future = Answer<S>;

    fn call(&self, request: Request<Incoming>) -> Answer<S> {
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
        Answer { state: State::Called { answer: self.services.clone().oneshot(request) }, call }
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

pin_project! {
    /// An answer that is being made.
    pub(crate) struct Answer<S: Service<Request<Body>>> {
        #[pin]
        state: State<S>,
        call: Option<Call>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S: Service<Request<Body>>> {
        Called { #[pin] answer: Oneshot<S, Request<Body>> },
        Refused { answer: Option<Response<Body>> },
    }
}

impl<S> Future for Answer<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Output = Result<Response<Outbound>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = match this.state.project() {
            StateProjection::Called { answer } => Some(ready!(answer.poll(cx))?),
            StateProjection::Refused { answer } => answer.take(),
        };
        match answer.zip(this.call.take()) {
            Some((answer, call)) => Poll::Ready(Ok(answer.map(|body| Outbound::new(body, call)))),
            // It was answered already and must not be polled again.
            None => Poll::Pending,
        }
    }
}
