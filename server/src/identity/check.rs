//! The check in front of every route.
//!
//! Owns which routes need no credential, and the answer to those who have none. Must stand behind the answer to other
//! pages' preflights, and behind the translation of gRPC-Web, so that everybody can read a refusal. Must never read a
//! body.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::Either;
use http::{HeaderValue, Request, Response, header};
use tokio::sync::watch;
use tonic::{Status, server::NamedService};
use tower::{Layer, Service};
use votestream_core::observe::metrics;

use super::{
    Action, Identity,
    caller::{Caller, Denied},
    verify::{NotYet, verify},
};
use crate::{
    audit::Attempt,
    connections::Peer,
    http::failure,
    quotas::{Exceeded, Quotas},
};

/// How long a call waits for the keys of its token's issuer.
const KEYS_PATIENCE: Duration = Duration::from_secs(5);

/// What the callers of a route need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: the route tells nothing and changes nothing.
    Nothing,
    /// A right for some poll. The service checks for which.
    Some(Action),
    /// A right to vote in some poll, as oneself or for others.
    Voting,
}

/// What the callers of each gRPC method need. A method that is not listed is closed.
pub type Needs = &'static [(&'static str, Need)];

/// Services of every port that need no credential: load balancers ask for health, and tools for the methods.
const OPEN: [&str; 2] = ["/grpc.health.v1.Health/", "/grpc.reflection."];

/// Where the check stands.
#[derive(Clone, Debug)]
enum Place {
    /// In front of gRPC, whose methods need these rights.
    Grpc(Arc<[(&'static str, Need)]>),
    /// In front of JSON, whose handlers check the rights before they read a body.
    Json,
}

/// Puts the check in front of services.
#[derive(Clone, Debug)]
pub(crate) struct CheckLayer {
    identity: Identity,
    quotas: Quotas,
    place: Place,
}

impl CheckLayer {
    pub(crate) fn grpc(identity: Identity, quotas: Quotas, needs: Arc<[(&'static str, Need)]>) -> Self {
        Self { identity, quotas, place: Place::Grpc(needs) }
    }

    pub(crate) fn json(identity: Identity, quotas: Quotas) -> Self {
        Self { identity, quotas, place: Place::Json }
    }
}

impl<S> Layer<S> for CheckLayer {
    type Service = Check<S>;

    fn layer(&self, service: S) -> Check<S> {
        Check { service, layer: self.clone() }
    }
}

/// A service behind the check.
#[derive(Clone, Debug)]
pub(crate) struct Check<S> {
    service: S,
    layer: CheckLayer,
}

impl<S: NamedService> NamedService for Check<S> {
    const NAME: &'static str = S::NAME;
}

/// Why a call does not go on.
enum Refused {
    Denied(Denied),
    Exceeded(Exceeded),
}

/// Why a call does not go on now.
enum Halt {
    Refused(Refused),
    /// See [`NotYet::Wait`].
    Wait(watch::Receiver<u64>),
}

impl From<NotYet> for Halt {
    fn from(not_yet: NotYet) -> Self {
        match not_yet {
            NotYet::Denied(denied) => denied.into(),
            NotYet::Wait(answers) => Self::Wait(answers),
        }
    }
}

impl From<Denied> for Halt {
    fn from(denied: Denied) -> Self {
        Self::Refused(Refused::Denied(denied))
    }
}

impl From<Exceeded> for Halt {
    fn from(exceeded: Exceeded) -> Self {
        Self::Refused(Refused::Exceeded(exceeded))
    }
}

impl NotYet {
    /// Counts a credential that does not count, and holds wrong signatures against its connection.
    fn note(&self, peer: Option<&Peer>) {
        let Self::Denied(denied) = self else { return };
        metrics::denied(denied.reason);
        if let (metrics::Denial::Signature | metrics::Denial::NotChecked, Some(peer)) = (denied.reason, peer) {
            peer.signature_was_wrong();
        }
    }
}

/// A body that can hold a refusal.
pub(crate) trait Refusal: Default + Sized {
    fn of(refusal: axum::response::Response) -> Response<Self>;
}

impl Refusal for tonic::body::Body {
    fn of(refusal: axum::response::Response) -> Response<Self> {
        refusal.map(Self::new)
    }
}

impl Refusal for axum::body::Body {
    fn of(refusal: axum::response::Response) -> Response<Self> {
        refusal
    }
}

impl CheckLayer {
    /// What the caller of a path needs. `None` if the path is closed.
    fn need(&self, path: &str) -> Option<Need> {
        match &self.place {
            Place::Json => Some(Need::Nothing),
            Place::Grpc(_) if OPEN.iter().any(|open| path.starts_with(open)) => Some(Need::Nothing),
            Place::Grpc(needs) => needs.iter().find(|(known, _)| *known == path).map(|(_, need)| *need),
        }
    }

    /// Whether a route that needs this is open to everybody, whatever credential comes along.
    fn is_open(&self, need: Option<Need>) -> bool {
        matches!(self.place, Place::Grpc(_)) && need == Some(Need::Nothing)
    }

    /// Whether a caller has what a path needs.
    fn admit(caller: &Caller, need: Option<Need>) -> Result<(), Denied> {
        match need {
            Some(Need::Nothing) => Ok(()),
            Some(Need::Some(action)) => caller.require_some(action),
            Some(Need::Voting) => caller.require_voting(),
            // There is no such method, which the service says; or nobody has said who may call it.
            None => caller.require_some(Action::Manage),
        }
    }

    /// Counts a call against the limit of its address. This comes before everything that costs more.
    fn count<B>(&self, request: &Request<B>, need: Option<Need>) -> Result<(), Exceeded> {
        match request.extensions().get::<Peer>() {
            Some(peer) if !self.is_open(need) => self.quotas.call_from(peer.address, request.headers()),
            Some(_) | None => Ok(()),
        }
    }

    /// Finds out who calls, and puts that into the request.
    fn mark<B>(&self, request: &mut Request<B>, need: Option<Need>) -> Result<(), Halt> {
        let Some(inner) = &self.identity.0 else {
            if let Some(peer) = request.extensions_mut().get_mut::<Peer>() {
                peer.caller = Caller::everybody();
            }
            Attempt::by(request.extensions(), &Caller::everybody());
            return Ok(());
        };
        if self.is_open(need) {
            return Ok(());
        }
        let peer = request.extensions().get::<Peer>();
        let certificate = peer.and_then(|peer| peer.certificate.as_deref());
        let verified = verify(inner, request.headers(), certificate, peer.map(Peer::remembered));
        let mut caller = verified.inspect_err(|not_yet| not_yet.note(peer))?;
        Attempt::by(request.extensions(), &caller);
        caller.call(&self.quotas)?;
        Self::admit(&caller, need)?;
        if let Some(peer) = request.extensions_mut().get_mut::<Peer>() {
            peer.caller = caller;
        }
        Ok(())
    }

    /// The answer to a caller that is not let in.
    fn refuse<B: Refusal>(&self, refused: Refused) -> Response<B> {
        let (status, challenge) = match refused {
            Refused::Denied(denied) => {
                let challenge = (denied.code() == tonic::Code::Unauthenticated).then(|| challenge(&denied));
                (Status::from(denied), challenge)
            }
            Refused::Exceeded(exceeded) => (Status::from(exceeded), None),
        };
        let mut response = match self.place {
            Place::Grpc(_) => status.into_http(),
            Place::Json => B::of(failure(&status, &[])),
        };
        if let Some(challenge) = challenge {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// The value of WWW-Authenticate (RFC 6750, section 3).
fn challenge(denied: &Denied) -> HeaderValue {
    let text = if denied.reason == metrics::Denial::Missing {
        "Bearer realm=\"votestream\"".to_owned()
    } else {
        // A quoted text has neither quotes nor backslashes in it.
        let message = denied.message.replace(['"', '\\'], "'");
        format!("Bearer realm=\"votestream\", error=\"invalid_token\", error_description=\"{message}\"")
    };
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("Bearer realm=\"votestream\""))
}

impl<S, Q, B> Service<Request<Q>> for Check<S>
where
    S: Service<Request<Q>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    Q: Send + 'static,
    B: Refusal + Send + 'static,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = Either<S::Future, Either<Ready<Result<Response<B>, Infallible>>, Waiting<B>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let need = self.layer.need(request.uri().path());
        let counted = self.layer.count(&request, need).map_err(Halt::from);
        let marked = counted.and_then(|()| self.layer.mark(&mut request, need));
        match marked {
            Ok(()) => Either::Left(self.service.call(request)),
            Err(Halt::Refused(refused)) => Either::Right(Either::Left(ready(Ok(self.layer.refuse(refused))))),
            Err(Halt::Wait(mut answers)) => {
                let (layer, mut service) = (self.layer.clone(), self.service.clone());
                Either::Right(Either::Right(Box::pin(async move {
                    // If the keys do not come in time, the second look says so.
                    drop(tokio::time::timeout(KEYS_PATIENCE, answers.changed()).await);
                    match layer.mark(&mut request, need) {
                        Ok(()) => {
                            std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
                            service.call(request).await
                        }
                        Err(Halt::Refused(refused)) => Ok(layer.refuse(refused)),
                        Err(Halt::Wait(_)) => {
                            let message = "the keys of the token's issuer cannot be read at the moment";
                            let denied = Denied::new(metrics::Denial::KeysUnavailable, message);
                            metrics::denied(denied.reason);
                            Ok(layer.refuse(Refused::Denied(denied)))
                        }
                    }
                })))
            }
        }
    }
}

/// The answer to a call that waits for keys.
type Waiting<B> = Pin<Box<dyn Future<Output = Result<Response<B>, Infallible>> + Send>>;
