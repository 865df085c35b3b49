//! The volume of a data directory whose power is cut: the disk itself, or a file system of the kernel on a loop device
//! whose image is on the disk.
//!
//! Makes, mounts and leaves it. Must never write to what a cut has left.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command as Blocking,
    time::Duration,
};

use super::disk::{self, Disk};

/// A file system of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

impl FileSystem {
    /// The command that makes one. It leaves no work to threads that would write later.
    fn maker(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"],
            Self::Xfs => &["mkfs.xfs", "-q", "-f", "-K"],
        }
    }

    /// Size of its image. XFS has a minimum size; nearly all of the image is a hole.
    fn bytes(self) -> u64 {
        match self {
            Self::Ext4 => 256 << 20,
            Self::Xfs => 320 << 20,
        }
    }

    /// Its name for `mount`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    fn make(self, image: &Path) -> Result<(), String> {
        let made = File::create(image).and_then(|file| file.set_len(self.bytes()));
        made.map_err(|error| format!("{}: {error}", image.display()))?;
        let [command, arguments @ ..] = self.maker() else { return Err("there is no command".into()) };
        let output = Blocking::new(command).args(arguments).arg(image).output();
        let output = output.map_err(|error| format!("{command}: {error}"))?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }
}

/// Kinds of disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// What makes a directory entry durable on the disk itself: 0, 1 or 2.
    pub commit: u8,
    /// The file system on the disk; `None` if the data directory is directly on it.
    pub file_system: Option<FileSystem>,
}

impl Kind {
    /// Why such a volume is not possible on this machine; `None` if it is possible.
    pub fn missing(self) -> Option<&'static str> {
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        match self.file_system {
            None => disk::missing(),
            Some(_) if !Path::new("/dev/loop-control").exists() => Some("there are no loop devices"),
            Some(it) if Blocking::new(it.maker()[0]).arg("-V").output().is_err() => Some("its mkfs is not installed"),
            Some(it) if !known.contains(it.name()) => Some("the kernel does not know the file system"),
            Some(_) => disk::missing(),
        }
    }
}

/// A volume for a data directory.
#[derive(Debug)]
pub struct Volume {
    /// The disk under it.
    pub disk: Disk,
    /// The data directory, for processes in the disk's namespace.
    pub directory: PathBuf,
}

impl Volume {
    /// Mounts a volume with the content of `from`: what survived the last cut, or nothing.
    ///
    /// # Errors
    ///
    /// If it cannot be mounted. What survives a cut must always be a file system that can be mounted.
    pub async fn mount(kind: Kind, from: &Path, at: &Path, sync: Duration) -> Result<Self, String> {
        let Some(file_system) = kind.file_system else {
            let disk = Disk::mount(from, at, kind.commit, sync).await?;
            return Ok(Self { directory: disk.path().join("data"), disk });
        };
        let image = from.join("image");
        if !image.exists() {
            file_system.make(&image)?;
        }
        let (disk, inner) = (Disk::mount(from, at, kind.commit, sync).await?, at.join("inner"));
        fs::create_dir_all(&inner).map_err(|error| error.to_string())?;
        let image = disk.path().join("image");
        let mount = ["mount", "-t", file_system.name(), "-o", "loop"].map(OsStr::new);
        disk.run(mount.into_iter().chain([image.as_os_str(), inner.as_os_str()])).await?;
        Ok(Self { disk, directory: inner.join("data") })
    }
}
