//! The part of a plan that an account is compared with.
//!
//! Must never guess a field that is missing.

use serde::Deserialize;

/// Version of the JSON form that is read here (`PLAN_VERSION` in `cli/src/plan.rs`).
const VERSION: u32 = 1;

/// A plan, as `votestream plan --json` writes it. Other fields are ignored.
#[derive(Clone, Debug, Deserialize)]
pub struct Plan {
    plan_version: u32,
    pub(crate) shards: u64,
    pub(crate) ingest_tasks: u64,
    pub(crate) persist_tasks: u64,
    pub(crate) tally_tasks: u64,
    pub(crate) warm_write_units_per_second: u64,
    pub(crate) edge: Edge,
    pub(crate) quotas: Vec<Quota>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Edge {
    pub(crate) load_balancers: u64,
    pub(crate) reserved_units_each: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Quota {
    pub(crate) name: String,
    pub(crate) service_code: String,
    pub(crate) quota_code: Option<String>,
    pub(crate) default: u64,
    pub(crate) needed: u64,
    pub(crate) ask_days_before: u64,
}

/// Why a text is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// It is not the JSON of a plan.
    #[error("not the output of `votestream plan --json`: {0}")]
    Json(#[from] serde_json::Error),
    /// It is the plan of another version of the command.
    #[error("a plan of version {0}, and this command reads version {VERSION}: plan again")]
    Version(u32),
    /// A number that no plan has.
    #[error("a plan with {0}, which `votestream plan` never prints")]
    Senseless(&'static str),
    /// More load balancers than any stack has.
    #[error("a plan with {0} load balancers, which no stack has")]
    LoadBalancers(u64),
}

/// Most load balancers that a plan may name. Each takes some calls.
const LOAD_BALANCERS_MAX: u64 = 50;

/// Most shards of a stream (UpdateShardCount in the API reference of Kinesis).
const SHARDS_MAX: u64 = 10_000;

impl Plan {
    /// Reads a plan.
    ///
    /// # Errors
    ///
    /// If this is no plan, or one of another version.
    pub fn from_json(text: &[u8]) -> Result<Self, PlanError> {
        let plan: Self = serde_json::from_slice(text)?;
        match plan.edge.load_balancers {
            _ if plan.plan_version != VERSION => Err(PlanError::Version(plan.plan_version)),
            balancers if !(1..=LOAD_BALANCERS_MAX).contains(&balancers) => Err(PlanError::LoadBalancers(balancers)),
            _ if plan.quotas.is_empty() => Err(PlanError::Senseless("no quotas")),
            _ if !(1..=SHARDS_MAX).contains(&plan.shards) => Err(PlanError::Senseless("no shards, or too many")),
            _ => Ok(plan),
        }
    }
}

/// Names of the parts that each load balancer has: `NAME`, `NAME-2` and so on, as the CDK app names them.
pub(crate) fn parts(name: &str, parts: u64) -> Vec<String> {
    let others = (2..=parts).map(|part| format!("{name}-{part}"));
    std::iter::once(name.to_owned()).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_versions_and_other_texts_are_no_plans() {
        let quota = serde_json::json!({
            "name": "vCPUs", "service_code": "fargate", "quota_code": null, "default": 6, "needed": 6, "ask_days_before": 3,
        });
        let of = |version: u32, balancers: u64| {
            serde_json::json!({
                "plan_version": version, "shards": 2, "ingest_tasks": 2, "persist_tasks": 2, "tally_tasks": 2,
                "warm_write_units_per_second": 4_000, "quotas": [quota],
                "edge": { "load_balancers": balancers, "reserved_units_each": 0 },
            })
            .to_string()
        };
        assert!(Plan::from_json(of(1, 1).as_bytes()).is_ok());
        assert!(matches!(Plan::from_json(of(2, 1).as_bytes()), Err(PlanError::Version(2))));
        assert!(matches!(Plan::from_json(of(1, 0).as_bytes()), Err(PlanError::LoadBalancers(0))));
        assert!(matches!(Plan::from_json(of(1, 51).as_bytes()), Err(PlanError::LoadBalancers(51))));
        assert!(matches!(Plan::from_json(b"{}"), Err(PlanError::Json(_))));
        for (from, to) in [("\"shards\":2", "\"shards\":0"), ("\"shards\":2", "\"shards\":18446744073709551615")] {
            let changed = of(1, 1).replace(from, to);
            assert!(matches!(Plan::from_json(changed.as_bytes()), Err(PlanError::Senseless(_))), "{changed}");
        }
        let without = of(1, 1).replace(&format!("[{quota}]"), "[]");
        assert!(matches!(Plan::from_json(without.as_bytes()), Err(PlanError::Senseless("no quotas"))), "{without}");
    }

    #[test]
    fn the_first_part_has_the_plain_name() {
        assert_eq!(parts("show", 3), ["show", "show-2", "show-3"]);
    }
}
