//! Conditional writes of the embedded store, in windows of 5,000 votes.

use std::{borrow::Cow, time::Instant};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use votestream_core::{PollId, Position, SequenceNumber, Timestamp, port::VoteWrite};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};

use crate::{
    report::{Chart, Report, Series, number},
    votes,
};

const WINDOW: usize = 5_000;
const VOTERS: usize = 500_000;

/// Fills the table.
pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let voters = report.size(VOTERS, 20_000);
    let runtime = tokio::runtime::Runtime::new()?;
    let dir = tempfile::tempdir()?;
    let engine = EmbeddedEngine::open(dir.path(), EmbeddedOptions::default())?;
    let store = engine.ports().votes;
    let mut rng = StdRng::seed_from_u64(2);
    let mut users: Vec<String> = (0..voters).map(|_| votes::user(&mut rng)).collect();
    let poll_id = PollId::new(votes::POLL)?;
    let note =
        format!("Conditional writes of {voters} voters, in windows of {WINDOW}, until the last of them is on disk.");
    let table = report.table("The embedded store", &note, &["votes", "votes/s"]);
    table.chart(Chart::bars("store", "Embedded store: conditional writes", "votes/s", &[Series::new(1, "")]));
    let mut sequence = 0;
    for what in ["new votes", "changed votes"] {
        users.shuffle(&mut rng);
        let start = Instant::now();
        for window in users.chunks(WINDOW) {
            sequence += 1;
            let writes: Vec<_> = window
                .iter()
                .enumerate()
                .map(|(index, user)| VoteWrite {
                    poll_id: Cow::Borrowed(&poll_id),
                    bucket: 0,
                    user_id: Cow::Borrowed(user),
                    option_id: votes::OPTIONS[rng.random_range(0..votes::OPTIONS.len())].into(),
                    position: Position { sequence: SequenceNumber::from_u64(sequence), index: index as u32 },
                    accepted_at: Timestamp(1_700_000_000_000),
                })
                .collect();
            runtime.block_on(store.write(&writes))?;
        }
        engine.flush()?;
        table.row([what.into(), number(voters as f64 / start.elapsed().as_secs_f64(), 0)]);
    }
    engine.close();
    Ok(())
}
