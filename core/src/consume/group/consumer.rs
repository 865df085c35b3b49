//! The consumer of one shard: window after window, from the take-over to the hand-over.
//!
//! Owns the order of writes that makes counting exact: store the intent, apply the window, store the next intent. Must
//! never apply a window whose end is not stored under its epoch, never write progress that does not follow from the row
//! it took over, and never commit after its lease is lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use tokio::time::{sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    Applier, ApplyError, GroupConfig,
    loss::Stand,
    prefetch::{Budget, Fetched, Prefetch, Present},
};
use crate::{
    Closing, Moment, Poll, PollId, PollSource, SequenceNumber, Timestamp,
    consume::{
        dedup::DedupTable,
        window::{ReadRecord, Selected, ShardState, Window, decide, polls_named},
    },
    mutation::{self, Mutation},
    observe::{metrics, trace},
    polls::cache::PollCache,
    port::{PortError, Ports, Progress, RETENTION_LEAST, ShardRow, Span, WriteOutcome, backoff::SeededBackoff},
};

/// Attempts at one progress write before the shard is given up.
const PROGRESS_ATTEMPTS_MAX: u32 = 8;
/// Attempts to apply one window after the group was told to stop. After them, the window is left to the next owner.
const APPLY_ATTEMPTS_AT_STOP: u32 = 5;
/// Reports of superseded votes, for one window, after which the shard is given up. The first report flags the polls, and
/// the applier then leaves those votes out. So many reports mean that it does not.
const SUPERSEDED_MAX: u32 = 3;
/// Attempts to flag a poll for recount, and to read the row that shows whether the shard is ours.
const FLAG_ATTEMPTS_MAX: u32 = 5;
/// Most polls that are looked up at a time.
const POLL_READS_MAX: usize = 64;

/// Why a consumer stopped.
#[derive(Debug)]
pub(super) enum Stopped {
    /// It was told to stop, and everything that it applied is committed.
    Drained,
    /// It was told to stop, and one window is not applied: the next owner applies it.
    Interrupted,
    /// The shard has ended.
    Ended,
    /// Another owner holds the lease.
    Fenced,
    /// It cannot go on.
    Failed(String),
    /// It cannot go on without losing votes, as long as its row stands where it stands now.
    Lost(Box<Stand>, String),
}

/// A window that was read, with the decision about each vote.
struct Decided {
    window: Window,
    /// The state at its end.
    state: ShardState,
    /// When its first record arrived.
    oldest: Timestamp,
}

/// What came while records were gathered for a window.
enum Gathered {
    Records(Vec<ReadRecord>),
    /// No record came.
    Idle,
    End,
}

/// One shard under one epoch.
pub(super) struct Consumer {
    config: Arc<GroupConfig>,
    ports: Ports,
    polls: PollCache,
    applier: Box<dyn Applier>,
    row: ShardRow,
    /// Cancelled when the consumer is to hand over.
    stop: CancellationToken,
    backoff: SeededBackoff,
    prefetch: Prefetch,
    /// The stored (checkpoint, window_end).
    stored: Span,
    /// End of the last applied window.
    position: SequenceNumber,
    /// The state at `position`.
    state: ShardState,
    /// The last thing that was read, if it is not a record. Nothing comes after it.
    last: Option<Fetched>,
}

impl Consumer {
    /// A consumer for the row that taking the shard returned.
    pub(super) fn new(
        config: Arc<GroupConfig>,
        ports: Ports,
        polls: PollCache,
        applier: Box<dyn Applier>,
        row: ShardRow,
        stop: CancellationToken,
        budget: Budget,
    ) -> Self {
        let Progress { checkpoint, window_end, ref dedup, watermark, ended: _ } = row.progress;
        let seed = |part: &str| SeededBackoff::new(format!("{} {} {part}", config.worker_id, row.shard).as_bytes());
        let present = Present { clock: ports.clock.clone(), skew_max: config.bounds.clock_skew_max };
        let (stream, shard) = (ports.stream.clone(), row.shard.clone());
        let prefetch = Prefetch::start(stream, config.group, shard, checkpoint, seed("prefetch"), (present, budget));
        Self {
            backoff: seed("consumer"),
            prefetch,
            stored: Span { checkpoint, window_end },
            position: checkpoint,
            state: ShardState { dedup: DedupTable::from_stored(dedup), clock: watermark },
            last: None,
            config,
            ports,
            polls,
            applier,
            row,
            stop,
        }
    }

    /// Runs until the shard ends or is handed over. Dropping it is like a crash, and no vote is counted twice or not at
    /// all.
    pub(super) async fn run(mut self) -> Stopped {
        match self.process().await {
            Ok(stopped) | Err(stopped) => stopped,
        }
    }

    async fn process(&mut self) -> Result<Stopped, Stopped> {
        if self.stored.is_open() {
            // The last owner stopped in the middle of a window. Apply exactly the same window, with the state at its
            // start.
            let records = self.read_again(self.stored.window_end).await?;
            let decided = self.decide(&records, self.stored.window_end).await?;
            self.apply(decided).await?;
        }
        loop {
            match self.gather().await? {
                Gathered::Records(records) => {
                    self.check_resumed(&records)?;
                    let Some(end) = records.last().map(|record| record.sequence) else { continue };
                    let decided = match self.decide(&records, end).await {
                        Ok(decided) => decided,
                        // Nothing was stored about this window yet.
                        Err(Stopped::Interrupted) => return self.drain().await,
                        Err(stopped) => return Err(stopped),
                    };
                    // The state at the checkpoint, which is where the previous window ended.
                    if mutation::is_active(Mutation::NoIntent) {
                        self.apply(decided).await?;
                        self.commit().await?;
                        continue;
                    }
                    self.write_progress(end, false).await?;
                    self.apply(decided).await?;
                }
                Gathered::Idle if self.stop.is_cancelled() => return self.drain().await,
                Gathered::Idle if mutation::is_active(Mutation::WatermarkFromOwnClock) => {
                    self.state.clock = self.state.clock.max(self.ports.clock.now());
                    self.write_progress(self.position, false).await?;
                }
                Gathered::Idle => self.commit().await?,
                Gathered::End => {
                    self.write_progress(self.position, true).await?;
                    return Ok(Stopped::Ended);
                }
            }
        }
    }

    async fn drain(&mut self) -> Result<Stopped, Stopped> {
        self.commit().await?;
        Ok(Stopped::Drained)
    }

    /// Commits the applied window, unless it is committed already.
    async fn commit(&mut self) -> Result<(), Stopped> {
        if self.stored == Span::committed(self.position) {
            return Ok(());
        }
        self.write_progress(self.position, false).await
    }

    /// Whether more was applied than the row says.
    fn is_ahead(&self) -> bool {
        self.stored != Span::committed(self.position)
    }

    /// The records up to `end`, however many.
    async fn read_again(&mut self, end: SequenceNumber) -> Result<Vec<ReadRecord>, Stopped> {
        let mut records = Vec::new();
        let stop = self.stop.clone();
        loop {
            let fetched = tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Stopped::Interrupted),
                fetched = self.prefetch.next() => fetched,
            };
            match fetched {
                Fetched::Record(record, _) if record.sequence < end => records.push(record),
                Fetched::Record(record, _) if record.sequence == end => {
                    records.push(record);
                    return Ok(records);
                }
                Fetched::Record(record, _) => {
                    let found = record.sequence;
                    return Err(Stopped::Failed(format!(
                        "the stored window ends at record {end}, but the stream goes on with {found}"
                    )));
                }
                Fetched::End => {
                    return Err(Stopped::Failed(format!("the shard ends before {end}, the end of the stored window")));
                }
                Fetched::Expired => return Err(self.lost()),
                Fetched::Failed(error) => return Err(Stopped::Failed(format!("reading failed: {error}"))),
            }
        }
    }

    /// Nothing can be read any more. That is no loss if everything had been read before.
    fn has_read_everything(&self) -> bool {
        self.row.ends_at.is_some_and(|end| self.position >= end)
    }

    fn lost(&self) -> Stopped {
        let stand = Stand { span: self.stored, ends_at: self.row.ends_at, started: true };
        let position = self.position;
        let reason = format!(
            "records after {position} may have left the stream's retention unread, and reading on would lose votes"
        );
        Stopped::Lost(Box::new(stand), reason)
    }

    /// After a loss that somebody has accepted, the shard is read from its oldest record. If that record arrived later
    /// than everything that was accepted as lost, and reading may have begun too late, more may be lost by now.
    fn check_resumed(&self, records: &[ReadRecord]) -> Result<(), Stopped> {
        let (Some(lost), Some(first)) = (self.row.lost, records.first()) else { return Ok(()) };
        let resumes = self.position == SequenceNumber::ZERO;
        let is_later = first.arrived_at > lost.until && self.ports.clock.now() > lost.until.plus(RETENTION_LEAST);
        if resumes && is_later { Err(self.lost()) } else { Ok(()) }
    }

    /// The records of the next window: up to the limits, or those that came within the linger time after the first one.
    async fn gather(&mut self) -> Result<Gathered, Stopped> {
        let limits = self.config.window;
        let stop = self.stop.clone();
        let mut records = Vec::new();
        let (mut votes, mut bytes) = (0, 0);
        let wakes = self.is_ahead() || mutation::is_active(Mutation::WatermarkFromOwnClock);
        let mut deadline = wakes.then(|| self.ports.clock.instant() + limits.idle_after);
        while self.last.is_none()
            && votes < limits.votes_max
            && bytes < limits.bytes_max
            && records.len() < limits.records_max
        {
            let fetched = match self.prefetch.ready() {
                // A record that has been read already is taken, whatever the time is.
                Some(fetched) if !stop.is_cancelled() => fetched,
                _ => {
                    let next = async {
                        match deadline {
                            Some(deadline) => timeout_at(deadline, self.prefetch.next()).await.ok(),
                            None => Some(self.prefetch.next().await),
                        }
                    };
                    let fetched = tokio::select! {
                        biased;
                        // The next owner reads the gathered records again.
                        () = stop.cancelled() => return Ok(Gathered::Idle),
                        fetched = next => fetched,
                    };
                    let Some(fetched) = fetched else { break };
                    fetched
                }
            };
            match fetched {
                Fetched::Record(record, share) => {
                    // From here on the record counts towards the limits of the window, no longer towards those of the
                    // prefetch.
                    drop(share);
                    if records.is_empty() {
                        deadline = Some(self.ports.clock.instant() + limits.linger);
                    }
                    votes += record.votes();
                    bytes += record.bytes();
                    records.push(record);
                }
                last @ (Fetched::End | Fetched::Expired | Fetched::Failed(_)) => self.last = Some(last),
            }
        }
        if !records.is_empty() {
            return Ok(Gathered::Records(records));
        }
        match &self.last {
            None | Some(Fetched::Record(..)) => Ok(Gathered::Idle),
            Some(Fetched::End) => Ok(Gathered::End),
            Some(Fetched::Expired) if self.has_read_everything() => Ok(Gathered::End),
            Some(Fetched::Expired) => Err(self.lost()),
            Some(Fetched::Failed(error)) => Err(Stopped::Failed(format!("reading failed: {error}"))),
        }
    }

    async fn decide(&mut self, records: &[ReadRecord], end: SequenceNumber) -> Result<Decided, Stopped> {
        let oldest = records.first().map_or(self.state.clock, |record| record.arrived_at);
        metrics::shard_behind(self.config.group, &self.row.shard, oldest);
        let polls = self.look_up(&polls_named(records)).await?;
        let decision = decide(records, self.state.clone(), &self.row.range, &polls, &self.config.bounds)
            .map_err(|full| Stopped::Failed(full.to_string()))?;
        decision.discards.publish();
        self.report_early(decision.early_records);
        let window = Window {
            shard: self.row.shard.clone(),
            epoch: self.row.lease.epoch,
            start: self.position,
            end,
            selected: decision.selected,
            polls: decision.polls,
        };
        Ok(Decided { window, state: decision.state, oldest })
    }

    /// Reports records that arrived too early: the clock of an ingest process, or of the stream, is wrong. These votes
    /// count, but the next ones may not.
    fn report_early(&self, records: u64) {
        if records > 0 {
            metrics::records_early(self.config.group, records);
            tracing::error!(
                shard = %self.row.shard, records,
                "records arrived before their votes were accepted, by more than clocks may differ: the clock of an ingest \
                 process is ahead, or the stream's is behind"
            );
        }
    }

    /// The polls of these ids that exist. Waits until the store answers.
    async fn look_up(&mut self, ids: &BTreeSet<&PollId>) -> Result<BTreeMap<PollId, Arc<Poll>>, Stopped> {
        let mut polls = BTreeMap::new();
        let mut left: Vec<&PollId> = ids.iter().copied().collect();
        self.backoff.reset();
        // All records have arrived before this moment.
        let mut since = Moment::of(&*self.ports.clock);
        while !left.is_empty() {
            let mut failed = Vec::new();
            let mut failure = None;
            for chunk in left.chunks(POLL_READS_MAX) {
                let answers = join_all(chunk.iter().map(|id| self.polls.get_since(id, since))).await;
                for (&id, answer) in chunk.iter().zip(answers) {
                    match answer {
                        // Its times are about to change, and both groups must judge by the same ones. A poll of the
                        // ingest service needs no wait: it takes no votes between the steps.
                        Ok(Some(poll)) if is_between_steps(&poll) => {
                            failed.push(id);
                            failure = Some(PortError::refused(format!("poll {id} is being closed")));
                        }
                        Ok(Some(poll)) => drop(polls.insert(id.clone(), poll)),
                        Ok(None) => {}
                        Err(error) => {
                            failed.push(id);
                            failure = Some(error);
                        }
                    }
                }
            }
            if let Some(error) = failure {
                tracing::warn!(shard = %self.row.shard, %error, "cannot read polls: the window waits");
                self.pause_unless_stopped().await?;
                // What was read about a poll that is being closed must expire, so the next attempt asks for a later moment.
                if !mutation::is_active(Mutation::ClosingPollIsNotReadAgain) {
                    since = Moment::of(&*self.ports.clock);
                }
            }
            left = failed;
        }
        self.backoff.reset();
        Ok(polls)
    }

    async fn pause_unless_stopped(&mut self) -> Result<(), Stopped> {
        let pause = self.backoff.pause();
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Stopped::Interrupted),
            () = sleep(pause) => Ok(()),
        }
    }

    /// Tries until the window is applied, then moves on to its end.
    async fn apply(&mut self, decided: Decided) -> Result<(), Stopped> {
        let Decided { window, state, oldest } = decided;
        let (group, started) = (self.config.group, self.ports.clock.instant());
        let votes: usize = window.selected.iter().map(Selected::len).sum();
        let span = trace::linked(window.selected.iter().map(|selected| &*selected.batch.trace_context), || {
            tracing::info_span!(
                target: trace::TARGET, "apply window", otel.kind = "consumer", trace_id = tracing::field::Empty,
                group = group.as_str(), shard = %window.shard, epoch = window.epoch, end = %window.end, votes,
            )
        });
        self.backoff.reset();
        let (mut attempts_at_stop, mut superseded) = (0, 0);
        loop {
            match self.applier.apply(&window).instrument(span.clone()).await {
                Ok(()) => break,
                Err(ApplyError::Port(error)) if error.retryable => {
                    tracing::warn!(shard = %window.shard, end = %window.end, %error, "applying a window failed, trying again");
                    if self.stop.is_cancelled() {
                        attempts_at_stop += 1;
                        if attempts_at_stop >= APPLY_ATTEMPTS_AT_STOP {
                            return Err(Stopped::Interrupted);
                        }
                    }
                    sleep(self.backoff.pause()).await;
                }
                Err(ApplyError::Port(error)) => return Err(Stopped::Failed(format!("applying failed: {error}"))),
                Err(ApplyError::Superseded { poll_ids }) => {
                    superseded += 1;
                    if superseded >= SUPERSEDED_MAX {
                        return Err(Stopped::Failed("a window with superseded votes cannot be applied".into()));
                    }
                    // The other votes of the window count: one poll's contradiction must not stop the shard.
                    self.superseded(&poll_ids).await?;
                }
            }
        }
        self.backoff.reset();
        (self.position, self.state) = (window.end, state);
        let Moment { now, instant } = Moment::of(&*self.ports.clock);
        let took = instant.saturating_duration_since(started);
        metrics::window_applied(group, votes as u64, took, now.since(oldest));
        metrics::shard_caught_up(group, &window.shard);
        Ok(())
    }

    /// Handles a window whose later votes are stored already. If another process has taken the shard, that is to be
    /// expected, and we stop. If the shard is ours, stored data contradicts itself: the polls are flagged, so that none
    /// becomes final before a recount.
    async fn superseded(&mut self, poll_ids: &[PollId]) -> Result<(), Stopped> {
        if !self.owns_lease().await? {
            return Err(Stopped::Fenced);
        }
        let (shard, epoch) = (&self.row.shard, self.row.lease.epoch);
        tracing::error!(
            %shard, epoch, ?poll_ids,
            "the shard is ours, but votes later in the stream than the window are stored already"
        );
        for poll_id in poll_ids {
            self.backoff.reset();
            while let Err(error) = self.ports.polls.set_needs_recount(poll_id, true).await {
                if self.backoff.attempts() >= FLAG_ATTEMPTS_MAX {
                    // Without the flag, a wrong result would become final. The next owner of the shard tries again.
                    return Err(Stopped::Failed(format!("poll {poll_id} cannot be flagged for recount: {error}")));
                }
                sleep(self.backoff.pause()).await;
            }
        }
        self.backoff.reset();
        Ok(())
    }

    async fn owns_lease(&mut self) -> Result<bool, Stopped> {
        self.backoff.reset();
        loop {
            match self.ports.leases.list(self.config.group).await {
                Ok(rows) => {
                    let row = rows.iter().find(|row| row.shard == self.row.shard);
                    return Ok(row.is_some_and(|row| row.lease.epoch == self.row.lease.epoch));
                }
                Err(error) if self.backoff.attempts() >= FLAG_ATTEMPTS_MAX => {
                    return Err(Stopped::Failed(format!("the shard row cannot be read: {error}")));
                }
                Err(_) => sleep(self.backoff.pause()).await,
            }
        }
    }

    /// Stores (checkpoint = `position`, `window_end`), on the condition that nobody has stored anything else in
    /// between.
    async fn write_progress(&mut self, window_end: SequenceNumber, ended: bool) -> Result<(), Stopped> {
        let progress = Progress {
            checkpoint: self.position,
            window_end,
            dedup: self.state.dedup.to_stored(),
            watermark: self.state.clock,
            ended,
        };
        let (group, epoch) = (self.config.group, self.row.lease.epoch);
        self.backoff.reset();
        loop {
            let written = self.ports.leases.write_progress(group, &self.row.shard, epoch, self.stored, &progress).await;
            match written {
                Ok(WriteOutcome::Stored) => break,
                // An earlier attempt stored it, and its answer was lost.
                Ok(WriteOutcome::Refused(Some(row))) if row.lease.epoch == epoch && same(&row.progress, &progress) => {
                    break;
                }
                Ok(WriteOutcome::Refused(Some(_))) => return Err(Stopped::Fenced),
                Ok(WriteOutcome::Refused(None)) => return Err(Stopped::Failed("the shard row is gone".into())),
                Err(error) => {
                    let pause = self.backoff.pause();
                    if !error.retryable || self.backoff.attempts() >= PROGRESS_ATTEMPTS_MAX {
                        return Err(Stopped::Failed(format!("progress cannot be written: {error}")));
                    }
                    tracing::warn!(shard = %self.row.shard, %error, "writing progress failed, trying again");
                    sleep(pause).await;
                }
            }
        }
        self.backoff.reset();
        self.stored = progress.span();
        Ok(())
    }
}

/// Whether it is still open which votes of other producers count for the poll.
fn is_between_steps(poll: &Poll) -> bool {
    poll.source == PollSource::Stream
        && poll.closing == Closing::Asked
        && !mutation::is_active(Mutation::ClosingPollIsNotWaitedFor)
}

/// Whether the stored progress is the one that was to be written. Dedup table and watermark follow from the checkpoint.
fn same(stored: &Progress, wanted: &Progress) -> bool {
    (stored.checkpoint, stored.window_end, stored.ended) == (wanted.checkpoint, wanted.window_end, wanted.ended)
}

/// Renews a lease until it is lost, and tells the consumer when another worker asks for the shard.
pub(super) async fn renew(config: Arc<GroupConfig>, ports: Ports, row: ShardRow, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(config.renew_every.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first tick comes at once, and the lease was just taken.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        match ports.leases.renew(config.group, &row.shard, row.lease.epoch).await {
            Ok(Some(lease)) => {
                if lease.wanted_by.is_some_and(|by| by != config.worker_id) && !stop.is_cancelled() {
                    tracing::info!(shard = %row.shard, "another worker asks for the shard");
                    stop.cancel();
                }
            }
            Ok(None) => return,
            // Either the next one succeeds in time, or the lease is taken and every write is refused.
            Err(error) => tracing::warn!(shard = %row.shard, %error, "renewing the lease failed"),
        }
    }
}
