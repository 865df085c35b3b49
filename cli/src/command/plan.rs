//! `votestream plan`: what an event needs on AWS, as a table and as parameters to paste.
//!
//! Owns how a plan is shown. Must never compute one: `crate::plan` does that.

use std::time::Duration;

use indicatif::HumanCount;

use crate::{
    args::{Global, PlanArgs},
    failure::{Answer, Failure, Outcome},
    output,
    plan::{self, Persist, Plan, Question},
};

/// Width of the column of names.
const NAME_WIDTH: usize = 38;
/// Width of a column of values.
const VALUE_WIDTH: usize = 20;

pub(super) fn run(global: &Global, args: PlanArgs) -> Outcome {
    let plan = plan::plan(Question {
        peak_votes_per_second: args.peak,
        voters: args.voters,
        duration: args.duration,
        revote_share: args.revote_share,
        write_units_per_second: args.write_units_per_second,
        clients: args.clients,
        up_for: args.up_for,
    })
    .map_err(Failure::usage)?;
    if global.json {
        output::json(&plan)?;
    } else {
        output::lines(&describe(&plan))?;
    }
    Ok(Answer::Yes)
}

fn describe(plan: &Plan) -> Vec<String> {
    let sample = &plan.aws_sample;
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
        row("DynamoDB partitions (buckets)", &count(plan.buckets), ""),
        row("table of votes warmed for units/s", &count(plan.warm_write_units_per_second), ""),
        row(&format!("tasks: ingest, {} vCPU", plan.task_vcpus), &count(plan.ingest_tasks), ""),
        row(&format!("  persist, {} vCPU", plan.task_vcpus), &count(plan.persist_tasks), ""),
        row(&format!("  tally, {} vCPU", plan.tally_task_vcpus), &count(plan.tally_tasks), ""),
        String::new(),
        "From the last vote to a complete table of votes, if all come at the peak rate at the end:".to_owned(),
        String::new(),
        format!(
            "{:<NAME_WIDTH$}{:>VALUE_WIDTH$}{:>14}{:>12}{:>12}",
            "", "write units/s", "persist tasks", "complete", "final"
        ),
        drain(&plan.persist_unlimited),
        drain(&plan.persist_with_budget),
        format!(
            "{:<NAME_WIDTH$}{:>VALUE_WIDTH$}{:>14}{:>12}{:>12}",
            "AWS sample, scaled with its shards",
            count(sample.write_units_per_second),
            "",
            span(sample.drain_seconds),
            "",
        ),
        String::new(),
        format!(
            "Estimated price, {} for {}, list transcribed on {}:",
            plan.bill.region,
            span(plan.question.up_for.as_secs_f64()),
            plan.bill.prices_transcribed_on
        ),
        String::new(),
    ];
    lines.extend(plan.bill.lines.iter().map(|line| {
        format!("{:<NAME_WIDTH$}{:>VALUE_WIDTH$.2} {:<22}{:>10.2} USD", line.what, line.quantity, line.unit, line.usd)
    }));
    let total_width = NAME_WIDTH + VALUE_WIDTH + 23;
    lines.push(format!("{:<total_width$}{:>10.2} USD", "total", plan.bill.total_usd));
    for (what, usd) in [
        ("of it, shards, records and vote writes", plan.bill.stream_and_writes_usd),
        ("AWS sample: shards, records and vote writes", sample.stream_and_writes_usd),
    ] {
        lines.push(format!("{what:<total_width$}{usd:>10.2} USD"));
    }
    lines.push(format!("Not included: {}. {}", plan.bill.not_included.join(", "), plan.bill.note));
    lines.push(format!("Sources: {}.", plan.bill.sources.join("; ")));
    lines.push(String::new());
    lines.extend(plan.notes.iter().map(|note| format!("Note: {note}.")));
    lines.push(String::new());
    lines.push("For the CDK app, and for the polls:".to_owned());
    lines.push(String::new());
    let context: String = plan.cdk.pairs().map(|(name, value)| format!(" -c {name}={value}")).collect();
    lines.push(format!("    npx cdk deploy --all{context}"));
    lines.push(format!("    votestream poll create --expected-peak {} …", plan.expected_peak));
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
        "{name:<NAME_WIDTH$}{:>VALUE_WIDTH$}{:>14}{:>12}{:>12}",
        count(persist.write_units_per_second),
        count(persist.tasks),
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
    use crate::plan::Clients;

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
        let plan = plan::plan(Question {
            peak_votes_per_second: 1_000_000,
            voters: 30_000_000,
            duration: Duration::from_secs(30),
            revote_share: 0.0,
            write_units_per_second: Some(200_000),
            clients: Clients::Direct,
            up_for: Duration::from_secs(86_400),
        })
        .unwrap();
        let text = describe(&plan).join("\n");
        assert!(text.starts_with("An estimate for 30,000,000 votes"), "{text}");
        assert!(text.contains(" -c shards=42 -c ingestTasks=16 "), "{text}");
        assert!(
            text.contains(" -c writeUnitsPerSecond=200000 -c warmWriteUnits=200000\n    votestream poll create --expected-peak 1000000 "),
            "{text}"
        );
        assert!(text.lines().any(|line| line.starts_with("shards ") && line.ends_with("1,000")), "{text}");
        assert!(text.contains("Estimated price, us-east-1 for 24h, list transcribed on 2"), "{text}");
    }
}
