//! The context parameters of the CDK app that make the deployed system the planned one.
//!
//! Owns their names, which `deploy/lib/config.ts` reads. Must never have a name that it does not know.

use serde::Serialize;

/// Context parameters of the CDK app; the fields have its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CdkParameters {
    pub(crate) shards: u64,
    /// Only if persist stands behind for so long that a day of retention could be too short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retention_hours: Option<u64>,
    pub(crate) ingest_tasks: u64,
    pub(crate) persist_tasks: u64,
    /// With a budget, no more tasks than the budget was divided among: a task that never starts would keep its part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) persist_tasks_max: Option<u64>,
    pub(crate) tally_tasks: u64,
    /// Over all persist tasks; 0 for no limit.
    pub(crate) write_units_per_second: u64,
    /// 0 for what a new table has anyway.
    pub(crate) warm_write_units: u64,
    /// Public load balancers.
    pub(crate) load_balancers: u64,
    /// Of each of them; 0 for none.
    pub(crate) reserved_lcus: u64,
    /// Always: as many tasks as planned run from the start to the end. Scaling takes minutes, and a show takes seconds.
    pub(crate) pin_tasks: bool,
}

impl CdkParameters {
    /// Name and value of each parameter, in the order of the fields.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&'static str, String)> {
        let Self {
            shards,
            retention_hours,
            ingest_tasks,
            persist_tasks,
            persist_tasks_max,
            tally_tasks,
            write_units_per_second,
            warm_write_units,
            load_balancers,
            reserved_lcus,
            pin_tasks,
        } = *self;
        [
            ("shards", Some(shards.to_string())),
            ("retentionHours", retention_hours.map(|hours| hours.to_string())),
            ("ingestTasks", Some(ingest_tasks.to_string())),
            ("persistTasks", Some(persist_tasks.to_string())),
            ("persistTasksMax", persist_tasks_max.map(|tasks| tasks.to_string())),
            ("tallyTasks", Some(tally_tasks.to_string())),
            ("writeUnitsPerSecond", Some(write_units_per_second.to_string())),
            ("warmWriteUnits", Some(warm_write_units.to_string())),
            ("loadBalancers", Some(load_balancers.to_string())),
            ("reservedLcus", Some(reserved_lcus.to_string())),
            ("pinTasks", Some(pin_tasks.to_string())),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }
}
