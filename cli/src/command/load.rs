//! `votestream load`: casts generated votes and measures.
//!
//! Owns a run from the poll's options to the report. Must never make the service look better than it is: with a rate, a vote's
//! time counts from the moment at which it was due, so a stall counts for every vote that it delayed.

mod arrivals;
mod call;
mod count;
mod phones;
mod report;
mod streams;
mod tokens;

use std::sync::Arc;

use indicatif::ProgressBar;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use votestream_client::IngestClient;
use votestream_process::terminal::Signals;

use self::{
    phones::Phones,
    report::{Report, SentAs},
    tokens::Tokens,
};
use crate::{
    args::{Arrivals, Global, LoadArgs},
    failure::{Answer, Failure, Outcome},
    generate::Plan,
    output,
};

/// Where the votes go. Copies are cheap.
#[derive(Clone, Debug)]
struct Poll {
    id: Arc<str>,
    options: Arc<[String]>,
}

pub(super) async fn run(global: &Global, args: LoadArgs, mut signals: Signals) -> Outcome {
    if args.rate == 0 && args.arrivals != Arrivals::Steady {
        return Err(Failure::usage(format!("--arrivals {} needs a --rate above 0", args.arrivals.name())));
    }
    let progress = ProgressBar::new(args.votes);
    let prepared = tokio::select! {
        prepared = prepare(global, &args, &progress) => prepared?,
        signal = signals.next() => return Err(Failure::Interrupted(signal)),
    };
    let stop = CancellationToken::new();
    output::show_progress(&progress, "{bar:40} {human_pos} of {human_len} votes, {per_sec}, {eta} left");
    let sent_as = SentAs::of(&args, global.is_ingest_secure());
    let mut casting = std::pin::pin!(cast(&args, prepared, sent_as, &progress, &stop));
    let (measured, signal) = tokio::select! {
        measured = &mut casting => (measured?, None),
        signal = signals.next() => {
            output::note("interrupted: waiting until every sent vote is answered (a second signal stops at once)");
            stop.cancel();
            tokio::select! {
                measured = casting => (measured?, Some(signal)),
                signal = signals.next() => return Err(Failure::Interrupted(signal)),
            }
        }
    };
    let (report, failure) = measured;
    report.show(global.json, args.votes)?;
    match (failure, signal) {
        (Some(failure), _) => Err(failure),
        (None, Some(signal)) => Err(Failure::Interrupted(signal)),
        (None, None) => Ok(Answer::yes_if(report.is_whole())),
    }
}

/// What a run needs before its first vote.
struct Prepared {
    plan: Plan,
    poll: Poll,
    senders: Senders,
}

/// Who sends the votes.
enum Senders {
    Streams(Vec<IngestClient>),
    Phones(Box<Phones>),
}

async fn prepare(global: &Global, args: &LoadArgs, progress: &ProgressBar) -> Result<Prepared, Failure> {
    let poll = poll_of(global, &args.poll).await?;
    let tokens = Tokens::open(global, args)?;
    let voters = voters(args, tokens.voters_max())?;
    let streams = if args.unary { 1 } else { u32::try_from(voters).unwrap_or(u32::MAX).min(args.connections) };
    let plan = Plan { votes: args.votes, voters, options: poll.options.len(), streams, seed: args.seed };
    let senders = if args.unary {
        let phones = Phones::prepare(global, args, poll.clone(), tokens, progress).await?;
        Senders::Phones(Box::new(phones))
    } else {
        Senders::Streams(streams::connect(global, streams).await?)
    };
    Ok(Prepared { plan, poll, senders })
}

/// Casts the votes, until all are settled or it is told to stop.
async fn cast(
    args: &LoadArgs,
    Prepared { plan, poll, senders }: Prepared,
    sent_as: SentAs,
    progress: &ProgressBar,
    stop: &CancellationToken,
) -> Result<(Report, Option<Failure>), Failure> {
    let start = Instant::now();
    let (counts, pacing, failure) = match senders {
        Senders::Streams(clients) => {
            let (counts, failure) = streams::cast(args, plan, &poll, clients, progress, stop).await?;
            (counts, None, failure)
        }
        Senders::Phones(phones) => {
            let (counts, pacing) = phones.cast(args, plan.stream(0), stop).await?;
            (counts, Some(pacing), None)
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    progress.finish_and_clear();
    let of_what = if args.unary { "not accepted" } else { "rejected" };
    for reason in &counts.reasons {
        output::note(&format!("{of_what}: {}", output::printable(reason)));
    }
    Ok((Report::new(args, sent_as, plan.voters, &counts, pacing, seconds), failure))
}

/// How many users vote.
fn voters(args: &LoadArgs, most: Option<u64>) -> Result<u64, Failure> {
    let asked = args.voters.map(|voters| voters.min(args.votes));
    match (asked, most) {
        (Some(asked), Some(most)) if asked > most => {
            Err(Failure::usage(format!("--voters {asked}: there are tokens for {most}")))
        }
        (asked, most) => {
            let voters = asked.unwrap_or_else(|| first_votes(args.votes, args.revote_share));
            Ok(voters.min(most.unwrap_or(u64::MAX)).clamp(1, args.votes))
        }
    }
}

/// Number of users, so that this share of the votes is left for re-votes.
fn first_votes(votes: u64, revote_share: f64) -> u64 {
    ((votes as f64) * (1.0 - revote_share)).round() as u64
}

async fn poll_of(global: &Global, poll: &str) -> Result<Poll, Failure> {
    let results = global.connect_results().await?;
    let found = results.get_poll(poll).await.map_err(|error| Failure::client("reading the poll", error))?;
    let options: Arc<[String]> = found.options.into_iter().map(|option| option.option_id).collect();
    if options.is_empty() {
        return Err(Failure::failed(format!("{} answered with a poll without options", results.address())));
    }
    Ok(Poll { id: poll.into(), options })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn the_revote_share_leaves_the_first_votes() {
        assert_eq!(first_votes(1_000, 0.0), 1_000);
        assert_eq!(first_votes(1_000, 0.4), 600);
        assert_eq!(first_votes(1_000, 1.0), 0);
    }

    #[test]
    fn there_are_as_many_voters_as_tokens_at_most() {
        let voters = |more: &[&str], most| {
            let all = ["votestream", "load", "--poll", "p", "--votes", "100"].iter().chain(more);
            let Command::Load(args) = Cli::parse_from(all).command else { panic!() };
            voters(&args, most)
        };
        assert_eq!(voters(&[], None), Ok(100));
        assert_eq!(voters(&["--revote-share", "1"], None), Ok(1));
        assert_eq!(voters(&["--voters", "500"], None), Ok(100));
        assert_eq!(voters(&[], Some(40)), Ok(40));
        assert_eq!(voters(&["--voters", "40"], Some(40)), Ok(40));
        assert!(matches!(voters(&["--voters", "41"], Some(40)), Err(Failure::Usage(_))));
    }
}
