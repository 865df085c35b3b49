//! What the disk keeps and what it loses, for each mode and each kind of commit: the judge of power cuts is judged here.

use std::ffi::OsStr;

use votestream_disk::{BLOCK_BYTES, Commit, Disk, Ino, Mode, ROOT, Tree};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Cuts of a random mode that are looked at.
const SEEDS: std::ops::Range<u64> = 0..300;
const COMMITS: [Commit; 3] = [Commit::Journal, Commit::Directory, Commit::DirectoryOrFile];

fn create(disk: &mut Disk, name: &str, data: &[u8]) -> Ino {
    let ino = disk.create(ROOT, OsStr::new(name)).unwrap();
    disk.write(ino, 0, data).unwrap();
    ino
}

fn sync(disk: &mut Disk, ino: Ino) {
    disk.begin_sync(ino).unwrap();
    disk.end_sync(ino).unwrap();
}

fn sync_directory(disk: &mut Disk, ino: Ino) {
    let before = disk.changes_so_far();
    disk.end_directory_sync(ino, before);
}

/// A disk with one file that is durable in every way.
fn disk_with_file(commit: Commit, data: &[u8]) -> (Disk, Ino) {
    let mut disk = Disk::new(commit);
    let ino = create(&mut disk, "file", data);
    sync(&mut disk, ino);
    sync_directory(&mut disk, ROOT);
    (disk, ino)
}

/// The bytes of a file after a cut; `None` if there is none of this name.
fn after(disk: &Disk, mode: Mode, seed: u64, path: &str) -> Option<Vec<u8>> {
    let mut tree = disk.survivors(mode, seed).0;
    for name in path.split('/') {
        let Tree::Directory(mut entries) = tree else { panic!("{path} goes through a file") };
        tree = entries.remove(OsStr::new(name))?;
    }
    match tree {
        Tree::File(content) => Some(content.read(0, usize::MAX)),
        Tree::Directory(_) | Tree::Socket => Some(vec![]),
    }
}

/// Everything that a file can be after a cut of a random mode.
fn all_after(disk: &Disk, mode: Mode, path: &str) -> std::collections::BTreeSet<Option<Vec<u8>>> {
    SEEDS.map(|seed| after(disk, mode, seed, path)).collect()
}

fn blocks(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|&byte| [byte; BLOCK_BYTES]).collect()
}

#[test]
fn what_was_synced_survives_every_cut() {
    for commit in COMMITS {
        let (disk, _) = disk_with_file(commit, b"synced");
        for mode in Mode::ALL {
            for seed in SEEDS {
                assert_eq!(after(&disk, mode, seed, "file").unwrap(), b"synced", "{commit:?} {mode:?} {seed}");
            }
        }
    }
}

#[test]
fn a_cut_is_repeated_by_its_seed() {
    let (mut disk, file) = disk_with_file(Commit::Journal, &blocks(&[1; 20]));
    disk.write(file, 0, &blocks(&[2; 20])).unwrap();
    create(&mut disk, "other", b"data");
    for seed in SEEDS {
        assert_eq!(disk.survivors(Mode::Some, seed), disk.survivors(Mode::Some, seed));
    }
}

#[test]
fn nothing_that_was_not_synced_survives_mode_a() {
    let (mut disk, file) = disk_with_file(Commit::Journal, b"old");
    disk.write(file, 0, b"new, and longer").unwrap();
    create(&mut disk, "other", b"data");
    disk.remove(ROOT, OsStr::new("file")).unwrap();
    let (tree, toll) = disk.survivors(Mode::Nothing, 1);
    let Tree::Directory(entries) = tree else { panic!("the root is a directory") };
    assert_eq!(entries.keys().collect::<Vec<_>>(), ["file"]);
    assert_eq!(after(&disk, Mode::Nothing, 1, "file").unwrap(), b"old");
    assert_eq!((toll.blocks_kept, toll.blocks_lost, toll.changes_kept, toll.changes_lost), (0, 2, 0, 2));
}

#[test]
fn any_block_may_be_lost_in_mode_b_and_others_survive() {
    let (mut disk, file) = disk_with_file(Commit::Journal, &blocks(&[1, 1, 1]));
    disk.write(file, 0, &blocks(&[2, 2, 2])).unwrap();
    let seen = all_after(&disk, Mode::Some, "file");
    // Each of three blocks old or new, a block as a whole.
    let all = (0..8).map(|bits| Some(blocks(&[0, 1, 2].map(|at| 1 + (bits >> at & 1)))));
    assert_eq!(seen, all.collect());
}

#[test]
fn a_file_that_grew_may_end_anywhere_behind_its_last_block_and_has_holes() {
    let (mut disk, file) = disk_with_file(Commit::Journal, b"");
    disk.write(file, 0, &blocks(&[2, 2, 2])).unwrap();
    let seen = all_after(&disk, Mode::Some, "file");
    for expected in [&[][..], &[2], &[2, 2], &[0, 2], &[2, 0, 2], &[0, 0, 0], &[2, 0, 0], &[2, 2, 2]] {
        assert!(seen.contains(&Some(blocks(expected))), "never seen: {expected:?}");
    }
}

#[test]
fn a_file_that_was_cut_off_may_have_its_old_size() {
    let (mut disk, file) = disk_with_file(Commit::Journal, &blocks(&[1, 1]));
    disk.resize(file, BLOCK).unwrap();
    let seen = all_after(&disk, Mode::Some, "file");
    assert_eq!(seen, [Some(blocks(&[1])), Some(blocks(&[1, 1]))].into());
    sync(&mut disk, file);
    assert_eq!(all_after(&disk, Mode::Some, "file"), [Some(blocks(&[1]))].into());
}

#[test]
fn directory_operations_survive_in_their_order_in_mode_p_and_in_any_in_mode_b() {
    let mut disk = Disk::new(Commit::Journal);
    for name in ["a", "b"] {
        disk.create(ROOT, OsStr::new(name)).unwrap();
    }
    let seen = |mode| -> std::collections::BTreeSet<[bool; 2]> {
        SEEDS.map(|seed| ["a", "b"].map(|name| after(&disk, mode, seed, name).is_some())).collect()
    };
    assert_eq!(seen(Mode::Ordered), [[false, false], [true, false], [true, true]].into());
    assert_eq!(seen(Mode::Some), [[false, false], [true, false], [false, true], [true, true]].into());
}

#[test]
fn entries_without_data_in_mode_c_and_data_without_entries_in_mode_d() {
    let (mut disk, file) = disk_with_file(Commit::Journal, b"old");
    disk.write(file, 0, b"new, and longer").unwrap();
    create(&mut disk, "other", b"data");
    assert_eq!(after(&disk, Mode::Entries, 1, "other").unwrap(), b"");
    assert_eq!(after(&disk, Mode::Entries, 1, "file").unwrap(), b"old");
    assert_eq!(after(&disk, Mode::Data, 1, "other"), None);
    assert_eq!(after(&disk, Mode::Data, 1, "file").unwrap(), b"new, and longer");
}

#[test]
fn what_makes_an_entry_durable_is_a_matter_of_the_commit() {
    // Whether the entry of a file, and that of another one, survive its fsync, and a rename survives that of the file.
    for (commit, own, other) in
        [(Commit::Journal, true, true), (Commit::DirectoryOrFile, true, false), (Commit::Directory, false, false)]
    {
        let mut disk = Disk::new(commit);
        create(&mut disk, "other", b"data");
        let ino = create(&mut disk, "new", b"data");
        disk.rename((ROOT, OsStr::new("new")), (ROOT, OsStr::new("file")), true).unwrap();
        sync(&mut disk, ino);
        assert_eq!(after(&disk, Mode::Nothing, 1, "file").is_some(), own, "{commit:?}");
        assert_eq!(after(&disk, Mode::Nothing, 1, "new"), None, "{commit:?}");
        assert_eq!(after(&disk, Mode::Nothing, 1, "other").is_some(), other, "{commit:?}");
        sync_directory(&mut disk, ROOT);
        assert_eq!(after(&disk, Mode::Nothing, 1, "file").unwrap(), b"data", "{commit:?}");
        assert!(after(&disk, Mode::Nothing, 1, "other").is_some(), "{commit:?}");
    }
}

#[test]
fn a_directory_is_synced_in_its_parent() {
    for (commit, by_itself) in [(Commit::Journal, true), (Commit::DirectoryOrFile, false), (Commit::Directory, false)] {
        let mut disk = Disk::new(commit);
        let directory = disk.mkdir(ROOT, OsStr::new("data")).unwrap();
        let file = disk.create(directory, OsStr::new("file")).unwrap();
        sync(&mut disk, file);
        sync_directory(&mut disk, directory);
        assert_eq!(after(&disk, Mode::Nothing, 1, "data/file").is_some(), by_itself, "{commit:?}");
        sync_directory(&mut disk, ROOT);
        assert!(after(&disk, Mode::Nothing, 1, "data/file").is_some(), "{commit:?}");
    }
}

#[test]
fn a_removal_is_not_made_durable_by_the_file_itself() {
    let (mut disk, file) = disk_with_file(Commit::DirectoryOrFile, b"data");
    disk.remove(ROOT, OsStr::new("file")).unwrap();
    sync(&mut disk, file);
    assert!(after(&disk, Mode::Nothing, 1, "file").is_some());
    sync_directory(&mut disk, ROOT);
    assert!(after(&disk, Mode::Nothing, 1, "file").is_none());
}

#[test]
fn a_sync_keeps_what_was_there_when_it_began() {
    let (mut disk, file) = disk_with_file(Commit::Journal, &blocks(&[1, 1]));
    disk.write(file, 0, &blocks(&[2])).unwrap();
    disk.begin_sync(file).unwrap();
    disk.write(file, BLOCK, &blocks(&[3])).unwrap();
    create(&mut disk, "late", b"");
    // Under way: nothing is promised, and what flies may be lost or not.
    assert_eq!(after(&disk, Mode::Nothing, 1, "file").unwrap(), blocks(&[1, 1]));
    assert_eq!(all_after(&disk, Mode::Some, "file").len(), 4);
    disk.end_sync(file).unwrap();
    assert_eq!(after(&disk, Mode::Nothing, 1, "file").unwrap(), blocks(&[2, 1]));
    assert_eq!(after(&disk, Mode::Nothing, 1, "late"), None);
    assert_eq!(after(&disk, Mode::Data, 1, "file").unwrap(), blocks(&[2, 3]));
}

#[test]
fn syncs_of_one_file_end_in_their_order() {
    let (mut disk, file) = disk_with_file(Commit::Journal, &blocks(&[1]));
    let flights = [2, 3].map(|byte| {
        disk.write(file, 0, &blocks(&[byte])).unwrap();
        disk.begin_sync(file).unwrap()
    });
    assert!(!disk.may_end_sync(file, flights[1]));
    disk.end_sync(file).unwrap();
    assert_eq!(after(&disk, Mode::Nothing, 1, "file").unwrap(), blocks(&[2]));
    assert!(disk.may_end_sync(file, flights[1]));
    disk.end_sync(file).unwrap();
    assert_eq!(after(&disk, Mode::Nothing, 1, "file").unwrap(), blocks(&[3]));
}

#[test]
fn after_a_sync_that_failed_no_later_one_writes_its_blocks() {
    let (mut disk, file) = disk_with_file(Commit::Journal, &blocks(&[1, 1]));
    disk.write(file, 0, &blocks(&[2])).unwrap();
    disk.fail_sync(file).unwrap();
    disk.write(file, BLOCK, &blocks(&[3])).unwrap();
    sync(&mut disk, file);
    assert_eq!(disk.read(file, 0, usize::MAX).unwrap(), blocks(&[2, 3]));
    assert_eq!(after(&disk, Mode::Nothing, 1, "file").unwrap(), blocks(&[1, 3]));
}

#[test]
fn survivors_are_the_next_disk() {
    let directory = tempfile::tempdir().unwrap();
    let (mut disk, _) = disk_with_file(Commit::Journal, b"data");
    let inner = disk.mkdir(ROOT, OsStr::new("inner")).unwrap();
    let file = disk.create(inner, OsStr::new("image")).unwrap();
    disk.write(file, 1 << 30, b"far away").unwrap();
    sync(&mut disk, file);
    disk.create_socket(ROOT, OsStr::new("socket")).unwrap();
    sync_directory(&mut disk, ROOT);
    let (tree, _) = disk.survivors(Mode::Nothing, 1);
    tree.export(directory.path()).unwrap();
    let next = Disk::import(Commit::Directory, directory.path()).unwrap();
    assert_eq!(next.survivors(Mode::Nothing, 1).0, tree);
}
