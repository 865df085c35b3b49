//! Services in memory, whose every answer a test decides, over connections that a test can cut.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{DuplexStream, copy_bidirectional, duplex},
    sync::{broadcast, mpsc},
};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server},
};
use votestream_client::v1::{
    CastVoteResponse, CastVotesResponse, GetFinalResultsRequest, GetFinalResultsResponse, GetInterimResultsRequest,
    GetInterimResultsResponse, RecountRequest, RecountResponse, ReleaseResultsRequest, ReleaseResultsResponse,
    StreamVotesResponse, WatchInterimResultsRequest, WatchInterimResultsResponse,
    ingest_service_server::{IngestService, IngestServiceServer},
    results_service_server::{ResultsService, ResultsServiceServer},
};
use votestream_proto::VotesMessage;

/// Bytes that a connection holds each way.
const CONNECTION_BYTES: usize = 64 << 10;

pub(crate) type Answer = Result<StreamVotesResponse, Status>;
pub(crate) type Update = Result<WatchInterimResultsResponse, Status>;
type OnCast = dyn Fn(usize) -> BoxFuture<'static, Result<(), Status>> + Send + Sync;
type OnStream = dyn Fn(usize, Streaming<VotesMessage>, Answers) -> BoxFuture<'static, Option<Status>> + Send + Sync;
type OnWatch = dyn Fn(usize) -> BoxStream<'static, Update> + Send + Sync;

/// The answers of one stream.
pub(crate) type Answers = mpsc::Sender<Answer>;

/// The network between a client and its service.
#[derive(Clone)]
pub(crate) struct Network {
    cut: broadcast::Sender<()>,
    refuses: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    authorizations: Arc<Mutex<Vec<Option<String>>>>,
}

impl Network {
    /// Breaks every connection.
    pub(crate) fn cut(&self) {
        // Nobody hears it if there is no connection.
        self.cut.send(()).ok();
    }

    /// Whether new connections are refused from now on.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::SeqCst);
    }

    /// What each call and each stream said about who calls.
    pub(crate) fn authorizations(&self) -> Vec<Option<String>> {
        self.authorizations.lock().unwrap().clone()
    }

    fn note<T>(&self, request: &Request<T>) {
        let said = request.metadata().get("authorization").map(|said| said.to_str().unwrap().to_owned());
        self.authorizations.lock().unwrap().push(said);
    }

    /// Connections that were ever asked for.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// A network without a service, and the channel over it.
fn network() -> (Network, Channel, mpsc::UnboundedReceiver<io::Result<DuplexStream>>) {
    let (cut, _) = broadcast::channel(1);
    let (accepted, incoming) = mpsc::unbounded_channel();
    let network = Network { cut, refuses: Arc::default(), connections: Arc::default(), authorizations: Arc::default() };
    let connecting = network.clone();
    let connector = tower::service_fn(move |_| {
        connecting.connections.fetch_add(1, Ordering::SeqCst);
        let refused = connecting.refuses.load(Ordering::SeqCst);
        let (mut cut, accepted) = (connecting.cut.subscribe(), accepted.clone());
        async move {
            if refused {
                return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
            }
            let (client, mut near) = duplex(CONNECTION_BYTES);
            let (mut far, server) = duplex(CONNECTION_BYTES);
            tokio::spawn(async move {
                tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => {}
                    _ = cut.recv() => {}
                }
            });
            accepted.send(Ok(server)).map_err(io::Error::other)?;
            Ok(TokioIo::new(client))
        }
    });
    let channel = Endpoint::from_static("http://fake").connect_with_connector_lazy(connector);
    (network, channel, incoming)
}

struct Ingest {
    network: Network,
    cast: Arc<OnCast>,
    stream: Arc<OnStream>,
    casts: AtomicUsize,
    streams: AtomicUsize,
}

#[tonic::async_trait]
impl IngestService for Ingest {
    type StreamVotesStream = Pin<Box<dyn futures::Stream<Item = Answer> + Send>>;

    async fn cast_vote(&self, request: Request<VotesMessage>) -> Result<Response<CastVoteResponse>, Status> {
        self.network.note(&request);
        let call = self.casts.fetch_add(1, Ordering::SeqCst);
        (self.cast)(call).await.map(|()| Response::new(CastVoteResponse {}))
    }

    async fn cast_votes(&self, _: Request<Streaming<VotesMessage>>) -> Result<Response<CastVotesResponse>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn stream_votes(
        &self,
        request: Request<Streaming<VotesMessage>>,
    ) -> Result<Response<Self::StreamVotesStream>, Status> {
        self.network.note(&request);
        let at = self.streams.fetch_add(1, Ordering::SeqCst);
        let (answers, answered) = mpsc::channel(1);
        let handled = (self.stream)(at, request.into_inner(), answers);
        let ended = handled.into_stream().filter_map(|ended| async move { ended.map(Err) });
        // What is handled is handled while answers are read, and its end comes behind the last of them.
        let (last, ends) = mpsc::unbounded_channel();
        tokio::spawn(ended.for_each(move |end| {
            last.send(end).ok();
            async {}
        }));
        let answers = ReceiverStream::new(answered).chain(UnboundedReceiverStream::new(ends));
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Starts an ingest service, which answers each call and handles each stream as it is told; calls and streams are counted from
/// 0. A stream ends when it was handled, with a status if there is one.
fn ingest(cast: Arc<OnCast>, stream: Arc<OnStream>) -> (Network, Channel) {
    let (network, channel, incoming) = network();
    let service =
        Ingest { network: network.clone(), cast, stream, casts: AtomicUsize::new(0), streams: AtomicUsize::new(0) };
    let server = Server::builder().add_service(IngestServiceServer::new(service));
    tokio::spawn(server.serve_with_incoming(UnboundedReceiverStream::new(incoming)));
    (network, channel)
}

/// A service that answers calls with one vote.
pub(crate) fn casts<F>(cast: impl Fn(usize) -> F + Send + Sync + 'static) -> (Network, Channel)
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let stream = |_, _, _| async { Some(Status::unimplemented("not part of this test")) }.boxed();
    ingest(Arc::new(move |call| cast(call).boxed()), Arc::new(stream))
}

/// A service that handles streams.
pub(crate) fn streams<F>(
    stream: impl Fn(usize, Streaming<VotesMessage>, Answers) -> F + Send + Sync + 'static,
) -> (Network, Channel)
where
    F: Future<Output = Option<Status>> + Send + 'static,
{
    let cast = |_| async { Err(Status::unimplemented("not part of this test")) }.boxed();
    ingest(Arc::new(cast), Arc::new(move |at, votes, answers| stream(at, votes, answers).boxed()))
}

struct Results {
    watch: Arc<OnWatch>,
    watches: AtomicUsize,
}

#[tonic::async_trait]
impl ResultsService for Results {
    type WatchInterimResultsStream = BoxStream<'static, Update>;

    async fn watch_interim_results(
        &self,
        _: Request<WatchInterimResultsRequest>,
    ) -> Result<Response<Self::WatchInterimResultsStream>, Status> {
        Ok(Response::new((self.watch)(self.watches.fetch_add(1, Ordering::SeqCst))))
    }

    async fn get_interim_results(
        &self,
        _: Request<GetInterimResultsRequest>,
    ) -> Result<Response<GetInterimResultsResponse>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn get_final_results(
        &self,
        _: Request<GetFinalResultsRequest>,
    ) -> Result<Response<GetFinalResultsResponse>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn recount(&self, _: Request<RecountRequest>) -> Result<Response<RecountResponse>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn release_results(
        &self,
        _: Request<ReleaseResultsRequest>,
    ) -> Result<Response<ReleaseResultsResponse>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }
}

/// A service that shows results.
pub(crate) fn watches(
    watch: impl Fn(usize) -> BoxStream<'static, Update> + Send + Sync + 'static,
) -> (Network, Channel) {
    let (network, channel, incoming) = network();
    let service = Results { watch: Arc::new(watch), watches: AtomicUsize::new(0) };
    let server = Server::builder().add_service(ResultsServiceServer::new(service));
    tokio::spawn(server.serve_with_incoming(UnboundedReceiverStream::new(incoming)));
    (network, channel)
}
