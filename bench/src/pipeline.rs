//! The whole pipeline on the embedded engines: client, stream, exact and interim counts, one process, fsync on.

use std::time::{Duration, Instant};

use votestream_proto::v1::{GetInterimResultsRequest, results_service_client::ResultsServiceClient};

use crate::{
    ingest::{cast, create_poll, median},
    server::{Kind, Server},
    votes,
};

const VOTES: usize = 800_000;
const VOTES_PER_MESSAGE: usize = 100;
const STREAMS: usize = 8;
const ROUNDS: usize = 3;

/// Prints the table.
pub(crate) fn run() -> anyhow::Result<()> {
    let (mut accepted, mut exact, mut cpu, mut peak) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let server = Server::start(Kind::Stack)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            create_poll(&server).await?;
            let (before, start) = (server.cpu_seconds()?, Instant::now());
            let count = cast(&server, VOTES, VOTES_PER_MESSAGE, STREAMS).await?;
            anyhow::ensure!(count == VOTES as u64, "{count} of {VOTES} votes were accepted");
            accepted.push(VOTES as f64 / start.elapsed().as_secs_f64());
            let mut results = ResultsServiceClient::connect(format!("http://{}", server.results)).await?;
            let mut steady = (0, 0);
            loop {
                let request = GetInterimResultsRequest { poll_id: votes::POLL.into() };
                let shown = results.get_interim_results(request).await?.into_inner();
                let counted = shown.total_counted;
                // The voters are the prepared ones: counted stops growing when every one of them has been stored.
                steady = if counted == steady.0 { (counted, steady.1 + 1) } else { (counted, 0) };
                if shown.total_submitted == VOTES as u64 && steady.1 >= 5 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            exact.push(VOTES as f64 / start.elapsed().as_secs_f64());
            cpu.push((server.cpu_seconds()? - before) * 1e6 / VOTES as f64);
            peak.push(server.peak_mb()?);
            anyhow::Ok(())
        })?;
    }
    println!("\n| whole pipeline, embedded, {VOTES} votes, {VOTES_PER_MESSAGE} a message | |");
    println!("|---|---:|");
    println!("| acknowledged, votes/s | {:.0} |", median(accepted.into_iter()));
    println!("| client to exact counts, votes/s | {:.0} |", median(exact.into_iter()));
    println!("| CPU s per million votes, all three services | {:.2} |", median(cpu.into_iter()));
    println!("| peak resident MB | {:.0} |", median(peak.into_iter()));
    Ok(())
}
