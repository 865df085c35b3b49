//! Traces across the stream: from the request that opened a batch to the windows that hold its votes.
//!
//! Owns the target of the spans, and the hooks through which spans get parents and links. Spans are those of `tracing`.
//! What a `traceparent` means is known only to the hooks, which `process` installs. Must never cost anything per vote,
//! nor anything at all while no hooks are installed: a trace begins only with the `traceparent` of a client.

use std::sync::{Arc, OnceLock};

use tracing::Span;

/// Target of every span that belongs to a trace. Exporters select by it.
pub const TARGET: &str = "votestream::trace";

/// Relates spans to those of other processes, by W3C `traceparent`s.
pub trait Hooks: Send + Sync + 'static {
    /// Whether spans of this `traceparent` are recorded: it must be well-formed and sampled.
    fn is_sampled(&self, traceparent: &str) -> bool;
    /// Makes the span a child of this `traceparent`. Must be called before the span is entered.
    fn set_parent(&self, span: &Span, traceparent: &str);
    /// Links the span to another one.
    fn link(&self, span: &Span, traceparent: &str);
    /// Starts the span, once its parent is set. Returns its own `traceparent`, and records its `trace_id` for the logs.
    fn start(&self, span: &Span) -> Option<String>;
}

static HOOKS: OnceLock<Box<dyn Hooks>> = OnceLock::new();

/// Most spans that a window links to: a window may hold a thousand batches.
const LINKS_MAX: usize = 32;

/// Installs the hooks. Once hooks are installed, they stay.
pub fn install(hooks: Box<dyn Hooks>) {
    HOOKS.get_or_init(|| hooks);
}

/// The `traceparent`, if its spans are recorded.
pub fn sampled(traceparent: &str) -> Option<&str> {
    HOOKS.get().filter(|hooks| !traceparent.is_empty() && hooks.is_sampled(traceparent)).map(|_| traceparent)
}

/// The span that `make` returns, as a child of `traceparent` if that is sampled; otherwise a disabled span. Also
/// returns the span's own `traceparent`.
pub fn child(traceparent: &str, make: impl FnOnce() -> Span) -> (Span, Option<Arc<str>>) {
    match (HOOKS.get(), sampled(traceparent)) {
        (Some(hooks), Some(traceparent)) => {
            let span = make();
            hooks.set_parent(&span, traceparent);
            let own = hooks.start(&span).map(Arc::from);
            (span, own)
        }
        _ => (Span::none(), None),
    }
}

/// Links a span to the sampled ones of these `traceparent`s.
pub fn link<'a>(span: &Span, traceparents: impl IntoIterator<Item = &'a str>) {
    let Some(hooks) = HOOKS.get().filter(|_| !span.is_none()) else { return };
    let sampled = traceparents.into_iter().filter(|traceparent| sampled_by(&**hooks, traceparent));
    sampled.take(LINKS_MAX).for_each(|traceparent| hooks.link(span, traceparent));
}

/// The span that `make` returns, linked to the sampled ones of these `traceparent`s; a disabled span if none is
/// sampled.
pub fn linked<'a>(traceparents: impl IntoIterator<Item = &'a str>, make: impl FnOnce() -> Span) -> Span {
    let Some(hooks) = HOOKS.get() else { return Span::none() };
    let mut last = "";
    // Batches of one stream of votes come one after the other and share their trace.
    let sampled =
        traceparents.into_iter().filter(|&traceparent| traceparent != std::mem::replace(&mut last, traceparent));
    let mut sampled = sampled.filter(|traceparent| sampled_by(&**hooks, traceparent)).take(LINKS_MAX).peekable();
    if sampled.peek().is_none() {
        return Span::none();
    }
    let span = make();
    sampled.for_each(|traceparent| hooks.link(&span, traceparent));
    hooks.start(&span);
    span
}

fn sampled_by(hooks: &dyn Hooks, traceparent: &str) -> bool {
    !traceparent.is_empty() && hooks.is_sampled(traceparent)
}

/// The span that `make` returns if the current span belongs to a trace.
pub fn inner(make: impl FnOnce() -> Span) -> Span {
    let traced = HOOKS.get().is_some() && Span::current().metadata().is_some_and(|span| span.target() == TARGET);
    if traced { make() } else { Span::none() }
}
