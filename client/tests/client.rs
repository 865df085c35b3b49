//! The client against small services that fail in every way. Everything is in memory and on a paused clock: a test that waits
//! for nothing takes no time, and none depends on how fast a machine is.

#![allow(clippy::disallowed_methods, reason = "channels of a test hold what the test sends")]

#[path = "client/cast.rs"]
mod cast;
#[path = "client/exact.rs"]
mod exact;
#[path = "client/fake.rs"]
mod fake;
#[path = "client/messages.rs"]
mod messages;
#[path = "client/stream.rs"]
mod stream;
#[path = "client/watch.rs"]
mod watch;
