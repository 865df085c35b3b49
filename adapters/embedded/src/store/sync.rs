//! Syncs the store again and again.
//!
//! Owns the thread that does. Nothing that was answered depends on it: it bounds what is processed again after a crash, and
//! it lets little pile up that the system would then write at once, while the log waits to be synced.

use std::{
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::Inner;
use crate::background::give_way;

/// How often.
const EVERY: Duration = Duration::from_millis(100);

/// The thread, which ends when this is dropped.
pub(super) struct Syncing {
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Syncing {
    pub(super) fn start(inner: Arc<Inner>) -> std::io::Result<Self> {
        let (alive, ended) = channel();
        let run = move || {
            give_way();
            while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                if inner.unsynced.load(Ordering::SeqCst)
                    && let Err(error) = inner.sync()
                {
                    // The engine ends: see `EmbeddedEngine::broken`.
                    inner.broke(&error);
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("votestream-sync".into()).spawn(run)?;
        Ok(Self { alive: Some(alive), thread: Some(thread) })
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        self.alive = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that syncs the embedded store had panicked");
        }
    }
}
