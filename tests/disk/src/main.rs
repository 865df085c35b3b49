//! `volatile-disk MOUNT FROM OUT COMMIT SYNC_US`: mounts a disk with a volatile cache that holds what is in FROM.
//!
//! Takes commands on stdin, one a line, and answers each with a line of JSON on stdout:
//!
//! - `arm MODE SEED EVENT N` cuts the power before the N-th event, `cut MODE SEED` now. The cut is told by a line of its own,
//!   when what survives is in OUT; every operation waits from then on.
//! - `fail ERROR EVENT N` answers the N-th event with EIO, or this and all that follow with ENOSPC or EROFS, until `mend`. That,
//!   too, is told by a line of its own.
//! - `counts` tells how often each event happened.
//!
//! EVENT may be `any`. At the end of stdin the disk is unmounted and the process ends, so that none outlives its test.

use std::{
    io::{BufRead, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use rustix::mount::{UnmountFlags, unmount};
use serde_json::{Value, json};
use votestream_disk::{Action, Commit, Disk, Event, Fault, Machine, Mode, News, Trigger};

fn say(line: &Value) {
    // A reader that has gone ends this process by the end of stdin.
    writeln!(std::io::stdout().lock(), "{line}").ok();
}

fn tell(news: News) {
    match news {
        News::Cut { before, path, mode, toll, written } => {
            let error = written.err().map(|error| error.to_string());
            let blocks = [toll.blocks_kept, toll.blocks_lost];
            let changes = [toll.changes_kept, toll.changes_lost];
            let before = before.map_or("now", Event::name);
            say(&json!({"cut": {
                "before": before, "path": path, "mode": mode.letter(), "blocks": blocks, "changes": changes, "error": error,
            }}));
        }
        News::Failed { event, path } => say(&json!({"failed": {"at": event.name(), "path": path}})),
    }
}

/// `None` is any event.
fn event(name: &str) -> Option<Option<Event>> {
    let known = || Event::ALL.iter().find(|(known, _)| *known == name).map(|(_, event)| Some(*event));
    if name == "any" { Some(None) } else { known() }
}

/// `None` if the command is not understood.
fn obey(machine: &Machine, line: &str) -> Option<Value> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["cut", mode, seed] => machine.cut(Mode::of_letter(mode)?, seed.parse().ok()?),
        ["arm", mode, seed, name, count] => {
            let action = Action::Cut(Mode::of_letter(mode)?, seed.parse().ok()?);
            machine.arm(Trigger { event: event(name)?, left: count.parse().ok()?, action });
        }
        ["fail", error, name, count] => {
            let action = Action::Fail(Fault::of_name(error)?);
            machine.arm(Trigger { event: event(name)?, left: count.parse().ok()?, action });
        }
        ["mend"] => machine.mend(),
        ["counts"] => return Some(json!(machine.counts())),
        _ => return None,
    }
    Some(json!({"done": words[0]}))
}

fn serve(mount: &Path, from: &Path, out: PathBuf, commit: Commit, sync: Duration) -> std::io::Result<()> {
    let machine = Arc::new(Machine::new(Disk::import(commit, from)?, sync, out, tell));
    machine.mount(mount)?;
    say(&json!({"mounted": mount}));
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        say(&obey(&machine, &line).unwrap_or_else(|| json!({"not understood": line})));
    }
    // First whoever waits for an answer gets an error: a file system whose image lies here could not be unmounted by the end of
    // this process otherwise, which waits for that before it lets go of the disk.
    match unmount(mount, UnmountFlags::FORCE) {
        Ok(()) => Ok(()),
        Err(_busy) => Ok(unmount(mount, UnmountFlags::DETACH)?),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mount, from, out, commit, sync] = &arguments[..] else {
        eprintln!("usage: volatile-disk MOUNT FROM OUT COMMIT SYNC_US");
        return ExitCode::from(2);
    };
    let (Some(commit), Ok(sync)) = (Commit::of_number(commit), sync.parse()) else {
        eprintln!("COMMIT is 0, 1 or 2, and SYNC_US a number");
        return ExitCode::from(2);
    };
    match serve(mount.as_ref(), from.as_ref(), out.into(), commit, Duration::from_micros(sync)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("volatile-disk: {error}");
            ExitCode::FAILURE
        }
    }
}
