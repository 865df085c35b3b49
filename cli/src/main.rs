//! The `votestream` command: a thin entry point.
//!
//! Owns the process: allocator, logging, runtime, exit code. Must never hold what a command does; each command has its
//! module in `command`.

// These macros panic once the reader of a pipe has left. The functions in `output` do not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod bars;
mod browser;
mod command;
mod connect;
mod control;
mod failure;
mod generate;
mod lines;
mod option_file;
mod output;
mod plan;
mod pseudonyms;
mod show;
mod stack;
mod vote_file;

use std::process::ExitCode;

use clap::Parser;

use crate::{args::Cli, failure::Failure};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    output::log_to_stderr();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::failed(format!("cannot start the runtime: {error}")).report(),
    };
    let code = match runtime.block_on(command::run(cli)) {
        Ok(answer) => answer.into(),
        Err(failure) => failure.report(),
    };
    // A second signal ends the command at once: the process does not wait for threads that are still blocked.
    runtime.shutdown_background();
    code
}
