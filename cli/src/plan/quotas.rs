//! Quotas of an AWS account that an event needs.
//!
//! Owns which they are, with their names, codes and defaults, and how much of each a plan needs. Must never give a code
//! that was not read: where there is none, there is none here. What was not read at AWS is marked as not confirmed.

use serde::Serialize;

use super::{Plan, facts};

/// One quota.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Quota {
    pub(crate) name: &'static str,
    /// Code of the service in Service Quotas.
    pub(crate) service_code: &'static str,
    /// Code of the quota in Service Quotas. Without one it is asked for by a support case.
    pub(crate) quota_code: Option<&'static str>,
    /// What an account has in us-east-1 unless it asked for more. A new account may have less.
    pub(crate) default: u64,
    pub(crate) needed: u64,
    pub(crate) exceeded: bool,
    /// Days before the event on which to ask at the latest. Assumed: AWS promises no time.
    pub(crate) ask_days_before: u64,
    /// Page of AWS that has the default.
    pub(crate) page: &'static str,
    /// Whether name, code and default were read there, or in two lists of Service Quotas that agree.
    pub(crate) confirmed: bool,
}

/// Increases that a person decides about.
const REVIEWED_DAYS: u64 = 14;
/// Increases that are mostly granted at once.
const USUAL_DAYS: u64 = 3;
/// More than so many times the default is assumed to be reviewed.
const REVIEWED_FACTOR: u64 = 10;

/// Quotas that this plan touches, exceeded or not.
pub(super) fn of(plan: &Plan) -> Vec<Quota> {
    let Plan { shards, ingest_tasks, persist_tasks, tally_tasks, ref edge, ref resharding, .. } = *plan;
    let [ingest, tally] = [ingest_tasks, tally_tasks].map(|tasks| tasks.div_ceil(edge.load_balancers));
    let tasks = ingest_tasks + persist_tasks + tally_tasks;
    const ELB: &str = "Quotas for your Application Load Balancers";
    const DYNAMODB: &str = "Quotas in Amazon DynamoDB";
    const UPDATE_SHARD_COUNT: &str = "Amazon Kinesis Data Streams API reference, UpdateShardCount";
    let quota = |name, (service_code, quota_code), default, needed, page, confirmed| {
        let reviewed = needed > default * REVIEWED_FACTOR;
        Quota {
            name,
            service_code,
            quota_code,
            default,
            needed,
            exceeded: needed > default,
            ask_days_before: if reviewed { REVIEWED_DAYS } else { USUAL_DAYS },
            page,
            confirmed,
        }
    };
    let elb = |code| ("elasticloadbalancing", Some(code));
    vec![
        quota(
            "Fargate On-Demand vCPU resource count",
            ("fargate", Some("L-3032A538")),
            6,
            plan.vcpus_at_most(),
            "Amazon ECS endpoints and quotas, AWS Fargate service quotas",
            true,
        ),
        quota(
            "Reserved Application Load Balancer Capacity Units (LCU) per Region",
            elb("L-8A66D0E6"),
            0,
            edge.reserved_units,
            ELB,
            true,
        ),
        quota(
            "Reserved Application Load Balancer Capacity Units (LCUs) per Application Load Balancer",
            elb("L-0BB7B635"),
            15_000,
            edge.reserved_units_each,
            ELB,
            // The default was read there, the code only elsewhere.
            false,
        ),
        quota(
            "Application Load Balancers per Region",
            elb("L-53DA6B97"),
            50,
            edge.load_balancers + facts::LOAD_BALANCERS_APART,
            ELB,
            true,
        ),
        // Each load balancer has a part of the tasks of ingest and tally, each as a target by gRPC and by HTTP/1.1.
        quota("Targets per Application Load Balancer", elb("L-7E6692B2"), 1_000, 2 * (ingest + tally), ELB, true),
        quota("Targets per Target Group per Region", elb("L-A0D0B863"), 1_000, ingest.max(tally), ELB, true),
        quota(
            "Table-level write throughput limit",
            ("dynamodb", Some("L-AB614373")),
            40_000,
            plan.warm_write_units_per_second,
            DYNAMODB,
            true,
        ),
        quota(
            "Table-level read throughput limit",
            ("dynamodb", Some("L-CF0CBE56")),
            40_000,
            plan.read_units_per_second,
            DYNAMODB,
            true,
        ),
        quota(
            "Shards per Region",
            ("kinesis", Some("L-0918CF54")),
            20_000,
            shards.max(resharding.shards_now),
            "Amazon Kinesis Data Streams endpoints and quotas",
            true,
        ),
        quota("Shards of a stream, by UpdateShardCount", ("kinesis", None), 10_000, shards, UPDATE_SHARD_COUNT, true),
        quota(
            "UpdateShardCount of a stream in 24 hours",
            ("kinesis", None),
            resharding.steps_a_day_max,
            resharding.to_plan.len() as u64,
            UPDATE_SHARD_COUNT,
            true,
        ),
        // One for each task; those of load balancers and endpoints are few beside them.
        quota("Network interfaces per Region", ("vpc", Some("L-DF5E4CA3")), 5_000, tasks, "Amazon VPC quotas", false),
    ]
}
