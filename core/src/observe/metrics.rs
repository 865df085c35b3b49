//! What is counted and measured, by name.
//!
//! Owns the list of all metrics of the project, in [`COUNTERS`], [`GAUGES`], [`HISTOGRAMS`] and the ages of the shards.
//! A counter is one atomic addition; a histogram does nothing until a sink is installed, one for each exporter. Must never
//! name an exporter: `process` exports them, and its `telemetry` module has the table for operators. Names and labels
//! never change.

use std::{
    collections::BTreeMap,
    sync::{
        OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use crate::{ShardId, Timestamp, port::Group};

/// Labels of one series of a metric.
pub type Labels = &'static [(&'static str, &'static str)];

/// What a metric is called and what it means.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// Name, in the form of OpenTelemetry.
    pub name: &'static str,
    /// Unit in UCUM.
    pub unit: &'static str,
    /// What the value means.
    pub description: &'static str,
}

const fn info(name: &'static str, unit: &'static str, description: &'static str) -> Info {
    Info { name, unit, description }
}

/// A sum that only grows, with one series for each set of labels.
#[derive(Debug)]
pub struct Counter<const SERIES: usize> {
    info: Info,
    labels: [Labels; SERIES],
    values: [AtomicU64; SERIES],
}

impl<const SERIES: usize> Counter<SERIES> {
    const fn new(info: Info, labels: [Labels; SERIES]) -> Self {
        Self { info, labels, values: [const { AtomicU64::new(0) }; SERIES] }
    }

    /// Adds to the series of this index.
    pub fn add(&self, series: usize, count: u64) {
        if let Some(value) = self.values.get(series) {
            value.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// The sum of the series of this index.
    pub fn get(&self, series: usize) -> u64 {
        self.values.get(series).map_or(0, |value| value.load(Ordering::Relaxed))
    }
}

/// A counter as it is exported.
pub trait ReadCounter: Sync {
    /// Its name and meaning.
    fn info(&self) -> Info;
    /// All series.
    fn read(&self, each: &mut dyn FnMut(Labels, u64));
}

impl<const SERIES: usize> ReadCounter for Counter<SERIES> {
    fn info(&self) -> Info {
        self.info
    }

    fn read(&self, each: &mut dyn FnMut(Labels, u64)) {
        for (labels, value) in self.labels.iter().zip(&self.values) {
            each(labels, value.load(Ordering::Relaxed));
        }
    }
}

/// A number that goes up and down.
#[derive(Debug)]
pub struct Gauge {
    /// Its name and meaning.
    pub info: Info,
    value: AtomicI64,
}

impl Gauge {
    const fn new(info: Info) -> Self {
        Self { info, value: AtomicI64::new(0) }
    }

    /// Adds a number, which may be negative.
    pub fn add(&self, change: i64) {
        self.value.fetch_add(change, Ordering::Relaxed);
    }

    /// Replaces the value.
    pub fn set(&self, value: i64) {
        self.value.store(value, Ordering::Relaxed);
    }

    /// The present value.
    pub fn get(&self) -> i64 {
        self.value.load(Ordering::Relaxed)
    }
}

/// Receives the values of a histogram.
pub type Sink = Box<dyn Fn(f64, Labels) + Send + Sync>;

/// Most sinks of a histogram: one for each exporter of a process.
pub const SINKS_MAX: usize = 2;

/// A distribution of values.
pub struct Histogram {
    /// Its name and meaning.
    pub info: Info,
    /// Upper bounds of its buckets.
    pub bounds: &'static [f64],
    /// Filled from the front.
    sinks: [OnceLock<Sink>; SINKS_MAX],
}

impl Histogram {
    const fn new(info: Info, bounds: &'static [f64]) -> Self {
        Self { info, bounds, sinks: [const { OnceLock::new() }; SINKS_MAX] }
    }

    /// Records a value. Looks at one place in memory if there is no sink.
    pub fn record(&self, value: f64, labels: Labels) {
        for sink in self.sinks.iter().map_while(OnceLock::get) {
            sink(value, labels);
        }
    }

    /// Sends all values to this sink as well, from now on. Once a sink is installed, it stays. There is room for
    /// [`SINKS_MAX`]; one more gets nothing.
    pub fn install(&self, mut sink: Sink) {
        for place in &self.sinks {
            match place.set(sink) {
                Ok(()) => return,
                Err(refused) => sink = refused,
            }
        }
    }
}

const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const VOTES: &[f64] = &[1.0, 10.0, 100.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 2.5e4, 5e4, 1e5];
const BYTES: &[f64] = &[256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 524_288.0, 1_048_576.0];

/// Index of a group's series.
const fn of(group: Group) -> usize {
    match group {
        Group::Persist => 0,
        Group::Tally => 1,
    }
}

/// Labels of a group.
pub const fn group_labels(group: Group) -> Labels {
    match group {
        Group::Persist => &[("group", "persist")],
        Group::Tally => &[("group", "tally")],
    }
}

/// Votes that passed validation and were given to a lane.
pub static VOTES_ACCEPTED: Counter<1> =
    Counter::new(info("votestream.ingest.votes.accepted", "{vote}", "Votes that passed validation"), [&[]]);

/// Why a vote was rejected. The order is that of the series of [`VOTES_REJECTED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// It breaks a limit or cannot be read.
    Malformed,
    /// There is no such poll.
    PollNotFound,
    /// The poll has no such option.
    OptionNotFound,
    /// The poll is not open yet.
    PollNotOpen,
    /// The poll is closed.
    PollClosed,
    /// The poll takes its votes from the stream.
    WrongSource,
    /// The poll cannot be read at the moment.
    Unavailable,
    /// The process lacks the key that makes pseudonyms of the poll's users.
    KeyMissing,
    /// Too many votes wait; the client has to try again later.
    Overloaded,
    /// None of these.
    Other,
    /// The caller may not cast it.
    NotAllowed,
}

/// Votes that were rejected, per reason.
pub static VOTES_REJECTED: Counter<11> = Counter::new(
    info("votestream.ingest.votes.rejected", "{vote}", "Votes that were rejected before they reached a lane"),
    [
        &[("reason", "malformed")],
        &[("reason", "poll_not_found")],
        &[("reason", "option_not_found")],
        &[("reason", "poll_not_open")],
        &[("reason", "poll_closed")],
        &[("reason", "wrong_source")],
        &[("reason", "unavailable")],
        &[("reason", "key_missing")],
        &[("reason", "overloaded")],
        &[("reason", "other")],
        &[("reason", "not_allowed")],
    ],
);

/// Counts rejected votes.
pub fn rejected(reason: Rejected, votes: u64) {
    VOTES_REJECTED.add(reason as usize, votes);
}

/// Votes by outcome, in the order of [`crate::produce::Outcome`].
pub static VOTES_SETTLED: Counter<3> = Counter::new(
    info("votestream.lane.votes.settled", "{vote}", "Votes whose outcome is decided"),
    [&[("outcome", "durable")], &[("outcome", "not_stored")], &[("outcome", "unknown")]],
);

/// Votes that were appended to lanes and are not settled yet.
pub static VOTES_UNSETTLED: Gauge =
    Gauge::new(info("votestream.lane.votes.unsettled", "{vote}", "Votes in the lanes that are not settled"));

/// Bytes of votes that are not settled yet, as they were received.
pub static LANE_BYTES: Gauge =
    Gauge::new(info("votestream.lane.bytes", "By", "Bytes of votes, as received, that are not settled"));

/// Connections of clients that are open.
pub static CONNECTIONS: Gauge =
    Gauge::new(info("votestream.server.connections", "{connection}", "Connections of clients that are open"));

/// Bytes of answers that wait for their clients.
pub static ANSWER_BYTES: Gauge =
    Gauge::new(info("votestream.server.answer.bytes", "By", "Bytes of answers that wait for their clients"));

/// Bytes of requests that were received and not yet read, and the memory that keeping them takes, as far as a
/// connection has many.
pub static REQUEST_BYTES: Gauge = Gauge::new(info(
    "votestream.server.request.bytes",
    "By",
    "Memory for requests that were received and not yet read, of connections that hold much",
));

/// Why the server closed a connection. The order is that of the series of [`CONNECTIONS_CLOSED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConnectionClosed {
    /// Its first request did not come in time.
    FirstRequest,
    /// It was without a call for too long.
    Idle,
    /// Its client took nothing of an answer for too long.
    StalledWrite,
    /// It was without a call, and was closed for a new one.
    MadeRoom,
    /// Its address had as many connections as it may have.
    Address,
    /// The answers of all connections took too much memory, and its client had gone longest without taking any.
    AnswerBytes,
    /// The requests of all connections took too much memory, and its requests had gone longest without being read.
    RequestBytes,
    /// It was without a call when the process stopped, or its calls took longer than the drain time.
    Shutdown,
    /// It did not speak TLS where nothing else is spoken.
    PlainText,
    /// Its TLS handshake failed.
    Handshake,
    /// Too many tokens with wrong signatures came on it, one after the other.
    Signatures,
}

/// Connections that the server closed, per reason.
pub static CONNECTIONS_CLOSED: Counter<11> = Counter::new(
    info("votestream.server.connections.closed", "{connection}", "Connections that the server closed, not the client"),
    [
        &[("reason", "first_request")],
        &[("reason", "idle")],
        &[("reason", "stalled_write")],
        &[("reason", "made_room")],
        &[("reason", "address")],
        &[("reason", "answer_bytes")],
        &[("reason", "request_bytes")],
        &[("reason", "shutdown")],
        &[("reason", "plain_text")],
        &[("reason", "handshake")],
        &[("reason", "signatures")],
    ],
);

/// Counts a connection that the server closed.
pub fn connection_closed(reason: ConnectionClosed) {
    CONNECTIONS_CLOSED.add(reason as usize, 1);
}

/// By how much this process's time is ahead of the machine's wall clock.
pub static CLOCK_AHEAD: Gauge = Gauge::new(info(
    "votestream.clock.ahead",
    "ms",
    "By how much the time of this process is ahead of its machine's wall clock, which was set back",
));

/// Whether the engines' answers contradict the skew bound.
pub static CLOCK_CONTRADICTED: Gauge = Gauge::new(info(
    "votestream.clock.contradicted",
    "1",
    "1 while the engines' answers prove that the clock differs from theirs by more than the skew bound: votes are refused",
));

/// Why a call was denied. The order is that of the series of [`CALLS_DENIED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// It has no credential, and needs one.
    Missing,
    /// Its credential cannot be read.
    Malformed,
    /// The issuer of its token is not trusted.
    UnknownIssuer,
    /// Its key, or that of its token, is not known.
    UnknownKey,
    /// Its token is signed by an algorithm that its issuer does not use.
    Algorithm,
    /// Its credential has expired.
    Expired,
    /// Its token is not valid yet.
    NotYetValid,
    /// Its token is for another audience.
    Audience,
    /// The signature of its token is wrong.
    Signature,
    /// A claim of its token is missing or wrong.
    Claims,
    /// Its credential was revoked.
    Revoked,
    /// The keys of its token's issuer cannot be read.
    KeysUnavailable,
    /// Its credential does not allow what it asked for.
    Scope,
    /// Its token was not looked at: too many wrong signatures had come on its connection, which ends.
    NotChecked,
}

/// Calls that were denied, per reason.
pub static CALLS_DENIED: Counter<14> = Counter::new(
    info("votestream.server.calls.denied", "{call}", "Calls that were denied for their credential, or for want of one"),
    [
        &[("reason", "missing")],
        &[("reason", "malformed")],
        &[("reason", "unknown_issuer")],
        &[("reason", "unknown_key")],
        &[("reason", "algorithm")],
        &[("reason", "expired")],
        &[("reason", "not_yet_valid")],
        &[("reason", "audience")],
        &[("reason", "signature")],
        &[("reason", "claims")],
        &[("reason", "revoked")],
        &[("reason", "keys_unavailable")],
        &[("reason", "scope")],
        &[("reason", "not_checked")],
    ],
);

/// Counts a call that was denied.
pub fn denied(reason: Denial) {
    CALLS_DENIED.add(reason as usize, 1);
}

/// A limit on how often others may call. The order is that of the series of [`CALLS_LIMITED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Calls of a voter.
    Voter,
    /// Calls with a credential.
    Credential,
    /// Calls from an address.
    Address,
}

/// Calls that were refused because there were too many, per limit.
pub static CALLS_LIMITED: Counter<3> = Counter::new(
    info("votestream.server.calls.limited", "{call}", "Calls that were refused because their caller calls too often"),
    [&[("reason", "voter")], &[("reason", "credential")], &[("reason", "address")]],
);

/// Counts a call that was refused because there were too many.
pub fn limited(limit: Limit) {
    CALLS_LIMITED.add(limit as usize, 1);
}

/// Votes of a batch.
pub static BATCH_VOTES: Histogram =
    Histogram::new(info("votestream.lane.batch.votes", "{vote}", "Votes of a batch"), VOTES);

/// Size of a record.
pub static BATCH_BYTES: Histogram =
    Histogram::new(info("votestream.lane.batch.size", "By", "Size of a batch as a record, compressed"), BYTES);

/// How long one put took.
pub static PUT_DURATION: Histogram =
    Histogram::new(info("votestream.stream.put.duration", "s", "Time from sending a record to its answer"), SECONDS);

/// How a put ended, as labels of [`PUT_DURATION`].
pub const PUT_STORED: Labels = &[("outcome", "stored")];
/// See [`PUT_STORED`].
pub const PUT_REFUSED: Labels = &[("outcome", "refused")];
/// See [`PUT_STORED`].
pub const PUT_UNKNOWN: Labels = &[("outcome", "unknown")];

/// An operation of an engine that can be throttled, in the order of the series of [`THROTTLES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Throttled {
    /// Putting records.
    Put,
    /// Reading records.
    Read,
    /// Writing votes.
    WriteVotes,
    /// Writing tallies.
    WriteTallies,
    /// Anything else.
    Other,
}

/// Requests, or parts of them, that an engine has throttled.
pub static THROTTLES: Counter<5> = Counter::new(
    info("votestream.engine.throttles", "{request}", "Requests or parts of requests that an engine has throttled"),
    [
        &[("operation", "put_records")],
        &[("operation", "get_records")],
        &[("operation", "write_votes")],
        &[("operation", "write_tallies")],
        &[("operation", "other")],
    ],
);

/// Counts throttled requests, or parts of one.
pub fn throttled(operation: Throttled, count: u64) {
    THROTTLES.add(operation as usize, count);
}

/// Calls to an engine that were not answered in time.
pub static ENGINE_TIMEOUTS: Counter<1> =
    Counter::new(info("votestream.engine.timeouts", "{call}", "Calls that an engine did not answer in time"), [&[]]);

/// Counts a call that was not answered in time.
pub fn engine_timed_out() {
    ENGINE_TIMEOUTS.add(0, 1);
}

/// Calls to an engine that were refused for who makes them.
pub static ENGINE_UNAUTHORIZED: Counter<1> = Counter::new(
    info(
        "votestream.engine.unauthorized",
        "{call}",
        "Calls that an engine refused for the credentials of this process",
    ),
    [&[]],
);

/// Counts a call that was refused for who makes it.
pub fn engine_unauthorized() {
    ENGINE_UNAUTHORIZED.add(0, 1);
}

/// A table of the store, in the order of the series of [`WRITE_UNITS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Votes.
    Votes,
    /// Tallies.
    Tallies,
    /// Shard rows.
    Shards,
    /// Polls.
    Polls,
}

/// Write units that the store reports.
pub static WRITE_UNITS: Counter<4> = Counter::new(
    info("votestream.store.write_units", "{unit}", "Write units that the store reports, rounded up per call"),
    [&[("table", "votes")], &[("table", "tallies")], &[("table", "shards")], &[("table", "polls")]],
);

/// Counts write units.
pub fn write_units(table: Table, units: f64) {
    // The cast turns negative values and NaN into 0.
    WRITE_UNITS.add(table as usize, units.ceil() as u64);
}

/// Votes of a window that count.
pub static WINDOW_VOTES: Histogram =
    Histogram::new(info("votestream.group.window.votes", "{vote}", "Votes of a window that count"), VOTES);

/// How long a window took to apply, retries included.
pub static APPLY_DURATION: Histogram =
    Histogram::new(info("votestream.group.window.duration", "s", "Time to apply a window, retries included"), SECONDS);

/// Time from the arrival of a window's first record to its application.
pub static FLUSH_AGE: Histogram = Histogram::new(
    info("votestream.group.flush.age", "s", "Age of the oldest record of a window when the window is in the store"),
    SECONDS,
);

/// Votes of applied windows that count, per group.
pub static VOTES_APPLIED: Counter<2> = Counter::new(
    info("votestream.group.votes.applied", "{vote}", "Votes that count, in windows that were applied"),
    [group_labels(Group::Persist), group_labels(Group::Tally)],
);

/// Notes that a window was applied.
pub fn window_applied(group: Group, votes: u64, duration: Duration, age: Duration) {
    VOTES_APPLIED.add(of(group), votes);
    WINDOW_VOTES.record(votes as f64, group_labels(group));
    APPLY_DURATION.record(duration.as_secs_f64(), group_labels(group));
    FLUSH_AGE.record(age.as_secs_f64(), group_labels(group));
}

/// What happened to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// This worker took it.
    Taken,
    /// This worker asked another one for it.
    Requested,
    /// This worker committed and released it, or the shard has ended.
    Released,
    /// Another worker owns it.
    Lost,
    /// The shard cannot go on.
    Failed,
}

/// Changes of leases of this process, per group.
pub static LEASE_CHANGES: Counter<10> = Counter::new(
    info(
        "votestream.group.lease.changes",
        "{change}",
        "Leases that this process has taken, asked for, given up or lost",
    ),
    [
        &[("group", "persist"), ("change", "taken")],
        &[("group", "persist"), ("change", "requested")],
        &[("group", "persist"), ("change", "released")],
        &[("group", "persist"), ("change", "lost")],
        &[("group", "persist"), ("change", "failed")],
        &[("group", "tally"), ("change", "taken")],
        &[("group", "tally"), ("change", "requested")],
        &[("group", "tally"), ("change", "released")],
        &[("group", "tally"), ("change", "lost")],
        &[("group", "tally"), ("change", "failed")],
    ],
);

/// Counts a change of a lease.
pub fn lease_changed(group: Group, change: LeaseChange) {
    LEASE_CHANGES.add(of(group) * (LEASE_CHANGES.labels.len() / 2) + change as usize, 1);
}

/// Records that arrived before one of their votes was accepted, by more than the skew bound, per group.
pub static RECORDS_EARLY: Counter<2> = Counter::new(
    info(
        "votestream.group.records.early",
        "{record}",
        "Records that arrived before their votes were accepted, by more than clocks may differ",
    ),
    [group_labels(Group::Persist), group_labels(Group::Tally)],
);

/// Counts records that arrived before their votes were accepted.
pub fn records_early(group: Group, records: u64) {
    RECORDS_EARLY.add(of(group), records);
}

/// Records that arrived later than the time on this process's clock, so that their shard had to wait, per group.
pub static RECORDS_OF_THE_FUTURE: Counter<2> = Counter::new(
    info(
        "votestream.group.records.future",
        "{record}",
        "Records whose arrival is ahead of this process's clock by more than clocks may differ: their shard waits",
    ),
    [group_labels(Group::Persist), group_labels(Group::Tally)],
);

/// Counts a record that arrived in the future.
pub fn record_of_the_future(group: Group) {
    RECORDS_OF_THE_FUTURE.add(of(group), 1);
}

/// All counters except the discards; see [`crate::consume::window::discarded_total`].
pub static COUNTERS: [&(dyn ReadCounter + Sync); 14] = [
    &VOTES_ACCEPTED,
    &VOTES_REJECTED,
    &VOTES_SETTLED,
    &CONNECTIONS_CLOSED,
    &CALLS_DENIED,
    &CALLS_LIMITED,
    &THROTTLES,
    &ENGINE_TIMEOUTS,
    &ENGINE_UNAUTHORIZED,
    &WRITE_UNITS,
    &VOTES_APPLIED,
    &LEASE_CHANGES,
    &RECORDS_EARLY,
    &RECORDS_OF_THE_FUTURE,
];
/// All gauges.
pub static GAUGES: [&Gauge; 7] =
    [&VOTES_UNSETTLED, &LANE_BYTES, &CONNECTIONS, &ANSWER_BYTES, &REQUEST_BYTES, &CLOCK_AHEAD, &CLOCK_CONTRADICTED];
/// All histograms.
pub static HISTOGRAMS: [&Histogram; 6] =
    [&BATCH_VOTES, &BATCH_BYTES, &PUT_DURATION, &WINDOW_VOTES, &APPLY_DURATION, &FLUSH_AGE];

/// Name and meaning of the discards.
pub const DISCARDED: Info =
    info("votestream.group.votes.discarded", "{vote}", "Votes that do not count, and records that cannot be read");
/// Name and meaning of the constant that says which version runs. It is always 1, with a label for the version.
pub const BUILD: Info = info("votestream.build", "1", "Version of this process, in a label");
/// Name and meaning of the shards' ages.
pub const ITERATOR_AGE: Info = info(
    "votestream.group.iterator.age",
    "s",
    "How far a shard's consumer is behind the newest arrival that it has read",
);

/// Shards of this process, with the arrival time of the first record of the window that is being applied; `None` once
/// everything that was read is applied.
static SHARDS: Mutex<BTreeMap<(Group, ShardId), Option<Timestamp>>> = Mutex::new(BTreeMap::new());

/// Notes that a shard's consumer is applying a window that starts with a record of this arrival time.
pub fn shard_behind(group: Group, shard: &ShardId, arrived_at: Timestamp) {
    SHARDS.lock().insert((group, shard.clone()), Some(arrived_at));
}

/// Notes that a shard's consumer has applied all that it has read.
pub fn shard_caught_up(group: Group, shard: &ShardId) {
    SHARDS.lock().insert((group, shard.clone()), None);
}

/// Notes that this process does not consume the shard any more.
pub fn shard_left(group: Group, shard: &ShardId) {
    SHARDS.lock().remove(&(group, shard.clone()));
}

/// How far every shard of this process is behind at a moment. The age of a stuck consumer grows.
pub fn shard_ages(now: Timestamp) -> Vec<(Group, ShardId, Duration)> {
    let age = |behind: &Option<Timestamp>| behind.map_or(Duration::ZERO, |arrived_at| now.since(arrived_at));
    SHARDS.lock().iter().map(|((group, shard), behind)| (*group, shard.clone(), age(behind))).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use super::*;

    #[test]
    fn every_series_has_a_name_of_its_own() {
        let mut seen = BTreeSet::new();
        for counter in COUNTERS {
            counter.read(&mut |labels, _| assert!(seen.insert((counter.info().name, labels))));
        }
        for info in GAUGES.map(|gauge| gauge.info).into_iter().chain(HISTOGRAMS.map(|histogram| histogram.info)) {
            assert!(seen.insert((info.name, &[])), "{}", info.name);
            assert!(info.name.starts_with("votestream."));
        }
        assert!(HISTOGRAMS.iter().all(|histogram| histogram.bounds.is_sorted()));
    }

    #[test]
    fn labels_follow_the_enums() {
        rejected(Rejected::Other, 2);
        connection_closed(ConnectionClosed::Shutdown);
        lease_changed(Group::Tally, LeaseChange::Failed);
        write_units(Table::Polls, f64::NAN);
        write_units(Table::Polls, 0.5);
        let read = |counter: &dyn ReadCounter, of: Labels| {
            let mut found = 0;
            counter.read(&mut |labels, value| found += if labels == of { value } else { 0 });
            found
        };
        assert_eq!(read(&VOTES_REJECTED, &[("reason", "other")]), 2);
        assert_eq!(read(&CONNECTIONS_CLOSED, &[("reason", "shutdown")]), 1);
        assert_eq!(read(&LEASE_CHANGES, &[("group", "tally"), ("change", "failed")]), 1);
        assert_eq!(read(&WRITE_UNITS, &[("table", "polls")]), 1);
    }

    #[test]
    fn a_value_reaches_every_sink_that_is_installed() {
        static HISTOGRAM: Histogram = Histogram::new(info("votestream.test", "s", ""), SECONDS);
        let recorded = Arc::new(Mutex::new(Vec::new()));
        let install = |name: &'static str| {
            let recorded = recorded.clone();
            HISTOGRAM.install(Box::new(move |value, labels| recorded.lock().push((name, value, labels.len()))));
        };
        HISTOGRAM.record(1.0, &[]);
        install("first");
        HISTOGRAM.record(2.0, PUT_STORED);
        install("second");
        HISTOGRAM.record(3.0, &[]);
        install("one too many");
        HISTOGRAM.record(4.0, &[]);
        let expected =
            [("first", 2.0, 1), ("first", 3.0, 0), ("second", 3.0, 0), ("first", 4.0, 0), ("second", 4.0, 0)];
        assert_eq!(*recorded.lock(), expected);
    }

    #[test]
    fn a_shard_that_is_stuck_grows_older() {
        let shard = ShardId::new("metrics test");
        let age = |now| {
            let ages = shard_ages(Timestamp(now));
            ages.into_iter().find(|(_, of, _)| *of == shard).map(|(_, _, age)| age)
        };
        shard_behind(Group::Tally, &shard, Timestamp(1_000));
        assert_eq!((age(1_500), age(9_000)), (Some(Duration::from_millis(500)), Some(Duration::from_secs(8))));
        shard_caught_up(Group::Tally, &shard);
        assert_eq!(age(9_000), Some(Duration::ZERO));
        shard_left(Group::Tally, &shard);
        assert_eq!(age(9_000), None);
    }
}
