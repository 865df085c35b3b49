//! `votestream plan`: what an event needs on AWS, as a table and as parameters to paste.
//!
//! Owns how a plan is shown. Must never compute one: `crate::plan` does that.

use std::time::Duration;

use indicatif::HumanCount;

use crate::{
    args::{Global, PlanArgs},
    failure::{Answer, Failure, Outcome},
    output,
    plan::{self, Persist, Plan, Quota},
};

/// Width of the column of names.
const NAME_WIDTH: usize = 38;
/// Width of a column of values.
const VALUE_WIDTH: usize = 20;

pub(super) fn run(global: &Global, args: PlanArgs) -> Outcome {
    let plan = plan::plan(args.question()).map_err(Failure::usage)?;
    if global.json {
        output::json(&plan)?;
    } else {
        output::lines(&describe(&plan))?;
    }
    Ok(Answer::Yes)
}

fn describe(plan: &Plan) -> Vec<String> {
    let mut lines = vec![
        format!(
            "An estimate for {} votes of {} voters, {} of them changed, at up to {} votes/s within {}.",
            count(plan.votes),
            count(plan.question.voters),
            count(plan.changed_votes),
            count(plan.question.peak_votes_per_second),
            span(plan.question.duration.as_secs_f64()),
        ),
        String::new(),
    ];
    let parts = [sizes(plan), way_in(plan), after_the_last_vote(plan), resharding(plan), quotas(plan), bill(plan)];
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        lines.extend(part);
        lines.push(String::new());
    }
    lines.extend(plan.notes.iter().map(|note| format!("Note: {note}.")));
    lines.push(String::new());
    lines.push("For the CDK app, and for the polls:".to_owned());
    lines.push(String::new());
    let context: String = plan.cdk.pairs().map(|(name, value)| format!(" -c {name}={value}")).collect();
    lines.push(format!("    npx cdk deploy --all{context}"));
    lines.push(format!("    votestream poll create --expected-peak {} …", plan.expected_peak));
    lines
}

fn sizes(plan: &Plan) -> Vec<String> {
    let (sample, hottest) = (&plan.aws_sample, plan.persist().hottest_partition);
    vec![
        row("", "votestream", "AWS sample"),
        row("shards", &count(plan.shards), &count(sample.shards)),
        row("  used at the peak", &format!("{:.0} %", plan.shards_used_share * 100.0), ""),
        row("write units for votes, at the most", &count(plan.vote_write_units_max), &count(sample.vote_write_units)),
        row(
            "write units/s for interim results",
            &tenth(plan.interim_write_units_per_second),
            &tenth(sample.interim_write_units_per_second),
        ),
        row("write units/s for persist's progress", &tenth(plan.persist_progress_write_units_per_second), ""),
        row("  of them a tally row takes", &count(plan.tally_row_write_units), ""),
        row("partition keys of a poll (buckets)", &count(plan.buckets), ""),
        row("table of votes warmed for units/s", &count(plan.warm_write_units_per_second), ""),
        row("  its partitions", &count(hottest.partitions), ""),
        row("  buckets of each, if they were even", &tenth(hottest.buckets_if_even), ""),
        row("  of the hottest, on average", &tenth(hottest.buckets_on_average), ""),
        row("  of the hottest, in 19 of 20 cases", &format!("at most {}", hottest.buckets_at_most), ""),
        row(&format!("tasks: ingest, {} vCPU", plan.task_vcpus), &count(plan.ingest_tasks), ""),
        row(&format!("  persist, {} vCPU", plan.task_vcpus), &count(plan.persist_tasks), ""),
        row(&format!("  tally, {} vCPU", plan.tally_task_vcpus), &count(plan.tally_tasks), ""),
    ]
}

fn way_in(plan: &Plan) -> Vec<String> {
    let edge = &plan.edge;
    let mut lines = vec![
        row("new connections/s", &count(edge.new_connections_per_second), ""),
        row("open connections", &count(edge.open_connections), ""),
        row("  to each ingest task, at the most", &count(edge.calls_in_flight.div_ceil(plan.ingest_tasks)), ""),
        row("CPU s/s for TLS in ingest", &tenth(edge.ingest_tls_cpu_seconds_per_second), ""),
        row("public load balancers", &count(edge.load_balancers), ""),
        row("  capacity units at the peak", &count(edge.capacity_units.needed), ""),
        row("  to reserve for each", &count(edge.reserved_units_each), ""),
    ];
    if let Some(cloudfront) = &edge.cloudfront {
        lines.push(row("or CloudFront distributions", &count(cloudfront.distributions), ""));
        lines.push(row("  with load balancers behind them", &count(cloudfront.load_balancers), ""));
        lines.push(row("  and for their requests, USD", &format!("{:.2}", cloudfront.requests_usd), ""));
    }
    lines
}

fn after_the_last_vote(plan: &Plan) -> Vec<String> {
    let sample = &plan.aws_sample;
    vec![
        "From the last vote to a complete table of votes, if all come at the peak rate at the end:".to_owned(),
        String::new(),
        format!(
            "{:<NAME_WIDTH$}{:>VALUE_WIDTH$}{:>14}{:>20}{:>12}{:>12}",
            "", "write units/s", "persist tasks", "hottest partition", "complete", "final"
        ),
        drain(&plan.persist_unlimited),
        drain(&plan.persist_with_budget),
        format!(
            "{:<NAME_WIDTH$}{:>VALUE_WIDTH$}{:>14}{:>20}{:>12}",
            "AWS sample, scaled with its shards",
            count(sample.write_units_per_second),
            "",
            "",
            span(sample.drain_seconds),
        ),
        String::new(),
        format!(
            "The hottest partition is done after so long on average, and is planned as in 19 of 20 cases. A recount of all \
             votes (`votestream audit`) takes {}: {} queries, {} read units.",
            span(plan.recount.seconds),
            count(plan.recount.queries),
            count(plan.recount.read_units),
        ),
    ]
}

fn resharding(plan: &Plan) -> Vec<String> {
    let steps = |from: u64, steps: &[u64]| {
        let all = std::iter::once(&from).chain(steps);
        all.map(u64::to_string).collect::<Vec<_>>().join(", ")
    };
    let resharding = &plan.resharding;
    if resharding.to_plan.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "Shards, one deployment or UpdateShardCount a step, at most {} a day: {}. Afterwards: {}.",
        resharding.steps_a_day_max,
        steps(resharding.shards_now, &resharding.to_plan),
        steps(plan.shards, &resharding.back),
    )]
}

/// The quotas that an account does not have unless it asked for them.
fn quotas(plan: &Plan) -> Vec<String> {
    let line = |quota: &Quota| {
        format!(
            "    {} {}: {}, {} by default, {} needed; ask {} days before{}",
            quota.service_code,
            quota.quota_code.unwrap_or("(no code)"),
            quota.name,
            count(quota.default),
            count(quota.needed),
            quota.ask_days_before,
            if quota.confirmed { "" } else { " (not confirmed)" },
        )
    };
    let exceeded: Vec<_> = plan.quotas.iter().filter(|quota| quota.exceeded).map(line).collect();
    if exceeded.is_empty() {
        return Vec::new();
    }
    let mut lines =
        vec!["Quotas of the account that must be raised. AWS promises no time; these are assumed:".to_owned()];
    lines.push(String::new());
    lines.extend(exceeded);
    lines
}

fn bill(plan: &Plan) -> Vec<String> {
    let bill = &plan.bill;
    let mut lines = vec![
        format!("Estimated price, {} for {}:", bill.region, span(plan.question.up_for.as_secs_f64())),
        String::new(),
    ];
    lines.extend(bill.lines.iter().map(|line| {
        format!("{:<NAME_WIDTH$}{:>VALUE_WIDTH$.2} {:<22}{:>10.2} USD", line.what, line.quantity, line.unit, line.usd)
    }));
    let total_width = NAME_WIDTH + VALUE_WIDTH + 23;
    lines.push(format!("{:<total_width$}{:>10.2} USD", "total", bill.total_usd));
    for (what, usd) in [
        ("of it, shards, records and vote writes", bill.stream_and_writes_usd),
        ("AWS sample: shards, records and vote writes", plan.aws_sample.stream_and_writes_usd),
    ] {
        lines.push(format!("{what:<total_width$}{usd:>10.2} USD"));
    }
    lines.push(format!("Not included: {}. {}", bill.not_included.join(", "), bill.note));
    let mut pages: Vec<_> = bill
        .prices
        .iter()
        .map(|price| {
            let unsure = if price.confirmed { "" } else { ", not confirmed" };
            format!("{} ({}{unsure})", price.page, price.read_on)
        })
        .collect();
    pages.sort_unstable();
    pages.dedup();
    lines.push(format!("Prices: {}.", pages.join("; ")));
    lines
}

fn row(name: &str, ours: &str, sample: &str) -> String {
    format!("{name:<NAME_WIDTH$}{ours:>VALUE_WIDTH$}{sample:>VALUE_WIDTH$}").trim_end().to_owned()
}

fn drain(persist: &Persist) -> String {
    let name = persist
        .budget_write_units_per_second
        .map_or_else(|| "no limit".to_owned(), |budget| format!("--write-units-per-second {budget}"));
    format!(
        "{name:<NAME_WIDTH$}{:>VALUE_WIDTH$}{:>14}{:>20}{:>12}{:>12}",
        count(persist.write_units_per_second),
        count(persist.tasks),
        span(persist.hottest_partition.drain_seconds_on_average),
        span(persist.drain_seconds),
        span(persist.final_after_seconds),
    )
}

fn count(value: u64) -> String {
    HumanCount(value).to_string()
}

fn tenth(value: f64) -> String {
    format!("{value:.1}")
}

/// A time in whole seconds, written in its largest units: 45s, 12m 30s, 2h 5m.
fn span(seconds: f64) -> String {
    let whole = Duration::from_secs_f64(seconds.round()).as_secs();
    match (whole / 3_600, whole / 60 % 60, whole % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, 0) => format!("{minutes}m"),
        (0, minutes, seconds) => format!("{minutes}m {seconds}s"),
        (hours, 0, _) => format!("{hours}h"),
        (hours, minutes, _) => format!("{hours}h {minutes}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Question, tests::event};

    #[test]
    fn times_are_short() {
        let cases =
            [(0.0, "0s"), (29.6, "30s"), (600.0, "10m"), (750.0, "12m 30s"), (7_500.0, "2h 5m"), (86_400.0, "24h")];
        for (seconds, text) in cases {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn the_parameters_can_be_pasted_and_the_estimate_says_that_it_is_one() {
        let question = Question { write_units_per_second: Some(200_000), ..event(1_000_000, 30_000_000, 30) };
        let plan = plan::plan(question).unwrap();
        let text = describe(&plan).join("\n");
        assert!(text.starts_with("An estimate for 30,000,000 votes"), "{text}");
        assert!(text.contains(" -c shards=42 -c ingestTasks=47 "), "{text}");
        assert!(
            text.contains(
                " -c writeUnitsPerSecond=200000 -c warmWriteUnits=400000 -c loadBalancers=3 -c reservedLcus=13334 \
                 -c pinTasks=true\n    votestream poll create --expected-peak 1000000 "
            ),
            "{text}"
        );
        assert!(text.lines().any(|line| line.starts_with("shards ") && line.ends_with("1,000")), "{text}");
        assert!(text.contains("at most 10 a day: 4, 8, 16, 32, 42. Afterwards: 42, 21, 11, 6, 4."), "{text}");
        assert!(
            text.contains("elasticloadbalancing L-8A66D0E6: Reserved Application Load Balancer Capacity Units"),
            "{text}"
        );
        assert!(!text.contains("Shards per Region"), "a quota that is enough: {text}");
        assert!(text.contains("Estimated price, us-east-1 for 24h:"), "{text}");
        assert!(text.contains("AWS Fargate pricing, Linux/ARM (2026-11-24, not confirmed)"), "{text}");
    }
}
