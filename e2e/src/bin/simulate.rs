//! Attacks the real code with faults drawn from seeds, and says which seeds it did not survive.
//!
//! `simulate --seeds 1000` runs the seeds 0 to 999; `simulate --seed 17 --trace` replays one and prints every event.

use std::{
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use clap::Parser;
use votestream_e2e::sim::{Fault, Faults, Report, Settings, run};

#[derive(Parser)]
#[command(about = "Simulates the whole system under faults, seed by seed")]
struct Arguments {
    /// How many seeds to run
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Replays this seed only
    #[arg(long)]
    seed: Option<u64>,
    /// Prints every event of a replayed seed
    #[arg(long, requires = "seed")]
    trace: bool,
}

fn main() -> std::io::Result<ExitCode> {
    let arguments = Arguments::parse();
    let faults = Arc::new(Faults::default());
    // Determinism first: what a seed did must be what it does again.
    let probe = arguments.seed.unwrap_or(arguments.first);
    let [first, again] = [0; 2].map(|_| run(Settings { seed: probe, keep_trace: true }, Arc::default()));
    let (first, again) = (first?, again?);
    if first.trace_hash != again.trace_hash {
        let differs = first.trace.iter().zip(&again.trace).position(|(a, b)| a != b);
        eprintln!("seed {probe} gave two different traces; first difference: {differs:?}");
        if let Some(at) = differs {
            eprintln!("  {}\n  {}", first.trace[at], again.trace[at]);
        }
        return Ok(ExitCode::FAILURE);
    }
    if let Some(seed) = arguments.seed {
        let report = run(Settings { seed, keep_trace: true }, faults)?;
        if arguments.trace {
            report.trace.iter().for_each(|line| println!("{line}"));
        }
        println!("seed {seed}: {} votes, {:?}", report.votes, report.verdict);
        return Ok(if report.verdict.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }

    let next = AtomicU64::new(arguments.first);
    let failed = Mutex::new(Vec::new());
    let votes = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= arguments.first + arguments.seeds {
                        return;
                    }
                    let settings = Settings { seed, keep_trace: false };
                    let report = std::panic::catch_unwind(|| run(settings, faults.clone()));
                    let verdict = match report {
                        Ok(Ok(Report { verdict, votes: sent, .. })) => {
                            votes.fetch_add(sent as u64, Ordering::Relaxed);
                            verdict
                        }
                        Ok(Err(error)) => Err(error.to_string()),
                        Err(_) => Err("it panicked".to_owned()),
                    };
                    if let Err(reason) = verdict
                        && let Ok(mut failed) = failed.lock()
                    {
                        let reason: String = reason.chars().take(600).collect();
                        eprintln!("seed {seed}: {reason}");
                        failed.push(seed);
                    }
                }
            });
        }
    });
    println!("{} seeds, {} votes", arguments.seeds, votes.into_inner());
    let mut missing = false;
    for fault in Fault::ALL {
        let count = faults.get(fault);
        println!("{count:>9}  {fault:?}");
        missing |= count == 0;
    }
    let mut failed = failed.into_inner().unwrap_or_default();
    failed.sort_unstable();
    if !failed.is_empty() {
        println!("{} seeds failed: {failed:?}", failed.len());
        println!(
            "replay one with: cargo run --release -p votestream-e2e --bin simulate -- --seed {} --trace",
            failed[0]
        );
        return Ok(ExitCode::FAILURE);
    }
    if missing {
        println!("a kind of fault was never injected: more seeds are needed to say anything");
        return Ok(ExitCode::FAILURE);
    }
    println!("every seed passed");
    Ok(ExitCode::SUCCESS)
}
