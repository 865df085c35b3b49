//! Resident memory of the whole stack: idle, and for each idle client stream.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use votestream_proto::{VotesMessage, v1::ingest_service_client::IngestServiceClient};

use crate::server::{Kind, Server};

const STREAMS: usize = 1_000;
/// Below the server's limit of streams a connection.
const STREAMS_PER_CONNECTION: usize = 25;

/// Prints the table.
pub(crate) fn run() -> anyhow::Result<()> {
    let server = Server::start(Kind::Stack)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Until the consumers have taken their shards and settled down.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let idle = server.resident_mb()?;
        let mut streams = Vec::with_capacity(STREAMS);
        for _ in 0..STREAMS / STREAMS_PER_CONNECTION {
            let client = IngestServiceClient::connect(format!("http://{}", server.ingest)).await?;
            for _ in 0..STREAMS_PER_CONNECTION {
                let (votes, messages) = mpsc::channel::<VotesMessage>(1);
                // Answered with headers as soon as the server has the stream.
                let answers = client.clone().stream_votes(ReceiverStream::new(messages)).await?;
                streams.push((votes, answers));
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let open = server.resident_mb()?;
        println!("\n| memory of the whole stack | |");
        println!("|---|---:|");
        println!("| idle, MB resident | {idle:.0} |");
        println!(
            "| each of {} idle client streams, kB | {:.1} |",
            streams.len(),
            (open - idle) * 1024.0 / STREAMS as f64
        );
        Ok(())
    })
}
