//! Resident memory of the whole stack: idle, for each idle client stream, and with many voters.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use votestream_proto::{VotesMessage, v1::ingest_service_client::IngestServiceClient};

use crate::{
    report::{Chart, Report, Series, number},
    scaling::Crowd,
    server::{Kind, Server},
};

const STREAMS: usize = 1_000;
/// Fewer than the server's limit of streams per connection.
const STREAMS_PER_CONNECTION: usize = 25;

/// Most voters, unless a flag sets another number.
const VOTERS: usize = 1_000_000;
const VOTERS_MANY: usize = 10_000_000;
const VOTERS_QUICK: usize = 20_000;
/// Voters of the first row; each further row has ten times as many.
const VOTERS_FIRST: usize = 10_000;

/// Fills the tables.
pub(crate) fn run(report: &mut Report, most: Option<usize>) -> anyhow::Result<()> {
    report.part("memory", idle)?;
    let usual = if report.many { VOTERS_MANY } else { report.size(VOTERS, VOTERS_QUICK) };
    let most = most.unwrap_or(usual);
    report.part("memory voters", |report| voters(report, most))
}

fn voters(report: &mut Report, most: usize) -> anyhow::Result<()> {
    let note = "The whole stack on the embedded engines, each voter's vote stored once, in one poll; resident memory after \
        everything is counted, and the most until then. Pages of files that the kernel caches are not in it.";
    let columns = ["voters", "resident, MB", "most resident, MB", "bytes a voter"];
    let table = report.table("Memory with many voters", note, &columns);
    let series = [Series::new(1, "resident"), Series::new(2, "most resident")];
    table.chart(Chart::lines("memory-voters", "Resident memory of the whole stack, embedded", "voters", "MB", &series));
    let server = Server::start(Kind::Stack)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut crowd = Crowd::new(&server).await?;
        let rows = std::iter::successors(Some(VOTERS_FIRST), |voters| voters.checked_mul(10));
        for voters in rows.take_while(|&voters| voters < most).chain([most]) {
            crowd.grow(&server, voters).await?;
            let (now, peak) = (server.resident_mb()?, server.peak_mb()?);
            table.row([
                voters.into(),
                number(now, 0),
                number(peak, 0),
                number(peak * f64::from(1 << 20) / voters as f64, 0),
            ]);
        }
        Ok(())
    })
}

fn idle(report: &mut Report) -> anyhow::Result<()> {
    let table = report.table("Memory of the whole stack", "On the embedded engines.", &["", "resident"]);
    let server = Server::start(Kind::Stack)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Wait until the consumers have taken their shards and have nothing left to do.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let idle = server.resident_mb()?;
        let mut streams = Vec::with_capacity(STREAMS);
        for _ in 0..STREAMS / STREAMS_PER_CONNECTION {
            let client = IngestServiceClient::connect(format!("http://{}", server.ingest)).await?;
            for _ in 0..STREAMS_PER_CONNECTION {
                let (votes, messages) = mpsc::channel::<VotesMessage>(1);
                // The server answers with headers as soon as it has the stream.
                let answers = client.clone().stream_votes(ReceiverStream::new(messages)).await?;
                streams.push((votes, answers));
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let open = server.resident_mb()?;
        table.row(["idle, MB".into(), number(idle, 0)]);
        let each = (open - idle) * 1024.0 / STREAMS as f64;
        table.row([format!("each of {} idle client streams, kB", streams.len()).into(), number(each, 1)]);
        Ok(())
    })
}
