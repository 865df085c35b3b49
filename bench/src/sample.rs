//! Repeats the experiments that the AWS sample published: write units and completion time of storing one vote per user
//! for two batch sizes, and write units of interim results for two windows, at 20,000 votes a second.
//!
//! Votes come at that rate from prepared records of a null Kinesis. The null DynamoDB takes 5 ms for each call and
//! counts write units. So this measures what the services ask of AWS, not what AWS would do. Must never show a
//! published figure without saying that it is one.

use std::time::{Duration, Instant};

use crate::{
    aws::start_null,
    null::{self, Stats},
    report::{Cell, Chart, Report, Series, none, number},
    server::{Kind, Options, Server},
};

/// Votes a second, as in the sample.
const RATE: usize = 20_000;
/// Shards, as in the sample: one for each 1,000 votes a second.
const SHARDS: usize = 20;
/// As many shards as this system needs for the rate.
const SHARDS_NEEDED: usize = 2;
/// Votes per record with so few shards: as many as come to a lane within a few tens of milliseconds.
const RECORD_VOTES: usize = 250;
/// Votes per record where windows are as large as the smaller batches of the sample, or larger.
const RECORD_VOTES_SMALL: usize = 10;
/// How long a call to DynamoDB takes, in milliseconds.
const DELAY_MS: u64 = 5;
/// How long votes come, in seconds.
const SECONDS: usize = 30;
/// How often the counts of the engines are read.
const STEP: Duration = Duration::from_millis(50);
/// Longest time until the service reads all shards.
const START_MAX: Duration = Duration::from_secs(60);
/// Longest time from the last vote until everything is stored.
const DONE_MAX: Duration = Duration::from_secs(300);
/// Length of the sample's event: ten minutes.
const SAMPLE_SECONDS: f64 = 600.0;

/// Fills the tables.
pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    report.part("sample votes", store)?;
    report.part("sample interim", interim)
}

/// A way to store votes.
struct Storing {
    name: &'static str,
    shards: usize,
    record_votes: usize,
    /// Votes of a window; 0 for the default.
    window_votes: usize,
    /// The operator's limit on write units per second; 0 for none.
    write_units: u32,
}

const STORING: [Storing; 6] = [
    Storing { name: "here, windows of 25", shards: SHARDS, record_votes: 5, window_votes: 25, write_units: 0 },
    Storing {
        name: "here, windows of 10",
        shards: SHARDS,
        record_votes: RECORD_VOTES_SMALL,
        window_votes: 10,
        write_units: 0,
    },
    Storing {
        name: "here, as delivered, 20 shards",
        shards: SHARDS,
        record_votes: RECORD_VOTES_SMALL,
        window_votes: 0,
        write_units: 0,
    },
    Storing {
        name: "here, as delivered",
        shards: SHARDS_NEEDED,
        record_votes: RECORD_VOTES,
        window_votes: 0,
        write_units: 0,
    },
    Storing {
        name: "here, at most 18,000 units/s",
        shards: SHARDS_NEEDED,
        record_votes: RECORD_VOTES,
        window_votes: 0,
        write_units: 18_000,
    },
    Storing {
        name: "here, at most 8,000 units/s",
        shards: SHARDS_NEEDED,
        record_votes: RECORD_VOTES,
        window_votes: 0,
        write_units: 8_000,
    },
];

fn store(report: &mut Report) -> anyhow::Result<()> {
    let (seconds, ways) = report.size((SECONDS, &STORING[..]), (1, &STORING[..1]));
    let note = format!(
        "The AWS sample's first experiment, whose published figures are in the first two rows: 20,000 votes/s for ten minutes, a \
         Lambda function that writes each vote twice, in batches of 25 or of 10. Here persist-svc, through the AWS SDK, gets \
         prepared records of new voters at the same rate for {seconds} s; each call of DynamoDB takes {DELAY_MS} ms. Windows are \
         what a batch is there: what is read, stored and committed as one unit. As delivered they hold up to 50,000 votes. At \
         most N units/s is `--write-units-per-second`. Other units are checkpoints, leases and tallies. Completion is compared \
         as a share of the time for which votes came."
    );
    let columns = [
        "",
        "shards",
        "votes come for, s",
        "write units/s for votes",
        "units a vote",
        "other write units/s",
        "complete after the last vote, s",
        "the same, as a share of the voting",
        "CPU s per million votes",
    ];
    let table = report.table("The AWS sample: storing one vote per user", &note, &columns);
    table.chart(
        Chart::bars(
            "sample-units",
            "Storing 20,000 votes/s: write units a second",
            "write units/s for votes",
            &[Series::new(3, "")],
        )
        .baseline("published"),
    );
    table.chart(
        Chart::bars(
            "sample-completion",
            "Storing 20,000 votes/s: complete after the last vote",
            "share of the time for which votes came",
            &[Series::new(7, "")],
        )
        .baseline("published"),
    );
    for (name, units, minutes) in
        [("AWS sample, batches of 25", 18_000, 12.0), ("AWS sample, batches of 10", 8_000, 50.0)]
    {
        let after = minutes * 60.0;
        table.row([
            format!("{name} (published)").into(),
            SHARDS.into(),
            number(SAMPLE_SECONDS, 0),
            number(f64::from(units), 0),
            2_usize.into(),
            none(),
            number(after, 0),
            number(after / SAMPLE_SECONDS, 2),
            none(),
        ]);
    }
    for how in ways {
        let votes = RATE * seconds;
        let service = Options { window_votes: how.window_votes, write_units: how.write_units, ..Options::default() };
        let took = measure(Kind::PersistAws, service, how.shards, how.record_votes, votes, |now| {
            now.inserts == votes as u64 && now.tallied == votes as i64
        })?;
        table.row([
            how.name.into(),
            how.shards.into(),
            seconds.into(),
            number(took.stats.vote_units as f64 / took.seconds, 0),
            number(took.stats.vote_units as f64 / votes as f64, 2),
            number((took.stats.tally_units + took.stats.other_units) as f64 / took.seconds, 0),
            number(took.after_last, 1),
            number(took.after_last / seconds as f64, 2),
            number(took.cpu * 1e6 / votes as f64, 1),
        ]);
    }
    Ok(())
}

fn interim(report: &mut Report) -> anyhow::Result<()> {
    let seconds = report.size(SECONDS, 1);
    // The two windows of the sample, on as many shards as the sample has and on as many as are needed.
    let both = [
        (SHARDS, RECORD_VOTES_SMALL, 2),
        (SHARDS, RECORD_VOTES_SMALL, 5),
        (SHARDS_NEEDED, RECORD_VOTES, 2),
        (SHARDS_NEEDED, RECORD_VOTES, 5),
    ];
    let ways = report.size(&both[..], &both[..1]);
    let note = format!(
        "The second experiment: what interim results cost at 20,000 votes/s when sums are written every 2 or every 5 s. tally-svc \
         (`--flush-interval`) gets prepared records at that rate for {seconds} s, of one poll with five options. A sum is one \
         write unit for each poll and shard that had votes. Checkpoints and leases are written beside them; the sample's are in \
         Lambda, which does not bill them."
    );
    let columns = [
        "",
        "window, s",
        "shards",
        "write units/s for interim results",
        "checkpoints and leases, units/s",
        "all counted after the last vote, s",
    ];
    let table = report.table("The AWS sample: interim results", &note, &columns);
    table.chart(
        Chart::bars(
            "sample-interim",
            "Interim results at 20,000 votes/s: write units a second",
            "write units/s",
            &[Series::new(3, "interim results"), Series::new(4, "checkpoints and leases")],
        )
        .baseline("published"),
    );
    for (window, units) in [(2_usize, 128_usize), (5, 52)] {
        let name = format!("AWS sample, {window} s (published)");
        table.row([Cell::from(name), window.into(), SHARDS.into(), units.into()]);
    }
    for &(shards, record_votes, window) in ways {
        let votes = RATE * seconds;
        let service = Options { flush_ms: window * 1_000, ..Options::default() };
        let took = measure(Kind::TallyAws, service, shards, record_votes, votes, |now| now.tallied == votes as i64)?;
        table.row([
            format!("here, {window} s, {shards} shards").into(),
            window.into(),
            shards.into(),
            number(took.stats.tally_units as f64 / took.seconds, 1),
            number(took.stats.other_units as f64 / took.seconds, 1),
            number(took.after_last, 1),
        ]);
    }
    Ok(())
}

/// The costs of one run.
struct Took {
    /// From the first vote until everything was written.
    seconds: f64,
    /// From the last vote until everything was written.
    after_last: f64,
    /// What was asked of the engines during the run.
    stats: Stats,
    /// CPU seconds of the service during the run.
    cpu: f64,
}

/// Lets one service, which runs already, process votes that come at the rate.
fn measure(
    kind: Kind,
    service: Options,
    shards: usize,
    record_votes: usize,
    votes: usize,
    done: impl Fn(&Stats) -> bool,
) -> anyhow::Result<Took> {
    let options =
        Options { delay_ms: DELAY_MS, delay_all: true, shards, votes, record_votes, rate: RATE, ..Options::default() };
    let engines = start_null(options)?;
    let server = Server::start_with(kind, Options { aws: Some(engines.ingest), ..service })?;
    let start = Instant::now();
    while null::stats(engines.ingest)?.shards_read < shards {
        anyhow::ensure!(start.elapsed() < START_MAX, "the service does not read every shard");
        std::thread::sleep(STEP);
    }
    let (before, cpu) = (null::stats(engines.ingest)?, server.cpu_seconds()?);
    let start = Instant::now();
    null::release(engines.ingest)?;
    let last = Duration::from_secs_f64(votes as f64 / RATE as f64);
    loop {
        let now = null::stats(engines.ingest)?;
        let elapsed = start.elapsed();
        if done(&now) {
            let stats = Stats {
                vote_units: now.vote_units - before.vote_units,
                tally_units: now.tally_units - before.tally_units,
                other_units: now.other_units - before.other_units,
                ..now
            };
            return Ok(Took {
                seconds: elapsed.as_secs_f64(),
                after_last: elapsed.saturating_sub(last).as_secs_f64(),
                stats,
                cpu: server.cpu_seconds()? - cpu,
            });
        }
        anyhow::ensure!(elapsed < last + DONE_MAX, "not everything is stored after {elapsed:?}: {now:?}");
        std::thread::sleep(STEP);
    }
}
