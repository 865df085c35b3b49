//! `votestream results`: interim results, once or as they change, and the final result.
//!
//! Owns how results are shown, and how it is said that they are not. Must never show interim counts as final.

mod table;

use std::collections::HashMap;

use console::Term;
use indicatif::HumanCount;
use votestream_client::{ClientError, ResultsClient, json};

use crate::{
    args::{Global, ResultsArgs},
    bars::{self, Canvas, Row, Size},
    failure::{Answer, Failure, Outcome},
    output,
};

/// Width when the output is not a terminal.
const PLAIN_COLUMNS: usize = 80;

pub(super) async fn run(global: &Global, args: ResultsArgs) -> Outcome {
    let results = global.connect_results().await?;
    if args.is_final {
        return show_final(global, args, &results).await;
    }
    if args.watch {
        return watch(global, &args.poll, &results).await;
    }
    let interim = match results.interim_results(&args.poll).await {
        Ok(response) => json::Interim::from(response),
        Err(error) if error.is_hidden() => return not_shown(&error),
        Err(error) => return Err(Failure::client("reading the results", error)),
    };
    if global.json {
        output::json(&interim)?;
    } else if args.csv {
        let rows = interim.options.iter().map(|option| (option.option_id.as_str(), [option.submitted, option.counted]));
        table::print(&results, &interim.poll_id, ["submitted", "counted"], rows).await?;
    } else {
        let labels = Labels::read(&results, &interim.poll_id).await;
        output::lines(&labels.interim(&interim, room()))?;
    }
    Ok(Answer::Yes)
}

async fn show_final(global: &Global, args: ResultsArgs, results: &ResultsClient) -> Outcome {
    let response = if args.wait {
        results.wait_for_final_results(&args.poll, args.timeout).await
    } else {
        results.final_results(&args.poll).await
    };
    let response = match response {
        Ok(response) => json::Final::from(response),
        Err(error) if error.is_hidden() => return not_shown(&error),
        Err(error) if error.is_not_final() => {
            let message = error.status().map(tonic::Status::message).unwrap_or_default();
            output::note(&format!("not final: {}", output::printable(message)));
            return Ok(Answer::No);
        }
        Err(error) => return Err(Failure::client("reading the final result", error)),
    };
    if global.json {
        output::json(&response)?;
    } else if args.csv {
        let rows = response.options.iter().map(|option| (option.option_id.as_str(), [option.votes]));
        table::print(results, &response.poll_id, ["votes"], rows).await?;
    } else {
        let labels = Labels::read(results, &response.poll_id).await;
        output::lines(&labels.last(&response, room()))?;
    }
    Ok(Answer::Yes)
}

async fn watch(global: &Global, poll_id: &str, results: &ResultsClient) -> Outcome {
    let labels = Labels::read(results, poll_id).await;
    let mut updates = results.watch_results(poll_id);
    let mut canvas = Canvas::new(Term::stdout());
    let mut closed = std::pin::pin!(output::until_closed());
    loop {
        let update = tokio::select! {
            update = updates.next() => update,
            () = &mut closed => return Ok(Answer::Yes),
        };
        let Some(update) = update else { break };
        let interim = match update {
            Ok(update) => json::Interim::from(update),
            Err(error) if error.is_hidden() => return not_shown(&error),
            Err(error) => return Err(Failure::client("watching the results", error)),
        };
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

/// Says why nothing is shown.
fn not_shown(error: &ClientError) -> Outcome {
    let message = error.status().map(tonic::Status::message).unwrap_or_default();
    output::note(&format!("not shown: {}", output::printable(message)));
    Ok(Answer::No)
}

/// The room for results that are printed only once.
fn room() -> Size {
    let term = Term::stdout();
    let columns = if term.is_term() { usize::from(term.size().1) } else { PLAIN_COLUMNS };
    Size { columns, rows: usize::MAX }
}

/// One line, for logs and pipes.
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
    /// Reads the titles. If that fails, results are shown without titles.
    pub(super) async fn read(results: &ResultsClient, poll_id: &str) -> Self {
        let poll = results.get_poll(poll_id).await;
        Self::new(poll_id, poll.ok().map(json::Poll::from))
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
