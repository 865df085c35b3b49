//! A listener for those who operate the process: metrics, and whether it lives and serves.
//!
//! Owns its routes, and what is known of the process's phase. It asks for no credential, so it must never show anything
//! that names a voter or a poll, and never share a listener with clients. Nor does it share their places: while they fill
//! all of them, and newcomers wait in the system's queue, metrics are needed most.
//!
//! It answers until the process ends, also while the process drains.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;

use crate::{
    Limits,
    connections::{self, Connections, Services},
    http::{not_found, wrong_method},
};

/// What is known about the process's metrics, as text, for a request with this `Accept`: the content type, and the text.
pub type Exposition = fn(accept: &str) -> (&'static str, String);

/// More than anybody needs who scrapes and probes, and few enough that the descriptors come out of the engines' reserve. A
/// further connection closes the quietest one.
const CONNECTIONS_MAX: u32 = 64;

/// Scrapers and probes are near, and ask at once.
const LIMITS: Limits = Limits {
    connections_max: CONNECTIONS_MAX,
    connections_per_address_max: 0,
    first_request: Duration::from_secs(5),
    message: Duration::from_secs(5),
    // A scraper that comes every minute keeps its connection.
    idle: Duration::from_secs(75),
    stalled_write: Duration::from_secs(10),
    answer_bytes_max: 16 << 20,
    request_bytes_max: 4 << 20,
};

/// How long an answer may take at the end of the process.
const PARTING: Duration = Duration::from_secs(1);

/// A process goes through its phases in this order, and may leave some out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Phase {
    Starting,
    Serving,
    Draining,
    Broken,
}

/// The phase, shared with the routes.
#[derive(Clone, Debug, Default)]
struct Reached(Arc<AtomicU8>);

impl Reached {
    fn reach(&self, phase: Phase) {
        self.0.fetch_max(phase as u8, Ordering::Relaxed);
    }

    fn phase(&self) -> Phase {
        let reached = self.0.load(Ordering::Relaxed);
        let later = [Phase::Broken, Phase::Draining, Phase::Serving];
        later.into_iter().find(|phase| *phase as u8 <= reached).unwrap_or(Phase::Starting)
    }

    /// Whether the process can go on.
    fn health(&self) -> Result<(), &'static str> {
        match self.phase() {
            Phase::Starting | Phase::Serving | Phase::Draining => Ok(()),
            Phase::Broken => Err("a task that must not end has ended; the process ends"),
        }
    }

    /// Whether the process takes calls.
    fn readiness(&self) -> Result<(), &'static str> {
        match self.phase() {
            Phase::Starting => Err("the process starts"),
            Phase::Serving => Ok(()),
            Phase::Draining => Err("the process drains: it takes no more calls"),
            Phase::Broken => Err("a task that must not end has ended; the process ends"),
        }
    }
}

/// The running listener. It ends with the last copy of this.
#[derive(Clone, Debug)]
pub struct Admin {
    address: SocketAddr,
    reached: Reached,
    _end: Arc<DropGuard>,
}

impl Admin {
    /// Answers on the listener from now on: the process starts. Must be called within a runtime.
    ///
    /// # Errors
    ///
    /// If the listener's address cannot be read.
    pub fn open(listener: TcpListener, exposition: Exposition) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (reached, end) = (Reached::default(), CancellationToken::new());
        let services = Services::new(routes(reached.clone(), exposition));
        let until = end.clone();
        tokio::spawn(async move {
            let connections = Connections::of_operators(LIMITS);
            let served = connections::serve(listener, services, [].into(), &connections, &until, PARTING);
            // Whoever watches the process notices. Votes do not depend on it.
            if let Err(error) = served.await {
                tracing::error!(%error, "metrics and health are no longer answered");
            }
        });
        Ok(Self { address, reached, _end: Arc::new(end.drop_guard()) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether others than this machine can reach it.
    pub fn is_exposed(&self) -> bool {
        !self.address.ip().to_canonical().is_loopback()
    }

    /// The process serves.
    pub fn serves(&self) {
        self.reached.reach(Phase::Serving);
    }

    /// The process will serve once connections of this many listeners are accepted.
    pub fn serves_with(&self, connections: &Connections, listeners: usize) {
        let (reached, connections) = (self.reached.clone(), connections.clone());
        tokio::spawn(async move {
            connections.served(listeners).await;
            reached.reach(Phase::Serving);
        });
    }

    /// The process takes no more calls, and finishes those that it has.
    pub fn drains(&self) {
        self.reached.reach(Phase::Draining);
    }

    /// A task has ended that must not: the process will end.
    pub fn breaks(&self) {
        self.reached.reach(Phase::Broken);
    }
}

fn routes(reached: Reached, exposition: Exposition) -> Routes {
    let metrics = async move |headers: HeaderMap| {
        let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
        let (content_type, text) = exposition(accept);
        ([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))], text)
    };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async |State(reached): State<Reached>| answer(reached.health())))
        .route("/readyz", get(async |State(reached): State<Reached>| answer(reached.readiness())))
        .method_not_allowed_fallback(wrong_method)
        .fallback(not_found)
        .with_state(reached);
    Routes::from(router).prepare()
}

fn answer(is_well: Result<(), &'static str>) -> Response {
    let (status, text) = match is_well {
        Ok(()) => (StatusCode::OK, "ok"),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
    };
    (status, [(header::CACHE_CONTROL, "no-store")], format!("{text}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, Response};
    use http_body_util::BodyExt;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        time::timeout,
    };
    use tonic::body::Body;
    use tower::ServiceExt;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn exposition(accept: &str) -> (&'static str, String) {
        ("text/plain", format!("metrics as {accept}"))
    }

    async fn ask(reached: &Reached, method: Method, path: &str) -> (u16, String) {
        let request = Request::builder().method(method).uri(path).header("accept", "x/y").body(Body::empty()).unwrap();
        let answer: Response<Body> = routes(reached.clone(), exposition).oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn each_phase_has_its_answers_and_none_comes_back() {
        let reached = Reached::default();
        let both = async |reached: &Reached| {
            let health = ask(reached, Method::GET, "/healthz").await.0;
            let (readiness, reason) = ask(reached, Method::GET, "/readyz").await;
            (health, readiness, reason)
        };
        assert_eq!(both(&reached).await, (200, 503, "the process starts\n".into()));
        reached.reach(Phase::Serving);
        assert_eq!(both(&reached).await, (200, 200, "ok\n".into()));
        reached.reach(Phase::Draining);
        reached.reach(Phase::Serving);
        assert_eq!(both(&reached).await, (200, 503, "the process drains: it takes no more calls\n".into()));
        reached.reach(Phase::Broken);
        reached.reach(Phase::Draining);
        let (health, readiness, reason) = both(&reached).await;
        assert!(health == 503 && readiness == 503 && reason.contains("must not end"), "{health} {readiness} {reason}");
    }

    #[tokio::test]
    async fn three_paths_are_answered_and_no_other() {
        let reached = Reached::default();
        assert_eq!(ask(&reached, Method::GET, "/metrics").await, (200, "metrics as x/y".into()));
        assert_eq!(ask(&reached, Method::HEAD, "/metrics").await, (200, String::new()));
        for path in ["/", "/metrics/", "/v1/polls", "/vote", "/grpc.health.v1.Health/Check"] {
            let (status, body) = ask(&reached, Method::GET, path).await;
            let body: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert!(status == 404 && body["error"]["message"].is_string(), "{path}: {status} {body}");
        }
        let (status, body) = ask(&reached, Method::POST, "/metrics").await;
        assert!(status == 405 && body.starts_with("{\"error\""), "{status} {body}");
    }

    #[tokio::test]
    async fn it_answers_beside_more_connections_than_it_has_places_and_ends_with_its_owner() {
        let admin = Admin::open(crate::listen("127.0.0.1:0".parse().unwrap()).unwrap(), exposition).unwrap();
        let mut silent = Vec::new();
        for _ in 0..2 * CONNECTIONS_MAX {
            silent.push(timeout(PATIENCE, TcpStream::connect(admin.address())).await.unwrap().unwrap());
        }
        let mut asking = timeout(PATIENCE, TcpStream::connect(admin.address())).await.unwrap().unwrap();
        asking.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut answer = [0; 15];
        timeout(PATIENCE, asking.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        drop(admin);
        let mut rest = Vec::new();
        timeout(PATIENCE, asking.read_to_end(&mut rest)).await.expect("the connection ends").unwrap();
    }

    #[tokio::test]
    async fn it_is_ready_once_all_listeners_are_served() {
        let admin = Admin::open(crate::listen("127.0.0.1:0".parse().unwrap()).unwrap(), exposition).unwrap();
        let connections = Connections::default();
        admin.serves_with(&connections, 2);
        connections.0.listener();
        connections.served(1).await;
        tokio::task::yield_now().await;
        assert_eq!(admin.reached.phase(), Phase::Starting);
        connections.0.listener();
        let ready = async {
            while admin.reached.phase() != Phase::Serving {
                tokio::task::yield_now().await
            }
        };
        timeout(PATIENCE, ready).await.expect("it is ready");
    }
}
