//! The edge of AWS as it is on a bad day: a server with TLS and HTTP/2 (or without, over HTTP/1.1) before a stand-in.
//!
//! Owns connections that stall, and answers that are replaced, cut, late, empty or refused, each counted. It asks the stand-in
//! itself about everything else. Faults are chosen by counting calls, not by chance, so that a test repeats itself. It must not
//! do what AWS and proxies before it never do: a refused call has no effect, a cut or late answer comes after the effect.
//!
//! Processes reach it through `AWS_ENDPOINT_URL_KINESIS` and `AWS_ENDPOINT_URL_DYNAMODB`; with TLS, `SSL_CERT_FILE` names the
//! file with [`Authority::pem`].

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use parking_lot::Mutex;
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, pem::PemObject},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use crate::tls::Authority;

/// What the edge does to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EdgeFault {
    /// Refuses the call with this status and code. It has no effect.
    Refuse(u16, &'static str),
    /// The call takes effect, and the answer is this status and code.
    FailAfter(u16, &'static str),
    /// The call takes effect, and the second half of the answer is missing.
    Cut,
    /// The call takes effect, and the answer is 200 with nothing in it.
    Empty,
    /// The call takes effect, and the answer comes after so many milliseconds.
    Late(u64),
}

impl EdgeFault {
    /// Credentials that AWS does not know for a moment.
    pub const BLINK: Self = Self::Refuse(400, "UnrecognizedClientException");
    /// A call that was throttled as a whole.
    pub const THROTTLED: Self = Self::Refuse(400, "ThrottlingException");
}

/// Which calls a fault strikes.
struct Rule {
    fault: EdgeFault,
    /// Only calls of this operation; `None` means all.
    operation: Option<&'static str>,
    /// Every so many calls. 1 means each.
    every: u64,
    /// How often the fault happens before the rule ends.
    left: u64,
    /// Calls that the rule has seen.
    seen: u64,
}

/// One budget of calls that all clients share, as an account's limit is.
struct SharedBucket {
    operation: &'static str,
    code: &'static str,
    per_second: f64,
    tokens: f64,
    filled_at: Instant,
}

impl SharedBucket {
    fn take(&mut self) -> bool {
        let now = Instant::now();
        let more = (now - self.filled_at).as_secs_f64() * self.per_second;
        (self.tokens, self.filled_at) = ((self.tokens + more).min(self.per_second), now);
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

/// A connection of a client, as far as it can be stalled.
#[derive(Default)]
struct Line {
    stalled: AtomicBool,
    answers: AtomicU64,
}

#[derive(Default)]
struct Shared {
    rules: Mutex<Vec<Rule>>,
    bucket: Mutex<Option<SharedBucket>>,
    faults: Mutex<BTreeMap<EdgeFault, u64>>,
    calls: Mutex<BTreeMap<String, u64>>,
    callers: Mutex<BTreeSet<String>>,
    by_name: AtomicU64,
    by_arn: AtomicU64,
    throttled: AtomicU64,
    opened: AtomicU64,
    lines: Mutex<Vec<Weak<Line>>>,
}

/// A running edge. Ends when it is dropped.
pub struct AwsEdge {
    /// Its URL.
    pub url: String,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

impl AwsEdge {
    /// Starts an edge before the stand-in at this URL, with TLS and HTTP/2.
    ///
    /// # Panics
    ///
    /// If no port can be had.
    pub async fn tls(authority: &Authority, upstream: &str) -> Self {
        let made = authority.server();
        let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes()).unwrap();
        let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let mut config = builder.with_single_cert(vec![made.der()], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self::start(Some(TlsAcceptor::from(Arc::new(config))), upstream).await
    }

    /// Starts an edge before the stand-in at this URL, without TLS: over HTTP/1.1.
    ///
    /// # Panics
    ///
    /// If no port can be had.
    pub async fn plain(upstream: &str) -> Self {
        Self::start(None, upstream).await
    }

    async fn start(tls: Option<TlsAcceptor>, upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let shared = Arc::<Shared>::default();
        let upstream = upstream.strip_prefix("http://").expect("a stand-in speaks HTTP without TLS").parse().unwrap();
        let edge =
            Edge { upstream, client: Client::builder(TokioExecutor::new()).build_http(), shared: shared.clone() };
        let task = tokio::spawn(accept(listener, tls, edge));
        Self { url, shared, _task: AbortOnDropHandle::new(task) }
    }

    /// Stops reading and writing every connection that is open, without closing one, and says how many of them had answered a
    /// call before. New connections work.
    pub fn stall(&self) -> usize {
        let mut lines = self.shared.lines.lock();
        let open: Vec<_> = std::mem::take(&mut *lines).iter().filter_map(Weak::upgrade).collect();
        open.iter().for_each(|line| line.stalled.store(true, Ordering::Release));
        open.iter().filter(|line| line.answers.load(Ordering::Relaxed) > 0).count()
    }

    /// Strikes every so many calls of an operation, or of all, until [`AwsEdge::calm`].
    pub fn every(&self, calls: u64, operation: Option<&'static str>, fault: EdgeFault) {
        self.rule(Rule { fault, operation, every: calls.max(1), left: u64::MAX, seen: 0 });
    }

    /// Strikes the next so many calls of an operation, or of all.
    pub fn next(&self, calls: u64, operation: Option<&'static str>, fault: EdgeFault) {
        self.rule(Rule { fault, operation, every: 1, left: calls, seen: 0 });
    }

    /// Lets all clients together make so many calls of an operation a second, and refuses the others with this code.
    pub fn share_bucket(&self, operation: &'static str, per_second: u32, code: &'static str) {
        let per_second = f64::from(per_second);
        let bucket = SharedBucket { operation, code, per_second, tokens: per_second, filled_at: Instant::now() };
        *self.shared.bucket.lock() = Some(bucket);
    }

    /// Ends all faults but stalled connections.
    pub fn calm(&self) {
        self.shared.rules.lock().clear();
        *self.shared.bucket.lock() = None;
    }

    fn rule(&self, rule: Rule) {
        self.shared.rules.lock().push(rule);
    }

    /// How often this fault has struck.
    pub fn count(&self, fault: EdgeFault) -> u64 {
        self.shared.faults.lock().get(&fault).copied().unwrap_or(0)
    }

    /// How many calls the shared bucket has refused.
    pub fn throttled(&self) -> u64 {
        self.shared.throttled.load(Ordering::Relaxed)
    }

    /// How many calls of this operation came.
    pub fn calls(&self, operation: &str) -> u64 {
        self.shared.calls.lock().get(operation).copied().unwrap_or(0)
    }

    /// How many connections were opened.
    pub fn opened(&self) -> u64 {
        self.shared.opened.load(Ordering::Relaxed)
    }

    /// The ids of the access keys that signed calls. The edge checks no signature.
    pub fn callers(&self) -> BTreeSet<String> {
        self.shared.callers.lock().clone()
    }

    /// How many calls named a stream by its name, and how many by its ARN.
    pub fn named(&self) -> (u64, u64) {
        (self.shared.by_name.load(Ordering::Relaxed), self.shared.by_arn.load(Ordering::Relaxed))
    }
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

#[derive(Clone)]
struct Edge {
    upstream: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    shared: Arc<Shared>,
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, edge: Edge) {
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let (tls, edge) = (tls.clone(), edge.clone());
        edge.shared.opened.fetch_add(1, Ordering::Relaxed);
        let line = Arc::<Line>::default();
        edge.shared.lines.lock().push(Arc::downgrade(&line));
        tokio::spawn(async move {
            let socket = StallingSocket { socket, line: line.clone() };
            let service = hyper::service::service_fn(move |request| {
                let (edge, line) = (edge.clone(), line.clone());
                async move {
                    let answer = edge.answer(request).await;
                    line.answers.fetch_add(1, Ordering::Relaxed);
                    Ok::<_, Infallible>(answer)
                }
            });
            let server = auto::Builder::new(TokioExecutor::new());
            // An error here is a client that has gone.
            match tls {
                None => server.serve_connection(TokioIo::new(socket), service).await.ok(),
                Some(tls) => match tls.accept(socket).await {
                    Ok(socket) => server.serve_connection(TokioIo::new(socket), service).await.ok(),
                    Err(_) => None,
                },
            }
        });
    }
}

impl Edge {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        *self.shared.calls.lock().entry(operation.clone()).or_default() += 1;
        let signed = request.headers().get(header::AUTHORIZATION).and_then(|signed| signed.to_str().ok());
        let signed =
            signed.and_then(|signed| signed.split_once("Credential=")).and_then(|(_, key)| key.split_once('/'));
        if let Some((key, _)) = signed {
            self.shared.callers.lock().insert(key.to_owned());
        }
        let fault = self.draw(&operation);
        match fault {
            Some(EdgeFault::Refuse(status, code)) => return refusal(status, code),
            // The answer is not read before the call took effect.
            Some(EdgeFault::FailAfter(status, code)) => {
                self.forward(request).await;
                return refusal(status, code);
            }
            _ => {}
        }
        if let Some(code) = self.throttle(&operation) {
            return refusal(400, code);
        }
        let answer = self.forward(request).await;
        match fault {
            Some(EdgeFault::Cut) => cut(answer).await,
            Some(EdgeFault::Empty) => {
                answer.into_body().collect().await.ok();
                Response::new(body(Bytes::new()))
            }
            Some(EdgeFault::Late(ms)) => {
                let (head, content) = answer.into_parts();
                let content = content.collect().await.map(|all| all.to_bytes()).unwrap_or_default();
                sleep(Duration::from_millis(ms)).await;
                Response::from_parts(head, body(content))
            }
            _ => answer,
        }
    }

    fn draw(&self, operation: &str) -> Option<EdgeFault> {
        let mut rules = self.shared.rules.lock();
        let mut drawn = None;
        for rule in rules.iter_mut().filter(|rule| rule.operation.is_none_or(|only| only == operation)) {
            rule.seen += 1;
            if drawn.is_none() && rule.seen % rule.every == 0 {
                rule.left -= 1;
                drawn = Some(rule.fault);
            }
        }
        rules.retain(|rule| rule.left > 0);
        if let Some(fault) = drawn {
            *self.shared.faults.lock().entry(fault).or_default() += 1;
        }
        drawn
    }

    fn throttle(&self, operation: &str) -> Option<&'static str> {
        let mut bucket = self.shared.bucket.lock();
        let bucket = bucket.as_mut().filter(|bucket| bucket.operation == operation)?;
        if bucket.take() {
            return None;
        }
        self.shared.throttled.fetch_add(1, Ordering::Relaxed);
        Some(bucket.code)
    }

    /// Asks the stand-in. The answer is 503 if that does not work.
    async fn forward(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, content) = request.into_parts();
        // From a task of its own: the call takes effect even if the client does not wait.
        let (edge, path) = (self.clone(), head.uri.path().to_owned());
        let asked = tokio::spawn(async move {
            let content = content.collect().await.ok()?.to_bytes();
            let mut request = Request::builder().method(head.method).uri(format!("http://{}{path}", edge.upstream));
            *request.headers_mut()? = headers(&head.headers);
            let content = edge.by_name(content);
            let answer = edge.client.request(request.body(Full::new(content)).ok()?).await.ok()?;
            let (mut head, content) = answer.into_parts();
            // Of HTTP/1.1, and not allowed in HTTP/2.
            for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::HeaderName::from_static("keep-alive")] {
                head.headers.remove(name);
            }
            head.version = http::Version::default();
            Some(Response::from_parts(head, content.map_err(io::Error::other).boxed_unsync()))
        });
        asked.await.ok().flatten().unwrap_or_else(|| refusal(503, "ServiceUnavailable"))
    }

    /// Gives the stand-in the stream's name instead of its ARN, since it knows the ARN only in calls about consumers.
    fn by_name(&self, content: Bytes) -> Bytes {
        let Ok(Value::Object(mut call)) = serde_json::from_slice(&content) else { return content };
        if call.contains_key("StreamName") {
            self.shared.by_name.fetch_add(1, Ordering::Relaxed);
        }
        let Some(arn) = call.get("StreamARN").and_then(Value::as_str).map(ToOwned::to_owned) else { return content };
        self.shared.by_arn.fetch_add(1, Ordering::Relaxed);
        if call.contains_key("ConsumerName") {
            return content;
        }
        call.remove("StreamARN");
        if let Some((_, name)) = arn.rsplit_once('/')
            && !call.contains_key("ShardIterator")
        {
            call.insert("StreamName".into(), json!(name));
        }
        Value::Object(call).to_string().into()
    }
}

/// The headers of a call as the stand-in gets them.
fn headers(from: &HeaderMap) -> HeaderMap<HeaderValue> {
    let mut headers = from.clone();
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::HOST);
    headers
}

fn body(content: Bytes) -> Body {
    Full::new(content).map_err(|never| match never {}).boxed_unsync()
}

fn refusal(status: u16, code: &str) -> Response<Body> {
    let text = json!({"__type": code, "message": "by the edge of a test"}).to_string();
    let mut response = Response::new(body(text.into()));
    *response.status_mut() = StatusCode::from_u16(status).expect("it is a status");
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-amz-json-1.1"));
    response
}

/// The first half of an answer. Then its stream is reset, or its connection closed.
async fn cut(answer: Response<Body>) -> Response<Body> {
    let (head, content) = answer.into_parts();
    let content = content.collect().await.map(|all| all.to_bytes()).unwrap_or_default();
    let half = content.slice(..content.len() / 2);
    let broken = || Err(io::Error::from(io::ErrorKind::ConnectionReset));
    let frames = stream::iter([Ok(Frame::data(half)), broken()]).then(|frame| async {
        // The half leaves before the reset overtakes it.
        tokio::task::yield_now().await;
        frame
    });
    Response::from_parts(head, StreamBody::new(frames).boxed_unsync())
}

/// A socket that can be made to stand still.
struct StallingSocket {
    socket: TcpStream,
    line: Arc<Line>,
}

impl StallingSocket {
    /// Whether nothing may happen on it any more. Nobody wakes its task then; the runtime keeps it, and so the socket, until
    /// the end of the test.
    fn stands(&self) -> bool {
        self.line.stalled.load(Ordering::Acquire)
    }
}

impl AsyncRead for StallingSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.stands() { Poll::Pending } else { Pin::new(&mut self.socket).poll_read(cx, into) }
    }
}

impl AsyncWrite for StallingSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.stands() { Poll::Pending } else { Pin::new(&mut self.socket).poll_write(cx, bytes) }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stands() { Poll::Pending } else { Pin::new(&mut self.socket).poll_flush(cx) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stands() { Poll::Pending } else { Pin::new(&mut self.socket).poll_shutdown(cx) }
    }
}
