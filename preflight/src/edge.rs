//! Whether the public load balancers are there, with their capacity and a certificate that outlives the show.
//!
//! Must never take a reservation that is not provisioned yet for capacity.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use aws_sdk_acm::types::CertificateStatus;
use aws_sdk_elasticloadbalancingv2::types::{CapacityReservationStateEnum, LoadBalancer, LoadBalancerStateEnum};

use crate::{
    account::{Account, unseen},
    plan::{Plan, parts},
    report::{Line, Report},
};

/// A certificate must be valid for so much longer: the show may be moved.
const CERTIFICATE_FOR: Duration = Duration::from_secs(14 * DAY_SECONDS);
const DAY_SECONDS: u64 = 86_400;

pub(crate) async fn check(account: &Account, plan: &Plan, report: &mut Report) {
    let names = parts(&account.name, plan.edge.load_balancers);
    let mut certificates = BTreeSet::new();
    for name in names {
        // One by one: if one of several names does not exist, AWS tells nothing of the others.
        let what = format!("load balancer {name}");
        let answer = match account.balancers.describe_load_balancers().names(&name).send().await {
            Ok(answer) => answer,
            Err(error) => {
                report.add(unseen(what, "active", "elasticloadbalancing:DescribeLoadBalancers", &error));
                continue;
            }
        };
        let Some((balancer, arn)) =
            answer.load_balancers().first().and_then(|one| Some((one, one.load_balancer_arn.as_deref()?)))
        else {
            report.add(Line::no_go(what, "does not exist", "active", "deploy with the planned loadBalancers"));
            continue;
        };
        report.add(state(what, balancer));
        if plan.edge.reserved_units_each > 0 {
            report.add(reservation(account, &name, arn, plan.edge.reserved_units_each).await);
        }
        match listener_certificates(account, &name, arn).await {
            Ok(found) => certificates.extend(found),
            Err(line) => report.add(line),
        }
    }
    for arn in certificates {
        report.add(certificate(account, &arn).await);
    }
}

fn state(what: String, balancer: &LoadBalancer) -> Line {
    let code = balancer.state.as_ref().and_then(|state| state.code.as_ref());
    match code {
        Some(LoadBalancerStateEnum::Active) => Line::go(what, "active", "active"),
        other => {
            let found = other.map_or("unknown", LoadBalancerStateEnum::as_str);
            Line::no_go(what, found, "active", "wait until it is active, then repeat")
        }
    }
}

async fn reservation(account: &Account, name: &str, arn: &str, needed: u64) -> Line {
    let what = format!("reserved capacity units of load balancer {name}");
    let answer = match account.balancers.describe_capacity_reservation().load_balancer_arn(arn).send().await {
        Ok(answer) => answer,
        Err(error) => return unseen(what, needed, "elasticloadbalancing:DescribeCapacityReservation", &error),
    };
    let units = answer.minimum_load_balancer_capacity.as_ref().and_then(|capacity| capacity.capacity_units);
    let units = u64::try_from(units.unwrap_or(0)).unwrap_or(0);
    let zones = answer.capacity_reservation_state().iter();
    let states: Vec<_> = zones.filter_map(|zone| zone.state.as_ref()?.code.as_ref()).collect();
    let provisioned = |state: &&CapacityReservationStateEnum| **state == CapacityReservationStateEnum::Provisioned;
    if units > 0 && (states.is_empty() || !states.iter().all(provisioned)) {
        let state = states.iter().find(|state| !provisioned(state)).map_or("in no zone", |state| state.as_str());
        let to_do = "wait until it is provisioned, which takes minutes to hours; if it failed, ask AWS";
        return Line::no_go(what, format!("{units}, {state}"), needed, to_do);
    }
    Line::enough(what, units, needed, || format!("deploy with reservedLcus={needed} hours before the show"))
}

/// The certificates that the balancer's listeners with TLS show by default.
async fn listener_certificates(account: &Account, name: &str, arn: &str) -> Result<Vec<String>, Line> {
    let what = format!("certificate of load balancer {name}");
    let answer = account.balancers.describe_listeners().load_balancer_arn(arn).send().await;
    let answer =
        answer.map_err(|error| unseen(&what, "there is one", "elasticloadbalancing:DescribeListeners", &error))?;
    let all = answer.listeners().iter().flat_map(|listener| listener.certificates());
    let arns: Vec<_> = all.filter_map(|certificate| certificate.certificate_arn.clone()).collect();
    if arns.is_empty() {
        return Err(Line::no_go(what, "no listener has one", "there is one", "deploy with CertificateArn"));
    }
    Ok(arns)
}

async fn certificate(account: &Account, arn: &str) -> Line {
    let what = format!("certificate {arn}");
    let needed = format!("valid for {} days", CERTIFICATE_FOR.as_secs() / DAY_SECONDS);
    let answer = match account.certificates.describe_certificate().certificate_arn(arn).send().await {
        Ok(answer) => answer,
        Err(error) => return unseen(what, needed, "acm:DescribeCertificate", &error),
    };
    let Some(detail) = answer.certificate else {
        return Line::no_go(what, "not seen: an answer without a certificate", needed, "repeat");
    };
    let renew = "renew it, and see that ACM's records are in the DNS";
    match &detail.status {
        Some(CertificateStatus::Issued) => {}
        other => {
            let found = other.as_ref().map_or("of unknown status", CertificateStatus::as_str);
            return Line::no_go(what, found, needed, renew);
        }
    }
    let until = detail.not_after.and_then(|at| SystemTime::try_from(at).ok());
    match until.and_then(|until| until.duration_since(SystemTime::now()).ok()) {
        Some(left) if left >= CERTIFICATE_FOR => {
            Line::go(what, format!("valid for {} days", left.as_secs() / DAY_SECONDS), needed)
        }
        Some(left) => Line::no_go(what, format!("valid for {} days", left.as_secs() / DAY_SECONDS), needed, renew),
        None => Line::no_go(what, "expired", needed, renew),
    }
}
