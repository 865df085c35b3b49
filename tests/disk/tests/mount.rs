//! The mounted disk, by its command: what it answers, and that nobody gets an answer once the power is cut.
//!
//! Skipped, with a line that says so, where nothing can be mounted.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::{
        fs::FileExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use tempfile::TempDir;

/// Longest time that anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Mounted {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    directory: TempDir,
}

impl Mounted {
    /// `None`, with a reason, where it cannot be mounted.
    fn new(sync_us: u32) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        for name in ["mount", "from"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        fs::write(directory.path().join("from/old"), "old").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_volatile-disk"));
        command.args(["mount", "from", "out", "0", &sync_us.to_string()]).current_dir(directory.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut mounted = Self { child, stdin, stdout, directory };
        if mounted.line().is_empty() {
            eprintln!("skipped: no FUSE file system can be mounted here (needs root and /dev/fuse)");
            return None;
        }
        Some(mounted)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    fn tell(&mut self, command: &str) -> String {
        writeln!(self.stdin.as_mut().unwrap(), "{command}").unwrap();
        self.line()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("mount").join(name)
    }

    fn survivor(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(self.directory.path().join("out").join(name))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.stdin = None;
        self.child.wait().unwrap();
        assert!(!fs::read_to_string("/proc/mounts").unwrap().contains(self.directory.path().to_str().unwrap()));
    }
}

fn write_and_sync(path: &Path, data: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(data.as_bytes())?;
    file.sync_all()
}

#[test]
fn it_is_a_file_system() {
    let Some(disk) = Mounted::new(0) else { return };
    assert_eq!(fs::read_to_string(disk.path("old")).unwrap(), "old");
    fs::create_dir(disk.path("new")).unwrap();
    let mut file = File::options().create_new(true).read(true).write(true).open(disk.path("new/file")).unwrap();
    file.write_all(b"0123456789").unwrap();
    file.write_all_at(b"far", 1 << 20).unwrap();
    file.seek(SeekFrom::Start(8)).unwrap();
    let mut read = [7; 4];
    file.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"89\0\0");
    file.set_len(5).unwrap();
    fs::rename(disk.path("new/file"), disk.path("moved")).unwrap();
    fs::hard_link(disk.path("moved"), disk.path("linked")).unwrap();
    assert_eq!(fs::read(disk.path("linked")).unwrap(), b"01234");
    assert_eq!(fs::remove_dir(disk.path("absent")).unwrap_err().kind(), ErrorKind::NotFound);
    fs::remove_dir(disk.path("new")).unwrap();
    fs::remove_file(disk.path("old")).unwrap();
    let mut names: Vec<_> = fs::read_dir(disk.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["linked", "moved"]);
    let listener = UnixListener::bind(disk.path("socket")).unwrap();
    UnixStream::connect(disk.path("socket")).unwrap();
    drop(listener);
    File::open(disk.path("")).unwrap().sync_all().unwrap();
}

#[test]
fn what_was_synced_is_left_and_nobody_is_answered_after_the_cut() {
    let Some(mut disk) = Mounted::new(1_000) else { return };
    write_and_sync(&disk.path("synced"), "synced").unwrap();
    fs::write(disk.path("lost"), "lost").unwrap();
    assert_eq!(disk.tell("arm a 1 fsyncend 1"), "{\"done\":\"arm\"}\n");
    let (done, answers) = mpsc::sync_channel(1);
    let path = disk.path("late");
    // It never ends before the disk does, and then with an error.
    let late = std::thread::spawn(move || done.send(write_and_sync(&path, "late").is_ok()));
    let cut = disk.line();
    assert!(
        cut.contains("\"before\":\"fsyncend\"") && cut.contains("\"path\":\"late\"") && cut.contains("\"error\":null"),
        "{cut}"
    );
    assert_eq!(disk.survivor("synced").unwrap(), "synced");
    for lost in ["lost", "late"] {
        assert_eq!(disk.survivor(lost).unwrap_err().kind(), ErrorKind::NotFound);
    }
    answers.recv_timeout(Duration::from_millis(100)).unwrap_err();
    drop(disk);
    assert!(!answers.recv_timeout(PATIENCE).unwrap());
    late.join().unwrap().unwrap();
}

#[test]
fn it_fails_once_or_until_it_is_mended() {
    let Some(mut disk) = Mounted::new(0) else { return };
    disk.tell("fail EIO fsync 2");
    write_and_sync(&disk.path("first"), "data").unwrap();
    let error = write_and_sync(&disk.path("second"), "data").unwrap_err();
    assert_eq!(disk.line(), "{\"failed\":{\"at\":\"fsync\",\"path\":\"second\"}}\n");
    assert_eq!(error.raw_os_error(), Some(5));
    write_and_sync(&disk.path("third"), "data").unwrap();
    for (name, kind) in [("ENOSPC", ErrorKind::StorageFull), ("EROFS", ErrorKind::ReadOnlyFilesystem)] {
        disk.tell(&format!("fail {name} write 2"));
        write_and_sync(&disk.path("first"), "again").unwrap();
        for _ in 0..2 {
            assert_eq!(write_and_sync(&disk.path("first"), "never").unwrap_err().kind(), kind);
        }
        assert!(disk.line().contains("\"failed\""));
        assert_eq!(fs::read_to_string(disk.path("third")).unwrap(), "data");
        disk.tell("mend");
        write_and_sync(&disk.path("first"), "again").unwrap();
    }
    let counts = disk.tell("counts");
    assert!(counts.contains("\"fsync\":") && counts.contains("\"create\":"), "{counts}");
    assert!(disk.tell("arm x 1 write 1").contains("not understood"));
}
