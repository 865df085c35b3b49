//! What readers of Kinesis meet on AWS and on no stand-in: shards that were closed and have left the stream, a limit on
//! bytes that all readers of a shard share, and reads that stand still a day behind.
//!
//! Owns these answers, in front of a stand-in. Must never change what is stored.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::Request,
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};
use parking_lot::Mutex;
use serde_json::{Value, json};

/// Largest request or answer of these calls: a read of 10 MiB in base64.
const BODY_BYTES_MAX: usize = 32 << 20;
/// What a shard gives in a second (Kinesis, "Quotas and limits").
const READ_BYTES_PER_SECOND: f64 = (2 << 20) as f64;
/// How far behind reads are that stand still.
const DAY_MS: u64 = 86_400_000;

/// What the stand-in is told, and how often it did so. Clones share it.
#[derive(Clone, Default)]
pub struct Reading(Arc<State>);

#[derive(Default)]
struct State {
    vanished: Mutex<BTreeSet<String>>,
    stands_still: AtomicBool,
    /// Until when reads are refused, if what was read is counted. All shards share it.
    bucket: Mutex<Option<Instant>>,
    refused: AtomicU32,
    not_found: AtomicU32,
    still: AtomicU32,
    sizes: Mutex<Vec<usize>>,
}

impl Reading {
    /// From now on the stream does not know this shard.
    pub fn vanish(&self, shard: impl Into<String>) {
        self.0.vanished.lock().insert(shard.into());
    }

    /// From now on reads find nothing, and are a day behind.
    pub fn stand_still(&self) {
        self.0.stands_still.store(true, Ordering::Relaxed);
    }

    /// From now on a read is refused until what was read before is paid for, at 2 MiB per second.
    pub fn count_bytes(&self) {
        *self.0.bucket.lock() = Some(Instant::now());
    }

    /// How many reads were refused because too much was read.
    pub fn refused(&self) -> u32 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// How many calls named a shard that has left the stream.
    pub fn not_found(&self) -> u32 {
        self.0.not_found.load(Ordering::Relaxed)
    }

    /// How many reads stood still.
    pub fn still(&self) -> u32 {
        self.0.still.load(Ordering::Relaxed)
    }

    /// The bytes of records in each answer that had some, so far.
    pub fn sizes(&self) -> Vec<usize> {
        self.0.sizes.lock().clone()
    }

    /// Puts this in front of a stand-in.
    pub fn in_front_of(&self, kinesis: Router) -> Router {
        let reading = self.clone();
        kinesis.layer(from_fn(move |request: Request, next: Next| {
            let reading = reading.clone();
            async move { reading.answer(request, next).await }
        }))
    }

    async fn answer(&self, request: Request, next: Next) -> Response {
        let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
        let operation = target.and_then(|target| target.rsplit('.').next()).unwrap_or_default().to_owned();
        match &*operation {
            "ListShards" => self.without_vanished(next.run(request).await).await,
            "GetShardIterator" | "SubscribeToShard" => {
                let (parts, body) = request.into_parts();
                let body = to_bytes(body, BODY_BYTES_MAX).await.unwrap_or_default();
                let shard = parse(&body)["ShardId"].as_str().unwrap_or_default().to_owned();
                if self.0.vanished.lock().contains(&shard) {
                    self.0.not_found.fetch_add(1, Ordering::Relaxed);
                    return error("ResourceNotFoundException", &format!("Shard {shard} does not exist"));
                }
                next.run(Request::from_parts(parts, Body::from(body))).await
            }
            "GetRecords" => self.records(request, next).await,
            _ => next.run(request).await,
        }
    }

    async fn records(&self, request: Request, next: Next) -> Response {
        let is_early = self.0.bucket.lock().is_some_and(|free_at| Instant::now() < free_at);
        if is_early {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
            return error("ProvisionedThroughputExceededException", "Rate exceeded for the shard");
        }
        let response = next.run(request).await;
        if !response.status().is_success() {
            return response;
        }
        let body = to_bytes(response.into_body(), BODY_BYTES_MAX).await.unwrap_or_default();
        let mut answer = parse(&body);
        if self.0.stands_still.load(Ordering::Relaxed) {
            self.0.still.fetch_add(1, Ordering::Relaxed);
            answer["Records"] = json!([]);
            answer["MillisBehindLatest"] = json!(DAY_MS);
        }
        let records = answer["Records"].as_array();
        // Four characters of base64 are three bytes.
        let sizes = records.into_iter().flatten().filter_map(|record| record["Data"].as_str().map(str::len));
        let bytes = sizes.sum::<usize>() / 4 * 3;
        if bytes > 0 {
            self.0.sizes.lock().push(bytes);
        }
        if let Some(free_at) = &mut *self.0.bucket.lock() {
            *free_at = Instant::now() + Duration::from_secs_f64(bytes as f64 / READ_BYTES_PER_SECOND);
        }
        success(&answer)
    }

    async fn without_vanished(&self, response: Response) -> Response {
        if !response.status().is_success() {
            return response;
        }
        let body = to_bytes(response.into_body(), BODY_BYTES_MAX).await.unwrap_or_default();
        let mut answer = parse(&body);
        let vanished = self.0.vanished.lock();
        if let Some(shards) = answer["Shards"].as_array_mut() {
            shards.retain(|shard| !shard["ShardId"].as_str().is_some_and(|shard| vanished.contains(shard)));
        }
        success(&answer)
    }
}

fn parse(body: &Bytes) -> Value {
    serde_json::from_slice(body).unwrap_or_default()
}

fn success(answer: &Value) -> Response {
    ([(CONTENT_TYPE, "application/x-amz-json-1.1")], answer.to_string()).into_response()
}

fn error(code: &str, message: &str) -> Response {
    let body = json!({ "__type": code, "message": message }).to_string();
    (StatusCode::BAD_REQUEST, [(CONTENT_TYPE, "application/x-amz-json-1.1")], body).into_response()
}
