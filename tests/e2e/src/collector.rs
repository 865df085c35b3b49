//! A collector of telemetry: OTLP over gRPC.
//!
//! Owns everything that was exported to it. Must never leave anything out, nor say what it means: that is the tests'.

use std::sync::Arc;

use opentelemetry_proto::tonic::collector::{
    logs::v1::{
        ExportLogsServiceRequest, ExportLogsServiceResponse,
        logs_service_server::{LogsService, LogsServiceServer},
    },
    metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
};
use parking_lot::{Mutex, MutexGuard};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// What was exported, in the order in which it came.
#[derive(Debug, Default)]
pub struct Received {
    /// Spans.
    pub traces: Vec<ExportTraceServiceRequest>,
    /// Metrics.
    pub metrics: Vec<ExportMetricsServiceRequest>,
    /// Logs.
    pub logs: Vec<ExportLogsServiceRequest>,
}

/// A collector that runs until it is dropped.
#[derive(Debug)]
pub struct Collector {
    /// Its URL, for the variable `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub endpoint: String,
    received: Arc<Mutex<Received>>,
    serving: JoinHandle<()>,
}

impl Collector {
    /// Starts one on a free port of this machine.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let received = Arc::<Mutex<Received>>::default();
        let services = Services(received.clone());
        let server = Server::builder()
            .add_service(TraceServiceServer::new(services.clone()))
            .add_service(MetricsServiceServer::new(services.clone()))
            .add_service(LogsServiceServer::new(services))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let serving = tokio::spawn(async { server.await.expect("the collector serves") });
        Self { endpoint, received, serving }
    }

    /// What was exported so far.
    pub fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[derive(Clone)]
struct Services(Arc<Mutex<Received>>);

macro_rules! collects {
    ($service:ident, $request:ident, $response:ident, $kind:ident) => {
        #[tonic::async_trait]
        impl $service for Services {
            async fn export(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                self.0.lock().$kind.push(request.into_inner());
                Ok(Response::new(Default::default()))
            }
        }
    };
}

collects!(TraceService, ExportTraceServiceRequest, ExportTraceServiceResponse, traces);
collects!(MetricsService, ExportMetricsServiceRequest, ExportMetricsServiceResponse, metrics);
collects!(LogsService, ExportLogsServiceRequest, ExportLogsServiceResponse, logs);
