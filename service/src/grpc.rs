//! The server of one port: HTTP/2 limits, health, reflection, and an orderly end within a time limit. HTTP/1.1 is spoken
//! too, for JSON and gRPC-Web.
//!
//! The HTTP/2 windows are not free to choose. Since version 0.4.16, h2 closes a connection that holds too many unread DATA
//! frames of under 256 bytes, which is what a fast stream of one vote a message looks like as soon as the engine stalls.
//! Half of the connection's window is the budget, and each small frame costs 256 bytes less its length. What holds is
//! streams × 3.3 × stream window ≤ connection window / 2; the assertion below keeps the constants that way.

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

use futures::FutureExt;
use http::{Request, Response};
use tokio::net::{TcpListener, TcpSocket};
use tokio_stream::{StreamExt, wrappers::TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, server::NamedService, service::Routes, transport::Server};
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tonic_reflection::pb;
use tower::Service;

use votestream_core::group::Drain;

use crate::{ServiceError, Surface, front::Front, gather::Gather};

/// HTTP/2 receive window of a stream.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
/// Largest HTTP/2 frame that clients may send: all that fits into the window. What arrives in one piece need not be put
/// together, and costs fewer reads.
const FRAME_BYTES_MAX: u32 = STREAM_WINDOW_BYTES;
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

/// Connections that wait until they are accepted, as far as the system allows. The standard library's 128 overflow when a vote is
/// announced on air: the system drops what comes then, and those clients try again a second later.
const CONNECTIONS_WAITING_MAX: u32 = 4_096;

/// Listens on an address. To be called on a runtime.
///
/// # Errors
///
/// If the address cannot be had.
pub fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart need not wait for connections of before.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(CONNECTIONS_WAITING_MAX)
}

/// How a service ended that was told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainReport {
    /// Every call was answered, and everything that was begun is finished.
    Complete,
    /// Calls were cut off, or work was left to the next owner.
    Incomplete,
}

impl DrainReport {
    /// Of two parts of a service.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match self {
            Self::Complete => other,
            Self::Incomplete => Self::Incomplete,
        }
    }
}

impl From<Drain> for DrainReport {
    fn from(drain: Drain) -> Self {
        match drain {
            Drain::Complete => Self::Complete,
            Drain::Incomplete => Self::Incomplete,
        }
    }
}

/// Serves `surface`, whose gRPC services have these names, with health and reflection (v1 and v1alpha) until `shutdown`; then
/// reports NOT_SERVING, takes no new connection, and gives the calls under way `drain` to end. Handlers that wait watch the same
/// token and finish by themselves. `front` is the one of the services that most calls are for.
pub async fn serve<F>(
    service_names: &[&'static str],
    surface: impl Into<Surface>,
    front: F,
    listener: TcpListener,
    shutdown: CancellationToken,
    drain: Duration,
) -> Result<DrainReport, ServiceError>
where
    F: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService + Clone + Send + 'static,
    F::Future: Send,
{
    serve_behind(service_names, surface.into(), |_| front, listener, shutdown, drain).await
}

/// [`serve`], without a service but health and reflection.
pub async fn serve_health(
    listener: TcpListener,
    shutdown: CancellationToken,
    drain: Duration,
) -> Result<DrainReport, ServiceError> {
    serve_behind(&[], Routes::default().into(), |health| health, listener, shutdown, drain).await
}

/// `front` makes the service that is asked first, of the health service if there is no other.
async fn serve_behind<F>(
    service_names: &[&'static str],
    mut surface: Surface,
    front: impl FnOnce(HealthServer<HealthService>) -> F,
    listener: TcpListener,
    shutdown: CancellationToken,
    drain: Duration,
) -> Result<DrainReport, ServiceError>
where
    F: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService + Clone + Send + 'static,
    F::Future: Send,
{
    let health = HealthReporter::new();
    let health_service = HealthServer::new(HealthService::from_health_reporter(health.clone()));
    let front = front(health_service.clone());
    for name in service_names {
        health.set_service_status(name, ServingStatus::Serving).await;
    }
    let reflection = |version| {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(votestream_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        // The descriptors hold the whole API, of which this port serves a part.
        let others = [tonic_health::pb::health_server::SERVICE_NAME, version];
        service_names.iter().chain(&others).fold(builder, |builder, name| builder.with_service_name(*name))
    };
    let incoming = TcpListenerStream::new(listener).map(|stream| {
        stream.map(|stream| {
            // Acknowledgements are small and must not wait for the client's system.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY");
            }
            Gather::new(stream)
        })
    });
    let grpc = surface.grpc.add_service(health_service);
    let v1 = reflection(pb::v1::server_reflection_server::SERVICE_NAME);
    let v1alpha = reflection(pb::v1alpha::server_reflection_server::SERVICE_NAME);
    surface.grpc = grpc.add_service(v1.build_v1()?).add_service(v1alpha.build_v1alpha()?);
    let (draining, names) = (shutdown.clone(), service_names.to_vec());
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .accept_http1(true)
        .max_frame_size(FRAME_BYTES_MAX)
        .serve_with_incoming_shutdown(
            Front { service: front, routes: surface.into_routes().prepare() },
            incoming,
            async move {
                draining.cancelled().await;
                health.set_service_status("", ServingStatus::NotServing).await;
                for name in names {
                    health.set_service_status(name, ServingStatus::NotServing).await;
                }
            },
        );
    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(drain).await;
    };
    tokio::select! {
        ended = server.fuse() => ended.map(|()| DrainReport::Complete).map_err(ServiceError::from),
        () = overdue => {
            tracing::warn!(?service_names, ?drain, "calls were still under way at the end of the drain time");
            Ok(DrainReport::Incomplete)
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::once;
    use tonic::transport::Channel;
    use tonic_reflection::pb::{
        v1::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        },
        v1alpha,
    };

    use super::*;

    const NAMES: [&str; 2] = ["votestream.v1.PollService", "votestream.v1.ResultsService"];
    const HEALTH: &str = "grpc.health.v1.Health";

    #[tokio::test]
    async fn many_may_connect_before_one_is_accepted() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        for _ in 0..500 {
            let connected = tokio::time::timeout(Duration::from_secs(20), tokio::net::TcpStream::connect(addr)).await;
            waiting.push(connected.expect("the system dropped the connection").unwrap());
        }
    }

    #[tokio::test]
    async fn reflection_lists_what_the_port_serves_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve_behind(
            &NAMES,
            Routes::default().into(),
            |health| health,
            listener,
            shutdown.clone(),
            Duration::from_secs(5),
        ));
        let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();

        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut client = ServerReflectionClient::new(channel.clone());
        let mut answers = client.server_reflection_info(once(request)).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap().message_response;
        let Some(MessageResponse::ListServicesResponse(listed)) = answer else { panic!("{answer:?}") };
        let listed: Vec<_> = listed.service.into_iter().map(|service| service.name).collect();
        assert_eq!(listed, [NAMES[0], NAMES[1], HEALTH, "grpc.reflection.v1.ServerReflection"]);

        let request = v1alpha::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(String::new())),
        };
        let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
        let mut answers = client.server_reflection_info(once(request)).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap().message_response;
        let Some(v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(listed)) = answer else {
            panic!("{answer:?}")
        };
        let listed: Vec<_> = listed.service.into_iter().map(|service| service.name).collect();
        assert_eq!(listed, [NAMES[0], NAMES[1], HEALTH, "grpc.reflection.v1alpha.ServerReflection"]);

        drop((client, answers));
        shutdown.cancel();
        assert_eq!(server.await.unwrap().unwrap(), DrainReport::Complete);
    }
}
