//! Stored polls.
//!
//! Owns their encoding. Must never answer a change before it is synced, and never change what is fixed at creation.

use std::{ops::Bound, sync::atomic::Ordering};

use async_trait::async_trait;
use votestream_core::{
    Closing, KeyId, Poll, PollId, PollOption, PollSource, Timestamp, Visibility,
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
        visibility,
        released_at,
        pseudonym_key,
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
    // A poll with none of these is stored as it was before there were any, so that earlier versions read it.
    if *visibility != Visibility::Live {
        value.u8(VISIBILITY).u8(match visibility {
            Visibility::Live | Visibility::WhenFinal => 1,
            Visibility::OnRelease => 2,
        });
    }
    if let Some(at) = released_at {
        value.u8(RELEASED_AT).time(*at);
    }
    if let Some(KeyId(key)) = pseudonym_key {
        value.u8(PSEUDONYM_KEY).raw(key);
    }
    value.0
}

/// What an optional field begins with. They stand at the end, each at most once, in this order.
const VISIBILITY: u8 = 1;
const RELEASED_AT: u8 = 2;
const PSEUDONYM_KEY: u8 = 3;

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
    let visibility = match value.optional(VISIBILITY, Decoder::u8)? {
        None => Visibility::Live,
        Some(1) => Visibility::WhenFinal,
        Some(2) => Visibility::OnRelease,
        Some(_) => return Err(Corrupt),
    };
    let released_at = value.optional(RELEASED_AT, Decoder::time)?;
    let pseudonym_key = value.optional(PSEUDONYM_KEY, Decoder::array)?.map(KeyId);
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
        visibility,
        released_at,
        pseudonym_key,
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

    async fn release(&self, id: &PollId, at: Timestamp) -> Result<Option<Poll>, PortError> {
        let (inner, id) = (self.inner.clone(), id.clone());
        blocking(move || inner.change_poll(&id, |poll| poll.release(at))).await
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn poll() -> Poll {
        let options = vec![PollOption { id: "a".into(), title: "A".into() }];
        let id = PollId::new("p").unwrap();
        Poll::new(id, "T".into(), options, Timestamp(1), Timestamp(2), PollSource::Ingest, 7).unwrap()
    }

    #[test]
    fn a_poll_of_before_visibility_is_stored_as_it_was() {
        let mut old = Encoder::default();
        old.text("p").text("T").u32(1).text("a").text("A").time(Timestamp(1)).time(Timestamp(2));
        old.u8(0).u8(0).u64(7).u32(1).bool(false).bool(false);
        assert_eq!(encode(&poll()), old.0);
        assert_eq!(decode(&old.0), Ok(poll()));
        for tail in [&[0][..], &[4], &[1], &[1, 0], &[1, 3], &[2, 0], &[3, 1], &[1, 1, 1, 1]] {
            assert_eq!(decode(&[&old.0, tail].concat()), Err(Corrupt), "{tail:?}");
        }
    }

    proptest! {
        #[test]
        fn every_field_is_kept(
            at in 0..3_usize, released in prop::option::of(any::<i64>()), key in prop::option::of(any::<[u8; 8]>()),
            is_final: bool,
        ) {
            let poll = Poll {
                visibility: [Visibility::Live, Visibility::WhenFinal, Visibility::OnRelease][at],
                released_at: released.map(Timestamp),
                pseudonym_key: key.map(KeyId),
                final_result: is_final.then(|| FinalResult { votes: vec![3], finalized_at: Timestamp(9) }),
                ..poll()
            };
            prop_assert_eq!(decode(&encode(&poll)), Ok(poll));
        }
    }
}
