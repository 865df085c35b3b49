//! The server of one port: HTTP/2 limits, health, reflection, and an orderly end within a time limit. HTTP/1.1 is spoken
//! too, for JSON and gRPC-Web.
//!
//! The HTTP/2 windows are not free to choose. Since version 0.4.16, h2 closes a connection that holds too many unread DATA
//! frames of under 256 bytes, which is what a fast stream of one vote a message looks like as soon as the engine stalls.
//! Half of the connection's window is the budget, and each small frame costs 256 bytes less its length. What holds is
//! streams × 3.3 × stream window ≤ connection window / 2; the assertion below keeps the constants that way.

use std::time::Duration;

use futures::FutureExt;
use tokio::net::TcpListener;
use tokio_stream::{StreamExt, wrappers::TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::ServingStatus;

use crate::{ServiceError, Surface};

/// HTTP/2 receive window of a stream.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
/// HTTP/2 receive window of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Most streams of a connection; more calls wait in the client.
const STREAMS_MAX: u32 = 38;

const _: () = assert!(
    STREAMS_MAX as u64 * 33 * STREAM_WINDOW_BYTES as u64 <= CONNECTION_WINDOW_BYTES as u64 / 2 * 10,
    "small DATA frames must fit into h2's budget",
);

/// How often an idle connection is asked whether it still lives, and how long it may take to answer.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainReport {
    /// Every call was answered.
    Complete,
    /// The drain time was over before every call was answered; the rest was cut off.
    TimedOut,
}

/// Serves `surface` with health and reflection (v1 and v1alpha) until `shutdown`; then reports NOT_SERVING, takes no new
/// connection, and gives the calls under way `drain` to end. Handlers that wait watch the same token and finish by themselves.
pub async fn serve(
    service_name: &'static str,
    surface: impl Into<Surface>,
    listener: TcpListener,
    shutdown: CancellationToken,
    drain: Duration,
) -> Result<DrainReport, ServiceError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status(service_name, ServingStatus::Serving).await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(votestream_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let incoming = TcpListenerStream::new(listener).map(|stream| {
        stream.inspect(|stream| {
            // Acknowledgements are small and must not wait for more to come.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY");
            }
        })
    });
    let mut surface: Surface = surface.into();
    let grpc = surface.grpc.add_service(health_service);
    surface.grpc = grpc.add_service(reflection().build_v1()?).add_service(reflection().build_v1alpha()?);
    let draining = shutdown.clone();
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .accept_http1(true)
        .add_routes(surface.into_routes())
        .serve_with_incoming_shutdown(incoming, async move {
            draining.cancelled().await;
            health.set_service_status("", ServingStatus::NotServing).await;
            health.set_service_status(service_name, ServingStatus::NotServing).await;
        });
    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(drain).await;
    };
    tokio::select! {
        ended = server.fuse() => ended.map(|()| DrainReport::Complete).map_err(ServiceError::from),
        () = overdue => {
            tracing::warn!(service_name, ?drain, "calls were still under way at the end of the drain time");
            Ok(DrainReport::TimedOut)
        }
    }
}
