//! From a vote's acknowledgement to interim results that show it, on the embedded stack: without other load, and under
//! load.
//!
//! A few probes cast one vote each, in a poll of their own, and ask until the results show it. Must never conclude from
//! the totals of the load that one vote is visible.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rand::{SeedableRng, rngs::StdRng};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use votestream_proto::{
    VotesMessage,
    v1::{
        GetInterimResultsRequest, ingest_service_client::IngestServiceClient,
        results_service_client::ResultsServiceClient,
    },
};

use crate::{
    ingest::create_poll,
    load::{TOP_VOTES, milliseconds, open_loop, top_rate},
    report::{Chart, Report, Series, number},
    server::{Kind, Server},
    votes,
};

/// Number of probes. Half of them wait for the submitted votes, half for the counted ones.
const PROBES: usize = 10;
/// How often a probe asks. The measured time is too long by up to this much.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// How long the load runs at each rate.
const TIME: Duration = Duration::from_secs(5);
/// Longest time that a probe waits for its vote.
const VISIBLE_MAX: Duration = Duration::from_secs(40);

/// In which total the vote has to show.
#[derive(Clone, Copy)]
enum Total {
    Submitted,
    Counted,
}

/// Fills the table.
pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let time = report.size(TIME, Duration::from_secs(1));
    let top_votes = report.size(TOP_VOTES, TOP_VOTES / 20);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let top = top_rate(top_votes).await?;
        let note = format!(
            "From a vote's acknowledgement to GetInterimResults that show it, while the load above goes on, top rate {top:.0} \
             votes/s. Probes with polls of their own cast a vote and ask every 5 ms until it shows, half of them in the \
             submitted votes (tally-svc), half in the counted ones (persist-svc)."
        );
        let columns = [
            "load, % of the top rate",
            "submitted, probes",
            "submitted p50, ms",
            "submitted p99, ms",
            "counted, probes",
            "counted p50, ms",
            "counted p99, ms",
        ];
        let table = report.table("Freshness of interim results", &note, &columns);
        let quantiles = [
            Series::new(2, "submitted, p50"),
            Series::new(3, "submitted, p99"),
            Series::new(5, "counted, p50"),
            Series::new(6, "counted, p99"),
        ];
        table.chart(Chart::lines("freshness", "Freshness, embedded", "load, % of the top rate", "ms", &quantiles));
        for percent in [0.0, 5.0, 20.0, 50.0] {
            let server = Server::start(Kind::Stack)?;
            create_poll(&server).await?;
            create_probes(&server).await?;
            let until = Instant::now() + time;
            let mut tasks = JoinSet::new();
            for at in 0..PROBES {
                let total = if at % 2 == 0 { Total::Submitted } else { Total::Counted };
                let ingest = IngestServiceClient::connect(format!("http://{}", server.ingest)).await?;
                let results = ResultsServiceClient::connect(format!("http://{}", server.results)).await?;
                tasks.spawn(async move { Ok::<_, anyhow::Error>((total, probe(ingest, results, at, total, until).await?)) });
            }
            if percent > 0.0 {
                open_loop(&server, top * percent / 100.0, time).await?;
            }
            let (mut submitted, mut counted) = (Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?);
            while let Some(seen) = tasks.join_next().await {
                let (total, seen) = seen??;
                match total {
                    Total::Submitted => submitted.add(seen)?,
                    Total::Counted => counted.add(seen)?,
                }
            }
            table.row([
                number(percent, 0),
                submitted.len().into(),
                number(milliseconds(&submitted, 0.5), 0),
                number(milliseconds(&submitted, 0.99), 0),
                counted.len().into(),
                number(milliseconds(&counted, 0.5), 0),
                number(milliseconds(&counted, 0.99), 0),
            ]);
        }
        Ok(())
    })
}

async fn create_probes(server: &Server) -> anyhow::Result<()> {
    let polls = server.connect_results().await?;
    for probe in 0..PROBES {
        polls.create_poll(votes::create_request(&poll_of(probe))).await?;
    }
    Ok(())
}

fn poll_of(probe: usize) -> String {
    format!("probe-{probe}")
}

/// Casts votes of new users in a poll of its own, each one when the one before has shown. Returns the microseconds that
/// each vote took.
async fn probe(
    mut ingest: IngestServiceClient<Channel>,
    mut results: ResultsServiceClient<Channel>,
    at: usize,
    total: Total,
    until: Instant,
) -> anyhow::Result<Histogram<u64>> {
    let mut seen = Histogram::new(3)?;
    let mut rng = StdRng::seed_from_u64(at as u64);
    let request = GetInterimResultsRequest { poll_id: poll_of(at) };
    let mut cast = 0;
    while Instant::now() < until {
        let mut vote = VotesMessage::default();
        vote.push(&request.poll_id, &votes::user(&mut rng), votes::option(&mut rng));
        ingest.cast_vote(vote).await?;
        let acknowledged = Instant::now();
        cast += 1;
        loop {
            let shown = results.get_interim_results(request.clone()).await?.into_inner();
            let waited = acknowledged.elapsed();
            let shown = match total {
                Total::Submitted => shown.total_submitted,
                Total::Counted => shown.total_counted,
            };
            if shown >= cast {
                seen.record(waited.as_micros() as u64)?;
                break;
            }
            anyhow::ensure!(waited < VISIBLE_MAX, "a vote does not show after {VISIBLE_MAX:?}");
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
    Ok(seen)
}
