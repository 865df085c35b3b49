//! The edge of the service: finds out which call a request is.
//!
//! Owns the only place that reads the path of a call, and the answer to paths that are no call. Must never read a body:
//! it passes the body on.
//!
//! It replaces the generated service, which needs a decoder, an encoder and their buffers for each call, and copies
//! what arrives. For a single vote this is a tenth of the cost of the call; for streams of small messages it costs more
//! than the votes. `tests/e2e/tests/differential.rs` compares both.

use std::{
    borrow::Cow,
    convert::Infallible,
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tonic::{
    Status,
    body::Body,
    codegen::http::{HeaderMap, Request, Response},
    metadata::MetadataValue,
    server::NamedService,
};
use tower::Service;
use votestream_proto::v1::ingest_service_server::SERVICE_NAME;
use votestream_server::Caller;

use crate::{calls::Calls, ledger::SingleVote};

/// Header of a call that names the compression of its messages, and of an answer that names the supported ones.
const ENCODING: &str = "grpc-encoding";
const ACCEPT_ENCODING: &str = "grpc-accept-encoding";
/// The only supported encoding: messages are not compressed.
const IDENTITY: &str = "identity";

/// `IngestService` over gRPC.
#[derive(Clone)]
pub(crate) struct Edge(pub(crate) Arc<Calls>);

/// The answer to a call.
type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl NamedService for Edge {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<Request<Body>> for Edge {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let calls = self.0.clone();
        let method = request.uri().path().strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE_NAME));
        let call = match method {
            Some("/CastVote") => Call::CastVote,
            Some("/CastVotes") => Call::CastVotes,
            Some("/StreamVotes") => Call::StreamVotes,
            _ => return refuse(Status::unimplemented("")),
        };
        if let Some(status) = compressed(request.headers()) {
            return refuse(status);
        }
        let caller = Caller::of(request.extensions());
        // Keep only the body of the request while the votes are stored: everything that is kept must be moved and held
        // for each call.
        match call {
            Call::CastVote => {
                let vote = SingleVote::of(request.headers());
                let body = request.into_body();
                Box::pin(async move { Ok(calls.cast_vote(vote, &caller, body).await) })
            }
            Call::CastVotes => {
                let session = calls.session(request.headers(), "CastVotes", true);
                let body = request.into_body();
                Box::pin(async move { Ok(calls.cast_votes(session, caller, body).await) })
            }
            Call::StreamVotes => {
                let session = calls.session(request.headers(), "StreamVotes", false);
                Box::pin(ready(Ok(calls.stream_votes(session, caller, request.into_body()))))
            }
        }
    }
}

enum Call {
    CastVote,
    CastVotes,
    StreamVotes,
}

fn refuse(status: Status) -> Answer {
    Box::pin(ready(Ok(status.into_http())))
}

/// The error for compressed messages, in the words of the generated service.
fn compressed(headers: &HeaderMap) -> Option<Status> {
    let encoding = headers.get(ENCODING).filter(|encoding| *encoding != IDENTITY)?;
    let encoding = match encoding.to_str() {
        Ok(encoding) => Cow::Borrowed(encoding),
        Err(_) => format!("{:?}", encoding.as_bytes()).into(),
    };
    let mut status = Status::unimplemented(format!("Content is compressed with `{encoding}` which isn't supported"));
    status.metadata_mut().insert(ACCEPT_ENCODING, MetadataValue::from_static(IDENTITY));
    Some(status)
}
