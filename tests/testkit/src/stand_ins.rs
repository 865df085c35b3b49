//! Stand-ins for Kinesis and DynamoDB in this process, in memory.
//!
//! Owns how they are set up. They are not AWS: nothing is durable, credentials are not checked, and they have AWS's
//! semantics but not its speed. Known differences from AWS's documentation are noted here.

mod reading;

use std::{io, sync::Arc};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    middleware::{Next, from_fn},
};
use ferrokinesis::store::Store;
pub use ferrokinesis::store::StoreOptions;
pub use reading::Reading;
use tokio::{net::TcpListener, sync::Mutex};

/// Largest request to Kinesis: a PutRecords call of 5 MiB in base64.
const BODY_BYTES_MAX: usize = 8 << 20;
/// Most open shards. More than a test on one machine needs.
const SHARDS_MAX: u32 = 1_000;
/// Time to split or merge shards, in milliseconds.
const UPDATE_STREAM_MS: u64 = 100;

/// The content of a Kinesis stand-in. Keys of records are `<index of the shard, 8 hexadecimal digits>/<sequence
/// number>`.
pub type KinesisStore = Store;

/// A Kinesis without streams, as a router for any listener.
pub fn kinesis(change: impl FnOnce(&mut StoreOptions)) -> (Router, KinesisStore) {
    let mut options = StoreOptions {
        create_stream_ms: 0,
        update_stream_ms: UPDATE_STREAM_MS,
        shard_limit: SHARDS_MAX,
        ..StoreOptions::default()
    };
    change(&mut options);
    let (router, store) = ferrokinesis::create_app(options);
    // ferrokinesis assigns a record's sequence number before it stores the record. With two calls at once, the record
    // with the later number may be stored and read first; then the reader skips the other one. Kinesis does not do
    // that, so puts are done one after the other.
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
    (router.layer(from_fn(one_put_at_a_time)).layer(DefaultBodyLimit::max(BODY_BYTES_MAX)), store)
}

/// Serves a Kinesis without streams until it is dropped.
///
/// # Errors
///
/// If the listener fails.
pub async fn serve_kinesis(listener: TcpListener) -> io::Result<()> {
    axum::serve(listener, kinesis(|_| ()).0).await
}

/// Serves a DynamoDB without tables until it is dropped.
///
/// # Errors
///
/// If its database cannot be opened.
pub async fn serve_dynamodb(listener: TcpListener) -> io::Result<()> {
    let database = dynoxide::Database::memory().map_err(io::Error::other)?;
    dynoxide::server::serve_on(listener, database).await;
    Ok(())
}
