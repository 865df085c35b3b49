//! From the time at which a message was to be sent to the acknowledgement of its votes, on the embedded stack.

use std::time::{Duration, Instant};

use crate::{
    ingest::create_poll,
    load::{PER_MESSAGE, milliseconds, open_loop, own_core, top_rate},
    server::{Kind, Server, cpu_seconds},
};

/// How long each rate is kept up.
const TIME: Duration = Duration::from_secs(4);
/// Before each rate, so that caches and windows are as that rate has them.
const WARM_UP: Duration = Duration::from_secs(1);

/// Prints the table.
pub(crate) fn run() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let top = top_rate().await?;
        println!(
            "\n| acknowledgement, embedded, {PER_MESSAGE} votes a message, top rate {top:.0} votes/s | votes/s | messages | p50, ms | p99, ms | p99.9, ms | client, share of a core |"
        );
        println!("|---|---:|---:|---:|---:|---:|---:|");
        for percent in [10.0, 50.0, 90.0] {
            let rate = top * percent / 100.0;
            // A stack of its own, so that no rate waits for what the one before it left to be stored.
            let server = Server::start(Kind::Stack)?;
            create_poll(&server).await?;
            open_loop(&server, rate, WARM_UP).await?;
            let (before, start) = (cpu_seconds("self")?, Instant::now());
            let seen = open_loop(&server, rate, TIME).await?;
            println!(
                "| {percent:.0} % | {:.0} | {} | {:.1} | {:.1} | {:.1} | {:.2} |",
                seen.votes as f64 / seen.seconds,
                seen.latency.len(),
                milliseconds(&seen.latency, 0.5),
                milliseconds(&seen.latency, 0.99),
                milliseconds(&seen.latency, 0.999),
                own_core(before, start)?,
            );
        }
        Ok(())
    })
}
