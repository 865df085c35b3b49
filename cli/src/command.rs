//! The commands, one module each.
//!
//! Owns the dispatch, and how a signal ends a command that has nothing to finish. Must never hold code that two
//! commands share; that is in the modules beside this one.

mod audit;
mod auth;
mod backup;
mod cast;
mod demo;
#[cfg(feature = "dev-aws")]
mod dev_aws;
mod load;
mod manual;
mod plan;
mod poll;
mod results;
mod up;

use votestream_process::terminal::Signals;

use crate::{
    args::{Cli, Command},
    failure::{Failure, Outcome},
};

/// Runs the command.
pub(crate) async fn run(cli: Cli) -> Outcome {
    let global = cli.global;
    let mut signals = Signals::new().map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")))?;
    match cli.command {
        Command::Up(args) => up::run(&global, *args, signals).await,
        Command::Demo(args) => demo::run(&global, args, signals).await,
        Command::Cast(args) => cast::run(&global, args, signals).await,
        Command::Load(args) => load::run(&global, *args, signals).await,
        #[cfg(feature = "dev-aws")]
        Command::DevAws(args) => dev_aws::run(&global, args, signals).await,
        #[cfg(not(feature = "dev-aws"))]
        Command::DevAws(_) => Err(Failure::usage(
            "this build has no stand-ins for AWS: build it with --features dev-aws, as in \
             `cargo run --release --features dev-aws -- dev-aws`",
        )),
        Command::Poll(args) => unless_told_to_stop(&mut signals, poll::run(&global, args)).await,
        Command::Results(args) => unless_told_to_stop(&mut signals, results::run(&global, args)).await,
        Command::Backup(args) => unless_told_to_stop(&mut signals, backup::run(&global, args)).await,
        Command::Auth(args) => unless_told_to_stop(&mut signals, auth::run(&global, args)).await,
        Command::Audit(args) => unless_told_to_stop(&mut signals, audit::run(&global, args)).await,
        Command::Plan(args) => plan::run(&global, args),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { directory } => manual::pages(directory.as_deref()),
    }
}

/// Runs a command that may end at any point without leaving anything behind.
async fn unless_told_to_stop(signals: &mut Signals, command: impl Future<Output = Outcome>) -> Outcome {
    tokio::select! {
        outcome = command => outcome,
        signal = signals.next() => Err(Failure::Interrupted(signal)),
    }
}
