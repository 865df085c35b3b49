//! A short path to the service that most calls of a port are for.
//!
//! Owns the choice between this service and the routes behind it. Must pass requests from pages of other origins, and
//! requests that must be translated, to the routes: they handle both.
//!
//! Routes find a service by its path, behind a boxed copy for each layer. That would take a tenth of the time of a call
//! with one vote.

use std::{
    convert::Infallible,
    task::{Context, Poll, ready},
};

use futures::future::Either;
use http::{HeaderValue, Request, Response, Version, header};
use tonic::{body::Body, server::NamedService, service::Routes};
use tower::Service;

/// A service before the routes. The routes contain it, too.
#[derive(Clone)]
pub(crate) struct Front<F> {
    pub(crate) service: F,
    pub(crate) routes: Routes,
}

/// Whether a request is a plain gRPC call of the service of this name.
fn is_plain_call(request: &Request<Body>, name: &str) -> bool {
    let path = request.uri().path().strip_prefix('/').and_then(|path| path.strip_prefix(name));
    let content_type = request.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    path.is_some_and(|rest| rest.starts_with('/'))
        && request.version() == Version::HTTP_2
        && content_type.starts_with(b"application/grpc")
        && !content_type.starts_with(b"application/grpc-web")
        && !request.headers().contains_key(header::ORIGIN)
}

impl<F> Service<Request<Body>> for Front<F>
where
    F: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<F::Future, <Routes as Service<Request<Body>>>::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        ready!(self.service.poll_ready(cx))?;
        Service::<Request<Body>>::poll_ready(&mut self.routes, cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if is_plain_call(&request, F::NAME) {
            Either::Left(self.service.call(request))
        } else {
            Either::Right(self.routes.call(request))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_calls_of_the_service_pass() {
        let request = |path: &str, version, headers: &[(&str, &str)]| {
            let request = Request::post(format!("http://host{path}")).version(version);
            let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            is_plain_call(&request.body(Body::empty()).unwrap(), "package.Service")
        };
        let (call, grpc) = ("/package.Service/Call", ("content-type", "application/grpc"));
        assert!(request(call, Version::HTTP_2, &[grpc]));
        assert!(request(call, Version::HTTP_2, &[("content-type", "application/grpc+proto")]));
        assert!(!request("/package.Services/Call", Version::HTTP_2, &[grpc]));
        assert!(!request("/vote", Version::HTTP_2, &[grpc]));
        assert!(!request(call, Version::HTTP_11, &[grpc]));
        assert!(!request(call, Version::HTTP_2, &[("content-type", "application/grpc-web+proto")]));
        assert!(!request(call, Version::HTTP_2, &[grpc, ("origin", "https://vote.example")]));
        assert!(!request(call, Version::HTTP_2, &[]));
    }
}
