//! `votestream dev-aws`: stand-ins for Kinesis and DynamoDB on this machine until it is told to stop.
//!
//! Owns how the stand-ins are set up. Everything is in memory and gone at the end. Must never be taken for AWS: nothing is
//! durable, and nobody is asked who they are.

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    middleware::{Next, from_fn},
};
use ferrokinesis::store::StoreOptions;
use serde::Serialize;
use tokio::sync::Mutex;
use votestream_process::terminal::Signals;

use crate::{
    args::{DevAwsArgs, Global},
    failure::{Answer, Failure, Outcome},
    output,
    stack::listen,
};

/// Largest request to Kinesis: a PutRecords call of 5 MiB in base64.
const BODY_BYTES_MAX: usize = 8 << 20;
/// More open shards than anybody needs on one machine.
const SHARDS_MAX: u32 = 1_000;

/// What a service needs in its environment to find the stand-ins.
#[derive(Serialize)]
#[expect(non_snake_case, reason = "names of variables")]
struct Variables {
    AWS_ENDPOINT_URL_KINESIS: String,
    AWS_ENDPOINT_URL_DYNAMODB: String,
    AWS_REGION: &'static str,
    AWS_ACCESS_KEY_ID: &'static str,
    AWS_SECRET_ACCESS_KEY: &'static str,
    VOTESTREAM_SHARDS: String,
}

pub(super) async fn run(global: &Global, args: DevAwsArgs, mut signals: Signals) -> Outcome {
    let (kinesis, kinesis_addr) = listen(args.kinesis_addr)?;
    let (dynamodb, dynamodb_addr) = listen(args.dynamodb_addr)?;
    let database = dynoxide::Database::memory()
        .map_err(|error| Failure::failed(format!("cannot open the DynamoDB stand-in: {error}")))?;
    let variables = Variables {
        AWS_ENDPOINT_URL_KINESIS: format!("http://{kinesis_addr}"),
        AWS_ENDPOINT_URL_DYNAMODB: format!("http://{dynamodb_addr}"),
        AWS_REGION: "us-east-1",
        AWS_ACCESS_KEY_ID: "dev",
        AWS_SECRET_ACCESS_KEY: "dev",
        VOTESTREAM_SHARDS: args.shards.to_string(),
    };
    let mut kinesis = tokio::spawn(async move { axum::serve(kinesis, kinesis_router()).await });
    let mut dynamodb = tokio::spawn(dynoxide::server::serve_on(dynamodb, database));
    print(global, &variables)?;
    tokio::select! {
        // Connections of consumers stay open for minutes; what they would still get is in memory and gone anyway.
        _ = signals.next() => Ok(Answer::Yes),
        ended = &mut kinesis => Err(Failure::failed(format!("the Kinesis stand-in ended: {ended:?}"))),
        ended = &mut dynamodb => Err(Failure::failed(format!("the DynamoDB stand-in ended: {ended:?}"))),
    }
}

fn kinesis_router() -> Router {
    let options =
        StoreOptions { create_stream_ms: 0, update_stream_ms: 100, shard_limit: SHARDS_MAX, ..StoreOptions::default() };
    let (router, _) = ferrokinesis::create_app(options);
    // The stand-in hands out a record's sequence number before it stores the record. Of two calls at once, the later number
    // may be read first, and the reader then passes the other by, which Kinesis never does. So puts go one by one.
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
    router.layer(from_fn(one_put_at_a_time)).layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

fn print(global: &Global, variables: &Variables) -> Result<(), Failure> {
    if global.json {
        return output::json(variables);
    }
    let value = serde_json::to_value(variables)
        .map_err(|error| Failure::failed(format!("cannot write the variables: {error}")))?;
    let exports = value.as_object().into_iter().flatten();
    let exports = exports.map(|(name, value)| format!("export {name}={}", value.as_str().unwrap_or_default()));
    output::note(
        "Stand-ins for Kinesis and DynamoDB, in memory, until they are stopped. In every terminal that uses them:",
    );
    output::lines(&exports.collect::<Vec<_>>())
}
