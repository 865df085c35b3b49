//! Traces across the stream: from the request that opened a batch to the windows that hold its votes.
//!
//! Owns the names of the spans' target and the hooks through which spans get parents and links. Spans are those of `tracing`;
//! what a `traceparent` means is known to whoever installs the hooks, `process` in practice. Must never cost anything per
//! vote, nor anything at all while no hooks are installed: a trace begins with the `traceparent` of a client and nowhere
//! else.

use std::sync::{Arc, OnceLock};

use tracing::Span;

/// Target of every span that belongs to a trace. Exporters select by it.
pub const TARGET: &str = "votestream::trace";

/// Relates spans to those of other processes, by W3C `traceparent`s.
pub trait Hooks: Send + Sync + 'static {
    /// Whether spans of this `traceparent` are recorded: it is well formed and sampled.
    fn is_sampled(&self, traceparent: &str) -> bool;
    /// Makes the span a child. Must come before the span is entered.
    fn set_parent(&self, span: &Span, traceparent: &str);
    /// Links the span to another one.
    fn link(&self, span: &Span, traceparent: &str);
    /// Starts the span: its parent is settled. Returns its own `traceparent`, and records its `trace_id` for the logs.
    fn start(&self, span: &Span) -> Option<String>;
}

static HOOKS: OnceLock<Box<dyn Hooks>> = OnceLock::new();

/// Most spans that a window links to: a window may hold a thousand batches.
const LINKS_MAX: usize = 32;

/// Installs the hooks. The first ones stay.
pub fn install(hooks: Box<dyn Hooks>) {
    HOOKS.get_or_init(|| hooks);
}

/// The `traceparent`, if its spans are recorded.
pub fn sampled(traceparent: &str) -> Option<&str> {
    HOOKS.get().filter(|hooks| !traceparent.is_empty() && hooks.is_sampled(traceparent)).map(|_| traceparent)
}

/// A span that `make` makes, as a child of a sampled `traceparent`; otherwise a disabled one. With the span comes its own
/// `traceparent`.
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

/// A span that `make` makes, linked to the sampled ones of these `traceparent`s; a disabled one if there are none.
pub fn linked<'a>(traceparents: impl IntoIterator<Item = &'a str>, make: impl FnOnce() -> Span) -> Span {
    let Some(hooks) = HOOKS.get() else { return Span::none() };
    let mut last = "";
    // Batches of one stream of votes follow each other and share their trace.
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

/// A span of `make` if the present one belongs to a trace.
pub fn inner(make: impl FnOnce() -> Span) -> Span {
    let traced = HOOKS.get().is_some() && Span::current().metadata().is_some_and(|span| span.target() == TARGET);
    if traced { make() } else { Span::none() }
}
