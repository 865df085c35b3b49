//! Checks the journals of a `fjall` database before the database is opened.
//!
//! Owns the decision whether a bad batch was torn by a power failure or is damaged. `fjall` 3.1 refuses to open a
//! journal whose last batch has lost a block in its middle (`journal/batch_reader.rs`), and takes some damage in the
//! middle of a journal for its end (`journal/reader.rs`). Must never cut off what might have been acknowledged.
//!
//! We sync every commit before the next one begins. So a power failure tears only the last batch of the last journal,
//! and that batch was not acknowledged. A whole batch behind a bad one proves that the bad one was synced, so it is
//! damaged.
//!
//! | entry | bytes, numbers little-endian |
//! |---|---|
//! | start of a batch | 1, number of items u32, seqno u64 |
//! | item | 2, kind u8, compression u8, keyspace u64, lengths of key u16, value u32, stored value u32; key, value |
//! | clear | 4, keyspace u64 |
//! | end of a batch | 3, XXH3 of the items u64, `FJL`, 3 |

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::xxh3_64;

use crate::{codec::last_nonzero, directory::OpenError};

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: [u8; 4] = *b"FJL\x03";
/// Most items that the search for a later batch accepts in a batch. None of our batches has as many.
const ITEMS_MAX: u32 = 10_000_000;
/// How much larger the seqno of a later batch may be. Between two batches, only ingestions use seqnos.
const SEQNO_STEP_MAX: u64 = 1 << 32;

/// Which batches of a database were synced before the next one was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Synced {
    /// Every batch.
    Each,
    /// Not every batch: stores of earlier formats did not sync small changes. In these, what lies behind a torn batch
    /// was not synced.
    Some,
}

/// Checks the journals of a closed database, and cuts off a torn batch at the end of the last one.
pub(crate) fn check(database: &Path, synced: Synced) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { directory: database.to_owned(), source };
    let mut journals = list(database).map_err(io)?;
    let last = journals.pop();
    for (_, sealed) in journals {
        let bytes = fs::read(&sealed).map_err(io)?;
        let (end, _) = read_batches(&bytes);
        if last_nonzero(&bytes[end..]).is_some() {
            return Err(damaged(database, &sealed, end));
        }
    }
    let Some((_, active)) = last else { return Ok(()) };
    let bytes = fs::read(&active).map_err(io)?;
    let (end, seqno) = read_batches(&bytes);
    let Some(written) = last_nonzero(&bytes).filter(|last| *last >= end) else { return Ok(()) };
    if synced == Synced::Each && later_batch(&bytes[end..=written], seqno) {
        return Err(damaged(database, &active, end));
    }
    tracing::warn!(
        file = %active.display(), offset = end, bytes = written + 1 - end,
        "the end of a journal was being written when the machine or the process stopped; nothing of it was \
         acknowledged, and it is discarded"
    );
    let file = File::options().write(true).open(&active).map_err(io)?;
    file.set_len(end as u64).and_then(|()| file.sync_all()).map_err(io)
}

/// Copies the journals of an open database. Nothing may be committed meanwhile. If a journal is deleted meanwhile, its
/// content is already in tables.
pub(crate) fn copy(database: &Path, to: &Path) -> io::Result<()> {
    for (_, journal) in list(database)? {
        let bytes = match fs::read(&journal) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            read => read?,
        };
        let (end, _) = read_batches(&bytes);
        if let Some(name) = journal.file_name() {
            fs::write(to.join(name), &bytes[..end])?;
        }
    }
    Ok(())
}

fn damaged(database: &Path, journal: &Path, at: usize) -> OpenError {
    OpenError::Damaged {
        path: database.to_owned(),
        reason: format!(
            "{}, byte {at}: a batch is not what was written. It is not the last one, so no power failure explains it",
            journal.display()
        ),
    }
}

/// Journals in the order in which they were written.
fn list(database: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut journals = Vec::new();
    for entry in fs::read_dir(database)? {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.strip_suffix(".jnl")?.parse().ok()) {
            journals.push((number, entry.path()));
        }
    }
    journals.sort_unstable();
    Ok(journals)
}

/// Reads whole batches from the start. Returns the end and the seqno of the last one.
fn read_batches(bytes: &[u8]) -> (usize, u64) {
    let (mut end, mut last) = (0, 0);
    while let Some((len, seqno)) = batch(&bytes[end..]) {
        (end, last) = (end + len, seqno);
    }
    (end, last)
}

/// Whether a whole batch that is newer than `seqno` begins anywhere in these bytes.
fn later_batch(bytes: &[u8], seqno: u64) -> bool {
    let may_begin = |at: &usize| {
        let mut entry = Bytes(&bytes[*at..]);
        entry.u8() == Some(START)
            && entry.u32().is_some_and(|items| (1..=ITEMS_MAX).contains(&items))
            && entry.u64().is_some_and(|found| found >= seqno && found - seqno < SEQNO_STEP_MAX)
            && entry.u8().is_some_and(|next| next == ITEM || next == CLEAR)
    };
    (1..bytes.len()).filter(may_begin).any(|at| batch(&bytes[at..]).is_some())
}

/// Length and seqno of the batch at the start of these bytes, if it is whole.
fn batch(bytes: &[u8]) -> Option<(usize, u64)> {
    let mut rest = Bytes(bytes);
    if rest.u8()? != START {
        return None;
    }
    let (items, seqno) = (rest.u32()?, rest.u64()?);
    let first = bytes.len() - rest.0.len();
    for _ in 0..items {
        match rest.u8()? {
            ITEM => {
                rest.take(2 + 8)?;
                let (key, _, value) = (rest.u16()?, rest.u32()?, rest.u32()?);
                rest.take(usize::from(key).checked_add(value as usize)?)?;
            }
            CLEAR => drop(rest.take(8)?),
            _ => return None,
        }
    }
    let behind = bytes.len() - rest.0.len();
    let whole = rest.u8()? == END && rest.u64()? == xxh3_64(&bytes[first..behind]) && rest.take(4)? == TRAILER;
    whole.then(|| (bytes.len() - rest.0.len(), seqno))
}

/// Reads little-endian numbers.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use fjall::{Database, KeyspaceCreateOptions, PersistMode};

    use super::*;

    /// Makes and closes a database with ten synced commits of 40 kB each. Returns where each ends in the journal.
    fn database(dir: &Path) -> (PathBuf, Vec<usize>) {
        let db = Database::builder(dir).open().unwrap();
        let keyspace = db.keyspace("k", KeyspaceCreateOptions::default).unwrap();
        for commit in 0..10u32 {
            let mut batch = db.batch().durability(Some(PersistMode::SyncData));
            for item in 0..40u32 {
                let key = [commit.to_be_bytes(), item.to_be_bytes()].concat();
                // As long as a block, and different from each other.
                batch.insert(
                    &keyspace,
                    key,
                    (0..1_000u32).map(|at| (at * 7 + commit + item) as u8).collect::<Vec<_>>(),
                );
            }
            batch.commit().unwrap();
        }
        drop((keyspace, db));
        let journal = list(dir).unwrap().pop().unwrap().1;
        let bytes = fs::read(&journal).unwrap();
        let mut ends = vec![0];
        while let Some((len, _)) = batch(&bytes[*ends.last().unwrap()..]) {
            ends.push(ends.last().unwrap() + len);
        }
        assert_eq!(ends.len(), 11);
        (journal, ends)
    }

    fn commits(dir: &Path) -> usize {
        let db = Database::builder(dir).open().unwrap();
        db.keyspace("k", KeyspaceCreateOptions::default).unwrap().len().unwrap() / 40
    }

    #[test]
    fn a_torn_batch_at_the_end_is_cut_off_and_damage_before_it_is_refused() {
        for (block, expected) in [(0, 9), (1, 9), (5, 9), (8, 9)] {
            let dir = tempfile::tempdir().unwrap();
            let (journal, ends) = database(dir.path());
            let mut bytes = fs::read(&journal).unwrap();
            // One block of the last batch is lost.
            let lost = ends[9] + block * 4_096..(ends[9] + (block + 1) * 4_096).min(ends[10]);
            bytes[lost].fill(0);
            fs::write(&journal, &bytes).unwrap();
            check(dir.path(), Synced::Each).unwrap();
            assert_eq!(commits(dir.path()), expected, "without block {block}");
            check(dir.path(), Synced::Each).unwrap();
        }
        for (at, synced) in [(3, Synced::Each), (8, Synced::Each), (8, Synced::Some)] {
            let dir = tempfile::tempdir().unwrap();
            let (journal, ends) = database(dir.path());
            let mut bytes = fs::read(&journal).unwrap();
            bytes[ends[at] + 100] ^= 1;
            fs::write(&journal, &bytes).unwrap();
            match check(dir.path(), synced) {
                Ok(()) => assert!(synced == Synced::Some && commits(dir.path()) == at),
                Err(error) => {
                    let message = error.to_string();
                    assert!(synced == Synced::Each && message.contains(&format!("byte {}", ends[at])), "{message}");
                }
            }
        }
    }

    #[test]
    fn a_sealed_journal_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, ends) = database(dir.path());
        fs::copy(&journal, dir.path().join("1000.jnl")).unwrap();
        check(dir.path(), Synced::Some).unwrap();
        let mut bytes = fs::read(&journal).unwrap();
        bytes[ends[9] + 50] ^= 1;
        fs::write(&journal, &bytes).unwrap();
        assert!(check(dir.path(), Synced::Some).unwrap_err().to_string().contains("0.jnl"));
    }
}
