//! Stand-ins for AWS in this process, on loopback.
//!
//! Owns starting them and reaching them. Must never be taken for AWS: `adapters/aws` relies on what AWS documents, and where a
//! stand-in is known to differ it is said here.

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    middleware::{Next, from_fn},
};
use ferrokinesis::store::{Store, StoreOptions};
use tokio::{net::TcpListener, sync::Mutex};
use tokio_util::task::AbortOnDropHandle;
use votestream_aws::{
    client::{AwsConfig, Clients},
    dynamodb::{DynamoConfig, DynamoStore},
    kinesis::Kinesis,
};

/// The stream that [`kinesis`] creates.
pub const STREAM: &str = "votes";

/// Largest request: a PutRecords call of 5 MiB in base64.
const BODY_BYTES_MAX: usize = 8 << 20;

/// A stand-in that runs until this is dropped.
pub struct Server {
    _task: AbortOnDropHandle<()>,
}

/// What a Kinesis stand-in holds; `keys` of its records are `<index of the shard, 8 hexadecimal digits>/<sequence number>`.
pub type KinesisStore = Store;

/// Serves a router on a free port of the loopback interface. Returns its URL.
pub async fn serve(router: Router) -> (String, Server) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (endpoint, Server { _task: AbortOnDropHandle::new(task) })
}

/// Kinesis with the stream [`STREAM`] of this many shards.
pub async fn kinesis(shards: u32) -> (String, Server) {
    let (endpoint, server, _) = kinesis_with(shards, |_| ()).await;
    (endpoint, server)
}

/// The same with other options.
pub async fn kinesis_with(shards: u32, change: impl FnOnce(&mut StoreOptions)) -> (String, Server, KinesisStore) {
    let mut options =
        StoreOptions { create_stream_ms: 0, update_stream_ms: 20, shard_limit: 1_000, ..StoreOptions::default() };
    change(&mut options);
    let (router, store) = ferrokinesis::create_app(options);
    // ferrokinesis hands out a record's sequence number before it stores the record. Of two calls at once, the later number
    // may be stored, and read, first: the reader then passes the other by. Kinesis does not do that, so puts go one by one.
    let puts = Arc::new(Mutex::new(()));
    let one_put_at_a_time = move |request: Request, next: Next| {
        let puts = puts.clone();
        async move {
            let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
            let is_put = target.is_some_and(|target| target.contains(".PutRecord"));
            let _put = if is_put { Some(puts.lock().await) } else { None };
            next.run(request).await
        }
    };
    let router = router.layer(from_fn(one_put_at_a_time)).layer(DefaultBodyLimit::max(BODY_BYTES_MAX));
    let (endpoint, server) = serve(router).await;
    Kinesis::create_stream(&kinesis_clients(&endpoint).await, STREAM, shards).await.unwrap();
    (endpoint, server, store)
}

/// Clients of a Kinesis stand-in.
pub async fn kinesis_clients(endpoint: &str) -> Clients {
    Clients::new(&AwsConfig { kinesis_endpoint: Some(endpoint.into()), ..AwsConfig::stand_in() }).await
}

/// DynamoDB without tables.
pub async fn dynamodb() -> (String, Server) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let database = dynoxide::Database::memory().unwrap();
    let task = tokio::spawn(dynoxide::server::serve_on(listener, database));
    (endpoint, Server { _task: AbortOnDropHandle::new(task) })
}

/// A store on a DynamoDB stand-in. Its tables are not created yet.
pub async fn dynamo_store(endpoint: &str, config: &DynamoConfig) -> DynamoStore {
    let aws = AwsConfig { dynamodb_endpoint: Some(endpoint.into()), ..AwsConfig::stand_in() };
    DynamoStore::new(Clients::new(&aws).await.dynamodb, config)
}
