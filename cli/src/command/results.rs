//! `votestream results`: interim results, once or as they change, and the final result.
//!
//! Owns waiting for the final result. Must never show interim counts as final.

use std::{collections::HashMap, time::Duration};

use console::Term;
use indicatif::HumanCount;
use tokio::time::Instant;
use tonic::{Code, transport::Channel};
use votestream_proto::v1::{
    self, poll_service_client::PollServiceClient, results_service_client::ResultsServiceClient,
};

use crate::{
    args::{Global, ResultsArgs},
    bars::{self, Canvas, Row, Size},
    connect::{self, CALL_TIMEOUT, request},
    failure::{Answer, Failure, Outcome},
    json, output,
};

/// One waiting call; then the next one, so that no proxy's time limit ends the wait.
const WAIT_CALL: Duration = Duration::from_secs(60);
/// Pause after a waiting call that came back early.
const WAIT_PAUSE: Duration = Duration::from_secs(1);
/// Width when the output is not a terminal.
const PLAIN_COLUMNS: usize = 80;

pub(super) async fn run(global: &Global, args: ResultsArgs) -> Outcome {
    let (mut results, mut polls) = connect::results(&global.results).await?;
    if args.is_final {
        return show_final(global, args, &mut results, &mut polls).await;
    }
    if args.watch {
        return watch(global, args.poll, &mut results, &mut polls).await;
    }
    let response = results
        .get_interim_results(request(v1::GetInterimResultsRequest { poll_id: args.poll }, CALL_TIMEOUT))
        .await
        .map_err(|status| Failure::rpc("reading the results", global.results.url(), &status))?;
    let interim = json::Interim::from(response.into_inner());
    if global.json {
        output::json(&interim)?;
    } else {
        let labels = Labels::read(&mut polls, &interim.poll_id).await;
        output::lines(&labels.interim(&interim, room()))?;
    }
    Ok(Answer::Yes)
}

async fn show_final(
    global: &Global,
    args: ResultsArgs,
    results: &mut ResultsServiceClient<Channel>,
    polls: &mut PollServiceClient<Channel>,
) -> Outcome {
    let url = global.results.url();
    let response = if args.wait {
        let limit = args.timeout.map(|timeout| Instant::now() + timeout);
        wait_for_final(results, &args.poll, limit).await
    } else {
        let message = v1::GetFinalResultsRequest { poll_id: args.poll, wait: false };
        results.get_final_results(request(message, CALL_TIMEOUT)).await.map(tonic::Response::into_inner)
    };
    let response = match response {
        Ok(response) => json::Final::from(response),
        Err(status) if is_not_final(status.code()) => {
            output::note(&format!("not final: {}", output::printable(status.message())));
            return Ok(Answer::No);
        }
        Err(status) => return Err(Failure::rpc("reading the final result", url, &status)),
    };
    if global.json {
        output::json(&response)?;
    } else {
        let labels = Labels::read(polls, &response.poll_id).await;
        output::lines(&labels.last(&response, room()))?;
    }
    Ok(Answer::Yes)
}

/// What a service answers while a result is not final, or tonic itself once the deadline of the call has passed.
fn is_not_final(code: Code) -> bool {
    matches!(code, Code::FailedPrecondition | Code::DeadlineExceeded | Code::Cancelled)
}

/// Waits for the final result, with one call after the other until the limit.
pub(super) async fn wait_for_final(
    results: &mut ResultsServiceClient<Channel>,
    poll_id: &str,
    limit: Option<Instant>,
) -> Result<v1::GetFinalResultsResponse, tonic::Status> {
    loop {
        let left = limit.map_or(WAIT_CALL, |limit| limit.saturating_duration_since(Instant::now()));
        let started = Instant::now();
        let message = v1::GetFinalResultsRequest { poll_id: poll_id.to_owned(), wait: true };
        let status = match results.get_final_results(request(message, left.min(WAIT_CALL))).await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => status,
        };
        if !is_not_final(status.code()) || limit.is_some_and(|limit| Instant::now() + WAIT_PAUSE >= limit) {
            return Err(status);
        }
        tokio::time::sleep_until(started + WAIT_PAUSE).await;
    }
}

async fn watch(
    global: &Global,
    poll_id: String,
    results: &mut ResultsServiceClient<Channel>,
    polls: &mut PollServiceClient<Channel>,
) -> Outcome {
    let failed = |status| Failure::rpc("watching the results", global.results.url(), &status);
    let labels = Labels::read(polls, &poll_id).await;
    // No deadline: a poll may be open for days. Keep-alive notices a service that is gone.
    let message = v1::WatchInterimResultsRequest { poll_id };
    let mut updates = results.watch_interim_results(message).await.map_err(failed)?.into_inner();
    let mut canvas = Canvas::new(Term::stdout());
    let mut closed = std::pin::pin!(output::until_closed());
    loop {
        let update = tokio::select! {
            update = updates.message() => update.map_err(failed)?,
            () = &mut closed => return Ok(Answer::Yes),
        };
        let Some(update) = update else { break };
        let interim = json::Interim::from(update);
        if global.json {
            output::json(&interim)?;
        } else if canvas.can_redraw() {
            let lines = labels.interim(&interim, canvas.size());
            canvas.draw(&lines)?;
        } else {
            output::line(&plain(&interim))?;
        }
        if output::is_closed() {
            return Ok(Answer::Yes);
        }
    }
    output::note("no more changes: the result is final");
    Ok(Answer::Yes)
}

/// The room for results that are printed once.
fn room() -> Size {
    let term = Term::stdout();
    let columns = if term.is_term() { usize::from(term.size().1) } else { PLAIN_COLUMNS };
    Size { columns, rows: usize::MAX }
}

/// One line for logs and pipes.
fn plain(interim: &json::Interim) -> String {
    let at = interim.as_of.map_or_else(|| "-".to_owned(), |at| at.to_string());
    let options: String = interim
        .options
        .iter()
        .map(|option| format!(" {}={}", output::printable(&option.option_id), option.counted))
        .collect();
    format!("{at} submitted={} counted={}{options}", interim.total_submitted, interim.total_counted)
}

/// Titles of a poll and its options.
pub(super) struct Labels {
    heading: String,
    options: HashMap<String, String>,
}

impl Labels {
    /// Reads them; results are shown without titles if that fails.
    pub(super) async fn read(polls: &mut PollServiceClient<Channel>, poll_id: &str) -> Self {
        let message = v1::GetPollRequest { poll_id: poll_id.to_owned() };
        let poll = match polls.get_poll(request(message, CALL_TIMEOUT)).await {
            Ok(response) => response.into_inner().poll,
            Err(_) => None,
        };
        Self::new(poll_id, poll.map(json::Poll::from))
    }

    fn new(poll_id: &str, poll: Option<json::Poll>) -> Self {
        let Some(poll) = poll else {
            return Self { heading: output::printable(poll_id), options: HashMap::new() };
        };
        let title = if poll.title.is_empty() { &poll.poll_id } else { &poll.title };
        let heading = output::printable(title);
        let options = poll
            .options
            .into_iter()
            .filter(|option| !option.title.is_empty())
            .map(|option| (option.option_id, option.title))
            .collect();
        Self { heading, options }
    }

    fn label(&self, option_id: &str) -> String {
        self.options.get(option_id).map_or(option_id, String::as_str).to_owned()
    }

    /// Interim results as lines.
    pub(super) fn interim(&self, interim: &json::Interim, size: Size) -> Vec<String> {
        let rows: Vec<Row> = interim
            .options
            .iter()
            .map(|option| Row { label: self.label(&option.option_id), count: option.counted })
            .collect();
        let total = format!(
            "{} users have voted, {} votes were submitted",
            HumanCount(interim.total_counted),
            HumanCount(interim.total_submitted)
        );
        bars::page(&self.heading, " (interim)", &rows, &total, size)
    }

    /// The final result as lines.
    pub(super) fn last(&self, last: &json::Final, size: Size) -> Vec<String> {
        let rows: Vec<Row> = last
            .options
            .iter()
            .map(|option| Row { label: self.label(&option.option_id), count: option.votes })
            .collect();
        let total = format!("{} users have voted", HumanCount(last.total_votes));
        bars::page(&self.heading, " (final)", &rows, &total, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interim() -> json::Interim {
        json::Interim {
            poll_id: "p".into(),
            options: vec![
                json::InterimOption { option_id: "a".into(), submitted: 1_500, counted: 1_000 },
                json::InterimOption { option_id: "b".into(), submitted: 1, counted: 1 },
            ],
            total_submitted: 1_501,
            total_counted: 1_001,
            as_of: "2026-05-16T20:15:00Z".parse().ok(),
        }
    }

    #[test]
    fn a_plain_line() {
        assert_eq!(plain(&interim()), "2026-05-16T20:15:00Z submitted=1501 counted=1001 a=1000 b=1");
    }

    #[test]
    fn interim_results_say_that_they_are_interim() {
        let lines = Labels::new("p", None).interim(&interim(), Size { columns: 80, rows: 24 });
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0], "p (interim)");
        assert!(lines[1].starts_with("a  █"));
        assert_eq!(lines[3], "1,001 users have voted, 1,501 votes were submitted");
    }
}
