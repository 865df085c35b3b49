//! Connections of the servers under test to the engines of AWS: null engines, or stand-ins that keep what they are
//! given.
//!
//! Owns addresses and names. Must never measure anything.

use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

use aws_sdk_dynamodb::types::{AttributeValue, BatchStatementRequest};
use futures::{StreamExt, TryStreamExt, stream};
use rand::{SeedableRng, rngs::StdRng};
use votestream_aws::{AwsConfig, Deployment, client::Clients, connect, kinesis::Reading};
use votestream_core::port::Ports;

use crate::{cpu::cpu_seconds, votes};

/// Calls that the SDK alone has in flight, as many as the adapter.
const SDK_CALLS: usize = 64;
const SDK_STATEMENTS: usize = 25;
/// Pause between two reads of a shard of the stand-ins, which do not limit reads themselves: on AWS, an application may
/// read five times a second.
const DEV_AWS_PAUSE: Duration = Duration::from_millis(200);

/// Where the engines are.
#[derive(Clone, Copy)]
pub(crate) struct Engines {
    pub(crate) kinesis: SocketAddr,
    pub(crate) dynamodb: SocketAddr,
}

fn config(engines: Engines) -> AwsConfig {
    AwsConfig {
        kinesis_endpoint: Some(format!("http://{}", engines.kinesis)),
        dynamodb_endpoint: Some(format!("http://{}", engines.dynamodb)),
        ..AwsConfig::stand_in()
    }
}

fn deployment() -> Deployment {
    Deployment::new("bench", "votestream-")
}

/// The ports of a measured service, with a limit of write units a second if one is given. The poll exists already.
pub(crate) async fn ports(engines: Engines, write_units_per_second: Option<NonZeroU32>) -> anyhow::Result<Ports> {
    let ports = connect(&config(engines), Deployment { write_units_per_second, ..deployment() }).await?;
    ports.polls.create(&votes::poll()?).await?;
    Ok(ports)
}

/// The ports of all services, on engines that are still empty.
pub(crate) async fn create(engines: Engines, shards: u32) -> anyhow::Result<Ports> {
    let deployment = Deployment {
        create_with_shards: Some(shards),
        reading: Reading::Polling { pause: DEV_AWS_PAUSE },
        ..deployment()
    };
    Ok(connect(&config(engines), deployment).await?)
}

/// Writes this many new votes with the SDK alone.
pub(crate) async fn write_by_sdk(engines: Engines, count: usize) -> anyhow::Result<()> {
    let client = Clients::new(&config(engines)).await.dynamodb;
    let mut rng = StdRng::seed_from_u64(5);
    let mut calls = Vec::with_capacity(count / SDK_STATEMENTS);
    for call in 0..count / SDK_STATEMENTS {
        let mut request = client.batch_execute_statement();
        for at in 0..SDK_STATEMENTS {
            let statement = BatchStatementRequest::builder()
                .statement("INSERT INTO \"votestream-votes\" VALUE {'poll_bucket': ?, 'user_id': ?, 'option': ?, 'position': ?, 'accepted_at': ?}")
                .parameters(AttributeValue::S(format!("{}#{}", votes::POLL, at * 40)))
                .parameters(AttributeValue::S(votes::user(&mut rng)))
                .parameters(AttributeValue::S(votes::option(&mut rng).to_owned()))
                .parameters(AttributeValue::B(aws_smithy_types::Blob::new([7; 28])))
                .parameters(AttributeValue::N((1_700_000_000_000 + call).to_string()));
            request = request.statements(statement.build()?);
        }
        calls.push(request);
    }
    let ready = cpu_seconds("self")?;
    let mut answers = stream::iter(calls.into_iter().map(|call| call.send())).buffer_unordered(SDK_CALLS);
    let mut answered = 0;
    while let Some(answer) = answers.try_next().await? {
        answered += answer.responses().len();
    }
    anyhow::ensure!(answered == count, "{answered} answers to {count} statements");
    println!("{}", cpu_seconds("self")? - ready);
    Ok(())
}
