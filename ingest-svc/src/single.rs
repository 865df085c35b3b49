//! CastVote: a call of one vote, read and answered past tonic.
//!
//! Owns what such a call looks like on the wire. Must never take a call whose messages are compressed: tonic says what it thinks
//! of that.
//!
//! For tonic a call of one message is a stream of one, with a decoder, an encoder and their buffers. Around a single vote, that
//! is a tenth of the call.

use std::{
    convert::Infallible,
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http_body_util::{BodyExt, Full};
use tonic::{
    Status,
    body::Body,
    codegen::{
        Bytes,
        http::{HeaderMap, HeaderValue, Request, Response, header},
    },
    metadata::GRPC_CONTENT_TYPE,
    server::NamedService,
};
use tower::Service;
use votestream_proto::Frames;

use crate::{
    inbound::Inbound,
    ledger::SingleVote,
    rpc::{Ingest, inbound_error, malformed},
};

/// The method.
const METHOD: &str = "/votestream.v1.IngestService/CastVote";
/// Header of a call that names a compression.
const ENCODING: &str = "grpc-encoding";
/// A message without content in its frame: not compressed, of length 0.
const EMPTY_MESSAGE: &[u8] = &[0; 5];

/// Takes calls of one vote from the generated service.
#[derive(Clone)]
pub(crate) struct SingleVotes<S> {
    pub(crate) ingest: Arc<Ingest>,
    pub(crate) rest: S,
}

/// The answer to a call.
type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S: NamedService> NamedService for SingleVotes<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for SingleVotes<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = Answer>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.rest.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        if request.uri().path() != METHOD || request.headers().contains_key(ENCODING) {
            return self.rest.call(request);
        }
        let (ingest, vote) = (self.ingest.clone(), SingleVote::of(request.headers()));
        // Without the rest of the request: what is kept while the vote is on its way is moved and held for each call.
        let inbound = Inbound::new(request.into_body());
        Box::pin(async move {
            let cast = async { ingest.cast(vote, read(inbound).await?).await };
            Ok(cast.await.map_or_else(Status::into_http, |()| stored()))
        })
    }
}

/// The message of a call.
async fn read(mut inbound: Inbound) -> Result<Frames, Status> {
    let failed = |status: Status| inbound_error(&status, &"the message");
    let message = inbound.next().await.map_err(failed)?;
    let message = message.ok_or_else(|| malformed(0, "vote is missing"))?;
    if !message.is_one() || (!inbound.has_ended() && inbound.next().await.map_err(failed)?.is_some()) {
        return Err(malformed(1, "the call takes one message"));
    }
    Ok(message)
}

/// The answer to a vote that is durable: a CastVoteResponse, which has no fields.
fn stored() -> Response<Body> {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    let body = Full::new(Bytes::from_static(EMPTY_MESSAGE)).with_trailers(ready(Some(Ok(trailers))));
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}
