//! From the lines of a file to messages of votes.
//!
//! Owns when a message is sent: when it is full, when no more lines have come for a moment, or when the file ends. A
//! separate thread reads the file, since a read from stdin can neither be cancelled nor waited for when the process
//! ends. Must never hold more lines than its bounds, and must always know the first line that was not sent.

use std::{io, sync::Arc, time::Duration};

use indicatif::ProgressBar;
use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use votestream_client::{MessageBuilder, Outgoing, Vote, v1::RejectionCode};

use super::{Lines, Report, show};
use crate::{
    failure::Failure,
    lines::BadLine,
    vote_file::{Row, VoteFile},
};

/// Votes in a message.
const VOTES_PER_MESSAGE: u64 = 200;
/// A message of this many bytes is sent, however few votes it has. A quarter of what the service takes.
const MESSAGE_BYTES: usize = 1 << 20;
/// How long a vote waits for others to share its message.
const LINGER: Duration = Duration::from_millis(50);
/// Chunks of lines that wait between the reading thread and the messages.
const CHUNKS_MAX: usize = 8;

/// Lines that were read together, with their numbers; or why no more lines can be read.
type Chunk = io::Result<Vec<(u64, Result<Row, BadLine>)>>;

/// Reads a file from a line on, in a thread that ends when the file ends or the receiver is gone.
pub(super) fn read_file(
    input: impl io::Read + Send + 'static,
    from_line: u64,
) -> Result<mpsc::Receiver<Chunk>, Failure> {
    let (chunks, lines) = mpsc::channel(CHUNKS_MAX);
    std::thread::Builder::new()
        .name("vote-file".into())
        .spawn(move || read_lines(VoteFile::new(input), from_line, &chunks))
        .map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
    Ok(lines)
}

fn read_lines(mut file: VoteFile<impl io::Read>, from_line: u64, chunks: &mpsc::Sender<Chunk>) {
    let mut chunk = Vec::new();
    loop {
        let next = file.next();
        let end = !matches!(next, Ok(Some(_)));
        match next {
            Ok(Some((line, _))) if line < from_line => {}
            Ok(Some(line)) => chunk.push(line),
            Ok(None) => {}
            Err(error) => {
                // The lines that were read before are sent all the same. If that fails, the receiver is gone and does
                // not need the error.
                drop(chunks.blocking_send(Ok(std::mem::take(&mut chunk))));
                drop(chunks.blocking_send(Err(error)));
            }
        }
        // The chunk is sent now, because the next read may take forever.
        if end || !file.has_line() || chunk.len() as u64 >= VOTES_PER_MESSAGE {
            let full = std::mem::take(&mut chunk);
            // A closed channel means that no more votes can be sent, so this thread need not read on.
            if !full.is_empty() && chunks.blocking_send(Ok(full)).is_err() || end {
                return;
            }
        }
    }
}

/// How the reading ended.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// The first line that was not sent, if it was stopped before the end of the file.
    pub(super) unsent_line: Option<u64>,
    /// Why the file could not be read to its end.
    pub(super) failure: Option<io::Error>,
}

/// Builds messages from lines, and reports the lines that are not votes.
pub(super) struct Batcher {
    pub(super) votes: mpsc::Sender<Outgoing<Lines>>,
    pub(super) report: Arc<Mutex<Report>>,
    pub(super) progress: ProgressBar,
    /// The first line to cast; earlier lines are skipped.
    pub(super) from_line: u64,
}

/// A message that is being filled, with the line of each of its votes.
struct Open {
    builder: MessageBuilder,
    lines: Lines,
    /// When it must be sent, however few votes it has.
    due: Instant,
}

impl Open {
    fn new() -> Self {
        Self {
            builder: MessageBuilder::new(VOTES_PER_MESSAGE as usize),
            lines: Vec::new(),
            due: Instant::now() + LINGER,
        }
    }

    fn is_full(&self) -> bool {
        self.builder.votes() >= VOTES_PER_MESSAGE || self.builder.bytes() >= MESSAGE_BYTES
    }
}

impl Batcher {
    /// Runs until the file has ended, nobody takes votes any more, or `stop` is cancelled.
    pub(super) async fn run(self, mut chunks: mpsc::Receiver<Chunk>, stop: CancellationToken) -> Read {
        // The line after the last one that was sent or reported.
        let mut next = self.from_line;
        let mut open: Option<Open> = None;
        loop {
            let due = open.as_ref().map(|open| open.due);
            let more = async {
                match due {
                    Some(due) => timeout_at(due, chunks.recv()).await.ok(),
                    None => Some(chunks.recv().await),
                }
            };
            let Some(more) = stop.run_until_cancelled(more).await else {
                return Read { unsent_line: Some(first_of(open, next)), failure: None };
            };
            let mut failure = None;
            let ended = match more {
                Some(Some(Ok(lines))) => match self.take(lines, &mut open, &mut next, &stop).await {
                    Ok(()) => continue,
                    Err(unsent_line) => return Read { unsent_line: Some(unsent_line), failure },
                },
                Some(Some(Err(error))) => {
                    failure = Some(error);
                    true
                }
                Some(None) => true,
                None => false,
            };
            if let Err(unsent_line) = self.send(&mut open, &stop).await {
                return Read { unsent_line: Some(unsent_line), failure };
            }
            if ended {
                // If the file could not even be read from its start, there is no line from which to go on.
                let broke_off = failure.is_some() && next > self.from_line;
                return Read { unsent_line: broke_off.then_some(next), failure };
            }
        }
    }

    /// Adds lines to the open message, and sends it whenever it is full. The error is the first line that was not sent.
    async fn take(
        &self,
        lines: Vec<(u64, Result<Row, BadLine>)>,
        open: &mut Option<Open>,
        next: &mut u64,
        stop: &CancellationToken,
    ) -> Result<(), u64> {
        for (line, row) in lines {
            match row {
                Ok(row) => {
                    let message = open.get_or_insert_with(Open::new);
                    let Row { poll_id, user_id, option_id } = &row;
                    message.builder.push(Vote { poll_id, user_id, option_id });
                    message.lines.push(line);
                    if message.is_full() {
                        self.send(open, stop).await?;
                    }
                }
                Err(bad) => {
                    let shown = self.report.lock().reject(line, RejectionCode::Malformed, bad.reason);
                    show(&self.progress, shown);
                }
            }
            *next = line + 1;
        }
        Ok(())
    }

    /// Sends the open message, if there is one. The error is its first line.
    async fn send(&self, open: &mut Option<Open>, stop: &CancellationToken) -> Result<(), u64> {
        let Some(message) = open.take() else { return Ok(()) };
        let Some(&first) = message.lines.first() else { return Ok(()) };
        let room = stop.run_until_cancelled(self.votes.reserve()).await;
        let Some(Ok(room)) = room else { return Err(first) };
        room.send(message.builder.finish(None, message.lines));
        Ok(())
    }
}

/// The first line that was not sent.
fn first_of(open: Option<Open>, next: u64) -> u64 {
    open.and_then(|open| open.lines.first().copied()).unwrap_or(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: u64) -> (u64, Result<Row, BadLine>) {
        let text = |text: &str| text.to_owned();
        (number, Ok(Row { poll_id: text("p"), user_id: format!("u{number}"), option_id: text("a") }))
    }

    fn batcher(votes: mpsc::Sender<Outgoing<Lines>>) -> Batcher {
        let report = Arc::new(Mutex::new(Report::default()));
        Batcher { votes, report, progress: ProgressBar::hidden(), from_line: 1 }
    }

    #[tokio::test(start_paused = true)]
    async fn votes_wait_for_a_moment_and_not_for_the_next() {
        let (votes, mut messages) = mpsc::channel(8);
        let (chunks, lines) = mpsc::channel(8);
        let stop = CancellationToken::new();
        let batching = tokio::spawn(batcher(votes).run(lines, stop.clone()));
        let start = Instant::now();
        chunks.send(Ok(vec![line(1)])).await.unwrap();
        tokio::time::sleep(LINGER / 2).await;
        chunks.send(Ok(vec![line(2), (3, Err(BadLine { reason: "no vote".into() })), line(4)])).await.unwrap();
        let message = messages.recv().await.unwrap();
        assert_eq!((message.tag, start.elapsed()), (vec![1, 2, 4], LINGER));
        // A full message does not wait.
        chunks.send(Ok((5..5 + VOTES_PER_MESSAGE).map(line).collect())).await.unwrap();
        assert_eq!(messages.recv().await.unwrap().votes, VOTES_PER_MESSAGE);
        assert_eq!(start.elapsed(), LINGER);
        chunks.send(Ok(vec![line(300)])).await.unwrap();
        tokio::task::yield_now().await;
        stop.cancel();
        // Line 300 was read, and not sent.
        assert_eq!(batching.await.unwrap().unsent_line, Some(300));
        assert!(messages.recv().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn it_knows_the_first_line_that_was_not_sent() {
        let (votes, mut messages) = mpsc::channel(1);
        let (chunks, lines) = mpsc::channel(8);
        let stop = CancellationToken::new();
        let batching = tokio::spawn(batcher(votes).run(lines, stop.clone()));
        // Three messages: one fits into the channel, the second waits for room.
        chunks.send(Ok((1..=3 * VOTES_PER_MESSAGE).map(line).collect())).await.unwrap();
        tokio::time::sleep(LINGER).await;
        stop.cancel();
        assert_eq!(batching.await.unwrap().unsent_line, Some(VOTES_PER_MESSAGE + 1));
        assert_eq!(messages.recv().await.unwrap().votes, VOTES_PER_MESSAGE);
        assert!(messages.recv().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_file_sends_what_is_left() {
        let (votes, mut messages) = mpsc::channel(8);
        let (chunks, lines) = mpsc::channel(8);
        chunks.send(Ok(vec![line(1)])).await.unwrap();
        chunks.send(Err(io::ErrorKind::InvalidData.into())).await.unwrap();
        let read = batcher(votes).run(lines, CancellationToken::new()).await;
        assert_eq!((read.unsent_line, read.failure.is_some()), (Some(2), true));
        assert_eq!(messages.recv().await.unwrap().tag, [1]);
    }
}
