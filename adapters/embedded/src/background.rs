//! Threads with low priority: work that may be late must not delay an acknowledgement.
//!
//! Owns how a thread lowers its priority, and a runtime whose threads all have low priority ("give way"). Must never
//! run anything that a client waits for. Must never run the log: every acknowledgement waits for its sync.
//!
//! On two cores, storing votes takes more CPU time than receiving them. If all threads had one priority, a put would
//! wait behind half a dozen threads that store votes which were acknowledged long ago.

use std::{future::Future, io};

use tokio::sync::oneshot;

/// Nice value of a thread that gives way. While both want to run, Linux gives it about a ninth of the time of a normal
/// thread; otherwise it gets all the time it wants. So the thread becomes slower but never stops.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// Number of threads of a database that write tables. With several, `fjall` keeps the first one for flushes. While
/// another one merges tables, the first passes merges to itself again and again without a pause (`worker_tick` in
/// `worker_pool.rs`).
pub(crate) const TABLE_WRITERS: usize = 1;

/// Makes the calling thread, and every thread that it starts from now on, give way to the others. Does nothing on other
/// systems than Linux: there a priority belongs to a process.
pub(crate) fn give_way() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::warn!(%error, "cannot lower the priority of a background thread; acknowledgements may be slower");
    }
}

/// Calls `open` on a thread that gives way, so that the threads that `open` starts give way, too.
pub(crate) fn giving_way<T: Send>(open: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let opening = std::thread::Builder::new().name("votestream-open".into()).spawn_scoped(scope, || {
            give_way();
            open()
        })?;
        opening.join().map_err(|_| io::Error::other("a thread that was opening a database panicked"))
    })
}

/// Runs `work` on its own runtime, whose threads give way to all others of the process. Use it for work that stores
/// acknowledged votes. When the returned future is dropped, `work` is dropped at its next await.
///
/// # Errors
///
/// If the threads cannot be started, or `work` panicked.
pub async fn background<W, F>(name: &str, work: W) -> io::Result<F::Output>
where
    W: FnOnce() -> F + Send + 'static,
    F: Future,
    F::Output: Send + 'static,
{
    let (mut done, ended) = oneshot::channel();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().thread_name(name).on_thread_start(give_way);
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        give_way();
        let result = builder.build().map(|runtime| {
            runtime.block_on(async {
                tokio::select! {
                    output = work() => Some(output),
                    () = done.closed() => None,
                }
            })
        });
        if let Some(result) = result.transpose() {
            // This fails if nobody waits any more.
            drop(done.send(result));
        }
    })?;
    ended.await.unwrap_or_else(|_| Err(io::Error::other(format!("the threads of {name} panicked"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    fn nice() -> i32 {
        rustix::process::getpriority_process(None).unwrap()
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn background_threads_give_way_and_others_do_not() {
        let before = nice();
        let inside = background("votestream-test", || async {
            let worker = tokio::spawn(async { nice() }).await.unwrap();
            (worker, tokio::task::spawn_blocking(nice).await.unwrap())
        });
        assert_eq!(inside.await.unwrap(), (NICE, NICE));
        assert_eq!(giving_way(|| std::thread::spawn(nice).join().unwrap()).unwrap(), NICE);
        assert_eq!(nice(), before);
    }

    #[tokio::test]
    async fn dropped_work_ends_and_panics_are_errors() {
        let (alive, ended) = oneshot::channel::<()>();
        let work = background("votestream-test", || async {
            let _alive = alive;
            std::future::pending::<()>().await;
        });
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), work).await.is_err());
        assert!(ended.await.is_err(), "it was dropped");
        let panicking = background("votestream-test", || async { panic!("as intended") });
        let result: io::Result<()> = panicking.await;
        assert!(result.is_err());
    }
}
