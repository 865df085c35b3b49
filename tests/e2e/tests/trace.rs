//! Tests the trace of one vote, from its client's span to its conditional write, as a collector receives it.
//!
//! The stack runs in a separate process, because the standard variables turn the export on. That process is this test
//! binary; the variables tell it which of the two tests has work to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
    time::Duration,
};

use opentelemetry_proto::tonic::{
    common::v1::any_value::Value,
    logs::v1::LogRecord,
    metrics::v1::{NumberDataPoint, metric::Data, number_data_point},
    trace::v1::Span,
};
use tokio::{process::Command, time::timeout};
use tonic::Request;
use votestream_core::{model::hex::to_hex, observe::metrics};
use votestream_e2e::{
    collector::{self, Collector},
    stack::{Stack, TEST_BOUNDS},
};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_process::telemetry::{self, Exports, LogFormat};
use votestream_proto::VotesMessage;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// Votes of the traced stream, and of others.
const VOTES: (usize, usize) = (300, 200);
/// For a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the collector has received, by what it is.
#[derive(Default)]
struct Received {
    spans: Vec<Span>,
    logs: Vec<LogRecord>,
    /// The latest sums and counts, by name.
    metrics: BTreeMap<String, f64>,
    services: BTreeSet<String>,
}

impl Received {
    fn of(received: &collector::Received) -> Self {
        let mut these = Self::default();
        for resource in received.traces.iter().flat_map(|request| &request.resource_spans) {
            for attribute in resource.resource.iter().flat_map(|resource| &resource.attributes) {
                if let Some(Value::StringValue(name)) = attribute.value.as_ref().and_then(|value| value.value.as_ref())
                    && attribute.key == "service.name"
                {
                    these.services.insert(name.clone());
                }
            }
            these.spans.extend(resource.scope_spans.iter().flat_map(|scope| scope.spans.clone()));
        }
        let scopes = received.logs.iter().flat_map(|request| &request.resource_logs);
        let scopes = scopes.flat_map(|resource| &resource.scope_logs);
        these.logs.extend(scopes.flat_map(|scope| scope.log_records.clone()));
        let scopes = received.metrics.iter().flat_map(|request| &request.resource_metrics);
        for metric in scopes.flat_map(|resource| &resource.scope_metrics).flat_map(|scope| &scope.metrics) {
            let sum = |points: &[NumberDataPoint]| {
                points
                    .iter()
                    .map(|point| match point.value {
                        Some(number_data_point::Value::AsInt(value)) => value as f64,
                        Some(number_data_point::Value::AsDouble(value)) => value,
                        None => 0.0,
                    })
                    .sum::<f64>()
            };
            let value = match &metric.data {
                Some(Data::Sum(data)) => sum(&data.data_points),
                Some(Data::Gauge(data)) => sum(&data.data_points),
                Some(Data::Histogram(data)) => data.data_points.iter().map(|point| point.count as f64).sum(),
                Some(Data::ExponentialHistogram(_) | Data::Summary(_)) | None => f64::NAN,
            };
            these.metrics.insert(metric.name.clone(), value);
        }
        these
    }
}

/// Does nothing unless the other test has started this process.
#[tokio::test(flavor = "multi_thread")]
async fn the_stack_that_is_traced() {
    if std::env::var(ENDPOINT).is_err() {
        return;
    }
    let exports = Exports::from_variables(|name| std::env::var(name).ok()).unwrap();
    let telemetry = telemetry::init("votestream-test", LogFormat::Json, exports).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let engine =
        EmbeddedEngine::open(directory.path(), EmbeddedOptions { shards: 2, ..EmbeddedOptions::default() }).unwrap();
    let stack = Stack::start(engine.ports(), TEST_BOUNDS).await;
    stack.create_poll("p", ["x", "y"]).await;

    let traceparents =
        [Some(format!("00-{TRACE}-{CLIENT_SPAN}-01")), None, Some(format!("00-{}-{CLIENT_SPAN}-00", "1".repeat(32)))];
    for (traceparent, votes) in traceparents.iter().zip([VOTES.0, VOTES.1, VOTES.1]) {
        let mut message = VotesMessage::default();
        for user in 0..votes {
            message.push("p", &format!("user {user} {traceparent:?}"), "x");
        }
        // One that is rejected.
        message.push("p", "user", "z");
        let mut request = Request::new(tokio_stream::iter([message]));
        if let Some(traceparent) = traceparent {
            request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
        }
        let answer = stack.ingest().await.cast_votes(request).await.unwrap().into_inner();
        assert_eq!((answer.accepted, answer.rejected), (votes as u64, 1));
    }
    let mut headers = http::HeaderMap::new();
    headers.insert("traceparent", traceparents[0].as_deref().unwrap().parse().unwrap());
    let (span, own) = telemetry::request_span(&headers, "Test");
    assert!(own.unwrap().starts_with(&format!("00-{TRACE}-")));
    span.in_scope(|| tracing::info!("a log within the trace"));
    drop(span);

    assert_eq!(stack.finish("p").await.total_votes, (VOTES.0 + 2 * VOTES.1) as u64);
    stack.stop().await;
    tokio::task::spawn_blocking(move || telemetry.shutdown()).await.unwrap();
    tokio::task::spawn_blocking(move || engine.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vote_is_followed_from_its_client_to_its_conditional_write() {
    if std::env::var(ENDPOINT).is_ok() {
        // The variables come from a shell that exports its own telemetry, not from the other test. So do nothing.
        return;
    }
    let collector = Collector::start().await;
    let traced = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_stack_that_is_traced", "--nocapture"])
        .env(ENDPOINT, &collector.endpoint)
        .env_remove("OTEL_SDK_DISABLED")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let traced = timeout(PATIENCE, traced).await.unwrap().unwrap();
    let errors = String::from_utf8_lossy(&traced.stderr);
    assert!(traced.status.success(), "{errors}\n{}", String::from_utf8_lossy(&traced.stdout));

    let Received { spans, logs, metrics: values, services } = Received::of(&collector.received());
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    // The stream without a trace and the stream with an unsampled trace must leave no span. The third span is the
    // test's own.
    let cast: Vec<_> = named("cast votes").into_iter().filter(|span| text(span, "rpc.method") != "Test").collect();
    let [cast] = cast[..] else { panic!("{cast:#?}") };
    assert_eq!((to_hex(&cast.trace_id), to_hex(&cast.parent_span_id)), (TRACE.into(), CLIENT_SPAN.into()));
    let puts = named("put batch");
    assert!(!puts.is_empty());
    for put in &puts {
        assert_eq!((&put.trace_id, &put.parent_span_id), (&cast.trace_id, &cast.span_id), "{put:#?}");
    }
    for (group, write) in [("persist", "write votes"), ("persist", "write tallies"), ("tally", "write tallies")] {
        let windows: Vec<_> = named("apply window").into_iter().filter(|span| text(span, "group") == group).collect();
        for put in &puts {
            let is_link = |window: &&&Span| {
                window.links.iter().any(|link| (&link.trace_id, &link.span_id) == (&put.trace_id, &put.span_id))
            };
            let window = windows.iter().find(is_link).unwrap_or_else(|| panic!("no window of {group} has {put:#?}"));
            let is_child = |span: &&Span| (&span.trace_id, &span.parent_span_id) == (&window.trace_id, &window.span_id);
            assert!(named(write).into_iter().any(|span| is_child(&span)), "{window:#?} has no {write}");
        }
    }
    assert_eq!(services, BTreeSet::from(["votestream-test".to_owned()]));

    let inside = logs.iter().find(|log| format!("{:?}", log.body).contains("a log within the trace")).unwrap();
    assert_eq!(to_hex(&inside.trace_id), TRACE);
    assert!(errors.lines().any(|line| line.starts_with('{') && line.contains(TRACE)), "{errors}");

    let all = metrics::COUNTERS.iter().map(|counter| counter.info().name);
    let all = all.chain(metrics::GAUGES.iter().map(|gauge| gauge.info.name)).chain([metrics::DISCARDED.name]);
    for name in all {
        assert!(values.contains_key(name), "{name} is not in {values:#?}");
    }
    let votes = (VOTES.0 + 2 * VOTES.1) as f64;
    for (name, expected) in [
        ("votestream.ingest.votes.accepted", votes),
        ("votestream.ingest.votes.rejected", 3.0),
        ("votestream.lane.votes.settled", votes),
        ("votestream.lane.votes.unsettled", 0.0),
        ("votestream.lane.bytes", 0.0),
        ("votestream.group.votes.applied", 2.0 * votes),
        ("votestream.group.votes.discarded", 0.0),
        // Two shards in two groups, taken and released.
        ("votestream.group.lease.changes", 8.0),
    ] {
        assert_eq!(values.get(name), Some(&expected), "{name} in {values:#?}");
    }
    for name in ["votestream.stream.put.duration", "votestream.lane.batch.votes", "votestream.group.flush.age"] {
        assert!(values.get(name).is_some_and(|count| *count >= 1.0), "{name} in {values:#?}");
    }
}

/// An attribute of a span.
fn text<'a>(span: &'a Span, key: &str) -> &'a str {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key);
    match attribute.and_then(|attribute| attribute.value.as_ref()).and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text,
        _ => "",
    }
}
