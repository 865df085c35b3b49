//! A show that votes: `votestream up --demo` fills the page for whoever wants to look before they build.
//!
//! Owns the programme of the show: which polls there are, and how many votes come when. Must never touch a poll that it
//! has not created. Must never end the stack: if it fails, it says so, and the stack goes on.

use std::time::Duration;

use jiff::Timestamp;
use tokio::{sync::mpsc, time::MissedTickBehavior};
use votestream_client::{
    Address, Client, ClientError, MessageBuilder, Observer, Outgoing, ResultsClient, SOURCE_MESSAGES_MAX,
    StreamOptions, Vote, json,
    v1::{self, Rejection},
};

use crate::{
    generate::{Generated, Plan, Votes},
    output,
};

/// The acts, with titles as people write them.
const ACTS: [(&str, &str); 8] = [
    ("aurora", "Aurora 🌅"),
    ("bolero", "Boléro de minuit"),
    ("canto", "Canto do mar 🌊"),
    ("dusk", "Dusk & the Dawns"),
    ("echo", "エコー"),
    ("fado", "Fado Novo"),
    ("gazal", "غزل"),
    ("hymn", "Hymn for Saturday 🎹"),
];
/// How long the polls of a round are open.
const OPEN_FOR: Duration = Duration::from_secs(90);
/// How long the results of a round are looked at before the next one opens.
const BREAK: Duration = Duration::from_secs(25);
/// When the hidden results of a round are released, after its end.
const RELEASE_AFTER: Duration = Duration::from_secs(12);
/// How often votes are sent.
const TICK: Duration = Duration::from_millis(100);
/// Votes per second at the announcement, when half of the audience reaches for its phones.
const PEAK: f64 = 900.0;
/// Votes per second of those who take their time.
const STEADY: f64 = 120.0;
/// By how much the votes of the announcement have fallen off after this many seconds: to a third.
const FALL_OFF: f64 = 9.0;
/// Votes and voters of a round, of whom some change their minds. More than are ever sent.
const VOTES: u64 = 1 << 20;
const VOTERS: u64 = VOTES / 5 * 4;

/// A question of a round, and when its results are shown.
struct Question {
    id: &'static str,
    title: &'static str,
    visibility: v1::PollVisibility,
}

const QUESTIONS: [Question; 2] = [
    Question { id: "song", title: "Song of the evening 🎶", visibility: v1::PollVisibility::Live },
    Question { id: "encore", title: "Who plays once more?", visibility: v1::PollVisibility::OnRelease },
];

/// Plays round after round until it is dropped.
pub(crate) async fn play(address: Address) {
    if let Err(error) = rounds(address).await {
        output::note(&format!("the show has ended: {error}"));
    }
}

async fn rounds(address: Address) -> Result<(), ClientError> {
    let client = Client::builder().server_address(address);
    let (results, ingest) = (client.connect_results().await?, client.connect_ingest().await?);
    let (to_stream, source) = mpsc::channel(SOURCE_MESSAGES_MAX);
    let rounds = async {
        let mut opens_at = Timestamp::now();
        announce(&results, 1, opens_at).await?;
        for round in 1.. {
            let next = opens_at + OPEN_FOR + BREAK;
            announce(&results, round + 1, next).await?;
            vote(round, opens_at, &to_stream).await;
            sleep_until(opens_at + OPEN_FOR + RELEASE_AFTER).await;
            for question in QUESTIONS.iter().filter(|question| question.visibility == v1::PollVisibility::OnRelease) {
                results.release_results(&poll_id(question, round)).await?;
            }
            sleep_until(next).await;
            opens_at = next;
        }
        Ok(())
    };
    // Votes for polls that have just closed are refused, which is part of every show.
    let mut refused = Refused;
    tokio::select! {
        ended = rounds => ended,
        ended = ingest.stream_messages(StreamOptions::default(), source, &mut refused) => {
            ended.failure.map_or(Ok(()), Err)
        }
    }
}

fn poll_id(question: &Question, round: u64) -> String {
    format!("{}-{round}", question.id)
}

/// Creates the polls of a round.
async fn announce(results: &ResultsClient, round: u64, opens_at: Timestamp) -> Result<(), ClientError> {
    for question in &QUESTIONS {
        let option = |(id, title): &(&str, &str)| v1::PollOption { option_id: (*id).into(), title: (*title).into() };
        let poll = v1::CreatePollRequest {
            poll_id: poll_id(question, round),
            title: format!("{} · round {round}", question.title),
            options: ACTS.iter().map(option).collect(),
            opens_at: Some(json::to_proto(opens_at)),
            closes_at: Some(json::to_proto(opens_at + OPEN_FOR)),
            visibility: question.visibility.into(),
            ..v1::CreatePollRequest::default()
        };
        results.create_poll(poll).await?;
    }
    Ok(())
}

/// Votes per second so many seconds after the announcement.
fn rate(seconds: f64) -> f64 {
    STEADY + PEAK * (-seconds / FALL_OFF).exp()
}

/// Sends the votes of a round.
async fn vote(round: u64, opens_at: Timestamp, to_stream: &mpsc::Sender<Outgoing<()>>) {
    sleep_until(opens_at).await;
    let plan = |seed| Plan { votes: VOTES, voters: VOTERS, options: ACTS.len(), streams: 1, seed };
    let mut votes: Vec<Votes> = (0..QUESTIONS.len() as u64).map(|at| plan(2 * round + at).stream(0)).collect();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut due = 0.0;
    loop {
        ticks.tick().await;
        let since = Timestamp::now().duration_since(opens_at);
        if since >= jiff::SignedDuration::try_from(OPEN_FOR).unwrap_or_default() {
            return;
        }
        due += rate(since.as_secs_f64().max(0.0)) * TICK.as_secs_f64();
        let mut message = MessageBuilder::new(due as usize);
        for (at, question) in QUESTIONS.iter().enumerate() {
            let poll_id = poll_id(question, round);
            // Each act has its fans, who differ from round to round.
            let favourite = |vote: &Generated| ACTS[(vote.option + (3 * round as usize + at)) % ACTS.len()].0;
            for vote in votes[at].by_ref().take(due as usize / QUESTIONS.len()) {
                message.push(Vote { poll_id: &poll_id, user_id: vote.user_id.as_str(), option_id: favourite(&vote) });
            }
        }
        due = due.fract();
        // A closed channel means that the stream broke, which it reports itself.
        if message.votes() > 0 && to_stream.send(message.finish(None, ())).await.is_err() {
            return;
        }
    }
}

async fn sleep_until(at: Timestamp) {
    let left = at.duration_since(Timestamp::now());
    tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
}

/// Nobody asks what became of a vote.
struct Refused;

impl Observer<()> for Refused {
    fn rejected(&mut self, _place: Option<(&(), u64)>, _rejection: Rejection) {}

    fn settled(&mut self, (): (), _votes: u64, _latency: Duration) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_loud_at_first_and_has_enough_votes() {
        assert!(rate(0.0) > 5.0 * rate(60.0));
        let sent: f64 = (0..OPEN_FOR.as_secs()).map(|second| rate(second as f64)).sum();
        assert!(sent < VOTES as f64, "{sent}");
    }
}
