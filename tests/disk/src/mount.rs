//! The disk as the kernel sees it.
//!
//! Owns the translation between FUSE and [`Machine`]. Must never answer once the power is cut.

use std::{
    ffi::OsStr,
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session, TimeOrNow, WriteFlags,
};

use crate::{
    content::{BLOCK_BYTES, FILE_MODE},
    disk::{Attributes, NodeKind},
    machine::Machine,
    trigger::Event,
};

/// How long the kernel may believe what it was told: for ever, since nobody else changes the disk.
const VALID: Duration = Duration::from_secs(3_600);
/// Blocks that the disk says it has: 64 GiB.
const BLOCKS: u64 = 1 << 24;
/// Mode of `fallocate` that leaves the size alone.
const KEEP_SIZE: i32 = 1;

/// The bits of a mode that say what kind of node it is, and two of their values.
const KIND: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const SOCKET: u32 = 0o140_000;

/// What FUSE calls.
struct Mounted(Arc<Machine>);

/// Answers, unless there is no power.
macro_rules! answer {
    ($answer:expr, $reply:ident, |$value:pat_param| $well:expr) => {
        match $answer {
            // Neither now nor when the reply goes out of scope.
            None => std::mem::forget($reply),
            Some(Ok($value)) => $well,
            Some(Err(error)) => $reply.error(error),
        }
    };
}

fn attributes(of: Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(of.ino),
        size: of.bytes,
        blocks: of.bytes.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: kind(of),
        perm: if of.kind == NodeKind::Directory { 0o755 } else { FILE_MODE },
        nlink: 1,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        rdev: 0,
        blksize: BLOCK_BYTES as u32,
        flags: 0,
    }
}

fn kind(of: Attributes) -> FileType {
    match of.kind {
        NodeKind::File => FileType::RegularFile,
        NodeKind::Directory => FileType::Directory,
        NodeKind::Socket => FileType::Socket,
    }
}

impl Filesystem for Mounted {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.0.look(|disk| disk.lookup(parent.0, name).map(|ino| disk.attributes(ino)));
        answer!(found, reply, |it| reply.entry(&VALID, &attributes(it), Generation(0)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer!(self.0.look(|disk| Ok(disk.attributes(ino.0))), reply, |it| reply.attr(&VALID, &attributes(it)));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = match size {
            Some(size) => self.0.act(Event::Truncate, ino.0, |disk| {
                disk.resize(ino.0, size)?;
                Ok(disk.attributes(ino.0))
            }),
            None => self.0.look(|disk| Ok(disk.attributes(ino.0))),
        };
        answer!(set, reply, |it| reply.attr(&VALID, &attributes(it)));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let made =
            self.0.act(Event::Mkdir, parent.0, |disk| disk.mkdir(parent.0, name).map(|ino| disk.attributes(ino)));
        answer!(made, reply, |it| reply.entry(&VALID, &attributes(it), Generation(0)));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let made =
            self.0.act(Event::Create, parent.0, |disk| disk.create(parent.0, name).map(|ino| disk.attributes(ino)));
        answer!(made, reply, |it| reply.created(
            &VALID,
            &attributes(it),
            Generation(0),
            FileHandle(0),
            FopenFlags::FOPEN_KEEP_CACHE
        ));
    }

    fn mknod(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: u32, reply: ReplyEntry) {
        let made = self.0.act(Event::Create, parent.0, |disk| {
            let ino = match mode & KIND {
                REGULAR => disk.create(parent.0, name)?,
                SOCKET => disk.create_socket(parent.0, name)?,
                _ => return Err(Errno::EPERM),
            };
            Ok(disk.attributes(ino))
        });
        answer!(made, reply, |it| reply.entry(&VALID, &attributes(it), Generation(0)));
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let made = self.0.act(Event::Create, parent.0, |disk| {
            disk.link(ino.0, parent.0, name)?;
            Ok(disk.attributes(ino.0))
        });
        answer!(made, reply, |it| reply.entry(&VALID, &attributes(it), Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(self.0.act(Event::Unlink, parent.0, |disk| disk.remove(parent.0, name)), reply, |()| reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(self.0.act(Event::Unlink, parent.0, |disk| disk.remove(parent.0, name)), reply, |()| reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !RenameFlags::RENAME_NOREPLACE.contains(flags) {
            return reply.error(Errno::EINVAL);
        }
        let renamed = self.0.act(Event::Rename, parent.0, |disk| {
            disk.rename((parent.0, name), (to.0, new_name), flags == RenameFlags::empty())
        });
        answer!(renamed, reply, |()| reply.ok());
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self.0.look(|_| Ok(()));
        answer!(opened, reply, |()| reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        answer!(self.0.look(|disk| disk.read(ino.0, offset, size as usize)), reply, |data| reply.data(&data));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.0.act(Event::Write, ino.0, |disk| disk.write(ino.0, offset, data));
        answer!(written, reply, |()| reply.written(data.len() as u32));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        answer!(self.0.look(|_| Ok(())), reply, |()| reply.ok());
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let machine = self.0.clone();
        answer!(self.0.begin_sync(ino.0), reply, |number| {
            // Others may write meanwhile, and sync other files.
            std::thread::spawn(move || answer!(machine.end_sync(ino.0, number), reply, |()| reply.ok()));
        });
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let machine = self.0.clone();
        answer!(self.0.begin_directory_sync(ino.0), reply, |before| {
            std::thread::spawn(move || answer!(machine.end_directory_sync(ino.0, before), reply, |()| reply.ok()));
        });
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        answer!(self.0.look(|disk| disk.list(ino.0)), reply, |entries| {
            let itself =
                [".", ".."].map(|name| (name.into(), Attributes { ino: ino.0, kind: NodeKind::Directory, bytes: 0 }));
            let all = itself.into_iter().chain(entries).enumerate().skip(offset as usize);
            for (at, (name, it)) in all {
                if reply.add(INodeNo(it.ino), at as u64 + 1, kind(it), name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let size = BLOCK_BYTES as u32;
        answer!(self.0.look(|_| Ok(())), reply, |()| reply
            .statfs(BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCKS, size, 255, size));
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode & !KEEP_SIZE != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let grown = self.0.act(Event::Truncate, ino.0, |disk| {
            let (bytes, end) = (disk.attributes(ino.0).bytes, offset + length);
            if mode == 0 && end > bytes { disk.resize(ino.0, end) } else { Ok(()) }
        });
        answer!(grown, reply, |()| reply.ok());
    }
}

impl Machine {
    /// Mounts the disk, and serves it on threads of its own until the process ends.
    ///
    /// # Errors
    ///
    /// If it cannot be mounted: that needs `/dev/fuse` and root.
    pub fn mount(self: &Arc<Self>, at: &Path) -> io::Result<()> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("volatile-disk".into())];
        let session = Session::new(Mounted(self.clone()), at, &config)?;
        std::thread::spawn(move || session.run());
        Ok(())
    }
}
