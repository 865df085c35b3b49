//! `votestream cast`: one vote, or the votes of a file.
//!
//! Owns the report: how many votes were accepted, and the line and the reason of each that was not. Must never count a vote
//! as accepted before it is settled, nor read a file faster than its votes are taken.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
    sync::Arc,
    time::Duration,
};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use votestream_proto::{
    VotesMessage,
    v1::{Rejection, RejectionCode},
};

use crate::{
    args::{CastArgs, Global},
    connect::{self, CALL_TIMEOUT, request},
    failure::{Answer, Failure, Outcome},
    output,
    sender::{self, Builder, Observer, Outgoing, SOURCE_MESSAGES_MAX},
    vote_file::VoteFile,
};

/// Votes in a message.
const VOTES_PER_MESSAGE: u64 = 200;
/// Bytes after which a message is sent however few votes it has; a quarter of what the service takes.
const MESSAGE_BYTES: usize = 1 << 20;
/// Rejections that are shown and kept.
const REJECTIONS_SHOWN: usize = 100;
/// How often the progress is drawn.
const TICK: Duration = Duration::from_millis(200);

/// The report of a cast; beside the API's fields each rejection has its line.
#[derive(Debug, Default, Serialize)]
struct Report {
    accepted: u64,
    rejected: u64,
    rejections: Vec<Rejected>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct Rejected {
    /// Line of the file, from 1; 0 if the service rejected a vote that was not sent.
    line: u64,
    code: &'static str,
    reason: String,
}

impl Report {
    /// Takes a rejection in. Returns the line to show, if there are not too many already.
    fn reject(&mut self, line: u64, code: RejectionCode, reason: String) -> Option<String> {
        self.rejected += 1;
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
            output::line(&format!("accepted {}, rejected {}", HumanCount(self.accepted), HumanCount(self.rejected)))?;
        }
        Ok(Answer::yes_if(self.rejected == 0))
    }
}

pub(super) async fn run(global: &Global, args: CastArgs) -> Outcome {
    match (args.file, args.poll, args.user, args.option) {
        (Some(path), ..) => cast_file(global, &path, args.from_line).await,
        (None, Some(poll), Some(user), Some(option)) => cast_one(global, &poll, &user, &option).await,
        (None, ..) => Err(Failure::usage("a vote needs --poll, --user and --option")),
    }
}

/// One vote. CastVotes rather than CastVote, since it names the kind of a rejection.
async fn cast_one(global: &Global, poll: &str, user: &str, option: &str) -> Outcome {
    let url = global.ingest.url();
    let mut client = connect::ingest(&global.ingest).await?;
    let mut message = VotesMessage::default();
    message.push(poll, user, option);
    let response = client
        .cast_votes(request(tokio_stream::once(message), CALL_TIMEOUT))
        .await
        .map_err(|status| Failure::rpc("casting the vote", url, &status))?
        .into_inner();
    let mut report = Report { accepted: response.accepted, ..Report::default() };
    for rejection in response.rejections {
        let code = rejection.code();
        eprintln!("rejected: {}", output::printable(&rejection.reason));
        report.reject(1, code, rejection.reason);
    }
    report.finish(global)
}

/// A line of the file that is no vote, or how the reading ended.
enum FromFile {
    Bad { line: u64, reason: String },
    Failed(String),
}

async fn cast_file(global: &Global, path: &Path, from_line: u64) -> Outcome {
    let input: Box<dyn BufRead + Send> = if path == Path::new("-") {
        Box::new(BufReader::new(io::stdin()))
    } else {
        let file = File::open(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
        Box::new(BufReader::with_capacity(1 << 16, file))
    };
    let channel = connect::connect("ingest", &global.ingest).await?;
    let (votes, source) = mpsc::channel(SOURCE_MESSAGES_MAX);
    let (bad_lines, mut reported) = mpsc::channel(SOURCE_MESSAGES_MAX);
    // A thread of its own, not one of the runtime's: a read from stdin cannot be given up, and the process must not wait
    // for it at its end.
    let spawned = std::thread::Builder::new()
        .name("vote-file".into())
        .spawn(move || read_votes(VoteFile::new(input), from_line, &votes, &bad_lines));
    spawned.map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;

    // indicatif draws nothing if stderr is not a terminal.
    let progress = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {human_pos} votes settled, {per_sec}, {elapsed}") {
        progress.set_style(style);
    }
    progress.enable_steady_tick(TICK);
    let shared = Arc::new(parking_lot::Mutex::new(Report::default()));
    let (read_to_end, reading) = oneshot::channel();
    tokio::spawn({
        let (shared, progress) = (shared.clone(), progress.clone());
        async move {
            let mut failure = None;
            while let Some(reported) = reported.recv().await {
                match reported {
                    FromFile::Bad { line, reason } => {
                        let shown = shared.lock().reject(line, RejectionCode::Malformed, reason);
                        show(&progress, shown);
                    }
                    FromFile::Failed(error) => failure = Some(error),
                }
            }
            // Nobody waits for the answer if the stream broke first.
            drop(read_to_end.send(failure));
        }
    });
    let mut observer = FileObserver { report: &shared, progress: &progress, rejected: 0 };
    let ended = sender::stream_votes(channel, global.ingest.url(), source, &mut observer).await;
    let failure = match ended.failure {
        Some(failure) => Some(failure),
        None => reading.await.ok().flatten().map(|error| Failure::failed(format!("{}: {error}", path.display()))),
    };
    progress.finish_and_clear();

    let mut report = std::mem::take(&mut *shared.lock());
    // Every rejected vote is among the settled ones.
    report.accepted = ended.settled.saturating_sub(observer.rejected);
    if report.rejected > report.rejections.len() as u64 {
        eprintln!("and {} more rejections", HumanCount(report.rejected - report.rejections.len() as u64));
    }
    let Some(failure) = failure else { return report.finish(global) };
    let answer = report.finish(global);
    if let Some((lines, place)) = ended.unknown_from
        && let Some(line) = usize::try_from(place).ok().and_then(|place| lines.get(place))
    {
        eprintln!("the outcome of the votes from line {line} on is not known; go on with --from-line {line}");
    }
    // The failure is the cause, whatever had been rejected by then.
    answer.and(Err(failure))
}

/// Reads the file into messages; the tag of a message is the line of each of its votes.
fn read_votes(
    mut file: VoteFile<impl BufRead>,
    from_line: u64,
    votes: &mpsc::Sender<Outgoing<Vec<u64>>>,
    reports: &mpsc::Sender<FromFile>,
) {
    let mut builder = Builder::new(VOTES_PER_MESSAGE as usize);
    let mut lines = Vec::new();
    // A closed channel means that the stream has broken; then there is no use in reading on.
    loop {
        match file.next() {
            Ok(Some((line, _))) if line < from_line => {}
            Ok(Some((line, Ok(row)))) => {
                builder.push(&row.poll_id, &row.user_id, &row.option_id);
                lines.push(line);
                if builder.votes() >= VOTES_PER_MESSAGE || builder.bytes() >= MESSAGE_BYTES {
                    let full = std::mem::replace(&mut builder, Builder::new(VOTES_PER_MESSAGE as usize));
                    if votes.blocking_send(full.finish(None, std::mem::take(&mut lines))).is_err() {
                        return;
                    }
                }
            }
            Ok(Some((line, Err(bad)))) => {
                if reports.blocking_send(FromFile::Bad { line, reason: bad.reason }).is_err() {
                    return;
                }
            }
            Ok(None) => break,
            Err(error) => {
                // What was read before is sent all the same. The receiver may be gone, then nobody wants to know.
                drop(reports.blocking_send(FromFile::Failed(error.to_string())));
                break;
            }
        }
    }
    if builder.votes() > 0 {
        drop(votes.blocking_send(builder.finish(None, lines)));
    }
}

fn show(progress: &ProgressBar, line: Option<String>) {
    if let Some(line) = line {
        progress.suspend(|| eprintln!("{line}"));
    }
}

struct FileObserver<'a> {
    report: &'a parking_lot::Mutex<Report>,
    progress: &'a ProgressBar,
    /// Votes that were sent and rejected; the lines that are no votes are only in the report.
    rejected: u64,
}

impl Observer<Vec<u64>> for FileObserver<'_> {
    fn rejected(&mut self, place: Option<(&Vec<u64>, u64)>, rejection: Rejection) {
        let line = place.and_then(|(lines, at)| lines.get(usize::try_from(at).ok()?)).copied().unwrap_or(0);
        let code = rejection.code();
        self.rejected += 1;
        let shown = self.report.lock().reject(line, code, rejection.reason);
        show(self.progress, shown);
    }

    fn settled(&mut self, _lines: &Vec<u64>, votes: u64, _latency: Duration) {
        self.progress.inc(votes);
    }
}
