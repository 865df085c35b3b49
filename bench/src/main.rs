//! Benchmarks. Every speed of a service is measured in a process of its own, as CPU time and as a ratio to a baseline in
//! the same run; see bench/README.md for how to read the table.

mod aws;
mod codec;
mod counters;
mod freshness;
mod ingest;
mod latency;
mod load;
mod memory;
mod null;
mod pipeline;
mod scaling;
mod server;
mod store;
mod votes;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about = "Measures Votestream and prints Markdown tables")]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Clone, Copy, Subcommand)]
enum Bench {
    /// Everything below, one after the other
    All,
    /// Ingest against a bare tonic server that decodes the same messages and drops them
    Ingest,
    /// Bytes and nanoseconds a vote of the stored batch
    Codec,
    /// From the bytes of a record to counters, as tally-svc does
    Counters,
    /// Conditional writes of the embedded store
    Store,
    /// persist-svc, tally-svc and ingest-svc against a null Kinesis and a null DynamoDB
    Aws {
        /// One of persist, tally, ingest, shard; all of them unless named
        part: Option<aws::Part>,
    },
    /// Whole pipeline on the embedded engines, from the client to exact counts
    Pipeline,
    /// From the time a vote was to be sent to its acknowledgement, at 10, 50 and 90 % of the top rate
    Latency,
    /// From a vote's acknowledgement to interim results that show it
    Freshness,
    /// Cost of a vote against shards, connections, votes a message, voters, polls and re-votes
    Scaling {
        /// One of shards, connections, message, voters, polls, revotes; all of them unless named
        part: Option<scaling::Part>,
        /// Up to ten million voters instead of one million, and 1,000 polls instead of 100
        #[arg(long)]
        many: bool,
    },
    /// Resident memory of the stack, idle and with 1,000 idle streams
    Memory,
    /// Internal: a server under test
    #[command(hide = true)]
    Serve {
        /// Which server
        kind: server::Kind,
        #[command(flatten)]
        options: server::Options,
    },
}

fn main() -> anyhow::Result<()> {
    let bench = Arguments::parse().bench;
    if let Bench::Serve { kind, options } = bench {
        return server::run(kind, options);
    }
    let is = |wanted: fn(&Bench) -> bool| matches!(bench, Bench::All) || wanted(&bench);
    if is(|bench| matches!(bench, Bench::Codec)) {
        codec::run()?;
    }
    if is(|bench| matches!(bench, Bench::Counters)) {
        counters::run()?;
    }
    if is(|bench| matches!(bench, Bench::Store)) {
        store::run()?;
    }
    if is(|bench| matches!(bench, Bench::Memory)) {
        memory::run()?;
    }
    if is(|bench| matches!(bench, Bench::Ingest)) {
        ingest::run()?;
    }
    match bench {
        Bench::All => aws::run(None)?,
        Bench::Aws { part } => aws::run(part)?,
        Bench::Scaling { part, many } => scaling::run(part, many)?,
        Bench::Ingest
        | Bench::Codec
        | Bench::Counters
        | Bench::Store
        | Bench::Pipeline
        | Bench::Latency
        | Bench::Freshness
        | Bench::Memory
        | Bench::Serve { .. } => {}
    }
    if is(|bench| matches!(bench, Bench::Pipeline)) {
        pipeline::run()?;
    }
    if is(|bench| matches!(bench, Bench::Latency)) {
        latency::run()?;
    }
    if is(|bench| matches!(bench, Bench::Freshness)) {
        freshness::run()?;
    }
    if matches!(bench, Bench::All) {
        scaling::run(None, false)?;
    }
    Ok(())
}
