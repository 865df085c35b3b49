//! A disk under power: every operation goes through here, one at a time, until the power is cut.
//!
//! Owns the lock, the triggers, and the moment of the cut. Must never let an operation through after it: whoever waits for an
//! answer then waits for ever, as a machine without power does.

use std::{collections::BTreeMap, io, path::PathBuf, time::Duration};

use fuser::Errno;
use parking_lot::{Condvar, Mutex};

use crate::{
    disk::{Disk, Ino},
    survivors::{Mode, Toll},
    trigger::{Action, Event, Fault, Trigger},
};

/// What the disk says by itself.
#[derive(Debug)]
pub enum News {
    /// The power was cut.
    Cut {
        /// Before this event; `None` for a cut by command.
        before: Option<Event>,
        /// Of this file, or in this directory.
        path: PathBuf,
        /// What was to survive.
        mode: Mode,
        /// What survived.
        toll: Toll,
        /// Whether it could be written down.
        written: io::Result<()>,
    },
    /// A fault began.
    Failed {
        /// At this event.
        event: Event,
        /// Of this file, or in this directory.
        path: PathBuf,
    },
}

/// A disk, its triggers and its power.
pub struct Machine {
    state: Mutex<State>,
    /// A sync has ended.
    ended: Condvar,
    /// What a sync takes.
    delay: Duration,
    out: PathBuf,
    say: Box<dyn Fn(News) + Send + Sync>,
}

struct State {
    disk: Disk,
    has_power: bool,
    cut: Option<Trigger>,
    fail: Option<Trigger>,
    /// What lasts.
    fault: Option<Fault>,
    counts: BTreeMap<&'static str, u64>,
}

/// `None`: there is no power, and no answer.
pub(crate) type Answer<T> = Option<Result<T, Errno>>;

impl Machine {
    /// A machine that takes this long to sync, and writes to `out` what survives a cut. `say` is told what happens by itself.
    pub fn new(disk: Disk, delay: Duration, out: PathBuf, say: impl Fn(News) + Send + Sync + 'static) -> Self {
        let state = State { disk, has_power: true, cut: None, fail: None, fault: None, counts: BTreeMap::new() };
        Self { state: Mutex::new(state), ended: Condvar::new(), delay, out, say: Box::new(say) }
    }

    /// Arms the cut or the fault of a trigger; one of each kind at a time.
    pub fn arm(&self, trigger: Trigger) {
        let mut state = self.state.lock();
        match trigger.action {
            Action::Cut(..) => state.cut = Some(trigger),
            Action::Fail(_) => state.fail = Some(trigger),
        }
    }

    /// Cuts the power now.
    pub fn cut(&self, mode: Mode, seed: u64) {
        self.cut_in(&mut self.state.lock(), None, mode, seed);
    }

    /// Ends a fault that lasts, and disarms the next one.
    pub fn mend(&self) {
        let mut state = self.state.lock();
        (state.fault, state.fail) = (None, None);
    }

    /// How often each event happened.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.state.lock().counts.clone()
    }

    fn cut_in(&self, state: &mut State, at: Option<(Event, Ino)>, mode: Mode, seed: u64) {
        if std::mem::replace(&mut state.has_power, false) {
            let (tree, toll) = state.disk.survivors(mode, seed);
            let path = at.map_or_else(PathBuf::new, |(_, ino)| state.disk.path(ino));
            let before = at.map(|(event, _)| event);
            (self.say)(News::Cut { before, path, mode, toll, written: tree.export(&self.out) });
        }
    }

    /// Counts an event of a file or in a directory, which may be one too many.
    fn count(&self, state: &mut State, event: Event, ino: Ino) -> Result<(), Errno> {
        *state.counts.entry(event.name()).or_default() += 1;
        if let Some(trigger) = &mut state.cut
            && trigger.counts(event)
            && let Action::Cut(mode, seed) = trigger.action
        {
            self.cut_in(state, Some((event, ino)), mode, seed);
        }
        if let Some(trigger) = &mut state.fail
            && trigger.counts(event)
            && let Action::Fail(fault) = trigger.action
        {
            (self.say)(News::Failed { event, path: state.disk.path(ino) });
            if fault == Fault::Once {
                return fault.answer(event);
            }
            state.fault = Some(fault);
        }
        state.fault.map_or(Ok(()), |fault| fault.answer(event))
    }

    /// Does something to the disk that is no event.
    pub(crate) fn look<T>(&self, act: impl FnOnce(&mut Disk) -> Result<T, Errno>) -> Answer<T> {
        let mut state = self.state.lock();
        state.has_power.then(|| act(&mut state.disk))
    }

    /// Does something to the disk that is an event of this file, or in this directory.
    pub(crate) fn act<T>(&self, event: Event, ino: Ino, act: impl FnOnce(&mut Disk) -> Result<T, Errno>) -> Answer<T> {
        let mut state = self.state.lock();
        if !state.has_power {
            return None;
        }
        let allowed = self.count(&mut state, event, ino);
        state.has_power.then(|| allowed.and_then(|()| act(&mut state.disk)))
    }

    /// Begins the sync of a file; it is to be ended by [`Machine::end_sync`], on a thread that may wait.
    pub(crate) fn begin_sync(&self, ino: Ino) -> Answer<u64> {
        let begun = self.act(Event::Fsync, ino, |disk| disk.begin_sync(ino))?;
        if begun.is_err() {
            // What it should have written is lost without a further word.
            self.look(|disk| disk.fail_sync(ino))?.ok();
        }
        Some(begun)
    }

    /// Ends a sync after its time.
    pub(crate) fn end_sync(&self, ino: Ino, number: u64) -> Answer<()> {
        std::thread::sleep(self.delay);
        let mut state = self.state.lock();
        while state.has_power && !state.disk.may_end_sync(ino, number) {
            self.ended.wait(&mut state);
        }
        if !state.has_power {
            return None;
        }
        // A sync is told at its beginning that it fails.
        let _counted = self.count(&mut state, Event::FsyncEnd, ino);
        let ended = state.has_power.then(|| state.disk.end_sync(ino));
        self.ended.notify_all();
        ended
    }

    /// Begins the sync of a directory; it is to be ended by [`Machine::end_directory_sync`], on a thread that may wait.
    pub(crate) fn begin_directory_sync(&self, directory: Ino) -> Answer<u64> {
        self.act(Event::FsyncDir, directory, |disk| Ok(disk.changes_so_far()))
    }

    /// Ends a sync of a directory after its time.
    pub(crate) fn end_directory_sync(&self, directory: Ino, changes_before: u64) -> Answer<()> {
        std::thread::sleep(self.delay);
        self.look(|disk| {
            disk.end_directory_sync(directory, changes_before);
            Ok(())
        })
    }
}
