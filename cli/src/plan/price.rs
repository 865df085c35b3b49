//! What a plan costs, by a price list that is a data file.
//!
//! Owns the lines of the bill. Must never hold a price: those are in `prices.json`, each with its page and day.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Clients, Plan, facts};

const PRICE_LIST: &str = include_str!("prices.json");
/// Name of the price of ten thousand requests by the other way in. It is no part of the bill.
const CLOUDFRONT: &str = "cloudfront_ten_thousand_https_requests";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PriceList {
    region: String,
    currency: String,
    note: String,
    not_included: Vec<String>,
    prices: BTreeMap<String, Price>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Price {
    usd: f64,
    /// Page of AWS that has it.
    page: String,
    /// Day on which it was transcribed.
    read_on: String,
    /// Whether it was read on that page itself, and not in somebody's description of it.
    confirmed: bool,
}

/// A price that a bill uses.
#[derive(Debug, Serialize)]
pub(crate) struct UsedPrice {
    pub(crate) name: String,
    pub(crate) usd: f64,
    pub(crate) page: String,
    pub(crate) read_on: String,
    pub(crate) confirmed: bool,
}

/// The estimated price of an event.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Bill {
    /// Always true: the real bill depends on what really happens.
    pub(crate) is_estimate: bool,
    pub(crate) region: String,
    pub(crate) currency: String,
    pub(crate) lines: Vec<Line>,
    pub(crate) total_usd: f64,
    /// The part that the AWS sample also has: shards, records and vote writes.
    pub(crate) stream_and_writes_usd: f64,
    pub(crate) not_included: Vec<String>,
    pub(crate) note: String,
    /// The prices, each with its page and the day on which it was read.
    pub(crate) prices: Vec<UsedPrice>,
}

/// One line of the bill.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) what: &'static str,
    pub(crate) quantity: f64,
    pub(crate) unit: &'static str,
    pub(crate) usd: f64,
}

/// Prices the plan and the sample's sizing.
pub(super) fn add(plan: &mut Plan, arrival_seconds: f64) -> Result<(), String> {
    let list: PriceList =
        serde_json::from_str(PRICE_LIST).map_err(|error| format!("the price list is damaged: {error}"))?;
    let mut lines = Vec::new();
    let mut missing = Vec::new();
    let mut line = |what, quantity: f64, unit, key: &str| match list.prices.get(key) {
        Some(price) => {
            lines.push(Line { what, quantity, unit, usd: quantity * price.usd });
            quantity * price.usd
        }
        None => {
            missing.push(key.to_owned());
            0.0
        }
    };

    let hours = plan.question.up_for.as_secs_f64() / 3_600.0;
    let (votes, shards) = (plan.votes as f64, plan.shards as f64);
    let stream_bytes = votes * facts::STREAM_BYTES_PER_VOTE;
    let records_per_second = (plan.ingest_tasks * facts::LANE_RECORDS_PER_SECOND).min(facts::SHARD_RECORDS_PER_SECOND);
    // Each record adds one payload unit that it does not fill. There are no more records than votes.
    let records = (arrival_seconds * shards * records_per_second as f64).min(votes);
    let payload_units = records + stream_bytes / facts::PUT_PAYLOAD_UNIT_BYTES;
    let mut stream_and_writes_usd = line("Kinesis shards", shards * hours, "shard hours", "kinesis_shard_hour");
    stream_and_writes_usd +=
        line("Kinesis records", payload_units / 1e6, "million payload units", "kinesis_million_put_payload_units");
    let consumer_hours = facts::GROUPS as f64 * shards * hours;
    line("Kinesis fan-out consumers", consumer_hours, "consumer shard hours", "kinesis_fan_out_consumer_shard_hour");
    line("Kinesis fan-out reads", facts::GROUPS as f64 * stream_bytes / 1e9, "GB", "kinesis_fan_out_gb_read");

    let units = "million write units";
    let vote_units = plan.vote_write_units_max as f64 / 1e6;
    stream_and_writes_usd +=
        line("DynamoDB votes, at the most", vote_units, units, "dynamodb_million_write_request_units");
    let busy_seconds = plan.question.duration.as_secs_f64() + plan.persist().drain_seconds;
    let progress = plan.interim_write_units_per_second + plan.persist_progress_write_units_per_second;
    line("DynamoDB tallies and progress", progress * busy_seconds / 1e6, units, "dynamodb_million_write_request_units");
    let warmed = plan.warm_write_units_per_second.saturating_sub(facts::TABLE_WARM_UNITS_PER_SECOND) as f64;
    line("DynamoDB warming, once", warmed, "write units/s", "dynamodb_warm_write_unit_per_second_once");
    // A changed vote is read before it is written; an audit reads all of them.
    let changed_units = plan.changed_votes * facts::READ_UNITS_PER_CHANGED_VOTE;
    let read_units = (changed_units + plan.recount.read_units) as f64 / 1e6;
    line("DynamoDB reads and one audit", read_units, "million read units", "dynamodb_million_read_request_units");
    let stored = plan.question.voters as f64 * (facts::VOTE_ITEM_BYTES + facts::ITEM_OVERHEAD_BYTES) / 1e9;
    line("DynamoDB storage, one month", stored, "GB months", "dynamodb_gb_month");
    line("DynamoDB recovery, one month", stored, "GB months", "dynamodb_recovery_gb_month");

    let vcpu_hours = plan.vcpus() as f64 * hours;
    line("Fargate CPU", vcpu_hours, "vCPU hours", "fargate_arm_vcpu_hour");
    let memory_hours = vcpu_hours * plan.task_memory_gb_per_vcpu as f64;
    line("Fargate memory", memory_hours, "GB hours", "fargate_arm_gb_hour");
    line("Load balancers", plan.edge.load_balancers as f64 * hours, "hours", "alb_hour");
    let reserved_hours = plan.question.reserved_for.as_secs_f64() / 3_600.0;
    let reserved = plan.edge.reserved_units as f64 * reserved_hours;
    line("Load balancer capacity, reserved", reserved, "LCU hours", "alb_reserved_lcu_hour");
    let used = match plan.question.clients {
        // Units below those that are reserved are paid for already.
        _ if plan.edge.reserved_units > 0 => 0.0,
        Clients::Direct => (votes / facts::LCU_CONNECTIONS_PER_SECOND as f64 / 3_600.0)
            .max(votes * facts::CALL_BYTES / facts::LCU_BYTES_PER_HOUR),
        Clients::Relay => votes * facts::STREAMED_VOTE_BYTES / facts::LCU_BYTES_PER_HOUR,
    };
    line("Load balancer capacity, used", used, "LCU hours", "alb_lcu_hour");

    // The sample puts one record a vote, and writes each vote twice.
    let sample_lines = [
        (plan.aws_sample.shards as f64 * hours, "kinesis_shard_hour"),
        (votes / 1e6, "kinesis_million_put_payload_units"),
        (plan.aws_sample.vote_write_units as f64 / 1e6, "dynamodb_million_write_request_units"),
    ];
    let usd = |key: &str| list.prices.get(key).map_or(0.0, |price| price.usd);
    plan.aws_sample.stream_and_writes_usd = sample_lines.iter().map(|(quantity, key)| quantity * usd(key)).sum();
    if let Some(cloudfront) = &mut plan.edge.cloudfront {
        cloudfront.requests_usd = votes / 10_000.0 * usd(CLOUDFRONT);
    }

    if !missing.is_empty() {
        return Err(format!("the price list has no {}", missing.join(", ")));
    }
    let prices = list.prices.into_iter().map(|(name, price)| {
        let Price { usd, page, read_on, confirmed } = price;
        UsedPrice { name, usd, page, read_on, confirmed }
    });
    let prices = prices.collect();
    plan.bill = Bill {
        is_estimate: true,
        region: list.region,
        currency: list.currency,
        total_usd: lines.iter().map(|line| line.usd).sum(),
        stream_and_writes_usd,
        lines,
        not_included: list.not_included,
        note: list.note,
        prices,
    };
    Ok(())
}
