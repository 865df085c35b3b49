//! `votestream poll`: create, get, list and close polls, and release their results.
//!
//! Owns how polls are shown. Must never check a poll's definition: the service does that, with the same words for every
//! client.

use std::{fs::File, io, path::Path};

use console::{Alignment, measure_text_width, pad_str};
use futures::TryStreamExt;
use votestream_client::{json, v1};
use votestream_core::model::limits::OPTIONS_MAX;

use crate::{
    args::{Global, PollCommand, PollCreateArgs, Source, Visibility},
    failure::{Answer, Failure, Outcome},
    option_file::{self, NewOption},
    output,
};

pub(super) async fn run(global: &Global, command: PollCommand) -> Outcome {
    let connect = || global.connect_results();
    let (what, answer) = match command {
        PollCommand::Create(mut args) => {
            // Mistakes in the file are told before a service is looked for.
            add_options_of_file(&mut args).await?;
            let request = create_request(args)?;
            ("creating the poll", connect().await?.create_poll(request).await)
        }
        PollCommand::Get { poll } => ("reading the poll", connect().await?.get_poll(&poll).await),
        PollCommand::Close { poll } => ("closing the poll", connect().await?.close_poll(&poll).await),
        PollCommand::Release { poll } => ("releasing the results", connect().await?.release_results(&poll).await),
        PollCommand::List => {
            let pages: Result<Vec<_>, _> = connect().await?.all_polls().try_collect().await;
            let all = pages.map_err(|error| Failure::client("listing polls", error))?;
            return show_list(global, all.into_iter().flatten().map(json::Poll::from).collect());
        }
    };
    let poll = json::Poll::from(answer.map_err(|error| Failure::client(what, error))?);
    if global.json {
        output::json(&json::PollResponse { poll })?;
    } else {
        output::lines(&describe(&poll))?;
    }
    Ok(Answer::Yes)
}

async fn add_options_of_file(args: &mut PollCreateArgs) -> Result<(), Failure> {
    let Some(path) = args.options_file.take() else { return Ok(()) };
    let options_max = OPTIONS_MAX.saturating_sub(args.options.len());
    // On a thread of its own: a read of stdin may take for ever, and a signal ends the command all the same.
    let reading = tokio::task::spawn_blocking(move || read_options(&path, options_max));
    args.options.extend(reading.await.map_err(|error| Failure::failed(format!("a task failed: {error}")))??);
    Ok(())
}

fn read_options(path: &Path, options_max: usize) -> Result<Vec<NewOption>, Failure> {
    let read = if path == Path::new("-") {
        option_file::read(io::stdin(), options_max)
    } else {
        File::open(path).map_err(|error| error.to_string()).and_then(|file| option_file::read(file, options_max))
    };
    read.map_err(|error| Failure::usage(format!("--options-file: {}: {error}", path.display())))
}

fn create_request(args: PollCreateArgs) -> Result<v1::CreatePollRequest, Failure> {
    let closes_at = match (args.closes_at, args.closes_in) {
        (Some(at), _) => Some(at),
        (None, Some(after)) => Some(
            jiff::Timestamp::now()
                .checked_add(after)
                .map_err(|_| Failure::usage("--closes-in: this is too far in the future"))?,
        ),
        (None, None) => None,
    };
    Ok(v1::CreatePollRequest {
        poll_id: args.id,
        title: args.title,
        options: args
            .options
            .into_iter()
            .map(|NewOption { option_id, title }| v1::PollOption { option_id, title })
            .collect(),
        opens_at: args.opens_at.map(json::to_proto),
        closes_at: closes_at.map(json::to_proto),
        source: match args.source {
            Source::Ingest => v1::PollSource::Ingest,
            Source::Stream => v1::PollSource::Stream,
        }
        .into(),
        expected_peak: args.expected_peak,
        visibility: match args.visibility {
            Visibility::Live => v1::PollVisibility::Live,
            Visibility::WhenFinal => v1::PollVisibility::WhenFinal,
            Visibility::OnRelease => v1::PollVisibility::OnRelease,
        }
        .into(),
    })
}

/// State of a poll, as text for people.
pub(super) fn state(poll: &json::Poll) -> String {
    poll.state.trim_start_matches("POLL_STATE_").to_lowercase()
}

/// When readers see the results, as text for people.
fn shown(poll: &json::Poll) -> String {
    match (poll.visibility, poll.released_at) {
        ("POLL_VISIBILITY_WHEN_FINAL", _) => "shown once they are final (when-final)".to_owned(),
        ("POLL_VISIBILITY_ON_RELEASE", None) => "hidden until they are released (on-release)".to_owned(),
        ("POLL_VISIBILITY_ON_RELEASE", Some(at)) => format!("shown since {at} (on-release)"),
        _ => "shown (live)".to_owned(),
    }
}

/// How the users are stored, as text for people.
fn stored(poll: &json::Poll) -> String {
    match poll.pseudonym_key_id.as_str() {
        "" => "stored under the ids that they vote with".to_owned(),
        id => format!("stored under pseudonyms, key {}", output::printable(id)),
    }
}

fn time(at: Option<jiff::Timestamp>) -> String {
    at.map_or_else(|| "-".to_owned(), |at| at.to_string())
}

/// The options: one a line beside its title, or all in one line if none has a title. The service takes the id for a title that is
/// missing.
fn options(poll: &json::Poll) -> Vec<String> {
    let ids: Vec<_> = poll.options.iter().map(|option| output::printable(&option.option_id)).collect();
    let has_title = |option: &json::PollOption| !option.title.is_empty() && option.title != option.option_id;
    if !poll.options.iter().any(has_title) {
        return vec![ids.join(", ")];
    }
    let width = ids.iter().map(|id| measure_text_width(id)).max().unwrap_or(0);
    let line = |(id, option): (&String, &json::PollOption)| match has_title(option) {
        true => format!("{}  {}", pad_str(id, width, Alignment::Left, None), output::printable(&option.title)),
        false => id.clone(),
    };
    ids.iter().zip(&poll.options).map(line).collect()
}

fn describe(poll: &json::Poll) -> Vec<String> {
    let mut lines = vec![
        format!("poll      {}", output::printable(&poll.poll_id)),
        format!("title     {}", output::printable(&poll.title)),
        format!("state     {}", state(poll)),
    ];
    let headings = std::iter::once("options").chain(std::iter::repeat(""));
    lines.extend(options(poll).iter().zip(headings).map(|(option, heading)| format!("{heading:10}{option}")));
    lines.extend([
        format!("opens     {}", time(poll.opens_at)),
        format!("closes    {}", time(poll.closes_at)),
        format!("source    {}", poll.source.trim_start_matches("POLL_SOURCE_").to_lowercase()),
        format!("sized for {} votes/s", poll.expected_peak),
        format!("results   {}", shown(poll)),
        format!("voters    {}", stored(poll)),
    ]);
    if poll.needs_recount {
        lines.push(format!("waits for a recount: votestream audit {}", output::printable(&poll.poll_id)));
    }
    lines
}

fn show_list(global: &Global, polls: Vec<json::Poll>) -> Outcome {
    if global.json {
        output::json(&json::PollList { polls, next_page_token: String::new() })?;
        return Ok(Answer::Yes);
    }
    if polls.is_empty() {
        output::note("no polls yet; create one with `votestream poll create`");
    }
    let width = polls.iter().map(|poll| poll.poll_id.len()).max().unwrap_or(0);
    for poll in polls.iter().take_while(|_| !output::is_closed()) {
        output::line(&format!(
            "{:width$}  {:9}  closes {}  {} options  {}",
            output::printable(&poll.poll_id),
            state(poll),
            time(poll.closes_at),
            poll.options.len(),
            output::printable(&poll.title),
        ))?;
    }
    Ok(Answer::Yes)
}
