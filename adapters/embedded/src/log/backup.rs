//! Copies the log while it is written.
//!
//! Must never copy a byte that is not synced, and never miss a segment: none is deleted while a copy is made.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
    sync::mpsc::sync_channel,
};

use parking_lot::MutexGuard;
use votestream_core::port::PortError;

use super::{
    EmbeddedStream, segment,
    writer::{self, Command},
};
use crate::{directory::sync_directory, write_failed};

/// The end of the log at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(super) segment: u64,
    pub(super) end: u64,
}

impl EmbeddedStream {
    /// Prevents the deletion of segments as long as the guard lives.
    pub(crate) fn keep_segments(&self) -> MutexGuard<'_, ()> {
        self.log.retaining.lock()
    }

    /// The end of the log. Everything that was acknowledged lies before it.
    pub(crate) fn mark(&self) -> Result<Mark, PortError> {
        let (answer, answered) = sync_channel(1);
        self.commands.send(Command::Mark { answer }).map_err(|_| writer::closed())?;
        answered.recv().unwrap_or_else(|_| Err(writer::closed()))
    }

    /// Copies the log up to a mark into a new directory. Take [`Self::keep_segments`] before the mark, and hold it
    /// until the copy is made.
    pub(crate) fn copy(&self, mark: Mark, to: &Path) -> Result<(), PortError> {
        let copy = || {
            fs::create_dir(to)?;
            let segments: Vec<_> =
                self.log.segments.read().range(..=mark.segment).map(|(number, index)| (*number, index.end)).collect();
            for (number, end) in segments {
                let end = if number == mark.segment { mark.end } else { end };
                copy_file(&segment::path(&self.log.path, number), &segment::path(to, number), end)?;
            }
            sync_directory(to)
        };
        copy().map_err(write_failed)
    }
}

/// Copies the first bytes of a file and syncs the copy.
pub(crate) fn copy_file(from: &Path, to: &Path, len: u64) -> io::Result<()> {
    let mut copied = File::create_new(to)?;
    let bytes = io::copy(&mut File::open(from)?.take(len), &mut copied)?;
    if bytes != len {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{} is too short", from.display())));
    }
    copied.sync_all()
}
