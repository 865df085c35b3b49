//! Shards that this worker cannot read on without losing votes.
//!
//! Owns how long such a shard is left alone, and how often that is reported. Only somebody who knows what the polls are
//! worth can decide to go on: see [`super::give_up`]. Must never be a reason to skip a record.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::give_up::COMMAND;
use crate::{
    SequenceNumber, ShardId,
    observe::metrics::{self, LeaseChange},
    port::{Group, Shard, ShardRow, Span},
};

/// How often a shard that stands still is reported again, so that an alarm on the reports goes on.
const REPORT_EVERY: Duration = Duration::from_secs(300);

/// What a row said of the progress in its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stand {
    pub(super) span: Span,
    pub(super) ends_at: Option<SequenceNumber>,
    pub(super) started: bool,
}

impl Stand {
    fn of(row: &ShardRow) -> Self {
        Self { span: row.progress.span(), ends_at: row.ends_at, started: row.started }
    }
}

struct Loss {
    stand: Stand,
    /// The shard to name in the command: this one, or a parent that it waits for.
    cause: ShardId,
    reason: String,
    reported: Instant,
}

/// The shards that stand still, as far as this worker knows.
pub(super) struct Losses {
    group: Group,
    shards: BTreeMap<ShardId, Loss>,
}

impl Losses {
    pub(super) fn new(group: Group) -> Self {
        Self { group, shards: BTreeMap::new() }
    }

    /// Whether the shard stands where it could not be read on. Once its row has changed, it can be tried again.
    pub(super) fn hold(&self, row: &ShardRow) -> bool {
        self.shards.get(&row.shard).is_some_and(|loss| loss.stand == Stand::of(row))
    }

    /// Notes and reports that a shard cannot be read on.
    pub(super) fn found(&mut self, shard: ShardId, stand: Stand, reason: String, now: Instant) {
        let loss = Loss { stand, cause: shard.clone(), reason, reported: now };
        self.report(&shard, &loss);
        self.shards.insert(shard, loss);
    }

    /// Notes that a shard waits for a parent which has left the stream unread.
    fn waits(&mut self, row: &ShardRow, parent: &ShardId, now: Instant) {
        if self.hold(row) {
            return;
        }
        let reason = format!("its parent {parent} has left the stream and was never read by this group");
        let loss = Loss { stand: Stand::of(row), cause: parent.clone(), reason, reported: now };
        self.report(&row.shard, &loss);
        self.shards.insert(row.shard.clone(), loss);
    }

    /// Forgets shards that can be tried again, finds those that wait in vain, and reports again what stands still.
    pub(super) fn look(&mut self, shards: &[Shard], rows: &[ShardRow], now: Instant) {
        let stands = |shard: &ShardId, loss: &Loss| {
            rows.iter().any(|row| row.shard == *shard && loss.stand == Stand::of(row) && !row.progress.ended)
        };
        self.shards.retain(|shard, loss| stands(shard, loss));
        for row in rows.iter().filter(|row| !row.started) {
            match lost_parent(row, shards, rows) {
                Some(parent) => self.waits(row, parent, now),
                None => drop(self.shards.remove(&row.shard)),
            }
        }
        let mut again = std::mem::take(&mut self.shards);
        for (shard, loss) in &mut again {
            if now.duration_since(loss.reported) >= REPORT_EVERY {
                loss.reported = now;
                self.report(shard, loss);
            }
        }
        self.shards = again;
    }

    fn report(&self, shard: &ShardId, Loss { cause, reason, .. }: &Loss) {
        metrics::lease_changed(self.group, LeaseChange::Failed);
        tracing::error!(
            group = self.group.as_str(), %shard, reason,
            "the shard is stopped, and nothing in it is counted before somebody decides; `{COMMAND} --shard {cause}` \
             says what may be lost, and how to go on"
        );
    }
}

/// A parent that has left the stream although this group never had a row for it. (The row of a parent that was read is
/// kept until its children have begun.)
pub(super) fn lost_parent<'a>(row: &'a ShardRow, shards: &[Shard], rows: &[ShardRow]) -> Option<&'a ShardId> {
    let is_unknown = |parent: &&ShardId| {
        rows.iter().all(|row| row.shard != **parent) && shards.iter().all(|shard| shard.id != **parent)
    };
    row.parents.iter().find(is_unknown)
}
