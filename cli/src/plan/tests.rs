//! The plan for two known events, and rules that hold for every event.

use proptest::prelude::*;
use votestream_core::{Poll, PollId, PollOption, PollSource, Timestamp};

use super::*;

fn event(peak: u64, voters: u64, seconds: u64) -> Question {
    Question {
        peak_votes_per_second: peak,
        voters,
        duration: Duration::from_secs(seconds),
        revote_share: 0.0,
        write_units_per_second: None,
        clients: Clients::Direct,
        up_for: Duration::from_secs(86_400).max(Duration::from_secs(seconds)),
    }
}

/// The number of buckets that the poll service derives from an expected peak.
fn buckets_of_a_poll(expected_peak: u64) -> u64 {
    let option = PollOption { id: "a".into(), title: String::new() };
    let poll = Poll::new(
        PollId::new("p").unwrap(),
        String::new(),
        vec![option],
        Timestamp(0),
        Timestamp(1),
        PollSource::Ingest,
        expected_peak,
    );
    poll.unwrap().buckets.into()
}

#[test]
fn twenty_thousand_a_second_for_ten_minutes_as_the_sample_published() {
    let plan = plan(event(20_000, 12_000_000, 600)).unwrap();
    assert_eq!((plan.shards, plan.aws_sample.shards), (2, 20));
    assert_eq!((plan.ingest_tasks, plan.persist_tasks, plan.tally_tasks), (2, 2, 2));
    assert_eq!((plan.vote_write_units_max, plan.vote_write_units_min), (12_000_000, 12_000_000));
    assert_eq!((plan.buckets, plan.warm_write_units_per_second), (20, 20_000));
    // Persist keeps up, below a table's default quota.
    assert_eq!(plan.persist_unlimited.drain_seconds, facts::PERSIST_LAG_SECONDS);
    assert_eq!(plan.persist_with_budget.drain_seconds, facts::PERSIST_LAG_SECONDS);
    assert_eq!(plan.persist_unlimited.final_after_seconds, 12.0);
    assert!(plan.interim_write_units_per_second < plan.aws_sample.interim_write_units_per_second);
    // "The vote table complete about 12 minutes after the last vote", at 18,000 write units/s.
    assert_eq!((plan.aws_sample.write_units_per_second, plan.aws_sample.vote_write_units), (18_000, 24_000_000));
    assert!((700.0..760.0).contains(&plan.aws_sample.drain_seconds), "{}", plan.aws_sample.drain_seconds);
    assert!(plan.bill.stream_and_writes_usd < plan.aws_sample.stream_and_writes_usd / 2.0);
    assert!(plan.bill.stream_and_writes_usd < plan.bill.total_usd);
}

#[test]
fn a_million_a_second_for_half_a_minute() {
    let plan = plan(event(1_000_000, 30_000_000, 30)).unwrap();
    assert_eq!((plan.shards, plan.aws_sample.shards), (42, 1_000));
    assert_eq!((plan.ingest_tasks, plan.persist_tasks, plan.tally_tasks), (16, 7, 2));
    assert_eq!((plan.buckets, plan.expected_peak), (1_000, 1_000_000));
    assert_eq!(plan.vote_write_units_max, 30_000_000);
    assert_eq!(plan.persist_unlimited.write_units_per_second, 1_000_000);
    assert_eq!(plan.persist_unlimited.drain_seconds, facts::PERSIST_LAG_SECONDS);
    // 30 million at the default quota of a table: 750 s, of which 30 have passed at the last vote.
    assert_eq!(plan.persist_with_budget.budget_write_units_per_second, Some(40_000));
    assert_eq!(plan.persist_with_budget.drain_seconds, 722.0);
    assert!(plan.notes.iter().any(|note| note.contains("default quota of 40000")), "{:?}", plan.notes);
    assert_eq!(plan.cdk.write_units_per_second, 0);
    assert!((1.0..5_000.0).contains(&plan.bill.total_usd), "{}", plan.bill.total_usd);
}

#[test]
fn relays_cost_fewer_ingest_tasks_and_a_budget_fewer_of_persist() {
    let question =
        Question { clients: Clients::Relay, write_units_per_second: Some(100_000), ..event(1_000_000, 30_000_000, 30) };
    let plan = plan(question).unwrap();
    assert_eq!((plan.ingest_tasks, plan.persist_tasks), (2, 2));
    assert_eq!(plan.persist_with_budget.drain_seconds, 272.0);
    assert_eq!((plan.cdk.persist_tasks, plan.cdk.persist_tasks_max), (2, Some(2)));
    assert_eq!((plan.cdk.write_units_per_second, plan.cdk.warm_write_units), (100_000, 100_000));
    assert_eq!(plan.warm_write_units_per_second, 100_000);
}

#[test]
fn changed_votes_cost_up_to_two_units() {
    let plan = plan(Question { revote_share: 0.25, ..event(20_000, 9_000_000, 600) }).unwrap();
    assert_eq!((plan.votes, plan.changed_votes), (12_000_000, 3_000_000));
    assert_eq!((plan.vote_write_units_min, plan.vote_write_units_max), (12_000_000, 15_000_000));
    // The table has to take that rate at the peak.
    assert_eq!((plan.expected_peak, plan.buckets), (25_000, 25));
}

#[test]
fn mistakes_are_named_all_at_once_and_with_a_way_out() {
    let question = Question {
        peak_votes_per_second: 0,
        voters: 0,
        revote_share: 1.0,
        write_units_per_second: Some(0),
        ..event(1, 1, 1)
    };
    let error = plan(question).unwrap_err();
    for flag in ["--peak", "--voters", "--revote-share", "--write-units-per-second"] {
        assert!(error.contains(flag), "{error}");
    }
    assert!(plan(Question { revote_share: f64::NAN, ..event(1, 1, 1) }).is_err());
    assert!(plan(Question { up_for: Duration::from_secs(1), ..event(1, 1, 2) }).unwrap_err().contains("--up-for"));
    assert!(plan(event(1, 1, 0)).unwrap_err().contains("--duration"));
    let error = plan(event(1_000, 30_000, 29)).unwrap_err();
    assert!(error.contains("--duration of at least 30s") && error.contains("--peak of at least 1035"), "{error}");
    let error = plan(event(PEAK_MAX, 1_000_000, 30)).map(|plan| plan.ingest_tasks);
    assert!(error.is_ok(), "{error:?}");
}

#[test]
fn a_shard_carries_what_was_measured() {
    // 16 bytes for each vote and 250 for each record, at the most records that a shard takes.
    let bytes = facts::SHARD_VOTES_PER_SECOND as f64 * 16.0 + facts::SHARD_RECORDS_PER_SECOND as f64 * 250.0;
    assert!(bytes <= f64::from(1 << 20), "{bytes}");
}

#[test]
fn json_has_units_in_its_names_and_the_parameters_by_theirs() {
    let plan = plan(event(20_000, 12_000_000, 600)).unwrap();
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["question"]["duration_seconds"], 600.0);
    assert_eq!(json["persist_unlimited"]["drain_seconds"], 2.0);
    assert_eq!(json["bill"]["is_estimate"], true);
    assert_eq!(json["bill"]["region"], "us-east-1");
    let parameters: serde_json::Map<_, _> =
        plan.cdk.pairs().map(|(name, value)| (name.to_owned(), value.into())).collect();
    assert_eq!(json["cdk"], serde_json::Value::Object(parameters));
}

#[test]
fn the_parameters_are_settings_of_the_cdk_app() {
    let config = include_str!("../../../deploy/lib/config.ts");
    let (_, settings) = config.split_once("export const SETTINGS = [").unwrap();
    let (settings, _) = settings.split_once(']').unwrap();
    let question = Question { write_units_per_second: Some(100_000), ..event(1_000_000, 30_000_000, 30) };
    for (name, _) in plan(question).unwrap().cdk.pairs() {
        assert!(settings.contains(&format!("'{name}'")), "the CDK app has no {name}: {settings}");
    }
}

/// Questions that have an answer.
fn questions() -> impl Strategy<Value = Question> {
    let rates = (1u64..=10_000_000, 1u64..=100_000, 0.0..0.9f64);
    let ways = (prop::option::of(2u32..=10_000_000), prop_oneof![Just(Clients::Direct), Just(Clients::Relay)]);
    (rates, ways).prop_map(|((peak, seconds, revote_share), (write_units_per_second, clients))| {
        let fit = (peak * seconds) as f64 * (1.0 - revote_share) * 0.9;
        let voters = (fit as u64).clamp(1, VOTERS_MAX);
        // Even one vote at a peak of one a second has to fit into the event, with its changes.
        let seconds = seconds.max(20);
        Question { revote_share, write_units_per_second, clients, ..event(peak, voters, seconds) }
    })
}

proptest! {
    #[test]
    fn a_higher_peak_never_needs_less(question in questions(), more in 1u64..1_000_000) {
        let (low, high) = (
            plan(question).unwrap(),
            plan(Question { peak_votes_per_second: question.peak_votes_per_second + more, ..question }).unwrap(),
        );
        prop_assert!(low.shards <= high.shards);
        prop_assert!(low.aws_sample.shards <= high.aws_sample.shards);
        prop_assert!(low.ingest_tasks <= high.ingest_tasks);
        prop_assert!(low.persist_unlimited.tasks <= high.persist_unlimited.tasks);
        prop_assert!(low.tally_tasks <= high.tally_tasks);
        prop_assert!(low.buckets <= high.buckets);
        prop_assert!(low.expected_peak <= high.expected_peak);
        prop_assert!(low.persist_unlimited.write_units_per_second <= high.persist_unlimited.write_units_per_second);
        prop_assert_eq!(low.vote_write_units_max, high.vote_write_units_max);
    }

    #[test]
    fn more_voters_and_more_changes_never_cost_less(question in questions(), fewer in 1u64..1_000_000) {
        let all = plan(question).unwrap();
        let some = plan(Question { voters: question.voters.saturating_sub(fewer).max(1), ..question }).unwrap();
        prop_assert!(some.vote_write_units_max <= all.vote_write_units_max);
        prop_assert!(some.persist_unlimited.drain_seconds <= all.persist_unlimited.drain_seconds);
        let unchanged = plan(Question { revote_share: 0.0, ..question }).unwrap();
        prop_assert!(unchanged.vote_write_units_max <= all.vote_write_units_max);
        prop_assert!(unchanged.persist_unlimited.tasks <= all.persist_unlimited.tasks);
    }

    #[test]
    fn every_plan_can_be_carried_out(question in questions()) {
        let plan = plan(question).unwrap();
        // Half of each shard stays free, and every consumer has a shard.
        prop_assert!(plan.shards * facts::SHARD_VOTES_PER_SECOND >= question.peak_votes_per_second * facts::SHARD_HEADROOM);
        for tasks in [plan.persist_unlimited.tasks, plan.persist_with_budget.tasks, plan.tally_tasks] {
            prop_assert!((facts::TASKS_MIN..=plan.shards).contains(&tasks));
        }
        // The poll service derives the same number of buckets from the parameter.
        prop_assert_eq!(plan.buckets, buckets_of_a_poll(plan.expected_peak));
        prop_assert!(plan.vote_write_units_min <= plan.vote_write_units_max);
        prop_assert_eq!(plan.votes, question.voters + plan.changed_votes);
        // A limit never makes anything faster, and is never exceeded.
        let (unlimited, braked) = (plan.persist_unlimited, plan.persist_with_budget);
        prop_assert!(braked.drain_seconds >= unlimited.drain_seconds);
        prop_assert!(braked.tasks <= unlimited.tasks);
        prop_assert!(Some(braked.write_units_per_second) <= braked.budget_write_units_per_second);
        for seconds in [unlimited.drain_seconds, braked.drain_seconds, plan.aws_sample.drain_seconds] {
            prop_assert!(seconds.is_finite() && seconds >= 0.0);
        }
        prop_assert!(unlimited.final_after_seconds >= TimeBounds::DISTRIBUTED.late_after().as_secs_f64());
        // The lines of the bill add up to the total.
        prop_assert!(plan.bill.lines.iter().all(|line| line.usd.is_finite() && line.usd >= 0.0));
        let sum: f64 = plan.bill.lines.iter().map(|line| line.usd).sum();
        prop_assert!((sum - plan.bill.total_usd).abs() < 0.001);
    }
}
