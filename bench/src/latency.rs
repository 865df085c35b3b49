//! From the time at which a message was due to the acknowledgement of its votes, on the embedded stack.

use std::time::{Duration, Instant};

use crate::{
    cpu::cpu_seconds,
    ingest::create_poll,
    load::{PER_MESSAGE, TOP_VOTES, milliseconds, open_loop, own_core, top_rate},
    report::{Chart, Report, Series, number},
    server::{Kind, Server},
};

/// How long the load runs at each rate.
const TIME: Duration = Duration::from_secs(4);
/// Time before each measurement, at the same rate, so that caches and windows have adapted to it.
const WARM_UP: Duration = Duration::from_secs(1);

/// Fills the table.
pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let (time, warm_up) = report.size((TIME, WARM_UP), (Duration::from_millis(500), Duration::from_millis(100)));
    let top_votes = report.size(TOP_VOTES, TOP_VOTES / 20);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let top = top_rate(top_votes).await?;
        let note = format!(
            "The stack on the embedded engines, a new one for each rate, {PER_MESSAGE} votes a message over eight streams of \
             one connection. Open loop: a message's latency counts from the time at which it was to be sent. The top rate is \
             what the stack acknowledges within seconds when clients send as fast as they may, here {top:.0} votes/s; \
             persist-svc stores fewer and is at work throughout."
        );
        let columns = [
            "rate, % of the top rate",
            "votes/s",
            "messages",
            "p50, ms",
            "p99, ms",
            "p99.9, ms",
            "client, share of a core",
        ];
        let table = report.table("Latency of acknowledgement", &note, &columns);
        let quantiles = [Series::new(3, "p50"), Series::new(4, "p99"), Series::new(5, "p99.9")];
        table.chart(Chart::lines(
            "latency",
            "Acknowledgement, embedded, fsync on",
            "rate, % of the top rate",
            "ms",
            &quantiles,
        ));
        for percent in [10.0, 50.0, 90.0] {
            let rate = top * percent / 100.0;
            // A new stack for each rate: otherwise it would first have to store what the rate before has left.
            let server = Server::start(Kind::Stack)?;
            create_poll(&server).await?;
            open_loop(&server, rate, warm_up).await?;
            let (before, start) = (cpu_seconds("self")?, Instant::now());
            let seen = open_loop(&server, rate, time).await?;
            table.row([
                number(percent, 0),
                number(seen.votes as f64 / seen.seconds, 0),
                seen.latency.len().into(),
                number(milliseconds(&seen.latency, 0.5), 1),
                number(milliseconds(&seen.latency, 0.99), 1),
                number(milliseconds(&seen.latency, 0.999), 1),
                number(own_core(before, start)?, 2),
            ]);
        }
        Ok(())
    })
}
