//! An HTTP/2 connection that sends any frames, and counts what it receives.
//!
//! Owns flow control, for attacks that must respect it, and the count of what the server sent. Must never correct what
//! it sends. Must never keep what it receives.

use std::{collections::BTreeMap, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};

use super::wire::{self, FRAME_HEADER_BYTES, flag, kind, setting};

/// Default window of a connection and of a call.
const WINDOW_BYTES: i64 = 65_535;
/// Largest possible window.
const WINDOW_BYTES_MAX: u32 = (1 << 31) - 1;
/// Largest frame that every server accepts.
const FRAME_BYTES: usize = 16 << 10;

/// What a server sent.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// Frames by kind.
    pub frames: BTreeMap<u8, u64>,
    /// Bytes in DATA frames.
    pub data_bytes: u64,
    /// Calls that the server has ended, in any way.
    pub ended: u64,
    /// Calls of these that it has answered completely.
    pub answered: u64,
    /// Calls that the server has reset, by error code.
    pub resets: BTreeMap<u32, u64>,
    /// Error code and text of its GOAWAY.
    pub goaway: Option<(u32, String)>,
    /// Whether it has closed the connection.
    pub closed: bool,
    /// Bytes that may be sent.
    window: i64,
    /// Bytes that may be sent on a new call.
    stream_window: i64,
    calls: Windows,
}

/// Windows of the calls; [`i64::MIN`] for an ended call.
#[derive(Clone, Default)]
struct Windows(BTreeMap<u32, i64>);

impl fmt::Debug for Windows {
    /// Does not list the calls: there may be thousands.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} calls", self.0.len())
    }
}

#[derive(Debug, Default)]
struct Shared {
    heard: Mutex<Heard>,
    changed: Notify,
}

/// One connection.
pub struct Http2 {
    write: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
    next_stream: u32,
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Http2 {
    /// Connects, with the preface and settings of a client that reads everything.
    ///
    /// # Errors
    ///
    /// If there is no connection.
    pub async fn connect(addr: SocketAddr) -> io::Result<Self> {
        Self::connect_with(addr, &[(setting::INITIAL_WINDOW_SIZE, WINDOW_BYTES_MAX)]).await
    }

    /// Connects with these settings.
    ///
    /// # Errors
    ///
    /// If there is no connection.
    pub async fn connect_with(addr: SocketAddr, settings: &[(u16, u32)]) -> io::Result<Self> {
        let mut connection = Self::over(TcpStream::connect(addr).await?);
        let whole = wire::window_update(0, WINDOW_BYTES_MAX - WINDOW_BYTES as u32);
        connection.send(&[wire::PREFACE, &wire::settings(settings), &whole].concat()).await?;
        Ok(connection)
    }

    /// Uses a connection on which nothing has been sent yet.
    pub fn over(stream: TcpStream) -> Self {
        // Small frames must arrive one by one, as they are sent.
        stream.set_nodelay(true).ok();
        let (read, write) = stream.into_split();
        let write = Arc::new(tokio::sync::Mutex::new(write));
        let shared = Arc::<Shared>::default();
        shared.heard.lock().window = WINDOW_BYTES;
        shared.heard.lock().stream_window = WINDOW_BYTES;
        let reader = tokio::spawn(listen(read, write.clone(), shared.clone()));
        Self { write, shared, reader, next_stream: 1 }
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    ///
    /// If the server has closed the connection.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write.lock().await.write_all(bytes).await
    }

    /// The number of a new call.
    pub fn stream(&mut self) -> u32 {
        self.next_stream += 2;
        self.next_stream - 2
    }

    /// Begins a gRPC call. Its content may follow.
    ///
    /// # Errors
    ///
    /// If the server has closed the connection.
    pub async fn call(&mut self, path: &str, more: &[(&str, &str)]) -> io::Result<u32> {
        let stream = self.stream();
        let headers = wire::grpc_headers(path, more);
        self.send(&wire::frame(kind::HEADERS, flag::END_HEADERS, stream, &headers)).await?;
        Ok(stream)
    }

    /// Sends content of a call in frames of at most this size, as the server's windows allow.
    ///
    /// # Errors
    ///
    /// If the server has closed the connection, or has ended the call in the meantime.
    pub async fn data(&mut self, stream: u32, mut content: &[u8], frame_bytes: usize, end: bool) -> io::Result<()> {
        while !content.is_empty() {
            let granted = self.granted(stream, content.len().min(frame_bytes.min(FRAME_BYTES))).await?;
            let (now, later) = content.split_at(granted);
            content = later;
            let flags = if end && content.is_empty() { flag::END_STREAM } else { 0 };
            self.send(&wire::frame(kind::DATA, flags, stream, now)).await?;
        }
        Ok(())
    }

    /// Waits until at least one of these bytes may be sent. Returns how many may be sent.
    async fn granted(&self, stream: u32, wanted: usize) -> io::Result<usize> {
        loop {
            let changed = self.shared.changed.notified();
            {
                let mut heard = self.shared.heard.lock();
                if heard.closed || heard.goaway.is_some() {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                let initial = heard.stream_window;
                let window = *heard.calls.0.entry(stream).or_insert(initial);
                // An ended call has no window.
                if window == i64::MIN {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                let granted = window.min(heard.window).min(wanted as i64);
                if granted > 0 {
                    heard.window -= granted;
                    *heard.calls.0.entry(stream).or_default() -= granted;
                    return Ok(granted as usize);
                }
            }
            changed.await;
        }
    }

    /// What the server has sent so far.
    pub fn heard(&self) -> Heard {
        self.shared.heard.lock().clone()
    }

    /// Waits until the condition holds for what the server has sent. Returns whether it did in time.
    pub async fn hears(&self, what: impl Fn(&Heard) -> bool, patience: Duration) -> bool {
        let heard = async {
            loop {
                let changed = self.shared.changed.notified();
                if what(&self.shared.heard.lock()) {
                    return;
                }
                changed.await;
            }
        };
        timeout(patience, heard).await.is_ok()
    }

    /// Waits until the server has closed the connection. Returns whether it did in time.
    pub async fn is_closed(&self, patience: Duration) -> bool {
        self.hears(|heard| heard.closed, patience).await
    }
}

/// Reads frames until the connection ends. Acknowledges settings and pings, as HTTP/2 requires.
async fn listen(read: OwnedReadHalf, write: Arc<tokio::sync::Mutex<OwnedWriteHalf>>, shared: Arc<Shared>) {
    let mut read = BufReader::new(read);
    let mut payload = Vec::new();
    loop {
        let mut header = [0; FRAME_HEADER_BYTES];
        if read.read_exact(&mut header).await.is_err() {
            break;
        }
        let [a, b, c, kind, flags, stream @ ..] = header;
        payload.resize(u32::from_be_bytes([0, a, b, c]) as usize, 0);
        if read.read_exact(&mut payload).await.is_err() {
            break;
        }
        shared.heard.lock().hear(kind, flags, u32::from_be_bytes(stream), &payload);
        shared.changed.notify_waiters();
        if [kind::SETTINGS, kind::PING].contains(&kind) && flags & flag::ACK == 0 {
            let payload = if kind == kind::PING { &payload[..] } else { &[] };
            let answer = wire::frame(kind, flag::ACK, 0, payload);
            if write.lock().await.write_all(&answer).await.is_err() {
                break;
            }
        }
    }
    shared.heard.lock().closed = true;
    shared.changed.notify_waiters();
}

impl Heard {
    fn hear(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        *self.frames.entry(kind).or_default() += 1;
        let number =
            |at: usize| payload.get(at..at + 4).map_or(0, |bytes| bytes.iter().fold(0, |n, b| n << 8 | u32::from(*b)));
        let has_ended = match kind {
            kind::DATA => {
                self.data_bytes += payload.len() as u64;
                flags & flag::END_STREAM != 0
            }
            kind::HEADERS => flags & flag::END_STREAM != 0,
            kind::RST_STREAM => {
                *self.resets.entry(number(0)).or_default() += 1;
                true
            }
            kind::SETTINGS => {
                self.take_settings(payload);
                false
            }
            kind::GOAWAY => {
                self.goaway = Some((number(4), String::from_utf8_lossy(payload.get(8..).unwrap_or_default()).into()));
                false
            }
            kind::WINDOW_UPDATE if stream == 0 => {
                self.window += i64::from(number(0));
                false
            }
            kind::WINDOW_UPDATE => {
                let initial = self.stream_window;
                let window = self.calls.0.entry(stream).or_insert(initial);
                if *window != i64::MIN {
                    *window += i64::from(number(0));
                }
                false
            }
            _ => false,
        };
        if has_ended {
            self.ended += 1;
            self.answered += u64::from(kind != kind::RST_STREAM);
            self.calls.0.insert(stream, i64::MIN);
        }
    }

    fn take_settings(&mut self, payload: &[u8]) {
        for entry in payload.chunks_exact(6) {
            let value = i64::from(u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]));
            if u16::from_be_bytes([entry[0], entry[1]]) == setting::INITIAL_WINDOW_SIZE {
                let more = value - self.stream_window;
                self.calls.0.values_mut().filter(|window| **window != i64::MIN).for_each(|window| *window += more);
                self.stream_window = value;
            }
        }
    }
}
