//! Tests the log after a power failure at every moment: synced records exist, other records exist whole or not at all,
//! and damage is not mistaken for a power failure.

use std::{
    cell::Cell,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use proptest::{prelude::*, test_runner::TestRunner};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use votestream_core::Timestamp;

use super::{
    append::{Appender, End, Put, Stamp},
    format::{GROUP_HEADER_BYTES, Kind, SegmentHeader, entries},
    recovery::{self, Recovered},
    segment::{self, At, Window},
    table::Table,
};
use crate::directory::OpenError;

const DIRECTORY: u128 = 77;
const BLOCK: usize = 4_096;
/// Size of a segment. Small, so that a run has many.
const SEGMENT: u64 = 60_000;

type Records = Vec<(u64, u32, Vec<u8>)>;

fn recover(log: &Path) -> Result<(Recovered, Records), OpenError> {
    let recovered = recovery::read(log, DIRECTORY, &|_, _| true)?;
    let mut records = Vec::new();
    for (number, index) in &recovered.segments {
        let header = SegmentHeader { directory: DIRECTORY, number: *number, before: Default::default() };
        let mut window = Window::open(&segment::path(log, *number)).unwrap();
        let mut at = 64;
        while at < index.end {
            let At::Group(group, meta) = window.group(header.seed(), at).unwrap() else { panic!("no group") };
            if group.kind == Kind::Records {
                let data = at + GROUP_HEADER_BYTES as u64 + u64::from(group.meta_len);
                for (sequence, place, entry) in entries(&group, &meta).unwrap() {
                    let bytes = window.read(data + place, entry.len as usize).unwrap().to_vec();
                    records.push((sequence, entry.shard, bytes));
                }
            }
            at += group.size();
        }
    }
    Ok((recovered, records))
}

/// Takes each block at random either from what was synced or from what was written last.
fn mixed(synced: &[u8], written: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let keeps_length = rng.random_bool(0.5);
    let mut file = synced.to_vec();
    file.resize(if keeps_length { synced.len() } else { written.len().max(synced.len()) }, 0);
    let kept = [0.0, 0.2, 0.5, 0.9, 1.0][rng.random_range(0..5)];
    for (at, block) in file.chunks_mut(BLOCK).enumerate() {
        let new = written.get(at * BLOCK..).unwrap_or_default();
        let len = new.len().min(block.len());
        if rng.random_bool(kept) {
            block[..len].copy_from_slice(&new[..len]);
        }
    }
    file
}

fn copy_to(files: &[(PathBuf, Vec<u8>)], to: &Path) {
    for (name, bytes) in files {
        fs::write(to.join(name), bytes).unwrap();
    }
}

fn files(log: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(log).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into(), fs::read(entry.path()).unwrap())).collect()
}

/// A log on which the power fails after every step.
struct Life {
    dir: tempfile::TempDir,
    appender: Appender,
    table: Table,
    records: Records,
    rng: StdRng,
    torn: usize,
}

impl Life {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let table = Table::new(3);
        let appender = Appender::create(dir.path(), DIRECTORY, End::NOTHING, &table).unwrap();
        Self { dir, appender, table, records: Vec::new(), rng: StdRng::seed_from_u64(seed), torn: 0 }
    }

    /// Starts on what a power failure leaves of the last step. Returns how many records were found beyond the synced
    /// ones.
    fn cut(&mut self, before: &[(PathBuf, Vec<u8>)], synced: usize) {
        let after = files(self.dir.path());
        let copy = tempfile::tempdir().unwrap();
        for (name, written) in &after {
            let old = before.iter().find(|(old, _)| old == name).map_or(&[][..], |(_, bytes)| bytes);
            let renamed = old.is_empty() && !before.is_empty();
            if !renamed {
                fs::write(copy.path().join(name), mixed(old, written, &mut self.rng)).unwrap();
            } else if self.rng.random_bool(0.5) {
                // A new segment gets its name when it is synced. Before that, any part of it may remain.
                fs::write(copy.path().join(name), written).unwrap();
            } else {
                let unfinished = name.with_extension("new");
                fs::write(copy.path().join(unfinished), mixed(&[], written, &mut self.rng)).unwrap();
            }
        }
        let (recovered, found) = recover(copy.path()).unwrap();
        assert!(found == self.records[..synced] || found == self.records, "{} of {synced}", found.len());
        self.torn += usize::from(found.len() < self.records.len());
        // The start after the power failure can write, and a later start finds everything again.
        recovered.settle().unwrap();
        let mut next = Appender::create(copy.path(), DIRECTORY, recovered.end, &recovered.table).unwrap();
        let number = recovered.table.number + 1;
        let stamp = Stamp { arrived_at: Timestamp(9), polls: 0 };
        next.append(stamp, number, &[Put { shard: 1, data: b"after the cut" }]).unwrap();
        let (_, again) = recover(copy.path()).unwrap();
        assert_eq!(again.len(), found.len() + 1);
        assert!(again[..found.len()] == found && again.last().unwrap().2 == b"after the cut");
    }

    fn append(&mut self, sizes: &[usize]) {
        if self.appender.end().seal.end > SEGMENT {
            let before = files(self.dir.path());
            let next = Appender::create(self.dir.path(), DIRECTORY, self.appender.end(), &self.table).unwrap();
            self.cut(&before, self.records.len());
            std::mem::replace(&mut self.appender, next).sealed();
        }
        let (before, synced) = (files(self.dir.path()), self.records.len());
        let first = self.table.number + 1;
        let puts: Records = sizes
            .iter()
            .zip(first..)
            .map(|(size, number)| {
                (number, self.rng.random_range(0..3), (0..*size).map(|_| self.rng.random()).collect())
            })
            .collect();
        let records: Vec<_> = puts.iter().map(|(_, shard, data)| Put { shard: *shard, data }).collect();
        let stamp = Stamp { arrived_at: Timestamp(first as i64), polls: 0 };
        self.appender.append(stamp, first, &records).unwrap();
        for (number, shard, _) in &puts {
            self.table.append(*shard, *number).unwrap();
        }
        self.table.latest = stamp.arrived_at;
        self.records.extend(puts);
        for _ in 0..3 {
            self.cut(&before, synced);
        }
    }
}

/// Groups of records, as their sizes.
fn groups(number: Range<usize>) -> impl Strategy<Value = Vec<Vec<usize>>> {
    proptest::collection::vec(proptest::collection::vec(0..9_000usize, 1..4), number)
}

#[test]
fn any_cut_leaves_what_was_synced() {
    // In a life of one small group it may be that no cut tears it.
    let torn = Cell::new(0);
    let mut runner = TestRunner::new(ProptestConfig { cases: 8, ..ProptestConfig::default() });
    let played = runner.run(&(groups(1..16), any::<u64>()), |(groups, seed)| {
        let mut life = Life::new(seed);
        groups.iter().for_each(|sizes| life.append(sizes));
        torn.set(torn.get() + life.torn);
        Ok(())
    });
    played.unwrap_or_else(|failed| panic!("{failed}"));
    assert!(torn.get() > 0, "no cut tore a group");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn damage_is_no_torn_tail(groups in groups(2..16), seed: u64) {
        let mut life = Life::new(seed);
        groups.iter().for_each(|sizes| life.append(sizes));
        let all = files(life.dir.path());
        let (recovered, _) = recover(life.dir.path()).unwrap();
        let mut refused = 0;
        for _ in 0..20 {
            let mut damaged = all.clone();
            let at = life.rng.random_range(0..damaged.len());
            let (name, bytes) = &mut damaged[at];
            let name = name.clone();
            let is_last = name == segment::path(Path::new(""), recovered.end.segment);
            let end = if is_last { recovered.last_group() } else { bytes.len() as u64 };
            let at = life.rng.random_range(0..end as usize);
            bytes[at] ^= 1 << life.rng.random_range(0..8);
            let copy = tempfile::tempdir().unwrap();
            copy_to(&damaged, copy.path());
            match recover(copy.path()) {
                // Bytes between groups have no meaning.
                Ok((_, records)) => prop_assert!(records == life.records),
                Err(error) => {
                    refused += 1;
                    let message = error.to_string();
                    prop_assert!(message.contains(&*name.to_string_lossy()), "{message}");
                }
            }
        }
        prop_assert!(refused > 0);
        // A segment in the middle is missing, or is replaced by another one.
        if all.len() > 2 {
            let copy = tempfile::tempdir().unwrap();
            copy_to(&all, copy.path());
            fs::remove_file(segment::path(copy.path(), 2)).unwrap();
            let message = recover(copy.path()).err().unwrap().to_string();
            prop_assert!(message.contains("0000000002") && message.contains("missing"), "{message}");
            fs::copy(segment::path(copy.path(), 1), segment::path(copy.path(), 2)).unwrap();
            prop_assert!(recover(copy.path()).err().unwrap().to_string().contains("another name"));
        }
    }
}

#[test]
fn the_last_group_is_written_again_before_it_is_read() {
    let mut life = Life::new(1);
    life.append(&[100, 200]);
    life.append(&[300]);
    let (recovered, _) = recover(life.dir.path()).unwrap();
    let end = recovered.end.seal.end;
    assert!(recovered.last_group() < end && end - recovered.last_group() < 500);
    let before = fs::read(segment::path(life.dir.path(), 1)).unwrap();
    recovered.settle().unwrap();
    assert_eq!(fs::read(segment::path(life.dir.path(), 1)).unwrap(), before);
}
