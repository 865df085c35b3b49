//! Serves a port: its own services, health and reflection, and an orderly end within a time limit.
//!
//! Owns how a port is put together. Must never handle a connection: `connections` does that.

use std::{convert::Infallible, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use http::{Request, Response};
use prost::Message;
use prost_types::FileDescriptorSet;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, server::NamedService, service::Routes};
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tonic_reflection::pb;
use tower::{Layer, Service};

use votestream_core::consume::group::Drain;

use crate::{
    ServiceError, Surface,
    audit::AuditLayer,
    connections::{self, Connections, Services},
    deadline::Deadline,
    front::Front,
    identity::CheckLayer,
};

/// Most connections that wait to be accepted, as far as the system allows. The standard library's 128 are too few when
/// a vote is announced on air: the system drops further connections, and those clients try again only a second later.
const CONNECTIONS_WAITING_MAX: u32 = 4_096;

/// Listens on an address. Must be called within a runtime.
///
/// # Errors
///
/// If the address cannot be used.
pub fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // After a restart, do not wait until the old connections have expired.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(CONNECTIONS_WAITING_MAX)
}

/// Serves `surface` with health and reflection (v1 and v1alpha) until
/// `shutdown`. Then reports NOT_SERVING, accepts no new connection, and gives running calls the time `drain` to end.
/// Handlers that wait must watch the same token and finish by themselves. `front` is the service that most calls are
/// for. All listeners of a process share `connections`.
///
/// # Errors
///
/// If the port cannot be put together.
pub async fn serve<F>(
    surface: Surface,
    front: F,
    listener: TcpListener,
    connections: &Connections,
    shutdown: CancellationToken,
    drain: Duration,
) -> Result<Drain, ServiceError>
where
    F: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    F::Future: Send + 'static,
{
    let port = Port::new(surface)?;
    let services = port.behind(front);
    port.serve(services, listener, connections, shutdown, drain).await
}

/// Like [`serve`], with only health and reflection.
///
/// # Errors
///
/// As [`serve`].
pub async fn serve_health(
    listener: TcpListener,
    connections: &Connections,
    shutdown: CancellationToken,
    drain: Duration,
) -> Result<Drain, ServiceError> {
    health_only(Surface::default(), listener, connections, shutdown, drain).await
}

/// Serves a surface whose calls all take the routes, but for those of health.
async fn health_only(
    surface: Surface,
    listener: TcpListener,
    connections: &Connections,
    shutdown: CancellationToken,
    drain: Duration,
) -> Result<Drain, ServiceError> {
    let port = Port::new(surface)?;
    let services = port.behind(port.health_service.clone());
    port.serve(services, listener, connections, shutdown, drain).await
}

/// A port that is put together, whichever service is tried first on it.
struct Port {
    names: Vec<&'static str>,
    health: HealthReporter,
    health_service: HealthServer<HealthService>,
    audit: AuditLayer,
    check: CheckLayer,
    routes: Routes,
}

impl Port {
    fn new(mut surface: Surface) -> Result<Self, ServiceError> {
        let health = HealthReporter::new();
        let health_service = HealthServer::new(HealthService::from_health_reporter(health.clone()));
        let names = std::mem::take(&mut surface.names);
        let reflection = |version| {
            let builder = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(votestream_proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
            // The descriptors describe the whole API, but this port serves only a part of it.
            let others = [tonic_health::pb::health_server::SERVICE_NAME, version];
            names.iter().chain(&others).fold(builder, |builder, name| builder.with_service_name(*name))
        };
        let grpc = surface.grpc.add_service(health_service.clone());
        let v1 = reflection(pb::v1::server_reflection_server::SERVICE_NAME);
        let v1alpha = reflection(pb::v1alpha::server_reflection_server::SERVICE_NAME);
        surface.grpc = grpc.add_service(v1.build_v1()?).add_service(v1alpha.build_v1alpha()?);
        surface.identity.watch();
        surface.quotas.prune();
        let check = CheckLayer::grpc(surface.identity.clone(), surface.quotas.clone(), surface.needs.clone());
        let audit = surface.audit.clone();
        Ok(Self { names, health, health_service, audit, check, routes: surface.into_routes().prepare() })
    }

    /// The services of the port, with `front` before the routes.
    fn behind<F>(&self, front: F) -> Services
    where
        F: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        F::Future: Send + 'static,
    {
        let service = self.audit.layer(self.check.layer(Deadline(front)));
        Services::new(Front { service, routes: self.routes.clone() })
    }

    /// Boxed, so that it is compiled here, and not once more in each crate that awaits it.
    fn serve(
        self,
        services: Services,
        listener: TcpListener,
        connections: &Connections,
        shutdown: CancellationToken,
        drain: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<Drain, ServiceError>> + Send + '_>> {
        let Self { names, health, .. } = self;
        Box::pin(async move {
            for name in &names {
                health.set_service_status(name, ServingStatus::Serving).await;
            }
            let draining = async {
                shutdown.cancelled().await;
                for name in names.iter().chain(&[""]) {
                    health.set_service_status(*name, ServingStatus::NotServing).await;
                }
                Ok(())
            };
            let serving = connections::serve(listener, services, single_messages(), connections, &shutdown, drain);
            let (report, ()) = tokio::try_join!(serving, draining).map_err(ServiceError::Listener)?;
            if report == Drain::Incomplete {
                tracing::warn!(
                    service_names = ?names,
                    ?drain,
                    "calls were still running at the end of the drain time and were cut off"
                );
            }
            Ok(report)
        })
    }
}

/// Paths of all calls of the API and of health whose client sends one message.
fn single_messages() -> Arc<[String]> {
    let sets = [votestream_proto::FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET];
    // The descriptors are built in.
    let files = sets.into_iter().filter_map(|set| FileDescriptorSet::decode(set).ok()).flat_map(|set| set.file);
    let mut paths = Vec::new();
    for file in files {
        for service in &file.service {
            let single = service.method.iter().filter(|method| !method.client_streaming());
            paths.extend(single.map(|method| format!("/{}.{}/{}", file.package(), service.name(), method.name())));
        }
    }
    paths.into()
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
    use crate::http::Part;

    const NAMES: [&str; 2] = ["votestream.v1.PollService", "votestream.v1.ResultsService"];
    const HEALTH: &str = "grpc.health.v1.Health";
    static CONNECTIONS: std::sync::LazyLock<Connections> = std::sync::LazyLock::new(Connections::default);

    #[test]
    fn the_calls_that_take_one_message_are_known() {
        let paths = single_messages();
        for single in ["CastVote", "GetPoll", "WatchInterimResults", "Check", "Watch"] {
            assert!(paths.iter().any(|path| path.ends_with(&format!("/{single}"))), "{single}: {paths:?}");
        }
        assert!(paths.iter().all(|path| !path.ends_with("/StreamVotes") && !path.ends_with("/CastVotes")), "{paths:?}");
    }

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
        let server = tokio::spawn(health_only(
            Surface::new([Part { names: &NAMES, ..Part::default() }]),
            listener,
            &CONNECTIONS,
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
        assert_eq!(server.await.unwrap().unwrap(), Drain::Complete);
    }
}
