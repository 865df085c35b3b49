//! Going on without records that the stream has dropped: what an operator decides, and no process by itself.
//!
//! Owns the finding of such shards, the polls that may lack votes, and the order in which it is done: first the polls are
//! flagged, then the loss is noted in the shard's row, then the shard goes on. So whatever fails in between, no result
//! becomes official that may lack votes. Must never touch a shard that can be read on, and never move a shard past a
//! record that the stream still has, unless its window was begun.

use std::{collections::BTreeSet, fmt, time::Duration};

use futures::{StreamExt, TryStreamExt};
use tokio::time::sleep;

use super::loss::lost_parent;
use crate::{
    Poll, PollId, SequenceNumber, ShardId, TimeBounds, Timestamp,
    port::{
        Group, LostTime, PortError, Ports, Progress, ReadOutcome, Record, Shard, ShardRow, WriteOutcome,
        backoff::SeededBackoff,
    },
};

/// The command that does this, as messages name it.
pub const COMMAND: &str = "tally-svc give-up";

/// Reads without an answer after which a shard counts as one that can be read on. An engine needs a few to find out that
/// the starting point is gone.
const READS_MAX: u32 = 60;
/// Shards that are tried at the same time.
const SHARDS_AT_ONCE: usize = 16;
/// Attempts at one call to an engine.
const ATTEMPTS_MAX: u32 = 6;
/// Polls of one call to the store.
const PAGE: usize = 100;
/// Records that leave the retention between the decision and the next read of the shard count as lost, too, if they
/// arrived within this time after the oldest record that was there.
const MARGIN: Duration = Duration::from_secs(3_600);
/// Most polls that are named in the text.
const POLLS_NAMED_MAX: usize = 50;

/// Why a shard was not given up.
#[derive(Debug, thiserror::Error)]
pub enum GiveUpError {
    /// An engine failed.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The shard does not stand any more where it stood.
    #[error("shard {0} has changed meanwhile: look again")]
    Changed(ShardId),
    /// The stream contradicts the row.
    #[error(
        "shard {shard}: its window ends at record {end}, which the stream does not have, although it has earlier ones"
    )]
    NoWindowEnd {
        /// The shard.
        shard: ShardId,
        /// The end of the window.
        end: SequenceNumber,
    },
}

/// How a shard can go on.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// From its oldest record, or from the end of the window that was begun.
    ReadOn(Progress),
    /// It has left the stream: it ends, and its children may begin.
    End(Progress),
    /// The same, but this group has never had a row for it.
    EndUnknown,
}

/// A shard that cannot be read on without a loss, and what the loss is.
#[derive(Clone, Debug)]
pub struct LostShard {
    /// The group that cannot read it.
    pub group: Group,
    /// When the lost records may have arrived.
    pub lost: LostTime,
    /// Polls that may lack votes, and have no final result.
    pub polls: Vec<PollId>,
    /// Polls whose final result is stored. It was complete, so it stays; for `tally`, their submitted votes may be too
    /// few.
    pub final_polls: Vec<PollId>,
    /// The row; for a shard without one, the row that will be stored.
    row: ShardRow,
    way: Way,
}

impl LostShard {
    /// The shard.
    pub fn shard(&self) -> &ShardId {
        &self.row.shard
    }
}

/// Finds the shards of a group that cannot be read on; with `only`, looks at no other shard. Changes nothing.
///
/// # Errors
///
/// If an engine fails again and again.
pub async fn find(
    ports: &Ports,
    group: Group,
    bounds: &TimeBounds,
    only: Option<&ShardId>,
) -> Result<Vec<LostShard>, GiveUpError> {
    let shards = retried(|| ports.stream.list_shards()).await?;
    let rows = retried(|| ports.leases.list(group)).await?;
    let wanted = |shard: &ShardId| only.is_none_or(|only| only == shard);
    let readable = rows.iter().filter(|row| row.started && !row.progress.ended && wanted(&row.shard));
    let mut found: Vec<(ShardRow, Way, LostTime)> = futures::stream::iter(readable)
        .map(|row| look_at(ports, &shards, &rows, row))
        .buffered(SHARDS_AT_ONCE)
        .try_filter_map(|found| std::future::ready(Ok(found)))
        .try_collect()
        .await?;
    let mut unknown = BTreeSet::new();
    for child in rows.iter().filter(|row| !row.started) {
        let Some(parent) = lost_parent(child, &shards, &rows).filter(|parent| wanted(parent)) else { continue };
        if unknown.insert(parent) {
            found.push(never_read(ports, &shards, &rows, child, parent).await?);
        }
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let polls = all_polls(ports).await?;
    let lost = found.into_iter().map(|(row, way, lost)| {
        let concerned: Vec<&Poll> = polls.iter().filter(|poll| lost.concerns(poll, bounds)).collect();
        let ids = |has_final: bool| {
            let polls = concerned.iter().filter(|poll| poll.final_result.is_some() == has_final);
            polls.map(|poll| poll.id.clone()).collect()
        };
        LostShard { group, lost, polls: ids(false), final_polls: ids(true), row, way }
    });
    Ok(lost.collect())
}

/// Flags the polls that may lack votes, notes the loss, and lets the shard go on. May be repeated after an error.
///
/// # Errors
///
/// If an engine fails again and again, or if the shard has changed since [`find`].
pub async fn carry_out(ports: &Ports, lost: &LostShard) -> Result<(), GiveUpError> {
    let (leases, group, shard) = (&ports.leases, lost.group, &lost.row.shard);
    for poll in &lost.polls {
        retried(|| ports.polls.set_needs_recount(poll, true)).await?;
    }
    let next = match &lost.way {
        Way::EndUnknown => {
            retried(|| leases.create(group, &lost.row)).await?;
            retried(|| leases.note_lost(group, shard, lost.lost)).await?;
            return Ok(());
        }
        Way::ReadOn(next) | Way::End(next) => next,
    };
    retried(|| leases.note_lost(group, shard, lost.lost)).await?;
    // A new epoch: whatever still works on the shard can write no more progress. If the answer was lost, the lease is
    // ours, and stands one further.
    let observed = &lost.row.lease;
    let taken = match retried(|| leases.take(group, shard, observed, COMMAND)).await? {
        Some(taken) => taken,
        None => {
            let rows = retried(|| leases.list(group)).await?;
            let ours = |row: &ShardRow| row.lease.owner.as_deref() == Some(COMMAND);
            let taken = rows.into_iter().find(|row| row.shard == *shard).filter(ours);
            taken.ok_or_else(|| GiveUpError::Changed(shard.clone()))?
        }
    };
    let (epoch, before) = (taken.lease.epoch, lost.row.progress.span());
    let written = match taken.progress.span() == before {
        true => retried(|| leases.write_progress(group, shard, epoch, before, next)).await?,
        false => WriteOutcome::Refused(Some(Box::new(taken))),
    };
    retried(|| leases.release(group, shard, epoch)).await?;
    match written {
        WriteOutcome::Stored => Ok(()),
        // An earlier attempt, whose answer was lost.
        WriteOutcome::Refused(Some(row)) if row.lease.epoch == epoch && row.progress == *next => Ok(()),
        WriteOutcome::Refused(_) => Err(GiveUpError::Changed(shard.clone())),
    }
}

/// What is lost of a shard that may be read; `None` if it can be read on.
async fn look_at(
    ports: &Ports,
    shards: &[Shard],
    rows: &[ShardRow],
    row: &ShardRow,
) -> Result<Option<(ShardRow, Way, LostTime)>, GiveUpError> {
    let progress = &row.progress;
    if row.ends_at.is_some_and(|end| progress.checkpoint >= end) {
        // Everything was read. The group finds that out by itself.
        return Ok(None);
    }
    if first_read(ports, &row.shard, progress.checkpoint).await? != First::Expired {
        return Ok(None);
    }
    let from = progress.watermark;
    let lost = |until: Timestamp| LostTime { from, until: until.max(from) };
    if shards.iter().all(|shard| shard.id != row.shard) {
        let next = Progress { window_end: progress.checkpoint, ended: true, ..progress.clone() };
        let until = oldest_of_descendants(ports, shards, rows, &row.shard).await?;
        return Ok(Some((row.clone(), Way::End(next), lost(until))));
    }
    let restart = Progress { checkpoint: SequenceNumber::ZERO, window_end: SequenceNumber::ZERO, ..progress.clone() };
    let (next, until) = match first_read(ports, &row.shard, SequenceNumber::ZERO).await? {
        // Nobody knows which votes of the window that was begun are stored and counted. Applied again, some would count
        // twice. So the whole window is given up.
        First::Record(oldest) if oldest.sequence <= progress.window_end => {
            let end = progress.window_end;
            let last = find_record(ports, &row.shard, end).await?;
            let last = last.ok_or_else(|| GiveUpError::NoWindowEnd { shard: row.shard.clone(), end })?;
            (Progress { checkpoint: end, ..progress.clone() }, last.arrived_at)
        }
        First::Record(oldest) => (restart, oldest.arrived_at.plus(MARGIN)),
        First::End | First::Nothing | First::Expired => (restart, ports.clock.now()),
    };
    Ok(Some((row.clone(), Way::ReadOn(next), lost(until))))
}

/// What is lost of a shard that this group has never had a row for.
async fn never_read(
    ports: &Ports,
    shards: &[Shard],
    rows: &[ShardRow],
    child: &ShardRow,
    parent: &ShardId,
) -> Result<(ShardRow, Way, LostTime), PortError> {
    let until = oldest_of_descendants(ports, shards, rows, parent).await?;
    // Nobody knows its hashes any more. Those of its child stand for them: with a clock of zero and an empty dedup table,
    // the row covers nothing and hands down nothing.
    let progress = Progress { ended: true, ..Progress::default() };
    let row = ShardRow { progress, ..ShardRow::new(parent.clone(), child.range, Vec::new()) };
    Ok((row, Way::EndUnknown, LostTime { from: Timestamp::ZERO, until }))
}

/// What a reader finds first.
#[derive(Debug, PartialEq, Eq)]
enum First {
    Record(Record),
    End,
    Expired,
    /// Nothing came.
    Nothing,
}

/// Reads until something comes. The group of the reader makes no difference to what it finds; this process belongs to
/// `tally`.
async fn first_read(ports: &Ports, shard: &ShardId, after: SequenceNumber) -> Result<First, PortError> {
    let mut reader = retried(|| ports.stream.reader(Group::Tally, shard, after)).await?;
    let mut backoff = SeededBackoff::new(shard.as_str().as_bytes());
    for _ in 0..READS_MAX {
        match reader.next().await {
            Ok(ReadOutcome::Records(records)) => {
                backoff.reset();
                if let Some(first) = records.into_iter().next() {
                    return Ok(First::Record(first));
                }
            }
            Ok(ReadOutcome::ShardEnd) => return Ok(First::End),
            Ok(ReadOutcome::Expired) => return Ok(First::Expired),
            Err(error) if !error.retryable => return Err(error),
            Err(_) => sleep(backoff.pause()).await,
        }
    }
    Ok(First::Nothing)
}

/// The record of this number, among those that the stream still has.
async fn find_record(ports: &Ports, shard: &ShardId, wanted: SequenceNumber) -> Result<Option<Record>, PortError> {
    let mut reader = retried(|| ports.stream.reader(Group::Tally, shard, SequenceNumber::ZERO)).await?;
    let mut backoff = SeededBackoff::new(shard.as_str().as_bytes());
    // A window has a bounded number of records, so this ends.
    let mut empty_reads = 0;
    while empty_reads < READS_MAX {
        match reader.next().await {
            Ok(ReadOutcome::Records(records)) => {
                backoff.reset();
                empty_reads = if records.is_empty() { empty_reads + 1 } else { 0 };
                if let Some(found) = records.into_iter().find(|record| record.sequence >= wanted) {
                    return Ok(Some(found).filter(|record| record.sequence == wanted));
                }
            }
            Ok(ReadOutcome::ShardEnd | ReadOutcome::Expired) => return Ok(None),
            Err(error) if !error.retryable => return Err(error),
            Err(_) => {
                empty_reads += 1;
                sleep(backoff.pause()).await;
            }
        }
    }
    Ok(None)
}

/// A time that no record of a shard which has left the stream arrived after: its descendants took records only when it
/// took no more.
async fn oldest_of_descendants(
    ports: &Ports,
    shards: &[Shard],
    rows: &[ShardRow],
    shard: &ShardId,
) -> Result<Timestamp, PortError> {
    let parents = || {
        let listed = shards.iter().map(|shard| (&shard.id, &shard.parents));
        listed.chain(rows.iter().map(|row| (&row.shard, &row.parents)))
    };
    let mut family = BTreeSet::from([shard]);
    loop {
        let size = family.len();
        family.extend(
            parents().filter(|(_, of)| of.iter().any(|of| family.contains(of))).map(|(id, _)| id).collect::<Vec<_>>(),
        );
        if family.len() == size {
            break;
        }
    }
    let mut until = ports.clock.now();
    for descendant in shards.iter().filter(|listed| family.contains(&listed.id) && listed.id != *shard) {
        if let First::Record(oldest) = first_read(ports, &descendant.id, SequenceNumber::ZERO).await? {
            until = until.min(oldest.arrived_at);
        }
    }
    Ok(until)
}

async fn all_polls(ports: &Ports) -> Result<Vec<Poll>, PortError> {
    let mut polls: Vec<Poll> = Vec::new();
    loop {
        let after = polls.last().map(|poll| poll.id.clone());
        let page = retried(|| ports.polls.list(after.as_ref(), PAGE)).await?;
        let is_last = page.len() < PAGE;
        polls.extend(page);
        if is_last {
            return Ok(polls);
        }
    }
}

/// Calls an engine until it answers.
async fn retried<T, F>(call: impl Fn() -> F) -> Result<T, PortError>
where
    F: Future<Output = Result<T, PortError>>,
{
    let mut backoff = SeededBackoff::new(COMMAND.as_bytes());
    loop {
        match call().await {
            Err(error) if error.retryable && backoff.attempts() < ATTEMPTS_MAX => sleep(backoff.pause()).await,
            answer => return answer,
        }
    }
}

impl fmt::Display for LostShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, lost: LostTime { from, until }, polls, final_polls, row, way } = self;
        let (group, shard) = (group.as_str(), &row.shard);
        let (what, next) = match way {
            Way::ReadOn(next) if next.checkpoint == SequenceNumber::ZERO => (
                format!("records after {} have left the stream's retention", row.progress.checkpoint),
                "it is read on from its oldest record".to_owned(),
            ),
            Way::ReadOn(next) => (
                format!("records after {} have left the stream's retention", row.progress.checkpoint),
                format!("it is read on after {}, the end of the window that was begun", next.checkpoint),
            ),
            Way::End(_) => {
                let read = format!("it has left the stream, and was read up to {}", row.progress.checkpoint);
                let end = row.ends_at.map_or_else(String::new, |end| format!(" of {end}"));
                (read + &end, "it counts as ended, and its children begin".to_owned())
            }
            Way::EndUnknown => (
                "it has left the stream, and was never read".to_owned(),
                "it counts as ended, and its children begin".to_owned(),
            ),
        };
        writeln!(f, "{group}: shard {shard}: {what}")?;
        match *from {
            Timestamp::ZERO => writeln!(f, "  lost are records that arrived up to {until}")?,
            from => writeln!(f, "  lost are records that arrived from {from} up to {until}")?,
        }
        list(f, "polls that may lack votes, and get no official result", polls)?;
        list(f, "polls with a final result, which stays", final_polls)?;
        write!(f, "  then: {next}")
    }
}

fn list(f: &mut fmt::Formatter<'_>, what: &str, polls: &[PollId]) -> fmt::Result {
    write!(f, "  {what}: {}", polls.len())?;
    for (at, poll) in polls.iter().take(POLLS_NAMED_MAX).enumerate() {
        write!(f, "{}{poll}", if at == 0 { ": " } else { ", " })?;
    }
    if polls.len() > POLLS_NAMED_MAX {
        write!(f, " and others")?;
    }
    writeln!(f)
}
