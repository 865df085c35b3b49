//! Sees every administrative call, also those that never reach their handler.
//!
//! Owns the question whether anybody has told the log about a call. Must never look at calls that do not administer:
//! they pass for the price of one comparison.

use std::{
    convert::Infallible,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Either},
};
use http::{Extensions, Method, Request, Response};
use tonic::{Status, server::NamedService};
use tower::{Layer, Service};

use super::AuditLog;
use crate::identity::Caller;

/// Which requests administer: the name of the act, and its poll if the path has one.
pub type Acts = for<'a> fn(&Method, &'a str) -> Option<(&'static str, Option<&'a str>)>;

/// Extension of administrative requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempt(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// Whoever makes it, once its credential was found to be good.
    caller: OnceLock<Caller>,
    /// Whether the log knows of it.
    is_known: AtomicBool,
}

impl Attempt {
    /// Notes who makes a request, before it is decided whether they may.
    pub(crate) fn by(extensions: &Extensions, caller: &Caller) {
        if let Some(attempt) = extensions.get::<Self>() {
            attempt.0.caller.get_or_init(|| caller.clone());
        }
    }

    pub(super) fn caller(extensions: &Extensions) -> Option<Caller> {
        extensions.get::<Self>()?.0.caller.get().cloned()
    }

    /// Notes that the log knows of a request.
    pub(super) fn is_known(extensions: &Extensions) {
        if let Some(attempt) = extensions.get::<Self>() {
            attempt.0.is_known.store(true, Ordering::Relaxed);
        }
    }
}

/// Extension of answers in JSON: the status that they tell.
#[derive(Clone, Debug)]
pub(crate) struct Told(pub(crate) Status);

/// Puts the log around services.
#[derive(Clone, Debug)]
pub(crate) struct AuditLayer {
    pub(crate) log: AuditLog,
    pub(crate) acts: Acts,
}

impl Default for AuditLayer {
    fn default() -> Self {
        Self { log: AuditLog::default(), acts: nothing }
    }
}

fn nothing<'a>(_: &Method, _: &'a str) -> Option<(&'static str, Option<&'a str>)> {
    None
}

impl<S> Layer<S> for AuditLayer {
    type Service = Audited<S>;

    fn layer(&self, service: S) -> Audited<S> {
        Audited { service, layer: self.clone() }
    }
}

/// A service in front of which the log stands.
#[derive(Clone, Debug)]
pub(crate) struct Audited<S> {
    service: S,
    layer: AuditLayer,
}

impl<S: NamedService> NamedService for Audited<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, Q, B> Service<Request<Q>> for Audited<S>
where
    S: Service<Request<Q>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
    Q: Send + 'static,
    B: 'static,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = Either<S::Future, BoxFuture<'static, Result<Response<B>, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        if !self.layer.log.is_on() {
            return Either::Left(self.service.call(request));
        }
        let Some((act, poll)) = (self.layer.acts)(request.method(), request.uri().path()) else {
            return Either::Left(self.service.call(request));
        };
        let poll = poll.map(str::to_owned);
        let attempt = Attempt::default();
        request.extensions_mut().insert(attempt.clone());
        let extensions = request.extensions().clone();
        let (log, answer) = (self.layer.log.clone(), self.service.call(request));
        Either::Right(
            async move {
                let answer = answer.await?;
                if !attempt.0.is_known.load(Ordering::Relaxed) {
                    log.refused(&extensions, act, poll.as_deref(), &status_of(&answer));
                }
                Ok(answer)
            }
            .boxed(),
        )
    }
}

/// The status that an answer tells.
fn status_of<B>(answer: &Response<B>) -> Status {
    let told = || answer.extensions().get::<Told>().map(|told| told.0.clone());
    let http = || Status::unknown(format!("HTTP {}", answer.status().as_u16()));
    Status::from_header_map(answer.headers()).or_else(told).unwrap_or_else(http)
}
