//! A stand-in for the services of AWS that are asked: it answers as an account would that is as planned, except for what a
//! test changes.
//!
//! Speaks JSON with `X-Amz-Target` and, for load balancers, query and XML. Counts calls by their action.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_smithy_types::{DateTime, date_time::Format};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use serde_json::{Value, json};
use votestream_preflight::{Account, Limits};

/// What the account is like. The default is what [`PLAN`] needs.
#[derive(Clone, Debug)]
pub(crate) struct Show {
    /// Of the account, by code; codes that are missing have their default.
    pub(crate) quotas: BTreeMap<&'static str, f64>,
    pub(crate) shards: u64,
    pub(crate) stream_status: &'static str,
    pub(crate) warm: u64,
    pub(crate) warm_status: &'static str,
    /// Running tasks of each ECS service, by its name.
    pub(crate) running: BTreeMap<&'static str, u64>,
    pub(crate) pending: u64,
    pub(crate) balancers: Vec<&'static str>,
    pub(crate) reserved: u64,
    pub(crate) reservation: &'static str,
    pub(crate) certificate_status: &'static str,
    pub(crate) certificate_days: i64,
    /// Seconds that the clock of AWS is ahead.
    pub(crate) ahead: i64,
}

impl Default for Show {
    fn default() -> Self {
        Self {
            quotas: BTreeMap::from([("L-3032A538", 64.0), ("L-8A66D0E6", 20_000.0), ("L-AB614373", 400_000.0)]),
            shards: 42,
            stream_status: "ACTIVE",
            warm: 400_000,
            warm_status: "ACTIVE",
            running: BTreeMap::from([
                ("show-ingest", 5),
                ("show-ingest-2", 4),
                ("show-persist", 2),
                ("show-tally", 2),
                ("show-tally-2", 2),
            ]),
            pending: 0,
            balancers: vec!["show", "show-2"],
            reserved: 10_000,
            reservation: "provisioned",
            certificate_status: "ISSUED",
            certificate_days: 90,
            ahead: 0,
        }
    }
}

/// The plan that the account is compared with.
pub(crate) const PLAN: &str = r#"{
    "plan_version": 1, "shards": 42, "ingest_tasks": 9, "persist_tasks": 2, "tally_tasks": 4,
    "warm_write_units_per_second": 400000,
    "edge": { "load_balancers": 2, "reserved_units_each": 10000 },
    "quotas": [
        { "name": "vCPUs", "service_code": "fargate", "quota_code": "L-3032A538", "default": 6, "needed": 26, "ask_days_before": 3 },
        { "name": "units", "service_code": "elasticloadbalancing", "quota_code": "L-8A66D0E6", "default": 0, "needed": 20000, "ask_days_before": 14 },
        { "name": "writes", "service_code": "dynamodb", "quota_code": "L-AB614373", "default": 40000, "needed": 400000, "ask_days_before": 3 },
        { "name": "shards", "service_code": "kinesis", "quota_code": "L-0918CF54", "default": 20000, "needed": 42, "ask_days_before": 3 },
        { "name": "steps", "service_code": "kinesis", "quota_code": null, "default": 10, "needed": 4, "ask_days_before": 3 }
    ]
}"#;

/// What happens to calls of an action.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Denied,
    Throttled,
    /// Only the first call.
    ThrottledOnce,
    NotAnswered,
    /// The answer never ends.
    Endless,
}

struct Served {
    show: Show,
    fault: Option<(&'static str, Fault)>,
    calls: Mutex<BTreeMap<String, u32>>,
    /// Bytes of answers without an end.
    endless: AtomicUsize,
}

/// A running stand-in.
pub(crate) struct StandIn {
    served: Arc<Served>,
    config: SdkConfig,
}

/// Short enough for a test, and long enough for an answer of this machine.
pub(crate) const LIMITS: Limits = Limits { try_for: Duration::from_secs(2), tries: 2, pause: Duration::from_millis(1) };

impl StandIn {
    pub(crate) async fn start(show: Show, fault: Option<(&'static str, Fault)>) -> Self {
        let served = Arc::new(Served { show, fault, calls: Mutex::default(), endless: AtomicUsize::new(0) });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(served.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let credentials = Credentials::new("stand-in", "stand-in", None, None, "stand-in");
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .sleep_impl(aws_smithy_async::rt::sleep::SharedAsyncSleep::new(
                aws_smithy_async::rt::sleep::TokioSleep::new(),
            ))
            .endpoint_url(url)
            .build();
        Self { served, config }
    }

    pub(crate) fn account(&self) -> Account {
        Account::new("show".into(), &self.config, LIMITS)
    }

    /// Calls of each action so far.
    /// Bytes that were sent in answers without an end.
    pub(crate) fn endless(&self) -> usize {
        self.served.endless.load(Ordering::Relaxed)
    }

    pub(crate) fn calls(&self) -> BTreeMap<String, u32> {
        self.served.calls.lock().clone()
    }
}

async fn answer(State(served): State<Arc<Served>>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()?.split_once('.'));
    let body = String::from_utf8(body.to_vec()).unwrap();
    let query: BTreeMap<_, _> = body.split('&').filter_map(|pair| pair.split_once('=')).collect();
    let action = target.map_or_else(|| query["Action"], |(_, action)| action).to_owned();
    let call = {
        let mut calls = served.calls.lock();
        let call = calls.entry(action.clone()).or_default();
        *call += 1;
        *call
    };
    let fault = served.fault.filter(|(of, _)| *of == action).map(|(_, fault)| fault);
    let error = match fault {
        Some(Fault::Denied) => Some("AccessDeniedException"),
        Some(Fault::Throttled) => Some("ThrottlingException"),
        Some(Fault::ThrottledOnce) if call == 1 => Some("ThrottlingException"),
        Some(Fault::NotAnswered) => std::future::pending().await,
        Some(Fault::Endless) => {
            let more = stream::repeat(Bytes::from_static(&[b' '; 65_536])).map(move |piece| {
                served.endless.fetch_add(piece.len(), Ordering::Relaxed);
                Ok::<_, std::convert::Infallible>(piece)
            });
            return Body::from_stream(more).into_response();
        }
        Some(Fault::ThrottledOnce) | None => None,
    };
    let show = &served.show;
    let response = match target {
        Some(_) => {
            let answer = match error {
                Some(code) => Err(code),
                None => json_of(show, &action, &serde_json::from_str(&body).unwrap()),
            };
            let json = [(header::CONTENT_TYPE, "application/x-amz-json-1.1")];
            match answer {
                Ok(value) => (json, value.to_string()).into_response(),
                Err(code) => (StatusCode::BAD_REQUEST, json, json!({ "__type": code, "message": "no" }).to_string())
                    .into_response(),
            }
        }
        None => {
            let answer = match error {
                Some(code) => Err(code),
                None => xml_of(show, &action, &query),
            };
            match answer {
                Ok(result) => format!("<{action}Response><{action}Result>{result}</{action}Result></{action}Response>")
                    .into_response(),
                Err(code) => (
                    StatusCode::BAD_REQUEST,
                    format!("<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code></Error></ErrorResponse>"),
                )
                    .into_response(),
            }
        }
    };
    let date = DateTime::from_secs(now() + show.ahead).fmt(Format::HttpDate).unwrap();
    ([(header::DATE, date)], response).into_response()
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

fn json_of(show: &Show, action: &str, request: &Value) -> Result<Value, &'static str> {
    Ok(match action {
        "GetServiceQuota" => {
            let code = request["QuotaCode"].as_str().unwrap();
            let value = show.quotas.get(code).ok_or("NoSuchResourceException")?;
            json!({ "Quota": { "QuotaCode": code, "Value": value } })
        }
        "GetAWSDefaultServiceQuota" => {
            let value = match request["QuotaCode"].as_str().unwrap() {
                "L-3032A538" => 6.0,
                "L-8A66D0E6" => 0.0,
                "L-0918CF54" => 20_000.0,
                _ => 40_000.0,
            };
            json!({ "Quota": { "QuotaCode": request["QuotaCode"], "Value": value } })
        }
        "DescribeStreamSummary" => json!({ "StreamDescriptionSummary": {
            "StreamName": "show", "StreamARN": "arn:aws:kinesis:us-east-1:000000000000:stream/show",
            "StreamStatus": show.stream_status, "RetentionPeriodHours": 24, "StreamCreationTimestamp": 1.0,
            "EnhancedMonitoring": [], "OpenShardCount": show.shards,
        } }),
        "DescribeTable" => {
            assert_eq!(request["TableName"], "show-votes");
            json!({ "Table": { "TableName": "show-votes", "TableStatus": "ACTIVE", "WarmThroughput": {
                "ReadUnitsPerSecond": 12_000, "WriteUnitsPerSecond": show.warm, "Status": show.warm_status,
            } } })
        }
        "DescribeServices" => {
            assert_eq!(request["cluster"], "show");
            let names = request["services"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
            let found = names.filter_map(|name| Some((name, show.running.get(name)?)));
            let services: Vec<_> = found
                .map(|(name, running)| {
                    json!({
                        "serviceName": name, "status": "ACTIVE", "runningCount": running,
                        "desiredCount": running + show.pending, "pendingCount": show.pending,
                        "deployments": [{ "id": "d", "rolloutState": "COMPLETED" }],
                    })
                })
                .collect();
            json!({ "services": services, "failures": [] })
        }
        "DescribeCertificate" => json!({ "Certificate": {
            "CertificateArn": request["CertificateArn"], "Status": show.certificate_status,
            "NotAfter": now() + show.certificate_days * 86_400 + 60,
        } }),
        other => panic!("{other} is not asked for"),
    })
}

fn xml_of(show: &Show, action: &str, query: &BTreeMap<&str, &str>) -> Result<String, &'static str> {
    Ok(match action {
        "DescribeLoadBalancers" => {
            let name = query["Names.member.1"];
            if !show.balancers.contains(&name) {
                return Err("LoadBalancerNotFound");
            }
            format!(
                "<LoadBalancers><member><LoadBalancerName>{name}</LoadBalancerName><LoadBalancerArn>arn-{name}\
                 </LoadBalancerArn><State><Code>active</Code></State></member></LoadBalancers>"
            )
        }
        "DescribeCapacityReservation" => format!(
            "<MinimumLoadBalancerCapacity><CapacityUnits>{}</CapacityUnits></MinimumLoadBalancerCapacity>\
             <CapacityReservationState><member><State><Code>{}</Code></State><AvailabilityZone>us-east-1a\
             </AvailabilityZone></member></CapacityReservationState>",
            show.reserved, show.reservation
        ),
        "DescribeListeners" => "<Listeners><member><Port>443</Port><Protocol>HTTPS</Protocol><Certificates><member>\
             <CertificateArn>arn-certificate</CertificateArn></member></Certificates></member></Listeners>"
            .to_owned(),
        other => panic!("{other} is not asked for"),
    })
}
