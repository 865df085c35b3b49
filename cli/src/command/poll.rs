//! `votestream poll`: create, get, list and close polls.
//!
//! Owns how polls are shown. Must never check a poll's definition: the service does, with the same words for every client.

use votestream_proto::v1;

use crate::{
    args::{Global, PollCommand, PollCreateArgs, Source},
    connect::{self, CALL_TIMEOUT, request},
    failure::{Answer, Failure, Outcome},
    json, output,
};

/// Polls of a page when all are listed.
const PAGE_SIZE: u32 = 1_000;
/// Pages that are read at the most: a service whose pages never end is broken.
const PAGES_MAX: usize = 10_000;

pub(super) async fn run(global: &Global, command: PollCommand) -> Outcome {
    let url = global.results.url();
    let (_, mut polls) = connect::results(&global.results).await?;
    let poll = match command {
        PollCommand::Create(args) => {
            let message = create_request(args)?;
            polls
                .create_poll(request(message, CALL_TIMEOUT))
                .await
                .map(|response| response.into_inner().poll)
                .map_err(|status| Failure::rpc("creating the poll", url, &status))?
        }
        PollCommand::Get { poll } => polls
            .get_poll(request(v1::GetPollRequest { poll_id: poll }, CALL_TIMEOUT))
            .await
            .map(|response| response.into_inner().poll)
            .map_err(|status| Failure::rpc("reading the poll", url, &status))?,
        PollCommand::Close { poll } => polls
            .close_poll(request(v1::ClosePollRequest { poll_id: poll }, CALL_TIMEOUT))
            .await
            .map(|response| response.into_inner().poll)
            .map_err(|status| Failure::rpc("closing the poll", url, &status))?,
        PollCommand::List => {
            let mut all = Vec::new();
            let mut page_token = String::new();
            for _ in 0..PAGES_MAX {
                let page = polls
                    .list_polls(request(v1::ListPollsRequest { page_size: PAGE_SIZE, page_token }, CALL_TIMEOUT))
                    .await
                    .map_err(|status| Failure::rpc("listing polls", url, &status))?
                    .into_inner();
                all.extend(page.polls.into_iter().map(json::Poll::from));
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
            return show_list(global, all);
        }
    };
    let poll = json::Poll::from(poll.ok_or_else(|| Failure::failed(format!("{url} answered without a poll")))?);
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
                .map_err(|_| Failure::usage("--closes-in: that is beyond the calendar"))?,
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
    })
}

/// State of a poll for people.
pub(super) fn state(poll: &json::Poll) -> String {
    poll.state.trim_start_matches("POLL_STATE_").to_lowercase()
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
    ];
    if poll.needs_recount {
        lines.push(format!("waits for a recount: votestream audit {}", output::printable(&poll.poll_id)));
    }
    lines
}

fn show_list(global: &Global, polls: Vec<json::Poll>) -> Outcome {
    if global.json {
        output::json(&json::PollList { polls })?;
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
