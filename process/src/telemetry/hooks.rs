//! Sets parents and links of spans from W3C `traceparent` values.

use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use votestream_core::observe::trace::Hooks;

/// Implements the hooks of `core` with OpenTelemetry.
pub(super) struct OtelHooks;

impl Hooks for OtelHooks {
    fn is_sampled(&self, traceparent: &str) -> bool {
        parse(traceparent).is_some_and(|context| context.is_sampled())
    }

    fn set_parent(&self, span: &Span, traceparent: &str) {
        let Some(parent) = parse(traceparent) else { return };
        if let Err(error) = span.set_parent(Context::new().with_remote_span_context(parent)) {
            tracing::debug!(%error, "could not set the parent of a span");
        }
    }

    fn link(&self, span: &Span, traceparent: &str) {
        if let Some(context) = parse(traceparent) {
            span.add_link(context);
        }
    }

    fn start(&self, span: &Span) -> Option<String> {
        let context = span.context();
        let context = context.span().span_context().clone();
        if !context.is_valid() {
            return None;
        }
        span.record("trace_id", tracing::field::display(context.trace_id()));
        let flags = context.trace_flags().to_u8();
        Some(format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id()))
    }
}

/// Reads a `traceparent`. Later versions of the format may be longer.
fn parse(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-');
    let [version, trace, span, flags] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    let is_hex = |part: &str, length| {
        part.len() == length && part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let well_formed = is_hex(version, 2) && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2);
    if !well_formed || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let context = SpanContext::new(trace, span, flags, true, TraceState::default());
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparents() {
        let sampled = |traceparent| OtelHooks.is_sampled(traceparent);
        assert!(sampled("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        assert!(sampled("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03-more"));
        for not in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "äh-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert!(!sampled(not), "{not}");
        }
    }
}
