//! Benchmarks. Each service is measured in a process of its own, as CPU time and as a ratio to a baseline in the same
//! run. bench/README.md explains how to read the tables.

mod aws;
mod codec;
mod cores;
mod counters;
mod cpu;
mod engines;
mod freshness;
mod identity;
mod ingest;
mod lanes;
mod latency;
mod load;
mod memory;
mod null;
mod phone;
mod pipeline;
mod report;
mod sample;
mod scaling;
mod server;
mod store;
mod tls;
mod turns;
mod votes;
mod watchers;
mod windows;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::report::Report;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about = "Measures Votestream; prints Markdown tables, and writes a report with charts")]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
    /// Writes report.md with all tables, and the charts beside it
    #[arg(long, global = true, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Small sizes, only to see whether everything runs: the figures mean nothing
    #[arg(long, global = true)]
    quick: bool,
    /// Up to ten million voters in `scaling voters` and `memory`
    #[arg(long, global = true, conflicts_with = "quick")]
    many: bool,
}

#[derive(Clone, Subcommand)]
enum Bench {
    /// Everything below, one after the other
    All,
    /// Bytes and nanoseconds per vote of the stored batch
    Codec,
    /// From the bytes of a record to counters, as tally-svc does
    Counters,
    /// Conditional writes of the embedded store
    Store,
    /// From a validated vote to a settled one, into a stream in memory
    Lanes,
    /// Deciding which votes of a window count, compared with decoding it
    Windows,
    /// Resident memory of the stack: idle, with 1,000 idle streams, and with many voters
    Memory {
        /// Most voters
        #[arg(long)]
        voters: Option<usize>,
    },
    /// Ingest, compared with a bare tonic server that decodes the same messages and drops them
    Ingest {
        /// One of messages, calls, connections, refused, tls [default: all]
        part: Option<ingest::Part>,
    },
    /// Calls and streams of callers who say who they are, compared with identity off
    Identity,
    /// A phone (connection, TLS, token, vote) at `votestream up`, beside nginx with a constant answer
    Phone,
    /// persist-svc, tally-svc and ingest-svc against a null Kinesis and a null DynamoDB
    Aws {
        /// One of persist, tally, ingest, shard [default: all]
        part: Option<aws::Part>,
    },
    /// The experiments of the AWS sample: write units and completion time
    Sample,
    /// The whole pipeline from the client to exact counts, on the embedded engines and on stand-ins for AWS
    Pipeline,
    /// From the time at which a vote was due to its acknowledgement, at 10, 50 and 90 % of the top rate
    Latency,
    /// From a vote's acknowledgement to interim results that show it
    Freshness,
    /// What those cost who watch a poll while votes come in: none, one, 1,000 and 10,000
    Watchers,
    /// How the cost of a vote depends on shards, connections, votes per message, voters, polls and re-votes
    Scaling {
        /// One of shards, connections, message, voters, polls, revotes [default: all]
        part: Option<scaling::Part>,
    },
    /// Internal: a server under test
    #[command(hide = true)]
    Serve {
        /// Which server
        kind: server::Kind,
        #[command(flatten)]
        options: server::Options,
    },
}

/// The benchmarks that `all` runs. Those that take long come last.
const ALL: [Bench; 16] = [
    Bench::Codec,
    Bench::Counters,
    Bench::Lanes,
    Bench::Windows,
    Bench::Store,
    Bench::Memory { voters: None },
    Bench::Ingest { part: None },
    Bench::Identity,
    Bench::Phone,
    Bench::Aws { part: None },
    Bench::Pipeline,
    Bench::Latency,
    Bench::Freshness,
    Bench::Watchers,
    Bench::Sample,
    Bench::Scaling { part: None },
];

fn main() -> anyhow::Result<()> {
    let Arguments { bench, out, quick, many } = Arguments::parse();
    if let Bench::Serve { kind, options } = bench {
        return server::run(kind, options);
    }
    let mut report = Report::new(quick, many, out)?;
    run(bench, &mut report)?;
    report.finish()
}

fn run(bench: Bench, report: &mut Report) -> anyhow::Result<()> {
    match bench {
        Bench::All => ALL.into_iter().try_for_each(|bench| run(bench, report)),
        Bench::Codec => report.part("codec", codec::run),
        Bench::Counters => report.part("counters", counters::run),
        Bench::Store => report.part("store", store::run),
        Bench::Lanes => report.part("lanes", lanes::run),
        Bench::Windows => report.part("windows", windows::run),
        Bench::Memory { voters } => memory::run(report, voters),
        Bench::Sample => sample::run(report),
        Bench::Ingest { part } => report.part("ingest", |report| ingest::run(report, part)),
        Bench::Identity => report.part("identity", identity::run),
        Bench::Phone => report.part("phone", phone::run),
        Bench::Aws { part } => aws::run(report, part),
        Bench::Pipeline => report.part("pipeline", pipeline::run),
        Bench::Latency => report.part("latency", latency::run),
        Bench::Freshness => report.part("freshness", freshness::run),
        Bench::Watchers => report.part("watchers", watchers::run),
        Bench::Scaling { part } => scaling::run(report, part),
        Bench::Serve { .. } => anyhow::bail!("a server is no measurement"),
    }
}
