//! The commands, one module each.
//!
//! Owns the dispatch. Must never hold what two commands share; that has modules of its own beside this one.

mod audit;
mod backup;
mod cast;
mod demo;
#[cfg(feature = "dev-aws")]
mod dev_aws;
mod load;
mod plan;
mod poll;
mod results;
mod up;

use crate::{
    args::{Cli, Command},
    failure::Outcome,
};

/// Runs the command.
pub(crate) async fn run(cli: Cli) -> Outcome {
    let global = cli.global;
    match cli.command {
        Command::Up(args) => up::run(&global, args).await,
        Command::Demo(args) => demo::run(&global, args).await,
        Command::Poll(args) => poll::run(&global, args).await,
        Command::Cast(args) => cast::run(&global, args).await,
        Command::Results(args) => results::run(&global, args).await,
        Command::Backup(args) => backup::run(&global, args).await,
        Command::Audit(args) => audit::run(&global, args).await,
        Command::Load(args) => load::run(&global, args).await,
        Command::Plan(args) => plan::run(&global, args),
        #[cfg(feature = "dev-aws")]
        Command::DevAws(args) => dev_aws::run(&global, args).await,
        #[cfg(not(feature = "dev-aws"))]
        Command::DevAws(_) => Err(crate::failure::Failure::usage(
            "this build has no stand-ins for AWS: build it with --features dev-aws, as in \
             `cargo run --release --features dev-aws -- dev-aws`",
        )),
    }
}
