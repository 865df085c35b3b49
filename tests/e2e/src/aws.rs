//! Stand-ins for AWS in this process, on loopback.
//!
//! Starts them and makes clients for them. They are not AWS: `adapters/aws` relies only on what AWS documents.

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use votestream_aws::{
    client::{AwsConfig, Clients},
    dynamodb::{DynamoConfig, DynamoStore},
    kinesis::Kinesis,
};
use votestream_testkit::stand_ins::{self, KinesisStore, Reading, StoreOptions};

/// The stream that [`kinesis`] creates.
pub const STREAM: &str = "votes";

/// A stand-in that runs until this is dropped.
pub struct Server {
    _task: AbortOnDropHandle<()>,
}

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

/// Like [`kinesis`], with other options.
pub async fn kinesis_with(shards: u32, change: impl FnOnce(&mut StoreOptions)) -> (String, Server, KinesisStore) {
    kinesis_behind(shards, change, |router| router).await
}

/// Like [`kinesis`], with what a test puts before it.
pub async fn kinesis_read_by(shards: u32, reading: &Reading) -> (String, Server, KinesisStore) {
    kinesis_behind(shards, |_| (), |router| reading.in_front_of(router)).await
}

async fn kinesis_behind(
    shards: u32,
    change: impl FnOnce(&mut StoreOptions),
    front: impl FnOnce(Router) -> Router,
) -> (String, Server, KinesisStore) {
    let (router, store) = stand_ins::kinesis(|options| {
        options.update_stream_ms = 20;
        change(options);
    });
    let (endpoint, server) = serve(front(router)).await;
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
    let task = tokio::spawn(async move { stand_ins::serve_dynamodb(listener).await.unwrap() });
    (endpoint, Server { _task: AbortOnDropHandle::new(task) })
}

/// A store on a DynamoDB stand-in. Its tables are not created yet.
pub async fn dynamo_store(endpoint: &str, config: &DynamoConfig) -> DynamoStore {
    let aws = AwsConfig { dynamodb_endpoint: Some(endpoint.into()), ..AwsConfig::stand_in() };
    DynamoStore::new(Clients::new(&aws).await.dynamodb, config)
}
