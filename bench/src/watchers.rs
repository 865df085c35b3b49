//! Many who watch one poll: what 0, 1, 1,000 and 10,000 streams of events cost the stack while votes come in.
//!
//! Each watcher is a connection of its own, as a browser's is. Must never measure watchers of whom some do not get what
//! changes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    ingest::create_poll,
    load::{TOP_VOTES, milliseconds, open_loop, top_rate},
    report::{Report, none, number},
    server::{Kind, Server},
    votes,
};

/// How long votes come in.
const TIME: Duration = Duration::from_secs(5);
/// Share of the top rate: light enough that the watchers' own processor time is not missing elsewhere.
const LOAD: f64 = 0.05;
/// Most watchers that connect at the same time.
const CONNECT_AT_ONCE: usize = 64;

/// Fills the table.
pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let time = report.size(TIME, Duration::from_secs(1));
    let top_votes = report.size(TOP_VOTES, TOP_VOTES / 20);
    let crowds: &[usize] = report.size(&[0, 1, 1_000, 10_000], &[0, 1, 50]);
    votestream_server::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let rate = top_rate(top_votes).await? * LOAD;
        let note = format!(
            "Streams of server-sent events of one poll, a connection each, while {rate:.0} votes/s come in for it: the processor time of \
             the whole stack beside the same load without watchers, resident memory, events that each watcher got, and the \
             acknowledgement of votes. The watchers and the load share the machine with the stack."
        );
        let columns = [
            "watchers",
            "CPU, s/s",
            "CPU a watcher, µs/s",
            "resident, MB",
            "kB a watcher",
            "events a watcher and second",
            "votes p50, ms",
            "votes p99, ms",
        ];
        let table = report.table("Watchers of one poll", &note, &columns);
        let mut alone = None;
        for &watchers in crowds {
            let server = Server::start(Kind::Stack)?;
            create_poll(&server).await?;
            // Memory is mapped and caches are filled before anybody watches.
            open_loop(&server, rate, time / 5).await?;
            let (events, mut crowd) = watch(&server, watchers).await?;
            let (cpu, seen, start) = (server.cpu_seconds()?, events.load(Ordering::Relaxed), Instant::now());
            let votes = open_loop(&server, rate, time).await?;
            let seconds = start.elapsed().as_secs_f64();
            let cpu = (server.cpu_seconds()? - cpu) / seconds;
            let resident = server.resident_mb()?;
            let seen = (events.load(Ordering::Relaxed) - seen) as f64;
            anyhow::ensure!(crowd.try_join_next().is_none(), "a watcher has ended");
            let (cpu_alone, resident_alone) = *alone.get_or_insert((cpu, resident));
            let each = |whole: f64| if watchers == 0 { none() } else { number(whole / watchers as f64, 1) };
            table.row([
                watchers.into(),
                number(cpu, 2),
                each((cpu - cpu_alone) * 1e6),
                number(resident, 0),
                each((resident - resident_alone) * 1024.0),
                each(seen / seconds),
                number(milliseconds(&votes.latency, 0.5), 1),
                number(milliseconds(&votes.latency, 0.99), 1),
            ]);
            crowd.abort_all();
        }
        Ok(())
    })
}

/// Connects the watchers, and waits until each has the counts. Returns the number of events that all have got.
async fn watch(server: &Server, watchers: usize) -> anyhow::Result<(Arc<AtomicU64>, JoinSet<anyhow::Result<()>>)> {
    let (events, mut crowd) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
    let of_all = &events;
    let connected = stream::iter(0..watchers).map(|_| connect(server, of_all.clone()));
    let mut connected = connected.buffer_unordered(CONNECT_AT_ONCE).boxed_local();
    while let Some(watcher) = connected.next().await {
        crowd.spawn(watcher?);
    }
    drop(connected);
    Ok((events, crowd))
}

/// A watcher that has got the first counts, and goes on when it is polled.
async fn connect(
    server: &Server,
    events: Arc<AtomicU64>,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
    let mut stream = TcpStream::connect(server.results).await?;
    let request = format!("GET /v1/polls/{}/results/events HTTP/1.1\r\nHost: localhost\r\n\r\n", votes::POLL);
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = vec![0; 4_096];
    let mut begun = Vec::new();
    while !String::from_utf8_lossy(&begun).contains("event: interim") {
        let read = stream.read(&mut bytes).await?;
        anyhow::ensure!(read > 0, "the server has closed a watcher's connection");
        begun.extend_from_slice(&bytes[..read]);
    }
    Ok(async move {
        loop {
            let read = stream.read(&mut bytes).await?;
            anyhow::ensure!(read > 0, "the server has closed a watcher's connection");
            // Events begin with their kind; nothing else has these words in it.
            let kinds = bytes[..read].windows(7).filter(|window| window == b"event: ").count();
            events.fetch_add(kinds as u64, Ordering::Relaxed);
        }
    })
}
