//! Whether the stream has its shards, and the table of votes is warm.
//!
//! Must never say go while either is being changed.

use aws_sdk_dynamodb::types::TableStatus;
use aws_sdk_kinesis::types::StreamStatus;

use crate::{
    account::{Account, unseen},
    plan::Plan,
    report::{Line, Report},
};

pub(crate) async fn check(account: &Account, plan: &Plan, report: &mut Report) {
    report.add(stream(account, plan).await);
    report.add(table(account, plan).await);
}

async fn stream(account: &Account, plan: &Plan) -> Line {
    let name = &account.name;
    let what = format!("shards of the stream {name}");
    let answer = match account.kinesis.describe_stream_summary().stream_name(name).send().await {
        Ok(answer) => answer,
        Err(error) => return unseen(what, plan.shards, "kinesis:DescribeStreamSummary", &error),
    };
    let Some(summary) = answer.stream_description_summary else {
        return Line::no_go(what, "not seen: an answer without a summary", plan.shards, "repeat");
    };
    let open = u64::try_from(summary.open_shard_count).unwrap_or(0);
    if summary.stream_status != StreamStatus::Active {
        let found = format!("{open}, and the stream is {}", summary.stream_status.as_str());
        return Line::no_go(what, found, plan.shards, "wait until it is ACTIVE, then repeat");
    }
    Line::enough(what, open, plan.shards, || {
        format!(
            "aws kinesis update-shard-count --stream-name {name} --scaling-type UNIFORM_SCALING --target-shard-count N, \
             at most double in a step: the plan has the steps"
        )
    })
}

async fn table(account: &Account, plan: &Plan) -> Line {
    let name = format!("{}-votes", account.name);
    let what = format!("warm write units/s of the table {name}");
    let needed = plan.warm_write_units_per_second;
    let table = match account.dynamodb.describe_table().table_name(&name).send().await {
        Ok(answer) => answer.table,
        Err(error) => return unseen(what, needed, "dynamodb:DescribeTable", &error),
    };
    let warm = table.as_ref().and_then(|table| table.warm_throughput.as_ref());
    let Some(units) = warm.and_then(|warm| warm.write_units_per_second) else {
        return Line::no_go(what, "not seen: an answer without warm throughput", needed, "look in the console");
    };
    let status = warm.and_then(|warm| warm.status.as_ref());
    if let Some(status) = status.filter(|status| **status != TableStatus::Active) {
        let found = format!("{units}, and it is {}", status.as_str());
        return Line::no_go(what, found, needed, "wait until it is ACTIVE, then repeat");
    }
    Line::enough(what, u64::try_from(units).unwrap_or(0), needed, || {
        format!("deploy with warmWriteUnits={needed} the day before the show")
    })
}
