//! Accounts that are as planned, that are not, and that do not say.

mod stand_in;

use std::collections::BTreeMap;

use stand_in::{Fault, LIMITS, PLAN, Show, StandIn};
use votestream_preflight::{Line, Plan, Report, check};

async fn report(stand_in: &StandIn) -> Report {
    check(&stand_in.account(), &Plan::from_json(PLAN.as_bytes()).unwrap()).await
}

/// The lines that say no-go.
fn refused(report: &Report) -> Vec<&Line> {
    report.lines.iter().filter(|line| !line.go).collect()
}

/// Calls of an account whose quotas of shards are the default, with two load balancers and one certificate.
fn calls_of_a_go() -> BTreeMap<String, u32> {
    let calls = [
        ("DescribeCapacityReservation", 2),
        ("DescribeCertificate", 1),
        ("DescribeListeners", 2),
        ("DescribeLoadBalancers", 2),
        ("DescribeServices", 3),
        ("DescribeStreamSummary", 1),
        ("DescribeTable", 1),
        ("GetAWSDefaultServiceQuota", 1),
        ("GetServiceQuota", 4),
    ];
    calls.map(|(action, calls)| (action.to_owned(), calls)).into()
}

#[tokio::test]
async fn an_account_as_planned_is_a_go_with_few_calls() {
    let stand_in = StandIn::start(Show::default(), None).await;
    let report = report(&stand_in).await;
    assert!(report.go, "{:#?}", refused(&report));
    // Quotas, stream, table, three services, two load balancers with their reservations, certificate, clock.
    assert_eq!(report.lines.len(), 5 + 2 + 3 + 4 + 1 + 1);
    assert!(report.lines.iter().all(|line| line.go && line.to_do.is_none()));
    assert_eq!(stand_in.calls(), calls_of_a_go());
}

#[tokio::test]
async fn each_thing_that_is_not_as_planned_is_one_no_go_that_says_what_to_do() {
    let running = |name, tasks| {
        let mut running = Show::default().running;
        running.insert(name, tasks);
        Show { running, ..Show::default() }
    };
    let quota = |code, value: Option<f64>| {
        let mut quotas = Show::default().quotas;
        quotas.remove(code);
        quotas.extend(value.map(|value| (code, value)));
        Show { quotas, ..Show::default() }
    };
    let show = Show::default;
    let cases = [
        (quota("L-3032A538", Some(25.0)), "quota of fargate: vCPUs", "25", "--desired-value 26, at least 3 days"),
        // The account never asked, so its default counts.
        (quota("L-8A66D0E6", None), "quota of elasticloadbalancing: units", "0", "L-8A66D0E6 --desired-value 20000"),
        (quota("L-AB614373", None), "quota of dynamodb: writes", "40000", "request-service-quota-increase"),
        (Show { shards: 32, ..show() }, "shards of the stream show", "32", "at most double"),
        (Show { stream_status: "UPDATING", ..show() }, "shards of the stream show", "UPDATING", "wait"),
        (Show { warm: 4_000, ..show() }, "table show-votes", "4000", "warmWriteUnits=400000"),
        (Show { warm_status: "UPDATING", ..show() }, "table show-votes", "UPDATING", "wait"),
        (running("show-ingest-2", 3), "running tasks of ingest", "8", "ingestTasks=9"),
        (running("show-persist", 1), "running tasks of persist", "1", "persistTasks=2"),
        (running("show-tally", 1), "running tasks of tally", "3", "tallyTasks=4"),
        (Show { reserved: 9_999, ..show() }, "reserved capacity units", "9999", "reservedLcus=10000"),
        (Show { reservation: "pending", ..show() }, "reserved capacity units", "pending", "wait"),
        (Show { reservation: "failed", ..show() }, "reserved capacity units", "failed", "ask AWS"),
        (Show { certificate_days: 13, ..show() }, "certificate arn-certificate", "valid for 13 days", "renew"),
        (Show { certificate_days: -1, ..show() }, "certificate arn-certificate", "expired", "renew"),
        (Show { certificate_status: "PENDING_VALIDATION", ..show() }, "certificate", "PENDING_VALIDATION", "renew"),
        (Show { balancers: vec!["show"], ..show() }, "load balancer show-2", "does not exist", "deploy"),
        (Show { ahead: 5, ..show() }, "clock of this machine", "behind", "synchronise"),
        (Show { ahead: -5, ..show() }, "clock of this machine", "ahead", "synchronise"),
    ];
    for (show, what, found, to_do) in cases {
        let shown = format!("{show:?}");
        let stand_in = StandIn::start(show, None).await;
        let report = report(&stand_in).await;
        let lines = refused(&report);
        assert!(!report.go && !lines.is_empty(), "{shown}");
        for line in &lines {
            assert!(line.what.contains(what) && line.found.contains(found), "{shown}: {line:?}");
            assert!(line.to_do.as_ref().unwrap().contains(to_do), "{shown}: {line:?}");
        }
        // Both load balancers have the reservation.
        assert!(lines.len() == 1 || what.starts_with("reserved"), "{shown}: {lines:#?}");
    }
}

#[tokio::test]
async fn a_service_that_starts_tasks_or_is_missing_is_a_no_go() {
    let stand_in = StandIn::start(Show { pending: 1, ..Show::default() }, None).await;
    let pending = report(&stand_in).await;
    let lines = refused(&pending);
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines.iter().all(|line| line.found.contains("under way")), "{lines:#?}");
    let mut running = Show::default().running;
    running.remove("show-tally-2");
    let stand_in = StandIn::start(Show { running, ..Show::default() }, None).await;
    let missing = report(&stand_in).await;
    let lines = refused(&missing);
    assert!(lines.len() == 1 && lines[0].found == "no service show-tally-2", "{lines:#?}");
}

/// The actions that are asked for, with the right that a policy has to allow.
const ACTIONS: [(&str, &str); 9] = [
    ("DescribeCapacityReservation", "elasticloadbalancing:DescribeCapacityReservation"),
    ("DescribeCertificate", "acm:DescribeCertificate"),
    ("DescribeListeners", "elasticloadbalancing:DescribeListeners"),
    ("DescribeLoadBalancers", "elasticloadbalancing:DescribeLoadBalancers"),
    ("DescribeServices", "ecs:DescribeServices"),
    ("DescribeStreamSummary", "kinesis:DescribeStreamSummary"),
    ("DescribeTable", "dynamodb:DescribeTable"),
    ("GetAWSDefaultServiceQuota", "servicequotas:GetAWSDefaultServiceQuota"),
    ("GetServiceQuota", "servicequotas:GetServiceQuota"),
];

#[tokio::test]
async fn an_account_that_denies_a_call_is_a_no_go_and_the_others_are_still_asked() {
    for (action, right) in ACTIONS {
        let stand_in = StandIn::start(Show::default(), Some((action, Fault::Denied))).await;
        let report = report(&stand_in).await;
        let lines = refused(&report);
        let denied = stand_in.calls()[action];
        assert_eq!((lines.len() as u32, denied), (calls_of_a_go()[action], calls_of_a_go()[action]), "{action}");
        for line in lines {
            assert!(line.found.contains("denied"), "{action}: {line:?}");
            assert!(line.to_do.as_ref().unwrap().contains(right), "{action}: {line:?}");
        }
    }
}

#[tokio::test]
async fn a_throttled_call_is_tried_again_and_then_a_no_go() {
    for (action, _) in ACTIONS {
        let stand_in = StandIn::start(Show::default(), Some((action, Fault::Throttled))).await;
        let throttled = report(&stand_in).await;
        let lines = refused(&throttled);
        assert!(!lines.is_empty() && lines.iter().all(|line| line.found.contains("throttled")), "{action}: {lines:#?}");
        assert_eq!(stand_in.calls()[action], LIMITS.tries * calls_of_a_go()[action], "{action}");

        let stand_in = StandIn::start(Show::default(), Some((action, Fault::ThrottledOnce))).await;
        let report = report(&stand_in).await;
        assert!(report.go, "{action}: {:#?}", refused(&report));
        assert_eq!(stand_in.calls()[action], 1 + calls_of_a_go()[action], "{action}");
    }
}

#[tokio::test]
async fn an_account_that_does_not_answer_is_a_no_go_after_its_tries() {
    for action in ["DescribeTable", "DescribeStreamSummary"] {
        let stand_in = StandIn::start(Show::default(), Some((action, Fault::NotAnswered))).await;
        let report = report(&stand_in).await;
        let lines = refused(&report);
        assert!(lines.len() == 1 && lines[0].found.contains("did not answer"), "{action}: {lines:#?}");
        assert_eq!(stand_in.calls()[action], LIMITS.tries, "{action}");
    }
}

#[tokio::test]
async fn an_aws_that_does_not_answer_at_all_is_not_asked_for_ever() {
    let stand_in = StandIn::start(Show::default(), Some(("GetServiceQuota", Fault::NotAnswered))).await;
    let report = report(&stand_in).await;
    let found: Vec<_> = refused(&report).iter().map(|line| line.found.as_str()).collect();
    assert_eq!((found.len(), found.last().copied()), (3, Some("not asked")), "{found:?}");
    assert_eq!(stand_in.calls().into_iter().collect::<Vec<_>>(), [("GetServiceQuota".to_owned(), 2 * LIMITS.tries)]);
}

#[tokio::test]
async fn no_answer_is_read_without_end() {
    // What is under way in sockets and buffers, beside the bound of one answer.
    const UNDER_WAY: usize = 32 << 20;
    let stand_in = StandIn::start(Show::default(), Some(("DescribeTable", Fault::Endless))).await;
    let report = report(&stand_in).await;
    assert!(!report.go && refused(&report).len() == 1, "{:#?}", refused(&report));
    let sent = stand_in.endless();
    assert!(sent > 1 << 20 && sent < UNDER_WAY * LIMITS.tries as usize, "{sent} bytes were sent");
}
