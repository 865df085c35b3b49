//! One core for the server, and another one for its load.
//!
//! Owns on which cores the two run while a server's CPU time is measured. On the same cores each would slow down the
//! other: threads move, and caches are shared. Must never leave its own thread bound to one core afterwards.

#[cfg(target_os = "linux")]
pub(crate) use linux::Cores;
#[cfg(not(target_os = "linux"))]
pub(crate) use other::Cores;

#[cfg(target_os = "linux")]
mod linux {
    use std::io;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    /// The cores of this thread, divided between server and load.
    pub(crate) struct Cores {
        all: CpuSet,
        /// A core for the server and one for the load, if there are at least two.
        apart: Option<(CpuSet, CpuSet)>,
    }

    impl Cores {
        /// Divides the cores of this thread.
        pub(crate) fn new() -> io::Result<Self> {
            let all = sched_getaffinity(None)?;
            let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| all.is_set(core)).map(|core| {
                let mut set = CpuSet::new();
                set.set(core);
                set
            });
            let apart = cores.next().zip(cores.next());
            Ok(Self { all, apart })
        }

        /// Starts a process on the server's core. From then on, this thread runs on the load's core.
        pub(crate) fn start<T>(&self, start: impl FnOnce() -> T) -> io::Result<T> {
            let Some((server, load)) = &self.apart else { return Ok(start()) };
            // A process starts on the cores of the thread that starts it, and sizes its runtime by their number.
            sched_setaffinity(None, server)?;
            let started = start();
            sched_setaffinity(None, load)?;
            Ok(started)
        }
    }

    impl Drop for Cores {
        fn drop(&mut self) {
            if let Err(error) = sched_setaffinity(None, &self.all) {
                eprintln!("this thread stays on one core: {error}");
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::io;

    /// Here the operating system chooses the cores.
    pub(crate) struct Cores;

    impl Cores {
        /// Never fails.
        pub(crate) fn new() -> io::Result<Self> {
            Ok(Self)
        }

        /// Starts a process.
        pub(crate) fn start<T>(&self, start: impl FnOnce() -> T) -> io::Result<T> {
            Ok(start())
        }
    }
}
