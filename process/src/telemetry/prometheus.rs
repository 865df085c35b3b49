//! The metrics of `core` as text, in the two formats that Prometheus reads.
//!
//! Owns the names under which Prometheus knows them, and the values of the histograms since the exposition was made: it is
//! made once, for the first admin address of the process, so that a process without one keeps no distribution. Must never
//! have a label whose values strangers choose: every series stays in memory here and in Prometheus.

use std::{
    fmt::{self, Debug},
    sync::LazyLock,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet, prometheus_text, text},
    metrics::{
        MetricType,
        family::{Family, MetricConstructor},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};
use votestream_core::{
    clock::wall_clock,
    consume::window::{Discard, discarded_total},
    observe::metrics::{self, Info, Labels},
};

/// A format of the exposition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The text format 0.0.4, which everything reads that reads metrics of Prometheus.
    Text,
    /// OpenMetrics 1.0, which Prometheus prefers.
    OpenMetrics,
}

impl Format {
    /// The format for a request with this `Accept`. Whoever names OpenMetrics can read it, so their order does not matter.
    pub(crate) fn accepted(accept: &str) -> Self {
        match accept.contains("application/openmetrics-text") {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }

    /// The content type of such a text.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Text => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// All metrics of this process at this moment. The first call begins to collect the values of histograms.
pub(crate) fn exposition(format: Format) -> String {
    static REGISTRY: LazyLock<Registry> = LazyLock::new(registry);
    let mut written = String::new();
    let encoded = match format {
        Format::Text => prometheus_text::encode(&mut written, &REGISTRY),
        Format::OpenMetrics => text::encode(&mut written, &REGISTRY),
    };
    // A string takes everything.
    if let Err(error) = encoded {
        tracing::error!(%error, "the metrics cannot be written as text");
    }
    written
}

/// Everything of `core` in one collector. Must be called once: it gives every histogram of `core` a sink, for good.
fn registry() -> Registry {
    let distribution = |histogram: &'static metrics::Histogram| {
        let values = Values::new_with_constructor(Buckets(histogram.bounds));
        let sink = values.clone();
        histogram.install(Box::new(move |value, labels| sink.get_or_create(&labels).observe(value)));
        (Name::of(&histogram.info), values)
    };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Core {
        counters: metrics::COUNTERS.map(|counter| Name::of(&counter.info())).into(),
        gauges: metrics::GAUGES.map(|gauge| Name::of(&gauge.info)).into(),
        histograms: metrics::HISTOGRAMS.map(distribution).into(),
        discarded: Name::of(&metrics::DISCARDED),
        iterator_age: Name::of(&metrics::ITERATOR_AGE),
        build: Name::of(&metrics::BUILD),
    }));
    registry
}

/// The name of a metric for Prometheus, without the suffix of its kind.
struct Name {
    name: String,
    /// Stands last in the name.
    unit: Option<Unit>,
    /// By what values are divided.
    divisor: f64,
    help: String,
}

impl Name {
    fn of(info: &Info) -> Self {
        let (unit, divisor) = match info.unit {
            "s" => (Some(Unit::Seconds), 1.0),
            "ms" => (Some(Unit::Seconds), 1_000.0),
            "By" => (Some(Unit::Bytes), 1.0),
            // A number, or something that is counted and stands in the name.
            _ => (None, 1.0),
        };
        let name = info.name.replace('.', "_");
        let without_unit = unit.as_ref().and_then(|unit| name.strip_suffix(&format!("_{}", unit.as_str())));
        let name = without_unit.map_or(name.clone(), str::to_owned);
        Self { name, unit, divisor, help: info.description.to_owned() + "." }
    }

    /// Writes the head of the metric, and then its series.
    fn encode(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        kind: MetricType,
        series: impl FnOnce(Series<'_>) -> fmt::Result,
    ) -> fmt::Result {
        series(Series(encoder.encode_descriptor(&self.name, &self.help, self.unit.as_ref(), kind)?))
    }
}

/// The series of one metric.
struct Series<'a>(prometheus_client::encoding::MetricEncoder<'a>);

impl Series<'_> {
    fn counter(&mut self, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
        self.0.encode_family(labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)
    }

    fn gauge(&mut self, labels: &impl EncodeLabelSet, value: f64) -> fmt::Result {
        self.0.encode_family(labels)?.encode_gauge(&value)
    }
}

/// The values of a histogram, per set of labels. Labels are built in, so there are few.
type Values = Family<Labels, Histogram, Buckets>;

/// Makes histograms with these upper bounds.
#[derive(Clone)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// All metrics of `core`, in the order of its lists.
struct Core {
    counters: Vec<Name>,
    gauges: Vec<Name>,
    histograms: Vec<(Name, Values)>,
    discarded: Name,
    iterator_age: Name,
    build: Name,
}

impl Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").finish_non_exhaustive()
    }
}

impl Collector for Core {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        self.build.encode(encoder, MetricType::Info, |mut series| {
            series.0.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])
        })?;
        for (name, counter) in self.counters.iter().zip(metrics::COUNTERS) {
            name.encode(encoder, MetricType::Counter, |mut series| {
                let mut encoded = Ok(());
                counter.read(&mut |labels, value| encoded = encoded.and_then(|()| series.counter(&labels, value)));
                encoded
            })?;
        }
        self.discarded.encode(encoder, MetricType::Counter, |mut series| {
            let mut reasons = Discard::ALL.into_iter();
            reasons.try_for_each(|reason| series.counter(&[("reason", reason.as_str())], discarded_total(reason)))
        })?;
        for (name, gauge) in self.gauges.iter().zip(metrics::GAUGES) {
            let value = gauge.get() as f64 / name.divisor;
            name.encode(encoder, MetricType::Gauge, |mut series| series.gauge(&[("", ""); 0], value))?;
        }
        self.iterator_age.encode(encoder, MetricType::Gauge, |mut series| {
            metrics::shard_ages(wall_clock()).into_iter().try_for_each(|(group, shard, age)| {
                let shard = shard.to_string();
                series.gauge(&[("group", group.as_str()), ("shard", &*shard)], age.as_secs_f64())
            })
        })?;
        for (name, values) in &self.histograms {
            name.encode(encoder, MetricType::Histogram, |series| values.encode(series.0))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use votestream_core::{ShardId, Timestamp, observe::metrics::PUT_STORED, port::Group};

    use super::*;

    const TABLE: &str = include_str!("../telemetry.rs");
    const DASHBOARD: &str = include_str!("../../../deploy/grafana/votestream.json");
    const ALARMS: &str = include_str!("../../../deploy/prometheus/votestream.rules.yml");
    const OPERATE: &str = include_str!("../../../docs/operate.md");

    /// Name and kind of every metric, as the text says them.
    fn families(text: &str) -> BTreeMap<&str, &str> {
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
    }

    /// Names of all series that the text has, or will have once there are values.
    fn series(text: &str) -> BTreeSet<String> {
        let of = |(name, kind): (&str, &str)| match kind {
            "histogram" => ["_bucket", "_sum", "_count"].map(|part| format!("{name}{part}")).to_vec(),
            _ => vec![name.to_owned()],
        };
        families(text).into_iter().flat_map(of).collect()
    }

    /// Everything in the text that looks like the name of a metric.
    fn named(text: &str) -> BTreeSet<&str> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.filter(|word| word.starts_with("votestream_")).collect()
    }

    #[test]
    fn every_metric_of_core_is_there_under_a_name_of_prometheus() {
        let infos = metrics::COUNTERS.map(|counter| counter.info()).into_iter();
        let infos = infos.chain(metrics::GAUGES.map(|gauge| gauge.info));
        let infos = infos.chain(metrics::HISTOGRAMS.map(|histogram| histogram.info));
        let infos: Vec<_> = infos.chain([metrics::DISCARDED, metrics::ITERATOR_AGE, metrics::BUILD]).collect();
        let text = exposition(Format::Text);
        let families = families(&text);
        assert_eq!(families.len(), infos.len(), "{families:?}");
        for info in infos {
            let start = info.name.replace('.', "_");
            let found = families.iter().find(|(name, _)| name.starts_with(&start));
            let (name, kind) = found.unwrap_or_else(|| panic!("{} is missing in {families:?}", info.name));
            let rest = &name[start.len()..];
            let expected: &[&str] = match (*kind, info.unit) {
                ("counter", _) => &["_total"],
                (_, "s" | "ms") => &["_seconds"],
                (_, "By") => &["_bytes", ""],
                (_, "1") if info.name == metrics::BUILD.name => &["_info"],
                _ => &[""],
            };
            assert!(expected.contains(&rest), "{name} of {} in {}", info.name, info.unit);
            assert!(text.contains(&format!("# HELP {name} {}.\n", info.description)), "the help of {name}");
            assert!(TABLE.contains(&format!("//! | `{}` | ", info.name)), "{} has no row for operators", info.name);
        }
        for name in
            ["votestream_lane_bytes", "votestream_clock_ahead_seconds", "votestream_stream_put_duration_seconds"]
        {
            assert!(families.contains_key(name), "{name}");
        }
    }

    #[test]
    fn both_formats_have_the_same_metrics() {
        // OpenMetrics says the name of a counter, or of an info, without the end that its series have.
        let names = |text: &str| {
            let names = families(text).into_keys();
            let bare = names.map(|name| name.trim_end_matches("_total").trim_end_matches("_info").to_owned());
            bare.collect::<BTreeSet<_>>()
        };
        let (text, open) = (exposition(Format::Text), exposition(Format::OpenMetrics));
        assert_eq!(names(&text), names(&open));
        assert!(open.ends_with("# EOF\n") && !text.contains("# EOF"));
        assert!(open.contains("# UNIT votestream_stream_put_duration_seconds seconds\n"));
        let browser = "text/html,application/xhtml+xml,*/*;q=0.8";
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert_eq!(Format::accepted(""), Format::Text);
        assert_eq!(Format::accepted(browser), Format::Text);
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
    }

    #[test]
    fn values_arrive_with_their_labels() {
        drop(exposition(Format::Text));
        metrics::PUT_DURATION.record(0.003, PUT_STORED);
        metrics::CLOCK_AHEAD.set(1_500);
        let shard = ShardId::new("a \"quoted\" shard");
        metrics::shard_behind(Group::Persist, &shard, Timestamp(wall_clock().0 - 60_000));
        let text = exposition(Format::Text);
        metrics::shard_left(Group::Persist, &shard);
        metrics::CLOCK_AHEAD.set(0);
        let has = |line: &str| assert!(text.contains(&format!("\n{line}")), "{line} is missing in {text}");
        has("votestream_stream_put_duration_seconds_bucket{outcome=\"stored\",le=\"0.0025\"} 0\n");
        has("votestream_stream_put_duration_seconds_bucket{outcome=\"stored\",le=\"0.005\"} 1\n");
        has("votestream_stream_put_duration_seconds_count{outcome=\"stored\"} 1\n");
        has("votestream_clock_ahead_seconds 1.5\n");
        has("votestream_group_iterator_age_seconds{group=\"persist\",shard=\"a \\\"quoted\\\" shard\"} 6");
        has(&format!("votestream_build_info{{version=\"{}\"}} 1\n", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn what_operators_are_given_names_metrics_that_exist() {
        let text = exposition(Format::Text);
        let series = series(&text);
        for (page, content) in [("the dashboard", DASHBOARD), ("the alarms", ALARMS), ("docs/operate.md", OPERATE)] {
            let named = named(content);
            assert!(named.len() > 8, "{page} names {named:?}");
            for name in named {
                let exists = series.contains(name) || families(&text).contains_key(name);
                assert!(exists, "{page} names {name}, which is no metric");
            }
        }
        for name in families(&text).keys() {
            assert!(OPERATE.contains(&format!("`{name}`")), "docs/operate.md does not say what {name} tells");
        }
    }
}
