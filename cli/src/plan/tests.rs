//! The plans for three known shows, and rules that hold for every event.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use votestream_core::TimeBounds;

use super::{
    question::{PEAK_MAX, VOTERS_MAX},
    *,
};

/// An event of phones, with what the command has for everything else.
pub(crate) fn event(peak: u64, voters: u64, seconds: u64) -> Question {
    Question {
        peak_votes_per_second: peak,
        voters,
        duration: Duration::from_secs(seconds),
        revote_share: 0.0,
        options: 10,
        write_units_per_second: None,
        clients: Clients::Direct,
        tokens: Tokens::Es256,
        shards_now: 4,
        up_for: Duration::from_secs(86_400).max(Duration::from_secs(seconds)),
        reserved_for: Duration::from_secs(14_400).max(Duration::from_secs(seconds)),
    }
}

/// The three shows: 20,000 votes/s for ten minutes, 100,000 for one, and a million for half of one.
fn shows(clients: Clients) -> [Plan; 3] {
    let shows = [(20_000, 12_000_000, 600), (100_000, 6_000_000, 60), (1_000_000, 30_000_000, 30)];
    shows.map(|(peak, voters, seconds)| plan(Question { clients, ..event(peak, voters, seconds) }).unwrap())
}

/// The codes of the quotas that the account must have raised.
fn raised(plan: &Plan) -> Vec<&'static str> {
    let exceeded = plan.quotas.iter().filter(|quota| quota.exceeded);
    exceeded.map(|quota| quota.quota_code.unwrap_or(quota.name)).collect()
}

/// How much of a quota is needed.
fn needed(plan: &Plan, code: &str) -> u64 {
    plan.quotas.iter().find(|quota| quota.quota_code == Some(code)).unwrap().needed
}

const VCPUS: &str = "L-3032A538";
const RESERVED_UNITS: &str = "L-8A66D0E6";
const TABLE_WRITES: &str = "L-AB614373";

#[test]
fn what_three_shows_need_however_their_votes_come() {
    let needs = |plan: &Plan| {
        let hottest = plan.persist().hottest_partition;
        (plan.shards, plan.persist_tasks, plan.buckets, plan.warm_write_units_per_second, hottest)
    };
    for clients in [Clients::Direct, Clients::Relay] {
        let [small, middle, large] = shows(clients);
        let hottest = |partitions, average, most, drain_average, drain_most| persist::HottestPartition {
            partitions,
            buckets_if_even: 8.0,
            buckets_on_average: average,
            buckets_at_most: most,
            drain_seconds_on_average: drain_average,
            drain_seconds_at_most: drain_most,
        };
        assert_eq!(needs(&small), (2, 2, 320, 40_000, hottest(40, 14.6, 18, 7.9, 75.0)));
        assert_eq!(needs(&middle), (5, 2, 1_600, 200_000, hottest(200, 16.7, 19, 3.7, 11.3)));
        assert_eq!(needs(&large), (42, 7, 16_000, 2_000_000, hottest(2_000, 19.3, 22, 6.3, 11.3)));
        assert_eq!(
            [&small, &middle, &large].map(|plan| plan.resharding.to_plan.clone()),
            [vec![2], vec![5], vec![8, 16, 32, 42]]
        );
        // The hottest partition decides when the table is complete, and so when a result is final.
        assert_eq!([&small, &middle, &large].map(|plan| plan.persist().drain_seconds), [77.0, 13.3, 13.3]);
        assert_eq!([&small, &middle, &large].map(|plan| plan.persist().final_after_seconds), [77.0, 13.3, 13.3]);
        assert_eq!([&small, &middle, &large].map(|plan| plan.recount.seconds), [48.8, 24.4, 122.1]);
    }
}

/// Tasks behind load balancers, new connections a second, load balancers, and the units to reserve for each.
fn edge(plan: &Plan) -> ((u64, u64), u64, u64, u64) {
    let Edge { new_connections_per_second, load_balancers, reserved_units_each, .. } = plan.edge;
    ((plan.ingest_tasks, plan.tally_tasks), new_connections_per_second, load_balancers, reserved_units_each)
}

#[test]
fn what_three_shows_of_phones_need_at_the_edge() {
    let [small, middle, large] = shows(Clients::Direct);
    assert_eq!(edge(&small), ((2, 2), 20_000, 1, 800));
    assert_eq!(edge(&middle), ((5, 2), 100_000, 1, 4_000));
    // 40,000 capacity units, of which one load balancer has 15,000 at most.
    assert_eq!(edge(&large), ((47, 6), 1_000_000, 3, 13_334));
    assert_eq!(large.edge.capacity_units.needed, 40_000);
    let distributions = [&small, &middle, &large].map(|plan| plan.edge.cloudfront.as_ref().unwrap().distributions);
    assert_eq!(distributions, [1, 1, 4]);
    // Idle connections stay open for a minute.
    assert_eq!([&small, &middle, &large].map(|plan| plan.edge.open_connections), [1_200_000, 6_000_000, 30_000_000]);
    assert_eq!(raised(&small), [VCPUS, RESERVED_UNITS]);
    assert_eq!(raised(&middle), [VCPUS, RESERVED_UNITS, TABLE_WRITES]);
    assert_eq!(raised(&large), [VCPUS, RESERVED_UNITS, TABLE_WRITES]);
    assert_eq!((needed(&large, VCPUS), needed(&large, RESERVED_UNITS)), (514, 40_002));
    assert_eq!(needed(&large, TABLE_WRITES), 2_000_000);
    let dollars = [&small, &middle, &large].map(|plan| plan.bill.total_usd.round());
    assert_eq!(dollars, [70.0, 281.0, 2_756.0]);
}

#[test]
fn what_three_shows_of_relays_need_at_the_edge() {
    let [small, middle, large] = shows(Clients::Relay);
    assert_eq!(edge(&small), ((2, 2), 2, 1, 0));
    assert_eq!(edge(&middle), ((2, 2), 10, 1, 0));
    // The bytes of 1,000,000 votes/s.
    assert_eq!(edge(&large), ((2, 2), 100, 1, 288));
    assert!([&small, &middle, &large].iter().all(|plan| plan.edge.cloudfront.is_none()));
    assert_eq!(raised(&small), [VCPUS]);
    assert_eq!(raised(&middle), [VCPUS, TABLE_WRITES]);
    assert_eq!(raised(&large), [VCPUS, RESERVED_UNITS, TABLE_WRITES]);
    let dollars = [&small, &middle, &large].map(|plan| plan.bill.total_usd.round());
    assert_eq!(dollars, [45.0, 147.0, 1_394.0]);
}

#[test]
fn twenty_thousand_a_second_for_ten_minutes_as_the_sample_published() {
    let [plan, ..] = shows(Clients::Direct);
    assert_eq!((plan.shards, plan.aws_sample.shards), (2, 20));
    assert_eq!((plan.vote_write_units_max, plan.vote_write_units_min), (12_000_000, 12_000_000));
    assert!(plan.interim_write_units_per_second < plan.aws_sample.interim_write_units_per_second);
    // "The vote table complete about 12 minutes after the last vote", at 18,000 write units/s.
    assert_eq!((plan.aws_sample.write_units_per_second, plan.aws_sample.vote_write_units), (18_000, 24_000_000));
    assert!((700.0..760.0).contains(&plan.aws_sample.drain_seconds), "{}", plan.aws_sample.drain_seconds);
    assert!(plan.bill.stream_and_writes_usd < plan.aws_sample.stream_and_writes_usd / 2.0);
    assert!(plan.bill.stream_and_writes_usd < plan.bill.total_usd);
}

#[test]
fn a_limit_on_write_units_costs_time_and_fewer_tasks() {
    let [_, _, plan] = shows(Clients::Direct);
    assert_eq!(plan.persist_unlimited.write_units_per_second, 1_000_000);
    // 30 million at the default quota of a table: 750 s, of which 30 have passed at the last vote.
    assert_eq!(plan.persist_with_budget.budget_write_units_per_second, Some(40_000));
    assert_eq!(plan.persist_with_budget.drain_seconds, 722.0);
    assert!(plan.notes.iter().any(|note| note.contains("default quota of 40000")), "{:?}", plan.notes);
    assert_eq!(plan.cdk.write_units_per_second, 0);
    let question =
        Question { clients: Clients::Relay, write_units_per_second: Some(100_000), ..event(1_000_000, 30_000_000, 30) };
    let plan = super::plan(question).unwrap();
    assert_eq!((plan.ingest_tasks, plan.persist_tasks), (2, 2));
    // No partition has to write faster than it can.
    assert_eq!(plan.persist_with_budget.drain_seconds, 272.0);
    assert_eq!((plan.cdk.persist_tasks, plan.cdk.persist_tasks_max), (2, Some(2)));
    assert_eq!((plan.cdk.write_units_per_second, plan.cdk.warm_write_units), (100_000, 200_000));
    assert_eq!(plan.warm_write_units_per_second, 200_000);
}

#[test]
fn votes_that_wait_longer_than_the_stream_keeps_them_are_no_plan() {
    let of = |budget| plan(Question { write_units_per_second: Some(budget), ..event(1_000_000, 30_000_000, 30) });
    let (quick, slow) = (of(40_000).unwrap(), of(300).unwrap());
    assert_eq!(quick.cdk.retention_hours, None);
    // 30 million votes at 300 a second: 27.8 hours.
    assert_eq!(slow.cdk.retention_hours, Some(56));
    assert!(slow.notes.iter().any(|note| note.contains("for 56 hours (retentionHours)")), "{:?}", slow.notes);
    assert!(slow.notes.iter().any(|note| note.contains("--up-for")), "{:?}", slow.notes);
    let longest = Question { write_units_per_second: Some(2), ..event(1_000_000, 60_000_000, 60) };
    let mistake = plan(longest).unwrap_err();
    assert!(mistake.contains("--write-units-per-second"), "{mistake}");
}

#[test]
fn many_options_cost_more_write_units() {
    let of = |options| plan(Question { options, ..event(20_000, 12_000_000, 600) }).unwrap();
    assert_eq!([1, 31, 32, 1_000].map(|options| of(options).tally_row_write_units), [1, 1, 2, 26]);
    let (few, many) = (of(10), of(1_000));
    // Each of two shards flushes once a second, and persists five windows.
    assert_eq!(tenths(many.interim_write_units_per_second - few.interim_write_units_per_second), 50.0);
    let progress = |plan: &Plan| plan.persist_progress_write_units_per_second;
    assert_eq!(tenths(progress(&many) - progress(&few)), 250.0);
    assert!(many.notes.iter().any(|note| note.contains("more than 250 options")), "{:?}", many.notes);
}

#[test]
fn tokens_and_tls_cost_ingest_more_than_votes_do() {
    let tasks = |tokens| plan(Question { tokens, ..event(1_000_000, 30_000_000, 30) }).unwrap().ingest_tasks;
    let all = [Tokens::None, Tokens::Hs256, Tokens::Rs256, Tokens::Eddsa, Tokens::Es256].map(tasks);
    assert_eq!(all, [18, 20, 31, 38, 47]);
}

#[test]
fn changed_votes_cost_up_to_two_units() {
    let plan = plan(Question { revote_share: 0.25, ..event(20_000, 9_000_000, 600) }).unwrap();
    assert_eq!((plan.votes, plan.changed_votes), (12_000_000, 3_000_000));
    assert_eq!((plan.vote_write_units_min, plan.vote_write_units_max), (12_000_000, 15_000_000));
    // The table has to take that rate at the peak.
    assert_eq!((plan.expected_peak, plan.buckets), (25_000, 400));
    // Each changed vote is read before it is replaced: a quarter of the votes.
    assert_eq!(plan.read_units_per_second, 5_000);
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
    let error = plan(event(4_000_000, 1_000_000, 30)).unwrap_err();
    assert!(error.contains("11 load balancers") && error.contains("--clients relay"), "{error}");
    let most = Question { clients: Clients::Relay, revote_share: 0.5, ..event(PEAK_MAX, 1_000_000, 30) };
    let most = plan(most).map(|plan| plan.cdk.warm_write_units);
    // The bound of the CDK app.
    assert!(most.as_ref().is_ok_and(|units| *units <= 100_000_000), "{most:?}");
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
    assert_eq!(json["plan_version"], PLAN_VERSION);
    assert_eq!(json["persist_unlimited"]["drain_seconds"], 77.0);
    assert_eq!(json["bill"]["is_estimate"], true);
    assert_eq!(json["bill"]["region"], "us-east-1");
    let prices = json["bill"]["prices"].as_array().unwrap();
    assert!(prices.iter().all(|price| price["page"].is_string() && price["read_on"].is_string()), "{prices:?}");
    let parameters: BTreeMap<_, _> = plan.cdk.pairs().map(|(name, value)| (name.to_owned(), value)).collect();
    let shown = json["cdk"].as_object().unwrap().iter().map(|(name, value)| (name.clone(), value.to_string()));
    assert_eq!(shown.collect::<BTreeMap<_, _>>(), parameters);
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
    let clients = prop_oneof![Just(Clients::Direct), Just(Clients::Relay)];
    let ways = (prop::option::of(2u32..=10_000_000), clients, 1u64..=1_000, 0u64..=10_000);
    (rates, ways).prop_map(|((peak, seconds, revote_share), (write_units_per_second, clients, options, shards_now))| {
        // As many as load balancers take, one million more included.
        let peak = if clients == Clients::Direct { peak.min(2_700_000) } else { peak };
        let fit = (peak * seconds) as f64 * (1.0 - revote_share) * 0.9;
        let voters = (fit as u64).clamp(1, VOTERS_MAX);
        // Even one vote at a peak of one a second has to fit into the event, with its changes.
        let seconds = seconds.max(20);
        Question { revote_share, write_units_per_second, clients, options, shards_now, ..event(peak, voters, seconds) }
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
        prop_assert!(low.warm_write_units_per_second <= high.warm_write_units_per_second);
        prop_assert!(low.edge.load_balancers <= high.edge.load_balancers);
        prop_assert!(low.edge.capacity_units.needed <= high.edge.capacity_units.needed);
        // What is divided among load balancers may be less for each of more of them, and is rounded up for each.
        prop_assert!(low.edge.reserved_units <= high.edge.reserved_units + high.edge.load_balancers);
        for code in [VCPUS, "L-53DA6B97", TABLE_WRITES, "L-CF0CBE56", "L-0918CF54", "L-DF5E4CA3"] {
            prop_assert!(needed(&low, code) <= needed(&high, code), "{}", code);
        }
        prop_assert!(low.persist_unlimited.write_units_per_second <= high.persist_unlimited.write_units_per_second);
        prop_assert_eq!(low.vote_write_units_max, high.vote_write_units_max);
    }

    #[test]
    fn more_voters_and_more_changes_never_cost_less(question in questions(), fewer in 1u64..1_000_000) {
        let all = plan(question).unwrap();
        let some = plan(Question { voters: question.voters.saturating_sub(fewer).max(1), ..question }).unwrap();
        prop_assert!(some.vote_write_units_max <= all.vote_write_units_max);
        prop_assert!(some.persist_unlimited.drain_seconds <= all.persist_unlimited.drain_seconds);
        prop_assert!(some.recount.seconds <= all.recount.seconds && some.recount.read_units <= all.recount.read_units);
        prop_assert!(some.bill.total_usd <= all.bill.total_usd + 0.001);
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
        // No load balancer has more reserved than it may, and all together have what is needed, or need none.
        prop_assert!(plan.edge.reserved_units_each <= facts::LCU_RESERVED_MAX);
        prop_assert!(plan.ingest_tasks.min(plan.tally_tasks) >= plan.edge.load_balancers * facts::TASKS_MIN);
        let reserved = plan.edge.reserved_units;
        prop_assert!(reserved >= plan.edge.capacity_units.needed || (reserved == 0 && plan.edge.load_balancers == 1));
        // Even buckets would leave half of each partition free, and the hottest has no fewer than that.
        for persist in [plan.persist_unlimited, plan.persist_with_budget] {
            let hottest = persist.hottest_partition;
            prop_assert!(hottest.partitions * facts::PARTITION_UNITS_PER_SECOND >= persist.write_units_per_second);
            prop_assert!(hottest.buckets_at_most as f64 >= hottest.buckets_if_even.floor());
            prop_assert!(hottest.drain_seconds_at_most <= persist.drain_seconds);
        }
        prop_assert!(plan.quotas.iter().all(|quota| quota.exceeded == (quota.needed > quota.default)));
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
