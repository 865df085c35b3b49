//! `votestream dev-aws`: runs stand-ins for Kinesis and DynamoDB on this machine until it is told to stop.
//!
//! Owns where they listen, and which settings a service needs to find them. Everything is in memory and gone at the
//! end. Must never be used in place of AWS: nothing is durable, and anybody may call.

use serde::Serialize;
use votestream_process::terminal::Signals;
use votestream_testkit::stand_ins;

use crate::{
    args::{DevAwsArgs, Global},
    failure::{Answer, Failure, Outcome},
    output,
    stack::listen,
};

/// The environment variables that a service needs to find the stand-ins.
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
    let variables = Variables {
        AWS_ENDPOINT_URL_KINESIS: format!("http://{kinesis_addr}"),
        AWS_ENDPOINT_URL_DYNAMODB: format!("http://{dynamodb_addr}"),
        AWS_REGION: "us-east-1",
        AWS_ACCESS_KEY_ID: "dev",
        AWS_SECRET_ACCESS_KEY: "dev",
        VOTESTREAM_SHARDS: args.shards.to_string(),
    };
    let mut kinesis = tokio::spawn(stand_ins::serve_kinesis(kinesis));
    let mut dynamodb = tokio::spawn(stand_ins::serve_dynamodb(dynamodb));
    print(global, &variables)?;
    tokio::select! {
        // Connections of consumers stay open for minutes. They are not drained: what they could still get is in memory
        // and is lost anyway.
        _ = signals.next() => Ok(Answer::Yes),
        ended = &mut kinesis => Err(Failure::failed(format!("the Kinesis stand-in ended: {ended:?}"))),
        ended = &mut dynamodb => Err(Failure::failed(format!("the DynamoDB stand-in ended: {ended:?}"))),
    }
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
