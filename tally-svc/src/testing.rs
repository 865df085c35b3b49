//! The ports in memory, and a clock that stands still until it is moved. For unit tests only.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use parking_lot::Mutex;
use votestream_core::{
    Clock, Closing, HashRange, Poll, PollId, PollOption, PollSource, SequenceNumber, ShardId, Timestamp,
    model::poll::FinalResult,
    port::{
        Created, Group, Lease, LeaseStore, PollStore, PortError, Ports, Progress, RecordReader, Shard, ShardRow,
        Stored, TallyDelta, TallyRow, TallyStore, VoteOutcome, VoteStore, VoteStream, VoteWrite, WriteOutcome,
    },
    record::batch::encode_marker,
};

/// A poll with the options x and y.
pub(crate) fn poll(id: &str, opens_at: i64, closes_at: i64) -> Poll {
    let options = ["x", "y"].map(|id| PollOption { id: id.into(), title: String::new() }).to_vec();
    let (opens, closes) = (Timestamp(opens_at), Timestamp(closes_at));
    Poll::new(PollId::new(id).unwrap(), "title".into(), options, opens, closes, PollSource::Ingest, 1_000).unwrap()
}

/// A started row.
pub(crate) fn row(shard: &str, (start, end): (u128, u128), watermark: i64) -> ShardRow {
    ShardRow {
        shard: ShardId::new(shard),
        range: HashRange { start, end },
        parents: Vec::new(),
        started: true,
        lease: Lease::default(),
        progress: Progress { watermark: Timestamp(watermark), ..Progress::default() },
    }
}

/// All ports at once.
#[derive(Default)]
pub(crate) struct Fake {
    now: AtomicI64,
    contradicted: AtomicBool,
    polls: Mutex<BTreeMap<PollId, Poll>>,
    tallies: Mutex<BTreeMap<(PollId, Group, ShardId), TallyRow>>,
    rows: Mutex<Vec<ShardRow>>,
    recount: Mutex<Vec<u64>>,
    recounts_begun: AtomicU32,
    /// While its sender is alive, recounts do not end.
    hold: Mutex<Option<tokio::sync::watch::Receiver<()>>>,
    markers: AtomicU32,
    failures: AtomicU32,
    tally_reads: AtomicU32,
}

impl Fake {
    pub(crate) fn ports(self: &Arc<Self>) -> Ports {
        Ports {
            stream: self.clone(),
            polls: self.clone(),
            votes: self.clone(),
            tallies: self.clone(),
            leases: self.clone(),
            clock: self.clone(),
        }
    }

    pub(crate) fn set_now(&self, now: i64) {
        self.now.store(now, Ordering::Relaxed);
    }

    /// The engines contradict the clock, or not any more.
    pub(crate) fn set_contradicted(&self, contradicted: bool) {
        self.contradicted.store(contradicted, Ordering::Relaxed);
    }

    pub(crate) fn set_rows(&self, rows: Vec<ShardRow>) {
        *self.rows.lock() = rows;
    }

    pub(crate) fn set_recount(&self, votes: &[u64]) {
        *self.recount.lock() = votes.to_vec();
    }

    /// Recounts that begin from now on do not end until what is returned is dropped.
    pub(crate) fn hold_recounts(&self) -> tokio::sync::watch::Sender<()> {
        let (hold, held) = tokio::sync::watch::channel(());
        *self.hold.lock() = Some(held);
        hold
    }

    pub(crate) fn recounts_begun(&self) -> u32 {
        self.recounts_begun.load(Ordering::Relaxed)
    }

    /// Lets the next calls that read or write tallies, or list rows, fail.
    pub(crate) fn fail_next(&self, calls: u32) {
        self.failures.store(calls, Ordering::Relaxed);
    }

    /// How many of those are still to come.
    pub(crate) fn failures_left(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(crate) fn tally_reads(&self) -> u32 {
        self.tally_reads.load(Ordering::Relaxed)
    }

    pub(crate) fn markers(&self) -> u32 {
        self.markers.load(Ordering::Relaxed)
    }

    pub(crate) fn final_result(&self, id: &str) -> Option<FinalResult> {
        self.polls.lock().get(&PollId::new(id).unwrap()).and_then(|poll| poll.final_result.clone())
    }

    /// Adds to a tally whatever its position.
    pub(crate) fn tally(&self, id: &str, group: Group, shard: &str, counts: &[(&str, i64)]) {
        let counts: Vec<_> = counts.iter().map(|(option, count)| (Arc::from(*option), *count)).collect();
        let delta = TallyDelta { poll_id: PollId::new(id).unwrap(), counts };
        self.add_to(group, &ShardId::new(shard), None, &delta);
    }

    fn add_to(&self, group: Group, shard: &ShardId, end: Option<SequenceNumber>, delta: &TallyDelta) {
        let mut tallies = self.tallies.lock();
        let row = tallies.entry((delta.poll_id.clone(), group, shard.clone())).or_insert_with(|| TallyRow {
            group,
            shard: shard.clone(),
            counts: Vec::new(),
            position: SequenceNumber::ZERO,
        });
        if end.is_some_and(|end| end <= row.position) {
            return;
        }
        row.position = end.unwrap_or(row.position);
        for (option, count) in &delta.counts {
            match row.counts.iter_mut().find(|(known, _)| known == option) {
                Some((_, sum)) => *sum += count,
                None => row.counts.push((option.clone(), *count)),
            }
        }
    }

    fn fail(&self) -> Result<(), PortError> {
        let failed = self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        failed.map_or(Ok(()), |_| Err(PortError::unknown("told to fail")))
    }

    fn change(&self, id: &PollId, change: impl FnOnce(&mut Poll)) -> Option<Poll> {
        let mut polls = self.polls.lock();
        let poll = polls.get_mut(id)?;
        change(poll);
        Some(poll.clone())
    }
}

impl Clock for Fake {
    fn now(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::Relaxed))
    }

    fn is_trusted(&self) -> bool {
        !self.contradicted.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl PollStore for Fake {
    async fn create(&self, poll: &Poll) -> Result<Created, PortError> {
        let mut polls = self.polls.lock();
        if let Some(stored) = polls.get(&poll.id) {
            return Ok(Created::Existing(Box::new(stored.clone())));
        }
        polls.insert(poll.id.clone(), poll.clone());
        Ok(Created::New)
    }

    async fn get(&self, id: &PollId) -> Result<Option<Poll>, PortError> {
        Ok(self.polls.lock().get(id).cloned())
    }

    async fn list(&self, after: Option<&PollId>, limit: usize) -> Result<Vec<Poll>, PortError> {
        let polls = self.polls.lock();
        Ok(polls.values().filter(|poll| after.is_none_or(|after| poll.id > *after)).take(limit).cloned().collect())
    }

    async fn begin_close(&self, id: &PollId) -> Result<Option<Poll>, PortError> {
        Ok(self.change(id, |poll| {
            if poll.closing == Closing::No && poll.final_result.is_none() {
                poll.closing = Closing::Asked;
            }
        }))
    }

    async fn close(&self, id: &PollId, closes_at: Timestamp) -> Result<Option<Poll>, PortError> {
        Ok(self.change(id, |poll| {
            if poll.closing == Closing::Asked {
                poll.closes_at = poll.closes_at.min(closes_at);
                poll.closing = Closing::Done;
            }
        }))
    }

    async fn finish(&self, id: &PollId, result: &FinalResult) -> Result<Option<Poll>, PortError> {
        Ok(self.change(id, |poll| {
            if poll.final_result.is_none() && !poll.needs_recount && poll.closing != Closing::Asked {
                poll.final_result = Some(result.clone());
            }
        }))
    }

    async fn set_needs_recount(&self, id: &PollId, needed: bool) -> Result<(), PortError> {
        self.change(id, |poll| poll.needs_recount = needed);
        Ok(())
    }
}

#[async_trait]
impl TallyStore for Fake {
    async fn add(
        &self,
        group: Group,
        shard: &ShardId,
        window_end: SequenceNumber,
        _: u64,
        deltas: &[TallyDelta],
    ) -> Result<(), PortError> {
        deltas.iter().for_each(|delta| self.add_to(group, shard, Some(window_end), delta));
        self.fail()
    }

    async fn read(&self, id: &PollId) -> Result<Vec<TallyRow>, PortError> {
        self.tally_reads.fetch_add(1, Ordering::Relaxed);
        self.fail()?;
        Ok(self.tallies.lock().iter().filter(|(key, _)| key.0 == *id).map(|(_, row)| row.clone()).collect())
    }
}

#[async_trait]
impl VoteStore for Fake {
    async fn write(&self, _: &[VoteWrite<'_>]) -> Result<Vec<VoteOutcome>, PortError> {
        Err(PortError::permanent("not needed here"))
    }

    async fn recount(&self, _: &Poll) -> Result<Vec<u64>, PortError> {
        self.recounts_begun.fetch_add(1, Ordering::Relaxed);
        let held = self.hold.lock().clone();
        if let Some(mut held) = held {
            while held.changed().await.is_ok() {}
        }
        Ok(self.recount.lock().clone())
    }
}

#[async_trait]
impl VoteStream for Fake {
    async fn list_shards(&self) -> Result<Vec<Shard>, PortError> {
        let ranges = HashRange::split_evenly(2).into_iter().enumerate();
        let mut shards: Vec<_> = ranges
            .map(|(i, range)| Shard { id: ShardId::new(format!("s{i}")), range, parents: Vec::new(), open: true })
            .collect();
        shards.push(Shard { id: ShardId::new("closed"), range: HashRange::ALL, parents: Vec::new(), open: false });
        Ok(shards)
    }

    async fn put(&self, hash: u128, data: bytes::Bytes) -> Result<Stored, PortError> {
        assert_eq!(data, encode_marker());
        assert!(HashRange::split_evenly(2).iter().any(|range| range.start == hash));
        self.markers.fetch_add(1, Ordering::Relaxed);
        Ok(Stored { shard: ShardId::new("s"), sequence: SequenceNumber::from_u64(1) })
    }

    async fn reader(&self, _: Group, _: &ShardId, _: SequenceNumber) -> Result<Box<dyn RecordReader>, PortError> {
        Err(PortError::permanent("not needed here"))
    }
}

#[async_trait]
impl LeaseStore for Fake {
    async fn list(&self, group: Group) -> Result<Vec<ShardRow>, PortError> {
        assert_eq!(group, Group::Persist);
        self.fail()?;
        Ok(self.rows.lock().clone())
    }

    async fn create(&self, _: Group, _: &ShardRow) -> Result<(), PortError> {
        Err(PortError::permanent("not needed here"))
    }

    async fn start(&self, _: Group, _: &ShardId, _: &Progress) -> Result<(), PortError> {
        Err(PortError::permanent("not needed here"))
    }

    async fn take(&self, _: Group, _: &ShardId, _: &Lease, _: &str) -> Result<Option<ShardRow>, PortError> {
        Ok(None)
    }

    async fn renew(&self, _: Group, _: &ShardId, _: u64) -> Result<Option<Lease>, PortError> {
        Ok(None)
    }

    async fn release(&self, _: Group, _: &ShardId, _: u64) -> Result<(), PortError> {
        Ok(())
    }

    async fn request(&self, _: Group, _: &ShardId, _: u64, _: &str) -> Result<(), PortError> {
        Ok(())
    }

    async fn write_progress(
        &self,
        _: Group,
        _: &ShardId,
        _: u64,
        _: (SequenceNumber, SequenceNumber),
        _: &Progress,
    ) -> Result<WriteOutcome, PortError> {
        Ok(WriteOutcome::Refused(None))
    }
}
