//! Applies a window of the `tally` group: counts every vote and adds the sums to the tallies.
//!
//! Must never mix two windows: the sums of one are written, or dropped and counted again, before the next one is read.

use std::sync::Arc;

use async_trait::async_trait;
use tracing::{Instrument, info_span};
use votestream_core::{
    consume::{
        group::{Applier, ApplierFactory, ApplyError},
        window::Window,
    },
    observe::trace,
    port::{Group, TallyStore},
};

use crate::counters::Counters;

/// Makes the appliers of the `tally` group.
pub struct TallyAppliers {
    tallies: Arc<dyn TallyStore>,
    counters: Arc<Counters>,
}

impl TallyAppliers {
    /// Makes appliers that write to this store.
    pub fn new(tallies: Arc<dyn TallyStore>) -> Self {
        Self { tallies, counters: Arc::default() }
    }
}

impl ApplierFactory for TallyAppliers {
    fn applier(&self) -> Box<dyn Applier> {
        Box::new(TallyApplier { tallies: self.tallies.clone(), counters: self.counters.clone() })
    }
}

/// Applies the windows of one shard.
struct TallyApplier {
    tallies: Arc<dyn TallyStore>,
    counters: Arc<Counters>,
}

#[async_trait]
impl Applier for TallyApplier {
    async fn apply(&mut self, window: &Window) -> Result<(), ApplyError> {
        self.counters.count(window);
        let deltas = self.counters.drain(&window.shard);
        let span = trace::inner(
            || info_span!(target: trace::TARGET, "write tallies", otel.kind = "client", polls = deltas.len()),
        );
        let added = self.tallies.add(Group::Tally, &window.shard, window.end, window.epoch, &deltas);
        added.instrument(span).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use votestream_core::{
        HashRange, PollId, SequenceNumber, ShardId, Timestamp,
        consume::window::Selected,
        port::TallyRow,
        record::batch::{BatchId, OpenBatch},
    };

    use super::*;
    use crate::testing::{memory, poll};

    fn window(end: u64, votes: &[(&str, &str)], only: Option<Vec<u32>>) -> Window {
        let mut open = OpenBatch::default();
        for (poll, option) in votes {
            let entry = open.entry(&PollId::new(poll).unwrap(), &(*option).into());
            open.push(entry, "the same user", 0, Timestamp(1));
        }
        let batch = Arc::new(open.to_batch(BatchId { producer: 1, number: end }, HashRange::ALL.into(), String::new()));
        let end = SequenceNumber::from_u64(end);
        Window {
            shard: ShardId::new("s"),
            epoch: 1,
            start: SequenceNumber::ZERO,
            end,
            selected: vec![Selected { sequence: end, batch, only }],
            polls: ["p", "q"].map(|id| Arc::new(poll(id, 0, 9))).to_vec(),
        }
    }

    /// The appliers of a process share their counters.
    #[tokio::test]
    async fn shards_do_not_mix_and_a_failure_of_one_keeps_nothing_of_it() {
        let memory = memory();
        let appliers = TallyAppliers::new(Arc::new(memory.clone()));
        let (mut one, mut other) = (appliers.applier(), appliers.applier());
        let first = window(1, &[("p", "x"), ("p", "x")], None);
        let second = Window { shard: ShardId::new("t"), ..window(1, &[("p", "x"), ("q", "y")], None) };
        memory.fail_next(1);
        assert!(one.apply(&first).await.is_err());
        let (first, second) = tokio::join!(one.apply(&first), other.apply(&second));
        first.unwrap();
        second.unwrap();
        let sums = async |id| {
            let rows = memory.read(&PollId::new(id).unwrap()).await.unwrap();
            rows.into_iter().map(|row| (row.shard.to_string(), row.counts)).collect::<Vec<_>>()
        };
        let counts = |option: &str, count| vec![(Arc::from(option), count)];
        assert_eq!(sums("p").await, [("s".into(), counts("x", 2)), ("t".into(), counts("x", 1))]);
        assert_eq!(sums("q").await[1], ("t".into(), counts("y", 1)));
    }

    #[tokio::test]
    async fn every_selected_vote_is_added_once() {
        let memory = memory();
        let first = window(1, &[("p", "x"), ("p", "x"), ("q", "y"), ("p", "y")], Some(vec![0, 1, 2]));
        let mut applier = TallyAppliers::new(Arc::new(memory.clone())).applier();
        for failures in [1, 0] {
            memory.fail_next(failures);
            let answer = applier.apply(&first).await;
            assert_eq!(answer.is_err(), failures > 0);
        }
        // Another owner, which does not know that the window was added.
        TallyAppliers::new(Arc::new(memory.clone())).applier().apply(&first).await.unwrap();
        applier.apply(&window(2, &[("p", "x")], None)).await.unwrap();

        let rows = async |id| memory.read(&PollId::new(id).unwrap()).await;
        let row = |count: &[(&str, i64)]| TallyRow {
            group: Group::Tally,
            shard: ShardId::new("s"),
            counts: count.iter().map(|(option, count)| ((*option).into(), *count)).collect(),
            position: SequenceNumber::from_u64(2),
        };
        assert_eq!(rows("p").await.unwrap(), [row(&[("x", 3)])]);
        assert_eq!(rows("q").await.unwrap(), [row(&[("y", 1)])]);
    }
}
