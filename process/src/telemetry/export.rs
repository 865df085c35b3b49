//! The OpenTelemetry pipelines: exporters, the layers of `tracing` that feed them, and the instruments of `core`'s metrics.
//!
//! Must be set up within a runtime that lives longer, because the exporters' connections run on it.

use std::time::Duration;

use opentelemetry::{
    KeyValue,
    metrics::{Meter, MeterProvider},
    trace::TracerProvider,
};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{ExporterBuildError, LogExporter, MetricExporter, SpanExporter};
use opentelemetry_sdk::{Resource, logs::SdkLoggerProvider, metrics::SdkMeterProvider, trace::SdkTracerProvider};
use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, Targets, filter_fn},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};
use votestream_core::{
    clock::wall_clock,
    consume::window::{Discard, discarded_total},
    observe::{
        metrics::{self, Labels},
        trace,
    },
};

use super::{Exports, LogFormat, hooks::OtelHooks};
use crate::terminal::{self, LogOutput, selected_logs};

/// Name of the instrumentation scope.
const SCOPE: &str = "votestream";
/// Longest wait for each signal's last export.
const FLUSH_MAX: Duration = Duration::from_secs(3);
/// Crates that the export itself uses. Their logs must not be exported, or each export would cause another one.
const TRANSPORT: [&str; 6] = ["opentelemetry", "opentelemetry_sdk", "opentelemetry_otlp", "tonic", "h2", "hyper"];

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// An exporter refuses its variables.
    #[error("OTLP: {0}")]
    Exporter(#[from] ExporterBuildError),
    /// Logging was already set up.
    #[error("logs: {0}")]
    Logs(#[from] tracing_subscriber::util::TryInitError),
}

/// The exporters. [`Self::shutdown`] sends what is left.
#[derive(Debug, Default)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
    logs: Option<SdkLoggerProvider>,
}

/// Starts logging and the exports. `name` is the service's name unless the standard variables set one. Must be called
/// once per process, within the runtime.
///
/// # Errors
///
/// If an `OTEL_*` variable cannot be used, or logging was started before.
pub fn init(name: &'static str, format: LogFormat, exports: Exports) -> Result<Telemetry, TelemetryError> {
    let resource = resource(name);
    let mut telemetry = Telemetry::default();
    // Boxed, because each layer may be missing.
    let mut layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> = vec![stderr(format)];
    if exports.traces {
        let exporter = SpanExporter::builder().with_tonic().build()?;
        let provider =
            SdkTracerProvider::builder().with_resource(resource.clone()).with_batch_exporter(exporter).build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(SCOPE))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target() == trace::TARGET));
        layers.push(layer.boxed());
        telemetry.traces = Some(provider);
    }
    if exports.logs {
        let exporter = LogExporter::builder().with_tonic().build()?;
        let provider =
            SdkLoggerProvider::builder().with_resource(resource.clone()).with_batch_exporter(exporter).build();
        let quiet = TRANSPORT.map(|target| (target, LevelFilter::OFF));
        let filter = Targets::new().with_default(LevelFilter::INFO).with_targets(quiet);
        layers.push(OpenTelemetryTracingBridge::new(&provider).with_filter(filter).boxed());
        telemetry.logs = Some(provider);
    }
    tracing_subscriber::registry().with(layers).try_init()?;
    if telemetry.traces.is_some() {
        trace::install(Box::new(OtelHooks));
    }
    if exports.metrics {
        let exporter = MetricExporter::builder().with_tonic().build()?;
        let provider = SdkMeterProvider::builder().with_resource(resource).with_periodic_exporter(exporter).build();
        register(&provider.meter(SCOPE));
        telemetry.metrics = Some(provider);
    }
    Ok(telemetry)
}

impl Telemetry {
    /// What is exported.
    pub fn exports(&self) -> Exports {
        Exports { traces: self.traces.is_some(), metrics: self.metrics.is_some(), logs: self.logs.is_some() }
    }

    /// Sends the spans that have ended, so that a test need not wait for the next export.
    pub fn flush_traces(&self) {
        if let Some(Err(error)) = self.traces.as_ref().map(SdkTracerProvider::force_flush) {
            tracing::warn!(%error, "could not export spans");
        }
    }

    /// Sends what is left, within a few seconds. Blocks: call it outside the runtime's workers.
    pub fn shutdown(self) {
        let metrics = self.metrics.map(|provider| provider.shutdown_with_timeout(FLUSH_MAX));
        let traces = self.traces.map(|provider| provider.shutdown_with_timeout(FLUSH_MAX));
        for error in [metrics, traces].into_iter().flatten().filter_map(Result::err) {
            tracing::warn!(%error, "could not export the last spans and metrics");
        }
        if let Some(Err(error)) = self.logs.map(|provider| provider.shutdown_with_timeout(FLUSH_MAX)) {
            tracing::warn!(%error, "could not export the last logs");
        }
    }
}

fn resource(name: &'static str) -> Resource {
    let set = |variable| std::env::var(variable).is_ok_and(|value: String| !value.is_empty());
    let named = set("OTEL_SERVICE_NAME")
        || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|attributes| attributes.contains("service.name="));
    let builder = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if named { builder.build() } else { builder.with_service_name(name).build() }
}

fn stderr(format: LogFormat) -> Box<dyn Layer<Registry> + Send + Sync> {
    // Spans of traces are few, and the logs take their trace id from them.
    let filter = selected_logs(LevelFilter::INFO).with_target(trace::TARGET, LevelFilter::INFO);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(LogOutput)
        .log_internal_errors(false)
        .with_ansi(terminal::stderr_has_colors());
    match format {
        LogFormat::Text => layer.with_filter(filter).boxed(),
        LogFormat::Json => {
            layer.json().flatten_event(true).with_current_span(true).with_span_list(false).with_filter(filter).boxed()
        }
    }
}

/// Makes an instrument of every metric.
#[expect(clippy::disallowed_methods, reason = "the one place where metrics of core become instruments")]
fn register(meter: &Meter) {
    for counter in metrics::COUNTERS {
        let info = counter.info();
        meter
            .u64_observable_counter(info.name)
            .with_unit(info.unit)
            .with_description(info.description)
            .with_callback(move |observer| {
                counter.read(&mut |labels, value| observer.observe(value, &attributes(labels)));
            })
            .build();
    }
    meter
        .u64_observable_counter(metrics::DISCARDED.name)
        .with_unit(metrics::DISCARDED.unit)
        .with_description(metrics::DISCARDED.description)
        .with_callback(|observer| {
            for reason in Discard::ALL {
                observer.observe(discarded_total(reason), &[KeyValue::new("reason", reason.as_str())]);
            }
        })
        .build();
    for gauge in metrics::GAUGES {
        meter
            .i64_observable_up_down_counter(gauge.info.name)
            .with_unit(gauge.info.unit)
            .with_description(gauge.info.description)
            .with_callback(|observer| observer.observe(gauge.get(), &[]))
            .build();
    }
    meter
        .f64_observable_gauge(metrics::ITERATOR_AGE.name)
        .with_unit(metrics::ITERATOR_AGE.unit)
        .with_description(metrics::ITERATOR_AGE.description)
        .with_callback(|observer| {
            for (group, shard, age) in metrics::shard_ages(wall_clock()) {
                let labels = [KeyValue::new("group", group.as_str()), KeyValue::new("shard", shard.to_string())];
                observer.observe(age.as_secs_f64(), &labels);
            }
        })
        .build();
    for histogram in metrics::HISTOGRAMS {
        let instrument = meter
            .f64_histogram(histogram.info.name)
            .with_unit(histogram.info.unit)
            .with_description(histogram.info.description)
            .with_boundaries(histogram.bounds.to_vec())
            .build();
        histogram.install(Box::new(move |value, labels| instrument.record(value, &attributes(labels))));
    }
}

fn attributes(labels: Labels) -> Vec<KeyValue> {
    labels.iter().map(|(name, value)| KeyValue::new(*name, *value)).collect()
}
