//! `votestream up`: the whole stack on this machine until it is told to stop.
//!
//! Owns signals and the default data directory. Must never end before every accepted vote is answered, unless a second
//! signal says so.

use std::{env, ffi::OsString, path::PathBuf};

use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    args::{Global, UpArgs},
    failure::{Answer, Failure, Outcome},
    output,
    stack::{Stack, StackOptions, Storage},
};

/// Where the services are, for scripts.
#[derive(Serialize)]
struct Addresses {
    ingest: String,
    results: String,
}

pub(super) async fn run(global: &Global, args: UpArgs) -> Outcome {
    let mut signals = Signals::new()?;
    let storage = match (args.ephemeral, args.data_dir) {
        (true, _) => Storage::Ephemeral,
        (false, directory) => Storage::Directory(data_directory(directory)?),
    };
    let options = StackOptions {
        storage,
        shards: args.shards,
        ingest_addr: args.ingest_addr,
        results_addr: args.results_addr,
        continue_from_log_time: args.continue_from_log_time,
    };
    let mut stack = Stack::start(options).await?;
    let addresses = Addresses {
        ingest: format!("http://{}", stack.ingest_addr),
        results: format!("http://{}", stack.results_addr),
    };
    eprintln!("ingest    {}", addresses.ingest);
    eprintln!("results   {}", addresses.results);
    eprintln!("data      {}{}", stack.directory.display(), if args.ephemeral { " (removed at the end)" } else { "" });
    if global.json {
        output::json(&addresses)?;
    }
    let broken = tokio::select! {
        failure = stack.broken() => Some(failure),
        () = signals.next() => None,
    };
    eprintln!("stopping: answering every vote that is under way (once more to stop at once)");
    let stopped = tokio::select! {
        stopped = stack.stop() => stopped,
        // Safe at any moment: what was acknowledged is on disk.
        () = signals.next() => Err(Failure::failed("stopped before everything was answered")),
    };
    match broken {
        Some(failure) => Err(failure),
        None => stopped.map(|()| Answer::Yes),
    }
}

/// SIGINT and SIGTERM.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The directory that was given, or the user's.
pub(super) fn data_directory(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    given.map_or_else(|| default_directory(env::var_os("XDG_DATA_HOME"), env::var_os("HOME")), Ok)
}

/// The user's data directory, as the XDG base directory specification says: relative paths in it are ignored.
fn default_directory(data_home: Option<OsString>, home: Option<OsString>) -> Result<PathBuf, Failure> {
    let data_home = data_home.map(PathBuf::from).filter(|path| path.is_absolute());
    let home = home.map(PathBuf::from).filter(|path| path.is_absolute());
    data_home
        .or_else(|| home.map(|home| home.join(".local/share")))
        .map(|data| data.join("votestream"))
        .ok_or_else(|| Failure::usage("neither XDG_DATA_HOME nor HOME is set: give --data-dir or --ephemeral"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_directory() {
        let directory = |data: &str, home: &str| default_directory(Some(data.into()), Some(home.into()));
        assert_eq!(directory("/data", "/home/u"), Ok("/data/votestream".into()));
        assert_eq!(directory("", "/home/u"), Ok("/home/u/.local/share/votestream".into()));
        assert_eq!(directory("relative", "/home/u"), Ok("/home/u/.local/share/votestream".into()));
        assert!(default_directory(None, None).is_err());
    }
}
