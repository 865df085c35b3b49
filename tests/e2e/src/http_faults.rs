//! Injects faults between the AWS SDK and the stand-ins, at the SDK's own HTTP connector. Everything above it is the
//! real code.
//!
//! Owns an HTTP client that fails on purpose, as a seed decides, and the count of each kind of fault. It must not do
//! what Kinesis and DynamoDB never do: an entry that is reported as throttled has no effect, and a copy of a request
//! arrives later, as after a retry by a proxy.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use aws_smithy_runtime_api::{
    client::{
        http::{
            HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
            SharedHttpConnector,
        },
        orchestrator::{HttpRequest, HttpResponse},
        result::ConnectorError,
        runtime_components::RuntimeComponents,
    },
    http::StatusCode,
};
use aws_smithy_types::{body::SdkBody, byte_stream::ByteStream};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::time::sleep;

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpFault {
    /// A whole call was throttled, without effect.
    CallThrottled,
    /// Some entries of a call were throttled, the others were not.
    EntryThrottled,
    /// The connection was reset before the request arrived.
    ResetBefore,
    /// The call took effect, and the connection was reset before the answer arrived.
    AnswerLost,
    /// The call took effect, but its answer came late, or too late.
    AnswerDelayed,
    /// The call took effect late, whether or not anybody still waited.
    RequestDelayed,
    /// The call took effect, and a copy took effect later.
    Duplicated,
    /// An internal error without effect.
    ErrorBefore,
    /// An internal error although the call took effect.
    ErrorAfter,
    /// The answer was cut off.
    AnswerCut,
}

impl HttpFault {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::CallThrottled,
        Self::EntryThrottled,
        Self::ResetBefore,
        Self::AnswerLost,
        Self::AnswerDelayed,
        Self::RequestDelayed,
        Self::Duplicated,
        Self::ErrorBefore,
        Self::ErrorAfter,
        Self::AnswerCut,
    ];
}

/// Probability of each kind in percent. There is one draw per call. Entries are throttled only if a call has several.
const PERCENT: [(HttpFault, u32); 10] = [
    (HttpFault::CallThrottled, 3),
    (HttpFault::EntryThrottled, 4),
    (HttpFault::ResetBefore, 1),
    (HttpFault::AnswerLost, 2),
    (HttpFault::AnswerDelayed, 2),
    (HttpFault::RequestDelayed, 2),
    (HttpFault::Duplicated, 2),
    (HttpFault::ErrorBefore, 1),
    (HttpFault::ErrorAfter, 1),
    (HttpFault::AnswerCut, 1),
];

/// Longest delay. Longer than the time limit of a call, the answer deadline and L of a test.
const DELAY_MS_MAX: u64 = 5_000;
/// The operations that may fail. Operations that only set things up do not fail.
const OPERATIONS: &[&str] = &[
    "PutRecords",
    "GetRecords",
    "GetShardIterator",
    "ListShards",
    "SubscribeToShard",
    "BatchExecuteStatement",
    "BatchGetItem",
    "ExecuteStatement",
    "GetItem",
    "PutItem",
    "Query",
    "Scan",
    "UpdateItem",
    "TransactWriteItems",
];

#[derive(Debug)]
struct Shared {
    rng: Mutex<StdRng>,
    counts: [AtomicU64; HttpFault::ALL.len()],
    armed: AtomicBool,
}

/// A client that fails on purpose once it is armed.
#[derive(Clone, Debug)]
pub struct FaultyClient {
    inner: SharedHttpClient,
    shared: Arc<Shared>,
}

impl FaultyClient {
    /// A client whose faults are drawn from this seed. It is not armed yet.
    pub fn new(seed: u64) -> Self {
        let shared = Shared {
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            counts: Default::default(),
            armed: AtomicBool::new(false),
        };
        Self { inner: aws_smithy_http_client::Builder::new().build_http(), shared: Arc::new(shared) }
    }

    /// Starts or ends the faults.
    pub fn arm(&self, armed: bool) {
        self.shared.armed.store(armed, Ordering::Relaxed);
    }

    /// How many faults of a kind were injected.
    pub fn count(&self, fault: HttpFault) -> u64 {
        self.shared.counts[fault as usize].load(Ordering::Relaxed)
    }
}

impl HttpClient for FaultyClient {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        let inner = self.inner.http_connector(settings, components);
        SharedHttpConnector::new(FaultyConnector { inner, shared: self.shared.clone() })
    }
}

#[derive(Clone, Debug)]
struct FaultyConnector {
    inner: SharedHttpConnector,
    shared: Arc<Shared>,
}

impl HttpConnector for FaultyConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let fault = self.shared.draw(&operation, &request);
        let Some(fault) = fault else { return self.inner.call(request) };
        let this = self.clone();
        HttpConnectorFuture::new(async move { this.fail(fault, &operation, request).await })
    }
}

impl Shared {
    fn draw(&self, operation: &str, request: &HttpRequest) -> Option<HttpFault> {
        if !self.armed.load(Ordering::Relaxed) || !OPERATIONS.contains(&operation) {
            return None;
        }
        let mut at = self.rng.lock().random_range(0..100);
        for (fault, percent) in PERCENT {
            if at < percent {
                // The answer to a subscription has no end for which one could wait.
                let possible = if fault == HttpFault::EntryThrottled {
                    entries(operation, request).is_some()
                } else {
                    operation != "SubscribeToShard" || fault == HttpFault::CallThrottled
                };
                if possible {
                    self.counts[fault as usize].fetch_add(1, Ordering::Relaxed);
                }
                return possible.then_some(fault);
            }
            at -= percent;
        }
        None
    }

    fn delay(&self) -> Duration {
        Duration::from_millis(self.rng.lock().random_range(50..DELAY_MS_MAX))
    }
}

impl FaultyConnector {
    async fn fail(
        &self,
        fault: HttpFault,
        operation: &str,
        request: HttpRequest,
    ) -> Result<HttpResponse, ConnectorError> {
        match fault {
            HttpFault::CallThrottled => Ok(error(400, "ProvisionedThroughputExceededException")),
            HttpFault::ErrorBefore => Ok(error(500, "InternalFailure")),
            HttpFault::ResetBefore => Err(reset()),
            HttpFault::EntryThrottled => self.some_entries(operation, request).await,
            // From here on the caller may have stopped waiting; the effect still happens.
            HttpFault::AnswerLost => {
                self.detached(Duration::ZERO, request).await?;
                Err(reset())
            }
            HttpFault::ErrorAfter => {
                self.detached(Duration::ZERO, request).await?;
                Ok(error(500, "InternalServerError"))
            }
            HttpFault::AnswerCut => {
                let response = self.detached(Duration::ZERO, request).await?;
                let (status, body) = read(response).await?;
                Ok(HttpResponse::new(status, SdkBody::from(body[..body.len() / 2].to_vec())))
            }
            HttpFault::AnswerDelayed => {
                let response = self.detached(Duration::ZERO, request).await?;
                sleep(self.shared.delay()).await;
                Ok(response)
            }
            HttpFault::RequestDelayed => self.detached(self.shared.delay(), request).await,
            HttpFault::Duplicated => {
                if let Some(copy) = request.try_clone() {
                    let (this, delay) = (self.clone(), self.shared.delay());
                    tokio::spawn(async move {
                        sleep(delay).await;
                        // Nobody waits for the answer of a copy.
                        this.inner.call(copy).await.ok();
                    });
                }
                self.inner.call(request).await
            }
        }
    }

    /// Sends a request from a task of its own.
    async fn detached(&self, after: Duration, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let inner = self.inner.clone();
        let sent = tokio::spawn(async move {
            sleep(after).await;
            inner.call(request).await
        });
        sent.await.unwrap_or_else(|error| Err(ConnectorError::other(error.into(), None)))
    }

    /// Sends some of the entries of a call, and reports the others as throttled.
    async fn some_entries(&self, operation: &str, mut request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let Some((mut body, field, count)) = entries(operation, &request) else {
            return self.inner.call(request).await;
        };
        let throttled: Vec<bool> = {
            let mut rng = self.shared.rng.lock();
            let one = rng.random_range(0..count);
            (0..count).map(|at| at == one || rng.random_bool(0.3)).collect()
        };
        if let Some(all) = body[field].as_array_mut() {
            let mut at = throttled.iter();
            all.retain(|_| at.next() == Some(&false));
        }
        let mut answers = Vec::new().into_iter();
        let (mut answer, mut status) = (json!({}), StatusCode::try_from(200).expect("200 is a status"));
        if throttled.contains(&false) {
            let text = body.to_string();
            request.headers_mut().insert("content-length", text.len().to_string());
            *request.body_mut() = SdkBody::from(text);
            let response = self.detached(Duration::ZERO, request).await?;
            let (said, body) = read(response).await?;
            status = said;
            answer = serde_json::from_slice(&body).map_err(|error| ConnectorError::other(error.into(), None))?;
            if !status.is_success() {
                return Ok(HttpResponse::new(status, SdkBody::from(body)));
            }
            let list = if field == "Records" { "Records" } else { "Responses" };
            answers = answer[list].as_array().cloned().unwrap_or_default().into_iter();
        }
        let refused = throttled.iter().filter(|throttled| **throttled).count();
        let all: Vec<Value> = throttled
            .iter()
            .map(|&throttled| match (throttled, field) {
                (false, _) => answers.next().unwrap_or_default(),
                (true, "Records") => json!({
                    "ErrorCode": "ProvisionedThroughputExceededException",
                    "ErrorMessage": "Rate exceeded for shard",
                }),
                (true, _) => json!({
                    "Error": {"Code": "ProvisionedThroughputExceeded", "Message": "The level of throughput is exceeded"},
                }),
            })
            .collect();
        if field == "Records" {
            answer["FailedRecordCount"] = json!(refused as u64 + answer["FailedRecordCount"].as_u64().unwrap_or(0));
            answer["Records"] = Value::Array(all);
        } else {
            answer["Responses"] = Value::Array(all);
        }
        Ok(HttpResponse::new(status, SdkBody::from(answer.to_string())))
    }
}

/// For a call whose entries can fail one by one: its body, the field that holds the entries, and their number.
fn entries(operation: &str, request: &HttpRequest) -> Option<(Value, &'static str, usize)> {
    let field = match operation {
        "PutRecords" => "Records",
        "BatchExecuteStatement" => "Statements",
        _ => return None,
    };
    let body: Value = serde_json::from_slice(request.body().bytes()?).ok()?;
    let count = body[field].as_array()?.len();
    (count > 0).then_some((body, field, count))
}

async fn read(response: HttpResponse) -> Result<(StatusCode, Vec<u8>), ConnectorError> {
    let status = response.status();
    let body = ByteStream::new(response.into_body()).collect().await;
    let body = body.map_err(|error| ConnectorError::io(error.into()))?;
    Ok((status, body.to_vec()))
}

fn error(status: u16, code: &str) -> HttpResponse {
    let body = json!({"__type": code, "message": "injected by a test"}).to_string();
    HttpResponse::new(StatusCode::try_from(status).expect("it is a status"), SdkBody::from(body))
}

fn reset() -> ConnectorError {
    ConnectorError::io(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into())
}
