//! The promises of a stream that resumes, against services that fail at random: each vote has exactly one outcome, none is
//! lost, none is called durable that is not stored or rejected that is, and the last vote of each user stays the last.
//!
//! The service is as mean as a deployment can be: what a broken connection brought may be stored up to 12 s later, behind
//! everything that was stored meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::sleep;
use tonic::{Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};
use votestream_client::{
    Cause, Client, Outcome, Retry, StreamOptions, Vote,
    v1::{Rejection, RejectionCode, StreamVotesResponse},
};
use votestream_proto::{ReceivedVotes, VotesMessage};

use crate::fake::{Answers, Network, streams};

/// How long a vote of a broken connection may take to be stored, in milliseconds.
const LANDS_WITHIN_MILLIS: u64 = 12_000;
/// Longest time of a plan: all failures, with the longest pause and the longest hold after each.
const TIME_MAX: Duration = Duration::from_secs(3_600);

#[derive(Clone, Copy, Debug)]
struct Plan {
    seed: u64,
    votes: u64,
    users: u64,
    /// Options that users choose from: with few of them they often choose the same again.
    options: u64,
    unsettled_votes_max: u64,
    /// Streams that fail; later ones are handled well.
    failures: usize,
    /// Percent of votes that are rejected, whatever happens.
    rejected: u32,
    attempts_max: u32,
}

fn plans() -> impl Strategy<Value = Plan> {
    let (few, many) = (1_u64..4, 1_u64..60);
    (any::<u64>(), 1_u64..400, prop_oneof![few, many], 1_u64..6, 1_u64..80, 0_usize..30, 0_u32..30, 2_u32..30).prop_map(
        |(seed, votes, users, options, unsettled_votes_max, failures, rejected, attempts_max)| Plan {
            seed,
            votes,
            users,
            options,
            unsettled_votes_max,
            failures,
            rejected,
            attempts_max,
        },
    )
}

/// A vote as the service stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stored {
    user: String,
    option: String,
}

/// What is stored, in its order.
type Log = Arc<Mutex<Vec<Stored>>>;

fn read(message: &VotesMessage) -> Vec<Stored> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let votes = message.votes().map(|vote| vote.unwrap());
    votes.map(|vote| Stored { user: text(vote.user_id), option: text(vote.option_id) }).collect()
}

/// Votes whose option says so are rejected, by every stream.
fn is_bad(vote: &Stored) -> bool {
    vote.option.starts_with("bad")
}

/// Takes votes of one stream until it has had enough of it.
async fn take(
    mut rng: StdRng,
    is_good: bool,
    mut messages: Streaming<VotesMessage>,
    answers: Answers,
    log: Log,
    network: Network,
) -> Option<Status> {
    let (mut count, end) = (0, rng.random_range(0..6));
    let patience = if is_good { u32::MAX } else { rng.random_range(0..4) };
    for _ in 0..patience {
        let Ok(Some(message)) = messages.message().await else { return None };
        let votes = read(&message);
        let first = count;
        count += votes.len() as u64;
        let rejection = |(index, _): (u64, &Stored)| Rejection {
            index,
            code: RejectionCode::OptionNotFound.into(),
            reason: "no such option".into(),
        };
        let bad = (first..).zip(&votes).filter(|(_, vote)| is_bad(vote)).map(rejection).collect::<Vec<_>>();
        let store = |votes: &[Stored]| log.lock().unwrap().extend(votes.iter().filter(|vote| !is_bad(vote)).cloned());
        if !is_good && rng.random_ratio(1, 3) {
            // A part is answered, if any. More is stored, unless the stream ends with the word that it was not accepted.
            let through = rng.random_range(first..=count);
            store(if end < 2 { &votes[..(through - first) as usize] } else { &votes });
            let rejections = bad.into_iter().filter(|rejection| rejection.index < through).collect();
            answers.send(Ok(StreamVotesResponse { durable_through: through, rejections })).await.ok()?;
            break;
        }
        store(&votes);
        answers.send(Ok(StreamVotesResponse { durable_through: count, rejections: bad })).await.ok()?;
    }
    // What else has come was not accepted, or is stored behind our back.
    let rest = match tokio::time::timeout(Duration::from_millis(1), messages.message()).await {
        Ok(Ok(Some(message))) => read(&message).into_iter().filter(|vote| !is_bad(vote)).collect(),
        Ok(Ok(None) | Err(_)) | Err(_) => Vec::new(),
    };
    let retry = ErrorDetails::with_retry_info(Some(Duration::from_millis(700)));
    match end {
        0 => Some(Status::unavailable("it stops; what came after durable_through was not accepted")),
        1 => Some(Status::with_error_details(tonic::Code::ResourceExhausted, "full", retry)),
        2 => None,
        3 => {
            network.cut();
            Some(Status::internal("nobody reads this"))
        }
        _ => {
            let after = Duration::from_millis(rng.random_range(0..LANDS_WITHIN_MILLIS));
            let (landing, cut) = (log.clone(), rng.random_bool(0.5));
            tokio::spawn(async move {
                sleep(after).await;
                landing.lock().unwrap().extend(rest);
            });
            if cut {
                network.cut();
            }
            Some(Status::internal("broken"))
        }
    }
}

/// Casts the votes of a plan, and judges what became of them.
async fn run(plan: Plan) -> Result<(), TestCaseError> {
    let log = Log::default();
    let network: Arc<Mutex<Option<Network>>> = Arc::default();
    let (service_log, service_network) = (log.clone(), network.clone());
    let (connected, channel) = streams(move |at, messages, answers| {
        let rng = StdRng::seed_from_u64(plan.seed ^ at as u64);
        let network = service_network.lock().unwrap().clone();
        let (log, is_good) = (service_log.clone(), at >= plan.failures);
        async move { take(rng, is_good, messages, answers, log, network?).await }
    });
    *network.lock().unwrap() = Some(connected);
    let options = StreamOptions {
        unsettled_votes_max: plan.unsettled_votes_max,
        retry: Retry { attempts_max: plan.attempts_max, ..Retry::DEFAULT },
        ..StreamOptions::default()
    };
    let (sender, mut outcomes) = Client::builder().ingest_over(channel).stream_votes(options);
    let pushing = tokio::spawn(async move {
        let mut rng = StdRng::seed_from_u64(plan.seed);
        let mut pushed = Vec::new();
        for number in 0..plan.votes {
            let bad = if rng.random_ratio(plan.rejected, 100) { "bad" } else { "" };
            let user = rng.random_range(0..plan.users).to_string();
            let option = format!("{bad}{}", rng.random_range(0..plan.options));
            match sender.push(Vote { poll_id: "p", user_id: &user, option_id: &option }).await {
                Ok(taken) => assert_eq!(taken, number),
                Err(_) => break,
            }
            pushed.push(Stored { user, option });
            if rng.random_ratio(1, 50) {
                sleep(Duration::from_millis(rng.random_range(0..2_000))).await;
            }
        }
        pushed
    });
    let mut rng = StdRng::seed_from_u64(!plan.seed);
    let mut seen = Vec::new();
    while let Some((number, outcome)) = outcomes.next().await {
        prop_assert_eq!(number, seen.len() as u64, "outcomes come in the order of their votes");
        seen.push(outcome);
        if rng.random_ratio(1, 50) {
            sleep(Duration::from_millis(rng.random_range(0..500))).await;
        }
    }
    let pushed = pushing.await.unwrap();
    // Everything lands that can.
    sleep(Duration::from_millis(LANDS_WITHIN_MILLIS)).await;
    let log = log.lock().unwrap();
    let gave_up = outcomes.failure().is_some();
    judge(&pushed, &seen, &log, gave_up)?;
    prop_assert!(gave_up || pushed.len() as u64 == plan.votes);
    Ok(())
}

fn judge(pushed: &[Stored], seen: &[Outcome], log: &[Stored], gave_up: bool) -> Result<(), TestCaseError> {
    prop_assert_eq!(pushed.len(), seen.len(), "every vote has one outcome");
    let stored: BTreeSet<_> = log.iter().map(|vote| (&vote.user, &vote.option)).collect();
    let last: BTreeMap<_, _> = log.iter().map(|vote| (&vote.user, &vote.option)).collect();
    // What may be the last of a user: the last durable vote, and whatever is unknown behind it.
    let mut may_be_last: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (vote, outcome) in pushed.iter().zip(seen) {
        let options = may_be_last.entry(&vote.user).or_default();
        match outcome {
            Outcome::Durable => {
                prop_assert!(!is_bad(vote) && stored.contains(&(&vote.user, &vote.option)), "{:?} is lost", vote);
                *options = [Some(&vote.option)].into();
            }
            Outcome::Rejected { cause, .. } => {
                prop_assert!(is_bad(vote) || (gave_up && *cause == Cause::NotStored), "{:?}: {:?}", vote, outcome);
            }
            Outcome::Unknown { .. } => {
                prop_assert!(gave_up, "{:?} is unknown", vote);
                if options.is_empty() {
                    options.insert(None);
                }
                options.insert(Some(&vote.option));
            }
        }
    }
    for (user, options) in may_be_last {
        let last = last.get(user).copied();
        prop_assert!(options.is_empty() && last.is_none() || options.contains(&last), "{user}: {last:?} is the last");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_fails_each_vote_has_one_outcome_and_the_last_stays_the_last(plan in plans()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        // Nothing takes longer, and nothing takes for ever.
        let ran = runtime.block_on(async { tokio::time::timeout(TIME_MAX, run(plan)).await });
        ran.map_err(|_| TestCaseError::fail("it takes for ever"))??;
    }
}
