//! Stand-ins for Kinesis and DynamoDB that keep what they are given, in the memory of one process.
//!
//! They are what `votestream dev-aws` and the tests run. Must never be taken for AWS: they have its semantics, not its speed.

use std::sync::Arc;

use axum::{
    extract::{DefaultBodyLimit, Request},
    middleware::{Next, from_fn},
};
use ferrokinesis::store::StoreOptions;
use tokio::{net::TcpListener, sync::Mutex};

/// Largest request to Kinesis: a PutRecords call of 5 MiB in base64.
const BODY_BYTES_MAX: usize = 8 << 20;
const SHARDS_MAX: u32 = 1_000;

/// Serves Kinesis until the process ends.
pub(crate) async fn kinesis(listener: TcpListener) -> anyhow::Result<()> {
    let options =
        StoreOptions { create_stream_ms: 0, update_stream_ms: 100, shard_limit: SHARDS_MAX, ..StoreOptions::default() };
    let (router, _) = ferrokinesis::create_app(options);
    // It hands out a record's sequence number before it stores the record, so that of two calls at once a reader may pass one
    // by. Kinesis does not do that: puts go one by one.
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
    Ok(axum::serve(listener, router).await?)
}

/// Serves DynamoDB until the process ends.
pub(crate) async fn dynamodb(listener: TcpListener) -> anyhow::Result<()> {
    let database = dynoxide::Database::memory()?;
    dynoxide::server::serve_on(listener, database).await;
    Ok(())
}
