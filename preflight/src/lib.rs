//! Compares an AWS account with the plan of `votestream plan --json`, before a show: go or no-go, line by line.
//!
//! Owns what is asked and how an answer is judged. Only reads. Must never change anything in the account, and never say go
//! for what it could not see: a call that is denied, throttled or not answered is a no-go with its reason.

mod account;
mod bound;
mod clock;
mod edge;
mod engines;
mod plan;
mod quotas;
mod report;
mod tasks;

pub use account::{Account, Limits, Options};
pub use plan::{Plan, PlanError};
pub use report::{Line, Report};

/// Compares the account with the plan.
///
/// The checks follow one another, so that at most a few calls are in flight: the account may be serving a show.
pub async fn check(account: &Account, plan: &Plan) -> Report {
    let mut report = Report::default();
    quotas::check(account, plan, &mut report).await;
    if !report.is_over() {
        engines::check(account, plan, &mut report).await;
    }
    if !report.is_over() {
        tasks::check(account, plan, &mut report).await;
    }
    if !report.is_over() {
        edge::check(account, plan, &mut report).await;
        report.add(account.clock.line());
    }
    report
}
