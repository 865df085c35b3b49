//! When the disk fails, and how.
//!
//! Owns the events that are counted, and what happens at the n-th of a kind. Must never act by itself.

use fuser::Errno;

use crate::survivors::Mode;

/// What a disk is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// Data is written.
    Write,
    /// The sync of a file begins.
    Fsync,
    /// The sync of a file is about to end.
    FsyncEnd,
    /// A file is created, or gets another name.
    Create,
    /// Something moves.
    Rename,
    /// A file or a directory is removed.
    Unlink,
    /// A directory is created.
    Mkdir,
    /// The size of a file is set.
    Truncate,
    /// The sync of a directory begins.
    FsyncDir,
}

impl Event {
    /// All of them, with their names.
    pub const ALL: [(&'static str, Self); 9] = [
        ("write", Self::Write),
        ("fsync", Self::Fsync),
        ("fsyncend", Self::FsyncEnd),
        ("create", Self::Create),
        ("rename", Self::Rename),
        ("unlink", Self::Unlink),
        ("mkdir", Self::Mkdir),
        ("truncate", Self::Truncate),
        ("fsyncdir", Self::FsyncDir),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, event)| *event == self).map_or("?", |(name, _)| name)
    }

    fn needs_room(self) -> bool {
        matches!(self, Self::Write | Self::Create | Self::Rename | Self::Mkdir | Self::Truncate)
    }

    fn changes(self) -> bool {
        self.needs_room() || self == Self::Unlink
    }
}

/// A disk that does not do what it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails once.
    Once,
    /// It is full from now on.
    Full,
    /// It cannot be written from now on.
    ReadOnly,
}

impl Fault {
    /// By the name of its error.
    pub fn of_name(name: &str) -> Option<Self> {
        match name {
            "EIO" => Some(Self::Once),
            "ENOSPC" => Some(Self::Full),
            "EROFS" => Some(Self::ReadOnly),
            _ => None,
        }
    }

    /// What an event is answered with while the fault lasts.
    pub(crate) fn answer(self, event: Event) -> Result<(), Errno> {
        match self {
            Self::Once => Err(Errno::EIO),
            Self::Full if event.needs_room() => Err(Errno::ENOSPC),
            Self::ReadOnly if event.changes() => Err(Errno::EROFS),
            Self::Full | Self::ReadOnly => Ok(()),
        }
    }
}

/// What happens when a trigger goes off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The power is cut.
    Cut(Mode, u64),
    /// The disk fails.
    Fail(Fault),
}

/// Goes off before the n-th event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// Which kind of event is counted; `None`: each.
    pub event: Option<Event>,
    /// How many are left, this one included.
    pub left: u64,
    /// What happens then.
    pub action: Action,
}

impl Trigger {
    /// Counts an event. `true` if the trigger goes off, which it does once.
    pub(crate) fn counts(&mut self, event: Event) -> bool {
        if self.left == 0 || self.event.is_some_and(|counted| counted != event) {
            return false;
        }
        self.left -= 1;
        self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_off_once_before_the_nth_event_of_its_kind() {
        let action = Action::Fail(Fault::Once);
        let mut trigger = Trigger { event: Some(Event::Write), left: 2, action };
        let events = [Event::Fsync, Event::Write, Event::Fsync, Event::Write, Event::Write];
        assert_eq!(events.map(|event| trigger.counts(event)), [false, false, false, true, false]);
        let mut trigger = Trigger { event: None, left: 2, action };
        assert_eq!(events.map(|event| trigger.counts(event)), [false, true, false, false, false]);
    }

    #[test]
    fn a_full_disk_can_still_be_tidied_up_and_one_that_is_read_only_cannot() {
        assert_eq!(Fault::Full.answer(Event::Write).map_err(i32::from), Err(i32::from(Errno::ENOSPC)));
        assert!(Fault::Full.answer(Event::Unlink).is_ok() && Fault::Full.answer(Event::Fsync).is_ok());
        assert_eq!(Fault::ReadOnly.answer(Event::Unlink).map_err(i32::from), Err(i32::from(Errno::EROFS)));
        assert!(Fault::ReadOnly.answer(Event::Fsync).is_ok());
    }
}
