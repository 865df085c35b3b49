//! `votestream cast`: one vote, or the votes of a file.
//!
//! Owns the report: how many votes were accepted, the line and the reason of each other vote, and from which line to go
//! on after an interruption. Must never count a vote as accepted before it is settled, never read a file faster than
//! the service takes its votes, and never hold back a vote because the next one has not come yet.

mod batch;

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use indicatif::{HumanCount, ProgressBar};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use votestream_client::{
    Ended, MessageBuilder, Observer, SOURCE_MESSAGES_MAX, StreamOptions, Vote,
    v1::{Rejection, RejectionCode},
};
use votestream_process::terminal::{Signal, Signals};

use self::batch::{Batcher, Read as BatchRead};
use crate::{
    args::{CastArgs, Global},
    failure::{Answer, Failure, Outcome},
    output,
};

/// Most rejections that are shown and kept.
const REJECTIONS_SHOWN: usize = 100;
/// How often the progress is drawn.
const TICK: std::time::Duration = std::time::Duration::from_millis(200);

/// The report of a cast. In addition to the API's fields, each rejection has the number of its line.
#[derive(Debug, Default, Serialize)]
struct Report {
    accepted: u64,
    rejected: u64,
    /// Votes whose outcome nobody knows; they do not count as rejected.
    #[serde(skip_serializing_if = "is_zero")]
    unknown: u64,
    /// The line from which to go on, if a part of the file was not cast.
    #[serde(skip_serializing_if = "Option::is_none")]
    from_line: Option<u64>,
    rejections: Vec<Rejected>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct Rejected {
    /// Line of the file, from 1; 0 if the service rejected a vote that was not sent.
    line: u64,
    code: &'static str,
    reason: String,
}

impl Report {
    /// Counts a rejection. Returns the text to show, unless too many were shown already.
    fn reject(&mut self, line: u64, code: RejectionCode, reason: String) -> Option<String> {
        if code == RejectionCode::OutcomeUnknown {
            self.unknown += 1;
        } else {
            self.rejected += 1;
        }
        if self.rejections.len() >= REJECTIONS_SHOWN {
            return None;
        }
        let shown = format!("line {line}: {}", output::printable(&reason));
        self.rejections.push(Rejected { line, code: code.as_str_name(), reason });
        Some(shown)
    }

    fn finish(mut self, global: &Global) -> Outcome {
        self.rejections.sort_by_key(|rejected| rejected.line);
        if global.json {
            output::json(&self)?;
        } else {
            output::line(&self.to_text())?;
        }
        Ok(Answer::yes_if(self.rejected == 0 && self.unknown == 0))
    }

    fn to_text(&self) -> String {
        let text = format!("accepted {}, rejected {}", HumanCount(self.accepted), HumanCount(self.rejected));
        if self.unknown == 0 { text } else { format!("{text}, unknown {}", HumanCount(self.unknown)) }
    }
}

pub(super) async fn run(global: &Global, args: CastArgs, mut signals: Signals) -> Outcome {
    match (args.file, args.poll, args.user, args.option) {
        (Some(path), ..) => cast_file(global, &path, args.from_line, signals).await,
        (None, Some(_), None, Some(_)) if !global.has_token() => {
            Err(Failure::usage("a vote needs --user, or a token that names one"))
        }
        (None, Some(poll), user, Some(option)) => tokio::select! {
            outcome = cast_one(global, &poll, user.as_deref().unwrap_or_default(), &option) => outcome,
            signal = signals.next() => {
                output::note("interrupted: whether the vote was accepted is not known");
                Err(Failure::Interrupted(signal))
            }
        },
        (None, ..) => Err(Failure::usage("a vote needs --poll, --user and --option")),
    }
}

/// Casts one vote. Uses CastVotes instead of CastVote, because its answer names the kind of a rejection.
async fn cast_one(global: &Global, poll: &str, user: &str, option: &str) -> Outcome {
    let client = global.connect_ingest().await?;
    let mut builder = MessageBuilder::new(1);
    builder.push(Vote { poll_id: poll, user_id: user, option_id: option });
    let response = client.cast_votes(vec![builder.finish(None, ()).message]).await;
    let response = response.map_err(|error| Failure::client("casting the vote", error))?;
    let mut report = Report { accepted: response.accepted, ..Report::default() };
    for rejection in response.rejections {
        let code = rejection.code();
        output::note(&format!("rejected: {}", output::printable(&rejection.reason)));
        report.reject(1, code, rejection.reason);
    }
    report.finish(global)
}

async fn cast_file(global: &Global, path: &Path, from_line: u64, mut signals: Signals) -> Outcome {
    let input: Box<dyn Read + Send> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?)
    };
    let client = tokio::select! {
        client = global.connect_ingest() => client?,
        signal = signals.next() => return Err(Failure::Interrupted(signal)),
    };
    let progress = ProgressBar::new_spinner();
    output::show_progress(&progress, "{spinner} {human_pos} votes settled, {per_sec}, {elapsed}");
    progress.enable_steady_tick(TICK);

    let report = Arc::new(Mutex::new(Report::default()));
    let stop = CancellationToken::new();
    let (votes, source) = mpsc::channel(SOURCE_MESSAGES_MAX);
    let lines = batch::read_file(input, from_line)?;
    let batcher = Batcher { votes, report: report.clone(), progress: progress.clone(), from_line };
    let (tell, reading) = oneshot::channel();
    let batching = batcher.run(lines, stop.clone());
    tokio::spawn(async move {
        // If this fails, a second signal has ended the command.
        drop(tell.send(batching.await));
    });

    let mut observer = FileObserver { report: report.clone(), progress: progress.clone(), refused: 0 };
    // Whoever goes on with --from-line decides which votes are cast again.
    let options = StreamOptions { resume: false, ..StreamOptions::default() };
    let streaming = client.stream_messages(options, source, &mut observer);
    let (ended, signal) = until_settled(streaming, &stop, &mut signals).await?;
    // The rest of the file is not read.
    stop.cancel();
    let read = reading.await.unwrap_or_default();
    progress.finish_and_clear();
    let report = std::mem::take(&mut *report.lock());
    let refused = observer.refused;
    finish(global, path, report, refused, ended, read, signal)
}

type Lines = Vec<u64>;

/// Waits until everything is settled. After one signal no more votes are sent; a second signal ends the wait.
async fn until_settled(
    streaming: impl Future<Output = Ended<Lines>>,
    stop: &CancellationToken,
    signals: &mut Signals,
) -> Result<(Ended<Lines>, Option<Signal>), Failure> {
    let mut streaming = std::pin::pin!(streaming);
    let signal = tokio::select! {
        ended = &mut streaming => return Ok((ended, None)),
        signal = signals.next() => signal,
    };
    stop.cancel();
    tokio::select! {
        ended = streaming => Ok((ended, Some(signal))),
        _ = signals.next() => {
            output::note("stopped before every vote that was sent was answered; the outcome of some is not known");
            Err(Failure::Interrupted(signal))
        }
    }
}

/// Reports how casting the file ended.
fn finish(
    global: &Global,
    path: &Path,
    mut report: Report,
    refused: u64,
    ended: Ended<Lines>,
    read: BatchRead,
    signal: Option<Signal>,
) -> Outcome {
    // Every refused vote is among the settled ones.
    report.accepted = ended.settled.saturating_sub(refused);
    report.unknown += ended.sent.saturating_sub(ended.settled);
    let not_shown = (report.rejected + report.unknown).saturating_sub(report.rejections.len() as u64);
    if not_shown > 0 && report.rejections.len() >= REJECTIONS_SHOWN {
        output::note(&format!("and {} more rejections", HumanCount(not_shown)));
    }
    let first = ended.unsettled.first();
    let broken_at = first.and_then(|first| first.tag.get(usize::try_from(first.from).ok()?).copied());
    report.from_line = broken_at.or(read.unsent_line);
    if let Some(line) = report.from_line {
        let known = match report.unknown {
            0 => format!("every vote before line {line} is settled, and none after it was sent"),
            unknown => format!("the outcome of {} votes from line {line} on is not known", HumanCount(unknown)),
        };
        let interrupted = if signal.is_some() { "interrupted: " } else { "" };
        output::note(&format!("{interrupted}{known}; go on with --from-line {line}"));
    }
    let answer = report.finish(global);
    // If there is a failure, it is the reason for the end, whatever was rejected before.
    match (ended.failure, read.failure, signal) {
        (Some(failure), ..) => answer.and(Err(Failure::client("casting votes", failure))),
        (None, Some(error), _) => answer.and(Err(Failure::usage(format!("{}: {error}", path.display())))),
        (None, None, Some(signal)) => answer.and(Err(Failure::Interrupted(signal))),
        (None, None, None) => answer,
    }
}

fn show(progress: &ProgressBar, line: Option<String>) {
    if let Some(line) = line {
        progress.suspend(|| output::note(&line));
    }
}

struct FileObserver {
    report: Arc<Mutex<Report>>,
    progress: ProgressBar,
    /// Votes that were sent and not accepted. Lines that are not votes are counted in the report only.
    refused: u64,
}

impl Observer<Lines> for FileObserver {
    fn rejected(&mut self, place: Option<(&Lines, u64)>, rejection: Rejection) {
        let line = place.and_then(|(lines, at)| lines.get(usize::try_from(at).ok()?)).copied().unwrap_or(0);
        let code = rejection.code();
        self.refused += 1;
        let shown = self.report.lock().reject(line, code, rejection.reason);
        show(&self.progress, shown);
    }

    fn settled(&mut self, _lines: Lines, votes: u64, _latency: std::time::Duration) {
        self.progress.inc(votes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vote_whose_outcome_is_unknown_is_not_called_rejected() {
        let mut report = Report { accepted: 3, ..Report::default() };
        assert_eq!(report.to_text(), "accepted 3, rejected 0");
        report.reject(7, RejectionCode::OutcomeUnknown, "no answer".into());
        report.reject(8, RejectionCode::PollClosed, "closed".into());
        assert_eq!((report.rejected, report.unknown), (1, 1));
        assert_eq!(report.to_text(), "accepted 3, rejected 1, unknown 1");
    }
}
