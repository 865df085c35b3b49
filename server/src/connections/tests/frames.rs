//! HTTP/2 frames made by hand, for clients that behave as no library does.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    fn new(kind: u8, flags: u8, stream: u32, payload: Vec<u8>) -> Self {
        Self { kind, flags, stream, payload }
    }

    pub(crate) fn settings(settings: &[(u16, u32)]) -> Self {
        let payload = settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
        Self::new(SETTINGS, 0, 0, payload.collect())
    }

    /// A GET, or a POST whose body follows.
    pub(crate) fn headers(stream: u32, path: &str, is_whole: bool) -> Self {
        let method = if is_whole { 0x82 } else { 0x83 };
        let mut payload = vec![method, 0x86, 0x04, path.len() as u8];
        payload.extend(path.as_bytes());
        let flags = END_HEADERS | if is_whole { END_STREAM } else { 0 };
        Self::new(HEADERS, flags, stream, payload)
    }

    pub(crate) fn without_end_of_head(mut self) -> Self {
        self.flags &= !END_HEADERS;
        self
    }

    pub(crate) fn with_end(mut self) -> Self {
        self.flags |= END_STREAM;
        self
    }

    pub(crate) fn data(stream: u32, payload: &[u8]) -> Self {
        Self::new(DATA, 0, stream, payload.to_vec())
    }

    pub(crate) fn reset(stream: u32) -> Self {
        Self::new(RST_STREAM, 0, stream, 8u32.to_be_bytes().to_vec())
    }

    pub(crate) fn window(stream: u32, bytes: u32) -> Self {
        Self::new(WINDOW_UPDATE, 0, stream, bytes.to_be_bytes().to_vec())
    }

    pub(crate) fn ping(is_answer: bool) -> Self {
        Self::new(PING, if is_answer { ACK } else { 0 }, 0, vec![7; 8])
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let length = self.payload.len() as u32;
        [&length.to_be_bytes()[1..], &[self.kind, self.flags], &self.stream.to_be_bytes(), &self.payload].concat()
    }
}

/// A client that sends the frames it is given, and answers settings and pings while it reads.
pub(crate) struct Client {
    pipe: DuplexStream,
}

impl Client {
    /// Begins a connection with this window for each stream.
    pub(crate) async fn begin(pipe: DuplexStream, window: u32) -> Self {
        let mut client = Self { pipe };
        client.send_bytes(PREFACE).await;
        client.send(Frame::settings(&[(INITIAL_WINDOW_SIZE, window)])).await;
        client
    }

    pub(crate) async fn send(&mut self, frame: Frame) {
        self.send_bytes(&frame.bytes()).await;
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        self.try_send_bytes(bytes).await.unwrap();
    }

    pub(crate) async fn try_send_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.pipe.write_all(bytes).await
    }

    /// The next frame, if the connection has not ended.
    async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.pipe.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.pipe.read_exact(&mut payload).await.ok()?;
        let answer = if kind == PING { payload.clone() } else { Vec::new() };
        if [SETTINGS, PING].contains(&kind) && flags & ACK == 0 {
            // The server may have ended meanwhile.
            drop(self.try_send_bytes(&Frame::new(kind, ACK, 0, answer).bytes()).await);
        }
        Some(Frame::new(kind, flags, u32::from_be_bytes(stream), payload))
    }

    /// All frames up to and including the first for which `last` is true.
    pub(crate) async fn until(&mut self, last: impl Fn(&Frame) -> bool) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
            if frames.last().is_some_and(&last) {
                return frames;
            }
        }
        panic!("the connection has ended: {frames:?}")
    }

    /// All frames until the end of the connection.
    pub(crate) async fn until_end(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }

    /// Bytes of the next DATA of a stream.
    pub(crate) async fn data(&mut self, stream: u32) -> usize {
        let frames = self.until(|frame| frame.kind == DATA && frame.stream == stream).await;
        frames.last().map_or(0, |frame| frame.payload.len())
    }
}
