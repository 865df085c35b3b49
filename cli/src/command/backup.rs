//! `votestream backup`: a copy of a data directory, whether a stack has it open or not.
//!
//! Must never copy files by itself: only the engine knows which bytes belong together.

use std::path::{Path, PathBuf};

use serde::Serialize;
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};

use crate::{
    args::{BackupArgs, Global},
    command::up,
    control::{self, AskError},
    failure::{Answer, Failure, Outcome},
    output, stack,
};

/// Where the copy is, printed for scripts.
#[derive(Serialize)]
struct Copied {
    backup: PathBuf,
}

pub(super) async fn run(global: &Global, args: BackupArgs) -> Outcome {
    let directory = up::data_directory(args.data_dir)?;
    if !directory.join("format").exists() {
        return Err(Failure::usage(format!("{} is not a data directory: give --data-dir", directory.display())));
    }
    let to = std::path::absolute(&args.directory)
        .map_err(|error| Failure::usage(format!("{}: {error}", args.directory.display())))?;
    match control::ask_for_backup(&directory, &to).await {
        Ok(()) => {}
        Err(AskError::Failed(message)) => return Err(Failure::failed(message)),
        Err(AskError::NotRunning) => copy_closed(&directory, &to).await?,
    }
    if global.json {
        output::json(&Copied { backup: to })?;
    } else {
        output::line(&format!("copied to {}", to.display()))?;
    }
    Ok(Answer::Yes)
}

/// No stack runs, so this process opens the directory. That repairs what a killed process has left, and checks the
/// copy.
async fn copy_closed(directory: &Path, to: &Path) -> Result<(), Failure> {
    // A backup takes no votes, so the time of the directory does not matter.
    let options = EmbeddedOptions { continue_from_log_time: true, ..EmbeddedOptions::default() };
    let engine = stack::open(directory, options).await?;
    let (backups, to) = (engine.backups(), to.to_owned());
    let copied = tokio::task::spawn_blocking(move || {
        let copied = backups.copy(&to);
        drop(backups);
        EmbeddedEngine::close(engine);
        copied
    });
    match copied.await {
        Ok(copied) => copied.map_err(|error| Failure::failed(error.to_string())),
        Err(error) => Err(Failure::failed(format!("the copy failed: {error}"))),
    }
}
