//! Whether as many tasks run as planned.
//!
//! Must never count a task that is only wanted.

use std::collections::HashMap;

use aws_sdk_ecs::types::{DeploymentRolloutState, Service};

use crate::{
    account::{Account, unseen},
    plan::{Plan, parts},
    report::{Line, Report},
};

/// Most services of one call (Amazon ECS API reference, "DescribeServices").
const SERVICES_A_CALL: usize = 10;

pub(crate) async fn check(account: &Account, plan: &Plan, report: &mut Report) {
    let balancers = plan.edge.load_balancers;
    for (service, tasks, in_parts) in [
        ("ingest", plan.ingest_tasks, balancers),
        ("persist", plan.persist_tasks, 1),
        ("tally", plan.tally_tasks, balancers),
    ] {
        let names = parts(&format!("{}-{service}", account.name), in_parts);
        report.add(line(account, service, &names, tasks).await);
    }
}

async fn line(account: &Account, service: &str, names: &[String], needed: u64) -> Line {
    let what = format!("running tasks of {service}");
    let mut found: HashMap<String, Service> = HashMap::new();
    for names in names.chunks(SERVICES_A_CALL) {
        let call = account.ecs.describe_services().cluster(&account.name).set_services(Some(names.to_vec()));
        match call.send().await {
            Ok(answer) => {
                let services = answer.services.unwrap_or_default().into_iter();
                found.extend(services.filter_map(|service| Some((service.service_name.clone()?, service))));
            }
            Err(error) => return unseen(what, needed, "ecs:DescribeServices", &error),
        }
    }
    let missing: Vec<_> = names.iter().filter(|name| !found.contains_key(*name)).map(String::as_str).collect();
    if !missing.is_empty() {
        let to_do = "deploy with the planned loadBalancers, or give the name of the deployment by --name";
        return Line::no_go(what, format!("no service {}", missing.join(", ")), needed, to_do);
    }
    let running: i64 = found.values().map(|service| i64::from(service.running_count)).sum();
    let changing = |service: &Service| {
        let complete = |state: &DeploymentRolloutState| *state == DeploymentRolloutState::Completed;
        service.pending_count > 0
            || service.running_count != service.desired_count
            || service.deployments().len() > 1
            || service.deployments().iter().filter_map(|one| one.rollout_state.as_ref()).any(|state| !complete(state))
    };
    if found.values().any(changing) {
        let found = format!("{running}, and a deployment or a start is under way");
        return Line::no_go(what, found, needed, "wait until every task runs, then repeat");
    }
    Line::enough(what, u64::try_from(running).unwrap_or(0), needed, || {
        format!("deploy with {service}Tasks={needed} and pinTasks=true")
    })
}
