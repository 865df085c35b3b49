//! Stored polls.
//!
//! Owns their encoding. Must never answer a change before it is synced, and never change what is fixed at creation.

use std::{ops::Bound, sync::atomic::Ordering};

use async_trait::async_trait;
use votestream_core::{
    Closing, Poll, PollId, PollOption, PollSource, Timestamp,
    model::poll::FinalResult,
    port::{Created, PollStore, PortError},
};

use super::{EmbeddedStore, Inner, moments};
use crate::{
    blocking,
    codec::{Corrupt, Decoder, Encoder},
    read_failed,
};

fn encode(poll: &Poll) -> Vec<u8> {
    // Every field is named, so that a new one cannot be forgotten here.
    let Poll {
        id,
        title,
        options,
        opens_at,
        closes_at,
        closing,
        source,
        expected_peak,
        buckets,
        needs_recount,
        final_result,
    } = poll;
    let mut value = Encoder::default();
    value.text(id.as_str()).text(title).u32(options.len() as u32);
    for option in options {
        value.text(&option.id).text(&option.title);
    }
    let source = match source {
        PollSource::Ingest => 0,
        PollSource::Stream => 1,
    };
    let closing = match closing {
        Closing::No => 0,
        Closing::Asked => 1,
        Closing::Done => 2,
    };
    value
        .time(*opens_at)
        .time(*closes_at)
        .u8(closing)
        .u8(source)
        .u64(*expected_peak)
        .u32(*buckets)
        .bool(*needs_recount);
    value.bool(final_result.is_some());
    if let Some(result) = final_result {
        value.time(result.finalized_at).u32(result.votes.len() as u32);
        for votes in &result.votes {
            value.u64(*votes);
        }
    }
    value.0
}

fn decode(value: &[u8]) -> Result<Poll, Corrupt> {
    let mut value = Decoder(value);
    let id = PollId::new(value.text()?).map_err(|_| Corrupt)?;
    let title = value.text()?.to_owned();
    let options = value.list(|value| Ok(PollOption { id: value.shared_text()?, title: value.text()?.to_owned() }))?;
    let (opens_at, closes_at) = (value.time()?, value.time()?);
    let closing = match value.u8()? {
        0 => Closing::No,
        1 => Closing::Asked,
        2 => Closing::Done,
        _ => return Err(Corrupt),
    };
    let source = match value.u8()? {
        0 => PollSource::Ingest,
        1 => PollSource::Stream,
        _ => return Err(Corrupt),
    };
    let (expected_peak, buckets, needs_recount) = (value.u64()?, value.u32()?, value.bool()?);
    let final_result = match value.bool()? {
        false => None,
        true => {
            let finalized_at = value.time()?;
            Some(FinalResult { finalized_at, votes: value.list(Decoder::u64)? })
        }
    };
    value.end()?;
    Ok(Poll {
        id,
        title,
        options,
        opens_at,
        closes_at,
        closing,
        source,
        expected_peak,
        buckets,
        needs_recount,
        final_result,
    })
}

impl Inner {
    fn poll(&self, id: &PollId) -> Result<Option<Poll>, PortError> {
        let value = self.polls.get(id.as_str()).map_err(read_failed)?;
        value.map(|value| decode(&value).map_err(|corrupt| corrupt.in_a("poll"))).transpose()
    }

    /// Stores a poll. The caller holds the lock on polls.
    fn store_poll(&self, poll: &Poll) -> Result<(), PortError> {
        let changes = self.poll_changes.load(Ordering::SeqCst) + 1;
        let mut batch = self.db.batch();
        batch.insert(&self.polls, poll.id.as_str(), encode(poll));
        batch.insert(
            &self.polls,
            moments::key(changes),
            moments::value(changes, self.last_flush.load(Ordering::SeqCst)),
        );
        self.commit(batch)?;
        // Count it after the commit and before anybody can vote in the poll: then the log never names a change that the
        // store could lose.
        self.poll_changes.store(changes, Ordering::SeqCst);
        Ok(())
    }

    fn create_poll(&self, poll: &Poll) -> Result<Created, PortError> {
        let _deciding = self.polls_lock.lock();
        if let Some(existing) = self.poll(&poll.id)? {
            return Ok(Created::Existing(Box::new(existing)));
        }
        self.store_poll(poll)?;
        Ok(Created::New)
    }

    /// Changes a poll, if it exists, and stores it if `change` returns true. Returns the poll as it is stored then.
    fn change_poll(&self, id: &PollId, change: impl FnOnce(&mut Poll) -> bool) -> Result<Option<Poll>, PortError> {
        let _deciding = self.polls_lock.lock();
        let Some(mut poll) = self.poll(id)? else { return Ok(None) };
        if change(&mut poll) {
            self.store_poll(&poll)?;
        }
        Ok(Some(poll))
    }

    fn list_polls(&self, after: Option<&PollId>, limit: usize) -> Result<Vec<Poll>, PortError> {
        let start = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.as_str().as_bytes()));
        let polls = self.polls.range::<&[u8], _>((start, Bound::Excluded(&[u8::MAX][..]))).take(limit).map(|guard| {
            let value = guard.value().map_err(read_failed)?;
            decode(&value).map_err(|corrupt| corrupt.in_a("poll"))
        });
        polls.collect()
    }
}

#[async_trait]
impl PollStore for EmbeddedStore {
    async fn create(&self, poll: &Poll) -> Result<Created, PortError> {
        let (inner, poll) = (self.inner.clone(), poll.clone());
        blocking(move || inner.create_poll(&poll)).await
    }

    async fn get(&self, id: &PollId) -> Result<Option<Poll>, PortError> {
        let (inner, id) = (self.inner.clone(), id.clone());
        blocking(move || inner.poll(&id)).await
    }

    async fn list(&self, after: Option<&PollId>, limit: usize) -> Result<Vec<Poll>, PortError> {
        let (inner, after) = (self.inner.clone(), after.cloned());
        blocking(move || inner.list_polls(after.as_ref(), limit)).await
    }

    async fn begin_close(&self, id: &PollId) -> Result<Option<Poll>, PortError> {
        let (inner, id) = (self.inner.clone(), id.clone());
        blocking(move || inner.change_poll(&id, Poll::begin_close)).await
    }

    async fn close(&self, id: &PollId, closes_at: Timestamp) -> Result<Option<Poll>, PortError> {
        let (inner, id) = (self.inner.clone(), id.clone());
        blocking(move || inner.change_poll(&id, |poll| poll.close(closes_at))).await
    }

    async fn finish(&self, id: &PollId, result: &FinalResult) -> Result<Option<Poll>, PortError> {
        let (inner, id, result) = (self.inner.clone(), id.clone(), result.clone());
        blocking(move || {
            // Flush the votes and the progress that the result is based on, so that a recount after a crash finds them.
            inner.flush()?;
            inner.change_poll(&id, |poll| poll.finish(&result))
        })
        .await
    }

    async fn set_needs_recount(&self, id: &PollId, needed: bool) -> Result<(), PortError> {
        let (inner, id) = (self.inner.clone(), id.clone());
        blocking(move || {
            let changed = |poll: &mut Poll| std::mem::replace(&mut poll.needs_recount, needed) != needed;
            inner.change_poll(&id, changed).map(drop)
        })
        .await
    }
}
