//! A core for the server, and another for its load.
//!
//! Owns where the two run while a server's processor time is measured. On the same cores, each pays for the other: threads
//! move, and caches are shared. Must never leave its own thread on one core afterwards.

#[cfg(target_os = "linux")]
pub(crate) use linux::Cores;
#[cfg(not(target_os = "linux"))]
pub(crate) use other::Cores;

#[cfg(target_os = "linux")]
mod linux {
    use std::io;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    /// This thread's cores, divided.
    pub(crate) struct Cores {
        all: CpuSet,
        /// A core for the server and one for the load, if there are two.
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

        /// Starts a process on the server's core. From then on, this thread is on the load's.
        pub(crate) fn start<T>(&self, start: impl FnOnce() -> T) -> io::Result<T> {
            let Some((server, load)) = &self.apart else { return Ok(start()) };
            // A process begins where the thread is that starts it, and sizes its runtime by that.
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

    /// The system decides.
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
