//! Connections to AWS: how many a service gets, and when one is given up.
//!
//! Owns the HTTP clients of the SDK and the judgement about their connections. The SDK's connector speaks HTTP/2 where the
//! service offers it, has one connection for each client and host, and sends no pings: its builders have no setting for them.
//! So a connection on which nothing arrives any more would take calls until the kernel gives it up, after a quarter of an
//! hour. Here it gets no more calls once one of its calls was not answered in time. Must never repeat a call.

use std::sync::atomic::{AtomicUsize, Ordering};

use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        connection::CaptureSmithyConnection,
        connector_metadata::ConnectorMetadata,
        http::{HttpClient, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector},
        interceptors::{Intercept, context::FinalizerInterceptorContextRef},
        runtime_components::{RuntimeComponents, RuntimeComponentsBuilder},
    },
};
use aws_smithy_types::config_bag::ConfigBag;
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

    /// A client with several connections to a host.
    pub(crate) fn several(&self) -> SharedHttpClient {
        self.custom.clone().unwrap_or_else(|| {
            let clients = std::array::from_fn(|_| self.one());
            SharedHttpClient::new(InTurn { clients, next: AtomicUsize::new(0) })
        })
    }
}

/// Several clients, of which each call takes the next.
#[derive(Debug)]
struct InTurn {
    clients: [SharedHttpClient; CLIENTS_PER_SERVICE],
    next: AtomicUsize,
}

impl InTurn {
    fn next(&self) -> &SharedHttpClient {
        &self.clients[self.next.fetch_add(1, Ordering::Relaxed) % CLIENTS_PER_SERVICE]
    }
}

impl HttpClient for InTurn {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        self.next().http_connector(settings, components)
    }

    fn validate_base_client_config(
        &self,
        components: &RuntimeComponentsBuilder,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        self.clients.iter().try_for_each(|client| client.validate_base_client_config(components, config))
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.clients.first().and_then(HttpClient::connector_metadata)
    }
}

/// Gives up connections on which a call was not answered in time.
///
/// The SDK itself does so only for errors that it reads from an answer. One such call is enough: a new connection costs a
/// handshake, a stalled one costs every call on it. Calls that are under way on the old connection may still be answered there.
/// So a service that is slow as a whole gets at most one new connection for each client within the time limit of a call.
#[derive(Debug)]
pub(crate) struct AbandonStalled;

impl Intercept for AbandonStalled {
    fn name(&self) -> &'static str {
        "AbandonStalled"
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        call: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let Some(Err(error)) = context.output_or_error() else { return Ok(()) };
        if !error.is_timeout_error() && !error.as_connector_error().is_some_and(|error| error.is_timeout()) {
            return Ok(());
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
        Ok(())
    }
}
