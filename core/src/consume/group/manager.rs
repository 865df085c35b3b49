//! Which shards this worker owns: rows for new shards, children after their parents, leases shared out evenly.
//!
//! Owns the decisions to take a shard, to ask for one, and to give one up. Must never start a child before all its
//! parents have ended. Must judge whether a lease has expired by its own monotonic clock alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    ApplierFactory, Drain, GroupConfig, GroupError,
    cleanup::Cleanup,
    consumer::{Consumer, Stopped, renew},
    loss::{Losses, lost_parent},
    prefetch::Budget,
};
use crate::{
    ShardId,
    consume::dedup::DedupTable,
    mutation::{self, Mutation},
    observe::metrics::{self, LeaseChange},
    polls::cache::PollCache,
    port::{Lease, PortError, Ports, Progress, Shard, ShardRow, backoff::SeededBackoff},
};

/// Longest time of one sync: reading shards and rows, and acting on them.
const SYNC_MAX: Duration = Duration::from_secs(30);
/// Attempts to release a lease. If all fail, it expires.
const RELEASE_ATTEMPTS_MAX: u32 = 3;
/// How often the rows are read within one sync: once each to create, to start and to take.
const ROUNDS_MAX: usize = 3;

/// A lease as it was first seen.
struct Seen {
    epoch: u64,
    counter: u64,
    since: Instant,
}

/// A shard that was asked for.
struct Requested {
    shard: ShardId,
    epoch: u64,
    since: Instant,
}

pub(super) struct Manager {
    config: Arc<GroupConfig>,
    ports: Ports,
    polls: PollCache,
    factory: Arc<dyn ApplierFactory>,
    /// Consumers of this worker, with the token that tells each to hand over.
    running: BTreeMap<ShardId, CancellationToken>,
    tasks: JoinSet<(ShardId, Stopped)>,
    /// Shards that failed here, and until when this worker leaves them to others.
    avoided: BTreeMap<ShardId, Instant>,
    budget: Budget,
    losses: Losses,
    cleanup: Cleanup,
    seen: BTreeMap<ShardId, Seen>,
    requested: Option<Requested>,
}

impl Manager {
    pub(super) fn new(config: GroupConfig, ports: Ports, factory: Arc<dyn ApplierFactory>) -> Self {
        let polls = PollCache::new(ports.polls.clone(), ports.clock.clone(), config.bounds.poll_cache_life);
        Self {
            budget: Budget::new(config.prefetch_bytes_max),
            losses: Losses::new(config.group),
            cleanup: Cleanup::default(),
            config: Arc::new(config),
            ports,
            polls,
            factory,
            running: BTreeMap::new(),
            tasks: JoinSet::new(),
            avoided: BTreeMap::new(),
            seen: BTreeMap::new(),
            requested: None,
        }
    }

    /// Runs until `shutdown`, then until every consumer has committed and released.
    pub(super) async fn run(mut self, shutdown: CancellationToken) -> Result<Drain, GroupError> {
        let result = self.serve(&shutdown).await;
        let drained = self.drain().await;
        result.and(drained)
    }

    async fn serve(&mut self, shutdown: &CancellationToken) -> Result<(), GroupError> {
        let mut ticks = interval(self.config.sync_every.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                Some(joined) = self.tasks.join_next() => {
                    if matches!(self.joined(joined)?, Stopped::Ended) {
                        // Now its children can start.
                        ticks.reset_immediately();
                    }
                }
                _ = ticks.tick() => match timeout(SYNC_MAX, self.sync()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) if error.retryable => {
                        tracing::warn!(group = self.config.group.as_str(), %error, "looking for shards failed");
                    }
                    Ok(Err(error)) => return Err(error.into()),
                    Err(_) => tracing::warn!(group = self.config.group.as_str(), "looking for shards timed out"),
                },
            }
        }
    }

    async fn drain(&mut self) -> Result<Drain, GroupError> {
        self.running.values().for_each(CancellationToken::cancel);
        let deadline = self.ports.clock.instant() + self.config.drain;
        let mut result = Ok(Drain::Complete);
        loop {
            let Ok(joined) = timeout_at(deadline, self.tasks.join_next()).await else {
                tracing::warn!(group = self.config.group.as_str(), "consumers did not stop in time and are cut off");
                self.tasks.shutdown().await;
                return result.and(Ok(Drain::Incomplete));
            };
            let Some(joined) = joined else { return result };
            match self.joined(joined) {
                Ok(Stopped::Drained | Stopped::Ended | Stopped::Fenced) => {}
                // A shard that stands still by itself leaves nothing unfinished that was begun here.
                Ok(Stopped::Lost(..)) => {}
                Ok(Stopped::Interrupted | Stopped::Failed(_)) => result = result.and(Ok(Drain::Incomplete)),
                Err(error) => result = Err(error),
            }
        }
    }

    /// Notes that a consumer has stopped.
    fn joined(&mut self, joined: Result<(ShardId, Stopped), JoinError>) -> Result<Stopped, GroupError> {
        let (shard, stopped) = joined.map_err(|error| task_failed(&error))?;
        self.running.remove(&shard);
        let group = self.config.group.as_str();
        match &stopped {
            Stopped::Drained | Stopped::Ended => tracing::info!(group, %shard, ?stopped, "a consumer stopped"),
            Stopped::Interrupted => tracing::warn!(group, %shard, "a consumer stopped before its window was applied"),
            Stopped::Fenced => tracing::info!(group, %shard, "another worker owns the shard"),
            Stopped::Failed(reason) => {
                tracing::error!(group, %shard, reason, "the shard is stopped");
                self.avoided.insert(shard, self.ports.clock.instant() + self.config.failover);
            }
            Stopped::Lost(stand, reason) => {
                self.losses.found(shard, **stand, reason.clone(), self.ports.clock.instant());
            }
        }
        Ok(stopped)
    }

    async fn sync(&mut self) -> Result<(), PortError> {
        // Read the shards first: a parent that is missing here and has no row afterwards has left the stream.
        let shards = self.ports.stream.list_shards().await?;
        let mut rows = self.ports.leases.list(self.config.group).await?;
        for _ in 0..ROUNDS_MAX {
            if !self.create_missing(&shards, &rows).await? && !self.start_ready(&shards, &rows).await? {
                break;
            }
            rows = self.ports.leases.list(self.config.group).await?;
        }
        self.note_ends(&shards, &rows).await;
        self.clean_up(&shards, &rows).await;
        self.losses.look(&shards, &rows, self.ports.clock.instant());
        self.balance(&rows).await
    }

    /// Notes where closed shards end, as long as the stream says so.
    async fn note_ends(&self, shards: &[Shard], rows: &[ShardRow]) {
        for row in rows.iter().filter(|row| row.ends_at.is_none() && !row.progress.ended) {
            let end = shards.iter().find(|shard| shard.id == row.shard).and_then(|shard| shard.ends_at);
            let Some(end) = end else { continue };
            if let Err(error) = self.ports.leases.note_end(self.config.group, &row.shard, end).await {
                tracing::warn!(shard = %row.shard, %error, "the end of a shard could not be noted, trying again");
            }
        }
    }

    async fn clean_up(&mut self, shards: &[Shard], rows: &[ShardRow]) {
        for shard in self.cleanup.deletable(shards, rows, self.ports.clock.instant()) {
            match self.ports.leases.delete(self.config.group, &shard).await {
                Ok(()) => tracing::info!(%shard, "the row of a shard that has left the stream is deleted"),
                Err(error) => tracing::warn!(%shard, %error, "a row could not be deleted, trying again"),
            }
        }
    }

    async fn create_missing(&self, shards: &[Shard], rows: &[ShardRow]) -> Result<bool, PortError> {
        let mut created = false;
        let is_new = rows.iter().all(|row| row.progress == Progress::default() && row.lost.is_none());
        let is_listed = |id: &ShardId| shards.iter().any(|shard| shard.id == *id);
        // A shard with such a child was read, and its row was deleted since.
        let was_read = |id: &ShardId| rows.iter().any(|row| row.started && row.parents.contains(id));
        let missing = shards.iter().filter(|shard| rows.iter().all(|row| row.shard != shard.id));
        for shard in missing.filter(|shard| !was_read(&shard.id)) {
            // A new group begins with what the stream has, so parents that have left the stream are none of its affairs.
            // If any row has come further, such a parent may hold votes that this group has not read.
            let parents: Vec<ShardId> =
                shard.parents.iter().filter(|parent| !is_new || is_listed(parent)).cloned().collect();
            let row = ShardRow { ends_at: shard.ends_at, ..ShardRow::new(shard.id.clone(), shard.range, parents) };
            self.ports.leases.create(self.config.group, &row).await?;
            created = true;
        }
        Ok(created)
    }

    /// Starts the shards whose parents have all ended.
    async fn start_ready(&self, shards: &[Shard], rows: &[ShardRow]) -> Result<bool, PortError> {
        let mut started = false;
        for row in rows.iter().filter(|row| !row.started) {
            let Some(parents) = ended_parents(row, shards, rows) else { continue };
            let inherited = inherit(row, &parents, &self.config);
            if let Err(full) = DedupTable::from_stored(&inherited.dedup).check() {
                tracing::error!(shard = %row.shard, error = %full, "the shard cannot start");
                continue;
            }
            match self.ports.leases.start(self.config.group, &row.shard, &inherited).await {
                Ok(()) => started = true,
                // The next round tries again; the other shards do not wait for it.
                Err(error) => tracing::warn!(shard = %row.shard, %error, "the shard could not be started"),
            }
        }
        Ok(started)
    }

    /// Takes free leases up to an even share; if none is free, asks the busiest worker for one.
    async fn balance(&mut self, rows: &[ShardRow]) -> Result<(), PortError> {
        let now = self.ports.clock.instant();
        let open = rows.iter().filter(|row| row.started && !row.progress.ended && !self.losses.hold(row));
        let open: Vec<&ShardRow> = open.collect();
        self.observe(&open, now);

        let me = self.config.worker_id.clone();
        let mut owned: BTreeMap<&str, Vec<&ShardRow>> = BTreeMap::from([(&*me, Vec::new())]);
        let mut free = Vec::new();
        for &row in &open {
            match row.lease.owner.as_deref() {
                _ if self.running.contains_key(&row.shard) => owned.entry(&me).or_default().push(row),
                Some(owner) if owner != me && !self.is_expired(row, now) => owned.entry(owner).or_default().push(row),
                // Expired; or ours but without a consumer: the answer to a take-over was lost, or this worker owned it
                // before a restart.
                Some(_) => free.push(row),
                None if self.is_promised(row, now) => {}
                None => free.push(row),
            }
        }
        let share = open.len().div_ceil(owned.len());
        let mut mine = owned.get(&*me).map_or(0, Vec::len);

        // Workers that start together begin at different shards, so that they seldom try to take the same one.
        let first = xxhash_rust::xxh3::xxh3_64(me.as_bytes()) as usize % free.len().max(1);
        free.rotate_left(first);
        let mut left_free = false;
        for row in free {
            if mine >= share || self.avoided.get(&row.shard).is_some_and(|until| *until > now) {
                left_free = true;
                continue;
            }
            if self.take(row).await? {
                mine += 1;
            }
        }
        if left_free || mine >= share {
            return Ok(());
        }

        let busiest = owned.iter().filter(|(owner, _)| **owner != me).max_by_key(|(_, rows)| rows.len());
        let Some((_, theirs)) = busiest.filter(|(_, rows)| rows.len() >= mine + 2) else { return Ok(()) };
        let asked = |row: &&&ShardRow| row.lease.wanted_by.as_deref() == Some(&*me);
        match owned.values().flatten().find(asked) {
            None => {
                let Some(row) = theirs.iter().find(|row| row.lease.wanted_by.is_none()) else { return Ok(()) };
                self.ports.leases.request(self.config.group, &row.shard, row.lease.epoch, &me).await?;
                metrics::lease_changed(self.config.group, LeaseChange::Requested);
                self.requested = Some(Requested { shard: row.shard.clone(), epoch: row.lease.epoch, since: now });
            }
            // Ask for one shard at a time. An owner that renews but does not hand over is stuck: then take the shard.
            Some(row) => {
                let ignored = self.requested.as_ref().is_some_and(|asked| {
                    (&asked.shard, asked.epoch) == (&row.shard, row.lease.epoch)
                        && now.duration_since(asked.since) >= self.config.failover
                });
                if ignored {
                    self.take(row).await?;
                }
            }
        }
        Ok(())
    }

    /// Notes since when each lease has stood still.
    fn observe(&mut self, open: &[&ShardRow], now: Instant) {
        let shards: BTreeSet<&ShardId> = open.iter().map(|row| &row.shard).collect();
        self.seen.retain(|shard, _| shards.contains(shard));
        self.avoided.retain(|_, until| *until > now);
        for row in open {
            let Lease { epoch, counter, .. } = row.lease;
            let seen = self.seen.entry(row.shard.clone()).or_insert(Seen { epoch, counter, since: now });
            if (seen.epoch, seen.counter) != (epoch, counter) {
                *seen = Seen { epoch, counter, since: now };
            }
        }
    }

    fn is_expired(&self, row: &ShardRow, now: Instant) -> bool {
        let still = self.seen.get(&row.shard).map(|seen| now.duration_since(seen.since));
        still.is_some_and(|still| still >= self.config.failover)
    }

    /// Whether the shard was handed over to somebody else, who has not taken it yet.
    fn is_promised(&self, row: &ShardRow, now: Instant) -> bool {
        let promised = row.lease.wanted_by.as_deref().is_some_and(|by| by != self.config.worker_id);
        promised && !self.is_expired(row, now)
    }

    async fn take(&mut self, row: &ShardRow) -> Result<bool, PortError> {
        let (group, me) = (self.config.group, &self.config.worker_id);
        let Some(row) = self.ports.leases.take(group, &row.shard, &row.lease, me).await? else { return Ok(false) };
        tracing::info!(group = group.as_str(), shard = %row.shard, epoch = row.lease.epoch, "took a shard");
        metrics::lease_changed(group, LeaseChange::Taken);
        let (stop, shard) = (CancellationToken::new(), row.shard.clone());
        let (config, ports) = (self.config.clone(), self.ports.clone());
        let (polls, applier, budget) = (self.polls.clone(), self.factory.applier(), self.budget.clone());
        self.tasks.spawn(supervise(config, ports, polls, applier, row, stop.clone(), budget));
        self.running.insert(shard, stop);
        Ok(true)
    }
}

/// Runs a consumer as long as its lease lasts, and releases it afterwards.
async fn supervise(
    config: Arc<GroupConfig>,
    ports: Ports,
    polls: PollCache,
    applier: Box<dyn super::Applier>,
    row: ShardRow,
    stop: CancellationToken,
    budget: Budget,
) -> (ShardId, Stopped) {
    let (shard, epoch) = (row.shard.clone(), row.lease.epoch);
    let mut backoff = SeededBackoff::new(format!("{} {shard} release", config.worker_id).as_bytes());
    // A task of its own, so that the lease is renewed even during a long computation of the consumer.
    let renewal = renew(config.clone(), ports.clone(), row.clone(), stop.clone());
    let mut renewal = AbortOnDropHandle::new(tokio::spawn(renewal));
    let consumer = Consumer::new(config.clone(), ports.clone(), polls, applier, row, stop, budget);
    let stopped = tokio::select! {
        biased;
        lost = &mut renewal => match lost {
            Ok(()) => Stopped::Fenced,
            Err(error) => Stopped::Failed(format!("the lease is not renewed any more: {error}")),
        },
        stopped = consumer.run() => stopped,
    };
    drop(renewal);
    metrics::shard_left(config.group, &shard);
    metrics::lease_changed(
        config.group,
        match &stopped {
            Stopped::Drained | Stopped::Interrupted | Stopped::Ended => LeaseChange::Released,
            Stopped::Fenced => LeaseChange::Lost,
            // What is lost is counted where it is reported.
            Stopped::Lost(..) => LeaseChange::Released,
            Stopped::Failed(_) => LeaseChange::Failed,
        },
    );
    if !matches!(stopped, Stopped::Fenced) {
        while let Err(error) = ports.leases.release(config.group, &shard, epoch).await {
            let pause = backoff.pause();
            if backoff.attempts() >= RELEASE_ATTEMPTS_MAX {
                tracing::warn!(%shard, %error, "the lease could not be released, it will expire");
                break;
            }
            sleep(pause).await;
        }
    }
    (shard, stopped)
}

/// The rows of the parents, if all have ended.
fn ended_parents<'a>(row: &ShardRow, shards: &[Shard], rows: &'a [ShardRow]) -> Option<Vec<&'a ShardRow>> {
    let mut ended = Vec::new();
    if lost_parent(row, shards, rows).is_some() {
        return None;
    }
    for parent in &row.parents {
        match rows.iter().find(|row| row.shard == *parent) {
            Some(row) if row.progress.ended || mutation::is_active(Mutation::ChildrenBeforeParents) => ended.push(row),
            Some(_) | None => return None,
        }
    }
    Some(ended)
}

/// What a child starts with: its part of the parents' dedup tables, and the later of their clocks.
fn inherit(child: &ShardRow, parents: &[&ShardRow], config: &GroupConfig) -> Progress {
    let mut dedup = DedupTable::default();
    for parent in parents.iter().filter(|_| !mutation::is_active(Mutation::DedupNotInherited)) {
        let theirs = DedupTable::from_stored(&parent.progress.dedup);
        if mutation::is_active(Mutation::DedupPerProducer) {
            dedup.absorb(&theirs);
        } else {
            dedup.absorb(&theirs.clip(&parent.range).clip(&child.range));
        }
    }
    let watermark = parents.iter().map(|parent| parent.progress.watermark).max().unwrap_or_default();
    dedup.expire(watermark, &config.bounds);
    Progress { dedup: dedup.to_stored(), watermark, ..Progress::default() }
}

fn task_failed(error: &JoinError) -> GroupError {
    GroupError::Task(error.to_string())
}
