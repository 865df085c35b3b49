//! Applies a window: stores each user's last vote, then adds what moved to the tallies.
//!
//! Must have the same effect however often a window is applied. Between two windows it keeps only the mark of a window
//! that was superseded. Everything else comes from the outcomes of the writes, which tell what an earlier attempt did.

use std::sync::Arc;

use async_trait::async_trait;
use tracing::{Instrument, info_span};
use votestream_core::{
    SequenceNumber,
    consume::{
        group::{Applier, ApplierFactory, ApplyError},
        tally::{Counted, last_votes},
        window::Window,
    },
    observe::trace,
    port::{Group, TallyStore, VoteStore},
};

/// Most votes of one call to the store. Limits what is repeated after a failed call.
const VOTES_PER_WRITE: usize = 5_000;

/// Makes the appliers of the `persist` group.
#[derive(Clone)]
pub struct PersistAppliers {
    votes: Arc<dyn VoteStore>,
    tallies: Arc<dyn TallyStore>,
}

impl PersistAppliers {
    /// Makes appliers that write to these stores.
    pub fn new(votes: Arc<dyn VoteStore>, tallies: Arc<dyn TallyStore>) -> Self {
        Self { votes, tallies }
    }
}

impl ApplierFactory for PersistAppliers {
    fn applier(&self) -> Box<dyn Applier> {
        Box::new(PersistApplier { stores: self.clone(), superseded: None })
    }
}

/// Applies the windows of one shard.
pub struct PersistApplier {
    stores: PersistAppliers,
    /// End and epoch of a window that had superseded votes.
    superseded: Option<(SequenceNumber, u64)>,
}

#[async_trait]
impl Applier for PersistApplier {
    /// Returns [`ApplyError::Superseded`] before it adds to any tally. If the caller still owns the shard, it flags
    /// those polls for a recount and applies the window again under the same epoch. Then the other votes of the window
    /// are counted: a contradiction in one poll must not stop the shard, and must not cost other polls their votes.
    async fn apply(&mut self, window: &Window) -> Result<(), ApplyError> {
        let writes = last_votes(window)?;
        let mut counted = Counted::new(window);
        for chunk in writes.chunks(VOTES_PER_WRITE) {
            // Each vote is written only if the stored one is earlier in the stream.
            let span = trace::inner(
                || info_span!(target: trace::TARGET, "write votes", otel.kind = "client", votes = chunk.len()),
            );
            let outcomes = self.stores.votes.write(chunk).instrument(span).await?;
            counted.add(chunk, &outcomes)?;
        }

        let identity = Some((window.end, window.epoch));
        if !counted.superseded().is_empty() && self.superseded != identity {
            self.superseded = identity;
            let poll_ids = counted.superseded().iter().cloned().collect();
            tracing::error!(
                shard = %window.shard, epoch = window.epoch, ?poll_ids,
                "later votes are already stored: these polls must be recounted"
            );
            return Err(ApplyError::Superseded { poll_ids });
        }
        // Polls without changed sums are included: their stored position says that the window was added.
        let deltas = counted.into_deltas();
        let span = trace::inner(
            || info_span!(target: trace::TARGET, "write tallies", otel.kind = "client", polls = deltas.len()),
        );
        let added = self.stores.tallies.add(Group::Persist, &window.shard, window.end, window.epoch, &deltas);
        added.instrument(span).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{HashMap, hash_map::Entry},
        sync::Mutex,
    };

    use votestream_core::{
        HashRange, Poll, PollId, PollOption, PollSource, Position, ShardId, Timestamp,
        consume::window::Selected,
        port::{PortError, TallyDelta, TallyRow, VoteOutcome, VoteWrite},
        record::batch::{BatchId, OpenBatch},
    };

    use super::*;

    type StoredVote = (Position, Arc<str>, Option<Arc<str>>);

    /// Both stores in memory. While `failures` is not used up, calls fail after they took effect.
    #[derive(Default)]
    struct Stores {
        votes: Mutex<HashMap<(PollId, Arc<str>), StoredVote>>,
        tallies: Mutex<HashMap<String, (SequenceNumber, i64)>>,
        failures: Mutex<u32>,
        largest_write: Mutex<usize>,
    }

    impl Stores {
        fn fail(&self) -> Result<(), PortError> {
            let mut failures = self.failures.lock().unwrap();
            match failures.checked_sub(1) {
                Some(left) => {
                    *failures = left;
                    Err(PortError::unknown("the answer was lost"))
                }
                None => Ok(()),
            }
        }

        /// Sums as "poll/option", without those that are zero.
        fn sums(&self) -> Vec<(String, i64)> {
            let tallies = self.tallies.lock().unwrap();
            let mut sums: Vec<_> = tallies.iter().map(|(key, (_, sum))| (key.clone(), *sum)).collect();
            sums.retain(|(_, sum)| *sum != 0);
            sums.sort();
            sums
        }
    }

    #[async_trait]
    impl VoteStore for Stores {
        async fn write(&self, votes: &[VoteWrite<'_>]) -> Result<Vec<VoteOutcome>, PortError> {
            let mut largest = self.largest_write.lock().unwrap();
            *largest = votes.len().max(*largest);
            let mut stored = self.votes.lock().unwrap();
            let outcomes = votes.iter().map(|vote| match stored.entry(vote.key()) {
                Entry::Vacant(slot) => {
                    slot.insert((vote.position, vote.option_id.clone(), None));
                    VoteOutcome::Inserted
                }
                Entry::Occupied(mut slot) if slot.get().0 < vote.position => {
                    let previous = slot.get().1.clone();
                    slot.insert((vote.position, vote.option_id.clone(), Some(previous.clone())));
                    VoteOutcome::Replaced { previous }
                }
                Entry::Occupied(slot) if slot.get().0 == vote.position => {
                    VoteOutcome::AlreadyStored { previous: slot.get().2.clone() }
                }
                Entry::Occupied(_) => VoteOutcome::Superseded,
            });
            let outcomes = outcomes.collect();
            self.fail().map(|()| outcomes)
        }

        async fn recount(&self, _: &Poll) -> Result<Vec<u64>, PortError> {
            Err(PortError::permanent("not needed here"))
        }
    }

    #[async_trait]
    impl TallyStore for Stores {
        async fn add(
            &self,
            group: Group,
            _: &ShardId,
            window_end: SequenceNumber,
            _: u64,
            deltas: &[TallyDelta],
        ) -> Result<(), PortError> {
            assert_eq!(group, Group::Persist);
            let mut tallies = self.tallies.lock().unwrap();
            for delta in deltas {
                let guard = tallies.entry(delta.poll_id.to_string()).or_default();
                if guard.0 < window_end {
                    guard.0 = window_end;
                    for (option, count) in &delta.counts {
                        tallies.entry(format!("{}/{option}", delta.poll_id)).or_default().1 += count;
                    }
                }
            }
            self.fail()
        }

        async fn read(&self, _: &PollId) -> Result<Vec<TallyRow>, PortError> {
            Err(PortError::permanent("not needed here"))
        }
    }

    fn poll_id(id: &str) -> PollId {
        PollId::new(id).unwrap()
    }

    /// A window of one record.
    fn window(sequence: u64, epoch: u64, votes: &[(&str, &str, &str)]) -> Window {
        let mut open = OpenBatch::default();
        let mut polls: Vec<Arc<Poll>> = Vec::new();
        for (poll, user, option) in votes {
            let id = poll_id(poll);
            let entry = open.entry(&id, &(*option).into());
            open.push(entry, *user, 0, Timestamp(1));
            if polls.iter().all(|known| known.id != id) {
                let options = ["x", "y"].map(|id| PollOption { id: id.into(), title: String::new() }).to_vec();
                let (opens, closes, source) = (Timestamp(0), Timestamp(9), PollSource::Ingest);
                polls.push(Arc::new(Poll::new(id, String::new(), options, opens, closes, source, 1).unwrap()));
            }
        }
        let batch = open.to_batch(BatchId { producer: 1, number: 1 }, HashRange::ALL.into(), String::new());
        let end = SequenceNumber::from_u64(sequence);
        Window {
            shard: ShardId::new("shard"),
            epoch,
            start: SequenceNumber::from_u64(sequence - 1),
            end,
            selected: vec![Selected { sequence: end, batch: Arc::new(batch), only: None }],
            polls,
        }
    }

    fn applier(stores: &Arc<Stores>) -> Box<dyn Applier> {
        PersistAppliers::new(stores.clone(), stores.clone()).applier()
    }

    fn sums(sums: &[(&str, i64)]) -> Vec<(String, i64)> {
        sums.iter().map(|(key, sum)| ((*key).to_owned(), *sum)).collect()
    }

    #[tokio::test]
    async fn lost_answers_and_new_owners_count_nothing_twice() {
        let stores = Arc::new(Stores::default());
        let first = window(1, 1, &[("p", "a", "x"), ("p", "b", "x"), ("p", "a", "y"), ("q", "a", "x")]);
        let second = window(2, 1, &[("p", "b", "y")]);
        for failures in 0..3 {
            *stores.failures.lock().unwrap() = failures;
            let mut applier = applier(&stores);
            while let Err(error) = applier.apply(&first).await {
                assert!(matches!(error, ApplyError::Port(_)), "{error}");
            }
        }
        assert_eq!(stores.sums(), sums(&[("p/x", 1), ("p/y", 1), ("q/x", 1)]));
        applier(&stores).apply(&second).await.unwrap();
        applier(&stores).apply(&second).await.unwrap();
        assert_eq!(stores.sums(), sums(&[("p/y", 2), ("q/x", 1)]));
    }

    #[tokio::test]
    async fn superseded_votes_are_reported_before_any_tally_and_left_out_on_confirmation() {
        let stores = Arc::new(Stores::default());
        applier(&stores).apply(&window(5, 2, &[("p", "a", "x")])).await.unwrap();

        let old = window(4, 1, &[("p", "a", "y"), ("q", "b", "y")]);
        let before = stores.sums();
        let mut zombie = applier(&stores);
        let answer = zombie.apply(&old).await;
        assert!(matches!(answer, Err(ApplyError::Superseded { poll_ids }) if poll_ids == [poll_id("p")]));
        assert_eq!(stores.sums(), before);

        zombie.apply(&old).await.unwrap();
        assert_eq!(stores.sums(), sums(&[("p/x", 1), ("q/y", 1)]));
    }

    #[tokio::test]
    async fn large_windows_are_written_in_pieces() {
        let stores = Arc::new(Stores::default());
        let users: Vec<String> = (0..VOTES_PER_WRITE * 2 + 1).map(|user| user.to_string()).collect();
        let votes: Vec<_> = users.iter().map(|user| ("p", user.as_str(), "x")).collect();
        applier(&stores).apply(&window(1, 1, &votes)).await.unwrap();
        assert_eq!(*stores.largest_write.lock().unwrap(), VOTES_PER_WRITE);
        assert_eq!(stores.sums(), sums(&[("p/x", users.len() as i64)]));
    }
}
