//! A disk with a volatile cache, as a file system in memory, whose power can be cut.
//!
//! `kill -9` leaves what the kernel has cached; a power cut does not. What is written here, and not synced, may be lost at a
//! cut: all of it, none, or any part. It can also be full, read-only, or fail once. Owns the model of such a disk
//! ([`Disk`], [`Tree`]), when it fails ([`Trigger`]), and its mount through FUSE ([`Machine`]). Must never be used outside
//! tests, and must never lose what was synced: the judge is judged by `tests/disk.rs`.

mod content;
mod disk;
mod machine;
mod mount;
mod survivors;
mod trigger;

pub use content::{BLOCK_BYTES, Content};
pub use disk::{Attributes, Commit, Disk, Ino, NodeKind, ROOT};
pub use machine::{Machine, News};
pub use survivors::{Mode, Toll, Tree};
pub use trigger::{Action, Event, Fault, Trigger};
