//! Requests to a running stack, from anybody who may write to its data directory. The only one is to copy that
//! directory.
//!
//! Owns the socket `control` in the data directory, and both ends of its protocol: one line of JSON in each direction.
//! Must never listen anywhere else: the permissions of the directory say who may send requests.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
    time::timeout,
};
use votestream_embedded::Backups;

/// Name of the socket.
const SOCKET: &str = "control";
/// Longest line, in either direction, in bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// How long a request may take to arrive.
const REQUEST_WAIT: Duration = Duration::from_secs(10);
/// Longest path of a socket that all systems support, in bytes.
const SOCKET_PATH_MAX: usize = 100;

/// A request.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Request {
    /// Copy the data directory to this absolute path.
    Backup(PathBuf),
}

/// The answer to a request.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Response {
    Done,
    Failed(String),
}

/// A path to the socket that is short enough. It is valid as long as the directory is open.
struct SocketPath {
    path: PathBuf,
    _directory: Option<File>,
}

impl SocketPath {
    fn new(directory: &Path) -> io::Result<Self> {
        let path = directory.join(SOCKET);
        if path.as_os_str().len() <= SOCKET_PATH_MAX {
            return Ok(Self { path, _directory: None });
        }
        let opened = File::open(directory)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", opened.as_raw_fd()));
        Ok(Self { path, _directory: Some(opened) })
    }
}

/// Listens until it is dropped.
pub(crate) struct Control {
    task: JoinHandle<()>,
    socket: PathBuf,
}

impl Control {
    /// Listens in a data directory that this process has open. Where the file system has no sockets, it logs a warning
    /// and returns `None`: then the stack must be stopped for a backup.
    pub(crate) fn listen(directory: &Path, backups: Backups) -> Option<Self> {
        let socket = directory.join(SOCKET);
        // A socket may be left from a killed process: the lock on the directory shows that that process is gone.
        let bound = SocketPath::new(directory).and_then(|short| {
            match std::fs::remove_file(&short.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            UnixListener::bind(&short.path)
        });
        match bound {
            Ok(listener) => Some(Self { task: tokio::spawn(serve(listener, backups)), socket }),
            Err(error) => {
                tracing::warn!(%error, socket = %socket.display(), "no backup can be made while this runs");
                None
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
        drop(std::fs::remove_file(&self.socket));
    }
}

/// Answers one request after the other: with two copies at a time, each would take twice as long.
async fn serve(listener: UnixListener, backups: Backups) {
    loop {
        let served = match listener.accept().await {
            Ok((stream, _)) => answer(stream, &backups).await,
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            tracing::warn!(%error, "a request on the control socket failed");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn answer(mut stream: UnixStream, backups: &Backups) -> io::Result<()> {
    let request = timeout(REQUEST_WAIT, read_line(&mut stream)).await.map_err(io::Error::from)??;
    let Request::Backup(to) = request;
    let backups = backups.clone();
    let copied = tokio::task::spawn_blocking(move || backups.copy(&to)).await;
    let response = match copied {
        Ok(Ok(())) => Response::Done,
        Ok(Err(error)) => Response::Failed(error.to_string()),
        Err(error) => Response::Failed(format!("the copy failed: {error}")),
    };
    write_line(&mut stream, &response).await
}

async fn read_line<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<T> {
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX)).read_line(&mut line).await?;
    serde_json::from_str(&line).map_err(io::Error::other)
}

async fn write_line(stream: &mut UnixStream, line: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(line).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

/// Why a running stack made no copy.
#[derive(Debug)]
pub(crate) enum AskError {
    /// No stack listens.
    NotRunning,
    /// The stack could not make the copy, or its answer did not come.
    Failed(String),
}

/// Asks the stack that has this data directory open to copy it.
pub(crate) async fn ask_for_backup(directory: &Path, to: &Path) -> Result<(), AskError> {
    let failed = |error: io::Error| AskError::Failed(format!("the running stack did not answer: {error}"));
    let Ok(short) = SocketPath::new(directory) else { return Err(AskError::NotRunning) };
    let Ok(mut stream) = UnixStream::connect(&short.path).await else { return Err(AskError::NotRunning) };
    write_line(&mut stream, &Request::Backup(to.to_owned())).await.map_err(failed)?;
    match read_line(&mut stream).await.map_err(failed)? {
        Response::Done => Ok(()),
        Response::Failed(message) => Err(AskError::Failed(message)),
    }
}
