//! Whether the quotas of the account are enough.
//!
//! Must never take a default for what the account has, unless AWS says that the account has nothing else.

use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use crate::{
    account::{Account, unseen},
    plan::{Plan, Quota},
    report::{Line, Report},
};

pub(crate) async fn check(account: &Account, plan: &Plan, report: &mut Report) {
    for quota in &plan.quotas {
        let line = match &quota.quota_code {
            Some(code) => asked(account, quota, code).await,
            // AWS has no code for it, so nobody can be asked.
            None => Line::enough(format!("{} (default)", what(quota)), quota.default, quota.needed, || {
                "spread it over more days or streams, or ask AWS by a support case".into()
            }),
        };
        report.add(line);
        if report.is_over() {
            return;
        }
    }
}

fn what(quota: &Quota) -> String {
    format!("quota of {}: {}", quota.service_code, quota.name)
}

async fn asked(account: &Account, quota: &Quota, code: &str) -> Line {
    let what = what(quota);
    let service = &quota.service_code;
    let own = account.quotas.get_service_quota().service_code(service).quota_code(code).send().await;
    let value = match own {
        Ok(answer) => answer.quota.and_then(|quota| quota.value),
        // The account never asked for more.
        Err(error) if error.code() == Some("NoSuchResourceException") => {
            let default = account.quotas.get_aws_default_service_quota().service_code(service).quota_code(code);
            match default.send().await {
                Ok(answer) => answer.quota.and_then(|quota| quota.value),
                Err(error) => return unseen(what, quota.needed, "servicequotas:GetAWSDefaultServiceQuota", &error),
            }
        }
        Err(error) => return unseen(what, quota.needed, "servicequotas:GetServiceQuota", &error),
    };
    let Some(value) = value else {
        return Line::no_go(what, "not seen: an answer without a value", quota.needed, "look in the console");
    };
    // Quotas are whole numbers; what is not, counts as the number below.
    Line::enough(what, value.max(0.0) as u64, quota.needed, || {
        format!(
            "aws service-quotas request-service-quota-increase --service-code {service} --quota-code {code} \
             --desired-value {}, at least {} days before the show",
            quota.needed, quota.ask_days_before
        )
    })
}
