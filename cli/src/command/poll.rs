//! `votestream poll`: create, get, list and close polls, and release their results.
//!
//! Owns how polls are shown. Must never check a poll's definition: the service does that, with the same words for every
//! client.

use futures::TryStreamExt;
use votestream_client::{json, v1};

use crate::{
    args::{Global, PollCommand, PollCreateArgs, Source, Visibility},
    failure::{Answer, Failure, Outcome},
    output,
};

pub(super) async fn run(global: &Global, command: PollCommand) -> Outcome {
    let polls = global.connect_results().await?;
    let (what, answer) = match command {
        PollCommand::Create(args) => ("creating the poll", polls.create_poll(create_request(args)?).await),
        PollCommand::Get { poll } => ("reading the poll", polls.get_poll(&poll).await),
        PollCommand::Close { poll } => ("closing the poll", polls.close_poll(&poll).await),
        PollCommand::Release { poll } => ("releasing the results", polls.release_results(&poll).await),
        PollCommand::List => {
            let pages: Result<Vec<_>, _> = polls.all_polls().try_collect().await;
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
        options: args.options.into_iter().map(|option_id| v1::PollOption { option_id, title: String::new() }).collect(),
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

fn describe(poll: &json::Poll) -> Vec<String> {
    let options: Vec<_> = poll.options.iter().map(|option| output::printable(&option.option_id)).collect();
    let mut lines = vec![
        format!("poll      {}", output::printable(&poll.poll_id)),
        format!("title     {}", output::printable(&poll.title)),
        format!("state     {}", state(poll)),
        format!("options   {}", options.join(", ")),
        format!("opens     {}", time(poll.opens_at)),
        format!("closes    {}", time(poll.closes_at)),
        format!("source    {}", poll.source.trim_start_matches("POLL_SOURCE_").to_lowercase()),
        format!("sized for {} votes/s", poll.expected_peak),
        format!("results   {}", shown(poll)),
        format!("voters    {}", stored(poll)),
    ];
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
