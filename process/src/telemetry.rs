//! Sets up logs, traces and metrics of a process, and their export by OpenTelemetry.
//!
//! Owns the subscribers of `tracing` and of the metrics of `core`. Logs go to stderr. Nothing is exported unless the
//! standard variables ask for it: OTLP over gRPC is on for the signals that have an endpoint
//! (`OTEL_EXPORTER_OTLP_ENDPOINT`, or `OTEL_EXPORTER_OTLP_{TRACES,METRICS,LOGS}_ENDPOINT`), unless
//! `OTEL_SDK_DISABLED=true` or `OTEL_{…}_EXPORTER=none`. The SDK reads the other `OTEL_*` variables (headers, time
//! limits, intervals, sampler, resource). A vote must never fail because a collector cannot be reached.
//!
//! # Traces
//!
//! A trace begins with the `traceparent` of a client, in gRPC metadata or an HTTP header. A request without one, or
//! with one that is not sampled, costs one look at its headers. The trace has the spans `cast votes` (ingest, child of
//! the client's span), `put batch` (child of `cast votes`, linked to the other spans whose votes share the batch), and
//! in each group `apply window` (linked to the batches of the window) with its children `write votes` and `write
//! tallies`.
//!
//! # Metrics
//!
//! OTLP exports them under the names in the table. `GET /metrics` of the admin address (see [`crate::admin`]) has all of
//! them as well, by the conventions of Prometheus: dots become underscores; the unit stands last (`_seconds`, `_bytes`;
//! `ms` become seconds; what is counted has no unit); counters end in `_total`, and the build in `_info`. So
//! `votestream.lane.batch.size` is `votestream_lane_batch_size_bytes`, and `votestream.server.answer.bytes`, which ends in its
//! unit already, is `votestream_server_answer_bytes`. `docs/operate.md` says what each tells when it goes wrong.
//!
//! | name | kind, unit | labels | what it says |
//! |---|---|---|---|
//! | `votestream.build` | info, 1 | `version` | which version runs; OTLP has it as `service.version` |
//! | `votestream.ingest.votes.accepted` | counter, vote | | votes that passed validation |
//! | `votestream.ingest.votes.rejected` | counter, vote | `reason` | votes rejected before they reached a lane |
//! | `votestream.server.connections` | gauge, connection | | connections of clients that are open |
//! | `votestream.server.connections.closed` | counter, connection | `reason` | connections that the server closed |
//! | `votestream.server.calls.denied` | counter, call | `reason` | calls denied for their credential, or for want of one |
//! | `votestream.server.calls.limited` | counter, call | `reason`: voter, credential, address | calls that were refused because their caller calls too often |
//! | `votestream.server.answer.bytes` | gauge, By | | bytes of answers that wait for their clients |
//! | `votestream.server.request.bytes` | gauge, By | | memory for requests that were received and not yet read, of connections that hold much |
//! | `votestream.lane.votes.settled` | counter, vote | `outcome`: durable, not_stored, unknown | outcomes of accepted votes |
//! | `votestream.lane.votes.unsettled` | gauge, vote | | votes in the lanes |
//! | `votestream.lane.bytes` | gauge, By | | bytes of votes, as received, that are not settled |
//! | `votestream.clock.ahead` | gauge, ms | | by how much this process's time is ahead of a wall clock that was set back |
//! | `votestream.clock.contradicted` | gauge, 1 | | 1 while the engines' answers contradict the skew bound, and votes are refused |
//! | `votestream.lane.batch.votes` | histogram, vote | | votes of a batch |
//! | `votestream.lane.batch.size` | histogram, By | | compressed size of a record |
//! | `votestream.stream.put.duration` | histogram, s | `outcome`: stored, refused, unknown | time of one put |
//! | `votestream.engine.throttles` | counter, request | `operation` | throttled requests and parts of requests |
//! | `votestream.engine.timeouts` | counter, call | | calls that an engine did not answer in time |
//! | `votestream.engine.unauthorized` | counter, call | | calls that an engine refused for the credentials of this process |
//! | `votestream.store.write_units` | counter, unit | `table` | write units as the store reports them |
//! | `votestream.group.votes.applied` | counter, vote | `group` | votes that count |
//! | `votestream.group.votes.discarded` | counter, vote | `reason` | votes that do not count |
//! | `votestream.group.window.votes` | histogram, vote | `group` | votes of a window that count |
//! | `votestream.group.window.duration` | histogram, s | `group` | time to apply a window, retries included |
//! | `votestream.group.flush.age` | histogram, s | `group` | age of a window's oldest record once the window is stored |
//! | `votestream.group.iterator.age` | gauge, s | `group`, `shard` | how far a shard's consumer is behind |
//! | `votestream.group.records.early` | counter, record | `group` | records that arrived before their votes were accepted: a clock is wrong |
//! | `votestream.group.records.future` | counter, record | `group` | records from the future of this process's clock: their shard waits |
//! | `votestream.group.lease.changes` | counter, change | `group`, `change` | leases taken, requested, released, lost, failed |

#[cfg(feature = "otel")]
mod export;
#[cfg(feature = "otel")]
mod hooks;
pub(crate) mod prometheus;

use http::HeaderMap;
use tracing::Span;
use votestream_core::observe::trace;

/// Header of the W3C Trace Context, the same in gRPC metadata.
const TRACEPARENT: &str = "traceparent";

/// The span of a request with votes, and its `traceparent` for the batches. Disabled and empty unless the request's
/// headers say that its trace is sampled.
pub fn request_span(headers: &HeaderMap, method: &'static str) -> (Span, Option<std::sync::Arc<str>>) {
    let Some(traceparent) = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()) else {
        return (Span::none(), None);
    };
    trace::child(traceparent, || {
        tracing::info_span!(
            target: trace::TARGET, "cast votes", otel.kind = "server", rpc.method = method,
            trace_id = tracing::field::Empty,
        )
    })
}

/// Format of the logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line, with the trace id of the span in which it was written.
    Json,
}

/// Which signals are exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exports {
    /// Spans.
    pub traces: bool,
    /// Metrics.
    pub metrics: bool,
    /// Logs.
    pub logs: bool,
}

impl Exports {
    /// Reads the standard variables.
    ///
    /// # Errors
    ///
    /// Every setting in them that is not supported.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Vec<String>> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        if set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(Self::default());
        }
        let mut mistakes = Vec::new();
        let mut signal = |signal: &str| {
            let endpoint =
                set(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")).or_else(|| set("OTEL_EXPORTER_OTLP_ENDPOINT"));
            let exporter = format!("OTEL_{signal}_EXPORTER");
            let wanted = match set(&exporter).as_deref() {
                None | Some("otlp") => endpoint.is_some(),
                Some("none") => false,
                Some(other) => {
                    mistakes.push(format!("{exporter}: {other:?}: expected otlp or none"));
                    false
                }
            };
            let protocols = [format!("OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"), "OTEL_EXPORTER_OTLP_PROTOCOL".into()];
            let protocol = protocols.iter().find_map(|name| set(name).map(|value| (name, value)));
            if let Some((name, value)) = protocol.filter(|(_, value)| wanted && value != "grpc") {
                let mistake = format!("{name}: {value:?}: only grpc is spoken");
                if !mistakes.contains(&mistake) {
                    mistakes.push(mistake);
                }
            }
            wanted
        };
        let exports = Self { traces: signal("TRACES"), metrics: signal("METRICS"), logs: signal("LOGS") };
        if mistakes.is_empty() { Ok(exports) } else { Err(mistakes) }
    }

    /// Whether nothing is exported.
    pub fn is_off(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(feature = "otel")]
pub use export::{Telemetry, TelemetryError, init};

#[cfg(test)]
mod tests {
    use super::*;

    fn exports(variables: &[(&str, &str)]) -> Result<Exports, Vec<String>> {
        let find =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Exports::from_variables(find)
    }

    #[test]
    fn nothing_is_exported_unless_asked_for() {
        let off = Ok(Exports::default());
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317");
        assert_eq!(exports(&[]), off);
        assert_eq!(exports(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), off);
        assert_eq!(exports(&[endpoint, ("OTEL_SDK_DISABLED", "true")]), off);
        assert_eq!(exports(&[("OTEL_TRACES_EXPORTER", "otlp")]), off);
        assert_eq!(exports(&[endpoint]), Ok(Exports { traces: true, metrics: true, logs: true }));
        let no_logs = exports(&[endpoint, ("OTEL_LOGS_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "none")]);
        assert_eq!(no_logs, Ok(Exports { traces: true, ..Exports::default() }));
        let only_metrics = exports(&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://127.0.0.1:4317")]);
        assert_eq!(only_metrics, Ok(Exports { metrics: true, ..Exports::default() }));
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let found = exports(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_LOGS_EXPORTER", "console"),
        ]);
        let expected = [
            "OTEL_EXPORTER_OTLP_PROTOCOL: \"http/protobuf\": only grpc is spoken",
            "OTEL_LOGS_EXPORTER: \"console\": expected otlp or none",
        ];
        assert_eq!(found.unwrap_err(), expected);
    }

    #[test]
    fn a_request_costs_no_span_while_nobody_listens() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap());
        let (span, traceparent) = request_span(&headers, "CastVote");
        assert!(span.is_none() && traceparent.is_none());
    }
}
