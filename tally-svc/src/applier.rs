//! Applies a window of the `tally` group: counts every vote and adds the sums to the tallies.
//!
//! Must never mix two windows: the sums of one are written, or dropped and counted again, before the next one is read.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use dashmap::DashMap;
use tracing::{Instrument, info_span};
use votestream_core::{
    PollId,
    consume::{
        group::{Applier, ApplierFactory, ApplyError},
        tally::{sorted_deltas, submitted},
        window::Window,
    },
    observe::trace,
    port::{Group, TallyDelta, TallyStore},
};

/// Makes the appliers of the `tally` group.
pub struct TallyAppliers {
    tallies: Arc<dyn TallyStore>,
}

impl TallyAppliers {
    /// Makes appliers that write to this store.
    pub fn new(tallies: Arc<dyn TallyStore>) -> Self {
        Self { tallies }
    }
}

impl ApplierFactory for TallyAppliers {
    fn applier(&self) -> Box<dyn Applier> {
        Box::new(TallyApplier { tallies: self.tallies.clone(), sums: DashMap::new() })
    }
}

/// Applies the windows of one shard.
pub struct TallyApplier {
    tallies: Arc<dyn TallyStore>,
    /// Sums of the present window, per poll and option. Kept between windows only to use the memory again.
    sums: DashMap<PollId, HashMap<Arc<str>, i64>>,
}

impl TallyApplier {
    fn count(&self, window: &Window) {
        // Removes what a failed attempt has left.
        self.sums.clear();
        for poll in &window.polls {
            self.sums.entry(poll.id.clone()).or_default();
        }
        for selected in &window.selected {
            let counts = submitted(selected);
            for ((poll, option), count) in selected.batch.dictionary.iter().zip(counts) {
                if count > 0 {
                    let mut sums = self.sums.entry(poll.clone()).or_default();
                    *sums.entry(option.clone()).or_default() += count;
                }
            }
        }
    }

    fn deltas(&self) -> Vec<TallyDelta> {
        sorted_deltas(self.sums.iter().map(|poll| (poll.key().clone(), poll.value().clone())))
    }
}

#[async_trait]
impl Applier for TallyApplier {
    async fn apply(&mut self, window: &Window) -> Result<(), ApplyError> {
        self.count(window);
        let deltas = self.deltas();
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
        HashRange, SequenceNumber, ShardId, Timestamp,
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
