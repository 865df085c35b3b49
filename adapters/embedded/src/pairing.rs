//! Checks that log and store belong together: to one directory, and to one moment.
//!
//! Owns the comparison at a start. Must never let a start go on with halves that do not fit: votes would be
//! acknowledged and never counted. Must never change a half before both were compared.
//!
//! | what | how it shows |
//! |---|---|
//! | halves of two directories | their ids |
//! | halves of two lives of one directory: one was restored, or both were used as copies | each names the life in which it was last written; the log also names the life before, because the store is told of a life after the log |
//! | a log that is older than its store, in one life | the store has processed records that the log does not have |
//! | a store that is older than its log, in one life | polls were changed that the store does not have; or the log has deleted records that the store has not processed |
//!
//! A store that is older in any other way is right: the groups process the records after its checkpoints again.

use std::path::Path;

use votestream_core::port::PortError;

use crate::{
    directory::OpenError,
    log::{Found, Lives},
    store::{EmbeddedStore, Identity, Reached},
};

/// Compares both halves. Returns the lives for the log to go on with.
pub(crate) fn compare(directory: &Path, id: u128, log: &Found, store: &EmbeddedStore) -> Result<Lives, OpenError> {
    let mismatch = |reason: String| OpenError::Mismatch { directory: directory.to_owned(), reason };
    let unreadable = |error: PortError| OpenError::Damaged { path: directory.join("store"), reason: error.message };
    let path = || directory.join("store");
    let Some(identity) = store.identity().map_err(unreadable)? else {
        return Err(OpenError::Incomplete {
            directory: directory.to_owned(),
            reason: "its store belongs to no data directory".to_owned(),
        });
    };
    if identity.directory != id {
        return Err(OpenError::Foreign { path: path(), found: identity.directory, wanted: id });
    }
    let known = log.lives();
    // The log is told of a life first. A process that ended before it told the store has accepted no vote.
    let unheard = identity.life == known.before;
    if identity.life != known.current && !unheard {
        return Err(mismatch("they were last written at different starts".to_owned()));
    }
    if identity.life != known.current && log.has_lived() {
        return Err(mismatch("the store is older: it was last written before the last start".to_owned()));
    }
    if log.poll_changes() > store.poll_changes() {
        return Err(mismatch(format!(
            "the store is older: it knows of {} changes of polls, the log of {}",
            store.poll_changes(),
            log.poll_changes()
        )));
    }
    store.reached().iter().try_for_each(|reached| compare_shard(log, reached).map_err(mismatch))?;
    Ok(Lives { current: rand::random(), before: identity.life })
}

fn compare_shard(log: &Found, reached: &Reached) -> Result<(), String> {
    let Reached { group, shard, checkpoint, window_end, ended } = reached;
    let group = group.as_str();
    let number = |of: &votestream_core::SequenceNumber| of.as_u64().unwrap_or(u64::MAX);
    let (checkpoint, furthest) = (number(checkpoint), number(window_end).max(number(checkpoint)));
    if furthest > log.last_number() {
        return Err(format!(
            "the log is older: {group} has come to record {furthest} of {shard}, the log ends at {}",
            log.last_number()
        ));
    }
    match log.deleted(shard) {
        _ if *ended => Ok(()),
        None => Err(format!("{group} has progress in {shard}, but the log has no such shard")),
        // A group that has processed nothing yet may have started after the records were deleted.
        Some(deleted) if checkpoint > 0 && checkpoint < deleted => Err(format!(
            "the store is older: {group} has processed {shard} up to record {checkpoint}, but the log begins after \
             record {deleted}"
        )),
        Some(_) => Ok(()),
    }
}

/// Tells the store about the life that has begun in the log.
pub(crate) fn tell(directory: &Path, id: u128, life: Lives, store: &EmbeddedStore) -> Result<(), OpenError> {
    let identity = Identity { directory: id, life: life.current };
    store
        .set_identity(identity)
        .map_err(|error| OpenError::Damaged { path: directory.join("store"), reason: error.message })
}
