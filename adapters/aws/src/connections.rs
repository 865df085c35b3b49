//! Connections to AWS: how many a service gets, and when one is given up.
//!
//! Owns the HTTP clients of the SDK and the judgement about their connections. The SDK's connector speaks HTTP/2 where the
//! service offers it, has one connection for each client and host, and sends no pings: its builders have no setting for them.
//! So a connection on which nothing arrives any more would take calls until the kernel gives it up, after a quarter of an
//! hour. Here it gets no more calls once one of its calls was not answered in time. Must never repeat a call.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        connection::CaptureSmithyConnection,
        connector_metadata::ConnectorMetadata,
        http::{HttpClient, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector},
        interceptors::{
            Intercept,
            context::{BeforeTransmitInterceptorContextRef, FinalizerInterceptorContextRef},
        },
        orchestrator::OrchestratorError,
        runtime_components::{RuntimeComponents, RuntimeComponentsBuilder},
    },
};
use aws_smithy_types::config_bag::{ConfigBag, Storable, StoreReplace};
use parking_lot::RwLock;
use votestream_core::observe::metrics;

/// HTTP clients of each service, which take calls in turn, so that a service has as many connections with HTTP/2. A connection
/// that stalls then holds up a quarter of the calls, and one that is slow does not slow all.
const CLIENTS_PER_SERVICE: usize = 4;

/// Makes HTTP clients that all trust the same authorities.
#[derive(Clone, Debug)]
pub(crate) struct HttpClients {
    /// The client that is used instead of all others.
    custom: Option<SharedHttpClient>,
    tls: TlsContext,
}

impl HttpClients {
    /// Clients that trust these authorities, in PEM, or those of the system. If `custom` is given, it is the only client.
    pub(crate) fn new(custom: Option<SharedHttpClient>, authorities: Option<&str>) -> Self {
        let store = match authorities {
            Some(pem) => TrustStore::empty().with_pem_certificate(pem),
            None => TrustStore::default(),
        };
        // The library checks certificates where it uses them, so that this cannot fail.
        let tls = TlsContext::builder().with_trust_store(store).build().unwrap_or_default();
        Self { custom, tls }
    }

    /// A client with connections of its own.
    pub(crate) fn one(&self) -> SharedHttpClient {
        self.custom.clone().unwrap_or_else(|| {
            let builder = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring));
            builder.tls_context(self.tls.clone()).build_https()
        })
    }
}

/// The connections to one service.
#[derive(Debug)]
pub(crate) struct Connections {
    make: HttpClients,
    current: RwLock<Current>,
    next: AtomicUsize,
    /// Calls that were answered, whatever the answer.
    answered: AtomicU64,
}

#[derive(Debug)]
struct Current {
    clients: [SharedHttpClient; CLIENTS_PER_SERVICE],
    /// How often the clients were replaced.
    generation: u64,
}

impl Connections {
    /// Makes the clients. Nothing is connected yet.
    pub(crate) fn new(make: HttpClients) -> Arc<Self> {
        let current = Current { clients: std::array::from_fn(|_| make.one()), generation: 0 };
        Arc::new(Self { make, current: RwLock::new(current), next: AtomicUsize::new(0), answered: AtomicU64::new(0) })
    }

    /// The client of the SDK that uses these connections.
    pub(crate) fn client(self: &Arc<Self>) -> SharedHttpClient {
        SharedHttpClient::new(InTurn(self.clone()))
    }

    fn moment(&self) -> SentAt {
        SentAt { answered: self.answered.load(Ordering::Relaxed), generation: self.current.read().generation }
    }

    /// Replaces all connections if the service has answered nothing since this moment.
    fn renew_if_silent_since(&self, sent_at: SentAt) {
        if self.answered.load(Ordering::Relaxed) != sent_at.answered {
            return;
        }
        let mut current = self.current.write();
        // Others have waited as long and may have replaced them already.
        if current.generation == sent_at.generation {
            current.generation += 1;
            current.clients = std::array::from_fn(|_| self.make.one());
            tracing::warn!("nothing was answered within the time limit of a call; all connections are opened again");
        }
    }
}

/// What was known when a call was sent.
#[derive(Clone, Copy, Debug)]
struct SentAt {
    answered: u64,
    generation: u64,
}

impl Storable for SentAt {
    type Storer = StoreReplace<Self>;
}

/// Lets each call take the next client.
#[derive(Debug)]
struct InTurn(Arc<Connections>);

impl HttpClient for InTurn {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        let next = self.0.next.fetch_add(1, Ordering::Relaxed) % CLIENTS_PER_SERVICE;
        self.0.current.read().clients[next].http_connector(settings, components)
    }

    fn validate_base_client_config(
        &self,
        components: &RuntimeComponentsBuilder,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        let current = self.0.current.read();
        current.clients.first().map_or(Ok(()), |client| client.validate_base_client_config(components, config))
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.0.current.read().clients.first().and_then(HttpClient::connector_metadata)
    }
}

/// Gives up connections on which a call was not answered in time.
///
/// The SDK itself does so only for errors that it reads from an answer. One such call is enough: a new connection costs a
/// handshake, a stalled one costs every call on it, and a vote has time for two. Calls that are under way on the old connection
/// may still be answered there. If the service has answered nothing at all since the call was sent, its other connections have
/// probably stalled as well, and are given up before each of them has cost a call. A service that is slow as a whole so gets new
/// connections at most once within the time limit of a call.
#[derive(Debug)]
pub(crate) struct AbandonStalled(pub(crate) Arc<Connections>);

impl Intercept for AbandonStalled {
    fn name(&self) -> &'static str {
        "AbandonStalled"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        call: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        call.interceptor_state().store_put(self.0.moment());
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        call: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let is_timeout = |error: &OrchestratorError<_>| {
            error.is_timeout_error() || error.as_connector_error().is_some_and(|error| error.is_timeout())
        };
        match context.output_or_error() {
            Some(Err(error)) if is_timeout(error) => {}
            _ => {
                if context.response().is_some() {
                    self.0.answered.fetch_add(1, Ordering::Relaxed);
                }
                return Ok(());
            }
        }
        metrics::engine_timed_out();
        // There is none if the call was still connecting. Nothing is left to give up then.
        if let Some(connection) = call.load::<CaptureSmithyConnection>().and_then(CaptureSmithyConnection::get) {
            connection.poison();
            tracing::info!(
                from = ?connection.local_addr(),
                to = ?connection.remote_addr(),
                "a call was not answered in time; its connection takes no more calls"
            );
        }
        if let Some(sent_at) = call.load::<SentAt>() {
            self.0.renew_if_silent_since(*sent_at);
        }
        Ok(())
    }
}
